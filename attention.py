"""Causal attention within packed documents: one function, three ways to compute it that must agree.

Shapes: B rows, T positions, H query heads, K key/value heads (H a multiple of K), D head width.
`reference` is the definition in plain torch; "sdpa" calls torch's fused kernels; "triton" the kernels of flash.py, imported only then.
"""

import torch
import torch.nn.functional as F

import cli

BACKENDS = ("auto", "triton", "sdpa", "reference")
_backend = "sdpa"


def choose(name, device):
    """Which way `attention` computes from here on, in this process. auto: on a CUDA GPU the Triton kernels if they can be used, else sdpa.

    Returns its name, with the reason if auto did without the kernels. Raises UserError for a way that is asked for and cannot be used here.
    """
    global _backend
    why = why_not_triton(device) if name == "triton" or (name == "auto" and device.type == "cuda") else ""
    if why and name == "triton":
        raise cli.UserError(f"--attention triton cannot be used: {why}; choose sdpa")
    _backend = name if name != "auto" else "triton" if device.type == "cuda" and not why else "sdpa"
    return f"{_backend} (no Triton kernels: {why})" if why else _backend


def why_not_triton(device):
    """Why the Triton kernels cannot be used on this device, or "" if they can and agree with the reference."""
    if device.type != "cuda":
        return f"it needs a CUDA GPU, and the device is {device.type}"
    try:
        import flash

        right = flash.agrees("forward", flash.CONFIGS["forward"][0], (4, 2, 64, True, 256, torch.bfloat16), device)
        return "" if right else "its results here are not those of the reference"
    except Exception as error:  # no package, no C compiler, no such GPU: each has a type of its own
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def attention(q, k, v, doc_start=None, *, layout=None):
    """softmax(q·kᵀ/√D)·v over the earlier positions of the same document.

    q (B, T, H, D); k, v (B, T, K, D); doc_start (B, T): first position of each token's document (None: a row is one document).
    layout: `document_layout(doc_start)`, so that a model works it out once for all its layers. Returns (B, T, H, D).
    """
    B, T, H, D = q.shape
    device = q.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.float32 if device == "cpu" else torch.get_autocast_dtype(device)  # a CPU's fused kernel takes twice as long in bf16
        with torch.autocast(device, enabled=False):
            return attention(q.to(dtype), k.to(dtype), v.to(dtype), doc_start, layout=layout)
    if layout is None and (doc_start is not None or _backend != "sdpa"):
        layout = document_layout(torch.zeros(B, T, dtype=torch.int32, device=q.device) if doc_start is None else doc_start)
    if isinstance(layout, tuple):
        from flash import flash_attention

        return flash_attention(q, k, v, layout)
    if isinstance(layout, list):  # each document on its own: no work is spent on pairs of different documents
        q, k, v = (x.reshape(B * T, -1, D).transpose(0, 1).split(layout, 1) for x in (q, k, v))  # of (H or K, length, D)
        out = [F.scaled_dot_product_attention(*(x[None] for x in qkv), is_causal=True, enable_gqa=True)[0] for qkv in zip(q, k, v)]
        return torch.cat(out, 1).transpose(0, 1).reshape(B, T, H, D)
    if _backend == "reference":
        return reference(q, k, v, layout)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H or K, T, D)
    if layout is not None and k.shape[1] < H:  # of the GPU's fused kernels none takes both a mask and shared heads
        k, v = (x.repeat_interleave(H // k.shape[1], 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=layout, is_causal=layout is None, enable_gqa=True).transpose(1, 2)


def decode(q, own, prompt, lengths, rows, group, filled, window):
    """One query a row, over its prompt's keys and then its own: sampling with a cache, where the samples of a group share their prompt's part.

    q (R, H, D). own (2, R, K, S, D): keys and values of each row, of which the first `filled` columns count. prompt (2, P, K, W, D): those of
    each prompt, of which the first lengths[p] count. rows (R,) int64, ascending: the numbers of these rows among all P * group; number n
    belongs to prompt n // group. lengths (P,) and filled (1,) are integer tensors, so that a CUDA graph can hold a call; window, an int:
    columns of `own` to look at, filled or more. Returns (R, H, D).
    A group's queries stand together as one matrix product with their prompt's keys, which are read once for all of them.
    """
    (R, H, D), (P, K, W) = q.shape, prompt.shape[1:4]
    if _backend == "triton":
        from flash import flash_decode

        return flash_decode(q.to(own.dtype), own, prompt, lengths, rows, group, filled)

    def together(x):  # (R, K, H/K, ·) → (P, K, group * H/K, ·)
        x = x.new_zeros(P * group, *x.shape[1:]).index_copy_(0, rows, x)
        return x.unflatten(0, (P, group)).transpose(1, 2).flatten(2, 3)

    def apart(x):  # and back
        return x.unflatten(2, (group, H // K)).transpose(1, 2).flatten(0, 1)[rows]

    with torch.autocast(q.device.type, enabled=False):
        q = q.float().view(R, K, H // K, D) * D**-0.5
        (k, v), (prompt_k, prompt_v) = own[:, :, :, :window].float(), prompt.float()
        column = torch.arange(max(W, window), device=q.device)
        shared = apart(together(q) @ prompt_k.mT + additive(column[:W] < lengths[:, None])[:, None, None])  # (R, K, H/K, W)
        scores = torch.cat((shared, q @ k.mT + additive(column[:window] < filled)), -1)
        shared, alone = scores.softmax(-1).split((W, window), -1)
        return (apart(together(shared) @ prompt_v) + alone @ v).view(R, H, D)


def decode_window(filled, columns, device):
    """Columns for `decode` to look at when so many of all the columns are filled. Few values on a GPU, where each needs a graph of its own."""
    if _backend == "triton":  # its kernel stops by itself
        return columns
    return filled if device.type == "cpu" else min(columns, -(-filled // 128) * 128)


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
        half = torch.is_autocast_enabled(doc_start.device.type)
        return document_mask(doc_start, torch.get_autocast_dtype(doc_start.device.type) if half else torch.float32)
    first = doc_start + T * torch.arange(B, dtype=doc_start.dtype)[:, None]
    return torch.unique_consecutive(first.reshape(-1), return_counts=True)[1].tolist()


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
