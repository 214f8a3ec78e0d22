"""Every input that cannot work is named, with its value and what would be right."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.methods import SMC, BestOfN
from testtime.samplers.protocols import SearchError

from .conftest import Redness, conditioning, watched

pytestmark = pytest.mark.host

WRONG = [
    ({"verifier": None}, SMC(2), "verifier is missing"),
    ({"vae": None}, BestOfN(2), "vae is missing"),
    ({"search": None}, None, "search is missing"),
    ({"prompt": " \n"}, BestOfN(2), "prompt is empty"),
    ({"eta": 1.5}, BestOfN(2), "eta is 1.5"),
    ({"eta": 0.0}, SMC(2), "eta is 0.0"),
    ({"on_cancel": "explode"}, BestOfN(2), "on_cancel is 'explode'"),
    ({"steps": 0}, BestOfN(2), "steps is 0: at least 1"),
    ({"denoise": 0.0}, BestOfN(2), "denoise is 0.0"),
    ({"max_nfe": 3}, BestOfN(2), "budget does not pay for the first step"),
]


@pytest.mark.parametrize(("inputs", "search", "message"), WRONG, ids=[message for *_, message in WRONG])
def test_wrong_settings_are_named(setup, search_ksampler, inputs, search, message):
    given = setup("eps")
    given.model, rows = watched(given.model)
    with pytest.raises(SearchError, match=message):
        search_ksampler(given, **{"search": search, **inputs})
    assert not rows


def latent(*shape, **more):
    return {"samples": torch.zeros(shape), **more}


WRONG_LATENTS = [
    (latent(1, 4, 5, 8, 8), r"video of 5 latent frames and this model makes images"),
    (latent(4, 8, 8), r"shape \[4, 8, 8\]"),
    (latent(2, 4, 8, 8, batch_index=[0]), r"2 latents and a batch_index of 1"),
    (latent(2, 4, 8, 8, noise_mask=torch.ones(3, 64, 64)), r"3 masks for a latent batch of 2"),
    (
        latent(1, 4, 8, 8, noise_mask=torch.linspace(0, 1, 128).expand(1, 64, 128)),
        r"128 x 64 .* latent 8 x 8: the proportions",
    ),
    (latent(1, 4, 8, 8, noise_mask=torch.ones(64)), r"noise_mask has shape \[64\]"),
]


@pytest.mark.parametrize(("given_latent", "message"), WRONG_LATENTS, ids=[message for _, message in WRONG_LATENTS])
def test_wrong_latents_are_named(setup, search_ksampler, given_latent, message):
    given = setup("eps")
    given.latent = given_latent
    with pytest.raises(SearchError, match=message):
        search_ksampler(given, BestOfN(2))


def test_latents_and_vaes_of_another_family_are_named(setup, search_ksampler, vaes):
    """An empty latent is given the model's channels, as KSampler does; one with content is not."""
    given = setup("eps")
    given.model, rows = watched(given.model)
    given.latent = {"samples": torch.ones(1, 16, 8, 8)}
    with pytest.raises(SearchError, match="latent_image has 16 channels, this model's latents have 4"):
        search_ksampler(given, BestOfN(2))
    given.latent = {"samples": torch.zeros(1, 16, 8, 8)}
    given.vae = vaes("flux")
    with pytest.raises(SearchError, match="vae decodes latents of 16 channels, this model's have 4"):
        search_ksampler(given, BestOfN(2))
    assert not rows


@pytest.mark.parametrize("sigmas", [[1.0, 2.0, 0.0], [0.5, 0.7, 0.0], [1.0, -0.5]])
def test_schedules_that_do_not_fall_are_named(setup, sigmas):
    import comfy.samplers

    from testtime.nodes.search_sampler import SearchOptions, SearchSampler

    given = setup("flux")
    given.model, rows = watched(given.model)
    guider = comfy.samplers.CFGGuider(given.model)
    guider.set_conds(given.positive, given.negative)
    guider.set_cfg(1.0)
    sampler = SearchSampler(SearchOptions(BestOfN(2), given.verifier, given.vae, "a red square"))
    noise = torch.randn(1, 16, 8, 8)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"must strictly decrease|must be finite and >= 0"):
        guider.sample(noise, torch.zeros_like(noise), sampler, torch.tensor(sigmas), seed=1)
    assert not rows


@pytest.mark.parametrize(("prompts", "images"), [(2, 3), (3, 2)])
def test_prompts_that_do_not_divide_the_batch_are_named(setup, search_ksampler, prompts, images):
    given = setup("sd3", batch=images)
    given.positive = conditioning("sd3", prompts)
    with pytest.raises(SearchError, match=f"{prompts} entries for a latent batch of {images}"):
        search_ksampler(given, BestOfN(2))


