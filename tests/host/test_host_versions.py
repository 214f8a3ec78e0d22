"""What newer ComfyUIs do differently, each on the hosts that have it, against the host's own samplers and decoders."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch

from testtime.samplers.methods import DAS, SVDD, BestOfN
from testtime.samplers.plan import Plan
from testtime.samplers.processes.sde import SDE, Schedule, ratio_of
from testtime.samplers.processes.streams import Streams
from testtime.samplers.protocols import SearchError
from testtime.samplers.smc.tempering import Alpha

from .conftest import build_vae, feature, watched
from .test_ksampler_parity import apart, half_mask, noised_latent
from .video_models import build_wan_vae

pytestmark = pytest.mark.host

SCALE = 8.0
"""Noise of HiDream-O1: eight times as strong as the latents'."""


# --- flow models with noise of another strength


def with_noise_scale(given):
    """The setup with the stock node Model Noise Scale on its MODEL; skips on hosts that have none."""
    import comfy_extras.nodes_model_advanced as advanced

    feature(hasattr(advanced, "ModelNoiseScale"), "noise of flow models has no scale (node ModelNoiseScale)")
    given.model = advanced.ModelNoiseScale().patch(given.model, SCALE)[0]
    return given


@pytest.mark.parametrize("inputs", [{}, {"denoise": 0.5}], ids=["text to image", "image to image"])
def test_scaled_noise_on_the_ode_is_euler(setup, search_ksampler, ksampler, inputs):
    given = with_noise_scale(setup("sd3", batch=2))
    if inputs:
        given.latent = noised_latent(given)
    stock = ksampler(given, "euler", **inputs)
    assert apart(search_ksampler(given, BestOfN(1), eta=0.0, **inputs).best, stock) < 1e-5


def test_scaled_noise_around_a_known_area(setup, search_ksampler, ksampler):
    given = with_noise_scale(setup("sd3"))
    given.latent = {**noised_latent(given), "noise_mask": half_mask(given)}
    assert apart(search_ksampler(given, BestOfN(1), eta=0.0).best, ksampler(given, "euler")) < 1e-5


def test_scaled_noise_in_the_moves(setup, search_ksampler):
    """The ancestral move written out with a = 1 - s and b = 8 s, around the host's own guider."""
    import comfy.sample
    import comfy.samplers

    from testtime.nodes.search_ksampler import schedule

    given = with_noise_scale(setup("sd3"))
    latent, streams, states = given.latent["samples"], Streams(3), []

    class Ancestral(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, *_, **__):
            x = model_wrap.inner_model.model_sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise))
            for step, (s, after) in enumerate(zip(sigmas.tolist(), sigmas.tolist()[1:], strict=False)):
                x0 = model_wrap(x, torch.full((len(x),), s), model_options=extra_args["model_options"], seed=3)
                states.append(x)
                if after == 0.0:
                    return x0
                a, b, a_next, b_next = 1 - s, SCALE * s, 1 - after, SCALE * after
                variance = b_next**2 * (1 - (a * b_next / (a_next * b)) ** 2)
                keep = (b_next**2 - variance) ** 0.5 / b
                drawn = streams.normal(latent.shape[1:], group=0, slot=0, step=step, purpose="move")
                x = a_next * x0 + keep * (x - a * x0) + variance**0.5 * drawn
            raise AssertionError("the schedule ends at 0")

    with torch.inference_mode():
        noise, sigmas = comfy.sample.prepare_noise(latent, 3), schedule(given.model, "normal", 4, 1.0)
        conditions = (given.positive, given.negative)
        stock = comfy.sample.sample_custom(given.model, noise, 2.0, Ancestral(), sigmas, *conditions, latent, seed=3)
    assert states[0].std() > 5
    assert apart(search_ksampler(given, BestOfN(1), eta=1.0).best, {"samples": stock}) < 1e-5


