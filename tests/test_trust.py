"""Nothing is lost: checkpoints that are whole or not there, runs that can be killed at any time, one line for
what goes wrong.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from lab.device import Processes, run_torch_script
from lab.options import STOPPED, UserError
from lab.runs import Guard, Run, content_hash, damage, newest_folder, own_folder, weights_hash

import pytest
import torch
from conftest import call, error_line
from crash import pay_the_untrained

import train_grpo
import train_pretrain
from checkpoint import load_checkpoint
from tokenizer import train_bpe
from training import Training

ROOT = Path(__file__).parent.parent
WORLD = "distractors 1-2; literals 1-9; bound 99"
SMALL = "--hidden-size 32 --layers 2 --heads 2 --kv-heads 1 --intermediate-size 64 --row-tokens 256 --vocab-size 400"
PRETRAIN = (
    f"--eval-every 5 --log-every 3 --eval-problems 2 --max-new-tokens 40 {SMALL} --threads 1 --workers 0"
)
PRETRAIN = ["train_pretrain", "--mixture", f"op 2-3; {WORLD}; tokens 17k", *PRETRAIN.split()]
GRPO = (
    "--steps 14 --prompts 4 --group 3 --minibatch 2 --max-new-tokens 40 --reward mixed --kl 0.05 --lr 1e-3 "
    "--eval-every 3 --eval-problems 2 --threads 1"
)
GRPO = ["train_grpo", "--mixture", f"op 2; {WORLD}", *GRPO.split()]
SCRIPTS = {"base": (train_pretrain.Pretraining, PRETRAIN), "rl": (train_grpo.GRPO, GRPO)}
STEPS = {"base": 17_000 // 512, "rl": 14}
LAST, BEFORE = "step_0000033", "step_0000030"  # checkpoints of base that are kept
CPU = torch.device("cpu")


def python(*arguments, check=True, **environment):
    out = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=300,
                         env={**os.environ, **environment})  # fmt: skip
    assert not check or out.returncode == 0, out.stderr[-2000:]
    return out


@pytest.fixture(scope="module", autouse=True)
def rewards():
    """Samples of a model that has learnt nothing differ in reward: else RL would have nothing to be
    interrupted at.
    """
    with pay_the_untrained():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that nothing interrupts."""
    path = tmp_path_factory.mktemp("whole")
    call(*PRETRAIN, "--out", path / "base", check=True)
    call(*GRPO, "--init-from", path / "base" / "latest", "--out", path / "rl", check=True)
    rewards = [line["rollout/reward"] for line in metrics(path / "rl") if "rollout/reward" in line]
    assert len(set(rewards)) > 5  # the samples matter
    return path


def starting(whole, name):
    """The option that a run of this name starts from: the weights, or the tokenizer that need not be trained
    anew.
    """
    latest = whole / "base" / "latest"
    return ["--init-from", latest] if name == "rl" else ["--tokenizer", latest / "tokenizer.json"]


