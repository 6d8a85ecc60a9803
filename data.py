"""Record → document → packed rows: one endless sequence of batches, a function of the seed alone, that can be
taken up anywhere.

    mixture ─problems─► documents ─► rows of `row_tokens`, several documents each ─► batches

Every row of a batch is filled from a lane of its own: row r of all batches holds documents r, r + B, r + 2B,
… of the one sequence. So processes and workers share the work by rows, and no document is dropped because of
its length.

Shapes: B rows, T positions.
"""

import random
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, count, islice, pairwise

from lab.options import UserError, stream_key
from lab.worker import worked_out

import numpy as np
import torch

from datagen import Mixture

IGNORE = -100  # target of a position that is not trained on
AHEAD = 32  # documents of a lane to choose the next one of a row from: the more, the less padding


# ------------------------------------------------------------------------------------------------------------
# Documents


@dataclass(slots=True)
class Document:
    """A text as token ids; which of them are targets; and numbers that belong to them, such as GRPO's old
    log-probabilities.
    """

    ids: list
    trained: list  # of bools
    values: dict = field(default_factory=dict)  # {name: one number per id}
    goes_on: bool = False  # from its prompt: the last document before it in its row that does not go on


def get(record, key):
    """A key of a record, be it a Problem or a dict."""
    return record.get(key) if isinstance(record, dict) else getattr(record, key, None)


def prompt_text(record):
    """What the model is given: the problem in its tags, or the `prompt` of a text to continue."""
    if get(record, "prompt") is not None:
        return "[BOS]" + get(record, "prompt")
    text = f"{(get(record, 'problem') or '').strip()} {get(record, 'question').strip()}".strip()
    return f"[BOS]<question> {text} </question> <solution>"


def completion_text(record):
    """What the model writes after it: the solution, then the answer once, in its tags; or the record's
    `completion`.
    """
    if get(record, "completion") is not None:
        return get(record, "completion") + "[EOS]"
    solution, _, answer = get(record, "solution").rpartition("Answer:")
    return f" {solution.strip()} </solution> <answer> {answer.strip().rstrip('.')} </answer>[EOS]"


def with_solutions(records):
    """Those that say how they are solved: some have an answer alone."""
    return [record for record in records if "Answer:" in str(get(record, "solution"))]


def to_document(record, tokenizer, solution_only=False):
    """Record → Document. solution_only: only the completion is trained on. The first token is no target.

    Nor is what the record's `unlearned` names, [[start, end], …]: spans of the completion's characters.
    """
    text = completion_text(record)
    cuts = [0, *chain(*(get(record, "unlearned") or ())), len(text)]
    parts = [prompt_text(record), *(text[a:b] for a, b in pairwise(cuts))]  # learned and unlearned in turn
    ids = [tokenizer.encode(part) for part in parts]
    trained = [[i % 2 > 0 or not (i or solution_only)] * len(some) for i, some in enumerate(ids)]
    return Document([*chain(*ids)], [*chain(*trained)])


# ------------------------------------------------------------------------------------------------------------
# Packing


@dataclass(slots=True)
class Batch:
    """Packed rows, as numpy arrays or, a micro-batch, as torch tensors."""

    tokens: object  # (B, T) int64
    targets: object  # (B, T) int64: the next token of the same document, or IGNORE
    doc_start: object  # (B, T) int32: position of the first token of each token's document
    values: dict  # {name: (B, T) float32: at each target the number of the token predicted there, else 0}
    trained: int  # how many tokens are trained on
    prompts: tuple = ()  # if documents go on from prompts: where each token's begins and ends, (B, T) int32

    def micro_batches(self, rows, device):
        """Yield Batches of so many rows at a time, as tensors on the device; those without a target are left
        out.

        A GPU gets micro-batches of one shape, for which its code is compiled once: rows of padding make up
        for missing ones. A CPU gets no more than it needs: what stands after the last target is cut off.
        """

        def move(array, padding=0):
            array = array[some]
            if device.type == "cuda" and len(array) < rows:
                missing = np.full((rows - len(array), array.shape[1]), padding, array.dtype)
                array = np.concatenate((array, missing))
            tensor = torch.from_numpy(np.ascontiguousarray(array))
            return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

        for i in range(0, len(self.tokens), rows):
            trained = (self.targets[i : i + rows] != IGNORE).nonzero()
            if len(trained[0]):
                columns = trained[1].max() + 1 if device.type == "cpu" else None
                some = slice(i, i + rows), slice(columns)
                arrays = move(self.tokens), move(self.targets, IGNORE), move(self.doc_start)
                values = {name: move(array) for name, array in self.values.items()}
                prompts = tuple(move(array) for array in self.prompts)
                yield Batch(*arrays, values, len(trained[0]), prompts)


