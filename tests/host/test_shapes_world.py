"""The embedded family inside ComfyUI: stock nodes run on it, and it is the same model as the library's."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.protocols import Verifier

pytestmark = pytest.mark.host

PROMPTS = ["two red stars", "a ring above a cross"]


@pytest.fixture(scope="module", params=["diffusion", "flow"])
def family(request):
    """(kind, MODEL, CLIP, VAE, verifier, held-out verifier), loaded as a node would: under inference mode."""
    from testtime.nodes.family_nodes import LoadShapesWorldNode

    with torch.inference_mode():
        return (request.param, *LoadShapesWorldNode.execute(request.param).args)


def stock(name):
    import nodes

    return nodes.NODE_CLASS_MAPPINGS[name]()


def encode(clip, text):
    return stock("CLIPTextEncode").encode(clip, text)[0]


def both_prompts(clip):
    """CONDITIONING with one row per prompt, as a batch of prompts is written in ComfyUI."""
    entries = [encode(clip, text)[0] for text in PROMPTS]
    pooled = torch.cat([extra["pooled_output"] for _, extra in entries])
    return [[torch.cat([tokens for tokens, _ in entries]), {"pooled_output": pooled}]]


SCHEDULER = {"diffusion": "normal", "flow": "simple"}  # evenly spaced times, as in the library


def library_process(kind, noise, steps=8, **settings):
    from testtime.models.tiny.pipeline import SamplingSettings, shapes_process
    from testtime.samplers.processes.diffusion import Start

    process = shapes_process(PROMPTS, SamplingSettings(model=kind, steps=steps, cfg=4.0, eta=0.0, **settings))
    process.start_at = Start(noise=noise)
    return process


@pytest.mark.parametrize("steps", [1, 8, 20])
def test_sigmas_are_the_librarys(family, steps):
    import comfy.samplers

    from testtime.models.tiny.pipeline import SamplingSettings, shapes_process

    kind, model = family[:2]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), SCHEDULER[kind], steps)
    ours = shapes_process(PROMPTS, SamplingSettings(model=kind, steps=steps)).sigmas
    assert sigmas.tolist() == pytest.approx(list(ours), abs=1e-5)


def test_stock_ksampler_gives_the_library_images(family):
    """Same noise, a prompt for each image: ComfyUI's own sampler and the library's ODE end at the same latents."""
    import comfy.sample

    from testtime.models.tiny.loading import load_family

    kind, model, clip, vae, *_ = family
    with torch.inference_mode():
        latent = stock("EmptyLatentImage").generate(128, 128, 2)[0]
        assert latent["samples"].shape == (2, 4, 16, 16)
        positive, negative = both_prompts(clip), encode(clip, "")
        out = stock("KSampler").sample(model, 7, 8, 4.0, "euler", SCHEDULER[kind], positive, negative, latent)[0]
        images = stock("VAEDecode").decode(vae, out)[0]
    process = library_process(kind, comfy.sample.prepare_noise(latent["samples"], 7))
    state = process.start(1)
    with torch.no_grad():
        while state.step < process.steps:
            state, _ = process.advance(process.predict(state))
        ours = process.to_pixels(process.decode(state.x))
    assert float((out["samples"] * load_family().latent_scale - state.x).abs().max()) < 1e-4
    assert images.shape == (2, 128, 128, 3) and float((images - ours).abs().max()) < 1e-4


def test_gradient_through_host_equals_the_librarys(family):
    """DAS inside ComfyUI: gradient of a managed verifier through its VAE and model, all loaded in inference mode."""
    import comfy.sample

    from testtime.nodes.search_sampler import SearchOptions, SearchSampler
    from testtime.samplers.methods import DAS
    from testtime.verifiers.registry import create

    kind, model, clip, vae, verifier, _ = family
    found = {}

    def before_run(process):
        state = process.start(1)
        _, found["values"] = process.value_gradient(state, lambda images, group: verifier.score(images, texts(group)))

    def texts(group):
        return [PROMPTS[g] for g in group.tolist()]

    latent, noise = torch.zeros(2, 4, 16, 16), comfy.sample.prepare_noise(torch.zeros(2, 4, 16, 16), 7)
    found_result = []
    options = SearchOptions(
        DAS(particles=2), verifier, vae, PROMPTS[0], before_run=before_run, on_result=found_result.append
    )
    process = library_process(kind, noise, steps=3)
    with torch.inference_mode():
        positive, negative = both_prompts(clip), encode(clip, "")
        sampler, sigmas = SearchSampler(options), torch.tensor(process.sigmas)
        comfy.sample.sample_custom(model, noise, 4.0, sampler, sigmas, positive, negative, latent, seed=7)
    judge = create("shapes_preference")
    _, ours = process.value_gradient(process.start(1), lambda images, group: judge.score(images, texts(group)))
    largest = float(ours.gradient.abs().max())
    assert largest > 0
    assert found["values"].score.tolist() == pytest.approx(ours.score.tolist(), abs=1e-4)
    assert float((found["values"].gradient - ours.gradient).abs().max()) < 1e-3 * largest
    (result,) = found_result
    assert result.status == "complete" and not result.warnings
    assert None not in result.scores.values


def test_vae_round_trip(family):
    """Encoding and decoding a drawing through the stock nodes gives it back, as well as the library does."""
    from testtime.models.tiny.loading import load_autoencoder
    from testtime.shapes_world.captions import sample_prompt
    from testtime.shapes_world.drawing import draw
    from testtime.shapes_world.sampling import sample_scene

    vae = family[3]
    picture = torch.from_numpy(draw(sample_scene(3, sample_prompt(3, "two_object")))).float()[None] / 255
    with torch.inference_mode():
        latent = stock("VAEEncode").encode(vae, picture)[0]
        decoded = stock("VAEDecode").decode(vae, latent)[0]
    assert latent["samples"].shape == (1, 4, 16, 16)
    autoencoder, _ = load_autoencoder()
    with torch.no_grad():
        ours = autoencoder(picture.movedim(-1, 1) * 2 - 1).movedim(1, -1) / 2 + 0.5
    assert float((decoded - ours.clamp(0, 1)).abs().max()) < 1e-4


def test_conditioning_equals_the_library_and_weights_move_it(family):
    from testtime.models.tiny.loading import load_family
    from testtime.models.tiny.pipeline import encode_prompts

    clip = family[2]
    with torch.inference_mode():
        plain = encode(clip, PROMPTS[1])[0][0]
        strong = encode(clip, "a (ring:1.5) above a cross")[0][0]
        off = encode(clip, "(a ring above a cross:0.0)")[0][0]
        empty = encode(clip, "")[0][0]
    assert torch.allclose(plain, encode_prompts(load_family(), [PROMPTS[1]]), atol=1e-5)
    assert not torch.allclose(strong, plain, atol=1e-3)
    assert torch.allclose(off[:, :5], empty[:, :5], atol=1e-5)


def test_unknown_words_are_named(family, caplog):
    with caplog.at_level("WARNING", logger="testtime"):
        encode(family[2], "a red dragon and a star")
    assert "dragon" in caplog.text and "star" not in caplog.text.replace("dragon", "")[:60]


def test_it_survives_being_unloaded(family):
    """Everything is under ComfyUI's management: unload all, run again, same result."""
    import comfy.model_management as management

    _, model, clip, vae, verifier, _ = family

    def run():
        with torch.inference_mode():
            latent = stock("EmptyLatentImage").generate(128, 128, 1)[0]
            positive, negative = encode(clip, PROMPTS[0]), encode(clip, "")
            out = stock("KSampler").sample(model, 1, 3, 4.0, "euler", "normal", positive, negative, latent)[0]
            image = stock("VAEDecode").decode(vae, out)[0]
            return image, verifier.score(image, PROMPTS[0])

    first_image, first_score = run()
    management.unload_all_models()
    assert not any(loaded.model is verifier.patcher for loaded in management.current_loaded_models)
    image, score = run()
    assert torch.equal(image, first_image) and torch.equal(score, first_score)


