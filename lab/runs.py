"""The folder of one run: its options, who may write to it, what is logged, which checkpoints are kept.

    config.json                  options, and the hash of the weights it started from
    step_N/                      checkpoints, each a folder of files with a manifest of their hashes
    latest, best                 links to the newest checkpoint, and to the one with the highest score; where
                                 there can be no links, files with its name
    metrics.jsonl, samples.txt   logs
    rollouts.jsonl               of RL: what was sampled in the last steps

A checkpoint knows how long the logs were: resuming cuts them back to there, so that the record of a run is
the same however often it was interrupted.
"""

import json
import math
import os
import shutil
import signal
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace

from lab.device import DeviceOptions
from lab.options import (
    FINISHED,
    STOPPED,
    UserError,
    flag,
    opt,
    parse_options,
    read_config,
    read_json,
    read_jsonl,
    write_atomic,
)

from filelock import FileLock, Timeout
from tqdm import tqdm

WINDOWS = os.name == "nt"


@dataclass(frozen=True)
class RunOptions(DeviceOptions):
    out: str = opt("out/run", "folder for all that is written", group="run", free=True)
    preset: str = opt("tiny", "defaults of all other options: tiny, small or paper")
    resume: bool = opt(False, "go on with the run in --out, with its options", free=True)
    resume_or_start: bool = opt(False, "go on with the run in --out, or start one", free=True)
    quiet: bool = opt(False, "print nothing but errors, and tables", free=True)
    # A script makes an option of one that it has: it can do without the folder, or go on without a model.
    dry_run = rescore = False


def parse_run_options(cls, argv, presets, description, positional=None):
    """The options of a script with a run folder; with --resume those of the run in --out.

    Raises UserError if there is no such run, if a flag contradicts the run that is resumed (with --resume an
    option that `grows` may be larger), or if the folder holds something and is not to be resumed.
    """
    parse = partial(parse_options, cls, argv, description=description, presets=presets, positional=positional)
    o = parse()
    path, config, goes_on = Path(o.out), Path(o.out, "config.json"), o.resume or o.rescore
    if o.resume and o.resume_or_start:
        raise UserError("--resume goes on with a run, --resume-or-start may begin one: give one of them")
    if goes_on and not config.exists():
        raise UserError(f"there is no run in {path} to resume: check --out (--resume-or-start begins one)")
    if goes_on or (o.resume_or_start and config.exists()):
        saved = read_config(config, cls)
        if goes_on:  # what is not said again is as it was
            o = parse(saved={**saved, "out": o.out, "resume_or_start": False})
        for field in fields(o):
            value, grows = getattr(o, field.name), field.metadata["grows"] and o.resume
            before = saved.get(field.name, field.default if grows else value)
            if before != value and not (field.metadata["free"] or (grows and value > before)):
                has = f"the run in {path} has {flag(field.name)} {before}, not {value}"
                raise UserError(f"{has}: resumed, it keeps its options; start another with another --out")
    elif not o.dry_run:
        left = (".lock", "config.json.*.tmp")  # by a run that was killed in its first moment
        if path.is_file() or any(not any(map(entry.match, left)) for entry in path.glob("*")):
            raise UserError(f"{path} is no empty folder: go on with its run by --resume, or change --out")
    return o


@contextmanager
def own_folder(o, start=None, inputs=()):
    """Make the folder of RunOptions, and nobody else writes to it meanwhile → what config.json says. start:
    hash of the weights the run starts from; inputs: other files it depends on.

    Raises UserError if somebody does, or if the run in it was started from other weights, or if an input is
    not what it was then.
    """
    path, config = Path(o.out), Path(o.out, "config.json")
    path.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path / ".lock", blocking=False):
            for file in inputs:
                if not Path(file).is_file():  # to read a pipe again could take for ever
                    raise UserError(f"{file} is no file, which a run that is resumed could read again")
            hashes = {str(file): content_hash(Path(file).read_bytes()) for file in inputs}
            begun = {"options": asdict(o), "start": start, "inputs": hashes, "code": code_hash()}
            run = read_json(config) if config.exists() else begun
            if start not in (None, run.get("start")):
                raise UserError(f"{path} was started from other weights: choose another --init-from or --out")
            for file, digest in hashes.items():
                if run.get("inputs", hashes).get(file, digest) != digest:
                    raise UserError(f"{file} has changed since {path} was started: choose another --out")
            grown = {field.name: getattr(o, field.name) for field in fields(o) if field.metadata["grows"]}
            said = {**run, "options": run["options"] | grown}
            if said != run or run is begun:
                write_atomic(config, as_json(said))
            yield said
    except Timeout:
        raise UserError(f"another process is writing to {path}: wait, or choose another --out") from None


