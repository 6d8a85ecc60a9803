"""How a problem is put to a model, if not as in training, and what is noted of its tries beside whether they
are right.

    text        as an expert text begins: is a thought opened, and what the text would say concluded?
    sound       a part of the gold solution stands already, told as reflective chains are
    planted     … and its last definition is wrong: is it retracted?
    denied      sound, and a <verify> that says `not`
    affirmed    planted, and a <verify> that says `ok`

Denied and affirmed say whether a verification decides what follows, or is decoration.
"""

import math
import random
from collections import Counter
from functools import partial
from statistics import mean

from lab.options import UserError, stream_key

import torch

from attention import Layout
from data import IGNORE, pack, to_document
from datagen import LETTERS, to_record
from texts import BEHAVIOURS, Reading, Stitcher, chain_of, concluded, corrupted, sentences
from verify import TAGS


def text(problem, rand):
    """→ (what the prompt is made of, what of the solution stands already)"""
    return {**to_record(problem), "prompt": f" {problem.problem}"}, ""


def begun(planted, word, problem, rand):
    """Up to any definition. planted: that one is wrong; word: of a <verify> of it, or None. The same rand
    stops at the same definition. Nothing stands where no error leaves whole numbers.
    """
    wrong = corrupted(0, None, problem, rand)
    if wrong is None:
        return problem, ""
    pairs = list(zip(sentences(chain_of(problem.solution)), sentences(wrong)))
    last = next(i for i, (right, wrong) in enumerate(pairs) if right[1] and right[0] != wrong[0])
    it, told = Stitcher(problem, rand, BEHAVIOURS), [pair[planted] for pair in pairs[: last + 1]]
    it.say_parents(problem.query)
    it.follow(" ".join(sentence for sentence, _ in told))
    if word:
        it.check(told[-1][1]["name"], word)
    return problem, " " + " ".join(it.out)


ASKS = {"text": text, "sound": partial(begun, False, None),
        "planted": partial(begun, True, None), "denied": partial(begun, False, "not"),
        "affirmed": partial(begun, True, "ok")}  # fmt: skip


def ask(how, problem, seed, number):
    """Problem `number` of an evaluation, put in this way, or as in training if that is None → as `text`."""
    rand = random.Random(stream_key(seed, "ask", problem.op, number))
    return ASKS[how](problem, rand) if how else (problem, "")


def check_asked(how, problems):
    """Raise UserError if one of these problems cannot be put in this way: that needs graph and solution."""
    for problem in problems if how else ():
        defined = {step["name"] for _, step in sentences(chain_of(problem.solution or "")) if step}
        names = {node.name for node in problem.nodes or ()}
        if problem.mode == "reverse" or not names or (how != "text" and not names <= defined):
            needs = "" if how == "text" else ", and a solution that defines them"
            told = f"--ask {how} needs the `nodes` of a forward problem{needs}"
            raise UserError(f"{told}: {problem.id or 'one of them'} is none")


def note(how, text, stands, problem):
    """What there is in a try, counted. stands: what of it was given.

    opens: a thought, at once; concludes: at its end what the expert text says. right, wrong: definitions of
    gold quantities; backtracks; lost, caught: those that retract a right one, a wrong one; repaired, broken:
    quantities that had a definition retracted, and are right in the end but not at first, or the other way
    round; hit: the last definition that was given is retracted before a second one follows it.
    """
    if how == "text":
        told = TAGS.sub(" ", text).strip()
        ends = told.endswith(concluded(problem.query, problem.answer))
        return {"opens": told.startswith("<thought>"), "concludes": ends}
    it, given = Reading(text, problem, ()), len(" ".join(stands.split()))
    if not it.sound:
        return {}
    definitions, backtracks = it.of("define"), it.of("backtrack")
    said, taken = Counter(map(it.status, definitions)), Counter(it.status(b.about) for b in backtracks)
    first = {d.name: it.status(d) for d in reversed(definitions)}
    retracted = {d.name for d in definitions if not d.stands}
    changes = [(first[name], it.verdict.nodes.get(name) == "ok") for name in retracted]
    found = {"right": said["ok"], "wrong": said["wrong"], "backtracks": len(backtracks)}
    found |= {"lost": taken["ok"], "caught": taken["wrong"]}
    found |= {"repaired": changes.count(("wrong", True)), "broken": changes.count(("ok", False))}
    if last := [d for d in definitions if d.span[1] <= given][-1:]:
        later = it.after(last[0])
        until = later[1].span if len(later) > 1 else (math.inf,)
        found["hit"] = any(b.about is last[0] and b.span < until for b in backtracks)
    return found


