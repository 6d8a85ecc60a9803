"""Texts with hidden thoughts, and chains that reflect: what the studies of the other two papers train on.

    python texts.py --kind gold --mixture "op 2-4; template school; mode forward" --n 2

An expert text is a problem's statements and a conclusion; its hidden thought is the chain between them, and
each kind of thought is an arm of a study (Mining Hidden Thoughts from Texts, arXiv 2505.10182). A reflective
chain (Dual-Phase LLM Reasoning, 2601.05616) is a solution with control sentences among its own:

    <backward> NAME needs NAME, NAME.    what a quantity follows from
    <subgoal> NAME.                      the quantity that is defined next
    <verify> CLAIM. ok                   of the last definition: a statement of the problem, or an equation;
    <verify> CLAIM. not                  whether the definition is right
    <backtrack> v.                       retracts v, and what was defined from it

`resolve` executes them, and the judge sees a plain solution. Every text is a pure function of (mixture, seed,
index). Forward problems only: a reverse one ends with equations that belong to no step.
"""

import json
import math
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, cycle, pairwise, takewhile
from pathlib import Path

from lab.options import (
    CheckedOptions,
    UserError,
    look_up,
    opt,
    parse_options,
    read_jsonl,
    run_script,
    stream_key,
    write_atomic,
)
from lab.options import printable as on_terminal

from datagen import KEYS_HELP, LETTERS, SPLITS, Mixture, count_words, from_record, statements_of
from tokenizer import Tokenizer
from verify import LONE, PIECE, STOP, TAGS, evaluate, gold_graph, number, parse_solution, verify

BEHAVIOURS = ("subgoal", "backward", "verify", "backtrack")
MOST_BACKTRACKS = 3
# Draws before a text is given up: of errors that leave whole numbers, of a chain of the same length.
ATTEMPTS = 1000
NEAR = 5  # tokens by which a shuffled thought may be longer or shorter than the text's own
CHAINS = 4  # that are stitched of a problem's tries, at most
# No part has a <, > or full stop. All are bounded, so that no text takes long: a name or a claim by 400
# characters, what is defined by 200, its equations by 1000.
DEFINITION = r"Define (?P<name>[^<>.=;]{1,200}?) as (?P<var>[A-Za-z]); (?P<define>[^<>.]{1,1000})\.(?!\S)"
SENTENCE = re.compile(
    r" ?(?:<(?:subgoal> (?P<subgoal>[^<>.=]{1,400})|backward> (?P<backward>[^<>.=]{1,400})|"
    r"backtrack> (?P<backtrack>[A-Za-z]))\.(?!\S)|<verify> (?P<verify>[^<>.]{1,400}\. (?:ok|not))(?!\S)|"
    rf"\b{DEFINITION})"
)
PLAIN = "{statements} {conclusion}"
THOUGHT = "{statements} <thought> {chain} </thought> {conclusion}"
PREFIX = "<thought> {chain} </thought> {statements} {conclusion}"
# A thought and `conclusion`; of its sentences the last one answers. An intermediate result holds no equation.
CONCLUDED = re.compile(
    r"(?: <thought>)?(?P<chain>[^<]*) </thought> (?:The [^<>.=;]{1,400}\. )?"
    r"The [^<>.=;]{1,400} (?:is|number) (?P<answer>[0-9]{1,15})\.(?:\[EOS\])?"
)


# ------------------------------------------------------------------------------------------------------------
# Chains


def end_of_chain(text):
    """Where the judge, too, stops to read a solution's steps: at the answer."""
    return min(len(text.partition(mark)[0]) for mark in ("Answer:", "<answer>", "</solution>"))


def chain_of(solution):
    """A solution, be it a record's or a sampled completion, without its answer."""
    return " ".join(TAGS.sub(" ", solution[: end_of_chain(solution)]).split())


def sentences(chain):
    """[(sentence, its match if it is a definition)]"""
    parts = [part.strip() + "." for part in STOP.split(chain) if part.strip()]
    return [(part, re.fullmatch(DEFINITION, part)) for part in parts]


