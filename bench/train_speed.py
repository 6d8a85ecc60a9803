"""Training speed beside peers on the same batches: tokens/s of whole steps, and the share of the matmul rate.

    git clone https://github.com/karpathy/nanoGPT /tmp/nanoGPT
    python bench/train_speed.py --nanogpt /tmp/nanoGPT/model.py

On a CPU the tiny preset's model, on a GPU the paper's. All train on the same packed rows, with AdamW and a
loss on every token; peers see a row as one document, which is what they can do. On a CPU ours trains the rows
in replicas, as the preset says, and beside it in one, as all peers do. Each in bfloat16 (peers by
autocast) and, on a CPU, in float32, as nanoGPT's own trainer does there. The last line is ours as the preset
trains it: its optimizer, and a loss on the solution alone.
"""

import dataclasses
import importlib.util
import json
import random
import statistics
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lab.cost import matmul_rate
from lab.device import DeviceOptions, compute_dtype, run_torch_script, setup
from lab.options import opt, parse_options, write_atomic
from lab.replicas import Replicas

import torch
import torch.nn.functional as F

from checkpoint import new_model
from data import Source, batches
from datagen import Mixture
from model import ModelConfig
from train_pretrain import PRESETS, make_optimizers, train_tokenizer
from train_pretrain import Options as PretrainOptions


@dataclass(frozen=True)
class Options(DeviceOptions):
    preset: str | None = opt(None, "preset (default: tiny on a CPU, paper on a GPU)", tuple(PRESETS))
    rows: int = opt(0, "rows of a micro-batch (0: the preset's on a CPU, 16 on a GPU)")
    row_tokens: int = opt(0, "tokens of a row (0: the preset's)")
    nanogpt: str | None = opt(None, "nanoGPT's model.py")
    rounds: int = opt(9, "measurements of each, interleaved", within="[1, inf)")
    steps: int = opt(8, "steps of a measurement", within="[1, inf)")
    json: str | None = opt(None, "write the numbers here too")


@dataclass
class Contender:
    """Something that trains.

    loss: a function of the model and two Batches, with targets everywhere and in the solution alone.
    """

    model: torch.nn.Module
    loss: object
    dtype: torch.dtype
    optimizers: list
    autocast: bool  # ours does it itself
    replicas: Replicas

    def step(self, step):
        """step: the batch, as one pair of micro-batches, and row by row."""
        self.replicas.map(self.learn, step[len(self.replicas.models) > 1])
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def learn(self, model, pair):
        device = next(model.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.autocast):
            self.loss(model, *pair).backward()


def loss_on_all(model, every, solution):
    return model(every.tokens, every.doc_start, every.targets, loss_only=True)[1]


def loss_on_solutions(model, every, solution):
    return model(every.tokens, every.doc_start, solution.targets, loss_only=True)[1]


def loss_of_nanogpt(model, every, solution):
    return model(every.tokens, every.targets.clamp(min=-1))[1]  # its mark of no target is -1


def loss_of_transformers(model, every, solution):
    return F.cross_entropy(model(every.tokens).logits.flatten(0, 1).float(), every.targets.flatten())


