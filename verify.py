"""The judge: reads a solution, compares its reasoning graph with the gold graph, step by step.

    python verify.py records.jsonl --solution-key solution

A solution is a row of sentences `Define NAME as v; s = a + b = 3 + 4 = 7; so v = 2 * s = 2 * 7 = 14.` Only what stands
between `Define` and the full stop is read as mathematics; English around it never is. In reverse problems `x` is unknown
and values are linear forms a*x + b, held as pairs (a, b); a plain number n is (0, n).

It never raises on any text, takes time linear in its length, and computes with bounded integers. Standard library only, and
nothing of datagen.py: the judge knows the generator's records, not its code.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field

import cli

MAX_TEXT = 1 << 16  # characters; no solution is a tenth as long
MAX_NUMBER = 10**15  # a larger number is not computed with
MAX_DEPTH = 32  # of parentheses

TAGS = re.compile(r"\[(?:BOS|EOS|PAD)\]")
STEP = re.compile(r"\s*(.{1,200}?)\s+as\s+([A-Za-z])\s*(;?)(?![A-Za-z])", re.S)
TOKEN = re.compile(r"\s*(?:([0-9]{1,16})(?![0-9])|([A-Za-z])(?![A-Za-z'])|([-+*/()]))")
LETTER = re.compile(r"(?<![A-Za-z'])[A-Za-z](?![A-Za-z'])")
ANSWER = re.compile(r"(?:Answer:|<answer>)\s*(\S{0,40})")
INTEGER = re.compile(r"-?[0-9]{1,15}\.?\Z", re.ASCII)
UNKNOWN = re.compile(r"we don't know its value yet but will find it out later\Z")


@dataclass(slots=True)
class Step:
    """One `Define` sentence. value: (a, b) for a*x + b, or None if nothing in it can be computed. parents: names.
    faithful: every equality in it is true and its second part is the first with the letters' values put in."""

    name: str
    var: str
    parents: frozenset
    value: tuple | None
    faithful: bool


@dataclass(slots=True)
class ParsedSolution:
    steps: list = field(default_factory=list)
    answer: int | None = None
    errors: list = field(default_factory=list)  # kinds, in order of appearance
    closing: str = ""  # what stands outside the steps and holds equations (reverse mode)


@dataclass(slots=True)
class Verdict:
    answer_correct: bool
    process: float  # share of gold nodes that are ok
    correct: bool  # all nodes ok and the answer right (the paper's VerifiedCorrect)
    faithful: bool  # correct, and nothing untrue or ill-formed in any step
    nodes: dict  # name → "ok", "missing", "wrong_parents" or "wrong_value"
    extra: list  # names defined beside the gold nodes
    errors: list  # kinds
    parsed: ParsedSolution


# ----------------------------------------------------------------------------------------------------------------------
# Expressions


def tokenize(text):
    """An expression → list of tokens, or None if anything in it is not a number, a single letter, or one of + - * / ( )."""
    tokens, position, end = [], 0, len(text)
    while position < end:
        match = TOKEN.match(text, position)
        if match is None:
            return None if text[position:].strip() else tokens
        tokens.append(match[match.lastindex])
        position = match.end()
    return tokens


def apply(op, u, v):
    """u op v for linear forms; None where it is no form with bounded integers (x*x, an inexact quotient, too large)."""
    (a, b), (c, d) = u, v
    if op == "+":
        out = (a + c, b + d)
    elif op == "-":
        out = (a - c, b - d)
    elif op == "*":
        if a and c:
            return None
        out = (a * d + c * b, b * d)
    else:
        if c or not d or a % d or b % d:
            return None
        out = (a // d, b // d)
    return out if abs(out[0]) <= MAX_NUMBER and abs(out[1]) <= MAX_NUMBER else None


PRECEDENCE = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2, "negate": 3}


def evaluate(tokens, values):
    """Value of an expression, by two stacks (no recursion), or None. values: {letter: form or None}."""
    operands, operators, expect_operand = [], [], True

    def reduce(least):
        while operators and PRECEDENCE[operators[-1]] >= least:
            op = operators.pop()
            v = operands.pop()
            if op == "negate":
                operands.append((-v[0], -v[1]))
                continue
            out = apply(op, operands.pop(), v)
            if out is None:
                return False
            operands.append(out)
        return True

    for token in tokens:
        if expect_operand:
            if token == "(":
                operators.append(token)
                if len(operators) > 2 * MAX_DEPTH:
                    return None
            elif token == "-" and (not operators or operators[-1] != "negate"):
                operators.append("negate")
            elif token in "+-*/)":
                return None
            else:
                value = (0, int(token)) if token.isdigit() else values.get(token)
                if value is None:
                    return None
                operands.append(value)
                expect_operand = False
        elif token == ")":
            if not reduce(1) or not operators:
                return None
            operators.pop()
        elif token in "+-*/":
            if not reduce(PRECEDENCE[token]):
                return None
            operators.append(token)
            expect_operand = True
        else:
            return None
    if expect_operand or not reduce(1) or operators:
        return None
    return operands[0]


