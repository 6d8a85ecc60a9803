"""Problems per second of one core, by mode, layers and split. The public generator makes 159/s (forward) and
11/s (reverse) at op 10.

python bench/world_speed.py
"""

import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from lab.options import CheckedOptions, opt, parse_options, run_script, write_atomic

import datagen


@dataclass(frozen=True)
class Options(CheckedOptions):
    n: int = opt(1000, "problems of each run", within="[1, inf)")
    json: str | None = opt(None, "write the numbers here too")


def main(argv=None):
    o, out = parse_options(Options, argv, description=__doc__.partition("\n\n")[0]), {}
    for mode in datagen.MODES:
        for layers in (2, 3):
            for split in ("train", "eval"):
                rates = []
                for run in range(5):
                    start = time.process_time()
                    for i in range(o.n):
                        datagen.generate(run, i, op=10, mode=mode, layers=layers, split=split)
                    rates.append(o.n / (time.process_time() - start))
                median, spread = statistics.median(rates), f"{min(rates):.0f} to {max(rates):.0f}"
                out[f"{mode}, {layers} layers, {split}"] = median
                print(
                    f"op 10, {mode:8} {layers} layers, {split:5}: median {median:6.0f}/s (5 runs: {spread})"
                )
    if o.json:
        write_atomic(o.json, json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