def stated(problem, name):
    """The problem's statement that says what a quantity is, or None (of a total)."""
    heads = f"The {name} number ", f"The {name} is "
    return next((s for s in statements_of(problem.problem) if s.startswith(heads)), None)


def status(step, node):
    """What the judge says of a step that should be this gold node."""
    return "ok" if (step.value, step.parents) == (node.value, node.parents) else "wrong"


# ------------------------------------------------------------------------------------------------------------
# Hidden thoughts: (source, problem, rand) → the thought, or None where there is none


def gold(source, problem, rand):
    return chain_of(problem.solution)


def length(source, problem):
    """Tokens of the gold thought."""
    return source.size(" " + chain_of(problem.solution))


def shuffled(source, problem, rand):
    """The gold chain of another text of the same op, context and length."""
    tokens, seed = length(source, problem), rand.getrandbits(63)
    for i in range(ATTEMPTS):
        other = source.mixture.problem(seed, i, source.split, problem.op)
        near = abs(length(source, other) - tokens) <= NEAR
        if near and other.template == problem.template and other.problem != problem.problem:
            return chain_of(other.solution)


def filler(source, problem, rand):
    """As many full stops as gold has tokens. In a row: with spaces between them each might be two tokens."""
    return "." * (length(source, problem) + 1 - source.size(" ."))


def facts(source, problem, rand):
    """The statements that are needed, in order of use, again and again until gold's length."""
    needed = [s for node in problem.nodes if (s := stated(problem, node.name))]
    words, left = [], length(source, problem)
    for word in cycle(" ".join(needed).split()):
        left -= source.size(" " + word)
        if left < 0:
            return " ".join(words)
        words.append(word)


def corrupted(share, source, problem, rand):
    """Gold with a wrong value or a wrong parent in one node, or in this share of them; later lines follow."""
    chain = sentences(chain_of(problem.solution))
    nodes = [definition for _, definition in chain if definition]
    for _ in range(ATTEMPTS):
        wrong = rand.sample(nodes, max(1, round(share * len(nodes))))
        errors = {node["name"]: draw_error(node, nodes, rand) for node in wrong}
        text = recompute(chain, errors)
        verdict = text and verify(text, problem)
        if verdict and all(verdict.nodes[name] != "ok" for name in errors):
            return text


def draw_error(node, nodes, rand):
    """→ (what is added to the node's value, {letter of a parent: another quantity's})."""
    letters = [other["var"] for other in nodes[: nodes.index(node)]]
    parents = [letter for letter in letters if letter in LONE.findall(node["define"])]
    others = [letter for letter in letters if letter not in parents]
    if parents and others and rand.random() < 0.5:
        return 0, {rand.choice(parents): rand.choice(others)}
    return rand.choice((-1, 1)) * rand.randint(1, 9), {}


def recompute(chain, errors):
    """The sentences of a gold chain with errors, {name: as of `draw_error`}, and all that follows from them.
    → text, or None where a value is no whole number above 0.
    """
    values, names, out = {}, {d["var"]: d["name"] for _, d in chain if d}, []
    for sentence, definition in chain:
        if not definition:  # a plan: it has the wrong parent too
            head, parents = sentence[:-1].split(" we need ")
            _, swap = errors.get(head.removeprefix("To find "), (0, {}))
            swap = {names[letter]: names[other] for letter, other in swap.items()}
            parents = ", ".join(swap.get(name, name) for name in parents.split(", "))
            out.append(f"{head} we need {parents}.")
            continue
        added, swap = errors.get(definition["name"], (0, {}))
        clauses = []
        for clause in definition["define"].replace("so ", "").split("; "):
            left, expression, *_ = clause.split(" = ")
            tokens = [swap.get(token, token) for token in expression.split()]
            numbers = [values.get(token, token) for token in tokens]
            value = evaluate(numbers, {})
            value = value and value[0][1] + added * (left == definition["var"])
            if not value or value < 1:
                return None
            values[left] = str(value)
            sides = [" ".join(tokens)] * (tokens != numbers) + [" ".join(numbers)] * (len(tokens) > 1)
            clauses.append(" = ".join([left, *sides, values[left]]))
        clauses[-1] = "so " + clauses[-1]
        out.append(f"Define {definition['name']} as {definition['var']}; {'; '.join(clauses)}.")
    return " ".join(out)


