import json
import math
import re
import signal
from dataclasses import replace
from statistics import NormalDist
from types import SimpleNamespace
from unittest import mock

from lab.options import STOPPED, UserError
from lab.statistics import gain, interval, wilson

import numpy as np
import pytest
import torch
from conftest import call, error_line
from solver import solve

import chains
import datagen
import evaluate
import report
import rollout
import texts
import verify
from checkpoint import load_checkpoint, save_checkpoint
from data import completion_text, prompt_text
from evaluate import number_of_problems, parse_bands, parse_ks, summarise
from model import ModelConfig, Qwen2
from rewards import Reward
from tokenizer import train_bpe

CPU = torch.device("cpu")
# What a signal does. Where a shell started the tests in the background, SIGINT is ignored: so it is not sent.
ACTS = {
    "SIGTERM": lambda: signal.raise_signal(signal.SIGTERM),
    "SIGINT": lambda: signal.default_int_handler(signal.SIGINT, None),
}


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """An evaluation without a mistake, of a model that has learnt nothing: three ops, three lines."""
    problems = [datagen.generate(1, i, op=2 + i % 3) for i in range(30)]
    tokenizer = train_bpe([prompt_text(p) + completion_text(p) for p in problems], 400)
    path = tmp_path_factory.mktemp("evaluate") / "base" / "latest"
    save_checkpoint(
        path, Qwen2(ModelConfig(tokenizer.vocab_size, 32, 64, 1, 2, 1)), tokenizer, {}, {"step": 3}
    )
    options = "--bands id=2-3,edge=4 --problems 2 --samples 2 --k 1 --max-new-tokens 8 --threads 1"
    return ["evaluate", path, *options.split()]


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_a_signal_stops_it_with_75_and_says_how_to_go_on(command, tmp_path, act):
    """So that a shell script stops too; what was sampled is not sampled again, and the results are the same."""
    call(*command, "--out", tmp_path / "whole", check=True)
    try_out, ops, before = evaluate.try_out, [], signal.getsignal(signal.SIGTERM)

    def try_until(last, checkpoint, problems, *rest):
        ops.append(problems[0].op)
        if problems[0].op == last:
            act()
        return try_out(checkpoint, problems, *rest)

    run = tmp_path / "run"
    with mock.patch.object(evaluate, "try_out", lambda *arguments: try_until(4, *arguments)):
        out = call(*command, "--out", run)
    assert out.returncode == STOPPED == 75 and f"python evaluate.py --resume --out {run}\n" in out.stdout
    assert ops == [2, 3, 4] and not (run / "results.json").exists()
    assert signal.getsignal(signal.SIGTERM) == before
    with mock.patch.object(evaluate, "try_out", lambda *arguments: try_until(None, *arguments)):
        call("evaluate", "--resume", "--out", run, check=True)  # the checkpoints are the run's own
    assert ops == [2, 3, 4, 4]
    results = [
        json.loads((path / "results.json").read_text())["results"] for path in (tmp_path / "whole", run)
    ]
    assert results[0] == results[1]


def test_a_plain_line_without_a_terminal_and_tables_alone_if_quiet(command, tmp_path):
    out = call(*command, "--out", tmp_path / "loud", check=True)
    lines = re.findall(r"^loud: sample .*", out.stdout, re.MULTILINE)
    assert len(lines) == 1 and re.fullmatch(r"loud: sample \d+ of 12, base op 2", lines[0])
    assert out.stderr == "" and "\r" not in out.stdout
    quiet = call(*command, "--quiet", "--out", tmp_path / "quiet", check=True)
    tables = out.stdout[out.stdout.index("\n6 problems, 2 samples each") : out.stdout.index("results: ")]
    assert quiet.stdout == tables and quiet.stderr == ""
    again = call("evaluate", "--rescore", "--quiet", "--out", tmp_path / "loud", check=True)
    assert again.stdout == tables  # it is free: a run goes on with it or without


def test_lines_say_how_chains_went(command):
    """And what stands already is part of a try."""
    checkpoint, o = load_checkpoint(command[1], CPU), evaluate.Options(samples=3, max_new_tokens=8, seed=5)
    problems = [datagen.generate(5, i, op=4, split="eval") for i in range(4)]
    for how in (None, *chains.ASKS):
        some = problems, range(4), replace(o, ask=how)
        line = evaluate.judge(evaluate.try_out(checkpoint, *some), *some)
        stands = [chains.ask(how, p, 5, i)[1] for i, p in enumerate(problems)]
        assert all(text.startswith(start) for text, start in zip(line["texts"], stands))
        assert line["length"] == np.mean(line["tokens"]) and len(line["majority"]) == 3
        assert line["depth"][0] == 12 == line["depth_wrong"][0]
        if how == "text":
            assert set(line["noted"]) == {"opens", "concludes"}