def test_a_path_counts_in_signal_to_noise_whatever_the_scale(setup, search_ksampler):
    """A path's grid is one of ratios b / a: the model's scale moves the sigmas, and leaves the ratios alone."""
    from testtime.nodes.search_ksampler import guided_sample, schedule
    from testtime.nodes.search_sampler import SearchOptions, SearchSampler

    def grid(given) -> tuple[list[float], list[float]]:
        seen = {}

        def note(process):
            seen["ratios"] = [ratio_of(process.interpolant, sigma) for sigma in process.sigmas]
            seen["sigmas"] = process.sigmas

        path = Plan(BestOfN(1), moves=SDE("vp"), schedule=Schedule("exp", "vp", levels=4, tail=2))
        options = SearchOptions(path, given.verifier, given.vae, "a red square", before_run=note)
        sigmas = schedule(given.model, "normal", 4, 1.0)
        conditions = (given.positive, given.negative)
        with torch.inference_mode():
            guided_sample(given.model, conditions, 1.0, SearchSampler(options), sigmas, given.latent, 3, particles=1)
        return seen["ratios"], seen["sigmas"]

    (plain, plain_sigmas), (scaled, sigmas) = grid(setup("sd3")), grid(with_noise_scale(setup("sd3")))
    assert scaled[1:] == pytest.approx(plain[1:], rel=1e-4)
    expected = [ratio / (SCALE + ratio) for ratio in plain[1:]]
    assert sigmas[1:] == pytest.approx(expected, rel=1e-4) and sigmas[1] < plain_sigmas[1]


def test_a_flow_without_noise_is_refused(setup, search_ksampler, monkeypatch):
    monkeypatch.setitem(globals(), "SCALE", 0.0)
    with pytest.raises(SearchError, match="noise_scale is 0: without noise all particles are the same"):
        search_ksampler(with_noise_scale(setup("sd3")), BestOfN(1))


# --- kernels without a backward pass


def test_training_kernels_run_in_the_gradient_context_and_nowhere_else(setup, search_ksampler):
    """Also after an error: the switch belongs to the whole server."""
    import comfy.model_management as management

    feature(hasattr(management, "in_training"), "networks have no switch for kernels with a backward pass")
    given, seen = setup("flux"), set()
    given.model, _ = watched(
        given.model, before=lambda rows: seen.add((torch.is_grad_enabled(), management.in_training))
    )
    search_ksampler(given, DAS(2, alpha=Alpha(0.5), start=0.5), steps=4)
    assert seen == {(False, False), (True, True)}

    def fail(rows: int) -> None:
        if torch.is_grad_enabled():
            raise KeyError("in the middle of a gradient")

    given.model, _ = watched(setup("flux").model, before=fail)
    with pytest.raises(KeyError):
        search_ksampler(given, DAS(2, alpha=Alpha(0.5), start=0.0), steps=4)
    assert management.in_training is False


def test_the_switch_of_the_kernels_is_put_back(monkeypatch):
    import comfy.model_management as management

    from testtime.nodes.host.compat import differentiable_kernels

    monkeypatch.setattr(management, "in_training", "as it was", raising=False)
    with pytest.raises(KeyError), differentiable_kernels():  # noqa: PT012 - a body that fails
        assert management.in_training is True
        raise KeyError
    assert management.in_training == "as it was"
    monkeypatch.delattr(management, "in_training")
    with differentiable_kernels():
        assert not hasattr(management, "in_training")


def test_fused_operations_have_the_gradient_of_the_plain_ones():
    """Against autograd through the same function in plain torch; those that a later package mends keep their own."""
    from testtime.nodes.host import backward

    names = backward.register()
    feature(bool(names), "rotary embeddings are computed in plain operations")
    from comfy_kitchen.backends.eager import rope

    generator = torch.Generator().manual_seed(0)
    freqs = torch.randn(1, 1, 5, 8, 2, 2, generator=generator)
    assert {"rms_rope", "rms_rope_split_half", "apply_rope_split_half"} <= set(names)
    for name in names:
        scales = [torch.randn(16, generator=generator)] * (0 if "apply" in name else 1 if name.endswith("1") else 2)
        states = [torch.randn(2, 3, 5, 16, generator=generator) for _ in range(1 if name.endswith("1") else 2)]
        found = []
        for function in (getattr(torch.ops.comfy_kitchen, name), getattr(rope, name)):
            leaves = [state.clone().requires_grad_() for state in states]
            outputs = function(*leaves, freqs, *scales)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            value = sum((output.sin() * (1 + place)).sum() for place, output in enumerate(outputs))
            found.append(torch.autograd.grad(value, leaves))
        assert all(torch.allclose(ours, plain, atol=1e-5) for ours, plain in zip(*found, strict=True))
        assert all(float(plain.abs().max()) > 0.1 for plain in found[1])


