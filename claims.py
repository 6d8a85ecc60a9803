"""What the results of a study say: values of its arms, its claims' estimates and verdicts, tables.

A claim's contrast is a function of v; v(arm, band, metric, look, part) is the value of an arm in one seed.
"""

from collections import Counter
from functools import cache, partial
from itertools import chain, product
from typing import NamedTuple

from lab.statistics import Estimate, blocks, discoveries, gain, paired, spread, t_quantile, verdict, wilson

import numpy as np

from evaluate import JUDGED
from studies import Seed
from verify import pass_at_k

FLOOR = 0.02  # an arm this near to 0 or 1 says nothing
WIDEST = 0.05  # half-width of an interval that leaves a claim undecided; a wider one is underpowered
TESTED = ("replicated", "direction only", "refuted", "undecided", "underpowered")
PARTS = {"all": slice(None), "even": slice(0, None, 2), "odd": slice(1, None, 2)}  # of an op's problems


# ------------------------------------------------------------------------------------------------------------
# Values


def rise(rewards, part=10):
    """Mean of the last tenth of the steps, or of another part, less that of the first."""
    rewards = np.array(rewards, float)  # None, of a step without any, becomes nan
    some = max(1, len(rewards) // part)
    return np.nanmean(rewards[-some:]) - np.nanmean(rewards[:some])


def hacked(rows):
    """The share of wrong solutions among tries with a right answer."""
    correct, answer = (sum(sum(row[kind]) for row in rows) for kind in ("correct", "answer"))
    return 1 - correct / answer if answer else 0.0


def share(part, whole, rows):
    """Of what was noted in chains: of the whole, the part."""
    some, all_of_it = (sum(row["noted"].get(name, 0) for row in rows) for name in (part, whole))
    return some / max(1, all_of_it)


def noticed(rows):
    """How much more often a wrong definition is retracted than a right one."""
    return share("caught", "wrong", rows) - share("lost", "right", rows)


def slope(kind, rows):
    """Of the quantities that tries define on those that they must, both as logarithms: see chains.depth."""
    n, x, y, xx, xy = np.sum([row[kind] for row in rows], 0)
    return (n * xy - x * y) / max(1e-9, n * xx - x * x)


def average(kind, rows):
    return np.mean([row[kind] for row in rows])


RUNS = {  # what of a GRPO run's result, and what becomes of it; B is the second context
    "rise": ("rewards", rise),
    "rise in B": ("rewards_school", partial(rise, part=2)),
    "zero_variance": ("zero_variance", float),
}
BANDS = {"nll": partial(average, "nll"), "process": partial(average, "process"), "hacked": hacked}
CHAINS = {
    "length": partial(average, "length"),
    "depth": partial(slope, "depth"),
    "depth_wrong": partial(slope, "depth_wrong"),
    "precision": partial(share, "caught", "backtracks"),
    "recall": partial(share, "caught", "wrong"),
    "noticed": noticed,
}


def measure(result, ops, metric, part="all"):
    """→ numbers whose mean is the metric.

    correct@k, answer@k, faithful@k: one a problem of these ops, or of a part of them; reach@k: what pass@k is
    at least, by the likelihood of gold solutions, one a problem; majority@m: how often m tries agree on the
    right answer, one an op; nll, process, hacked, and those of CHAINS: one; the name of an error, or of what
    chains.note counts: how many a try, one an op; those of RUNS: one.
    """
    if metric in RUNS:
        kept, reduced = RUNS[metric]
        return np.array([reduced(result[kept])])
    rows, n, (kind, at, k) = [result["ops"][str(op)] for op in ops], result["samples"], metric.partition("@")
    if kind == "reach":
        return np.array(
            [1 - (1 - np.exp(logp)) ** int(k) for row in rows for logp in row["logp"][PARTS[part]]]
        )
    if kind == "majority":
        return np.array([row[kind][min(int(k), n) - 1] for row in rows])
    if at:
        return np.array([pass_at_k(n, count, int(k)) for row in rows for count in row[kind][PARTS[part]]])
    if kind in BANDS or kind in CHAINS:
        return np.array([(BANDS | CHAINS)[kind](rows)])
    counts = ({**row["errors"], **row.get("noted", {})} for row in rows)
    return np.array([count.get(kind, 0) / (n * len(row["correct"])) for count, row in zip(counts, rows)])


class Cell(NamedTuple):
    """What a contrast asks v for."""

    arm: str
    band: str | None  # of the scale, or operations; None of what is of a run
    metric: str
    look: str = "main"
    part: str = "all"


def weights_of(contrast):
    """{cell: its weight}, if the contrast is linear in what it looks at."""
    seen = {}
    start = contrast(lambda *a, **named: seen.setdefault(Cell(*a, **named), 0.0))
    return {it: contrast(lambda *a, it=it, **named: float(Cell(*a, **named) == it)) - start for it in seen}


class Values:
    """What is known of a study: the values of its arms by seed, and what its claims come to.

    A is the number of arms, S of bases, R of RL seeds in each.
    """

    def __init__(self, results, study, scale, bases):
        """results: by name of their stage; bases: how many to look at."""
        self.results, self.study, self.scale, self.stages = results, study, scale, study.at(scale, bases)
        self.arms = list(dict.fromkeys(arm for _, arm, _ in self.stages))
        self.seeds = [[Seed(base, rl) for rl in range(study.nested)] for base in range(bases)]
        self.numbers = cache(self.numbers)

    def stage(self, seed, cell):
        """The run, or the look at it, that a cell is of. Raises KeyError."""
        return self.stages[seed, cell.arm, None if cell.metric in RUNS else cell.look]

    def numbers(self, seed, cell):
        """→ those of `measure`; or for `beyond`, one for each problem that the arm solves: whether the base,
        by the likelihood of the gold solution, would more likely than not fail in 10,000 tries. Raises
        KeyError if there is no result yet.
        """
        result, ops = self.results[self.stage(seed, cell).name], cell.band and self.scale.ops(cell.band)
        if cell.metric == "beyond":
            base = self.results[self.stage(seed, cell._replace(arm="base")).name]
            return measure(base, ops, "reach@10000")[measure(result, ops, "correct@1") > 0] < 0.5
        metric = cell.metric.replace("@K", f"@{min(self.scale.k, result.get('samples', 1))}")
        return measure(result, ops, metric, cell.part)

    def value(self, contrast, seed):
        """The contrast in one seed; nan if a result is not there yet."""
        try:
            return contrast(lambda *a, **named: float(self.numbers(seed, Cell(*a, **named)).mean()))
        except KeyError:
            return np.nan

    def values(self, contrast):
        """→ (S, R) the contrast in every seed."""
        return np.array([[self.value(contrast, seed) for seed in nested] for nested in self.seeds])

    def mean(self, contrast):
        """Over the seeds that have it; nan if none has."""
        found = self.values(contrast)
        return float(np.mean(found[~np.isnan(found)])) if not np.isnan(found).all() else np.nan

    def table(self, place):
        """→ (A, S) values of all arms. place: a cell's band, metric, look and part."""
        return np.array([self.values(lambda v, arm=arm: v(arm, *place)).mean(1) for arm in self.arms])

    def roots(self):
        """The arms that others start from. These share what training does to a base; it lacks it."""
        runs = [self.stages[self.seeds[0][0], arm, None] for arm in self.arms]
        older = set().union(*(it.ancestors for it in runs))
        return {arm for arm, it in zip(self.arms, runs) if it.name in older}

    def estimate(self, contrast, there):
        """→ Estimate: by blocks, if it is a difference of arms in one place that no arm starts from, else by
        the seeds alone.

        there: (S,) of bool, the bases that have all it looks at. Blocks take the arms for alike but for
        chance. An arm and what was trained from it are not: a base that training moves far, it moves far in
        all arms.
        """
        weights, found = weights_of(contrast), self.values(contrast)[there].mean(1)
        place, *others = dict.fromkeys(it[1:] for it in weights)
        table, roots = self.table(place)[:, there], self.roots()
        row = np.array([weights.get((arm, *place), 0.0) for arm in self.arms])
        alike = ~np.isnan(table).any(1) & [arm not in roots for arm in self.arms]
        table, row = table[alike], row[alike]
        difference = not others and abs(row.sum()) < 1e-9 and np.allclose(row @ table, found)
        pool = (abs(table.mean(1) - 0.5) < 0.5 - FLOOR) | ("@" not in place[1])
        if difference and len(found) > 1 and sum(pool) > 1:
            return blocks(table, row, pool)
        plain = paired(found)
        if plain.error:
            return plain
        n = len(found) * max(len(self.numbers(self.seeds[0][0], it)) for it in weights)
        return Estimate(plain.effect, wilson(0.0, n)[1] / t_quantile(0.95, plain.df), plain.df)  # see gain

    def state(self, claim, estimate, there):
        """Why there is no verdict, or the verdict."""
        shares = [it for it in weights_of(claim.contrast) if "@" in it.metric]
        if claim.expect == "none":  # two arms that stay at the floor are what it says, if others can leave it
            shares = [it._replace(arm=arm) for it in shares for arm in self.arms]
        means = [self.values(lambda v, it=it: v(*it))[there].mean() for it in shares]
        planned = self.study.planned(self.scale)
        word = verdict(estimate, claim.expect, claim.margin, claim.half, claim.least)
        reasons = {
            f"incomplete: {self.scale.share:.0%} of the budget": self.scale.share < 1,
            f"incomplete: {sum(there)} of {planned} seeds": sum(there) < planned,
            "gate C0 not met": not self.mean(self.study.gate) >= 0,  # nor where there is no value
            "at floor": means and np.nanmax(means) < FLOOR,
            "at ceiling": means and np.nanmin(means) > 1 - FLOOR,
            "underpowered": word == "undecided" and estimate.half() > WIDEST,
        }
        return next((reason for reason, holds in reasons.items() if holds), word)

    def row(self, claim):
        """All that is known of a claim → dict."""
        row = {"id": claim.id, "claim": claim.text, "paper": claim.paper, "expect": claim.expect}
        values, cells = self.values(claim.contrast), weights_of(claim.contrast)
        there = ~np.isnan(values).any(1)
        if not there.any():
            return row | {"verdict": "not run"}
        estimate = self.estimate(claim.contrast, there)
        seeds = [seed for nested, whole in zip(self.seeds, there) if whole for seed in nested]
        made = [[{*it.ancestors, it.name} for it in (self.stage(seed, c) for c in cells)] for seed in seeds]
        shared = set().union(*(set.intersection(*arms) for arms in made))  # all arms of a seed start from it
        names = sorted(set().union(*chain(*made)) & self.results.keys())
        results = [self.results[name] for name in names]
        compared = [name for name in names if name not in shared] or names
        problems = max(len(self.numbers(seeds[0], it)) for it in cells)
        tries = max(result.get("samples", 0) for result in results)
        return row | {
            "effect": estimate.effect, "interval": estimate.interval(), "p": estimate.p,
            "plain": paired(values[there].mean(1)).interval(), "spread": spread(values[there]),
            "seeds": f"{sum(there)} × {self.study.nested}", "problems": f"{problems} × {tries}",
            "hours": sum(result["seconds"] for result in results) / 3600,
            "tokens": sum(result.get("tokens", 0) for result in results),
            "code": sorted({self.results[name]["code"] for name in compared}),
            "verdict": self.state(claim, estimate, there)}  # fmt: skip

    def lines(self):
        """Every value there is, a dict a line of results.jsonl."""
        for (seed, arm, look), stage in self.stages.items():
            result = self.results.get(stage.name, {})
            facts = dict(study=self.study.name, arm=arm, base=seed.base, rl=seed.rl, look=look, key=stage.key)
            facts |= {name: result.get(name) for name in ("code", "tokens", "seconds")}
            facts["tries"] = n = result.get("samples")
            kinds = [f"{kind}@{k}" for kind in JUDGED for k in dict.fromkeys((1, min(n or 1, self.scale.k)))]
            rows = result.get("ops", {})
            noted = {name: None for row in rows.values() for name in row.get("noted", ())}
            bands = (band for band in self.scale.bands if rows.keys() >= {*map(str, self.scale.ops(band))})
            kinds += [*BANDS, *(CHAINS if noted else ()), *noted]
            places = [(None, metric) for metric, (kept, _) in RUNS.items() if kept in result]
            places += product(bands, kinds)  # of a look that is at some bands only, those
            for band, metric in places:
                numbers = measure(result, band and self.scale.ops(band), metric)
                value = dict(value=round(float(numbers.mean()), 6), problems=len(numbers))
                yield facts | dict(band=band, metric=metric) | value

    def panels(self):
        """{(metric, band): {arm: (a number a base, or nan; half the width of their mean's 95% interval, by
        Student's t, or 0 of one base)}}, for a figure.
        """
        found = {}
        for metric, band in product(("correct@1", "correct@K"), self.scale.bands):
            dots = {}
            for arm, row in zip(self.arms, self.table((band, metric, self.study.shown, "all"))):
                known = row[~np.isnan(row)]
                if len(known):
                    dots[arm] = row.tolist(), paired(known).half() if len(known) > 1 else 0.0
            found[metric.replace("K", str(self.scale.k)), band] = dots
        return found

    def pairs(self):
        """Rows of strings: each arm in each band, and how it differs from the arm above."""
        rows = [["band", "arm", "correct@1", f"correct@{self.scale.k}", "against the arm above"]]
        for band in self.scale.bands:
            above = None
            for arm in self.arms:
                cells = [Cell(arm, band, metric) for metric in ("correct@1", "correct@K")]
                one, many = (np.hstack([self.numbers(seed, it) for seed, *_ in self.seeds]) for it in cells)
                said = "" if above is None else gain(above, one, 1)
                rows.append([band, arm, f"{one.mean():.3f}", f"{many.mean():.3f}", said])
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
    "SD of bases, of RL seeds": ("spread", lambda pair: "{:.3f}, {:.3f}".format(*pair).replace("nan", "–")),
    "hours": ("hours", "{:.2f}".format),
    "token-equivalents": ("tokens", lambda n: f"{n / 1e6:,.1f}M"),
    "paper": ("paper", str),
    "verdict": ("verdict", str),
    "code": ("code", lambda hashes: hashes[0] if len(hashes) == 1 else "differs: run --strict"),
}

