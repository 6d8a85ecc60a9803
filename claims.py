"""What the results of a study say: values of its arms, its claims' estimates and verdicts, tables.

A claim's contrast is a function of v; v(arm, band, metric, look, part) is the value of an arm in one seed.
"""

from collections import Counter
from functools import cache
from itertools import product

from lab.statistics import block_error, blocks, discoveries, paired, spread, t_quantile, verdict

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


def rise(result):
    """Mean reward of the last tenth of the steps, less that of the first."""
    rewards = result["rewards"]
    tenth = max(1, len(rewards) // 10)
    return np.mean(rewards[-tenth:]) - np.mean(rewards[:tenth])


def hacked(rows):
    """The share of wrong solutions among tries with a right answer."""
    correct, answer = (sum(sum(row[kind]) for row in rows) for kind in ("correct", "answer"))
    return 1 - correct / answer if answer else 0.0


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
        self.numbers = cache(self.numbers)

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
        if None in results or (metric in RUNS and any("rewards" not in result for result in results)):
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
        rule = claim.expect, claim.margin, claim.half, claim.least
        word, (low, high) = verdict(estimate, *rule), estimate.interval()
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
            facts |= dict(code=result["code"], tries=result.get("samples"), tokens=result.get("tokens"))
            facts |= dict(seconds=result["seconds"])
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
