"""A second judge, slow and simple, written from the definition: what verify.verify must agree with on any text.

Character by character and recursive, with exact fractions and polynomials in x where verify.py has patterns, stacks and bounded
integer forms. A polynomial is {power: Fraction}.

The definition. A gold node is ok iff the solution defines it, from the gold parents, with the gold value, and nowhere else with another
value or from others. A step's value is its last part that computes, else its last number. Its parents are the named quantities that
the letters of its first part stand for, directly or through scratch letters. All nodes and the answer: correct. Correct, every written
equality true, the second part of each the first with the values put in, the last part the value in its normal form, and every sentence
well-formed: faithful.
"""

from fractions import Fraction

LARGEST = 10**15
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"


class Bad(Exception):
    pass


def number(n):
    return {0: Fraction(n)}


def checked(p):
    """Only linear forms with whole, bounded coefficients exist."""
    p = {k: c for k, c in p.items() if c}
    if any(k > 1 or c.denominator != 1 or abs(c) > LARGEST for k, c in p.items()):
        raise Bad
    return p


def times(p, q):
    out = {}
    for i, a in p.items():
        for j, b in q.items():
            out[i + j] = out.get(i + j, 0) + a * b
    return out


def plus(p, q, sign=1):
    return {k: p.get(k, 0) + sign * q.get(k, 0) for k in {*p, *q}}


class Expression:
    """Recursive descent over tokens: sum := product (± product)*, product := factor (*/ factor)*, factor := [-] atom."""

    def __init__(self, tokens, values):
        self.tokens, self.values, self.at = tokens, values, 0

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
            sign = 1 if self.take() == "+" else -1
            value = checked(plus(value, self.product(), sign))
        return value

    def product(self):
        value = self.factor()
        while self.peek() in ("*", "/"):
            if self.take() == "*":
                value = checked(times(value, self.factor()))
            else:
                divisor = self.factor()
                if set(divisor) != {0}:
                    raise Bad
                value = checked({k: c / divisor[0] for k, c in value.items()})
        return value

    def factor(self):
        if self.peek() == "-":
            self.take()
            if self.peek() == "-":
                raise Bad
            return {k: -c for k, c in self.factor().items()}
        token = self.take() if self.peek() else ""
        if token == "(":
            value = self.sum()
            if not self.peek() or self.take() != ")":
                raise Bad
            return value
        if token and token in LETTERS:
            if self.values.get(token) is None:
                raise Bad
            return self.values[token]
        if token and token[0] in DIGITS:
            return checked(number(int(token)))
        raise Bad


def tokens_of(text):
    """Numbers of up to 15 digits, lone letters and signs, with at most one space before each; None for anything else."""
    out, i = [], 0
    while i < len(text):
        j = i + (text[i] == " ")
        if j == len(text):
            break
        if text[j] in DIGITS:
            k = j
            while k < len(text) and text[k] in DIGITS:
                k += 1
            if k - j > 15:
                return None
        elif text[j] in LETTERS:
            k = j + 1
            if k < len(text) and text[k] in LETTERS + "'":
                return None
        elif text[j] in "+-*/()":
            k = j + 1
        else:
            return None
        out.append(text[j:k])
        i = k
    return out


def compute(tokens, values):
    if not tokens:
        return None
    try:
        return Expression(tokens, values).all()
    except (Bad, RecursionError):
        return None


def shown(p):
    """The tokens of a form as one writes it."""
    a, b = int(p.get(1, 0)), int(p.get(0, 0))
    x = ["x"] if abs(a) == 1 else [str(abs(a)), "*", "x"]
    if a == 0:
        return (["-"] if b < 0 else []) + [str(abs(b))]
    if a < 0 < b:
        return [str(b), "-", *x]
    return (["-"] if a < 0 else []) + x + ([] if b == 0 else ["+" if b > 0 else "-", str(abs(b))])