def metrics(run):
    """What metrics.jsonl holds, without what depends on the clock."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def record(run):
    """Everything a run leaves that must not depend on how often it was interrupted."""
    checkpoint = load_checkpoint(run / "latest", CPU)
    optimizers = torch.load(run / "latest" / "optimizer.pt", weights_only=True)
    groups = [(group["lr"], o["state"].values()) for o in optimizers for group in o["param_groups"]]
    rollouts = run / "rollouts.jsonl"
    return {
        "metrics": metrics(run),
        "samples": (run / "samples.txt").read_text(),
        "rollouts": rollouts.read_text() if rollouts.exists() else None,
        "weights": {k: v.numpy().tobytes() for k, v in checkpoint.model.state_dict().items()},
        "optimizer": [
            (lr, [v.numpy().tobytes() for s in states for v in s.values()]) for lr, states in groups
        ],
        "step": checkpoint.state["step"],
        "scores": {p.parent.name: json.loads(p.read_text())["score"] for p in run.glob("step_*/score.json")},
        "best": os.readlink(run / "best"),
        "checkpoints": sorted(p.name for p in run.glob("step_*")),
    }


def same(a, b, but=()):
    for key in a.keys() - set(but):
        assert a[key] == b[key], key


# A run that was stopped between two evaluations has one checkpoint more, and so an older one less.
KEPT = ("best", "scores", "checkpoints")


@contextmanager
def at_step(training, step, act):
    """Do something before a run takes that step."""
    take = training.take_step

    def acting(self):
        if self.step == step:
            act()
        return take(self)

    with mock.patch.object(training, "take_step", acting):
        yield


class Death(BaseException):
    """The end of a process that nothing catches."""


def die(*arguments):
    raise Death


# ------------------------------------------------------------------------------------------------------------
# Interrupted runs


@pytest.mark.parametrize("name, seconds", [("base", 1.0), ("rl", 1.5)])
def test_twenty_kills_change_no_bit(whole, tmp_path, name, seconds):
    """kill -9 at 20 random moments of a second or two of computing, resuming each time: weights, optimizer,
    metrics and samples of an uninterrupted run.
    """
    command = [*SCRIPTS[name][1], *starting(whole, name)]
    out = python("tests/crash.py", 20, seconds, *command, "--out", tmp_path / "run")
    assert out.stdout.count("killed") == 20 and out.stdout.count("resuming") >= 5, out.stdout
    same(record(whole / name), record(tmp_path / "run"))
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name, step", [("base", 0), ("base", 13), ("rl", 7)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(whole, tmp_path, name, step, number):
    """Exit code 75, so that a shell script stops too; the next run goes on where this one was."""
    training, command = SCRIPTS[name]
    before = signal.getsignal(number)  # SIG_IGN, where a shell started the tests in the background
    with at_step(training, step, lambda: signal.raise_signal(number)):
        out = call(*command, *starting(whole, name), "--out", tmp_path)
    assert out.returncode == STOPPED == 75 and f"{number.name}: finishing this step" in out.stderr
    assert f"python {command[0]}.py --resume --out {tmp_path}" in out.stdout
    stopped = load_checkpoint(tmp_path / "latest", CPU)
    assert stopped.state["step"] == step + 1 < STEPS[name]
    assert not (stopped.path / "score.json").exists()  # told to stop, it does not evaluate first
    assert signal.getsignal(number) == before
    call(command[0], "--resume", "--out", tmp_path, check=True)  # the options are the run's own
    same(record(whole / name), record(tmp_path), but=KEPT)


def test_a_process_that_is_told_to_stop_exits_with_75_and_lets_no_other_write_meanwhile(tmp_path):
    """The real thing: a process of its own, a second writer beside it, and a signal from outside."""
    command = [sys.executable, "train_pretrain.py", *PRETRAIN[1:], "--out", tmp_path / "run"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "latest").exists():
        assert process.poll() is None
        time.sleep(0.01)
    second = call(*PRETRAIN, "--out", tmp_path / "run", "--resume")
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == STOPPED, stderr
    assert f"python train_pretrain.py --resume --out {tmp_path / 'run'}" in stdout
    assert "another process is writing" in error_line(second)
    assert load_checkpoint(tmp_path / "run" / "latest", CPU).state["step"] < STEPS["base"]


def test_a_second_signal_stops_at_once(whole, tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with at_step(train_pretrain.Pretraining, 2, twice):
        out = call(*PRETRAIN, *starting(whole, "base"), "--out", tmp_path)
    assert out.returncode == 130 and os.readlink(tmp_path / "latest") == "step_0000000"
    call("train_pretrain", "--resume", "--out", tmp_path, check=True)
    same(record(whole / "base"), record(tmp_path))


def test_a_finished_run_is_left_alone(whole):
    before = record(whole / "base")
    out = call("train_pretrain", "--resume", "--out", whole / "base", check=True)
    assert "resuming" in out.stdout
    same(before, record(whole / "base"))


def test_a_run_folder_is_not_overwritten_and_a_resumed_run_keeps_its_options(whole, tmp_path):
    other = tmp_path / "other.json"
    other.write_text('{"lr": 0.5}')
    before = record(whole / "base")
    for arguments, words in (
        ([], "--resume"),
        (["--resume", "--lr", "0.5"], "--lr"),
        (["--resume", "--seed", "9"], "--seed"),
        (["--resume", "--config", other], "--lr"),
        (["--resume-or-start", "--lr", "0.5"], "--lr"),
        (["--resume-or-start", "--config", other], "--lr"),
        (["--resume", "--resume-or-start"], "--resume-or-start"),
    ):
        assert words in error_line(call(*PRETRAIN, "--out", whole / "base", *arguments))
    assert "--mixture" in error_line(call("train_pretrain", "--resume-or-start", "--out", whole / "base"))
    same(before, record(whole / "base"))


@pytest.mark.parametrize("script", ["train_pretrain", "train_grpo", "evaluate"])
def test_a_run_of_another_script_is_not_resumed(whole, script):
    """Not even where the flags would do: `train_grpo.py --resume --out out/base` is a slip."""
    folder = whole / ("rl" if script == "train_pretrain" else "base")
    before = record(folder)
    positional = ["a=x"] if script == "evaluate" else []
    assert str(folder) in error_line(call(script, *positional, "--resume", "--out", folder))
    same(before, record(folder))


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("script", ["train_pretrain", "train_grpo"])
def test_resume_needs_a_run(tmp_path, script, exists):
    """A typo in --out does not start another experiment with other options: nothing is written."""
    run = tmp_path / "run"
    if exists:
        run.mkdir()
    assert f"there is no run in {run} to resume" in error_line(call(script, "--resume", "--out", run))
    assert list(tmp_path.rglob("*")) == [run] * exists


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_knows_itself_before_its_first_step(whole, tmp_path, name):
    """config.json with all options and the hash of the weights it starts from, and a checkpoint at step 0."""
    training, command = SCRIPTS[name]
    with at_step(training, 0, die), pytest.raises(Death):
        call(*command, *starting(whole, name), "--out", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["options"]["lr"] == (1e-3 if name == "rl" else train_pretrain.PRESETS["tiny"]["lr"])
    assert config["start"] == (weights_hash(whole / "base" / "latest") if name == "rl" else None)
    assert load_checkpoint(tmp_path / "latest", CPU).state["step"] == 0
    assert (tmp_path / "latest" / "score.json").exists()
    call(command[0], "--resume", "--out", tmp_path, check=True)
    same(record(whole / name), record(tmp_path))


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("flag", ["--resume", "--resume-or-start"])
def test_a_run_that_was_killed_before_its_first_save_can_go_on(whole, tmp_path, name, flag):
    training, command = SCRIPTS[name]
    command = [*command, *starting(whole, name), "--out", tmp_path]
    with mock.patch.object(training, "save", die), pytest.raises(Death):
        call(*command)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes.pop("config.json") and sizes == {".lock": 0, "metrics.jsonl": 0, "samples.txt": 0}
    out = call(*command, "--resume-or-start", "--lr", "5e-4")
    assert "--lr 0.001, not 0.0005" in error_line(out)  # it is a run already
    short = ["--steps", "1"] if name == "rl" else []
    assert not short or "--steps 14, not 1" in error_line(call(*command, flag, *short))
    with at_step(training, 2, lambda: signal.raise_signal(signal.SIGTERM)):
        assert call(*command, flag).returncode == STOPPED
    assert metrics(tmp_path)[0] == metrics(whole / name)[0]
    assert load_checkpoint(tmp_path / "latest", CPU).state["step"] == 3


def test_rollouts_of_the_last_steps_are_kept(whole):
    lines = [json.loads(line) for line in (whole / "rl" / "rollouts.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [step for step in range(11, 15) for _ in range(12)]
    by_problem = [lines[i : i + 3] for i in range(0, len(lines), 3)]
    assert all(len({line["problem"] for line in group}) == 1 for group in by_problem)
    last = next(line for line in metrics(whole / "rl") if line["step"] == 14)
    tries = lines[-12:]
    assert sum(line["reward"] for line in tries) / 12 == pytest.approx(last["rollout/reward"], rel=1e-5)
    assert sum(line["tokens"] for line in tries) / 12 == pytest.approx(last["rollout/length"], rel=1e-5)
    assert abs(sum(line["advantage"] for line in tries)) < 1e-4
    assert {line["verdict"] for line in tries} <= {"wrong", "answer only", "correct", "faithful"}


@pytest.mark.parametrize(
    "name, more", [("rl", []), ("base", ["--schedule", "wsd", "--cooldown", 0, "--warmup", 0])]
)
def test_a_finished_run_can_be_extended(whole, tmp_path, name, more):
    """At a constant rate: it is then the longer run, bit for bit; and goes on as that one."""
    command = [*SCRIPTS[name][1], *starting(whole, name), *more]
    call(*command, "--steps", 4, "--out", tmp_path / "run", check=True)
    assert "--steps 4, not 3" in error_line(
        call(command[0], "--resume", "--steps", 3, "--out", tmp_path / "run")
    )
    assert "--steps 4, not 6" in error_line(
        call(*command, "--resume-or-start", "--steps", 6, "--out", tmp_path / "run")
    )
    with at_step(SCRIPTS[name][0], 4, lambda: signal.raise_signal(signal.SIGTERM)):
        out = call(command[0], "--resume", "--steps", 6, "--out", tmp_path / "run")
    assert (
        out.returncode == STOPPED
        and json.loads((tmp_path / "run" / "config.json").read_text())["options"]["steps"] == 6
    )
    call(command[0], "--resume", "--out", tmp_path / "run", check=True)
    call(*command, "--steps", 6, "--out", tmp_path / "longer", check=True)
    same(record(tmp_path / "longer"), record(tmp_path / "run"), but=(*KEPT, "metrics", "samples"))
    trained = [
        [line for line in metrics(tmp_path / run) if "train/loss" in line] for run in ("longer", "run")
    ]
    assert trained[0] == trained[1] and trained[0]


@pytest.mark.parametrize(
    "more", [[], ["--schedule", "wsd"], ["--schedule", "wsd", "--cooldown", 0, "--warmup", 0.5]]
)
def test_a_run_whose_rate_has_fallen_is_not_extended(whole, tmp_path, more):
    command = [*PRETRAIN, *starting(whole, "base"), *more]
    call(*command, "--steps", 6, "--out", tmp_path, check=True)
    before = record(tmp_path), (tmp_path / "config.json").read_text()
    line = error_line(call("train_pretrain", "--resume", "--steps", 12, "--out", tmp_path))
    assert "--steps 12: the learning rates of 6 steps were those of a run of 6" in line
    assert before == (record(tmp_path), (tmp_path / "config.json").read_text())


def test_a_run_is_not_resumed_to_fewer_steps_than_it_has_taken(whole, tmp_path):
    """At a constant rate, and of a number of steps that followed from the tokens: it would never end."""
    command = [*PRETRAIN, *starting(whole, "base"), "--schedule", "wsd", "--cooldown", 0, "--warmup", 0]
    with at_step(train_pretrain.Pretraining, 7, lambda: signal.raise_signal(signal.SIGTERM)):
        assert call(*command, "--out", tmp_path).returncode == STOPPED
    assert "--steps 5: " in error_line(call("train_pretrain", "--resume", "--steps", 5, "--out", tmp_path))


def test_a_run_that_was_killed_before_it_had_options_can_be_started(tmp_path):
    """What is left then is the lock, and config.json half-written."""
    real = os.replace
    with mock.patch("os.replace", die), pytest.raises(Death):
        call(*PRETRAIN, "--out", tmp_path)
    lock, written = sorted(path.name for path in tmp_path.iterdir())
    assert os.replace is real and lock == ".lock" and re.fullmatch(r"config\.json\.\w+\.tmp", written)
    with at_step(train_pretrain.Pretraining, 0, lambda: signal.raise_signal(signal.SIGTERM)):
        assert call(*PRETRAIN, "--out", tmp_path, "--resume-or-start").returncode == STOPPED
    assert not list(tmp_path.glob("*.tmp"))


def test_a_run_is_not_resumed_from_other_weights(whole, tmp_path):
    """--init-from names a link: what it points at may have changed since."""
    start, run = tmp_path / "start", tmp_path / "run"
    start.symlink_to(whole / "base" / BEFORE)
    command = [*GRPO, "--init-from", start, "--out", run]
    with at_step(train_grpo.GRPO, 4, lambda: signal.raise_signal(signal.SIGTERM)):
        assert call(*command).returncode == STOPPED
    before = record(run)
    start.unlink()
    start.symlink_to(whole / "base" / LAST)
    for arguments in (["train_grpo", "--resume", "--out", run], [*command, "--resume-or-start"]):
        assert "started from other weights" in error_line(call(*arguments))
    same(before, record(run))
    start.unlink()  # gone: nobody can tell, and the run has its own copy
    call("train_grpo", "--resume", "--out", run, check=True)
    assert record(run)["step"] == STEPS["rl"]


def test_evaluation_resumes_where_it_was(whole, tmp_path):
    command = [
        "evaluate", f"base={whole / 'base' / 'latest'},rl={whole / 'rl' / 'latest'}", "--bands", "id=2,edge=3-4",
        "--mixture", f"op 2; {WORLD}", "--problems", 3, "--samples", 2, "--k", "1,2", "--max-new-tokens", 30, "--threads", 1]  # fmt: skip
    call(*command, "--out", tmp_path / "a", check=True)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    lines = (tmp_path / "a" / "samples.jsonl").read_text().splitlines(keepends=True)
    # stopped in the middle of a line
    (tmp_path / "b" / "samples.jsonl").write_text("".join(lines[:3]) + lines[3][:50])
    for name in ("results.json", "judged.jsonl"):
        (tmp_path / "b" / name).unlink()
    call(*command, "--out", tmp_path / "b", "--resume", check=True)
    for name in ("samples.jsonl", "judged.jsonl"):
        assert (tmp_path / "b" / name).read_text() == (tmp_path / "a" / name).read_text()
    a, b = (json.loads((tmp_path / name / "results.json").read_text())["results"] for name in "ab")
    assert a == b
    assert "--resume" in error_line(call(*command, "--out", tmp_path / "b"))
    assert "--seed" in error_line(call(*command, "--out", tmp_path / "b", "--resume", "--seed", 5))


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_fails_in_an_evaluation_loses_no_step(whole, tmp_path, name):
    """The checkpoint is written before it is evaluated; resumed, the evaluation is made up for."""
    training, command = SCRIPTS[name]
    evaluate, calls = training.evaluate, []

    def failing(self, run):
        calls.append(self.step)
        if len(calls) == 3:
            raise UserError("no light")
        return evaluate(self, run)

    with mock.patch.object(training, "evaluate", failing):
        out = call(*command, *starting(whole, name), "--out", tmp_path)
    assert out.returncode == 2 and "error: no light" in out.stderr
    at = tmp_path / f"step_{calls[-1]:07d}"
    assert load_checkpoint(tmp_path / "latest", CPU).state["step"] == calls[-1] > 0
    assert damage(at) is None and not (at / "score.json").exists()
    assert os.readlink(tmp_path / "best") != at.name
    call(command[0], "--resume", "--out", tmp_path, check=True)
    same(record(whole / name), record(tmp_path))


# ------------------------------------------------------------------------------------------------------------
# One writer


@pytest.mark.parametrize("name", [*SCRIPTS, "evaluation"])
def test_two_processes_do_not_write_to_one_folder(whole, tmp_path, name):
    run = tmp_path / "run"
    command = SCRIPTS[name][1] if name in SCRIPTS else ["evaluate", f"a={whole / 'base' / 'latest'}"]
    o = train_pretrain.Options(out=str(run))
    with own_folder(o):
        (run / "config.json").unlink()
        out = call(*command, *(starting(whole, name) if name in SCRIPTS else []), "--out", run)
        assert f"another process is writing to {run}" in error_line(out)
        assert [path.name for path in run.iterdir()] == [".lock"]


def test_a_run_that_another_process_has_advanced_meanwhile_is_not_entered(whole, tmp_path):
    """It looked for its checkpoint before it waited for the folder: it would cut the other's logs."""
    o = train_pretrain.Options(out=str(tmp_path / "run"))
    late = Run(o, Processes(CPU))
    shutil.copytree(whole / "base", tmp_path / "run", symlinks=True)
    with pytest.raises(UserError, match="meanwhile"), late:
        pass
    same(record(whole / "base"), record(tmp_path / "run"))


