"""An independent solver: reads only the English of problem and question, and solves with exact fractions.

It shares no code and no tables with datagen.py. Every sentence must parse, every quantity be defined once.
"""

import re
from fractions import Fraction

SENTENCE = re.compile(
    r"The (?P<subject>(?:(?:total|average) number of )?[^.]+?) (?:number|is) (?P<body>[^.]+)\Z"
)
TOTAL = re.compile(r"total number of (?P<what>\w+) in (?P<place>.+)\Z")
AVERAGE = re.compile(r"average number of (?P<what>\w+) per (?P<one>[\w ]+) in (?P<place>.+)\Z")
COUNT = re.compile(r"(?P<kind>[\w ]+?) in (?P<place>.+)\Z")


class Linear:
    """a*x + b with fractions; x is the one unknown."""

    def __init__(self, a=0, b=0):
        self.a, self.b = Fraction(a), Fraction(b)

    def __add__(self, o):
        return Linear(self.a + o.a, self.b + o.b)

    def __sub__(self, o):
        return Linear(self.a - o.a, self.b - o.b)

    def __mul__(self, o):
        assert not (self.a and o.a), "x * x"
        return Linear(self.a * o.b + self.b * o.a, self.b * o.b)


def solve(problem, question):
    """Text → the answer as a Fraction."""
    facts, unknown, totals_given = {}, None, {}
    for sentence in filter(None, (s.strip() for s in problem.split("."))):
        match = SENTENCE.match(sentence)
        assert match, f"cannot read {sentence!r}"
        subject, body = match["subject"], match["body"]
        if TOTAL.match(subject):
            assert subject not in totals_given, f"{subject} is given twice"
            totals_given[subject] = Fraction(body)
            continue
        assert subject not in facts, f"{subject} is defined twice"
        if body == "an unknown amount above 0":
            assert unknown is None, "two unknowns"
            unknown = subject
        facts[subject] = body

    memo, visiting = {}, set()

    def value(name):
        if name not in memo:
            assert name not in visiting, f"{name} depends on itself"
            visiting.add(name)
            memo[name] = compute(name)
        return memo[name]

    def compute(name):
        if name == unknown:
            return Linear(1, 0)
        if name in facts:
            return expression(facts[name])
        match = TOTAL.match(name)
        assert match, f"{name} is never defined"
        return total(match["what"], match["place"])

    def total(what, place):
        counts = [
            (n, m)
            for n, m in ((n, COUNT.match(n)) for n in facts if not AVERAGE.match(n))
            if m["place"] == place
        ]
        assert counts, f"nothing is said of {place}"
        averages = {
            m["one"]: n
            for n, m in ((n, AVERAGE.match(n)) for n in facts)
            if m and m["place"] == place and m["what"] == what
        }
        out = Linear()
        for name, match in counts:
            if averages:  # a total of the third layer: count times average
                out = out + value(name) * value(averages[match["kind"].removesuffix("s")])
            else:
                out = out + value(name)
        return out

    def expression(text):
        if re.fullmatch(r"\d+", text):
            return Linear(0, int(text))
        for pattern, join in (
            (r"(\d+) more than (.+)", lambda c, e: e + Linear(0, c)),
            (r"(\d+) fewer than (.+)", lambda c, e: e - Linear(0, c)),
            (r"(\d+) times (.+)", lambda c, e: e * Linear(0, c)),
            (r"a 1/(\d+) share of (.+)", lambda c, e: e * Linear(0, Fraction(1, c))),
        ):
            match = re.fullmatch(pattern, text)
            if match:
                return join(int(match[1]), expression(match[2]))
        if text.startswith("as many as the "):
            return value(text.removeprefix("as many as the "))
        if text.startswith("the sum of the "):
            head, _, last = text.removeprefix("the sum of the ").rpartition(" and the ")
            out = value(last)
            for name in head.split(", the "):
                out = out + value(name)
            return out
        match = re.fullmatch(r"the excess of the (.+) over the (.+)", text)
        if match:
            return value(match[1]) - value(match[2])
        assert text.startswith("the "), f"cannot read {text!r}"
        return value(text.removeprefix("the "))

    asked = re.fullmatch(r"What is the (?:number of )?(.+)\?", question)
    assert asked, f"cannot read {question!r}"
    name = asked[1]
    if unknown is None:
        answer = value(name)
        assert answer.a == 0
        return answer.b
    assert name == unknown, "the question is not about the unknown"
    ((given, known),) = totals_given.items()
    match = TOTAL.match(given)
    form = total(match["what"], match["place"])
    assert form.a != 0, "the given total does not depend on the unknown"
    return (known - form.b) / form.a
