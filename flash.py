"""Flash attention in Triton (Dao 2023): causal, grouped-query, packed documents; forward, backward, decoding.

`attention.reference` is the definition that these kernels must equal; tests/test_flash.py holds them to it,
block size by block size.

Shapes: B rows, T positions, S cache columns, H query heads, K key/value heads, D head width.
q, out, do, dq (B, T, H, D); k, v, dk, dv (B, T, K, D); lse, delta (B, H, T) fp32; bounds (2 or 4, B, T) int.
Scores are kept in base 2: p = exp2(s·log2 e/√D − lse).

Documents cost nothing to skip: a query at position i sees keys from doc_start[i] to i. Both bounds grow with
i, so a block of queries visits the key blocks from its first query's start to its last query. Blocks in
between that every query sees whole need no mask: each program goes through three ranges of blocks, of which
the second is that. The other way round, key j is seen by the queries from j to the one before key_end[j]: the
end of its document.

A completion that shares a prompt also sees the keys [prompt_start[i], prompt_end[i]) of that prompt, which
stands before the completions in their row. Both are doc_start[i] where there is no prompt, so that they grow
with i as well, and a block of queries visits its first query's prompt, again masked, whole and masked, and
then the documents, without the other completions in between. A prompt's key_end is that of its last
completion.

`bounds` is doc_start and key_end, and, only where prompts are shared, prompt_start and prompt_end.
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
def _key_block(keys, at, D: constexpr, N: constexpr, MASKED: constexpr):
    """Positions (N,), keys and values (N, D) of the block that begins `at`.

    With prompts, `at` does not count the blocks that are left out.
    """
    k, v, T, stride, _, left_out = keys
    if len(left_out) > 0:
        at += tl.where(at >= left_out[0], left_out[1], 0)
    columns = at + tl.arange(0, N)
    return columns, _load(k, columns, T, stride, D, MASKED), _load(v, columns, T, stride, D, MASKED)


@triton.jit
def _scores(q, k, rows, columns, keys, D: constexpr, MASKED: constexpr):
    """Scores in base 2, (M, N), −inf where the query (row) may not see the key (column)."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * (D**-0.5 * LOG2E)
    if MASKED:
        seen, T, key_end = columns[None, :] <= rows[:, None], keys[2], keys[4]
        if key_end is not None:
            seen = seen & (rows[:, None] < tl.load(key_end + columns, mask=columns < T, other=0)[None, :])
        s = tl.where(seen, s, float("-inf"))
    return s


