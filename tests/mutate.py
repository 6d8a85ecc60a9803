"""Texts to judge, near and far from a gold solution: what the fuzzers feed to verify.py and to its oracle."""

import random
import re

import data
import datagen

PIECES = re.compile(r"[A-Za-z]+|[0-9]+|<[^<> ]*>|\[[A-Z]*\]|\s|.", re.DOTALL)
SNIPPETS = (
    "Define", " as ", "so ", ";", ".", "=", " = ", "+", "-", "*", "/", "(", ")", "x", "a", "Z", "0", "7", "12", "999999999999999", "1000000000000000",
    "Answer:", "Answer: 7.", "<answer>", "</answer>", "<answer> 7 </answer>", "<solution>", "</solution>", "<question>", "</question>", "[EOS]", "[PAD]",
    "we don't know its value yet but will find it out later", "We know", "Solution: x = 3.", "Define a as b;", "so a = 3.", "- -", "--", "3.5", "'", "\n", "\t",
    "\u00a0", "é", "٣", "\0", " ", "  ", "3*x + 2", "x = x", "= = ", "[B[BOS]OS]", "as a as b; so b = 4", "DefineX", "_", "2 x", "a b",
)  # fmt: skip


def problem(rand):
    """A problem of a random kind, small more often than large."""
    return datagen.generate(rand.randrange(1 << 20), 0, op=2 + min(rand.randrange(12), rand.randrange(12)), mode=rand.choice(datagen.MODES),
                            layers=rand.choice((2, 2, 3)), template=rand.choice(list(datagen.TEMPLATES)))  # fmt: skip


def gold(rand, p):
    return p.solution if rand.random() < 0.5 else data.completion_text(p) if rand.random() < 0.7 else data.prompt_text(p) + data.completion_text(p)


def mutate(rand, p):
    """A gold solution with 0 to 4 changes, each by its grammar's own units; now and then one of random characters."""
    if rand.random() < 0.03:
        return "".join(rand.choice(SNIPPETS) if rand.random() < 0.7 else chr(rand.randrange(256)) for _ in range(rand.randrange(60)))
    text = gold(rand, p)
    for _ in range(rand.choice((0, 1, 1, 1, 2, 3, 4))):
        kind = rand.randrange(9)
        if kind < 3:  # of sentences
            parts, glue = text.split(". "), ". "
        elif kind < 5:  # of clauses
            parts, glue = text.split(";"), ";"
        else:
            parts, glue = PIECES.findall(text), ""
        if not parts:
            continue
        i, j = rand.randrange(len(parts)), rand.randrange(len(parts))
        change = rand.randrange(8)
        if change == 0:
            del parts[i]
        elif change == 1:
            parts[i], parts[j] = parts[j], parts[i]
        elif change == 2:
            parts.insert(i, parts[j])
        elif change == 3:
            parts.insert(i, rand.choice(SNIPPETS))
        elif change == 4:
            parts[i] = rand.choice(SNIPPETS)
        elif change == 5 and (numbers := [n for n, part in enumerate(parts) if part.isdigit()]):
            n = rand.choice(numbers)
            parts[n] = str(int(parts[n][:9]) + rand.choice((-2, -1, 1, 10)))
        elif change == 6 and (letters := [n for n, part in enumerate(parts) if len(part) == 1 and part.isalpha()]):
            parts[rand.choice(letters)] = parts[rand.choice(letters)] if rand.random() < 0.7 else rand.choice("xaZ")
        elif change == 7 and (signs := [n for n, part in enumerate(parts) if part in "+-*/"]):
            parts[rand.choice(signs)] = rand.choice("+-*/")
        text = glue.join(parts)
    if rand.random() < 0.05:
        text = text[: rand.randrange(len(text) + 1)]
    return text


def case(seed):
    """(text, problem) number `seed`."""
    rand = random.Random(seed)
    p = problem(rand)
    return mutate(rand, p), p
