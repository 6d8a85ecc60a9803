"""Packed tokens per second from worker processes, and the share of padding, at op 2-10.

python bench/data.py --workers 2
"""

import random
import sys
import time
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import data
import datagen
from tokenizer import train_bpe


def main():
    workers = int(sys.argv[sys.argv.index("--workers") + 1]) if "--workers" in sys.argv else 2
    mixture = data.Mixture.parse("op 2-10; template zoo; mode forward")
    rand = random.Random(0).random
    problems = [datagen.generate(0, i, **mixture.arguments(rand)) for i in range(3000)]
    tokenizer = train_bpe((data.prompt_text(p) + data.completion_text(p) for p in problems), 2200)
    source = data.Source(mixture, tokenizer, 0, 16, 2048)
    stream = data.batches(source, workers=workers)
    for _ in islice(stream, 4 * workers + 4):  # workers start
        pass
    start, n, padding = time.perf_counter(), 100, 0.0
    for batch in islice(stream, n):
        padding += (batch.tokens == tokenizer.pad_id).mean() / n
    seconds = time.perf_counter() - start
    print(f"{workers} workers: {n * 16 * 2048 / seconds:,.0f} packed tokens/s, padding {100 * padding:.2f}%")
    stream.close()


if __name__ == "__main__":
    main()
