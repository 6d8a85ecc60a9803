"""Run studies, each stage once, and say which claims hold.

    python experiments.py list
    python experiments.py plan --studies s3 --scale mini
    python experiments.py run --studies s3,s6 --jobs 2
    python experiments.py status
    python experiments.py report
    python experiments.py ablate reward=outcome,strict

Stop `run` or kill it anywhere: the same line goes on. Started several times over one folder, on one machine
or many, it shares the work. `report` needs the results alone, studies/results/SCALE/NAME.json, a few KB a
stage. It writes results.jsonl, claims.md, a figure a study and report.html, anew each time.
"""

import json
from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from lab.options import (
    FINISHED,
    CheckedOptions,
    UserError,
    opt,
    parse_options,
    read_json,
    run_script,
    write_atomic,
)
from lab.runs import as_json, content_hash
from lab.statistics import block_error, blocks, discoveries, paired, spread, t_quantile, verdict
from lab.workshop import Runner, Workshop

import numpy as np

from checkpoint import save_checkpoint
from evaluate import JUDGED, print_table
from export_hf import import_
from export_hf import main as export
from report import write_studies
from studies import SCRIPTS, Seed, Study, load_studies
from verify import pass_at_k

FLOOR = 0.02  # an arm this near to 0 or 1 says nothing
WIDEST = 0.05  # half-width of an interval that leaves a claim undecided; a wider one is underpowered
TESTED = ("replicated", "direction only", "refuted", "undecided", "underpowered")
PARTS = {"all": slice(None), "even": slice(0, None, 2), "odd": slice(1, None, 2)}  # of an op's problems


# ------------------------------------------------------------------------------------------------------------
# Values


