"""A second judge, slow and simple, written from the definition: what verify.verify must agree with on any
text.

Character by character and recursive, with exact fractions where verify.py has patterns, stacks and residues.
What an expression is worth is a polynomial in x; what it says is a rational function of the quantities it
names, kept whole as two polynomials in their names. A polynomial is {sorted tuple of variables: Fraction}.

The definition. A gold node is ok iff the solution defines it, from the gold parents, with the gold value, and
nowhere else with another value or from others. A step's value is its last part that computes, else its last
number. Its parents are the named quantities that the letters of any part stand for, directly or through
scratch letters; a form in the unknown x beside parts with letters is a value and names nothing. All nodes and
the answer: correct. Correct, and all of this: faithful. Every equality is true. The parts of an equation that
name something say the same, and in a definition what the gold node says; each stands there with the values
put in too; what else stands there is the value in its normal form, and so is the last part. Sentences are
well-formed. "To find X we need A, B." names X's gold parents. In a reverse problem equations after the last
definition solve for x; elsewhere outside the definitions there are none, nor are an answer or a definition said in other words, and
nothing follows the answer.
"""

from fractions import Fraction

LARGEST = 10**15
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"
EQUALS = "=≠≈≡≤≥＝⩵≔﹦"
SAYING = {"answer", "boxed", "equal", "equals", "define"}
NOT_KNOWN = "we don't know its value yet but will find it out later"


class Bad(Exception):
    pass


def times(p, q):
    out = {}
    for u, a in p.items():
        for v, b in q.items():
            key = tuple(sorted(u + v))
            out[key] = out.get(key, 0) + a * b
    return {k: c for k, c in out.items() if c}


def plus(p, q, sign=1):
    out = {k: p.get(k, 0) + sign * q.get(k, 0) for k in {*p, *q}}
    return {k: c for k, c in out.items() if c}


def constant(n):
    return {(): Fraction(n)} if n else {}


X = {("x",): Fraction(1)}


class Form:
    """What an expression is worth: linear in x, with whole, bounded coefficients, or it does not exist."""

    def __init__(self, p):
        if any(len(k) > 1 or c.denominator != 1 or abs(c) > LARGEST for k, c in p.items()):
            raise Bad
        self.p = p

    def __add__(self, other):
        return Form(plus(self.p, other.p))

    def __sub__(self, other):
        return Form(plus(self.p, other.p, -1))

    def __mul__(self, other):
        return Form(times(self.p, other.p))

    def __truediv__(self, other):
        if set(other.p) != {()}:
            raise Bad
        return Form({k: c / other.p[()] for k, c in self.p.items()})

    def __eq__(self, other):
        return isinstance(other, Form) and self.p == other.p

    def pair(self):
        return int(self.p.get(("x",), 0)), int(self.p.get((), 0))


class Meaning:
    """What an expression says: a quotient of polynomials in names."""

    def __init__(self, over, under=None):
        self.over, self.under = over, constant(1) if under is None else under

    def __add__(self, other):
        return Meaning(
            plus(times(self.over, other.under), times(other.over, self.under)), times(self.under, other.under)
        )

    def __sub__(self, other):
        return self + Meaning(times(other.over, constant(-1)), other.under)

    def __mul__(self, other):
        return Meaning(times(self.over, other.over), times(self.under, other.under))

    def __truediv__(self, other):
        if not other.over:
            raise Bad
        return Meaning(times(self.over, other.under), times(self.under, other.over))

    def __eq__(self, other):
        return isinstance(other, Meaning) and times(self.over, other.under) == times(other.over, self.under)


def named(name):
    return Meaning({(name,): Fraction(1)})


class Expression:
    """Recursive descent over tokens: sum := product (± product)*, product := factor (*/ factor)*, factor :=
    [-] atom. `known`: what letters are; `number`: what a number is.
    """

    def __init__(self, tokens, known, number):
        self.tokens, self.known, self.number, self.at = tokens, known, number, 0

    def peek(self):
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self):
        self.at += 1
        return self.tokens[self.at - 1]

    def all(self):
        value = self.sum()
        if self.at < len(self.tokens):
            raise Bad
        return value

    def sum(self):
        value = self.product()
        while self.peek() in ("+", "-"):
            value = value + self.product() if self.take() == "+" else value - self.product()
        return value

    def product(self):
        value = self.factor()
        while self.peek() in ("*", "/"):
            value = value * self.factor() if self.take() == "*" else value / self.factor()
        return value

    def factor(self):
        if self.peek() == "-":
            self.take()
            if self.peek() == "-":
                raise Bad
            return self.number(0) - self.factor()
        token = self.take() if self.peek() else ""
        if token == "(":
            value = self.sum()
            if not self.peek() or self.take() != ")":
                raise Bad
            return value
        if self.known.get(token) is not None:
            return self.known[token]
        if is_number(token):
            return self.number(int(token))
        raise Bad


