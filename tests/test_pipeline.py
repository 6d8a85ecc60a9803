"""The whole pipeline through its command lines, small; and every error a user can make."""

import json
import math
import subprocess
import sys
from pathlib import Path

import common
import pytest
import torch

import data

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT.parent / "shared" / "gsm_infinite" / "sample.jsonl"
WORLD = "distractors 1-2; literals 1-9; bound 99"
SMALL = [
    "--hidden-size",
    "32",
    "--layers",
    "2",
    "--heads",
    "2",
    "--kv-heads",
    "1",
    "--intermediate-size",
    "64",
    "--row-tokens",
    "512",
    "--threads",
    "1",
]


def script(name, *arguments):
    return subprocess.run(
        [sys.executable, f"{name}.py", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def ok(name, *arguments):
    out = script(name, *arguments)
    assert out.returncode == 0, out.stderr[-2000:]
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    ok(
        "train_pretrain",
        "--out",
        path / "base",
        "--mixture",
        f"op 2-3; {WORLD}; tokens 12k",
        "--workers",
        0,
        *SMALL,
    )
    return path


def test_pretrain_writes_a_checkpoint_and_metrics(runs):
    lines = [json.loads(line) for line in (runs / "base" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 0 and lines[-1]["step"] == 12_000 // 512 and "eval/nll_op2" in lines[-1]
    assert lines[-1]["eval/nll_op2"] < lines[0]["eval/nll_op2"]
    assert any("time/tokens_per_second" in line for line in lines)
    assert (
        "verdict" in (runs / "base" / "samples.txt").read_text()
        or "process" in (runs / "base" / "samples.txt").read_text()
    )
    checkpoint = common.load_checkpoint(runs / "base" / "latest", torch.device("cpu"))
    assert checkpoint.state["step"] == lines[-1]["step"] and checkpoint.options["hidden_size"] == 32


def test_mid_training_grpo_and_evaluation(runs):
    base = runs / "base" / "latest"
    ok("train_pretrain", "--out", runs / "mid", "--init-from", base, "--replay", 0.5, "--mixture", f"op 4; {WORLD}; tokens 3k",
       "--workers", 0, "--row-tokens", 512, "--threads", 1, "--optimizer", "adamw")  # fmt: skip
    ok("train_grpo", "--init-from", runs / "mid" / "latest", "--out", runs / "rl", "--mixture", f"op 2; {WORLD}", "--steps", 2, "--prompts", 4,
       "--group", 3, "--minibatch", 2, "--max-new-tokens", 30, "--reward", "mixed", "--threads", 1)  # fmt: skip
    line = json.loads((runs / "rl" / "metrics.jsonl").read_text().splitlines()[-1])
    for key in ("rollout/reward", "rollout/pass@1", "rollout/process", "rollout/length", "rollout/zero_variance", "train/kl", "train/clip_fraction",
                "train/entropy"):  # fmt: skip
        assert key in line
    out = ok("evaluate", f"base={base},rl={runs / 'rl' / 'latest'}", "--out", runs / "eval", "--bands", "id=2,edge=3", "--mixture", f"op 2; {WORLD}",
             "--problems", 3, "--samples", 2, "--k", "1,2", "--max-new-tokens", 30, "--threads", 1)  # fmt: skip
    results = json.loads((runs / "eval" / "results.json").read_text())["results"]
    assert (
        set(results) == {"base", "rl"}
        and set(results["rl"]["band"]) == {"id", "edge"}
        and set(results["rl"]["op"]) == {"2", "3"}
    )
    assert "rl - base, edge: correct@1" in out.stdout and (runs / "eval" / "figure.png").stat().st_size > 5000


@pytest.mark.skipif(not SAMPLE.exists(), reason="../shared is not beside the checkout")
def test_public_records_train_too(runs, tmp_path):
    ok("train_pretrain", "--out", tmp_path / "sft", "--data", SAMPLE, "--mixture", "op 2; tokens 5k", "--solution-only", "--workers", 0,
       *SMALL, "--row-tokens", 1536)  # fmt: skip
    ok("train_grpo", "--init-from", tmp_path / "sft" / "latest", "--out", tmp_path / "rl", "--data", SAMPLE, "--steps", 1, "--prompts", 2, "--group", 2,
       "--max-new-tokens", 8, "--threads", 1)  # fmt: skip


def test_the_same_seed_gives_the_same_weights(tmp_path):
    """To the last bit whatever the workers; within rounding whatever the micro-batches."""
    weights = {}
    for name, workers, micro in (("plain", 0, 0), ("workers", 2, 0), ("micro", 0, 1)):
        ok("train_pretrain", "--out", tmp_path / name, "--mixture", f"op 2; {WORLD}; tokens 6k", "--workers", workers, "--rows", 2,
           "--micro-batch-size", micro, "--optimizer", "adamw", *SMALL)  # fmt: skip
        weights[name] = common.load_checkpoint(
            tmp_path / name / "latest", torch.device("cpu")
        ).model.state_dict()
    for key, value in weights["plain"].items():
        assert torch.equal(value, weights["workers"][key])
        torch.testing.assert_close(value, weights["micro"][key], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("arguments", [
    ("train_pretrain", "--preset", "huge"),
    ("train_pretrain", "--learning-rate", "1"),
    ("train_pretrain", "--lr", "fast"),
    ("train_pretrain", "--optimizer", "sgd"),
    ("train_pretrain", "--mixture", "op 1-99; tokens 1k"),
    ("train_pretrain", "--mixture", "op 2"),
    ("train_pretrain", "--mixture", "op 2; tokens 1k", "--init-from", "nowhere"),
    ("train_pretrain", "--mixture", "op 2; tokens 1k", "--replay", "0.5"),
    ("train_pretrain", "--mixture", "op 2; tokens 1k", "--data", "nowhere.jsonl"),
    ("train_pretrain", "--mixture", "op 2; tokens 1k", "--tokenizer", "nowhere.json"),
    ("train_pretrain", "--device", "tpu"),
    ("train_grpo", "--init-from", "nowhere"),
    ("train_grpo", "--reward", "vibes"),
    ("train_grpo", "--group", "0"),
    ("evaluate", "nowhere"),
    ("evaluate",),
    ("evaluate", "x", "--bands", "everything"),
    ("evaluate", "x", "--k", "1,4096"),
    ("tokenizer", "nowhere.jsonl"),
])  # fmt: skip
def test_user_errors_are_one_line_and_exit_2(arguments, tmp_path):
    out = script(*arguments, "--out", tmp_path / "x")
    assert out.returncode == 2, out.stderr
    lines = out.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), out.stderr
    assert not (tmp_path / "x").exists()  # nothing half-written


def test_external_data_errors_name_the_line(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"problem": "a", "question": "b", "solution": "Answer: 1."}\n{"problem": \n')
    out = script("train_pretrain", "--mixture", "op 2; tokens 1k", "--data", path, "--out", tmp_path / "x")
    assert out.returncode == 2 and "line 2" in out.stderr


def test_help_fits_two_screens():
    for name in ("datagen", "verify", "tokenizer", "train_pretrain", "train_grpo", "evaluate"):
        out = ok(name, "--help")
        assert 5 < len(out.stdout.splitlines()) < 110, name


def test_no_dangerous_calls():
    for path in ROOT.glob("*.py"):
        text = path.read_text()
        for word in ("eval(", "exec(", "pickle.", "shell=True", "urlopen", "requests"):
            assert word not in text.replace(".eval()", "").replace("multiprocessing", ""), (path.name, word)


def test_nll_of_a_uniform_model_is_the_logarithm_of_the_vocabulary(runs):
    import datagen

    checkpoint = common.load_checkpoint(runs / "base" / "latest", torch.device("cpu"))
    for p in checkpoint.model.parameters():
        torch.nn.init.zeros_(p)
    problems = [datagen.generate(1, i, op=2, split="eval") for i in range(3)]
    nll = common.held_out_nll(checkpoint.model, checkpoint.tokenizer, problems, torch.device("cpu"))
    assert nll["2"] == pytest.approx(math.log(checkpoint.tokenizer.vocab_size), rel=1e-4)
    assert data.encode(checkpoint.tokenizer, problems[0])[1] > 5


def test_sampler_talks_about_a_problem(runs):
    import os

    checkpoint = runs / "base" / "latest"
    out = ok("sampler", "--ckpt", checkpoint, "--op", 3, "--n", 2, "--max-new-tokens", 20)
    assert out.stdout.count("log-probability") == 2 and "✗ answer" in out.stdout and "\033[" not in out.stdout
    out = subprocess.run([sys.executable, "sampler.py", "--ckpt", str(checkpoint), "--max-new-tokens", "20"], cwd=ROOT, capture_output=True, text=True,
                         input="The otters in Fernhollow number 3. What is the number of otters in Fernhollow?\n", env=os.environ)  # fmt: skip
    assert out.returncode == 0 and "answer" in out.stdout, out.stderr


def test_report_and_comparison_of_runs(runs, tmp_path):
    from html.parser import HTMLParser

    out = ok("evaluate", f"base={runs / 'base' / 'latest'}", "--out", tmp_path / "eval", "--bands", "id=2,edge=3", "--mixture", f"op 2; {WORLD}",
             "--problems", 3, "--samples", 2, "--k", "1", "--max-new-tokens", 30, "--threads", 1, "--report", tmp_path / "r.html")  # fmt: skip
    page = (tmp_path / "r.html").read_text()
    assert (
        f"report: {tmp_path / 'r.html'}" in out.stdout
        and page.count("<tr><td>base<td>") == 6
        and "data:image/png;base64," in page
    )
    assert "http" not in page.replace("data:", "") and "<script src" not in page  # opens offline
    opened = []

    class Balanced(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag in ("pre", "div", "b", "select", "script", "style", "table", "h1", "h2"):
                opened.append(tag)

        def handle_endtag(self, tag):
            if tag in ("pre", "div", "b", "select", "script", "style", "table", "h1", "h2"):
                assert opened.pop() == tag

    Balanced().feed(page)
    assert not opened
    ok("evaluate", "--plot", tmp_path / "eval", runs / "base", "--out", tmp_path)
    assert (tmp_path / "runs.png").stat().st_size > 5000
    out = script("evaluate", "--plot", ROOT / "tests", "--out", tmp_path)
    assert out.returncode == 2 and "neither" in out.stderr


def test_dry_run_and_config_round_trip(runs, tmp_path):
    out = ok(
        "train_pretrain",
        "--preset",
        "paper",
        "--dry-run",
        "--vocab-size",
        300,
        "--out",
        tmp_path / "x",
        "--layers",
        2,
    )
    assert "FLOPs" in out.stdout and "GiB" in out.stdout and not (tmp_path / "x").exists()
    out = ok("train_grpo", "--init-from", runs / "base" / "latest", "--dry-run", "--out", tmp_path / "x")
    assert "FLOPs" in out.stdout and not (tmp_path / "x").exists()
    ok("train_pretrain", "--dry-run", "--out", runs / "base")  # a folder that holds a run is in nobody's way
    config = ok("train_grpo", "--preset", "small", "--lr", "3e-5", "--print-config").stdout
    (tmp_path / "c.json").write_text(config)
    again = ok("train_grpo", "--config", tmp_path / "c.json", "--print-config").stdout
    assert (
        json.loads(again) == json.loads(config)
        and json.loads(config)["lr"] == 3e-5
        and json.loads(config)["prompts"] == 128
    )
    (tmp_path / "c.json").write_text('{"lr": "fast"}')
    assert "lr" in script("train_grpo", "--config", tmp_path / "c.json").stderr


def test_presets_name_options_that_exist():
    import dataclasses

    import evaluate
    import train_grpo
    import train_pretrain

    for sections in common.PRESETS.values():
        for name, module in (("pretrain", train_pretrain), ("grpo", train_grpo), ("evaluate", evaluate)):
            assert sections[name].keys() <= {f.name for f in dataclasses.fields(module.Options)}


def test_sinks_get_the_metrics(tmp_path, monkeypatch):
    """TensorBoard's and wandb's calls, on stand-ins; and one line where they are not installed."""
    from types import SimpleNamespace
    from unittest.mock import MagicMock

    import cli

    import train_pretrain

    options = train_pretrain.Options(tensorboard=True, wandb=True)
    boards, wandb = MagicMock(), MagicMock()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=boards))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for sink in common.sinks(options, tmp_path / "run"):
        sink(7, {"train/loss": 0.5})
    boards.return_value.add_scalar.assert_called_once_with("train/loss", 0.5, 7)
    wandb.log.assert_called_once_with({"train/loss": 0.5}, step=7)
    assert wandb.init.call_args.kwargs["name"] == "run"
    for name, module in (("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(cli.UserError, match=f"pip install {name}"):
            common.sinks(train_pretrain.Options(**{name: True}), tmp_path)
