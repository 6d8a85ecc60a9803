"""Packed tokens per second from worker processes, and the share of padding, at op 2-10.

python bench/data.py --workers 2
"""

import json
import random
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import cli

import data
import datagen
from tokenizer import train_bpe


@dataclass(frozen=True)
class Options:
    workers: int = cli.opt(2, "processes that prepare batches")
    json: str | None = cli.opt(None, "write the numbers here too")


def main():
    o = cli.parse_options(Options, description=__doc__.splitlines()[0])
    mixture = data.Mixture.parse("op 2-10; template zoo; mode forward")
    rand = random.Random(0).random
    problems = [datagen.generate(0, i, **mixture.arguments(rand)) for i in range(3000)]
    tokenizer = train_bpe((data.prompt_text(p) + data.completion_text(p) for p in problems), 2200)
    source = data.Source(mixture, tokenizer, 0, 16, 2048)
    stream = data.batches(source, workers=o.workers)
    for _ in islice(stream, 4 * o.workers + 4):  # workers start
        pass
    start, n, padding = time.perf_counter(), 100, 0.0
    for batch in islice(stream, n):
        padding += (batch.tokens == tokenizer.pad_id).mean() / n
    seconds = time.perf_counter() - start
    print(
        f"{o.workers} workers: {n * 16 * 2048 / seconds:,.0f} packed tokens/s, padding {100 * padding:.2f}%"
    )
    stream.close()
    out = {"workers": o.workers, "tokens_per_second": n * 16 * 2048 / seconds, "padding": float(padding)}
    if o.json:
        cli.write_atomic(o.json, json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
