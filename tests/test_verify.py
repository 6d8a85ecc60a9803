import itertools
import json
import random
import re
import string
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

from lab.options import UserError

import pytest

import datagen
import verify as judge
from verify import explain, parse_solution, pass_at_k, reward, verify

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT.parent / "shared" / "gsm_infinite" / "sample.jsonl"
PUBLIC = [json.loads(line) for line in SAMPLE.open(encoding="utf-8")] if SAMPLE.exists() else []
needs_public = pytest.mark.skipif(not PUBLIC, reason="../shared is not beside the checkout")
KINDS = [
    (op, mode, template, layers)
    for op in range(2, 21)
    for mode in datagen.MODES
    for template in datagen.TEMPLATES
    for layers in (2, 3)
]
STEP = re.compile(r"Define (.+?) as ([A-Za-z]);(.*?)\.(?= |$)")


def generated(n, seed=21):
    for (op, mode, template, layers), i in itertools.islice(
        zip(itertools.cycle(KINDS), itertools.count()), n
    ):
        yield datagen.generate(seed, i, op=op, mode=mode, template=template, layers=layers)


def document(p):
    """What a model writes after the prompt of a document."""
    solution, _, answer = p.solution.rpartition("Answer: ")
    return f" {solution.strip()} </solution> <answer> {answer.rstrip('.')} </answer>[EOS]"


def rename(solution, rng):
    """Every variable letter becomes another; x stays where it is the unknown."""
    letters = list(string.ascii_letters)
    if "we don't know its value" in solution:
        letters.remove("x")
    new = dict(zip(letters, rng.sample(letters, len(letters))))

    def mathematics(text):
        return re.sub(r"(?<![A-Za-z'])[A-Za-z](?![A-Za-z'])", lambda m: new.get(m[0], m[0]), text)

    def step(m):
        body = m[3] if "don't know" in m[3] else mathematics(m[3])
        return f"Define {m[1]} as {new.get(m[2], m[2])};{body}."

    head, know, tail = STEP.sub(step, solution).partition("We know ")
    return head + know + (new.get(tail[0], tail[0]) + tail[1:] if tail else "")


def reorder(solution, rng):
    """The steps in another order in which they can be computed. Reads letters only: nothing here knows the
    gold graph.
    """
    steps = list(STEP.finditer(solution))
    letters = re.compile(r"(?<![A-Za-z'])[A-Za-z](?![A-Za-z'])")
    home = {}  # letter → the step that defines it
    for i, m in enumerate(steps):
        home.update(
            {
                clause.removeprefix("so ").split(" = ")[0]: i
                for clause in re.split("; ?", m[3].strip())
                if " = " in clause
            }
        )
        home[m[2]] = i
    needs = [
        set() if "don't know" in m[3] else {home[x] for x in letters.findall(m[3]) if x in home} - {i}
        for i, m in enumerate(steps)
    ]
    done = []
    while len(done) < len(steps):
        done.append(rng.choice([i for i in range(len(steps)) if i not in done and needs[i] <= set(done)]))
    return solution[: steps[0].start()] + " ".join(steps[i][0] for i in done) + solution[steps[-1].end() :]


def edits(solution):
    """Every single number and operator of every equation, the closing ones included, changed in every way,
    one at a time.
    """
    spans = [(m.start(3), m.end(3)) for m in STEP.finditer(solution) if "don't know" not in m[3]]
    if "We know" in solution:
        spans.append((solution.index("We know"), solution.index(" Answer:")))
    for start, end in spans:
        for m in re.finditer(r"[0-9]+| [-+*/=] |(?<=[0-9])\*(?=x)|-(?=[0-9])", solution[start:end]):
            if m[0].isdigit():
                others = {str(int(m[0]) + 1), "7" + m[0], str(int(m[0]) * 2 + 3), m[0] + ".5", "-" + m[0]}
            else:
                others = {m[0].replace(m[0].strip(), o) for o in "+-*/"} - {m[0]}
            for other in others:
                yield solution[: start + m.start()] + other + solution[start + m.end() :]


def closing_still_true(text):
    """Whether each equation of a changed closing holds, by Python's own arithmetic: `2 + x = 4` for `2*x =
    4`, where x is 2.
    """
    closing, _, answer = text.partition("We know ")[2].rpartition(" Answer: ")
    closing = closing[1:]  # the letter of the last quantity
    known = re.match(r" = (-?[0-9.]+)", closing)
    assert known, text
    known = known[1]
    for piece in re.split(r"[a-wyzA-Z,:]+|\.(?= |$)", closing):
        sides = [side.strip() or known for side in piece.split("=")]
        if len(sides) > 1 and len({eval(side, {"x": Fraction(answer.strip("."))}) for side in sides}) > 1:
            return False
    return True


@needs_public
def test_all_public_gold_solutions_are_correct_and_faithful():
    assert len(PUBLIC) == 570
    for record in PUBLIC:
        verdict = verify(record["solution"], record)
        assert verdict.correct and verdict.faithful and verdict.process == 1, explain(
            record["solution"], record
        )


@needs_public
def test_public_gold_solutions_renamed_and_reordered():
    rng, moved = random.Random(0), 0
    for record in PUBLIC:
        text = record["solution"]
        assert verify(rename(text, rng), record).faithful, rename(text, rng)
        other = reorder(text, rng)
        assert verify(other, record).faithful, other
        moved += other != text
    assert moved > 200


@needs_public
def test_public_gold_solutions_with_any_step_gone_or_any_number_or_operator_changed():
    for n, record in enumerate(PUBLIC):
        for m in STEP.finditer(record["solution"]):
            assert not verify(record["solution"].replace(m[0], "", 1), record).correct
        if n % 5 == 0:
            for text in edits(record["solution"]):
                assert not verify(text, record).faithful or closing_still_true(text), text


def test_20000_generated_gold_solutions_as_they_are_renamed_and_reordered():
    rng = random.Random(1)
    for p in generated(20_520):
        verdict = verify(p.solution, p)
        assert verdict.correct and verdict.faithful, explain(p.solution, p)
        for text in (rename(p.solution, rng), reorder(p.solution, rng)):
            assert verify(text, p).faithful, text


