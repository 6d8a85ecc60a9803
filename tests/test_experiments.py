"""experiments.py, studies/ and lab/workshop.py: keys, the runner, and what is said of claims. The runner's stages are
stubs (tests/stub.py); one small study runs the real scripts.
"""

import dataclasses
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from lab import workshop
from lab.options import STOPPED, UserError, opt
from lab.statistics import paired
from lab.workshop import Runner, Workshop

import numpy as np
import pytest
import stub
from conftest import call, error_line

import experiments
import studies
import train_grpo
from claims import COLUMNS, RUNS, Values, measure, summary, table_of, weights_of
from datagen import Mixture
from studies import Claim, Seed, Stage, Study, interplay, load_studies
from studies.scales import SCALES

ROOT = Path(__file__).parent.parent


def stage(script="stub", **given):
    return Stage(script, tuple(sorted(given.items())))


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """The study of stubs, its folders in tmp_path → the flags that say so."""
    monkeypatch.setattr(experiments, "load_studies", None)
    monkeypatch.setattr(studies, "SCRIPTS", dict(studies.SCRIPTS))
    monkeypatch.setattr(experiments, "SCRIPTS", studies.SCRIPTS)
    monkeypatch.setattr(workshop, "POLL", 0.02)
    monkeypatch.setenv("STUB_JOURNAL", str(tmp_path / "journal"))
    stub.install(experiments)
    return folders(tmp_path)


def folders(path):
    names = {"out": "out", "results": "results", "bases": "bases"}
    return ["--scale=toy", *(f"--{name}={path / folder}" for name, folder in names.items())]


def begun(path):
    return [
        line.split()[1] for line in (path / "journal").read_text().splitlines() if line.startswith("begin")
    ]


