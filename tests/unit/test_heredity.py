"""Neighbours of a noise: expected maxima, the best angle, what is learnt of heredity, and what it says."""

from __future__ import annotations

import math

import pytest
import torch

from testtime.samplers.heredity import LARGEST, Heredity, expected_best, inheritance, neighbour


@pytest.mark.parametrize(("count", "value"), [(1, 0.0), (2, 0.5642), (3, 0.8463), (4, 1.0294), (8, 1.4236)])
def test_expected_maxima_of_normals(count, value):
    assert expected_best(count) == pytest.approx(value, abs=1e-4)


def test_best_of_neighbours_is_worth_what_the_formula_says():
    """Linear score, pivot 1.5 standard deviations up, 4 neighbours at .95: 1.425 + .3122 * 1.0294 = 1.746."""
    generator = torch.Generator().manual_seed(0)
    images, size, c = 4000, 64, 0.95
    pivot = torch.randn(images, size, generator=generator, dtype=torch.float64)
    pivot[:, 0] = 1.5
    children = [
        neighbour(pivot, torch.randn(images, size, generator=generator, dtype=torch.float64), torch.full((images,), c))
        for _ in range(4)
    ]
    best = torch.stack([child[:, 0] for child in children]).amax(0)
    assert float(best.mean()) == pytest.approx(1.746, abs=0.015)


@pytest.mark.parametrize("standing", [0.5, 1.5, 3.0])
def test_the_angle_is_the_best_one(standing):
    """No other heredity promises more than the one that is taken."""
    known = Heredity(plain=[-1.0, 1.0, 0.0, -1.0, 1.0])  # spread 1, mean 0
    reach = expected_best(4)
    h = known.cosine(standing, 4)
    promised = h * standing + math.sqrt(1 - h * h) * reach
    others = torch.linspace(0, 0.9999, 2001, dtype=torch.float64)
    assert promised >= float((others * standing + (1 - others.square()).sqrt() * reach).max()) - 1e-6
    assert h == pytest.approx(standing / math.hypot(standing, reach))


@pytest.mark.parametrize("true", [1.0, 4.0, 20.0])
def test_the_exponent_is_learnt(true):
    known = Heredity(plain=[-1.0, 1.0, 0.0, -1.0, 1.0])
    generator = torch.Generator().manual_seed(1)
    for _ in range(41):
        c = known.cosine(2.0, 4)
        h = c**true
        known.learn(2.0, c, h * 2.0 + math.sqrt(1 - h * h) * torch.randn(64, generator=generator, dtype=torch.float64))
    assert known.exponent == pytest.approx(true, rel=0.15)
    assert known.inherited(0.95) == pytest.approx(0.95**true, abs=0.05)
    # and the angle it leads to inherits as much as is best
    assert known.cosine(2.0, 4) ** known.exponent == pytest.approx(2 / math.hypot(2, expected_best(4)))


def test_children_below_the_mean_inherit_nothing():
    known = Heredity(plain=[-1.0, 1.0])
    for _ in range(3):
        known.learn(2.0, 0.95, torch.tensor([-1.0, -2.0], dtype=torch.float64))
    assert known.exponent == LARGEST and known.rough


def test_numbers_that_say_nothing_are_left_out():
    known = Heredity()
    known.draw(torch.tensor([math.nan, 1.0, -math.inf]))
    assert known.plain == [1.0] and known.standing(3.0) is None
    assert 0 < known.cosine(3.0, 4) < 1  # one plain score: no spread, a middle angle
    known.draw(torch.tensor([2.0]))
    known.learn(3.0, 0.9, torch.tensor([math.nan]))
    known.learn(1.0, 0.9, torch.tensor([1.0]))  # a pivot below the mean
    assert not known.exponents and not known.rough
    assert known.cosine(-5.0, 4) == 0.0  # worse than plain: draw anew


def test_what_people_read():
    assert inheritance([None]) == "" == inheritance([])
    assert inheritance([math.log(0.42) / math.log(0.95), None]) == "neighbours at 18 degrees inherit 42 % of a score"
