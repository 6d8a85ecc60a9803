"""Every command of README.md and docs/ runs, and prints what is written there where that cannot differ between machines.

    python -m pytest tests/test_docs.py -m slow     the long ones too
    python tests/test_docs.py docs/walkthrough.md   run a file's console blocks and write their output into it
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(console|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXACT = re.compile(r"python (datagen|verify)\.py|python -c \"import datagen; ")  # plain Python: the same output everywhere
LONG = re.compile(r"runs/|torchrun|pip |uv |git clone|python (train_|evaluate|sampler|export_hf)|bench/|out/demo|-m slow|pytest")


def commands(path):
    """[(command, expected output or None)] of a file: of `$ ` lines in console blocks and of every line in bash blocks."""
    out = []
    for kind, body in BLOCK.findall(path.read_text(encoding="utf-8")):
        if kind == "bash":
            out += [(line.partition("  #")[0].strip(), None) for line in body.splitlines() if line.strip() and not line.startswith("#")]
        else:
            for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                command, output = split(part)
                out.append((command, output))
    return out


def split(part):
    """A command, which ends with its line or, where a quote is open, with the line that closes it; and its output."""
    lines = part.splitlines(keepends=True)
    n = 1
    while "".join(lines[:n]).replace('\\"', "").count('"') % 2:
        n += 1
    return "".join(lines[:n]).strip(), "".join(lines[n:])


def run(command, folder):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_COLOR": "1"}
    return subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, env=environment)


def workshop(folder):
    """A copy of the repository's code to run in."""
    for file in (*ROOT.glob("*.py"), *ROOT.glob("*.t*ml"), *ROOT.glob("*.txt")):
        shutil.copy(file, folder)
    for name in ("runs", "bench", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_short_commands(path, tmp_path):
    found = commands(path)
    assert found
    for command, expected in found:
        if LONG.search(command) or "out/" in command:
            continue
        out = run(command, workshop(tmp_path) if not (tmp_path / "cli.py").exists() else tmp_path)
        assert out.returncode == 0, f"{command}\n{out.stderr}"
        if expected is not None and EXACT.match(command):
            assert out.stdout == expected, command


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_flags_of_long_commands_exist(path):
    """Without running them: every script and flag that a long command names is there."""
    for command, _ in commands(path):
        for script, rest in re.findall(r"(?:python|nproc_per_node=\d) ((?:bench/)?\w+\.py)([^|&>]*)", command):
            text = run(f"python {script} --help", ROOT).stdout
            for flag in re.findall(r" (--[a-z][a-z-]*)", rest):
                assert flag in text, f"{command}: {script} has no {flag}"
        for file in re.findall(r"bash (runs/\S+)", command):
            assert (ROOT / file).exists(), command


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_every_command(path, tmp_path):
    workshop(tmp_path)
    for command, _ in commands(path):
        if not re.search(r"runs/test|-m slow|pip |uv |git clone|nanogpt|paper|small", command):
            out = run(command, tmp_path)
            assert out.returncode == 0, f"{command}\n{out.stderr[-2000:]}"


def update(path):
    def fill(match):
        kind, body = match.groups()
        if kind != "console":
            return match[0]
        parts = [split(part)[0] for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]]
        out = [(command, run(command, ROOT)) for command in parts]
        for command, result in out:
            assert result.returncode == 0, f"{command}\n{result.stderr}"
        return f"```{kind}\n" + "".join(f"$ {command}\n{result.stdout}" for command, result in out) + "```"

    path.write_text(BLOCK.sub(fill, path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    update(Path(sys.argv[1]))