# ------------------------------------------------------------------------------------------------------------
# Folders of files that are whole or not there


def write_folder(path, files):
    """Write a folder, {name: bytes}, whole or not at all: into a temporary one, synced to disk, then renamed.

    manifest.json holds a hash of every file. Raises UserError if the disk does not take it; what was there
    before stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    hashes = {name: content_hash(content) for name, content in files.items()}
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, content in {**files, "manifest.json": as_json(hashes)}.items():
            (temporary / name).write_bytes(content)
            sync(temporary / name)
        sync(temporary)
        shutil.rmtree(path, ignore_errors=True)  # the same step, written again: no move replaces a folder
        os.rename(temporary, path)
        sync(path.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        newest = f"the newest complete one is {newest_folder(path.parent)}"
        raise UserError(f"cannot write checkpoint {path} ({error.strerror}): make room; {newest}") from None


def content_hash(content):
    return blake2b(content, digest_size=16).hexdigest()


def as_json(value):
    return (json.dumps(value, indent=2) + "\n").encode()


def sync(path):
    """Have what a file holds, or the entries of a folder, on disk."""
    if WINDOWS and path.is_dir():  # which it cannot open
        return
    handle = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def damage(path):
    """What is wrong with a folder of write_folder, in a few words, or None: each file must be what the
    manifest says.
    """
    try:
        manifest = read_json(path / "manifest.json")
        for name, digest in manifest.items():
            if content_hash((path / name).read_bytes()) != digest:
                return f"{name} is not what manifest.json says"
    except OSError as error:
        return f"cannot read {error.filename}: {error.strerror}"
    except (UserError, ValueError) as error:
        return str(error)
    return None if manifest else "manifest.json lists nothing"


def follow(path):
    """A folder, or the one that `latest` or `best` stands for, as a link or as a file with its name."""
    path = Path(path)
    named = path.name in ("latest", "best") and path.is_file()
    try:
        return (path.parent / path.read_text() if named else path).resolve()
    except RuntimeError:  # of Python before 3.13
        raise UserError(f"{path} is a link to itself") from None


def step_folders(run):
    """The checkpoints of a run folder, oldest first."""
    return sorted(Path(run).glob("step_???????"))


def checkpoint_folder(path):
    """The checkpoint that a path means: itself, or `latest` of a run folder."""
    return Path(path, "latest") if Path(path, "latest").exists() else Path(path)


@contextmanager
def stoppable(out):
    """Within it SIGTERM stops as ctrl-C does, and either ends it → what has an exit `code` then. For a script
    that writes as it goes.
    """
    ended = SimpleNamespace(code=FINISHED)
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield ended
    except KeyboardInterrupt:
        ended.code = stopped(out)
    finally:
        signal.signal(signal.SIGTERM, handler)


def stopped(out):
    """Say how a script goes on that was stopped before its end → its exit code."""
    print(f"stopped; continue with: python {sys.argv[0]} --resume --out {out}")
    return STOPPED


def weights_hash(path):
    """The hash of a checkpoint's weights, or None if there is no such folder (any more)."""
    manifest = path and follow(checkpoint_folder(path)) / "manifest.json"
    return read_json(manifest).get("weights.pt") if manifest and manifest.exists() else None


def newest_folder(run):
    """The newest intact checkpoint of a run folder, or None; says which damaged ones it passes over."""
    for path in reversed(step_folders(run)):
        if not (wrong := damage(path)):
            return path
        print(f"passing over damaged checkpoint {path}: {wrong}", file=sys.stderr)
    return None


def code_hash():
    """What the code of this repository is, in 16 characters."""
    root = Path(__file__).parent.parent
    files = sorted([*root.glob("*.py"), *root.glob("lab/*.py")])
    return content_hash(b"".join(file.read_bytes() for file in files))[:16]


# ------------------------------------------------------------------------------------------------------------