LEGEND = (
    "Effect: the difference that the claim is about, a mean over bases. Its interval is by blocks of "
    "bases and arms (lab/statistics.py) where it compares arms in one place, else by paired t over bases. "
    "Hours and tokens are of all stages that a row rests on, shared ones too. Verdict: by the rule and "
    "the margin written into studies/ before the run; underpowered: undecided, and the interval is wider "
    f"than ±{WIDEST}. Code: the hash of the code that made the results compared; “differs”: they were made "
    "by several versions, and `experiments.py run --strict` makes them again by the present one."
)


def table_of(rows):
    """Rows of claims → rows of strings, the header first."""

    def cells(row):
        return ["–" if row.get(name) in (None, "") else say(row[name]) for name, say in COLUMNS.values()]

    return [list(COLUMNS), *map(cells, rows)]


def markdown(table):
    lines = ["| " + " | ".join(row) + " |\n" for row in table]
    return "".join([lines[0], "|---" * len(table[0]) + "|\n", *lines[1:]])


def one_sided(row):
    """The p value of a claim against no effect, or one in the other direction."""
    claimed = (row["effect"] > 0) == (row["expect"] == "up")
    return row["p"] / 2 if claimed else 1 - row["p"] / 2


def summary(rows):
    """How many claims hold, in two sentences."""
    words = Counter(row["verdict"].partition(":")[0] for row in rows).most_common()
    tested = [row for row in rows if row["expect"] in ("up", "down") and row["verdict"] in TESTED]
    found = discoveries([*map(one_sided, tested)])
    held = sum(real and row["verdict"] == "replicated" for row, real in zip(tested, found))
    counted = f"{len(rows)} claims: {', '.join(f'{n} {word}' for word, n in words)}."
    return f"{counted} Of {len(tested)} effects tested, {held} replicated at a false discovery rate of 10%."