def lines_of(path):
    """results.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (path / "out" / "toy" / "results.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "code")} for line in lines]


# ------------------------------------------------------------------------------------------------------------
# Keys


def test_a_key_does_not_depend_on_the_order_of_options_nor_on_free_ones(toy):
    a = Stage("stub", (("seed", 1), ("lift", 0.2)))
    b = Stage("stub", (("lift", 0.2), ("seed", 1)))
    assert a.key == b.key == stage(seed=1, lift=0.2, sampled=5, threads=2).key
    assert a.key != stage(seed=2, lift=0.2).key != stage(seed=1).key


def test_a_key_is_of_all_that_is_computed(toy):
    base, other = stage(steps=3), stage(steps=4)
    assert stage(init_from=base).key != stage(init_from=other).key != stage().key
    assert stage(steps=2).key == stage().key  # said or by default
    assert stage(preset="other", lift=0.5).key == stage(preset="other").key


def test_a_changed_default_changes_the_key(monkeypatch):
    given = dict(init_from="x", mixture="op 2")
    before = stage("train_grpo", **given).key
    presets = {**train_grpo.PRESETS, "tiny": {**train_grpo.PRESETS["tiny"], "lr": 2e-4}}
    monkeypatch.setattr(train_grpo, "PRESETS", presets)
    assert stage("train_grpo", **given).key != before


def test_a_new_option_that_is_off_by_default_leaves_keys_as_they_are(toy, monkeypatch):
    key = stage(lift=0.2).key
    for default, same in ((0, True), (3, False)):
        options = dataclasses.make_dataclass(
            "Options", [("new", int, opt(default, "a new one"))], bases=(stub.Options,), frozen=True
        )
        monkeypatch.setattr(stub, "Options", options)
        assert (stage(lift=0.2).key == key) == same


def test_options_that_the_script_does_not_take_are_an_error():
    with pytest.raises(UserError, match=r"a stage of train_grpo.py: .*--speed"):
        _ = stage("train_grpo", speed=3).key
    with pytest.raises(UserError, match="--advantage"):
        _ = stage("train_grpo", advantage="praise").key


@pytest.mark.parametrize("scale", SCALES)
def test_every_study_can_be_planned_at_every_scale(scale):
    found, scales = load_studies()
    for study in found.values():
        stages = study.at(scales[scale], 2)
        arms = {arm for _, arm, _ in stages}
        assert all(it.key and it.work > 0 for it in stages.values())
        if scale in ("micro", "mini"):  # the others draw texts to know their lengths
            assert all(Mixture.parse(it.options.mixture).choices for it in stages.values())
        for claim in study.claims:
            for arm, _, metric, look, _ in weights_of(claim.contrast):
                look = None if metric in RUNS else look
                assert arm in arms and (Seed(0, 0), arm, look) in stages, (claim.id, arm, look)


def test_claims_have_ids_of_their_own():
    ids = [claim.id for study in load_studies()[0].values() for claim in study.claims]
    assert len(ids) == len(set(ids))
    for letter in "HD":
        assert {f"{letter}{i}" for i in range(1, 8)} <= {name[:2] for name in ids}
    assert {f"C{i}" for i in (*range(0, 11), *range(12, 29))} - {"C23"} <= {
        "".join(c for c in name if c == "C" or c.isdigit()) for name in ids
    }


# ------------------------------------------------------------------------------------------------------------
# The runner


def test_each_stage_runs_once_and_the_report_needs_results_alone(toy, tmp_path):
    out = call("experiments", "run", *toy, "--jobs", 3, check=True)
    assert (
        re.match(r"toy: stage 0 of 18, (stub-\w+ ){2}stub-\w+, 0.00 h left\n", out.stdout)
        and out.stderr == ""
    )
    assert len(begun(tmp_path)) == len(set(begun(tmp_path))) == 18
    assert out.stdout.endswith(
        "\nall 18 stages have results; the same line with `report` for `run` shows them\n"
    )
    call("experiments", "run", *toy, check=True)
    assert len(begun(tmp_path)) == 18
    call("experiments", "report", *toy, check=True)
    lines, claims = lines_of(tmp_path), (tmp_path / "out/toy/claims.md").read_text()
    assert "| X1 |" in claims and "replicated" in claims and "| equal |" in claims
    os.rename(tmp_path / "out", tmp_path / "gone")
    out = call("experiments", "report", *toy, check=True)
    assert lines_of(tmp_path) == lines and "2 claims: 1 replicated, 1 equal" in out.stdout
    assert (tmp_path / "out/toy/report.html").read_text().count("<h2>") == 1
    out = call("experiments", "run", *toy, check=True)  # nor is anything run again for want of its folder
    assert len(begun(tmp_path)) == 18


def test_a_parent_whose_weights_are_gone_runs_only_for_who_needs_it(toy, tmp_path):
    call("experiments", "run", *toy, "--seeds", 1, check=True)
    before = begun(tmp_path)
    os.rename(tmp_path / "out", tmp_path / "gone")
    look = next(name for name in before if "1000" in (tmp_path / f"results/toy/{name}.json").read_text())
    (tmp_path / f"results/toy/{look}.json").unlink()
    call("experiments", "run", *toy, "--seeds", 1, check=True)
    again = begun(tmp_path)[len(before) :]
    assert again[-1] == look and 2 <= len(again) <= 3


def test_some_bases_and_arms_alone(toy, tmp_path):
    call("experiments", "run", *toy, "--seeds", 2, "--first", 1, "--arms", "base", check=True)
    assert len(begun(tmp_path)) == 2  # a base and the look at it
    out = call("experiments", "status", *toy, "--seeds", 2, check=True).stdout
    assert out.count("kept ") == 2 and all(
        "seed 1.0" in line for line in out.splitlines() if line.startswith("kept")
    )
    call("experiments", "run", *toy, "--seeds", 2, "--first", 1, check=True)
    assert len(begun(tmp_path)) == 6
    assert "unknown arm 'bas'" in error_line(call("experiments", "run", *toy, "--arms", "base,bas"))


def test_what_has_failed_holds_up_its_dependants_alone(toy, tmp_path):
    stub.install(experiments, fails=True)
    line = error_line_of(call("experiments", "run", *toy, "--seeds", 1))
    assert "stages that failed: 1" in line and "--retry" in line
    assert len(begun(tmp_path)) == 5  # base, same, their looks; better, but not the look at it
    out = call("experiments", "status", *toy, "--seeds", 1, check=True).stdout
    assert out.count("failed ") == 1 and "told to fail" in out and out.count("kept ") == 4
    error_line_of(call("experiments", "run", *toy, "--seeds", 1))
    assert len(begun(tmp_path)) == 5
    (tmp_path / "mended").touch()
    out = call("experiments", "run", *toy, "--seeds", 1, "--retry", "--quiet", check=True)
    assert out.stdout == out.stderr == ""
    assert len(begun(tmp_path)) == 7


def error_line_of(out):
    out.stderr = "\n".join(line for line in out.stderr.splitlines() if line.startswith("error: "))
    return error_line(out)


def test_strict_runs_again_what_other_code_has_done(toy, tmp_path, monkeypatch):
    call("experiments", "run", *toy, "--seeds", 1, check=True)
    call("experiments", "run", *toy, "--seeds", 1, "--strict", check=True)
    assert len(begun(tmp_path)) == 6
    monkeypatch.setattr(workshop, "code_hash", lambda: "other")
    call("experiments", "run", *toy, "--seeds", 1, check=True)
    assert len(begun(tmp_path)) == 6
    call("experiments", "run", *toy, "--seeds", 1, "--strict", check=True)
    assert len(begun(tmp_path)) == 12


@pytest.mark.parametrize("flag, differs", [("--seed=0", False), ("--lift=0.3", True)])
def test_a_contrast_of_different_code_says_so(toy, tmp_path, flag, differs):
    """Not where all its arms start from what other code has made."""
    call("experiments", "run", *toy, check=True)
    results = {path: json.loads(path.read_text()) for path in (tmp_path / "results/toy").glob("*.json")}
    words = {path: set(result["command"].split()) for path, result in results.items()}
    path = next(it for it in words if flag in words[it] and (differs or len(words[it]) == 3))
    path.write_text(json.dumps({**results[path], "code": "other"}))
    call("experiments", "report", *toy, check=True)
    assert ("differs: run --strict" in (tmp_path / "out/toy/claims.md").read_text()) == differs


DRIVER = """
import sys
from lab import workshop
from lab.options import run_script
import experiments, stub
stub.install(experiments, steps={})
workshop.POLL = 0.05
run_script(lambda: experiments.main(sys.argv[1:]))
"""


def runner(path, *flags, steps=2):
    """`run` of the stubs, in a process of its own."""
    paths = f"{ROOT}:{ROOT / 'tests'}"
    environment = {**os.environ, "PYTHONPATH": paths, "STUB_JOURNAL": str(path / "journal")}
    words = [sys.executable, "-c", DRIVER.format(steps), "run", *folders(path), *flags]
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_killed_and_stopped_it_goes_on_to_the_same_results(toy, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    stub.install(experiments, steps=8)
    for path in (whole, cut):
        path.mkdir()
    with runner(whole, "--jobs", "2", steps=8) as process:
        process.communicate()
    with runner(cut, steps=8) as process:
        wait_for(lambda: list(cut.glob("out/toy/stages/*/done.json")))
        wait_for(lambda: len(list(cut.glob("out/toy/stages/*/lock"))) > 1)
        process.kill()
    with runner(cut, "--jobs", "2", steps=8) as process:
        wait_for(lambda: len(list(cut.glob("out/toy/stages/*/done.json"))) > 3)
        process.send_signal(signal.SIGTERM)
        process.communicate()
        assert process.returncode == STOPPED
    with runner(cut, steps=8) as process:
        process.communicate()
        assert process.returncode == 0
    for path in (whole, cut):
        call("experiments", "report", *folders(path), check=True)
    assert lines_of(cut) == lines_of(whole) and len(lines_of(whole)) > 50


def test_two_workers_never_run_one_stage(toy, tmp_path):
    with runner(tmp_path, "--jobs", "2") as one, runner(tmp_path, "--jobs", "2") as other:
        for process in (one, other):
            process.communicate()
            assert process.returncode == 0
    assert sorted(begun(tmp_path)) == sorted(set(begun(tmp_path))) and len(begun(tmp_path)) == 18


def test_a_command_whose_runner_was_killed_keeps_its_stage(toy, tmp_path):
    it = stage(steps=20)
    shop = Workshop(tmp_path / "out", tmp_path / "results")
    work = Runner(shop)
    assert work.begin(it)
    job = work.jobs[0]
    job.lock.close()  # as if this process had died
    assert shop.claim(it) is None and not Runner(shop).begin(it)
    job.process.wait()
    shop.claim(it).close()


def test_where_no_lock_can_be_handed_on_a_study_is_refused_in_one_line(toy, tmp_path, monkeypatch):
    """On Windows, that is; what needs no lock works."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    out = call("experiments", "run", *toy)
    assert out.returncode == 2 and "error: studies run on Linux and macOS" in out.stderr.splitlines()[-1]
    assert call("experiments", "plan", *toy).returncode == 0


