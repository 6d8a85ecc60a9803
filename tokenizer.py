"""Byte-level BPE: trained here, encoded by tiktoken.

    python tokenizer.py problems.jsonl --vocab-size 2200 --out tokenizer.json

Ids: the ten special tokens, then the 256 bytes, then the merges in the order in which they were learned: the
id of a merge is its rank, and a text is encoded by always merging the adjacent pair of lowest rank (Sennrich
et al. 2016).
"""

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from lab.options import CheckedOptions, UserError, opt, parse_options, read_each, run_script, write_atomic

import tiktoken

SPECIALS = (
    "[PAD]", "[UNK]", "[BOS]", "[EOS]",
    "<question>", "</question>", "<solution>", "</solution>", "<answer>", "</answer>")  # fmt: skip
FIRST_MERGE = len(SPECIALS) + 256
# A merge never crosses a pre-token: a word with the space before it, a run of signs or one digit likewise, a
# whitespace. Digits stay apart (the first with its space) so that a number is read as its digits; words stay
# apart so that a name is found by its parts. All that is not ASCII counts as letters. Lengths are bounded
# because tiktoken is quadratic in a pre-token's length.
PATTERN = " ?[A-Za-z\x80-\U0010ffff]{1,48}| ?[^A-Za-z0-9 \t\r\n\x80-\U0010ffff]{1,48}| ?[0-9]|[ \t\r\n]"

KNOWN_WORDS, LONGEST_WORD = 1 << 14, 24  # a tokenizer remembers the ids of so many, of so many characters