class Run:
    """The run folder while a script works in it: `with Run(o, processes) as run`.

    `checkpoint` is the folder to go on from, or None; `rated` whether that one was evaluated already. SIGTERM
    and SIGINT set `stopping`, a second one interrupts at once. Raises UserError if another process writes to
    the folder, if its checkpoints are damaged, or if `start`, the hash of the weights it starts from, is not
    what it was.
    """

    LOGS = ("metrics.jsonl", "samples.txt")

    def __init__(self, o, processes, start=None):
        self.o, self.processes, self.path, self.start = o, processes, Path(o.out), start
        self.keep_first, self.inputs, self.stopping = False, (), False
        self.held, self.started = ExitStack(), time.perf_counter()
        self.checkpoint, self.found = newest_folder(self.path), step_folders(self.path)
        self.rated = self.checkpoint is not None and (self.checkpoint / "score.json").exists()
        newest = (str(self.checkpoint), weights_hash(self.checkpoint))
        processes.agree((newest, len(self.found), start), "checkpoint")  # before any of them may stop here
        if self.checkpoint is None and self.found:
            raise UserError(f"no checkpoint in {self.path} is intact: move the folder away and start again")

    def __enter__(self):
        if self.processes.first:
            self._begin(self.held.enter_context(own_folder(self.o, self.start, self.inputs)))
        for number in (signal.SIGTERM, signal.SIGINT):
            self.held.callback(signal.signal, number, signal.signal(number, self._stop))
        return self

    def __exit__(self, *error):
        self.held.close()

    def _begin(self, config):
        """Clear away what was left half-written, and cut the logs back to the checkpoint."""
        if step_folders(self.path) != self.found:
            raise UserError(f"another process has written to {self.path} meanwhile: start again")
        for unfinished in self.path.glob("*.tmp"):
            shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
        lengths = dict.fromkeys(self.LOGS, 0)
        if self.checkpoint is not None:
            lengths = read_json(self.checkpoint / ("score.json" if self.rated else "record.json"))["lengths"]
            print(f"resuming {self.path} at {self.checkpoint.name}")
            if config.get("code") != code_hash():
                print("note: the code has changed since this run was started")
        for name, length in lengths.items():
            with (self.path / name).open("ab") as file:
                file.truncate(min(length, file.tell()))

    def _stop(self, number, frame):
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True
        if self.processes.first:
            name = signal.Signals(number).name
            tqdm.write(f"{name}: finishing this step, then saving (again to stop at once)", file=sys.stderr)

    def should_stop(self):
        """Whether any process was told to stop."""
        return bool(self.processes.sum([self.stopping])[0])

    def exit_code(self, finished):
        """Of the script; one that is not finished says how it goes on."""
        if finished:
            return FINISHED
        return stopped(self.path) if self.processes.first else STOPPED

    def log(self, step, values):
        """Append one line to metrics.jsonl. What depends on the clock is under `time/`."""
        values = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
        seconds = round(time.perf_counter() - self.started, 2)
        self.append("metrics.jsonl", json.dumps({"step": step, **values, "time/seconds": seconds}) + "\n")

    def append(self, name, text):
        """In the first process: add to one of the logs, which is open no longer than that."""
        if self.processes.first:
            try:
                with (self.path / name).open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(text)
            except OSError as error:
                why = f"cannot write {self.path / name} ({error.strerror})"
                raise UserError(f"{why}: make room, then go on with --resume") from None

    def keep_last(self, name, step, steps, lines):
        """In the first process: add a step's lines, dicts, to a JSONL file that keeps the last `steps` steps.

        So do those of this step and later ones go, which a run had reached before it was killed.
        """
        path = self.path / name
        before = [line for _, line in read_jsonl(path)] if path.exists() else []
        kept = [line for line in before if step - steps < line.get("step", step) < step]
        lines = [json.dumps(line) + "\n" for line in (*kept, *({"step": step, **line} for line in lines))]
        write_atomic(path, "".join(lines))

    def save(self, step, files):
        """In the first process: write checkpoint step_N, {name: bytes}, and point `latest` at it."""
        path = self.path / f"step_{step:07d}"
        write_folder(path, {**files, "record.json": as_json({"lengths": self._lengths()})})
        self._point("latest", path)

    def rate(self, step, score):
        """In the first process: note that checkpoint step_N was evaluated, with this score, and point `best`
        at the one with the highest.
        """
        content = as_json({"score": score, "lengths": self._lengths()})
        write_atomic(self.path / f"step_{step:07d}" / "score.json", content)
        _, best = max((read_json(file)["score"], file.parent) for file in self.path.glob("step_*/score.json"))
        self._point("best", best)

    def _lengths(self):
        """How long the logs are, with what they hold on disk."""
        for name in self.LOGS:
            (self.path / name).touch()
            sync(self.path / name)
        return {name: (self.path / name).stat().st_size for name in self.LOGS}

    def _point(self, name, path):
        """Make the link `name` point at a checkpoint, in one atomic step. Then old ones go, but for those
        with a link and the last `keep`.
        """
        temporary = self.path / f".{name}.tmp"
        temporary.unlink(missing_ok=True)
        point = temporary.write_text if WINDOWS else temporary.symlink_to  # it could not replace a link
        try:
            point(path.name)
        except OSError:  # a disk without links, such as exFAT
            temporary.write_text(path.name)
        os.replace(temporary, self.path / name)
        sync(self.path)
        folders = step_folders(self.path)  # the last may be damaged ones, later than `latest`
        named = ["best", "latest"] + ["step_0000000"] * self.keep_first
        kept = {follow(path) for path in (*folders[-self.o.keep :], *map(self.path.joinpath, named))}
        for folder in folders:
            if folder.resolve() not in kept:
                shutil.rmtree(folder)


