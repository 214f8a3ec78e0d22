"""Adaptive tempering, the spread behind relative alpha, and what is said of potentials that count the full score."""

from __future__ import annotations

import math

import pytest
import torch

from testtime.samplers.methods import SMC, SVDD, FKSteering, ImportanceSampling
from testtime.samplers.protocols import SearchError
from testtime.samplers.run.search import run_search
from testtime.samplers.smc.tempering import Alpha, AlphaScale, adaptive, linear, usual_spread
from testtime.samplers.smc.weights import effective_sample_size
from testtime.verifiers.base import WrappedVerifier

from . import oracles
from .searches import LINEAR, TARGET, run
from .test_oracles import ALPHA, exact, gaussian

HARD = Alpha(0.02, "absolute")


def lambdas(result, group, alpha=0.02):
    """Tempering exponents of a run's scored steps, with the step and whether it was resampled."""
    return [
        (record.step, record.inverse_temperature[group] * alpha, record.resampled[group])
        for record in result.trace.records
        if record.phase == "search" and record.inverse_temperature[group] > 0
    ]


def test_adaptive_is_a_way_of_its_own_which_never_falls_and_resamples_where_it_stops():
    """It stays below the linear schedule, and is resampled at exactly the steps where the weights held it back."""
    steps, groups = 12, 20
    search = SMC(8, alpha=HARD, tempering="adaptive", end=1.0)
    result = run(search, TARGET, oracles.keyed(steps=steps, groups=groups))
    other = run(SMC(8, alpha=HARD, tempering="exponential", end=1.0), TARGET, oracles.keyed(steps=12, groups=groups))
    assert not torch.equal(result.finalists, other.finalists)
    ceiling, stopped, reached = linear(steps), 0, 0
    for g in range(groups):
        way = lambdas(result, g)
        values = [value for _, value, _ in way]
        assert values == sorted(values) and values[-1] == pytest.approx(1.0)
        for step, value, resampled in way[:-1]:
            assert value <= float(ceiling[step]) + 1e-12
            if step <= steps - 2:
                assert resampled == (value < float(ceiling[step]) - 1e-12)
                stopped, reached = stopped + resampled, reached + (not resampled)
    assert stopped > 20 and reached > 20


def test_adaptive_meets_its_target_between_floor_and_ceiling():
    """As close as 40 halvings come: with three of them lambda would be off by a tenth."""
    generator = torch.Generator().manual_seed(3)
    reward = torch.randn(5, 64, generator=generator, dtype=torch.float64) * 10
    zero, floor = torch.zeros_like(reward), torch.zeros(5, dtype=torch.float64)
    alpha = torch.ones(5, dtype=torch.float64)
    lam = adaptive(zero, reward, alpha, zero, floor, 1.0, 0.8)
    assert torch.allclose(effective_sample_size(lam[:, None] * reward), torch.full((5,), 0.8 * 64).double(), rtol=1e-6)
    assert (adaptive(zero, zero, alpha, zero, floor, 0.3, 0.8) == 0.3).all()
    assert (adaptive(zero, reward, alpha, zero, floor + 0.5, 1.0, 0.8) == 0.5).all()
    assert (adaptive(zero, reward, alpha, zero, floor + 0.5, 0.2, 0.8) == 0.5).all()
    assert (adaptive(zero, reward, alpha, zero, lam, 1.0, 0.8) >= lam).all()


@pytest.mark.slow
def test_the_normalising_constant_stays_right():
    """E[Z_hat] = Z holds for fixed tempering; the adaptive one is that close to it, at N = 16 over 20 steps."""
    runs, steps = 1000, 20
    search = SMC(16, alpha=Alpha(ALPHA, "absolute"), tempering="adaptive", end=1.0)
    result = run_search(search, gaussian(steps, runs, 1234), LINEAR, ["p"] * runs)
    ratio = torch.exp(result.log_z - exact(steps)[1])
    error = float(ratio.std()) / math.sqrt(runs)
    assert abs(float(ratio.mean()) - 1) < 4 * error and error < 0.05


def test_adaptive_goes_with_differences_only():
    with pytest.raises(SearchError, match="tempering is 'adaptive' with potential 'max'"):
        run(FKSteering(4, tempering="adaptive", potential="max"))


class Known(oracles.FunctionVerifier):
    default_scale = (0.0, 2.0)


def test_a_verifiers_usual_spread_is_read_through_wrappers():
    assert usual_spread(Known(lambda x: x[:, 0])) == 2.0
    assert usual_spread(WrappedVerifier(Known(lambda x: x[:, 0]))) == 2.0
    assert usual_spread(LINEAR) is None and usual_spread(WrappedVerifier(LINEAR)) is None and usual_spread(None) is None


@pytest.mark.slow
@pytest.mark.parametrize(("particles", "bare", "steadied"), [(2, 0.41, 0.21), (4, 0.26, 0.19)])
def test_relative_alpha_is_no_lottery(particles, bare, steadied):
    """Coefficient of variation of alpha over 4,000 images: six steps of scores that resemble each other from step to
    step (correlation .6), with a standard normal's spread.
    """
    generator = torch.Generator().manual_seed(1)
    same, own = (torch.randn(k, 4000, particles, generator=generator, dtype=torch.float64) for k in (1, 6))
    scores, found = 0.6**0.5 * same + 0.4**0.5 * own, {}
    for usual in (None, 1.0):
        scale = AlphaScale(Alpha(1.0, "relative"), 4000, usual)
        for step in scores:
            scale.update(step)
        found[usual] = float(scale.value().std() / scale.value().mean())
    assert found[None] == pytest.approx(bare, abs=0.03) and found[1.0] == pytest.approx(steadied, abs=0.03)


def test_relative_alpha_of_an_image_does_not_depend_on_the_batch():
    scores = torch.tensor([[0.0, 1.0, 2.0, 5.0]], dtype=torch.float64)
    alone = AlphaScale(Alpha(1.0), 1, 2.0).update(scores)
    among = AlphaScale(Alpha(1.0), 2, 2.0).update(torch.cat([scores, 100 * scores]))
    assert among[0] == alone[0] == pytest.approx(math.sqrt((14.0 + 2 * 4.0) / 5))
    for search in (SMC(4, alpha=Alpha(0.5)), SVDD(4, alpha=Alpha(0.5))):
        both, one = (run(search, Known(TARGET.function), oracles.keyed(groups=groups)) for groups in (2, 1))
        assert torch.equal(both.latents[0], one.latents[0])


def test_many_resamplings_by_the_full_score_are_warned_of():
    """In the limit all potentials aim at the same target; with 16 particles max and rt overshoot it."""
    process = lambda: oracles.keyed(steps=20)  # noqa: E731
    for search in (FKSteering(4, potential="max"), FKSteering(4, potential="rt"), ImportanceSampling(4, every=2)):
        (said,) = [text for text in run(search, TARGET, process()).warnings if "resample by the full score" in text]
        assert f"potential is {search.potential!r}" in said
    for search in (FKSteering(4), FKSteering(4, potential="max", every=8), SMC(4), ImportanceSampling(4, every=8)):
        assert not any("full score" in text for text in run(search, TARGET, process()).warnings)
