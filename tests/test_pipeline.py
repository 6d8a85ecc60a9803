"""The whole pipeline through its command lines, small; and every error a user can make."""

import dataclasses
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from unittest import mock

from lab.options import UserError
from lab.runs import weights_hash

import pytest
import torch
from conftest import call, error_line

import datagen
import evaluate
import rollout
import talk
import train_grpo
import train_pretrain
from checkpoint import load_checkpoint, save_checkpoint
from data import to_document

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT.parent / "shared" / "gsm_infinite" / "sample.jsonl"
WORLD = "distractors 1-2; literals 1-9; bound 99"
SMALL = (
    "--hidden-size 32 --layers 2 --heads 2 --kv-heads 1 --intermediate-size 64 --row-tokens 256 --threads 1"
)
SMALL = [*SMALL.split(), "--eval-problems", 2, "--max-new-tokens", 40]
CPU = torch.device("cpu")


def ok(name, *arguments, **kwargs):
    return call(name, *arguments, check=True, **kwargs)


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
    samples = (runs / "base" / "samples.txt").read_text()
    assert "verdict" in samples or "process" in samples
    checkpoint = load_checkpoint(runs / "base" / "latest", CPU)
    assert checkpoint.state["step"] == lines[-1]["step"] and checkpoint.options["hidden_size"] == 32
    assert (checkpoint.path / "score.json").exists()


@pytest.fixture
def drawn(monkeypatch):
    """{split: texts} of all the problems that are drawn meanwhile."""
    texts, generate = defaultdict(set), datagen.generate

    def recording(*arguments, **knobs):
        problem = generate(*arguments, **knobs)
        texts[datagen.split_of(problem)].add(f"{problem.problem} {problem.question}")
        return problem

    monkeypatch.setattr(datagen, "generate", recording)
    return texts


def taken(drawn):
    """What was drawn since the last time."""
    texts = dict(drawn)
    drawn.clear()
    return texts


def test_a_checkpoint_decides_the_sizes_and_says_so(runs, tmp_path):
    """It did so silently, whatever the options said."""
    base, few = runs / "base" / "latest", [*SMALL, "--seed", 1, "--workers", 0]
    given = ["--init-from", base, "--mixture", f"op 2; {WORLD}; tokens 1024"]
    assert "sizes" not in ok("train_pretrain", "--out", tmp_path / "same", *given, *few).stdout
    said = ok("train_pretrain", "--out", tmp_path / "other", *given, *few, "--layers", 3).stdout
    assert f"the model is as in {base}: sizes among the options do not count\n" in said
    assert "sizes" not in ok("train_pretrain", "--out", tmp_path / "other", "--resume", "--keep", 1).stdout


def test_embeddings_of_new_words_are_drawn_anew_once(runs, tmp_path):
    base, few = (
        runs / "base" / "latest",
        [*SMALL, "--seed", 1, "--workers", 0, "--keep", 9, "--eval-every", 1],
    )
    given = ["--init-from", base, "--mixture", f"op 2; {WORLD}; tokens 1024", "--new-words", "otters ok"]
    ok("train_pretrain", "--out", tmp_path / "new", *given, *few)
    model, begun = (load_checkpoint(it, CPU) for it in (base, tmp_path / "new" / "step_0000000"))
    ids = {*model.tokenizer.encode(" otters ok")}
    before, after = (it.model.model.embed_tokens.weight.detach() for it in (model, begun))
    differ = [i for i in range(len(before)) if not torch.equal(before[i], after[i])]
    assert {*differ} == ids and 0.5 < float(after[differ].std()) * 32**0.5 < 2
    whole = load_checkpoint(tmp_path / "new" / "latest", CPU).model.model.embed_tokens.weight
    for step in (tmp_path / "new").glob("step_*"):
        if step.name > "step_0000001":
            shutil.rmtree(step)
    ok("train_pretrain", "--out", tmp_path / "new", "--resume", "--workers", 0)
    assert torch.equal(
        load_checkpoint(tmp_path / "new" / "latest", CPU).model.model.embed_tokens.weight, whole
    )


