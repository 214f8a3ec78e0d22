"""With one particle a search is the stock sampler, to float32 rounding."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.methods import SMC, SVDD, BestOfN
from testtime.samplers.processes.streams import Streams

from .conftest import conditioning

ALL = ["eps", "v", "sd3", "flux"]


def apart(a, b) -> float:
    """Largest difference of two LATENTs over their spread."""
    assert a["samples"].shape == b["samples"].shape
    return float((a["samples"] - b["samples"]).abs().max() / b["samples"].std())


def noised_latent(given, seed: int = 5):
    generator = torch.Generator().manual_seed(seed)
    return {"samples": torch.randn(given.latent["samples"].shape, generator=generator)}


def half_mask(given):
    mask = torch.zeros(1, *(8 * side for side in given.latent["samples"].shape[-2:]))
    mask[:, :, mask.shape[-1] // 2 :] = 1.0
    return mask


def ancestral(given, seed: int = 3, steps: int = 4, cfg: float = 2.0):
    """Stock euler_ancestral fed with the noise of our streams."""
    import comfy.sample
    import comfy.samplers

    from testtime.nodes.search_ksampler import schedule

    latent = given.latent["samples"]
    streams, taken = Streams(seed), iter(range(steps))
    groups, slots = torch.arange(len(latent)), torch.zeros(len(latent), dtype=torch.int64)

    def noise_sampler(sigma, sigma_next):
        return streams.normals(latent.shape[1:], groups, slots, step=next(taken), purpose="move")

    sampler = comfy.samplers.ksampler("euler_ancestral", {"noise_sampler": noise_sampler})
    with torch.inference_mode():
        samples = comfy.sample.sample_custom(
            given.model,
            comfy.sample.prepare_noise(latent, seed),
            cfg,
            sampler,
            schedule(given.model, "normal", steps, 1.0),
            given.positive,
            given.negative,
            latent,
            seed=seed,
        )
    return {"samples": samples}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_one_particle_on_the_ode_is_euler(setup, search_ksampler, ksampler, kind, cfg):
    given = setup(kind, batch=2)
    ours = search_ksampler(given, BestOfN(1), eta=0.0, cfg=cfg).best
    assert apart(ours, ksampler(given, "euler", cfg=cfg)) < 1e-5


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("search", [BestOfN(1), SVDD(1), SMC(particles=1)], ids=lambda search: search.name)
def test_one_particle_on_the_sde_is_euler_ancestral(setup, search_ksampler, kind, search):
    given = setup(kind, batch=2)
    assert apart(search_ksampler(given, search, eta=1.0).best, ancestral(given)) < 1e-5


@pytest.mark.parametrize("kind", ["eps", "flux"])
def test_odd_sizes(setup, search_ksampler, ksampler, kind):
    given = setup(kind, size=(7, 9))
    assert apart(search_ksampler(given, BestOfN(1), eta=0.0).best, ksampler(given, "euler")) < 1e-5


@pytest.mark.parametrize("kind", ["eps", "sd3"])
def test_image_to_image(setup, search_ksampler, ksampler, kind):
    given = setup(kind, batch=2)
    given.latent = noised_latent(given)
    ours = search_ksampler(given, BestOfN(1), eta=0.0, denoise=0.5).best
    assert apart(ours, ksampler(given, "euler", denoise=0.5)) < 1e-5


@pytest.mark.parametrize("kind", ["eps", "sd3"])
def test_inpainting(setup, search_ksampler, ksampler, kind):
    given = setup(kind, batch=2)
    given.latent = {**noised_latent(given), "noise_mask": half_mask(given)}
    ours = search_ksampler(given, BestOfN(1), eta=0.0).best
    assert apart(ours, ksampler(given, "euler")) < 1e-5
    kept = ours["samples"][..., : ours["samples"].shape[-1] // 2 - 1]
    assert torch.allclose(kept, given.latent["samples"][..., : kept.shape[-1]], atol=1e-5)


def test_inpainting_model_with_mask_channels(setup, search_ksampler, ksampler):
    given = setup("inpaint", batch=2)
    given.latent = {**noised_latent(given), "noise_mask": half_mask(given)}
    assert apart(search_ksampler(given, BestOfN(1), eta=0.0).best, ksampler(given, "euler")) < 1e-5


def test_differential_diffusion(setup, search_ksampler, ksampler):
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

    given = setup("eps")
    ramp = torch.linspace(0, 1, 64).expand(1, 64, 64)
    given.latent = {**noised_latent(given), "noise_mask": ramp}
    plain = ksampler(given, "euler")
    given.model = DifferentialDiffusion.execute(given.model).result[0]
    stock = ksampler(given, "euler")
    assert apart(stock, plain) > 1e-2
    assert apart(search_ksampler(given, BestOfN(1), eta=0.0).best, stock) < 1e-5


def test_a_prompt_per_image(setup, search_ksampler, ksampler):
    given = setup("sd3", batch=4, prompts=2)
    ours = search_ksampler(given, BestOfN(1), eta=0.0).best
    assert apart(ours, ksampler(given, "euler")) < 1e-5
    given.positive = conditioning("sd3", 1, seed=1)
    assert apart(ours, ksampler(given, "euler")) > 1e-3


def test_images_picked_from_a_batch(setup, search_ksampler, ksampler):
    given = setup("eps", batch=2)
    given.latent["batch_index"] = [3, 1]
    assert apart(search_ksampler(given, BestOfN(1), eta=0.0).best, ksampler(given, "euler")) < 1e-5


def test_an_image_of_a_batch_can_be_made_alone(setup, search_ksampler):
    given = setup("eps", batch=3)
    whole = search_ksampler(given, SMC(particles=3)).best["samples"][1:2]
    given = setup("eps")
    given.latent["batch_index"] = [1]
    alone = search_ksampler(given, SMC(particles=3)).best
    assert apart(alone, {"samples": whole}) < 1e-4


def test_sampler_custom_advanced(setup, ksampler):
    from comfy_extras import nodes_custom_sampler as custom

    from testtime.nodes.search_ksampler import schedule
    from testtime.nodes.search_sampler import SearchSamplerNode

    given = setup("flux", batch=2)
    with torch.inference_mode():
        sampler = SearchSamplerNode.execute(given.verifier, given.vae, BestOfN(1), 0.0, "a red square").result[0]
        guider = custom.CFGGuider().get_guider(given.model, given.positive, given.negative, 2.0)[0]
        sigmas = schedule(given.model, "normal", 4, 1.0)
        out, denoised = custom.SamplerCustomAdvanced().sample(
            custom.Noise_RandomNoise(3), guider, sampler, sigmas, given.latent
        )
    assert apart(out, ksampler(given, "euler")) < 1e-5
    assert apart(denoised, out) < 1e-5


def test_a_split_schedule_goes_on_where_it_was_left(setup, ksampler):
    from comfy_extras import nodes_custom_sampler as custom

    from testtime.nodes.search_ksampler import schedule
    from testtime.nodes.search_sampler import SearchSamplerNode

    given = setup("sd3")
    sigmas = schedule(given.model, "normal", 6, 1.0)
    with torch.inference_mode():
        sampler = SearchSamplerNode.execute(given.verifier, given.vae, BestOfN(2), 0.0, "a red square").result[0]
        guider = custom.CFGGuider().get_guider(given.model, given.positive, given.negative, 2.0)[0]
        advanced = custom.SamplerCustomAdvanced()
        stock = custom.KSamplerSelect().get_sampler("euler")[0]
        first, _ = advanced.sample(custom.Noise_RandomNoise(3), guider, stock, sigmas[:4], given.latent)
        second, _ = advanced.sample(custom.Noise_EmptyNoise(), guider, sampler, sigmas[3:], first)
    assert apart(second, ksampler(given, "euler", steps=6)) < 1e-4
