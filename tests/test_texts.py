"""Texts with hidden thoughts, and reflective chains: against a second resolver, the solver that reads English, and
the judge. TEXTS_CASES=100000 for as many random chains.
"""

import json
import os
import random
import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path

from lab.options import UserError

import mutate
import pytest
import resolver
import solver
from conftest import call, error_line
from hypothesis import given, settings
from hypothesis import strategies as st
from test_verify import rename, reorder

import data
import datagen
import texts
from export_hf import import_
from tasks import read_records
from tokenizer import train_bpe
from verify import parse_solution, verify

ROOT = Path(__file__).parent.parent
CASES = int(os.environ.get("TEXTS_CASES", 3000))
MINI = datagen.Mixture.parse("op 2-8; world mini")
WIDE = datagen.Mixture.parse("op 2-12; mode forward; layers 2, 3; template zoo, school, festival")
SOURCES = {"mini": texts.Source(MINI), "wide": texts.Source(WIDE, seed=3)}
every_source = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)


def problem(source, index):
    return source.mixture.problem(source.seed, index, source.split)


def thought(record):
    return re.search("<thought> (.*) </thought>", record["completion"])[1]


def outside(record):
    return re.sub(" <thought> .* </thought>", "", record["completion"])


# ------------------------------------------------------------------------------------------------------------
# Hidden thoughts


@every_source
def test_what_a_text_says_is_so(source):
    """Each sentence of the conclusion, by the solver that reads the English of the statements alone."""
    said = {True: 0, False: 0}
    for i in range(300):
        p, record = problem(source, i), source.records("plain", i)[0]
        assert record["completion"].startswith(f" {p.problem} ")
        sentences = datagen.statements_of(record["completion"].removeprefix(f" {p.problem}"))
        for sentence in sentences:
            name, value = re.fullmatch(r"The (.+) (?:is|number) (\d+)\.", sentence).groups()
            assert solver.solve(p.problem, f"What is the {name}?") == int(value)
            assert sentence not in p.problem
        assert name == p.query and int(value) == p.answer
        if p.op < 4:
            assert len(sentences) == 1
        else:
            said[len(sentences) == 2] += 1
            assert len(sentences) <= 2
    assert 0.3 < said[True] / sum(said.values()) < 0.6


@every_source
def test_arms_differ_in_the_thought_alone(source):
    for i in range(60):
        p, records = problem(source, i), {}
        for kind in texts.KINDS:
            if kind not in texts.TAKE_TRIES and "reflective" not in kind:
                records[kind] = source.records(kind, i)[0]
        plain = records.pop("plain")
        assert f"{thought(records['gold'])} Answer: {p.answer}." == p.solution
        assert verify(f"{thought(records['gold'])} Answer: {p.answer}.", p).faithful
        prefix = records.pop("prefix")
        assert (
            prefix["completion"] == f" <thought> {thought(records['gold'])} </thought>{plain['completion']}"
        )
        for record in records.values():
            assert outside(record) == plain["completion"] and record["prompt"] == ""
            assert (record["id"], record["op"], record["template"]) == (p.id, p.op, p.template)
            assert record["tokens"] == texts.count_words(record["completion"])


@pytest.fixture(scope="module")
def tokenizer():
    problems = [WIDE.problem(0, i, "train") for i in range(300)]
    return train_bpe([f"{p.problem} {p.question} {p.solution} <thought> </thought>" for p in problems], 700)


@every_source
@pytest.mark.parametrize("by", ["words", "tokens"])
def test_thoughts_without_content_are_as_long_as_gold(source, by, tokenizer):
    size = texts.count_words if by == "words" else lambda text: len(tokenizer.encode(text))
    source = texts.replace(source, size=size)
    missing = 0
    for i in range(60):
        p, gold = problem(source, i), source.records("gold", i)[0]
        filler, facts, shuffled = (source.records(kind, i)[0] for kind in ("filler", "facts", "shuffled"))
        assert filler["tokens"] == gold["tokens"] and set(thought(filler)) == {"."}
        assert 0 <= gold["tokens"] - facts["tokens"] <= (2 if by == "words" else 8)
        if "completion" not in shuffled:
            missing += 1
            continue
        assert abs(shuffled["tokens"] - gold["tokens"]) <= 5
        verdict = verify(f"{thought(shuffled)} Answer: {p.answer}.", p)
        assert not verdict.correct and parse_solution(thought(shuffled)).errors == ["no_answer"]
    assert missing <= 5


@every_source
def test_facts_are_the_needed_statements_in_order_of_use(source):
    for i in range(60):
        p, told = problem(source, i), thought(source.records("facts", i)[0])
        needed = [
            s
            for node in p.nodes
            for s in datagen.statements_of(p.problem)
            if re.match(f"The {node.name} (number|is) ", s)
        ]
        assert (" ".join(needed * 30)).startswith(told)
        assert {node.name for node in p.nodes if not node.name.startswith("total")} == {
            re.match("The (.+?) (?:number (?!of)|is )", s)[1] for s in needed
        }


