"""Latent beam search: cost by formula, special cases that equal other methods, gain over plain sampling."""

from __future__ import annotations

import itertools

import pytest
import torch

from testtime.samplers.methods import SVDD, BeamSearch
from testtime.samplers.processes.kernel import VE, Flow
from testtime.samplers.processes.streams import Streams
from testtime.samplers.protocols import Capabilities, SearchError, Verifier
from testtime.samplers.run.search import run_search

from . import oracles, scale_world

MEANS, WEIGHTS = torch.tensor([[-1.5], [1.0]]), torch.tensor([0.3, 0.7])
TARGET = oracles.FunctionVerifier(lambda x: -(x - 1).square().mean(1))


def mixture(steps=12, groups=1, seed=0, flow=False):
    interpolant = Flow() if flow else VE()
    denoiser = oracles.MixtureDenoiser(MEANS, WEIGHTS, 0.16, interpolant)
    return oracles.process(denoiser, steps, groups, seed, flow=flow)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize(("beams", "children", "lookahead"), [(4, 2, 1), (4, 2, 6), (1, 3, 2)])
def test_cost_is_the_formula(beams, children, lookahead, flow):
    steps, groups = 12, 3
    search = BeamSearch(beams, children, lookahead)
    result = run_search(search, mixture(steps, groups, flow=flow), TARGET, ["p"] * groups)
    branching = sum(mixture(steps, flow=flow).branches(i) for i in range(steps - 1))
    assert branching == steps - 1
    assert result.ledger.nfe == groups * (beams + (steps - 1) * beams * children * lookahead)


def test_one_beam_without_lookahead_is_greedy_svdd():
    """With B = 1 and L = 1 the best of K children goes on: SVDD with alpha = 0, to the bit."""
    beam, svdd = mixture(groups=2), mixture(groups=2)
    beam.streams, svdd.streams = Streams(5), Streams(5)
    a = run_search(BeamSearch(1, 4, 1), beam, TARGET, ["p", "q"])
    b = run_search(SVDD(candidates=4), svdd, TARGET, ["p", "q"])
    assert torch.equal(a.latents, b.latents)


def test_all_beams_may_come_from_one_parent():
    """Selection is global: with one good parent its children take all places."""
    parents: dict[tuple[int, int], set[int]] = {}

    class Lineage(Verifier):
        name, differentiable = "lineage", False

        def score(self, images, prompts, context=None):
            return images[:, 0]

    groups = 50
    result = run_search(BeamSearch(4, 4, 1), mixture(steps=8, groups=groups, seed=3), Lineage(), ["p"] * groups)
    for record in result.trace.records[1:-1]:
        for entry in record.particles:
            if entry["selected"]:
                parents.setdefault((record.step, entry["group"]), set()).add(entry["parent"])
    assert min(len(found) for found in parents.values()) == 1


def test_lookahead_sees_further():
    """At a high noise level the jump over several sub-steps predicts the end better than one estimate does."""
    process = mixture(steps=12, groups=4000, seed=1)
    state = process.predict(process.start(1))
    for _ in range(4):
        state, _ = process.advance(state)
        state = process.predict(state)
    end = state
    ode = process.variant(eta=0.0)
    while end.step < process.steps:
        end, _ = ode.advance(ode.predict(end))
    near = BeamSearch(lookahead=1)._ahead(process, state).x0
    far = BeamSearch(lookahead=6)._ahead(process, state).x0
    assert float((far - end.x).square().mean()) < 0.5 * float((near - end.x).square().mean())


def test_it_beats_plain_sampling():
    groups = 200
    plain = run_search(BeamSearch(1, 1, 1), mixture(groups=groups), TARGET, ["p"] * groups)
    found = run_search(BeamSearch(2, 2, 2), mixture(groups=groups), TARGET, ["p"] * groups)
    assert float(found.scores.mean()) > float(plain.scores.mean()) + 0.5


@pytest.mark.parametrize("field", ["beams", "children", "lookahead"])
def test_bad_settings_are_named(field):
    with pytest.raises(SearchError, match=f"{field} is 0"):
        run_search(BeamSearch(**{field: 0}), mixture(), TARGET, ["p"])


class Scales:
    """The outline of a next-scale model: shares of tokens, nothing else."""

    capabilities = Capabilities(kind="next-scale", has_code_maps=True, ends_clean=False, can_renoise=False)
    interpolant = None

    def __init__(self, sides):
        tokens = [side * side for side in sides]
        self.steps = len(sides)
        self.sigmas = [1 - sum(tokens[:k]) / sum(tokens) for k in range(len(sides) + 1)]

    def branches(self, step):
        return True


INFINITY = Scales((1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64))


def test_children_are_drawn_where_scales_are_cheap():
    """13 scales: 4 to 8. 2 beams of 4 children are 2.82 images by tokens, below 2.6 by cost (the last four: 90 %)."""
    search = BeamSearch(2, 4, auto=True)
    assert search.decisions(INFINITY) == [4, 5, 6, 7, 8]
    shares = [a - b for a, b in itertools.pairwise(INFINITY.sigmas)]
    drawn = sum(share * 2 * search.children_at(INFINITY, step) for step, share in enumerate(shares))
    assert drawn == pytest.approx(2.82, abs=0.01)
    early = sum(shares[:9])
    assert 2 * 0.9 + 0.1 * (drawn - 2 * (1 - early)) / early <= 2.6
    assert BeamSearch(2, 4, start=0.0, end=0.5, auto=True).decisions(INFINITY) == list(range(7))  # a window wins


def test_few_scales_have_at_least_one_to_choose_after():
    assert BeamSearch(2, 2, auto=True).decisions(Scales((1, 2, 8))) == [1]


def test_beams_run_over_scales_and_cost_what_they_say():
    process = scale_world.process(scale_world.networks(), groups=2, seed=5)
    search = BeamSearch(2, 2, auto=True)
    result = run_search(search, process, scale_world.Brightness(), ["p", "q"])
    assert result.status == "complete"
    assert result.ledger.nfe == 2 * search.denoiser_calls(process) * process.nfe_per_call
    drawn = [len(record.particles) // 2 for record in result.trace.records if record.phase == "search"]
    assert max(drawn) == 4 and search.decisions(process)
