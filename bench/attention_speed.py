"""Attention beside torch's own kernels in the same run: milliseconds, forward and with backward.

On a CPU the tiny preset's row, documents one by one against one masked call; on a GPU our kernels against
FLASH, CUDNN, FlexAttention and varlen. Dense and packed documents.

    python bench/attention_speed.py
    python bench/attention_speed.py --attention triton
"""

import inspect
import json
import random
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:1] = [str(ROOT)]

from lab.options import CheckedOptions, UserError, opt, parse_options, run_script, write_atomic  # noqa: E402

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from attention import BACKENDS, Layout, choose  # noqa: E402


@dataclass(frozen=True)
class Options(CheckedOptions):
    device: str = opt("auto", "auto, cpu or cuda", ("auto", "cpu", "cuda"))
    attention: str = opt("auto", "ours", ("auto", *BACKENDS))
    shape: str = opt("", "B,T,H,K,D (default: 16,2048,12,2,64 on a GPU, 1,1536,4,4,32 on a CPU)")
    mean: int = opt(0, "mean tokens of a document (default: 340 on a GPU, 150 on a CPU)")
    rounds: int = opt(21, "measurements of each, interleaved", within="[1, inf)")
    json: str | None = opt(None, "write the numbers here too")


def documents(B, T, mean, rand):
    """doc_start (B, T): documents of mean ± half, packed."""
    out = []
    for _ in range(B):
        row, at = [], 0
        while at < T:
            n = min(T - at, rand.randint(mean // 2, 3 * mean // 2))
            row += [at] * n
            at += n
        out.append(row)
    return torch.tensor(out, dtype=torch.int32)


def contenders(q, k, v, doc_start, backend):
    """{name: attention of q, k, v (B, T, heads, D)} dense, and over the documents."""
    layout, whole, gpu = Layout.of(doc_start), Layout.of(torch.zeros_like(doc_start)), q.is_cuda
    for one in (layout, whole):  # once a batch, as a model works it out
        backend.prepare(one, q)

    def sdpa(kernel=None, mask=None):
        def call():
            with sdpa_kernel(kernel) if kernel else nullcontext():
                heads_first = (x.transpose(1, 2) for x in (q, k, v))
                out = F.scaled_dot_product_attention(
                    *heads_first, attn_mask=mask, is_causal=mask is None, enable_gqa=True
                )
                return out.transpose(1, 2)

        return call

    dense = {"ours": lambda: backend.attend(q, k, v, whole if backend.name == "triton" else None)}
    packed = {
        "ours": lambda: backend.attend(q, k, v, layout),
        "SDPA, masked": sdpa(mask=layout.mask(q.dtype)),
    }
    if gpu:
        dense |= {
            "SDPA-FLASH": sdpa(SDPBackend.FLASH_ATTENTION),
            "SDPA-CUDNN": sdpa(SDPBackend.CUDNN_ATTENTION),
        }
        packed["SDPA-CUDNN, dense"] = dense["SDPA-CUDNN"]
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        B, T = doc_start.shape
        mask = create_block_mask(
            lambda b, h, i, j: (j <= i) & (j >= doc_start[b, i]), B, None, T, T, device="cuda"
        )
        flex = torch.compile(flex_attention)
        packed["FlexAttention"] = lambda: flex(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), block_mask=mask, enable_gqa=True
        ).transpose(1, 2)
        try:
            from torch.nn.attention.varlen import varlen_attn

            first = (doc_start == torch.arange(T, device=q.device)).flatten().nonzero()[:, 0].to(torch.int32)
            ends = torch.cat((first, first.new_tensor([B * T])))
            longest = int(ends.diff().max())
            # causal and shared heads are asked for in other words from version to version
            known = inspect.signature(varlen_attn).parameters
            causal = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
            shared = {"enable_gqa": True} if "enable_gqa" in known else {}
            times = 1 if shared else q.shape[2] // k.shape[2]
            packed["varlen_attn"] = lambda: varlen_attn(
                q.flatten(0, 1),
                *(x.flatten(0, 1).repeat_interleave(times, 1) for x in (k, v)),
                ends,
                ends,
                longest,
                longest,
                **causal,
                **shared,
            ).view(q.shape)
        except ImportError:
            print("this torch has no varlen_attn: left out")
    else:
        dense["SDPA"] = packed["SDPA, dense"] = sdpa()
    return dense, packed


def measure(calls, inputs, rounds):
    """Median milliseconds of each call, forward and with backward, interleaved after a warm-up."""
    forward, both = {n: [] for n in calls}, {n: [] for n in calls}

    def clock(work):
        if inputs[0].is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if inputs[0].is_cuda:
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start)

    gradient = torch.randn_like(inputs[0])
    for turn in range(rounds + 3):
        for name, call in random.sample(list(calls.items()), len(calls)):
            times = clock(call), clock(lambda: torch.autograd.grad(call(), inputs, gradient))
            if turn >= 3:
                forward[name].append(times[0])
                both[name].append(times[1])
    return {n: (statistics.median(forward[n]), statistics.median(both[n])) for n in calls}


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__.partition("\n\n")[0])
    gpu = torch.cuda.is_available() if o.device == "auto" else o.device == "cuda"
    if gpu and not torch.cuda.is_available():
        raise UserError("device cuda was asked for, but torch sees none here; use --device cpu")
    device = torch.device("cuda" if gpu else "cpu")
    try:
        B, T, H, K, D = map(int, (o.shape or ("16,2048,12,2,64" if gpu else "1,1536,4,4,32")).split(","))
    except ValueError:
        raise UserError(f"--shape must be five numbers B,T,H,K,D, not {o.shape!r}") from None
    backend, note = choose(o.attention, device, D)
    print(f"device {device}, attention {backend.name}{note and f' ({note})'}, torch {torch.__version__}")
    mean = o.mean or (340 if gpu else 150)
    kind = {"device": device, "dtype": torch.bfloat16 if gpu else torch.float32, "requires_grad": True}
    inputs = [torch.randn(B, T, h, D, **kind) for h in (H, K, K)]
    doc_start = documents(B, T, mean, random.Random(0)).to(device)
    out = []
    for title, calls in zip(
        ("dense", f"documents of {mean} tokens on average"), contenders(*inputs, doc_start, backend)
    ):
        times = measure(calls, inputs, o.rounds)
        print(f"\nB={B} T={T} H={H} K={K} D={D}, {title}; median of {o.rounds}")
        print(f"{'':22}{'forward ms':>12}{'it / ours':>11}{'with backward':>15}{'it / ours':>11}")
        for name, (f, b) in times.items():
            print(f"{name:22}{f:12.3f}{f / times['ours'][0]:11.2f}{b:15.3f}{b / times['ours'][1]:11.2f}")
            out.append({"documents": title, "name": name, "forward_ms": f, "with_backward_ms": b})
    if o.json:
        write_atomic(
            o.json,
            json.dumps({"device": str(device), "shape": [B, T, H, K, D], "rows": out}, indent=1) + "\n",
        )


if __name__ == "__main__":
    run_script(main)
