"""chains.py: problems with an error planted, and what is noted of tries, against the judge and tables by hand."""

import random
import re

from lab.options import UserError

import numpy as np
import pytest
import torch
from test_texts import BACK, END, WRONG_B, A, B, C, P, T

import chains
import data
import datagen
import texts
from model import ModelConfig, Qwen2
from tasks import to_problem
from tokenizer import train_bpe
from verify import verify

MINI = datagen.Mixture.parse("op 4-8; world mini")
PROBLEMS = [MINI.problem(0, i, "eval") for i in range(60)]


def plain(text):
    return texts.resolved(text)


def test_a_planted_error_is_the_only_one_and_comes_last():
    """By the judge: what was given is right up to it, and completed by gold without it the problem is solved."""
    kinds, planted = set(), 0
    for i, p in enumerate(PROBLEMS):
        _, sound = chains.ask("sound", p, 0, i)
        _, wrong = chains.ask("planted", p, 0, i)
        if not wrong:
            continue
        planted += 1
        last = [re.findall(r"Define (.+?) as", text)[-1] for text in (sound, wrong)]
        nodes, others = (verify(plain(text), p).nodes for text in (sound, wrong))
        assert last[0] == last[1] and others[last[1]] != "ok" == nodes[last[0]]
        assert {name for name in nodes if nodes[name] != others[name]} == {last[0]}
        kinds.add(others[last[1]])
        rest = f"{sound} {p.solution}"
        assert verify(plain(rest), p).correct  # the same again is no contradiction
        letter = re.findall(r"Define .+? as (\w);", wrong)[-1]
        assert verify(plain(f"{wrong} <backtrack> {letter}. {p.solution}"), p).correct
        assert not verify(plain(f"{wrong} {p.solution}"), p).correct
    assert planted > 55 and kinds == {"wrong_value", "wrong_parents"}


@pytest.mark.parametrize(
    "how, before, word, right", [("denied", "sound", "not", False), ("affirmed", "planted", "ok", False)]
)
def test_a_forced_verification_says_what_is_not_so(how, before, word, right):
    forced = 0
    for i, p in enumerate(PROBLEMS):
        _, start = chains.ask(before, p, 0, i)
        _, told = chains.ask(how, p, 0, i)
        assert told.startswith(start)
        if told[len(start) :].startswith(" <verify>"):
            forced += 1
            reading = texts.Reading(told, p, ())
            (event,) = reading.of("verify")
            assert told.endswith(f" {word}") and reading.true(event)
            assert (reading.status(event.about) == "ok") == (how == "denied")
    assert forced > 50


def test_an_expert_text_is_begun_with_its_statements_alone():
    record, stands = chains.ask("text", P, 0, 0)
    assert record["prompt"] == f" {P.problem}" and stands == ""
    ends = "The total number of things in P is 9."
    told = {f" <thought> {A} </thought> {ends}[EOS]": (True, True), f" {ends}": (False, True),
            f" {ends} {A}": (False, False), " <thought> The total number of things in P is 8.": (True, False)}  # fmt: skip
    for text, expected in told.items():
        assert tuple(chains.note("text", text, "", P).values()) == expected


NOTED = [  # (what stands, what follows, wrong, backtracks, caught, repaired, broken, hit)
    ("", f"{A} {B} {T} {END}", 0, 0, 0, 0, 0, None, 3, 0),
    ("", f"{A} {WRONG_B} {T} {END}", 1, 0, 0, 0, 0, None, 2, 0),
    ("", f"{A} {WRONG_B} {BACK} {B} {T} {END}", 1, 1, 1, 1, 0, None, 3, 0),
    ("", f"{A} {B} {BACK} {B} {T} {END}", 0, 1, 0, 0, 0, None, 4, 1),  # in vain
    ("", f"{A} {B} {BACK} {WRONG_B} {T} {END}", 1, 1, 0, 0, 1, None, 3, 1),
    ("", f"{A} {B} {BACK} {T} {END}", 0, 1, 0, 0, 1, None, 3, 1),
    ("", f"{A} {C} <backtrack> z. {B} {T} {END}", 0, 1, 0, 0, 0, None, 3, 0),  # of no gold quantity
    ("", f"{A} <backtrack> q. {B} {T} {END}", 0, 1, 0, 0, 0, None, 3, 0),  # of nothing
    (f"{A} {WRONG_B}", f"{BACK} {B} {T} {END}", 1, 1, 1, 1, 0, True, 3, 0),
    (f"{A} {WRONG_B}", f"<verify> 2 * k = 6. not {BACK} {B} {T} {END}", 1, 1, 1, 1, 0, True, 3, 0),
    (f"{A} {WRONG_B}", f"{C} {BACK} {B} {T} {END}", 1, 1, 1, 1, 0, True, 3, 0),
    (f"{A} {WRONG_B}", f"{C} {T} {BACK} {B} {T} {END}", 1, 1, 1, 1, 0, False, 4, 0),  # too late
    (f"{A} {WRONG_B}", f"<backtrack> k. {A} {B} {T} {END}", 1, 1, 0, 1, 0, False, 4, 1),  # another
    (f"{A} {B}", f"{T} {END}", 0, 0, 0, 0, 0, False, 3, 0),
]  # fmt: skip


