"""Documents → packed rows. A batch is a pure function of (seed, step), whatever the number of workers.

    mixture ──► problems ──► documents ──► rows of `row_tokens`, several documents each ──► batches

Shapes: B rows, T positions. No torch here: worker processes start fast and hand over numpy arrays.
"""

import multiprocessing
import os
import random
import re
import signal
import threading
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import cli
import datagen

IGNORE = -100  # target of a position that is not trained on
CHUNK_TOKENS = 1 << 15  # documents are packed about this many tokens at a time: the more, the less padding


# ----------------------------------------------------------------------------------------------------------------------
# Mixtures


@dataclass(frozen=True)
class Mixture:
    """What to train on: `Mixture.parse("op 2-4:3, 5-6:1; template zoo:0.9, school:0.1; mode forward; tokens 6M")`.

    Semicolons separate keys, commas choices, a colon gives a choice its weight (1 if none; weights are normalised).
    A range of ops shares its weight evenly. Keys: op, template, mode, layers; tokens (the budget; k, M and B are understood);
    and the knobs of datagen.World: distractors 1-3, literals 1-9, operators +-*, bound 99, degree 4, letters ordered.
    """

    ops: tuple  # ((op, probability), ...)
    templates: tuple = (("zoo", 1.0),)
    modes: tuple = (("forward", 1.0),)
    layers: tuple = ((2, 1.0),)
    tokens: int | None = None
    knobs: tuple = ()  # of datagen.World, as items
    spec: str = ""

    @classmethod
    def parse(cls, spec):
        """Raises UserError if the spec does not parse."""
        fields, knobs = {}, {}
        for part in filter(None, (p.strip() for p in spec.split(";"))):
            key, _, value = part.partition(" ")
            value = value.strip()
            if key in fields or key in knobs:
                raise cli.UserError(f"mixture {spec!r}: {key} is given twice")
            if key == "op":
                choices = [(datagen.parse_ops(c), w) for c, w in _weighted(value, spec)]
                fields["op"] = _normalise([(op, w / len(ops)) for ops, w in choices for op in ops], spec)
            elif key in ("template", "mode", "layers"):
                known = {"template": tuple(datagen.TEMPLATES), "mode": datagen.MODES, "layers": ("2", "3")}[key]
                choices = _weighted(value, spec)
                for choice, _ in choices:
                    if choice not in known:
                        raise cli.UserError(f"mixture {spec!r}: unknown {key} {choice!r}: choose from {', '.join(known)}")
                fields[key] = _normalise([(int(c) if key == "layers" else c, w) for c, w in choices], spec)
            elif key == "tokens":
                fields[key] = parse_count(value)
            elif key in ("distractors", "literals"):
                match = re.fullmatch(r"(\d{1,2})-(\d{1,2})", value, re.ASCII)
                if not match:
                    raise cli.UserError(f"mixture {spec!r}: {key} {value!r} is not a range such as 1-5")
                knob = {"distractors": "distractors", "literals": "literal"}[key]
                knobs["min_" + knob], knobs["max_" + knob] = int(match[1]), int(match[2])
            elif key in ("bound", "degree"):
                if not re.fullmatch(r"\d{1,6}", value, re.ASCII):
                    raise cli.UserError(f"mixture {spec!r}: {key} {value!r} is not a number")
                knobs["max_in_degree" if key == "degree" else key] = int(value)
            elif key in ("operators", "letters"):
                knobs[key] = value
            else:
                raise cli.UserError(f"mixture {spec!r}: unknown key {key!r}: choose from op, template, mode, layers, tokens, "
                                    "distractors, literals, bound, degree, operators, letters")  # fmt: skip
        if "op" not in fields:
            raise cli.UserError(f"mixture {spec!r}: no op given; write for example 'op 2-10; template zoo'")
        datagen.World(**knobs)  # raises if a knob is out of range
        return cls(fields.pop("op"), **{name if name in ("tokens", "layers") else name + "s": f for name, f in fields.items()},
                   knobs=tuple(knobs.items()), spec=spec)  # fmt: skip

    def arguments(self, rand):
        """Draw the keyword arguments of one `datagen.generate`. rand: a function that returns uniform floats in [0, 1)."""
        return dict(op=_choose(self.ops, rand), template=_choose(self.templates, rand), mode=_choose(self.modes, rand),
                    layers=_choose(self.layers, rand), **dict(self.knobs))  # fmt: skip


