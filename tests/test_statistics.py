"""lab/statistics.py: Student's t against tables, intervals against simulation, verdicts by table."""

import math

from lab.statistics import Estimate, blocks, discoveries, paired, spread, t_quantile, t_share, verdict

import numpy as np
import pytest

# scipy 1.17.1: scipy.stats.t.ppf((1 + level) / 2, df)
QUANTILES = {
    (0.95, 1): 12.706204736174694, (0.95, 2): 4.302652729749462, (0.95, 3): 3.1824463052837078,
    (0.95, 4): 2.7764451051977934, (0.95, 7): 2.364624251592784, (0.95, 9): 2.262157162798205,
    (0.95, 16): 2.1199052992212546, (0.95, 120): 1.9799304050824402, (0.90, 2): 2.9199855803537242,
    (0.90, 8): 1.8595480375308973, (0.99, 5): 4.032142983555228, (0.50, 1): 1.0}  # fmt: skip


def test_quantiles_are_those_of_students_t():
    for (level, df), value in QUANTILES.items():
        assert t_quantile(level, df) == pytest.approx(value, rel=1e-9), (level, df)


@pytest.mark.parametrize("df", range(1, 13))
def test_the_share_within_t_is_the_integral_of_the_density(df):
    """Oracle: Simpson's rule on the density."""
    for t in (0.0, 0.3, 1.0, 2.5, 6.0):
        x = np.linspace(0, t, 20_001)
        scale = math.gamma((df + 1) / 2) / math.gamma(df / 2) / math.sqrt(df * math.pi)
        y = scale * (1 + x**2 / df) ** (-(df + 1) / 2)
        weights = np.ones_like(x)
        weights[1:-1:2], weights[2:-1:2] = 4, 2
        assert t_share(t, df) == pytest.approx(2 * float(weights @ y) * t / 60_000, abs=1e-9)


def test_paired_is_the_t_test_of_differences():
    # scipy 1.17.1: scipy.stats.ttest_1samp(values, 0)
    estimate = paired([0.1, 0.2, 0.4, 0.1])
    assert estimate.effect == pytest.approx(0.2) and estimate.df == 3
    assert estimate.interval() == pytest.approx((-0.02503293632281836, 0.42503293632281836))
    assert estimate.p == pytest.approx(0.06627560274152429)


def test_one_seed_says_nothing_of_the_error():
    estimate = paired([0.3])
    assert estimate.interval() == (-math.inf, math.inf) and estimate.p == 1
    assert verdict(estimate, "up", 0.03) == "undecided"


def test_two_arms_in_blocks_are_the_paired_test():
    rand = np.random.default_rng(0)
    table = rand.normal(size=(2, 6))
    block = blocks(table, np.array([1.0, -1.0]), np.array([True, True]))
    plain = paired(table[0] - table[1])
    assert (block.effect, block.error, block.df) == pytest.approx((plain.effect, plain.error, plain.df))


def test_what_a_seed_does_to_all_arms_falls_out():
    rand, weights = np.random.default_rng(1), np.array([1.0, 0, 0, -1])
    table = rand.normal(size=(4, 5))
    estimate = blocks(table, weights)
    assert estimate.df == 12
    for offsets in (100 * rand.normal(size=5), 100 * rand.normal(size=(4, 1))):
        moved = blocks(table + offsets, weights)
        assert (moved.error, moved.df) == pytest.approx((estimate.error, estimate.df))


@pytest.mark.parametrize("arms, seeds", [(2, 4), (5, 3), (5, 4)])
def test_block_intervals_cover_the_truth(arms, seeds):
    """1,000 studies with effects of seeds far larger than the error: 93 to 97% of the intervals hold the truth."""
    rand, truth = np.random.default_rng(arms * seeds), np.linspace(0, 0.4, arms)
    weights, held, plain = np.zeros(arms), 0, 0
    weights[-1], weights[0] = 1, -1
    for _ in range(1000):
        table = truth[:, None] + 0.2 * rand.normal(size=seeds) + 0.03 * rand.normal(size=(arms, seeds))
        low, high = blocks(table, weights, np.ones(arms, bool)).interval()
        held += low <= 0.4 <= high
        low, high = paired(table[-1] - table[0]).interval()
        plain += low <= 0.4 <= high
    assert 930 <= held <= 970 and 930 <= plain <= 970


