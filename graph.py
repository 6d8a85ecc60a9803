"""A reasoning graph: quantities, how each follows from others, and their numbers. datagen.py has the words.

    structure → numbers → distractors

A *count* ("otters in Fernhollow") is stated in the text: a literal, or an expression over other quantities. A
*total* ("total number of animals in Fernhollow") is never defined by the text: it is the sum of the counts
mentioned there, an edge the reader must add. With three layers a place also has *averages* ("average number
of cubs per otter in Fernhollow") and a total of the third layer, the sum of count × average. `op` is the
number of edges of the needed graph, the edge from a literal included (GSM-Infinite's count): a literal costs
1, a copy 1, "3 times the sum of a and b" 3.
"""

from bisect import bisect
from dataclasses import dataclass, field
from functools import cache, partial, reduce
from itertools import accumulate
from math import exp

from lab.options import CheckedOptions, UserError, opt

OPS = ("+", "-", "*", "/")
MODES = ("forward", "reverse")
COUNT, TOTAL, AVERAGE, OFFSPRING = "count", "total", "average", "offspring"
EDGES = {COUNT: 1, TOTAL: 1, OFFSPRING: 3}  # of the cheapest definition; of a total, for each member
PLACES = 12  # places of one problem, at most: as many as a context has words for
# Draws before the knobs are said to be impossible: structures, and numbers for each.
STRUCTURES, NUMBERS = 2000, 5