def sampled(accepts, source, problem, rand):
    """One of the model's own tries that are accepted, by accepts(try, problem)."""
    tries = [text for text in source.tries.get(problem.id, ()) if accepts(text, problem)]
    return (chain_of(rand.choice(tries)) or None) if tries else None


def concludes(text, problem):
    """Whether the last quantity of a try has the value that the expert text says."""
    return [step.value for step in parse_solution(text).steps][-1:] == [(0, problem.answer)]


def is_right(text, problem):
    return verify(text, problem).correct


# ------------------------------------------------------------------------------------------------------------
# Reflective chains: what they say


@dataclass(slots=True, eq=False)
class Event:
    """A definition or a control sentence."""

    kind: str  # "define" or one of BEHAVIOURS
    said: str  # what follows the tag; of a definition its equations
    span: tuple  # of characters, with the space before it
    name: str | None  # of a definition, as is var
    var: str | None
    about: object  # the last definition before it, or the one that a <backtrack> retracts
    bound: dict  # {letter: the definition that it stands for here}
    stands: bool = True  # of a definition: not retracted
    step: object = None  # of a definition, once it is read: the judge's Step


def gaps(events, end):
    """[(start, end)] of what is before, between and after these events, up to `end`."""
    return [*zip([0, *(event.span[1] for event in events)], [*(event.span[0] for event in events), end])]


def cut(text, events):
    """The text without these events."""
    return "".join(text[start:end] for start, end in gaps(events, len(text)))


def resolve(text):
    """A reflective chain → (the plain chain that stands at its end, its Events).

    `<backtrack> v` removes the last definition of v that stands, and each later one whose letters include v
    or the letter of one that is removed; control sentences are cut out, with the space before them; all else
    stays as it is, byte for byte. What is no sentence of the grammar, or follows the answer, stays, and the
    judge refuses it. A fourth `<backtrack>` leaves nothing of the text. Never raises; takes linear time.
    """
    events, definitions, bound, backtracks = [], [], {}, 0
    for match in SENTENCE.finditer(text, 0, end_of_chain(text)):
        kind, last = match.lastgroup, definitions[-1] if definitions else None
        event = Event(kind, match[kind], match.span(), match["name"], match["var"], last, dict(bound))
        events.append(event)
        if kind == "define":
            definitions.append(event)
            bound[event.var] = event
        elif kind == "backtrack":
            event.about, backtracks = bound.get(event.said), backtracks + 1
            if event.about and backtracks <= MOST_BACKTRACKS:
                retract(definitions, event.about)
                bound = {d.var: d for d in definitions if d.stands}
    gone = [event for event in events if event.kind != "define" or not event.stands]
    return cut(text, gone) if backtracks <= MOST_BACKTRACKS else "", events


def resolved(text):
    """What the judge reads: the plain chain that stands at the end of a reflective one; and of a thought with
    its conclusion, the same as a solution with its answer.
    """
    plain = resolve(text)[0]
    thought = CONCLUDED.fullmatch(plain)
    return f"{thought['chain']} </solution> <answer> {thought['answer']} </answer>" if thought else plain


def retract(definitions, first):
    """Retract a definition and what was defined from it."""
    lost = {first.var}
    for it in definitions[definitions.index(first) :]:
        if it.stands and lost & {it.var, *LONE.findall(it.said)}:
            it.stands = False
            lost.add(it.var)


def agree(definitions, steps):
    """Whether the judge reads these definitions, [(name, variable)], and no others."""
    return definitions == [(step.name, step.var) for step in steps]