def test_mid_training_grpo_and_evaluation(runs, drawn):
    """And each stage draws from the split that is its own; `dev` alone chooses what is best, `eval` is only
    reported.
    """
    base, seed = runs / "base" / "latest", ["--seed", 1]
    arguments = ["--mixture", f"op 2; {WORLD}; tokens 2k", "--workers", 0, *SMALL, *seed]
    ok("train_pretrain", "--out", runs / "other", *arguments)
    pretrained = taken(drawn)
    assert set(pretrained) == {"train", "dev"}
    ok("train_pretrain", "--out", runs / "mid", "--init-from", base, "--replay", 0.5, "--mixture", f"op 4; {WORLD}; tokens 3k",
       "--workers", 0, "--row-tokens", 256, "--threads", 1, "--optimizer", "adamw", "--eval-problems", 2, *seed)  # fmt: skip
    assert set(taken(drawn)) == {"mid", "dev"}
    ok("train_grpo", "--init-from", runs / "mid" / "latest", "--out", runs / "rl", "--mixture", f"op 2; {WORLD}", "--steps", 2,
       "--prompts", 4, "--group", 3, "--minibatch", 2, "--max-new-tokens", 30, "--reward", "mixed", "--threads", 1, "--eval-problems", 2,
       *seed)  # fmt: skip
    assert set(taken(drawn)) == {"rl", "dev"}
    lines = [json.loads(line) for line in (runs / "rl" / "metrics.jsonl").read_text().splitlines()]
    for key in ("rollout/reward", "rollout/pass@1", "rollout/process", "rollout/length", "rollout/zero_variance",
                "train/kl", "train/clip_fraction", "train/entropy"):  # fmt: skip
        assert key in lines[-2]
    assert "eval/pass@1" in lines[0] and "eval/pass@1" in lines[-1]
    out = ok("evaluate", f"base={base},rl={runs / 'rl' / 'latest'}", "--out", runs / "eval", "--bands", "id=2,edge=3",
             "--mixture", f"op 2; {WORLD}", "--problems", 3, "--samples", 2, "--k", "1,2", "--max-new-tokens", 30, "--threads", 1,
             *seed)  # fmt: skip
    evaluated = taken(drawn)
    assert set(evaluated) == {"eval"} and not evaluated["eval"] & pretrained["dev"]
    results = json.loads((runs / "eval" / "results.json").read_text())["results"]
    assert set(results) == {"base", "rl"} and set(results["rl"]["band"]) == {"id", "edge"}
    assert set(results["rl"]["op"]) == {"2", "3"}
    assert "rl - base, edge: correct@1" in out.stdout and (runs / "eval" / "figure.png").stat().st_size > 5000


def test_what_says_no_mixture_cannot_be_replayed(runs, tmp_path):
    """Such as a checkpoint that was imported."""
    base = load_checkpoint(runs / "base" / "latest", CPU)
    save_checkpoint(tmp_path / "foreign", base.model, base.tokenizer, {}, {"step": 0})
    flags = [
        "--init-from",
        tmp_path / "foreign",
        "--mixture",
        f"op 2; {WORLD}; tokens 2k",
        "--row-tokens",
        256,
    ]
    line = error_line(
        call("train_pretrain", *flags, "--replay", 0.5, "--out", tmp_path / "mid", "--workers", 0)
    )
    assert "--replay" in line and "foreign" in line


def test_edge_candidates_are_of_split_rl_too(runs, drawn):
    with mock.patch.object(train_grpo.GRPO, "pass_rates", lambda self, problems: [0.25] * len(problems)):
        ok("train_grpo", "--init-from", runs / "base" / "latest", "--out", runs / "edge", "--mixture", f"op 2; {WORLD}",
           "--steps", 1, "--prompts", 2, "--group", 2, "--minibatch", 2, "--select", "edge", "--select-pool", 4, "--max-new-tokens", 8,
           "--eval-problems", 1, "--threads", 1)  # fmt: skip
    texts = taken(drawn)
    assert set(texts) == {"rl", "dev"} and len(texts["rl"]) == 4


