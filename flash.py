"""Flash attention in Triton (Dao 2023): causal, grouped-query, packed documents; forward, backward, decoding.

`attention.reference` is the definition that these kernels must equal; tests/test_flash.py holds them to it,
block size by block size.

Shapes: B rows, T positions, S cache columns, H query heads, K key/value heads, D head width.
q, out, do, dq (B, T, H, D); k, v, dk, dv (B, T, K, D); lse, delta (B, H, T) fp32.
Scores are kept in base 2: p = exp2(s·log2 e/√D − lse).

Documents cost nothing to skip: a query at position i sees keys from doc_start[i] to i. Both bounds grow with
i, so a block of queries visits the key blocks from its first query's start to its last query, and a block of
keys the query blocks from its first key to the end of its last key's document. Blocks in between that every
query sees whole need no mask: each program goes through three ranges of blocks, of which the second is that.
"""

import functools
import math

from lab.options import UserError

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr
from triton.testing import do_bench

# (queries, keys of a block, warps, stages): what the tuner may choose from. `bench/gpu_resources.py` shows
# what each takes of a GPU.
CONFIGS = {
    "forward": [(128, 64, 8, 3), (128, 128, 8, 3), (128, 64, 4, 3), (64, 64, 4, 3), (64, 32, 4, 3)],
    "dq": [(64, 64, 4, 3), (128, 64, 8, 3), (64, 32, 4, 3), (32, 64, 4, 2)],
    "dkdv": [(64, 64, 8, 2), (32, 64, 4, 3), (64, 128, 8, 2), (32, 128, 8, 3)],
}
DECODE = [(64, 64, 4, 3), (16, 64, 4, 3)]  # of the prompts' part and of the rows' own
LOG2E = constexpr(math.log2(math.e))
WIDTHS, WIDTH_LIMIT = (16, 32, 64, 128), "the Triton kernels are for heads 16, 32, 64 or 128 wide"


@triton.jit
def _rows(base, index, stride, D: constexpr):
    """Pointers to (rows, D) of a tensor whose rows are `stride` apart."""
    return base + index[:, None] * stride + tl.arange(0, D)[None, :]


@triton.jit
def _load(base, index, T, stride, D: constexpr, MASKED: constexpr):
    """The vectors (N, D) at these positions; MASKED: 0 for those beyond the end."""
    at = _rows(base, index, stride, D)
    return tl.load(at, mask=(index < T)[:, None], other=0.0) if MASKED else tl.load(at)


@triton.jit
def _store(base, index, T, stride, D: constexpr, x):
    tl.store(_rows(base, index, stride, D), x.to(base.dtype.element_ty), mask=(index < T)[:, None])


