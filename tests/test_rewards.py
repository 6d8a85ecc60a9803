"""Rewards: built in, one's own, weighted; and own problems, from the line of a file to the metrics of a run."""

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from lab.options import UserError

import pytest
import torch
from conftest import call, error_line
from test_grpo import learner, make, parameters, samples

import data
import datagen
import evaluate
import report
import rollout
import studies
import train_grpo
import verify
from bench.step_trace import small_run
from model import ModelConfig, Qwen2
from rewards import Reward, soft_overlong, up_to_first_error
from rollout import Rollout
from sampled import as_line, keep_tries
from tasks import read_problems, read_tasks
from tokenizer import train_bpe

OWN = """import math

def brevity(text, record, verdict, finished, n_tokens):
    return -n_tokens / 10

def says(text, record, verdict, finished, n_tokens):
    return 1 + finished if str(record["answer"]) in text else 0

def breaks(text, record, verdict, finished, n_tokens):
    return 1 / (n_tokens - n_tokens)

def nothing(text, record, verdict, finished, n_tokens):
    pass

def endless(text, record, verdict, finished, n_tokens):
    return math.inf

def leaves(text, record, verdict, finished, n_tokens):
    raise SystemExit

def vast(text, record, verdict, finished, n_tokens):
    return 1e300

def strict(text, record, verdict, finished, n_tokens):
    record["question"] = "mine"
    return 1

def few(text, record):
    return 1

number = 3
"""
WORLD = "op 2; distractors 1-1; literals 1-9; bound 99"
SMALL = ["--steps", 2, "--prompts", 2, "--group", 2, "--minibatch", 2, "--max-new-tokens", 8, "--eval-problems", 1, "--threads", 1]  # fmt: skip


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def tried(text=None, n_tokens=5, finished=True, problem=None):
    problem = problem or datagen.generate(0, 0, op=3)
    text = problem.solution if text is None else text
    return Rollout(
        problem, [1], [2] * n_tokens, [0.0] * n_tokens, finished, text, verify.verify(text, problem)
    )


def test_a_sum_of_parts_by_hand(own):
    reward = Reward(f"strict, {own}:brevity:0.1, {own}:says:0.25, process:0.5")
    total, parts = reward(tried())
    assert parts == {"strict": 1, "brevity": -0.5, "says": 2, "process": 1}
    assert total == pytest.approx(1 - 0.05 + 0.5 + 0.5)
    total, parts = reward(tried("Answer: 1000.", n_tokens=20, finished=False))
    assert parts == {"strict": 0, "brevity": -2, "says": 0, "process": 0} and total == pytest.approx(-0.2)
    assert reward.files == [str(own), str(own)]


@pytest.mark.parametrize("kind", verify.REWARDS)
def test_a_single_built_in_reward_is_that_of_the_judge(kind):
    for text in (None, "Answer: 3.", ""):
        it = tried(text)
        assert Reward(kind, 0.3)(it) == (verify.reward(it.verdict, kind, 0.3),) + (
            {kind: verify.reward(it.verdict, kind, 0.3)},
        )


def test_soft_overlong_punishment_by_hand():
    """DAPO, eq. 13, with a limit of 20 and a cache of 4: 0 up to 16 tokens, then a quarter a token."""
    paid = [soft_overlong(tried(n_tokens=n), 20, 4) for n in (1, 16, 17, 18, 19, 20, 25)]
    assert paid == [0, 0, -0.25, -0.5, -0.75, -1, -1]
    assert Reward("overlong", longest=20)(tried(n_tokens=18))[0] == -0.5  # the cache is a fifth
    assert Reward("strict:1, overlong:0.5", longest=20, overlong=10)(tried(n_tokens=15))[0] == 0.75


def test_options_of_a_reward_that_is_not_there():
    for spec, given in (("strict", dict(overlong=5)), ("overlong", dict(overlong=30, longest=20))):
        with pytest.raises(UserError, match=r"--overlong .* is of a reward overlong, and at most"):
            Reward(spec, **given)