@pytest.mark.parametrize("script", [train_pretrain, train_grpo])
def test_best_is_what_split_dev_says(runs, tmp_path, script):
    """`best` points at the highest score, of NLL or of pass@1, on problems of split dev; the later of two
    equal ones.
    """
    rising, nll = [0.1, 0.5, 0.3], [2.0, 1.0, 3.0]
    values = [{"eval/nll_op2": n, "eval/correct_op2": p, "eval/pass@1": p} for n, p in zip(nll, rising)]
    judged = []

    def evaluated(model, tokenizer, problems, max_new_tokens, tries, stream, **how):
        judged.append({datagen.split_of(problem) for problem in problems})
        assert stream == (0, len(judged) - 1)  # seed and step: each evaluation has its own noise
        return values[len(judged) - 1], ""

    own = [
        "--steps",
        2,
        "--prompts",
        2,
        "--group",
        2,
        "--minibatch",
        2,
        "--init-from",
        runs / "base" / "latest",
    ]
    own = own if script is train_grpo else [*SMALL[:-4], "--workers", 0]
    tokens = "" if script is train_grpo else "; tokens 1024"
    with mock.patch("training.evaluate_held_out", evaluated):
        ok(script.__name__, "--out", tmp_path / "run", "--mixture", f"op 2; {WORLD}{tokens}", *own, "--eval-every", 1,
           "--max-new-tokens", 8, "--eval-problems", 1, "--keep", 1, "--threads", 1)  # fmt: skip
    assert judged == [{"dev"}] * 3 and os.readlink(tmp_path / "run" / "best") == "step_0000001"
    assert os.readlink(tmp_path / "run" / "latest") == "step_0000002"


@pytest.mark.skipif(not SAMPLE.exists(), reason="../shared is not beside the checkout")
def test_public_records_train_too(runs, tmp_path):
    ok("train_pretrain", "--out", tmp_path / "sft", "--data", SAMPLE, "--mixture", "op 2; tokens 5k", "--solution-only",
       "--workers", 0, *SMALL, "--row-tokens", 1536)  # fmt: skip
    ok("train_grpo", "--init-from", tmp_path / "sft" / "latest", "--out", tmp_path / "rl", "--data", SAMPLE, "--mixture", "op 2",
       "--steps", 1, "--prompts", 2, "--group", 2, "--minibatch", 2, "--max-new-tokens", 8, "--eval-problems", 1, "--threads", 1)  # fmt: skip


def test_the_same_seed_gives_the_same_weights(runs, tmp_path):
    """To the last bit whatever the workers; within rounding whatever the micro-batches."""
    weights, tokenizer = {}, runs / "base" / "latest" / "tokenizer.json"
    for name, workers, micro in (("plain", 0, 0), ("workers", 1, 0), ("micro", 0, 1)):
        ok("train_pretrain", "--out", tmp_path / name, "--mixture", f"op 2; {WORLD}; tokens 6k", "--workers", workers, "--rows", 2,
           "--micro-batch-size", micro, "--optimizer", "adamw", "--tokenizer", tokenizer, *SMALL)  # fmt: skip
        weights[name] = load_checkpoint(tmp_path / name / "latest", CPU).model.state_dict()
    for key, value in weights["plain"].items():
        assert torch.equal(value, weights["workers"][key])
        torch.testing.assert_close(value, weights["micro"][key], atol=1e-4, rtol=1e-3)


# ------------------------------------------------------------------------------------------------------------
# What a user can get wrong