class Reading:
    """A reflective chain beside the gold graph: what the rules look at."""

    def __init__(self, text, problem, need):
        self.text, self.problem, self.need = " ".join(text.split()), problem, need
        self.plain, self.events = resolve(self.text)
        self.verdict, (self.gold, _) = verify(self.plain, problem), gold_graph(problem)
        # Each definition as the judge reads it where it stands, be it retracted later or not.
        steps = parse_solution(cut(self.text, [e for e in self.events if e.kind != "define"])).steps
        self.sound = agree([(d.name, d.var) for d in self.of("define")], steps)
        for definition, step in zip(self.of("define"), steps):
            definition.step = step

    def of(self, kind):
        return [event for event in self.events if event.kind == kind]

    def after(self, event):
        """The definitions that follow."""
        return [definition for definition in self.of("define") if definition.span > event.span]

    def status(self, definition):
        """ "ok" or "wrong"; "" of what is no gold node."""
        node = definition and self.gold.get(definition.name)
        return status(definition.step, node) if node else ""

    def true(self, event):
        """Whether a <verify> says something true of what it is about, by the letters bound there."""
        claim = event.said.rpartition(". ")[0]
        if "=" not in claim:
            return event.about and f"{claim}." == stated(self.problem, event.about.name)
        values = {v: number(str(d.step.value[1])) for v, d in event.bound.items() if d.step.value}
        sides = [PIECE.findall(side) for side in claim.split("=")]
        computed = [evaluate(tokens, values) for tokens in sides]
        named = values.keys() & set().union(*sides)
        return named and None not in computed and len({form for form, _ in computed}) == 1

    def mended(self, event):
        """Whether a <backtrack> retracts what is wrong, and the next definition of that is right."""
        again = [d for d in self.after(event) if event.about and d.name == event.about.name]
        return self.status(event.about) == "wrong" and self.status(again[0] if again else None) == "ok"

    def reached(self, event):
        return event.said in self.gold and [d.name for d in self.after(event)][:1] == [event.said]

    def needs(self, event):
        name, _, parents = event.said.partition(" needs ")
        return name in self.gold and {*parents.split(", ")} == self.gold[name].parents

    def repeats(self):
        """Whether a sentence stands twice in a row."""
        told = re.findall(r"[^ .][^.]*\.(?: (?:ok|not)\b)?", self.text)
        return any(a == b for a, b in pairwise(told))


RULES = {
    "answer": lambda it: it.verdict.answer_correct,
    "R1": lambda it: it.verdict.correct,
    "R2": lambda it: all(map(it.true, it.of("verify"))),
    "R3": lambda it: all((it.status(e.about) == "ok") == e.said.endswith(" ok") for e in it.of("verify")),
    "R4": lambda it: all(map(it.mended, it.of("backtrack"))),
    "R5": lambda it: all(map(it.needs, it.of("backward"))),
    "R6": lambda it: all(map(it.reached, it.of("subgoal"))),
    "R7": lambda it: len(it.text.split()) <= 5 * len(it.plain.split()) and not it.repeats(),
    "R8": lambda it: {*it.need} <= {event.kind for event in it.events},
}


def rules(text, record, need=()):
    """Which of the rules a reflective chain keeps → {name: holds}. need: BEHAVIOURS that R8 asks for.

    answer: it is right · R1 so is the resolved chain · R2 each <verify> says something true, of the last
    definition · R3 its word is right · R4 each <backtrack> retracts a wrong node, which is then defined right
    · R5 each <backward> has the gold parents · R6 each <subgoal> is a gold node, and defined next · R7 at
    most 5 times as long as the resolved chain, no sentence twice in a row · R8 what is needed is there.
    """
    it = Reading(text, from_record(record) if isinstance(record, dict) else record, need)
    return {name: bool(it.sound and rule(it)) for name, rule in RULES.items()}


def passes(text, record, but=(), need=()):
    """Whether a chain keeps all rules but these."""
    return all(holds for name, holds in rules(text, record, need).items() if name not in but)


# ------------------------------------------------------------------------------------------------------------
# Reflective chains: stitched from tries


def equation(node, standing):
    """How a node follows from its operands, `3 * (a + b) = 3 * (4 + 5) = 27.`, or None. standing: {name:
    (letter, value as text)} of what is defined.
    """
    if not node.operands or not {*node.operands} <= standing.keys():
        return None
    constant = node.constant
    inner, outer = (node.operator, "") if constant is None else (node.operator[:-1], node.operator[-1])

    def written(terms):
        pairs = map(" * ".join, zip(terms[::2], terms[1::2]))
        joined = " + ".join(pairs) if inner == "*+" else f" {inner} ".join(terms)
        pair = [str(constant), f"({joined})" if inner else joined]
        return f" {outer} ".join(reversed(pair) if outer in "-/" else pair) if outer else joined

    letters, values = zip(*(standing[name] for name in node.operands))
    return " = ".join(dict.fromkeys([written(letters), written(values), str(node.value)])) + "."


