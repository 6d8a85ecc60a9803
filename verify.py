"""The judge: reads a solution, compares its reasoning graph with the gold graph, step by step.

    python verify.py problems.jsonl
    python verify.py tries.jsonl --solution-key text --explain

A solution is a row of sentences `Define NAME as v; s = a + b = 3 + 4 = 7; so v = 2 * s = 2 * 7 = 14.` Only
what stands between `Define` and the full stop is read as mathematics; of the English around it three things
count: a plan ("To find X we need A, B."), in reverse problems the closing (the equations that find x), and
that there is no other equation, nor an answer or a definition in other words.

Every expression is computed twice at once. At the problem's numbers it is a linear form a*x + b (x: the
unknown of a reverse problem; elsewhere a = 0). And at one fixed pseudo-random point, where each quantity
stands for a hash of its name, it is an integer modulo a product of primes, its *formula*: two expressions are
the same rational function of the same quantities iff their formulas are equal (but for a chance below
2**-150: Schwartz and Zippel's lemma). So "5 times V" is told from `0 * V + 10` although both are 10 here.

It never raises on any text, takes time linear in its length, and computes with bounded integers. Standard
library only, and nothing of datagen.py: the judge knows the generator's records, not its code.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b

from lab.options import CheckedOptions, UserError, opt, parse_options, printable, read_each, run_script
from lab.options import colour as on_terminal

MAX_TEXT = 1 << 15  # characters; no prompt and solution are a third as long
MAX_NUMBER = 10**15  # a larger number is not computed with
# Mersenne primes: a value modulo their product is a value in three fields, at a point of its own in each.
MODULUS = (2**61 - 1) * (2**89 - 1) * (2**107 - 1)
ALPHABET = "xabcdefghijklmnopqrstuvwyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTERS = frozenset(ALPHABET)
UNKNOWN = "we don't know its value yet but will find it out later"

# Every pattern is matched against text whose runs of white space are single spaces, so none can backtrack
# far.
TAGS = re.compile(r"\[(?:BOS|EOS|PAD)\]")
DEFINE = re.compile(r"Define(?<=\bDefine)\b")  # it begins with its letters: those are found fast
HEAD = re.compile(r" ?([^=;]{1,200}?) as ([A-Za-z]) ?(;?)(?![A-Za-z])")
STOP = re.compile(r"\.(?!\S)")  # the point of 3.5 ends no sentence
# A number with what is glued to it (3.5 and 4x are one piece, and no number), a word, or any other character.
PIECE = re.compile(r"[0-9][0-9A-Za-z]*(?:[.,][0-9A-Za-z]+)*|[A-Za-z']+|[^ ]")
# The same, but words that follow each other are one piece, with the mark before them.
PHRASE = re.compile(rf"(?:[.,:;] )?[A-Za-z][A-Za-z']+(?:[.,:;]? [A-Za-z][A-Za-z']+)*|{PIECE.pattern}")
RELATION = re.compile("[=≠≈≡≤≥＝⩵≔﹦]")
# An answer, an equation or a definition in other words.
STATED = re.compile(r"\b(?:answer|boxed|equals?|define)\b|####|>")
LONE = re.compile("(?<![A-Za-z'])[A-Za-z](?![A-Za-z'])")  # a letter that is no part of a word
# The whole claim: nothing else may stand beside the integer, and a tag must be closed.
ANSWER = re.compile(r"Answer: ?(-?[0-9]{1,15})(?:\.(?!\S)| ?(?=<|\Z))|<answer> ?(-?[0-9]{1,15}) ?</answer>")
CLAIM = re.compile(rf"{ANSWER.pattern}|Answer:|<answer>")  # or what is none, though it begins like one
TAIL = re.compile(rf"(?: ?(?:{ANSWER.pattern}|</solution>))* ?")


@dataclass(slots=True)
class Step:
    """One `Define` sentence, or a gold node, which is what it must be.

    value: (a, b) for a*x + b, or None if nothing in it can be computed. parents: names. formula: its
    expression at the fixed point; two steps have the same relation to their parents iff it is equal.
    faithful: every equality in it is true, with the letters' values put in, and it is well-formed.
    """

    name: str
    var: str
    parents: frozenset
    value: tuple | None
    faithful: bool
    formula: int | None


@dataclass(slots=True)
class ParsedSolution:
    steps: list = field(default_factory=list)
    answer: int | None = None
    errors: list = field(default_factory=list)  # kinds, in order of appearance
    plans: list = field(default_factory=list)  # "To find X we need A, B.": (X, [A, B])
    # equations after the last step, letters renamed: {a side, a space between its tokens: value or None}
    closing: list = field(default_factory=list)
    hidden: list = field(default_factory=list)  # steps after </solution>: they count only against it

    def refuse(self, flaw, kind):
        """Note an error if there is a flaw → flaw."""
        if flaw:
            self.errors.append(kind)
        return flaw


@dataclass(slots=True)
class Verdict:
    answer_correct: bool
    process: float  # share of gold nodes that are ok
    correct: bool  # all nodes ok and the answer right (the paper's VerifiedCorrect)
    faithful: bool  # correct, each relation the gold one, and nothing untrue, ill-formed or unread
    nodes: dict  # name → "ok", "missing", "wrong_parents" or "wrong_value"
    extra: list  # names defined beside the gold nodes
    errors: list  # kinds
    parsed: ParsedSolution
    solved: bool  # what pass@k counts: correct, or of a record without steps the right answer

    @property
    def kind(self):
        """The best that can be said of it: "faithful", "correct", "answer only" or "wrong"."""
        grades = {"faithful": self.faithful, "correct": self.solved, "answer only": self.answer_correct}
        return next((grade for grade, holds in grades.items() if holds), "wrong")


# ------------------------------------------------------------------------------------------------------------
# Expressions. A value is (form, formula): the form (a, b) is a*x + b at the problem's numbers, the formula is
# what it is at the fixed point.


@lru_cache(maxsize=1 << 14)
def coordinate(name):
    """What a quantity stands for at the fixed point: a hash of its name, below MODULUS."""
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass")).digest(), "big") % MODULUS


@lru_cache(maxsize=1 << 14)
def number(token):
    """The value of a token that is a number of at most 15 digits, else None."""
    return ((0, int(token)), int(token)) if re.fullmatch("[0-9]{1,15}", token) else None


def apply(op, u, v):
    """u op v for values; None where it is no form with bounded integers (x*x, an inexact quotient, too
    large), or one of them is None.
    """
    if u is None or v is None:
        return None
    ((a, b), r), ((c, d), s) = u, v
    if op == "+":
        a, b, r = a + c, b + d, r + s
    elif op == "-":
        a, b, r = a - c, b - d, r - s
    elif op == "*" and not (a and c):
        a, b, r = a * d + c * b, b * d, r * s
    elif op == "/" and not (c or not d or a % d or b % d or math.gcd(s, MODULUS) > 1):
        a, b, r = a // d, b // d, r * pow(s, -1, MODULUS)
    else:
        return None
    return ((a, b), r % MODULUS) if max(abs(a), abs(b)) <= MAX_NUMBER else None


# "0-" is a minus before an operand: a token that no text has
PRECEDENCE = {"(": 0, ")": 1, "+": 1, "-": 1, "*": 2, "/": 2, "0-": 3}


def evaluate(tokens, values):
    """Value of an expression, by two stacks (no recursion), or None. values: {letter: value or None}."""
    operands, operators, after_operand = [], ["("], False
    for token in (*tokens, ")"):
        level = PRECEDENCE.get(token)
        if token == "-" and not after_operand and operators[-1] != "0-":  # -v is 0 - v
            operands.append(number("0"))
            operators.append("0-")
        elif after_operand != bool(level):  # operand after operand, or operator after operator
            return None
        elif level is None:
            operands.append(values.get(token) or number(token))
            after_operand = True
        else:
            while after_operand and operators and PRECEDENCE[operators[-1]] >= level:
                operands[-2:] = [apply(operators.pop()[-1], *operands[-2:])]
            after_operand = token == ")"
            if not after_operand:
                operators.append(token)
            elif not operators or operators.pop() != "(":
                return None
    return None if operators else operands[0]


def read_sides(equation, values):
    """Text of an equation → [(tokens of a side with a space between them, its letters, its value)]. What
    depends on no letter is remembered if it is short.
    """
    sides = map(_side if len(equation) <= 400 else _side.__wrapped__, equation.split("="))
    return [(s, used, values.get(s) or evaluate(s.split(), values) if used else n) for s, used, n in sides]


@lru_cache(maxsize=1 << 14)
def _side(text):
    tokens = PIECE.findall(text)
    return " ".join(tokens), LETTERS.intersection(tokens), evaluate(tokens, {})


@lru_cache(maxsize=1 << 14)
def normal_form(form):
    """A form as it is written, a space between its tokens: 4, x, 3 * x - 2, - x - 1; the positive term comes
    first: 4 - 2 * x.
    """
    a, b = form
    ax = "x" if abs(a) == 1 else f"{abs(a)} * x"
    signed = [f"{'-' if n < 0 else '+'} {term}" for n, term in ((a, ax), (b, abs(b))) if n]
    return " ".join(sorted(signed, key=lambda term: term[0])).removeprefix("+ ") or "0"  # "+" before "-"


def show(form):
    """A form as one writes it: 3*x + 4."""
    return re.sub("^- ", "-", normal_form(form).replace(" * ", "*")) if form else "nothing that computes"


# ------------------------------------------------------------------------------------------------------------
# Solutions


def parse_solution(text):
    """A completion, plain (`… Answer: 7.`) or in tags (`… </solution> <answer> 7 </answer>`) →
    ParsedSolution. No question before it is skipped: one that a model wrote could hide what contradicts it.
    """
    if len(text) > MAX_TEXT:
        return ParsedSolution(errors=["too_long"])
    return _Reader(" ".join(TAGS.sub(" ", text).split()).removeprefix("<solution>")).parsed


class _Reader:
    """Reads one text from left to right; what its letters stand for is its state."""

    def __init__(self, text):
        self.parsed = ParsedSolution()
        self.steps = self.parsed.steps
        self.values = {}  # letter → value or None
        self.sources = {}  # letter → the names it stands for
        self.unknown = None  # "x", once it is defined as such
        solution, _, after = text.partition("</solution>")
        # From here on only the answer may stand.
        end = min(len(text.partition(mark)[0]) for mark in ("Answer:", "<answer>", "</solution>"))
        self.parsed.refuse("<" in text[:end] or "solution>" in after or "question>" in after, "nested_tags")
        self.parsed.refuse(not TAIL.fullmatch(text, end), "text_after_answer")
        # All that claims to be the answer is the same integer.
        answers = {claim.lastindex and int(claim[claim.lastindex]) for claim in CLAIM.finditer(text, end)}
        self.parsed.answer = min(answers) if len(answers) == 1 else None
        kind = "bad_answer" if None in answers else "two_answers" if answers else "no_answer"
        self.parsed.refuse(self.parsed.answer is None, kind)
        *outside, last = self._definitions(text[:end])
        self.parsed.closing = self._recall(read_closing, last)
        stated = STATED.search(" ".join((*outside, last)).lower())
        self.parsed.refuse(RELATION.search("".join((*outside, text[end:]))) or stated, "stray_equation")
        sentences = [s for piece in (*outside, last) if "To find " in piece for s in STOP.split(piece)]
        plans = [sentence.partition("To find ")[2].partition(" we need ") for sentence in sentences]
        self.parsed.plans = [(name, re.split(" ?, ?", names.strip())) for name, need, names in plans if need]
        # Definitions after the answer are definitions; those after </solution> can only contradict.
        self._definitions(solution[end:])
        self.steps = self.parsed.hidden
        self._definitions(after)

    def _definitions(self, text):
        """Read every `Define` sentence → the pieces of text before, between and after them."""
        first, *pieces = DEFINE.split(text)
        halves = [STOP.split(piece, maxsplit=1) for piece in pieces]
        for sentence, *after in halves:
            self.parsed.refuse(not after, "punctuation")
            self._step(sentence)
        return [first, *("".join(after) for _, *after in halves)]

    def _step(self, sentence):
        """Read one sentence after `Define`, add its Step, and bind its letters."""
        sound = len(self.parsed.errors)
        head = HEAD.match(sentence)
        if self.parsed.refuse(head is None, "not_a_definition"):
            return
        name, var = head[1].strip(), head[2]
        self.parsed.refuse(not head[3], "punctuation")
        *clauses, last = sentence[head.end() :].split(";")
        definitions = []  # of var: (value, parents)
        if last.strip() == UNKNOWN and not clauses:
            self.parsed.refuse(var != "x", "unknown_not_x")
            self.unknown = var
            definitions.append((((1, 0), coordinate(name)), frozenset()))
        else:
            for clause in (*clauses, last.lstrip().removeprefix("so ")):
                left, equal, right = map(str.strip, clause.partition("="))
                if self.parsed.refuse(not equal or left not in LETTERS, "not_an_equation"):
                    continue
                value, parents, errors = self._recall(read_equation, right)
                self.parsed.errors += errors
                if left == var:
                    definitions.append((value, parents))
                else:
                    self.parsed.refuse(left in self.values or definitions, "reused_letter")
                    self.values[left], self.sources[left] = value, parents
        self.parsed.refuse(len(definitions) != 1, "defined_twice" if definitions else "not_defined")
        # Two definitions that differ define nothing: who hedges is wrong.
        agree = len({(value and value[0], parents) for value, parents in definitions}) == 1
        value, parents = definitions[0] if agree else (None, frozenset())
        form, formula = value or (None, None)
        self.parsed.refuse(var in self.values, "reused_letter")
        self.values[var], self.sources[var] = value and (form, coordinate(name)), frozenset((name,))
        self.steps.append(Step(name, var, parents, form, len(self.parsed.errors) == sound, formula))

    def _recall(self, read, text):
        """read(text, the unknown, the values and sources of its letters), remembered. The tries of a problem
        have other letters for the same: here they are renamed in order of appearance, all but x.
        """
        names = {"x": "x"}
        text = LONE.sub(lambda letter: names.setdefault(letter[0], ALPHABET[len(names) % 52]), text)
        known = tuple(map(self.values.get, names)), tuple(map(self.sources.get, names))
        return (read if len(text) <= 400 else read.__wrapped__)(text, names.get(self.unknown), *known)


@lru_cache(maxsize=1 << 14)
def read_equation(text, unknown, values, sources):
    """`a + b = 3 + 4 = 7`, what follows `v =` → (value, parents, errors). Its form is the last that can be
    computed; its parents are those of the letters in any part. What is not true or not readable is an error.
    Each expression of letters stands there with their values put in too; what else stands there is the value,
    which comes last. values, sources: of the letters of ALPHABET.
    """
    values, sources = dict(zip(ALPHABET, values)), dict(zip(ALPHABET, sources))
    sides, letters, computed = zip(*read_sides(text, values))
    others = any(used - {unknown} for used in letters)
    # Beside other letters, `2*x + 3` is a value, no mention of x.
    mentions = [used if used - {unknown} or not others else () for used in letters]
    origins = [sources[t] for t in set().union(*mentions)]
    errors = ["undefined_letter"] * (None in origins)
    parents = frozenset().union(*filter(None, origins))
    if None in computed:  # its last number, if nothing computes
        known = (*map(number, PIECE.findall(text)), *computed)
        return [None, *filter(None, known)][-1], parents, [*errors, "not_computable"]
    form, formula = computed[-1]
    bares = [side.replace("( ", "").replace(" )", "") if "(" in side else side for side in sides]
    named = [(bare.split(), value[1]) for bare, used, value in zip(bares, mentions, computed) if used]
    shown = {letter: normal_form(value[0]) for letter, value in values.items() if value}
    expected = {normal_form(form), *(" ".join([shown.get(t, t) for t in tokens]) for tokens, _ in named)}
    plain = {bare for bare, used in zip(bares, mentions) if not used}
    formulas = {formula for _, formula in named}
    errors += ["untrue"] * ({value[0] for value in computed} != {form} or len(formulas) > 1)
    errors += ["bad_substitution"] * (sides[-1] != normal_form(form) or not plain <= expected <= {*bares})
    return (form, formulas.pop() if formulas else formula), parents, errors


@lru_cache(maxsize=1 << 12)
def read_closing(text, unknown, values, sources):
    """ParsedSolution.closing: the equations in the English after the last definition. One ends at a word, at
    a mark between clauses, or where operand follows operand; any other character belongs to it, which does
    not compute then.
    """
    values = {letter: value for letter, value, names in zip(ALPHABET, values, sources) if names is not None}
    pieces, after_operand = [], False
    for token in PHRASE.findall(text):
        operand = token in values or token[0].isdigit()
        english = token[0] in ".,:;" or (token[0].isalpha() and not operand)
        pieces.append(";" if english else "; " * (operand and after_operand) + token)
        after_operand = operand
    runs = " ".join(pieces).split(";")  # an expression alone is a broken equation
    equations = [read_sides(run, values) for run in runs if RELATION.search(run) or len(run.split()) > 2]
    return [{side: value for side, _, value in sides} for sides in equations]


# ------------------------------------------------------------------------------------------------------------
# Gold


def _get(record, *keys):
    return [record.get(key) if isinstance(record, dict) else getattr(record, key, None) for key in keys]


def gold_graph(record):
    """{name: Step} in order, and the answer: from `nodes`, or where a record has none from its solution, each
    step of which is then the gold relation. A record with an `answer` alone has an empty graph. UserError for
    anything else.
    """
    nodes, solution, answer = _get(record, "nodes", "solution", "answer")
    steps = [*map(_gold_node, nodes)] if isinstance(nodes, (list, tuple)) else []
    if None in steps:
        raise UserError(f"item {steps.index(None) + 1} of its `nodes` is not of the schema")
    if nodes is None and isinstance(solution, str):
        parsed = _parse_gold(solution)
        steps, answer = parsed.steps, parsed.answer if answer is None else answer
    if (not steps and (nodes, solution) != (None, None)) or type(answer) is not int:
        raise UserError(f"neither `nodes` and `answer` ({answer!r:.40}) nor `solution` holds a gold graph")
    return {step.name: step for step in steps}, answer


_parse_gold = lru_cache(maxsize=1 << 12)(parse_solution)  # a group of samples shares its record


def _gold_node(node):
    """One of a record's `nodes` (see datagen.Node) → Step, or None if it is not of the schema."""
    name, signs, operands, constant, value = _get(node, "name", "operator", "operands", "constant", "value")
    form = (0, value) if type(value) is int else value
    if not isinstance(operands, (list, tuple)) or not isinstance(form, (list, tuple)):
        return None
    texts, integers = (name, signs, *operands), (*form, 0 if constant is None else constant)
    if {*map(type, texts)} != {str} or [*map(type, integers)] != [int] * 3:
        return None
    return _gold_step(*form, constant, *texts)