def test_a_chain_that_reflects_is_judged_by_what_stands_in_the_end(command, tmp_path, monkeypatch):
    """A stand-in for the sampler writes such chains; of a fourth <backtrack> nothing is left."""
    checkpoint = load_checkpoint(command[1], CPU)
    source = texts.Source(datagen.Mixture.parse("op 4; world mini"))
    problems = [source.mixture.problem(0, i, "mid") for i in range(4)]
    told = [source.records("reflective-gold", i)[0]["completion"] for i in range(4)]
    told[3] = " Define a in B as q; so q = 1. <backtrack> q." * 4 + told[3]
    ids = [checkpoint.tokenizer.encode(text) for text in told]
    samples = SimpleNamespace(ids=ids, logprobs=[[0.0] * len(it) for it in ids], finished=[True] * 4)
    monkeypatch.setattr("rollout.generate", lambda *_, **__: samples)
    rollouts = rollout.roll_out(
        checkpoint.model, checkpoint.tokenizer, problems, 1, ("test",), reward=Reward("strict")
    )
    assert any("<backtrack>" in text for text in told[:3])
    assert [it.verdict.correct for it in rollouts] == [True] * 3 + [False]
    assert [it.text for it in rollouts] == told and [it.reward for it in rollouts] == [1, 1, 1, 0]


