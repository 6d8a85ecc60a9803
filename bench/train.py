"""Training speed beside peers on the same batches in the same run: tokens/s of whole steps, and the share of the machine's matmul rate.

    git clone https://github.com/karpathy/nanoGPT /tmp/nanoGPT
    python bench/train.py --nanogpt /tmp/nanoGPT/model.py

On a CPU the tiny preset's model, on a GPU the paper's. All train on the same packed rows with AdamW and a loss on every token; peers see a
row as one document, which is what they can do. Each in bfloat16 (peers by autocast) and, on a CPU, in float32, as nanoGPT's own trainer
does there. The last line is ours as the preset trains it (its optimizer, loss on the solution).
"""

import dataclasses
import importlib.util
import json
import random
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:1] = [str(ROOT)]  # not bench/, whose data.py is another file

import cli  # noqa: E402
import common  # noqa: E402
import torch  # noqa: E402

import data  # noqa: E402
import train_pretrain as trainer  # noqa: E402
from attention import BACKENDS  # noqa: E402
from model import ModelConfig, Qwen2  # noqa: E402


@dataclass(frozen=True)
class Options:
    device: str = cli.opt("auto", "auto, cpu or cuda")
    preset: str = cli.opt("", "preset (default: tiny on a CPU, paper on a GPU)")
    rows: int = cli.opt(0, "rows of a micro-batch (0: the preset's on a CPU, 16 on a GPU)")
    attention: str = cli.opt("auto", "ours", BACKENDS)
    nanogpt: str | None = cli.opt(None, "nanoGPT's model.py")
    rounds: int = cli.opt(9, "measurements of each, interleaved")
    steps: int = cli.opt(8, "steps of a measurement")
    threads: int = cli.opt(0, "CPU threads (0: torch's default)")
    json: str | None = cli.opt(None, "write the numbers here too")


def matmul_rate(device, dtype):
    """Measured FLOP/s of a large square product, the best of ten."""
    n, best = 2048 if device.type == "cpu" else 8192, 0.0
    a = torch.randn(n, n, device=device).to(dtype)
    for _ in range(10):
        start = time.perf_counter()
        float((a @ a)[0, 0])
        best = max(best, 2 * len(a) ** 3 / (time.perf_counter() - start))
    return best


def contenders(o, p, vocab, device):
    """{name: (a function of a batch that takes one step, number of parameters, precision)}."""
    out, half = {}, torch.bfloat16

    def add(name, model, loss, dtype, optimizers=None):
        model = model.to(device)
        optimizers = optimizers or [torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)]
        ours = isinstance(model, Qwen2)
        if ours:
            model.compute_dtype = dtype

        def step(batch):
            with torch.autocast(device.type, half, enabled=dtype == half and not ours):
                value = loss(model, *batch)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        out[f"{name}, {str(dtype).split('.')[1]}"] = step, sum(q.numel() for q in model.parameters()), dtype

    config = ModelConfig(vocab_size=vocab, hidden_size=p.hidden_size, intermediate_size=p.intermediate_size, num_hidden_layers=p.layers,
                         num_attention_heads=p.heads, num_key_value_heads=p.kv_heads, max_position_embeddings=p.row_tokens)  # fmt: skip
    dtypes = (half,) if device.type == "cuda" else (half, torch.float32)
    for dtype in dtypes:
        add(
            "ours",
            Qwen2(config),
            lambda m, tokens, every, solution, starts: m(tokens, starts, every, loss_only=True)[1],
            dtype,
        )
        if device.type == "cuda":
            compiled = Qwen2(config)
            compiled.compile_layers()
            add(
                "ours, compiled",
                compiled,
                lambda m, tokens, every, solution, starts: m(tokens, starts, every, loss_only=True)[1],
                dtype,
            )
    if o.nanogpt:
        spec = importlib.util.spec_from_file_location("nanogpt", o.nanogpt)
        nanogpt = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(nanogpt)
        settings = nanogpt.GPTConfig(
            block_size=p.row_tokens,
            vocab_size=vocab,
            n_layer=p.layers,
            n_head=p.heads,
            n_embd=p.hidden_size,
            dropout=0.0,
            bias=False,
        )

        def loss(m, tokens, every, solution, starts):
            return m(tokens, every.clamp(min=-1))[1]  # its mark of no target is -1

        for dtype in dtypes:
            add("nanoGPT", nanogpt.GPT(settings), loss, dtype)
            if device.type == "cuda":
                add("nanoGPT, compiled", torch.compile(nanogpt.GPT(settings)), loss, dtype)
    try:
        import transformers

        fields = {
            k: v
            for k, v in dataclasses.asdict(config).items()
            if k not in ("rope_theta", "initializer_range")
        }
        for dtype in dtypes:
            peer = transformers.Qwen2ForCausalLM(
                transformers.Qwen2Config(**fields, attn_implementation="sdpa", use_cache=False)
            ).train()
            add("transformers Qwen2", peer, lambda m, tokens, every, solution, starts: torch.nn.functional.cross_entropy(
                m(tokens).logits.flatten(0, 1).float(), every.flatten()), dtype)  # fmt: skip
    except ImportError:
        print("transformers is not installed: left out")
    preset = Qwen2(config).to(device)
    add("ours, as the preset trains", preset, lambda m, tokens, every, solution, starts: m(tokens, starts, solution, loss_only=True)[1],
        common.compute_dtype(p.dtype, device), trainer.make_optimizers(preset, p))  # fmt: skip
    return out