class Ranks(Processes):
    """The first of two processes; what the other one sees is given."""

    def __init__(self, other):
        self.device, self.rank, self.first, self.size, self.other = CPU, 0, True, 2, other

    def gather(self, value):
        return [value, self.other(value)]


def test_processes_that_see_different_checkpoints_end_in_one_line(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole / "base", run, symlinks=True)
    o, seen = train_pretrain.Options(out=str(run), resume=True), []
    assert Run(o, Ranks(lambda value: value)).checkpoint == run / LAST
    Run(o, Ranks(lambda value: seen.append(repr(value)) or value))
    assert LAST in seen[0] and weights_hash(run / "latest") in seen[0]
    for other in (
        lambda value: None,  # a node of its own disk
        lambda value: replaced(value, LAST, BEFORE),
        lambda value: replaced(value, weights_hash(run / "latest"), "0" * 32),
    ):
        with pytest.raises(UserError, match="the processes do not see the same checkpoint") as error:
            Run(o, Ranks(other))
        assert "\n" not in str(error.value)
    # neither is a run begun from different weights
    o = train_pretrain.Options(out=str(tmp_path / "new"))
    with pytest.raises(UserError, match="the processes do not see the same"):
        Run(o, Ranks(lambda value: replaced(value, "aaaa", "bbbb")), start="aaaa")
    # nor does one wait for the other where all of its checkpoints are damaged
    for step in run.glob("step_*"):
        (step / "weights.pt").unlink()
    o, seen = train_pretrain.Options(out=str(run), resume=True), []
    with pytest.raises(UserError, match=r"no checkpoint in .* is intact"):
        Run(o, Ranks(lambda value: seen.append(value) or value))
    assert len(seen) == 1