class Stitcher:
    """A reflective chain in the making."""

    def __init__(self, problem, rand, behaviours):
        self.problem, self.rand, self.behaviours = problem, rand, behaviours
        self.gold, self.nodes = gold_graph(problem)[0], {node.name: node for node in problem.nodes}
        self.out = []  # sentences
        self.standing, self.bound = {}, set()  # {name: (letter, value)}; all letters that stand for something
        self.spare = None  # letters to go on with; in the first try, its own

    def say(self, behaviour, sentence):
        self.out += [sentence] * (behaviour in self.behaviours)

    def say_parents(self, name):
        self.say("backward", f"<backward> {name} needs {', '.join(self.nodes[name].operands)}.")

    def check(self, name, word):
        """Say a <verify> of the last definition. A total some of whose members were forgotten has none."""
        claims = stated(self.problem, name), equation(self.nodes[name], self.standing)
        if claims := [*filter(None, claims)]:
            self.say("verify", f"<verify> {self.rand.choice(claims)} {word}")
        else:
            self.say_parents(name)

    def follow(self, text, checked=()):
        """Go on with a try up to its first wrong definition → (its name, its letter), or None where there is
        none, or it is one of what stands. What stands is not told again.

        checked: names that are followed by a <verify>.
        """
        chain, letters = chain_of(text), {}
        steps = iter(parse_solution(chain).steps)
        for sentence, definition in sentences(chain):
            if not definition:
                self.out += [sentence] * (sentence not in self.out)
                continue
            name, var, equations = definition.groups()
            step, node = next(steps), self.gold.get(name)
            wrong = node and status(step, node) != "ok"
            if name in self.standing and wrong:
                return None
            if name in self.standing:
                letters[var] = self.standing[name][0]
                continue
            lefts = dict.fromkeys([var, *re.findall(r"(?:^|; )(?:so )?([A-Za-z]) =", equations)])
            new = {letter: next(self.spare, letter) if self.spare else letter for letter in lefts}
            letters.update(new)
            equations = LONE.sub(lambda letter: letters.get(letter[0], letter[0]), equations)
            if node:
                self.say("subgoal", f"<subgoal> {name}.")
            self.out.append(f"Define {name} as {letters[var]}; {equations}.")
            if wrong:
                return name, letters[var]
            self.standing[name] = letters[var], str(step.value and step.value[1])
            self.bound.update(new.values())
            if name in checked:
                self.check(name, "ok")

    def retract(self, name, letter):
        """Say that a definition is wrong, and take it back: letters go on from its own."""
        self.check(name, "not")
        self.say("backtrack", f"<backtrack> {letter}.")
        i = LETTERS.index(letter)
        self.spare = iter([v for v in LETTERS[i:] + LETTERS[:i] if v not in self.bound])


def stitch(wrongs, right, problem, rand, behaviours=BEHAVIOURS):
    """Tries at a problem → the record of one reflective chain, or None where they cannot be joined.

    It follows each wrong try up to its first wrong definition and retracts that, then the right one to its
    end. The sentences are the tries' own, but for the letters: they go on from the one retracted, as if the
    error had not been made. wrongs: 0 to 3 of them, in any order. behaviours: what is added, <subgoal> before
    each node, <backward> of the question, <verify> after each error and after one or two right definitions,
    wherever they are: that something is verified must not tell whether it is right.
    """
    if not all(map(is_sound, (*wrongs, right))) or not is_right(right, problem):
        return None
    it = Stitcher(problem, rand, behaviours)
    it.say_parents(problem.query)
    names = [node.name for node in problem.nodes]
    checked = rand.sample(names, min(len(names), rand.randint(1, 2)))
    for wrong in sorted(wrongs, key=partial(right_steps, problem)):  # so that few err in what stands
        error = it.follow(wrong, checked)
        if not error:
            return None
        it.retract(*error)
    it.follow(right, checked)
    return solved(problem, " ".join(it.out))


