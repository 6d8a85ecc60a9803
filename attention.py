"""Causal attention within documents: the definition, and a table of ways to compute it that must agree.

Shapes: B rows, T positions, H query heads, K key/value heads (H a multiple of K), D head width; of decoding:
R rows, P prompts, W columns of the longest prompt, S columns of a row's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

from lab.options import UserError, look_up

import torch
import torch.nn.functional as F


@dataclass(frozen=True, eq=False)
class Layout:
    """Which keys each token sees, as tensors (B, T).

    Those of its document up to itself, and, where several completions share a prompt, those of the prompt
    too. Whatever a backend needs of it is worked out once and serves every layer.

    A prompt and its completions are documents of their own, anywhere in the same row; the positions of a
    completion go on from its prompt's. A token that has no prompt (the prompt's own, say) has prompt_start =
    prompt_end.
    """

    doc_start: torch.Tensor  # where each token's document begins in its row
    positions: torch.Tensor  # of each token in its text, for the rotary angles
    prompt_start: torch.Tensor | None = None  # the keys [prompt_start, prompt_end) are seen as well
    prompt_end: torch.Tensor | None = None
    _masks: dict = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, doc_start, prompt_start=None, prompt_end=None):
        """Packed documents, given the first position of each token's, and of the prompts that they share."""
        positions = torch.arange(doc_start.shape[1], device=doc_start.device) - doc_start
        if prompt_start is not None:
            positions += prompt_end - prompt_start
        return cls(doc_start, positions, prompt_start, prompt_end)

    @cached_property
    def bounds(self):
        """What the Triton kernels take (flash.py says what it is), int32 (2, B, T), with prompts (4, B, T).

        The completions of a prompt have to follow it, with nothing between them.
        """
        start = self.doc_start.to(torch.int32).contiguous()  # it never falls within a row
        end = torch.searchsorted(start, start, right=True, out_int32=True)
        if self.prompt_start is None:
            return torch.stack((start, end))
        alone = self.prompt_start == self.prompt_end
        prompt_start, prompt_end = (start.where(alone, x) for x in (self.prompt_start, self.prompt_end))
        prompt_start = prompt_start.to(torch.int32)  # a group's is that of its prompt
        last = torch.searchsorted(prompt_start, prompt_start, right=True, out_int32=True)
        return torch.stack((start, last.where(alone, end), prompt_start, prompt_end.to(torch.int32)))

    @cached_property
    def whole(self):
        """The documents, each after its prompt, one after another, as if nothing were shared.

        Their lengths, a list; and, where prompts are shared, else None: the number of each token among all B
        * T, and which of these are the documents' own.
        """
        B, T = self.doc_start.shape
        first = self.doc_start + T * torch.arange(B, device=self.doc_start.device)[:, None]
        firsts, sizes = torch.unique_consecutive(first.reshape(-1), return_counts=True)
        if self.prompt_start is None:
            return sizes.tolist(), None, None
        lengths, number, own = [], [], []
        prompts = (bound.reshape(-1)[firsts].tolist() for bound in (self.prompt_start, self.prompt_end))
        for first, n, start, end in zip(firsts.tolist(), sizes.tolist(), *prompts):
            row = first // T * T
            lengths.append(end - start + n)
            number += [*range(row + start, row + end), *range(first, first + n)]
            own += range(len(number) - n, len(number))
        return lengths, torch.tensor(number), torch.tensor(own)

    def mask(self, dtype):
        """What to add to scores, (B, 1, T, T): 0 where the query may look, −inf elsewhere."""
        if dtype not in self._masks:
            key = torch.arange(self.doc_start.shape[1], device=self.doc_start.device)
            visible = (key <= key[:, None]) & (key >= self.doc_start[:, :, None])  # (B, T, T)
            if self.prompt_start is not None:
                visible |= (key >= self.prompt_start[:, :, None]) & (key < self.prompt_end[:, :, None])
            self._masks[dtype] = additive(visible, dtype)[:, None]
        return self._masks[dtype]


