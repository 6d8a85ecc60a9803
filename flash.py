"""Flash attention in Triton (Dao 2023): causal, grouped-query, over packed documents; forward, backward, and one decoding step.

`attention.reference` is the definition that these kernels must equal; tests/test_flash.py holds them to it, block size by block size.

Shapes: B rows, T positions, S cache columns, H query heads, K key/value heads, G = H/K, D head width.
q, out, dq (B, T, H, D); k, v, dk, dv (B, T, K, D); lse, delta (B, H, T) fp32. Scores are kept in base 2: p = exp2(s·scale·log2 e − lse).

Documents cost nothing to skip: a query at position i sees keys from doc_start[i] to i. Both bounds grow with i, so a block of queries
visits the key blocks from its first query's start to its last query, and a block of keys the query blocks from its first key to the end of
its last key's document. Blocks in between that every query sees whole take a loop without masks.
"""

import math
from contextlib import contextmanager

import torch
import triton
import triton.language as tl

import cli
from attention import reference

# (queries, keys of a block, warps, stages): what the tuner may choose from. `bench/gpu_resources.py` shows what each takes of a GPU.
CONFIGS = {
    "forward": [(128, 64, 8, 3), (128, 128, 8, 3), (128, 64, 4, 3), (64, 64, 4, 3), (64, 32, 4, 3)],
    "dq": [(64, 64, 4, 3), (128, 64, 8, 3), (64, 32, 4, 3), (32, 64, 4, 2)],
    "dkdv": [(64, 64, 8, 2), (32, 64, 4, 3), (64, 128, 8, 2), (32, 128, 8, 3)],
}
DECODE = [(64, 64, 4, 3), (16, 64, 4, 3)]  # of the prompts' part and of the rows' own


@triton.jit
def _rows(base, index, stride, D: tl.constexpr):
    """Pointers to (rows, D) of a tensor whose rows are `stride` apart."""
    return base + index[:, None] * stride + tl.arange(0, D)[None, :]