def say(text):
    """Print a line, above the bar if there is one, at once even into a file."""
    tqdm.write(text)
    sys.stdout.flush()


class Progress:
    """How far something is: a bar on a terminal, elsewhere a line after its first piece and every 30 seconds.

    `words` are shown beside it. The rate of a trainer is that of the last 10 seconds of steps or so: older
    ones fade, and what is between the steps (checkpoints, evaluations) does not count.
    """

    EVERY, FADES = 30, 10

    def __init__(self, name, done, total, shown, unit="step", part=False):
        """done: how many of `total` pieces are there already; part: of something that has a Progress itself,
        so that its bar goes when it ends, and there is no line in its first 30 seconds.
        """
        self.name, self.unit, self.first, self.done, self.total = name, unit, done, done, total
        self.begun, self.words = time.perf_counter(), ""
        self.said = self.begun if part else -math.inf
        self.tokens = self.seconds = 0.0
        terminal = sys.stdout.isatty() and sys.stderr.isatty()  # which the bar is written to
        self.plain, how = shown and not terminal, dict(leave=not part, disable=not (shown and terminal))
        # no bar proper: 80 columns are for what it says
        how["bar_format"] = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        self.bar = tqdm(total=total, initial=done, desc=name, unit=unit, **how)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def update(self, tokens, seconds, shown):
        """Take in a step: its tokens, its seconds, {name: text} to show → tokens per second, lately."""
        if not self.tokens:  # the first step, and what comes before it, prepare the others: no pace
            self.first, self.begun = self.first + 1, time.perf_counter()
        fade = math.exp(-seconds / self.FADES)
        self.tokens, self.seconds = tokens + fade * self.tokens, seconds + fade * self.seconds
        rate = self.tokens / self.seconds
        self.words = ", ".join([f"{rate:,.0f} tokens/s", *map(" ".join, shown.items())])
        self.advance(1)
        return rate

    def skip(self, n):
        """Take in n pieces that were done before: they say nothing of the pace."""
        self.first += n
        self.advance(n)

    def advance(self, n, left=None):
        """Take in n pieces. left: how long the others will take, in words (None: at the pace so far)."""
        now, told = time.perf_counter(), [text for text in (self.words, left) if text]
        self.done += n
        self.bar.set_postfix_str(", ".join(told), refresh=False)
        self.bar.update(n)
        if self.plain and now - self.said >= self.EVERY and (left or self.tokens or self.done > self.first):
            # steps are alike; of rows that are sampled together the short ones are finished first
            if left is None and self.done > self.first and (self.tokens or now - self.begun >= self.EVERY):
                pace = (now - self.begun) / (self.done - self.first)
                told.append(f"{tqdm.format_interval(pace * (self.total - self.done))} left")
            say(", ".join([f"{self.name}: {self.unit} {self.done} of {self.total}", *told]))
            self.said = now


class Guard:
    """Counts updates whose loss or gradient is not finite: they are skipped, and too many in a row end the
    run.
    """

    def __init__(self, most, skipped=0, in_a_row=0):
        self.most, self.skipped, self.in_a_row = most, skipped, in_a_row

    def passes(self, step, *numbers):
        """Whether to take this update. Raises UserError at the last of `most` bad ones in a row."""
        bad = not all(map(math.isfinite, numbers))
        self.skipped += bad
        self.in_a_row = self.in_a_row + 1 if bad else 0
        if self.in_a_row >= self.most:
            what = f"loss or gradient not finite {self.most} times in a row, last at step {step}"
            raise UserError(f"{what}: lower --lr or look at the data; the run's last checkpoint is good")
        return not bad

    def state(self):
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}