def test_a_report_that_cannot_be_written_is_said_before_anything_is_judged(command, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for page, words in (
        (tmp_path / "folder", "folder is a folder: name a file"),
        (tmp_path / "run", "run is a folder"),
        (".", ". is a folder"),
        ("/dev/null", "would replace something else"),
        (tmp_path / "run" / "results.json", "would replace something else"),
        ("/", "/ is a folder"),
        (tmp_path / "file" / "page.html", "file: File exists"),
        ("/proc/no/page.html", "/proc/no"),
    ):
        with mock.patch.object(evaluate, "try_out", side_effect=AssertionError(page)):
            assert words in error_line(call(*command, "--out", tmp_path / "run", "--report", page))
        assert sorted(tmp_path.rglob("*")) == before


def test_a_figure_shows_every_checkpoint_and_band(tmp_path):
    """Of however many: colours and styles begin anew where there are no more."""
    stats = {"mean": 0.5, "low": 0.4, "high": 0.6}
    bands = {f"band {op}": [op] for op in range(2, 8)}
    result = {
        "op": {str(op): {"correct@1": stats} for op in range(2, 8)},
        "band": {band: {"correct@1": stats} for band in bands},
    }
    with mock.patch.object(report, "save_figure", lambda fig, path: fig):
        left, right = report.draw_results({f"run {i}": result for i in range(12)}, bands, [1], None).axes
    assert len(left.lines) == 12 and len(left.texts) == 6 and len(right.lines) == 12 * 6


def test_nothing_to_evaluate_is_one_line(tmp_path):
    assert "no checkpoint" in error_line(call("evaluate", "--out", tmp_path / "run"))
    assert not list(tmp_path.iterdir())


def test_problems_of_each_operation_or_of_each_band():
    """A band's problems are spread over its operations; they are the first ones of what --problems alone takes."""
    o = evaluate.Options(bands="hard=9,id=2-6,edge=7-8", problems=11, mixture="op 2-9; mode forward")
    assert number_of_problems(o) == dict.fromkeys(range(2, 10), 11)
    spread = replace(o, per_band=True)
    assert number_of_problems(spread) == {**dict.fromkeys(range(2, 7), 2), 7: 5, 8: 5, 9: 11}
    every, few = (evaluate.Evaluation(replace(it, checkpoints="x")).problems for it in (o, spread))
    first = [p for p in every if int(p.id.split("/")[-1]) < number_of_problems(spread)[p.op]]
    assert [p.problem for p in few] == [p.problem for p in first] and len(few) == 31


def test_bands():
    assert parse_bands("id=2-4,edge=5-6") == {"id": [2, 3, 4], "edge": [5, 6]}
    for bad in ("2-4", "=2", "id=2-4,id=5", "id=1-4", "id=", "id=2-4,edge=4-5"):
        with pytest.raises(UserError):
            parse_bands(bad)


def test_ks():
    assert parse_ks("1, 8", 8) == parse_ks("1,8,1", 8) == [1, 8]
    for bad in ("", "0", "9", "1,,2", "1.0", "-1", "٣", "nan"):
        with pytest.raises(UserError):
            parse_ks(bad, 8)


def test_bootstrap_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(300):
        values = rng.binomial(8, 0.3, size=120) / 8
        low, high = interval(values, seed=i, resamples=400)
        hits += low <= 0.3 <= high
    assert 0.90 <= hits / 300 <= 0.99


def test_wilson_bounds_by_their_definition():
    """The shares p with |p − found| = z standard errors of p; and numbers of Newcombe 1998, table I."""
    for passed, n in ((0, 200), (1, 20), (3, 10), (81, 263), (20, 20)):
        low, high = wilson(passed / n, n)
        for bound in (low, high):
            if 1e-9 < bound < 1 - 1e-9:
                error = 1.96 * math.sqrt(bound * (1 - bound) / n)
                assert abs(bound - passed / n) == pytest.approx(error, rel=1e-6)
        assert 0 <= low <= passed / n <= high + 1e-9 <= 1 + 1e-9 and low < high
    for passed, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(passed / n, n) == pytest.approx((low, high), abs=5e-5)
    assert pytest.approx(NormalDist().inv_cdf(0.975), abs=1e-3) == 1.96


@pytest.mark.parametrize("value", [0.0, 1.0, 0.25])
def test_where_all_problems_agree_the_interval_is_not_a_point(value):
    """0 of 200 problems solved does not say that none ever is: at most about 2% are."""
    low, high = interval([value] * 200)
    assert low <= value <= high and high - low > 0.01
    if value == 0:
        assert low == 0 and 0.015 < high < 0.02
    elif value == 1:
        assert high == 1 and 0.98 < low < 0.985
    shorter, longer = (np.ptp(interval([value] * n)) for n in (400, 50))
    assert shorter < high - low < longer


def test_an_interval_where_nothing_was_solved_reaches_the_table():
    problems = [datagen.generate(1, i, op=2) for i in range(3)] * 70
    counts = dict.fromkeys((*evaluate.JUDGED, "process", "copy_floor", "plus_floor"), np.zeros(210, int))
    out = summarise(problems, counts, range(200), [1, 4], 4)
    for k in (1, 4):
        assert out[f"correct@{k}"] == {"mean": 0.0, "low": 0.0, "high": pytest.approx(0.0188, abs=1e-3)}


def test_summary_against_brute_force():
    problems = [datagen.generate(1, i, op=3) for i in range(6)]
    counts = {k: np.array([0, 1, 2, 4, 4, 3]) for k in evaluate.JUDGED} | {"process": np.linspace(0, 1, 6)}
    counts |= {"copy_floor": np.array([1, 0, 1, 1, 0, 1]), "plus_floor": np.ones(6)}
    out = summarise(problems, counts, [1, 2, 4], [1, 2], 4)
    assert out["correct@1"]["mean"] == pytest.approx((1 + 2 + 4) / 12)
    assert out["correct@2"]["mean"] == pytest.approx(sum(verify.pass_at_k(4, c, 2) for c in (1, 2, 4)) / 3)
    assert out["correct@2"]["low"] <= out["correct@2"]["mean"] <= out["correct@2"]["high"]
    assert out["problems"] == 3 and out["process"] == pytest.approx((0.2 + 0.4 + 0.8) / 3)
    answers = [problems[i].answer for i in (1, 2, 4)]
    assert (out["copy_floor"], out["plus_floor"]) == (pytest.approx(1 / 3), 1)
    assert out["guess_floor"] == max(answers.count(a) for a in answers) / 3


@pytest.mark.parametrize("mode", datagen.MODES)
def test_floors_are_what_the_text_earns_with_other_operators(mode):
    """The text is rewritten, every operator a plus or no constant at all, and solved anew."""
    plus = [(r"(\d+) (?:times|fewer than) ", r"\1 more than "), (r"a 1/(\d+) share of ", r"\1 more than ")]
    plus += [("the excess of (.*?) over ", r"the sum of \1 and ")]
    copy = [(r"\d+ more than (?!the sum)", "as many as "), (r"\d+ more than ", "")]
    for op in (2, 4, 6):
        for i in range(60):
            p = datagen.generate(4, i, op=op, mode=mode, max_literal=9, bound=99)
            for constants, rules in ((True, plus), (False, plus + copy)):
                text = p.problem
                for pattern, new in rules:
                    text = re.sub(pattern, new, text)
                suffice = report.sums_suffice(p, constants)
                try:
                    answer = solve(text, p.question)
                except Exception:  # of a problem in reverse, the equation may have no solution
                    answer = None
                assert answer == p.answer or not suffice, (text, p.solution)
                assert answer != p.answer or suffice or mode == "reverse" or op == 6, (text, p.solution)
            assert op > 3 or report.sums_suffice(p, False)


def test_gain_is_the_paired_difference():
    before, after = np.array([0, 8, 0, 8]), np.array([8, 0, 8, 8])
    d = np.array([1, -1, 1, 0])
    mean, error = d.mean(), d.std(ddof=1) / 2
    assert (
        gain(before, after, 8)
        == f"correct@1 {mean:+.3f}, standard error {error:.3f} ({mean / error:+.1f} SE)"
    )


@pytest.mark.parametrize("difference", [0, 2, -3])
def test_a_gain_that_is_the_same_in_every_problem_is_not_known_exactly(difference):
    """Its standard error is 0, which says nothing: what is said is how many problems may differ otherwise."""
    words = gain(np.full(200, 4), np.full(200, 4 + difference), 8)
    assert (
        words.startswith(f"correct@1 {difference / 8:+.3f}")
        and "0.019" in words
        and "standard error" not in words
    )
    for n in (7, 10, 12):  # of whose shares the rounded mean may differ from each of them
        words = gain(np.full(200, 4), np.full(200, 4 + difference), n)
        assert words.startswith(f"correct@1 {difference / n:+.3f}") and "standard error" not in words
    few = gain(np.array([1, 2, 3, 0]), np.array([3, 4, 5, 2]), 8)
    assert few.startswith("correct@1 +0.250") and "0.490" in few