def solved(problem, chain):
    """The record of a right chain. `unlearned`: of what comes before the last definition that is retracted
    all but control sentences and definitions that stand, so that no error is learned, but how it is noticed.
    """
    text = f" {chain} </solution> <answer> {problem.answer} </answer>"
    events = resolve(text)[1]
    last = max((event.span[1] for event in events if not event.stands), default=0)
    kept = [event for event in events if event.stands and event.span[1] <= last]
    unlearned = [[start, end] for start, end in gaps(kept, last) if start < end]
    prompt = f"<question> {problem.problem} {problem.question} </question> <solution>"
    return {"prompt": prompt, "completion": text, "unlearned": unlearned}


def right_steps(problem, text):
    """How many definitions of a try come before its first wrong one."""
    verdict = verify(text, problem)
    statuses = [verdict.nodes.get(step.name, "ok") for step in verdict.parsed.steps]
    return len([*takewhile("ok".__eq__, statuses)])


def is_sound(text):
    """Whether a try is plain, and its definitions are those that the judge reads."""
    chain = chain_of(text)
    mine = [definition.groups()[:2] for _, definition in sentences(chain) if definition]
    return "<" not in chain and agree(mine, parse_solution(chain).steps)


def reflective(source, problem, rand, tries=None):
    """Up to CHAINS different ones, stitched from the model's tries, that keep the rules. Of a hundred 35 have
    no error, 50 one, 15 two, as far as there are wrong tries.
    """
    tries = source.tries.get(problem.id, ()) if tries is None else tries
    rights = [text for text in tries if is_right(text, problem)]
    wrongs = [text for text in tries if text not in rights]
    behaviours, records = [it for it in BEHAVIOURS if it not in source.without], {}
    for errors in rand.choices((0, 1, 2), (35, 50, 15), k=CHAINS) if rights else ():
        errors = min(errors, len(wrongs)) * ("backtrack" in behaviours)  # or none can be retracted
        record = stitch(rand.sample(wrongs, errors), rand.choice(rights), problem, rand, behaviours)
        if record and passes(record["completion"], problem, source.but):
            records[record["completion"]] = record
    return [*records.values()]


def reflective_gold(source, problem, rand):
    """The same of the gold solution and corrupted ones."""
    wrongs = [corrupted(0, source, problem, rand) for _ in range(2)]
    return reflective(source, problem, rand, [problem.solution, *filter(None, wrongs)])


def padded(source, problem, rand):
    """One without errors whose control sentences are full stops, as many as these have tokens."""
    records = []
    for record in reflective(replace(source, without=("backtrack",)), problem, rand):
        chain = chain_of(record["completion"])
        for event in reversed(resolve(chain)[1]):
            start, end = event.span
            if event.kind != "define":
                stops = "." * (source.size(chain[start:end]) + 1 - source.size(" ."))
                chain = f"{chain[:start]} {stops}{chain[end:]}"
        records.append(solved(problem, chain.strip()))
    return records


# ------------------------------------------------------------------------------------------------------------
# A model's own right tries, by how difficult the problem is for it

# How many right tries are wanted of a problem that has c in n tries. ceil: ⌈n(1 − c/n)⌉, so few of what is
# easy; uniform, prop: as DART-Math's Uniform and Prop2Diff (arXiv 2407.13690), with 4 and up to 8 of them.
WANTED = {
    "all": lambda c, n: n,
    "ceil": lambda c, n: n - c,
    "uniform": lambda c, n: 4,
    "prop": lambda c, n: 1 + math.ceil(7 * (n - c) / n),
}


def own(source, problem, rand):
    """As many of its right tries as the rule wants, the shortest ones. One that reflects must keep R2 to R6,
    too: what it retracts was wrong.
    """
    tries = source.tries.get(problem.id, ())
    rights = sorted((text for text in tries if passes(text, problem, but=("R7",))), key=len)
    kept = rights[: WANTED[source.select](len(rights), len(tries))] if rights else []
    return [solved(problem, chain_of(text)) for text in kept]


# ------------------------------------------------------------------------------------------------------------
# Records