def check_length(n, row_tokens, what="a document"):
    if n > row_tokens:
        raise UserError(f"{what} has {n} tokens but a row only {row_tokens}; raise --row-tokens")


def pack(documents, row_tokens, pad_id):
    """All the documents, packed into as few rows as best fit decreasing finds → Batch (rows, row_tokens).

        lengths 5, 3, 2, 2 and rows of 6 →  | 5 5 5 5 5 · |  | 3 3 3 2 2 · |  | 2 2 · · · · |

    Raises UserError if a document is longer than a row.
    """
    rows, room = [], []
    for document in sorted(documents, key=lambda document: -len(document.ids)):
        n = len(document.ids)
        check_length(n, row_tokens)
        if n > max(room, default=-1):
            rows.append([])
            room.append(row_tokens)
        r = min((r for r, left in enumerate(room) if left >= n), key=room.__getitem__)
        rows[r].append(document)
        room[r] -= n
    return fill(rows, row_tokens, pad_id)


def pack_groups(groups, row_tokens, pad_id):
    """Groups of documents that go on from one prompt, [(prompt's ids, documents)] → Batch (rows, row_tokens).

    A prompt stands once before as many of its documents as the row holds; the others follow in the next row,
    after the prompt again. Prompt p of 3 with documents of 2, 2 and 3 tokens, rows of 8:

        | p p p 1 1 2 2 · |  | p p p 3 3 3 · · |

    No prompt and document may be longer than a row together.
    """
    rows, room = [], 0
    for prompt, documents in groups:
        opening, here = Document(prompt, [False] * len(prompt)), False  # whether it is in the last row
        for document in documents:
            if len(document.ids) + (0 if here else len(prompt)) > room:
                rows.append([])
                room, here = row_tokens, False
            if not here:
                rows[-1].append(opening)
                room, here = room - len(prompt), True
            rows[-1].append(document)
            room -= len(document.ids)
    return fill(rows, row_tokens, pad_id)


def fill(rows, row_tokens, pad_id):
    """Rows of documents → Batch. Padding is a document of its own and never a target."""
    shape = (len(rows), row_tokens)
    tokens, targets = np.full(shape, pad_id, np.int64), np.full(shape, IGNORE, np.int64)
    doc_start, prompt_start, prompt_end = np.zeros((3, *shape), np.int32)
    values = {name: np.zeros(shape, np.float32) for name in (rows[0][-1].values if rows else ())}
    for r, documents in enumerate(rows):
        at, prompt = 0, (0, 0)
        for document in documents:
            end = at + len(document.ids)
            tokens[r, at:end], doc_start[r, at:end] = document.ids, at
            if document.goes_on:
                prompt_start[r, at:end], prompt_end[r, at:end] = prompt
            else:
                prompt = at, end
            trained = np.array(document.trained[1:], bool)
            predicting = slice(at, at + len(trained))  # position t predicts the token at t + 1
            targets[r, predicting] = np.where(trained, document.ids[1:], IGNORE)
            for name, numbers in document.values.items():
                values[name][r, predicting] = np.where(trained, numbers[1:], 0.0)
            at = end
        doc_start[r, at:] = at
    prompts = (prompt_start, prompt_end) if prompt_end.any() else ()
    return Batch(tokens, targets, doc_start, values, int((targets != IGNORE).sum()), prompts)


