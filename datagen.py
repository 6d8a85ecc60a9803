"""The world: word problems whose whole reasoning graph is known.

    structure → numbers → surface          each drawn separately, so that one graph can be told in any context

A problem is a graph of quantities. A *count* ("otters in Fernhollow") is stated in the text: a literal, or an
expression over other quantities. A *total* ("total number of animals in Fernhollow") is never defined by the
text: it is the sum of the counts mentioned there, an edge the reader must add. With three layers a place also has
*averages* ("average number of cubs per otter in Fernhollow") and a total of the third layer, the sum of
count × average. `op` is the number of edges of the necessary graph, the edge from a literal included (GSM-Infinite's
count): a literal costs 1, a copy 1, "3 times the sum of a and b" 3.

Everything is a pure function of its arguments. Standard library only (`--stats --tokenizer` imports the tokenizer).
"""

import json
import random
import re
from bisect import bisect
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from hashlib import blake2b
from itertools import product
from math import exp

import cli

OPS = ("+", "-", "*", "/")
MODES = ("forward", "reverse")
MIN_OP, MAX_OP = 2, 20
# Split = bucket of the canonical hash, out of 8: training data gets five, every other stage one.
SPLITS = {"train": (0, 1, 2, 3, 4), "mid": (5,), "rl": (6,), "eval": (7,)}
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
COUNT, TOTAL, AVERAGE, OFFSPRING = "count", "total", "average", "offspring"
PLACES = 12  # words for places in each context; a problem never needs more (see _structure)


# ----------------------------------------------------------------------------------------------------------------------
# The contexts. Kinds are (plural, singular). A name takes two look-ups: the kind and the place.


class Template:
    def __init__(self, group, offspring, kind, kinds, place, places):
        self.group = group  # what a total counts
        self.offspring = offspring  # what the third layer counts
        self.kinds = [(kind.format(k) + "s", kind.format(k)) for k in kinds.split()]
        self.places = [place.format(p) for p in places.split()]


TEMPLATES = {
    "zoo": Template(
        "animals", "cubs", "{}", "otter badger marten panda heron gecko falcon tapir bobcat beaver jaguar lemur",
        "{}", "Fernhollow Birchlake Coppergorge Mistymoor Stonepoint Ambermarsh Willowbank Thunderfield Silvergrove Coralbay Juniperhill Northdunes"),
    "school": Template(
        "teachers", "pupils", "{} teacher", "history chemistry music drawing geometry grammar biology dance latin physics pottery geography",
        "{} School", "Linden Harbour Rosewood Kestrel Oldmill Sunrise Bishop Riverside Eastgate Maple Hilltop Quarry"),
    "festival": Template(
        "films", "prizes", "{} film", "spy silent western horror war heist romance puppet disaster science dance crime",
        "the {} Festival", "Moonlight Lagoon Lantern Goldreel Pier Aurora Velvet Saffron Tramway Cobalt Orchard Windmill"),
}  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# Records


@dataclass(slots=True)
class Node:
    """One necessary quantity. `operator` is "" for a literal, a copy or the unknown; else the operator that joins the
    operands ("+" or "-", if there are several), then the one that joins the constant ("+", "-", "*", "/"): "3 times the
    sum of a and b" is "+*" with constant 3. "*+" without a constant: operands taken in pairs, multiplied, summed.
    `value` is an int, or (a, b) for a*x + b where it depends on the unknown x."""

    name: str
    operator: str
    operands: list
    constant: int | None
    value: object


@dataclass(slots=True)
class Problem:
    problem: str
    question: str
    solution: str
    answer: int
    op: int
    mode: str
    template: str
    nodes: list  # needed nodes, in an order in which they can be computed
    query: str  # name of the node that the question asks for
    unknown: str | None  # name of the leaf called x (reverse mode)
    id: str
    layers: int = 2
    graph: "Graph | None" = None  # not part of the record


