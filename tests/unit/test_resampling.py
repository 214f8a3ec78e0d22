"""Resampling schemes: unbiased, with the variance each promises, safe at the edges; weights and tempering."""

from __future__ import annotations

import math

import pytest
import torch

from testtime.samplers.processes.streams import Streams
from testtime.samplers.smc.population import Population
from testtime.samplers.smc.potentials import Potential
from testtime.samplers.smc.resampling import SCHEMES, resample
from testtime.samplers.smc.tempering import TEMPERINGS, Alpha, AlphaScale
from testtime.samplers.smc.weights import (
    best_index,
    clean_scores,
    effective_sample_size,
    ess_threshold,
    gumbel_choice,
    log_mean,
    normalise,
)

DRAWS = 20_000
WEIGHTS = torch.tensor([0.05, 0.4, 0.0, 0.25, 0.1, 0.2], dtype=torch.float64)


def counts(scheme: str, weights=WEIGHTS, draws=DRAWS, seed=0) -> torch.Tensor:
    """Children of every index in each of many draws, ``[draws, N]``."""
    generator = torch.Generator().manual_seed(seed)
    n = len(weights)
    uniforms = torch.rand(draws, n, generator=generator, dtype=torch.float64)
    return torch.stack([torch.bincount(resample(scheme, weights, u), minlength=n) for u in uniforms]).double()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_expected_children_are_n_times_the_weight(scheme):
    found = counts(scheme)
    n = len(WEIGHTS)
    assert (found.sum(1) == n).all()
    error = found.std(0) / math.sqrt(DRAWS)
    assert ((found.mean(0) - n * WEIGHTS).abs() <= 4 * error + 1e-9).all()
    assert not found[:, 2].any()  # zero weight has no children, ever


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["systematic", "ssp"])
def test_low_variance_schemes_stay_within_one(scheme):
    found, exact = counts(scheme), len(WEIGHTS) * WEIGHTS
    assert ((found >= exact.floor()) & (found <= exact.ceil())).all()


def test_residual_gives_every_whole_child():
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    found = counts("residual", weights, 500)
    assert (found >= torch.floor(3 * weights + 1e-12)).all()
    exact = torch.tensor([0.25, 0.5, 0.25, 0.0], dtype=torch.float64)
    assert (counts("residual", exact, 50) == 4 * exact).all()


@pytest.mark.slow
def test_variance_is_ordered_as_theory_says():
    """Douc & Cappe 2005: stratified and residual never above multinomial; systematic and SSP below here."""
    variance = {scheme: float(counts(scheme, seed=1).var(0).sum()) for scheme in SCHEMES}
    for scheme in ("stratified", "residual", "systematic", "ssp"):
        assert variance[scheme] < variance["multinomial"]


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_edges(scheme):
    one = torch.ones(1, dtype=torch.float64)
    assert resample(scheme, one, torch.tensor([0.7], dtype=torch.float64)).tolist() == [0]
    only = torch.zeros(5, dtype=torch.float64)
    only[3] = 1.0
    for value in (0.0, 0.5, 1 - 1e-16):
        assert resample(scheme, only, torch.full((5,), value, dtype=torch.float64)).tolist() == [3] * 5
    even = torch.full((7,), 1 / 7, dtype=torch.float64)
    found = resample(scheme, even, torch.rand(7, dtype=torch.float64))
    assert (found[1:] >= found[:-1]).all()
    if scheme in ("systematic", "ssp", "residual", "stratified"):
        assert sorted(found.tolist()) == list(range(7))


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_rounding_in_the_sum_never_falls_off_the_end(scheme):
    """Ten thousand equal weights sum to a little less than one in floating point."""
    n = 10_000
    weights = torch.full((n,), 1.0 / n, dtype=torch.float64)
    found = resample(scheme, weights / weights.sum(), torch.full((n,), 1 - 1e-16, dtype=torch.float64))
    assert len(found) == n and int(found.max()) < n


def test_bad_weights_and_schemes_are_named():
    with pytest.raises(ValueError, match=r"scheme is 'roulette'.*systematic"):
        resample("roulette", WEIGHTS, torch.rand(6, dtype=torch.float64))
    for weights in (WEIGHTS.float(), WEIGHTS * 2, -WEIGHTS):
        with pytest.raises(ValueError, match="weights must be"):
            resample("systematic", weights, torch.rand(6, dtype=torch.float64))


def test_weights_survive_any_magnitude():
    log_w = torch.tensor([[1e4, 1e4 + 1, -1e4], [-1e5, -1e5, -math.inf]], dtype=torch.float64)
    w = normalise(log_w)
    assert torch.allclose(w[0], torch.tensor([1 / (1 + math.e), math.e / (1 + math.e), 0.0], dtype=torch.float64))
    assert torch.allclose(w[1], torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64))
    assert torch.allclose(effective_sample_size(log_w)[1], torch.tensor(2.0, dtype=torch.float64))
    assert float(log_mean(log_w)[1]) == pytest.approx(-1e5 + math.log(2 / 3))
    dead = torch.full((1, 4), -math.inf, dtype=torch.float64)
    assert torch.allclose(normalise(dead), torch.full((1, 4), 0.25, dtype=torch.float64))