def test_document_form_is_judged_like_the_record():
    for p in generated(200):
        completion = document(p)
        assert verify(completion, p).faithful
        assert verify(completion, datagen.to_record(p)).faithful
        without = {
            k: v
            for k, v in datagen.to_record(p).items()
            if k in ("problem", "question", "solution", "op", "id", "template", "mode", "d")
        }
        assert verify(p.solution, without).faithful  # gold parsed from the solution


def test_any_changed_value_operand_or_step_is_not_correct():
    rng = random.Random(2)
    changed = 0
    for p in generated(1500, seed=22):
        steps = list(STEP.finditer(p.solution))
        m = rng.choice(steps)
        if "don't know" in m[3]:
            continue

        def put(new, m=m):
            return p.solution[: m.start()] + new + p.solution[m.end() :]  # noqa: B023

        assert not verify(put(""), p).correct
        assert not verify(put(m[0].replace(m[1], "unicorns in Atlantis", 1)), p).correct
        # the value: what stands after the last "="
        head, _, value = m[0].rpartition("= ")
        numbers = list(re.finditer(r"[0-9]+", value))
        if numbers:
            d = rng.choice(numbers)
            assert not verify(
                put(f"{head}= {value[: d.start()]}{int(d[0]) + rng.randint(1, 9)}{value[d.end() :]}"), p
            ).correct
        # an operand: another quantity's letter in its place
        letters = [s[2] for s in steps]
        first = (
            re.search(
                rf"(?<![A-Za-z'])({'|'.join(s for s in letters if s != m[2])})(?![A-Za-z'])",
                m[3].partition(" = ")[2],
            )
            if len(letters) > 1
            else None
        )
        node = next(n for n in p.nodes if n.name == m[1])
        if first and node.operands:
            unused = [
                s[2] for s in steps if s[1] not in node.operands and s[1] != m[1] and s.start() < m.start()
            ]
            if unused and len(node.operands) > 0:
                offset = m.start() + m[0].index(";") + 1 + m[3].index(" = ") + 3 + first.start()
                text = p.solution[:offset] + rng.choice(unused) + p.solution[offset + 1 :]
                assert not verify(text, p).correct, text
                changed += 1
    assert changed > 300


def test_any_changed_number_or_operator_is_not_faithful():
    tried = true = 0
    for p in generated(152, seed=23):
        for text in edits(p.solution):
            tried += 1
            if verify(text, p).faithful:
                assert text.partition("We know")[0] == p.solution.partition("We know")[
                    0
                ] and closing_still_true(text), text
                true += 1
    assert tried > 10_000 and true < tried / 25


