"""Causal attention within packed documents: one function, three ways to compute it that must agree.

Shapes: B rows, T positions, S cache positions, H query heads, K key/value heads (H a multiple of K), D head width.
`reference` is the definition in plain torch; "sdpa" calls torch's fused kernels; "triton" the kernels of flash.py, imported only then.
"""

import torch
import torch.nn.functional as F

import cli

BACKENDS = ("auto", "triton", "sdpa", "reference")
_backend = "sdpa"


def choose(name, device):
    """Which way `attention` computes from here on, in this process. auto: sdpa. Raises UserError for one that cannot be had here."""
    global _backend
    if name == "triton":
        if device.type != "cuda":
            raise cli.UserError(f"--attention triton needs a CUDA GPU, and the device is {device.type}; choose sdpa")
        try:
            import flash  # noqa: F401
        except ImportError as error:
            raise cli.UserError(f"--attention triton needs the package triton ({error}); choose sdpa") from None
    _backend = "sdpa" if name == "auto" else name


def attention(q, k, v, doc_start=None, *, layout=None):
    """softmax(q·kᵀ/√D)·v over the earlier positions of the same document.

    q (B, T, H, D); k, v (B, S, K, D); doc_start (B, T): first position of each token's document (None: a row is one
    document). layout: `document_layout(doc_start)` or `decode_layout(…)`, so that a model works it out once for all its layers; or any
    additive mask (B or 1, 1, T, S). S = T unless decoding or with such a mask. Returns (B, T, H, D).
    """
    B, T, H, D = q.shape
    if layout is None and (doc_start is not None or _backend != "sdpa"):
        layout = document_layout(torch.zeros(B, T, dtype=torch.int32, device=q.device) if doc_start is None else doc_start)
    if isinstance(layout, tuple):
        from flash import flash_attention

        return flash_attention(q, k, v, layout)
    if isinstance(layout, list):  # each document on its own: no work is spent on pairs of different documents
        q, k, v = (x.reshape(B * T, -1, D).transpose(0, 1).split(layout, 1) for x in (q, k, v))  # of (H or K, length, D)
        out = [F.scaled_dot_product_attention(*(x[None] for x in qkv), is_causal=True, enable_gqa=True)[0] for qkv in zip(q, k, v)]
        return torch.cat(out, 1).transpose(0, 1).reshape(B, T, H, D)
    if layout is not None and not layout.is_floating_point():
        if layout.ndim == 1:
            from flash import flash_decode

            return flash_decode(q, k, v, layout, k.shape[1])
        return reference(q, k, v, layout)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H or K, T or S, D)
    if T == 1:  # decoding: the query heads of a KV head see the same keys, so they stand in as its queries
        return F.scaled_dot_product_attention(q.reshape(B, k.shape[1], -1, D), k, v, attn_mask=layout).reshape(B, 1, H, D)
    if layout is not None and q.device.type != "cpu" and k.shape[1] < H:  # of the GPU's fused kernels none takes both a mask and shared heads
        k, v = (x.repeat_interleave(H // k.shape[1], 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=layout, is_causal=layout is None, enable_gqa=True).transpose(1, 2)


def document_layout(doc_start):
    """doc_start (B, T) → what `attention` needs of it: for sdpa on a CPU the lengths of the documents, row by row, else a mask.

    On a CPU one fused call per document beats one call with a mask by 1.4 times in training; on a GPU the many small calls would not.
    """
    B, T = doc_start.shape
    if _backend == "triton":
        from flash import doc_ends

        doc_start = doc_start.contiguous()
        return doc_start, doc_ends(doc_start)
    if _backend == "reference":
        return doc_start
    if doc_start.device.type != "cpu":
        return document_mask(doc_start)
    first = doc_start + T * torch.arange(B, dtype=doc_start.dtype)[:, None]
    return torch.unique_consecutive(first.reshape(-1), return_counts=True)[1].tolist()


def decode_layout(first, columns):
    """One query a row, each over columns [first[r], columns) of its cache: first (R,) → the layout of that."""
    if _backend == "triton":
        return first.to(torch.int32)
    visible = torch.arange(columns, device=first.device) >= first[:, None]  # (R, S)
    return additive(visible)[:, None, None]


def additive(visible):
    """True/False → 0/−inf: a mask to add to scores."""
    return torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, float("-inf"))


def document_mask(doc_start, dtype=torch.float32):
    """Additive mask (B, 1, T, T): 0 where the query may look, −inf elsewhere. doc_start (B, T)."""
    position = torch.arange(doc_start.shape[1], device=doc_start.device)
    visible = (position <= position[:, None]) & (position >= doc_start[:, :, None])  # (B, T, T)
    return torch.zeros(visible.shape, dtype=dtype, device=doc_start.device).masked_fill_(~visible, float("-inf"))[:, None]


def reference(q, k, v, doc_start=None):
    """The same by definition, every score written out; works in float64."""
    B, T, H, D = q.shape
    k, v = (x.repeat_interleave(H // x.shape[2], 2) for x in (k, v))  # (B, T, H, D)
    scores = torch.einsum("bthd,bshd->bhts", q, k) * D**-0.5
    if doc_start is None:
        doc_start = torch.zeros(B, T, dtype=torch.int32, device=q.device)
    scores = scores + document_mask(doc_start, q.dtype)
    return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
