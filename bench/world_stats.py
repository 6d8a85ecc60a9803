"""The world in numbers: a table by mode and op of nodes, statements, lengths, answers and the guess floor.

python bench/world_stats.py --op 2-20 --mode forward,reverse --n 200 [--tokenizer tokenizer.json]
"""

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from lab.options import opt, parse_options, run_script

import datagen


@dataclass(frozen=True)
class Options(datagen.Options):
    n: int = opt(200, "problems for each op, mode and template", within="[1, inf)")
    jsonl: bool = opt(False, "print the rows as JSON")
    tokenizer: str | None = opt(None, "tokenizer.json to count tokens with (else words, digits and signs)")


COLUMNS = (
    "mode", "op", "n", "nodes", "statements", "prompt_mean", "prompt_max", "solution_mean", "solution_max",
    "answer_median", "answer_max", "commonest", "guess_floor",
)  # fmt: skip


def rows(problems, count):
    """One dict for each (mode, op), in order. count: text → its length. guess_floor: the share of the
    commonest answer."""
    groups = {}
    for p in problems:
        groups.setdefault((p.mode, p.op), []).append(p)
    for (mode, op), group in sorted(groups.items()):
        n = len(group)
        prompts = [count(f"{p.problem} {p.question}") for p in group]
        solutions = [count(p.solution) for p in group]
        answers = sorted(p.answer for p in group)
        commonest, times = Counter(answers).most_common(1)[0]
        nodes = sum(len(p.nodes) for p in group) / n
        statements = sum(len(datagen.statements_of(p.problem)) for p in group) / n
        values = (
            mode, op, n, nodes, statements, sum(prompts) / n, max(prompts), sum(solutions) / n, max(solutions),
            answers[n // 2], answers[-1], commonest, times / n,
        )  # fmt: skip
        yield dict(zip(COLUMNS, values))


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__.partition("\n\n")[0])
    count, unit = datagen.count_words, "words, digits and signs"
    if o.tokenizer:
        from tokenizer import Tokenizer

        tokenizer = Tokenizer.load(o.tokenizer)
        count, unit = lambda text: len(tokenizer.encode(text)), "tokens"
    table = rows(o.problems(), count)
    if not o.jsonl:
        print(f"lengths in {unit}\n" + " ".join(f"{name:>{max(8, len(name))}}" for name in COLUMNS))
    for row in table:
        cells = (f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values())
        line = " ".join(f"{cell:>{max(8, len(name))}}" for name, cell in zip(COLUMNS, cells))
        print(json.dumps(row) if o.jsonl else line)


if __name__ == "__main__":
    run_script(main)