def is_number(token):
    return 1 <= len(token) <= 15 and all(c in DIGITS for c in token)


def is_letter(token):
    return len(token) == 1 and token in LETTERS


def tokens_of(text):
    """A digit takes with it all digits and ASCII letters that follow, over a point or comma too if one
    follows that; letters and apostrophes make words; every other character but the space is a token.
    """
    out, i = [], 0
    glue = DIGITS + LETTERS
    while i < len(text):
        j = i + 1
        if text[i] in DIGITS:
            while j < len(text) and (
                text[j] in glue or (text[j] in ".," and j + 1 < len(text) and text[j + 1] in glue)
            ):
                j += 1
        elif text[i] in LETTERS + "'":
            while j < len(text) and text[j] in LETTERS + "'":
                j += 1
        if text[i] != " ":
            out.append(text[i:j])
        i = j
    return out


def shown(form):
    """The tokens of a form as one writes it."""
    a, b = form.pair()
    x = ["x"] if abs(a) == 1 else [str(abs(a)), "*", "x"]
    if a == 0:
        return (["-"] if b < 0 else []) + [str(abs(b))]
    if a < 0 < b:
        return [str(b), "-", *x]
    return (["-"] if a < 0 else []) + x + ([] if b == 0 else ["+" if b > 0 else "-", str(abs(b))])


def bare(tokens):
    return [t for t in tokens if t not in ("(", ")")]


def word_at(text, word):
    """Where `word` stands alone."""
    found = []
    for i in range(len(text) - len(word) + 1):
        if text.startswith(word, i):
            before, after = text[i - 1 : i] if i else "", text[i + len(word) : i + len(word) + 1]
            if not any(c and (c.isalnum() or c == "_") for c in (before, after)):
                found.append(i)
    return found


def first_stop(text):
    """Index of the point that ends a sentence: one with white space or nothing behind it."""
    return next(
        (i for i, c in enumerate(text) if c == "." and (i + 1 == len(text) or text[i + 1] == " ")), None
    )


def claim_of(text):
    """A text that begins with a claim of an answer → (the integer, what follows), or None if it is no whole
    claim.
    """
    tag = text.startswith("<answer>")
    rest = text[len("<answer>" if tag else "Answer:") :]
    rest = rest[1:] if rest.startswith(" ") else rest
    sign, rest = (-1, rest[1:]) if rest.startswith("-") else (1, rest)
    n = len(rest) - len(rest.lstrip(DIGITS))
    digits, rest = rest[:n], rest[n:]
    if not 1 <= n <= 15:
        return None
    if tag:
        rest = rest[1:] if rest.startswith(" ") else rest
        return (sign * int(digits), rest[9:]) if rest.startswith("</answer>") else None
    if rest == "." or rest.startswith(". "):
        return sign * int(digits), rest[1:]
    return (sign * int(digits), rest) if rest in ("", " ") or rest.startswith(("<", " <")) else None


def claimed_answer(text):
    """The integer that every claim of an answer names, or None."""
    claims = [claim_of(text[i:]) for i in range(len(text)) if text.startswith(("Answer:", "<answer>"), i)]
    answers = {claim and claim[0] for claim in claims}
    return answers.pop() if len(answers) == 1 else None


def only_answers(text):
    """Whether a text holds nothing but claims of an answer and the end of the solution."""
    while text.strip(" "):
        text = text.lstrip(" ")
        if text.startswith("</solution>"):
            text = text[11:]
        elif text.startswith(("Answer:", "<answer>")) and claim_of(text):
            text = claim_of(text)[1]
        else:
            return False
    return True