def test_every_job_sees_one_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv("STUB_JOURNAL", str(tmp_path / "journal"))
    monkeypatch.setitem(studies.SCRIPTS, "stub", studies.Script(lambda o: o.steps, None))
    work = Runner(Workshop(tmp_path / "out", tmp_path / "results"), 3)
    assert all(work.begin(stage(seed=seed)) for seed in range(3)) and not work.begin(stage(seed=9))
    for job in work.jobs.values():
        job.process.wait()
    seen = [line.split()[-1] for line in (tmp_path / "journal").read_text().splitlines() if "begin" in line]
    assert sorted(seen) == ["gpu=3", "gpu=3", "gpu=5"] and work.threads() == []


@pytest.mark.parametrize("cores, jobs, words", [(2, 1, ""), (2, 2, "1 1"), (8, 2, "4 2"), (2, 5, "1 1")])
def test_jobs_on_a_cpu_share_its_cores(tmp_path, monkeypatch, cores, jobs, words):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    flags = [f"{name}={n}" for name, n in zip(("--threads", "--replicas"), words.split())]
    assert Runner(Workshop(tmp_path / "out", tmp_path / "results"), jobs).threads() == flags


def test_the_stage_with_most_dependants_comes_first(toy, tmp_path):
    base = stage(steps=5)
    lone, children = stage(steps=6), [stage(init_from=base, seed=i) for i in range(3)]
    todo = Workshop(tmp_path, tmp_path).todo([lone, *children])
    assert next(iter(todo)) == base.name and len(todo) == 5


