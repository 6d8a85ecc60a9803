"""Send the metrics of a run to TensorBoard or Weights & Biases, while it runs or afterwards.

    python bench/watch_run.py out/base --to tensorboard
    tensorboard --logdir out

It reads metrics.jsonl from its start, then each line as it is written, until ctrl-C; --once stops at the end.
Started again, it sends all of it again, and what was sent before is replaced. The run knows nothing of it.
wandb gets the solutions too, as a table at each evaluation: those of held-out problems (samples.txt) and, of
RL, the tries of the last steps (rollouts.jsonl).
"""

import re
import secrets
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lab.options import (
    FINISHED,
    CheckedOptions,
    UserError,
    opt,
    parse_object,
    parse_options,
    read_json,
    read_jsonl,
    run_script,
    write_atomic,
)

METRICS, RUN_ID = "metrics.jsonl", "wandb.id"
COLUMNS = ("step", "problem", "text", "verdict", "reward", "advantage", "tokens")  # of rollouts.jsonl


@dataclass(frozen=True)
class Options(CheckedOptions):
    run: str | None = opt(None, "folder of the run")
    to: str = opt("tensorboard", "where to send its metrics", ("tensorboard", "wandb"))
    once: bool = opt(False, "stop at the end of what is there")
    seconds: float = opt(1.0, "between two looks at the file", within="(0, inf)")


def lines(path, seconds, once):
    """Yield each line of a file, then each new one; None where it begins anew, since a run that is resumed
    cuts its log back.
    """
    position = 0
    while True:
        if path.stat().st_size < position:
            position = 0
            yield None
        with path.open("rb") as file:
            file.seek(position)
            for line in file:
                if not line.endswith(b"\n"):  # it is being written
                    break
                position += len(line)
                yield line.decode("utf-8", "replace")
        if once:
            return
        time.sleep(seconds)


def package(module, name):
    """A module that only this script needs. Raises UserError if it is not installed."""
    try:
        return import_module(module)
    except ImportError:
        raise UserError(f"--to {name} needs the package {name}: pip install {name}") from None


def to_tensorboard(path):
    """→ a function of (step, values). What an earlier writer sent is purged, since all of it comes again."""
    board = package("torch.utils.tensorboard", "tensorboard")
    writer = board.SummaryWriter(str(path / "tensorboard"), purge_step=0)

    def send(step, values):
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return send


def to_wandb(path):
    """→ a function of (step, values). A run folder has one run there, whose id it keeps: what comes again is
    passed over, and a run that is resumed, here or on another machine, goes on in its curve.
    """
    wandb = package("wandb", "wandb")
    if not (path / RUN_ID).exists():
        write_atomic(path / RUN_ID, secrets.token_hex(4) + "\n")
    who = dict(project="reasoning-lab", name=path.name, id=(path / RUN_ID).read_text().strip())
    config = read_json(path / "config.json")["options"]
    wandb.init(**who, resume="allow", dir=str(path), config=config)

    def send(step, values):
        if any(name.startswith("eval/") for name in values):
            for name, (columns, rows) in tables(path, step).items():
                values = {**values, name: wandb.Table(columns=columns, data=rows)}
        wandb.log(values, step=step)

    return send


def tables(path, step):
    """{name: (columns, rows)} of the solutions that a run has written by this step: of its evaluation, and of
    the steps of RL up to it that rollouts.jsonl still holds.
    """
    found, samples, rollouts = {}, path / "samples.txt", path / "rollouts.jsonl"
    text = samples.read_text(encoding="utf-8") if samples.exists() else ""
    for part in re.split(r"^=== step ", text, flags=re.MULTILINE)[1:]:
        number, _, body = part.partition("\n")
        if number == str(step):
            solutions = re.split(r"^--- op ", body, flags=re.MULTILINE)[1:]
            rows = [[step, *solution.strip().split("\n", 1)] for solution in solutions]
            found["eval/samples"] = ["step", "op", "solution"], rows
    lines = [line for _, line in read_jsonl(rollouts)] if rollouts.exists() else []
    rows = [[line[name] for name in COLUMNS] for line in lines if line["step"] <= step]
    return found | ({"rollout/samples": (list(COLUMNS), rows)} if rows else {})


SINKS = {"tensorboard": to_tensorboard, "wandb": to_wandb}


def watch(path, to, seconds=1.0, once=False):
    """Send what is in a run's metrics.jsonl, and what comes. Raises UserError for what no run has written."""
    send = SINKS[to](path)
    for line in lines(path / METRICS, seconds, once):
        if line is None:
            send = SINKS[to](path)
            continue
        values = parse_object(line, path / METRICS)
        if "step" not in values:
            raise UserError(f"{path / METRICS} is not what our scripts write: a line has no step")
        send(values.pop("step"), values)


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__, positional="run")
    if o.run is None:
        raise UserError("no run: python bench/watch_run.py out/base --to tensorboard")
    if not (Path(o.run) / METRICS).is_file():  # and nothing is written to what is no run's folder
        raise UserError(f"there is no {METRICS} in {o.run}: start the run first")
    try:
        watch(Path(o.run), o.to, o.seconds, o.once)
    except KeyboardInterrupt:
        return FINISHED


if __name__ == "__main__":
    run_script(main)