GOLD = {
    "solution": "Define a in P as k; so k = 3. Define b in P as m; s = k = 3; so m = 2 * s = 2 * 3 = 6. "
    "Define total number of things in P as t; so t = k + m = 3 + 6 = 9. Answer: 9.",
    "answer": 9,
    "nodes": [
        {"name": "a in P", "operator": "", "operands": [], "constant": None, "value": 3},
        {"name": "b in P", "operator": "*", "operands": ["a in P"], "constant": 2, "value": 6},
        {
            "name": "total number of things in P",
            "operator": "+",
            "operands": ["a in P", "b in P"],
            "constant": None,
            "value": 9,
        },
    ],
}
A, B, T = (m[0] for m in STEP.finditer(GOLD["solution"]))
WRONG, CORRECT, FAITHFUL = (False, False), (True, False), (True, True)  # (correct, faithful)
HOSTILE = [
    ("gold", GOLD["solution"], FAITHFUL, "as it is"),
    ("extra step", f"Define c in Q as z; so z = 5. {A} {B} {T} Answer: 9.", FAITHFUL, "extra nodes are free"),
    ("false extra step", f"Define c in Q as z; so z = 2 + 2 = 5. {A} {B} {T} Answer: 9.", CORRECT, "free, but a false equality"),
    ("odd spacing", GOLD["solution"].replace(" ", "  "), FAITHFUL, "spaces mean nothing"),
    ("newlines", GOLD["solution"].replace(". ", ".\n"), FAITHFUL, "nor do line ends"),
    ("no answer", f"{A} {B} {T}", WRONG, "no answer"),
    ("answer only", "Answer: 9.", WRONG, "no steps"),
    ("empty", "", WRONG, "nothing there"),
    ("wrong answer", f"{A} {B} {T} Answer: 8.", WRONG, "the graph is right, the answer not"),
    ("two answers", f"{A} {B} {T} Answer: 9. Answer: 8.", WRONG, "no hedging"),
    ("two answers, right one smaller", f"{A} {B} {T} Answer: 9. Answer: 10.", WRONG, "no hedging, whichever is right"),
    ("two answers, right one last", f"Answer: 8. {A} {B} {T} Answer: 9.", WRONG, "no hedging in any order"),
    ("same answer twice", f"{A} {B} {T} Answer: 9. Answer: 9.", FAITHFUL, "they agree"),
    ("tag and word differ", f"{A} {B} {T} Answer: 9. </solution> <answer> 8 </answer>", WRONG, "two answers"),
    ("answer as expression", f"{A} {B} {T} Answer: 3+6.", WRONG, "an answer is an integer"),
    ("answer as a word", f"{A} {B} {T} Answer: nine.", WRONG, "an answer is an integer"),
    ("answer with fraction", f"{A} {B} {T} Answer: 9.5", WRONG, "9.5 is not 9"),
    ("hedged answer", f"{A} {B} {T} Answer: 9 or 8.", WRONG, "nothing else may stand beside the integer"),
    ("two numbers in the tag", f"{A} {B} {T} </solution> <answer> 9 8 </answer>", WRONG, "nothing else may stand beside the integer"),
    ("tag not closed", f"{A} {B} {T} </solution> <answer> 9", WRONG, "it may have been cut off: 9 of 96"),
    ("second document", f"{A} </solution> <answer> 8 </answer> <question> q </question> <solution> {A} {B} {T} </solution> <answer> 9 </answer>",
     WRONG, "two answers; a prompt is only dropped at the very start"),
    ("unicode answer", f"{A} {B} {T} Answer: ٩.", WRONG, "ASCII digits only"),
    ("huge answer", f"{A} {B} {T} Answer: {'9' * 10_000}.", WRONG, "bounded integers"),
    ("letters in English", GOLD["solution"].replace("k = 3.", "k = 3 of m."), CORRECT, "m stands for nothing yet"),
    ("undefined letter", f"{A} Define b in P as m; so m = 2 * q = 2 * 3 = 6. {T} Answer: 9.", WRONG, "q stands for nothing: wrong parents"),
    ("letter used before its step", f"{B} {A} {T} Answer: 9.", WRONG, "k was not known yet"),
    ("reused letter", f"{A} {B} Define c in Q as k; so k = 1. {T} Answer: 9.", WRONG, "k is now c in Q"),
    ("reused scratch letter", f"{A} {B} Define c in Q as s; so s = 1. {T} Answer: 9.", CORRECT, "harmless here, but ill-formed"),
    ("two values in one step", GOLD["solution"].replace("so k = 3.", "k = 4; so k = 3."), WRONG, "contradiction within a step"),
    ("two values in one step, right one first", GOLD["solution"].replace("so k = 3.", "k = 3; so k = 4."), WRONG, "contradiction within a step"),
    ("step twice, same", f"{A} {A} {B} {T} Answer: 9.", CORRECT, "no contradiction, but its letter is bound twice"),
    ("step twice, other value", f"{A} Define a in P as j; so j = 4. {B} {T} Answer: 9.", WRONG, "contradiction"),
    ("step twice, right one last", f"Define a in P as j; so j = 4. {A} {B} {T} Answer: 9.", WRONG, "contradiction in any order"),
    ("missing semicolon", GOLD["solution"].replace("as k; so", "as k so"), CORRECT, "readable, ill-formed"),
    ("missing full stop", GOLD["solution"].replace("k = 3. ", "k = 3 "), CORRECT, "readable, ill-formed"),
    ("missing so", GOLD["solution"].replace("; so k", "; k"), FAITHFUL, "the public three-layer data leave it out"),
    ("English letters", GOLD["solution"].replace("Define a in P", "I see a b in a c. Define a in P"), FAITHFUL, "English is not read"),
    ("English in an equation", GOLD["solution"].replace("k = 3.", "k = 3 animals."), CORRECT, "3 is its last literal"),
    ("literal from an expression", GOLD["solution"].replace("so k = 3.", "so k = 1 + 2 = 3."), CORRECT, "true, but not the literal put in"),
    ("false middle", GOLD["solution"].replace("3 + 6 = 9", "3 + 5 = 9"), CORRECT, "the last value is right, an equality is not"),
    ("false third part", GOLD["solution"].replace("3 + 6 = 9", "3 + 6 = 4 + 4 = 9"), CORRECT, "every equality counts, not only the substitution"),
    ("operator only", GOLD["solution"].replace("k + m", "k * m"), CORRECT, "parents and value right, k * m is not 9"),
    ("equal by luck", "Define a in P as k; so k = 3. " + B + " " + T.replace("3 + 6", "6 + 3") + " Answer: 9.", CORRECT, "true, not the substitution"),
    ("decimal literal", GOLD["solution"].replace("k = 3.", "k = 3.5."), WRONG, "the point of 3.5 ends no sentence; the last literal is 5"),
    ("decimal result", GOLD["solution"].replace("= 9. A", "= 9.5. A"), CORRECT, "9.5 does not compute, 3 + 6 does"),
    ("10,000-digit number", GOLD["solution"].replace("k = 3.", f"k = {'3' * 10_000}."), WRONG, "bounded integers"),
    ("tower of powers", GOLD["solution"].replace("k = 3.", "k = 9**9**9."), WRONG, "no such operator; the last literal is 9"),
    ("division by zero", GOLD["solution"].replace("k = 3.", "k = 3 / 0."), WRONG, "does not compute; the last literal is 0"),
    ("inexact division", GOLD["solution"].replace("k = 3.", "k = 7 / 2."), WRONG, "does not compute; the last literal is 2"),
    ("unicode digit", GOLD["solution"].replace("k = 3.", "k = ３."), WRONG, "ASCII digits only"),
    ("unicode minus", GOLD["solution"].replace("k + m = 3 + 6", "k − m = 3 − 6"), CORRECT, "no operator, so it does not compute; its last literal is 9"),
    ("garbage as operand", GOLD["solution"].replace("k = 3.", "k = $ = 3."), CORRECT, "the last part computes; the first is no expression"),
    ("nested tags", f"<solution> <solution> {A} {B} {T} </solution> </solution> <answer> 9 </answer>", CORRECT, "tags do not nest"),
    ("second solution after the answer", f"{A} {B} {T} </solution> <answer> 9 </answer> <solution> {A}", CORRECT, "nothing follows an answer"),
    ("steps after the end", f"{A} {B} </solution> {T} <answer> 9 </answer>", WRONG, "a step outside the solution does not count"),
    ("1 MB of Define", "Define " * 150_000, WRONG, "too long to be a solution"),
    ("64 KB of Define", "Define " * 9_000, WRONG, "no step in it"),
    ("NUL bytes", GOLD["solution"].replace("k = 3.", "k = \0 3."), CORRECT, "not computable; 3 is its last literal, no parents"),
    ("deep parentheses", GOLD["solution"].replace("k = 3.", "k = " + "(" * 5000 + "3" + ")" * 5000 + "."), CORRECT, "too deep; 3 is the literal"),
    ("unbalanced parentheses", GOLD["solution"].replace("k = 3.", "k = ((3."), CORRECT, "3 is its last literal, but it does not compute"),
    ("many minus signs", GOLD["solution"].replace("k = 3.", "k = " + "-" * 5000 + "3."), CORRECT, "not an expression; 3 is the literal"),
    ("unknown in a forward problem", GOLD["solution"].replace("so k = 3.", "we don't know its value yet but will find it out later."), WRONG,
     "k is no number"),
    ("name too long", GOLD["solution"].replace("a in P", "a" * 10_000 + " in P"), WRONG, "no such quantity"),
    ("names swapped", GOLD["solution"].replace("Define a in P", "Define b in P", 1), WRONG, "a is missing, b contradicts itself"),
    ("case of a name", GOLD["solution"].replace("Define a in P", "Define A in P"), WRONG, "names are compared exactly"),
    ("chain without spaces", GOLD["solution"].replace("k + m = 3 + 6 = 9", "k+m=3+6=9"), FAITHFUL, "spaces mean nothing"),
    ("double equals", GOLD["solution"].replace("k = 3.", "k == 3."), CORRECT, "3 is the value; an empty part does not compute"),
    ("stray equation before We know", f"{A} {B} {T} So 9 = 8. We know t = 9. Answer: 9.", CORRECT, "false, wherever it stands"),
    ("stray equation after the answer", f"{A} {B} {T} Answer: 9. So 9 = 8.", CORRECT, "false, wherever it stands"),
    ("blanks for a name", "Define" + " " * 30_000 + ".", WRONG, "no step (a pattern that backtracks would take hours)"),
    ("padding tokens for a name", "Define" + "[PAD]" * 6_000 + ".", WRONG, "markers are blanks"),
    ("stray equation", f"{A} {B} {T} So 9 = 8. Answer: 9.", CORRECT, "an equation outside the steps that is not the closing of a reverse problem"),
    ("prompt echoed, no solution", "[BOS]<question> Answer: 9. </question>", WRONG, "an answer in the question is not the model's"),
]  # fmt: skip