def test_plan_counts_what_is_shared_once_and_uses_measured_rates(toy, tmp_path):
    out = call("experiments", "plan", *toy, check=True).stdout
    assert "18 to run" in out and "0 done" in out
    call("experiments", "run", *toy, "--seeds", 1, check=True)
    out = call("experiments", "plan", *toy, check=True).stdout
    assert "6 done" in out and "12 to run" in out
    for path in (tmp_path / "results/toy").glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": 3600.0, "work": 1}))
    hours = (2 * 3) * 2 + (1 * 3) * 2  # steps of two seeds, looks of two seeds, an hour each
    assert f"{hours:.2f} h" in call("experiments", "plan", *toy, check=True).stdout


def test_ablate_prints_paired_differences(toy, tmp_path):
    out = call("experiments", "ablate", "lift=0.1,0.4", *toy, "--seeds", 2, check=True).stdout
    rows = [line.split() for line in out.splitlines() if line and not line.startswith("toy: stage ")]
    assert rows[0] == ["band", "arm", "correct@1", "correct@8", "against", "the", "arm", "above"]
    assert [row[:2] for row in rows[1:4]] == [["id", "base"], ["id", "lift=0.1"], ["id", "lift=0.4"]]
    one, other = float(rows[2][2]), float(rows[3][2])
    assert " ".join(rows[3][4:]).startswith(f"correct@1 {other - one:+.3f}"[:-1])
    assert 0 < float(rows[3][8]) < 0.1 and rows[3][-1] == "SE)"
    assert len(begun(tmp_path)) == 2 * 6
    call("experiments", "ablate", "lift=0.1,0.5", *toy, "--seeds", 2, check=True)
    assert len(begun(tmp_path)) == 2 * 8  # one more value, and the look at it


@pytest.mark.parametrize(
    "flags, message",
    [
        (["sing"], "unknown command 'sing'"),
        (["run", "--studies", "s99"], "unknown study 's99'"),
        (["run", "--scale", "huge"], "unknown scale 'huge'"),
        (["ablate", "reward"], "ablate reward=outcome,strict"),
        (["ablate", "reward=outcome"], "ablate reward=outcome,strict"),
        (["ablate", "kl=0,0"], "ablate kl: a value is there twice"),
        (["plan", "s3"], "plan takes no 's3': to choose, write --studies s3"),
        (["run", "--jobs", "0"], "--jobs"),
    ],
)
def test_bad_input_is_one_line(flags, message):
    assert message in error_line(call("experiments", *flags))


def test_a_study_with_a_mistake_is_named_with_its_line(monkeypatch, tmp_path):
    for text, told in (("x = 1 / 0", "line 1: ZeroDivisionError"), ("a = (", "line 1: SyntaxError")):
        (tmp_path / "mine.py").write_text(text)
        monkeypatch.setattr("studies.__path__", [str(tmp_path)])
        monkeypatch.setattr("studies.__file__", str(tmp_path / "__init__.py"))
        line = error_line(call("experiments", "plan"))
        assert str(tmp_path / "mine.py") in line and told in line


# ------------------------------------------------------------------------------------------------------------
# Values and claims


def result(correct, answer=None, samples=4):
    """Of an evaluation: {op: counts}."""
    row = dict(nll=2.0, process=0.5, errors={"no_answer": 2}, noted={"hit": 4}, length=30.0)
    row |= dict(majority=[0.25 * n for n in range(samples)], depth=[2, 2, 2, 4, 3], depth_wrong=[0] * 5)
    ops = {
        op: {
            **row,
            "correct": c,
            "answer": answer[op] if answer else c,
            "faithful": c,
            "logp": [-1.0] * len(c),
        }
        for op, c in correct.items()
    }
    return {"samples": samples, "ops": ops}