def parse_count(text):
    """ "500k" → 500000. Raises UserError."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)([kMB]?)", text, re.ASCII)
    if not match or float(match[1]) == 0:
        raise cli.UserError(f"{text!r} is not a number of tokens such as 500k, 6M or 10B")
    return round(float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}[match[2]])


def _weighted(text, spec):
    out = []
    for choice in text.split(","):
        name, colon, weight = choice.strip().partition(":")
        if not re.fullmatch(r"\d+(\.\d+)?", weight if colon else "1", re.ASCII) or not name:
            raise cli.UserError(f"mixture {spec!r}: {choice.strip()!r} is not a choice or choice:weight")
        out.append((name.strip(), float(weight) if colon else 1.0))
    return out


def _normalise(choices, spec):
    total = sum(w for _, w in choices)
    if total <= 0:
        raise cli.UserError(f"mixture {spec!r}: the weights add up to 0")
    return tuple((c, w / total) for c, w in choices if w)


def _choose(choices, rand):
    if len(choices) == 1:
        return choices[0][0]
    u = rand()
    for choice, p in choices:
        u -= p
        if u < 0:
            return choice
    return choices[-1][0]


# ----------------------------------------------------------------------------------------------------------------------
# Documents


def prompt_text(record):
    """What the model is given. record: a Problem or a dict with its keys."""
    problem, question = get(record, "problem"), get(record, "question")
    return f"[BOS]<question> {problem.strip()} {question.strip()} </question> <solution>"


def completion_text(record):
    """What the model writes after the prompt: the solution, then the answer once, in its tags."""
    solution, _, answer = get(record, "solution").rpartition("Answer:")
    return f" {solution.strip()} </solution> <answer> {answer.strip().rstrip('.')} </answer>[EOS]"


def encode(tokenizer, record):
    """A record → (ids of its document, length of the prompt)."""
    prompt = tokenizer.encode(prompt_text(record))
    return prompt + tokenizer.encode(completion_text(record)), len(prompt)


def get(record, key):
    """A key of a record, be it a Problem or a dict."""
    return record[key] if isinstance(record, dict) else getattr(record, key)


def read_records(path):
    """GSM-Infinite records of a JSONL file. Raises UserError with the line number of one that lacks a key or an answer."""
    records = []
    for number, record in cli.read_jsonl(path):
        for key in ("problem", "question", "solution"):
            if not isinstance(record.get(key), str):
                raise cli.UserError(f"{path}, line {number}: key {key!r} is missing or no text")
        if "Answer:" not in record["solution"]:
            raise cli.UserError(f"{path}, line {number}: the solution has no 'Answer: N.'")
        records.append(record)
    if not records:
        raise cli.UserError(f"{path} has no records")
    return records


# ----------------------------------------------------------------------------------------------------------------------
# Packing


class Batch(NamedTuple):
    tokens: np.ndarray  # (B, T) int32
    targets: np.ndarray  # (B, T) int32: the next token of the same document, or IGNORE
    doc_start: np.ndarray  # (B, T) int32: position of the first token of each token's document


def place(lengths, row_tokens, rows=None):
    """Best-fit-decreasing bin packing. Returns (row, start) of each document, None for one that fits in no row, and the rows.

    rows: how many rows there are; None: as many as all the documents need.
    """
    places, room = [None] * len(lengths), [row_tokens] * (rows or 0)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        n = lengths[i]
        row = min((r for r in range(len(room)) if room[r] >= n), key=room.__getitem__, default=None)
        if row is None:
            if rows is not None:
                continue
            row = len(room)
            room.append(row_tokens)
        places[i] = (row, row_tokens - room[row])
        room[row] -= n
    return places, len(room)


def fill(documents, places, rows, row_tokens, pad_id, solution_only=False):
    """Write documents, (ids, prompt length) pairs, to their places → Batch (rows, row_tokens).

    solution_only: train on the completion alone. Padding is a document of its own and never a target.
    """
    tokens = np.full((rows, row_tokens), pad_id, np.int32)
    targets = np.full((rows, row_tokens), IGNORE, np.int32)
    doc_start = np.full((rows, row_tokens), -1, np.int32)
    for (ids, prompt), place in zip(documents, places):
        if place is None:
            continue
        (row, start), n = place, len(ids)
        tokens[row, start : start + n] = ids
        first = prompt - 1 if solution_only else 0  # the position that predicts the first trained token
        targets[row, start + first : start + n - 1] = ids[first + 1 :]
        doc_start[row, start : start + n] = start
    padding = (doc_start < 0).argmax(1)[:, None]
    doc_start = np.where(doc_start < 0, padding, doc_start).astype(np.int32)
    return Batch(tokens, targets, doc_start)


@dataclass(frozen=True)
class Source:
    """Everything that determines the training documents. Small, so that it travels to worker processes."""

    mixture: Mixture | None
    tokenizer: object
    seed: int
    rows: int  # B
    row_tokens: int  # T
    solution_only: bool = False
    split: str = "train"
    replay: Mixture | None = None  # an earlier stage's mixture …
    replay_share: float = 0.0  # … and its share of the documents
    records: tuple = ()  # instead of a mixture: external records
    rank: int = 0  # of `size` processes, each of which gets its own share of a batch's rows
    size: int = 1

    @property
    def batches_per_chunk(self):
        return max(1, CHUNK_TOKENS // (self.rows * self.row_tokens))

    @property
    def chunks_per_batch(self):
        """A large batch is made of several chunks, of equally many rows."""
        most = max(1, self.rows * self.row_tokens // CHUNK_TOKENS)
        return next(n for n in range(most, 0, -1) if self.rows % n == 0)

    def share(self, step):
        """This process's rows of the batches from chunk `step` on: Batch with a leading axis of batches. All shares in order are the whole."""
        n = self.chunks_per_batch
        # A process makes only its own chunks, or, where they cannot be shared out evenly, all of them and keeps its own rows.
        even = n % self.size == 0
        chunks, rows = (range(of)[self.rank * of // self.size : (self.rank + 1) * of // self.size] for of in (n, self.rows))
        made = [self.chunk(step * n + i) for i in (chunks if even else range(n))]
        batch = Batch(*(np.concatenate(arrays, 1) for arrays in zip(*made)))
        return batch if even else Batch(*(a[:, rows.start : rows.stop] for a in batch))

    def documents(self, chunk):
        """The endless documents of one chunk: (ids, prompt length). Pure function of (self, chunk)."""
        rand = random.Random(f"{self.seed}/{self.split}/{chunk}").random
        index = chunk << 20
        while True:
            if self.records:
                record = self.records[int(rand() * len(self.records))]
            else:
                mixture = self.replay if self.replay_share and rand() < self.replay_share else self.mixture
                record = datagen.generate(self.seed, index, split=self.split, **mixture.arguments(rand))
            index += 1
            ids, prompt = encode(self.tokenizer, record)
            if len(ids) > self.row_tokens:
                raise cli.UserError(f"a document has {len(ids)} tokens but a row only {self.row_tokens}; raise --row-tokens")
            yield ids, prompt

    def chunk(self, chunk):
        """`batches_per_chunk` batches, or a part of one, packed together. Returns Batch with a leading axis of batches."""
        n, capacity, documents = self.batches_per_chunk, 0, []
        rows = n * self.rows // self.chunks_per_batch
        stream = self.documents(chunk)
        while capacity <= rows * self.row_tokens:  # the last few find no room
            documents.append(next(stream))
            capacity += len(documents[-1][0])
        places, _ = place([len(ids) for ids, _ in documents], self.row_tokens, rows)
        packed = fill(documents, places, rows, self.row_tokens, self.tokenizer.pad_id, self.solution_only)
        # Best fit leaves like lengths together: deal the rows out at random.
        order = np.random.default_rng([self.seed, chunk]).permutation(rows)
        return Batch(*(a[order].reshape(n, rows // n, self.row_tokens) for a in packed))


def batches(source, step=0, workers=0):
    """Yield this process's rows of the batch of step, step + 1, …: Batch (B / size, T). With workers > 0, processes prepare them ahead."""
    n = source.batches_per_chunk
    chunk, skip = divmod(step, n)
    for packed in _chunks(source, chunk, workers):
        for i in range(skip, n):
            yield Batch(*(a[i] for a in packed))
        skip = 0


def _chunks(source, chunk, workers):
    if not workers:
        while True:
            yield source.share(chunk)
            chunk += 1
    # spawn: a forked child of a process with torch's threads may hang
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (source, os.getpid())) as pool:
        ahead = deque()
        try:
            while True:
                while len(ahead) < 2 * workers + 1:
                    ahead.append(pool.submit(_work, chunk))
                    chunk += 1
                yield ahead.popleft().result()
        except BrokenProcessPool:
            raise cli.UserError("a process that prepares batches died, perhaps for want of memory: --workers 0 prepares them in the trainer") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_source = None  # in a worker process: its Source


def _start_worker(source, trainer):
    global _source
    _source = source
    for number in (signal.SIGINT, signal.SIGTERM):  # the trainer gets them too, and finishes its step
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(trainer,), daemon=True).start()


def _end_with(trainer):
    """End this process when the trainer is gone, however it went."""
    while os.getppid() == trainer:
        time.sleep(1)
    os._exit(0)


def _work(chunk):
    return _source.share(chunk)


# ----------------------------------------------------------------------------------------------------------------------
# Contamination


def structure(problem):
    """A hash of the reasoning graph with its numbers but without its words: equal for one problem told in two ways."""
    known = {}
    for node in problem.nodes:
        parts = [node.operator, node.constant, node.value, node.name == problem.unknown, *(known[name] for name in node.operands)]
        known[node.name] = blake2b(repr(parts).encode(), digest_size=8).hexdigest()
    return known[problem.nodes[-1].name]


def audit(mixture, n, seed=0):
    """Draw n problems of each split → {(split, split): {"exact", "canonical", "structural": how many problems both hold}}.

    exact: the same text; canonical: the same but for the order of statements; structural: the same graph and numbers in any
    words, of those with 5 operations or more.
    """
    keys = {}
    for split in datagen.SPLITS:
        rand, keys[split] = random.Random(f"{seed}/audit").random, {"exact": set(), "canonical": set(), "structural": set()}
        for i in tqdm(range(n), desc=split, leave=False):
            p = datagen.generate(seed, i, split=split, **mixture.arguments(rand))
            keys[split]["exact"].add((p.problem, p.question))
            keys[split]["canonical"].add((p.template, p.mode, p.question, tuple(sorted(datagen.statements_of(p.problem)))))
            if p.op >= 5:
                keys[split]["structural"].add(structure(p))
    return {(a, b): {kind: len(keys[a][kind] & keys[b][kind]) for kind in keys[a]} for a, b in combinations(keys, 2)}


@dataclass(frozen=True)
class Options:
    audit: bool = cli.opt(False, "count the problems that two splits share")
    n: int = cli.opt(5000, "problems of each split")
    mixture: str = cli.opt("op 2-20; template zoo, school, festival; mode forward, reverse; layers 2, 3", "what to draw them from")
    seed: int = cli.opt(0, "seed of the problems")


def main():
    o = cli.parse_options(Options, description="Look for problems that training and evaluation share.")
    if not o.audit:
        raise cli.UserError("nothing to do: python data.py --audit")
    cli.at_least(o, 1, "n")
    shared = audit(Mixture.parse(o.mixture), o.n, o.seed)
    print(f"{o.n} problems of each split: {o.mixture}\n{'splits':13} {'exact':>6} {'canonical':>10} {'structural (op >= 5)':>21}")
    for (a, b), counts in shared.items():
        print(f"{a:5} - {b:5} {counts['exact']:6} {counts['canonical']:10} {counts['structural']:21}")
    if any(counts["exact"] or counts["canonical"] for counts in shared.values()):
        raise cli.UserError("two splits share a problem: this must not be; please report it")


if __name__ == "__main__":
    cli.run(main)
