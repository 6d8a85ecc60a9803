"""Next-token training: pre-training, mid-training, continual pre-training and SFT are one loop.

    python train_pretrain.py --preset tiny --out out/base
    python train_pretrain.py --preset tiny --out out/mid --init-from out/base/final --mixture "op 5-6; tokens 1M" --replay 0.2

Order of one evaluation: evaluate → sample → save → stop → train.
"""

import math
import random
import time
from dataclasses import dataclass

import torch
from tqdm import tqdm

import cli
import common
import data
import datagen
import sampler
import verify
from attention import BACKENDS
from model import ModelConfig, Qwen2
from tokenizer import Tokenizer, train_bpe


@dataclass(frozen=True)
class Options:
    preset: str = cli.opt("tiny", "defaults of all other options: " + ", ".join(common.PRESETS))
    out: str = cli.opt("out/base", "run folder: checkpoints step_N, latest, best; metrics.jsonl, samples.txt")
    resume: bool = cli.opt(False, "go on with the run in --out, with its options, if there is one")
    seed: int = cli.opt(0, "seed of weights and data")
    device: str = cli.opt("auto", "auto, cpu, cuda or mps")
    threads: int = cli.opt(0, "CPU threads (0: torch's default)")
    attention: str = cli.opt("auto", "triton, sdpa, reference, or auto: the Triton kernels on a CUDA GPU; results differ in rounding only", BACKENDS)
    dtype: str = cli.opt("auto", "of matrix products: float32, bfloat16, or auto: bfloat16 on a CUDA GPU, else float32", common.DTYPES)
    workers: int = cli.opt(1, "processes that prepare batches (0: none, in the training process)")
    mixture: str = cli.opt("op 2-10; tokens 10B", "what to train on, and how many tokens: see data.Mixture", group="what to train on")
    data: str | None = cli.opt(None, "train on the records of this JSONL file (GSM-Infinite keys) instead; the mixture gives tokens and eval ops")
    init_from: str | None = cli.opt(None, "checkpoint folder to start from (its model and tokenizer; the model options are ignored)")
    replay: float = cli.opt(0.0, "share of documents from the mixture of --init-from")
    solution_only: bool = cli.opt(False, "loss on the solution and answer only, not on the problem")
    tokenizer: str | None = cli.opt(None, "tokenizer.json (else of --init-from, else trained on the mixture)")
    vocab_size: int = cli.opt(2200, "tokens of a tokenizer that is trained here")
    hidden_size: int = cli.opt(768, "model width C", group="model")
    layers: int = cli.opt(12, "layers")
    heads: int = cli.opt(12, "query heads H")
    kv_heads: int = cli.opt(2, "key/value heads K")
    intermediate_size: int = cli.opt(3072, "width of the MLP")
    context: int = cli.opt(2048, "longest sequence the model is built for, in tokens")
    local_heads: bool = cli.opt(False, "start the first layer's heads looking a few tokens back: see Qwen2.look_nearby")
    rows: int = cli.opt(256, "rows of a batch", group="optimisation")
    row_tokens: int = cli.opt(2048, "tokens of a row; several documents share one")
    compile: bool = cli.opt(False, "have torch.compile fuse the layers (on a GPU)")
    micro_batch_size: int = cli.opt(0, "rows of a micro-batch, for memory (0: all); results do not depend on it")
    optimizer: str = cli.opt("adamw", "adamw, or muon for the matrices between embedding and head", ("adamw", "muon"))
    lr: float = cli.opt(2e-4, "peak learning rate of AdamW")
    min_lr: float = cli.opt(3e-5, "learning rate at the end of the cosine")
    muon_lr: float = cli.opt(0.02, "peak learning rate of Muon; follows the same schedule")
    warmup: float = cli.opt(0.05, "share of the steps with rising learning rate")
    weight_decay: float = cli.opt(0.1, "of matrices (not of norms and biases)")
    beta1: float = cli.opt(0.9, "AdamW")
    beta2: float = cli.opt(0.95, "AdamW")
    clip: float = cli.opt(1.0, "largest gradient norm")
    max_bad_steps: int = cli.opt(10, "steps in a row with a loss or gradient that is not finite (each skipped) before giving up")
    eval_every: int = cli.opt(500, "steps between evaluations and checkpoints", group="looking and saving")
    eval_documents: int = cli.opt(32, "held-out documents of each op")
    log_every: int = cli.opt(20, "steps between lines of metrics.jsonl")
    keep: int = cli.opt(2, "checkpoints to keep, besides the best")
    tensorboard: bool = cli.opt(False, "write metrics for TensorBoard too (if it is installed)")
    wandb: bool = cli.opt(False, "send metrics to Weights & Biases too (if it is installed)")
    dry_run: bool = cli.opt(False, "print parameters, tokens, FLOPs, memory and steps, and stop")

    def __post_init__(self):
        cli.at_least(self, 1, "hidden_size", "layers", "heads", "kv_heads", "intermediate_size", "context", "rows", "row_tokens", "eval_every",
                     "eval_documents", "log_every", "keep", "max_bad_steps")  # fmt: skip
        cli.at_least(self, 0, "workers", "micro_batch_size", "lr", "min_lr", "muon_lr", "weight_decay", "clip", "warmup", "replay", "threads")
        if self.replay >= 1 or self.warmup >= 1 or self.min_lr > self.lr:
            raise cli.UserError("--replay and --warmup are shares below 1, and --min-lr is at most --lr")


