"""Problems per second of one core, by mode, layers and split. The public generator makes 159/s (forward) and 11/s (reverse) at op 10.

python bench/datagen.py
"""

import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import cli
import datagen


@dataclass(frozen=True)
class Options:
    json: str | None = cli.opt(None, "write the numbers here too")


def main():
    o, out = cli.parse_options(Options, description=__doc__.splitlines()[0]), {}
    for mode in datagen.MODES:
        for layers in (2, 3):
            for split in ("train", "eval"):
                rates = []
                for run in range(5):
                    start = time.process_time()
                    for i in range(1000):
                        datagen.generate(run, i, op=10, mode=mode, layers=layers, split=split)
                    rates.append(1000 / (time.process_time() - start))
                median, spread = statistics.median(rates), f"{min(rates):.0f} to {max(rates):.0f}"
                out[f"{mode}, {layers} layers, {split}"] = median
                print(f"op 10, {mode:8} {layers} layers, {split:5}: median {median:6.0f} problems/s (5 runs: {spread})")
    if o.json:
        cli.write_atomic(o.json, json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
