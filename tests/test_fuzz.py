"""The judge under attack: against a slow oracle on mutated gold solutions and arbitrary text, and against
policies that cheat.
"""

import random
import re
import sys
from pathlib import Path

import mutate
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datagen
import verify

sys.path.append(str(Path(__file__).parent.parent / "bench"))
import reward_hacks

PROBLEMS = [datagen.generate(5, i, op=2 + i % 6, mode=datagen.MODES[i % 2]) for i in range(12)]


def agree(text, p):
    verdict = verify.verify(text, p)
    assert (verdict.nodes, verdict.answer_correct, verdict.correct, verdict.faithful) == oracle.judge(
        text, p
    ), repr(text)
    assert verdict.process == sum(s == "ok" for s in verdict.nodes.values()) / len(p.nodes)
    assert verdict.correct <= verdict.answer_correct and verdict.faithful <= verdict.correct
    return verdict


def test_mutated_gold_solutions_get_the_oracles_verdict():
    seen = {"faithful": 0, "correct": 0, "wrong": 0}
    for seed in range(5_000_000, 5_003_000):  # bench/fuzz_verify.py runs a million others
        verdict = agree(*mutate.case(seed))
        seen["faithful" if verdict.faithful else "correct" if verdict.correct else "wrong"] += 1
    assert min(seen.values()) > 300  # every kind of verdict was compared


def test_the_oracle_would_see_a_wrong_judge(monkeypatch):
    """Each flaw, put into the judge, must show as a disagreement: else agreement means nothing."""
    flaws = {
        "PRECEDENCE": {**verify.PRECEDENCE, "+": 3},
        "STOP": verify.re.compile(r"\."),
        "MAX_NUMBER": 50,
        "coordinate": lambda name: 1,
        "DEFINE": verify.re.compile("Define"),
        "TAIL": verify.re.compile(".*"),
        "_solves": lambda closing, last, answer: True,
    }
    for name, flawed in flaws.items():
        with monkeypatch.context() as patch:
            patch.setattr(verify, name, flawed)
            forget()
            with pytest.raises(AssertionError):
                for seed in range(6_000_000, 6_020_000):
                    agree(*mutate.case(seed))
        forget()


def forget():
    """Empty the judge's caches, which hold what it computed with a flaw or without it."""
    for cached in vars(verify).values():
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()


def test_what_is_remembered_of_one_try_decides_no_other():
    """Tries of a problem with other letters, few enough that one stands now for this and now for that, get in a row the
    verdicts that each gets alone.
    """
    rand, lone = random.Random(0), re.compile(r"(?<![A-Za-z'])[A-Za-z](?![A-Za-z'])")

    def again(p):
        text, letters = (
            mutate.mutate(rand, p),
            rand.choices("abcdx", k=rand.randrange(3)) + rand.sample("fghjkx", 6),
        )
        new = dict(zip(sorted(set(lone.findall(text))), letters))
        return lone.sub(lambda m: new.get(m[0], m[0]), text)

    def judged(text, p):
        verdict = agree(text, p)
        return verdict.nodes, verdict.errors, verdict.extra, verdict.parsed.steps, verdict.parsed.answer

    for p in PROBLEMS:
        texts = [again(p) for _ in range(60)]
        forget()
        together = [judged(text, p) for text in texts]
        for text, verdict in zip(texts, together):
            forget()
            assert judged(text, p) == verdict, text


def test_all_letters_at_once():
    letters = "+".join(2 * sorted(verify.LETTERS))
    for text in (f"Define a as b; so b = {letters} = 1.", f"Define a as b; so b = 1. We know {letters} = 1."):
        agree(f"{text} Answer: 1.", PROBLEMS[0])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.one_of(st.sampled_from(mutate.SNIPPETS), st.text(max_size=6)), max_size=40),
    st.sampled_from(PROBLEMS),
)
def test_any_text_gets_the_oracles_verdict(pieces, p):
    agree("".join(pieces), p)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=400), st.sampled_from(PROBLEMS))
def test_any_bytes_get_the_oracles_verdict(content, p):
    agree(content.decode("utf-8", "replace"), p)
    agree(content.decode("latin-1") + p.solution, p)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.permutations(datagen.LETTERS), st.sampled_from(PROBLEMS))
def test_letters_are_only_names(letters, p):
    """Renaming the letters of a gold solution changes no verdict."""
    fixed = "" if p.unknown is None else "x"
    old, new = ([c for c in some if c != fixed] for some in (datagen.LETTERS, letters))
    rename = {fixed: fixed, **dict(zip(old, new))}
    text = re.sub(r"(?<![A-Za-z'])[A-Za-z](?![A-Za-z'])", lambda m: rename[m[0]], p.solution)
    assert agree(text, p).faithful


def test_policies_that_do_not_reason_earn_nothing():
    table, floor = reward_hacks.earnings(12, 0)
    assert all(earned == 1 for earned in table.pop("honest").values())
    by_value = {
        "true_value_by_another_relation",
        "hide_another_answer",
        "no_closing",
    }  # gold values from gold parents
    for name, earned in table.items():
        if name in by_value:
            assert earned["strict"] == 1, name
        else:
            assert earned["strict"] == earned["faithful"] == 0, name
    assert table["hide_another_answer"]["faithful"] == table["no_closing"]["faithful"] == 0
    assert (
        table["guess_the_commonest_answer"]["outcome"]
        == table["repeat_the_question"]["outcome"]
        == pytest.approx(floor)
        and floor < 0.12
    )
    assert table["spam_answers"]["outcome"] == table["spam_tags"]["outcome"] == 0
    assert (
        table["answer_then_nothing"]["outcome"] == 1 and table["answer_then_nothing"]["process"] == 0
    )  # why outcome alone is not enough
    assert (
        table["define_everything_with_every_value"]["process"] == 0 < table["copy_the_numbers"]["process"]
    )  # a stated literal is a true step


def test_each_changed_relation_is_not_faithful():
    changed = 0
    for i in range(300):
        p = datagen.generate(9, i, op=3 + i % 10)
        text = reward_hacks.true_value_by_another_relation(p, None, None)
        verdict = agree(text, p)
        assert verdict.correct and verdict.faithful == (text == p.solution)
        changed += text != p.solution
    assert changed > 50
