"""How sure a mean over prompts is: percentile bootstrap intervals, of one method and of two on the same prompts.

The prompts of a benchmark are a sample of all that could have been asked, task by task, so prompts are drawn again
*within* their task (a stratified bootstrap), and the statistic is the one that the tables show: the mean of the tasks'
means. Images of one prompt are not independent; they are averaged first, and the prompt is the unit.

The interval is the plain percentile interval (Efron and Tibshirani 1993, chapter 13): the quantiles of the statistic
over the resamples. For shares of right images over tens of prompts it is a little narrow (a bootstrap of ``n`` values
has ``(n - 1) / n`` of their unbiased variance), and it has no width where all values of every task are equal.
``scipy.stats.bootstrap`` draws the same distribution; it is not used because it keeps an index for every value of every
resample, and because a table must not change with scipy's version. A test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
RESAMPLES = 4000


class Interval(NamedTuple):
    """An estimate and the interval around it, ``low <= high``; all three in the unit of the values."""

    estimate: float
    low: float
    high: float

    def rounded(self, digits: int) -> Interval:
        """All three rounded to ``digits`` decimals."""
        return Interval(*(round(value, digits) for value in self))


def mean_interval(
    strata: Sequence[ArrayLike], level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean of the strata's means, and its bootstrap interval.

    Args:
        strata: one or more lists of finite numbers, a value per prompt; values are drawn again within their list.
        level: coverage, between 0 and 1.
        resamples: bootstrap samples, at least 1.
        seed: of the resampling; the interval is a function of its arguments.

    Raises:
        ValueError: no values, an empty stratum, a value that is not finite, or a level outside 0..1.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is {level}: it must lie between 0 and 1")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}: at least 1 is needed")
    values = [np.asarray(stratum, dtype=np.float64).ravel() for stratum in strata]
    if not values or any(len(stratum) == 0 for stratum in values):
        raise ValueError(f"{len(values)} strata with {[len(v) for v in values]} values: each needs at least one value")
    if not all(np.isfinite(stratum).all() for stratum in values):
        raise ValueError("a value is not finite: leave it out, or give it a number")
    means = _resampled_means(values, resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean([stratum.mean() for stratum in values])), float(low), float(high))


def paired_interval(
    first: Sequence[ArrayLike],
    second: Sequence[ArrayLike],
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """``first - second`` on the same prompts: the mean difference and its bootstrap interval.

    The same prompts are drawn again for both. The difference is then known better than the two intervals suggest,
    because easy prompts are easy for both.

    Args:
        first, second: strata of the same sizes, in the same order of prompts.
        level, resamples, seed: see ``mean_interval``.

    Raises:
        ValueError: strata of different sizes, and as ``mean_interval``.
    """
    sizes = [[np.size(stratum) for stratum in side] for side in (first, second)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the strata have {sizes[0]} and {sizes[1]} values: a pair needs the same prompts on both sides"
        )
    differences = [np.subtract(a, b, dtype=np.float64) for a, b in zip(first, second, strict=True)]
    return mean_interval(differences, level, resamples, seed)


def per_prompt(values: ArrayLike, images: int) -> NDArray[np.float64]:
    """Means ``[prompts]`` of values ``[prompts * images]``, the images of a prompt in a row.

    Raises:
        ValueError: the number of values is not a multiple of ``images``.
    """
    flat = np.asarray(values, dtype=np.float64).ravel()
    if images < 1 or len(flat) % images:
        raise ValueError(f"{len(flat)} values of {images} images per prompt: a multiple is needed")
    return flat.reshape(-1, images).mean(1)


def _resampled_means(strata: Sequence[NDArray[np.float64]], resamples: int, rng: np.random.Generator) -> NDArray:
    """The statistic of every resample ``[resamples]``.

    Drawing n values with replacement is drawing how often each distinct value comes: one multinomial number per
    distinct value instead of n indices, and no rounding where the values are whole numbers.
    """
    distinct = np.unique(np.concatenate(strata))
    sizes = np.array([len(stratum) for stratum in strata])
    shares = [(stratum[:, None] == distinct).mean(0) for stratum in strata]
    sums = [rng.multinomial(n, share, size=resamples) @ distinct for n, share in zip(sizes, shares, strict=True)]
    if (sizes == sizes[0]).all():
        return np.mean(sums, axis=0) / sizes[0]
    return np.mean(np.array(sums) / sizes[:, None], axis=0)