@triton.jit
def _scores(q, k, rows, columns, start, scale, T, MASKED: tl.constexpr):
    """Scores in base 2, (M, N), −inf where the query (row) may not see the key (column)."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if MASKED:
        visible = (columns[None, :] <= rows[:, None]) & (columns[None, :] >= start[:, None]) & (columns[None, :] < T)
        s = tl.where(visible, s, float("-inf"))
    return s


@triton.jit
def _load(base, index, T, stride, D: tl.constexpr, MASKED: tl.constexpr):
    """The vectors (N, D) at these positions; MASKED: 0 for those beyond the end."""
    if MASKED:
        x = tl.load(_rows(base, index, stride, D), mask=(index < T)[:, None], other=0.0)
    else:
        x = tl.load(_rows(base, index, stride, D))
    return x


@triton.jit
def _key_bounds(doc_start, first, T, M: tl.constexpr, N: tl.constexpr):
    """Of the queries [first, first + M): low ≤ whole ≤ diagonal ≤ high. Keys from low on are masked by documents, from whole on seen by every
    query, from diagonal on masked by the diagonal."""
    high = tl.minimum(first + M, T)
    low = tl.load(doc_start + first) // N * N
    diagonal = tl.maximum(first // N * N, low)
    whole = tl.minimum((tl.load(doc_start + high - 1) + N - 1) // N * N, diagonal)
    return low, whole, diagonal, high


# ----------------------------------------------------------------------------------------------------------------------
# Forward


@triton.jit
def _attend(acc, m, total, q, k_base, v_base, rows, start, low, high, scale, T, stride, D: tl.constexpr, N: tl.constexpr, MASKED: tl.constexpr):
    """Online softmax over the keys of [low, high): acc (M, D), running maximum m and sum (M,)."""
    for at in range(low, high, N):
        columns = at + tl.arange(0, N)
        k, v = _load(k_base, columns, T, stride, D, MASKED), _load(v_base, columns, T, stride, D, MASKED)
        s = _scores(q, k, rows, columns, start, scale, T, MASKED)
        new = tl.maximum(m, tl.max(s, 1))
        if MASKED:  # a query that saw nothing yet: any finite maximum will do
            shift = tl.where(new == float("-inf"), 0.0, new)
        else:
            shift = new
        p = tl.exp2(s - shift[:, None])
        fade = tl.exp2(m - shift)
        total = total * fade + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
        m = new
    return acc, m, total


@triton.jit
def _forward(q, k, v, doc_start, out, lse, scale, T, H, K, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    first, b, h = tl.program_id(0) * M, tl.program_id(1) // H, tl.program_id(1) % H
    row = b.to(tl.int64) * T
    rows = first + tl.arange(0, M)
    inside = rows < T
    start = tl.load(doc_start + row + rows, mask=inside, other=0)
    k_base, v_base = k + (row * K + h // (H // K)) * D, v + (row * K + h // (H // K)) * D
    queries = tl.load(_rows(q + (row * H + h) * D, rows, H * D, D), mask=inside[:, None], other=0.0)
    acc = tl.zeros((M, D), tl.float32)
    m = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    low, whole, diagonal, high = _key_bounds(doc_start + row, first, T, M, N)
    acc, m, total = _attend(acc, m, total, queries, k_base, v_base, rows, start, low, whole, scale, T, K * D, D, N, True)
    acc, m, total = _attend(acc, m, total, queries, k_base, v_base, rows, start, whole, diagonal, scale, T, K * D, D, N, False)
    acc, m, total = _attend(acc, m, total, queries, k_base, v_base, rows, start, diagonal, high, scale, T, K * D, D, N, True)
    total = tl.where(inside, total, 1.0)
    tl.store(_rows(out + (row * H + h) * D, rows, H * D, D), (acc / total[:, None]).to(out.dtype.element_ty), mask=inside[:, None])
    tl.store(lse + (b * H + h).to(tl.int64) * T + rows, m + tl.log2(total), mask=inside)


# ----------------------------------------------------------------------------------------------------------------------
# Backward. dq: a program a query block. dk, dv: a program a key block, over the query heads of its group: no atomics, so that two
# runs give the same bits.


@triton.jit
def _attend_dq(dq, q, do, lse, delta, k_base, v_base, rows, start, low, high, scale, T, stride, D: tl.constexpr, N: tl.constexpr, MASKED: tl.constexpr):
    for at in range(low, high, N):
        columns = at + tl.arange(0, N)
        k, v = _load(k_base, columns, T, stride, D, MASKED), _load(v_base, columns, T, stride, D, MASKED)
        p = tl.exp2(_scores(q, k, rows, columns, start, scale, T, MASKED) - lse[:, None])
        dp = tl.dot(do, tl.trans(v), input_precision="ieee")
        dq = tl.dot((p * (dp - delta[:, None])).to(k.dtype), k, dq, input_precision="ieee")
    return dq


@triton.jit
def _backward_dq(q, k, v, doc_start, out, do, lse, delta, dq, scale, T, H, K, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    first, b, h = tl.program_id(0) * M, tl.program_id(1) // H, tl.program_id(1) % H
    row = b.to(tl.int64) * T
    rows = first + tl.arange(0, M)
    inside = rows < T
    start = tl.load(doc_start + row + rows, mask=inside, other=0)
    k_base, v_base = k + (row * K + h // (H // K)) * D, v + (row * K + h // (H // K)) * D
    head, statistics = (row * H + h) * D, (b * H + h).to(tl.int64) * T + rows
    queries = tl.load(_rows(q + head, rows, H * D, D), mask=inside[:, None], other=0.0)
    upstream = tl.load(_rows(do + head, rows, H * D, D), mask=inside[:, None], other=0.0)
    result = tl.load(_rows(out + head, rows, H * D, D), mask=inside[:, None], other=0.0)
    d = tl.sum(upstream.to(tl.float32) * result.to(tl.float32), 1)  # Σ p·dp, since out = Σ p·v
    tl.store(delta + statistics, d, mask=inside)
    normaliser = tl.load(lse + statistics, mask=inside, other=0.0)
    acc = tl.zeros((M, D), tl.float32)
    low, whole, diagonal, high = _key_bounds(doc_start + row, first, T, M, N)
    acc = _attend_dq(acc, queries, upstream, normaliser, d, k_base, v_base, rows, start, low, whole, scale, T, K * D, D, N, True)
    acc = _attend_dq(acc, queries, upstream, normaliser, d, k_base, v_base, rows, start, whole, diagonal, scale, T, K * D, D, N, False)
    acc = _attend_dq(acc, queries, upstream, normaliser, d, k_base, v_base, rows, start, diagonal, high, scale, T, K * D, D, N, True)
    tl.store(_rows(dq + head, rows, H * D, D), (acc * (scale * 0.6931471805599453)).to(dq.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _attend_dkdv(dk, dv, k, v, q_base, do_base, doc_start, lse, delta, columns, low, high, scale, T, stride, D: tl.constexpr, M: tl.constexpr,
                 MASKED: tl.constexpr):  # fmt: skip
    for at in range(low, high, M):
        rows = at + tl.arange(0, M)
        inside = rows < T
        q, do = _load(q_base, rows, T, stride, D, MASKED), _load(do_base, rows, T, stride, D, MASKED)
        normaliser = tl.load(lse + rows, mask=inside, other=float("inf"))  # exp2(−inf) = 0: rows beyond the end add nothing
        d = tl.load(delta + rows, mask=inside, other=0.0)
        s = tl.dot(k, tl.trans(q), input_precision="ieee") * scale  # (N, M): transposed, so that no first operand of a dot is
        if MASKED:
            start = tl.load(doc_start + rows, mask=inside, other=0)
            s = tl.where((columns[:, None] <= rows[None, :]) & (columns[:, None] >= start[None, :]), s, float("-inf"))
        p = tl.exp2(s - normaliser[None, :])
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision="ieee")
        dp = tl.dot(v, tl.trans(do), input_precision="ieee")
        dk = tl.dot((p * (dp - d[None, :])).to(q.dtype), q, dk, input_precision="ieee")
    return dk, dv


@triton.jit
def _backward_dkdv(q, k, v, doc_start, doc_end, do, lse, delta, dk, dv, scale, T, H, K, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    first, b, kv = tl.program_id(0) * N, tl.program_id(1) // K, tl.program_id(1) % K
    row = b.to(tl.int64) * T
    columns = first + tl.arange(0, N)
    inside = columns < T
    head = (row * K + kv) * D
    keys = tl.load(_rows(k + head, columns, K * D, D), mask=inside[:, None], other=0.0)
    values = tl.load(_rows(v + head, columns, K * D, D), mask=inside[:, None], other=0.0)
    dk_acc, dv_acc = tl.zeros((N, D), tl.float32), tl.zeros((N, D), tl.float32)
    # low ≤ whole ≤ part ≤ high: masked by the diagonal; queries that see every key; queries of the last keys' document alone
    low = first // M * M
    high = tl.load(doc_end + row + tl.minimum(first + N, T) - 1)
    whole = tl.minimum((first + N - 1 + M - 1) // M * M, high)
    part = tl.maximum(tl.load(doc_end + row + first) // M * M, whole)
    for g in range(H // K):
        h = kv * (H // K) + g
        q_base, do_base = q + (row * H + h) * D, do + (row * H + h) * D
        statistics = (b * H + h).to(tl.int64) * T
        dk_acc, dv_acc = _attend_dkdv(dk_acc, dv_acc, keys, values, q_base, do_base, doc_start + row, lse + statistics, delta + statistics, columns,
                                      low, whole, scale, T, H * D, D, M, True)  # fmt: skip
        dk_acc, dv_acc = _attend_dkdv(dk_acc, dv_acc, keys, values, q_base, do_base, doc_start + row, lse + statistics, delta + statistics, columns,
                                      whole, part, scale, T, H * D, D, M, False)  # fmt: skip
        dk_acc, dv_acc = _attend_dkdv(dk_acc, dv_acc, keys, values, q_base, do_base, doc_start + row, lse + statistics, delta + statistics, columns,
                                      part, high, scale, T, H * D, D, M, True)  # fmt: skip
    tl.store(_rows(dk + head, columns, K * D, D), (dk_acc * (scale * 0.6931471805599453)).to(dk.dtype.element_ty), mask=inside[:, None])
    tl.store(_rows(dv + head, columns, K * D, D), dv_acc.to(dv.dtype.element_ty), mask=inside[:, None])


# ----------------------------------------------------------------------------------------------------------------------
# Decoding: one query a row, over the keys of its prompt, which the rows of a group share, and then its own. A program a prompt and KV head
# takes the queries of all rows and heads there as one block, so that the prompt is read once; it leaves the running softmax in memory, where
# a program a row and KV head takes it up.


@triton.jit
def _decode_prompt(q, k, v, lengths, bounds, acc_out, m_out, total_out, scale, stride, head_stride, H, K, D: tl.constexpr, M: tl.constexpr,
                   N: tl.constexpr):  # fmt: skip
    p, kv, heads = tl.program_id(0), tl.program_id(1), H // K
    end, length = tl.load(bounds + p + 1), tl.load(lengths + p)
    base = p.to(tl.int64) * stride + kv * head_stride
    j = tl.arange(0, M)
    for row in range(tl.load(bounds + p), end, M // heads):
        index = (row + j // heads) * H + kv * heads + j % heads  # of a row and head
        inside = (j // heads < M // heads) & (row + j // heads < end)
        queries = tl.load(_rows(q, index, D, D), mask=inside[:, None], other=0.0)
        acc = tl.zeros((M, D), tl.float32)
        m = tl.full((M,), float("-inf"), tl.float32)
        total = tl.zeros((M,), tl.float32)
        start, last = tl.zeros((M,), tl.int32), tl.zeros((M,), tl.int32) + length
        whole = length // N * N
        acc, m, total = _attend(acc, m, total, queries, k + base, v + base, last, start, 0, whole, scale, length, D, D, N, False)
        acc, m, total = _attend(acc, m, total, queries, k + base, v + base, last, start, whole, length, scale, length, D, D, N, True)
        tl.store(_rows(acc_out, index, D, D), acc, mask=inside[:, None])
        tl.store(m_out + index, m, mask=inside)
        tl.store(total_out + index, total, mask=inside)


@triton.jit
def _decode_own(q, k, v, filled, acc_in, m_in, total_in, out, scale, stride, head_stride, H, K, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    r, kv, heads = tl.program_id(0), tl.program_id(1), H // K
    end = tl.load(filled).to(tl.int32)
    base = r.to(tl.int64) * stride + kv * head_stride
    j = tl.arange(0, M)
    index = r * H + kv * heads + j
    inside = j < heads
    queries = tl.load(_rows(q, index, D, D), mask=inside[:, None], other=0.0)
    acc = tl.load(_rows(acc_in, index, D, D), mask=inside[:, None], other=0.0)
    m = tl.load(m_in + index, mask=inside, other=float("-inf"))
    total = tl.load(total_in + index, mask=inside, other=0.0)
    start, last = tl.zeros((M,), tl.int32), tl.zeros((M,), tl.int32) + end
    whole = end // N * N
    acc, m, total = _attend(acc, m, total, queries, k + base, v + base, last, start, 0, whole, scale, end, D, D, N, False)
    acc, m, total = _attend(acc, m, total, queries, k + base, v + base, last, start, whole, end, scale, end, D, D, N, True)
    tl.store(_rows(out, index, D, D), (acc / total[:, None]).to(out.dtype.element_ty), mask=inside[:, None])


# ----------------------------------------------------------------------------------------------------------------------
# Launching


_chosen, _forced = {}, {}  # (kernel, shape) → the fastest configuration; kernel → the one to use whatever is faster


@contextmanager
def forced(**configs):
    """Within it, these kernels run in these configurations: forced(forward=(64, 64, 4, 3), dq=…, dkdv=…)."""
    global _forced
    before, _forced = _forced, configs
    try:
        yield
    finally:
        _forced = before


def _shape(q, k):
    """What a configuration is chosen for: (H, K, D, aligned, size, dtype); aligned: whether 16 divides T, which the compiler makes use of."""
    T, H, D = q.shape[1:]
    return H, k.shape[2], D, T % 16 == 0, triton.next_power_of_2(T), q.dtype


def _launch(kernel, kind, grid, arguments, shape):
    """Run a kernel in the fastest configuration that is right, found the first time a shape is seen. grid: configuration → grid.

    Under the interpreter, where time means nothing, in the first.
    """

    def run(c):
        kernel[grid(c)](*arguments, M=c[0], N=c[1], num_warps=c[2], num_stages=c[3])

    if kind not in _forced and (kind, shape) not in _chosen:
        _chosen[kind, shape] = _tune(kind, run, shape) if arguments[0].is_cuda else CONFIGS[kind][0]
    run(_forced.get(kind) or _chosen[kind, shape])


def _tune(kind, run, shape):
    right = [c for c in CONFIGS[kind] if agrees(kind, c, shape, "cuda")]
    if not right:
        raise cli.UserError(f"the Triton kernel {kind} is wrong here in every configuration (Triton {triton.__version__}): use --attention sdpa")
    from triton.testing import do_bench

    return min(right, key=lambda c: do_bench(lambda: run(c), warmup=5, rep=20, return_mode="median")) if len(right) > 1 else right[0]


def agrees(kind, config, shape, device):
    """Whether a kernel in this configuration gives what attention.reference does on a small problem: some versions of Triton miscompile some.

    shape: as of `_shape`.
    """
    H, K, D, aligned, _, dtype = shape
    generator, lengths = torch.Generator(device).manual_seed(0), [50, 1, 130, 27 if aligned else 20]
    q, k, v, do = (torch.randn(1, sum(lengths), h, D, generator=generator, device=device).to(dtype) for h in (H, K, K, H))
    doc_start = torch.tensor([[sum(lengths[:i]) for i, n in enumerate(lengths) for _ in range(n)]], dtype=torch.int32, device=device)
    exact = [x.double().requires_grad_(kind != "forward") for x in (q, k, v)]
    want = reference(*exact, doc_start)
    known = {name: _chosen[name, shape] for name in CONFIGS if (name, shape) in _chosen}
    try:
        with forced(**{name: configs[0] for name, configs in CONFIGS.items()} | known | {kind: config}):
            got = flash_forward(q, k, v, doc_start, doc_ends(doc_start))
            if kind != "forward":
                want = torch.autograd.grad(want, exact, do.double())
                got = flash_backward(do, q, k, v, doc_start, doc_ends(doc_start), *got)
    except triton.runtime.errors.OutOfResources:  # more shared memory than this GPU has
        return False
    pairs = {"forward": [(got[0], want)], "dq": [(got[0], want[0])], "dkdv": list(zip(got, want))[1:]}[kind]
    return all(float((a - b).norm() / b.norm()) < 1e-2 for a, b in pairs)


def doc_ends(doc_start):
    """doc_start (B, T) → doc_end (B, T) int32: one past the last position of each token's document."""
    B, T = doc_start.shape
    position = torch.arange(T, device=doc_start.device, dtype=torch.int32).expand(B, T)
    following = torch.cat((doc_start[:, 1:], doc_start.new_full((B, 1), T)), 1)
    last = torch.where(following != doc_start, position + 1, T)  # at a document's last token its end, elsewhere no less than that
    return last.flip(1).cummin(1).values.flip(1).to(torch.int32).contiguous()


