"""Every method on every kind of process under every modifier: it ends with candidates that differ, or it is refused in
one sentence that names the method (or the modifier) and the kind of model. There is no other outcome.
"""

from __future__ import annotations

import itertools
import re

import pytest
import torch

from testtime.samplers.after.origin import Origin
from testtime.samplers.budget import Budget
from testtime.samplers.methods import METHODS, TTSVAR, BestOfN, TTGen
from testtime.samplers.methods.population_plan import PopulationPlan
from testtime.samplers.plan import Plan
from testtime.samplers.processes.sde import SDE
from testtime.samplers.protocols import SearchError
from testtime.samplers.rewriting import Rewriting, Rounds
from testtime.samplers.run.search import run_search

from . import oracles, scale_world
from .searches import SHARP, TARGET, searches
from .test_ttgen import FAR, NEAR, Canned, Prompted

STEPS = 9
KINDS = ("diffusion", "flow", "next-scale")
MODIFIERS = ("plain", "budget", "SDE", "re-prompted", "continued")


def process(kind):
    """A small process of a kind whose particles can have prompts where that is possible at all."""
    if kind == "next-scale":
        return scale_world.process(scale_world.networks(), groups=1, seed=2)
    made = oracles.keyed(steps=STEPS, groups=1, flow=kind == "flow")
    made.denoise = _Both(made.denoise)
    return made


class _Both(Prompted):
    """The mixture under the original prompt, ``Prompted``'s data under others."""

    def __init__(self, plain):
        super().__init__()
        self.plain = plain

    def __call__(self, x, sigma, group, prompts=None):
        own = self.plain(x, sigma, group)
        if prompts is None:
            return own
        other = super().__call__(x, sigma, group, prompts).x0
        asked = torch.tensor([text is not None for text in prompts])[:, None]
        return own._replace(x0=torch.where(asked, other.to(own.x0), own.x0))


def method(name, kind):
    """A small setting of a method."""
    if name == "ttgen":
        return TTGen(Canned(NEAR, FAR), 2, injection_step=3, particles=2)
    if name == "tts_var" and kind == "next-scale":
        return TTSVAR(2, PopulationPlan(4, {}, {1: 3, 3: 2}))
    if name == "tts_var":
        return TTSVAR(2, PopulationPlan(4, {}, {3: 3, 5: 2}))
    return searches(SHARP)[name]


def modified(made, modifier, kind):
    """A plan with one modifier."""
    if modifier == "budget":
        return Plan(made, budget=Budget(nfe=160))
    if modifier == "SDE":
        return Plan(made, moves=SDE("linear"))
    if modifier == "re-prompted":
        return Plan(made, rewriting=Rewriting(Canned(NEAR, FAR), 2, Rounds(1, 4)))
    if modifier == "continued":
        judge = scale_world.Brightness() if kind == "next-scale" else TARGET
        first = run_search(BestOfN(2), process(kind), judge, ["p"])
        return Plan(made, origin=Origin.at(first.trace, step=2))
    return Plan(made)


@pytest.mark.parametrize(("name", "kind", "modifier"), list(itertools.product(METHODS, KINDS, MODIFIERS)))
def test_it_ends_with_different_candidates_or_is_refused_by_name(name, kind, modifier):
    made = method(name, kind)
    judge = scale_world.Brightness() if kind == "next-scale" else TARGET
    try:
        result = run_search(modified(made, modifier, kind), process(kind), judge, ["p"])
    except SearchError as error:
        said = str(error)
        assert "\n" not in said and len(said) < 400
        modifier_name = {"SDE": "Set SDE", "re-prompted": "rewriting", "continued": "Continue Search"}.get(
            modifier, "-"
        )
        assert made.title in said or modifier_name.lower() in said.lower(), said
        assert re.search(f"{kind}|noises|gradient", said), said
        return
    assert result.status == "complete" and torch.isfinite(result.scores).all()
    candidates = result.finalists.flatten(1)
    apart = torch.pdist(candidates.double())
    assert len(candidates) == 1 or float(apart.min()) > 0, f"{name}: two of {len(candidates)} candidates are the same"
    title = result.trace.meta["title"]
    assert title.startswith(made.title)
    assert {"budget": "within 160 passes", "SDE": "linear SDE", "re-prompted": "re-prompted"}.get(modifier, "") in title


@pytest.mark.parametrize(("name", "kind"), list(itertools.product(METHODS, KINDS)))
def test_what_a_method_can_run_on(name, kind):
    """The refusals above, listed: a method that begins to refuse what it could do is a change to be made on purpose."""
    refused = {"das", "rbf", "beam_search", "zero_order_search", "path_search", "ttgen"}
    judge = scale_world.Brightness() if kind == "next-scale" else TARGET
    if kind == "next-scale" and name in refused:
        with pytest.raises(SearchError, match="does not work on a next-scale model"):
            run_search(method(name, kind), process(kind), judge, ["p"])
    else:
        assert run_search(method(name, kind), process(kind), judge, ["p"]).status == "complete"
