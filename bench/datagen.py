"""Problems per second of one core, by mode, layers and split. The public generator makes 159/s (forward) and 11/s (reverse) at op 10.

python bench/datagen.py
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import datagen

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
            print(f"op 10, {mode:8} {layers} layers, {split:5}: median {median:6.0f} problems/s (5 runs: {spread})")