ONE = "--mixture|op 2; tokens 1k"
BAD = {
    "train_pretrain": [
        "--preset|huge", "--learning-rate|1", "--lr|fast", "--lr|nan", "--lr|inf", "--lr|0", "--lr|-1", "--lr|2", "--optimizer|sgd",
        "--min-lr|nan", "--min-lr|0.5", "--muon-lr|0", "--beta1|1", "--beta2|1", "--beta1|-0.1", "--beta2|nan", "--weight-decay|nan",
        "--weight-decay|-1", "--warmup|1", "--warmup|nan", "--max-grad-norm|0", "--max-grad-norm|nan", "--max-grad-norm|inf", "--clip|0",
        "--seed|-1", "--seed|4294967296", "--seed|1.5", "--context|16", "--context|0", "--row-tokens|0", "--row-tokens|16", "--rows|0",
        "--micro-batch-size|-1", "--hidden-size|0", "--hidden-size|4000000000000000000", "--row-tokens|1" + 400 * "0", f"--hidden-size|33|{ONE}", f"--hidden-size|32|--heads|3|{ONE}",
        f"--hidden-size|4|--heads|4|{ONE}", f"--heads|4|--kv-heads|3|{ONE}", "--heads|0", "--kv-heads|-1", "--layers|0",
        "--layers|100000", "--intermediate-size|0", "--vocab-size|5", "--vocab-size|1000001", "--threads|100000", "--threads|-1",
        "--workers|2", "--workers|-1", "--keep|0", "--eval-every|0", "--eval-problems|0", "--log-every|0", "--max-new-tokens|0",
        "--max-bad-steps|0", "--replay|1", "--replay|nan", "--repeat|1.1", "--repeat-pool|0", "--device|tpu", "--device|cuda", "--attention|flash", "--dtype|float16",
        "--mixture|op 1-99; tokens 1k", "--mixture|op 2", "--mixture|", "--mixture|op 2; tokens nan", "--mixture|op 2; tokens 0",
        f"{ONE}|--init-from|nowhere", f"{ONE}|--replay|0.5", f"{ONE}|--new-words|ok", "--repeat|0.5|--data|records.jsonl", f"{ONE}|--data|nowhere.jsonl", f"{ONE}|--tokenizer|nowhere.json",
        f"{ONE}|--data|.", f"{ONE}|--tokenizer|.", f"{ONE}|--tokenizer|t.json|--init-from|out", "--config|nowhere.json", "--config|.", "--compile|always", "--compile", "--lr", "--resume|--lr|0.1",
        "--seed|٣.|--lr|1", "--rows|1e3", "--preset", "base",
    ],
    "train_grpo": [
        "--init-from|nowhere", "--init-from|", "--reward|vibes", "--group|0", "--group|1", "--prompts|0", "--minibatch|0", "--clip|0",
        "--clip-ratio|nan", "--clip-ratio|0.2,x", "--clip-ratio|0.2,0", "--kl-estimator|k4", "--kl|0|--kl-estimator|k1", "--normalisation|mean", "--unfinished|drop", "--overlong|-1", "--reward|strict:x", "--reward|nowhere.py:f", "--eval-tries|-1", "--rescore", "--clip-ratio|0", "--clip-ratio|inf", "--dual-clip|1", "--dual-clip|nan", "--alpha|7", "--alpha|-0.1",
        "--alpha|nan", "--kl|-1", "--kl|nan", "--kl|inf", "--lr|nan", "--lr|0", "--temperature|0", "--temperature|nan", "--steps|0",
        "--sample-rows|0", "--advantage|max", "--select|some", "--select-bound|0", "--select-bound|nan", "--select-samples|0",
        "--select-pool|0", "--select-every|0", "--warmup-steps|-1", "--weight-decay|2", "--beta2|1", "--seed|-1", "--threads|100000",
        "--max-new-tokens|0", "--mixture|op 0", "--data|nowhere.jsonl|--init-from|nowhere", "--config|nowhere.json", "--group|six",
    ],
    "evaluate": [
        "nowhere", "", "x|--bands|everything", "x|--bands|a=2,a=3", "x|--bands|a=1", "x|--bands|", "x|--k|1,4096", "x|--k|0", "x|--k|",
        "x|--k|nan", "x|--problems|1", "x|--samples|0", "x|--temperature|nan", "x|--data|nowhere.jsonl", "--rescore", "x|--temperature|-1", "x|--top-p|0", "x|--top-p|2",
        "x|--top-p|nan", "x|--seed|-1", "x|--threads|100000", "x|--max-new-tokens|0", "x|--sample-rows|0", "x|--report-samples|0",
        "x|--show|-1", "x|--mixture|school", "x|--preset|big", "a=x|a=y", "out/base/latest|out/base/best", "x|--config|nowhere.json",
    ],
    "talk": ["", "--ckpt|nowhere", "--ckpt|x|--n|0", "--ckpt|x|--temperature|nan", "--ckpt|x|--top-p|0", "--ckpt|x|--op|-1"],
    "tokenizer": ["nowhere.jsonl", "", "x|--vocab-size|3"],
    "datagen": ["--op|0", "--n|0", "--n|-1", "--mode|sideways", "--template|zoo,", "--bound|3", "--seed|-1", "--split|test"],
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_user_errors_are_one_line_and_exit_2(name, tmp_path, monkeypatch):
    """And nothing is left in --out: folders are made only after the options are checked."""
    monkeypatch.chdir(tmp_path)
    out = ["--out", "out/x"] if name not in ("talk", "datagen") else []
    for arguments in BAD[name]:
        arguments = arguments.split("|") if arguments else []
        try:
            error_line(call(name, *arguments, *out))
        except Exception as error:
            raise AssertionError(f"{name} {arguments}") from error
        assert not list(tmp_path.rglob("*")), (arguments, "nothing half-written")


def test_errors_are_one_line_of_a_real_process_too(tmp_path):
    command = [sys.executable, "train_grpo.py", "--group", "1", "--out", tmp_path / "x"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "--group" in error_line(out) and not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def commands(runs):
    """Commands without a mistake, which would run for seconds."""
    latest = runs / "base" / "latest"
    one = [
        "--mixture",
        f"op 2; {WORLD}; tokens 512",
        "--tokenizer",
        latest / "tokenizer.json",
        "--workers",
        0,
    ]
    return {
        "train_pretrain": ["train_pretrain", *one, *SMALL],
        "train_grpo": ["train_grpo", "--init-from", latest, "--mixture", f"op 2; {WORLD}", "--steps", 1, "--prompts", 2,
                       "--minibatch", 2, "--group", 2, "--max-new-tokens", 8, "--eval-problems", 1, "--threads", 1],
        "evaluate": ["evaluate", f"a={latest}", "--bands", "a=2", "--mixture", f"op 2; {WORLD}", "--problems", 2, "--samples", 1,
                     "--k", 1, "--max-new-tokens", 8, "--threads", 1],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["train_pretrain", "train_grpo", "evaluate"])
def test_an_out_that_cannot_be_written_is_one_line(commands, tmp_path, name):
    file, used = tmp_path / "file", tmp_path / "used"
    file.write_text("mine")
    used.mkdir()
    (used / "results.json").write_text("[]")  # somebody else's
    before = sorted(tmp_path.rglob("*"))
    for out in (file, file / "below", used, "/proc/nowhere"):
        for flag in ((), ("--resume",), ("--resume-or-start",)):
            error_line(call(*commands[name], "--out", out, *flag))
    assert sorted(tmp_path.rglob("*")) == before and file.read_text() == "mine"


@pytest.mark.parametrize("call_that_fails", ["mkdir", "open"])
@pytest.mark.parametrize("name", ["train_pretrain", "train_grpo", "evaluate"])
def test_a_read_only_disk_is_one_line(commands, tmp_path, name, call_that_fails):
    """Whoever runs the tests as root may write anywhere: so the system call itself says no."""
    real = getattr(os, call_that_fails)

    def refusing(path, *arguments, **kwargs):
        if str(path).startswith(str(tmp_path)):
            raise OSError(30, "Read-only file system", str(path))
        return real(path, *arguments, **kwargs)

    with mock.patch.object(os, call_that_fails, refusing):
        out = call(*commands[name], "--out", tmp_path / "run")
    assert "Read-only file system" in error_line(out)


def test_a_config_that_is_none_is_one_line(runs, commands, tmp_path):
    for i, content in enumerate(
        ('{"lr": "fast"}', '{"lr": NaN}', '{"lr": null}', '{"fast": 1}', "[]", "{", '"lr"', '{"options": []}', '{"options": 3}',
         '{"preset": ["tiny"]}', '{"preset": "huge"}', '{"group": 1}', '{"lr": true}', "[" * 100_000, "\ud800"),
    ):  # fmt: skip
        path = tmp_path / f"{i}.json"
        path.write_text(content, errors="surrogatepass")
        assert (
            str(path) in error_line(call("train_grpo", "--config", path, "--out", tmp_path / "x")) or i == 10
        )
        run = tmp_path / f"run{i}"  # the same in a folder that says it is a run
        run.mkdir()
        path.rename(run / "config.json")
        error_line(call("train_grpo", "--resume", "--out", run))
        error_line(call(*commands["train_grpo"], "--resume-or-start", "--out", run))
        assert [p.name for p in run.iterdir()] == ["config.json"]


def test_documents_that_do_not_fit_are_one_line(commands, tmp_path):
    """A row, or the model's context, that is shorter than the problems: found before the folder is made."""
    rows = [*commands["train_pretrain"], "--row-tokens", 64, "--out", tmp_path / "x"]
    assert "--row-tokens" in error_line(call(*rows))
    context = [*commands["train_pretrain"], "--context", 64, "--out", tmp_path / "x"]
    assert "--context" in error_line(call(*context))
    for name in (
        "train_grpo",
        "evaluate",
    ):  # sampling as many tokens as the context has leaves none for the problem
        longer = [*commands[name], "--max-new-tokens", 1024, "--out", tmp_path / "x"]
        assert "--max-new-tokens" in error_line(call(*longer))
    assert not (tmp_path / "x").exists()


def test_external_data_errors_name_the_line(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"problem": "a", "question": "b", "solution": "Answer: 1."}\n{"problem": \n')
    out = call("train_pretrain", "--mixture", "op 2; tokens 1k", "--data", path, "--out", tmp_path / "x")
    assert "line 2" in error_line(out) and not (tmp_path / "x").exists()


def test_a_record_too_long_for_the_context_is_refused_before_the_first_step(runs, tmp_path):
    path, record = tmp_path / "r.jsonl", {"problem": "a", "question": "b", "answer": 1}
    path.write_text(json.dumps(record) + "\n" + json.dumps({**record, "problem": "a " * 3000}) + "\n")
    out = call("train_grpo", "--init-from", runs / "base" / "latest", "--mixture", "op 2", "--data", path,
               "--reward", "outcome", "--max-new-tokens", 8, "--eval-problems", 1, "--out", tmp_path / "x")  # fmt: skip
    told = error_line(out)
    assert "r.jsonl, line 2) leaves no room in the context" in told and not (tmp_path / "x").exists()


def test_a_run_folder_stands_for_its_latest_checkpoint(runs, commands, tmp_path):
    """Of --init-from, evaluate.py, talk.py and export_hf.py."""
    base = runs / "base"
    ok("train_grpo", *commands["train_grpo"][1:], "--init-from", base, "--out", tmp_path / "rl")
    start = json.loads((tmp_path / "rl" / "config.json").read_text())["start"]
    assert start == weights_hash(base / "latest") == weights_hash(base) is not None
    assert list(evaluate.named_folders(f"{base},other={base}")) == ["base", "other"]
    gone = evaluate.named_folders(f"{tmp_path}/a,{tmp_path}/b/step_0000012,{tmp_path}/c/best")
    assert list(gone) == ["a", "b", "c"]  # by the words alone: --rescore needs no folder
    ok("evaluate", base, tmp_path / "rl", *commands["evaluate"][2:], "--out", tmp_path / "eval")
    results = json.loads((tmp_path / "eval" / "results.json").read_text())["results"]
    assert results["base"]["checkpoint"] == str((base / "latest").resolve()) and list(results) == [
        "base",
        "rl",
    ]
    assert ok("talk", "--ckpt", base, "--op", 2, "--max-new-tokens", 4).stdout.count("log-probability") == 1
    ok("export_hf", "--ckpt", base, "--out", tmp_path / "hf")
    assert (tmp_path / "hf" / "model.safetensors").exists()


def test_quiet_prints_nothing_and_pass_at_k_is_logged(commands, tmp_path):
    for name in ("train_pretrain", "train_grpo"):
        out = ok(*commands[name], "--quiet", "--eval-tries", 2, "--out", tmp_path / name)
        assert out.stdout == out.stderr == ""
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert 0 <= lines[0]["eval/pass@1"] <= lines[0]["eval/pass@2"] <= 1
    out = ok(*commands["train_grpo"], "--show-every", 1, "--out", tmp_path / "loud")
    assert out.stdout.count("--- step 1, a try with reward") == 2
    assert re.search(
        r"loud: step 1 of 1, [\d,]+ tokens/s, pass@1 0, zero_variance 1, reward 0, length \S+, kl \S+",
        out.stdout,
    )


def test_two_unnamed_checkpoints_of_one_run_are_refused(runs, tmp_path):
    """They would be called by one name, and the second's results would stand for the first's."""
    best, latest = runs / "base" / "best", runs / "base" / "latest"
    out = call("evaluate", best, latest, "--out", tmp_path / "x")
    assert "two checkpoints are called 'base'" in error_line(out) and not (tmp_path / "x").exists()
    assert list(evaluate.named_folders(f"best={best},{latest}")) == ["best", "base"]


# ------------------------------------------------------------------------------------------------------------


def test_help_fits_two_screens():
    """Of 100 columns, the three commonest commands on top; choices, ranges and a mixture's keys are listed."""
    for name in ("datagen", "verify", "tokenizer", "texts", "train_pretrain", "train_grpo", "tries", "evaluate", "talk", "export_hf", "experiments"):  # fmt: skip
        lines = ok(name, "--help").stdout.splitlines()
        assert 5 < len(lines) < 120 and max(map(len, lines)) <= 100, name
        if name in ("train_pretrain", "train_grpo", "evaluate"):
            commands = [line for line in lines[:12] if line.startswith(f"    python {name}.py ")]
            assert len(commands) == 3, name
            told = " ".join(" ".join(lines).split())
            assert all(f"{key} " in told.partition("--mixture")[2] for key in datagen.KEYS), name
    assert "--advantage {std,mean}" in (told := " ".join(ok("train_grpo", "--help").stdout.split()))
    assert "prompts of a step, P, at least 1 [32]" in told and "within [0, 1]" in told and "overlong" in told


def test_no_dangerous_calls():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("lab/*.py")]:
        text = path.read_text()
        for word in ("eval(", "exec(", "pickle.", "shell=True", "urlopen", "requests"):
            assert word not in text.replace(".eval()", "").replace("multiprocessing", ""), (path.name, word)


def test_lab_knows_nothing_of_the_rest():
    """It imports nothing from the root of the repository."""
    rooms = {path.stem for path in ROOT.glob("*.py")}
    for path in ROOT.glob("lab/*.py"):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["from"], ["import"]):
                assert words[1].split(".")[0] not in rooms, (path.name, line)


def test_nll_of_a_uniform_model_is_the_logarithm_of_the_vocabulary(runs):
    checkpoint = load_checkpoint(runs / "base" / "latest", CPU)
    for p in checkpoint.model.parameters():
        torch.nn.init.zeros_(p)
    problems = [datagen.generate(1, i, op=2, split="eval") for i in range(3)]
    nll = rollout.held_out_nll(checkpoint.model, checkpoint.tokenizer, problems)
    assert nll[2] == pytest.approx(math.log(checkpoint.tokenizer.vocab_size), rel=1e-4)
    assert sum(to_document(problems[0], checkpoint.tokenizer, solution_only=True).trained) > 5


def test_a_talk_with_a_checkpoint_about_a_problem(runs):
    checkpoint = runs / "base" / "latest"
    out = ok("talk", "--ckpt", checkpoint, "--op", 3, "--n", 2, "--max-new-tokens", 20)
    assert out.stdout.count("log-probability") == 2 and "✗ answer" in out.stdout and "\033[" not in out.stdout
    typed = "The otters in Fernhollow number 3. What is the number of otters in Fernhollow?\n"
    out = ok("talk", "--ckpt", checkpoint, "--max-new-tokens", 20, stdin=typed)
    assert "answer" in out.stdout and "✓ says that a step is true as written" in out.stdout
    imported = load_checkpoint(checkpoint, CPU)
    imported.options.clear()
    with mock.patch("talk.load_checkpoint", lambda *_: imported):
        told = error_line(call("talk", "--ckpt", checkpoint, "--op", 3))
    assert "does not say what it was trained on" in told
    with (
        mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(b"The \xff"), "utf-8")),
        pytest.raises(UserError, match="cannot read stdin: not UTF-8"),
    ):
        list(talk.typed())


