"""Intervals over problems and over seeds, and the verdicts that they allow.

A study is a randomised block design: every seed, a block, has every arm. What a seed does alike to all arms
falls out of their differences; what is left is pooled over the arms, so that few seeds give many degrees of
freedom.
A is the number of arms, S of seeds. numpy only.
"""

import math
from dataclasses import dataclass

import numpy as np

# ------------------------------------------------------------------------------------------------------------
# One checkpoint, or two: over problems


def wilson(share, n, z=1.96):
    """95% interval of a share of n (Wilson 1927) → (low, high). At 0 of 200 it is (0, .019), not (0, 0)."""
    centre, spread = share + z * z / (2 * n), z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return tuple(min(1.0, max(0.0, (centre + sign * spread) / (1 + z * z / n))) for sign in (-1, 1))


def interval(values, seed=0, resamples=2000):
    """95% interval of the mean of values in [0, 1], one a problem → (low, high).

    The percentile bootstrap over problems (Efron 1979); where all problems agree, which leaves nothing to
    resample, Wilson's.
    """
    values = np.asarray(values, np.float64)
    if np.all(values == values[0]):
        return wilson(float(values[0]), len(values))
    index = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    return tuple(np.percentile(values[index].mean(1), [2.5, 97.5]).tolist())


def gain(before, after, n):
    """Paired difference of pass@1 over the same problems, in words. before, after: (problems,) counts of n
    tries.
    """
    difference = (after - before) / n
    mean = difference.mean()
    others = wilson(0.0, len(difference))[1]
    if not difference.any():
        return f"correct@1 +0.000: no problem differs (95%: by at most {others:.3f})"
    if np.ptp(difference) == 0:  # nor does a standard error of 0, or all but 0, say that it is known exactly
        return f"correct@1 {mean:+.3f} in every problem (95%: of others at most {others:.3f} differ)"
    error = difference.std(ddof=1) / len(difference) ** 0.5
    return f"correct@1 {mean:+.3f}, standard error {error:.3f} ({mean / error:+.1f} SE)"


# ------------------------------------------------------------------------------------------------------------
# A study: over seeds


@dataclass(frozen=True)
class Estimate:
    effect: float
    error: float  # its standard error; inf where one seed says nothing of it
    df: int

    def half(self, level=0.95):
        """Half the width of the interval, by Student's t."""
        return t_quantile(level, self.df) * self.error

    def interval(self, level=0.95):
        """→ (low, high)."""
        half = self.half(level)
        return self.effect - half, self.effect + half

    @property
    def p(self):
        """Two-sided, of no effect."""
        if not self.error:
            return float(self.effect == 0)
        return 1 - t_share(abs(self.effect / self.error), self.df)


def t_share(t, df):
    """P(|T| <= t) of Student's t with df = 1, 2, 3 … degrees of freedom: the finite sums of Abramowitz and
    Stegun, 26.7.3 and 26.7.4.
    """
    angle, odd = math.atan2(t, math.sqrt(df)), df % 2
    cosine, total = math.cos(angle), 0.0
    term = cosine if odd else 1.0
    for i in range(1 + odd, df, 2):
        total += term
        term *= cosine**2 * i / (i + 1)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def t_quantile(share, df):
    """The t with P(|T| <= t) = share, by bisection."""
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_share(middle, df) < share else (low, middle)
    return high


def paired(values):
    """The mean of one number a seed → Estimate, by these numbers alone."""
    n = len(values)
    error = np.std(values, ddof=1) / math.sqrt(n) if n > 1 else math.inf
    return Estimate(float(np.mean(values)), float(error), max(1, n - 1))


def blocks(table, weights, pool=slice(None)):
    """A contrast of arms → Estimate, its error what neither arms nor seeds explain, pooled over arms whose
    variances are alike.

    table: (A, S) values; weights: (A,), which sum to 0; pool: which arms the error is of.
    """
    alike = table[pool]
    rest = alike - alike.mean(0) - alike.mean(1, keepdims=True) + alike.mean()
    df = (len(alike) - 1) * (alike.shape[1] - 1)
    error = math.sqrt((rest**2).sum() / df * (weights @ weights) / alike.shape[1])
    return Estimate(float(weights @ table.mean(1)), error, df)


def spread(table):
    """(S, R) values, R runs nested in each of S seeds → standard deviations between seeds, and between the
    runs of a seed, by analysis of variance; nan where there is but one.
    """
    seeds, runs = table.shape
    within = float(table.var(1, ddof=1).mean()) if runs > 1 else math.nan
    between = float(table.mean(1).var(ddof=1)) if seeds > 1 else math.nan
    if runs > 1:
        between = max(0.0, between - within / runs)
    return math.sqrt(between), math.sqrt(within)


def verdict(estimate, expect, margin, half=None, least=0.0):
    """replicated, direction only, refuted, equal or undecided.

    expect: up, an effect of at least the margin whose interval is above `least`; down; none, no more than
    the margin; equal, the 90% interval within ±margin (two one-sided tests at 5%). half: half the paper's
    number; a smaller effect of its sign is "direction only".
    """
    if expect == "down":
        return verdict(Estimate(-estimate.effect, estimate.error, estimate.df), "up", margin, half, least)
    effect, (low, high), (inner, outer) = estimate.effect, estimate.interval(), estimate.interval(0.90)
    holds, fails = {
        "up": (effect >= margin and low > least, high < margin),
        "none": (high < margin, low > margin),
        "equal": (-margin < inner and outer < margin, low > margin or high < -margin),
    }[expect]
    if not holds:
        return "refuted" if fails else "undecided"
    if half is not None and effect < half:
        return "direction only"
    return "equal" if expect == "equal" else "replicated"


def discoveries(ps, rate=0.10):
    """p values → which are discoveries at this false discovery rate (Benjamini and Hochberg 1995)."""
    passed = [p for i, p in enumerate(sorted(ps), 1) if p <= rate * i / len(ps)]
    return [bool(passed) and p <= passed[-1] for p in ps]