def rise(result):
    """Mean reward of the last tenth of the steps, less that of the first."""
    rewards = result["rewards"]
    tenth = max(1, len(rewards) // 10)
    return np.mean(rewards[-tenth:]) - np.mean(rewards[:tenth])


def hacked(rows):
    """The share of wrong solutions among tries with a right answer."""
    correct, answer = (sum(sum(row[kind]) for row in rows) for kind in ("correct", "answer"))
    return 1 - correct / max(1, answer)


RUNS = {"rise": rise, "zero_variance": lambda result: result["zero_variance"]}
BANDS = {
    "nll": lambda rows: np.mean([row["nll"] for row in rows]),
    "process": lambda rows: np.mean([row["process"] for row in rows]),
    "hacked": hacked,
}


def measure(result, ops, metric, part="all"):
    """→ numbers whose mean is the metric.

    correct@k, answer@k, faithful@k: one a problem of these ops, or of a part of them; nll, process, hacked:
    one; an error's name: the share of tries with it, one an op; rise, zero_variance: one, of a GRPO run.
    """
    if metric in RUNS:
        return np.array([RUNS[metric](result)])
    rows, n, (kind, at, k) = [result["ops"][str(op)] for op in ops], result["samples"], metric.partition("@")
    if at:
        return np.array([pass_at_k(n, count, int(k)) for row in rows for count in row[kind][PARTS[part]]])
    if kind in BANDS:
        return np.array([BANDS[kind](rows)])
    return np.array([row["errors"].get(kind, 0) / (n * len(row["correct"])) for row in rows])


class Missing(Exception):
    """A stage that has no result yet."""


def cell(arm, band, metric, look="main", part="all"):
    """What v of a contrast is asked for."""
    return arm, band, metric, look, part


def weights_of(contrast):
    """{cell: its weight}, if the contrast is linear in what it looks at."""
    seen = {}
    start = contrast(lambda *a, **named: seen.setdefault(cell(*a, **named), 0.0))
    return {it: contrast(lambda *a, it=it, **named: float(cell(*a, **named) == it)) - start for it in seen}


class Values:
    """What is known of a study: the values of its arms by seed, and what its claims come to."""

    def __init__(self, shop, study, scale, bases, planned):
        """bases: how many to look at; planned: how many the study has."""
        self.shop, self.study, self.scale, self.bases, self.planned = (
            shop,
            study,
            scale,
            range(bases),
            planned,
        )
        self.stages = study.at(scale, bases)
        self.arms = list(dict.fromkeys(arm for _, arm, _ in self.stages))

    def stages_of(self, base, arm, look):
        """Those of an arm, or of a look at it, by RL seed. Raises Missing if there are none."""
        keys = [(Seed(base, rl), arm, look) for rl in range(self.study.nested)]
        if keys[0] not in self.stages:
            raise Missing
        return [self.stages[key] for key in keys]

    def numbers(self, base, arm, band, metric, look="main", part="all"):
        """→ (R, n) of `measure`, for R RL seeds. Raises Missing."""
        ops = band and self.scale.ops(band)
        stages = self.stages_of(base, arm, None if metric in RUNS else look)
        results = [self.shop.result(stage.name) for stage in stages]
        if None in results:
            raise Missing
        metric = metric.replace("@K", f"@{self.scale.k}")
        return np.array([measure(result, ops, metric, part) for result in results])

    def view(self, base, rl=slice(None)):
        """v of a contrast: values of one base, and the mean over its RL seeds or one of them."""
        return lambda *a, **named: float(self.numbers(base, *a, **named)[rl].mean())

    def by_base(self, contrast):
        """{base: the contrast} of the bases that have all it looks at."""
        found = {}
        for base in self.bases:
            try:
                found[base] = contrast(self.view(base))
            except Missing:
                continue
        return found

    def by_arm(self, place):
        """{arm: {base: its value}}. place: (band, metric, look, part)."""
        return {arm: self.by_base(lambda v, arm=arm: v(arm, *place)) for arm in self.arms}

    def table(self, place, bases):
        """→ (arms that have a value in all these bases, (A, S) values)."""
        values = self.by_arm(place)
        arms = [arm for arm in self.arms if values[arm].keys() >= set(bases)]
        return arms, np.array([[values[arm][base] for base in bases] for arm in arms])

    def linear(self, contrast, found):
        """{arm: weight} and the place of a contrast that is a difference of arms in one place, else None."""
        weights = weights_of(contrast)
        sums = [sum(w * self.view(base)(*it) for it, w in weights.items()) for base in found]
        places, same = {it[1:] for it in weights}, np.allclose(sums, list(found.values()))
        if len(places) > 1 or not same or abs(sum(weights.values())) > 1e-9:
            return None
        return {it[0]: w for it, w in weights.items()}, places.pop()

    def estimate(self, contrast, found):
        """→ Estimate: by blocks, if it is a difference of arms in one place, else by the seeds alone."""
        plain, linear = paired(list(found.values())), self.linear(contrast, found)
        if linear is None or len(found) < 2:
            return plain
        weights, place = linear
        arms, table = self.table(place, found)
        row = np.array([weights.get(arm, 0.0) for arm in arms])
        pool = (abs(table.mean(1) - 0.5) < 0.5 - FLOOR) | ("@" not in place[1])
        return blocks(table, row, pool) if sum(pool) > 1 else plain

    def share_of_seeds(self, contrast, found):
        """Share of the variance over seeds that is not of problems and tries; None where that is unknown."""
        linear, total = self.linear(contrast, found), np.var(list(found.values()))
        if linear is None or not total:
            return None
        weights, place = linear
        each = {arm: [self.numbers(base, arm, *place).mean(0) for base in found] for arm in weights}
        gaps = sum(w * np.array(each[arm]) for arm, w in weights.items())  # (S, n)
        seeds, problems = gaps.shape
        noise = gaps.var(1).mean() / max(1, problems - 1)
        return max(0.0, 1 - noise / total * (seeds - 1) / seeds) if problems > 1 else None

    def state(self, claim, estimate, found):
        """Why there is no verdict, or the verdict."""
        shares = [it for it in weights_of(claim.contrast) if "@" in it[2]]
        means = [np.mean([self.view(base)(*it) for base in found]) for it in shares]
        gate = list(self.by_base(self.study.gate).values()) if self.study.gate else [0]
        word, (low, high) = verdict(estimate, claim.expect, claim.margin, claim.half), estimate.interval()
        reasons = {
            f"incomplete: {self.scale.share:.0%} of the budget": self.scale.share < 1,
            f"incomplete: {len(found)} of {self.planned} seeds": len(found) < self.planned,
            "gate C0 not met": not gate or np.mean(gate) < 0,
            "at floor": means and max(means) < FLOOR,
            "at ceiling": means and min(means) > 1 - FLOOR,
            "underpowered": word == "undecided" and high - low > 2 * WIDEST,
        }
        return next((reason for reason, holds in reasons.items() if holds), word)

    def row(self, claim):
        """All that is known of a claim → dict."""
        row = {"id": claim.id, "claim": claim.text, "paper": claim.paper, "expect": claim.expect}
        found = self.by_base(claim.contrast)
        if not found:
            return row | {"verdict": "not run"}
        estimate, cells = self.estimate(claim.contrast, found), list(weights_of(claim.contrast))
        runs = [[claim.contrast(self.view(base, rl)) for rl in range(self.study.nested)] for base in found]
        used = {(it[0], None) for it in cells} | {(it[0], it[3]) for it in cells if it[2] not in RUNS}
        stages = [stage for arm, look in used for base in found for stage in self.stages_of(base, arm, look)]
        names = sorted({name for stage in stages for name in (*stage.ancestors, stage.name)})
        results = [result for name in names if (result := self.shop.result(name))]
        problems = max(self.numbers(min(found), *it).shape[1] for it in cells)
        tries = max(result.get("samples", 0) for result in results)
        return row | {
            "effect": estimate.effect, "interval": estimate.interval(), "p": estimate.p,
            "plain": paired(list(found.values())).interval(), "spread": spread(np.array(runs)),
            "seeds": f"{len(found)} × {self.study.nested}", "problems": f"{problems} × {tries}",
            "share": self.share_of_seeds(claim.contrast, found),
            "hours": sum(result["seconds"] for result in results) / 3600,
            "tokens": sum(result.get("tokens", 0) for result in results),
            "code": sorted({result["code"] for result in results}),
            "verdict": self.state(claim, estimate, found)}  # fmt: skip

    def lines(self):
        """Every value there is, a dict a line of results.jsonl."""
        kinds = [f"{kind}@{k}" for kind in JUDGED for k in (1, self.scale.k)] + list(BANDS)
        for (seed, arm, look), stage in self.stages.items():
            if (result := self.shop.result(stage.name)) is None:
                continue
            facts = dict(study=self.study.name, arm=arm, base=seed.base, rl=seed.rl, look=look, key=stage.key)
            facts |= dict(code=result["code"], tries=result.get("samples"), seconds=result["seconds"])
            places = [(None, metric) for metric in RUNS if "rewards" in result]
            places += [(band, metric) for band in self.scale.bands for metric in kinds if "ops" in result]
            for band, metric in places:
                numbers = measure(result, band and self.scale.ops(band), metric)
                value = dict(value=round(float(numbers.mean()), 6), problems=len(numbers))
                yield facts | dict(band=band, metric=metric) | value

    def panels(self):
        """{(metric, band): {arm: (one number a base, half the width of a block interval)}} for a figure."""
        found = {}
        for metric, band in product(("correct@1", f"correct@{self.scale.k}"), self.scale.bands):
            place = (band, metric, self.study.shown, "all")
            dots = {arm: list(values.values()) for arm, values in self.by_arm(place).items()}
            (arms, table), half = self.table(place, self.bases), 0.0
            if min(table.shape) > 1:
                variance, df = block_error(table)
                half = t_quantile(0.95, df) * (variance / len(self.bases)) ** 0.5
            found[metric, band] = {arm: (dots[arm], half * (arm in arms)) for arm in dots if dots[arm]}
        return found

    def pairs(self):
        """Rows of strings: each arm in each band, and its paired difference from the arm above."""
        rows = [["band", "arm", "correct@1", f"correct@{self.scale.k}", "difference", "standard error"]]
        for band in self.scale.bands:
            above = None
            for arm in self.arms:
                kinds = ("correct@1", "correct@K")
                one, many = (
                    [self.numbers(base, arm, band, kind)[0] for base in self.bases] for kind in kinds
                )
                one, said = np.concatenate(one), ["", ""]
                if above is not None:
                    gap = one - above
                    said = [f"{gap.mean():+.3f}", f"{gap.std(ddof=1) / len(gap) ** 0.5:.3f}"]
                rows.append([band, arm, f"{one.mean():.3f}", f"{np.mean(many):.3f}", *said])
                above = one
        return rows


# ------------------------------------------------------------------------------------------------------------
# Tables


def bounds(interval):
    return "[{:+.3f}, {:+.3f}]".format(*interval)


COLUMNS = {  # of claims.md: what a row needs, and how it is said
    "id": ("id", str),
    "claim": ("claim", str),
    "effect": ("effect", "{:+.3f}".format),
    "95% interval": ("interval", bounds),
    "by paired t": ("plain", bounds),
    "seeds": ("seeds", str),
    "problems × tries": ("problems", str),
    "of seeds": ("share", "{:.0%}".format),
    "SD of bases, of RL seeds": ("spread", lambda pair: "{:.3f}, {:.3f}".format(*pair).replace("nan", "–")),
    "hours": ("hours", "{:.2f}".format),
    "token-equivalents": ("tokens", lambda n: f"{n / 1e6:,.1f}M"),
    "paper": ("paper", str),
    "verdict": ("verdict", str),
    "code": ("code", lambda hashes: hashes[0] if len(hashes) == 1 else "differs: run --strict"),
}


def table_of(rows):
    """Rows of claims → rows of strings, the header first."""
    cells = [
        ["–" if row.get(name) in (None, "") else say(row[name]) for name, say in COLUMNS.values()]
        for row in rows
    ]
    return [list(COLUMNS), *cells]


def markdown(table):
    lines = ["| " + " | ".join(row) + " |\n" for row in table]
    return "".join([lines[0], "|---" * len(table[0]) + "|\n", *lines[1:]])


def summary(rows):
    """How many claims hold, in two sentences."""
    words = Counter(row["verdict"].partition(":")[0] for row in rows).most_common()
    tested = [row for row in rows if row["expect"] in ("up", "down") and row["verdict"] in TESTED]
    found = discoveries([row["p"] for row in tested])
    held = sum(real and row["verdict"] == "replicated" for row, real in zip(tested, found))
    counted = f"{len(rows)} claims: {', '.join(f'{n} {word}' for word, n in words)}."
    return f"{counted} Of {len(tested)} effects tested, {held} replicated at a false discovery rate of 10%."


# ------------------------------------------------------------------------------------------------------------
# Committed bases


def pack(shop, stage, folder):
    """Write the weights of a stage that is done in Hugging Face's format, with hash and result."""
    export([f"--ckpt={shop.run_folder(stage)}/latest", f"--out={folder}"])
    digest = content_hash((folder / "model.safetensors").read_bytes())
    done = read_json(shop.folder(stage) / "done.json")
    write_atomic(
        folder / "stage.json", as_json({"hash": digest, "done": done, "result": shop.result(stage.name)})
    )


def unpack(shop, stage, folder):
    """Take a stage's run from committed weights. Raises UserError if they are not what was hashed."""
    facts = read_json(folder / "stage.json")
    if content_hash((folder / "model.safetensors").read_bytes()) != facts["hash"]:
        raise UserError(f"{folder / 'model.safetensors'} is not what stage.json says: fetch it again")
    lock = shop.claim(stage)
    if lock is not None:
        with lock:
            save_checkpoint(shop.run_folder(stage) / "latest", *import_(folder))
            write_atomic(shop.folder(stage) / "done.json", as_json({**facts["done"], "from": str(folder)}))
            write_atomic(shop.results / f"{stage.name}.json", json.dumps(facts["result"]) + "\n")


# ------------------------------------------------------------------------------------------------------------
# Command line


@dataclass(frozen=True)
class Options(CheckedOptions):
    command: str = opt("list", "list, plan, run, status, report, pack, or ablate OPTION=VALUE,VALUE")
    studies: str = opt("all", "which, separated by commas", group="what")
    scale: str = opt("mini", "bands and budgets: studies/scales.py")
    seeds: int = opt(0, "bases (0: as many as the study has)")
    budget: float = opt(1.0, "share of all tokens and steps, to try a study", within="(0, 1]")
    only: str = opt("", "only stages whose name contains this, and what they need")
    base: str | None = opt(
        None, "of ablate: a checkpoint, or a folder of --bases (default: the scale's base)"
    )
    jobs: int = opt(1, "stages at once; each has a GPU, if there are any", within="[1, 256]", group="how")
    retry: bool = opt(False, "also what has failed")
    strict: bool = opt(False, "also what other code has done")
    out: str = opt("out/experiments", "folder for all that is written", group="where")
    results: str = opt("studies/results", "folder of the results")
    bases: str = opt("studies/bases", "folder of committed weights")


def look_up(kind, table, name):
    if name not in table:
        raise UserError(f"unknown {kind} {name!r}: choose from {', '.join(table)}")
    return table[name]


class Session:
    """What the commands share: the studies that were chosen, at a scale, and their stages."""

    def __init__(self, o):
        known, scales = load_studies()
        self.o, self.scale = o, replace(look_up("scale", scales, o.scale), share=o.budget)
        names = list(known) if o.studies == "all" else o.studies.split(",")
        self.studies = [look_up("study", known, name) for name in names]
        self.shop = Workshop(Path(o.out, o.scale), Path(o.results, o.scale), o.strict)

    def planned(self, study):
        return study.seeds or self.scale.seeds

    def seeds(self, study):
        return self.o.seeds or self.planned(study)

    def stages(self, *chosen):
        """{name: (stage, what it is first used for)} of these studies, as far as --only lets them through."""
        found = {}
        for study in chosen:
            for (seed, arm, look), stage in study.at(self.scale, self.seeds(study)).items():
                use = f"{study.name}, {arm}, seed {seed.base}.{seed.rl}" + (f", look {look}" if look else "")
                found.setdefault(stage.name, (stage, use))
        return {name: pair for name, pair in found.items() if self.o.only in name}

    def to_run(self, *chosen):
        return [stage for stage, _ in self.stages(*chosen).values()]

    def values(self, study):
        return Values(self.shop, study, self.scale, self.seeds(study), self.planned(study))

    def pace(self):
        """{script: seconds a unit of work}, as measured at this scale, or else as the scale says."""
        seconds, work = Counter(), Counter()
        for path in self.shop.results.glob("*.json"):
            result, script = read_json(path), path.stem.rpartition("-")[0]
            seconds[script] += result["seconds"]
            work[script] += result["work"]
        measured = {script: seconds[script] / work[script] for script in work}
        return {script: measured.get(script, self.scale.rates.get(script, 0.0)) for script in SCRIPTS}

    def hours(self, stages, pace):
        return sum(stage.work * pace[stage.script] for stage in stages) / 3600

    def work_on(self, *chosen):
        """Run these studies' stages → exit code. Committed weights are taken where they are needed."""
        stages, pace, folder = self.to_run(*chosen), self.pace(), Path(self.o.bases)
        for stage in self.shop.todo(stages).values():
            if (folder / stage.name).exists() and not (self.o.strict or self.shop.here(stage)):
                unpack(self.shop, stage, folder / stage.name)
        runner = Runner(
            self.shop, self.o.jobs, lambda left: f"{self.hours(left, pace) / self.o.jobs:.2f} h left"
        )
        return runner.run(stages, self.o.retry)


def list_studies(it, words):
    for study in it.studies:
        print(f"{study.name}: {study.title}; arms {', '.join(study.arms(it.scale, Seed(0)))}")
        for claim in study.claims:
            print(f"    {claim.id:5} {claim.text}" + (f" (paper: {claim.paper})" if claim.paper else ""))


def plan(it, words):
    """Stages, how many are done, and hours for the rest; what two studies share counts in the first."""
    pace, counted = it.pace(), {}
    for study in it.studies:
        stages = it.to_run(study)
        todo = it.shop.todo(stages)
        new = [stage for name, stage in todo.items() if name not in counted]
        counted |= todo
        done = sum(stage.name not in todo for stage in stages)
        print(
            f"{study.name:6} {done:4} done {len(new):4} to run {it.hours(new, pace):8.2f} h   {study.title}"
        )
    print(f"all             {len(counted):4} to run {it.hours(counted.values(), pace):8.2f} h   with one job")


def status(it, words):
    for stage, use in it.stages(*it.studies).values():
        state = "kept" if it.shop.known(stage) else it.shop.state(stage)
        print(f"{state:8} {stage.name:28} {use}")
        if state == "failed":
            print(
                "\n".join(f"    {line}" for line in read_json(it.shop.folder(stage) / "failed.json")["last"])
            )


def report(it, words):
    rows, lines, sections, out = [], [], [], it.shop.out
    for stage in filter(it.shop.here, it.to_run(*it.studies)):
        it.shop.keep(stage)
    for study in it.studies:
        values = it.values(study)
        claims = [values.row(claim) for claim in study.claims]
        png = study.figure(values.panels(), out / f"{study.name}.png")
        lines += [json.dumps(line) + "\n" for line in values.lines()]
        sections.append((f"{study.name}: {study.title}", table_of(claims), png))
        rows += claims
    told = f"Scale {it.o.scale}. {summary(rows)}"
    tables = [f"\n## {title}\n\n{markdown(table)}" for title, table, _ in sections]
    write_atomic(out / "results.jsonl", "".join(lines))
    write_atomic(out / "claims.md", "".join([f"# Claims\n\n{told}\n", *tables]))
    write_studies(out / "report.html", told, sections)
    print(f"{told}\nclaims: {out / 'claims.md'}")


def pack_bases(it, words):
    """Of the bases that are done; --only says which."""
    for stage in filter(it.shop.here, it.to_run(*it.studies)):
        folder = Path(it.o.bases, stage.name)
        if stage.script == "train_pretrain" and not folder.exists():
            it.shop.keep(stage)
            pack(it.shop, stage, folder)


def ablate(it, words):
    """RL at the edge from a base, once with each value of an option; a table of paired differences."""
    option, equals, first = (words or [""])[0].partition("=")
    values = [first, *words[1:]]
    if not equals or len(values) < 2:
        raise UserError("say an option of train_grpo.py and its values: ablate reward=outcome,strict")

    def arms(c, seed):
        base, edge = find_base(it, c, seed), c.mixture(c.ranges["edge"])
        rl = {
            f"{option}={value}": c.rl(seed, base, edge, **{option.replace("-", "_"): value})
            for value in values
        }
        return {"base": base, **rl}

    study = Study("ablate", f"{option}: {', '.join(values)}", arms, (), seeds=1)
    code = it.work_on(study)
    if code == FINISHED:
        print_table(it.values(study).pairs(), left=2)
    return code


def find_base(it, c, seed):
    """The stage that --base names, by default the scale's base."""
    base = c.base(seed)
    if it.o.base is None or Path(it.o.base).name == base.name:
        return base
    raise UserError(
        f"--base {it.o.base} is no base of scale {it.o.scale}: that of seed {seed.base} is {base.name}"
    )


COMMANDS = {
    "list": list_studies,
    "plan": plan,
    "run": lambda it, words: it.work_on(*it.studies),
    "status": status,
    "report": report,
    "pack": pack_bases,
    "ablate": ablate,
}


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__, positional="command")
    command, *words = o.command.split(",")
    return look_up("command", COMMANDS, command)(Session(o), words)


if __name__ == "__main__":
    run_script(main)