# ------------------------------------------------------------------------------------------------------------
# The endless sequence


@dataclass(frozen=True)
class Source:
    """Everything that determines the training documents. Small, so that it travels to a worker process."""

    mixture: Mixture
    tokenizer: object
    seed: int
    rows: int  # B
    row_tokens: int  # T
    solution_only: bool = False
    split: str = "train"
    replay: Mixture | None = None  # an earlier stage's mixture …
    replay_share: float = 0.0  # … and its share of the documents
    repeat: float = 0.0  # share of the mixture's documents that are of its first `repeat_pool`, again
    repeat_pool: int = 1
    records: tuple = ()  # instead of the mixture's problems, each once an epoch

    def __post_init__(self):
        for record in self.records:  # one that is too long is found at the start, not when it is drawn
            self.fitting(record)

    def record(self, number):
        """Record `number` of the sequence."""
        replayed = int(number * self.replay_share)  # of the records before this one
        if int((number + 1) * self.replay_share) > replayed:
            return self.replay.problem(self.seed, number, self.split)
        if not self.records:
            return self.mixture.problem(self.seed, self.perhaps_earlier(number), self.split)
        epoch, place = divmod(number - replayed, len(self.records))
        return self.records[order_of_records(len(self.records), self.seed, epoch)[place]]

    def perhaps_earlier(self, number):
        """The number of the problem that stands there: this one, or for a share of them one of the first."""
        rand = random.Random(stream_key(self.seed, "repeat", number)) if self.repeat else None
        return rand.randrange(self.repeat_pool) if rand and rand.random() < self.repeat else number

    def document(self, number):
        return self.fitting(self.record(number))

    def fitting(self, record):
        """The document of a record. Raises UserError if it is longer than a row."""
        document = to_document(record, self.tokenizer, self.solution_only)
        check_length(len(document.ids), self.row_tokens, get(record, "where") or "a document")
        return document


@lru_cache(maxsize=4)
def order_of_records(n, seed, epoch):
    """The order of n records in an epoch."""
    order = list(range(n))
    random.Random(stream_key(seed, "records", epoch)).shuffle(order)
    return order


def lane(source, r, cursor):
    """Fill row r of one batch after another: yields (its documents, the cursor after them) without end.

    cursor: [next, waiting, waiting, …], numbers of the lane's documents. A row takes the one that has waited
    longest, and while it does not fit the longest that does.
    """
    numbers = chain(cursor[1:], count(cursor[0]))
    drawn = ((i, source.document(r + i * source.rows)) for i in numbers)
    waiting = dict(islice(drawn, AHEAD))
    while True:
        documents, room = [], source.row_tokens
        while fits := [i for i, document in waiting.items() if len(document.ids) <= room]:
            i = fits[0] if fits[0] == min(waiting) else max(fits, key=lambda i: len(waiting[i].ids))
            documents.append(waiting.pop(i))
            room -= len(documents[-1].ids)
            waiting.update([next(drawn)])
        yield documents, [max(waiting) + 1, *waiting]  # what was drawn last still waits


class Batches:
    """The rows `part` of every batch, from the cursors on: (Batch (len(part), T), cursors after it)."""

    def __init__(self, source, part, cursors):
        self.source, self.part, self.cursors = source, part, cursors

    def __iter__(self):
        lanes = [lane(self.source, r, cursor) for r, cursor in zip(self.part, self.cursors, strict=True)]
        for filled in zip(*lanes):
            rows, cursors = zip(*filled)
            yield fill(rows, self.source.row_tokens, self.source.tokenizer.pad_id), list(cursors)


def batches(source, part=None, cursors=None, workers=0):
    """Yield (Batch, cursors after it) for the rows `part` (a range; None: all) of one batch after another.

    cursors: where to go on, one a row of `part` (None: at the beginning). workers: 1 to prepare batches in a
    process of its own. Raises UserError if a document is longer than a row, or the worker dies.
    """
    part = range(source.rows) if part is None else part
    return worked_out(Batches(source, part, cursors or [(0,)] * len(part)), workers)
