"""Next-token training: pre-training, mid-training, continual pre-training and SFT are one loop (training.py).

    python train_pretrain.py --preset tiny --out out/base
    python train_pretrain.py --init-from out/base --out out/mid \\
        --mixture "op 6-7; world mini; tokens 1M"
    python train_pretrain.py --resume --out out/base

Shapes: B rows, T positions.
"""

import math
from dataclasses import dataclass
from itertools import chain

from lab.device import run_torch_script
from lab.muon import Muon
from lab.options import UserError, opt
from lab.runs import say

import torch

from checkpoint import new_model
from data import Source, batches, check_length, completion_text, prompt_text
from datagen import KEYS_HELP, Mixture
from model import ModelConfig
from tokenizer import Tokenizer, train_bpe
from training import Training, TrainingOptions, run_training

PRESETS = {
    "tiny": dict(
        mixture="op 2-5; world mini; tokens 9M", solution_only=True, vocab_size=600, hidden_size=128,
        layers=4, heads=4, kv_heads=4, local_heads=True, intermediate_size=384, context=1024, rows=2,
        row_tokens=768, micro_batch_size=1, replicas=2, optimizer="muon", schedule="wsd", cooldown=0.5,
        lr=1e-3, muon_lr=3e-3, warmup=0.02, eval_every=1000, max_new_tokens=256),
    "small": dict(
        mixture="op 2-10; template zoo, school, festival; tokens 500M", solution_only=True, hidden_size=512,
        layers=6, heads=8, kv_heads=2, local_heads=True, intermediate_size=1536, rows=32, micro_batch_size=16,
        row_tokens=2048, optimizer="muon", lr=1e-3, min_lr=1e-4, muon_lr=5e-3, compile="auto"),
    "paper": dict(
        mixture="op 2-10; template zoo:0.99, school:0.01; tokens 10B", micro_batch_size=16, compile="auto"),
}  # fmt: skip


@dataclass(frozen=True)
class Options(TrainingOptions):
    out: str = opt("out/base", "folder for all that is written", group="run", free=True)
    mixture: str = opt("op 2-10; tokens 10B", f"what to train on, and how much: {KEYS_HELP}")
    replay: float = opt(
        0.0, "share of documents from the mixture of --init-from", within="[0, 1)", needs="init_from"
    )
    repeat: float = opt(0.0, "share of the documents that are of the first --repeat-pool", within="[0, 1]")
    repeat_pool: int = opt(2000, "how many documents come again and again", within="[1, inf)")
    solution_only: bool = opt(False, "loss on the solution and answer only, not on the problem")
    tokenizer: str | None = opt(None, "tokenizer.json of a new model (else trained on the mixture)")
    vocab_size: int = opt(2200, "tokens of a tokenizer that is trained here", within="[266, 1000000]")
    tokenizer_words: str = opt("", "words that a tokenizer trained here knows, besides those it reads")
    new_words: str = opt("", "words that --init-from never saw: embeddings drawn anew", needs="init_from")
    workers: int = opt(1, "1: a process prepares batches ahead; 0: none", within="[0, 1]", free=True)
    hidden_size: int = opt(768, "model width C", within="[2, inf)", group="model, if it is a new one")
    layers: int = opt(12, "layers", within="[1, 1000]")
    heads: int = opt(12, "query heads H", within="[1, inf)")
    kv_heads: int = opt(2, "key/value heads K", within="[1, inf)")
    intermediate_size: int = opt(3072, "width of the MLP", within="[1, inf)")
    context: int = opt(2048, "longest sequence the model is built for, in tokens", within="[64, inf)")
    local_heads: bool = opt(False, "start with heads that look a few tokens back: Qwen2.look_nearby")
    steps: int = opt(0, "optimizer steps (0: of the mixture's tokens)", group="optimisation", grows=True)
    rows: int = opt(256, "rows of a batch, B", within="[1, inf)")
    micro_batch_size: int = opt(0, "rows of a micro-batch, for memory (0: all)", free=True)
    optimizer: str = opt("adamw", "muon: for the layers' matrices, AdamW for the rest", ("adamw", "muon"))
    schedule: str = opt("cosine", "of the learning rate; wsd: constant, then linear", ("cosine", "wsd"))
    cooldown: float = opt(0.2, "of wsd: share of the steps, the last, in which it falls", within="[0, 1]")
    min_lr: float = opt(3e-5, "learning rate at the end", within="[0, 1]")
    muon_lr: float = opt(0.02, "learning rate of Muon; follows the same schedule", within="(0, 1]")
    warmup: float = opt(0.05, "share of the steps with rising learning rate", within="[0, 1)")
    beta1: float = opt(0.9, "of AdamW", within="[0, 1)")
    log_every: int = opt(20, "steps between lines of metrics.jsonl", within="[1, inf)", free=True)

    def __post_init__(self):
        super().__post_init__()
        if self.min_lr > self.lr:
            raise UserError(f"--min-lr {self.min_lr} must be at most --lr {self.lr}")
        if self.tokenizer and self.init_from:
            raise UserError("--tokenizer is for a new model: that of --init-from has its own")
        if self.repeat and self.data:
            raise UserError("--repeat repeats problems of the mixture; the records of --data repeat anyway")