@every_source
@pytest.mark.parametrize("kind, share", [("corrupted", 0), ("corrupted-half", 0.5), ("corrupted-all", 1)])
def test_a_corrupted_thought_has_so_many_slips_and_follows_from_them(source, kind, share):
    """Slip: a line that is untrue with the values before it, or has other parents, or is another number of the text."""
    kinds, missing = {"value": 0, "parents": 0}, 0
    for i in range(120):
        p, record = problem(source, i), source.records(kind, i)[0]
        if "completion" not in record:
            missing += 1
            continue
        told = f"{thought(record)} Answer: {p.answer}."
        gold, steps = parse_solution(p.solution).steps, parse_solution(told).steps
        assert [(s.name, s.var) for s in steps] == [(s.name, s.var) for s in gold]
        swapped = [s.parents != g.parents for s, g in zip(steps, gold)]
        slips = [
            other or not s.faithful or (not g.parents and s.value != g.value)
            for other, s, g in zip(swapped, steps, gold)
        ]
        assert sum(slips) == max(1, round(share * len(gold)))
        verdict = verify(told, p)
        assert all(verdict.nodes[s.name] != "ok" for s, slip in zip(steps, slips) if slip)
        assert set(verdict.errors) <= {"untrue", "bad_substitution", "wrong_plan", "wrong_relation"}
        # A plan names the parents that the definition then takes.
        plans = {name: sorted(parents) for name, parents in verdict.parsed.plans}
        assert all(plans.get(s.name, sorted(s.parents)) == sorted(s.parents) for s in steps)
        assert min(s.value[1] for s in steps) >= 1
        kinds["parents"] += sum(swapped)
        kinds["value"] += sum(slips) - sum(swapped)
    assert missing <= 6 and min(kinds.values()) > 10


def test_recomputing_without_an_error_changes_nothing():
    for source in SOURCES.values():
        for i in range(300):
            chain = texts.chain_of(problem(source, i).solution)
            assert texts.recompute(texts.sentences(chain), {}) == chain


def tries_of(p):
    """(wrong, right by chance, right): solutions as a model writes them."""
    right = data.completion_text(p)
    wrong = right.replace(f"{p.answer} </answer>", f"{p.answer + 1} </answer>")
    wrong = wrong.replace(f"= {p.answer}. </solution>", f"= {p.answer + 1}. </solution>")
    chance = right.replace("Define", "Define unicorns in Atlantis as Z; so Z = 5. Define", 1).replace(
        f"Define {p.nodes[0].name} as", "Define unicorns in Peru as", 1
    )
    return wrong, chance, right


def test_kinds_that_take_tries_take_the_right_ones():
    source = SOURCES["mini"]
    for i in range(60):
        p = problem(source, i)
        wrong, chance, right = tries_of(p)
        assert [verify(t, p).correct for t in (wrong, chance, right)] == [False, False, True]
        chains = [texts.chain_of(t) for t in (wrong, chance, right)]
        assert chains[2] == thought(source.records("gold", i)[0]) and "<" not in "".join(chains)
        expected = {"raw": {*chains}, "self": {*chains[1:]}, "judged": {chains[2]}}
        for kind, allowed in expected.items():
            found = texts.replace(source, tries={p.id: [wrong, chance, right]}).records(kind, i)[0]
            assert thought(found) in allowed
            assert outside(found) == source.records("plain", i)[0]["completion"]
        only_wrong = texts.replace(source, tries={p.id: [wrong]})
        assert thought(only_wrong.records("raw", i)[0]) == chains[0]
        assert "completion" not in only_wrong.records("self", i)[0]
        assert "completion" not in only_wrong.records("judged", i)[0]
        assert "completion" not in texts.replace(source, tries={}).records("raw", i)[0]


def test_raw_takes_each_try_now_and_then():
    source, seen = SOURCES["mini"], set()
    for i in range(40):
        p = problem(source, i)
        three = tries_of(p)
        found = thought(texts.replace(source, tries={p.id: three}).records("raw", i)[0])
        seen.add([texts.chain_of(t) for t in three].index(found))
    assert seen == {0, 1, 2}


def test_reverse_problems_are_refused_in_one_line():
    with pytest.raises(UserError, match="mode forward"):
        texts.Source(datagen.Mixture.parse("op 2-4; mode forward, reverse"))


# ------------------------------------------------------------------------------------------------------------
# resolve

PIECES = (
    "Define otters in Fernhollow as {v}; so {v} = 3.", "Define pandas in Fernhollow as {v}; {w} = {u} = 3; so {v} = 4 + {w} = 7.",
    "Define total number of animals in P as {v}; so {v} = {u} + {w} = 3 + 4 = 7.", "Define herons in P as {v}; so {v} = {u} = 3.",
    "<backtrack> {v}.", "<backtrack> {u}.", "<backtrack> {w}.", "<subgoal> otters in P.", "<backward> a in P needs b, c in P.",
    "<verify> {u} + 4 = 3 + 4 = 7. ok", "<verify> The otters in P number 3. not", "To find X we need otters in P, pandas in P.",
)  # fmt: skip
SNIPPETS = ("<backtrack>", "<backtrack> {v}", "<backtrack> {v}.x", "<backtrack>  {v}.", "<verify> 1 = 1. okay", "<verify> . ok", "<verify> a.. ok",
            "<subgoal> .", "<subgoal> a < b.", "<subgoal> <subgoal> a. b.", "<subgoal> a = 3.", "<backward> {v} = 4.", "<verify> a = 3. ok", "Define", "Define a as {v}; so {v} = 3", "Define a as {v}; so {v} = 3.5.",
            "xDefine a as {v}; so {v} = 3.", "Define a as b as {v}; so {v} = {w}.", "Define a = b as {v}; so {v} = 3.", "Define a as {v}; .",
            "Define a as {v};so {v} = 3.", "Define Define a as {v}; so {v} = 3.", "<", ">", ".", " ", "  ", "\n", "\t", "é", "it's {v}", "[EOS]",
            "Answer: 3.", "</solution>", "<answer> 3 </answer>", "<verify> Answer: 3. ok", "<subgoal> " + "a" * 400 + ".", "<subgoal> " + "a" * 401 + ".",
            "Define a as {v}; so {v} = 3" + " + 3" * 249 + ".", "Define a as {v}; so {v} = 3" + " + 3" * 247 + ".",
            "Define " + "a" * 200 + " as {v}; so {v} = 3.", "Define " + "a" * 201 + " as {v}; so {v} = 3.", "_Define a as {v}; so {v} = 3.",
            "<backtrack> é.", "<backtrack> {v}.\u00a0", "<verify> a. ok\n", "<backtrack> {v}.\x1f", "Define a as {v}; so '{u} = 3.", "<solution>")  # fmt: skip


