"""Byte-level BPE: trained here, encoded by tiktoken.

    python tokenizer.py problems.jsonl --vocab-size 2200 --out tokenizer.json

Ids: the ten special tokens, then the 256 bytes, then the merges in the order in which they were learned: the id of a merge
is its rank, and a text is encoded by always merging the adjacent pair of lowest rank (Sennrich et al. 2016).
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b

import tiktoken

import cli

SPECIALS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]", "<question>", "</question>", "<solution>", "</solution>", "<answer>", "</answer>")
FIRST_MERGE = len(SPECIALS) + 256
# A merge never crosses a pre-token: a word with the space before it, a run of signs or one digit likewise, one whitespace.
# Digits stay apart (the first with its space) so that a number is read as its digits; words stay apart so that a name is found by its parts.
# All that is not ASCII counts as letters. Lengths are bounded because tiktoken is quadratic in a pre-token's length.
PATTERN = " ?[A-Za-z\x80-\U0010ffff]{1,48}| ?[^A-Za-z0-9 \t\r\n\x80-\U0010ffff]{1,48}| ?[0-9]|[ \t\r\n]"


class Tokenizer:
    """text ↔ ids. merges: the byte strings learned, in order."""

    def __init__(self, merges):
        self.merges = tuple(merges)
        self.special_ids = {name: i for i, name in enumerate(SPECIALS)}
        self.ranks = {bytes([b]): len(SPECIALS) + b for b in range(256)}
        self.ranks.update((token, FIRST_MERGE + i) for i, token in enumerate(self.merges))
        self.vocab_size = FIRST_MERGE + len(self.merges)
        if len(self.ranks) != 256 + len(self.merges):
            raise cli.UserError("tokenizer: a merge is listed twice")
        self._encoding = tiktoken.Encoding("reasoning-lab", pat_str=PATTERN, mergeable_ranks=self.ranks, special_tokens=self.special_ids)
        content = json.dumps([PATTERN, SPECIALS, [m.hex() for m in self.merges]])
        self.hash = blake2b(content.encode(), digest_size=8).hexdigest()
        self.pad_id, self.unk_id, self.bos_id, self.eos_id = (self.special_ids[s] for s in SPECIALS[:4])

    def __reduce__(self):  # for worker processes: tiktoken's object does not travel
        return Tokenizer, (self.merges,)

    def encode(self, text, allow_special=True):
        """str → list of ids. allow_special=False: text that looks like a special token is ordinary text (for foreign input).

        A lone surrogate, which no UTF-8 text can hold, is read as U+FFFD.
        """
        if allow_special:
            return self._encoding.encode(text, allowed_special="all")
        return self._encoding.encode_ordinary(text)

    def decode(self, ids):
        """ids → str; bytes that are no UTF-8 become U+FFFD. Raises UserError for an id out of range."""
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise cli.UserError(f"token id {i} is not within 0 to {self.vocab_size - 1}")
        return self._encoding.decode(ids)

    def token_bytes(self, i):
        return self._encoding.decode_single_token_bytes(i)

    def to_json(self):
        """Readable JSON; bytes are written as the Latin-1 characters of the same number."""
        return json.dumps({
            "type": "byte-level BPE", "hash": self.hash, "vocab_size": self.vocab_size, "specials": SPECIALS, "pattern": PATTERN,
            "merges": [m.decode("latin-1") for m in self.merges]}, indent=1) + "\n"  # fmt: skip

    def save(self, path):
        cli.write_atomic(path, self.to_json())

    @classmethod
    def load(cls, path):
        """Raises UserError if the file is missing, damaged or not what its hash says."""
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            tokenizer = cls([m.encode("latin-1") for m in content["merges"]])
            expected = content["hash"]
        except OSError as error:
            raise cli.UserError(f"cannot read tokenizer {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise cli.UserError(f"tokenizer {path} is damaged ({type(error).__name__}: {error}); train it again") from None
        if tokenizer.hash != expected:
            raise cli.UserError(f"tokenizer {path} does not match its own hash ({tokenizer.hash}, not {expected}); train it again")
        return tokenizer


def train_bpe(texts, vocab_size):
    """Learn merges from an iterable of texts → Tokenizer of `vocab_size` tokens, specials and bytes included.

    Counts the pairs once over the unique pre-tokens; a merge then updates only the words that hold the pair. Ties go to the
    pair of lower ids. Where the text has fewer different pairs than asked for, the vocabulary is smaller.
    Raises UserError if vocab_size is below 266.
    """
    if vocab_size < FIRST_MERGE:
        raise cli.UserError(f"vocab size must be at least {FIRST_MERGE} (ten special tokens and 256 bytes), not {vocab_size}")
    chunk, counts = re.compile("|".join(map(re.escape, SPECIALS)) + "|" + PATTERN), Counter()
    for text in texts:
        counts.update(chunk.findall(text))
    for special in SPECIALS:
        counts.pop(special, None)
    tokens = [bytes([b]) for b in range(256)]  # index = id - len(SPECIALS)
    words = [(list(word.encode("utf-8", "replace")), n) for word, n in counts.items()]
    pairs, where = Counter(), {}  # how often a pair occurs; the words that hold it
    for w, (ids, n) in enumerate(words):
        for pair in zip(ids, ids[1:]):
            pairs[pair] += n
            where.setdefault(pair, set()).add(w)
    known = set(tokens)
    while len(tokens) < vocab_size - len(SPECIALS) and pairs:
        pair = max(pairs, key=lambda p: (pairs[p], -p[0], -p[1]))
        if pairs[pair] < 1:
            break
        merged = tokens[pair[0]] + tokens[pair[1]]
        if merged in known:  # two ways to spell one token: tiktoken knows it by its bytes, so the first way's id serves
            new = tokens.index(merged)
        else:
            new = len(tokens)
            tokens.append(merged)
            known.add(merged)
        for w in where.pop(pair):
            ids, n = words[w]
            for old in zip(ids, ids[1:]):
                pairs[old] -= n
                if not pairs[old]:
                    del pairs[old]
            i, out = 0, []
            while i < len(ids):
                if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
                    out.append(new)
                    i += 2
                else:
                    out.append(ids[i])
                    i += 1
            words[w] = (out, n)
            for fresh in zip(out, out[1:]):
                pairs[fresh] += n
                where.setdefault(fresh, set()).add(w)
    return Tokenizer(tokens[256:])


def bytes_to_unicode():
    """{byte: character}: the printable stand-ins of GPT-2's byte-level BPE, which the tokenizers library uses.

    Printable Latin-1 stands for itself, the other bytes for the characters from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (b for b in range(256) if b not in printable)
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def encode_slow(tokenizer, text):
    """The definition of encoding, for ordinary text: what tiktoken must agree with."""
    out = []
    for word in re.findall(PATTERN, text):
        parts = [bytes([b]) for b in word.encode("utf-8")]
        while len(parts) > 1:
            rank, i = min((tokenizer.ranks.get(a + b, 1 << 30), i) for i, (a, b) in enumerate(zip(parts, parts[1:])))
            if rank == 1 << 30:
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        out += [tokenizer.ranks[p] for p in parts]
    return out