def lone_letters(text):
    around = " " + text + " "
    joined = LETTERS + "'"
    return [c for i, c in enumerate(text) if c in LETTERS and around[i] not in joined and around[i + 2] not in joined]


def runs_of_digits(text):
    runs, run = [], ""
    for c in text + " ":
        if c in DIGITS:
            run += c
        elif run:
            runs.append(run)
            run = ""
    return [run for run in runs if len(run) <= 15]


def word_at(text, word):
    """Where `word` stands alone."""
    found = []
    for i in range(len(text) - len(word) + 1):
        if text.startswith(word, i):
            before, after = text[i - 1 : i], text[i + len(word) : i + len(word) + 1]
            if not any(c and (c.isalnum() or c == "_") for c in (before, after)):
                found.append(i)
    return found


def first_stop(text):
    """Index of the point that ends a sentence: one with white space or nothing behind it."""
    return next((i for i, c in enumerate(text) if c == "." and (i + 1 == len(text) or text[i + 1] == " ")), None)


def claimed_answer(text):
    """The integer that every claim of an answer names, or None."""
    answers = set()
    for i in range(len(text)):
        for claim in ("Answer:", "<answer>"):
            if not text.startswith(claim, i):
                continue
            rest = text[i + len(claim) :]
            rest = rest[1:] if rest.startswith(" ") else rest
            sign, rest = (-1, rest[1:]) if rest.startswith("-") else (1, rest)
            n = len(rest) - len(rest.lstrip(DIGITS))
            digits, rest = rest[:n], rest[n:]
            if claim == "Answer:":
                good = rest in ("", " ", ".") or rest.startswith((". ", "<", " <"))
            else:
                good = rest.startswith(("</answer>", " </answer>"))
            if not 1 <= n <= 15 or not good:
                return None
            answers.add(sign * int(digits))
    return answers.pop() if len(answers) == 1 else None


class Oracle:
    """Reads one text. After `read`: steps [(name, letter, parents, value, whole)], answer, sound."""

    def __init__(self):
        self.steps, self.answer, self.sound, self.closing = [], None, True, ""
        self.values, self.names = {}, {}

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
        if text.startswith("<question>"):
            end = text.find("</question>")
            text = text[end + 11 :].lstrip() if end >= 0 else ""
        end = text.find("</solution>")
        body, after = (text[:end], text[end + 11 :]) if end >= 0 else (text, "")
        body = body[10:] if body.startswith("<solution>") else body
        if "<" in body.replace("<answer>", "").replace("</answer>", "") or "solution>" in after or "question>" in after:
            self.sound = False
        self.answer = claimed_answer(text)
        if self.answer is None:
            self.sound = False
        starts = word_at(body, "Define")
        outside = [body[: starts[0]] if starts else body]
        for start, end in zip(starts, [*starts[1:], len(body)]):
            piece = body[start + 6 : end]
            stop = first_stop(piece)
            if stop is None:
                self.sound = False
                self.step(piece)
            else:
                outside.append(piece[stop + 1 :])
                self.step(piece[:stop])
        before, _, rest = " ".join(outside).partition("We know")
        closing, _, tail = rest.partition("Answer:")
        self.closing = " ".join(("We know" + closing).split()) if "=" in closing else ""
        if "=" in before + tail:
            self.sound = False
        return self

    def step(self, sentence):
        sentence = sentence[1:] if sentence.startswith(" ") else sentence
        for n in range(1, min(200, len(sentence)) + 1):
            rest = sentence[n:]
            if rest.startswith(" as ") and len(rest) > 4 and rest[4] in LETTERS and rest[5:6] not in tuple(LETTERS):
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
        if clauses == ["we don't know its value yet but will find it out later"]:
            if letter != "x":
                self.sound = False
            own.append(({1: Fraction(1)}, frozenset()))
        else:
            if not clauses[-1].startswith("so "):
                self.sound = False
            for i, clause in enumerate(clauses):
                clause = clause[3:] if i == len(clauses) - 1 and clause.startswith("so ") else clause
                if clause == "we don't know its value yet but will find it out later" and len(clauses) == 1:
                    continue
                self.equation(clause, letter, own)
        if len(own) != 1:
            self.sound = False
        value, parents = own[0] if own and all(o == own[0] for o in own) else (None, frozenset())
        if letter in self.values:
            self.sound = False
        self.values[letter], self.names[letter] = value, frozenset([name])
        self.steps.append((name, letter, parents, value))

    def equation(self, clause, own_letter, own):
        left, *parts = clause.split("=")
        left = left.strip()
        if not parts or len(left) != 1 or left not in LETTERS:
            self.sound = False
            return
        tokens = [tokens_of(part) for part in parts]
        computed = [compute(t, self.values) for t in tokens]
        known = [v for v in computed if v is not None]
        numbers = runs_of_digits(clause)
        value = known[-1] if known else checked(number(int(numbers[-1]))) if numbers else None
        used = lone_letters(parts[0])
        if any(c not in self.names for c in used):
            self.sound = False
        parents = frozenset().union(*(self.names.get(c, ()) for c in used))
        if None in computed or any(v != value for v in computed):
            self.sound = False
        else:
            put_in = [t for token in tokens[0] for t in (shown(self.values[token]) if token in LETTERS else [token])]
            second = tokens[1] if len(tokens) > 1 else tokens[0]
            if [t for t in put_in if t not in "()"] != [t for t in second if t not in "()"] or tokens[-1] != shown(value):
                self.sound = False
        if left == own_letter:
            own.append((value, parents))
        else:
            if left in self.values or own:
                self.sound = False
            self.values[left], self.names[left] = value, parents


