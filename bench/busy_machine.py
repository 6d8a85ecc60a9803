"""Two cores for a small model, on a quiet machine and beside one busy process: two threads that share each
product, by how long they may spin for each other, against two replicas of one thread (lab/replicas.py).

python bench/busy_machine.py
"""

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:1] = [str(ROOT)]

from lab.options import CheckedOptions, opt, parse_options, run_script, write_atomic  # noqa: E402

REPLICAS = "two replicas of one thread"
SETTINGS = {  # what is in the environment when torch is imported; "" is read as nothing, and stops lab/__init__.py
    "torch's default": {"GOMP_SPINCOUNT": ""},
    "OMP_WAIT_POLICY=passive": {"GOMP_SPINCOUNT": "", "OMP_WAIT_POLICY": "passive"},
    **{f"GOMP_SPINCOUNT={n}": {"GOMP_SPINCOUNT": str(n)} for n in (1000, 2000, 4000, 10_000)},
    REPLICAS: {"GOMP_SPINCOUNT": ""},
}


@dataclass(frozen=True)
class Options(CheckedOptions):
    rounds: int = opt(3, "measurements of each, interleaved", within="[1, inf)")
    seconds: float = opt(5.0, "of each", within="(0, inf)")
    measure: bool = opt(False, "measure in this process and print tokens/s")
    replicas: int = opt(1, "replicas that --measure has", within="[1, inf)")
    json: str | None = opt(None, "write the numbers here too")


def measure(seconds, replicas):
    """Tokens/s of the tiny preset's model, forward and backward, on two rows of five documents."""
    from lab.replicas import Replicas

    import torch

    from model import ModelConfig, Qwen2

    torch.set_num_threads(2 // replicas)
    replicas = Replicas(Qwen2(ModelConfig(600, 128, 384, 4, 4, 4, 1024)), replicas)
    tokens = torch.randint(600, (2, 768))
    doc_start = (torch.arange(768) // 154 * 154).expand(2, 768)
    parts = list(zip(*(x.chunk(len(replicas.models)) for x in (tokens, doc_start))))

    def learn(model, part):
        model(*part, part[0], loss_only=True)[1].backward()

    rates, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until or len(rates) < 3:
        start = time.perf_counter()
        replicas.map(learn, parts)
        rates.append(tokens.numel() / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def spin():
    while True:
        pass


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__)
    if o.measure:
        print(measure(o.seconds, o.replicas))
        return
    rates = {}
    command = [sys.executable, __file__, "--measure", "--seconds", str(o.seconds)]
    for _ in range(o.rounds):
        for name, variables in SETTINGS.items():
            for busy in (False, True):
                other = multiprocessing.Process(target=spin, daemon=True)
                if busy:
                    other.start()
                environment = {**os.environ, **variables}
                count = ["--replicas", "2" if name == REPLICAS else "1"]
                out = subprocess.run(
                    [*command, *count], env=environment, capture_output=True, text=True, check=True
                )
                rates.setdefault(name, {}).setdefault(busy, []).append(float(out.stdout))
                if busy:
                    other.kill()
    print(f"{'tokens/s, median of ' + str(o.rounds):26} {'quiet':>10} {'busy':>10}")
    for name, both in rates.items():
        print(f"{name:26} {statistics.median(both[False]):10,.0f} {statistics.median(both[True]):10,.0f}")
    if o.json:
        write_atomic(o.json, json.dumps(rates, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