class Oracle:
    """Reads one text. After `read`: steps [(name, letter, parents, value, meaning)], those after the end
    apart, answer, sound, plans [(name, names)], chains: equations of the closing, each [(tokens, form)].
    """

    def __init__(self):
        self.steps, self.hidden, self.answer, self.sound = [], [], None, True
        self.plans, self.chains = [], []
        self.forms, self.meanings, self.names, self.unknown = {}, {}, {}, None

    def read(self, text):
        if len(text) > 1 << 15:
            self.sound = False
            return self
        cleaned, i = "", 0  # all tags at once: removing one must not make another
        while i < len(text):
            if text[i : i + 5] in ("[BOS]", "[EOS]", "[PAD]"):
                cleaned, i = cleaned + " ", i + 5
            else:
                cleaned, i = cleaned + text[i], i + 1
        text = " ".join(cleaned.split())
        text = text[10:] if text.startswith("<solution>") else text
        ends = [text.find(mark) for mark in ("Answer:", "<answer>", "</solution>") if mark in text]
        end = min(ends) if ends else len(text)
        close = text.find("</solution>")
        solution, after = (text[:close], text[close + 11 :]) if close >= 0 else (text, "")
        if "<" in text[:end] or "solution>" in after or "question>" in after or not only_answers(text[end:]):
            self.sound = False
        self.answer = claimed_answer(text)
        if self.answer is None:
            self.sound = False
        outside = self.definitions(text[:end])
        self.equations(outside[-1])
        for piece in outside:
            self.plan(piece)
        if any(c in EQUALS for piece in (*outside[:-1], text[end:]) for c in piece):
            self.sound = False
        for piece in outside:
            words = "".join(c if c.isalnum() or c == "_" else " " for c in piece.lower()).split()
            if ">" in piece or "####" in piece or SAYING & {*words}:
                self.sound = False
        self.definitions(solution[end:])
        inside = len(self.steps)
        self.definitions(after)
        self.steps, self.hidden = self.steps[:inside], self.steps[inside:]
        return self

    def definitions(self, text):
        starts = word_at(text, "Define")
        outside = [text[: starts[0]] if starts else text]
        for start, end in zip(starts, [*starts[1:], len(text)]):
            piece = text[start + 6 : end]
            stop = first_stop(piece)
            if stop is None:
                self.sound = False
                self.step(piece)
                outside.append("")
            else:
                self.step(piece[:stop])
                outside.append(piece[stop + 1 :])
        return outside

    def plan(self, text):
        while text:
            stop = first_stop(text)
            sentence, text = (text, "") if stop is None else (text[:stop], text[stop + 1 :])
            if "To find " in sentence:
                sentence = sentence[sentence.index("To find ") + 8 :]
                if " we need " in sentence:
                    i = sentence.index(" we need ")
                    self.plans.append(
                        (sentence[:i].strip(), [n.strip() for n in sentence[i + 9 :].split(",")])
                    )

    def equations(self, text):
        """The closing, token by token: `run` is the stretch of mathematics that is being read."""
        run = []
        for token in [*tokens_of(text), None]:
            operand = token is not None and (token in self.forms or token[0].isdigit())
            english = token is None or token in (".", ",", ":", ";") or (token[0].isalpha() and not operand)
            last_is_operand = bool(run) and (run[-1] in self.forms or run[-1][0].isdigit())
            if english or (operand and last_is_operand):
                if len(run) > 2 or any(t in EQUALS for t in run):
                    sides = [[]]
                    for t in run:
                        if t == "=":
                            sides.append([])
                        else:
                            sides[-1].append(t)
                    self.chains.append([(side, self.worth(side)[0]) for side in sides])
                run = []
            if not english:
                run.append(token)

    def worth(self, tokens):
        """(form, meaning) of an expression, or (None, None)."""
        try:
            return (
                Expression(tokens, self.forms, lambda n: Form(constant(n))).all(),
                Expression(tokens, self.meanings, lambda n: Meaning(constant(n))).all(),
            )
        except (Bad, RecursionError):
            return None, None

    def step(self, sentence):
        sentence = sentence[1:] if sentence.startswith(" ") else sentence
        for n in range(1, min(200, len(sentence)) + 1):
            rest = sentence[n:]
            if sentence[n - 1] in "=;":
                self.sound = False
                return
            if (
                rest.startswith(" as ")
                and len(rest) > 4
                and rest[4] in LETTERS
                and rest[5:6] not in tuple(LETTERS)
            ):
                break
        else:
            # A name may begin with the space that was taken off.
            self.sound = False
            return
        name, letter, rest = sentence[:n].strip(), rest[4], rest[5:]
        for skipped in (" ;", ";", " ", ""):
            if rest.startswith(skipped) and rest[len(skipped) :][:1] not in tuple(LETTERS):
                break
        if ";" not in skipped:
            self.sound = False
        clauses = [c.strip() for c in rest[len(skipped) :].split(";")]
        own = []
        if clauses == [NOT_KNOWN]:
            if letter != "x":
                self.sound = False
            self.unknown = letter
            own.append((frozenset(), Form(X), named(name)))
        else:
            for i, clause in enumerate(clauses):
                clause = clause[3:] if i == len(clauses) - 1 and clause.startswith("so ") else clause
                self.equation(clause, letter, own)
        if len(own) != 1:
            self.sound = False
        parents, value, meaning = (
            own[0] if own and all(o[:2] == own[0][:2] for o in own) else (frozenset(), None, None)
        )
        if letter in self.forms:
            self.sound = False
        self.forms[letter], self.names[letter] = value, frozenset([name])
        self.meanings[letter] = None if value is None else named(name)
        self.steps.append((name, letter, parents, value, meaning))

    def equation(self, clause, own_letter, own):
        left, *parts = [tokens_of(side) for side in clause.split("=")]
        if not parts or len(left) != 1 or not is_letter(left[0]):
            self.sound = False
            return
        left = left[0]
        worth = [self.worth(part) for part in parts]
        letters = [{t for t in part if is_letter(t)} for part in parts]
        if any(t != self.unknown for used in letters for t in used):
            letters = [used if any(t != self.unknown for t in used) else set() for used in letters]
        parents = frozenset()
        for t in {t for used in letters for t in used}:
            if t not in self.names:
                self.sound = False
            parents |= self.names.get(t, frozenset())
        known = [w for w in worth if w[0] is not None]
        numbers = [t for t in tokens_of(clause) if is_number(t)]
        if known:
            value, meaning = known[-1]
        elif numbers:
            value, meaning = Form(constant(int(numbers[-1]))), Meaning(constant(int(numbers[-1])))
        else:
            value, meaning = None, None
        if len(known) < len(parts) or any(form != value for form, _ in known):
            self.sound = False
        if len(known) == len(parts):
            said = [m for (_, m), used in zip(worth, letters) if used]
            put_in = [
                bare([u for t in part for u in (shown(self.forms[t]) if is_letter(t) else [t])])
                for part, used in zip(parts, letters)
                if used
            ]
            plain = [bare(part) for part, used in zip(parts, letters) if not used]
            if any(m != said[0] for m in said) or parts[-1] != shown(value):
                self.sound = False
            if any(part != shown(value) and part not in put_in for part in plain):
                self.sound = False
            if any(part not in map(bare, parts) for part in put_in):
                self.sound = False
            meaning = said[0] if said else meaning
        if left == own_letter:
            own.append((parents, value, meaning))
        else:
            if left in self.forms or own:
                self.sound = False
            self.forms[left], self.meanings[left], self.names[left] = value, meaning, parents


