"""Every command of README.md and docs/ runs, and prints what is written there where machines cannot differ.

python -m pytest tests/test_docs.py -m slow     the long ones too
python tests/test_docs.py docs/walkthrough.md   run a file's console blocks and write their output into it
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
from conftest import call

ROOT = Path(__file__).parent.parent
CHANGES = ROOT / "docs" / "change.md"  # each section's commands run after its edit
FILES = [ROOT / "README.md", *sorted({*(ROOT / "docs").glob("*.md")} - {CHANGES})]
BLOCK = re.compile(r"^```(console|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
DIFF = re.compile(r"^```diff\n(.*?)^```", re.MULTILINE | re.DOTALL)
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", CHANGES.read_text(), re.MULTILINE | re.DOTALL))
# Plain Python: the same output everywhere.
EXACT = re.compile(r"python (datagen|verify|texts|bench/audit)\.py|python -c \"import datagen; ")
LONG = re.compile(
    r"runs/|torchrun|pip |uv |git clone|python (train_|evaluate|talk|export_hf|experiments\.py [prs])|bench/(?!audit)|out/|pytest"
)


def commands(path):
    """[(command, expected output or None)] of a file.

    Commands are the `$ ` lines of console blocks, and every line of bash blocks and of a script.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".sh":
        lines = text.replace("\\\n", " ").replace('"$PYTHON"', "python").splitlines()
        return [(line, None) for line in lines if re.match(r"(part \w+ \d+ )?python ", line)]
    return commands_of(text)


def commands_of(text):
    out = []
    for kind, body in BLOCK.findall(text):
        if kind == "bash":
            lines = (line.partition("  #")[0].strip() for line in body.splitlines())
            out += [(line, None) for line in lines if line and not line.startswith("#")]
        else:
            out += [split(part) for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]]
    return out


def split(part):
    """A command, which ends with its line or, where a quote is open, where that closes; and its output."""
    lines = part.splitlines(keepends=True)
    n = 1
    while "".join(lines[:n]).replace('\\"', "").count('"') % 2:
        n += 1
    return "".join(lines[:n]).strip(), "".join(lines[n:])


def run(command, folder):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "NO_COLOR": "1"}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, env=environment
    )


@cache
def help_of(script):
    return call(script.removesuffix(".py").replace("/", "."), "--help", check=True).stdout


@pytest.fixture
def workshop(tmp_path):
    """A folder with a copy of the repository's code to run in."""
    return copy_to(tmp_path)


def copy_to(folder):
    for file in (*ROOT.glob("*.py"), *ROOT.glob("*.t*ml"), *ROOT.glob("*.txt")):
        shutil.copy(file, folder)
    for name in ("lab", "studies", "runs", "bench", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def change(section, folder):
    """Make the edit of a section of docs/change.md in a copy of the repository."""
    (folder / "change.diff").write_text("".join(DIFF.findall(section)))
    out = run("git apply change.diff", folder)
    assert out.returncode == 0, out.stderr


def test_the_changes_are_those_that_are_asked_for():
    things = (
        "A reward, A context, An operator, A model size, The attention, A training stage, A data set, A study"
    )
    assert ", ".join(SECTIONS) == things


@pytest.mark.parametrize("title", SECTIONS)
def test_a_change_does_what_is_written(title, workshop):
    """Those that train twice or more: below."""
    change(SECTIONS[title], workshop)
    for command, expected in commands_of(SECTIONS[title]):
        if not re.match(r"bash|python experiments\.py r", command):
            out = run(command, workshop)
            assert out.returncode == 0, f"{command}\n{out.stderr}"
            if re.match(r"python (datagen|verify|bench/)", command):
                assert out.stdout == expected, command


@pytest.mark.slow
@pytest.mark.parametrize("title", ["A training stage", "A study"])
def test_a_change_that_trains_more_than_once(title, workshop):
    change(SECTIONS[title], workshop)
    for command, _ in commands_of(SECTIONS[title]):
        out = run(command, workshop)
        assert out.returncode == 0, f"{command}\n{out.stderr}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_short_commands(path, workshop):
    found = [(command, expected) for command, expected in commands(path) if not LONG.search(command)]
    assert found
    for command, expected in found:
        out = run(command, workshop)
        assert out.returncode == 0, f"{command}\n{out.stderr}"
        if expected is not None and EXACT.match(command):
            assert out.stdout == expected, command


@pytest.mark.parametrize(
    "path",
    [*FILES, *(ROOT / "runs" / f"{name}.sh" for name in ("demo", "gpu", "gpu_check"))],
    ids=lambda p: p.name,
)
def test_flags_of_long_commands_exist(path):
    """Without running them: every script and flag that a long command names is there."""
    found = commands(path)
    assert found
    for command, _ in found:
        check_flags(command)


def check_flags(command):
    for script, rest in re.findall(r"(?:python|nproc_per_node=\d) ((?:\w+/)?\w+\.py)([^|&>]*)", command):
        if not script.startswith("tests/"):
            for flag in re.findall(r" (--[a-z][a-z-]*)", rest):
                assert re.search(rf"{flag}\b(?!-)", help_of(script)), f"{command}: {script} has no {flag}"
    for file in re.findall(r"(?:bash|sbatch .*) (runs/\S+)", command):
        assert (ROOT / file).exists(), command


def test_the_features_that_are_claimed_have_their_flags():
    """Each command in the column `ours` of the table beside others."""
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    short = re.search(r"`grpo` stands for `(.*?)`", text)[1]
    rows = re.findall(r"^\| (.*?) \| (.*?) \|", text.partition("## Features beside others")[2], re.MULTILINE)
    told = [code for _, ours in rows for code in re.findall(r"`(.*?)`", ours)]
    chosen = [re.sub(r"^grpo\b", short, code) for code in told if re.match("grpo|python|bash|sbatch", code)]
    assert len(chosen) > 20
    for command in chosen:
        check_flags(command)


def test_the_study_of_the_readme_is_the_file():
    file = (ROOT / "docs" / "my_study.py").read_text(encoding="utf-8")
    assert f"```python\n{file}```" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "runs").glob("*.sh"))], ids=lambda p: p.name)