METHODS = [
    ("BestOfNNode", {"particles": 0}, "particles is 0"),
    ("SVDDNode", {"candidates": 0, "alpha": 0.0, "alpha_mode": "relative", "start": 0, "end": 1, "every": 1},
     "candidates is 0"),
    ("SMCNode", {"particles": 2, "alpha": -1.0, "alpha_mode": "relative", "tempering": "adaptive", "ess_threshold": 0,
                 "start": 0, "end": 1, "every": 1, "resampling": "systematic"}, "alpha is -1.0"),
    ("FKSteeringNode", {"particles": 2, "alpha": 0.0, "alpha_mode": "relative", "potential": "diff", "start": 0,
                        "end": 1, "every": 1, "resampling": "systematic"}, "alpha is 0.0"),
]  # fmt: skip


@pytest.mark.parametrize(("node", "inputs", "message"), METHODS, ids=[node for node, *_ in METHODS])
def test_method_nodes_name_wrong_settings(node, inputs, message):
    from testtime.nodes import method_nodes

    with pytest.raises(SearchError, match=message):
        getattr(method_nodes, node).execute(**inputs)


def test_windows_and_prompts_are_checked_when_queued():
    from testtime.nodes.method_nodes import SMCNode
    from testtime.nodes.search_ksampler import SearchKSamplerNode

    assert "start 0.8 lies after end 0.2" in SMCNode.validate_inputs(start=0.8, end=0.2)
    assert SMCNode.validate_inputs(start=0.2, end=0.8) is True
    assert "prompt is empty" in SearchKSamplerNode.validate_inputs(prompt="")
    assert SearchKSamplerNode.validate_inputs(prompt=None) is True  # linked: not known yet


def test_a_verifier_of_the_wrong_shape_is_named(setup, search_ksampler):
    class Lumped(Redness):
        def score(self, images, prompts, context=None):
            return super().score(images, prompts).mean()

    given = setup("eps")
    given.verifier = Lumped()
    with pytest.raises(SearchError, match="one number per image"):
        search_ksampler(given, BestOfN(2), steps=1)


class Broken(Redness):
    """Redness with scores that are no numbers: ``bad`` says for which rows of a call."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def score(self, images, prompts, context=None):
        scores = super().score(images, prompts)
        return torch.where(self.bad(torch.arange(len(images))), torch.tensor(float("nan")), scores)


@pytest.mark.parametrize("search", [BestOfN(3), SMC(3, start=0.0, end=1.0)], ids=lambda search: search.name)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_no_numbers_never_win(setup, search_ksampler, search, value):
    class Odd(Redness):
        def score(self, images, prompts, context=None):
            scores = super().score(images, prompts)
            scores[0] = value
            return scores

    given = setup("eps")
    given.verifier = Odd()
    out = search_ksampler(given, search, steps=4)
    assert out.scores.values[0] is not None and torch.isfinite(out.best["samples"]).all()
    assert None in out.scores.values and "NaN or infinite" in " ".join(out.trace.meta["warnings"])


def test_a_search_without_any_score_still_gives_an_image_and_says_so(setup, search_ksampler):
    given = setup("eps")
    given.verifier = Broken(lambda row: row >= 0)
    out = search_ksampler(given, SMC(3, start=0.0, end=1.0), steps=4)
    assert torch.isfinite(out.best["samples"]).all() and out.scores.values == [None] * 3
    assert out.trace.meta["warnings"]


def test_an_old_comfyui_is_refused_in_one_line(monkeypatch):
    import comfyui_version

    from testtime.nodes.host.compat import check_host_version

    check_host_version()
    monkeypatch.setattr(comfyui_version, "__version__", "0.3.63")
    with pytest.raises(RuntimeError, match=r"needs ComfyUI 0\.3\.64 or newer, this one is 0\.3\.63: update") as caught:
        check_host_version()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("version", "lines"), [("0.33.0", 0), ("0.33.1", 1), ("1.0", 1), ("", 0)])
def test_a_comfyui_newer_than_any_tested_is_used_and_told_of(monkeypatch, caplog, version, lines):
    import comfyui_version

    from testtime.nodes.host.compat import check_host_version

    monkeypatch.setattr(comfyui_version, "__version__", version)
    with caplog.at_level("INFO", logger="testtime"):
        check_host_version()
    said = [record.getMessage() for record in caplog.records if record.name == "testtime"]
    assert said == [f"Test-Time Scaling was tested up to ComfyUI 0.33.0, this one is {version}: it should work"] * lines
