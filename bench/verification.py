"""A model that verifies: does it compare, does it read again, or does it say `not` at random?

    python bench/verification.py out/sft/latest --maker out/base/latest --mixture "op 3-8; world mini"

Definitions are put before the checkpoint, each followed by a <verify>. Those of `maker`, the model whose
tries it learned from, on problems held out: the first wrong one of a try, and that of the same quantity in
another, right try. And planted ones, as of evaluate.py --ask. A wrong one has another `form` than it should
(an operator, how many operands), or is made of another `quantity`, or has but another `value`.

    given   the <verify> makes the true claim: how probable is `not`? What is left is to compare.
    own     the checkpoint writes the claim itself, greedily: does that end in the true value (true), in the
            one that was written (same), and does it say `not`? That takes reading again.

AUC: how often a wrong definition has a higher probability of `not` than a right one, .5 by chance; of `own`,
where a claim was written.
"""

import random
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parent.parent
sys.path[:1] = [str(ROOT)]

from lab.device import DeviceOptions, run_torch_script, setup  # noqa: E402
from lab.options import UserError, opt, parse_options, stream_key  # noqa: E402

import torch  # noqa: E402

from chains import ask  # noqa: E402
from checkpoint import load_checkpoint  # noqa: E402
from data import prompt_text  # noqa: E402
from datagen import Mixture, held_out, parse_ops  # noqa: E402
from report import print_table  # noqa: E402
from rollout import roll_out  # noqa: E402
from sampler import generate  # noqa: E402
from texts import BEHAVIOURS, Reading, Stitcher, chain_of, is_sound, sentences  # noqa: E402

LONGEST = 48  # tokens of a claim
WORDS = ("ok", "not")


@dataclass(frozen=True)
class Options(DeviceOptions):
    checkpoint: str | None = opt(None, "folder of a model that verifies")
    maker: str | None = opt(None, "folder of the model whose errors these are")
    mixture: str | None = opt(None, "problems (default: what the checkpoint was trained on)")
    op: str | None = opt(None, "operations (default: those of the mixture)")
    problems: int = opt(100, "problems of each number of operations", within="[1, inf)")
    samples: int = opt(8, "tries of each", within="[1, inf)")
    max_new_tokens: int = opt(320, "longest try, in tokens", within="[1, inf)")


@dataclass
class Case:
    """A definition to be verified."""

    problem: object
    kind: tuple  # (whose, what is wrong with it: "right", "form", "quantity" or "value")
    name: str
    told: str  # the chain up to its end
    values: tuple  # (the true one, the one that is written)
    claim: str  # of a true <verify>, without `ok` or `not`
    given: float = 0.0  # probability of `not` after that
    own: tuple = ()  # the value that its own claim ends in, the probability of `not`


def form(chain, name):
    """How a quantity is defined at last, without letters and numbers."""
    found = [d["define"] for _, d in sentences(chain_of(chain)) if d and d["name"] == name]
    return re.sub(r"[0-9]+|\b[A-Za-z]\b", "", found[-1]) if found else None


def case_of(whose, problem, told, claim):
    """→ Case, or None where the last definition is of no gold quantity."""
    reading = Reading(told, problem, ())
    last, kind = reading.of("define")[-1], "right"
    if not reading.sound or not reading.status(last):
        return None
    gold, step = reading.gold[last.name], last.step
    if reading.status(last) == "wrong":
        kind = "value" if step.parents == gold.parents else "quantity"
        if form(told, last.name) != form(problem.solution, last.name):
            kind = "form"
    values = tuple(it.value and int(it.value[1]) for it in (gold, step))
    return Case(problem, (whose, kind), last.name, told, values, claim)


def put(problem, text, rand):
    """A try, up to its first wrong definition or its end → (told, claim, whether it is wrong), or None where
    nothing can be claimed.
    """
    it = Stitcher(problem, rand, BEHAVIOURS)
    it.say_parents(problem.query)
    error = it.follow(text)
    name = error[0] if error else next(reversed(it.standing), "")
    if name not in it.nodes:
        return None
    it.check(name, "")
    claim = it.out.pop().strip()
    return (" " + " ".join(it.out), claim, bool(error)) if claim.startswith("<verify>") else None


def up_to(text, name):
    """A try, up to the definition of a quantity, or nothing if it has none."""
    pairs = sentences(chain_of(text))
    ends = [i for i, (_, definition) in enumerate(pairs, 1) if definition and definition["name"] == name]
    return " ".join(sentence for sentence, _ in pairs[: ends[0]]) if ends else ""