@pytest.mark.parametrize("name, text, expected, why", HOSTILE, ids=[h[0] for h in HOSTILE])
def test_hostile(name, text, expected, why):
    verdict = verify(text, GOLD)
    assert (verdict.correct, verdict.faithful) == expected, (why, verdict.nodes, verdict.errors)
    assert 0 <= verdict.process <= 1 and isinstance(explain(text, GOLD), str)


def test_left_out_parentheses_are_untrue():
    """The tokens of 5 - (x + 2) without its parentheses: the letters are put in, but 5 - x + 2 is not 3 - x."""
    text = (
        "Define a in P as x; we don't know its value yet but will find it out later. Define b in P as h; so h = 2 + x = 2 + x = x + 2. "
        "Define c in P as c; so c = 5 - h = 5 - (x + 2) = 3 - x. We know c = 2, so we have 3 - x = 2 and we solve it through the following "
        "steps: Simplifying the equation: 3 - x = 2. Move all terms to one side: 1 - x = 0. Isolate the term with x: -1*x = -1. "
        "Divide both sides by -1: x = -1 / -1. Solution: x = 1. Answer: 1."
    )
    gold = {"solution": text}
    assert verify(text, gold).faithful
    verdict = verify(text.replace("(x + 2)", "x + 2"), gold)
    assert verdict.correct and not verdict.faithful and set(verdict.errors) == {"untrue"}


KIND = [
    ("undefined_letter", GOLD["solution"].replace("so k = 3.", "so k = q = 3.")),
    ("reused_letter", GOLD["solution"].replace("s = k", "k = k").replace("2 * s", "2 * k")),
    ("untrue", GOLD["solution"].replace("3 + 6", "3 + 5")),
    ("bad_substitution", GOLD["solution"].replace("3 + 6", "6 + 3")),
    ("not_computable", GOLD["solution"].replace("so k = 3.", "so k = 3 / 0.")),
    ("not_defined", GOLD["solution"].replace("so k = 3.", "so z = 3.")),
    ("not_an_equation", GOLD["solution"].replace("so k = 3.", "so k 3.")),
    ("not_a_definition", GOLD["solution"].replace("a in P as k", "a in P is k")),
    ("defined_twice", GOLD["solution"].replace("so k = 3.", "k = 3; so k = 3.")),
    ("contradiction", f"{A} Define a in P as j; so j = 4. {B} {T} Answer: 9."),
    ("punctuation", GOLD["solution"].replace("as k; so", "as k so")),
    (
        "unknown_not_x",
        GOLD["solution"].replace("so k = 3.", "we don't know its value yet but will find it out later."),
    ),
    ("no_answer", f"{A} {B} {T}"),
    ("two_answers", f"{A} {B} {T} Answer: 9. Answer: 10."),
    ("bad_answer", f"{A} {B} {T} Answer: nine."),
    ("stray_equation", f"{A} {B} {T} Answer: 9. So 9 = 8."),
    ("stray_equation", f"The answer is 9. {A} {B} {T} Answer: 9."),
    ("bad_closing", f"{A} {B} {T} We know t = 9. Answer: 9."),
    ("nested_tags", f"{A} {B} {T} </solution> <answer> 9 </answer> </solution>"),
    ("too_long", "Define " * 150_000),
]


@pytest.mark.parametrize("kind, text", KIND, ids=[k[0] for k in KIND])
def test_error_kinds(kind, text):
    assert kind in verify(text, GOLD).errors and kind not in verify(GOLD["solution"], GOLD).errors


def test_at_least_40_hostile_cases():
    assert len(HOSTILE) >= 40


def test_truncated_at_every_character_never_raises_and_never_passes_without_its_answer():
    for p in generated(40, seed=24):
        for end in range(len(p.solution)):
            verdict = verify(p.solution[:end], p)
            assert not verdict.correct or p.solution[end:] == "."


def test_random_garbage_never_raises_and_is_never_correct():
    rng = random.Random(3)
    alphabet = [
        "Define ",
        " as ",
        ";",
        " so ",
        "=",
        ".",
        "x",
        "a",
        "+",
        "-",
        "*",
        "/",
        "(",
        ")",
        "7",
        "\0",
        "é",
        "<answer>",
        "</solution>",
        "We know ",
    ]
    for _ in range(3000):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(80)))
        assert not verify(text, GOLD).correct
        verify("".join(chr(rng.randrange(0x110000)) for _ in range(20)), GOLD)


