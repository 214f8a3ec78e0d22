"""The comparison of verifiers: ranks and agreement against scipy, the picture and its refusals."""

import numpy as np
import pytest
from scipy import stats

from testtime.reports.canvas import DARK, LIGHT
from testtime.reports.compare import agreement, as_text, comparison, mean_ranks, ranks

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 255, (20, 32, 48, 3), dtype=np.uint8)


def test_ranks_are_shares_of_the_beaten():
    assert ranks([3.0, 1.0, 2.0]).tolist() == [1.0, 0.0, 0.5]
    assert ranks([1.0, 1.0, 2.0]).tolist() == [0.25, 0.25, 1.0]
    with_gap = ranks([3.0, None, 1.0])
    assert with_gap[[0, 2]].tolist() == [1.0, 0.0] and np.isnan(with_gap[1])
    assert ranks([5.0]).tolist() == [0.5]


def test_agreement_is_spearmans():
    a, b = RNG.normal(size=30), RNG.integers(0, 5, 30).astype(float)
    assert agreement(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert agreement([*a, None], [*b, 3.0]) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert agreement(a, -(a**3)) == pytest.approx(-1.0)
    assert agreement([1.0, 2.0], [2.0, 1.0]) is None and agreement([1.0] * 5, [1, 2, 3, 4, 5]) is None


def test_mean_rank_of_an_image_without_scores_is_last():
    assert mean_ranks({"a": [1.0, None, 2.0], "b": [3.0, None, 4.0]}).tolist() == [0.0, 0.0, 1.0]


def test_table_lists_the_best_first_and_says_who_agrees():
    text = as_text({"first": [0.1, 0.9, None], "second": [2.0, 3.0, 1.0]})
    lines = text.splitlines()
    assert lines[1].split()[0] == "1" and "n/a" in lines[3]
    assert lines[-1] == "agreement of first and second: n/a"


@pytest.mark.parametrize(("count", "theme"), [(2, "dark"), (3, "light"), (4, DARK)])
def test_picture_shows_every_pair_and_the_listed_images(count, theme):
    scores = {f"judge {index}": RNG.normal(size=20).tolist() for index in range(count)}
    picture = comparison(IMAGES, scores, theme)
    assert picture.dtype == np.uint8 and picture.ndim == 3
    background = (LIGHT if theme == "light" else DARK).background
    drawn = (np.abs(picture.astype(int) - background).sum(-1) > 30).mean()
    assert 0.05 < drawn < 0.9
    fewer = comparison(IMAGES, {**scores, "judge 0": [None] * 20}, theme)
    assert fewer.shape == picture.shape


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="needs at least two"):
        comparison(IMAGES, {"one": [0.0] * 20})
    with pytest.raises(ValueError, match="second has 3 scores for 20 images"):
        comparison(IMAGES, {"first": [0.0] * 20, "second": [0.0] * 3})
