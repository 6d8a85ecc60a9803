"""Nothing is lost: checkpoints that are whole or not there, runs that can be killed at any time, one line for what goes wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cli
import common
import pytest
import torch

from tokenizer import train_bpe

ROOT = Path(__file__).parent.parent
WORLD = "distractors 1-2; literals 1-9; bound 99"
MODEL = "--hidden-size 32 --layers 2 --heads 2 --kv-heads 1 --intermediate-size 64 --row-tokens 512 --threads 1 --workers 0"
PRETRAIN = [
    "train_pretrain",
    "--mixture",
    f"op 2-3; {WORLD}; tokens 33k",
    "--eval-every",
    "4",
    "--log-every",
    "3",
    "--eval-documents",
    "2",
    *MODEL.split(),
]
GRPO = ["train_grpo", "--mixture", f"op 2; {WORLD}", "--steps", "14", "--prompts", "4", "--group", "3", "--minibatch", "2", "--max-new-tokens", "40",
        "--reward", "mixed", "--kl", "0.05", "--lr", "1e-3", "--save-every", "3", "--threads", "1"]  # fmt: skip
CPU = torch.device("cpu")


def python(*arguments, check=True, **environment):
    out = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert not check or out.returncode == 0, out.stderr[-2000:]
    return out


def script(command, *arguments, **kwargs):
    return python(f"{command[0]}.py", *command[1:], *arguments, **kwargs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that nothing interrupts."""
    path = tmp_path_factory.mktemp("whole")
    script(PRETRAIN, "--out", path / "base")
    script(GRPO, "--init-from", path / "base" / "latest", "--out", path / "rl")
    return path