def test_measures():
    found = result({"2": [4, 0], "3": [2, 2]}, {"2": [4, 4], "3": [2, 4]})
    assert measure(found, [2, 3], "correct@1").tolist() == [1, 0, 0.5, 0.5]
    assert measure(found, [3], "correct@2") == pytest.approx(
        [5 / 6, 5 / 6]
    )  # 1 - 1/6: both of the two wrong ones
    assert measure(found, [2, 3], "correct@1", "odd").tolist() == [0, 0.5]
    assert measure(found, [2, 3], "hacked").tolist() == [1 - 8 / 14]
    assert measure(found, [2, 3], "no_answer").tolist() == [0.25, 0.25]
    noted = {"hit": 2, "caught": 3, "backtracks": 4, "wrong": 12, "right": 20, "lost": 1}
    found["ops"]["2"] |= dict(noted=noted, length=20.0, depth=[2, 1.0, 1.0, 1.0, 1.0])
    found["ops"]["3"] |= dict(noted={"caught": 1}, length=40.0, depth=[2, 3.0, 5.0, 5.0, 8.5])
    assert measure(found, [2, 3], "hit").tolist() == [0.25, 0]
    assert [measure(found, [2, 3], name).tolist() for name in ("length", "precision", "recall")] == [
        [30],
        [1],
        [1 / 3],
    ]
    assert measure(found, [2, 3], "noticed").tolist() == pytest.approx([4 / 12 - 1 / 20])
    # of (0, 0), (1, 1), (1, 1.5) and (2, 3.5)
    assert measure(found, [2, 3], "depth").tolist() == pytest.approx(
        [np.polyfit([0, 1, 1, 2], [0, 1, 1.5, 3.5], 1)[0]]
    )
    assert measure(found, [2, 3], "depth_wrong").tolist() == [0]
    assert (
        measure(found, [2, 3], "majority@3").tolist()
        == measure(found, [2, 3], "majority@3").tolist()
        == [0.5, 0.5]
    )
    found["ops"]["2"]["logp"] = [np.log(0.5), -800.0]
    assert measure(found, [2], "reach@2").tolist() == pytest.approx([0.75, 0])
    assert measure(found, [2], "majority@99").tolist() == [0.75]  # no more than there are
    rewards = {"rewards": [0.0] * 5 + [0.5] * 15, "zero_variance": 0.3}
    assert measure(rewards, None, "rise").tolist() == [0.5]
    rewards = {"rewards_school": [0.1, None, 0.3, None, 0.6, 0.8]}  # B in four of six steps; halves
    assert measure(rewards, None, "rise in B") == pytest.approx([0.5])


def test_weights_of_a_linear_contrast():
    found = weights_of(lambda v: (v("a", "id", "x") + v("b", "id", "x")) / 2 - v("c", "id", "x", look="B"))
    assert found == {
        ("a", "id", "x", "main", "all"): 0.5,
        ("b", "id", "x", "main", "all"): 0.5,
        ("c", "id", "x", "B", "all"): -1,
    }


def made_up(claim, rates, seeds=4, gate=lambda v: 0.0, noise=0.02, problems=60, missing=(), **scale):
    """The row of a claim, where arms have these rates in the band id."""
    stages = {(arm, s): stage("evaluate", checkpoints=f"{arm}{s}") for arm in rates for s in range(seeds)}
    rand, results = np.random.default_rng(0), {}
    for (arm, s), it in stages.items():
        if (arm, s) not in missing:
            rate = np.clip(rates[arm] + noise * rand.normal(), 0, 1) if 0 < rates[arm] < 1 else rates[arm]
            counts, others = rand.binomial(32, rate, (2, problems)).tolist()
            results[it.name] = {**result({"2": counts, "3": others}, samples=32), "seconds": 60, "code": "c"}
    study = Study("made", "up", lambda c, seed: {arm: stages[arm, seed.base] for arm in rates}, (claim,),
                  looks=lambda c, seed, arm, it: {"main": it}, gate=gate)  # fmt: skip
    scale = replace(SCALES["micro"], seeds=seeds, **scale)
    return Values(results, study, scale, seeds).row(claim)


def gap(v):
    return v("b", "id", "correct@1") - v("a", "id", "correct@1")


UP, EQUAL = Claim("X", "", gap), Claim("X", "", gap, expect="equal")