def test_rewards_are_cleaned_and_ties_go_to_the_first():
    clean, bad = clean_scores(torch.tensor([1.0, math.nan, math.inf, -math.inf, -2.0], dtype=torch.float64))
    assert bad == 3 and clean.tolist() == [1.0, -math.inf, -math.inf, -math.inf, -2.0]
    rewards = torch.tensor([[1.0, 3.0, 3.0], [-math.inf] * 3], dtype=torch.float64)
    assert best_index(rewards).tolist() == [1, 0]


def test_gumbel_choice_draws_the_softmax():
    n = 60_000
    log_w = torch.tensor([0.0, 1.0, -math.inf, 2.0], dtype=torch.float64).repeat(n, 1)
    uniforms = torch.rand(n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share = torch.bincount(gumbel_choice(log_w, uniforms), minlength=4) / n
    wanted = torch.softmax(log_w[0], 0)
    assert ((share - wanted).abs() < 4 * (wanted * (1 - wanted) / n).sqrt() + 1e-12).all()
    hot = gumbel_choice(log_w[:1] * 1e6, uniforms[:1])
    assert hot.item() == 3


def test_ess_threshold_can_always_be_reached():
    assert ess_threshold(4, None) == 0.75 and ess_threshold(8, None) == 0.5
    for particles in (2, 3, 4, 5):
        assert ess_threshold(particles, 0.5) * particles > 1


def test_relative_alpha_follows_the_spread_and_never_shrinks():
    scale = AlphaScale(Alpha(0.25, "relative"), 2)
    rewards = torch.tensor([[0.0, 2.0], [5.0, -math.inf]], dtype=torch.float64)
    assert scale.update(rewards).tolist() == pytest.approx([0.25 * math.sqrt(2), 0.25e-6])
    assert scale.update(rewards / 10).tolist()[0] == pytest.approx(0.25 * math.sqrt(2))
    thousand = AlphaScale(Alpha(0.25, "relative"), 2).update(1000 * rewards)
    assert thousand.tolist()[0] == pytest.approx(250.0 * math.sqrt(2))
    assert scale.known().tolist() == [True, False]  # the second image has seen one score only
    absolute = AlphaScale(Alpha(3.0, "absolute"), 2)
    assert absolute.known().all()
    assert absolute.update(rewards).tolist() == [3.0, 3.0]
    for value in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="alpha is"):
            Alpha(value)
    with pytest.raises(ValueError, match="alpha mode is 'x'"):
        Alpha(1.0, "x")


@pytest.mark.parametrize("name", list(TEMPERINGS))
@pytest.mark.parametrize("start", [0.0, 0.3])
def test_tempering_rises_from_nothing_to_all(name, start):
    lambdas = TEMPERINGS[name](20, None, start)
    assert (lambdas[1:] >= lambdas[:-1]).all() and lambdas[0] >= 0 and lambdas[-1] == pytest.approx(1.0)
    assert not lambdas[: int(20 * start)].any()


def test_published_tempering():
    """DAS: (1 + gamma)^i - 1 with gamma = .008 and T = 100 (their example ends above 1 and is cut)."""
    lambdas = TEMPERINGS["exponential"](100, 0.008)
    assert lambdas[50] == pytest.approx(1.008**50 - 1) and lambdas[-1] == 1.0
    with pytest.raises(ValueError, match="gamma is -1"):
        TEMPERINGS["exponential"](10, -1.0)


@pytest.mark.parametrize("kind", ["diff", "max", "rt", "sum"])
def test_every_potential_ends_at_the_same_total(kind):
    """Along any path the log-potentials sum to r(x0) / alpha: the target does not depend on the potential."""
    generator = torch.Generator().manual_seed(1)
    rewards = torch.randn(6, 2, 3, generator=generator, dtype=torch.float64)
    potential, total = Potential(kind, 2, 3), torch.zeros(2, 3, dtype=torch.float64)
    for i, reward in enumerate(rewards):
        temperature = torch.full((2,), (i + 1) / 6 / 0.3, dtype=torch.float64)
        total += potential.weigh(reward, temperature, final=i == 5)
    assert torch.allclose(total, rewards[-1] / 0.3, atol=1e-9)


def test_max_potential_speaks_while_rewards_are_negative():
    potential = Potential("max", 1, 2)
    increment = potential.weigh(torch.tensor([[-3.0, -1.0]], dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    assert increment.tolist() == [[-3.0, -1.0]]


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_every_resampling_draws_its_own_uniforms(scheme):
    """Two steps of a run, or two of its images, that shared their offset would make the same mistake each time."""
    weights = torch.tensor([0.05, 0.2, 0.3, 0.45], dtype=torch.float64)
    streams, steps = Streams(5), 300
    population = Population(2, 4, "diff")
    counts = torch.zeros(steps, 2, 4, dtype=torch.float64)
    for step in range(steps):
        population.log_w = weights.log().repeat(2, 1)
        rows = population.resample(torch.tensor([True, True]), scheme, streams, step)
        counts[step] = torch.bincount(rows, minlength=8).view(2, 4)
    assert torch.allclose(counts.mean(0), (4 * weights).repeat(2, 1), atol=0.15)
    assert (counts[:, 0] != counts[:, 1]).any(1).double().mean() > 0.1