def test_a_folder_of_hugging_faces_format_is_no_checkpoint_but_can_be_imported():
    base = next((ROOT / "studies/bases").glob("train_*"))
    assert "import it: export_hf.py --import" in error_line(call("talk", "--ckpt", base, "--op", 2))


def test_report(runs, tmp_path):
    out = ok("evaluate", f"base={runs / 'base' / 'latest'}", "--out", tmp_path / "eval", "--bands", "id=2,edge=3",
             "--mixture", f"op 2; {WORLD}", "--problems", 3, "--samples", 2, "--k", "1", "--max-new-tokens", 30, "--threads", 1,
             "--report", tmp_path / "r.html")  # fmt: skip
    page = (tmp_path / "r.html").read_text()  # tests/test_report.py has what is in it
    assert f"report: {tmp_path / 'r.html'}" in out.stdout and page.count('data-checkpoint="base"') == 6
    assert "data:image/png;base64," in page and "Paired differences" not in page


def test_where_there_are_no_links_a_file_with_the_name_will_do(runs, tmp_path):
    run, name = tmp_path / "run", os.readlink(runs / "base" / "latest")
    shutil.copytree(runs / "base" / name, run / name)
    (run / "latest").write_text(name)
    assert load_checkpoint(run / "latest", CPU).path == (run / name).resolve()
    (run / "latest").write_text("step_0000099")
    assert "no checkpoint at" in error_line(call("talk", "--ckpt", run / "latest", "--op", 2))


