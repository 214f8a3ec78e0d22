"""Rollover budget forcing, beams, noise and path search, and other stochastic paths, inside ComfyUI."""

from __future__ import annotations

import pytest
import torch

from .conftest import judged

pytestmark = pytest.mark.host


@pytest.fixture(scope="module", params=["diffusion", "flow"])
def family(request):
    import nodes
    from testtime.nodes.family_nodes import LoadShapesWorldNode

    stock = nodes.NODE_CLASS_MAPPINGS
    with torch.inference_mode():
        model, clip, vae, verifier, _ = LoadShapesWorldNode.execute(request.param).args
        positive = stock["CLIPTextEncode"]().encode(clip, "a red star")[0]
        negative = stock["CLIPTextEncode"]().encode(clip, "")[0]
        latent = stock["EmptyLatentImage"]().generate(128, 128, 2)[0]
    graph = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    return {**graph, "vae": vae, "verifier": verifier}


def run(family, search, **changes):
    from testtime.nodes.search_ksampler import SearchKSamplerNode

    settings = {"seed": 5, "steps": 6, "cfg": 3.0, "scheduler": "simple", "denoise": 1.0, "eta": 1.0, **changes}
    with torch.inference_mode():
        return SearchKSamplerNode.execute(**family, **settings, search=search, prompt="a red star").args


def node(name, **inputs):
    from testtime.nodes import flow_method_nodes, noise_method_nodes

    home = flow_method_nodes if hasattr(flow_method_nodes, name) else noise_method_nodes
    return getattr(home, name).execute(**inputs).args[0]


def make(name):
    return {
        "rbf": lambda: node("RBFNode", budget=24, chains=2, initial=2, threshold="global", choice="last_step"),
        "beam": lambda: node("BeamSearchNode", beams=2, children=2, lookahead=2, start=0.0, end=1.0),
        "random": lambda: node("RandomSearchNode", particles=4, halvings="0.5"),
        "zero_order": lambda: node("ZeroOrderSearchNode", neighbours=2, rounds=1, cosine=0.9, stuck="restart"),
        "path": lambda: node("PathSearchNode", paths=1, branches=2, start=0.2, forward=0.5, backward=0.6, steps=2),
    }[name]()


@pytest.mark.parametrize("name", ["rbf", "beam", "random", "zero_order", "path"])
def test_every_method_runs(family, name):
    best, _finalists, scores, _trace = run(family, make(name))
    assert best["samples"].shape == (2, 4, 16, 16) and torch.isfinite(best["samples"]).all()
    assert set(scores.group) == {0, 1}
    for image in range(2):
        values = [v for v, g in zip(scores.values, scores.group, strict=True) if g == image]
        assert values[0] == max(values)


@pytest.mark.parametrize(("kind", "cfg"), [("sd3", 2.0), ("sd3", 1.0), ("flux", 1.0), ("flux", 2.0)])
@pytest.mark.parametrize("name", ["rbf", "beam", "random", "zero_order", "path", "vp"])
def test_every_method_runs_on_stock_flow_networks(setup, search_ksampler, name, kind, cfg):
    """Random SD3 and Flux networks of ComfyUI, two images of an odd size, with and without a negative branch."""
    from testtime.samplers.methods import RBF, SVDD

    given = setup(kind, batch=2, size=(10, 6))
    if name == "vp":
        grid = {"path": "vp", "coefficient": "square", "norm": 3.0, "spacing": "exp", "levels": 4, "tail": 2}
        search = node("SetSDENode", search=SVDD(2), **grid)
    else:
        search = RBF(16, 1, 2) if name == "rbf" else make(name)
    out = search_ksampler(given, search, cfg=cfg, steps=4)
    assert out.best["samples"].shape == (2, 16, 10, 6) and torch.isfinite(out.best["samples"]).all()
    assert out.scores.values == pytest.approx(judged(given, out.finalists).tolist(), abs=2e-5)
    calls = out.trace.meta["ledger"]["nfe"] / (1 if cfg == 1.0 else 2)
    assert calls == int(calls) and (name != "rbf" or calls <= 2 * 16)


@pytest.mark.parametrize(("path", "spacing"), [("linear", "sampler"), ("vp", "exp"), ("vp", "uniform")])
@pytest.mark.parametrize("name", ["rbf", "svdd"])
def test_methods_run_on_other_paths(family, path, spacing, name):
    from testtime.samplers.methods import SVDD

    search = make("rbf") if name == "rbf" else SVDD(2)
    if name == "rbf" and spacing != "sampler":
        search = node("RBFNode", budget=40, chains=2, initial=2, threshold="global", choice="last_step")
    on_path = node(
        "SetSDENode",
        search=search,
        path=path,
        coefficient="square",
        norm=3.0,
        spacing=spacing,
        levels=5,
        tail=3,
    )
    best, _, _, trace = run(family, on_path, eta=0.0)
    assert torch.isfinite(best["samples"]).all()
    assert len(trace.meta["sigmas"]) == (7 if spacing == "sampler" else 5 + 3)


def test_the_budget_is_kept(family):
    trace = run(family, make("rbf"))[3]
    assert trace.meta["ledger"]["nfe"] <= 2 * 2 * 24  # images, guidance branches, budget


def test_settings_that_cannot_work_are_named(family):
    from testtime.nodes.noise_method_nodes import PathSearchNode, RandomSearchNode
    from testtime.samplers.protocols import SearchError

    assert "halvings is 'half'" in RandomSearchNode.validate_inputs(halvings="half")
    assert "forward 0.9" in PathSearchNode.validate_inputs(forward=0.9, backward=0.8)
    with pytest.raises(SearchError, match="budget is 5"):
        run(family, node("RBFNode", budget=5, chains=2, initial=2, threshold="global", choice="last_step"))
    twice = node("SetSDENode", search=make("rbf"), path="vp", coefficient="square", norm=1.0,
                 spacing="sampler", levels=5, tail=1)  # fmt: skip
    again = node("SetSDENode", search=twice, path="linear", coefficient="sine", norm=2.0, spacing="sampler",
                 levels=5, tail=1)  # fmt: skip
    assert (again.moves.path, again.moves.norm) == ("linear", 2.0)  # the last one counts