def test_files_that_are_named_exist(path):
    text = path.read_text(encoding="utf-8")
    names = re.findall(r"(?<![\w/.-])(?:(?:lab|bench|tests|docs|runs)/)?\w+\.(?:py|sh|md)\b", text)
    assert [name for name in names if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", [*FILES, CHANGES, ROOT / "bench" / "RESULTS.md"], ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    """To a file, and to a heading of it: its words in small letters, joined by hyphens."""
    for place, _, heading in re.findall(
        r"\]\((?!https?:)([^)#]*)(#([^)]+))?\)", path.read_text(encoding="utf-8")
    ):
        target = (path.parent / place).resolve() if place else path
        assert target.exists(), place
        if heading:
            titles = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", it.lower()).replace(" ", "-") for it in titles]


def test_the_file_table_names_every_file():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = "".join(re.findall(r"^\| `.*? \|", text, flags=re.MULTILINE))
    for file in (*ROOT.glob("*.py"), *ROOT.glob("lab/[a-z]*.py")):
        assert f"`{file.relative_to(ROOT)}`" in table, file.name


@pytest.fixture
def stand_in(workshop):
    """A function that makes a shell script the Python of runs/*.sh → the commands it was given."""
    shutil.copy(ROOT / "requirements.lock", workshop)
    (workshop / ".venv" / "bin").mkdir(parents=True)
    installed = [(workshop / name).read_text() for name in ("requirements.txt", "requirements.lock")]
    (workshop / ".venv" / "installed.txt").write_text("".join(installed))
    python, calls = workshop / ".venv" / "bin" / "python", workshop / "calls"

    def make(body):
        calls.write_text("")
        python.write_text(f'#!/bin/bash\necho "$@" >> calls\n{body}\n')
        python.chmod(0o755)
        return lambda: calls.read_text().splitlines()

    return make


@pytest.mark.parametrize("name", ["demo", "gpu"])
def test_the_demo_ends_at_a_stage_that_was_stopped(workshop, stand_in, name):
    """With a stand-in for Python whose mid-training is stopped: RL does not start, the exit code is 75."""
    calls = stand_in(f'case "$*" in *{name}/mid\\ *) exit 75;; esac')
    assert run(f"bash runs/{name}.sh", workshop).returncode == 75
    assert [call.split()[0] for call in calls()] == ["train_pretrain.py", "train_pretrain.py"]
    assert all("--resume-or-start" in call for call in calls())
    calls = stand_in("")
    assert run(f"bash runs/{name}.sh", workshop).returncode == 0
    stages = ["train_pretrain.py", "train_pretrain.py", "train_grpo.py", "evaluate.py"]
    assert [call.split()[0] for call in calls()] == stages


def test_a_part_of_the_gpus_check_that_fails_does_not_stop_the_next(workshop, stand_in):
    """With a stand-in for Python: whose torch finds no GPU; one of whose parts fails."""
    check = "PYTHON=.venv/bin/python bash runs/gpu_check.sh"
    stand_in("exit 1")
    out = run(check, workshop)
    assert (out.returncode, out.stderr) == (2, "error: the torch of .venv/bin/python finds no CUDA GPU\n")
    calls = stand_in('case "$*" in *test_flash*) exit 1;; esac')
    out = run(check, workshop)
    assert out.returncode == 1 and "failed: tests (exit 1)\n" in out.stderr
    assert len(calls()) == 1 + out.stdout.count("== ") == 10
    assert "== grpo_speed: exit 0, 0 s\n" in (workshop / "out/gpu_check/summary.txt").read_text()


@pytest.mark.parametrize("code, requeued", [(75, True), (0, False), (2, False), (137, False), (143, None)])
@pytest.mark.parametrize("told", [False, True], ids=["alone", "told to stop"])
def test_a_job_of_slurm_is_queued_again_when_it_can_be_resumed(workshop, stand_in, code, requeued, told):
    """With stand-ins for Python and scontrol. Told to stop, it waits until the command has saved; one that
    could not listen yet (143) has nothing to save."""
    saves = f"trap 'echo saved >> calls; exit {code}' TERM; touch begun; while :; do sleep 0.02; done"
    calls = stand_in(saves if told else f"exit {code}")
    (workshop / "scontrol").write_text('#!/bin/sh\necho scontrol "$@" >> calls\n')
    (workshop / "scontrol").chmod(0o755)
    kill = "while [ ! -e begun ]; do sleep 0.02; done; kill $!;" if told else ""
    job = f"PATH=$PWD:$PATH SLURM_JOB_ID=7 SLURM_SUBMIT_DIR=$PWD bash runs/slurm.sh --studies s3 & {kill} wait $!"
    assert run(job, workshop).returncode == code
    expected = [
        "experiments.py run --studies s3",
        *["saved"] * told,
        *["scontrol requeue 7"] * (told if requeued is None else requeued),
    ]
    assert calls() == expected


def test_installing_leaves_nothing_behind():
    """What setuptools writes beside the code is ignored by git; the licence is one file."""
    out = run("git check-ignore build/lib reasoning_lab.egg-info/PKG-INFO", ROOT)
    assert out.stdout.splitlines() == ["build/lib", "reasoning_lab.egg-info/PKG-INFO"]
    facts = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'license = "MIT"' in facts and (ROOT / "LICENSE").read_text().startswith("MIT License")
    version = re.search(r'^version = "(.*)"', facts, re.MULTILINE)[1]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_every_command(path, workshop):
    for command, _ in commands(path):
        if not re.search(
            r"runs/test|runs/gpu|lm_eval|-m slow|pip |uv |git clone|nanogpt|--trl|paper|small", command
        ):
            out = run(command, workshop)
            assert out.returncode == 0, f"{command}\n{out.stderr[-2000:]}"


def fill(text, folder):
    """The text with what its console blocks print in this folder."""

    def printed(match):
        kind, body = match.groups()
        if kind != "console":
            return match[0]
        parts = [split(part)[0] for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]]
        out = [(command, run(command, folder)) for command in parts]
        for command, result in out:
            assert result.returncode == 0, f"{command}\n{result.stderr}"
        return f"```{kind}\n" + "".join(f"$ {command}\n{result.stdout}" for command, result in out) + "```"

    return BLOCK.sub(printed, text)


def update(path):
    text = path.read_text(encoding="utf-8")
    if path.resolve() != CHANGES:
        text = fill(text, ROOT)
    for section in SECTIONS.values() if path.resolve() == CHANGES else ():
        with tempfile.TemporaryDirectory() as name:
            change(section, copy_to(Path(name)))
            text = text.replace(section, fill(section, Path(name)))
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    update(Path(sys.argv[1]))


def test_an_installation_has_what_the_tests_are_run_with():
    """pyproject.toml and requirements.txt ask for the same versions."""
    asked = re.findall(r'^ *"([a-z-]+[<>=][^"]*)",?$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    pinned = [
        line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")
    ]
    assert {*asked} - {"setuptools>=77"} == {*pinned} and len(pinned) > 10
