"""The world: word problems whose whole reasoning graph is known, and mixtures of them.

    python datagen.py --op 4 --n 3
    python datagen.py --preset mini --op 2-8 --n 100 --jsonl > problems.jsonl

A graph (graph.py) gets words and is a problem; a mixture draws problems, each of one split. The graph is
drawn apart from its words, so that one graph can be told in any context. A split is a bucket of a hash of the
text, so that no problem is in two of them. Everything is a pure function of its arguments. Standard library
only.
"""

import json
import random
import re
from dataclasses import asdict, dataclass, fields
from functools import cached_property, lru_cache, partial, reduce
from hashlib import blake2b
from itertools import product
from math import prod

from lab.options import UserError, blaming, look_up, opt, parse_options, parse_weight, run_script, stream_key

from graph import AVERAGE, COUNT, MODES, OFFSPRING, OPS, TOTAL, WorldConfig, combine, draw_graph, sample

MIN_OP, MAX_OP = 2, 20
# What a mixture's key `world` stands for. mini is that of the preset tiny and of the scale mini: few words,
# letters all of which short solutions show, and a plan, so that each token can be known from the text, but
# for a solution's first letter.
WORLDS = {
    "paper": "",
    "mini": "mode forward; distractors 1-3; literals 1-9; bound 99; letters shifted; order postorder; "
    "plan inline; kinds 6; places 8",
}
# Split = bucket of the canonical hash, out of 8: training gets four, every other purpose one. `dev` picks
# every `best`, `eval` is only ever reported.
SPLITS = {"train": (0, 1, 2, 3), "dev": (4,), "mid": (5,), "rl": (6,), "eval": (7,)}
# Knobs of the words alone: the same graph can be told in any of them.
TELLING = ("order", "plan", "kinds", "places")
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
CONSTANTS = dict(zip(OPS, ("{} more than ", "{} fewer than ", "{} times ", "a 1/{} share of ")))


# ------------------------------------------------------------------------------------------------------------
# The contexts


class Template:
    """A context. A name takes one look-up of the kind, in the singular, and one of the place."""

    def __init__(self, group, offspring, kind, place, kinds, places):
        self.kinds = [kind.format(word) for word in kinds.split()]
        self.places = [place.format(word) for word in places.split()]
        self.names = {
            COUNT: lambda kind, place: f"{kind}s in {place}",
            TOTAL: lambda kind, place: f"total number of {group} in {place}",
            AVERAGE: lambda kind, place: f"average number of {offspring} per {kind} in {place}",
            OFFSPRING: lambda kind, place: f"total number of {offspring} in {place}",
        }