def test_long_garbage_of_any_unit_returns():
    """As long as a text may be. A pattern or loop that backtracks hangs here; the speed itself is measured by
    bench/judge_speed.py.
    """
    units = (
        "Define a as b; so b = 1. ",
        "Define ",
        "a=1;",
        "((((",
        "a = ",
        "Define a as ",
        "-",
        "9",
        "as ",
        " ",
        "\n",
        "[BOS]",
        "Answer: 1 ",
    )
    for head in ("", "Define", "Define a as b; so b = ", "<question>", "<answer>", "We know "):
        for unit in units:
            for size in (judge.MAX_TEXT, 1 << 16):
                verdict = verify((head + unit * size)[:size], GOLD)
                assert not verdict.correct and verdict.errors


def form_of(tokens, **letters):
    """The form of an expression."""
    found = judge.evaluate(tokens, {letter: (form, 1) for letter, form in letters.items()})
    return found and found[0]


def test_written_form_of_a_value_has_the_positive_term_first():
    """As in the public data: 4 - 2*x, never -2*x + 4."""
    forms = {
        (0, 4): "4",
        (0, -4): "-4",
        (1, 0): "x",
        (3, -2): "3*x - 2",
        (-2, 4): "4 - 2*x",
        (-2, 0): "-2*x",
        (-1, 3): "3 - x",
        (-1, -3): "-x - 3",
    }
    for form, text in forms.items():
        assert judge.normal_form(form).split() == judge.PIECE.findall(text) and judge.show(form) == text
        assert form_of(judge.PIECE.findall(text), x=(1, 0)) == form


def test_linear_forms_are_not_confused():
    assert form_of(judge.PIECE.findall("3 * x"), x=(1, 0)) == (3, 0)
    assert form_of(judge.PIECE.findall("x + 3"), x=(1, 0)) == (1, 3)
    assert form_of(judge.PIECE.findall("(x + 3) - (2 * x)"), x=(1, 0)) == (-1, 3)
    assert form_of(judge.PIECE.findall("x * x"), x=(1, 0)) is None


def test_expressions_against_fractions():
    """The evaluator against Python's own arithmetic on random expressions with parentheses."""
    rng = random.Random(4)

    def expression(depth):
        if depth == 0 or rng.random() < 0.3:
            n = rng.randrange(10)
            return str(n), Fraction(n)
        (a, u), (b, v), op = expression(depth - 1), expression(depth - 1), rng.choice("+-*/")
        if u is None or v is None or (op == "/" and (v == 0 or (u / v).denominator != 1)):
            return f"({a} {op} {b})", None
        return f"({a} {op} {b})", {"+": u + v, "-": u - v, "*": u * v, "/": v and u / v}[op]

    for _ in range(3000):
        text, value = expression(4)
        got = form_of(judge.PIECE.findall(text))
        assert got == (None if value is None else (0, int(value))), text


def test_precedence_without_parentheses():
    for text, value in (
        ("2 + 3 * 4", 14),
        ("2 * 3 + 4", 10),
        ("8 / 2 / 2", 2),
        ("9 - 3 - 2", 4),
        ("-2 * 3", -6),
        ("4 - -1", 5),
        ("12 / 2 * 3", 18),
    ):
        assert form_of(judge.PIECE.findall(text)) == (0, value)


def test_rewards_are_the_formulas():
    def rewards(verdict, alpha):
        return {kind: reward(verdict, kind, alpha=alpha) for kind in judge.REWARDS}

    right = verify(GOLD["solution"], GOLD)
    assert set(rewards(right, 0.2).values()) == {1}
    # one of three nodes is wrong, the answer still right
    wrong_step = verify(GOLD["solution"].replace("so k = 3.", "so k = 4."), GOLD)
    assert wrong_step.answer_correct and wrong_step.process == pytest.approx(2 / 3)
    dense = pytest.approx(0.2 + 0.8 * 2 / 3)
    some = {"outcome": 1, "process": pytest.approx(2 / 3), "mixed": dense, "gated": dense}
    assert rewards(wrong_step, 0.2) == {**some, "strict": 0, "faithful": 0}
    wrong_answer = verify(GOLD["solution"].replace("Answer: 9", "Answer: 8"), GOLD)
    some = {"outcome": 0, "process": 1, "mixed": pytest.approx(0.75), "gated": 0}
    assert rewards(wrong_answer, 0.25) == {**some, "strict": 0, "faithful": 0}
    with pytest.raises(UserError):
        reward(right, "vibes")


def test_pass_at_k_is_the_average_over_all_subsets():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                tries = [i < c for i in range(n)]
                subsets = list(itertools.combinations(tries, k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    assert pass_at_k(10**4, 1, 100) == pytest.approx(0.01)
    for bad in ((4, 5, 1), (4, 1, 5), (4, 1, 0)):
        with pytest.raises(ValueError):
            pass_at_k(*bad)


def test_closing_of_a_reverse_problem():
    p = next(p for p in generated(100) if p.mode == "reverse")
    without = p.solution[: p.solution.index("We know")] + p.solution[p.solution.index("Answer:") :]
    verdict = verify(without, p)
    assert (
        verdict.correct
        and not verdict.faithful
        and verdict.errors == ["no_closing"]
        and not parse_solution(without).closing
    )


def test_command_line(tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "verify.py", *arguments], cwd=ROOT, capture_output=True, text=True
        )

    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(datagen.to_record(p)) + "\n" for p in generated(20)))
    out = run(str(path))
    assert out.returncode == 0 and "correct 1.0000" in out.stdout and "faithful 1.0000" in out.stdout
    for text, said in (
        (json.dumps(GOLD) + '\n{"solution": 3}\n', "line 2"),
        (json.dumps(GOLD) + '\n\n{"solution": "no step in it", "answer": 3}\n', "line 3"),
        ('{"solution": "x", "nodes": [{"name": "a"}], "answer": 3}\n', "line 1"),
        ("{]\n", "line 1"),
        ("", "no records"),
    ):
        path.write_text(text)
        out = run(str(path))
        assert out.returncode == 2 and said in out.stderr and out.stderr.count("\n") == 1, out.stderr
    assert run(str(tmp_path / "none.jsonl")).returncode == run().returncode == 2