@dataclass(frozen=True)
class Options:
    input: str | None = cli.opt(None, "JSONL file to train on")
    keys: str = cli.opt("problem,question,solution", "its keys to read, separated by commas")
    vocab_size: int = cli.opt(2200, "tokens in all, the ten specials and 256 bytes included")
    out: str = cli.opt("out/tokenizer.json", "file to write")


def main():
    o = cli.parse_options(Options, description="Train a byte-level BPE tokenizer on a JSONL file.", positional="input")
    if o.input is None:
        raise cli.UserError("no text to train on: python tokenizer.py records.jsonl")
    texts = []
    for number, record in cli.read_jsonl(o.input):
        missing = [k for k in o.keys.split(",") if not isinstance(record.get(k), str)]
        if missing:
            raise cli.UserError(f"{o.input}, line {number}: key {missing[0]!r} is missing or no text")
        texts.append(" ".join(record[k].strip() for k in o.keys.split(",")))
    if not texts:
        raise cli.UserError(f"{o.input} has no records")
    tokenizer = train_bpe(texts, o.vocab_size)
    tokenizer.save(o.out)
    n, size = sum(len(tokenizer.encode(t)) for t in texts), sum(len(t.encode()) for t in texts)
    print(f"{o.out}: {tokenizer.vocab_size} tokens, hash {tokenizer.hash}; {n / len(texts):.1f} tokens a record, {size / n:.2f} bytes a token")


if __name__ == "__main__":
    cli.run(main)
