import math
from statistics import NormalDist

from lab.options import UserError

import numpy as np
import pytest

import datagen
import evaluate
import verify
from evaluate import gain, interval, parse_bands, parse_ks, summarise, wilson


def test_bands():
    assert parse_bands("id=2-4,edge=5-6") == {"id": [2, 3, 4], "edge": [5, 6]}
    for bad in ("2-4", "id=2-4,id=5", "id=1-4", "id=", "id=2-4,edge=4-5"):
        with pytest.raises(UserError):
            parse_bands(bad)


def test_ks():
    assert parse_ks("1, 8", 8) == [1, 8]
    for bad in ("", "0", "9", "1,,2", "1.0", "-1", "٣", "nan"):
        with pytest.raises(UserError):
            parse_ks(bad, 8)


def test_bootstrap_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(300):
        values = rng.binomial(8, 0.3, size=120) / 8
        low, high = interval(values, seed=i, resamples=400)
        hits += low <= 0.3 <= high
    assert 0.90 <= hits / 300 <= 0.99


def test_wilson_bounds_by_their_definition():
    """The shares p with |p − found| = z standard errors of p; and numbers of Newcombe 1998, table I."""
    for passed, n in ((0, 200), (1, 20), (3, 10), (81, 263), (20, 20)):
        low, high = wilson(passed / n, n)
        for bound in (low, high):
            if 1e-9 < bound < 1 - 1e-9:
                error = 1.96 * math.sqrt(bound * (1 - bound) / n)
                assert abs(bound - passed / n) == pytest.approx(error, rel=1e-6)
        assert 0 <= low <= passed / n <= high + 1e-9 <= 1 + 1e-9 and low < high
    for passed, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(passed / n, n) == pytest.approx((low, high), abs=5e-5)
    assert pytest.approx(NormalDist().inv_cdf(0.975), abs=1e-3) == 1.96


@pytest.mark.parametrize("value", [0.0, 1.0, 0.25])
def test_where_all_problems_agree_the_interval_is_not_a_point(value):
    """0 of 200 problems solved does not say that none ever is: at most about 2% are."""
    low, high = interval([value] * 200)
    assert low <= value <= high and high - low > 0.01
    if value == 0:
        assert low == 0 and 0.015 < high < 0.02
    elif value == 1:
        assert high == 1 and 0.98 < low < 0.985
    shorter, longer = (np.ptp(interval([value] * n)) for n in (400, 50))
    assert shorter < high - low < longer


def test_an_interval_where_nothing_was_solved_reaches_the_table():
    problems = [datagen.generate(1, i, op=2) for i in range(3)] * 70
    counts = {kind: np.zeros(210, int) for kind in evaluate.JUDGED} | {"process": np.zeros(210)}
    out = summarise(problems, counts, range(200), [1, 4], 4)
    for k in (1, 4):
        assert out[f"correct@{k}"] == {"mean": 0.0, "low": 0.0, "high": pytest.approx(0.0188, abs=1e-3)}


def test_summary_against_brute_force():
    problems = [datagen.generate(1, i, op=3) for i in range(6)]
    counts = {k: np.array([0, 1, 2, 4, 4, 3]) for k in evaluate.JUDGED} | {"process": np.linspace(0, 1, 6)}
    out = summarise(problems, counts, [1, 2, 4], [1, 2], 4)
    assert out["correct@1"]["mean"] == pytest.approx((1 + 2 + 4) / 12)
    assert out["correct@2"]["mean"] == pytest.approx(sum(verify.pass_at_k(4, c, 2) for c in (1, 2, 4)) / 3)
    assert out["correct@2"]["low"] <= out["correct@2"]["mean"] <= out["correct@2"]["high"]
    assert out["problems"] == 3 and out["process"] == pytest.approx((0.2 + 0.4 + 0.8) / 3)
    answers = [problems[i].answer for i in (1, 2, 4)]
    assert out["guess_floor"] == max(answers.count(a) for a in answers) / 3


def test_gain_is_the_paired_difference():
    before, after = np.array([0, 8, 0, 8]), np.array([8, 0, 8, 8])
    d = np.array([1, -1, 1, 0])
    mean, error = d.mean(), d.std(ddof=1) / 2
    assert (
        gain(before, after, 8)
        == f"correct@1 {mean:+.3f}, standard error {error:.3f} ({mean / error:+.1f} SE)"
    )


@pytest.mark.parametrize("difference", [0, 2, -3])
def test_a_gain_that_is_the_same_in_every_problem_is_not_known_exactly(difference):
    """Its standard error is 0, which says nothing: what is said is how many problems may differ otherwise."""
    words = gain(np.full(200, 4), np.full(200, 4 + difference), 8)
    assert (
        words.startswith(f"correct@1 {difference / 8:+.3f}")
        and "0.019" in words
        and "standard error" not in words
    )
    few = gain(np.array([1, 2, 3, 0]), np.array([3, 4, 5, 2]), 8)
    assert few.startswith("correct@1 +0.250") and "0.490" in few