@lru_cache(maxsize=1 << 14)  # a group of samples shares its nodes
def _gold_step(a, b, constant, name, signs, *operands):
    name, *operands = (" ".join(text.split()) for text in (name, *operands))
    values = {chr(i): ((0, 0), coordinate(operand)) for i, operand in enumerate(operands, 0x4E00)}
    inner, outer = (signs, "") if constant is None else (signs[:-1], signs[-1:])
    texts = {sign: sign.join(values) for sign in ("", "+", "-")}
    if len(values) % 2 == 0:
        texts["*+"] = "+".join(map("*".join, zip(*[iter(values)] * 2)))
    text = f"({texts.get(inner, '')}) {outer} {'' if constant is None else constant}"
    value = evaluate(PIECE.findall(text), values)
    if (operands, signs, constant) == ([], "", None):  # the unknown, or a number of the text
        value = (None, coordinate(name) if a else b % MODULUS)
    return value and Step(name, "", frozenset(operands), (a, b), True, value[1])


# ------------------------------------------------------------------------------------------------------------
# Verdicts


def verify(text, record):
    """Judge the text of a completion against a record (a dict of the JSONL schema, or a datagen.Problem) →
    Verdict.

    Never raises on any text; UserError if the record holds no gold. A node that is defined more than once
    with different values or parents is "wrong_value", whichever of them was right.
    """
    gold, answer = gold_graph(record)
    parsed = parse_solution(text)
    found = {step.name: step for step in reversed(parsed.steps)}
    different = {(step.name, step.value, step.parents) for step in (*parsed.steps, *parsed.hidden)}
    versions = Counter(name for name, *_ in different)
    parsed.refuse(any(versions[name] > 1 for name in found), "contradiction")
    nodes = {name: _status(node, found.get(name), versions[name]) for name, node in gold.items()}
    for name, status in nodes.items():
        parsed.refuse(status == "ok" and found[name].formula != gold[name].formula, "wrong_relation")
    plans = [(gold[name].parents if name in gold else (), names) for name, names in parsed.plans]
    parsed.refuse(any(sorted(parents) != sorted(names) for parents, names in plans), "wrong_plan")
    last = next(reversed(gold.values())).value if gold else None
    solved = _solves(parsed.closing, last, answer) if last and last[0] else not parsed.closing
    parsed.refuse(not solved, "bad_closing" if parsed.closing else "no_closing")
    process = sum(status == "ok" for status in nodes.values()) / max(1, len(gold))
    answer_correct = parsed.answer == answer
    correct = answer_correct and process == 1
    extra, errors = [name for name in reversed(found) if name not in gold], parsed.errors
    grades = answer_correct, process, correct, correct and not errors
    return Verdict(*grades, nodes, extra, errors, parsed, solved=correct if gold else answer_correct)


