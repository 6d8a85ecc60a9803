"""Sample a checkpoint's tries at problems, which texts.py makes texts of.

    python tries.py --checkpoint out/base --mixture "op 2-5; world mini" --n 1000 --out out/tries

Problem number i is that of texts.py with the same mixture, seed and split. Writes tries.jsonl, a line a
problem, and summary.json: tokens sampled and read, and by op how many tries were right, of how many.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lab.device import run_torch_script, setup
from lab.options import UserError, hush, opt, write_atomic
from lab.runs import Progress, RunOptions, own_folder, parse_run_options

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
        sample_all(o)


def sample_all(o):
    """What is left of `main` once the options are known."""
    if o.checkpoint is None:
        raise UserError("no checkpoint: python tries.py --checkpoint out/base/latest")
    mixture, device = Mixture.parse(o.mixture), setup(o)
    checkpoint = load_checkpoint(o.checkpoint, device, o.dtype, o.attention)
    problems = [mixture.problem(o.seed, i, o.split) for i in range(o.n)]
    check_room(checkpoint.model, checkpoint.tokenizer, problems, o.max_new_tokens)
    lines, right, tried, sampled, read = [], Counter(), Counter(), 0, 0
    with own_folder(o), Progress(Path(o.out).name, 0, o.n, not o.quiet, "problem") as progress:
        for start in range(0, o.n, CHUNK):
            found = sample(checkpoint, problems, range(start, min(o.n, start + CHUNK)), o)
            for i, rollouts in found.items():
                texts = [rollout.text for rollout in rollouts]
                lines.append(json.dumps({"id": problems[i].id, "op": problems[i].op, "texts": texts}) + "\n")
                tried[problems[i].op] += len(rollouts)
                right[problems[i].op] += sum(rollout.verdict.correct for rollout in rollouts)
                sampled += sum(len(rollout.completion_ids) for rollout in rollouts)
                read += len(rollouts[0].prompt_ids) * len(rollouts) // o.samples
            progress.words = f"{right.total()} of {tried.total()} tries right"
            progress.advance(len(found))
        yields = {op: (right[op], tried[op]) for op in sorted(tried)}
        summary = {"sampled": sampled, "read": read, "yields": yields}
        write_atomic(Path(o.out, "tries.jsonl"), "".join(lines))
        write_atomic(Path(o.out, "summary.json"), json.dumps(summary) + "\n")
    print(", ".join(f"op {op} {n} of {tries} right" for op, (n, tries) in yields.items()))


if __name__ == "__main__":
    run_torch_script(main)