def to_record(problem):
    """Problem → a JSON-able dict with GSM-Infinite's keys and ours (`d` is the number of layers)."""
    record = {name: getattr(problem, name) for name in Problem.__slots__ if name not in ("graph", "layers", "nodes")}
    return {**record, "d": problem.layers, "nodes": [asdict(node) for node in problem.nodes]}


def from_record(record):
    """The inverse of `to_record`. Raises UserError if a key is missing."""
    try:
        values = {name: record[name] for name in Problem.__slots__ if name not in ("graph", "layers", "nodes")}
        nodes = [Node(**{**n, "value": n["value"] if isinstance(n["value"], int) else tuple(n["value"])}) for n in record["nodes"]]
        return Problem(**values, nodes=nodes, layers=record["d"])
    except (KeyError, TypeError) as error:
        raise cli.UserError(f"not a record of datagen.py ({type(error).__name__}: {error})") from None


# ----------------------------------------------------------------------------------------------------------------------
# Knobs


@dataclass(frozen=True)
class World:
    layers: int = 2
    operators: str = "+-*/"
    max_in_degree: int = 4  # operands of one quantity
    min_distractors: int = 1  # statements that the answer does not need
    max_distractors: int = 5
    min_literal: int = 1
    max_literal: int = 12
    bound: int = 999  # no value, and in reverse mode no coefficient, is larger
    letters: str = "random"  # names of variables: random, or in alphabetical order (nothing to guess: a small model learns faster)

    def __post_init__(self):
        def need(condition, message):
            if not condition:
                raise cli.UserError(message)

        need(self.layers in (2, 3), f"layers must be 2 or 3, not {self.layers}")
        need("+" in self.operators and set(self.operators) <= set(OPS), f"operators must be '+' and any of '-*/', not {self.operators!r}")
        need(1 <= self.max_in_degree <= 6, f"max_in_degree must be 1 to 6, not {self.max_in_degree}")
        need(0 <= self.min_distractors <= self.max_distractors <= 10,
             f"distractors must be 0 <= min <= max <= 10, not {self.min_distractors} to {self.max_distractors}")  # fmt: skip
        need(self.letters in ("random", "ordered"), f"letters must be random or ordered, not {self.letters!r}")
        need(1 <= self.min_literal < self.max_literal <= 99,
             f"literals must be 1 <= min < max <= 99, not {self.min_literal} to {self.max_literal}")  # fmt: skip
        need(8 * self.max_literal <= self.bound <= 99999,
             f"bound must be 8 times the largest literal ({8 * self.max_literal}) to 99999, not {self.bound}")  # fmt: skip


_world = lru_cache(maxsize=64)(World)


# ----------------------------------------------------------------------------------------------------------------------
# 1. Structure


class Vertex:
    """A quantity before it has a name: `place` and `kind` are indices that the surface turns into words."""

    __slots__ = ("constant", "form", "kind", "operands", "operator", "place", "type", "value")

    def __init__(self, type, place, kind=-1):
        self.type, self.place, self.kind = type, place, kind
        self.operands, self.operator, self.constant, self.value, self.form = [], "", None, 0, 0


@dataclass(slots=True)
class Graph:
    """The reasoning graph and how it is told, but for the context: `render` adds that."""

    vertices: list  # needed, operands first; the last is the root
    distractors: list
    unknown: Vertex | None
    op: int
    mode: str
    layers: int
    surface: int  # seed of names, letters and order of statements
    letters: str
    id: str


class _Place:
    __slots__ = ("closed", "kinds", "members", "summary")

    def __init__(self, summary=None):
        self.summary = summary  # its total, if the problem needs it
        self.members = []  # its counts
        self.kinds = []
        self.closed = False  # no further count: its total is settled, or a distractor would change it