def own_cases(problem, tries, rand):
    """The first wrong definition of each try; and that quantity where another try at the problem, which was
    right so far, defines it right: it tells as much before.
    """
    sound = [text for text in tries if is_sound(text)]
    for text in sound:
        found = put(problem, text, rand)
        wrong = found and found[2] and case_of("own", problem, *found[:2])
        if not wrong:
            continue
        others = [put(problem, up_to(other, wrong.name), rand) for other in sound if other != text]
        rights = [case_of("own", problem, *it[:2]) for it in others if it and not it[2]]
        rights = [it for it in rights if it and it.name == wrong.name]
        if rights:
            yield from (wrong, rand.choice(rights))


def planted_cases(problem, seed, number):
    for how in ("affirmed", "denied"):
        stands = ask(how, problem, seed, number)[1]
        head, verify, claim = stands.rpartition(" <verify>")
        if verify:
            yield case_of("planted", problem, head, f"<verify>{claim.rpartition(' ')[0]}")


@torch.no_grad()
def doubt(it, case, claim):
    """The probability of `not`, of `not` and `ok`, after a claim."""
    words = [it.tokenizer.encode(f" {word}")[-1] for word in WORDS]
    ids = it.tokenizer.encode(f"{prompt_text(case.problem)}{case.told} {claim}")
    logits = it.model.logits(torch.tensor([ids], device=it.model.lm_head.weight.device))[0, -1, words]
    return float(logits.float().softmax(-1)[1])


def examine(it, cases):
    """Fill in what the checkpoint says of each."""
    prompts = [it.tokenizer.encode(f"{prompt_text(c.problem)}{c.told} <verify>") for c in cases]
    how = dict(stop_id=it.tokenizer.eos_id, max_new_tokens=LONGEST, temperature=0.0, seed=0)
    for case, ids in zip(cases, generate(it.model, prompts, **how).ids):
        case.given = doubt(it, case, case.claim)
        if said := re.match(r" ?([^.<]*\.) (?:ok|not)\b", it.tokenizer.decode(ids)):
            value = re.search(r"(\d+)\.$", said[1])
            case.own = value and int(value[1]), doubt(it, case, f"<verify> {said[1]}")


def average(numbers):
    return mean(numbers) if numbers else float("nan")


def above(some, others):
    """AUC: how often one of `some` is larger than one of `others`, a half where they are equal."""
    return average([(a > b) + (a == b) / 2 for a in some for b in others])


def row(kind, cases, right):
    written = [c for c in cases if c.own]
    claimed = [c for c in written if c.own[0] is not None]
    true, same = ([c.own[0] == c.values[which] for c in claimed] for which in (0, 1))
    given = average([c.given for c in cases]), above([c.given for c in cases], [c.given for c in right])
    own = [c.own[1] for c in written]
    said = average(true), average(same), average(own), above(own, [c.own[1] for c in right if c.own])
    numbers = [f"{float(number):.3f}" for number in (*given, *said)]
    return [" ".join(kind), str(len(cases)), *numbers[:2], str(len(claimed)), *numbers[2:]]


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__, positional="checkpoint")
    if o.checkpoint is None or o.maker is None:
        raise UserError(
            "two checkpoints: python bench/verification.py out/sft/latest --maker out/base/latest"
        )
    device = setup(o)
    it, maker = (load_checkpoint(path, device, o.dtype, o.attention) for path in (o.checkpoint, o.maker))
    if any(len(it.tokenizer.encode(f" {word}")) > 1 for word in WORDS):
        raise UserError(
            f"{it.path}: its tokenizer has no words ok and not: it has learned from no reflective chain"
        )
    mixture = Mixture.parse(o.mixture or it.options["mixture"])
    problems = held_out(mixture, parse_ops(o.op) if o.op else mixture.ops, o.problems, o.seed, "dev")
    stream, how = (o.seed, "verification"), dict(max_new_tokens=o.max_new_tokens)
    tries = roll_out(maker.model, maker.tokenizer, problems, o.samples, stream, **how)
    cases = []
    for number, problem in enumerate(problems):
        rand = random.Random(stream_key(o.seed, "verification", number))
        some = [it.text for it in tries[number * o.samples : (number + 1) * o.samples]]
        cases += own_cases(problem, some, rand)
        cases += planted_cases(problem, o.seed, number)
    cases, by_kind = [case for case in cases if case], defaultdict(list)
    examine(it, cases)
    for found in cases:
        by_kind[found.kind].append(found)
    print(f"{it.path}: {len(problems)} problems")
    head = ["whose, what is wrong", "n", "given: not", "AUC", "own: n", "true", "same", "not", "AUC"]
    rows = [row(kind, by_kind[kind], by_kind[kind[0], "right"]) for kind in sorted(by_kind)]
    print_table([head, *rows], left=1)


if __name__ == "__main__":
    run_torch_script(main)