def learning_rate(step, steps, o):
    """Factor of the peak learning rate: linear warm-up, then cosine to min_lr / lr."""
    warmup = max(1, round(o.warmup * steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    least = o.min_lr / o.lr
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizers(model, o):
    """AdamW (weight decay on matrices only); with --optimizer muon, Muon takes the matrices of the layers."""
    matrices, embeddings, vectors = [], [], []
    for name, p in model.named_parameters():
        (vectors if p.ndim < 2 else embeddings if "embed" in name or "lm_head" in name else matrices).append(p)
    adamw = [dict(params=embeddings, weight_decay=o.weight_decay), dict(params=vectors, weight_decay=0.0)]
    optimizers = []
    if o.optimizer == "muon":
        optimizers.append(torch.optim.Muon(matrices, lr=o.muon_lr, weight_decay=o.weight_decay, momentum=0.95))
    else:
        adamw[0]["params"] = matrices + embeddings
    optimizers.append(torch.optim.AdamW(adamw, lr=o.lr, betas=(o.beta1, o.beta2), fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def sample(model, tokenizer, problems, step):
    """Solve the problems greedily → {op: share correct}, and the text of the first of each op, judged."""
    prompts = [tokenizer.encode(data.prompt_text(p)) for p in problems]
    room = model.config.max_position_embeddings - max(map(len, prompts))
    out = sampler.generate(model, prompts, max_new_tokens=min(room, 512), temperature=0, stop_id=tokenizer.eos_id)
    correct, shown = {}, []
    for p, ids in zip(problems, out.ids):
        text = tokenizer.decode(ids)
        if str(p.op) not in correct:
            shown.append(f"--- step {step}, op {p.op}\n{p.problem}\n{p.question}\n{text.strip()}\n{verify.explain(text, p)}\n\n")
        correct.setdefault(str(p.op), []).append(verify.verify(text, p).correct)
    return {op: sum(c) / len(c) for op, c in correct.items()}, "".join(shown)


def main():
    o, found = common.parse(Options, "pretrain", __doc__)
    device = common.setup(o.device, o.seed, o.threads, o.attention)
    world = common.World(device)
    run = common.Run(o, world)
    mixture = data.Mixture.parse(o.mixture)
    if mixture.tokens is None:
        raise cli.UserError(f"mixture {o.mixture!r} has no token budget: add for example '; tokens 6M'")
    if o.rows % world.size:
        raise cli.UserError(f"--rows {o.rows} must be a multiple of the {world.size} processes")
    records = tuple(data.read_records(o.data)) if o.data else ()
    resumed = common.load_checkpoint(found, device, o.dtype) if found else None
    start = resumed or (common.load_checkpoint(o.init_from, device, o.dtype) if o.init_from else None)
    if o.replay and not o.init_from:
        raise cli.UserError("--replay needs --init-from: it repeats the mixture of that checkpoint")
    if start is not None:
        tokenizer, model = start.tokenizer, start.model
    else:
        tokenizer = Tokenizer.load(o.tokenizer) if o.tokenizer else train_tokenizer(mixture, records, o.vocab_size, o.seed)
        model = Qwen2(ModelConfig(
            vocab_size=tokenizer.vocab_size, hidden_size=o.hidden_size, intermediate_size=o.intermediate_size, num_hidden_layers=o.layers,
            num_attention_heads=o.heads, num_key_value_heads=o.kv_heads, max_position_embeddings=o.context)).to(device)  # fmt: skip
        model.compute_dtype = common.compute_dtype(o.dtype, device)
        if o.local_heads:
            model.look_nearby()
    common.compile_layers(model, o, device)
    replay = None
    if o.replay:
        replay = data.Mixture.parse(resumed.state["replay"] if resumed else start.options["mixture"])
    for n, record in enumerate(records, 1):
        length = len(data.encode(tokenizer, record)[0])
        if length > o.row_tokens:
            raise cli.UserError(f"{o.data}: record {n} has {length} tokens but a row only {o.row_tokens}; raise --row-tokens")
    source = data.Source(mixture, tokenizer, o.seed, o.rows, o.row_tokens, o.solution_only, replay=replay, replay_share=o.replay, records=records,
                         rank=world.rank, size=world.size)  # fmt: skip
    rand = random.Random(o.seed).random
    held_out = [datagen.generate(o.seed, i, split="eval", **{**mixture.arguments(rand), "op": op})
                for op, _ in mixture.ops for i in range(o.eval_documents)]  # fmt: skip
    optimizers = make_optimizers(model, o)
    steps = max(1, mixture.tokens // (o.rows * o.row_tokens))
    if o.dry_run:
        document = sum(len(data.encode(tokenizer, p)[0]) for p in held_out) // len(held_out)
        common.describe_cost(model, mixture.tokens, steps, (o.micro_batch_size or o.rows) * o.row_tokens // world.size, document)
        return
    micro_rows = o.micro_batch_size or o.rows
    first, tokens_seen, guard = 0, 0, common.Guard(o.max_bad_steps)
    if resumed:
        resumed.load_optimizers(optimizers)
        first, tokens_seen = resumed.state["step"], resumed.state["tokens_seen"]
        guard = common.Guard(o.max_bad_steps, resumed.state["skipped"], resumed.state["skipped_in_a_row"])
    run.open(resumed)
    print(f"{model.num_parameters():,} parameters, {tokenizer.vocab_size} tokens, {steps} steps of {o.rows} x {o.row_tokens} tokens")

    bar = tqdm(total=steps, initial=first, desc=run.path.name, unit="step", disable=world.rank > 0)
    clock, clock_tokens = time.perf_counter(), 0
    stream = data.batches(source, first, workers=o.workers)
    for step in range(first, steps + 1):
        # evaluate → sample → save → stop
        stopping = run.should_stop()
        evaluating = step % o.eval_every == 0 or step == steps
        if (evaluating or stopping) and not (resumed and step == first):
            state, nll = {"tokens_seen": tokens_seen, "replay": replay and replay.spec, **guard.state()}, None
            if evaluating and world.rank == 0:
                nll = common.held_out_nll(model, tokenizer, held_out, device)
                correct, samples = sample(model, tokenizer, held_out, step) if step else ({}, "")
                run.append("samples.txt", samples)
                run.log(step, {f"eval/nll_op{op}": v for op, v in nll.items()} | {f"eval/correct_op{op}": v for op, v in correct.items()})
                tqdm.write(f"step {step}: held-out NLL (greedy correct) " + ", ".join(f"op {op} {v:.3f} ({correct.get(op, 0):.2f})" for op, v in nll.items()))
            run.save(step, model, tokenizer, {**state, "nll": nll}, optimizers, score=nll and -sum(nll.values()) / len(nll))
            clock, clock_tokens = time.perf_counter(), 0
        if step == steps or stopping:
            break
        # train: one global count of trained tokens divides the loss, so micro-batches and processes change nothing
        batch = next(stream)
        count, loss = world.sum([(batch.targets != data.IGNORE).sum()])[0], 0.0
        for i in range(0, len(batch.tokens), micro_rows):
            micro = data.Batch(*(a[i : i + micro_rows] for a in batch))
            trained = int((micro.targets != data.IGNORE).sum())
            if not trained:
                continue
            tokens, targets, doc_start = common.to_device(micro, device)
            micro_loss = model(tokens, doc_start, targets, loss_only=True)[1] * (trained / count)
            micro_loss.backward()
            loss += micro_loss.detach()
        world.sum_gradients(model)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), o.clip)
        factor = learning_rate(step, steps, o)
        loss = world.sum([float(loss)])[0]
        taken = guard.passes(step, run, loss, float(norm))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            if taken:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens_seen += o.rows * o.row_tokens
        clock_tokens += o.rows * o.row_tokens
        bar.update()
        if (step + 1) % o.log_every == 0:
            rate = clock_tokens / (time.perf_counter() - clock)
            values = {"train/loss": loss, "train/grad_norm": float(norm), "train/lr": o.lr * factor,
                      "train/skipped": guard.skipped, "train/tokens": tokens_seen, "time/tokens_per_second": rate}  # fmt: skip
            run.log(step + 1, values)
            bar.set_postfix(loss=f"{values['train/loss']:.3f}", tok_s=f"{rate:,.0f}")
    bar.close()
    stream.close()
    if step < steps:
        run.stopped("train_pretrain.py")
    world.close()


def train_tokenizer(mixture, records, vocab_size, seed, documents=4000):
    """A tokenizer for the external records, or for the first documents of the mixture."""
    rand = random.Random(seed).random
    problems = records or (datagen.generate(seed, i, **mixture.arguments(rand)) for i in range(documents))
    return train_bpe((data.prompt_text(p) + data.completion_text(p) for p in problems), vocab_size)


if __name__ == "__main__":
    common.run(main)