@pytest.mark.parametrize("part", ["model", "vae"])
def test_weights_that_come_on_demand_have_no_gradient(setup, search_ksampler, monkeypatch, part):
    """Dynamic VRAM, which is for GPUs alone: what says so is the patcher, here one of the host's usual ones."""
    from comfy.model_patcher import ModelPatcher

    feature(hasattr(ModelPatcher, "is_dynamic"), "weights of a model are loaded as a whole")
    given = setup("eps")
    network = given.model.model if part == "model" else given.vae.first_stage_model
    monkeypatch.setattr(ModelPatcher, "is_dynamic", lambda patcher: patcher.model is network)
    out = search_ksampler(given, DAS(2, alpha=Alpha(0.5), start=0.0), steps=3)
    assert "start ComfyUI with --disable-dynamic-vram): searching without guidance" in out.trace.meta["warnings"][0]
    assert out.trace.meta["ledger"]["backward"] == 0 and torch.isfinite(out.best["samples"]).all()


# --- empty latents that tell their scale


def coarse(given):
    """The setup with a MODEL whose latent cells are 16 pixels wide."""
    import comfy.latent_formats

    class Coarse(comfy.latent_formats.SD3):
        spacial_downscale_ratio = 16

    given.model = given.model.clone()
    given.model.add_object_patch("latent_format", Coarse())
    return given


def test_empty_latents_take_the_size_that_ksampler_gives_them(setup, ksampler):
    import nodes
    from testtime.nodes.host.compat import fitting_latent

    given = coarse(setup("sd3"))
    given.latent = nodes.EmptyLatentImage().generate(128, 192, 2)[0]
    stock = ksampler(given, "euler")["samples"]
    fitted = fitting_latent(given.model, given.latent)
    assert (
        fitted.shape
        == stock.shape
        == ((2, 16, 12, 8) if "downscale_ratio_spacial" in given.latent else (2, 16, 24, 16))
    )
    picture = {**given.latent, "samples": torch.ones(2, 16, 8, 8)}
    assert fitting_latent(given.model, picture) is picture["samples"]


def test_a_search_begins_with_the_empty_latent_that_ksampler_begins_with(setup, search_ksampler, ksampler):
    import nodes

    given = coarse(setup("sd3"))
    given.latent = nodes.EmptyLatentImage().generate(128, 192, 1)[0]
    stock = ksampler(given, "euler")
    ours = search_ksampler(given, BestOfN(1), eta=0.0)
    assert apart(ours.best, stock) < 1e-5
    assert ours.best.keys() == stock.keys() == ours.finalists.keys()


# --- families that only look like a flow


def test_bridges_of_every_kind_are_refused():
    import comfy.model_sampling as sampling

    from testtime.nodes.host.interpolants import interpolant_for

    bridges = [name for name in vars(sampling) if name.startswith("IMG_TO_IMG")]
    assert "IMG_TO_IMG" in bridges
    for name in bridges:
        kind = type("ModelSampling", (sampling.ModelSamplingDiscreteFlow, getattr(sampling, name)), {})
        with pytest.raises(SearchError, match=rf"samples as {name} \(image-to-image bridge\)"):
            interpolant_for(kind())


# --- VAEs of images under models that keep a time axis