@torch.library.custom_op("lab::flash_forward", mutates_args=())
def flash_forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, doc_start: torch.Tensor, doc_end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """→ out (B, T, H, D) and lse (B, H, T) in base 2."""
    B, T, H, D = q.shape
    K = k.shape[2]
    out, lse = torch.empty_like(q), torch.empty(B, H, T, device=q.device, dtype=torch.float32)
    scale = D**-0.5 * math.log2(math.e)
    _launch(_forward, "forward", lambda c: (triton.cdiv(T, c[0]), B * H), (q, k, v, doc_start, out, lse, scale, T, H, K, D), _shape(q, k))
    return out, lse


@flash_forward.register_fake
def _(q, k, v, doc_start, doc_end):
    B, T, H, _ = q.shape
    return torch.empty_like(q), torch.empty(B, H, T, device=q.device, dtype=torch.float32)


@torch.library.custom_op("lab::flash_backward", mutates_args=())
def flash_backward(do: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, doc_start: torch.Tensor, doc_end: torch.Tensor, out: torch.Tensor,
                   lse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """→ dq, dk, dv."""
    B, T, H, D = q.shape
    K = k.shape[2]
    dq, dk, dv, delta = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), torch.empty_like(lse)
    scale, shape = D**-0.5 * math.log2(math.e), _shape(q, k)
    _launch(_backward_dq, "dq", lambda c: (triton.cdiv(T, c[0]), B * H), (q, k, v, doc_start, out, do, lse, delta, dq, scale, T, H, K, D), shape)
    _launch(_backward_dkdv, "dkdv", lambda c: (triton.cdiv(T, c[1]), B * K),
            (q, k, v, doc_start, doc_end, do, lse, delta, dk, dv, scale, T, H, K, D), shape)  # fmt: skip
    return dq, dk, dv