@pytest.mark.parametrize(
    "claim, rates, more, verdict",
    [
        (UP, {"a": 0.3, "b": 0.6}, {}, "replicated"),
        (UP, {"a": 0.6, "b": 0.3}, {}, "refuted"),
        (Claim("X", "", gap, half=0.5), {"a": 0.3, "b": 0.6}, {}, "direction only"),
        (EQUAL, {"a": 0.4, "b": 0.4}, {"noise": 0.002, "problems": 4000}, "equal"),
        (UP, {"a": 0.4, "b": 0.45}, {"noise": 0.2}, "underpowered"),
        (UP, {"a": 0.0, "b": 0.0}, {}, "at floor"),
        (UP, {"a": 1.0, "b": 1.0}, {}, "at ceiling"),
        (
            UP,
            {"a": 0.3, "b": 0.6},
            {"gate": lambda v: -0.1 + 0 * v("a", "id", "correct@1")},
            "gate C0 not met",
        ),
        (UP, {"a": 0.3, "b": 0.6}, {"missing": [("a", 3)]}, "incomplete: 3 of 4 seeds"),
        (UP, {"a": 0.3, "b": 0.6}, {"share": 0.1}, "incomplete: 10% of the budget"),
        (UP, {"a": 0.3, "b": 0.6}, {"seeds": 1}, "underpowered"),
        (UP, {"a": 0.3, "b": 0.6}, {"missing": [("a", s) for s in range(4)]}, "not run"),
    ],
)
def test_states(claim, rates, more, verdict):
    assert made_up(claim, rates, **more)["verdict"] == verdict


def test_the_error_is_pooled_over_the_arms_that_are_not_at_the_floor():
    arms = {"a": 0.3, "b": 0.6, "c": 0.4, "d": 0.5}
    pooled, alone = made_up(UP, {**arms, "e": 0.0}), made_up(UP, {"a": 0.3, "b": 0.6})
    assert pooled["effect"] == pytest.approx(alone["effect"]) and pooled["plain"] == pytest.approx(
        alone["plain"]
    )
    assert alone["interval"] == pytest.approx(alone["plain"])  # two arms in blocks are the paired test
    assert pooled["interval"] != pytest.approx(pooled["plain"])
    assert made_up(UP, arms)["interval"] == pytest.approx(pooled["interval"])  # e adds nothing


ARMS = ("base", "a", "b", "c", "d")


@functools.cache
def trained_arms(base):
    """Of one base; stages are looked at alone, and need a name."""
    start = stage("evaluate", checkpoints=f"base{base}")
    runs = {arm: stage("evaluate", checkpoints=start, seed=i) for i, arm in enumerate(ARMS)}
    return {**runs, "base": start}


def trained(rand, seeds=4, common=0.1, own=0.03, n=10**6):
    """Values of a made-up study: what training does is alike in all arms of a base, but for a little."""
    alike, results = common * rand.normal(size=seeds), {}
    study = Study(
        "made", "up", lambda c, seed: trained_arms(seed.base), (UP,), lambda c, seed, arm, it: {"main": it}
    )
    for (seed, arm, _), it in study.at(SCALES["micro"], seeds).items():
        moved = (arm != "base") * (alike[seed.base] + own * rand.normal())
        count = [round(n * min(1, max(0, 0.5 + moved)))]  # of one problem
        results[it.name] = {**result({"2": count, "3": count}, samples=1), "samples": n}
    return Values(results, study, replace(SCALES["micro"], seeds=seeds), seeds)


def between(more, less):
    return lambda v: v(more, "id", "correct@1") - v(less, "id", "correct@1")


@pytest.mark.parametrize("more, less", [("a", "base"), ("a", "b")])
def test_intervals_cover_where_training_moves_all_arms_alike(more, less):
    """Pooled over all five arms the interval of a gain over the base would hold the truth in 83 studies of 100:
    the base has none of what is alike in the others.
    """
    rand, held, there = np.random.default_rng(5), 0, np.ones(4, bool)
    for _ in range(400):
        low, high = trained(rand).estimate(between(more, less), there).interval()
        held += low <= 0 <= high
    assert 0.93 <= held / 400 <= 0.97


def test_no_arm_is_pooled_with_those_that_start_from_it():
    values, there = trained(np.random.default_rng(6)), np.ones(4, bool)
    assert values.roots() == {"base"}
    assert values.estimate(between("a", "base"), there).df == 3
    assert values.estimate(between("a", "b"), there).df == 9  # four arms


def test_no_effect_is_found_where_both_arms_stay_at_the_floor():
    """… if another arm shows that the floor can be left; and that all seeds agree is no certainty."""
    none = Claim("X", "", gap, expect="none", margin=0.1)
    row = made_up(none, {"a": 0.0, "b": 0.0, "c": 0.4})
    assert row["verdict"] == "replicated" and 0.005 < row["interval"][1] < 0.01  # of 480 problems
    assert made_up(none, {"a": 0.0, "b": 0.0})["verdict"] == "at floor"


