"""Send the metrics of a run to TensorBoard or Weights & Biases, while it runs or afterwards.

    python bench/watch_run.py out/base --to tensorboard
    tensorboard --logdir out

It reads metrics.jsonl from its start, then each line as it is written, until ctrl-C; --once stops at the end.
Started again, it sends all of it again, and what was sent before is replaced. The run knows nothing of it.
"""

import os
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
    run_script,
    stream_key,
)

METRICS = "metrics.jsonl"


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
    """→ a function of (step, values). A run folder has one run there, which passes over steps it has."""
    wandb = package("wandb", "wandb")
    who = dict(project="reasoning-lab", name=path.name, id=f"{stream_key(os.path.realpath(path)):016x}")
    config = read_json(path / "config.json")["options"]
    wandb.init(**who, resume="allow", dir=str(path), config=config)
    return lambda step, values: wandb.log(values, step=step)


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