def additive(visible, dtype=torch.float32):
    """True/False → 0/−inf: a mask to add to scores."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, float("-inf"))


def reference(q, k, v, layout=None):
    """`attention` by definition, every score written out; works in float64."""
    H, D = q.shape[2:]
    layout = layout or Layout.of(q.new_zeros(q.shape[:2], dtype=torch.int32))
    k, v = (x.repeat_interleave(H // x.shape[2], 2) for x in (k, v))  # (B, T, H, D)
    scores = torch.einsum("bthd,bshd->bhts", q, k) * D**-0.5 + layout.mask(q.dtype)
    return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)


# ------------------------------------------------------------------------------------------------------------
# By torch's fused kernels


def product_dtype(x):
    """What a matrix product with x is taken in here: autocast's choice, or that of x."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def prepare_sdpa(layout, like):
    return layout.whole if like.device.type == "cpu" else layout.mask(product_dtype(like))


def attention(q, k, v, layout=None):
    """softmax(q·kᵀ/√D)·v over the keys that each token sees.

    q (B, T, H, D); k, v (B, T, K, D) → (B, T, H, D). layout: a Layout; None: each row is one document. By
    torch's fused kernels; `BACKENDS` has the other ways.
    """
    (B, T, H, D), sdpa = q.shape, partial(F.scaled_dot_product_attention, enable_gqa=True)
    if layout is not None and q.device.type == "cpu":
        # Each document gets a call of its own, so that no work is spent on pairs of different documents: 1.4
        # times as fast in training as one call with a mask. On a GPU, so many small calls would not be.
        q, k, v = (x.reshape(B * T, -1, D) for x in (q, k, v))
        lengths, number, own = layout.whole
        if number is not None:
            q, k, v = (x.index_select(0, number) for x in (q, k, v))
        q, k, v = (x.transpose(0, 1).split(lengths, 1) for x in (q, k, v))  # each (H or K, length, D)
        out = torch.cat([sdpa(*(x[None] for x in qkv), is_causal=True)[0] for qkv in zip(q, k, v)], 1)
        out = out.transpose(0, 1)
        return (out if own is None else out.index_select(0, own)).reshape(B, T, H, D)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H or K, T, D)
    if layout is None:
        return sdpa(q, k, v, is_causal=True).transpose(1, 2)
    # of a GPU's fused kernels none takes both a mask and shared heads
    k, v = (x.repeat_interleave(H // k.shape[1], 1) for x in (k, v))
    return sdpa(q, k, v, attn_mask=layout.mask(product_dtype(q))).transpose(1, 2)


def decode_torch(q, own, prompt, lengths, rows, group, filled):
    """Sampling: one query a row, over its prompt's keys, which a group shares, and then its own.

    q (R, H, D). own: a list of (2, R, K, C, D), keys and values of each row, one chunk of C columns after the
    other, finite everywhere; the first `filled` columns count. prompt (2, P, K, W, D): those of each prompt,
    of which the first lengths[p] count. rows (R,) int64, ascending: the numbers of these rows among all P *
    group; number n belongs to prompt n // group. lengths (P or more,) and filled (1,) are integer tensors, so
    that a CUDA graph can hold a call. Returns (R, H, D). A group's queries stand together as one matrix
    product with their prompt's keys, which are read once for all of them.
    """
    (R, H, D), (P, K, W) = q.shape, prompt.shape[1:4]

    def together(x):  # (R, K, H/K, ·) → (P, K, group * H/K, ·)
        x = x if P * group == R else x.new_zeros(P * group, *x.shape[1:]).index_copy_(0, rows, x)
        return x.unflatten(0, (P, group)).transpose(1, 2).flatten(2, 3)

    def apart(x):  # and back
        return x.unflatten(2, (group, H // K)).transpose(1, 2).flatten(0, 1)[rows]

    with torch.autocast(q.device.type, enabled=False):
        q = q.float().view(R, K, H // K, D) * D**-0.5
        prompt_k, prompt_v = (x.float() for x in prompt)
        keys, values = zip(*(chunk.float() for chunk in own))  # of each chunk (R, K, C, D)
        sizes = [k.shape[2] for k in keys]
        column = torch.arange(max(W, sum(sizes)), device=q.device)
        alone = together(torch.cat([q @ k.mT for k in keys], -1)) + additive(column[: sum(sizes)] < filled)
        in_prompt = additive(column[:W] < lengths[:P, None])[:, None, None]  # (P, 1, 1, W)
        scores = torch.cat((together(q) @ prompt_k.mT + in_prompt, alone), -1)  # (P, K, group * H/K, W + own)
        shared, *alone = scores.softmax(-1).split((W, *sizes), -1)
        return sum((apart(p) @ v for p, v in zip(alone, values)), apart(shared @ prompt_v)).reshape(R, H, D)


def chunk_torch(columns, device):
    """Few on a CPU: of the first columns of a long cache it reads short blocks with gaps, 3 times slower.

    A chunk that has been begun is read whole.
    """
    return min(columns, 32 if device.type == "cpu" else 128)


# ------------------------------------------------------------------------------------------------------------
# By the kernels of flash.py, which is imported only then


def attend_triton(q, k, v, layout):
    """All in the type of v: rotary positions leave q and k in float32, and kernels know no autocast."""
    from flash import flash_attention

    layout = layout or Layout.of(q.new_zeros(q.shape[:2], dtype=torch.int32))
    return flash_attention(q.to(v.dtype), k.to(v.dtype), v, layout.bounds)


def decode_triton(q, own, prompt, lengths, rows, group, filled):
    from flash import flash_decode

    return flash_decode(q.to(own[0].dtype), *own, prompt, lengths, rows, group, filled)


# ------------------------------------------------------------------------------------------------------------
# The table


@dataclass(frozen=True)
class Backend:
    """One way to compute attention, in training and in sampling."""

    name: str
    # (layout, like): works out what attend takes from a layout; like: a tensor of q's device and dtype
    prepare: Callable
    attend: Callable  # as `attention`
    decode: Callable  # as `decode_torch`
    # (columns, device) → columns of a chunk of the cache; on a GPU each number of chunks needs a graph
    chunk: Callable


# Triton's decoding stops by itself where a row ends: it takes all columns as one chunk.
BACKENDS = {b.name: b for b in (
    Backend("reference", lambda layout, like: layout.mask(like.dtype), reference, decode_torch, chunk_torch),
    Backend("sdpa", prepare_sdpa, attention, decode_torch, chunk_torch),
    Backend("triton", lambda layout, like: layout.bounds, attend_triton, decode_triton,
            lambda columns, device: columns),
)}  # fmt: skip


def choose(name, device, head_dim, dtype=torch.bfloat16):
    """The backend to use → (Backend, note).

    name: one of `BACKENDS`, or auto: the Triton kernels on a CUDA GPU, else sdpa. The kernels are taken only
    if all of them give what the reference does here, computing in `dtype` for heads of this width. Else auto
    takes sdpa too, and the note says why; it is "" otherwise. Raises UserError if they are asked for by name.
    """
    auto = BACKENDS["triton" if device.type == "cuda" else "sdpa"]
    backend = look_up("attention", {"auto": auto, **BACKENDS}, name)
    why = why_not_triton(device, head_dim, dtype) if backend.name == "triton" else ""
    if why and name == "triton":
        raise UserError(f"--attention triton cannot be used: {why}; choose sdpa")
    return (BACKENDS["sdpa"], f"no Triton kernels: {why}") if why else (backend, "")


def why_not_triton(device, head_dim, dtype):
    if device.type != "cuda":
        return f"it needs a CUDA GPU, and the device is {device.type}"
    try:
        from flash import why_not
    except Exception as error:  # no package, or one for another Python: each has a type of its own
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return why_not(device, head_dim, dtype)