# ------------------------------------------------------------------------------------------------------------
# The relation, its parents, closings, plans, unread text


def outcome(text, gold):
    verdict = verify(text, gold)
    return verdict.correct, verdict.faithful


RELATIONS = [
    ("b in P", "so m = 2 * k = 2 * 3 = 6", FAITHFUL, "without a scratch letter"),
    ("b in P", "so m = k + k = 3 + 3 = 6", FAITHFUL, "the same polynomial"),
    ("b in P", "s = 2 * k = 2 * 3 = 6; so m = s = 6", FAITHFUL, "through a scratch letter"),
    ("b in P", "so m = 4 * k - 2 * k = 4 * 3 - 2 * 3 = 6", FAITHFUL, "the same polynomial"),
    ("b in P", "so m = 0 * k + 6 = 0 * 3 + 6 = 6", CORRECT, "6 is 2 * k only here"),
    ("b in P", "so m = k + 3 = 3 + 3 = 6", CORRECT, "equal only here"),
    ("b in P", "so m = k * k - k = 3 * 3 - 3 = 6", CORRECT, "equal only here"),
    ("b in P", "so m = 2 * k = 2 * 3 = 6 = k + 3 = 3 + 3 = 6", CORRECT, "one of two expressions is another"),
    ("total number of things in P", "so t = m + k = 6 + 3 = 9", FAITHFUL, "a sum in another order"),
    ("total number of things in P", "so t = m / k * 4 + 1 = 6 / 3 * 4 + 1 = 9", CORRECT, "equal only here"),
    ("total number of things in P", "so t = m + 3 = 6 + 3 = 9", WRONG, "a parent is missing"),
    ("total number of things in P", "so t = 3 + 6 = k + m = 9", FAITHFUL, "parents in a later part"),
]


@pytest.mark.parametrize("name, clauses, expected, why", RELATIONS, ids=[r[1] for r in RELATIONS])
def test_each_step_is_the_gold_relation(name, clauses, expected, why):
    step = next(m[0] for m in STEP.finditer(GOLD["solution"]) if m[1] == name)
    text = GOLD["solution"].replace(step, f"{step.partition(';')[0]}; {clauses}.")
    assert outcome(text, GOLD) == expected, (why, verify(text, GOLD).errors)
    without_nodes = {"solution": GOLD["solution"]}  # the gold relation is then the gold solution's own
    assert outcome(text, without_nodes) == expected, why


def test_only_the_gold_pairing_of_a_third_layer_total_is_faithful():
    tried = 0
    for i in range(400):
        p = datagen.generate(31, i, op=8 + i % 6, layers=3)
        root = p.nodes[-1]
        if root.operator != "*+" or len(root.operands) != 4:
            continue
        head, _, _tail = p.solution.rpartition("Define ")
        letters = {m[1]: m[2] for m in STEP.finditer(head)}
        value = {n.name: n.value for n in p.nodes}
        a, u, b, v = root.operands
        if value[a] * value[v] + value[b] * value[u] != root.value:
            continue

        def product(left, one, two, letters=letters, value=value):
            return f"{left} = {letters[one]} * {letters[two]} = {value[one]} * {value[two]} = {value[one] * value[two]}"

        free = iter(
            c
            for c in string.ascii_letters
            if c not in letters.values() and c not in re.findall(r"\b[A-Za-z]\b", head)
        )
        t, s, r = next(free), next(free), next(free)

        def total(first, second, t=t, s=s, r=r, head=head, root=root, value=value):
            sums = [value[one] * value[two] for one, two in (first, second)]
            end = f"so {t} = {s} + {r} = {sums[0]} + {sums[1]} = {root.value}"
            return f"{head}Define {root.name} as {t}; {product(s, *first)}; {product(r, *second)}; {end}. Answer: {root.value}."

        assert outcome(total((a, u), (b, v)), p) == outcome(total((v, b), (u, a)), p) == FAITHFUL
        assert outcome(total((a, v), (b, u)), p) == CORRECT
        tried += 1
    assert tried >= 3


def test_parents_come_from_all_parts_through_scratch_letters():
    text = "Define d in P as d; so d = 10. Define z in P as Z; so Z = 2. Define b in P as b; so b = 10 - 2 = d - Z = 8. Answer: 8."
    parsed = parse_solution(text)
    assert parsed.steps[-1].parents == {"d in P", "z in P"} and parsed.steps[-1].value == (0, 8)
    gold = {"solution": text.replace("10 - 2 = d - Z", "d - Z = 10 - 2")}
    assert outcome(text, gold) == FAITHFUL
    through = text.replace("so b = 10 - 2 = d - Z", "s = 10 = d = 10; so b = 10 - 2 = s - Z")
    assert parse_solution(through).steps[-1].parents == {"d in P", "z in P"}
    assert outcome(text.replace("10 - 2 = d - Z", "d - 2 = 10 - 2"), gold) == WRONG