def test_a_reward_of_ones_own_ends_at_no_error_and_changes_no_record(own):
    reward, record = Reward(f"{own}:strict"), {"question": "?", "answer": 7}
    assert not reward.ends_at_errors and Reward("strict, faithful").ends_at_errors
    assert reward(tried("", problem=record))[0] == 1 and record["question"] == "?"


def test_what_was_broken_off_may_be_paid_nothing():
    for unfinished, paid in ((None, 1), ("mask", 1), ("reward0", 0)):
        reward = Reward("strict", unfinished=unfinished)
        assert reward(tried(finished=False)) == (paid, {"strict": 1}) and reward(tried())[0] == 1


@pytest.mark.parametrize("spec, words", [
    ("vibes", "unknown reward 'vibes'"), ("strict:x", "'x' is not a weight"), ("strict:-1", "'-1' is not"), ("", "reward"),
    ("strict:0", "add up to 0"), ("strict, strict:2", "given twice"), ("nowhere.py:f", "cannot read nowhere.py"),
    ("strict:1:2", "'1:2' is not a weight"), ("OWN:missing", "has no function missing"), ("OWN:few", "few must take text, record, verdict, finished, n_tokens"), ("OWN:number", "has no function number"),
])  # fmt: skip
def test_a_reward_that_is_none_is_one_line(own, spec, words):
    with pytest.raises(UserError, match=words) as error:
        Reward(spec.replace("OWN", str(own)))
    assert "\n" not in str(error.value)


def test_errors_in_a_file_of_ones_own_name_file_line_and_problem(own, tmp_path):
    for name, words in (("breaks", f"{own}, line 10: ZeroDivisionError: division by zero, at problem train/0/0"),
                        ("nothing", f"{own}: nothing returned None, at problem train/0/0: a reward must be a number"), ("leaves", f"{own}, line 19: SystemExit:"),
                        ("vast", f"{own}: vast returned 1e+300, at problem train/0/0"), ("endless", f"{own}: endless returned inf, at problem train/0/0")):  # fmt: skip
        with pytest.raises(UserError) as error:
            Reward(f"{own}:{name}")(tried())
        assert str(error.value).startswith(words) and "\n" not in str(error.value)
    record = {"question": "?", "answer": 7, "where": "mine.jsonl, line 3"}
    with pytest.raises(UserError, match=r"at problem mine.jsonl, line 3$"):
        Reward(f"{own}:breaks")(tried("", problem=record))
    for content, words in (
        ("def f(:\n", "line 1: SyntaxError"),
        ("\n\nraise ValueError('a\\nb')", "line 3: ValueError: a b"),
        ("raise SystemExit(0)", "line 1: SystemExit"),
    ):
        own.write_text(content)
        with pytest.raises(UserError, match=words):
            Reward(f"{own}:f")
    assert [path.name for path in tmp_path.iterdir()] == ["own.py"]  # no folder of compiled code beside it