def record(run):
    """Everything a run leaves that must not depend on how often it was interrupted."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    checkpoint = common.load_checkpoint(run / "latest", CPU)
    optimizers = torch.load(run / "latest" / "optimizer.pt", weights_only=True)
    return {
        "metrics": [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines],
        "samples": (run / "samples.txt").read_text(),
        "weights": {k: v.numpy().tobytes() for k, v in checkpoint.model.state_dict().items()},
        "optimizer": [
            (g["lr"], [v.numpy().tobytes() for s in o["state"].values() for v in s.values()])
            for o in optimizers
            for g in o["param_groups"]
        ],
        "step": checkpoint.state["step"],
        "best": os.readlink(run / "best"),
        "checkpoints": sorted(p.name for p in run.glob("step_*")),
    }


def same(a, b):
    for key in a:
        assert a[key] == b[key], key


@pytest.mark.parametrize("name, command", [("base", PRETRAIN), ("rl", GRPO)])
def test_twenty_kills_change_no_bit(whole, tmp_path, name, command):
    """kill -9 at 20 random moments, resuming each time: weights, optimizer, metrics and samples of an uninterrupted run."""
    start = ["--init-from", whole / "base" / "latest"] if name == "rl" else []
    out = python(
        "tests/crash.py", 20, 3.0 if name == "base" else 4.0, *command, *start, "--out", tmp_path / "run"
    )
    assert out.stdout.count("killed") == 20 and out.stdout.count("resuming") >= 5, out.stdout
    same(record(whole / name), record(tmp_path / "run"))
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(whole, tmp_path):
    for number in (signal.SIGTERM, signal.SIGINT):
        run = tmp_path / number.name
        process = subprocess.Popen([sys.executable, "train_pretrain.py", *PRETRAIN[1:], "--out", run], cwd=ROOT, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)  # fmt: skip
        while not (run / "latest").exists():
            time.sleep(0.01)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        assert f"python train_pretrain.py --resume --out {run}" in stdout
        stopped = common.load_checkpoint(run / "latest", CPU).state["step"]
        assert stopped < 33_000 // 512
        python("train_pretrain.py", "--resume", "--out", run)  # the options are the run's own
        same(
            {**record(whole / "base"), "checkpoints": None, "best": None},
            {**record(run), "checkpoints": None, "best": None},
        )


def test_a_finished_run_is_left_alone(whole, tmp_path):
    before = record(whole / "base")
    out = python("train_pretrain.py", "--resume", "--out", whole / "base")
    assert "resuming" in out.stdout
    same(before, record(whole / "base"))


def test_a_run_folder_is_not_overwritten_and_a_resumed_run_keeps_its_options(whole):
    before = record(whole / "base")
    for arguments, words in (
        ([], "--resume"),
        (["--resume", "--lr", "0.5"], "--lr"),
        (["--resume", "--seed", "9"], "--seed"),
    ):
        out = script(PRETRAIN, "--out", whole / "base", *arguments, check=False)
        assert out.returncode == 2 and words in out.stderr and len(out.stderr.strip().splitlines()) == 1
    same(before, record(whole / "base"))


def test_evaluation_resumes_where_it_was(whole, tmp_path):
    command = ["evaluate", f"base={whole / 'base' / 'latest'},rl={whole / 'rl' / 'latest'}", "--bands", "id=2,edge=3-4", "--mixture", f"op 2; {WORLD}",
               "--problems", "3", "--samples", "2", "--k", "1,2", "--max-new-tokens", "30", "--threads", "1"]  # fmt: skip
    script(command, "--out", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    lines = (tmp_path / "a" / "judged.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b" / "judged.jsonl").write_text(
        "".join(lines[:3]) + lines[3][:50]
    )  # stopped in the middle of a line
    (tmp_path / "b" / "results.json").unlink()
    script(command, "--out", tmp_path / "b", "--resume")
    assert (tmp_path / "b" / "judged.jsonl").read_text().splitlines()[1:] == [
        line.strip() for line in lines[1:]
    ]
    a, b = (json.loads((tmp_path / name / "results.json").read_text())["results"] for name in "ab")
    assert a == b
    assert "--resume" in script(command, "--out", tmp_path / "b", check=False).stderr
    assert "--seed" in script(command, "--out", tmp_path / "b", "--resume", "--seed", 5, check=False).stderr


# ----------------------------------------------------------------------------------------------------------------------
# Damage


def truncate(path):
    content = (path / "weights.pt").read_bytes()
    (path / "weights.pt").write_bytes(content[: len(content) // 2])


def flip(name):
    def damage(path):
        content = bytearray((path / name).read_bytes())
        content[len(content) // 2] ^= 16
        (path / name).write_bytes(content)

    return damage


def rewrite(name, change):
    """Change a file and its hash: what a newer or another program might have written."""

    def damage(path):
        change(path / name)
        manifest = json.loads((path / "manifest.json").read_text())
        manifest[name] = common.blake2b((path / name).read_bytes(), digest_size=16).hexdigest()
        (path / "manifest.json").write_text(json.dumps(manifest))

    return damage


DAMAGES = {
    "no weights": lambda p: (p / "weights.pt").unlink(),
    "truncated weights": truncate,
    "no tokenizer": lambda p: (p / "tokenizer.json").unlink(),
    "broken config": lambda p: (p / "config.json").write_text("{"),
    "no state": lambda p: (p / "state.json").unlink(),
    "no manifest": lambda p: (p / "manifest.json").unlink(),
    "broken manifest": lambda p: (p / "manifest.json").write_text("[]"),
    **{f"a bit of {name}": flip(name) for name in ("weights.pt", "optimizer.pt", "tokenizer.json", "config.json", "state.json", "manifest.json")},
    "another tokenizer": rewrite("tokenizer.json", lambda f: train_bpe(["another text"], 270).save(f)),
    "another architecture": rewrite("config.json", lambda f: f.write_text(f.read_text().replace('_layers": 2', '_layers": 3'))),
    "an unknown option": rewrite("config.json", lambda f: f.write_text(f.read_text().replace("vocab_size", "size_of_vocab"))),
    "weights that are none": rewrite("weights.pt", lambda f: f.write_bytes(b"weights")),
    "weights with code in them": rewrite("weights.pt", lambda f: torch.save({"a": Path("x")}, f)),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_checkpoints_are_one_line_that_names_an_intact_one(whole, tmp_path, name):
    shutil.copytree(whole / "base", tmp_path / "run", symlinks=True)
    last, before = sorted((tmp_path / "run").glob("step_*"), reverse=True)[:2]
    DAMAGES[name](last)
    with pytest.raises(cli.UserError) as error:
        common.load_checkpoint(tmp_path / "run" / "latest", CPU)
    assert "\n" not in str(error.value) and str(last) in str(error.value) and str(before) in str(error.value)


def test_a_damaged_checkpoint_is_passed_over_when_resuming(whole, tmp_path):
    shutil.copytree(whole / "base", tmp_path / "run", symlinks=True)
    truncate(tmp_path / "run" / "latest")
    out = python("train_pretrain.py", "--resume", "--out", tmp_path / "run")
    assert "passing over damaged checkpoint" in out.stderr
    same(record(whole / "base"), record(tmp_path / "run"))


@pytest.mark.parametrize("call", ["fsync", "rename", "replace"])
def test_death_at_any_moment_of_a_save_leaves_latest_complete(whole, tmp_path, monkeypatch, call):
    """The process ends at the n-th system call of a save, for every n; `latest` and the newest checkpoint are always whole."""
    import train_pretrain

    class Death(BaseException):
        pass

    n, died = 0, True
    while died:
        folder = tmp_path / str(n)
        shutil.copytree(whole / "base", folder, symlinks=True)
        checkpoint = common.load_checkpoint(folder / "latest", CPU)
        o = train_pretrain.Options(out=str(folder), resume=True)
        run, calls, died = common.Run(o, common.World(CPU)), iter(range(1000)), False
        real = getattr(os, call)

        def fatal(*arguments, real=real, calls=calls, n=n, **kwargs):
            if next(calls) == n:
                raise Death
            return real(*arguments, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fatal)
            try:
                run.save(70, checkpoint.model, checkpoint.tokenizer, {}, [], score=0.0)
            except Death:
                died = True
        newest = common.newest_checkpoint(folder)
        assert (
            newest is not None
            and common.damage(folder / "latest") is None
            and common.damage(folder / "best") is None
        )
        assert died or (newest.name == "step_0000070" == os.readlink(folder / "latest"))
        n += 1
    assert n > {"fsync": 8, "rename": 1, "replace": 1}[call]


def test_a_run_without_an_intact_checkpoint_is_not_started_over(whole, tmp_path):
    shutil.copytree(whole / "base", tmp_path / "run", symlinks=True)
    for step in (tmp_path / "run").glob("step_*"):
        truncate(step)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    out = script(PRETRAIN, "--resume", "--out", tmp_path / "run", check=False)
    assert (
        out.returncode == 2
        and "no checkpoint in" in out.stderr
        and (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    )


@pytest.mark.parametrize(
    "fits, words", [("samples.txt", "cannot write checkpoint"), ("metrics.jsonl", "cannot write")]
)
def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(whole, tmp_path, fits, words):
    """A file size limit makes the real write fail, of the weights or of the samples, as a full disk does."""
    limit = (whole / "base" / fits).stat().st_size + 1000
    assert limit < (whole / "base" / "latest" / "weights.pt").stat().st_size
    code = (f"import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); sys.argv = sys.argv[1:]; "
            f"runpy.run_path(sys.argv[0], run_name='__main__')")  # fmt: skip
    shutil.copytree(whole / "base", tmp_path / "run", symlinks=True)
    last, before = sorted((tmp_path / "run").glob("step_*"), reverse=True)[:2]
    shutil.rmtree(last)
    out = python("-c", code, "train_pretrain.py", "--resume", "--out", tmp_path / "run", check=False)
    assert out.returncode == 2, out.stderr
    (line,) = [line for line in re.split(r"[\r\n]+", out.stderr) if line.startswith("error: ")]
    assert "Traceback" not in out.stderr and line.startswith(f"error: {words}") and "File too large" in line
    assert fits == "metrics.jsonl" or str(before) in line
    assert common.newest_checkpoint(tmp_path / "run") == before and not list((tmp_path / "run").glob("*.tmp"))


# ----------------------------------------------------------------------------------------------------------------------
# Guards


def test_steps_that_are_not_finite_are_skipped_and_then_end_the_run(whole, tmp_path):
    class Somewhere:
        def newest(self):
            return "out/x/step_0000007"

    guard = common.Guard(3)
    steps = ((1.0, 2.0), (float("nan"), 1.0), (1.0, float("inf")), (0.0, 0.0))
    assert [guard.passes(1, Somewhere(), *numbers) for numbers in steps] == [True, False, False, True]
    assert guard.state() == {"skipped": 2, "skipped_in_a_row": 0}
    guard.passes(2, Somewhere(), float("nan"))
    guard.passes(3, Somewhere(), float("nan"))
    with pytest.raises(cli.UserError, match=r"3 times in a row, last at step 4.*step_0000007"):
        guard.passes(4, Somewhere(), float("nan"))
    # A run that diverges: the bad steps leave the weights alone, and the end names the checkpoint.
    out = script(
        PRETRAIN,
        "--lr",
        "1e30",
        "--min-lr",
        "1e30",
        "--optimizer",
        "adamw",
        "--out",
        tmp_path / "run",
        "--max-bad-steps",
        "5",
        check=False,
    )
    assert (
        out.returncode == 2
        and "not finite 5 times in a row" in out.stderr
        and "last good checkpoint" in out.stderr
    )


def test_memory_that_runs_out_is_one_line(capsys):
    def main():
        torch.empty(1 << 60)

    with pytest.raises(SystemExit) as stop:
        common.run(main)
    assert stop.value.code == 2 and "--micro-batch-size" in capsys.readouterr().err

    def bug():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        common.run(bug)


# ----------------------------------------------------------------------------------------------------------------------
# Determinism


def test_no_dependence_on_hash_seed_locale_or_time_zone(whole, tmp_path):
    script(
        PRETRAIN,
        "--out",
        tmp_path / "base",
        PYTHONHASHSEED="7",
        LC_ALL="C",
        TZ="Pacific/Chatham",
        PYTHONUTF8="1",
    )
    same(record(whole / "base"), record(tmp_path / "base"))
    script(
        GRPO,
        "--init-from",
        whole / "base" / "latest",
        "--out",
        tmp_path / "rl",
        PYTHONHASHSEED="8",
        LC_ALL="C",
        TZ="Asia/Kolkata",
    )
    same(record(whole / "rl"), record(tmp_path / "rl"))


def test_nothing_reaches_for_the_network(whole, tmp_path):
    code = ("import runpy, socket, sys\n"
            "def refuse(*a, **k): raise SystemExit('the network was reached for')\n"
            "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
            "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')")  # fmt: skip
    python("-c", code, "train_pretrain.py", *PRETRAIN[1:], "--out", tmp_path / "base")
    same(record(whole / "base"), record(tmp_path / "base"))


def test_worker_processes_end_with_their_trainer(tmp_path):
    process = subprocess.Popen([sys.executable, "train_pretrain.py", *PRETRAIN[1:-2], "--workers", "2", "--out", tmp_path / "run"], cwd=ROOT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    while not (tmp_path / "run" / "latest").exists():
        time.sleep(0.02)
    time.sleep(0.5)
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