def _status(node, step, versions):
    """What became of a gold node: step is the first that defines it, in so many versions in all."""
    if step is None:
        return "missing"
    if step.value != node.value or step.value is None or versions > 1:
        return "wrong_value"
    return "ok" if step.parents == node.parents else "wrong_parents"


def _solves(closing, last, answer):
    """Whether equations solve for x: all true at x = answer, none a mere identity but where it says what a
    letter stands for; among them the last quantity's form in x, set equal to a number; and in the end x =
    answer.
    """
    stated = solved = False
    for sides in closing:
        forms = {value and value[0] for value in sides.values()}
        named = len(sides) > 1 and any(side in LETTERS and side != "x" for side in sides)
        if None in forms or (len(forms) == 1 and not named) or len({a * answer + b for a, b in forms}) > 1:
            return False
        stated |= 0 in dict(forms) and any("x" in side and value[0] == last for side, value in sides.items())
        solved = "x" in sides and normal_form((0, answer)) in sides
    return stated and solved


REWARDS = {  # in [0, 1]. R_out: 1 if the answer is right; R_pv: the share of gold nodes that are ok
    "outcome": lambda verdict, alpha: float(verdict.answer_correct),  # R_out
    "process": lambda verdict, alpha: verdict.process,  # R_pv
    # α·R_out + (1−α)·R_pv: dense also where the answer is wrong
    "mixed": lambda verdict, alpha: alpha * verdict.answer_correct + (1 - alpha) * verdict.process,
    # R_out·(α + (1−α)·R_pv): dense only where the answer is right, as in the Interplay paper's code
    "gated": lambda verdict, alpha: verdict.answer_correct * (alpha + (1 - alpha) * verdict.process),
    # R_out if R_pv = 1, else 0: Interplay paper, section on process-verified rewards
    "strict": lambda verdict, alpha: float(verdict.answer_correct and verdict.process == 1),
    "faithful": lambda verdict, alpha: float(verdict.faithful),
}


