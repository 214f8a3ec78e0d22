"""Search over paths: cost by formula, marginals kept by going up and down, gain, bad input."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.methods import PathSearch
from testtime.samplers.processes.kernel import VE, Flow
from testtime.samplers.protocols import SearchError
from testtime.samplers.run.search import run_search

from . import oracles

TARGET = oracles.FunctionVerifier(lambda x: -(x - 1).square().mean(1))


def mixture(steps=40, groups=1, seed=0, flow=False):
    interpolant = Flow() if flow else VE()
    denoiser = oracles.MixtureDenoiser(torch.tensor([[-1.5], [1.0]]), torch.tensor([0.3, 0.7]), 0.16, interpolant)
    return oracles.process(denoiser, steps, groups, seed, eta=0.0, flow=flow)


def test_published_defaults_take_four_rounds():
    assert [round(t, 2) for t in PathSearch().stops()] == [0.11, 0.08, 0.05, 0.02, 0.0]


@pytest.mark.parametrize("flow", [False, True])
def test_cost_is_the_formula(flow):
    groups, search = 2, PathSearch(paths=3, branches=2, steps=4)
    process = mixture(20, groups, flow=flow)
    first = len(search._first(process))  # one call at every sigma of the descent, its end included
    result = run_search(search, process, TARGET, ["p"] * groups)
    rounds = len(search.stops()) - 1
    # Descents of the rounds predict at every sigma but the last one, whose estimate is needed too unless it is 0.
    expected = 3 * first + (rounds - 1) * 6 * (4 + 1) + 6 * 4
    assert result.ledger.nfe == groups * expected


@pytest.mark.slow
@pytest.mark.parametrize("flow", [False, True])
def test_going_up_and_down_keeps_the_law(flow):
    """Without selection (one branch, a blind judge) the samples still follow the data."""
    groups = 8_000
    search = PathSearch(paths=1, branches=1, steps=40)
    blind = oracles.FunctionVerifier(lambda x: torch.zeros(len(x)))
    result = run_search(search, mixture(60, groups, flow=flow), blind, ["p"] * groups)
    x = result.latents[:, 0]
    assert float((x < -0.25).double().mean()) == pytest.approx(0.3, abs=0.03)
    assert float(x.mean()) == pytest.approx(0.25, abs=0.06)
    assert float(x.std()) == pytest.approx((0.16 + 0.3 * 1.75**2 + 0.7 * 0.75**2) ** 0.5, rel=0.03)


def test_it_climbs():
    groups = 300
    plain = run_search(PathSearch(1, 1), mixture(groups=groups), TARGET, ["p"] * groups)
    found = run_search(PathSearch(2, 3), mixture(groups=groups), TARGET, ["p"] * groups)
    assert float(found.scores[:: len(found.scores) // groups].mean()) > float(plain.scores.mean()) + 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"paths": 0}, "paths is 0"),
        ({"forward": 0.85}, "forward 0.85"),
        ({"start": 0.0}, "start 0.0"),
        ({"start": 0.3}, "start 0.3"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(SearchError, match=message):
        run_search(PathSearch(**settings), mixture(), TARGET, ["p"])