def concluded(name, value):
    """The sentence that says what a quantity is."""
    return f"The {name} {'is' if 'number of' in name else 'number'} {value}."


def conclusion(problem):
    """What the expert text concludes; from op 4 on half of them say an intermediate result first."""
    rand = random.Random(stream_key("conclusion", problem.problem, problem.question))
    between = [node for node in problem.nodes if node.operands and node.name != problem.query]
    said = rand.sample(between, min(1, len(between))) if problem.op >= 4 and rand.random() < 0.5 else []
    said = [(node.name, node.value) for node in said] + [(problem.query, problem.answer)]
    return " ".join(concluded(name, value) for name, value in said)


def tell(layout, thought, source, problem, rand):
    """The texts of a record with a thought, if there is one."""
    chain = thought(source, problem, rand)
    told = layout.format(statements=problem.problem, chain=chain, conclusion=conclusion(problem))
    return [] if chain is None else [{"prompt": "", "completion": " " + told}]


THOUGHTS = {  # corrupted: in one node
    "gold": gold, "shuffled": shuffled, "filler": filler, "facts": facts, "corrupted": partial(corrupted, 0),
    "corrupted-half": partial(corrupted, 0.5), "corrupted-all": partial(corrupted, 1),
    "raw": partial(sampled, lambda text, problem: True), "self": partial(sampled, concludes),
    "judged": partial(sampled, is_right)}  # fmt: skip
KINDS = {  # (source, problem, rand) → the texts of its records
    "plain": partial(tell, PLAIN, gold), "prefix": partial(tell, PREFIX, gold),
    **{kind: partial(tell, THOUGHT, thought) for kind, thought in THOUGHTS.items()},
    "reflective": reflective, "reflective-gold": reflective_gold, "padded": padded, "own": own}  # fmt: skip
TAKE_TRIES = ("raw", "self", "judged", "reflective", "padded", "own")


@dataclass(frozen=True)
class Source:
    """What texts are made of. size: text → its tokens; tries: {id of a problem: sampled solutions}; select:
    of WANTED, for own; without, but: BEHAVIOURS and RULES that reflective chains do without.
    """

    mixture: Mixture
    seed: int = 0
    split: str = "mid"
    size: object = count_words
    tries: dict | None = None
    select: str = "all"
    without: tuple = ()
    but: tuple = ()

    def __post_init__(self):
        if any(choice["mode"] == "reverse" for choice in self.mixture.choices):
            raise UserError("texts are made of forward problems only: write 'mode forward' in the mixture")

    def records(self, kind, index):
        """The texts of problem number `index`, as tasks.read_records takes them: at most one, but of a
        model's own tries. The same index tells the same problem in every kind; where it has no text of this
        kind, there is one record without completion. tokens: of prompt and completion.
        """
        problem = self.mixture.problem(self.seed, index, self.split)
        rand = random.Random(stream_key("texts", kind, problem.problem, problem.question))
        about = {"kind": kind, "op": problem.op, "template": problem.template, "id": problem.id}
        records = [{**told, **about} for told in KINDS[kind](self, problem, rand) or [{}]]
        for record in records:
            record["tokens"] = self.size(record.get("prompt", "") + record.get("completion", ""))
        return records


def read_tries(path):
    """JSONL of {"id": …, "texts": […]} → {id: texts}. Raises UserError."""
    tries = {}
    for line, record in read_jsonl(path):
        id, texts = record.get("id"), record.get("texts")
        if not isinstance(id, str) or not isinstance(texts, list) or {*map(type, texts)} - {str}:
            raise UserError(f"{path}, line {line}: expected an `id` and a list of `texts`")
        if id in tries:
            raise UserError(f"{path}, line {line}: {id} has its tries in a line before")
        tries[id] = texts
    return tries


# ------------------------------------------------------------------------------------------------------------
# Command line