def test_records_with_an_answer_alone(tmp_path):
    path = tmp_path / "mine.jsonl"
    check = Reward("outcome").check
    answers = [72, "72", "48/2 = 24 in May.\n48 + 24 = 72\n#### 72", "#### 1,072", "-3"]
    path.write_text("\n".join(json.dumps({"question": "?", "answer": answer}) for answer in answers))
    assert [record["answer"] for record in read_tasks(path, check)] == [72, 72, 72, 1072, -3]
    good = json.dumps({"question": "?", "answer": 7})
    for bad, words in (({"question": "?", "answer": "1,2"}, "'1,2', is no whole"), ({"question": "?", "answer": 3.5}, "3.5, is no whole"),
                       ({"answer": 3}, "'question'"), ({"question": "?"}, "gold graph"), ({"prompt": "a", "completion": "b"}, "'question'")):  # fmt: skip
        path.write_text(f"{good}\n\n{json.dumps(bad)}\n")
        with pytest.raises(UserError, match=f"mine.jsonl, line 3: .*{words}"):
            read_tasks(path, check)
    path.write_text(good)
    for reward in ("strict", "outcome, process:0.1", "faithful"):
        with pytest.raises(UserError, match="line 1: an answer but no steps"):
            read_tasks(path, Reward(reward).check)
    with_steps = datagen.to_record(datagen.generate(0, 0, op=3))
    path.write_text(json.dumps(with_steps))
    assert read_tasks(path, Reward("strict").check)[0]["nodes"] == with_steps["nodes"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The checkpoint of a small untrained model."""
    return small_run(tmp_path_factory.mktemp("start")).o.init_from


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.jsonl"
    lines = [{"question": f"What is {i} + 2?", "answer": f"{i} and 2 #### {i + 2}"} for i in range(5)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_rewards_of_each_context_are_logged(start, own, tmp_path):
    """What all tries of a context earn, and its share of the tries."""
    command = ["train_grpo", "--init-from", start, *SMALL, "--mixture", f"{WORLD}; template zoo, school"]
    call(*command, "--prompts", 6, "--reward", f"{own}:brevity", "--out", tmp_path / "run", check=True)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "rollout/reward" in line]
    assert any(0 < line["rollout/zoo/share"] < 1 for line in steps)
    for line in steps:
        assert line["rollout/zoo/share"] + line["rollout/school/share"] == pytest.approx(1, rel=1e-4)
        paid = line["rollout/zoo/reward"] + line["rollout/school/reward"]
        assert line["rollout/reward"] == pytest.approx(paid, rel=1e-4) and paid
    o = train_grpo.Options(mixture=f"{WORLD}; template zoo, school", prompts=6, group=2)
    kept = studies.of_grpo(o, tmp_path / "run")
    for name in ("zoo", "school"):
        told = [(line[f"rollout/{name}/reward"], line[f"rollout/{name}/share"]) for line in steps]
        assert kept[f"rewards_{name}"] == [round(paid / part, 4) if part else None for paid, part in told]
    alone = [{key: line[key] for key in line if not key.endswith("/share")} for line in steps]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in alone))
    one = studies.of_grpo(replace(o, mixture=f"{WORLD}; template zoo:0, school:1"), tmp_path)
    assert one["rewards_school"] == one["rewards"]  # where a study has RL in one context alone, it is that


def test_rl_on_own_problems_with_an_own_reward(start, own, mine, tmp_path):
    """Each part is logged; and a run whose reward or problems have changed since is not resumed."""
    command = ["train_grpo", "--init-from", start, "--mixture", WORLD, *SMALL, "--data", mine]
    refused = error_line(call(*command, "--out", tmp_path / "x"))
    assert f"{mine}, line 1: an answer but no steps, which the reward strict judges" in refused
    assert not (tmp_path / "x").exists()
    run = tmp_path / "run"
    out = call(*command, "--reward", f"outcome:1, {own}:brevity:0.1", "--out", run, check=True)
    assert f"\nheld out: problems of --mixture, not of {mine}\n" in out.stdout
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "rollout/reward" in line]
    assert len(steps) == 2
    for line in steps:
        parts = line["rollout/reward/outcome"] + 0.1 * line["rollout/reward/brevity"]
        assert line["rollout/reward"] == pytest.approx(parts, rel=1e-4)
        assert line["rollout/reward/brevity"] == pytest.approx(-line["rollout/length"] / 10, rel=1e-4)
    tries = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert tries[0]["problem"] == f"{mine}, line 1" and set(tries[0]["parts"]) == {"outcome", "brevity"}
    for file in (own, mine):
        before = file.read_text()
        file.write_text(before + "\n")
        assert f"{file} has changed since {run} was started" in error_line(
            call("train_grpo", "--resume", "--out", run)
        )
        file.write_text(before)
    call("train_grpo", "--resume", "--out", run, check=True)


@pytest.fixture
def held(tmp_path):
    """Three problems with an answer alone and one of op 3 with all that a record has."""
    path = tmp_path / "held.jsonl"
    lines = [datagen.to_record(datagen.generate(0, 0, op=3))]
    lines += [{"question": f"What is {i} + 5?", "answer": i + 5} for i in range(3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_rl_is_evaluated_on_own_problems(start, mine, held, tmp_path):
    """Beside --data or a mixture; a run is not resumed where the file has changed since."""
    command = ["train_grpo", "--init-from", start, "--mixture", WORLD, *SMALL, "--eval-data", held]
    with_data = ["--data", mine, "--reward", "outcome", "--eval-tries", 2]
    for name, more in (("mixture", []), ("data", with_data)):
        out = call(*command, *more, "--out", tmp_path / name, check=True)
        assert "held out: problems" not in out.stdout
        assert re.search(
            r"step 0: held-out NLL \([a-z@1 ]+\) op 0 \(0.00\), op 3 \d.\d{3} \(0.00\)", out.stdout
        )
        first = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
        assert {"eval/nll_op3", "eval/correct_op0", "eval/correct_op3", "eval/pass@1"} < {*first}
        assert not {"eval/nll_op0", "eval/nll_op2"} & {*first}
        assert ("eval/pass@2" in first) == (name == "data")
        samples = (tmp_path / name / "samples.txt").read_text()
        assert "What is 0 + 5?" in samples and "--- op 3" in samples
    held.write_text(held.read_text() + "\n")
    out = call("train_grpo", "--resume", "--out", tmp_path / "data")
    assert f"{held} has changed since {tmp_path / 'data'} was started" in error_line(out)


@pytest.mark.parametrize("content, words", [
    (None, "cannot read .*held.jsonl"), ("", "held.jsonl has no records"), ("{", "held.jsonl, line 1: not JSON"), ('{"question": "?"}', "line 1: .*gold graph"),
    ('{"question": "?", "answer": 3}\n{"question": "?", "answer": 3, "op": "5"}', "line 2: its `op`, '5', is no whole number"),
])  # fmt: skip
def test_held_out_problems_that_are_none_are_one_line(start, held, tmp_path, content, words):
    held.unlink() if content is None else held.write_text(content)
    command = ["train_grpo", "--init-from", start, "--mixture", WORLD, *SMALL, "--eval-data", held]
    assert re.search(words, error_line(call(*command, "--out", tmp_path / "x")))
    assert not (tmp_path / "x").exists()


def test_own_held_out_problems_count_one_by_one(held, monkeypatch):
    """pass@1 is over problems, however many each op has; an answer alone is solved by it."""
    problems = read_problems(held)
    texts = ["<answer> 5 </answer>", "<answer> 6 </answer>", "no answer", problems[3].solution]
    rollouts = [tried(text, problem=problem) for text, problem in zip(texts, problems)]
    streams = []
    monkeypatch.setattr(
        rollout, "roll_out", lambda m, t, p, n, stream, **how: streams.append(stream) or rollouts
    )
    monkeypatch.setattr(rollout, "room", lambda *_: (100, None))
    monkeypatch.setattr(rollout, "held_out_nll", lambda m, t, problems: {p.op: 0.5 for p in problems})
    values, _ = rollout.evaluate_held_out(None, None, problems, 8, stream=(7, 30))
    assert streams == [("held out", 7, 30)]
    assert values == {
        "eval/nll_op3": 0.5,
        "eval/correct_op0": 2 / 3,
        "eval/correct_op3": 1,
        "eval/pass@1": 0.75,
    }


def test_an_error_in_ones_own_reward_ends_the_run_in_one_line(start, own, tmp_path):
    out = call(
        "train_grpo",
        "--init-from",
        start,
        "--mixture",
        WORLD,
        *SMALL,
        "--reward",
        f"{own}:breaks",
        "--out",
        tmp_path / "run",
    )
    assert f"{own}, line 10: ZeroDivisionError: division by zero, at problem rl/" in error_line(out)


def test_evaluation_of_own_problems_and_rescoring(start, mine, tmp_path, monkeypatch):
    """The table of an answer-only file; then the same tries judged again, without a model."""
    run = tmp_path / "eval"
    command = [
        "evaluate",
        f"a={start}",
        "--data",
        mine,
        "--samples",
        2,
        "--k",
        "1,2",
        "--max-new-tokens",
        8,
        "--threads",
        1,
    ]
    out = call(*command, "--out", run, check=True)
    table = [line.split() for line in out.stdout.splitlines() if line.startswith("mine ")]
    assert len(table) == 1 and table[0][:2] == ["mine", "a"] and table[0][-3:] == ["-", "-", "-"]
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [len(line["texts"]) for line in lines] == [10] and lines[0]["nll"] is None
    assert "--resume" in error_line(call(*command, "--out", run))
    monkeypatch.setattr(evaluate, "load_checkpoint", lambda *arguments: pytest.fail("a model"))
    lines[0]["texts"][0] = "<answer> 2 </answer>"  # as if a try at the first problem were right
    (run / "samples.jsonl").write_text(json.dumps(lines[0]))  # whole, but for its end
    call("evaluate", "--rescore", "--out", run, "--report", tmp_path / "page.html", check=True)
    page = (tmp_path / "page.html").read_text()  # which shows what the table counts
    assert re.findall(r'data-level="(\d)"><h4>a · <span class="(\w+)"', page)[:2] == [
        ("2", "good"),
        ("0", "bad"),
    ]
    assert "no steps to compare with: the answer alone is judged" in page and "process" not in page
    judged = json.loads((run / "judged.jsonl").read_text())
    assert judged["answer"] == judged["correct"] == [1, 0, 0, 0, 0] and judged["faithful"] == [0] * 5
    results = json.loads((run / "results.json").read_text())["results"]["a"]
    assert results["band"]["mine"]["correct@2"]["mean"] == pytest.approx(0.2)
    (run / "samples.jsonl").write_text("")
    assert "lacks the tries of a at op 0" in error_line(call("evaluate", "--rescore", "--out", run))
    (run / "samples.jsonl").write_text('{"name": "a", "op": 0}\n')
    assert "samples.jsonl, line 1 has no " in error_line(call("evaluate", "--rescore", "--out", run))
    mine.write_text(mine.read_text() + '{"question": "?", "answer": 1}\n')
    assert f"{mine} has changed" in error_line(call("evaluate", "--rescore", "--out", run))


NODES = [dict(name="a", operator="", operands=[], constant=None, value=3), dict(name="b", operator="+", operands=["a"], constant=1, value=4)]  # fmt: skip


@pytest.mark.parametrize(
    "change, words",
    [
        ({"nodes": NODES[::-1]}, "its node 'b' has an operand that no node before it is"),
        ({"nodes": [{**NODES[0], "colour": 1}]}, "colour"),
        ({"mode": {}}, "'mode'"),
        ({"template": ["zoo"]}, "'template'"),
        ({"op": 10**30}, "its `op`, 1000"),
        ({"question": "\ud800"}, "lone surrogate"),
    ],
)
def test_odd_records_are_one_line(change, words, tmp_path):
    good = {"question": "?", "problem": "", "nodes": NODES, "answer": 4, "solution": ""}
    (tmp_path / "r.jsonl").write_text(json.dumps(good) + "\n" + json.dumps({**good, **change}) + "\n")
    with pytest.raises(UserError, match=rf"r.jsonl, line 2: .*{words}"):
        read_problems(tmp_path / "r.jsonl")


def test_a_problem_is_asked_its_question(tmp_path):
    (tmp_path / "r.jsonl").write_text(json.dumps({"question": "?", "answer": 4, "prompt": 5}))
    assert data.prompt_text(read_tasks(tmp_path / "r.jsonl")[0]) == "[BOS]<question> ? </question> <solution>"


def test_what_is_no_file_is_no_input_of_a_run(start, tmp_path):
    """It could not be read again when the run is resumed."""
    command = ["train_grpo", "--init-from", start, "--mixture", WORLD, *SMALL, "--out", tmp_path / "x"]
    assert "--data is empty" in error_line(call(*command, "--data", ""))
    here, there = os.pipe()
    os.write(there, json.dumps({"question": "?", "answer": 4}).encode())
    os.close(there)
    told = error_line(call(*command, "--data", f"/dev/fd/{here}", "--reward", "outcome"))
    os.close(here)
    assert f"/dev/fd/{here} is no file" in told


def test_ways_of_asking_need_a_graph(start, tmp_path):
    (tmp_path / "r.jsonl").write_text(json.dumps({"question": "?", "answer": 4}))
    command = ["evaluate", f"a={start}", "--data", tmp_path / "r.jsonl", "--k", "1", "--out", tmp_path / "x"]
    assert "--ask planted needs the `nodes`" in error_line(call(*command, "--ask", "planted"))
    assert not (tmp_path / "x").exists()


def test_evaluation_of_records_with_steps(start, tmp_path):
    """Of the generator's: the same verdicts and floors as of the problems themselves."""
    path, problems = (
        tmp_path / "r.jsonl",
        [datagen.generate(3, i, op=2 + i % 2, split="eval") for i in range(6)],
    )
    path.write_text("".join(json.dumps(datagen.to_record(problem)) + "\n" for problem in problems))
    found = read_problems(path)
    assert [p.op for p in found] == [2, 2, 2, 3, 3, 3] and {p.mode for p in found} == {"forward"}
    for problem in found:
        assert verify.verify(problem.solution, problem).faithful
        same = next(p for p in problems if p.id == problem.id)
        assert report.sums_suffice(problem, True) == report.sums_suffice(same, True)
    call("evaluate", f"a={start}", "--data", path, "--samples", 1, "--k", 1, "--max-new-tokens", 8, "--threads", 1,
         "--out", tmp_path / "eval", check=True)  # fmt: skip
    result = json.loads((tmp_path / "eval" / "results.json").read_text())["results"]["a"]
    assert set(result["band"]["r"]) >= {"copy_floor", "plus_floor"} and math.isfinite(result["nll"]["2"])


def test_a_masked_try_is_no_part_of_the_loss():
    after = []
    for unfinished in (None, "mask"):
        it, some = learner(make(), unfinished=unfinished), samples()
        for i, sample in enumerate(some):
            sample.finished = i % 2 == 0
        it.learn(some if unfinished else some[::2])
        after.append(parameters(it.model))
    torch.testing.assert_close(*after, atol=0, rtol=0)


def test_verdicts_of_records_without_steps_are_solved_by_the_answer():
    record = {"question": "?", "answer": 7}
    assert verify.verify("Answer: 7.", record).solved and not verify.verify("Answer: 8.", record).solved
    problem = datagen.generate(0, 0, op=3)
    assert not verify.verify(f"Answer: {problem.answer}.", problem).solved
    assert verify.verify(problem.solution, problem).solved


def test_the_example_of_the_readme():
    root = Path(__file__).parent.parent
    file = root / "docs" / "my_rewards.py"
    assert f"```python\n{file.read_text()}```" in (root / "README.md").read_text(encoding="utf-8")
    assert Reward(f"{file}:short_and_right, {file}:brevity:2")(tried(n_tokens=70))[0] == pytest.approx(
        0.5 - 1.4
    )


def test_tries_of_two_processes_stand_in_the_order_of_their_prompts():
    """Of 5 prompts the first process has 0, 2 and 4, the other 1 and 3; two tries at each."""
    texts = [[f"{p}{g}" for p in range(r, 5, 2) for g in "ab"] for r in (0, 1)]
    own, others = ([tried(text) for text in part] for part in texts)
    processes = SimpleNamespace(first=True, gather=lambda lines: [lines, [*map(as_line, others)]])
    kept = []
    run = SimpleNamespace(keep_last=lambda name, step, steps, lines: kept.append((name, step, steps, lines)))
    keep_tries(run, processes, SimpleNamespace(prompts=5, group=2, show_every=0, keep_rollouts=3), 7, own)
    ((name, step, steps, lines),) = kept
    assert (name, step, steps) == ("rollouts.jsonl", 7, 3)
    assert [line["text"] for line in lines] == [f"{p}{g}" for p in range(5) for g in "ab"]


def judged(problem, ids, tokenizer):
    """A try of these tokens, each with its place as its log-probability."""
    text = tokenizer.decode(ids)
    places = [float(n) for n in range(len(ids))]
    return Rollout(problem, [1], ids, places, True, text, verify.verify(text, problem))


CONTINUATIONS = ("", " Define X as a; so a = 1.", " Answer: 3.", " nothing = 4 <answer> ] Define")


@pytest.mark.parametrize("wrong", range(1, 4))
def test_nothing_after_the_first_error_can_change_what_strict_pays(wrong):
    """The cut is behind the wrong sentence, to the token; with what stands before it the try is not lost."""
    problem = datagen.generate(0, 5, op=5)
    tokenizer = train_bpe([problem.solution], 300)
    sentences = re.findall(r".*?\.(?= |$)", problem.solution)
    defines = [i for i, sentence in enumerate(sentences) if "Define" in sentence]
    at = defines[wrong]
    spoilt = re.sub(r"= (\d+)\.$", lambda value: f"= {int(value[1]) + 1}.", sentences[at])
    assert spoilt != sentences[at]
    before = "".join(sentences[:at])
    for after in CONTINUATIONS:
        ids = tokenizer.encode(before + spoilt + after)
        kept = up_to_first_error(judged(problem, ids, tokenizer), tokenizer)
        assert tokenizer.decode(kept.completion_ids) == before + spoilt
        assert kept.old_logp == [float(n) for n in range(len(kept.completion_ids))]
        assert not verify.verify(before + spoilt + after, problem).correct
    assert verify.verify("".join(sentences), problem).correct


def test_a_try_without_a_wrong_definition_is_kept_whole():
    problem = datagen.generate(0, 5, op=5)
    tokenizer = train_bpe([problem.solution], 300)
    other = " Define what nobody asked for as q; so q = 4."
    for text in (problem.solution, problem.solution.rpartition("Answer:")[0], other, "", "Answer: 4."):
        it = judged(problem, tokenizer.encode(text), tokenizer)
        assert up_to_first_error(it, tokenizer) is it


def test_a_second_definition_that_contradicts_is_the_error():
    problem = datagen.generate(0, 5, op=5)
    tokenizer = train_bpe([problem.solution], 300)
    first = re.search(r"Define (.+?) as .*?\.(?= |$)", problem.solution)
    again = f" Define {first[1]} as q; so q = 98."
    text = problem.solution[: first.end()] + again
    it = judged(problem, tokenizer.encode(text + problem.solution[first.end() :]), tokenizer)
    assert tokenizer.decode(up_to_first_error(it, tokenizer).completion_ids) == text


def test_credit_is_for_rewards_that_end_at_an_error(tmp_path):
    with pytest.raises(UserError, match="--credit first-error is for strict and faithful"):
        train_grpo.GRPO(train_grpo.Options(credit="first-error", reward="outcome"), None, None)


def test_an_update_with_credit_is_that_of_what_is_kept():
    problem = datagen.generate(0, 5, op=5)
    tokenizer = train_bpe([problem.solution], 300)
    spoilt = problem.solution.replace("; so", "; then so", 1).replace("Define", "Define not", 1)
    texts = problem.solution, re.sub(r"= (\d+)\. ", "= 98. ", problem.solution, count=2), spoilt
    after = []
    for credit, cut in ((None, True), ("first-error", False)):
        torch.manual_seed(0)
        it = learner(Qwen2(ModelConfig(300, 32, 64, 2, 4, 2, 512)), credit=credit, row_tokens=512)
        it.tokenizer = tokenizer
        tries = [judged(problem, tokenizer.encode(text), tokenizer) for text in texts]
        for number, one in enumerate(tries):
            one.advantage, one.old_logp = 1.0 - number, [-5.0] * len(one.completion_ids)
        kept = [up_to_first_error(one, tokenizer) for one in tries]
        lengths = [[len(one.completion_ids) for one in some] for some in (tries, kept)]
        assert lengths[0][0] == lengths[1][0] and lengths[1][1] < lengths[0][1]
        it.learn(kept if cut else tries)
        after.append(parameters(it.model))
    torch.testing.assert_close(*after, atol=0, rtol=0)