def main():
    o = cli.parse_options(Options, description=__doc__.splitlines()[0])
    device = common.setup(o.device, 0, o.threads, o.attention)
    name = o.preset or ("tiny" if device.type == "cpu" else "paper")
    p = trainer.Options(**{**common.PRESETS[name]["pretrain"], "preset": name})
    rows = o.rows or (p.rows if device.type == "cpu" else 16)
    mixture = data.Mixture.parse(p.mixture)
    tokenizer = trainer.train_tokenizer(mixture, (), p.vocab_size, 0)
    batches = []
    for both in zip(
        *(
            data.batches(data.Source(mixture, tokenizer, 0, rows, p.row_tokens, only))
            for only in (False, True)
        )
    ):
        (tokens, every, starts), (_, solution, _) = (common.to_device(b, device) for b in both)
        batches.append((tokens, every, solution, starts))
        if len(batches) == o.steps:
            break
    random.seed(0)
    entries = contenders(o, p, tokenizer.vocab_size, device)
    peak = {dtype: matmul_rate(device, dtype) for dtype in {dtype for _, _, dtype in entries.values()}}
    seconds = {name: [] for name in entries}
    for turn in range(o.rounds + 1):  # the first warms up
        for name, (step, _, _) in random.sample(list(entries.items()), len(entries)):
            start = time.perf_counter()
            for batch in batches:
                step(batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append((time.perf_counter() - start) / len(batches))
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    count, out, first = rows * p.row_tokens, [], next(iter(medians.values()))
    rates = ", ".join(f"{str(dtype).split('.')[1]} {rate / 1e9:,.0f}" for dtype, rate in peak.items())
    print(
        f"steps of {rows} x {p.row_tokens} tokens, median of {o.rounds} x {o.steps}; measured matmul rate, GFLOP/s: {rates}"
    )
    print(f"{'':38}{'parameters':>12}{'tokens/s':>12}{'first / it':>12}{'share of matmul rate':>22}")
    for name, s in medians.items():
        _, size, dtype = entries[name]
        share = 6 * size * count / s / peak[dtype]
        print(f"{name:38}{size:12,}{count / s:12,.0f}{s / first:12.2f}{share:22.0%}")
        out.append({"name": name, "parameters": size, "tokens_per_second": count / s, "share": share})
    if o.json:
        cli.write_atomic(o.json, json.dumps({"device": str(device), "rows": out}, indent=1) + "\n")


if __name__ == "__main__":
    common.run(main)
