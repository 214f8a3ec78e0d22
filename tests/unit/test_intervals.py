"""Bootstrap intervals against closed forms, against scipy's bootstrap, and against the truth that they should hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from testtime.shapes_world.intervals import Interval, mean_interval, paired_interval, per_prompt


@pytest.mark.parametrize(("right", "count"), [(10, 40), (3, 16), (200, 240)])
def test_shares_have_the_quantiles_of_the_binomial(right, count):
    """Drawing verdicts again is drawing a binomial number: its quantiles are known exactly."""
    verdicts = [True] * right + [False] * (count - right)
    found = mean_interval([verdicts], resamples=40_000)
    assert found.estimate == pytest.approx(right / count)
    for value, q in ((found.low, 0.025), (found.high, 0.975)):
        # The quantile of 40000 draws lies within three standard errors of q on the exact distribution.
        error = 3 * math.sqrt(q * (1 - q) / 40_000)
        exact = [stats.binom.ppf(p, count, right / count) / count for p in (q - error, q + error)]
        assert exact[0] - 1e-9 <= value <= exact[1] + 1e-9


def test_means_have_the_standard_error_of_a_stratified_sample():
    """Variance of the mean of means: ``sum s_k^2 / n_k / K^2`` with the biased variances of the strata."""
    rng = np.random.default_rng(1)
    strata = [rng.normal(0, 1, 60), rng.normal(5, 3, 100)]
    found = mean_interval(strata, resamples=10_000)
    error = math.sqrt(sum(np.var(s) / len(s) for s in strata)) / 2
    assert found.estimate == pytest.approx((strata[0].mean() + strata[1].mean()) / 2)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.04)
    wide = mean_interval(strata, level=0.99, resamples=10_000)
    assert wide.high - wide.low == pytest.approx(2 * 2.576 * error, rel=0.05)
    # The gap of 5 between the strata is not part of it: without strata the interval would be wider.
    alone = mean_interval([np.concatenate(strata)], resamples=4000)
    assert alone.high - alone.low > 1.2 * (found.high - found.low)


def test_scipy_draws_the_same_distribution():
    rng = np.random.default_rng(2)
    strata = [rng.exponential(1.0, 30), rng.exponential(2.0, 30), rng.random(30) < 0.4]
    found = mean_interval(strata, resamples=20_000)
    theirs = stats.bootstrap(
        tuple(np.asarray(s, float) for s in strata), lambda *s, axis: sum(x.mean(axis) for x in s) / 3,
        n_resamples=20_000, vectorized=True, method="percentile", random_state=0,
    ).confidence_interval  # fmt: skip
    width = found.high - found.low
    assert found.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_equal_values_have_no_width_and_the_same_arguments_the_same_interval():
    assert mean_interval([[1, 1, 1], [0, 0]]) == Interval(0.5, 0.5, 0.5)
    values = np.random.default_rng(0).random((3, 20))
    assert mean_interval(values) == mean_interval(values) != mean_interval(values, seed=1)
    assert mean_interval(values).rounded(2).low == round(mean_interval(values).low, 2)


def test_pairs_know_that_the_prompts_are_the_same():
    rng = np.random.default_rng(4)
    hard = rng.normal(0, 3, (2, 50))  # how hard the prompts are: common to both sides
    first, second = hard + 0.5 + rng.normal(0, 0.1, (2, 50)), hard
    paired = paired_interval(first, second)
    assert 0.4 < paired.low < 0.5 < paired.high < 0.6
    alone = [mean_interval(side) for side in (first, second)]
    assert alone[0].low < alone[1].high  # apart, they could not be told from each other
    assert paired_interval(first, second) == mean_interval(first - second)
    turned = paired_interval(second, first)
    assert turned.estimate == pytest.approx(-paired.estimate) and turned.high < 0


def test_intervals_hold_the_truth_as_often_as_they_promise():
    """Verdicts of six tasks of known difficulty, 40 prompts each: 95 % intervals hold the true share about as often."""
    rng, truth, held = np.random.default_rng(5), [0.95, 0.6, 0.7, 0.9, 0.2, 0.4], 0
    for _ in range(300):
        found = mean_interval([rng.random(40) < share for share in truth], resamples=500)
        held += found.low <= np.mean(truth) <= found.high
    assert 0.91 <= held / 300 <= 0.985


def test_images_of_a_prompt_are_one_value():
    assert per_prompt([1, 0, 1, 1], 2).tolist() == [0.5, 1.0]
    # Twice the same image says no more than once: without the averaging the interval would be narrower by sqrt(2).
    values = np.random.default_rng(6).random(80)
    once, twice = mean_interval([values]), mean_interval([per_prompt(np.repeat(values, 2), 2)])
    naive = mean_interval([np.repeat(values, 2)])
    assert twice == once
    assert (once.high - once.low) / (naive.high - naive.low) == pytest.approx(math.sqrt(2), rel=0.06)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strata": []}, "0 strata"),
        ({"strata": [[1.0], []]}, r"2 strata with \[1, 0\] values"),
        ({"strata": [[1.0, math.nan]]}, "not finite"),
        ({"strata": [[1.0]], "level": 1.0}, "level is 1.0"),
        ({"strata": [[1.0]], "resamples": 0}, "resamples is 0"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        mean_interval(**arguments)
    with pytest.raises(ValueError, match=r"the strata have \[2\] and \[1\] values"):
        paired_interval([[1, 2]], [[1]])
    with pytest.raises(ValueError, match="3 values of 2 images per prompt"):
        per_prompt([1, 2, 3], 2)
