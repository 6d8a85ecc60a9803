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

MAX_TEXT = 1 << 15  # characters; no prompt and solution are a third as long
MAX_NUMBER = 10**15  # a larger number is not computed with
MAX_DEPTH = 32  # of parentheses

# Every pattern is matched against text whose runs of white space are single spaces, so none can backtrack far.
TAGS = re.compile(r"\[(?:BOS|EOS|PAD)\]")
STEP = re.compile(r" ?(.{1,200}?) as ([A-Za-z]) ?(;?)(?![A-Za-z])")
STOP = re.compile(r"\.(?!\S)")  # the point of 3.5 ends no sentence
TOKEN = re.compile(r" ?(?:([0-9]{1,15})(?![0-9])|([A-Za-z])(?![A-Za-z'])|([-+*/()]))")
LETTER = re.compile(r"(?<![A-Za-z'])[A-Za-z](?![A-Za-z'])")
CLAIM = re.compile(r"Answer:|<answer>")
ANSWER = {  # the whole claim: nothing else may stand beside the integer, and a tag must be closed
    "Answer:": re.compile(r" ?(-?[0-9]{1,15})(?:\.(?!\S)| ?(?=<|\Z))"),
    "<answer>": re.compile(r" ?(-?[0-9]{1,15}) ?</answer>"),
}
UNKNOWN = re.compile(r"we don't know its value yet but will find it out later\Z")


@dataclass(slots=True)
class Step:
    """One `Define` sentence. value: (a, b) for a*x + b, or None if nothing in it can be computed. parents: names.
    faithful: every equality in it is true, its second part is the first with the letters' values put in, and it is well-formed."""

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
    closing: str = ""  # "We know …", the equations that find x (reverse mode)


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

    @property
    def kind(self):
        """The best that can be said of it: "faithful", "correct", "answer only" or "wrong"."""
        return "faithful" if self.faithful else "correct" if self.correct else "answer only" if self.answer_correct else "wrong"


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
    """The tokens of a value as it is written: 4, x, 3*x, x + 4, 3*x - 2, 4 - 2*x, -2*x, -x - 1."""
    a, b = value
    if not a:
        return ["-", str(-b)] if b < 0 else [str(b)]
    ax = ["x"] if abs(a) == 1 else [str(abs(a)), "*", "x"]
    if a < 0 < b:  # the positive term comes first
        return [str(b), "-", *ax]
    ax = ["-", *ax] if a < 0 else ax
    return ax if not b else [*ax, "+" if b > 0 else "-", str(abs(b))]


# ----------------------------------------------------------------------------------------------------------------------
# Solutions


def parse_solution(text):
    """Text → ParsedSolution. Takes a plain solution (`… Answer: 7.`) and a document (`<question> … <solution> … </answer>`)."""
    parsed = ParsedSolution()
    if len(text) > MAX_TEXT:
        parsed.errors.append("too_long")
        return parsed
    text = " ".join(TAGS.sub(" ", text).split())
    if text.startswith("<question>"):  # the prompt before the solution; anywhere else the tag is the model's own
        text = text.partition("</question>")[2].lstrip()
    body, _, after = text.partition("</solution>")
    body = body.removeprefix("<solution>")
    if "<" in body.replace("<answer>", "").replace("</answer>", "") or "solution>" in after or "question>" in after:
        parsed.errors.append("nested_tags")
    _read_answer(text, parsed)

    pieces = re.split(r"\bDefine\b", body)
    outside = [pieces[0]]
    values, sources = {}, {}  # letter → its form or None; letter → the names it stands for
    for piece in pieces[1:]:
        stop = STOP.search(piece)
        if stop is None:
            parsed.errors.append("punctuation")
            _read_step(piece, values, sources, parsed)
        else:
            outside.append(piece[stop.end() :])
            _read_step(piece[: stop.start()], values, sources, parsed)
    before, _, rest = " ".join(outside).partition("We know")
    closing, _, tail = rest.partition("Answer:")
    if "=" in closing:
        parsed.closing = " ".join(("We know" + closing).split())
    if "=" in before or "=" in tail:
        parsed.errors.append("stray_equation")
    return parsed


def _read_answer(text, parsed):
    """The answer, if all that claim to be one are the same integer."""
    answers = set()
    for claim in CLAIM.finditer(text):
        match = ANSWER[claim[0]].match(text, claim.end())
        if match is None:
            parsed.errors.append("bad_answer")
            return
        answers.add(int(match[1]))
    if len(answers) == 1:
        parsed.answer = answers.pop()
    else:
        parsed.errors.append("two_answers" if answers else "no_answer")