def test_what_lies_beyond_the_base():
    """Of four problems the arm solves three; to one of these its base gives a likelihood of e^-20."""
    it = {arm: stage("evaluate", checkpoints=arm) for arm in ("base", "edge")}
    results = {it["base"].name: result({"4": [0, 0, 0, 0]}), it["edge"].name: result({"4": [4, 1, 0, 2]})}
    results[it["base"].name]["ops"]["4"]["logp"] = [-1.0, -20.0, -20.0, -5.0]
    study = Study("made", "up", lambda c, seed: it, (), lambda c, seed, arm, it: {"main": it})
    values = Values(results, study, SCALES["micro"], 1)
    assert values.values(lambda v: v("edge", "edge", "beyond")) == pytest.approx(1 / 3)


def test_what_an_rl_step_is_worth_by_hand():
    """pass@1 that is made of four known numbers gives them back."""

    def v(arm, band, metric):
        mid, share = (float(word.split()[1]) for word in arm.split(", "))
        logit = -2 + 0.5 * np.log(1 + 16 * mid) + 0.3 * np.log(1 + 4 * share)
        logit += 0.1 * np.log(1 + 16 * mid) * np.log(1 + 4 * share)
        return 1.02 / (1 + np.exp(-logit)) - 0.01

    assert interplay.logit_fit(v) == pytest.approx([-2, 0.5, 0.3, 0.1])
    step = 1e-5  # of each derivative, by the definition
    x, z = np.log(1 + 16 * 0.25), np.log(2)
    by_mid = (0.5 + 0.1 * z) * (np.log(1 + 16 * (0.25 + step)) - x) / step
    by_rl = (0.3 + 0.1 * x) * (np.log(1 + 4 * (0.25 + step)) - z) / step
    assert interplay.exchange(v) == pytest.approx(by_rl - by_mid, rel=1e-3)


def test_a_contrast_that_is_not_linear_goes_by_seeds_alone():
    best = Claim(
        "X",
        "",
        lambda v: max(v("b", "id", "correct@1"), v("c", "id", "correct@1")) - v("a", "id", "correct@1"),
    )
    row = made_up(best, {"a": 0.3, "b": 0.5, "c": 0.52})
    assert row["interval"] == pytest.approx(row["plain"])


def test_rl_seeds_are_averaged_within_their_base():
    """Two bases with two RL seeds each: the base is the block; the spread of both is told apart."""
    rates, results = {(0, 0): 0.4, (0, 1): 0.6, (1, 0): 0.5, (1, 1): 0.9}, {}

    def arms(c, seed):
        return {
            "a": stage("evaluate", checkpoints=f"a{seed.base}"),
            "b": stage("evaluate", checkpoints=f"b{seed}"),
        }

    study = Study("made", "up", arms, (UP,), looks=lambda c, seed, arm, it: {"main": it}, nested=2)
    for (seed, arm, _), it in study.at(SCALES["micro"], 2).items():
        counts = [round(20 * rates[seed])] * 5 if arm == "b" else [2] * 5
        results[it.name] = {**result({"2": counts, "3": counts}, samples=20), "seconds": 1, "code": "c"}
    row = Values(results, study, SCALES["micro"], 2).row(UP)
    assert row["effect"] == pytest.approx((0.5 + 0.7) / 2 - 0.1) and row["seeds"] == "2 × 2"
    assert row["plain"] == pytest.approx(paired([0.4, 0.6]).interval())
    within = np.mean([np.var([0.4, 0.6], ddof=1), np.var([0.5, 0.9], ddof=1)])
    assert row["spread"] == pytest.approx((0, within**0.5))  # 0.02 between, less 0.05 / 2
    del results[
        stage("evaluate", checkpoints=f"b{Seed(1, 1)}").name
    ]  # a base counts if all its RL seeds are there
    values = Values(results, study, SCALES["micro"], 2)
    row = values.row(UP)
    assert row["effect"] == pytest.approx(0.5 - 0.1) and row["verdict"] == "incomplete: 1 of 2 seeds"
    panel = values.panels()["correct@1", "id"]
    assert panel["a"][0] == pytest.approx([0.1, 0.1])
    assert panel["b"] == (pytest.approx([0.5, np.nan], nan_ok=True), 0)


def test_committed_weights_that_are_not_what_was_hashed_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"other")
    (tmp_path / "stage.json").write_text(json.dumps({"hash": "0", "done": {}, "result": {}}))
    with pytest.raises(UserError, match="is not what"):
        experiments.unpack(Workshop(tmp_path / "out", tmp_path / "results"), stage(), tmp_path)