@pytest.mark.parametrize("gradient", [False, True])
def test_a_vae_of_images_decodes_latents_with_a_time_axis(gradient):
    from testtime.nodes.host.pixels import HostDecode
    from testtime.nodes.host.residency import Residency

    vae = build_vae(16)
    latents = torch.randn(2, 16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    decode = HostDecode(vae, SimpleNamespace(process_latent_out=lambda x: x), Residency())
    with torch.inference_mode():
        stock = vae.decode(latents[:, :, 0])
    with torch.inference_mode(not gradient):
        images = decode(latents.requires_grad_() if gradient else latents)
    assert images.requires_grad == gradient
    assert torch.allclose(images.detach().clamp(0, 1), stock, atol=1e-5)


# --- models of layers


def build_qwen():
    """A MODEL of a tiny Qwen-Image."""
    import comfy.supported_models as supported

    from .conftest import _patcher, randomise

    sizes = {"num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 16}
    config = supported.QwenImage({"image_model": "qwen_image", "axes_dims_rope": (4, 6, 6), **sizes})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    randomise(model.diffusion_model, 0)
    return _patcher(config, model)


def test_one_layer_is_an_image(setup, search_ksampler, ksampler):
    given = setup("sd3")
    given.model = build_qwen()
    assert apart(search_ksampler(given, BestOfN(1), eta=0.0).best, ksampler(given, "euler")) < 1e-5


def test_das_has_its_gradient_on_qwen_image(setup, search_ksampler):
    given = setup("sd3")
    given.model = build_qwen()
    out = search_ksampler(given, DAS(2, alpha=Alpha(0.5), start=0.0), steps=3)
    assert out.trace.meta["warnings"] == []
    assert max(entry["gradient_scale"] for record in out.trace.records for entry in record.particles) > 0


def test_layers_are_judged_as_one_picture(setup, search_ksampler, ksampler):
    """The first latent along the third axis is the whole picture: it is not judged, and the layers are no frames."""
    from testtime.nodes.host.layout import layout_of

    given = setup("sd3")
    given.model, given.vae = build_qwen(), build_wan_vae()
    known = inspect.signature(type(given.model.model.diffusion_model).__init__).parameters
    feature("use_additional_t_cond" in known, "Qwen-Image has no layers")
    given.latent = {"samples": torch.zeros(1, 16, 4, 8, 8)}
    assert layout_of(given.model.model, (1, 16, 4, 8, 8)).describe(given.vae) == "a picture of 3 layers"
    assert apart(search_ksampler(given, BestOfN(1), eta=0.0).best, ksampler(given, "euler")) < 1e-5
    out = search_ksampler(given, SVDD(2))
    for samples, score in zip(out.finalists["samples"], out.scores.values, strict=True):
        with torch.inference_mode():
            layers = given.vae.decode(samples[:, 1:].movedim(1, 0)[:, :, None])
        picture = layers.reshape(3, *layers.shape[-3:]).mean(0, keepdim=True)
        assert score == pytest.approx(float(given.verifier.score(picture, ["a red square"])), abs=2e-5)


# --- cancelling


@pytest.mark.parametrize("search", [SVDD(2), DAS(2, alpha=Alpha(0.5))], ids=lambda search: search.name)
def test_a_layer_that_notices_cancel_ends_the_search_there(setup, search_ksampler, search):
    """Newer hosts look for it in every layer: a network is left in the middle, by an exception that is no Exception."""
    import comfy.model_management as management
    import comfy.ops

    from testtime.nodes.host.results import store

    feature(hasattr(comfy.ops, "run_every_op"), "layers do not look for cancellation")
    assert not issubclass(management.InterruptProcessingException, Exception)
    given, seen, revision = setup("eps"), [], store.revision
    network = given.model.model.diffusion_model

    def press(module, inputs) -> None:
        seen.append("first layer")
        if len(seen) == 5:
            management.interrupt_current_processing(True)

    hooks = [
        network.time_embed.register_forward_pre_hook(press),
        network.out.register_forward_pre_hook(lambda module, inputs: seen.append("last layer")),
    ]
    try:
        with pytest.raises(management.InterruptProcessingException):
            search_ksampler(given, search, steps=6)
    finally:
        management.interrupt_current_processing(False)
        for hook in hooks:
            hook.remove()
    assert seen == [*["first layer", "last layer"] * 2, "first layer"]
    assert store.revision == revision + 1 and torch.isfinite(store.latest("interrupted").best).all()


def test_a_second_copy_of_the_pack_is_one_clear_error(tmp_path, monkeypatch):
    """Under a package name of its own, as ComfyUI loads it; the first copy may be asked again."""
    import sys

    from testtime.nodes.host import compat

    monkeypatch.delitem(sys.modules, compat.COPY, raising=False)
    compat.check_single_copy(tmp_path / "first")
    compat.check_single_copy(tmp_path / "first")
    with pytest.raises(RuntimeError, match=r"is installed twice, in .*first and in .*second: remove one of them"):
        compat.check_single_copy(tmp_path / "second")
    monkeypatch.delitem(sys.modules, compat.COPY)
