"""Random search with halving and zero-order search: geometry, costs, what they gain, bad input."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.heredity import angle, neighbour
from testtime.samplers.methods import BestOfN, RandomSearch, ZeroOrderSearch
from testtime.samplers.methods.zero_order import _Learnt
from testtime.samplers.processes.denoise import Denoised
from testtime.samplers.processes.kernel import VE
from testtime.samplers.processes.streams import Streams
from testtime.samplers.protocols import SearchError
from testtime.samplers.run.search import run_search
from testtime.samplers.run.trace import Trace

from . import oracles

DIM = 6
TARGET = oracles.FunctionVerifier(lambda x: -(x - 1).square().mean(1))


def mixture(steps=10, groups=1, seed=0, eta=1.0):
    means = torch.tensor([[-1.5], [1.0]]).expand(2, DIM)
    denoiser = oracles.MixtureDenoiser(means, torch.tensor([0.3, 0.7]), 0.16, VE())
    return oracles.process(denoiser, steps, groups, seed, eta=eta, dim=DIM)


@pytest.mark.parametrize("cosine", [0.95, 0.9, 0.0, -0.5])
def test_neighbours_keep_length_and_angle(cosine):
    generator = torch.Generator().manual_seed(0)
    pivot, other = torch.randn(2, 50, 4, 8, 8, generator=generator)
    found = neighbour(pivot, other, torch.full((50,), cosine)).flatten(1)
    flat = pivot.flatten(1)
    assert torch.allclose(found.norm(dim=1), flat.norm(dim=1), rtol=1e-5)
    measured = torch.nn.functional.cosine_similarity(found.double(), flat.double())
    assert float((measured - cosine).abs().max()) < 1e-5


def test_angles_of_the_usual_cosines():
    assert angle(0.95) == pytest.approx(18.2, abs=0.05)
    assert angle(0.90) == pytest.approx(25.8, abs=0.05)


def test_without_halving_random_search_is_best_of_n():
    a, b = mixture(groups=2), mixture(groups=2)
    a.streams = b.streams = Streams(3)
    first = run_search(RandomSearch(6, ()), a, TARGET, ["p", "q"])
    second = run_search(BestOfN(6), b, TARGET, ["p", "q"])
    assert torch.equal(first.latents, second.latents)


def test_halving_saves_what_it_says():
    groups, steps, n = 3, 10, 8
    result = run_search(RandomSearch(n, (0.5, 0.8)), mixture(steps, groups), TARGET, ["p"] * groups)
    assert result.ledger.nfe == groups * (n * 6 + n // 2 * 3 + n // 4 * 1)
    assert len(result.scores) == groups * n // 4


def test_zero_order_cost_counts_the_pivot_once():
    groups, steps = 2, 10
    search = ZeroOrderSearch(neighbours=3, rounds=4, start=2)
    result = run_search(search, mixture(steps, groups), TARGET, ["p"] * groups)
    assert result.ledger.nfe == groups * steps * (2 + 4 * 3)
    assert result.ledger.verifier_images == groups * (2 + 4 * 3)
    assert len(result.scores) == groups * 14


@pytest.mark.parametrize("search", [ZeroOrderSearch(rounds=0, start=6), ZeroOrderSearch(2, 2, cosine=0.0, start=2)])
def test_without_neighbours_it_is_best_of_n(search):
    """No rounds, and neighbours at a right angle, are as many fresh noises: the same slots, the same winner."""
    a, b = mixture(groups=2, eta=0.0), mixture(groups=2, eta=0.0)
    a.streams, b.streams = Streams(3), Streams(3)
    first = run_search(search, a, TARGET, ["p", "q"])
    second = run_search(BestOfN(6), b, TARGET, ["p", "q"])
    assert torch.equal(first.latents, second.latents)
    assert first.ledger.nfe == second.ledger.nfe


class Straight:
    """A model whose image is the noise itself, so that scores are as linear in the noise as they are in the image."""

    nfe_per_call, can_encode, interpolant = 1, False, VE()

    def __call__(self, x, sigma, group=None, prompts=None):
        return Denoised(x / sigma, len(x))


def standing(search, groups=120):
    """Mean best score in standard deviations above plain samples."""
    made = oracles.process(Straight(), 1, groups, 5, eta=0.0, dim=64)
    result = run_search(search, made, oracles.FunctionVerifier(lambda x: x[:, 0]), ["p"] * groups)
    return float(torch.stack([result.scores[result.group == g].max() for g in range(groups)]).mean())


def test_sixteen_images_are_worth_more_than_best_of_sixteen():
    """Where scores are linear. Published settings (one start, cosine .95) lose at this size: too few steps to climb."""
    plain = standing(BestOfN(16))
    assert standing(ZeroOrderSearch(4, 3)) > plain + 0.15
    assert standing(ZeroOrderSearch(4, 3, mutation="recombine")) > plain + 0.4
    assert standing(ZeroOrderSearch(5, 3, cosine=0.95, stuck="restart", start=1)) < plain - 0.4


def test_a_learnt_direction_points_up():
    made = _Learnt(torch.zeros(64, 8), groups=2)
    noise = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    group = torch.arange(64) % 2
    score = torch.where(group == 0, noise[:, 3], -noise[:, 5]).double()
    score[7] = torch.nan
    made.add(noise, score, group)
    way = made.direction(torch.ones(2, 8))
    assert torch.allclose(way.norm(dim=1), torch.full((2,), 8**0.5))
    assert int(way[0].argmax()) == 3 and int(way[1].argmin()) == 5
    assert float(way[0, 3]) > 0.8 * 8**0.5


def test_equal_scores_have_no_direction():
    made = _Learnt(torch.zeros(4, 8), groups=1)
    made.add(torch.randn(4, 8), torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.int64))
    assert torch.equal(made.direction(torch.ones(1, 8)), torch.zeros(1, 8))


def test_the_trace_tells_what_was_inherited():
    result = run_search(ZeroOrderSearch(4, 4), mixture(groups=2), TARGET, ["p"] * 2)
    assert len(result.trace.meta["heredity"]) == 2
    assert Trace.from_json(result.trace.to_json()).meta["heredity"] == result.trace.meta["heredity"]
    told = ZeroOrderSearch(4, 4, mutation="recombine")  # neighbours at several angles: nothing is learnt from them
    assert "heredity" not in run_search(told, mixture(groups=2), TARGET, ["p"] * 2).trace.meta


def test_a_rough_noise_space_is_told():
    """A score that has nothing to do with the noise's neighbourhood."""
    rough = oracles.FunctionVerifier(lambda x: (1e4 * x).sin().sum(1))
    result = run_search(ZeroOrderSearch(8, 12), mixture(groups=1), rough, ["p"])
    assert any("noise space is rough" in text and "Best-of-N" in text for text in result.warnings)