def says(node):
    """What a gold node says of its parents."""
    terms = [named(u) for u in node.operands]
    if not terms:
        return named(node.name) if isinstance(node.value, tuple) else Meaning(constant(node.value))
    joined = terms[0]
    if node.operator == "*+":
        joined = Meaning({})
        for i in range(0, len(terms), 2):
            joined = joined + terms[i] * terms[i + 1]
    else:
        for term in terms[1:]:
            joined = joined - term if node.operator[0] == "-" else joined + term
    if node.constant is None:
        return joined
    n = Meaning(constant(node.constant))
    return {"+": joined + n, "-": joined - n, "*": joined * n, "/": joined / n}[node.operator[-1]]


def solves(chains, last, answer):
    """Whether the equations of a closing find x = answer from the last quantity's form."""
    linear = last.pair()
    if not linear[0]:
        return not chains
    stated = solved = False
    for chain in chains:
        if any(form is None for _, form in chain):
            return False
        pairs = [form.pair() for _, form in chain]
        if any(a * answer + b != pairs[0][0] * answer + pairs[0][1] for a, b in pairs):
            return False
        sides = [tokens for tokens, _ in chain]
        if all(pair == pairs[0] for pair in pairs):
            lone = [
                tokens for tokens in sides if len(tokens) == 1 and is_letter(tokens[0]) and tokens != ["x"]
            ]
            if not lone or all(tokens == sides[0] for tokens in sides):
                return False
        if any(a == 0 for a, _ in pairs) and any(
            pair == linear and "x" in tokens for tokens, pair in zip(sides, pairs)
        ):
            stated = True
        solved = ["x"] in sides and shown(Form(constant(answer))) in sides
    return stated and solved


def judge(text, problem):
    """→ (nodes {name: status}, answer_correct, correct, faithful) for a datagen.Problem."""
    read = Oracle().read(text)
    nodes, sound = {}, read.sound
    defined = {name for name, *_ in read.steps}

    def versions(name):
        return [(parents, value) for n, _, parents, value, _ in read.steps + read.hidden if n == name]

    if any(version != versions(name)[0] for name in defined for version in versions(name)):
        sound = False
    last = None
    for node in problem.nodes:
        a, b = node.value if isinstance(node.value, tuple) else (0, node.value)
        last = Form(plus(times(X, constant(a)), constant(b)))
        found = versions(node.name)
        if node.name not in defined:
            nodes[node.name] = "missing"
        elif any(version != found[0] for version in found) or found[0][1] != last:
            nodes[node.name] = "wrong_value"
        else:
            nodes[node.name] = "ok" if found[0][0] == frozenset(node.operands) else "wrong_parents"
        if nodes[node.name] == "ok":
            first = next(meaning for name, *_, meaning in read.steps if name == node.name)
            sound = sound and first == says(node)
    by_name = {node.name: sorted(node.operands) for node in problem.nodes}
    if any(by_name.get(name) != sorted(names) for name, names in read.plans):
        sound = False
    right = read.answer == problem.answer
    correct = right and all(status == "ok" for status in nodes.values())
    return nodes, right, correct, correct and sound and solves(read.chains, last, problem.answer)