def random_chain(rand):
    letters = "asobcdX"[: rand.randrange(2, 8)]
    kinds = rand.choices(PIECES, k=rand.randrange(14))
    for _ in range(rand.choice((0, 0, 1, 3))):
        kinds.insert(rand.randrange(len(kinds) + 1), rand.choice(SNIPPETS))
    parts = [
        piece.format(v=rand.choice(letters), u=rand.choice(letters), w=rand.choice(letters))
        for piece in kinds
    ]
    text = "".join(part + rand.choice((" ",) * 12 + ("", "  ", "\n")) for part in parts)
    if rand.random() < 0.2 and text:
        at = rand.randrange(len(text))
        text = text[:at] + rand.choice(("", " ", "<", ".", text[at] * 2)) + text[at + 1 :]
    return text


def test_resolve_agrees_with_one_written_from_the_grammar_alone():
    seen = {"same": 0, "cut": 0, "nothing": 0, "retracted": 0, "chained": 0}
    for seed in range(CASES):
        text = random_chain(random.Random(seed))
        plain, events = texts.resolve(text)
        assert plain == resolver.resolve(text), (seed, text)
        lost = sum(e.kind == "define" and not e.stands for e in events)
        kind = (
            "same"
            if plain == text
            else "nothing"
            if not plain
            else "chained"
            if lost > 1
            else "retracted"
            if lost
            else "cut"
        )
        seen[kind] += 1
    assert min(seen.values()) > CASES / 50, seen


def test_the_second_resolver_would_see_a_wrong_one(monkeypatch):
    flaws = {"MOST_BACKTRACKS": 4, "LONE": re.compile("[A-Za-z]"), "end_of_chain": len}
    for name, flawed in flaws.items():
        with monkeypatch.context() as patch:
            patch.setattr(texts, name, flawed)
            chains = [random_chain(random.Random(seed)) for seed in range(3000)]
            assert any(texts.resolve(text)[0] != resolver.resolve(text) for text in chains), name


def test_a_chain_without_control_sentences_stays_as_it_is():
    for seed in range(3000):
        text, _ = mutate.case(seed)
        assert texts.resolve(text)[0] == text
    for source in SOURCES.values():
        for i in range(100):
            p = problem(source, i)
            for text in (p.solution, data.completion_text(p), p.problem):
                assert texts.resolve(text)[0] == text


def test_a_thought_with_its_conclusion_is_a_solution_with_its_answer():
    """It was wrong by its form alone: a model that has read texts ends as they do."""
    source = SOURCES["mini"]
    for i in range(60):
        p, told = source.mixture.problem(0, i, "mid"), source.records("gold", i)[0]["completion"]
        chain = told.removeprefix(f" {p.problem}")
        assert chain.startswith(" <thought> ")
        for end in ("", "[EOS]"):
            for text in (chain + end, chain.removeprefix(" <thought>") + end):
                assert verify(texts.resolved(text), p).faithful, text
        value = f" {p.answer}."
        wrong = verify(texts.resolved(chain.removesuffix(value) + f" {p.answer + 1}."), p)
        assert not wrong.answer_correct and wrong.process == 1


def test_what_is_no_thought_with_a_conclusion_stays_as_it_is():
    p = SOURCES["mini"].mixture.problem(0, 0, "mid")
    chain, end = f" {texts.chain_of(p.solution)}", f"The {p.query} is {p.answer}."
    for text in (
        f"{chain} {end}",  # no tag
        f"{chain} </thought> {end} So it is.",
        f"{chain} </thought> So it is {p.answer}.",
        f"{chain} </thought> The a is 3. The b is 4. {end}",
        f"{chain} </thought> The otters are b = 4. {end}",
        f"{chain} </thought> Define b as b; so b = 4. {end}",
        f"{chain} </thought> </thought> {end}",
        f" <thought> <thought>{chain} </thought> {end}",
        f" The a is 3. <thought>{chain} </thought> {end}",
        f"{chain} </thought> {end}[EOS] {end}",
        f"{chain} </thought> The {p.query} is {p.answer}.5.",
        f"{chain} </thought> The {p.query} is ٣.",
        f"{chain} </thought> {end} <answer> {p.answer} </answer>",
    ):
        assert texts.resolved(text) == texts.resolve(text)[0], text
        assert not verify(texts.resolved(text), p).faithful, text
    two = verify(texts.resolved(f"{chain} Answer: 5. </thought> {end}"), p)
    assert not two.answer_correct


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(
        st.one_of(st.sampled_from(PIECES + SNIPPETS + mutate.SNIPPETS), st.text(max_size=6)), max_size=30
    )
)
def test_any_text_is_resolved_and_passes_the_rules_or_not(pieces):
    p, text = problem(SOURCES["mini"], 1), "".join(pieces)
    assert texts.resolve(text)[0] == resolver.resolve(text)
    assert set(texts.rules(text, p)) == set(texts.RULES)
    texts.stitch([text], p.solution, p, random.Random(0))
    texts.stitch([], text, p, random.Random(0))