def test_arms_at_the_floor_are_left_out_of_the_error():
    rand = np.random.default_rng(2)
    table = np.vstack([0.4 + 0.1 * rand.normal(size=(3, 4)), np.zeros((2, 4))])
    pool = np.array([True] * 3 + [False] * 2)
    weights = np.array([1.0, -1, 0, 0, 0])
    estimate = blocks(table, weights, pool)
    assert estimate == blocks(table[:3], weights[:3], pool[:3]) and estimate.df == 6


def test_spread_parts_seeds_from_runs():
    rand = np.random.default_rng(3)
    table = 0.5 * rand.normal(size=(2000, 1)) + 0.1 * rand.normal(size=(2000, 3))
    assert spread(table) == pytest.approx((0.5, 0.1), rel=0.05)
    between, within = spread(table[:, :1])
    assert between == pytest.approx(0.51, rel=0.05) and math.isnan(within)


# effect, error (df 1000: t is 1.962 and 1.646), expect, margin, half → verdict
VERDICTS = [
    (0.10, 0.02, "up", 0.03, None, "replicated"),
    (0.10, 0.02, "up", 0.03, 0.09, "replicated"),
    (0.10, 0.02, "up", 0.03, 0.21, "direction only"),
    (0.02, 0.002, "up", 0.03, None, "refuted"),
    (-0.10, 0.02, "up", 0.03, None, "refuted"),
    (0.10, 0.08, "up", 0.03, None, "undecided"),
    (0.025, 0.01, "up", 0.03, None, "undecided"),
    (-0.10, 0.02, "down", 0.03, None, "replicated"),
    (-0.10, 0.02, "down", 0.03, 0.2, "direction only"),
    (0.10, 0.02, "down", 0.03, None, "refuted"),
    (0.00, 0.01, "equal", 0.03, None, "equal"),
    (0.00, 0.02, "equal", 0.03, None, "undecided"),
    (0.01, 0.0115, "equal", 0.03, None, "equal"),
    (0.01, 0.0125, "equal", 0.03, None, "undecided"),
    (0.10, 0.02, "equal", 0.03, None, "refuted"),
    (-0.10, 0.02, "equal", 0.03, None, "refuted"),
    (0.02, 0.02, "none", 0.10, None, "replicated"),
    (-0.50, 0.02, "none", 0.10, None, "replicated"),
    (0.20, 0.02, "none", 0.10, None, "refuted"),
    (0.09, 0.02, "none", 0.10, None, "undecided"),
]


@pytest.mark.parametrize("effect, error, expect, margin, half, word", VERDICTS)
def test_verdicts(effect, error, expect, margin, half, word):
    assert verdict(Estimate(effect, error, 1000), expect, margin, half) == word


def test_an_interval_must_be_above_what_a_claim_says():
    assert verdict(Estimate(0.25, 0.02, 1000), "up", 0.2, least=0.2) == "replicated"
    assert verdict(Estimate(0.25, 0.03, 1000), "up", 0.2, least=0.2) == "undecided"
    assert verdict(Estimate(-0.25, 0.02, 1000), "down", 0.2, least=0.2) == "replicated"


def test_discoveries_are_benjamini_and_hochbergs():
    # the example of their paper, section 3, at rate .05; scipy 1.17.1's false_discovery_control says the same
    ps = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.3240,
        0.4262,
        0.5719,
        0.6528,
    ]
    ps += [0.7590, 1.0]
    assert discoveries(ps[::-1], 0.05)[::-1] == [True] * 4 + [False] * 11
    assert discoveries([]) == [] and discoveries([0.9]) == [False]