@triton.jit
def _scores(q, k, rows, columns, start, T, D: constexpr, MASKED: constexpr):
    """Scores in base 2, (M, N), −inf where the query (row) may not see the key (column)."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * (D**-0.5 * LOG2E)
    if MASKED:
        seen = (columns[None, :] <= rows[:, None]) & (columns[None, :] >= start[:, None])
        s = tl.where(seen & (columns[None, :] < T), s, float("-inf"))
    return s


@triton.jit
def _query_block(T, H, K, D: constexpr, M: constexpr):
    """Of this program: positions of its queries (M,); where its row, heads of q and k, statistics begin."""
    b, h = tl.program_id(1) // H, tl.program_id(1) % H
    row = b.to(tl.int64) * T
    rows = tl.program_id(0) * M + tl.arange(0, M)
    return rows, row, (row * H + h) * D, (row * K + h // (H // K)) * D, (b * H + h).to(tl.int64) * T


@triton.jit
def _key_bounds(doc_start, T, M: constexpr, N: constexpr):
    """Of this program's queries: low ≤ whole ≤ diagonal ≤ high.

    Keys from low on are masked by documents, from whole on seen by every query, from diagonal on masked by
    the diagonal.
    """
    first = tl.program_id(0) * M
    high = tl.minimum(first + M, T)
    low = tl.load(doc_start + first) // N * N
    diagonal = tl.maximum(first // N * N, low)
    whole = tl.minimum((tl.load(doc_start + high - 1) + N - 1) // N * N, diagonal)
    return low, whole, diagonal, high


# ------------------------------------------------------------------------------------------------------------
# Forward


@triton.jit
def _nothing(M: constexpr, D: constexpr):
    """The running softmax of M queries that saw no key yet: weighted values (M, D), maximum and sum (M,)."""
    return tl.zeros((M, D), tl.float32), tl.full((M,), float("-inf"), tl.float32), tl.zeros((M,), tl.float32)


@triton.jit
def _attend(state, queries, keys, low, high, D: constexpr, N: constexpr, MASKED: constexpr):
    """Take the keys of [low, high) into a running softmax."""
    acc, m, total = state
    q, rows, start = queries
    k_base, v_base, T, stride = keys
    for at in range(low, high, N):
        columns = at + tl.arange(0, N)
        k, v = _load(k_base, columns, T, stride, D, MASKED), _load(v_base, columns, T, stride, D, MASKED)
        s = _scores(q, k, rows, columns, start, T, D, MASKED)
        new = tl.maximum(m, tl.max(s, 1))
        # a query that saw nothing yet: any finite maximum will do
        shift = tl.where(new == float("-inf"), 0.0, new) if MASKED else new
        p = tl.exp2(s - shift[:, None])
        fade = tl.exp2(m - shift)
        total = total * fade + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
        m = new
    return acc, m, total


@triton.jit
def _forward(q, k, v, doc_start, out, lse, T, H, K, D: constexpr, M: constexpr, N: constexpr):
    rows, row, head, shared, statistics = _query_block(T, H, K, D, M)
    inside = rows < T
    start = tl.load(doc_start + row + rows, mask=inside, other=0)
    queries = _load(q + head, rows, T, H * D, D, True), rows, start
    keys = k + shared, v + shared, T, K * D
    bounds, state = _key_bounds(doc_start + row, T, M, N), _nothing(M, D)
    for part in tl.static_range(3):
        state = _attend(state, queries, keys, bounds[part], bounds[part + 1], D, N, part != 1)
    acc, m, total = state
    total = tl.where(inside, total, 1.0)
    _store(out + head, rows, T, H * D, D, acc / total[:, None])
    tl.store(lse + statistics + rows, m + tl.log2(total), mask=inside)


# ------------------------------------------------------------------------------------------------------------
# Backward. dq: a program a query block. dk, dv: a program a key block, over the query heads of its group: no
# atomics, so that two runs give the same bits.


@triton.jit
def _attend_dq(dq, queries, keys, low, high, D: constexpr, N: constexpr, MASKED: constexpr):
    q, do, rows, start, lse, delta = queries
    k_base, v_base, T, stride = keys
    for at in range(low, high, N):
        columns = at + tl.arange(0, N)
        k, v = _load(k_base, columns, T, stride, D, MASKED), _load(v_base, columns, T, stride, D, MASKED)
        p = tl.exp2(_scores(q, k, rows, columns, start, T, D, MASKED) - lse[:, None])
        dp = tl.dot(do, tl.trans(v), input_precision="ieee")
        dq = tl.dot((p * (dp - delta[:, None])).to(k.dtype), k, dq, input_precision="ieee")
    return dq


@triton.jit
def _dq(q, k, v, doc_start, out, do, lse, delta, dq, T, H, K, D: constexpr, M: constexpr, N: constexpr):
    rows, row, head, shared, statistics = _query_block(T, H, K, D, M)
    inside = rows < T
    start = tl.load(doc_start + row + rows, mask=inside, other=0)
    upstream = _load(do + head, rows, T, H * D, D, True)
    result = _load(out + head, rows, T, H * D, D, True)
    d = tl.sum(upstream.to(tl.float32) * result.to(tl.float32), 1)  # Σ p·dp, since out = Σ p·v
    tl.store(delta + statistics + rows, d, mask=inside)
    normaliser = tl.load(lse + statistics + rows, mask=inside, other=0.0)
    queries = _load(q + head, rows, T, H * D, D, True), upstream, rows, start, normaliser, d
    keys, bounds = (k + shared, v + shared, T, K * D), _key_bounds(doc_start + row, T, M, N)
    acc = tl.zeros((M, D), tl.float32)
    for part in tl.static_range(3):
        acc = _attend_dq(acc, queries, keys, bounds[part], bounds[part + 1], D, N, part != 1)
    _store(dq + head, rows, T, H * D, D, acc * D**-0.5)


@triton.jit
def _attend_dkdv(grads, keys, queries, low, high, D: constexpr, M: constexpr, MASKED: constexpr):
    dk, dv = grads
    k, v, columns = keys
    q_base, do_base, doc_start, lse, delta, T, stride = queries
    for at in range(low, high, M):
        rows = at + tl.arange(0, M)
        inside = rows < T
        q, do = _load(q_base, rows, T, stride, D, MASKED), _load(do_base, rows, T, stride, D, MASKED)
        # beyond the end exp2(−inf) = 0: nothing
        normaliser = tl.load(lse + rows, mask=inside, other=float("inf"))
        d = tl.load(delta + rows, mask=inside, other=0.0)
        # (N, M): no first operand of a dot is transposed
        s = tl.dot(k, tl.trans(q), input_precision="ieee") * (D**-0.5 * LOG2E)
        if MASKED:
            start = tl.load(doc_start + rows, mask=inside, other=0)
            seen = (columns[:, None] <= rows[None, :]) & (columns[:, None] >= start[None, :])
            s = tl.where(seen, s, float("-inf"))
        p = tl.exp2(s - normaliser[None, :])
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision="ieee")
        dp = tl.dot(v, tl.trans(do), input_precision="ieee")
        dk = tl.dot((p * (dp - d[None, :])).to(q.dtype), q, dk, input_precision="ieee")
    return dk, dv


@triton.jit
def _dkdv(
    q, k, v, doc_start, doc_end, do, lse, delta, dk, dv, T, H, K, D: constexpr, M: constexpr, N: constexpr
):
    first, b, kv = tl.program_id(0) * N, tl.program_id(1) // K, tl.program_id(1) % K
    row = b.to(tl.int64) * T
    columns, head = first + tl.arange(0, N), (row * K + kv) * D
    keys = _load(k + head, columns, T, K * D, D, True), _load(v + head, columns, T, K * D, D, True), columns
    # low ≤ whole ≤ part ≤ high: masked by the diagonal; queries that see every key; queries of the last keys'
    # document alone
    low = first // M * M
    high = tl.load(doc_end + row + tl.minimum(first + N, T) - 1)
    whole = tl.minimum((first + N - 1 + M - 1) // M * M, high)
    last = tl.maximum(tl.load(doc_end + row + first) // M * M, whole)
    bounds, grads = (low, whole, last, high), (tl.zeros((N, D), tl.float32), tl.zeros((N, D), tl.float32))
    for g in range(H // K):
        h = kv * (H // K) + g
        head_q, statistics = (row * H + h) * D, (b * H + h).to(tl.int64) * T
        queries = q + head_q, do + head_q, doc_start + row, lse + statistics, delta + statistics, T, H * D
        for part in tl.static_range(3):
            grads = _attend_dkdv(grads, keys, queries, bounds[part], bounds[part + 1], D, M, part != 1)
    _store(dk + head, columns, T, K * D, D, grads[0] * D**-0.5)
    _store(dv + head, columns, T, K * D, D, grads[1])


# ------------------------------------------------------------------------------------------------------------
# Decoding: one query a row, over the keys of its prompt, which the rows of a group share, and then its own. A
# program a prompt and KV head takes the queries of all rows and heads there as one block, so that the prompt
# is read once; it leaves the running softmax in memory, where a program a row and KV head takes it up.


@triton.jit
def _see_all(state, q, keys, D: constexpr, M: constexpr, N: constexpr):
    """Take all keys into a running softmax: a block of queries that come after every key."""
    end = keys[2]
    queries = q, tl.zeros((M,), tl.int32) + end, tl.zeros((M,), tl.int32)
    whole = end // N * N
    state = _attend(state, queries, keys, 0, whole, D, N, False)
    return _attend(state, queries, keys, whole, end, D, N, True)


@triton.jit
def _decode_prompt(q, k, v, lengths, bounds, state, stride, H, K, D: constexpr, M: constexpr, N: constexpr):
    p, kv, heads = tl.program_id(0), tl.program_id(1), H // K
    base, j = (p.to(tl.int64) * K + kv) * stride, tl.arange(0, M)
    end, keys = tl.load(bounds + p + 1), (k + base, v + base, tl.load(lengths + p), D)
    for row in range(tl.load(bounds + p), end, M // heads):
        inside = (j // heads < M // heads) & (row + j // heads < end)
        index = (row + j // heads) * H + kv * heads + j % heads  # of a row and head
        queries = tl.load(_rows(q, index, D, D), mask=inside[:, None], other=0.0)
        acc, m, total = _see_all(_nothing(M, D), queries, keys, D, M, N)
        tl.store(_rows(state, index, 2 * D, D), acc, mask=inside[:, None])
        tl.store(state + index * 2 * D + D, m, mask=inside)
        tl.store(state + index * 2 * D + D + 1, total, mask=inside)


@triton.jit
def _decode_own(q, k, v, filled, state, out, stride, H, K, D: constexpr, M: constexpr, N: constexpr):
    r, kv, heads = tl.program_id(0), tl.program_id(1), H // K
    base, j = (r.to(tl.int64) * K + kv) * stride, tl.arange(0, M)
    inside, index = j < heads, r * H + kv * heads + j
    queries = tl.load(_rows(q, index, D, D), mask=inside[:, None], other=0.0)
    acc = tl.load(_rows(state, index, 2 * D, D), mask=inside[:, None], other=0.0)
    m = tl.load(state + index * 2 * D + D, mask=inside, other=float("-inf"))
    total = tl.load(state + index * 2 * D + D + 1, mask=inside, other=0.0)
    keys = k + base, v + base, tl.load(filled).to(tl.int32), D
    acc, m, total = _see_all((acc, m, total), queries, keys, D, M, N)
    tl.store(_rows(out, index, D, D), (acc / total[:, None]).to(out.dtype.element_ty), mask=inside[:, None])


# ------------------------------------------------------------------------------------------------------------
# Launching


KERNELS = {"forward": _forward, "dq": _dq, "dkdv": _dkdv}
RESULTS = {"forward": ("out", "lse"), "dq": ("delta", "dq"), "dkdv": ("dk", "dv")}
_chosen = {}  # (kernel, shape) → the fastest configuration that is right


def _shape(q, k):
    """What a configuration is chosen for: (H, K, D, aligned, size, dtype).

    aligned: whether 16 divides T, which the compiler makes use of.
    """
    T, H, D = q.shape[1:]
    return H, k.shape[2], D, T % 16 == 0, triton.next_power_of_2(T), q.dtype


def _launch(kind, config, q, k, *tensors):
    (B, T, H, D), K, (M, N, warps, stages) = q.shape, k.shape[2], config
    grid = (triton.cdiv(T, N), B * K) if kind == "dkdv" else (triton.cdiv(T, M), B * H)
    KERNELS[kind][grid](q, k, *tensors, T, H, K, D=D, M=M, N=N, num_warps=warps, num_stages=stages)


def _run(kind, q, *tensors):
    """Run a kernel in the fastest configuration that is right, found the first time a shape is seen.

    Off a GPU, where time means nothing, in the first.
    """
    key = kind, _shape(q, tensors[0])
    if key not in _chosen:
        _chosen[key] = _tune(*key, q, *tensors) if q.is_cuda else CONFIGS[kind][0]
    _launch(kind, _chosen[key], q, *tensors)


def _tune(kind, shape, q, *tensors):
    faults = {config: fault(compare, kind, config, shape, q.device) for config in CONFIGS[kind]}
    right = [config for config in faults if not faults[config]]
    if not right:
        why = "; ".join(f"{config}: {text}" for config, text in faults.items())
        raise UserError(f"Triton's {kind} works here in no configuration: use --attention sdpa ({why})")

    def milliseconds(config):
        return do_bench(lambda: _launch(kind, config, q, *tensors), warmup=5, rep=20, return_mode="median")

    return min(right, key=milliseconds) if len(right) > 1 else right[0]


@torch.library.custom_op("lab::flash_forward", mutates_args=())
def flash_forward(q: Tensor, k: Tensor, v: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """→ out (B, T, H, D) and lse (B, H, T) in base 2."""
    out, lse = _results(q)
    _run("forward", q, k, v, start, out, lse)
    return out, lse


@flash_forward.register_fake
def _results(q, *_):
    """Room for out and lse; to torch.compile, what they look like."""
    B, T, H = q.shape[:3]
    return torch.empty_like(q), q.new_empty(B, H, T, dtype=torch.float32)


@torch.library.custom_op("lab::flash_backward", mutates_args=())
def flash_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, doc_start: Tensor, doc_end: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """→ dq, dk, dv."""
    dq, dk, dv, delta = (torch.empty_like(x) for x in (q, k, v, lse))
    _run("dq", q, k, v, doc_start, out, do, lse, delta, dq)
    _run("dkdv", q, k, v, doc_start, doc_end, do, lse, delta, dk, dv)
    return dq, dk, dv


flash_backward.register_fake(lambda do, q, k, v, *_: tuple(map(torch.empty_like, (q, k, v))))


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx, do, _):
    return *flash_backward(do.contiguous(), *ctx.saved_tensors), None, None


flash_forward.register_autograd(_backward, setup_context=_save)


def flash_attention(q, k, v, doc_start, doc_end):
    """attention.attention on these kernels. doc_start, doc_end: Layout.bounds, int32 (B, T).

    Raises UserError for a head width they cannot do.
    """
    if q.shape[-1] not in WIDTHS:
        raise UserError(f"{WIDTH_LIMIT}, not {q.shape[-1]}: use --attention sdpa")
    return flash_forward(q.contiguous(), k.contiguous(), v.contiguous(), doc_start, doc_end)[0]


def flash_decode(q, own, prompt, lengths, rows, group, filled):
    """attention.decode_torch on these kernels."""
    (R, H, D), (P, K) = q.shape, prompt.shape[1:3]
    q, out, state = q.contiguous(), torch.empty_like(q), q.new_empty(R, H, 2 * D, dtype=torch.float32)
    # rows [bounds[p], bounds[p + 1]) have prompt p
    bounds = torch.searchsorted(rows, torch.arange(P + 1, device=q.device) * group, out_int32=True)
    for kernel, programs, (M, N, warps, stages), cache, tensors in (
        (_decode_prompt, P, DECODE[0], prompt, (lengths, bounds, state)),
        (_decode_own, R, DECODE[1], own, (filled, state, out)),
    ):
        # the stride is that from head to head: a cache may have more columns, prompts and rows than are seen
        sizes = cache.stride(2), H, K, D, max(M, triton.next_power_of_2(H // K)), N
        kernel[programs, K](q, *cache, *tensors, *sizes, num_warps=warps, num_stages=stages)
    return out


# ------------------------------------------------------------------------------------------------------------
# Checking: some versions of Triton miscompile some kernels on some GPUs, so that each is compared with its
# formula before it is trusted.


def formula(q, k, v, do, doc_start):
    """The kernels' arguments and results by name, written out in q's dtype (Dao et al. 2022, appendix B.2).

    No autograd: kernels are tuned, and so checked, within an operator's backward, where nothing is recorded.
    """
    (T, H, D), K = q.shape[1:], k.shape[2]
    keys, values = (x.repeat_interleave(H // K, 2) for x in (k, v))  # (B, T, H, D)
    position = torch.arange(T, device=q.device)
    hidden = (position > position[:, None]) | (position < doc_start[:, :, None])  # (B, T, T)
    s = torch.einsum("bthd,bshd->bhts", q, keys) * D**-0.5
    s = s.masked_fill(hidden[:, None], float("-inf"))
    lse, p = s.logsumexp(-1), s.softmax(-1)
    out = torch.einsum("bhts,bshd->bthd", p, values)
    delta = (do * out).sum(-1).mT
    ds = p * (torch.einsum("bthd,bshd->bhts", do, values) - delta[..., None]) * D**-0.5
    dq = torch.einsum("bhts,bshd->bthd", ds, keys)
    dk = torch.einsum("bhts,bthd->bshd", ds, q).unflatten(2, (K, H // K)).sum(3)
    dv = torch.einsum("bhts,bthd->bshd", p, do).unflatten(2, (K, H // K)).sum(3)
    return dict(q=q, k=k, v=v, do=do, out=out, lse=lse * math.log2(math.e), delta=delta, dq=dq, dk=dk, dv=dv)


def compare(kind, config, shape, device):
    """Run a kernel in this configuration on four small documents → pairs of a result and what it should be.

    shape: as of `_shape`.
    """
    H, K, D, aligned, _, dtype = shape
    generator, lengths = torch.Generator(device).manual_seed(0), [50, 1, 130, 27 if aligned else 20]
    example = [torch.randn(1, sum(lengths), h, D, generator=generator, device=device) for h in (H, K, K, H)]
    lengths = torch.tensor(lengths, device=device)
    end = lengths.cumsum(0).repeat_interleave(lengths)[None]
    start = end - lengths.repeat_interleave(lengths)
    exact = formula(*(x.to(dtype).double() for x in example), start)
    dtypes = {"lse": torch.float32, "delta": torch.float32}
    given = {name: x.to(dtypes.get(name, dtype)).contiguous() for name, x in exact.items()}
    given |= {name: torch.full_like(given[name], math.nan) for name in RESULTS[kind]}
    given |= {"doc_start": start.int(), "doc_end": end.int()}
    _launch(kind, config, *(given[name] for name in KERNELS[kind].arg_names if name in given))
    return [(given[name], exact[name]) for name in RESULTS[kind]]


def compare_decoding(shape, device):
    """The same of decoding: three rows of two prompts."""
    H, K, D, _, _, dtype = shape
    P, G, W, S, filled, rows = 2, 2, 70, 40, 33, torch.tensor([0, 1, 3], device=device)
    generator, sizes = torch.Generator(device).manual_seed(0), ((3, H, D), (2, 3, K, S, D), (2, P, K, W, D))
    q, own, prompt = (torch.randn(size, generator=generator, device=device).to(dtype) for size in sizes)
    lengths = torch.tensor([W, 9], dtype=torch.int32, device=device)
    keys, values = torch.cat((prompt[:, rows // G], own), 3).double()  # (R, K, W + S, D)
    column = torch.arange(W + S, device=device)
    seen = torch.where(column < W, column < lengths[rows // G, None], column < W + filled)  # (R, W + S)
    s = q.double().view(3, K, H // K, D) @ keys.mT * D**-0.5
    want = s.masked_fill(~seen[:, None, None], float("-inf")).softmax(-1) @ values
    got = flash_decode(q, own, prompt, lengths, rows, G, torch.tensor([filled], device=device))
    return [(got, want.view(3, H, D))]


def fault(check, *arguments):
    """What is wrong with the results of `compare` or `compare_decoding`, in one line, or ""."""
    try:
        worst = max(float((got - want).norm() / want.norm()) for got, want in check(*arguments))
        return "" if worst < 1e-2 else f"its results are off by {worst:.1%}"
    except Exception as error:  # more shared memory than this GPU has, or what this compiler cannot do
        text = getattr(error, "error_message", None) or str(error)  # Triton's compiler begins with the code
        return f"{type(error).__name__}: {text.strip()}".splitlines()[0]


@functools.cache
def why_not(device, D, dtype):
    """Why the kernels cannot be used on this device for heads of this width, in one line, or ""."""
    if D not in WIDTHS:
        return f"{WIDTH_LIMIT}, not {D}"
    shape = 4, 2, D, True, 256, dtype
    for kind, configs in CONFIGS.items():
        if all(why := fault(compare, kind, config, shape, device) for config in configs):
            return f"{kind}: {why}"
    why = fault(compare_decoding, shape, device)
    return why and f"decoding: {why}"