@triton.jit
def _query_block(k, v, bounds, prompts, T, H, K, D: constexpr, M: constexpr, N: constexpr):
    """Of this program: positions of its queries (M,); where its head of q and its statistics begin; its keys,
    as `_key_block` and `_scores` take them; and ranges of these, low ≤ whole ≤ diagonal ≤ high.

    Keys from low on are masked by documents, from whole on seen by every query, from diagonal on masked by
    the diagonal. With prompts two ranges come before, the prompt's masked and its whole blocks; the keys from
    its last block to low are left out: where they begin, and how many they are.
    """
    b, h, first = tl.program_id(1) // H, tl.program_id(1) % H, tl.program_id(0) * M
    row, size = b.to(tl.int64) * T, tl.num_programs(1) // H * T  # B * T
    high = tl.minimum(first + M, T)
    low = tl.load(bounds + row + first) // N * N
    diagonal = tl.maximum(first // N * N, low)
    whole = tl.minimum((tl.load(bounds + row + high - 1) + N - 1) // N * N, diagonal)
    ranges, left_out = (low, whole, diagonal, high), ()  # Triton 3.6 cannot return a None
    if prompts is not None:
        begin, end = tl.load(prompts + row + first), tl.load(prompts + size + row + first)
        stop = tl.minimum((end + N - 1) // N * N, low)  # a block of both is visited as the document's
        inner = tl.minimum((begin + N - 1) // N * N, stop)
        same = tl.load(prompts + size + row + high - 1) == end  # every query has this prompt
        outer = tl.where(same, tl.maximum(end // N * N, inner), inner)
        skip = low - stop
        ranges = begin // N * N, inner, outer, whole - skip, diagonal - skip, high - skip
        left_out = stop, skip
    shared = (row * K + h // (H // K)) * D
    keys = k + shared, v + shared, T, K * D, bounds + size + row, left_out
    return first + tl.arange(0, M), (row * H + h) * D, (b * H + h).to(tl.int64) * T, keys, ranges


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
    q, rows = queries
    for at in range(low, high, N):
        columns, k, v = _key_block(keys, at, D, N, MASKED)
        s = _scores(q, k, rows, columns, keys, D, MASKED)
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
def _forward(q, k, v, bounds, out, lse, T, H, K, prompts, D: constexpr, M: constexpr, N: constexpr):
    rows, head, statistics, keys, ranges = _query_block(k, v, bounds, prompts, T, H, K, D, M, N)
    inside, state = rows < T, _nothing(M, D)
    queries = _load(q + head, rows, T, H * D, D, True), rows
    for part in tl.static_range(len(ranges) - 1):
        state = _attend(state, queries, keys, ranges[part], ranges[part + 1], D, N, part % 2 == 0)
    acc, m, total = state
    total = tl.where(inside, total, 1.0)
    _store(out + head, rows, T, H * D, D, acc / total[:, None])
    tl.store(lse + statistics + rows, m + tl.log2(total), mask=inside)


# ------------------------------------------------------------------------------------------------------------
# Backward. dq: a program a query block. dk, dv: a program a key block, over the query heads of its group: no
# atomics, so that two runs give the same bits.


@triton.jit
def _attend_dq(dq, queries, keys, low, high, D: constexpr, N: constexpr, MASKED: constexpr):
    q, do, rows, lse, delta = queries
    for at in range(low, high, N):
        columns, k, v = _key_block(keys, at, D, N, MASKED)
        p = tl.exp2(_scores(q, k, rows, columns, keys, D, MASKED) - lse[:, None])
        dp = tl.dot(do, tl.trans(v), input_precision="ieee")
        dq = tl.dot((p * (dp - delta[:, None])).to(k.dtype), k, dq, input_precision="ieee")
    return dq


@triton.jit
def _dq(q, k, v, bounds, out, do, lse, delta, dq, T, H, K, prompts, D: constexpr, M: constexpr, N: constexpr):
    rows, head, statistics, keys, ranges = _query_block(k, v, bounds, prompts, T, H, K, D, M, N)
    inside, acc = rows < T, tl.zeros((M, D), tl.float32)
    upstream = _load(do + head, rows, T, H * D, D, True)
    result = _load(out + head, rows, T, H * D, D, True)
    d = tl.sum(upstream.to(tl.float32) * result.to(tl.float32), 1)  # Σ p·dp, since out = Σ p·v
    tl.store(delta + statistics + rows, d, mask=inside)
    normaliser = tl.load(lse + statistics + rows, mask=inside, other=0.0)
    queries = _load(q + head, rows, T, H * D, D, True), upstream, rows, normaliser, d
    for part in tl.static_range(len(ranges) - 1):
        acc = _attend_dq(acc, queries, keys, ranges[part], ranges[part + 1], D, N, part % 2 == 0)
    _store(dq + head, rows, T, H * D, D, acc * D**-0.5)


@triton.jit
def _attend_dkdv(grads, keys, queries, low, high, D: constexpr, M: constexpr, MASKED: constexpr):
    dk, dv = grads
    k, v, columns, end = keys
    q_base, do_base, lse, delta, T, stride = queries
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
            seen = (columns[:, None] <= rows[None, :]) & (rows[None, :] < end[:, None])
            s = tl.where(seen, s, float("-inf"))
        p = tl.exp2(s - normaliser[None, :])
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision="ieee")
        dp = tl.dot(v, tl.trans(do), input_precision="ieee")
        dk = tl.dot((p * (dp - d[None, :])).to(q.dtype), q, dk, input_precision="ieee")
    return dk, dv


@triton.jit
def _dkdv(q, k, v, bounds, do, lse, delta, dk, dv, T, H, K, _, D: constexpr, M: constexpr, N: constexpr):
    first, b, kv = tl.program_id(0) * N, tl.program_id(1) // K, tl.program_id(1) % K
    row = b.to(tl.int64) * T
    columns, head = first + tl.arange(0, N), (row * K + kv) * D
    key, value = _load(k + head, columns, T, K * D, D, True), _load(v + head, columns, T, K * D, D, True)
    key_end = bounds + tl.num_programs(1) // K * T + row  # where there are prompts, it knows of them
    end = tl.load(key_end + tl.minimum(columns, T - 1))
    keys, high, every = (key, value, columns, end), tl.max(end, 0), tl.min(end, 0)
    # low ≤ whole ≤ last ≤ high: masked by the diagonal; queries that see every key; those that see some
    low = first // M * M
    whole = tl.minimum((first + N - 1 + M - 1) // M * M, high)
    last = tl.maximum(every // M * M, whole)
    ranges, grads = (low, whole, last, high), (tl.zeros((N, D), tl.float32), tl.zeros((N, D), tl.float32))
    for g in range(H // K):
        h = kv * (H // K) + g
        head_q, statistics = (row * H + h) * D, (b * H + h).to(tl.int64) * T
        queries = q + head_q, do + head_q, lse + statistics, delta + statistics, T, H * D
        for part in tl.static_range(3):
            grads = _attend_dkdv(grads, keys, queries, ranges[part], ranges[part + 1], D, M, part != 1)
    _store(dk + head, columns, T, K * D, D, grads[0] * D**-0.5)
    _store(dv + head, columns, T, K * D, D, grads[1])


# ------------------------------------------------------------------------------------------------------------
# Decoding: one query a row, over the keys of its prompt, which the rows of a group share, and then its own. A
# program a prompt and KV head takes the queries of all rows and heads there as one block, so that the prompt
# is read once; it leaves the running softmax in memory, where a program a row and KV head takes it up.


@triton.jit
def _see_all(state, q, keys, D: constexpr, M: constexpr, N: constexpr):
    """Take all keys into a running softmax: a block of queries that see every one."""
    end = keys[2]
    queries, whole = (q, tl.zeros((M,), tl.int32) + end - 1), end // N * N
    state = _attend(state, queries, keys, 0, whole, D, N, False)
    return _attend(state, queries, keys, whole, end, D, N, True)


@triton.jit
def _decode_prompt(q, k, v, lengths, bounds, state, stride, H, K, D: constexpr, M: constexpr, N: constexpr):
    p, kv, heads = tl.program_id(0), tl.program_id(1), H // K
    base, j = (p.to(tl.int64) * K + kv) * stride, tl.arange(0, M)
    end, keys = tl.load(bounds + p + 1), (k + base, v + base, tl.load(lengths + p), D, None, ())
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
    keys = k + base, v + base, tl.load(filled).to(tl.int32), D, None, ()
    acc, m, total = _see_all((acc, m, total), queries, keys, D, M, N)
    tl.store(_rows(out, index, D, D), (acc / total[:, None]).to(out.dtype.element_ty), mask=inside[:, None])


# ------------------------------------------------------------------------------------------------------------
# Launching


KERNELS = {"forward": _forward, "dq": _dq, "dkdv": _dkdv}
RESULTS = {"forward": ("out", "lse"), "dq": ("delta", "dq"), "dkdv": ("dk", "dv")}
_chosen = {}  # (kernel, shape) → the fastest configuration that is right


def _shape(q, k, v, bounds, *_):
    """What a configuration is chosen for: (H, K, D, aligned, size, dtype, prompts).

    aligned: whether 16 divides T, which the compiler makes use of. prompts: whether completions share them.
    """
    T, H, D = q.shape[1:]
    return H, k.shape[2], D, T % 16 == 0, triton.next_power_of_2(T), q.dtype, len(bounds) == 4


def _launch(kind, config, q, k, v, bounds, *tensors):
    (B, T, H, D), K, (M, N, warps, stages) = q.shape, k.shape[2], config
    grid = (triton.cdiv(T, N), B * K) if kind == "dkdv" else (triton.cdiv(T, M), B * H)
    arguments = T, H, K, bounds[2:] if len(bounds) == 4 else None, D, M, N
    KERNELS[kind][grid](q, k, v, bounds, *tensors, *arguments, num_warps=warps, num_stages=stages)


def _run(kind, q, *tensors):
    """Run a kernel in the fastest configuration that is right, found the first time a shape is seen.

    Off a GPU, where time means nothing, in the first.
    """
    key = kind, _shape(q, *tensors)
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
def flash_forward(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    """→ out (B, T, H, D) and lse (B, H, T) in base 2."""
    out, lse = _results(q)
    _run("forward", q, k, v, bounds, out, lse)
    return out, lse


@flash_forward.register_fake
def _results(q, *_):
    """Room for out and lse; to torch.compile, what they look like."""
    B, T, H = q.shape[:3]
    return torch.empty_like(q), q.new_empty(B, H, T, dtype=torch.float32)


@torch.library.custom_op("lab::flash_backward", mutates_args=())
def flash_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """→ dq, dk, dv."""
    dq, dk, dv, delta = (torch.empty_like(x) for x in (q, k, v, lse))
    _run("dq", q, k, v, bounds, out, do, lse, delta, dq)
    _run("dkdv", q, k, v, bounds, do, lse, delta, dk, dv)
    return dq, dk, dv


flash_backward.register_fake(lambda do, q, k, v, *_: tuple(map(torch.empty_like, (q, k, v))))


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx, do, _):
    return *flash_backward(do.contiguous(), *ctx.saved_tensors), None


flash_forward.register_autograd(_backward, setup_context=_save)


def flash_attention(q, k, v, bounds):
    """attention.attention on these kernels. bounds: those of the Layout.

    Raises UserError for a head width they cannot do.
    """
    if q.shape[-1] not in WIDTHS:
        raise UserError(f"{WIDTH_LIMIT}, not {q.shape[-1]}: use --attention sdpa")
    return flash_forward(q.contiguous(), k.contiguous(), v.contiguous(), bounds)[0]


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


def formula(q, k, v, do, key_end):
    """The kernels' arguments and results by name, written out in q's dtype (Dao et al. 2022, appendix B.2).

    No autograd: kernels are tuned, and so checked, within an operator's backward, where nothing is recorded.
    """
    (T, H, D), K = q.shape[1:], k.shape[2]
    keys, values = (x.repeat_interleave(H // K, 2) for x in (k, v))  # (B, T, H, D)
    position = torch.arange(T, device=q.device)
    hidden = (position > position[:, None]) | (position[:, None] >= key_end[:, None])  # (B, T, T)
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
    """Run a kernel in this configuration on a few documents → pairs of a result and what it should be.

    shape: as of `_shape`; with prompts the second document is that of the three after it.
    """
    H, K, D, aligned, _, dtype, prompts = shape
    lengths = [20, 300, 70, 1, 334] if prompts else [50, 1, 130]
    lengths = torch.tensor([*lengths, 27 if aligned else 20], device=device)
    size, generator = int(lengths.sum()), torch.Generator(device).manual_seed(0)
    example = [torch.randn(1, size, h, D, generator=generator, device=device) for h in (H, K, K, H)]
    end = lengths.cumsum(0).repeat_interleave(lengths)[None]
    start = end - lengths.repeat_interleave(lengths)
    bounds = [start, end]
    if prompts:
        alone = (start < 320) | (start == 725)
        bounds = [start, end.where(start != 20, 725), start.where(alone, 20), start.where(alone, 320)]
    exact = formula(*(x.to(dtype).double() for x in example), bounds[1])
    dtypes = {"lse": torch.float32, "delta": torch.float32}
    given = {name: x.to(dtypes.get(name, dtype)).contiguous() for name, x in exact.items()}
    given |= {name: torch.full_like(given[name], math.nan) for name in RESULTS[kind]}
    given["bounds"] = torch.stack(bounds).int()
    _launch(kind, config, *(given[name] for name in KERNELS[kind].arg_names if name in given))
    return [(given[name], exact[name]) for name in RESULTS[kind]]


def compare_decoding(shape, device):
    """The same of decoding: three rows of two prompts."""
    H, K, D, _, _, dtype, _ = shape
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
    shapes = [(4, 2, D, True, 256, dtype, prompts) for prompts in (False, True)]
    for shape in shapes:
        for kind, configs in CONFIGS.items():
            if all(why := fault(compare, kind, config, shape, device) for config in configs):
                return f"{kind}: {why}"
    why = fault(compare_decoding, shapes[0], device)
    return why and f"decoding: {why}"