def replaced(value, old, new):
    """A value of nested tuples with one text in it replaced."""
    if isinstance(value, tuple):
        return tuple(replaced(part, old, new) for part in value)
    return value.replace(old, new) if isinstance(value, str) else value


# ------------------------------------------------------------------------------------------------------------
# Damage


def truncate(path):
    content = (path / "weights.pt").read_bytes()
    (path / "weights.pt").write_bytes(content[: len(content) // 2])


def flip(name):
    def damaging(path):
        content = bytearray((path / name).read_bytes())
        content[len(content) // 2] ^= 16
        (path / name).write_bytes(content)

    return damaging


def rewrite(name, change):
    """Change a file and its hash: what a newer or another program might have written."""

    def damaging(path):
        change(path / name)
        manifest = json.loads((path / "manifest.json").read_text())
        manifest[name] = content_hash((path / name).read_bytes())
        (path / "manifest.json").write_text(json.dumps(manifest))

    return damaging


def words(old, new):
    return lambda file: file.write_text(file.read_text().replace(old, new))


def poison(file):
    weights = torch.load(file, weights_only=True)
    weights["model.norm.weight"][3] = float("nan")
    torch.save(weights, file)


HASHED = ("weights.pt", "optimizer.pt", "tokenizer.json", "config.json", "state.json")
DAMAGES = {
    "no weights": lambda p: (p / "weights.pt").unlink(),
    "truncated weights": truncate,
    "no tokenizer": lambda p: (p / "tokenizer.json").unlink(),
    "broken config": lambda p: (p / "config.json").write_text("{"),
    "no state": lambda p: (p / "state.json").unlink(),
    "no manifest": lambda p: (p / "manifest.json").unlink(),
    "broken manifest": lambda p: (p / "manifest.json").write_text("[]"),
    **{f"a bit of {name}": flip(name) for name in (*HASHED, "record.json", "manifest.json")},
    "another tokenizer": rewrite("tokenizer.json", lambda f: train_bpe(["another text"], 270).save(f)),
    "another architecture": rewrite("config.json", words('_layers": 2', '_layers": 3')),
    "a hundred thousand layers": rewrite("config.json", words('_layers": 2', '_layers": 100000')),
    "an unknown option": rewrite("config.json", words("vocab_size", "size_of_vocab")),
    "weights that are none": rewrite("weights.pt", lambda f: f.write_bytes(b"weights")),
    "weights with code in them": rewrite("weights.pt", lambda f: torch.save({"a": Path("x")}, f)),
    "weights that are not finite": rewrite("weights.pt", poison),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_checkpoints_are_one_line_that_names_an_intact_one(whole, tmp_path, name):
    shutil.copytree(whole / "base", tmp_path / "run", symlinks=True)
    last, before = sorted((tmp_path / "run").glob("step_*"), reverse=True)[:2]
    DAMAGES[name](last)
    with pytest.raises(UserError) as error:
        load_checkpoint(tmp_path / "run" / "latest", CPU)
    assert "\n" not in str(error.value) and str(last) in str(error.value) and str(before) in str(error.value)


@pytest.mark.parametrize("content", ["{}", "[]", "{", '"x"'])
def test_a_manifest_without_the_weights_is_one_line(whole, tmp_path, content):
    """Found where a run looks for the checkpoint to go on from, and where it notes what it starts from."""
    shutil.copytree(whole / "base", tmp_path / "run", symlinks=True)
    for step in (tmp_path / "run").glob("step_*"):
        (step / "manifest.json").write_text(content)
    start = tmp_path / "run" / "latest"
    out = call(*GRPO, "--init-from", start, "--out", tmp_path / "rl")
    assert "manifest.json" in error_line(out) and not (tmp_path / "rl").exists()
    out = call("train_pretrain", "--resume", "--out", tmp_path / "run")
    assert out.returncode == 2 and "no checkpoint in" in out.stderr.strip().splitlines()[-1]


def test_a_damaged_checkpoint_is_passed_over_when_resuming(whole, tmp_path):
    shutil.copytree(whole / "base", tmp_path / "run", symlinks=True)
    truncate(tmp_path / "run" / "latest")
    out = call("train_pretrain", "--resume", "--out", tmp_path / "run", check=True)
    assert "passing over damaged checkpoint" in out.stderr
    same(record(whole / "base"), record(tmp_path / "run"))


def test_a_damaged_checkpoint_does_not_push_out_the_one_that_was_just_saved(whole, tmp_path):
    """With --keep 1 the newest folder alone is kept; the damaged one bears the higher number."""
    run, o = tmp_path / "run", train_pretrain.Options(keep=1, out=str(tmp_path / "run"), resume=True)
    shutil.copytree(whole / "base", run, symlinks=True)
    files = files_of(run / "latest")
    truncate(run / "latest")
    Run(o, Processes(CPU)).save(31, files)
    assert newest_folder(run).name == "step_0000031" and damage(run / "latest") is None


def files_of(checkpoint):
    """What a checkpoint was written from."""
    return {name: (checkpoint / name).read_bytes() for name in HASHED}


@pytest.mark.parametrize("function", ["fsync", "rename", "replace"])
def test_death_at_any_moment_of_a_save_leaves_latest_complete(whole, tmp_path, monkeypatch, function):
    """The process ends at the n-th system call of a save, for every n; `latest`, `best` and the newest
    checkpoint are whole.
    """
    n, died, files = 0, True, files_of(whole / "base" / "latest")
    while died:
        folder = tmp_path / str(n)
        shutil.copytree(whole / "base", folder, symlinks=True)
        o = train_pretrain.Options(out=str(folder), resume=True)
        run, calls, died = Run(o, Processes(CPU)), iter(range(1000)), False
        real = getattr(os, function)

        def fatal(*arguments, real=real, calls=calls, n=n, **kwargs):
            if next(calls) == n:
                raise Death
            return real(*arguments, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, function, fatal)
            try:
                run.save(70, files)
                run.rate(70, 0.0)
            except Death:
                died = True
        newest = newest_folder(folder)
        assert newest is not None and damage(folder / "latest") is None and damage(folder / "best") is None
        assert died or (
            newest.name == "step_0000070" == os.readlink(folder / "latest") == os.readlink(folder / "best")
        )
        n += 1
    assert n > {"fsync": 8, "rename": 1, "replace": 3}[function]


def test_a_run_without_an_intact_checkpoint_is_not_started_over(whole, tmp_path):
    shutil.copytree(whole / "base", tmp_path / "run", symlinks=True)
    for step in (tmp_path / "run").glob("step_*"):
        truncate(step)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for flag in ("--resume", "--resume-or-start"):
        out = call(*PRETRAIN, flag, "--out", tmp_path / "run")
        assert out.returncode == 2 and "no checkpoint in" in out.stderr
        assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "room, words",
    [
        ("the samples", "cannot write checkpoint"),
        ("the metrics", "cannot write checkpoint"),
        ("no line", "metrics.jsonl"),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(whole, tmp_path, room, words):
    """A file size limit makes the real write fail, of the weights or of a log, as a full disk does."""
    run = tmp_path / "run"
    shutil.copytree(whole / "base", run, symlinks=True)
    last, before = sorted(run.glob("step_*"), reverse=True)[:2]
    sizes = {
        "the samples": (run / "samples.txt").stat().st_size + 1000,
        "the metrics": (run / "metrics.jsonl").stat().st_size + 1000,
        "no line": json.loads((before / "score.json").read_text())["lengths"]["metrics.jsonl"] + 20,
    }
    assert sizes[room] < (last / "weights.pt").stat().st_size
    shutil.rmtree(last)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (sizes[room], hard)
    )  # Python ignores the signal that comes with it
    try:
        out = call("train_pretrain", "--resume", "--out", run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert out.returncode == 2, out.stderr
    (line,) = [line for line in re.split(r"[\r\n]+", out.stderr) if line.startswith("error: ")]
    assert line.startswith("error: cannot write") and words in line and "File too large" in line
    assert str(run) in line and (room == "no line" or str(before) in line)
    assert newest_folder(run) == before and not list(run.glob("*.tmp"))
    call("train_pretrain", "--resume", "--out", run, check=True)
    same(record(whole / "base"), record(run))


# ------------------------------------------------------------------------------------------------------------
# Guards


def test_steps_that_are_not_finite_are_skipped_and_then_end_the_run(tmp_path):
    guard = Guard(3)
    steps = ((1.0, 2.0), (float("nan"), 1.0), (1.0, float("inf")), (0.0, 0.0))
    assert [guard.passes(1, *numbers) for numbers in steps] == [True, False, False, True]
    assert guard.state() == {"skipped": 2, "in_a_row": 0}
    guard.passes(2, float("nan"))
    guard = Guard(3, **guard.state())  # resumed
    guard.passes(3, float("nan"))
    with pytest.raises(UserError, match=r"3 times in a row, last at step 4.*last checkpoint is good"):
        guard.passes(4, float("nan"))
    # A run that diverges: the bad steps leave the weights alone, and the end says that the checkpoint is
    # good.
    finite = Training.update

    def diverging(self, loss, factor):
        return finite(self, float("nan") if self.step >= 6 else loss, factor)

    with mock.patch.object(Training, "update", diverging):
        out = call(*PRETRAIN, "--out", tmp_path / "run", "--max-bad-steps", "5")
    assert out.returncode == 2 and "not finite 5 times in a row" in out.stderr
    assert "last checkpoint is good" in out.stderr
    kept = load_checkpoint(tmp_path / "run" / "latest", CPU)
    assert kept.state["guard"] == {"skipped": 4, "in_a_row": 4} and kept.state["step"] == 10


def test_memory_that_runs_out_is_one_line(capsys):
    def main():
        torch.empty(1 << 60)

    with pytest.raises(SystemExit) as stop:
        run_torch_script(main)
    assert stop.value.code == 2 and "--micro-batch-size" in capsys.readouterr().err

    def bug():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        run_torch_script(bug)


# ------------------------------------------------------------------------------------------------------------
# Determinism


def test_no_dependence_on_hash_seed_locale_or_time_zone(whole, tmp_path):
    """crash.py without a kill is a process of its own, with this file's rewards."""
    alone, rl = ["tests/crash.py", 0, 0], starting(whole, "rl")
    here = dict(PYTHONHASHSEED="7", LC_ALL="C", TZ="Pacific/Chatham", PYTHONUTF8="1")
    python(*alone, *PRETRAIN, "--out", tmp_path / "base", **here)
    same(record(whole / "base"), record(tmp_path / "base"))
    there = dict(PYTHONHASHSEED="8", LC_ALL="C", TZ="Asia/Kolkata")
    python(*alone, *GRPO, *rl, "--out", tmp_path / "rl", **there)
    same(record(whole / "rl"), record(tmp_path / "rl"))


def test_nothing_reaches_for_the_network(whole, tmp_path):
    code = ("import runpy, socket, sys\n"
            "def refuse(*a, **k): raise SystemExit('the network was reached for')\n"
            "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
            "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')")  # fmt: skip
    python("-c", code, "train_pretrain.py", *PRETRAIN[1:], "--out", tmp_path / "base")
    same(record(whole / "base"), record(tmp_path / "base"))


def test_worker_processes_end_with_their_trainer(tmp_path):
    command = [
        sys.executable,
        "train_pretrain.py",
        *PRETRAIN[1:-2],
        "--workers",
        "1",
        "--out",
        tmp_path / "run",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "run" / "metrics.jsonl").exists() or len(metrics(tmp_path / "run")) < 2:
        assert process.poll() is None
        time.sleep(0.02)  # until it has trained on what the worker made
    kill_with_children(process)


def test_a_worker_whose_batches_nobody_takes_ends_too():
    """Its trainer dies while it evaluates: the pipe between them is full, and the worker waits to write."""
    code = (
        "import itertools, time; from lab.worker import worked_out; "
        "stream = worked_out(itertools.repeat(bytes(1 << 20)), 1); next(stream); print('begun', flush=True); "
        "time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    kill_with_children(process)


def kill_with_children(process):
    """kill -9 a process; its children are gone some seconds later."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.kill()
    process.wait()

    def alive(pid):  # not gone, and no zombie that nobody reaps
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    deadline = time.time() + 20
    while time.time() < deadline and any(map(alive, children)):
        time.sleep(0.1)
    assert not any(map(alive, children))
