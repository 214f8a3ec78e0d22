"""Latent beam search: cost by formula, special cases that equal other methods, gain over plain sampling."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.methods import SVDD, BeamSearch
from testtime.samplers.processes.kernel import VE, Flow
from testtime.samplers.processes.streams import Streams
from testtime.samplers.protocols import SearchError, Verifier
from testtime.samplers.run.search import run_search

from . import oracles

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