def majority(answers, answer):
    """How often the commonest of 1, 2, 3 … answers is right, of equally common ones the first: the mean over
    as many disjoint parts of so many as there are.
    """

    def right(some):
        counts = Counter(said for said in some if said is not None)
        return bool(counts) and counts.most_common(1)[0][0] == answer

    n = len(answers)
    return [mean(right(answers[i : i + m]) for i in range(0, n - m + 1, m)) for m in range(1, n + 1)]


def depth(pairs):
    """[(gold quantities, defined ones)] of tries → [n, Σx, Σy, Σx², Σxy] of their logarithms: the slope of y
    on x is how a chain grows with what it must hold.
    """
    pairs = [(math.log(gold), math.log(max(1, defined))) for gold, defined in pairs]
    sums = (sum(values) for values in zip(*((x, y, x * x, x * y) for x, y in pairs)))
    return [len(pairs), *(round(total, 5) for total in sums)] if pairs else [0] * 5


def account(how, texts, lengths, verdicts, begun, problems):
    """What there is in tries, problem-major lists → dict. noted: as `note`, summed; length: mean tokens;
    majority: how often 1, 2, 3 … tries agree on the right answer; depth: of all tries, and of wrong
    ones.
    """
    each, noted, votes, grown = len(texts) // len(problems), Counter(), [], {True: [], False: []}
    for i, (stands, problem) in enumerate(zip(begun, problems)):
        tries = slice(i * each, (i + 1) * each)
        votes.append(majority([verdict.parsed.answer for verdict in verdicts[tries]], problem.answer))
        for said, verdict in zip(texts[tries], verdicts[tries]) if problem.nodes else ():
            noted.update(note(how, said, stands, problem))
            grown[verdict.correct].append((len(problem.nodes), len(verdict.parsed.steps)))
    return {
        "noted": dict(noted),
        "length": mean(lengths),
        "majority": [round(mean(right), 5) for right in zip(*votes)],
        "depth": depth(grown[True] + grown[False]),
        "depth_wrong": depth(grown[False]),
    }


@torch.no_grad()
def gold_logps(model, tokenizer, problems, row_tokens=2048, rows=4):
    """Log-probability of each gold solution, one a problem: a lower bound of that of any right one, which may
    tell its lines in another order. Where a letter comes first it is that of any letter: which one it is does
    not matter, but that it is one.
    """
    letters = [ids[0] for letter in LETTERS if len(ids := tokenizer.encode(f" {letter}")) == 1]
    documents = [to_document(problem, tokenizer, solution_only=True) for problem in problems]
    for number, document in enumerate(documents):
        first = dict.fromkeys(letters, True)
        named = [trained and first.pop(id, False) for id, trained in zip(document.ids, document.trained)]
        document.values = {"problem": [number] * len(named), "named": named}
    longest = max(row_tokens, *(len(document.ids) for document in documents))
    batch, total = pack(documents, longest, tokenizer.pad_id), torch.zeros(len(problems))
    for micro in batch.micro_batches(rows, next(model.parameters()).device):
        mask = micro.targets != IGNORE
        logp = model.logits(micro.tokens, Layout.of(micro.doc_start), mask).float().log_softmax(-1)  # (N, V)
        chosen = logp.gather(-1, micro.targets[mask][:, None])[:, 0]
        any_letter = logp[:, letters].logsumexp(-1)
        chosen = torch.where(micro.values["named"][mask] > 0, any_letter, chosen)
        total.index_add_(0, micro.values["problem"][mask].long().cpu(), chosen.cpu())
    return total.tolist()
