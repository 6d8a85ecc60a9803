"""Causal attention within documents: the definition, and a table of ways to compute it that must agree.

Shapes: B rows, T positions, H query heads, K key/value heads (H a multiple of K), D head width; of decoding:
R rows, P prompts, W columns of the longest prompt, S columns of a row's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

from lab.options import UserError

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
    def of(cls, doc_start):
        """Packed documents that share nothing, given the first position of each token's, (B, T)."""
        return cls(doc_start, torch.arange(doc_start.shape[1], device=doc_start.device) - doc_start)

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
    def lengths(self):
        """Tokens of each document, a list, row after row."""
        B, T = self.doc_start.shape
        first = self.doc_start + T * torch.arange(B, device=self.doc_start.device)[:, None]
        return torch.unique_consecutive(first.reshape(-1), return_counts=True)[1].tolist()

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


def one_by_one(layout, device):
    """Whether each document gets a call of its own, so that no work is spent on pairs of different documents.

    On a CPU that beats one call with a mask by 1.4 times in training; not so many small calls on a GPU.
    """
    return device.type == "cpu" and layout.prompt_start is None


def product_dtype(x):
    """What a matrix product with x is taken in here: autocast's choice, or that of x."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def prepare_sdpa(layout, like):
    _ = layout.lengths if one_by_one(layout, like.device) else layout.mask(product_dtype(like))


def attention(q, k, v, layout=None):
    """softmax(q·kᵀ/√D)·v over the keys that each token sees.

    q (B, T, H, D); k, v (B, T, K, D) → (B, T, H, D). layout: a Layout; None: each row is one document. By
    torch's fused kernels; `BACKENDS` has the other ways.
    """
    (B, T, H, D), sdpa = q.shape, partial(F.scaled_dot_product_attention, enable_gqa=True)
    if layout is not None and one_by_one(layout, q.device):
        # q, k, v: for each document (H or K, length, D)
        q, k, v = (x.reshape(B * T, -1, D).transpose(0, 1).split(layout.lengths, 1) for x in (q, k, v))
        out = [sdpa(*(x[None] for x in qkv), is_causal=True)[0] for qkv in zip(q, k, v)]
        return torch.cat(out, 1).transpose(0, 1).reshape(B, T, H, D)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H or K, T, D)
    if layout is None:
        return sdpa(q, k, v, is_causal=True).transpose(1, 2)
    # of a GPU's fused kernels none takes both a mask and shared heads
    k, v = (x.repeat_interleave(H // k.shape[1], 1) for x in (k, v))
    return sdpa(q, k, v, attn_mask=layout.mask(product_dtype(q))).transpose(1, 2)


def decode_torch(q, own, prompt, lengths, rows, group, filled, window):
    """Sampling: one query a row, over its prompt's keys, which a group shares, and then its own.

    q (R, H, D). own (2, R, K, S, D): keys and values of each row, of which the first `filled` columns count.
    prompt (2, P, K, W, D): those of each prompt, of which the first lengths[p] count. rows (R,) int64,
    ascending: the numbers of these rows among all P * group; number n belongs to prompt n // group. lengths
    (P,) and filled (1,) are integer tensors, so that a CUDA graph can hold a call; window, an int: columns of
    `own` to look at, filled or more. Returns (R, H, D). A group's queries stand together as one matrix
    product with their prompt's keys, which are read once for all of them.
    """
    (R, H, D), (P, K, W) = q.shape, prompt.shape[1:4]

    def together(x):  # (R, K, H/K, ·) → (P, K, group * H/K, ·)
        x = x.new_zeros(P * group, *x.shape[1:]).index_copy_(0, rows, x)
        return x.unflatten(0, (P, group)).transpose(1, 2).flatten(2, 3)

    def apart(x):  # and back
        return x.unflatten(2, (group, H // K)).transpose(1, 2).flatten(0, 1)[rows]

    with torch.autocast(q.device.type, enabled=False):
        q = q.float().view(R, K, H // K, D) * D**-0.5
        (k, v), (prompt_k, prompt_v) = own[:, :, :, :window].float(), prompt.float()
        column = torch.arange(max(W, window), device=q.device)
        in_prompt = additive(column[:W] < lengths[:, None])[:, None, None]  # (P, 1, 1, W)
        shared = apart(together(q) @ prompt_k.mT + in_prompt)  # (R, K, H/K, W)
        scores = torch.cat((shared, q @ k.mT + additive(column[:window] < filled)), -1)
        shared, alone = scores.softmax(-1).split((W, window), -1)
        return (apart(together(shared) @ prompt_v) + alone @ v).view(R, H, D)


def window_torch(filled, columns, device):
    return filled if device.type == "cpu" else min(columns, -(-filled // 128) * 128)


# ------------------------------------------------------------------------------------------------------------
# By the kernels of flash.py, which is imported only then


def attend_triton(q, k, v, layout):
    from flash import flash_attention

    layout = layout or Layout.of(q.new_zeros(q.shape[:2], dtype=torch.int32))
    return flash_attention(q, k, v, layout.bounds)


def decode_triton(q, own, prompt, lengths, rows, group, filled, window):
    from flash import flash_decode

    return flash_decode(q.to(own.dtype), own, prompt, lengths, rows, group, filled)


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
    # (filled, columns, device) → decode's `window`: few different ones on a GPU, where each needs a graph
    decode_window: Callable


# Triton's decoding stops by itself where a row ends, and looks at all columns.
BACKENDS = {b.name: b for b in (
    Backend("reference", lambda layout, like: layout.mask(like.dtype), reference, decode_torch, window_torch),
    Backend("sdpa", prepare_sdpa, attention, decode_torch, window_torch),
    Backend("triton", lambda layout, like: layout.bounds, attend_triton, decode_triton,
            lambda filled, columns, device: columns),
)}  # fmt: skip


def choose(name, device, head_dim, dtype=torch.bfloat16):
    """The backend to use → (Backend, note).

    name: one of `BACKENDS`, or auto: the Triton kernels on a CUDA GPU, else sdpa. The kernels are taken only
    if all of them give what the reference does here, computing in `dtype` for heads of this width. Else auto
    takes sdpa too, and the note says why; it is "" otherwise. Raises UserError if they are asked for by name.
    """
    if name not in ("auto", *BACKENDS):
        raise UserError(f"unknown attention {name!r}: choose from auto, {', '.join(BACKENDS)}")
    best = "triton" if device.type == "cuda" else "sdpa"
    way = best if name == "auto" else name
    why = why_not_triton(device, head_dim, dtype) if way == "triton" else ""
    if why and name == "triton":
        raise UserError(f"--attention triton cannot be used: {why}; choose sdpa")
    return (BACKENDS["sdpa"], f"no Triton kernels: {why}") if why else (BACKENDS[way], "")


def why_not_triton(device, head_dim, dtype):
    if device.type != "cuda":
        return f"it needs a CUDA GPU, and the device is {device.type}"
    try:
        from flash import why_not
    except Exception as error:  # no package, or one for another Python: each has a type of its own
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return why_not(device, head_dim, dtype)
