"""Gradients through a model, a VAE and a verifier that ComfyUI loaded as it loads everything: in inference mode."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from testtime.samplers.methods import DAS
from testtime.samplers.smc.tempering import Alpha

from .conftest import SD15_CONFIG, WeightedRedness, build_vae, randomise

pytestmark = pytest.mark.host

GUIDED = DAS(2, alpha=Alpha(0.5), ess_threshold=1.5, start=0.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small checkpoint file that ComfyUI recognises as SD 1.5: true widths, one level, a TAESD as its VAE."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.taesd.taesd import TAESD
    from safetensors.torch import save_file

    config = {
        **SD15_CONFIG,
        "model_channels": 320,
        "num_res_blocks": [1],
        "channel_mult": [1],
        "transformer_depth": [1],
        "transformer_depth_output": [1, 1],
        "context_dim": 768,
        "num_heads": 8,
    }
    unet = randomise(UNetModel(**config, dtype=torch.float32, operations=comfy.ops.disable_weight_init), 0)
    tensors = {f"model.diffusion_model.{key}": value for key, value in unet.state_dict().items()}
    taesd = randomise(TAESD(), 1).state_dict()
    tensors.update({f"first_stage_model.{key}": value.contiguous() for key, value in taesd.items()})
    folder = tmp_path_factory.mktemp("checkpoints")
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "tiny_sd15.safetensors")
    return folder


@pytest.fixture(scope="module")
def loaded(checkpoint):
    """What the stock loader node gives, plus a verifier whose network was made in inference mode too."""
    import folder_paths

    import nodes

    folder_paths.add_model_folder_path("checkpoints", str(checkpoint))
    generator = torch.Generator().manual_seed(3)
    with torch.inference_mode():
        model, _, vae = nodes.CheckpointLoaderSimple().load_checkpoint("tiny_sd15.safetensors")
        tokens = torch.randn(2, 1, 6, 768, generator=generator)
        verifier = WeightedRedness()
    for network in (model.model.diffusion_model, vae.first_stage_model, verifier):
        assert any(p.is_inference() for p in network.parameters()), "then there is nothing to test"
    return SimpleNamespace(
        model=model,
        vae=vae,
        positive=[[tokens[0], {}]],
        negative=[[tokens[1], {}]],
        latent={"samples": torch.zeros(1, 4, 8, 8)},
        verifier=verifier,
    )


def scales(out) -> list[float]:
    return [entry["gradient_scale"] for record in out.trace.records for entry in record.particles]


@pytest.mark.parametrize("through", ["denoiser", "decoder"])
def test_a_stock_checkpoint_can_be_differentiated(loaded, search_ksampler, through):
    weights = {key: value.clone() for key, value in loaded.model.model.diffusion_model.state_dict().items()}
    out = search_ksampler(loaded, replace(GUIDED, gradient_through=through), steps=3)
    assert out.trace.meta["warnings"] == [] and max(scales(out)) > 0
    assert torch.isfinite(out.best["samples"]).all() and not out.best["samples"].requires_grad
    after = loaded.model.model.diffusion_model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in weights.items())
    assert not any(p.requires_grad for p in loaded.model.model.diffusion_model.parameters())


@pytest.mark.parametrize("kind", ["eps", "v", "sd3", "flux"])
def test_the_gradient_is_that_of_the_score(setup, kind):
    """Against finite differences of the same chain: model under guidance, VAE, verifier."""
    from testtime.nodes.search_ksampler import guided_sample, schedule
    from testtime.nodes.search_sampler import SearchOptions, SearchSampler

    given, found = setup(kind), {}

    def before_run(process):
        def score(images, group):
            return given.verifier.score(images.double(), ["a red square"] * len(images))

        process.to_pixels = lambda images: images  # the clamp is the process's own affair
        state = process.start(1)
        _, values = process.value_gradient(state, score)
        direction = values.gradient / values.gradient.norm()
        step = 0.02 * float(state.x.std())

        def ahead(sign):
            moved = replace(state, x=state.x + sign * step * direction)
            return float(process.value_gradient(moved, score)[1].score)

        found["slope"] = (ahead(1) - ahead(-1)) / (2 * step)
        found["norm"] = float(values.gradient.norm())

    options = SearchOptions(GUIDED, given.verifier, given.vae, "a red square", before_run=before_run)
    with torch.inference_mode():
        sigmas = schedule(given.model, "normal", 4, 0.5)
        sampler = SearchSampler(options)
        conditions = (given.positive, given.negative)
        guided_sample(given.model, conditions, 2.0, sampler, sigmas, given.latent, seed=3, particles=2)
    assert found["norm"] > 0 and found["slope"] == pytest.approx(found["norm"], rel=0.1)


def test_a_vae_of_the_usual_kind_loaded_in_inference_mode(setup, search_ksampler):
    given = setup("eps")
    with torch.inference_mode():
        given.vae = build_vae()
        assert any(p.is_inference() for p in given.vae.first_stage_model.parameters())
        given.verifier = WeightedRedness()
    out = search_ksampler(given, GUIDED, steps=3)
    assert out.trace.meta["warnings"] == [] and max(scales(out)) > 0


def test_without_a_gradient_the_search_goes_on_and_says_so(setup, search_ksampler):
    """A judge that promises a gradient and has none, as quantised kernels do."""

    class Opaque(WeightedRedness):
        def score(self, images, prompts, context=None):
            return super().score(images.detach(), prompts, context).detach()

    given = setup("eps")
    given.verifier = Opaque()
    out = search_ksampler(given, GUIDED, steps=3)
    assert max(scales(out)) == 0 and None not in out.scores.values
    assert any("searching without guidance" in warning for warning in out.trace.meta["warnings"])


def test_a_sum_over_the_input_of_its_block_gets_a_tensor_of_its_own_where_autograd_takes_part():
    from testtime.nodes.host.backward import sums_of_their_own

    def block(x):
        inner = x + x.sin()
        return torch.add(inner, inner.square().sin(), out=x)

    start = torch.linspace(0.1, 1.0, 5, dtype=torch.float64)
    with torch.enable_grad(), sums_of_their_own():
        leaf = start.clone().requires_grad_()
        inner = leaf * 1.0
        (found,) = torch.autograd.grad(block(block(inner)).sum(), leaf)
        assert torch.equal(inner, leaf)  # nothing was written over what the backward pass needs
        (expected,) = torch.autograd.grad(plain_block(plain_block(leaf)).sum(), leaf)
        torch.testing.assert_close(found, expected)
        untouched = start.clone()
        assert block(untouched) is untouched  # saves memory as before
    with torch.enable_grad(), pytest.raises(RuntimeError, match="out="):
        block(start.clone().requires_grad_() * 1.0)


def plain_block(x):
    inner = x + x.sin()
    return inner + inner.square().sin()
