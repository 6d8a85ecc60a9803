import cli
import numpy as np
import pytest

import datagen
import evaluate
import verify
from evaluate import bootstrap, gain, parse_bands, summarise


def test_bands():
    assert parse_bands("id=2-4,edge=5-6") == {"id": [2, 3, 4], "edge": [5, 6]}
    for bad in ("2-4", "id=2-4,id=5", "id=1-4", "id=", "id=2-4,edge=4-5"):
        with pytest.raises(cli.UserError):
            parse_bands(bad)


def test_bootstrap_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(300):
        values = rng.binomial(8, 0.3, size=120) / 8
        low, high = bootstrap(values, seed=i, resamples=400)
        hits += low <= 0.3 <= high
    assert 0.90 <= hits / 300 <= 0.99


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
    mean, error = gain(np.array([1, 2, 3, 0]), np.array([3, 4, 5, 2]), 8)
    assert mean == 0.25 and error == 0  # every problem gained the same
    before, after = np.array([0, 8, 0, 8]), np.array([8, 0, 8, 8])
    d = np.array([1, -1, 1, 0])
    assert gain(before, after, 8) == (d.mean(), pytest.approx(d.std(ddof=1) / 2))
