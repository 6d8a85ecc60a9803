"""Sampling speed beside transformers' generate on the same weights and prompts in the same run: new tokens/s.

python bench/sampling_speed.py

On a CPU the tiny preset's model, on a GPU the paper's. Nothing stops early, so that both write the same
number of tokens. Ours samples groups from shared prompts and returns log-probabilities; generate gets its
best of some batch sizes, in float32 and bfloat16.

The floor is the time that no sampler could go below on this machine: each step reads every key and value once
(a group's prompt once for all) at the measured speed of a copy, and multiplies by every weight at the
measured rate of a large product.
"""

import dataclasses
import json
import random
import statistics
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:1] = [str(ROOT)]

from lab.device import DeviceOptions, compute_dtype, run_torch_script, setup  # noqa: E402
from lab.options import opt, parse_options, write_atomic  # noqa: E402

import torch  # noqa: E402

import sampler  # noqa: E402
from attention import choose  # noqa: E402
from model import ModelConfig, Qwen2  # noqa: E402


@dataclass(frozen=True)
class Options(DeviceOptions):
    replicas: int = opt(2, "on a CPU: workers of ours, as the preset has", within="[1, 256]")
    rows: int = opt(0, "samples (0: 256 on a CPU, 6144 on a GPU)")
    group: int = opt(8, "samples of a prompt", within="[1, inf)")
    prompt: int = opt(0, "mean tokens of a prompt (0: 120 on a CPU, 250 on a GPU)")
    new: int = opt(0, "new tokens of a sample (0: 80 on a CPU, 300 on a GPU)")
    sample_rows: int = opt(0, "rows that ours samples together (0: all)")
    batches: str = opt("64,256", "batch sizes for generate, which gets the best")
    rounds: int = opt(3, "measurements of each", within="[1, inf)")
    json: str | None = opt(None, "write the numbers here too")


def floor(o, model, prompts, rows):
    """Seconds below which no sampler can go here."""
    config, device = model.config, next(model.parameters()).device
    gpu = device.type == "cuda"
    size = 1 << (30 if gpu else 26)
    source = torch.empty(size, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)

    def best(work):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            work()
            if gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    n = 8192 if gpu else 2048
    a = torch.randn(n, n, device=source.device).to(model.compute_dtype)
    bandwidth, rate = 2 * size / best(lambda: target.copy_(source)), 2 * n**3 / best(lambda: a @ a)
    width = (
        2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * (2 if gpu else 4)
    )  # bytes of one position
    read = o.new * sum(map(len, prompts)) * width + rows * o.new * (o.new - 1) // 2 * width
    return read / bandwidth + 2 * model.num_parameters() * (rows * o.new + sum(map(len, prompts))) / rate


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__.partition("\n\n")[0])
    device = setup(o)
    gpu = device.type == "cuda"
    o = dataclasses.replace(o, prompt=o.prompt or (250 if gpu else 120), new=o.new or (300 if gpu else 80))
    size = (
        {}
        if gpu
        else dict(
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
        )
    )
    config = ModelConfig(vocab_size=800, max_position_embeddings=o.prompt * 2 + o.new, **size)
    model = Qwen2(config).to(device).eval()
    model.compute_dtype = compute_dtype(o.dtype, device)
    model.backend, _ = choose(o.attention, device, config.head_dim, model.compute_dtype)
    rand, rows = random.Random(0), o.rows or (6144 if gpu else 256)
    prompts = [
        [rand.randrange(10, 800) for _ in range(rand.randint(o.prompt // 2, 3 * o.prompt // 2))]
        for _ in range(rows // o.group)
    ]

    def ours():
        sampler.generate(
            model,
            prompts,
            group_size=o.group,
            max_new_tokens=o.new,
            stop_id=-1,
            batch_size=o.sample_rows or rows,
            workers=o.replicas,
        )

    contenders = {"ours": ours}
    try:
        import transformers

        fields = {
            k: v
            for k, v in dataclasses.asdict(config).items()
            if k not in ("rope_theta", "initializer_range")
        }
        peers = {}
        for dtype in (torch.bfloat16,) if gpu else (torch.float32, torch.bfloat16):
            peer = transformers.Qwen2ForCausalLM(
                transformers.Qwen2Config(
                    **fields, attn_implementation="sdpa", bos_token_id=None, eos_token_id=None
                )
            )
            peers[str(dtype).split(".")[1]] = peer.to(device, dtype).eval()
        everyone = sorted((p for p in prompts for _ in range(o.group)), key=len)

        def generate(peer, batch):
            for i in range(0, rows, batch):
                some = everyone[i : i + batch]
                width = max(map(len, some))
                ids = torch.tensor([[0] * (width - len(p)) + p for p in some], device=device)
                mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in some], device=device)
                with torch.inference_mode():
                    peer.generate(
                        ids,
                        attention_mask=mask,
                        do_sample=True,
                        max_new_tokens=o.new,
                        min_new_tokens=o.new,
                        pad_token_id=0,
                    )

        contenders |= {
            f"generate, {name}, batch {b}": partial(generate, peer, int(b))
            for name, peer in peers.items()
            for b in o.batches.split(",")
        }
    except ImportError:
        print("transformers is not installed: left out")
    seconds = {name: [] for name in contenders}
    for turn in range(o.rounds + 1):
        for name, work in contenders.items():
            start = time.perf_counter()
            work()
            if gpu:
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    best, least = statistics.median(seconds["ours"]), floor(o, model, prompts, rows)
    print(
        f"{rows} samples of {o.new} tokens, prompts of about {o.prompt}, "
        f"{model.num_parameters():,} parameters, ours in {model.compute_dtype}; median of {o.rounds}"
    )
    rates = {name: rows * o.new / statistics.median(s) for name, s in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:34}{rate:12,.0f} tokens/s   ours / it {rates['ours'] / rate:5.2f}")
    print(f"ours takes {best:.2f} s, the floor is {least:.2f} s: {least / best:.0%}")
    if o.json:
        numbers = {"device": str(device), "tokens_per_second": rates, "share_of_floor": least / best}
        write_atomic(o.json, json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    run_torch_script(main)