def reward(verdict, kind, alpha=0.2):
    """The reward of a verdict, in [0, 1]; see REWARDS. Raises UserError for an unknown kind."""
    if kind not in REWARDS:
        raise UserError(f"unknown reward {kind!r}: choose from {', '.join(REWARDS)}")
    return REWARDS[kind](verdict, alpha)


def pass_at_k(n, c, k):
    """Unbiased estimate of the chance that one of k samples is right, from n samples with c right (Chen et
    al. 2021, eq. 1): 1 − C(n−c, k) / C(n, k). Raises ValueError unless 0 ≤ c ≤ n and 1 ≤ k ≤ n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def explain(text, record=None, colour=False):
    """A readable account of a verdict: one line a gold node with what was expected and found, then what was
    defined beside them, the answer, the errors. Without a record there is no gold: ✓ then only says that a
    step is true as written. colour: with the codes of a terminal; those in the text itself are escaped.
    """
    lines = []

    def say(holds, line):
        sign, code = {True: ("✓", 32), False: ("✗", 31), None: ("·", 2)}[holds]
        line = printable(f"{sign} {line}")
        lines.append(f"\033[{code}m{line}\033[0m" if colour else line)

    if record is None:
        parsed = parse_solution(text)
        for s in parsed.steps:
            say(s.faithful, f"{s.name} = {show(s.value)}   from {sorted(s.parents) or 'the text'}")
        say(None, f"answer {parsed.answer}; no gold to compare with: ✓ says that a step is true as written")
        return "\n".join(lines)
    verdict, (gold, answer) = verify(text, record), gold_graph(record)
    steps = {step.name: step for step in reversed(verdict.parsed.steps)}
    for name, node in gold.items():
        status, step = verdict.nodes[name], steps.get(name, node)
        remark = {
            "missing": "   never defined",
            "wrong_value": f"   found {show(step.value)}" + ", and another" * (step.value == node.value),
            "wrong_parents": f"   found it from {sorted(step.parents)}, not {sorted(node.parents)}",
            "other": "   but by another relation, equal by chance",
            "ok": "" if step.faithful else "   but what is written there is not all true",
        }[status if step.formula == node.formula or status != "ok" else "other"]
        say(status == "ok", f"{name} = {show(node.value)}{remark}")
    for name in verdict.extra:
        say(None, f"{name}   not needed")
    found = f"   found {verdict.parsed.answer}" * (not verdict.answer_correct)
    say(verdict.answer_correct, f"answer {answer}{found}")
    graded = f"process {verdict.process:.2f}, correct {verdict.correct}, faithful {verdict.faithful}"
    lines.append(graded if gold else "no steps to compare with: the answer alone is judged")
    return "\n".join(lines) + f", errors: {', '.join(dict.fromkeys(verdict.errors)) or 'none'}"


# ------------------------------------------------------------------------------------------------------------
# Command line


@dataclass(frozen=True)
class Options(CheckedOptions):
    records: str | None = opt(None, "JSONL file of records (gold: `nodes`, else `solution`)")
    solution_key: str = opt("solution", "key of the text to judge")
    explain: bool = opt(False, "explain the first verdict that is not correct (or the first), step by step")


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__.partition("\n\nA solution")[0], positional="records")
    if o.records is None:
        raise UserError("no records to judge: python verify.py records.jsonl")
    judged = read_each(o.records, lambda record, text: (record, verify(text(o.solution_key), record)))
    rates, counts, shown = Counter(), {"nodes": Counter(), "errors": Counter()}, None
    for total, (record, verdict) in enumerate(judged, 1):  # noqa: B007
        for kind in ("answer_correct", "process", "correct", "faithful"):
            rates[kind.removesuffix("_correct")] += getattr(verdict, kind)
        counts["nodes"].update(verdict.nodes.values())
        counts["errors"].update(set(verdict.errors))
        if shown is None or (shown[0].correct and not verdict.correct):
            shown = verdict, record
    if o.explain:
        record = shown[1]
        text, (_, line) = record[o.solution_key], record["where"].rsplit(", ", 1)
        print(f"{line}: {printable(text.strip())}\n\n{explain(text, record, on_terminal())}\n")
    print(f"{total} solutions: " + ", ".join(f"{kind} {rate / total:.4f}" for kind, rate in rates.items()))
    for what, counter in counts.items():
        print(f"{what}: " + (", ".join(f"{kind} {n}" for kind, n in counter.most_common()) or "none"))


if __name__ == "__main__":
    run_script(main)
