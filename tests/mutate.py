"""Texts to judge, near and far from a gold solution: what the fuzzers feed to verify.py and to its oracle."""

import random
import re

import datagen

PIECES = re.compile(r"[A-Za-z]+|[0-9]+|<[^<> ]*>|\[[A-Z]*\]|\s|.", re.DOTALL)
SNIPPETS = (
    "Define", " as ", "so ", ";", ".", "=", " = ", "+", "-", "*", "/", "(", ")", "x", "a", "Z", "0", "7", "12", "999999999999999", "1000000000000000",
    "Answer:", "Answer: 7.", "<answer>", "</answer>", "<answer> 7 </answer>", "<solution>", "</solution>", "<question>", "</question>", "[EOS]", "[PAD]",
    "we don't know its value yet but will find it out later", "We know", "Solution: x = 3.", "Define a as b;", "so a = 3.", "- -", "--", "3.5", "'", "\n", "\t",
    "\u00a0", "é", "٣", "\0", " ", "  ", "3*x + 2", "x = x", "= = ", "[B[BOS]OS]", "as a as b; so b = 4", "DefineX", "_", "2 x", "a b", "The answer is 7.", "3 > 4", "####", "equals",
)  # fmt: skip


def problem(rand):
    """A problem of a random kind, small more often than large."""
    return datagen.generate(rand.randrange(1 << 20), 0, op=2 + min(rand.randrange(12), rand.randrange(12)), mode=rand.choice(datagen.MODES),
                            layers=rand.choice((2, 2, 3)), template=rand.choice(list(datagen.TEMPLATES)))  # fmt: skip


def gold(rand, p):
    """A gold solution, plain, as a document holds it, or (which is wrong) after a question of its own."""
    if rand.random() < 0.5:
        return p.solution
    solution, _, answer = p.solution.rpartition("Answer: ")
    completion = f" {solution.strip()} </solution> <answer> {answer.rstrip('.')} </answer>[EOS]"
    prompt = f"[BOS]<question> {p.problem} {p.question} </question> <solution>"
    return completion if rand.random() < 0.9 else prompt + completion


CLOSINGS = (
    "We know {r} = {n}, so {f} = {n} and x = {n} - {b} = {c}.",
    "So {f} = {n}, which gives {a}*x = {c} and x = {c} / {a} = {x}.",
    "{n} = {f}. Solution: x = {x}.",
    "We know {r} = {f} and {r} = {n}; so {a}*x + 0 = {c}, x = {x}.",
    "We know the total is {n}, hence x is {x}.",
    "We know {r} = {n}, hence x = {x}.",
    "0*x = 0, so x = {x}.",
    "x = x. {f} = {n}. x = {x}.",
    "{f} = {n}, x = {x}, so {r} = {r}.",
    "{f} = {n}, x = {x} and {f} = {f}.",
    "{f} ≠ {n}. x = {x}.",
    "Then {f} = {n} and 2 + x = {x} + 2 = 2 + x, x = {x}.",
    "",
)


def vary(rand, text, p):
    """Another way to say the same, or nearly: a plan, a closing, a relation of the same value, parts in
    another order.
    """
    kind = rand.randrange(5)
    if kind == 0:
        node = rand.choice(p.nodes)
        names = [*node.operands] if rand.random() < 0.8 else [rand.choice(p.nodes).name]
        rand.shuffle(names)
        plan = f"To find {node.name} we need {', '.join(names)}. "
        return plan + text if rand.random() < 0.5 else text.replace("Define", f"{plan}Define", 1)
    if kind == 1:
        (a, b), answer = (
            p.nodes[-1].value if isinstance(p.nodes[-1].value, tuple) else (0, p.nodes[-1].value),
            p.answer,
        )
        closing = rand.choice(CLOSINGS).format(
            r=rand.choice("abcxyz") if rand.random() < 0.2 else "".join(re.findall(r"We know (\w) =", text)),
            n=a * answer + b, f=f"{a}*x + {b}" if rand.random() < 0.5 else f"{b} + {a}*x", a=a, b=b, c=a * answer, x=answer)  # fmt: skip
        return re.sub(r"We know .*(?=Answer:|</solution>)", lambda m: closing + " ", text)
    if kind == 2:

        def swap(m):
            rest = int(m[5]) - int(m[4])
            return f"so {m[1]} = {rest} + {m[3]} = {rest} + {m[4]} = {m[5]}"

        return re.sub(r"so (\w) = (\d+) [*] (\w) = \d+ [*] (\d+) = (\d+)", swap, text, count=1)
    if kind == 3:
        return re.sub(r"= (\w [-+*/] \w) = (\d+ [-+*/] \d+) =", r"= \2 = \1 =", text, count=1)
    return text.replace("; so ", "; ") if rand.random() < 0.5 else f"{text} {rand.choice(SNIPPETS)}"


def mutate(rand, p):
    """A gold solution with 0 to 4 changes, each by its grammar's own units; now and then one of random
    characters.
    """
    if rand.random() < 0.03:
        return "".join(
            rand.choice(SNIPPETS) if rand.random() < 0.7 else chr(rand.randrange(256))
            for _ in range(rand.randrange(60))
        )
    text = gold(rand, p)
    if rand.random() < 0.3:
        text = vary(rand, text, p)
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
        elif change == 6 and (
            letters := [n for n, part in enumerate(parts) if len(part) == 1 and part.isalpha()]
        ):
            parts[rand.choice(letters)] = (
                parts[rand.choice(letters)] if rand.random() < 0.7 else rand.choice("xaZ")
            )
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