REVERSE = {
    "solution": "Define a in P as x; we don't know its value yet but will find it out later. Define b in P as b; s = x = x; so b = 4 * s = "
    "(4) * (x) = 4*x. We know b = 12, so 4*x = 12 and x = 12 / 4 = 3. Answer: 3.",
    "answer": 3,
    "nodes": [
        {"name": "a in P", "operator": "", "operands": [], "constant": None, "value": [1, 0]},
        {"name": "b in P", "operator": "*", "operands": ["a in P"], "constant": 4, "value": [4, 0]},
    ],
}
CLOSINGS = [
    ("We know b = 12, so 4*x = 12 and x = 12 / 4 = 3.", FAITHFUL, "shorter than the gold one"),
    ("The total is given: 4*x = 12. Hence x = 3.", FAITHFUL, "any wording"),
    (
        "Since b = 4*x and b = 12 we get 12 = 4*x, that is x = 3.",
        FAITHFUL,
        "what a letter stands for may be said",
    ),
    ("", CORRECT, "no closing"),
    ("We know the total is 12, hence x is 3.", CORRECT, "no equation"),
    ("We know b = 12, so x = 3.", CORRECT, "the linear form is not set equal to its value"),
    ("We know b = 12, so 4*x = 12.", CORRECT, "not solved"),
    ("We know b = 12, so 4*x = 12 and x = 12 / 4.", CORRECT, "not worked out"),
    ("So x = 3, since 4*x = 12.", CORRECT, "x = 3 is not the end"),
    ("We know b = 12, so 4*x = 12 and 4*x = 16, x = 3.", CORRECT, "4*x = 16 is false"),
    ("We know b = 12, so 4*x = 12, 0*x = 0 and x = 3.", CORRECT, "0*x = 0 says nothing"),
    ("We know b = 12, so 4*x = 12, x = x and x = 3.", CORRECT, "x = x says nothing"),
    ("We know b = 12, so 4*x = 12, 12 = 12 and x = 3.", CORRECT, "12 = 12 says nothing"),
    ("We know b = 12, so 4*x = 12, q = 7 and x = 3.", CORRECT, "q stands for nothing"),
    ("We know b = 12, so 4*x = 12 and x = 3.5.", CORRECT, "3.5 is not 3"),
    ("We know b = 12, so 4*x = 12 and x = 3 % 2.", CORRECT, "not arithmetic"),
    ("We know b = 12, so 4*x = 12, x ≠ 4 and x = 3.", CORRECT, "not an equation"),
]


@pytest.mark.parametrize("closing, expected, why", CLOSINGS, ids=[c[0] for c in CLOSINGS])
def test_closing_is_judged_by_its_equations(closing, expected, why):
    head = REVERSE["solution"].partition("We know")[0]
    assert outcome(f"{head}{closing} Answer: 3.", REVERSE) == expected, why


@pytest.mark.parametrize("closing", ["We know 0*x = 0.", "We know t = 9.", "Thus k + m = 9.", "x = 9."])
def test_closing_in_a_forward_text_is_not_faithful(closing):
    assert outcome(f"{A} {B} {T} {closing} Answer: 9.", GOLD) == CORRECT


UNREAD = [
    (f"{A} {B} {T} Answer: 9. It is 8, though.", CORRECT),
    (f"{A} {B} {T} Answer: 9. Define a in P as q; so q = 3.", CORRECT),
    (f"{A} {B} {T} Answer: 9. Define a in P as q; so q = 4.", WRONG),
    (f"{A} {B} {T} </solution> <answer> 9 </answer> It is 8, though.", CORRECT),
    (f"{A} {B} {T} </solution> It is 8, though. <answer> 9 </answer>", CORRECT),
    (f"{A} {B} {T} </solution> <answer> 9 </answer> Define a in P as q; so q = 4.", WRONG),
    (
        f"<question> Define a in P as q; so q = 4. </question> <solution> {A} {B} {T} </solution> <answer> 9 </answer>",
        WRONG,
    ),
    (f"<question> How many? </question> <solution> {A} {B} {T} </solution> <answer> 9 </answer>", CORRECT),
    (f"Define c = 7 in Q as z; so z = 1. {A} {B} {T} Answer: 9.", CORRECT),
    (f"It holds that 3 ＝ 4. {A} {B} {T} Answer: 9.", CORRECT),
    (f"<solution> {A} {B} {T} Answer: 9. </solution> <answer> 9 </answer> [EOS]", FAITHFUL),
]
CLAIMS = [
    "answer: 8.", "The answer is 8.", "#### 8.", "\\boxed{8}.", "define a in P as q; so q is 4.", "3 > 4.", "3 equals 4.", "3 ⩵ 4.",
    "3 ≔ 4.", "3 ﹦ 4.", "ANSWER 8.",
]  # fmt: skip
UNREAD += [(f"{claim} {A} {B} {T} Answer: 9.", CORRECT) for claim in CLAIMS]
UNREAD += [(f"{A} {claim} {B} {T} Answer: 9.", CORRECT) for claim in CLAIMS]
UNREAD += [(f"{A} {B} {T} {claim} Answer: 9.", CORRECT) for claim in CLAIMS]
UNREAD += [
    (f"Let us see. {A} {B} {T} Answer: 9.", FAITHFUL),
    (f"Unanswered yet. {A} {B} {T} Answer: 9.", FAITHFUL),
]


@pytest.mark.parametrize("text, expected", UNREAD, ids=range(len(UNREAD)))
def test_nothing_that_claims_something_stands_unread(text, expected):
    assert outcome(text, GOLD) == expected, verify(text, GOLD).errors


PLANS = [
    ("To find total number of things in P we need a in P, b in P. To find b in P we need a in P.", FAITHFUL),
    ("To find total number of things in P we need b in P, a in P.", FAITHFUL),
    ("To find total number of things in P we need a in P.", CORRECT),
    ("To find total number of things in P we need a in P, b in P, b in P.", CORRECT),
    ("To find b in P we need a in P, c in Q.", CORRECT),
    ("To find c in Q we need a in P.", CORRECT),
    ("To find a in P we need it.", CORRECT),
    ("To find b in P we need k = 4.", CORRECT),
]


@pytest.mark.parametrize("plan, expected", PLANS, ids=[plan[0] for plan in PLANS])
def test_a_plan_is_a_claim_about_the_gold_graph(plan, expected):
    assert outcome(f"{plan} {A} {B} {T} Answer: 9.", GOLD) == expected
    assert outcome(f"{plan}{A} {B} {T} Answer: 9.", GOLD) == expected  # found by bench/fuzz_verify.py