def _read_step(sentence, values, sources, parsed):
    """Read one sentence after `Define`, add its Step, and bind its letters."""
    errors, sound = parsed.errors, len(parsed.errors)
    head = STEP.match(sentence)
    if head is None:
        errors.append("not_a_definition")
        return
    name, var = head[1].strip(), head[2]
    if not head[3]:
        errors.append("punctuation")
    definitions = []  # of var: (value, parents)
    clauses = sentence[head.end() :].split(";")
    for i, clause in enumerate(clauses):
        clause = clause.strip()
        if UNKNOWN.match(clause) and len(clauses) == 1:
            if var != "x":
                errors.append("unknown_not_x")
            definitions.append(((1, 0), frozenset()))
            continue
        if i == len(clauses) - 1:
            if not clause.startswith("so "):
                errors.append("punctuation")
            clause = clause.removeprefix("so ")
        left, value, parents = _read_equation(clause, values, sources, errors)
        if left == var:
            definitions.append((value, parents))
        elif left is not None:
            if left in values or definitions:
                errors.append("reused_letter")
            values[left], sources[left] = value, parents
    if not definitions:
        errors.append("not_defined")
    if len(definitions) > 1:
        errors.append("defined_twice")
    # Two definitions that differ define nothing: who hedges is wrong.
    value, parents = definitions[0] if len(set(definitions)) == 1 else (None, frozenset())
    if var in values:
        errors.append("reused_letter")
    values[var], sources[var] = value, frozenset((name,))
    parsed.steps.append(Step(name, var, parents, value, len(errors) == sound))


def _read_equation(clause, values, sources, errors):
    """`v = a + b = 3 + 4 = 7` → (letter or None, value, parents). The value is the last that can be computed. What is not
    true, not the letters' values put in, or not readable is added to `errors`."""
    left, *parts = clause.split("=")
    left = left.strip()
    if not parts or len(left) != 1 or not left.isascii() or not left.isalpha():
        errors.append("not_an_equation")
        return None, None, frozenset()
    tokens = [tokenize(part) for part in parts]
    computed = [evaluate(t, values) if t else None for t in tokens]
    value = next((v for v in reversed(computed) if v is not None), None)
    if value is None:  # the last number written, if nothing computes
        numbers = re.findall(r"(?<![0-9])[0-9]{1,15}(?![0-9])", clause)
        value = (0, int(numbers[-1])) if numbers else None
    used = LETTER.findall(parts[0])
    if any(letter not in sources for letter in used):
        errors.append("undefined_letter")
    parents = frozenset().union(*(sources[letter] for letter in used if letter in sources))
    if None in computed:
        errors.append("not_computable")
        return left, value, parents
    if any(v != value for v in computed):
        errors.append("untrue")
    # Each letter's value put in, the first part must be the second; the last must be the value as one writes it.
    put_in = [t for token in tokens[0] for t in (normal_form(values[token]) if token.isalpha() else (token,))]
    plain = [[t for t in part if t not in "()"] for part in (put_in, tokens[min(1, len(tokens) - 1)])]
    if plain[0] != plain[1] or tokens[-1] != normal_form(value):
        errors.append("bad_substitution")
    return left, value, parents


def expected_closing(letter, form, answer):
    """The end of a reverse solution: from the last quantity's form and its known value to x."""
    a, b = form
    known = a * answer + b
    left = show(form)
    moved = show((a, b - known))
    return (
        f"We know {letter} = {known}, so we have {left} = {known} and we solve it through the following steps: "
        f"Simplifying the equation: {left} = {known}. Move all terms to one side: {moved} = 0. "
        f"Isolate the term with x: {a}*x = {known - b}. Divide both sides by {a}: x = {known - b} / {a}. Solution: x = {answer}."
    )


def show(value):
    """A form as one writes it: 3*x + 4."""
    return "".join(f" {t} " if t in "+-" and i else t for i, t in enumerate(normal_form(value)))


# ----------------------------------------------------------------------------------------------------------------------
# Verdicts


def _get(record, key):
    return record.get(key) if isinstance(record, dict) else getattr(record, key, None)


def gold_graph(record):
    """{name: (parents, value)} in order, and the answer: from `nodes`, or where a record has none from its solution.
    Raises UserError where neither holds a graph and an answer."""
    nodes, answer = _get(record, "nodes"), _get(record, "answer")
    try:
        if nodes is None:
            parsed = parse_solution(_get(record, "solution"))
            gold = {s.name: (s.parents, s.value) for s in parsed.steps}
            answer = parsed.answer if answer is None else answer
        else:
            gold = {_plain(_get(n, "name")): (frozenset(map(_plain, _get(n, "operands"))), _form(_get(n, "value"))) for n in nodes}
    except (TypeError, ValueError, AttributeError):
        gold = {}
    if not gold or not isinstance(answer, int):
        raise cli.UserError("neither `nodes` and `answer` nor `solution` holds a gold graph")
    return gold, answer


