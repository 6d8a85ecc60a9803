"""Two processes over gloo, as torchrun starts them, compute what one does."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import call
from crash import pay_the_untrained

from checkpoint import load_checkpoint

ROOT = Path(__file__).parent.parent
WORLD = "distractors 1-2; literals 1-9; bound 99"
PRETRAIN = (
    "--eval-every 8 --log-every 1 --eval-problems 2 --max-new-tokens 40 --rows 2 --hidden-size 32 --layers 2 --heads 2 "
    "--kv-heads 1 --intermediate-size 64 --row-tokens 512 --threads 1 --workers 0 --optimizer adamw --keep 9"
)
PRETRAIN = ["train_pretrain", "--mixture", f"op 2-3; {WORLD}; tokens 24k", *PRETRAIN.split()]
GRPO = (
    "--steps 4 --prompts 6 --group 3 --minibatch 4 --max-new-tokens 40 --reward mixed --kl 0.05 --lr 1e-4 --eval-every 2 "
    "--eval-problems 2 --threads 1"
)
GRPO = ["train_grpo", "--mixture", f"op 2; {WORLD}", *GRPO.split()]


def run_two(name, *arguments):
    """The script in two processes → their outputs, in order of rank."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, f"{name}.py", *map(str, arguments)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = [
        subprocess.Popen(command, cwd=ROOT, env={**environment, "RANK": str(rank)}, **pipes)
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in started]
    return [
        subprocess.CompletedProcess(command, process.returncode, *output)
        for process, output in zip(started, outputs)
    ]


def ok_two(*command):
    for out in run_two(*command):
        assert out.returncode == 0, out.stderr[-2000:]


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
    weights = [load_checkpoint(path / "latest", torch.device("cpu")).model.state_dict() for path in (a, b)]
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], atol=tolerance, rtol=0)


def test_pretraining_and_grpo(tmp_path):
    call(*PRETRAIN, "--out", tmp_path / "one", check=True)
    ok_two(*PRETRAIN, "--out", tmp_path / "two")
    close(tmp_path / "one", tmp_path / "two")
    # stop at a checkpoint of one process, go on with two
    shutil.copytree(tmp_path / "one", tmp_path / "mixed", symlinks=True)
    for step in sorted((tmp_path / "mixed").glob("step_*"))[2:]:
        shutil.rmtree(step)
    ok_two("train_pretrain", "--out", tmp_path / "mixed", "--resume")
    close(tmp_path / "one", tmp_path / "mixed")

    start = ["--init-from", tmp_path / "one" / "latest"]
    with pay_the_untrained():
        call(*GRPO, *start, "--out", tmp_path / "rl-one", check=True)
    ok_two("tests/crash", 0, 0, *GRPO, *start, "--out", tmp_path / "rl-two")  # which pays them too
    assert (
        len(set(re.findall(r'"rollout/reward": [^,]*', (tmp_path / "rl-one" / "metrics.jsonl").read_text())))
        > 1
    )
    close(tmp_path / "rl-one", tmp_path / "rl-two")
    tries = [
        [
            (line["step"], line["problem"], line["text"])
            for line in map(json.loads, (run / "rollouts.jsonl").open())
        ]
        for run in (tmp_path / "rl-one", tmp_path / "rl-two")
    ]
    assert tries[0] == tries[1] and len(tries[0]) == 4 * 6 * 3


def test_nodes_that_see_different_checkpoints_end_in_one_line(tmp_path):
    """Two processes, each with a folder of its own under the same name, as on two nodes without a shared
    disk.
    """
    call(*PRETRAIN, "--out", tmp_path / "a" / "run", check=True)
    (tmp_path / "b").mkdir()
    shutil.copytree(tmp_path / "a" / "run", tmp_path / "b" / "run", symlinks=True)
    shutil.rmtree(sorted((tmp_path / "b" / "run").glob("step_*"))[-1])
    code = (
        "import os, runpy, sys; os.chdir(sys.argv[1 + int(os.environ['RANK'])]); "
        f"sys.path.insert(0, {str(ROOT)!r}); sys.argv = sys.argv[3:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    script = tmp_path / "in_folder.py"
    script.write_text(code)
    arguments = [tmp_path / "a", tmp_path / "b", ROOT / "train_pretrain.py", "--resume", "--out", "run"]
    for out in run_two(script.with_suffix(""), *arguments):
        errors = re.findall(r"^error: .*$", out.stderr, re.MULTILINE)
        assert out.returncode == 2 and len(errors) == 1, out.stderr
        assert "do not see the same checkpoint" in errors[0] and "Traceback" not in out.stderr


def test_torchrun_starts_it(tmp_path):
    """The command of the README; and what cannot be shared out evenly is one line."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    torchrun += [f"{PRETRAIN[0]}.py", *PRETRAIN[1:]]
    out = subprocess.run(
        [*torchrun, "--out", tmp_path / "run"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert out.returncode == 0, out.stderr[-2000:]
    last = load_checkpoint(tmp_path / "run" / "latest", torch.device("cpu"))
    assert last.state["step"] == 24_000 // 1024
    out = subprocess.run(
        [*torchrun, "--out", tmp_path / "odd", "--rows", "3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert out.returncode != 0 and "error: --rows 3 must be a multiple of the 2 processes" in out.stderr
    assert not (tmp_path / "odd").exists()