def closing_of(letter, form, answer):
    """The end of a reverse solution, as data: the sentence that finds x."""
    a, b = int(form.get(1, 0)), int(form.get(0, 0))

    def text(p):
        words = " ".join(shown(p)).replace(" * ", "*")
        return "-" + words[2:] if words.startswith("- ") else words

    left, total = text(form), a * answer + b
    c = total - b
    moved = text({1: Fraction(a), 0: Fraction(-c)})
    return (f"We know {letter} = {total}, so we have {left} = {total} and we solve it through the following steps: Simplifying the equation: {left} = "
            f"{total}. Move all terms to one side: {moved} = 0. Isolate the term with x: {a}*x = {c}. Divide both sides by {a}: x = {c} / {a}. "
            f"Solution: x = {answer}.")  # fmt: skip


def judge(text, problem):
    """→ (nodes {name: status}, answer_correct, correct, faithful) for a datagen.Problem."""
    read = Oracle().read(text)
    nodes, sound = {}, read.sound
    for name in {name for name, *_ in read.steps}:
        if len({(parents, None if value is None else tuple(sorted(value.items()))) for n, _, parents, value in read.steps if n == name}) > 1:
            sound = False
    for node in problem.nodes:
        a, b = node.value if isinstance(node.value, tuple) else (0, node.value)
        gold = {k: Fraction(c) for k, c in ((1, a), (0, b)) if c}
        found = [(parents, value) for name, _, parents, value in read.steps if name == node.name]
        if not found:
            nodes[node.name] = "missing"
        elif any(f != found[0] for f in found) or found[0][1] is None or {k: c for k, c in found[0][1].items() if c} != gold:
            nodes[node.name] = "wrong_value"
        else:
            nodes[node.name] = "ok" if found[0][0] == frozenset(node.operands) else "wrong_parents"
    right = read.answer == problem.answer
    correct = right and all(status == "ok" for status in nodes.values())
    if correct and read.closing:
        root = problem.nodes[-1]
        a, b = root.value if isinstance(root.value, tuple) else (0, root.value)
        letter = next(letter for name, letter, *_ in read.steps if name == root.name)
        if read.closing != closing_of(letter, {1: Fraction(a), 0: Fraction(b)}, problem.answer):
            sound = False
    return nodes, right, correct, correct and sound
