"""Patches of a model: those that remember the last call are refused, others find the model as it was after a decode."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.methods import SMC, SVDD, BestOfN
from testtime.samplers.protocols import SearchError
from testtime.samplers.smc.tempering import Alpha

from .conftest import feature, watched
from .test_memory import EvictingRedness

pytestmark = pytest.mark.host


def patched(node: str, module: str, model, **inputs):
    """A MODEL through a stock node, old or new in its manners."""
    import importlib

    cls = getattr(importlib.import_module(f"comfy_extras.{module}"), node)
    if hasattr(cls, "execute"):
        return cls.execute(model, **inputs).result[0]
    return getattr(cls(), cls.FUNCTION)(model, **inputs)[0]


def apg(model, momentum):
    return patched("APG", "nodes_apg", model, eta=1.0, norm_threshold=5.0, momentum=momentum)


def cached(name, model):
    pytest.importorskip("comfy_extras.nodes_easycache")
    return patched(
        name, "nodes_easycache", model, reuse_threshold=0.2, start_percent=0.15, end_percent=0.95, verbose=False
    )


@pytest.mark.parametrize("search", [BestOfN(3), SVDD(3)], ids=lambda search: search.name)
def test_guidance_with_momentum_is_refused_and_without_it_runs(setup, search_ksampler, search):
    given = setup("eps")
    plain = given.model
    given.model = apg(plain, 0.5)
    with pytest.raises(SearchError, match=r"model is patched by APG \(nodes_apg\), which remembers .*momentum 0"):
        search_ksampler(given, search)
    given.model = apg(plain, 0.0)
    one = search_ksampler(given, search)
    again = search_ksampler(given, search)
    assert torch.equal(one.best["samples"], again.best["samples"])


def test_one_particle_may_have_a_memory(setup, search_ksampler, ksampler):
    """It goes down alone, as with any sampler."""
    given = setup("eps")
    given.model = apg(given.model, 0.5)
    ours = search_ksampler(given, BestOfN(1), eta=0.0)
    assert torch.allclose(ours.best["samples"], ksampler(given, "euler")["samples"], atol=1e-3)


@pytest.mark.parametrize("node", ["EasyCacheNode", "LazyCacheNode"])
def test_caches_of_earlier_steps_are_refused(setup, search_ksampler, node):
    given = setup("eps")
    given.model = cached(node, given.model)
    with pytest.raises(SearchError, match=f"model is patched by {node.removesuffix('Node')}, which remembers"):
        search_ksampler(given, BestOfN(3))


def test_an_unknown_patch_with_a_memory_is_found_by_what_it_does(setup, search_ksampler):
    class Momentum:
        """An object that keeps the last prediction in an attribute."""

        last = None

        def __call__(self, args):
            mixed = args["denoised"] if self.last is None else 0.5 * (args["denoised"] + self.last[:1])
            self.last = args["denoised"]
            return mixed

    given = setup("eps")
    given.model = given.model.clone()
    given.model.set_model_sampler_post_cfg_function(Momentum())
    with pytest.raises(SearchError, match=r"model is patched by .*Momentum"):
        search_ksampler(given, BestOfN(3))


@pytest.mark.parametrize("kind", ["sag", "tome", "counting"])
def test_patches_that_only_look_as_if_they_remembered_run(setup, search_ksampler, kind):
    """Their closures hold something within a call, or count; no answer depends on an earlier one."""
    given = setup("eps")
    if kind == "sag":
        given.model = patched("SelfAttentionGuidance", "nodes_sag", given.model, scale=0.5, blur_sigma=2.0)
    elif kind == "tome":
        given.model = patched("TomePatchModel", "nodes_tomesd", given.model, ratio=0.3)
    else:
        calls = 0

        def count(args):
            nonlocal calls
            calls += 1
            return args["denoised"]

        given.model = given.model.clone()
        given.model.set_model_sampler_post_cfg_function(count)
    assert torch.isfinite(search_ksampler(given, BestOfN(2), steps=2).best["samples"]).all()


def test_plain_models_are_not_asked_beforehand(setup, search_ksampler):
    given = setup("eps")
    given.model, rows = watched(given.model)
    search_ksampler(given, BestOfN(2), steps=3)
    assert sum(rows) == 2 * 2 * 3


@pytest.mark.parametrize("sampling", ["edm_playground_v2.5", "v_prediction"])
def test_a_patched_latent_format_outlives_a_decode(setup, search_ksampler, sampling):
    """The verifier pushes the model off the device, which undoes its patches: the same images come out all the same."""
    import comfy.latent_formats as formats

    feature(hasattr(formats, "SDXL_Playground_2_5"), "Playground's latent format is not known")
    outputs = []
    for judge in (None, EvictingRedness()):
        given = setup("eps")
        given.model = patched(
            "ModelSamplingContinuousEDM",
            "nodes_model_advanced",
            given.model,
            sampling=sampling,
            sigma_max=80.0,
            sigma_min=0.002,
        )
        given.verifier = judge or given.verifier
        for search in (SVDD(3), SMC(3, alpha=Alpha(0.5), start=0.0, end=1.0), BestOfN(2)):
            outputs.append(search_ksampler(given, search, steps=4))  # noqa: PERF401 - one line too long otherwise
    half = len(outputs) // 2
    for still, moved in zip(outputs[:half], outputs[half:], strict=True):
        assert torch.allclose(still.finalists["samples"], moved.finalists["samples"], rtol=1e-3, atol=1e-3)
        assert still.scores.values == pytest.approx(moved.scores.values, abs=1e-4)
    if sampling.startswith("edm"):  # and it is the patched format that is meant
        given = setup("eps")
        other = search_ksampler(given, SVDD(3), steps=4)
        assert not torch.allclose(other.finalists["samples"], outputs[0].finalists["samples"], atol=0.1)