def learning_rate(step, steps, o):
    """Factor of the peak learning rate: linear warm-up, then to min_lr / lr by a cosine, or in a line at the
    end (warm-up, stable, decay: Hu et al. 2024).
    """
    warmup, least = max(1, round(o.warmup * steps)), o.min_lr / o.lr
    if step < warmup:
        return (step + 1) / warmup
    if o.schedule == "cosine":
        progress = (step - warmup) / max(1, steps - warmup)
        return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * progress))
    return min(1.0, least + (1 - least) * (steps - step) / max(1, o.cooldown * steps))


def make_optimizers(model, o):
    """AdamW (weight decay on matrices only); with --optimizer muon, Muon takes the matrices of the layers."""
    matrices, embeddings, vectors = [], [], []
    for name, p in model.named_parameters():
        kind = vectors if p.ndim < 2 else embeddings if "embed" in name or "lm_head" in name else matrices
        kind.append(p)
    muon = o.optimizer == "muon"
    decayed = embeddings if muon else matrices + embeddings
    groups = [dict(params=decayed, weight_decay=o.weight_decay), dict(params=vectors, weight_decay=0.0)]
    adamw = torch.optim.AdamW(groups, lr=o.lr, betas=(o.beta1, o.beta2), fused=True)
    return [Muon(matrices, lr=o.muon_lr, weight_decay=o.weight_decay), adamw] if muon else [adamw]


def train_tokenizer(mixture, records, vocab_size, seed, words="", documents=4000):
    """A tokenizer for these words, and the external records or the first documents of the mixture."""
    problems = records or (mixture.problem(seed, i, "train") for i in range(documents))
    texts = (prompt_text(p) + completion_text(p) for p in problems)
    return train_bpe(chain([words], texts), vocab_size)