@pytest.mark.parametrize("stands, rest, wrong, backtracks, caught, repaired, broken, hit, right, lost", NOTED)
def test_what_is_noted_of_a_chain(
    stands, rest, wrong, backtracks, caught, repaired, broken, hit, right, lost
):
    found = chains.note("planted" if stands else None, f" {stands}  {rest}", f" {stands}" * bool(stands), P)
    assert found.pop("hit", None) == hit
    assert tuple(found.values()) == (right, wrong, backtracks, lost, caught, repaired, broken)
    assert list(found) == ["right", "wrong", "backtracks", "lost", "caught", "repaired", "broken"]


def test_nothing_is_noted_of_what_only_one_of_two_readers_sees():
    assert chains.note(None, f"{A} Define b in P <subgoal> b in P. as m; so m = 6. {T} {END}", "", P) == {}


def test_no_text_is_too_strange_to_be_noted():
    from test_texts import random_chain

    for seed in range(2000):
        text = random_chain(random.Random(seed))
        for how in (None, *chains.ASKS):
            found = chains.note(how, text, text[: seed % (len(text) + 1)], P)
            assert all(0 <= n < 100 for n in found.values())


@pytest.mark.parametrize("answers, right", [
    ([5, 3, 3, 5, 5], [3 / 5, 1 / 2, 0, 1, 1]), ([3, 5], [1 / 2, 0]), ([None, None, 5], [1 / 3, 0, 1]), ([None], [0]),
    ([5, None, None], [1 / 3, 1, 1]), ([5, 3, 3, 3, 5, 5], [1 / 2, 2 / 3, 1 / 2, 0, 0, 1]),
])  # fmt: skip
def test_majorities(answers, right):
    """Of parts that share no answer; what is left over at the end is in none."""
    assert chains.majority(answers, 5) == pytest.approx(right)


def test_a_majority_of_one_is_the_share_of_right_answers():
    rand = random.Random(0)
    for n in range(1, 9):
        answers = [rand.choice((5, 3, None)) for _ in range(n)]
        assert chains.majority(answers, 5)[0] == pytest.approx(answers.count(5) / n)


def test_sums_of_depth_give_the_slope():
    rand = np.random.default_rng(0)
    x = rand.integers(2, 9, 50)
    y = np.maximum(1, np.round(x**0.7 + rand.random(50))).astype(int)
    n, sx, sy, sxx, sxy = chains.depth(list(zip(x.tolist(), y.tolist())))
    assert (n * sxy - sx * sy) / (n * sxx - sx * sx) == pytest.approx(
        np.polyfit(np.log(x), np.log(y), 1)[0], abs=1e-4
    )
    assert chains.depth([]) == [0] * 5


def test_gold_solutions_are_as_likely_as_token_by_token():
    """Any letter where one comes first; which of them it is adds nothing."""
    problems = [datagen.generate(0, i, op=2 + i % 3) for i in range(16)]
    tokenizer = train_bpe([data.prompt_text(p) + data.completion_text(p) for p in problems], 400)
    torch.manual_seed(0)
    model = Qwen2(ModelConfig(tokenizer.vocab_size, 32, 64, 2, 2, 1))
    letters = [tokenizer.encode(f" {letter}") for letter in datagen.LETTERS]
    letters = [ids[0] for ids in letters if len(ids) == 1]
    assert len(letters) > 15
    expected, fresh = [], 0
    for p in problems:
        prompt, completion = (
            tokenizer.encode(text) for text in (data.prompt_text(p), data.completion_text(p))
        )
        with torch.no_grad():
            logp = model(torch.tensor([prompt + completion]))[0][0].log_softmax(-1)
        total, seen = 0.0, set()
        for at, id in enumerate(completion, len(prompt) - 1):
            new = id in letters and id not in seen
            fresh += new
            seen.add(id)
            total += float(logp[at, letters].exp().sum().log() if new else logp[at, id])
        expected.append(total)
    assert fresh > 20
    assert chains.gold_logps(model, tokenizer, problems, row_tokens=300, rows=2) == pytest.approx(
        expected, abs=1e-3
    )


def test_what_cannot_be_put_in_this_way_is_refused():
    """By one line, before anything is sampled: reverse problems, records without graph or with a solution in prose."""
    reverse = datagen.generate(0, 0, op=3, mode="reverse")
    for how in chains.ASKS:
        chains.check_asked(how, PROBLEMS)
        with pytest.raises(UserError, match=f"--ask {how} needs the `nodes` of a forward problem"):
            chains.check_asked(how, [PROBLEMS[0], reverse])
    chains.check_asked(None, [reverse])
    for solution in ("Twice 3 is 6. Answer: 9.", None):
        problem = to_problem({**datagen.to_record(PROBLEMS[0]), "solution": solution})
        chains.check_asked("text", [problem])
        with pytest.raises(UserError, match="needs the `nodes` of a forward problem, and a solution"):
            chains.check_asked("planted", [problem])
