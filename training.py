"""What pre-training and RL share: the options, the loop around a step, and the end of an update.

A loop is: save → evaluate → stop → take a step. The save comes first, so that nothing that fails later can
lose it.
"""

import time
from dataclasses import dataclass

from lab.cost import describe_cost
from lab.device import Processes, setup
from lab.options import UserError, hush, opt
from lab.replicas import Replicas
from lab.runs import Guard, Progress, Run, RunOptions, parse_run_options, say, weights_hash

import torch

from checkpoint import checkpoint_files, load_checkpoint
from data import to_document, with_solutions
from datagen import KEYS_HELP, Mixture, held_out
from rollout import evaluate_held_out
from tasks import read_problems, read_records

COMPILE = ("never", "auto")


@dataclass(frozen=True)
class TrainingOptions(RunOptions):
    init_from: str | None = opt(None, "checkpoint folder to start from", group="training")
    mixture: str = opt("op 2-10", f"problems to train on: {KEYS_HELP}")
    data: str | None = opt(None, "train on the records of this JSONL file instead")
    row_tokens: int = opt(2048, "tokens of a row, T; several documents share one", within="[64, inf)")
    micro_batch_size: int = opt(4, "rows of a micro-batch, for memory", within="[1, inf)", free=True)
    compile: str = opt("never", "fuse layers by torch.compile (auto: on a CUDA GPU)", COMPILE, free=True)
    lr: float = opt(2e-4, "learning rate of AdamW", within="(0, 1]")
    weight_decay: float = opt(0.1, "of AdamW, on matrices", within="[0, 1]")
    beta2: float = opt(0.95, "of AdamW", within="[0, 1)")
    max_grad_norm: float = opt(1.0, "largest gradient norm", within="(0, inf)")
    max_bad_steps: int = opt(10, "updates in a row that may be skipped as not finite", within="[1, inf)")
    eval_every: int = opt(500, "steps between checkpoints; each is evaluated on split dev", within="[1, inf)")
    eval_problems: int = opt(32, "problems of each op in that evaluation", within="[1, inf)")
    eval_tries: int = opt(0, "tries at each of them at temperature 1, for pass@k (0: a greedy one)")
    max_new_tokens: int = opt(512, "longest solution that is sampled, in tokens", within="[1, inf)")
    keep: int = opt(2, "checkpoints to keep, besides the best", within="[1, inf)", free=True)
    log_every: int = opt(1, "steps between lines of metrics.jsonl", within="[1, inf)", free=True)
    eval_data = None  # of RL, which may be evaluated on problems of one's own
    dry_run: bool = opt(False, "print parameters, FLOPs, memory and time, and stop", free=True)