class Pretraining(Training):
    def __init__(self, o, device, processes, folder=None):
        super().__init__(o, device, processes, folder)
        if not (o.steps or self.mixture.tokens):
            raise UserError(f"mixture {o.mixture!r} has no token budget: add for example '; tokens 6M'")
        if o.rows % processes.size:
            raise UserError(f"--rows {o.rows} must be a multiple of the {processes.size} processes")
        self.step_tokens = o.rows * o.row_tokens
        self.steps = o.steps or max(1, self.mixture.tokens // self.step_tokens)
        if self.start is None:
            self.model, self.tokenizer = self.untrained()
        elif not folder:
            if processes.first and self.model.config != self.config(self.tokenizer):
                say(f"the model is as in {o.init_from}: sizes among the options do not count")
            self.draw_anew(o.new_words)
        self.optimizers = make_optimizers(self.model, o)
        self.begin()
        self.tokens, planned = self.step * self.step_tokens, (self.saved or {}).get("steps", self.steps)
        rates = [[learning_rate(i, n, o) for i in range(self.step)] for n in (planned, self.steps)]
        if rates[0] != rates[1] or self.steps < self.step:
            why = f"the learning rates of {self.step} steps were those of a run of {planned}"
            raise UserError(f"--steps {self.steps}: {why}; only at a constant rate can it go on longer")
        check_length(max(self.lengths), o.row_tokens)
        # what is replayed is saved: the checkpoint we started from may be gone when the run is resumed
        replay = self.start.options.get("mixture") if o.replay else None
        if o.replay and not replay:
            raise UserError(f"{o.init_from} does not say what it was trained on: --replay cannot repeat that")
        saved = self.saved or {"cursors": [[0]] * o.rows, "replay": replay}
        self.part, self.replay = processes.share(o.rows), saved["replay"]  # our rows of every batch
        self.cursors = [saved["cursors"][r] for r in self.part]
        # a later stage's documents are from a split of their own
        where = dict(split="mid" if o.init_from else "train", records=self.records)
        where.update(repeat=o.repeat, repeat_pool=o.repeat_pool, replay_share=o.replay)
        where["replay"] = self.replay and Mixture.parse(self.replay)
        source = Source(self.mixture, self.tokenizer, o.seed, o.rows, o.row_tokens, o.solution_only, **where)
        self.batches = batches(source, self.part, self.cursors, o.workers)

    def untrained(self):
        """A fresh model of the options' sizes, and its tokenizer."""
        o = self.o
        if o.tokenizer:
            tokenizer = Tokenizer.load(o.tokenizer)
        else:
            tokenizer = train_tokenizer(self.mixture, self.records, o.vocab_size, o.seed, o.tokenizer_words)
        model = new_model(self.config(tokenizer), self.device, o.dtype, o.attention)
        if o.local_heads:
            model.look_nearby()
        return model, tokenizer

    def config(self, tokenizer):
        """Of a model of the options' sizes."""
        o = self.o
        sizes = (tokenizer.vocab_size, o.hidden_size, o.intermediate_size, o.layers, o.heads, o.kv_heads)
        return ModelConfig(*sizes, max_position_embeddings=o.context)

    def draw_anew(self, words):
        """Embeddings of these words' tokens. Of a token that it has never seen a model learns that it is
        unlikely, as of all such tokens: they are one point, which a short training does not part.
        """
        ids = self.tokenizer.encode(f" {words}") if words else []
        for weight in (self.model.model.embed_tokens.weight, self.model.lm_head.weight):  # tied: the same
            weight.data[ids] = torch.randn_like(weight[ids]) * self.model.initial_std

    def take_step(self):
        """One optimizer step on the next batch. Returns what is logged, and what the bar shows.

        One global count of trained tokens divides the loss, so micro-batches and processes change nothing.
        """
        o = self.o
        batch, self.cursors = next(self.batches)
        count = self.processes.sum([batch.trained])[0]

        def learn(model, micro):
            mean = model(micro.tokens, micro.doc_start, micro.targets, loss_only=True)[1]
            part = mean * (micro.trained / count)
            part.backward()
            return part.detach()

        loss = sum(self.replicas.map(learn, batch.micro_batches(o.micro_batch_size or o.rows, self.device)))
        factor = learning_rate(self.step, self.steps, o)
        loss, norm = self.update(loss, factor)
        self.tokens += self.step_tokens
        values = {"train/loss": loss, "train/grad_norm": norm, "train/lr": o.lr * factor}
        values |= {"train/skipped": self.guard.skipped, "train/tokens": self.tokens}
        return values, {"loss": f"{loss:.3f}"}

    def state(self):
        cursors = [cursor for part in self.processes.gather(self.cursors) for cursor in part]
        return {"tokens_seen": self.tokens, "cursors": cursors, "replay": self.replay}

    def score(self, values):
        return -sum(values[f"eval/nll_op{op}"] for op in self.mixture.ops) / len(self.mixture.ops)

    def work(self):
        rows = min(self.o.micro_batch_size or self.o.rows, len(self.part))
        document = sum(self.lengths) // len(self.lengths)
        return dict(tokens=self.steps * self.step_tokens, rows=rows, document=document, passes=3)


def main(argv=None):
    return run_training(Pretraining, Options, PRESETS, __doc__, argv)


if __name__ == "__main__":
    run_torch_script(main)
