"""What policies that do not reason earn under each reward: mean over held-out problems of every op and mode.

python bench/reward_hacks.py --n 50
"""

import random
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:1] = [str(ROOT)]  # not bench/, whose verify.py is another file

import cli  # noqa: E402

import datagen  # noqa: E402
import verify  # noqa: E402

REWARDS = ("outcome", "process", "mixed", "strict", "faithful")


@dataclass(frozen=True)
class Options:
    n: int = cli.opt(50, "problems of each op and mode")
    seed: int = cli.opt(0, "seed of the problems")


def honest(p, commonest, rand):
    return p.solution


def guess_the_commonest_answer(p, commonest, rand):
    return f"Answer: {commonest[p.mode, p.op]}."


def repeat_the_question(p, commonest, rand):
    return f"{p.problem} {p.question} Answer: {commonest[p.mode, p.op]}."


def spam_answers(p, commonest, rand):
    return " ".join(f"Answer: {n}." for n in range(1, 200))


def spam_tags(p, commonest, rand):
    return "".join(f"<answer> {n} </answer>" for n in range(1, 200))


def define_every_name(p, commonest, rand):
    """Every quantity that the text names, each as a number of the text; then a guess."""
    return _define(p, lambda name, numbers: rand.choice(numbers)) + f" Answer: {commonest[p.mode, p.op]}."


def copy_the_numbers(p, commonest, rand):
    """Every quantity that the text names, as the first number of its own statement, which for a literal is its value; then the last number."""
    numbers = [int(w.strip(".")) for w in p.problem.split() if w.strip(".").isdigit()]
    return _define(p, lambda name, numbers: numbers[0]) + f" Answer: {numbers[-1] if numbers else 1}."


def define_everything_with_every_value(p, commonest, rand):
    """Hedge: define each quantity as each of 1 to 50."""
    return (
        " ".join(f"Define {name} as a; so a = {n}." for name in _names(p)[:6] for n in range(1, 51))[:30000]
        + f" Answer: {commonest[p.mode, p.op]}."
    )


def answer_then_nothing(p, commonest, rand):
    """Knows the answer (an oracle's) but shows no step: outcome is fooled, process is not."""
    return f"Answer: {p.answer}."


def right_steps_wrong_order(p, commonest, rand):
    """The gold sentences backwards: letters are used before they are defined."""
    head, _, tail = p.solution.rpartition(" Answer:")
    sentences = ["Define" + s for s in head.split("Define")[1:]]
    return " ".join(s.strip() for s in reversed(sentences)) + " Answer:" + tail


def _names(p):
    return [
        s.strip().removeprefix("The ").partition(" number ")[0]
        for s in p.problem.split(".")
        if " number " in s
    ]


def _define(p, value):
    out = []
    for name, letter in zip(_names(p), datagen.LETTERS):
        statement = next(s for s in p.problem.split(".") if s.strip().startswith(f"The {name} number "))
        numbers = [int(w) for w in statement.replace("/", " ").split() if w.isdigit()] or [1]
        out.append(f"Define {name} as {letter}; so {letter} = {value(name, numbers)}.")
    return " ".join(out)


POLICIES = (honest, guess_the_commonest_answer, repeat_the_question, spam_answers, spam_tags, define_every_name, copy_the_numbers,
            define_everything_with_every_value, answer_then_nothing, right_steps_wrong_order)  # fmt: skip


def earnings(n, seed, ops=range(5, 21)):
    """{policy: {reward: mean}} and the guess floor, the share of the commonest answer of each (mode, op)."""
    problems = [
        datagen.generate(seed, i, op=op, mode=mode, split="eval")
        for op in ops
        for mode in datagen.MODES
        for i in range(n)
    ]
    others = [
        datagen.generate(seed + 1, i, op=op, mode=mode, split="train")
        for op in ops
        for mode in datagen.MODES
        for i in range(4 * n)
    ]
    counts = {}
    for p in others:
        counts.setdefault((p.mode, p.op), Counter())[p.answer] += 1
    commonest = {key: c.most_common(1)[0][0] for key, c in counts.items()}
    out = {}
    for policy in POLICIES:
        rand = random.Random(0)
        verdicts = [verify.verify(policy(p, commonest, rand), p) for p in problems]
        out[policy.__name__] = {
            kind: sum(verify.reward(v, kind) for v in verdicts) / len(verdicts) for kind in REWARDS
        }
    floor = sum(p.answer == commonest[p.mode, p.op] for p in problems) / len(problems)
    return out, floor


def main():
    o = cli.parse_options(Options, description=__doc__.splitlines()[0])
    table, floor = earnings(o.n, o.seed)
    print(
        f"{32 * o.n} problems of op 5-20, forward and reverse, seed {o.seed}; guess floor {floor:.3f}\n{'policy':36}"
        + "".join(f"{k:>10}" for k in REWARDS)
    )
    for name, row in table.items():
        print(f"{name.replace('_', ' '):36}" + "".join(f"{row[k]:10.3f}" for k in REWARDS))


if __name__ == "__main__":
    cli.run(main)
