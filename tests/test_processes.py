"""Two processes over gloo, as torchrun starts them, compute what one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import common
import pytest
import torch

ROOT = Path(__file__).parent.parent
WORLD = "distractors 1-2; literals 1-9; bound 99"
PRETRAIN = ["train_pretrain.py", "--mixture", f"op 2-3; {WORLD}; tokens 24k", "--eval-every", "8", "--log-every", "1", "--eval-documents", "2", "--rows", "2",
            "--hidden-size", "32", "--layers", "2", "--heads", "2", "--kv-heads", "1", "--intermediate-size", "64", "--row-tokens", "512", "--threads", "1",
            "--workers", "0", "--optimizer", "adamw", "--keep", "9"]  # fmt: skip
GRPO = ["train_grpo.py", "--mixture", f"op 2; {WORLD}", "--steps", "4", "--prompts", "6", "--group", "3", "--minibatch", "4", "--max-new-tokens", "40",
        "--reward", "mixed", "--kl", "0.05", "--lr", "1e-4", "--save-every", "2", "--threads", "1"]  # fmt: skip


def run(processes, command, *arguments):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    started = [subprocess.Popen([sys.executable, *map(str, command), *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env={**os.environ, **environment, "RANK": str(rank)}) for rank in range(processes)]  # fmt: skip
    for process in started:
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr[-2000:]


def close(a, b, tolerance=1e-5):
    """The same metrics, line by line, and the same weights."""
    lines = [
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (a, b)
    ]
    assert len(lines[0]) == len(lines[1]) > 3
    for one, two in zip(*lines):
        assert one.keys() == two.keys()
        for key, value in one.items():
            if not key.startswith("time/"):
                assert two[key] == pytest.approx(value, rel=1e-4, abs=tolerance), (key, one["step"])
    weights = [
        common.load_checkpoint(path / "latest", torch.device("cpu")).model.state_dict() for path in (a, b)
    ]
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], atol=tolerance, rtol=0)


def test_pretraining_and_grpo(tmp_path):
    run(1, PRETRAIN, "--out", tmp_path / "one")
    run(2, PRETRAIN, "--out", tmp_path / "two")
    close(tmp_path / "one", tmp_path / "two")
    # stop at a checkpoint of one process, go on with two
    run(1, PRETRAIN, "--out", tmp_path / "mixed")
    for step in sorted((tmp_path / "mixed").glob("step_*"))[2:]:
        for file in step.iterdir():
            file.unlink()
        step.rmdir()
    run(2, PRETRAIN, "--out", tmp_path / "mixed", "--resume")
    close(tmp_path / "one", tmp_path / "mixed")

    start = ["--init-from", tmp_path / "one" / "latest"]
    run(1, GRPO, *start, "--out", tmp_path / "rl-one")
    run(2, GRPO, *start, "--out", tmp_path / "rl-two")
    close(tmp_path / "rl-one", tmp_path / "rl-two")


def test_torchrun_starts_it(tmp_path):
    """The command of the README; and what cannot be shared out evenly is one line."""
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        *PRETRAIN[:3],
        *PRETRAIN[3:],
    ]
    out = subprocess.run(
        [*torchrun, "--out", tmp_path / "run"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert out.returncode == 0, out.stderr[-2000:]
    assert (
        common.load_checkpoint(tmp_path / "run" / "latest", torch.device("cpu")).state["step"]
        == 24_000 // 1024
    )
    out = subprocess.run(
        [*torchrun, "--out", tmp_path / "odd", "--rows", "3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert out.returncode != 0 and "error: --rows 3 must be a multiple of the 2 processes" in out.stderr