@pytest.mark.parametrize("unit", [
    "<", "<verify> ", "<subgoal> a", "<backtrack> a. ", "Define ", "Define a as b; ", "Define a as b", "Define a as b; so b = 3. ", " ", "a", ".",
    "Define a as b; so b = 3. <backtrack> b. ", "<verify> b = 3. ok ", "<verify> b = 3. okay ", "Answer", "Define a as b; c = b = 3; <subgoal> a. ",
])  # fmt: skip
def test_long_hostile_text_is_resolved_in_a_moment(unit):
    """Were it quadratic, it would take hours."""
    assert len(texts.resolve(unit * (1_000_000 // len(unit)))[0]) <= 1_000_000


def test_the_example_of_the_grammar():
    a, b = (
        "Define tapirs in N as a; so a = 8.",
        "Define badgers in N as b; c = a = 8; so b = c / 4 = 8 / 4 = {}.",
    )
    d = "Define total number of animals in N as d; so d = a + b = 8 + 2 = 10. </solution> <answer> 10 </answer>"
    text = (
        f" <backward> total number of animals in N needs tapirs in N, badgers in N. <subgoal> tapirs in N. {a} <subgoal> "
        f"badgers in N. {b.format(4)} <verify> b * 4 = 4 * 4 = 16. not <backtrack> b. {b.format(2)} <verify> b * 4 = 2 * 4 = 8. ok {d}"
    )
    plain, events = texts.resolve(text)
    assert plain == f" {a} {b.format(2)} {d}"
    kinds = "backward subgoal define subgoal define verify backtrack define verify define"
    assert [event.kind for event in events] == kinds.split()
    assert events[6].about is events[4] and not events[4].stands


# ------------------------------------------------------------------------------------------------------------
# Stitching and rules


def stitched(source, n, errors, behaviours=texts.BEHAVIOURS):
    """(problem, wrong tries, record) of n chains, from gold and corrupted ones, all but the first in letters of their own."""
    found = []
    for i in range(n):
        p, rand = problem(source, i), random.Random(i)
        wrongs = [texts.corrupted(0, source, p, rand) for _ in range(errors)]
        if None not in wrongs:
            tries = [f"{wrong} Answer: 1." for wrong in wrongs] + [reorder(p.solution, rand)]
            tries[1:] = [rename(text, rand) for text in tries[1:]]
            *wrongs, right = tries
            record = texts.stitch(wrongs, right, p, rand, behaviours)
            assert record or errors > 1  # of several tries one may err in what another had right
            found += [(p, wrongs, record)] * (record is not None)
    assert len(found) > n * (0.9 if errors < 2 else 0.3)
    return found


def unlearned_of(record):
    return [record["completion"][start:end] for start, end in record["unlearned"]]


def what_errs(chain):
    """Up to the last definition that is retracted, the text between control sentences and definitions that stand;
    by the letters, without `resolve`: in these worlds no letter is bound twice but after a retraction.
    """
    parts = re.split(
        r"( <(?:subgoal|backward|backtrack)> [^.]*\.| <verify> [^.]*\. (?:ok|not)| Define [^.]*\.)", chain
    )
    retracted, last = {}, -1
    for i in range(len(parts) - 1, -1, -1):
        if parts[i].startswith(" <backtrack> "):
            retracted[parts[i][13:-1]] = True
        elif parts[i].startswith(" Define ") and retracted.pop(parts[i].partition(" as ")[2][0], False):
            last, parts[i] = max(last, i), f"!{parts[i]}"
    spans = [""]
    for part in parts[: last + 1]:
        if part.startswith((" <", " Define ")):
            spans.append("")
        else:
            spans[-1] += part.removeprefix("!")
    return [span for span in spans if span]


@every_source
@pytest.mark.parametrize("errors", [0, 1, 2, 3])
def test_a_stitched_chain_keeps_every_rule_and_resolves_to_a_right_one(source, errors):
    for p, wrongs, record in stitched(source, 60 * (1 + 4 * (errors > 1)), errors):
        chain = record["completion"]
        retracted = [e.about.name for e in texts.resolve(chain)[1] if e.kind == "backtrack"]
        kept = dict.fromkeys(texts.RULES, True)
        kept["R4"] = len({*retracted}) == errors  # what is wrong again is not mended at once
        if errors == 3:  # at op 2 that may be more than 5 times the plain chain
            kept["R7"] = texts.rules(chain, p)["R7"]
        assert texts.rules(chain, p) == kept, chain
        assert texts.rules(chain, datagen.to_record(p)) == texts.rules(chain, p)
        plain, events = texts.resolve(chain)
        verdict = verify(plain, p)
        assert verdict.correct and set(verdict.errors) <= {"wrong_plan"}, verdict.errors
        assert [e.kind for e in events].count("backtrack") == errors
        assert data.prompt_text(record) == data.prompt_text(p)
        assert unlearned_of(record) == what_errs(chain)
        rest = chain[max((end for _, end in record["unlearned"]), default=0) :]
        assert rest.count("<backtrack>") == min(1, errors)
        if errors == 1:
            error, first = what_errs(chain)[-1], chain.index(" <backtrack> ")
            end = chain.index(error) + len(error)  # of the wrong definition; then it is noticed
            assert re.fullmatch(r" <verify> [^.]*\. not| <backward> [^.]*\.", chain[end:first])
            # the try's own words, up to its first error
            said = re.sub(
                r"<(subgoal|backward)> [^.]*\. |<verify> [^.]*\. (ok|not) ", "", chain[1:end] + " "
            ).strip()
            assert wrongs[0].startswith(said)
            nodes, names = verify(wrongs[0], p).nodes, [step.name for step in parse_solution(wrongs[0]).steps]
            (event,) = [e for e in events if e.kind == "backtrack"]
            assert event.about.name == next(name for name in names if nodes[name] != "ok")


def test_the_letters_of_a_stitched_chain_go_on_as_if_there_had_been_no_error():
    """In the world of the studies, whose letters follow the alphabet, the resolved chain is a gold solution in letters."""
    source, same = SOURCES["mini"], 0
    for i in range(200):
        p, rand = problem(source, i), random.Random(i)
        wrongs = [texts.corrupted(0, source, p, rand) for _ in range(2)]
        record = None if None in wrongs else texts.stitch(wrongs, rename(p.solution, rand), p, rand)
        if not record:
            continue
        plain = re.sub(r"To find .*? we need .*?\. ", "", texts.resolve(record["completion"])[0]).strip()
        gold = re.sub(
            r"To find .*? we need .*?\. ", "", data.completion_text(p).removesuffix("[EOS]")
        ).strip()
        same += 1
        assert plain == gold, (plain, gold)
    assert same > 100


@every_source
def test_the_try_that_errs_first_comes_first(source):
    joined = 0
    for i in range(150):
        p, rand = problem(source, i), random.Random(i)
        wrongs = [texts.corrupted(0, source, p, rand) for _ in range(2)]
        if None not in wrongs and len({texts.right_steps(p, wrong) for wrong in wrongs}) == 2:
            record, other = (
                texts.stitch(pair, p.solution, p, random.Random(0)) for pair in (wrongs, wrongs[::-1])
            )
            assert record == other
            joined += record is not None
    assert joined > 60


@pytest.mark.parametrize("without", texts.BEHAVIOURS[:3])
def test_an_ablation_leaves_a_behaviour_out(without):
    left = [behaviour for behaviour in texts.BEHAVIOURS if behaviour != without]
    for p, _, record in stitched(SOURCES["mini"], 30, 1, left):
        kinds = {event.kind for event in texts.resolve(record["completion"])[1]}
        assert kinds == {"define", *left} and texts.passes(record["completion"], p, need=left)
        assert not texts.passes(record["completion"], p, need=[without])
        assert texts.passes(record["completion"], p, but=["R8"], need=[without])


def test_tries_that_cannot_be_joined_are_not():
    p = problem(SOURCES["mini"], 0)
    rand, gold = random.Random(0), p.solution
    assert texts.stitch([], gold, p, rand) and texts.stitch([], data.completion_text(p), p, rand)
    first = re.search("Define .*?[.] ", gold)[0]
    for wrongs, right in (
        ([gold], gold),  # no error
        ([f"Answer: {p.answer}."], gold),  # no definition
        ([], gold.replace(first, "")),  # not right
        ([], gold.replace("Define", "So Define", 1)),  # a definition for the judge alone
        ([], gold.replace(first, f"<verify> 1 = 1. ok {first}")),  # not plain
        (
            [gold.replace(first, first.replace("; so", " so").replace(".", " 3."))],
            gold,
        ),  # the judge reads it otherwise
    ):
        assert texts.stitch(wrongs, right, p, rand) is None


P = datagen.from_record({
    "problem": "The a in P number 3. The b in P number 2 times the a in P.", "question": "What is the total number of things in P?",
    "solution": "", "answer": 9, "op": 5, "mode": "forward", "template": "zoo", "query": "total number of things in P", "unknown": None, "id": "p",
    "d": 2, "nodes": [
        {"name": "a in P", "operator": "", "operands": [], "constant": None, "value": 3},
        {"name": "b in P", "operator": "*", "operands": ["a in P"], "constant": 2, "value": 6},
        {"name": "total number of things in P", "operator": "+", "operands": ["a in P", "b in P"], "constant": None, "value": 9}]})  # fmt: skip
A, B = "Define a in P as k; so k = 3.", "Define b in P as m; s = k = 3; so m = 2 * s = 2 * 3 = 6."
WRONG_B, T = (
    "Define b in P as m; s = k = 3; so m = 2 * s = 2 * 3 = 5.",
    "Define total number of things in P as t; so t = k + m = 3 + 6 = 9.",
)
C, END = "Define c in P as z; so z = 1.", "Answer: 9."
BACK = "<backtrack> m."
BROKEN = [  # (chain, the rules it breaks)
    (f"{A} {B} {T} {END}", ""),
    (f"{A} {WRONG_B} <verify> 2 * k = 2 * 3 = 6. not {BACK} {B} <verify> m / 2 = 6 / 2 = 3. ok {T} {END}", ""),
    (f"{A} {WRONG_B} {BACK} {C} {B} {T} {END}", ""),
    (f"{A} {B} {T} Answer: 8.", "answer R1"),
    (f"{A} {WRONG_B} {T} {END}", "R1"),
    (f"{A} {B} <verify> 2 * k = 2 * 3 = 5. ok {T} {END}", "R2"),
    (f"{A} {B} <verify> 1 + 1 = 2. ok {T} {END}", "R2"),  # of no quantity
    (f"{A} <verify> m / 2 = 6 / 2 = 3. ok {B} {T} {END}", "R2"),  # m stands for nothing yet
    (f"{A} {WRONG_B} {BACK} <verify> m / 1 = 5. not {B} {T} {END}", "R2"),  # nor any more
    (f"{A} {B} <verify> The a in P number 3. ok {T} {END}", "R2"),  # of another quantity
    (f"{A} <verify> The a in P number 4. ok {B} {T} {END}", "R2"),
    (f"<verify> The a in P number 3. not {A} {B} {T} {END}", "R2"),
    (f"{A} <verify> The a in P number 3. not {B} {T} {END}", "R3"),
    (f"{A} {WRONG_B} <verify> 2 * k = 2 * 3 = 6. ok {BACK} {B} {T} {END}", "R3"),
    (f"{A} {B} {BACK} {B} {T} {END}", "R4"),  # it was right
    (f"{A} {C} <backtrack> z. {B} {T} {END}", "R4"),  # it was no node
    (f"{A} <backtrack> q. {B} {T} {END}", "R4"),  # it was nothing
    (f"{A} {WRONG_B} {BACK} {WRONG_B} {BACK} {B} {T} {END}", "R4"),  # wrong again
    (f"<backward> b in P needs a in P, c in P. {A} {B} {T} {END}", "R5"),
    (f"<backward> c in P needs a in P. {A} {B} {T} {END}", "R5"),
    (f"<backward> b in P. {A} {B} {T} {END}", "R5"),
    (f"<subgoal> b in P. {A} {B} {T} {END}", "R6"),
    (f"{A} <subgoal> c in P. {C} {B} {T} {END}", "R6"),
    (f"{A} {B} {T} <subgoal> b in P. {END}", "R6"),
    (f"{A} {B} <verify> 2 * k = 6. ok <verify> 2 * k = 6. ok {T} {END}", "R7"),
    (f"{A} {B} <verify> 2 * k = 6. ok <verify> m = 6. ok {T} {END}", ""),
    (f"{A} <subgoal> b in P. <subgoal> b in P. {B} {T} {END}", "R7"),
    (f"{' '.join(f'<backward> b in P needs a in P. <backward> total number of things in P needs {n}.' for n in ['a in P, b in P', 'b in P, a in P'] * 9)} {A} {B} {T} {END}", "R7"),
]  # fmt: skip


@pytest.mark.parametrize("chain, broken", BROKEN)
def test_each_rule_refuses_what_it_is_for_and_can_be_switched_off(chain, broken):
    kept = texts.rules(chain, P)
    assert {name for name, holds in kept.items() if not holds} == {*broken.split()}, kept
    assert texts.passes(chain, P, but=broken.split())
    assert texts.passes(chain, P) == (not broken)


def test_a_definition_that_only_one_of_the_two_sees_keeps_no_rule():
    chain = f"{A} Define b in P <subgoal> b in P. as m; s = k = 3; so m = 2 * s = 2 * 3 = 6. {T} {END}"
    assert not any(texts.rules(chain, P).values())


def test_names_are_read_as_the_judge_reads_them():
    """Where they differ, `resolve` may take away another than the judge would; no rule holds then."""
    chain = (
        f"{A} {B.replace(' as m', ' as k as m')} <verify> The b in P number 2 times the a in P. ok {T} {END}"
    )
    assert not any(texts.rules(chain, P).values())


def test_at_most_three_backtracks_count():
    for n in range(6):
        chain = f"{A} {f'{WRONG_B} {BACK} ' * n}{B} {T} {END}"
        assert verify(texts.resolve(chain)[0], P).faithful == (n <= 3)


@every_source
def test_reflective_kinds_keep_the_rules_in_the_shares_of_the_study(source):
    seen, several = [], 0
    for i in range(150):
        p, records = problem(source, i), source.records("reflective-gold", i)
        several += 1 < len(records) == len({record["completion"] for record in records}) <= texts.CHAINS
        for record in records:
            if "completion" in record:
                assert texts.passes(record["completion"], p)
                seen.append(record["completion"].count("<backtrack>"))
    assert several > 130 and len(seen) > 130
    for errors, share in ((0, 0.35), (1, 0.5), (2, 0.15)):
        assert abs(seen.count(errors) / len(seen) - share) < 0.12


@every_source
def test_full_stops_stand_in_for_control_sentences(source):
    for i in range(60):
        p = problem(source, i)
        told = texts.replace(source, tries={p.id: [tries_of(p)[2]]}).records("padded", i)[0]
        assert "<" not in chain_of(told) and ".." in chain_of(told)
        assert verify(told["completion"], p).correct
        assert (
            re.sub(r" ?(?<!\S)\.+(?!\S)", "", chain_of(told)).split()
            == texts.chain_of(tries_of(p)[2]).split()
        )


def chain_of(record):
    return texts.chain_of(record["completion"])


def test_reflective_chains_do_without_what_is_left_out():
    source, kinds, broken = SOURCES["mini"], set(), 0
    for i in range(60):
        p = problem(source, i)
        some = texts.replace(source, tries={p.id: tries_of(p)[::2]}, without=("backtrack", "subgoal"))
        for record in some.records("reflective", i):
            kinds |= {event.kind for event in texts.resolve(record["completion"])[1]}
        with pytest.MonkeyPatch.context() as patch:  # as if each chain broke a rule
            patch.setitem(texts.RULES, "R7", lambda it: False)
            assert "completion" not in some.records("reflective", i)[0]
            broken += "completion" in texts.replace(some, but=("R7",)).records("reflective", i)[0]
    assert kinds == {"define", "backward", "verify"} and broken == 60


# ------------------------------------------------------------------------------------------------------------
# A model's own right tries


@pytest.mark.parametrize("rule, wanted", [  # of c = 0 … 8 right ones in 8
    ("all", [8] * 9), ("ceil", [8, 7, 6, 5, 4, 3, 2, 1, 0]), ("uniform", [4] * 9), ("prop", [8, 8, 7, 6, 5, 4, 3, 2, 1]),
])  # fmt: skip
def test_how_many_tries_a_rule_wants(rule, wanted):
    assert [texts.WANTED[rule](c, 8) for c in range(9)] == wanted


def test_of_right_tries_the_shortest_are_kept_as_many_as_the_rule_wants():
    p = problem(SOURCES["mini"], 0)
    wrong, _, right = tries_of(p)
    extra = [right.replace(" Define", " Define a in B as Z; so Z = 1." * n + " Define", 1) for n in range(5)]
    tries = [*extra[::-1], wrong, wrong, wrong]
    for rule, kept in (("all", 5), ("ceil", 3), ("uniform", 4), ("prop", 4)):
        source = texts.replace(SOURCES["mini"], tries={p.id: tries}, select=rule)
        records = source.records("own", 0)
        assert [chain_of(record) for record in records] == [texts.chain_of(text) for text in extra[:kept]]
        for record in records:
            assert record["prompt"] == data.prompt_text(p).removeprefix("[BOS]")
            assert (
                record["completion"] == data.completion_text(p).removesuffix("[EOS]")
                or "Z = 1" in record["completion"]
            )
    for tries in ([wrong] * 8, []):
        source = texts.replace(SOURCES["mini"], tries={p.id: tries})
        assert [record.get("completion") for record in source.records("own", 0)] == [None]


def test_what_a_reflective_try_retracts_is_not_learned():
    source = SOURCES["mini"]
    for p, _, record in stitched(source, 40, 1):
        index = int(p.id.rpartition("/")[2])
        (own,) = texts.replace(source, tries={p.id: [record["completion"]]}).records("own", index)
        assert {key: own[key] for key in record} == record
        error = texts.sentences(unlearned_of(own)[-1])[-1][1]
        assert f"<backtrack> {error['var']}." in own["completion"]


def test_what_retracts_a_right_definition_is_no_right_try():
    """It teaches that."""
    source, refused = SOURCES["mini"], 0
    for i in range(40):
        p = problem(source, i)
        first = re.search("Define [^.]* as (.);[^.]*[.]", p.solution)
        again = p.solution.replace(first[0], f"{first[0]} <backtrack> {first[1]}. {first[0]}", 1)
        assert verify(texts.resolved(again), p).correct
        both = texts.replace(source, tries={p.id: [again, p.solution]}).records("own", i)
        assert [record["completion"] for record in both] == [data.completion_text(p).removesuffix("[EOS]")]
        refused += 1
    assert refused == 40


# ------------------------------------------------------------------------------------------------------------
# Command line


def test_records_are_what_a_training_reads(tmp_path):
    path, mixture = tmp_path / "texts.jsonl", "op 2-4; world mini"
    for kind in sorted({*texts.KINDS} - {*texts.TAKE_TRIES}):
        out = call("texts", "--kind", kind, "--mixture", mixture, "--n", 5, "--jsonl", check=True)
        path.write_text(out.stdout)
        records = read_records(path)
        assert f"{kind}, {sum(r['tokens'] for r in records)} tokens: " in out.stderr
        assert [*dict.fromkeys(r["id"] for r in records)] == [f"mid/0/{i}" for i in range(5)]
        assert len(records) == 5 or kind == "reflective-gold"
        expected = [json.loads(line) for line in out.stdout.splitlines()]
        source = texts.Source(datagen.Mixture.parse(mixture))
        assert [record for i in range(5) for record in source.records(kind, i)] == expected


def test_an_error_is_no_target_and_how_it_is_noticed_is_one():
    """By the tokenizer of a committed base, which has names as single tokens."""
    tokenizer, masked = import_(next((ROOT / "studies/bases").glob("train_*")))[1], 0
    for i in range(40):
        p = problem(SOURCES["mini"], i)
        for record in SOURCES["mini"].records("reflective-gold", i):
            if "completion" in record:
                document = data.to_document(record, tokenizer, solution_only=True)
                assert document.ids == tokenizer.encode(data.prompt_text(record)) + tokenizer.encode(
                    record["completion"] + "[EOS]"
                )
                groups = groupby(zip(document.ids, document.trained), lambda pair: pair[1])
                told = [(trained, tokenizer.decode([id for id, _ in some])) for trained, some in groups]
                assert told.pop(0)[1].startswith(data.prompt_text(p))
                assert [text for trained, text in told if not trained] == what_errs(record["completion"])
                masked += any(not trained for trained, _ in told)
    assert masked > 20


def test_tries_come_from_a_file_and_texts_can_be_matched(tmp_path, tokenizer):
    mixture, tries, found = "op 2-4; world mini", tmp_path / "tries.jsonl", tmp_path / "self.jsonl"
    problems = [datagen.Mixture.parse(mixture).problem(7, i, "mid") for i in range(20)]
    lines = [{"id": p.id, "texts": [tries_of(p)[0 if i % 2 else 2]]} for i, p in enumerate(problems)]
    tries.write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = ["--mixture", mixture, "--seed", 7, "--jsonl"]
    out = call("texts", "--kind", "self", "--tries", tries, "--n", 20, *common, check=True)
    found.write_text(out.stdout)
    ids = [json.loads(line)["id"] for line in out.stdout.splitlines()]
    assert ids == [p.id for p in problems[::2]]
    out = call("texts", "--kind", "gold", "--like", found, "--n", 20, *common, check=True)
    assert [json.loads(line)["id"] for line in out.stdout.splitlines()] == ids
    tokenizer.save(tmp_path / "tokenizer.json")
    budget = ["--mixture", f"{mixture}; tokens 3k", "--tokenizer", tmp_path / "tokenizer.json"]
    out = call("texts", "--kind", "plain", "--n", 0, *budget, "--jsonl", check=True)
    records = [json.loads(line) for line in out.stdout.splitlines()]
    assert [r["tokens"] for r in records] == [len(tokenizer.encode(r["completion"])) for r in records]
    assert sum(r["tokens"] for r in records[:-1]) < 3000 <= sum(r["tokens"] for r in records)


def test_a_folder_holds_what_is_printed_and_its_yields(tmp_path):
    flags = ["--kind", "corrupted", "--mixture", "op 2-4; world mini", "--n", 30]
    printed = call("texts", *flags, "--jsonl", check=True).stdout
    call(
        "texts",
        *flags,
        "--out",
        tmp_path / "a",
        "--resume-or-start",
        "--threads",
        1,
        "--replicas",
        2,
        check=True,
    )
    assert (tmp_path / "a/texts.jsonl").read_text() == printed
    records, summary = (
        read_records(tmp_path / "a/texts.jsonl"),
        json.loads((tmp_path / "a/summary.json").read_text()),
    )
    assert summary["texts"] == len(records) and summary["text_tokens"] == sum(r["tokens"] for r in records)
    assert (
        sum(n for n, _ in summary["yields"].values()) == len(records)
        and sum(n for _, n in summary["yields"].values()) == 30
    )


def test_the_same_texts_in_any_process():
    command = [
        sys.executable,
        "texts.py",
        "--kind",
        "reflective-gold",
        "--n",
        "6",
        "--mixture",
        "op 4-6; mode forward",
    ]
    outs = set()
    for key in "01":
        environment = {**os.environ, "PYTHONHASHSEED": key}
        outs.add(
            subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, env=environment, check=True
            ).stdout
        )
    assert len(outs) == 1


def test_texts_need_no_torch():
    code = "import sys, texts; assert not {'torch', 'numpy'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("arguments, line", [
    (["--kind", "golden"], "choose from"),
    (["--mixture", "op 99"], "op '99'"),
    (["--mixture", "op 2; mode reverse"], "mode forward"),
    (["--kind", "self"], "needs --tries"),
    (["--kind", "gold", "--tries", "x"], "takes no --tries"),
    (["--kind", "raw", "--tries", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--like", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--tokenizer", "nowhere.json"], "nowhere.json"),
    (["--n", "0"], "tokens in the mixture"),
    (["--n", "-1"], "--n must be"),
    (["--kind", "reflective-gold", "--without", "verify,doubt"], "unknown behaviour 'doubt'"),
    (["--kind", "reflective-gold", "--but", "R9"], "unknown rule 'R9'"),
    (["--select", "ceil"], "for --kind own"),
    (["--without", "verify"], "for reflective kinds"),
])  # fmt: skip
def test_bad_input_is_one_line(arguments, line):
    assert line in error_line(call("texts", *arguments))


@pytest.mark.parametrize("content, line", [
    ('{"id": "a"}', "line 1"), ('{"id": 3, "texts": []}', "line 1"), ('{"id": "a", "texts": [1]}', "line 1"), ("{", "line 1"),
    ('{"id": "a", "texts": []}\n{"id": "a", "texts": []}', "line 2"), ('{"id": "a", "texts": ["b"]}', "no text of kind raw"),
])  # fmt: skip
def test_a_bad_file_of_tries_is_one_line(tmp_path, content, line):
    (tmp_path / "tries.jsonl").write_text(content)
    assert line in error_line(call("texts", "--kind", "raw", "--tries", tmp_path / "tries.jsonl"))