@flash_backward.register_fake
def _(do, q, k, v, doc_start, doc_end, out, lse):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx, do, _):
    return *flash_backward(do.contiguous(), *ctx.saved_tensors), None, None


flash_forward.register_autograd(_backward, setup_context=_save)


def flash_attention(q, k, v, layout):
    """attention.attention on these kernels. layout: (doc_start, doc_end), int32 (B, T) each. Raises UserError for a head width they cannot do."""
    if q.shape[-1] not in (16, 32, 64, 128):
        raise cli.UserError(f"the Triton kernels are for heads 16, 32, 64 or 128 wide, not {q.shape[-1]}: use --attention sdpa")
    return flash_forward(q.contiguous(), k.contiguous(), v.contiguous(), *layout)[0]


def flash_decode(q, own, prompt, lengths, rows, group, filled):
    """attention.decode on these kernels."""
    (R, H, D), (P, K) = q.shape, prompt.shape[1:3]
    q, out, scale, heads = q.contiguous(), torch.empty_like(q), D**-0.5 * math.log2(math.e), H // K
    bounds = torch.searchsorted(rows, torch.arange(P + 1, device=q.device) * group, out_int32=True)  # rows [bounds[p], bounds[p + 1]) have prompt p
    acc, m, total = (q.new_empty(R, H, n, dtype=torch.float32) for n in (D, 1, 1))
    for kernel, grid, c, (k, v), arguments in (
        (_decode_prompt, (P, K), DECODE[0], prompt, (lengths, bounds, acc, m, total, scale, *prompt.stride()[1:3], H, K, D)),
        (_decode_own, (R, K), DECODE[1], own, (filled, acc, m, total, out, scale, *own.stride()[1:3], H, K, D)),
    ):
        M = max(c[0], triton.next_power_of_2(heads))
        kernel[grid](q, k, v, *arguments, M=M, N=c[1], num_warps=c[2], num_stages=c[3])
    return out