def normal_form(value):
    """The tokens of a value as it is written: 4, x, 3*x, x + 4, 3*x - 2, -1*x + 2."""
    a, b = value
    if not a:
        return ["-", str(-b)] if b < 0 else [str(b)]
    ax = ["x"] if a == 1 else ["-", str(-a), "*", "x"] if a < 0 else [str(a), "*", "x"]
    return ax if not b else [*ax, "+" if b > 0 else "-", str(abs(b))]


# ----------------------------------------------------------------------------------------------------------------------
# Solutions


def parse_solution(text):
    """Text → ParsedSolution. Takes a plain solution (`… Answer: 7.`) and a document (`<question> … <solution> … </answer>`)."""
    parsed = ParsedSolution()
    if len(text) > MAX_TEXT:
        parsed.errors.append("too_long")
        return parsed
    text = TAGS.sub(" ", text)
    if "<question>" in text:  # the prompt before the solution
        text = text.partition("</question>")[2]
    body, _, after = text.partition("</solution>")
    body = body.lstrip().removeprefix("<solution>")
    if "<" in body.replace("<answer>", "").replace("</answer>", "") or "solution>" in after or "question>" in after:
        parsed.errors.append("nested_tags")
    _read_answer(text, parsed)

    pieces = re.split(r"\bDefine\b", body)
    outside = [pieces[0]]
    letters = {}  # letter → (form or None, names it stands for)
    for piece in pieces[1:]:
        sentence, stop, rest = piece.partition(".")
        outside.append(rest)
        if not stop:
            parsed.errors.append("punctuation")
        _read_step(sentence, letters, parsed)
    outside = " ".join(outside)
    if "=" in outside:
        parsed.closing = " ".join(outside[max(0, outside.find("We know")) :].partition("Answer:")[0].split())
    return parsed


def _read_answer(text, parsed):
    """The answer, if all that claim to be one are the same integer."""
    answers = set()
    for match in ANSWER.finditer(text):
        word = match[1].removesuffix("</answer>")
        if not INTEGER.match(word):
            parsed.errors.append("bad_answer")
            return
        answers.add(int(word.rstrip(".")))
    if len(answers) == 1:
        parsed.answer = answers.pop()
    else:
        parsed.errors.append("two_answers" if answers else "no_answer")


def _read_step(sentence, letters, parsed):
    """Read one sentence after `Define`, add its Step, and bind its letters."""
    errors = parsed.errors
    head = STEP.match(sentence)
    if head is None:
        errors.append("not_a_definition")
        return
    name, var = " ".join(head[1].split()), head[2]
    step = Step(name, var, frozenset(), None, True)
    if not head[3]:
        errors.append("punctuation")
    local, defined = set(), False
    clauses = sentence[head.end() :].split(";")
    for i, clause in enumerate(clauses):
        clause = clause.strip()
        if UNKNOWN.match(clause) and len(clauses) == 1:
            value, parents, true = (1, 0), frozenset(), True
            left = var
            if var != "x":
                errors.append("unknown_not_x")
                true = False
        else:
            last = i == len(clauses) - 1
            left, value, parents, true = _read_equation(clause.removeprefix("so ") if last else clause, letters, errors)
            if not clause.startswith("so ") if last else False:
                errors.append("punctuation")
            if left is None:
                step.faithful = False
                continue
        step.faithful &= true
        if left == var:
            if defined:
                errors.append("defined_twice")
            defined = True
            step.value, step.parents = value, parents
        elif left in local or defined:
            errors.append("reused_letter")
        if left in letters and left != var and letters[left][0] is not None:
            errors.append("reused_letter")
        if left != var:
            local.add(left)
            letters[left] = (value, parents)
    if not defined:
        errors.append("not_defined")
        step.faithful = False
    if var in letters:
        errors.append("reused_letter")
    letters[var] = (step.value, frozenset((name,)))
    parsed.steps.append(step)