def test_preview_factors_show_the_colours():
    """The linear preview of a drawing's latent has its colours, roughly."""
    from testtime.models.tiny.loading import load_autoencoder
    from testtime.nodes.host.shapes_world_host import preview_factors
    from testtime.shapes_world.captions import sample_prompt
    from testtime.shapes_world.drawing import draw
    from testtime.shapes_world.sampling import sample_scene

    autoencoder, scale = load_autoencoder()
    factors = preview_factors(autoencoder, scale)
    pictures = [draw(sample_scene(s, sample_prompt(s, "color_attr"))) for s in range(500, 510)]
    images = torch.stack([torch.from_numpy(p) for p in pictures]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = autoencoder.encode(images).movedim(1, -1) * scale
    shown = latents @ factors[:-1] + factors[-1]
    wanted = torch.nn.functional.avg_pool2d(images, 8).movedim(1, -1)
    explained = 1 - float((shown - wanted).square().mean() / wanted.flatten(0, 2).var(0).mean())
    assert explained > 0.5


def test_img2img_inpainting_and_other_sizes_through_stock_nodes(family):
    """The known half of an inpainting stays; 160x96 is no problem; tiled decoding gives nearly the same image."""
    kind, model, clip, vae, *_ = family
    picture = torch.rand(1, 96, 160, 3, generator=torch.Generator().manual_seed(1)).round()
    mask = torch.zeros(1, 96, 160)
    mask[..., 80:] = 1.0
    with torch.inference_mode():
        positive, negative = encode(clip, PROMPTS[0]), encode(clip, "")
        latent = stock("VAEEncode").encode(vae, picture)[0]
        masked = stock("SetLatentNoiseMask").set_mask(latent, mask)[0]
        sampler = stock("KSampler")
        out = sampler.sample(model, 3, 4, 4.0, "euler", SCHEDULER[kind], positive, negative, masked, denoise=0.6)[0]
        whole = stock("VAEDecode").decode(vae, out)[0]
        tiled = stock("VAEDecodeTiled").decode(vae, out, 64, 32)[0]
    known, drawn = (out["samples"] - latent["samples"]).abs().split(10, -1)
    assert float(known.max()) < 1e-4 < 0.05 < float(drawn.mean())
    assert whole.shape == tiled.shape == (1, 96, 160, 3)
    assert float((whole - tiled).abs().mean()) < 0.1


def test_size_that_the_model_cannot_draw_is_named(family):
    _, model, clip, *_ = family
    latent = {"samples": torch.zeros(1, 4, 17, 16)}
    with torch.inference_mode():
        text = encode(clip, PROMPTS[0])
    with torch.inference_mode(), pytest.raises(ValueError, match=r"latent size is \(17, 16\).*even"):
        stock("KSampler").sample(model, 3, 2, 4.0, "euler", "normal", text, text, latent)


def test_live_preview_comes_from_the_latent_format(family):
    import latent_preview

    latent_format = family[1].model.latent_format
    factors = latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias
    _, image, _ = latent_preview.Latent2RGBPreviewer(*factors).decode_latent_to_preview_image(
        "JPEG", torch.zeros(1, 4, 16, 16)
    )
    assert image.size == (16, 16)


def test_networks_that_must_follow_the_host_are_made_of_its_layers(family):
    """With --novram the host leaves weights in main memory: denoiser and VAE run there only on layers that cast.

    The denoiser's positions belong to no layer; it brings them to where its states are by itself.
    """
    _, model, _, vae, *_ = family
    for network in (model.model.diffusion_model, vae.first_stage_model):
        for name, part in network.named_modules():
            if {key for key, _ in part.named_parameters(recurse=False)} - {"position"}:
                assert hasattr(part, "comfy_cast_weights"), name
    states = torch.zeros(1, 2, 8, 8, dtype=torch.bfloat16, device="meta")
    moved = model.model.diffusion_model._positions(states)
    assert (moved.dtype, moved.device) == (states.dtype, states.device)


def test_a_search_never_picks_an_image_without_a_score(family, search_ksampler):
    from types import SimpleNamespace

    from testtime.samplers.methods import BestOfN

    class Picky(Verifier):
        """Scores only the second candidate of a call."""

        name, differentiable = "picky", False

        def score(self, images, prompts, context=None):
            return torch.where(torch.arange(len(images)) == 1, 1.0, float("nan"))

    _, model, clip, vae, *_ = family
    with torch.inference_mode():
        given = SimpleNamespace(
            model=model,
            vae=vae,
            positive=encode(clip, PROMPTS[0]),
            negative=encode(clip, ""),
            latent={"samples": torch.zeros(1, 4, 16, 16)},
            verifier=Picky(),
        )
    found = search_ksampler(given, BestOfN(particles=3), steps=2)
    assert found.scores.values == [1.0, None, None]
    assert torch.equal(found.best["samples"], found.finalists["samples"][:1])


def test_missing_weights_are_reported_when_queued(tmp_path, monkeypatch):
    """Before anything runs: which file, in which folder, and what to do; a wrong choice is still refused."""
    from testtime.models.tiny.loading import WEIGHTS, missing_weights
    from testtime.nodes import family_nodes, verifier_nodes

    load, verifier = family_nodes.LoadShapesWorldNode, verifier_nodes.ShapesVerifierNode
    assert load.validate_inputs(model="flow") is True and verifier.validate_inputs(verifier="shapes_clip") is True
    assert "'sd3'" in load.validate_inputs(model="sd3") and "'hps'" in verifier.validate_inputs(verifier="hps")
    for path in WEIGHTS.glob("*.safetensors"):
        if path.stem not in ("flow", "clip"):
            (tmp_path / path.name).symlink_to(path)
    for module in (family_nodes, verifier_nodes):
        monkeypatch.setattr(module, "missing_weights", lambda names: missing_weights(names, tmp_path))
    problem = load.validate_inputs(model="flow")
    assert (
        problem.startswith(f"flow.safetensors, clip.safetensors are missing in {tmp_path}") and "reinstall" in problem
    )
    assert "clip.safetensors is missing" in load.validate_inputs(model="diffusion")
    assert "clip.safetensors is missing" in verifier.validate_inputs(verifier="shapes_clip")
    assert verifier.validate_inputs(verifier="shapes_preference") is True