def load_nanogpt(path):
    spec = importlib.util.spec_from_file_location("nanogpt", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contenders(o, p, vocab_size, device):
    """{name: Contender}."""
    out, gpu = {}, device.type == "cuda"
    several = 1 if gpu else p.replicas
    config = ModelConfig(
        vocab_size,
        p.hidden_size,
        p.intermediate_size,
        p.layers,
        p.heads,
        p.kv_heads,
        max_position_embeddings=p.row_tokens,
    )

    def add(name, model, loss, dtype, optimizers=None, replicas=1):
        optimizers = optimizers or [torch.optim.AdamW(model.to(device).parameters(), lr=1e-4, fused=True)]
        ours = loss in (loss_on_all, loss_on_solutions)
        autocast = dtype == torch.bfloat16 and not ours
        name = f"{name}, {str(dtype).split('.')[1]}"
        out[name] = Contender(model, loss, dtype, optimizers, autocast, Replicas(model, replicas))

    names = ("bfloat16",) if gpu else ("bfloat16", "float32")
    dtypes = [compute_dtype(name, device) for name in names]
    for name, dtype in zip(names, dtypes):
        add("ours", new_model(config, device, name, o.attention), loss_on_all, dtype, replicas=several)
        if several > 1:
            add("ours, one replica", new_model(config, device, name, o.attention), loss_on_all, dtype)
        if gpu:
            compiled = new_model(config, device, name, o.attention)
            compiled.compile_layers()
            add("ours, compiled", compiled, loss_on_all, dtype)
    if o.nanogpt:
        nanogpt = load_nanogpt(o.nanogpt)
        settings = nanogpt.GPTConfig(
            block_size=p.row_tokens,
            vocab_size=vocab_size,
            n_layer=p.layers,
            n_head=p.heads,
            n_embd=p.hidden_size,
            dropout=0.0,
            bias=False,
        )
        for dtype in dtypes:
            add("nanoGPT", nanogpt.GPT(settings), loss_of_nanogpt, dtype)
            if gpu:
                add("nanoGPT, compiled", torch.compile(nanogpt.GPT(settings)), loss_of_nanogpt, dtype)
    if importlib.util.find_spec("transformers"):
        import transformers

        ours_alone = ("rope_theta", "initializer_range")
        fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in ours_alone}
        settings = transformers.Qwen2Config(**fields, attn_implementation="sdpa", use_cache=False)
        for dtype in dtypes:
            peer = transformers.Qwen2ForCausalLM(settings).train()
            add("transformers Qwen2", peer, loss_of_transformers, dtype)
    else:
        print("transformers is not installed: left out")
    model = new_model(config, device, o.dtype, o.attention)
    optimizers = make_optimizers(model, p)
    add("ours, as the preset trains", model, loss_on_solutions, model.compute_dtype, optimizers, several)
    return out


def measured(entries, steps, rounds, device):
    """Median seconds of a step of each, interleaved in random order; the first round warms up."""
    seconds = {name: [] for name in entries}
    for turn in range(rounds + 1):
        for name, entry in random.sample(list(entries.items()), len(entries)):
            start = time.perf_counter()
            for step in steps:
                entry.step(step)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append((time.perf_counter() - start) / len(steps))
    return {name: statistics.median(values) for name, values in seconds.items()}


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__)
    device = setup(o)
    gpu = device.type == "cuda"
    name = o.preset or ("paper" if gpu else "tiny")
    p = PretrainOptions(**PRESETS[name], preset=name)
    if o.row_tokens:
        p = dataclasses.replace(p, row_tokens=o.row_tokens)
    rows = o.rows or (16 if gpu else p.rows)
    mixture = Mixture.parse(p.mixture)
    tokenizer = train_tokenizer(mixture, (), p.vocab_size, 0)

    def micro_batches(size):
        """Of each step: pairs of micro-batches of so many rows, with targets everywhere and in solutions."""
        sources = (Source(mixture, tokenizer, 0, rows, p.row_tokens, only) for only in (False, True))
        for (every, _), (solution, _) in islice(zip(*map(batches, sources)), o.steps):
            yield list(zip(*(batch.micro_batches(size, device) for batch in (every, solution))))

    steps = list(zip(micro_batches(rows), micro_batches(1)))
    random.seed(o.seed)
    entries = contenders(o, p, tokenizer.vocab_size, device)
    size = 8192 if gpu else 2048
    peak = {dtype: matmul_rate(device, dtype, size) for dtype in {entry.dtype for entry in entries.values()}}
    seconds = measured(entries, steps, o.rounds, device)
    count, first, out = rows * p.row_tokens, next(iter(seconds.values())), []
    rates = ", ".join(f"{str(dtype).split('.')[1]} {rate / 1e9:,.0f}" for dtype, rate in peak.items())
    print(f"steps of {rows} x {p.row_tokens} tokens, median of {o.rounds} x {o.steps}")
    print(f"matmul rate, GFLOP/s: {rates}")
    print(f"{'':38}{'parameters':>12}{'tokens/s':>12}{'first / it':>12}{'share of matmul rate':>22}")
    for name, s in seconds.items():
        n = sum(p.numel() for p in entries[name].model.parameters())
        share = 6 * n * count / s / peak[entries[name].dtype]
        print(f"{name:38}{n:12,}{count / s:12,.0f}{s / first:12.2f}{share:22.0%}")
        out.append({"name": name, "parameters": n, "tokens_per_second": count / s, "share": share})
    if o.json:
        write_atomic(o.json, json.dumps({"device": str(device), "rows": out}, indent=1) + "\n")


if __name__ == "__main__":
    run_torch_script(main)