class Training:
    """One run: model, tokenizer, optimizers, and how far it is. What can be wrong with the options is found
    here.

    A subclass makes optimizers and steps, and model and tokenizer where there is no checkpoint to start from,
    calls `begin`, and has take_step() → values to log and what the bar shows, state() → what else a
    checkpoint must hold, score(values) → how good an evaluation is, work() → what describe_cost asks for.
    """

    reference = None  # a frozen model beside the one that learns: that of step 0, whose checkpoint is kept
    read = staticmethod(read_records)  # of --data
    tokens = 0  # gone through in training, padding too, or in RL sampled and read; by all processes

    def __init__(self, o, device, processes, folder=None):
        """folder: the checkpoint of this run to go on from, or None."""
        self.o, self.device, self.processes = o, device, processes
        self.mixture = Mixture.parse(o.mixture)
        self.records = tuple(self.read(o.data)) if o.data else ()
        self.inputs = list(filter(None, (o.data, o.eval_data)))  # files that a run depends on
        drawn = self.mixture, self.mixture.ops, o.eval_problems, o.seed, "dev"
        self.held_out = read_problems(o.eval_data) if o.eval_data else held_out(*drawn)
        start = folder or o.init_from
        self.start = None if start is None else self.load(start)
        if self.start:
            self.model, self.tokenizer = self.start.model, self.start.tokenizer
        self.saved = self.start.state if folder else None  # what this run knew when it was stopped

    def load(self, folder):
        return load_checkpoint(folder, self.device, self.o.dtype, self.o.attention)

    def begin(self):
        """Compile, and take up what a run that is resumed had reached. Raises UserError if the model cannot
        hold the problems.
        """
        context = self.model.config.max_position_embeddings
        self.lengths = [len(to_document(p, self.tokenizer).ids) for p in with_solutions(self.held_out)]
        if max(self.lengths, default=0) > context:
            have = f"a problem and its solution have {max(self.lengths)} tokens, the context only {context}"
            raise UserError(f"{have}: raise --context of pre-training, or choose shorter problems")
        if self.o.compile != "never" and self.device.type == "cuda":
            for model in filter(None, (self.model, self.reference)):
                model.compile_layers()
        saved = self.saved or {"step": 0, "guard": {}}
        self.replicas = Replicas(self.model, self.o.replicas if self.device.type == "cpu" else 1)
        self.step, self.guard = saved["step"], Guard(self.o.max_bad_steps, **saved["guard"])
        if self.saved:
            self.start.load_optimizers(self.optimizers)

    def train(self, run, progress):
        """The loop. Returns whether it reached the end."""
        o, saved, first = self.o, self.step if self.saved else None, self.processes.first
        while True:
            stopping = run.should_stop()
            due = self.step % o.eval_every == 0 or self.step == self.steps
            if (due or stopping) and self.step != saved:
                self.save(run)
            if due and not stopping and first and not (run.rated and self.step == saved):
                self.evaluate(run)
            if stopping or self.step == self.steps:
                return self.step == self.steps
            begun, before = time.perf_counter(), self.tokens
            values, shown = self.take_step()
            self.step += 1
            rate = progress.update(self.tokens - before, time.perf_counter() - begun, shown)
            self.keep_tries(run)
            if self.step % o.log_every == 0:
                run.log(self.step, {**values, "time/tokens_per_second": rate})

    def keep_tries(self, run):
        """Write down, and show, what was sampled in a step."""

    def save(self, run):
        state = {"step": self.step, "steps": self.steps, "guard": self.guard.state(), **self.state()}
        if self.processes.first:
            run.save(self.step, checkpoint_files(self.model, self.tokenizer, self.o, state, self.optimizers))

    def evaluate(self, run):
        """NLL and solutions of the held-out problems, which choose the best checkpoint."""
        o, tries = self.o, self.o.eval_tries
        problems, n = (self.held_out, o.max_new_tokens, tries), len(self.held_out) * (tries or 1)
        with Progress("held out", 0, n, not o.quiet, "sample", part=True) as progress:
            how = dict(stream=(o.seed, self.step), workers=o.replicas, progress=progress)
            values, text = evaluate_held_out(self.model, self.tokenizer, *problems, **how)
        run.log(self.step, values)
        run.append("samples.txt", f"=== step {self.step}\n{text}")
        found = {op: values.get(f"eval/nll_op{op}") for op in dict.fromkeys(p.op for p in self.held_out)}
        nll = {op: "" if number is None else f"{number:.3f} " for op, number in found.items()}
        by_op = ", ".join(f"op {op} {nll[op]}({values[f'eval/correct_op{op}']:.2f})" for op in nll)
        by_op += f", pass@{tries} {values[f'eval/pass@{tries}']:.2f}" if tries > 1 else ""
        say(f"step {self.step}: held-out NLL ({'pass@1' if tries else 'greedy correct'}) {by_op}")
        run.rate(self.step, self.score(values))

    def update(self, loss, factor):
        """The end of an update: sum the gradients over the processes, clip, step unless something is not
        finite.

        loss: this process's part, a number or tensor; factor: of the learning rates. Returns the whole loss
        and the gradient's norm.
        """
        self.processes.sum_gradients(self.model)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.o.max_grad_norm))
        loss = self.processes.sum([float(loss)])[0]
        taken = self.guard.passes(self.step, loss, norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * factor
            if taken:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss, norm


def run_training(training, options, presets, description, argv=None):
    """The main of a training script. training: a subclass of Training; options: its TrainingOptions. Returns
    the exit code.
    """
    o = parse_run_options(options, argv, presets, description)
    with hush(o.quiet):
        return train(training, o)


def train(training, o):
    """What is left of `run_training` once the options are known."""
    device = setup(o)
    processes = Processes(device)
    if o.dry_run:
        it = training(o, device, processes)
        return describe_cost(it.replicas.models, it.reference, it.steps, row_tokens=o.row_tokens, **it.work())
    run = Run(o, processes, weights_hash(o.init_from))
    it = training(o, device, processes, run.checkpoint)
    run.keep_first, run.inputs = it.reference is not None, it.inputs
    if processes.first:
        size, backend = it.model.num_parameters(), it.model.backend.name
        say(f"{size:,} parameters, {it.tokenizer.vocab_size} tokens, {it.steps} steps, attention {backend}")
        other = o.data and not o.eval_data and f"held out: problems of --mixture, not of {o.data}"
        for note in filter(None, (it.model.backend_note, other)):
            say(note)
    with run, Progress(run.path.name, it.step, it.steps, processes.first and not o.quiet) as progress:
        finished = it.train(run, progress)
    processes.wait()
    return run.exit_code(finished)
