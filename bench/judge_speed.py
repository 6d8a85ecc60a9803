"""Speed of the judge on one core: verdicts per second at op 10, a batch of GRPO, and the slowest long garbage.

    python bench/judge_speed.py [--public FILE.jsonl]

CPU time of the process, best of three passes, so that a busy machine changes the numbers little. The judge
begins each pass with empty caches.
"""

import json
import random
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lab.options import CheckedOptions, opt, parse_options, read_jsonl, run_script, write_atomic  # noqa: E402

import datagen  # noqa: E402
import verify as judge  # noqa: E402

HEADS = (
    "",
    "Define",
    "Define a as b; so b = ",
    "Define a as ",
    "<question>",
    "<answer>",
    "We know ",
    "Answer:",
)
UNITS = ("a=1;", "Define a as b; so b = 1. ", "Define a as b; c = b; so b = c. ", "Define ", "a = ", "= a", "((", "1+", "a+", "as ", " as a",
         " ", "\n", ";", ".", "-", "9", "x", "[PAD]", "[BOS]", "<answer> 9 ", "Answer: 9. ", "We know ", "\0", "é")  # fmt: skip


@dataclass(frozen=True)
class Options(CheckedOptions):
    public: str = opt(
        str(ROOT.parent / "shared" / "gsm_infinite" / "sample.jsonl"),
        "public records, of which those of op 10 are judged",
    )
    json: str | None = opt(None, "write the numbers here too")


def seconds(work, passes=3):
    """CPU seconds of `work()`, the best of some passes."""
    times, caches = [], [value for value in vars(judge).values() if hasattr(value, "cache_clear")]
    for _ in range(passes):
        for cache in caches:
            cache.cache_clear()
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def verdicts_per_second(records):
    """records: of judge.verify, each judged on its own gold solution."""
    texts = [r["solution"] if isinstance(r, dict) else r.solution for r in records]
    return len(records) / seconds(
        lambda: [judge.verify(text, record) for text, record in zip(texts, records)]
    )


def rename(text, letters, rand):
    """A solution with other letters, as another sample of its group would have."""
    new = dict(zip(letters, rand.sample(letters, len(letters))))
    return re.sub(r"(?<![A-Za-z'])[A-Za-z](?![A-Za-z'])", lambda m: new.get(m[0], m[0]), text)


def batch(problems=768, group=8):
    """[(text, problem)] of op 10, forward and reverse: about 300 tokens a text. x, the unknown, keeps its name."""
    rand, letters = random.Random(0), datagen.LETTERS.replace("x", "")
    modes = [datagen.MODES[i % 2] for i in range(problems)]
    drawn = [datagen.generate(0, i, op=10, mode=mode) for i, mode in enumerate(modes)]
    return [(rename(p.solution, letters, rand), p) for p in drawn for _ in range(group)]


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__.partition("\n\n")[0])
    out = {}
    if Path(o.public).exists():
        public = [record for _, record in read_jsonl(o.public) if record.get("op") == 10]
        out["public"] = verdicts_per_second(public * 20)
        records = f"{len(public)} records, gold from their `solution`"
        print(f"public op 10 ({records}): {out['public']:,.0f} verdicts/s")
    else:
        print(f"no {o.public}: records of the public GSM-Infinite generator, JSONL, are left out")
    for mode in datagen.MODES:
        for layers in (2, 3):
            problems = [datagen.generate(0, i, op=10, mode=mode, layers=layers) for i in range(500)]
            rate = out[f"{mode}, {layers} layers"] = verdicts_per_second(problems)
            print(f"generated op 10, {mode}, {layers} layers: {rate:,.0f} verdicts/s")
    pairs = batch()
    out["batch, seconds"] = seconds(lambda: [judge.verify(text, problem) for text, problem in pairs])
    characters = sum(len(text) for text, _ in pairs) / len(pairs)
    took = f"{out['batch, seconds']:.2f} s"
    print(f"{len(pairs):,} completions of {characters:.0f} characters, 8 of each problem: {took}")
    for size in (judge.MAX_TEXT, 1 << 16):
        slowest = max(
            (seconds(lambda: judge.verify((h + u * size)[:size], problems[0])), h + u)
            for h in HEADS
            for u in UNITS
        )
        out[f"garbage of {size}, seconds"] = slowest[0]
        print(
            f"garbage of {size:,} characters, {len(HEADS) * len(UNITS)} kinds: slowest {slowest[0] * 1e3:.1f} ms ({slowest[1]!r} …)"
        )
    if o.json:
        write_atomic(o.json, json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