def test_dry_run_and_config_round_trip(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("lab.cost.matmul_rate", lambda device, dtype: 1e9)
    arguments = [
        "--preset",
        "paper",
        "--dry-run",
        "--vocab-size",
        300,
        "--out",
        tmp_path / "x",
        "--layers",
        2,
    ]
    out = ok("train_pretrain", *arguments)
    assert "FLOPs" in out.stdout and "GiB" in out.stdout and not (tmp_path / "x").exists()
    out = ok("train_grpo", "--init-from", runs / "base" / "latest", "--dry-run", "--out", tmp_path / "x")
    assert "FLOPs" in out.stdout and not (tmp_path / "x").exists()
    held = [ok("train_pretrain", *arguments, "--replicas", n).stdout.split(" kept of ")[0] for n in (1, 2)]
    one, two = (float(text.split()[-1]) for text in held)
    assert two == pytest.approx(2 * one, rel=0.01)  # two micro-batches at once
    ok("train_pretrain", "--dry-run", "--out", runs / "base")  # a folder that holds a run is in nobody's way
    config = ok("train_grpo", "--preset", "small", "--lr", "3e-5", "--print-config").stdout
    (tmp_path / "c.json").write_text(config)
    again = ok("train_grpo", "--config", tmp_path / "c.json", "--print-config").stdout
    assert json.loads(again) == json.loads(config)
    assert json.loads(config)["lr"] == 3e-5 and json.loads(config)["prompts"] == 128
    (tmp_path / "c.json").write_text('{"lr": "fast"}')
    assert "lr" in error_line(call("train_grpo", "--config", tmp_path / "c.json"))


def test_presets_name_options_that_exist_and_are_within_their_ranges():
    for module in (train_pretrain, train_grpo, evaluate):
        for preset in module.PRESETS.values():
            assert preset.keys() <= {f.name for f in dataclasses.fields(module.Options)}
            module.Options(**preset, **({"checkpoints": "x"} if module is evaluate else {}))


def rates(steps, **flags):
    o = train_pretrain.Options(lr=1e-3, min_lr=1e-4, warmup=0.1, **flags)
    return [train_pretrain.learning_rate(step, steps, o) for step in range(steps)]


def test_the_cosine_is_that_of_torch():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    peer, expected = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 180, eta_min=0.1), []
    for _ in range(180):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        peer.step()
    found = rates(200)
    assert found[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert found[20:] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("cooldown", (0.0, 0.25, 1.0))
def test_wsd_is_constant_until_it_falls_in_a_line(cooldown):
    found, falling = rates(200, schedule="wsd", cooldown=cooldown), round(200 * cooldown)
    stable = [rate for rate in found[20 : 200 - falling] if rate != 1.0]
    assert not stable and found[:20] == [(step + 1) / 20 for step in range(20)]
    if falling:
        last = found[max(21, 200 - falling) :]
        falls = [a - b for a, b in zip(last, last[1:])]
        assert falls == pytest.approx([0.9 / falling] * len(falls)) and last[-1] - falls[-1] == pytest.approx(
            0.1
        )