def _plain(name):
    return " ".join(name.split())


def _form(value):
    if isinstance(value, int):
        return 0, value
    a, b = value
    return a, b


def verify(text, record):
    """Judge a solution text against a record (a dict of the JSONL schema, or a datagen.Problem) → Verdict.

    Never raises on any text; UserError if the record holds no gold. A node that is defined more than once with different values
    or parents is "wrong_value", whichever of them was right.
    """
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
    answer_correct = parsed.answer == answer
    correct = ok == len(gold) and answer_correct
    if correct and parsed.closing:
        last = next(reversed(gold))
        if parsed.closing != expected_closing(found[last].var, gold[last][1], answer):
            errors.append("bad_closing")
    extra = [name for name in found if name not in gold]
    return Verdict(answer_correct, ok / len(gold), correct, correct and not errors, nodes, extra, errors, parsed)


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


def explain(text, record, colour=False):
    """A readable account of a verdict: one line a gold node with what was expected and found, then what was defined beside them, the
    answer, the errors. colour: with the codes of a terminal."""
    verdict, (gold, answer) = verify(text, record), gold_graph(record)
    steps = {step.name: step for step in verdict.parsed.steps}

    def mark(good, line):
        line = f"{'✓' if good else '✗'} {line}"
        return f"\033[{32 if good else 31}m{line}\033[0m" if colour else line

    lines = []
    for name, (parents, value) in gold.items():
        status, step = verdict.nodes[name], steps.get(name)
        line = f"{name} = {show(value)}"
        if status == "wrong_value":
            line += f"   found {'nothing that computes' if step.value is None else show(step.value)}"
            line += ", and defined twice" if "contradiction" in verdict.errors else ""
        elif status == "wrong_parents":
            line += f"   found it from {sorted(step.parents)}, not {sorted(parents)}"
        elif status == "missing":
            line += "   never defined"
        elif not step.faithful:
            line += "   but what is written there is not all true"
        lines.append(mark(status == "ok", line))
    lines += [f"\033[2m· {name}   not needed\033[0m" if colour else f"· {name}   not needed" for name in verdict.extra]
    lines.append(mark(verdict.answer_correct, f"answer {answer}" + ("" if verdict.answer_correct else f"   found {verdict.parsed.answer}")))
    lines.append(f"process {verdict.process:.2f}, correct {verdict.correct}, faithful {verdict.faithful}"
                 + (f", errors: {', '.join(dict.fromkeys(verdict.errors))}" if verdict.errors else ""))  # fmt: skip
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------------------
# Command line


@dataclass(frozen=True)
class Options:
    records: str | None = cli.opt(None, "JSONL file of records (GSM-Infinite keys; gold from `nodes` where there are any)")
    solution_key: str = cli.opt("solution", "key of the text to judge")
    explain: bool = cli.opt(False, "explain the first verdict that is not correct (or the first), step by step; in colour on a terminal")


def main():
    o = cli.parse_options(Options, description="Judge the solutions of a JSONL file.", positional="records")
    if o.records is None:
        raise cli.UserError("no records to judge: python verify.py records.jsonl")
    total, rates, errors, nodes, shown = 0, Counter(), Counter(), Counter(), None
    for number, record in cli.read_jsonl(o.records):
        text = record.get(o.solution_key)
        if not isinstance(text, str):
            raise cli.UserError(f"{o.records}, line {number}: key {o.solution_key!r} is missing or no text")
        try:
            verdict = verify(text, record)
        except cli.UserError as error:
            raise cli.UserError(f"{o.records}, line {number}: {error}") from None
        total += 1
        rates.update(answer=verdict.answer_correct, process=verdict.process, correct=verdict.correct, faithful=verdict.faithful)
        errors.update(dict.fromkeys(verdict.errors, 1))
        nodes.update(status for status in verdict.nodes.values())
        if shown is None or (shown[1] and not verdict.correct):
            shown = number, verdict.correct, text, record
    if not total:
        raise cli.UserError(f"{o.records} has no records")
    if o.explain:
        number, _, text, record = shown
        print(f"line {number}: {text.strip()}\n\n{explain(text, record, cli.colour())}\n")
    print(f"{total} solutions: " + ", ".join(f"{name} {rates[name] / total:.4f}" for name in ("answer", "process", "correct", "faithful")))
    print("nodes: " + ", ".join(f"{status} {n}" for status, n in nodes.most_common()))
    print("errors: " + (", ".join(f"{kind} {n}" for kind, n in errors.most_common()) or "none"))


if __name__ == "__main__":
    cli.run(main)