@dataclass(frozen=True)
class WorldConfig(CheckedOptions):
    """The knobs of the world."""

    layers: int = opt(2, "2, or 3 with averages", (2, 3), group="the world")
    operators: str = opt("+-*/", "operators a count may use; + is needed")
    max_in_degree: int = opt(4, "largest number of operands of one quantity", within="[1, 6]")
    min_distractors: int = opt(1, "fewest statements that the answer does not need", within="[0, 10]")
    max_distractors: int = opt(5, "most statements that the answer does not need", within="[0, 10]")
    min_literal: int = opt(1, "smallest literal", within="[1, 98]")
    max_literal: int = opt(12, "largest literal", within="[2, 99]")
    bound: int = opt(999, "no value, and in reverse mode no coefficient, is larger", within="[16, 99999]")
    # Variables: in random order, from a on, or from a random letter on. The fewer there are to guess, the
    # faster a small model learns; but ordered letters never show the ones that only longer solutions need.
    letters: str = opt("random", "order of the letters of variables", ("random", "ordered", "shifted"))
    # Of the quantities that are ready any may come next, and a model cannot know which; in postorder each
    # comes right before the first that needs it, and a plan says why.
    order: str = opt("random", "of the solution's steps", ("random", "postorder"))
    plan: str = opt("none", "inline: 'To find X we need A, B.' before what X needs", ("none", "inline"))
    kinds: int = opt(12, "words for kinds that are used, if they suffice", within="[1, 12]")
    places: int = opt(12, "words for places that are used, if they suffice", within="[1, 12]")

    def __post_init__(self):
        super().__post_init__()
        if "+" not in self.operators or not set(self.operators) <= set(OPS):
            raise UserError(f"operators must be '+' and any of '-*/', not {self.operators!r}")
        for name in ("distractors", "literal"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low > high - (name == "literal"):
                raise UserError(f"min_{name} and max_{name} cannot be {low} and {high}")
        if self.plan != "none" and self.order == "random":
            raise UserError("plan inline needs order postorder")
        if self.bound < 8 * self.max_literal:
            raise UserError(f"bound must be 8 times max_literal or more, not {self.bound}")


@dataclass(slots=True, eq=False)
class Vertex:
    """A quantity before it has a name: `place` and `kind` are indices that the context turns into words.

    `value` is its number; `form` is (a, b) for a*x + b, where x is the unknown (a is 0 where it does not
    depend on x).
    """

    type: str
    place: int
    kind: int = -1
    operands: list = field(default_factory=list)
    operator: str = ""  # as in datagen.Node
    constant: int | None = None
    value: int = 0
    form: tuple = (0, 0)


def choice(rand, items):
    """One of the items. rand: a function that returns uniform floats in [0, 1), here and below."""
    return items[int(rand() * len(items))]


def sample(rand, items, n):
    """n different items in random order (Fisher-Yates)."""
    items, size = list(items), len(items)
    for i in range(n):
        j = i + int(rand() * (size - i))
        items[i], items[j] = items[j], items[i]
    return items[:n]


def combine(op, u, v):
    """u op v of two forms (a, b) = a*x + b, where that is a form with whole numbers again."""
    (a, b), (c, d) = u, v
    if op == "*":
        return a * d + c * b, b * d
    if op == "/":
        return a // d, b // d
    return (a + c, b + d) if op == "+" else (a - c, b - d)


PLUS = partial(combine, "+")  # of two forms


@cache
def ways_to_define(free, nodes, waiting, most):
    """Ways to define a count: (operands, new operands, has a constant, price), with cumulative weights.

    free: edges to spend beyond the least; nodes: quantities still wanted; waiting: quantities that wait to be
    defined, this one among them; most: largest in-degree. A way's price is what it takes off `free`: its
    edges, less the one reserved for it, and one for each new operand.
    """
    wish, reuse = 0.35 + free / (waiting + nodes), min(waiting - 1, 4)
    ways, weights = [], []
    for k in range(most + 1):
        for new in range(max(0, k - reuse), min(k, max(nodes, waiting == 1)) + 1):
            for constant in (0, 1) if k else (0,):
                price = k + constant - 1 + new if k else 0
                stuck = waiting == 1 and free and not new  # the last one waiting could not spend the rest
                if price <= free and not stuck:
                    weight = exp(-1.2 * abs(price - wish)) * (1.0, 1.0, 1.2, 0.7, 0.35, 0.2, 0.1)[k]
                    if k == 1 and not constant:
                        weight *= 0.4 if new else 0.2  # plain copies teach little
                    ways.append((k, new, constant, price))
                    weights.append(weight)
    return ways, list(accumulate(weights))


class Graph:
    """A reasoning graph, drawn by `draw_structure`, `draw_numbers` (whether they fit) and `draw_distractors`.

    The structure is drawn root first, until exactly `op` edges are spent. A quantity is defined by quantities
    that still wait to be defined, or by new ones: so there is no cycle, each one is needed, and the order of
    definition, reversed, is an order of computation. Each waiting quantity has edges reserved for its
    cheapest definition; the rest is free to spend, and the last one waiting must spend it all.
    """

    def __init__(self, rand, op, mode, config, id):
        self.rand, self.op, self.mode, self.config, self.id = rand, op, mode, config, id
        # vertices: the needed ones, operands first; the last is the root
        self.vertices, self.distractors, self.unknown = [], [], None
        # Of each place its counts, {kind: vertex}; of some the total, {place: vertex}, while it waits to be
        # defined. A closed place has no further count: it would change a total that is defined.
        self.places, self.totals, self.closed = [], {}, set()
        self.kinds = max(5, config.max_in_degree)  # of counts in one place, at most
        self.waiting, self.free = [], op - 1  # quantities to define; edges neither spent nor reserved
        # Quantities wanted besides the root: as many as in GSM-Infinite.
        self.wanted = int(op * 0.4 - 0.4 + rand()) if op > 3 else op - 1
        self.add_total(third_layer=op >= 4 and 0.7)

    def draw_structure(self):
        while self.waiting:
            v = choice(self.rand, self.waiting)
            # A count in a place whose total waits must wait for it: the total might need a count that needs
            # the total.
            v = self.totals.get(v.place, v)
            self.waiting.remove(v)
            self.vertices.append(v)
            define = self.define_count if v.type is COUNT else self.define_total
            define(v)
        self.vertices.reverse()

    def add_total(self, third_layer):
        """A new place whose total is needed. third_layer: the chance of an OFFSPRING total, with 3 layers."""
        offspring = self.config.layers == 3 and self.rand() < third_layer
        v = Vertex(OFFSPRING if offspring else TOTAL, len(self.places))
        self.places.append({})
        self.totals[v.place] = v
        self.waiting.append(v)
        self.free -= EDGES[v.type]
        return v

    def add_count(self, p):
        """A count of a kind not mentioned yet in place p, which may be new."""
        if p == len(self.places):
            self.places.append({})
        total, members = self.totals.get(p), self.places[p]
        if total:  # each member costs it an edge or more; the first is reserved, and its definition too
            self.free -= EDGES[total.type] if members else -1
        kind = int(self.rand() * self.kinds)
        while kind in members:
            kind = (kind + 1) % self.kinds
        members[kind] = Vertex(COUNT, p, kind)
        return members[kind]

    def open_places(self):
        return [p for p, kinds in enumerate(self.places) if p not in self.closed and len(kinds) < self.kinds]

    def affords_count(self, p):
        """Whether the total that waits in place p, if one does, has an edge for one more count."""
        total, n = self.totals.get(p), len(self.places[p])
        if not total or not n:
            return True
        return self.free and total.type is TOTAL and n < self.config.max_in_degree

    def new_operand(self):
        """A quantity not mentioned yet: a count, or, where edges are free, a total."""
        if self.wanted > 1 and self.free and self.rand() < 0.45 and len(self.places) < PLACES:
            self.wanted -= 2
            return self.add_total(third_layer=self.free >= 3 and 0.5)
        spots = list(filter(self.affords_count, self.open_places()))
        if len(self.places) < PLACES:  # a closed or full place holds two edges or more: 20 never fill 12
            spots.append(len(self.places))
        self.wanted -= 1
        self.waiting.append(self.add_count(choice(self.rand, spots)))
        return self.waiting[-1]

    def define_count(self, v):
        waiting, most = len(self.waiting) + 1, self.config.max_in_degree
        ways, weights = ways_to_define(min(self.free, 9), max(0, min(self.wanted, 4)), waiting, most)
        k, new, constant, price = ways[bisect(weights, self.rand() * weights[-1])]
        self.free -= price
        v.constant = constant or None
        v.operands = sample(self.rand, self.waiting, k - new)
        v.operands += [self.new_operand() for _ in range(new)]

    def define_total(self, v):
        members, third_layer = self.places[v.place], v.type is OFFSPRING
        least, room = 0 if members else 1, self.config.max_in_degree - len(members)
        affordable = least + self.free // (EDGES[v.type] + 1)  # a count costs 1 edge itself
        new = least + int(self.rand() * (min(room, affordable, max(least, self.wanted)) - least + 1))
        self.waiting += [self.add_count(v.place) for _ in range(new)]
        self.free -= new
        self.wanted -= new * (1 + third_layer)
        del self.totals[v.place]
        self.closed.add(v.place)
        for u in members.values():
            v.operands.append(u)
            if third_layer:
                self.vertices.append(Vertex(AVERAGE, v.place, u.kind))
                v.operands.append(self.vertices[-1])

    def draw_numbers(self):
        """Literals, the unknown, operators and constants, operands first. Returns whether all are in
        bounds."""
        if self.mode == "reverse":
            self.unknown = choice(self.rand, [v for v in self.vertices if not v.operands])
        return all(map(self.evaluate, self.vertices))

    def evaluate(self, v):
        """Give a quantity its number. Returns whether it is in bounds; so do the three below."""
        if not v.operands:
            return self.draw_literal(v)
        if v.type is COUNT:
            return self.draw_expression(v)
        v.operator, forms = "+", [u.form for u in v.operands]
        if v.type is OFFSPRING:
            v.operator = "*+"
            forms = [combine("*", u, w) for u, w in zip(forms[::2], forms[1::2])]
        return self.settle(v, reduce(PLUS, forms))

    def settle(self, v, form):
        (a, b), bound = form, self.config.bound
        v.form, v.value = form, a * self.unknown.value + b if a else b
        return 1 <= v.value <= bound and a <= bound and -bound <= b <= bound

    def draw_literal(self, v):
        low, span = self.config.min_literal, self.config.max_literal - self.config.min_literal + 1
        if v.type is AVERAGE and v is not self.unknown:  # it multiplies: small
            span = (span + 1) // 2
        v.value = low + int(self.rand() * span)
        return self.settle(v, (1, 0) if v is self.unknown else (0, v.value))

    def draw_expression(self, v):
        """Choose operators (constant, order) of a count to keep it in bounds."""
        config, bound = self.config, self.config.bound
        v.operator = "+" if len(v.operands) > 1 else ""
        fits = self.settle(v, reduce(PLUS, [u.form for u in v.operands]))
        if len(v.operands) == 2 and "-" in config.operators and (self.rand() < 0.35 or v.value > bound // 4):
            big, small = sorted(v.operands, key=lambda u: -u.value)
            a, c = big.form[0], small.form[0]
            if big.value > small.value and (a > c or a == c == 0):
                v.operands, v.operator = [big, small], "-"
                fits = self.settle(v, combine("-", big.form, small.form))
        if v.constant is None:
            return fits
        (a, b), value = v.form, v.value
        largest, low, high = max(value, a, abs(b)), config.min_literal, config.max_literal
        constants = {
            "+": range(low, high + 1) if largest + high <= bound else (),
            "-": range(low, min(high, value - 2) + 1),
            "*": range(2, min(high, 9, bound // 4 // max(1, largest)) + 1),
            "/": [d for d in range(2, min(high, 9, value // 2) + 1) if a % d == b % d == 0],
        }
        choices = [op for op in OPS if op in config.operators and constants[op]]
        if not choices:
            return False
        op = choice(self.rand, choices)
        v.constant = choice(self.rand, constants[op])
        v.operator += op
        return self.settle(v, combine(op, v.form, (0, v.constant)))

    def draw_distractors(self):
        """Statements beside the point, each of the form of a needed one: its form gives none away."""
        config, root = self.config, self.vertices[-1]
        needed = [v for v in self.vertices if v.type in (COUNT, AVERAGE) and v is not self.unknown]
        counts = [v for v in needed if v.type is COUNT]
        if not counts:  # only the unknown is needed, which no distractor can be like
            counts = [Vertex(COUNT, 0), Vertex(COUNT, 0, operands=[root], constant=1)]
        spread = config.max_distractors - config.min_distractors + 1
        for _ in range(config.min_distractors + int(self.rand() * spread)):
            model = choice(self.rand, needed or counts)
            averages = self.new_averages() if model.type is AVERAGE else ()
            if averages:
                v = choice(self.rand, averages)
            else:
                model = model if model.type is COUNT else choice(self.rand, counts)
                spots = self.open_places()
                if not spots or (self.rand() < 0.3 and len(self.places) < PLACES):
                    spots = [len(self.places)]
                v = self.add_count(choice(self.rand, spots))
            self.imitate(v, model)
            self.distractors.append(v)

    def new_averages(self):
        """Averages that can be stated without changing anything: no OFFSPRING total has them."""
        stated = self.vertices + self.distractors
        taken = {(v.place, v.kind) for v in stated if v.type is AVERAGE}
        counts = [(v.place, v.kind) for v in stated if v.type is COUNT]
        return [Vertex(AVERAGE, *count) for count in counts if count not in taken]

    def imitate(self, v, model):
        """Define a distractor in the form of a needed quantity, over anything that is already defined."""
        known = [u for u in self.vertices + self.distractors if u.type is not AVERAGE]
        for _ in range(8 if model.operands else 0):
            v.operands, v.constant = sample(self.rand, known, len(model.operands)), model.constant
            if self.draw_expression(v):
                return
        v.operands, v.operator, v.constant = [], "", None
        self.draw_literal(v)


def draw_graph(rng, op, mode, config, id):
    """A graph with exactly `op` edges, from a random.Random. Raises UserError if the knobs allow none."""
    for _ in range(STRUCTURES):
        graph = Graph(rng.random, op, mode, config, id)
        graph.draw_structure()
        # A clash with the bound is rare: draw the numbers again; where they never fit, the structure.
        if any(graph.draw_numbers() for _ in range(NUMBERS)):
            graph.draw_distractors()
            graph.surface = rng.getrandbits(63)  # the seed of names, letters and order of statements
            return graph
    cure = "raise bound, lower min_literal or max_literal, allow more operators, or lower op"
    raise UserError(f"found no {mode} problem with op {op} and values within {config.bound}: {cure}")