@cache
def _ways(free, nodes, reuse, waiting, most):
    """Ways to define a count: (operands, new operands, has a constant), with cumulative weights.

    free: edges to spend beyond the least; nodes: quantities still wanted; reuse: waiting quantities that could be
    operands; waiting: quantities that wait to be defined, this one among them; most: largest in-degree.
    A way's price is what it takes off `free`: its edges, less the one reserved for it, and one for each new operand.
    """
    wish = 0.35 + free / (waiting + nodes)
    ways, weights, total = [], [], 0.0
    for k in range(most + 1):
        for new in range(max(0, k - reuse), k + 1):
            for constant in (0, 1) if k else (0,):
                price = k + constant - 1 + new if k else 0
                if price > free or new > max(nodes, waiting == 1) or (waiting == 1 and free and not new):
                    continue
                weight = exp(-1.2 * abs(price - wish)) * (1.0, 1.0, 1.2, 0.7, 0.35, 0.2, 0.1)[k]
                if k == 1 and not constant:
                    weight *= 0.4 if new else 0.2  # plain copies teach little
                total += weight
                ways.append((k, new, constant))
                weights.append(total)
    return ways, weights


def _structure(rand, op, world):
    """Draw the needed quantities, root first, until exactly `op` edges are spent.

    A quantity is defined by quantities that still wait to be defined, or by new ones: so there is no cycle, each one is
    needed, and the order of definition, reversed, is an order of computation. Each waiting quantity has edges reserved
    for its cheapest definition; `free` is what is left to spend, and the last one waiting must spend it all.
    Returns vertices (operands first) and places.
    """
    third = world.layers == 3
    root = Vertex(OFFSPRING if third and op >= 4 and rand() < 0.7 else TOTAL, 0)
    places, waiting, done = [_Place(root)], [root], []
    wanted = int(op * 0.4 - 0.4 + rand()) if op > 3 else op - 1  # quantities besides the root: as gsm_infinite/stats.json
    left = op  # edges not spent
    kinds = max(5, world.max_in_degree)

    def reserve():
        total = 0
        for v in waiting:
            if v.type is COUNT:
                total += 1
            else:
                e = len(places[v.place].members)
                total += (3 * e or 4) if v.type is OFFSPRING else (e or 2)
        return total

    def new_count(p):
        place = places[p]
        kind = int(rand() * kinds)
        while kind in place.kinds:
            kind = (kind + 1) % kinds
        place.kinds.append(kind)
        v = Vertex(COUNT, p, kind)
        place.members.append(v)
        waiting.append(v)
        return v

    def new_operand(free):
        """A quantity not mentioned yet: a count, or, where `free` edges are to spare, a total."""
        if wanted > 1 and free and rand() < 0.45 and len(places) < PLACES:
            v = Vertex(OFFSPRING if third and free >= 3 and rand() < 0.5 else TOTAL, len(places))
            places.append(_Place(v))
            waiting.append(v)
            return v
        spots = [p for p, place in enumerate(places) if not place.closed and len(place.kinds) < kinds
                 and (place.summary is None or not place.members or (free and place.summary.type is TOTAL and
                                                                      len(place.members) < world.max_in_degree))]  # fmt: skip
        p = int(rand() * (len(spots) + (len(places) < PLACES)))  # closed or full, a place holds two edges or more: 20 never close 12
        if p == len(spots):
            places.append(_Place())
            return new_count(len(places) - 1)
        return new_count(spots[p])

    while waiting:
        # A count in a place whose total waits must wait for it: else the total might need a count that needs the total.
        i = int(rand() * len(waiting))
        v = waiting[i]
        summary = places[v.place].summary
        if v.type is COUNT and summary is not None and not places[v.place].closed:
            v = summary
        free = left - reserve()
        waiting.remove(v)
        place = places[v.place]
        if v.type is COUNT:
            reuse = len(waiting)
            k, new, constant = _pick(rand, _ways(min(free, 9), max(0, min(wanted, 4)), min(reuse, 4), reuse + 1, world.max_in_degree))
            left -= k + constant or 1
            operands = []
            while len(operands) < k - new:
                u = waiting[int(rand() * reuse)]
                if u not in operands:
                    operands.append(u)
            for _ in range(new):
                u = new_operand(left - reserve() - (k - len(operands)))
                wanted -= 1 if u.type is COUNT else 2
                operands.append(u)
            v.operands, v.constant = operands, constant or None
            done.append(v)
        else:
            third_layer, e = v.type is OFFSPRING, len(place.members)
            price = 4 if third_layer else 2  # of a member, its own definition included
            least = 0 if e else 1
            most = min(world.max_in_degree - e, least + free // price, max(least, wanted))
            new = least + int(rand() * (most - least + 1))
            for _ in range(new):
                new_count(v.place)
            wanted -= new * (1 + third_layer)
            place.closed = True
            done.append(v)
            for u in place.members:
                v.operands.append(u)
                left -= 1
                if third_layer:
                    v.operands.append(Vertex(AVERAGE, v.place, u.kind))
                    done.append(v.operands[-1])
                    left -= 2
    done.reverse()
    return done, places


def _pick(rand, ways):
    return ways[0][bisect(ways[1], rand() * ways[1][-1])]


# ----------------------------------------------------------------------------------------------------------------------
# 2. Numbers. A value is an int, or in reverse mode the form (a, b) = a*x + b with a >= 1.


def _combine(op, u, v):
    """u op v for ints and forms; None where it is no int or form (x*x, an inexact quotient, a <= 0)."""
    if type(u) is int and type(v) is int:
        if op == "+":
            return u + v
        if op == "-":
            return u - v
        if op == "*":
            return u * v
        return u // v if v and u % v == 0 else None
    a, b = u if type(u) is tuple else (0, u)
    c, d = v if type(v) is tuple else (0, v)
    if op == "+":
        return a + c, b + d
    if op == "-":
        return (a - c, b - d) if a > c else None
    if op == "*":
        return (a * d + c * b, b * d) if not (a and c) else None
    return (a // d, b // d) if not c and d and a % d == 0 and b % d == 0 else None


def _define(rand, v, world):
    """Choose operators (and constant, and order) of a count so that value and form stay in bounds; False if none does."""
    operands, bound = v.operands, world.bound
    if len(operands) > 1:
        value = sum(u.value for u in operands)
        form = operands[0].form
        for u in operands[1:]:
            form = _combine("+", form, u.form)
        v.operator = "+"
        if len(operands) == 2 and "-" in world.operators and (rand() < 0.35 or value > bound // 4):
            big, small = operands if operands[0].value > operands[1].value else (operands[1], operands[0])
            difference = _combine("-", big.form, small.form)
            if big.value > small.value and difference is not None:
                v.operands, v.operator = [big, small], "-"
                value, form = big.value - small.value, difference
    else:
        value, form, v.operator = operands[0].value, operands[0].form, ""
    if v.constant is not None:
        low, high = world.min_literal, world.max_literal
        largest = max(value, *map(abs, form)) if type(form) is tuple else value
        choices = []  # (operator, smallest constant, largest constant) that keep the value in bounds
        if largest + high <= bound:
            choices.append(("+", low, high))
        if "-" in world.operators and value > low + 1:
            choices.append(("-", low, min(high, value - 2)))
        if "*" in world.operators and largest * 2 <= bound // 4:
            choices.append(("*", 2, min(high, 9, bound // 4 // largest)))
        if "/" in world.operators:
            divisors = [d for d in range(2, min(high, 9) + 1) if value >= 2 * d and _combine("/", form, d) is not None]
            if divisors:
                choices.append(("/", divisors, None))
        if not choices:
            return False
        op, a, b = choices[int(rand() * len(choices))]
        v.constant = a[int(rand() * len(a))] if b is None else a + int(rand() * (b - a + 1))
        v.operator += op
        value, form = _combine(op, value, v.constant), _combine(op, form, v.constant)
    v.value, v.form = value, form
    return _in_bounds(v, bound)


def _in_bounds(v, bound):
    return 1 <= v.value <= bound and (type(v.form) is int or (v.form[0] <= bound and -bound <= v.form[1] <= bound))


def _numbers(rand, vertices, mode, world):
    """Draw literals, the unknown, operators and constants, operands first. Returns (unknown or None, within bounds?)."""
    low, span = world.min_literal, world.max_literal - world.min_literal + 1
    leaves = [v for v in vertices if not v.operands]
    unknown = leaves[int(rand() * len(leaves))] if mode == "reverse" else None
    for v in vertices:
        if not v.operands:
            v.value = v.form = low + int(rand() * (span if v.type is COUNT or v is unknown else (span + 1) // 2))  # averages multiply: small
            if v is unknown:
                v.form = (1, 0)
        elif v.type is COUNT:
            if not _define(rand, v, world):
                return unknown, False
        else:
            v.operator = "+" if v.type is TOTAL else "*+"
            v.value = v.form = 0
            for i in range(0, len(v.operands), 1 if v.type is TOTAL else 2):
                value, form = v.operands[i].value, v.operands[i].form
                if v.type is OFFSPRING:
                    value, form = value * v.operands[i + 1].value, _combine("*", form, v.operands[i + 1].form)
                v.value, v.form = v.value + value, _combine("+", v.form, form)
            if not _in_bounds(v, world.bound):
                return unknown, False
    return unknown, True


def _distractors(rand, vertices, places, world):
    """Statements beside the point: counts in places whose totals nobody needs, over anything that is already defined."""
    out, known = [], [v for v in vertices if v.type is not AVERAGE]
    kinds = max(5, world.max_in_degree)
    for _ in range(world.min_distractors + int(rand() * (world.max_distractors - world.min_distractors + 1))):
        spots = [p for p, place in enumerate(places) if not place.closed and len(place.kinds) < kinds]
        if not spots or (rand() < 0.3 and len(places) < PLACES):
            spots = [len(places)]
            places.append(_Place())
        p = spots[int(rand() * len(spots))]
        kind = int(rand() * kinds)
        while kind in places[p].kinds:
            kind = (kind + 1) % kinds
        places[p].kinds.append(kind)
        v = Vertex(COUNT, p, kind)
        if rand() < 0.55:
            for _ in range(1 + int(rand() * min(2, world.max_in_degree))):
                u = known[int(rand() * len(known))]
                if u not in v.operands:
                    v.operands.append(u)
            v.constant = 1 if rand() < 0.5 else None
        if not v.operands or not _define(rand, v, world):
            v.operands, v.operator, v.constant = [], "", None
            v.value = v.form = world.min_literal + int(rand() * (world.max_literal - world.min_literal + 1))
        out.append(v)
        known.append(v)
    return out


# ----------------------------------------------------------------------------------------------------------------------
# 3. Surface


def _names(rand, vertices, template):
    """The name of each vertex, from a fresh draw of which index is which word."""
    kinds, places = list(template.kinds), list(template.places)
    _shuffle(rand, kinds, len(kinds))
    _shuffle(rand, places, len(places))
    names = {}
    for v in vertices:
        place = places[v.place]
        if v.type is COUNT:
            names[v] = f"{kinds[v.kind][0]} in {place}"
        elif v.type is TOTAL:
            names[v] = f"total number of {template.group} in {place}"
        elif v.type is AVERAGE:
            names[v] = f"average number of {template.offspring} per {kinds[v.kind][1]} in {place}"
        else:
            names[v] = f"total number of {template.offspring} in {place}"
    return names


def _shuffle(rand, items, n):
    """Put a random choice of n items, in random order, at the front (Fisher-Yates)."""
    for i in range(min(n, len(items) - 1)):
        j = i + int(rand() * (len(items) - i))
        items[i], items[j] = items[j], items[i]


def _statement(v, names, unknown):
    """The sentence that defines a count or an average."""
    subject = f"The {names[v]} {'number' if v.type is COUNT else 'is'}"
    if v is unknown:
        return f"{subject} an unknown amount above 0."
    if not v.operands:
        return f"{subject} {v.value}."
    refs = ["the " + names[u] for u in v.operands]
    if len(refs) == 1:
        inner = refs[0] if v.constant is not None else f"as many as {refs[0]}"
    elif v.operator[0] == "+":
        inner = f"the sum of {', '.join(refs[:-1])} and {refs[-1]}"
    else:
        inner = f"the excess of {refs[0]} over {refs[1]}"
    if v.constant is not None:
        outer = {"+": "{} more than ", "-": "{} fewer than ", "*": "{} times ", "/": "a 1/{} share of "}[v.operator[-1]]
        inner = outer.format(v.constant) + inner
    return f"{subject} {inner}."


def _show(form):
    """4, x, 3*x, x + 4, 3*x - 2"""
    if type(form) is int:
        return str(form)
    a, b = form
    ax = "x" if a == 1 else f"{a}*x"
    return ax if b == 0 else f"{ax} + {b}" if b > 0 else f"{ax} - {-b}"


def _equation(left, op, u, v):
    """`S = e + I = 3 + 1 = 4` and its value. u, v: (letters, value); a constant is its own letter."""
    value = _combine(op, u[1], v[1])
    a, b = _show(u[1]), _show(v[1])
    if op != "+" and (type(u[1]) is tuple or type(v[1]) is tuple):
        a, b = f"({a})", f"({b})"
    return f"{left} = {u[0]} {op} {v[0]} = {a} {op} {b} = {_show(value)}", value


def _solution(rand, graph, names):
    """The worked solution, in GSM-Infinite's format."""
    letters = list(LETTERS)
    if graph.unknown is not None:
        letters.remove("x")
    if graph.letters == "random":
        _shuffle(rand, letters, 50)
    letters = iter(letters)
    letter, out = {}, []
    if graph.unknown is not None:
        out.append("The question is difficult, so we use equations to solve it.")
    for v in graph.vertices:
        if v is graph.unknown:
            letter[v] = "x"
            out.append(f"Define {names[v]} as x; we don't know its value yet but will find it out later.")
            continue
        letter[v] = me = next(letters)
        terms = [(letter[u], u.form) for u in v.operands]
        steps = []  # `left = …` equations; the last defines v itself
        if v.operator == "*+":
            products = []
            for i in range(0, len(terms), 2):
                left = next(letters) if len(terms) > 2 else me
                text, value = _equation(left, "*", terms[i], terms[i + 1])
                steps.append(text)
                products.append((left, value))
            terms = products
        elif v.constant is not None and len(terms) == 1:
            left = next(letters)
            steps.append(f"{left} = {terms[0][0]} = {_show(terms[0][1])}")
            terms = [(left, terms[0][1])]
        if not terms:
            steps.append(f"{me} = {v.value}")
        elif len(terms) == 1 and not steps:
            steps.append(f"{me} = {terms[0][0]} = {_show(v.form)}")
        inner = "-" if v.operator[:1] == "-" and len(terms) == 2 else "+"
        while len(terms) > 1:
            left = me if len(terms) == 2 and v.constant is None else next(letters)
            text, value = _equation(left, inner, terms[0], terms[1])
            steps.append(text)
            terms[:2] = [(left, value)]
        if v.constant is not None:
            pair = [(str(v.constant), v.constant), terms[0]]
            if v.operator[-1] in "-/":
                pair.reverse()
            steps.append(_equation(me, v.operator[-1], *pair)[0])
        steps[-1] = "so " + steps[-1]
        out.append(f"Define {names[v]} as {me}; {'; '.join(steps)}.")
    root = graph.vertices[-1]
    answer = root.value
    if graph.unknown is not None:
        answer, (a, b), left = graph.unknown.value, root.form, _show(root.form)
        c, ax = root.value - b, _show((a, 0))
        out.append(
            f"We know {letter[root]} = {root.value}, so we have {left} = {root.value} and we solve it through the following steps: "
            f"Simplifying the equation: {left} = {root.value}. Move all terms to one side: {ax} - {c} = 0. "
            f"Isolate the term with x: {a}*x = {c}. Divide both sides by {a}: x = {c} / {a}. Solution: x = {answer}."
        )
    out.append(f"Answer: {answer}.")
    return " ".join(out), answer


def canonical_hash(template, mode, question, statements):
    """64 bits that do not depend on the order of the statements (nor on letters, which only the solution has)."""
    text = "\n".join([template, mode, question, *sorted(statements)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def statements_of(text):
    """The statements of a problem text, each with its full stop."""
    return [s.strip() + "." for s in text.split(".") if s.strip()]


def split_of(problem):
    """The split a problem belongs to, from its text alone."""
    bucket = canonical_hash(problem.template, problem.mode, problem.question, statements_of(problem.problem)) % 8
    return next(name for name, buckets in SPLITS.items() if bucket in buckets)


def _tell(graph, template, buckets):
    """Names, statements, question. Redraws the names (only) until the text falls into one of `buckets`."""
    context = TEMPLATES[template]
    everything = graph.vertices + graph.distractors
    root, unknown, seed = graph.vertices[-1], graph.unknown, graph.surface
    while True:
        rand = random.Random(seed).random
        names = _names(rand, everything, context)
        statements = [_statement(v, names, unknown) for v in everything if v.type in (COUNT, AVERAGE)]
        if unknown is not None:
            statements.append(f"The {names[root]} is {root.value}.")
        query = root if unknown is None else unknown
        question = f"What is the {'number of ' if query.type is COUNT else ''}{names[query]}?"
        if canonical_hash(template, graph.mode, question, statements) % 8 in buckets:
            return rand, names, statements, question, names[query]
        seed += 1


def render(graph, template, split=None):
    """Tell a graph in a context → Problem. The same graph gives the same structure and numbers in every context.

    split: draw names until the text falls into this split (None: take the first names, whatever split they are in).
    """
    if template not in TEMPLATES:
        raise cli.UserError(f"unknown template {template!r}: choose from {', '.join(TEMPLATES)}")
    rand, names, statements, question, query = _tell(graph, template, range(8) if split is None else SPLITS[split])
    _shuffle(rand, statements, len(statements))
    solution, answer = _solution(rand, graph, names)
    nodes = [Node(names[v], v.operator, [names[u] for u in v.operands], v.constant, v.form) for v in graph.vertices]
    return Problem(" ".join(statements), question, solution, answer, graph.op, graph.mode, template, nodes, query,
                   names[graph.unknown] if graph.unknown is not None else None, graph.id, graph.layers, graph)  # fmt: skip


def generate(seed, index, *, op, mode="forward", template="zoo", split="train", **knobs):
    """Problem number `index` of the endless sequence `seed`: a pure function of its arguments (knobs: see World).

    The template changes the words alone: the same (seed, index, …) is the same graph in every context.
    Raises UserError for an argument out of range.
    """
    world = _world(**knobs)
    if not (isinstance(op, int) and MIN_OP <= op <= MAX_OP):
        raise cli.UserError(f"op must be {MIN_OP} to {MAX_OP}, not {op}")
    if mode not in MODES:
        raise cli.UserError(f"unknown mode {mode!r}: choose from {', '.join(MODES)}")
    if split not in SPLITS:
        raise cli.UserError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    key = f"{seed}|{index}|{op}|{mode}|{split}|{world}"
    rng = random.Random(int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big"))
    rand = rng.random
    vertices, places = _structure(rand, op, world)
    unknown, fits = _numbers(rand, vertices, mode, world)
    while not fits:  # a rare clash with the bound: draw the numbers again
        unknown, fits = _numbers(rand, vertices, mode, world)
    distractors = _distractors(rand, vertices, places, world)
    graph = Graph(vertices, distractors, unknown, op, mode, world.layers, rng.getrandbits(63), world.letters, f"{split}/{seed}/{index}")
    return render(graph, template, split)


# ----------------------------------------------------------------------------------------------------------------------
# Command line


@dataclass(frozen=True)
class Options:
    op: str = cli.opt("2-10", "operations: one number, a range 2-10 or a list 2,4,8-10")
    mode: str = cli.opt("forward", "forward, reverse or both: forward,reverse")
    template: str = cli.opt("zoo", "contexts, separated by commas: zoo, school, festival")
    split: str = cli.opt("train", "which split", tuple(SPLITS))
    seed: int = cli.opt(0, "seed of the sequence of problems")
    n: int = cli.opt(1, "problems for each op, mode and template")
    layers: int = cli.opt(2, "2, or 3 with averages")
    operators: str = cli.opt("+-*/", "operators a count may use; + is needed")
    max_in_degree: int = cli.opt(4, "largest number of operands")
    min_distractors: int = cli.opt(1, "fewest statements beside the point")
    max_distractors: int = cli.opt(5, "most statements beside the point")
    min_literal: int = cli.opt(1, "smallest literal")
    max_literal: int = cli.opt(12, "largest literal")
    bound: int = cli.opt(999, "largest value and coefficient")
    letters: str = cli.opt("random", "variables: random letters, or in alphabetical order", ("random", "ordered"))
    jsonl: bool = cli.opt(False, "print records instead of readable text")
    stats: bool = cli.opt(False, "print a table by op instead: nodes, statements, tokens, commonest answer")
    tokenizer: str | None = cli.opt(None, "tokenizer.json for the token column of --stats (else words, numbers and signs are counted)")


def parse_ops(text):
    """ "2-4,8" → [2, 3, 4, 8]. Raises UserError."""
    ops = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,3})(?:-(\d{1,3}))?\s*", part, re.ASCII)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not MIN_OP <= low <= high <= MAX_OP:
            raise cli.UserError(f"op {part!r} is not a number or range within {MIN_OP} to {MAX_OP}, such as 2-10 or 2,4,8")
        ops += range(low, high + 1)
    return ops


def print_stats(problems, count_tokens, unit):
    """One row per (mode, op): means, longest texts, and the guess floor, the share of the commonest answer."""
    print(f"{'mode':8} {'op':>3} {'n':>5} {'nodes':>6} {'statements':>10} {'prompt':>7} {'max':>5} {'solution':>8} {'max':>5}  {unit}; "
          f"{'answer: median':>15} {'max':>5} {'commonest':>10} {'guess floor':>12}")  # fmt: skip
    groups = {}
    for p in problems:
        groups.setdefault((p.mode, p.op), []).append(p)
    for (mode, op), group in sorted(groups.items()):
        n = len(group)
        prompt = [count_tokens(f"{p.problem} {p.question}") for p in group]
        solution = [count_tokens(p.solution) for p in group]
        answers = sorted(p.answer for p in group)
        commonest, times = Counter(answers).most_common(1)[0]
        print(f"{mode:8} {op:3} {n:5} {sum(len(p.nodes) for p in group) / n:6.2f} {sum(p.problem.count('.') for p in group) / n:10.2f} "
              f"{sum(prompt) / n:7.1f} {max(prompt):5} {sum(solution) / n:8.1f} {max(solution):5}  {'':{len(unit)}}  "
              f"{answers[n // 2]:14} {answers[-1]:5} {commonest:10} {times / n:12.3f}")  # fmt: skip


def main():
    o = cli.parse_options(Options, description="Print problems of the world: readable, as JSONL records, or as statistics.")
    knobs = {name: getattr(o, name) for name in World.__dataclass_fields__}
    wanted = product(parse_ops(o.op), o.mode.split(","), o.template.split(","), range(o.n))
    problems = (generate(o.seed, i, op=op, mode=mode, template=template, split=o.split, **knobs) for op, mode, template, i in wanted)
    if o.stats:
        if o.tokenizer:
            from tokenizer import Tokenizer  # only here: the generator itself needs no package

            tokenizer = Tokenizer.load(o.tokenizer)
            print_stats(problems, lambda text: len(tokenizer.encode(text)), "tokens")
        else:
            print_stats(problems, lambda text: len(re.findall(r"[A-Za-z]+|\d|[^\w\s]", text)), "words, digits and signs")
        return
    for p in problems:
        if o.jsonl:
            print(json.dumps(to_record(p)))
        else:
            print(f"--- op {p.op}, {p.mode}, {p.template}, {p.layers} layers, {p.id}")
            print(f"{p.problem}\n{p.question}\n\n{p.solution}\n")


if __name__ == "__main__":
    cli.run(main)
