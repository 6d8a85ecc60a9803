"""Fuzz the judge against its slow oracle (tests/oracle.py): disagreements and exceptions, both of which must
be 0, and the slowest case.

python bench/fuzz_verify.py --n 1000000
"""

import multiprocessing
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

from lab.options import CheckedOptions, opt, parse_options, run_script  # noqa: E402

import mutate  # noqa: E402
import oracle  # noqa: E402
from tqdm import tqdm  # noqa: E402

import verify  # noqa: E402


@dataclass(frozen=True)
class Options(CheckedOptions):
    n: int = opt(1_000_000, "cases")
    first: int = opt(0, "number of the first")
    processes: int = opt(0, "processes (0: one a core)")


def compare(seed):
    """→ (outcome, microseconds of the judge, seed)."""
    text, p = mutate.case(seed)
    start = time.perf_counter()
    try:
        verdict = verify.verify(text, p)
    except Exception as error:
        return f"exception {type(error).__name__}", 0, seed
    took = (time.perf_counter() - start) * 1e6
    mine = (verdict.nodes, verdict.answer_correct, verdict.correct, verdict.faithful)
    if mine != oracle.judge(text, p):
        return "disagreement", took, seed
    return verdict.kind, took, seed


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__.partition("\n\n")[0])
    outcomes, slowest, failures = Counter(), (0, 0), []
    with multiprocessing.Pool(o.processes or None) as pool:
        for outcome, took, seed in tqdm(
            pool.imap_unordered(compare, range(o.first, o.first + o.n), 500),
            total=o.n,
            unit="case",
            mininterval=5,
        ):
            outcomes[outcome] += 1
            slowest = max(slowest, (took, seed))
            if outcome.startswith(("exception", "disagreement")):
                failures.append(seed)
    print(f"{o.n:,} cases: " + ", ".join(f"{name} {n:,}" for name, n in outcomes.most_common()))
    exceptions = sum(n for name, n in outcomes.items() if name.startswith("exception"))
    print(
        f"disagreements {outcomes['disagreement']}, exceptions {exceptions}, slowest {slowest[0] / 1e3:.2f} ms (case {slowest[1]})"
    )
    for seed in sorted(failures)[:10]:
        print(f"--- case {seed}\n{mutate.case(seed)[0]!r}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    run_script(main)
