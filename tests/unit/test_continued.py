"""Going on from a particle: the same settings make the same moves, other noise stays reproducible."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.after.origin import MAX_BRANCH, Origin
from testtime.samplers.after.replay import replay_of
from testtime.samplers.methods import DAS, SMC, SVDD, BeamSearch, BestOfN, FKSteering, RandomSearch, ZeroOrderSearch
from testtime.samplers.plan import Plan
from testtime.samplers.protocols import SearchError
from testtime.samplers.run.search import run_search
from testtime.samplers.run.trace import Trace
from testtime.samplers.smc.tempering import Alpha

from .oracles import keyed
from .searches import TARGET


def continued(search, trace, particle=-1, **where):
    return Plan(search, origin=Origin.at(trace, particle, **where))


ALPHA = Alpha(0.3, "absolute")


def searched(search, **options):
    return run_search(search, keyed(), TARGET, ["p", "q"], **options)


def ancestor(trace, particle, step):
    parents = {e["id"]: (e["parent"], record.step) for record in trace.records for e in record.particles}
    while parents[particle][1] > step:
        particle = parents[particle][0]
    return particle


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("step", [0, 1, 4, 7])
@pytest.mark.parametrize("search", [SVDD(4), SVDD(3, alpha=ALPHA)], ids=["argmax", "softmax"])
def test_svdd_goes_on_as_it_went(search, step, flow):
    """One parent per image: from the chosen parent on, the continued run is the original one, choice for choice."""
    first = run_search(search, keyed(flow=flow), TARGET, ["p", "q"])
    again = run_search(
        continued(search, first.trace, ancestor(first.trace, first.particles[0], step)),
        keyed(flow=flow),
        TARGET,
        ["p", "q"],
    )
    assert torch.allclose(again.latents, first.latents, atol=1e-9)
    assert torch.allclose(again.finalists, first.finalists, atol=1e-9)
    assert torch.allclose(again.scores, first.scores, atol=1e-9)
    assert [r.step for r in again.trace.records] == [r.step for r in first.trace.records]


def test_independent_samples_contain_the_original():
    first = searched(BestOfN(4))
    for row, particle in enumerate(first.particles[:4]):
        again = searched(continued(BestOfN(4), first.trace, particle, step=5))
        same = torch.isclose(again.finalists, first.finalists[row], atol=1e-9).all(1)
        assert int(same[again.group == 0].sum()) == 1


SEARCHES = [
    BestOfN(3),
    SVDD(3),
    SMC(4, alpha=ALPHA),
    DAS(4, alpha=ALPHA),
    FKSteering(4, alpha=ALPHA),
    BeamSearch(2, 3, 2),
]


@pytest.mark.slow
@pytest.mark.parametrize("branch", [0, 7])
@pytest.mark.parametrize("search", SEARCHES, ids=[search.name for search in SEARCHES])
def test_lineages_of_a_continued_search_are_whole(search, branch):
    """Every finalist replays from the noise on, and its first moves are those of the particle."""
    first = searched(SMC(4, alpha=ALPHA))
    again = searched(continued(search, first.trace, step=4, branch=branch))
    origin = first.trace.lineage(first.particles[0]).slots[:5]
    for row, particle in enumerate(again.particles):
        lineage = again.trace.lineage(particle)
        if int(again.group[row]) == 0:
            assert lineage.slots[:5] == origin
        replayed = searched(replay_of(Trace.from_json(again.trace.to_json()), particle))
        assert torch.allclose(replayed.latents[0], again.finalists[row], atol=1e-9)


def test_new_noise_is_new_and_the_same_each_time():
    first = searched(SVDD(4))
    runs = [searched(continued(SVDD(4), first.trace, step=4, branch=branch)).latents for branch in (0, 1, 1, 2)]
    assert torch.equal(runs[1], runs[2])
    assert not torch.allclose(runs[0], runs[1]) and not torch.allclose(runs[1], runs[3])


def test_a_guided_way_is_walked_with_its_gradient():
    first = searched(DAS(4, alpha=ALPHA))
    again = searched(continued(BestOfN(2), first.trace, first.particles[0], step=8))
    lineage = again.trace.lineage(again.particles[0])
    assert any(scale > 0 for scale in lineage.gradient_scales[:7])
    replayed = searched(replay_of(again.trace, again.particles[0]))
    assert torch.allclose(replayed.latents[0], again.finalists[0], atol=1e-9)


def test_a_search_needs_what_its_way_needs():
    guided, plain = searched(DAS(4, alpha=ALPHA)), searched(BestOfN(2))
    way = continued(BestOfN(2), guided.trace, guided.particles[0], step=8)
    assert way.needs >= {"can_differentiate", "can_renoise", "has_initial_noise"}
    assert "can_differentiate" not in continued(BestOfN(2), plain.trace, step=6).needs


def test_the_cost_is_the_way_and_the_rest():
    first = searched(BestOfN(2))
    again = searched(continued(BestOfN(5), first.trace, step=6))
    # per image: 6 steps of the way, one prediction shared by the clones, 2 more steps of 5
    assert again.ledger.nfe == 2 * (6 + 1 + 2 * 5)
    assert again.trace.meta["method"] == "best_of_n" and again.trace.meta["continued"]["step"] == 6


def test_a_budget_cuts_the_way_and_the_search_short():
    first = searched(BestOfN(2))
    for budget in (6, 20):
        again = searched(continued(BestOfN(5), first.trace, step=6), max_nfe=budget)
        assert again.status == "budget" and len(again.latents) == 2


def test_what_cannot_go_on_is_said():
    first = searched(SMC(3, alpha=ALPHA))
    trace, finished = first.trace, first.particles[0]
    for make, message in (
        (lambda: continued(SVDD(3), trace, 10**6), "particle is 1000000"),
        (lambda: continued(SVDD(3), trace, finished, step=10), "step is 10: the particle has made 9 moves"),
        (lambda: searched(continued(SVDD(3), trace, finished)), "it is finished"),
        (lambda: searched(continued(RandomSearch(3), trace, step=3)), "Random Search searches among starting"),
        (lambda: searched(continued(SVDD(3), trace, step=3, branch=MAX_BRANCH + 1)), "new_noise is 4096"),
        (lambda: searched(continued(SVDD(0), trace, step=3)), "candidates is 0"),
        (lambda: run_search(continued(SVDD(3), trace, step=3), keyed(seed=4), TARGET, ["p", "q"]), "seed is 4"),
        (lambda: run_search(continued(SVDD(3), trace, step=3), keyed(groups=1), TARGET, ["p"]), "this batch has 1"),
    ):
        with pytest.raises(SearchError, match=message):
            make()
    noise = run_search(ZeroOrderSearch(2, 1), keyed(), TARGET, ["p", "q"])
    with pytest.raises(SearchError, match="cannot be rendered again"):
        continued(SVDD(3), noise.trace, step=3)