TEMPLATES = {
    "zoo": Template("animals", "cubs", "{}", "{}",
        "otter badger marten panda heron gecko falcon tapir bobcat beaver jaguar lemur",
        "Fernhollow Birchlake Coppergorge Mistymoor Stonepoint Ambermarsh "
        "Willowbank Thunderfield Silvergrove Coralbay Juniperhill Northdunes"),
    "school": Template("teachers", "pupils", "{} teacher", "{} School",
        "history chemistry music drawing geometry grammar biology dance latin physics pottery geography",
        "Linden Harbour Rosewood Kestrel Oldmill Sunrise Bishop Riverside Eastgate Maple Hilltop Quarry"),
    "festival": Template("films", "prizes", "{} film", "the {} Festival",
        "spy silent western horror war heist romance puppet disaster science dance crime",
        "Moonlight Lagoon Lantern Goldreel Pier Aurora Velvet Saffron Tramway Cobalt Orchard Windmill"),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------
# Records


@dataclass(slots=True)
class Node:
    """One necessary quantity. `operator` is "" for a literal, a copy or the unknown; else the operator that
    joins the operands ("+" or "-", if there are several), then the one that joins the constant ("+", "-",
    "*", "/"): "3 times the sum of a and b" is "+*" with constant 3. "*+" without a constant: operands taken
    in pairs, multiplied, summed. `value` is an int, or (a, b) for a*x + b where it depends on the unknown
    x."""

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
    graph: object = None  # the graph.Graph it was told from; not part of the record


RECORD = [name for name in Problem.__slots__ if name not in ("nodes", "layers", "graph")]


def to_record(problem):
    """Problem → a JSON-able dict with GSM-Infinite's keys and ours (`d` is the number of layers)."""
    nodes = [asdict(node) for node in problem.nodes]
    return {**{name: getattr(problem, name) for name in RECORD}, "d": problem.layers, "nodes": nodes}


def from_record(record):
    """The inverse of `to_record`. Raises UserError if a key is missing or a node is not one."""
    try:
        nodes = [Node(**node) for node in record["nodes"]]
        for node in nodes:
            node.value = node.value if isinstance(node.value, int) else tuple(node.value)
        return Problem(**{name: record[name] for name in RECORD}, nodes=nodes, layers=record["d"])
    except (KeyError, TypeError) as error:
        raise UserError(f"not a record of datagen.py ({type(error).__name__}: {error})") from None


# ------------------------------------------------------------------------------------------------------------
# Words


def name_all(rand, vertices, template, config, more=0):
    """The name of each vertex, from a fresh draw of which index is which word, among so many words more than
    the knobs say. Raises UserError if the context has too few.
    """
    k, p = (1 + max(getattr(v, index) for v in vertices) for index in ("kind", "place"))
    for what, known, n in (("kinds", template.kinds, k), ("places", template.places, p)):
        if n > len(known):
            raise UserError(f"the context has words for {len(known)} {what}, a problem needs {n}: add some")
    kinds = sample(rand, template.kinds[: max(k, config.kinds) + more], k)
    places = sample(rand, template.places[: max(p, config.places) + more], p)
    return {v: template.names[v.type](kinds[v.kind], places[v.place]) for v in vertices}


def statement(v, names, unknown):
    """The sentence that defines a count or an average, or says what a total is in reverse mode."""
    refs = ["the " + names[u] for u in v.operands]
    if v is unknown:
        body = "an unknown amount above 0"
    elif not refs or v.type is not COUNT:
        body = v.value
    elif len(refs) == 1:
        body = refs[0] if v.operator else f"as many as {refs[0]}"
    elif v.operator[0] == "+":
        body = f"the sum of {', '.join(refs[:-1])} and {refs[-1]}"
    else:
        body = f"the excess of {refs[0]} over {refs[1]}"
    constant = "" if v.constant is None else CONSTANTS[v.operator[-1]].format(v.constant)
    return f"The {names[v]} {'number' if v.type is COUNT else 'is'} {constant}{body}."


def show(form):
    """(0, 4) → 4; (1, 0) → x; (3, -2) → 3*x - 2"""
    a, b = form
    if a == 0:
        return str(b)
    ax = "x" if a == 1 else f"{a}*x"
    return ax if b == 0 else f"{ax} + {b}" if b > 0 else f"{ax} - {-b}"


def define(v, names, letter, lefts):
    """The sentence of the solution that computes v, in GSM-Infinite's format.

    letter: the variable of each vertex; lefts: an iterator of the variables that the equations define, v's
    own last.
    """
    equations = []
    terms = [(letter[u], u.form) for u in v.operands]  # what is still to be joined: (written as, form)

    def join(op, u, w):
        """Write `S = e + I = 3 + 1 = 4` → (S, its form)."""
        left, form = next(lefts), combine(op, u[1], w[1])
        a, b = show(u[1]), show(w[1])
        if op != "+" and (u[1][0] or w[1][0]):
            a, b = f"({a})", f"({b})"
        equations.append(f"{left} = {u[0]} {op} {w[0]} = {a} {op} {b} = {show(form)}")
        return left, form

    if v.operator == "*+" and v.constant is None:
        terms = [join("*", u, w) for u, w in zip(terms[::2], terms[1::2])]
    elif len(terms) < 2:  # a literal, or a copy, to which a constant may be joined
        left, form = next(lefts), terms[0][1] if terms else v.form
        copied = f"{terms[0][0]} = " if terms else ""
        equations.append(f"{left} = {copied}{show(form)}")
        terms = [(left, form)]
    joined = reduce(partial(join, "-" if v.operator[:1] == "-" else "+"), terms)
    if v.constant is not None:
        op, pair = v.operator[-1], [(str(v.constant), (0, v.constant)), joined]
        join(op, *(reversed(pair) if op in "-/" else pair))
    equations[-1] = "so " + equations[-1]
    return f"Define {names[v]} as {letter[v]}; {'; '.join(equations)}."


def variables(rand, graph):
    """The letters of a solution, in the order in which they are used: never more than `op`."""
    letters = LETTERS.replace("x", "") if graph.unknown else LETTERS
    if graph.config.letters == "random":
        return sample(rand, letters, graph.op)
    first = int(rand() * len(letters)) if graph.config.letters == "shifted" else 0
    return letters[first:] + letters[:first]


def in_postorder(root, planned):
    """What root needs, and root itself, depth first: each right before the first that needs it.

    → {v: with planned, what is to be found by then, and cannot be read in the text; root first}
    """
    opened, seen, pending = {}, set(), []

    def visit(v):
        if v not in seen:
            seen.add(v)
            pending.extend([v] if planned and v.operands else ())
            for u in v.operands:
                visit(u)
            opened[v] = [*pending]
            pending.clear()

    visit(root)
    return opened


def solve(rand, graph, steps, names):
    """The worked solution and the answer. steps: {vertex: what is planned right before it is defined}."""
    root, unknown = graph.vertices[-1], graph.unknown
    letters, letter = iter(variables(rand, graph)), {unknown: "x"}
    out = ["The question is difficult, so we use equations to solve it."] if unknown else []
    for v, planned in steps.items():
        for u in planned:
            out.append(f"To find {names[u]} we need {', '.join(names[w] for w in u.operands)}.")
        if v is unknown:
            out.append(f"Define {names[v]} as x; we don't know its value yet but will find it out later.")
            continue
        letter[v] = next(letters)
        scratch = max(1, len(v.operands) - 1) + (v.constant is not None) - 1
        lefts = [next(letters) for _ in range(scratch)] + [letter[v]]
        out.append(define(v, names, letter, iter(lefts)))
    answer = (unknown or root).value
    if unknown:
        (a, b), equation = root.form, f"{show(root.form)} = {root.value}"
        c = root.value - b
        out.append(
            f"We know {letter[root]} = {root.value}, so we have {equation} and we solve it through the "
            f"following steps: Simplifying the equation: {equation}. Move all terms to one side: "
            f"{show((a, 0))} - {c} = 0. Isolate the term with x: {a}*x = {c}. "
            f"Divide both sides by {a}: x = {c} / {a}. Solution: x = {answer}."
        )
    return " ".join([*out, f"Answer: {answer}."]), answer


# ------------------------------------------------------------------------------------------------------------
# Splits and problems

config_of = lru_cache(maxsize=64, typed=True)(WorldConfig)


def canonical_hash(template, mode, question, statements):
    """64 bits that do not depend on the order of the statements (letters are in the solution alone)."""
    text = "\n".join([template, mode, question, *sorted(statements)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def statements_of(text):
    """The statements of a problem text, each with its full stop."""
    return [s.strip() + "." for s in text.split(".") if s.strip()]


def split_of(problem):
    """The split a problem belongs to, from its text alone."""
    statements = statements_of(problem.problem)
    bucket = canonical_hash(problem.template, problem.mode, problem.question, statements) % 8
    return next(name for name, buckets in SPLITS.items() if bucket in buckets)


def render(graph, template, split=None):
    """Tell a graph in a context → Problem. Structure and numbers are the same in every context.

    split: draw names until the text falls into this split (None: take the first names, whatever split they
    are in).
    """
    context = look_up("template", TEMPLATES, template)
    buckets = look_up("split", SPLITS, split) if split else range(8)
    config, unknown, root = graph.config, graph.unknown, graph.vertices[-1]
    everything = graph.vertices + graph.distractors
    stated = [v for v in everything if v.type in (COUNT, AVERAGE)] + [root] * bool(unknown)
    query, seed, bucket = unknown or root, graph.surface, None
    while bucket not in buckets:
        rand = random.Random(seed).random
        more = (seed - graph.surface) // 100  # few words may not make a text of this split
        if more > 100:
            raise UserError(f"no wording in split {split}: allow more --kinds or --places")
        names = name_all(rand, everything, context, config, more)
        statements = [statement(v, names, unknown) for v in stated]
        question = f"What is the {'number of ' if query.type is COUNT else ''}{names[query]}?"
        bucket = canonical_hash(template, graph.mode, question, statements) % 8
        seed += 1
    order = sample(rand, range(len(stated)), len(stated))
    steps = dict.fromkeys(graph.vertices, ())
    if config.order == "postorder":
        mentioned = {(v.place, v.kind): order.index(i) for i, v in enumerate(stated) if v.type is COUNT}
        for v in graph.vertices:
            if v.type in (TOTAL, OFFSPRING):  # a sum is the same in any order: that of the text can be known
                v.operands.sort(key=lambda u: mentioned[u.place, u.kind])  # an average after its count
        steps = in_postorder(root, config.plan == "inline")
    problem = " ".join(statements[i] for i in order)
    nodes = []
    for v in steps:
        value = v.form if v.form[0] else v.value
        nodes.append(Node(names[v], v.operator, [names[u] for u in v.operands], v.constant, value))
    told = problem, question, *solve(rand, graph, steps, names), graph.op, graph.mode, template
    return Problem(*told, nodes, names[query], names.get(unknown), graph.id, graph.config.layers, graph)


def generate(seed, index, *, op, mode="forward", template="zoo", split="train", **knobs):
    """Problem number `index` of the endless sequence `seed`: a pure function of its arguments.

    knobs: fields of WorldConfig.
    The template changes the words alone: the same (seed, index, …) is the same graph in every context.
    Raises UserError for an argument out of range, and where no problem fits the knobs.
    """
    config = config_of(**knobs)
    if type(op) is not int or not MIN_OP <= op <= MAX_OP:
        raise UserError(f"op must be {MIN_OP} to {MAX_OP}, not {op}")
    look_up("mode", CHOICES["mode"], mode)
    look_up("split", SPLITS, split)
    drawn_by = ", ".join(f"{name}={value!r}" for name, value in vars(config).items() if name not in TELLING)
    rng = random.Random(stream_key(seed, index, op, mode, split, f"WorldConfig({drawn_by})"))
    return render(draw_graph(rng, op, mode, config, f"{split}/{seed}/{index}"), template, split)


# ------------------------------------------------------------------------------------------------------------
# Mixtures

WORDS = re.compile(r"[A-Za-z]+|\d|[^\w\s]")
CHOICES = {"template": {t: t for t in TEMPLATES}, "mode": {m: m for m in MODES}, "layers": {"2": 2, "3": 3}}
# Keys of a mixture that set knobs of WorldConfig: an example of the value, its pattern and type, the knobs.
KNOBS = {
    "distractors": ("1-5", r"(\d{1,2})-(\d{1,2})", int, "min_distractors", "max_distractors"),
    "literals": ("1-12", r"(\d{1,2})-(\d{1,2})", int, "min_literal", "max_literal"),
    "bound": ("999", r"(\d{1,6})", int, "bound"),
    "degree": ("4", r"(\d{1,6})", int, "max_in_degree"),
    "operators": ("+-*", r"(\S+)", str, "operators"),
    "letters": ("shifted", r"(\S+)", str, "letters"),
    "order": ("postorder", r"(\S+)", str, "order"),
    "plan": ("inline", r"(\S+)", str, "plan"),
    "kinds": ("6", r"(\d{1,2})", int, "kinds"),
    "places": ("8", r"(\d{1,2})", int, "places"),
}
KEYS = dict.fromkeys(["op", "world", *CHOICES, *KNOBS, "share", "shares", "tokens"])
EXAMPLES = {"op": "2-4:3, 5", "world": "mini", "share": "0.5", "shares": "tokens", "tokens": "6M"}
EXAMPLES |= {key: ", ".join(table) for key, table in CHOICES.items()}
KEYS_HELP = "; ".join(f"{key} {EXAMPLES.get(key) or KNOBS[key][0]}" for key in KEYS)  # as --help lists them


@dataclass(frozen=True)
class Mixture:
    """What to draw problems from: `Mixture.parse("op 2-4:3, 5-6:1; template zoo:0.9, school; tokens 6M")`.

    Semicolons separate keys, commas choices, a colon gives a choice its weight (1 if none; weights are
    normalised). A range of ops shares its weight evenly. Keys: op, template, mode, layers, and the knobs of
    WorldConfig: distractors 1-3, literals 1-9, operators +-*, bound 99, degree 4, letters ordered, order
    postorder, plan inline, kinds 6, places 8. `world mini` is short for those of WORLDS; what is written
    beside it counts. A `|` separates components, each complete in itself, with its share (1 if none): "op
    2-20; share 0.99 | op 2; template school; share 0.01". Two keys belong to the whole, whichever component
    they are written in: tokens (the budget; k, M and B are understood), and shares, of documents or of
    tokens: `shares tokens` divides shares and weights of ops by the mean lengths of their texts.
    """

    choices: tuple  # keyword arguments of `generate` for each component, op, template, mode and layers ...
    weights: tuple  # ... and how often they are drawn
    tokens: int | None = None

    @classmethod
    @lru_cache
    def parse(cls, spec):
        """Raises UserError if the spec does not parse."""
        with blaming(f"mixture {spec!r}"):
            whole = {}
            components = [parse_keys(text, whole) for text in spec.split("|")]
            tokens = parse_count(whole["tokens"]) if "tokens" in whole else None
            by_tokens = look_up("shares", {"documents": 0, "tokens": 1}, whole.get("shares", "documents"))
            weighted = [pair for keys in components for pair in weigh(keys, by_tokens)]
            if not weighted:
                raise UserError("the shares add up to 0")
        return cls(*zip(*weighted), tokens)

    @cached_property
    def ops(self):
        """The distinct numbers of operations, in order."""
        return sorted({choice["op"] for choice in self.choices})

    def problem(self, seed, index, split, op=None):
        """Problem number `index`: a pure function of its arguments.

        op: draw one with this many operations, from the components that have them, or else from any.
        """
        wanted = [op] if op in self.ops else self.ops
        weights = [weight * (choice["op"] in wanted) for choice, weight in zip(self.choices, self.weights)]
        (choice,) = random.Random(stream_key(seed, split, index)).choices(self.choices, weights)
        return generate(seed, index, split=split, **{**choice, "op": choice["op"] if op is None else op})


def held_out(mixture, ops, n, seed, split):
    """A list of n problems of each op, in order of op."""
    return [mixture.problem(seed, i, split, op) for op in sorted(ops) for i in range(n)]


def parse_keys(text, whole):
    """ "op 2-4; mode reverse" → {"op": "2-4", "mode": "reverse"}; what belongs to the whole mixture goes into
    `whole`. Raises UserError."""
    keys = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        key, _, value = part.partition(" ")
        look_up("key", KEYS, key)
        where = whole if key in ("shares", "tokens") else keys
        if key in where:
            raise UserError(f"{key} is given twice")
        where[key] = value.strip()
    return keys


def weigh(keys, by_tokens):
    """The keys of a component → [(keyword arguments of `generate`, weight), ...]. Raises UserError."""
    world = parse_keys(look_up("world", WORLDS, keys.pop("world", "paper")), {})
    keys = {"template": "zoo", "mode": "forward", "layers": "2", "share": "1", **world, **keys}
    if "op" not in keys:
        raise UserError("no op given; write for example 'op 2-10; template zoo'")
    ops = [(op, w / len(ops)) for ops, w in parse_weighted(keys.pop("op"), parse_ops) for op in ops]
    rest = [parse_weighted(keys.pop(key), partial(look_up, key, table)) for key, table in CHOICES.items()]
    share, knobs = parse_weight(keys.pop("share")), {}
    for key, text in keys.items():
        example, pattern, kind, *names = KNOBS[key]
        match = re.fullmatch(pattern, text, re.ASCII)
        if not match:
            raise UserError(f"{key} {text!r} is not of the form {example}")
        knobs.update(zip(names, map(kind, match.groups())))
    config_of(**knobs)  # raises if a knob is out of range
    weighted = []
    for op, weight in ops if share else ():
        drawn = [list(zip(*choice)) for choice in product(*rest)]  # [(template, mode, layers), their weights]
        choices = [dict(zip(CHOICES, names), op=op, **knobs) for names, _ in drawn]
        weights = [prod(weights) for _, weights in drawn]
        length = mean_length(choices, weights) if by_tokens else 1
        weighted += [(choice, share * weight * w / length) for choice, w in zip(choices, weights)]
    return weighted


def count_words(text):
    """Words, digits and signs: near enough to tokens, without a tokenizer."""
    return len(WORDS.findall(text))


def mean_length(choices, weights):
    """Mean length of 200 texts of split train, by `count_words`. Arguments as in Mixture."""
    drawn = random.Random(stream_key("mean length")).choices(choices, weights, k=200)
    problems = [generate(0, i, split="train", **choice) for i, choice in enumerate(drawn)]
    return sum(count_words(f"{p.problem} {p.question} {p.solution}") for p in problems) / len(problems)


def parse_ops(text):
    """ "2-4,8" → [2, 3, 4, 8]. Raises UserError."""
    ops = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,3})(?:-(\d{1,3}))?\s*", part, re.ASCII)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not MIN_OP <= low <= high <= MAX_OP:
            raise UserError(f"op {part!r} is not a number or range within {MIN_OP} to {MAX_OP}, such as 2-10")
        ops += range(low, high + 1)
    return ops


def parse_weighted(text, parse):
    """ "zoo:3, school" → [("zoo", 0.75), ("school", 0.25)]; `parse` reads a choice. Raises UserError."""
    parts = [part.partition(":") for part in text.split(",")]
    weighted = [(parse(name.strip()), parse_weight(weight) if colon else 1) for name, colon, weight in parts]
    total = sum(weight for _, weight in weighted)
    if not total:
        raise UserError("the weights add up to 0")
    return [(choice, weight / total) for choice, weight in weighted if weight]


def parse_count(text):
    """ "500k" → 500000. Raises UserError."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)([kMB]?)", text, re.ASCII)
    if not match or float(match[1]) == 0:
        raise UserError(f"{text!r} is not a number of tokens such as 500k, 6M or 10B")
    return round(float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}[match[2]])


# ------------------------------------------------------------------------------------------------------------
# Command line


@dataclass(frozen=True)
class Options(WorldConfig):
    preset: str = opt("paper", "defaults of the knobs: paper, or mini, as `world` in a mixture")
    op: str = opt("2-10", "operations: one number, a range 2-10 or a list 2,4,8-10", group="what to draw")
    mode: str = opt("forward", "forward, reverse or both: forward,reverse")
    template: str = opt("zoo", "contexts, separated by commas: zoo, school, festival")
    split: str = opt("train", "which split", tuple(SPLITS))
    seed: int = opt(0, "seed of the sequence of problems")
    n: int = opt(1, "problems for each op, mode and template", within="[1, inf)")
    jsonl: bool = opt(False, "print records instead of readable text")

    def problems(self):
        """Yield the problems that the options ask for, in order of op, mode and template."""
        knobs = {field.name: getattr(self, field.name) for field in fields(WorldConfig)}
        modes = [look_up("mode", CHOICES["mode"], name.strip()) for name in self.mode.split(",")]
        templates = [look_up("template", CHOICES["template"], t.strip()) for t in self.template.split(",")]
        for op, mode, template in product(parse_ops(self.op), modes, templates):
            for i in range(self.n):
                yield generate(self.seed, i, op=op, mode=mode, template=template, split=self.split, **knobs)


def main(argv=None):
    worlds = {name: {**Mixture.parse(f"op 2; world {name}").choices[0], "op": "2-10"} for name in WORLDS}
    o = parse_options(Options, argv, presets=worlds, description=__doc__.partition("\n\nA graph")[0])
    for p in o.problems():
        head = f"--- op {p.op}, {p.mode}, {p.template}, {p.layers} layers, {p.id}"
        readable = f"{head}\n{p.problem}\n{p.question}\n\n{p.solution}\n"
        print(json.dumps(to_record(p)) if o.jsonl else readable)


if __name__ == "__main__":
    run_script(main)
