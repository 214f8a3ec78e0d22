"""Fit to Budget inside ComfyUI: what is chosen uses the budget up; what cannot work is named, early."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.methods import RBF, SVDD, BestOfN
from testtime.samplers.protocols import SearchError

from .conftest import watched

pytestmark = pytest.mark.host


def budget(search, **inputs):
    from testtime.nodes.budget_node import FitToBudgetNode

    values = {"nfe": 0, "seconds": 0.0, "steps": "may be fewer", "least": 2, **inputs}
    return FitToBudgetNode.execute(search, **values).args[0]


def on_path(search, **inputs):
    from testtime.nodes.flow_method_nodes import SetSDENode

    values = {"path": "linear", "coefficient": "square", "norm": 3.0, "spacing": "sampler", "levels": 5, "tail": 2}
    return SetSDENode.execute(search, **{**values, **inputs}).args[0]


@pytest.mark.parametrize(("kind", "cfg"), [("eps", 2.0), ("eps", 1.0), ("sd3", 2.0), ("flux", 1.0)])
def test_particles_come_from_the_budget(setup, search_ksampler, kind, cfg):
    given = setup(kind, batch=2)
    given.model, rows = watched(given.model)
    out = search_ksampler(given, budget(BestOfN(1), nfe=50), cfg=cfg, steps=5)
    branches = 1 if cfg == 1.0 else 2
    assert len(out.scores.values) == 2 * (50 // (5 * branches))
    assert sum(rows) == 2 * 50 == out.trace.meta["ledger"]["nfe"]


def test_steps_become_fewer_and_the_image_is_finished(setup, search_ksampler):
    out = search_ksampler(setup("eps"), budget(BestOfN(1), nfe=30, least=2), cfg=2.0, steps=10)
    assert len(out.trace.meta["sigmas"]) - 1 == 7 and out.trace.meta["sigmas"][-1] == 0.0
    assert len(out.scores.values) == 2 and out.trace.meta["status"] == "complete"


@pytest.mark.parametrize("inside", [False, True], ids=["budget last", "path last"])
def test_budget_and_path_go_together_in_either_order(setup, search_ksampler, inside):
    search = on_path(budget(SVDD(1), nfe=60)) if inside else budget(on_path(SVDD(1)), nfe=60)
    out = search_ksampler(setup("flux"), search, cfg=1.0, steps=6)
    ledger = out.trace.meta["ledger"]
    assert 50 < ledger["nfe"] <= 60 and out.trace.meta["status"] == "complete"


def test_rbf_takes_the_budget_as_its_own(setup, search_ksampler):
    out = search_ksampler(setup("sd3"), budget(on_path(RBF()), nfe=60), cfg=1.0, steps=5)
    assert 55 <= out.trace.meta["ledger"]["nfe"] <= 60


def test_seconds_are_measured(setup, search_ksampler):
    import time

    started = time.perf_counter()
    out = search_ksampler(setup("eps"), budget(BestOfN(1), seconds=6.0), steps=3)
    assert len(out.scores.values) > 1 and torch.isfinite(out.best["samples"]).all()
    assert time.perf_counter() - started < 30.0  # a loaded machine slows down after the measurement, too


def test_what_cannot_be_paid_for_is_named_before_the_model_runs(setup, search_ksampler):
    from testtime.nodes.budget_node import FitToBudgetNode
    from testtime.nodes.flow_method_nodes import RBFNode
    from testtime.nodes.search_ksampler import SearchKSamplerNode

    assert "both 0" in FitToBudgetNode.validate_inputs(nfe=0, seconds=0.0)
    assert FitToBudgetNode.validate_inputs(nfe=0, seconds=None) is True  # linked: not known yet
    assert "max_nfe is 3: one image of 4 steps" in SearchKSamplerNode.validate_inputs(prompt="p", steps=4, max_nfe=3)
    assert SearchKSamplerNode.validate_inputs(prompt="p", steps=4, max_nfe=0) is True
    assert "steps is 0" in SearchKSamplerNode.validate_inputs(prompt="p", steps=0)
    assert "budget is 50: 2 chains of 25" in RBFNode.validate_inputs(budget=50, chains=2, initial=25)
    assert RBFNode.validate_inputs(budget=500, chains=2, initial=25) is True
    with pytest.raises(SearchError, match=r"budget is 60.*at least"):  # when the graph runs, before the model is loaded
        on_path(RBF(60), spacing="exp", levels=10, tail=10)
    given = setup("eps")
    given.model, rows = watched(given.model)
    with pytest.raises(SearchError, match="nfe is 5: Best-of-N with 4 steps needs at least 8 forward passes"):
        search_ksampler(given, budget(BestOfN(1), nfe=5), steps=5)
    with pytest.raises(SearchError, match="steps is 'some'"):
        budget(BestOfN(1), nfe=5, steps="some")
    assert not rows


@pytest.mark.parametrize(("name", "nfe"), [("heun", 40), ("seeds_3", 50), ("heunpp2", 25)])
def test_samplers_that_ask_more_than_once_a_step_stay_within_the_budget(setup, search_ksampler, name, nfe):
    given = setup("eps")
    given.model, rows = watched(given.model)
    fitted = budget(BestOfN(1), nfe=nfe, steps="keep")
    out = search_ksampler(given, fitted, sampler_name=name, eta=-1.0, cfg=1.0, steps=4)
    run = {"heun": 7, "seeds_3": 10, "heunpp2": 9}[name]
    assert len(out.scores.values) == nfe // run and out.trace.meta["status"] == "complete"
    assert sum(rows) == nfe // run * run == out.trace.meta["ledger"]["nfe"]