def three_layers(seed):
    """A record in the public data's format with three layers, by its rules: no `so` before a total of several
    products, or of one product written before the sum is known; averages are defined like counts.
    """
    rng = random.Random(seed)
    animals, letters = (
        rng.sample(["owl", "bear", "wolf", "crow", "deer"], 1 + seed % 3),
        iter(rng.sample(string.ascii_letters, 40)),
    )
    place, steps, pairs = "Pine Ridge", [], []
    for animal in animals:
        count, average = next(letters), next(letters)
        n, m = rng.randint(1, 6), rng.randint(1, 4)
        steps += [f"Define adult {animal} in {place} as {count}; so {count} = {n}."]
        steps += [
            f"Define average number of newborn children per adult {animal} in {place} as {average}; so {average} = {m}."
        ]
        pairs.append((count, average, n, m))
    clauses, terms = [], []
    for count, average, n, m in pairs:
        product = next(letters)
        clauses.append(f"{product} = {count} * {average} = {n} * {m} = {n * m}")
        terms.append((product, n * m))
    while len(terms) > 1:
        (u, a), (v, b), w = terms[0], terms[1], next(letters)
        clauses.append(f"{w} = {u} + {v} = {a} + {b} = {a + b}")
        terms[:2] = [(w, a + b)]
    total, value = terms[0]
    steps.append(
        f"Define total number of newborn animal children in {place} as {total}; {'; '.join(clauses)}."
    )
    if seed % 2:
        again, scratch, k = next(letters), next(letters), rng.randint(2, 4)
        equations = (
            f"{scratch} = {total} = {value}; so {again} = {k} * {scratch} = {k} * {value} = {k * value}"
        )
        steps.append(f"Define adult fox in Bundle Ranch as {again}; {equations}.")
        value *= k
    return {"solution": " ".join(steps) + f" Answer: {value}.", "mode": "normalforward", "d": 3, "op": 5}


def test_60_public_records_of_three_layers_are_faithful():
    for record in map(three_layers, range(60)):
        text = record["solution"]
        assert outcome(text, record) == FAITHFUL, explain(text, record)
        for changed in edits(text):
            assert not verify(changed, record).faithful, changed


# ------------------------------------------------------------------------------------------------------------
# Odd records, odd terminals


NODE = {"name": "a", "operator": "", "operands": [], "constant": None, "value": 3}
ODD = [
    *(
        {**NODE, "value": value}
        for value in (["a", "b"], "34", [None, None], {"a": 1}, None, 3.0, True, [1], [1, 2, 3], [True, 2])
    ),
    *({**NODE, "operator": operator} for operator in ("+", "*+", "?", None, 3)),
    *({**NODE, "operands": operands} for operands in ("b", None, [3], ["b", "c"], {"b": 1})),
    {**NODE, "operands": ["b"], "constant": 3},
    {**NODE, "operands": ["b"], "constant": "3", "operator": "*"},
    {**NODE, "operands": ["b"], "constant": 0, "operator": "/"},
    {**NODE, "operands": ["b", "c", "d"], "operator": "*+"},
    {**NODE, "name": None},
    3,
    None,
]


@pytest.mark.parametrize("node", ODD, ids=map(str, ODD))
def test_odd_gold_is_one_line(node, tmp_path, capsys):
    record = {"solution": "Define a as a; so a = 3. Answer: 3.", "answer": 3, "nodes": [node]}
    with pytest.raises(UserError, match="item 1 of its `nodes`"):
        verify("", record)
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps({**record, "nodes": [NODE]}) + "\n" + json.dumps(record) + "\n")
    for arguments in ([str(path)], [str(path), "--explain"]):
        with pytest.raises(UserError, match="line 2: item 1 of its `nodes`"):
            judge.main(arguments)


@pytest.mark.parametrize(
    "key, value",
    [("answer", "3"), ("answer", 3.5), ("answer", True), ("nodes", {}), ("nodes", "a"), ("nodes", [])],
)
def test_odd_records_are_user_errors(key, value):
    with pytest.raises(UserError, match="gold graph"):
        verify("", {**GOLD, key: value})


def test_a_record_with_an_answer_alone_has_an_answer_only_verdict():
    verdict = verify("Answer: 7.", {"question": "?", "answer": 7})
    assert (
        verdict.answer_correct
        and not verdict.correct
        and reward(verdict, "outcome") == 1
        and reward(verdict, "strict") == 0
    )


def test_what_is_remembered_is_short_and_never_stale():
    caches = judge.read_equation, judge._side
    before = [cache.cache_info().currsize for cache in caches]
    verify(GOLD["solution"].replace("k = 3.", f"k = {'1 + ' * 5000}1."), GOLD)
    for cache, size in zip(caches, before):
        assert cache.cache_info().currsize <= size + 12  # the other equations and their short sides
    record = json.loads(json.dumps(GOLD))
    assert verify(GOLD["solution"], record).faithful
    record["nodes"][1]["value"] = 7
    assert verify(GOLD["solution"], record).nodes["b in P"] == "wrong_value"
    record["nodes"][1].update(value=6, constant=None, operator="")
    assert verify(GOLD["solution"], record).errors == ["wrong_relation"]
    record["nodes"][1]["value"] = 6.0
    with pytest.raises(UserError, match="item 2"):
        verify(GOLD["solution"], record)


def test_odd_text_and_odd_stdout(tmp_path):
    record = {
        **GOLD,
        "solution": GOLD["solution"].replace(
            "Define", "Define \ud800 \x1b[31m é in Q as q; so q = 1. Define", 1
        ),
    }
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps(record) + "\n")
    command = [sys.executable, str(ROOT / "verify.py"), str(path), "--explain"]

    def run(**more):
        return subprocess.run(command, stderr=subprocess.PIPE, timeout=60, **more)

    for encoding in ("ascii", "utf-8"):
        out = run(stdout=subprocess.PIPE, env={"PYTHONIOENCODING": encoding})
        assert (
            out.returncode == 0
            and not out.stderr
            and b"\x1b" not in out.stdout
            and b"\\ud800 \\x1b[31m" in out.stdout
        )
        out.stdout.decode(encoding)
    with open("/dev/full", "w") as full:
        out = run(stdout=full)
    assert b"Traceback" not in out.stderr and out.returncode != 0
    out = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], stderr=subprocess.PIPE, timeout=60)
    assert out.returncode == 2 and out.stderr.count(b"\n") == 1


def test_explanation_without_gold_says_that_it_compares_with_nothing():
    text = explain(GOLD["solution"].replace("3 + 6", "3 + 5"))
    assert text.count("✓") == 3 and text.count("✗") == 1 and "no gold" in text.splitlines()[-1]
    assert "another relation" in explain(GOLD["solution"].replace("2 * s = 2 * 3", "3 + s = 3 + 3"), GOLD)
