"""A command that stands in for a training or an evaluation: it counts steps, stops at SIGTERM, goes on where it was, and
notes in a journal when it begins and ends. And a study of such commands.
"""

import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

from lab.options import STOPPED, CheckedOptions, UserError, opt, parse_options, run_script

PRESETS = {"tiny": {}, "other": {"lift": 0.5}}


@dataclass(frozen=True)
class Options(CheckedOptions):
    out: str = opt("out", "folder", free=True)
    preset: str = opt("tiny", "preset")
    resume_or_start: bool = opt(False, "go on", free=True)
    threads: int = opt(0, "threads", free=True)
    replicas: int = opt(1, "replicas", free=True)
    seed: int = opt(0, "seed")
    init_from: str | None = opt(None, "a parent's run")
    steps: int = opt(2, "steps")
    lift: float = opt(0.0, "how much better it is")
    fails: bool = opt(False, "whether it fails, unless a file `mended` lies beside it")
    sampled: int = opt(0, "option that changes nothing", free=True)


def write(text):
    with open(os.environ["STUB_JOURNAL"], "a") as file:
        file.write(text + "\n")


def main(argv=None):
    o = parse_options(Options, argv, presets=PRESETS)
    run = Path(o.out)
    write(f"begin {run.parent.name} gpu={os.environ.get('CUDA_VISIBLE_DEVICES')}")
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
    if o.init_from and not Path(o.init_from, "numbers").exists():
        raise UserError(f"no parent at {o.init_from}")
    if o.fails and not Path(os.environ["STUB_JOURNAL"]).with_name("mended").exists():
        raise UserError("told to fail")
    latest = run / "latest"
    latest.mkdir(parents=True, exist_ok=True)
    numbers = latest / "numbers"
    done = numbers.read_text().split() if numbers.exists() else []
    while len(done) < o.steps:
        done.append(str(len(done)))
        numbers.write_text(" ".join(done))
        time.sleep(0.05)
        if stopping:
            return STOPPED
    rand = random.Random(f"{o.seed} {o.lift}")
    counts = {
        str(op): [sum(rand.random() < 0.3 + o.lift for _ in range(8)) for _ in range(20)]
        for op in (2, 3, 4, 5)
    }
    row = dict(nll=1.0, process=0.5, errors={"no_answer": 3})
    ops = {op: {**row, **dict.fromkeys(("correct", "answer", "faithful"), c)} for op, c in counts.items()}
    (run / "found.json").write_text(json.dumps({"samples": 8, "ops": ops}))
    write(f"end {run.parent.name}")


def install(experiments, fails=False, steps=2):
    """Have experiments.py know a study of stubs: a base, two arms from it, a look at each."""
    import studies
    from studies import Claim, Scale, Script, Stage, Study
    from studies.scales import SCALES

    def stub(**given):
        return Stage("stub", tuple(sorted(given.items())))

    def arms(c, seed):
        base = stub(seed=seed.base, steps=steps)
        better = stub(seed=seed.base, init_from=base, steps=steps, lift=0.3, fails=fails)
        return {"base": base, "same": stub(seed=seed.base, init_from=base, lift=0.001), "better": better}

    def looks(c, seed, arm, start):
        given = dict(
            init_from=start, seed=1000 + seed.base, lift=0.3 * (arm == "better") + 0.001 * (arm == "same")
        )
        return {"main": stub(**given, steps=1)}

    def contrast(arm):
        return lambda v: v(arm, "id", "correct@1") - v("base", "id", "correct@1")

    claims = (Claim("X1", "better is better", contrast("better")),)
    claims += (Claim("X2", "same is the same", contrast("same"), expect="equal", margin=0.2),)
    study = Study("toy", "A toy", arms, claims, looks)

    class Toy(Scale):
        def base(self, seed, mixture=None):
            return stub(seed=seed.base, steps=steps)

        def rl(self, seed, start, mixture, steps=None, **given):
            return stub(seed=seed.base, init_from=start, **given)

        def look(self, seed, start, template=None, **given):
            return stub(seed=1000 + seed.base, init_from=start, lift=start.options.lift, steps=1)

    scales = {"toy": Toy(**{**vars(SCALES["micro"]), "k": 8, "seeds": 3, "rates": {"stub": 0.1}})}
    studies.SCRIPTS["stub"] = Script(
        lambda o: o.steps, lambda o, run: json.loads((run / "found.json").read_text())
    )
    experiments.load_studies = lambda: ({"toy": study}, scales)


if __name__ == "__main__":
    run_script(main)