@pytest.mark.parametrize("study", load_studies()[0].values(), ids=lambda study: study.name)
def test_every_claim_can_be_judged(study):
    """With results made up for all its stages: each contrast is a number, each row can be told."""
    rand, results, scale = np.random.default_rng(0), {}, SCALES["micro"]
    for it in {it.name: it for it in study.at(scale, 3).values()}.values():
        counts = {str(op): rand.integers(0, 3, 4).tolist() for op in range(2, 6)}
        found = result(counts, samples=2) if it.script == "evaluate" else {"tokens": 1000}
        rewards = (
            {
                "rewards": rand.random(20).tolist(),
                "zero_variance": 0.5,
                "rewards_school": [None, *rand.random(19)],
            }
            if it.script == "train_grpo"
            else {}
        )
        results[it.name] = {**found, **rewards, "seconds": 36.0, "code": "c"}
    values = Values(results, study, scale, 3)
    rows = [values.row(claim) for claim in study.claims]
    assert all(np.isfinite(row["effect"]) and row["verdict"] for row in rows)
    assert all(len(cells) == len(COLUMNS) for cells in table_of(rows))
    assert len(list(values.lines())) > 20 and all(
        len(arms) == len(values.arms) for arms in values.panels().values()
    )


def test_summary_counts_discoveries():
    rows = [
        dict(expect="up", effect=effect, verdict="replicated", p=p) for effect, p in ((1, 0.001), (1, 0.5))
    ]
    rows += [dict(expect="equal", verdict="equal", p=0.9), dict(expect="up", verdict="not run")]
    said = "4 claims: 2 replicated, 1 equal, 1 not run. Of 2 effects tested, 1 replicated"
    assert summary(rows).startswith(said)
    # a clear effect in the other direction is no discovery, and makes none of another
    other = [
        dict(expect="down", effect=1, verdict="refuted", p=0.001),
        dict(expect="up", effect=1, verdict="replicated", p=0.15),
    ]
    assert "Of 2 effects tested, 0 replicated" in summary(other)
    other[0]["expect"] = "up"
    other[0]["verdict"] = "replicated"
    assert "Of 2 effects tested, 2 replicated" in summary(other)


# ------------------------------------------------------------------------------------------------------------
# The real scripts


def test_a_small_study_end_to_end(tmp_path, monkeypatch):
    """Pre-training, GRPO, evaluation and report at the scale micro; its base packed, and taken up elsewhere."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(workshop, "POLL", 0.1)
    where = ["--scale=micro", "--studies=tau", "--seeds=1", f"--results={tmp_path / 'results'}"]
    where.append(f"--bases={tmp_path / 'bases'}")
    call("experiments", "run", *where, f"--out={tmp_path / 'out'}", "--jobs", 2, check=True)
    call("experiments", "report", *where, f"--out={tmp_path / 'out'}", check=True)
    claims = (tmp_path / "out/micro/claims.md").read_text()
    assert "| T1 |" in claims and "1 × 2" in claims
    for path in (tmp_path / "results/micro").glob("*.json"):
        assert path.stat().st_size < 4096
    call("experiments", "pack", *where, f"--out={tmp_path / 'out'}", check=True)
    assert len(list((tmp_path / "bases").iterdir())) == 1
    grpo = next((tmp_path / "results/micro").glob("train_grpo-*.json"))
    kept = json.loads(grpo.read_text())
    grpo.unlink()
    elsewhere = f"--out={tmp_path / 'again'}"
    # with a thread a stage: two would crawl beside other tests
    call("experiments", "run", *where, elsewhere, "--jobs", 2, check=True)
    stages = {path.parent.name for path in (tmp_path / "again/micro/stages").glob("*/log.txt")}
    assert stages == {grpo.stem}  # the base was not trained again
    again = json.loads(grpo.read_text())
    assert {k: again[k] for k in ("rewards", "tokens")} == {k: kept[k] for k in ("rewards", "tokens")}


def test_the_committed_results_are_reported(tmp_path):
    """Whatever has been run of a study: a look may be at one band alone."""
    call("experiments", "report", "--studies=s3,n1", f"--out={tmp_path}", "--quiet", check=True)
    lines = [json.loads(line) for line in (tmp_path / "mini" / "results.jsonl").read_text().splitlines()]
    assert {line["band"] for line in lines if line["look"] == "cold"} == {"edge"}
    assert "| C2a |" in (tmp_path / "mini" / "claims.md").read_text()