def _read_equation(clause, letters, errors):
    """`v = a + b = 3 + 4 = 7` → (letter or None, value, parents, faithful). The value is the last that can be computed."""
    left, *parts = clause.split("=")
    left = left.strip()
    if not parts or len(left) != 1 or not left.isascii() or not left.isalpha():
        errors.append("not_an_equation")
        return None, None, frozenset(), False
    values = {letter: bound[0] for letter, bound in letters.items()}
    tokens = [tokenize(part) for part in parts]
    computed = [evaluate(t, values) if t else None for t in tokens]
    value = next((v for v in reversed(computed) if v is not None), None)
    if value is None:  # the last number written, if nothing computes
        numbers = re.findall(r"(?<![0-9])[0-9]{1,15}(?![0-9])", clause)
        value = (0, int(numbers[-1])) if numbers else None
    used = LETTER.findall(parts[0])
    for letter in used:
        if letter not in letters:
            errors.append("undefined_letter")
    parents = frozenset().union(*(letters[t][1] for t in used if t in letters))
    if None in computed:
        errors.append("not_computable")
        return left, value, parents, False
    true = all(v == value for v in computed)
    if not true:
        errors.append("untrue")
    # Each letter's value put in, the first part must be the second; the last must be the value as one writes it.
    put_in = [t for token in tokens[0] for t in (normal_form(values[token]) if token.isalpha() else (token,))]
    plain = [[t for t in part if t not in "()"] for part in (put_in, tokens[min(1, len(tokens) - 1)])]
    if plain[0] != plain[1] or tokens[-1] != normal_form(value):
        errors.append("bad_substitution")
        true = False
    return left, value, parents, true


def expected_closing(letter, form, answer):
    """The end of a reverse solution: from the last quantity's form and its known value to x."""
    a, b = form
    known = a * answer + b
    left = _show(normal_form(form))
    moved = _show(normal_form((a, b - known)))
    return (
        f"We know {letter} = {known}, so we have {left} = {known} and we solve it through the following steps: "
        f"Simplifying the equation: {left} = {known}. Move all terms to one side: {moved} = 0. "
        f"Isolate the term with x: {a}*x = {known - b}. Divide both sides by {a}: x = {known - b} / {a}. Solution: x = {answer}."
    )


def _show(tokens):
    return "".join(f" {t} " if t in "+-" and i else t for i, t in enumerate(tokens))


# ----------------------------------------------------------------------------------------------------------------------
# Verdicts


def _get(record, key):
    return record.get(key) if isinstance(record, dict) else getattr(record, key, None)


def gold_graph(record):
    """{name: (parents, value)} in order, and the answer: from `nodes`, or where a record has none from its solution."""
    nodes, answer = _get(record, "nodes"), _get(record, "answer")
    if nodes is None:
        parsed = parse_solution(_get(record, "solution"))
        return {s.name: (s.parents, s.value) for s in parsed.steps}, parsed.answer if answer is None else answer
    gold = {}
    for node in nodes:
        value = _get(node, "value")
        value = (0, value) if isinstance(value, int) else tuple(value)
        gold[" ".join(_get(node, "name").split())] = (frozenset(" ".join(p.split()) for p in _get(node, "operands")), value)
    return gold, answer


def verify(text, record):
    """Judge a solution text against a record (a dict of the JSONL schema, or a datagen.Problem) → Verdict. Never raises on text."""
    gold, answer = gold_graph(record)
    parsed = parse_solution(text)
    errors = list(parsed.errors)
    found = {}
    for step in parsed.steps:
        before = found.setdefault(step.name, step)
        if before is not step and (before.value, before.parents) != (step.value, step.parents):
            errors.append("contradiction")
            found[step.name] = Step(step.name, step.var, step.parents, None, False)
    nodes = {}
    for name, (parents, value) in gold.items():
        step = found.get(name)
        if step is None:
            nodes[name] = "missing"
        elif step.value is None or step.value != value:
            nodes[name] = "wrong_value"
        else:
            nodes[name] = "ok" if step.parents == parents else "wrong_parents"
    ok = sum(status == "ok" for status in nodes.values())
    answer_correct = answer is not None and parsed.answer == answer
    correct = ok == len(gold) > 0 and answer_correct
    if correct and parsed.closing:
        last = next(reversed(gold))
        if parsed.closing != expected_closing(found[last].var, gold[last][1], answer):
            errors.append("bad_closing")
    faithful = correct and not errors and all(step.faithful for step in parsed.steps)
    return Verdict(answer_correct, ok / len(gold) if gold else 0.0, correct, faithful, nodes, [n for n in found if n not in gold], errors, parsed)


