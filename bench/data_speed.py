"""Packed tokens per second, and the share of padding, at op 2-10.

python bench/data_speed.py --workers 1
"""

import json
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from lab.options import CheckedOptions, opt, parse_options, run_script, write_atomic

from data import Source, batches
from datagen import Mixture
from train_pretrain import train_tokenizer

ROWS, ROW_TOKENS = 16, 2048


@dataclass(frozen=True)
class Options(CheckedOptions):
    workers: int = opt(1, "1: a process prepares batches ahead; 0: none", within="[0, 1]")
    batches: int = opt(100, "batches to measure", within="[1, inf)")
    documents: int = opt(3000, "documents to train the tokenizer on", within="[1, inf)")
    json: str | None = opt(None, "write the numbers here too")


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__.partition("\n\n")[0])
    mixture = Mixture.parse("op 2-10; template zoo; mode forward")
    tokenizer = train_tokenizer(mixture, (), 2200, 0, documents=o.documents)
    stream = batches(Source(mixture, tokenizer, 0, ROWS, ROW_TOKENS), workers=o.workers)
    for _ in islice(stream, 8):  # the worker starts, the lanes fill
        pass
    start, padding = time.perf_counter(), 0.0
    for batch, _ in islice(stream, o.batches):
        padding += float((batch.tokens == tokenizer.pad_id).mean()) / o.batches
    rate = o.batches * ROWS * ROW_TOKENS / (time.perf_counter() - start)
    stream.close()
    print(f"{o.workers} workers: {rate:,.0f} packed tokens/s, padding {padding:.2%}")
    if o.json:
        out = {"workers": o.workers, "tokens_per_second": rate, "padding": padding}
        write_atomic(o.json, json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