@pytest.mark.parametrize("stuck", ["restart", "retry", "shrink"])
def test_zero_order_climbs(stuck):
    """Beats as many independent samples as its first round has, for every rule; the winner is the best of all."""
    groups = 150
    search = ZeroOrderSearch(neighbours=3, rounds=6, cosine=0.7, stuck=stuck)
    found = run_search(search, mixture(groups=groups, eta=0.0), TARGET, ["p"] * groups)
    fewer = run_search(BestOfN(4), mixture(groups=groups, eta=0.0), TARGET, ["p"] * groups)
    best = torch.stack([found.scores[found.group == g].max() for g in range(groups)])
    winners = torch.stack([found.scores[found.group == g][0] for g in range(groups)])
    assert torch.equal(best, winners)
    assert float(winners.mean()) > float(torch.stack([fewer.scores[fewer.group == g][0] for g in range(groups)]).mean())


@pytest.mark.parametrize("stuck", ["restart", "retry", "shrink"])
def test_every_finalist_comes_back_with_its_own_score(stuck):
    groups = 2
    result = run_search(ZeroOrderSearch(3, 4, stuck=stuck), mixture(groups=groups), TARGET, ["p"] * groups)
    assert torch.allclose(TARGET.score(result.finalists, None), result.scores)
    assert torch.allclose(TARGET.score(result.latents, None), torch.stack([result.scores[result.group == g].max()
                                                                           for g in range(groups)]))  # fmt: skip


def test_near_neighbours_give_similar_images():
    """The reason to search locally: images of close noises are closer than those of unrelated ones."""
    process = mixture(groups=400, eta=0.0)
    every = torch.arange(400)
    pivot, other = (process.initial_noise(every, every * 0 + k).float() for k in (0, 1))

    def image(noise):
        state = process.begin(noise, every, every * 0)
        while state.step < process.steps:
            state, _ = process.advance(process.predict(state))
        return state.x

    base = image(pivot)
    near = image(neighbour(pivot, other, torch.full((400,), 0.95)))
    assert float((near - base).square().mean()) < 0.3 * float((image(other) - base).square().mean())


def test_a_cut_run_hands_out_the_best_so_far():
    groups = 2
    result = run_search(ZeroOrderSearch(3, 5), mixture(groups=groups), TARGET, ["p"] * groups, max_nfe=150)
    assert result.status == "budget"
    assert result.ledger.nfe <= 150
    for g in range(groups):
        mine = result.scores[result.group == g]
        assert float(mine[0]) == float(mine.max())


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (ZeroOrderSearch(neighbours=0), "neighbours is 0"),
        (ZeroOrderSearch(cosine=1.0), "cosine is 1.0"),
        (ZeroOrderSearch(start=0), "start is 0"),
        (ZeroOrderSearch(rounds=-1), "rounds is -1"),
        (ZeroOrderSearch(mutation="cross"), "mutation is 'cross'.*recombine"),
        (ZeroOrderSearch(stuck="panic"), "stuck is 'panic'.*restart"),
        (RandomSearch(0), "particles is 0"),
        (RandomSearch(4, (0.8, 0.5)), "halvings are"),
        (RandomSearch(4, (0.0,)), "halvings are"),
    ],
)
def test_bad_settings_are_named(search, message):
    with pytest.raises(SearchError, match=message):
        run_search(search, mixture(), TARGET, ["p"])