def reward(verdict, kind, alpha=0.2):
    """The reward of a verdict, in [0, 1].

    With R_out = 1 if the answer is right, R_pv = the share of gold nodes that are ok:
    outcome: R_out; process: R_pv; mixed: α·R_out + (1−α)·R_pv, dense also where the answer is wrong; strict: R_out if
    R_pv = 1, else 0 (Interplay paper, section on process-verified rewards); faithful: 1 if the verdict is faithful.
    Raises UserError for an unknown kind.
    """
    outcome = float(verdict.answer_correct)
    if kind == "outcome":
        return outcome
    if kind == "process":
        return verdict.process
    if kind == "mixed":
        return alpha * outcome + (1 - alpha) * verdict.process
    if kind == "strict":
        return outcome if verdict.process == 1 else 0.0
    if kind == "faithful":
        return float(verdict.faithful)
    raise cli.UserError(f"unknown reward {kind!r}: choose from outcome, process, mixed, strict, faithful")


def pass_at_k(n, c, k):
    """Unbiased estimate of the chance that one of k samples is right, from n samples with c right (Chen et al. 2021, eq. 1).

    1 − C(n−c, k) / C(n, k). Raises ValueError unless 0 ≤ c ≤ n and 1 ≤ k ≤ n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def explain(text, record):
    """A readable account of a verdict: one line a gold node, then what was defined beside them, the answer, the errors."""
    verdict, (gold, answer) = verify(text, record), gold_graph(record)
    steps = {step.name: step for step in verdict.parsed.steps}
    lines = []
    for name, (parents, value) in gold.items():
        status, step = verdict.nodes[name], steps.get(name)
        line = f"{'✓' if status == 'ok' else '✗'} {name} = {_show(normal_form(value))}"
        if status == "wrong_value":
            line += f"   found {'nothing that computes' if step.value is None else _show(normal_form(step.value))}"
        elif status == "wrong_parents":
            line += f"   found it from {sorted(step.parents)}, not {sorted(parents)}"
        elif status == "missing":
            line += "   never defined"
        lines.append(line)
    lines += [f"· {name}   not needed" for name in verdict.extra]
    lines.append(f"{'✓' if verdict.answer_correct else '✗'} answer {answer}" + ("" if verdict.answer_correct else f"   found {verdict.parsed.answer}"))
    lines.append(f"process {verdict.process:.2f}, correct {verdict.correct}, faithful {verdict.faithful}"
                 + (f", errors: {', '.join(dict.fromkeys(verdict.errors))}" if verdict.errors else ""))  # fmt: skip
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------------------
# Command line


@dataclass(frozen=True)
class Options:
    records: str | None = cli.opt(None, "JSONL file of records (GSM-Infinite keys; gold from `nodes` where there are any)")
    solution_key: str = cli.opt("solution", "key of the text to judge")
    explain: int = cli.opt(0, "explain this many verdicts, step by step, the first ones that are not correct")


def main():
    o = cli.parse_options(Options, description="Judge the solutions of a JSONL file.", positional="records")
    if o.records is None:
        raise cli.UserError("no records to judge: python verify.py records.jsonl")
    total, rates, errors, nodes, left = 0, Counter(), Counter(), Counter(), o.explain
    for number, record in cli.read_jsonl(o.records):
        text = record.get(o.solution_key)
        if not isinstance(text, str):
            raise cli.UserError(f"{o.records}, line {number}: key {o.solution_key!r} is missing or no text")
        try:
            verdict = verify(text, record)
        except (TypeError, ValueError, AttributeError):
            raise cli.UserError(f"{o.records}, line {number}: neither `nodes` nor `solution` holds a gold graph") from None
        total += 1
        rates.update(answer=verdict.answer_correct, process=verdict.process, correct=verdict.correct, faithful=verdict.faithful)
        errors.update(set(verdict.errors))
        nodes.update(status for status in verdict.nodes.values())
        if left and not verdict.correct:
            left -= 1
            print(f"--- line {number}\n{explain(text, record)}\n")
    if not total:
        raise cli.UserError(f"{o.records} has no records")
    print(f"{total} solutions: " + ", ".join(f"{name} {rates[name] / total:.4f}" for name in ("answer", "process", "correct", "faithful")))
    print("nodes: " + ", ".join(f"{status} {n}" for status, n in nodes.most_common()))
    print("errors: " + (", ".join(f"{kind} {n}" for kind, n in errors.most_common()) or "none"))


if __name__ == "__main__":
    cli.run(main)
