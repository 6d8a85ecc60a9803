"""Training speed beside peers on the same batches in the same run: tokens/s of whole steps, and the share of the machine's matmul rate.

    git clone https://github.com/karpathy/nanoGPT /tmp/nanoGPT
    python bench/train.py --nanogpt /tmp/nanoGPT/model.py

On a CPU the tiny preset's model, on a GPU the paper's. All train on the same packed rows with AdamW and a loss on every token; peers see a
row as one document, which is what they can do. The last line is ours as the preset trains it (its optimizer, loss on the solution).
"""

import dataclasses
import importlib.util
import json
import random
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:1] = [str(ROOT)]  # not bench/, whose data.py is another file

import torch  # noqa: E402

import cli  # noqa: E402
import common  # noqa: E402
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


def matmul_rate(device):
    """Measured FLOP/s of a large square product, the best of ten."""
    a = torch.randn(2048 if device.type == "cpu" else 8192, device=device, dtype=torch.float32 if device.type == "cpu" else torch.bfloat16)
    a, best = a[None].repeat(len(a), 1), 0.0
    for _ in range(10):
        start = time.perf_counter()
        float((a @ a)[0, 0])
        best = max(best, 2 * len(a) ** 3 / (time.perf_counter() - start))
    return best


def contenders(o, p, vocab, device, batches):
    """{name: a function of a batch that takes one step} and {name: parameters}."""
    steps, sizes = {}, {}
    cast = (lambda: torch.autocast("cuda", torch.bfloat16)) if device.type == "cuda" else nullcontext

    def add(name, model, loss, optimizers=None):
        model = model.to(device)
        optimizers = optimizers or [torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)]
        sizes[name] = sum(q.numel() for q in model.parameters())

        def step(batch):
            with cast():
                value = loss(model, *batch)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        steps[name] = step

    config = ModelConfig(vocab_size=vocab, hidden_size=p.hidden_size, intermediate_size=p.intermediate_size, num_hidden_layers=p.layers,
                         num_attention_heads=p.heads, num_key_value_heads=p.kv_heads, max_position_embeddings=p.row_tokens)  # fmt: skip
    add("ours", Qwen2(config), lambda m, tokens, every, solution, starts: m(tokens, starts, every, loss_only=True)[1])
    if o.nanogpt:
        spec = importlib.util.spec_from_file_location("nanogpt", o.nanogpt)
        nanogpt = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(nanogpt)
        settings = nanogpt.GPTConfig(block_size=p.row_tokens, vocab_size=vocab, n_layer=p.layers, n_head=p.heads, n_embd=p.hidden_size, dropout=0.0, bias=False)

        def loss(m, tokens, every, solution, starts):
            return m(tokens, every.clamp(min=-1))[1]  # its mark of no target is -1

        add("nanoGPT", nanogpt.GPT(settings), loss)
        if device.type == "cuda":
            add("nanoGPT, compiled", torch.compile(nanogpt.GPT(settings)), loss)
    try:
        import transformers

        fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("rope_theta", "initializer_range")}
        peer = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**fields, attn_implementation="sdpa", use_cache=False)).train()
        add("transformers Qwen2", peer, lambda m, tokens, every, solution, starts: torch.nn.functional.cross_entropy(
            m(tokens).logits.flatten(0, 1).float(), every.flatten()))  # fmt: skip
    except ImportError:
        print("transformers is not installed: left out")
    preset = Qwen2(config).to(device)
    add("ours, as the preset trains", preset, lambda m, tokens, every, solution, starts: m(tokens, starts, solution, loss_only=True)[1],
        trainer.make_optimizers(preset, p))  # fmt: skip
    return steps, sizes


def main():
    o = cli.parse_options(Options, description=__doc__.splitlines()[0])
    device = common.setup(o.device, 0, o.threads, o.attention)
    name = o.preset or ("tiny" if device.type == "cpu" else "paper")
    p = trainer.Options(**{**common.PRESETS[name]["pretrain"], "preset": name})
    rows = o.rows or (p.rows if device.type == "cpu" else 16)
    mixture = data.Mixture.parse(p.mixture)
    tokenizer = trainer.train_tokenizer(mixture, (), p.vocab_size, 0)
    batches = []
    for both in zip(*(data.batches(data.Source(mixture, tokenizer, 0, rows, p.row_tokens, only)) for only in (False, True))):
        (tokens, every, starts), (_, solution, _) = (common.to_device(b, device) for b in both)
        batches.append((tokens, every, solution, starts))
        if len(batches) == o.steps:
            break
    random.seed(0)
    steps, sizes = contenders(o, p, tokenizer.vocab_size, device, batches)
    peak, seconds = matmul_rate(device), {name: [] for name in steps}
    for turn in range(o.rounds + 1):  # the first warms up
        for name, step in random.sample(list(steps.items()), len(steps)):
            start = time.perf_counter()
            for batch in batches:
                step(batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append((time.perf_counter() - start) / len(batches))
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    count, out = rows * p.row_tokens, []
    print(f"steps of {rows} x {p.row_tokens} tokens, median of {o.rounds} x {o.steps}; measured matmul rate {peak / 1e9:,.0f} GFLOP/s")
    print(f"{'':28}{'parameters':>12}{'tokens/s':>12}{'ours / it':>11}{'share of matmul rate':>22}")
    for name, s in medians.items():
        share = 6 * sizes[name] * count / s / peak
        print(f"{name:28}{sizes[name]:12,}{count / s:12,.0f}{s / medians['ours']:11.2f}{share:22.0%}")
        out.append({"name": name, "parameters": sizes[name], "tokens_per_second": count / s, "share": share})
    if o.json:
        cli.write_atomic(o.json, json.dumps({"device": str(device), "rows": out}, indent=1) + "\n")


if __name__ == "__main__":
    common.run(main)
