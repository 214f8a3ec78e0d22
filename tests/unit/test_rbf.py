"""Rollover Budget Forcing: the published accounting, replayed; what the search wins; budgets and bad input."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from testtime.samplers.methods import RBF
from testtime.samplers.methods.rbf import worth_of_waiting
from testtime.samplers.processes.kernel import Flow
from testtime.samplers.processes.sde import SDE, clock_grid
from testtime.samplers.protocols import SearchError, Verifier
from testtime.samplers.run.search import run_search

from . import oracles

MIXTURE = oracles.MixtureDenoiser(torch.tensor([[-1.5], [1.0]]), torch.tensor([0.3, 0.7]), 0.16, Flow())


def flow(levels: int, tail: int = 0, groups: int = 1, seed: int = 0, dim: int = 1):
    """A closed-form flow on the published grid, VP-SDE with g = 3 s^2 and an optional ODE tail."""
    sigmas = clock_grid(Flow(), levels, "vp", "exp", tail)
    stop = float(sigmas[levels - 1]) / (1 - float(sigmas[levels - 1]))
    means = torch.tensor([[-1.5], [1.0]]).expand(2, dim)
    denoiser = oracles.MixtureDenoiser(means, torch.tensor([0.3, 0.7]), 0.16, Flow())
    return oracles.OracleProcess(
        denoiser,
        Flow(),
        sigmas,
        lambda x0: x0,
        (dim,),
        groups,
        oracles.FastStreams(seed),
        eta=SDE("vp", until=stop * (1 - 1e-9)),
    )


class Stream(Verifier):
    """A verifier that answers by a rule of (transition, number of the candidate in it), whatever the image.

    ``improves(transition, number)`` says whether a candidate is better than all before it.
    """

    name, differentiable = "stream", False

    def __init__(self, improves, chains: int, initial: int, quota: int):
        self.improves, self.chains, self.quota = improves, chains, quota
        self.left, self.transition, self.number, self.best, self.budget = initial * chains, 0, 0, 0.0, quota

    def score(self, images, prompts, context=None):
        values = []
        for _ in range(len(images) // self.chains):
            if self.left > 0:
                self.left -= self.chains
                values += [0.0] * self.chains
                continue
            self.number += 1
            better = self.improves(self.transition, self.number)
            self.best += better
            values += [self.best if better else -1.0] * self.chains
            if better or self.number == self.budget:
                self.budget = self.quota + (self.budget - self.number if better else 0)
                self.transition, self.number = self.transition + 1, 0
        return torch.tensor(values)


def children(result, chains: int) -> list[int]:
    """Candidates per transition and chain, from the trace."""
    counts = Counter()
    for record in result.trace.records[1:-1]:
        counts[record.step] += len(record.particles) // chains
    return [counts[step] for step in sorted(counts)]


@pytest.mark.parametrize(
    ("rule", "chains", "initial", "levels", "budget", "expected", "spent"),
    [
        (lambda t, k: False, 2, 25, 10, 500, [22] * 8 + [48], 498),
        (lambda t, k: t < 8 and k == 1, 2, 25, 10, 500, [1] * 8 + [216], 498),
        (lambda t, k: t < 8 and t % 2 == 1 and k == 5, 2, 25, 10, 500, [22, 5, 39, 5, 39, 5, 39, 5, 65], 498),
        (lambda t, k: t < 8 and t % 2 == 0 and k == 5, 2, 25, 10, 500, [5, 39, 5, 39, 5, 39, 5, 39, 48], 498),
        (lambda t, k: False, 1, 25, 10, 500, [47] * 8 + [98], 499),
        (lambda t, k: False, 1, 8, 20, 200, [9] * 18 + [29], 199),
        (lambda t, k: False, 2, 25, 10, 1000, [47] * 8 + [98], 998),
    ],
)
def test_candidates_per_transition_are_the_published_ones(rule, chains, initial, levels, budget, expected, spent):
    search = RBF(budget=budget, chains=chains, initial=initial)
    process = flow(levels)
    verifier = Stream(rule, chains, initial, search.quota(process))
    result = run_search(search, process, verifier, ["p"])
    assert children(result, chains) == expected
    assert result.ledger.nfe == spent


def test_a_bar_of_the_parent_is_beaten_where_the_global_one_is_not():
    """After a step that ended worse, "current" accepts what only beats the parent; "global" still wants the record."""
    rewards = {0: [1.0], 1: [0.2, 0.3], 2: [0.5]}

    class Fixed(Verifier):
        name, differentiable, calls = "fixed", False, 0

        def score(self, images, prompts, context=None):
            flat = [r for step in sorted(rewards) for r in rewards[step]]
            values = [flat[min(self.calls + i, len(flat) - 1)] for i in range(len(images))]
            self.calls += len(images)
            return torch.tensor(values)

    counts = {}
    for threshold in ("global", "current"):
        result = run_search(RBF(budget=14, chains=1, initial=1, threshold=threshold), flow(6), Fixed(), ["p"])
        counts[threshold] = children(result, 1)
    assert counts["global"][:2] == [2, 2]
    assert counts["current"][:2] == [2, 1]


def test_search_gains_and_reports_its_optimism():
    """Far above a single sample (specification: by more than 1), and within the budget, tail included."""
    target = oracles.FunctionVerifier(lambda x: -(x - 1).square().mean(1))
    groups, search = 64, RBF(budget=250, chains=1, initial=25)
    process = flow(10, tail=10, groups=groups, dim=8, seed=3)
    result = run_search(search, process, target, ["p"] * groups)
    plain = flow(10, tail=10, groups=512, dim=8, seed=4)
    state = plain.start(1)
    while state.step < plain.steps:
        state, _ = plain.advance(plain.predict(state))
    single = float(target.score(state.x, None).mean())
    assert float(result.scores.mean()) > single + 1.0
    assert result.ledger.nfe <= groups * search.budget
    assert result.selection_bias > 0  # early estimates flatter themselves on a curved flow


def test_groups_do_not_influence_each_other():
    """Two images together equal each alone, although their chains share model calls."""
    from testtime.samplers.processes.streams import Streams

    target = oracles.FunctionVerifier(lambda x: -(x - 1).square().mean(1))
    search = RBF(budget=80, chains=2, initial=4)
    both = flow(6, tail=3, groups=2, dim=3)
    both.streams = Streams(7)
    together = run_search(search, both, target, ["p", "q"])
    for g in range(2):
        alone = flow(6, tail=3, dim=3)
        alone.streams = Streams(7, group_offset=g)
        assert torch.equal(run_search(search, alone, target, ["p"]).latents[0], together.latents[g])


def test_non_finite_scores_never_win():
    bad = oracles.FunctionVerifier(lambda x: torch.where(x[:, 0] > 0, torch.nan, -x[:, 0].abs()))
    result = run_search(RBF(budget=120, chains=2, initial=10), flow(6), bad, ["p"])
    assert float(result.latents[0, 0]) <= 0
    assert result.ledger.rejected_scores > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 60}, "budget is 60.*at least 70"),
        ({"chains": 0}, "chains is 0"),
        ({"threshold": "best"}, "threshold is 'best'.*global"),
        ({"min_gain": -1.0}, "min_gain is -1.0"),
        ({"rollover_cap": 0}, "rollover_cap is 0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    verifier = oracles.FunctionVerifier(lambda x: x[:, 0])
    with pytest.raises(SearchError, match=message):
        run_search(RBF(**settings), flow(10), verifier, ["p"])


def test_an_ode_is_refused():
    process = flow(10)
    process.eta = 0.0
    with pytest.raises(SearchError, match=r"eta is 0.0"):
        run_search(RBF(), process, oracles.FunctionVerifier(lambda x: x[:, 0]), ["p"])


def test_waiting_is_worth_what_moser_says():
    """Values of stopping well with 0 .. 5 draws left, and by simulation of the rule with 5."""
    assert worth_of_waiting(0) == -math.inf
    assert [worth_of_waiting(k) for k in range(1, 6)] == pytest.approx([0.0, 0.3989, 0.6297, 0.7904, 0.9126], abs=1e-4)
    draws = torch.randn(40_000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bars = torch.tensor([worth_of_waiting(left) for left in (4, 3, 2, 1, 0)])
    first = (draws > bars).int().argmax(1)
    taken = draws.gather(1, first[:, None])
    assert float(taken.mean()) == pytest.approx(worth_of_waiting(6 - 1), abs=0.02)


def entered(result) -> list[int]:
    """Candidates that were drawn before every advance of a single chain, in order."""
    counts = Counter(record.step for record in result.trace.records if record.phase == "search" and record.step > 0)
    return [counts[step] for step in sorted(counts)]


def scored(settings, groups=1, **options):
    search = RBF(budget=60, chains=1, initial=4, **settings)
    target = oracles.FunctionVerifier(lambda x: -(x - 1).abs().mean(1))
    return run_search(search, flow(10, groups=groups, seed=2, **options), target, ["p"] * groups), search


def test_a_level_that_everything_passes_and_one_that_nothing_does():
    """The first ends every step with its first candidate and leaves the rest to the last; the second spends quotas."""
    easy, search = scored({"threshold": "level", "level": -1e9})
    assert set(entered(easy)[:-1]) == {1}
    never, _ = scored({"threshold": "level", "level": 1e9})
    quota = search.quota(flow(10))
    assert set(entered(never)[:-1]) == {quota} and quota > 1
    assert easy.ledger.nfe <= 60 and never.ledger.nfe <= 60


def test_a_quantile_is_of_the_images_own_initial_scores():
    result, _ = scored({"threshold": "quantile", "level": 0.0})
    low = min(entry["score"] for entry in result.trace.records[0].particles)
    by_level, _ = scored({"threshold": "level", "level": low})
    assert entered(result) == entered(by_level)
    levels = RBF(threshold="quantile", level=0.75)._level(torch.tensor([4.0, 1.0, torch.nan, 2.0, 3.0, 5.0]))
    assert levels == 4.0
    assert RBF(threshold="quantile")._level(torch.tensor([torch.nan])) == -math.inf


def test_stopping_never_takes_the_first_and_keeps_the_budget():
    result, search = scored({"threshold": "stopping"}, groups=3)
    counts = Counter((record.step, entry["group"], entry["parent"]) for record in result.trace.records
                     for entry in record.particles if record.phase == "search" and record.step > 0)  # fmt: skip
    assert all(count >= 2 for (step, _, _), count in counts.items() if step < max(step for step, _, _ in counts))
    assert 60 * 3 - search.chains * 3 <= result.ledger.nfe <= 60 * 3


@pytest.mark.parametrize("level", [-0.1, 1.1])
def test_a_quantile_outside_its_range_is_named(level):
    with pytest.raises(SearchError, match=f"level is {level} with threshold 'quantile'"):
        scored({"threshold": "quantile", "level": level})
