"""Sample a checkpoint's tries at problems, which texts.py makes texts of.

    python tries.py --checkpoint out/base --mixture "op 2-5; world mini" --n 1000 --out out/tries

Problem number i is that of texts.py with the same mixture, seed and split. Writes tries.jsonl, a line a
problem, as it goes; and at the end summary.json: tokens sampled and read, and by op how many tries were
right, of how many. Stopped by ctrl-C or SIGTERM it exits with 75; --resume goes on.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from lab.device import run_torch_script, setup
from lab.options import UserError, hush, opt, recover_jsonl, write_atomic
from lab.runs import Progress, RunOptions, own_folder, parse_run_options, stoppable, weights_hash

from checkpoint import load_checkpoint
from datagen import KEYS_HELP, SPLITS, Mixture
from rollout import check_room, roll_out
from texts import WANTED

PRESETS = {
    "tiny": dict(max_new_tokens=256, sample_rows=256, replicas=2),
    "small": {},
    "paper": dict(sample_rows=2048),
}
CHUNK = 256  # problems that are tried together
LINE = {"id", "op", "texts", "right", "sampled", "read"}  # of tries.jsonl


@dataclass(frozen=True)
class Options(RunOptions):
    out: str = opt("out/tries", "folder for all that is written", group="run", free=True)
    checkpoint: str | None = opt(None, "checkpoint folder", group="tries")
    mixture: str = opt("op 2-10", f"which problems: {KEYS_HELP}")
    split: str = opt("mid", "which split", tuple(SPLITS))
    n: int = opt(1000, "problems", within="[1, inf)")
    samples: int = opt(8, "tries of each problem", within="[1, inf)")
    select: str = opt("all", "as of texts.py: with --most, try again until it has enough", tuple(WANTED))
    most: int = opt(0, "tries of a problem at most (0: no more than --samples)")
    temperature: float = opt(1.0, "of sampling", within="[0.001, 100]")
    max_new_tokens: int = opt(1024, "longest completion, in tokens", within="[1, inf)")
    sample_rows: int = opt(512, "rows that are sampled together, for memory", within="[1, inf)", free=True)


def sample(checkpoint, problems, numbers, o):
    """Try problems with these numbers → {number: Rollouts}, those of each in rounds of o.samples."""
    found, waiting = {i: [] for i in numbers}, [*numbers]
    how = dict(temperature=o.temperature, max_new_tokens=o.max_new_tokens)
    how |= dict(batch_size=o.sample_rows, workers=o.replicas)
    while waiting:
        asked, stream = [problems[i] for i in waiting], (o.seed, "tries", len(found[waiting[0]]))
        rollouts = roll_out(checkpoint.model, checkpoint.tokenizer, asked, o.samples, stream, waiting, **how)
        for n, rollout in enumerate(rollouts):
            found[waiting[n // o.samples]].append(rollout)
        waiting = [i for i in waiting if len(found[i]) + o.samples <= o.most and too_few(found[i], o.select)]
    return found


def too_few(rollouts, rule):
    """Whether fewer are right than the rule wants."""
    right = sum(rollout.verdict.correct for rollout in rollouts)
    return right < WANTED[rule](right, len(rollouts))


def main(argv=None):
    o = parse_run_options(Options, argv, PRESETS, __doc__)
    with hush(o.quiet):
        return sample_all(o)


def sample_all(o):
    """What is left of `main` once the options are known."""
    if o.checkpoint is None:
        raise UserError("no checkpoint: python tries.py --checkpoint out/base/latest")
    mixture, device = Mixture.parse(o.mixture), setup(o)
    checkpoint = load_checkpoint(o.checkpoint, device, o.dtype, o.attention)
    problems = [mixture.problem(o.seed, i, o.split) for i in range(o.n)]
    check_room(checkpoint.model, checkpoint.tokenizer, problems, o.max_new_tokens)
    path, progress = Path(o.out, "tries.jsonl"), Progress(Path(o.out).name, 0, o.n, not o.quiet, "problem")
    with stoppable(o.out) as stopped, own_folder(o, weights_hash(o.checkpoint)), progress:
        lines = recover_jsonl(path, LINE)
        progress.skip(len(lines))
        with path.open("a", encoding="utf-8") as file:
            for start in range(len(lines), o.n, CHUNK):
                found = sample(checkpoint, problems, range(start, min(o.n, start + CHUNK)), o)
                new = [line_of(problems[i], rollouts, o.samples) for i, rollouts in found.items()]
                print(*map(json.dumps, new), sep="\n", file=file, flush=True)
                lines += new
                right, tried = count(lines)
                progress.words = f"{right} of {tried} tries right"
                progress.advance(len(new))
        ops = sorted({line["op"] for line in lines})
        yields = {op: count([line for line in lines if line["op"] == op]) for op in ops}
        summary = {name: sum(line[name] for line in lines) for name in ("sampled", "read")}
        write_atomic(Path(o.out, "summary.json"), json.dumps({**summary, "yields": yields}) + "\n")
        print(", ".join(f"op {op} {right} of {tried} right" for op, (right, tried) in yields.items()))
    return stopped.code


def line_of(problem, rollouts, at_once):
    """What is kept of a problem's tries; its prompt is read once for so many."""
    texts, right = [rollout.text for rollout in rollouts], sum(it.verdict.correct for it in rollouts)
    sampled = sum(len(rollout.completion_ids) for rollout in rollouts)
    read = len(rollouts[0].prompt_ids) * len(rollouts) // at_once
    return {
        "id": problem.id,
        "op": problem.op,
        "texts": texts,
        "right": right,
        "sampled": sampled,
        "read": read,
    }


def count(lines):
    """→ (right tries, tries)."""
    return sum(line["right"] for line in lines), sum(len(line["texts"]) for line in lines)


if __name__ == "__main__":
    run_torch_script(main)