class Tokenizer:
    """text ↔ ids. merges: the byte strings learned, in order."""

    def __init__(self, merges):
        self.merges = tuple(merges)
        self.special_ids = {name: i for i, name in enumerate(SPECIALS)}
        self.ranks = {bytes([b]): len(SPECIALS) + b for b in range(256)}
        self.ranks.update((token, FIRST_MERGE + i) for i, token in enumerate(self.merges))
        self.vocab_size = FIRST_MERGE + len(self.merges)
        if len(self.ranks) != 256 + len(self.merges):
            raise UserError("tokenizer: a merge is listed twice")
        parts = dict(pat_str=PATTERN, mergeable_ranks=self.ranks, special_tokens=self.special_ids)
        self._encoding, self._known = tiktoken.Encoding("reasoning-lab", **parts), {}
        content = json.dumps([PATTERN, SPECIALS, [m.hex() for m in self.merges]])
        self.hash = blake2b(content.encode(), digest_size=8).hexdigest()
        self.pad_id, _, self.bos_id, self.eos_id = (self.special_ids[name] for name in SPECIALS[:4])

    def encode(self, text):
        """str → list of ids. A lone surrogate, which no UTF-8 text can hold, is read as U+FFFD.

        tiktoken's ids, looked up word by word where all words are known: no pre-token or special token has a
        space but at its start, and in the problems' world words repeat.
        """
        ids, known, words = [], self._known, text.split(" ")
        words[0] += " "  # marks the only one that has no space before it
        try:
            for word in words:
                ids += known[word]
        except KeyError:
            ids = self._encoding.encode(text, allowed_special="all")
            self._learn(words)
        return ids

    def _learn(self, words):
        """Know them, if they are short, until there are enough: memory is bounded."""
        for word in words[: KNOWN_WORDS - len(self._known)]:
            if word not in self._known and len(word) <= LONGEST_WORD:
                text = word[:-1] if word.endswith(" ") else " " + word
                self._known[word] = self._encoding.encode(text, allowed_special="all")

    def decode(self, ids):
        """ids → str; bytes that are no UTF-8 become U+FFFD. Raises UserError for an id out of range."""
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise UserError(f"token id {i} is not within 0 to {self.vocab_size - 1}")
        return self._encoding.decode(ids)

    def to_json(self):
        """Readable JSON; bytes are written as the Latin-1 characters of the same number."""
        head = {"type": "byte-level BPE", "hash": self.hash, "vocab_size": self.vocab_size}
        merges = [m.decode("latin-1") for m in self.merges]
        content = {**head, "specials": SPECIALS, "pattern": PATTERN, "merges": merges}
        return json.dumps(content, indent=1) + "\n"

    def save(self, path):
        write_atomic(path, self.to_json())

    @classmethod
    def load(cls, path):
        """Raises UserError if the file is missing, damaged or not what its hash says."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            tokenizer, expected = cls([m.encode("latin-1") for m in content["merges"]]), content["hash"]
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"tokenizer {path} cannot be read ({type(error).__name__}: {error})") from None
        if tokenizer.hash != expected:
            raise UserError(f"tokenizer {path} is damaged: its hash is {tokenizer.hash}, not {expected}")
        return tokenizer


def train_bpe(texts, vocab_size):
    """Learn merges from an iterable of texts → Tokenizer of `vocab_size` tokens, specials and bytes included.

    Counts the pairs once over the unique pre-tokens; a merge then updates only the words that hold the pair.
    Ties go to the pair of lower ids. Where the text has too few pairs, the vocabulary is smaller.
    Raises UserError if vocab_size is below 266.
    """
    if vocab_size < FIRST_MERGE:
        raise UserError(f"specials and bytes alone are {FIRST_MERGE} tokens: {vocab_size} are too few")
    special, word = re.compile("|".join(map(re.escape, SPECIALS))), re.compile(PATTERN)
    counts = Counter()
    for text in texts:
        for part in special.split(text):
            counts.update(word.findall(part))
    # A word is a string whose characters number its tokens, so that `replace` merges a pair
    words = [(word.encode("utf-8", "replace").decode("latin-1"), n) for word, n in counts.items()]
    pairs, where = Counter(), defaultdict(set)  # how often a pair occurs; the words that hold it, or did
    for w, (ids, n) in enumerate(words):
        count_pairs(pairs, where, w, ids, n)
    index = {bytes([b]): b for b in range(256)}  # of each token: its id - len(SPECIALS)
    tokens = list(index)
    while len(tokens) < vocab_size - len(SPECIALS) and pairs:
        a, b = pair = min(pairs, key=lambda p: (-pairs[p], p))
        merged = tokens[ord(a)] + tokens[ord(b)]
        new = index.setdefault(merged, len(tokens))  # spelt in two ways it is one token, for tiktoken as well
        if new == len(tokens):
            tokens.append(merged)
        for w in where.pop(pair):
            ids, n = words[w]
            count_pairs(pairs, where, w, ids, -n)
            words[w] = (ids.replace(a + b, chr(new)), n)
            count_pairs(pairs, where, w, words[w][0], n)
    return Tokenizer(tokens[256:])


def count_pairs(pairs, where, w, ids, n):
    """Word w, which has these ids, occurs n times more (n < 0: fewer)."""
    for pair in zip(ids, ids[1:]):
        pairs[pair] += n
        if not pairs[pair]:
            del pairs[pair]
        where[pair].add(w)


# ------------------------------------------------------------------------------------------------------------
# Command line


@dataclass(frozen=True)
class Options(CheckedOptions):
    input: str | None = opt(None, "JSONL file to train on")
    keys: str = opt("problem,question,solution", "its keys to read, separated by commas")
    vocab_size: int = opt(2200, "tokens in all, specials and bytes included", within=f"[{FIRST_MERGE}, inf)")
    out: str = opt("out/tokenizer.json", "file to write")


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__, positional="input")
    if o.input is None:
        raise UserError("no text to train on: python tokenizer.py records.jsonl")
    keys = o.keys.split(",")
    texts = list(read_each(o.input, lambda record, text: " ".join(text(key).strip() for key in keys)))
    if not any(text.strip() for text in texts):
        raise UserError(f"{o.input} has no text to train on")
    tokenizer = train_bpe(texts, o.vocab_size)
    tokenizer.save(o.out)
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    size = sum(len(text.encode("utf-8", "replace")) for text in texts)
    rate = f"{tokens / len(texts):.1f} tokens a record, {size / tokens:.2f} bytes a token"
    print(f"{o.out}: {tokenizer.vocab_size} tokens, hash {tokenizer.hash}; {rate}")


if __name__ == "__main__":
    run_script(main)
