"""Path potentials by hand: what each adds, what follows the ancestors, what a broken score leaves alone."""

from __future__ import annotations

import math

import pytest
import torch

from testtime.samplers.smc.potentials import POTENTIALS, Potential

HISTORY = [1.0, 3.0, -2.0]


def column(*values):
    return torch.tensor([values], dtype=torch.float64)


def temperature(value=2.0):
    return torch.tensor([value], dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "increments"),
    [
        ("diff", [2.0, 4.0, -10.0]),  # 2 (r_i - r_{i-1})
        ("max", [2.0, 6.0, 6.0]),  # 2 max(r_1..r_i)
        ("rt", [2.0, 6.0, -4.0]),  # 2 r_i
        ("sum", [2.0, 8.0, 4.0]),  # 2 (r_1 + .. + r_i)
    ],
)
def test_increments_are_the_published_formulas(kind, increments):
    potential = Potential(kind, 1, 1)
    found = [float(potential.weigh(column(r), temperature())) for r in HISTORY]
    assert found == increments
    assert potential.log_past.tolist() == [[sum(increments)]]


@pytest.mark.parametrize("kind", POTENTIALS)
def test_the_last_increment_closes_the_account(kind):
    """Whatever was added, with whatever temperatures, the total is r(x0) / alpha; a second closing adds nothing."""
    potential = Potential(kind, 1, 1)
    total = sum(
        float(potential.weigh(column(r), temperature(t))) for r, t in zip(HISTORY, (0.1, 0.5, 1.5), strict=True)
    )
    total += float(potential.weigh(column(0.7), temperature(), final=True))
    assert total == pytest.approx(1.4)
    assert float(potential.weigh(column(0.7), temperature(), final=True)) == pytest.approx(0.0)


@pytest.mark.parametrize("kind", POTENTIALS)
def test_memory_follows_the_ancestors(kind):
    """A population that is reindexed goes on as one that had been in that order from the start."""
    order = torch.tensor([[2, 0, 0], [1, 1, 2]])
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    heat = torch.tensor([0.5, 3.0], dtype=torch.float64)
    moved, fresh = Potential(kind, 2, 3), Potential(kind, 2, 3)
    moved.weigh(first, heat)
    moved.reindex(order)
    fresh.weigh(first.gather(1, order), heat)
    assert torch.equal(moved.weigh(second, heat), fresh.weigh(second, heat))
    assert torch.equal(moved.weigh(second, heat, final=True), fresh.weigh(second, heat, final=True))


@pytest.mark.parametrize("kind", POTENTIALS)
def test_a_broken_score_weighs_nothing_and_is_not_remembered(kind):
    potential, fresh = Potential(kind, 1, 2), Potential(kind, 1, 2)
    for one in (potential, fresh):
        one.weigh(column(1.0, 2.0), temperature())
    increment = potential.weigh(column(-math.inf, 5.0), temperature())
    assert increment[0, 0] == -math.inf and math.isfinite(increment[0, 1])
    again = potential.weigh(column(1.5, 1.5), temperature())
    assert torch.isfinite(again).all()
    assert again[0, 0] == fresh.weigh(column(1.5, 1.5), temperature())[0, 0]


def test_unknown_potentials_are_named():
    with pytest.raises(ValueError, match="potential is 'mean': choose one of diff, max, rt, sum"):
        Potential("mean", 1, 1)


def test_equal_scores_do_not_blow_up_guided_moves():
    """Relative alpha without any spread: DAS goes on unguided instead of dividing by next to nothing."""
    import torch

    from testtime.samplers.methods import DAS
    from testtime.samplers.processes.kernel import VE
    from testtime.samplers.run.search import run_search

    from . import oracles

    denoiser = oracles.MixtureDenoiser(torch.tensor([[0.7]]), torch.ones(1), 0.5, VE())
    flat = oracles.FunctionVerifier(lambda x: x[:, 0] - x[:, 0].detach())  # score 0 everywhere, gradient 1
    result = run_search(DAS(4), oracles.process(denoiser, 10, 3, 0), flat, ["p"] * 3)
    assert float(result.latents.abs().max()) < 10