@dataclass(frozen=True)
class Options(CheckedOptions):
    kind: str = opt("gold", "what is written", tuple(KINDS), group="what to write")
    mixture: str = opt("op 2-4; world mini", f"which problems: {KEYS_HELP}")
    split: str = opt("mid", "which split", tuple(SPLITS))
    seed: int = opt(0, "seed of the sequence of problems")
    n: int = opt(1, "problems (0: until there are as many tokens as the mixture says)")
    tries: str | None = opt(None, "JSONL of sampled solutions, {id, texts}: for " + ", ".join(TAKE_TRIES))
    select: str = opt("all", "how many of a problem's right tries are kept, for own", tuple(WANTED))
    without: str = opt("", "behaviours that reflective chains do without, such as verify,subgoal")
    but: str = opt("", "of R1 to R8: rules that chains need not keep, such as R3,R4")
    like: str | None = opt(None, "JSONL of records: write texts of their ids alone")
    tokenizer: str | None = opt(None, "tokenizer.json to count tokens by (none: words, digits and signs)")
    jsonl: bool = opt(False, "print records instead of readable text", group="where", free=True)
    out: str | None = opt(None, "write texts.jsonl and summary.json to this folder instead", free=True)
    resume_or_start: bool = opt(False, "as of other scripts: texts are written anew", free=True)
    threads: int = opt(0, "as of other scripts: there is one thread", free=True)
    replicas: int = opt(1, "as of other scripts: there is one replica", free=True)

    def source(self):
        """Raises UserError if the options do not go together, or a file cannot be read."""
        source = Source(Mixture.parse(self.mixture), self.seed, self.split, select=self.select)
        if (self.kind in TAKE_TRIES) != (self.tries is not None):
            raise UserError(f"--kind {self.kind} {'takes no' if self.tries else 'needs'} --tries FILE")
        if self.select != "all" and self.kind != "own":
            raise UserError(f"--select {self.select} is for --kind own")
        if (self.without or self.but) and "reflective" not in self.kind:
            raise UserError("--without and --but are for reflective kinds")
        if not self.n and (self.tries or self.like or not source.mixture.tokens):
            raise UserError("--n 0 needs tokens in the mixture, and goes with neither --tries nor --like")
        if self.tokenizer:
            tokenizer = Tokenizer.load(self.tokenizer)
            source = replace(source, size=lambda text: len(tokenizer.encode(text)))
        without, but = named("behaviour", BEHAVIOURS, self.without), named("rule", RULES, self.but)
        return replace(source, tries=self.tries and read_tries(self.tries), without=without, but=but)


def named(what, known, text):
    """ "R3,R4" → ("R3", "R4"), which must be among the known. Raises UserError."""
    names = tuple(filter(None, text.split(",")))
    return tuple(look_up(what, {name: name for name in known}, name) for name in names)


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__.partition("\n\nAn expert text")[0])
    source, drawn, written, tokens, lines = o.source(), Counter(), Counter(), 0, []
    ids = o.like and {record.get("id") for _, record in read_jsonl(o.like)}
    for index in range(o.n) if o.n else count():
        records = source.records(o.kind, index)
        if o.like and records[0]["id"] not in ids:
            continue
        drawn[records[0]["op"]] += 1
        for record in records:
            tokens += record["tokens"]
            if "completion" in record:
                written[record["op"]] += 1
                told = json.dumps(record) if o.jsonl or o.out else readable(record)
                lines.append(f"{told}\n") if o.out else print(told)
        if not o.n and tokens >= source.mixture.tokens:
            break
    if not written:
        raise UserError(f"no text of kind {o.kind}: are the files of this mixture, seed and split?")
    yields = {op: (written[op], drawn[op]) for op in sorted(drawn)}
    if o.out:
        summary = {"texts": sum(written.values()), "text_tokens": tokens, "yields": yields}
        write_atomic(Path(o.out, "texts.jsonl"), "".join(lines))
        write_atomic(Path(o.out, "summary.json"), json.dumps(summary) + "\n")
    said = ", ".join(f"op {op} {n} of {problems}" for op, (n, problems) in yields.items())
    print(f"{o.kind}, {tokens} tokens: {said}", file=sys.stderr)


def readable(record):
    head = "--- {kind}, op {op}, {template}, {id}, {tokens} tokens".format(**record)
    return on_terminal(f"{head}\n{(record['prompt'] + record['completion']).strip()}\n")


if __name__ == "__main__":
    run_script(main)
