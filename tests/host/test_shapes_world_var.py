"""The embedded next-scale model as nodes: it draws what the library draws, codes images, and can be searched."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.host

PROMPT = "an orange crescent"
DRAWN = {"seed": 7, "cfg": 3.0, "tau": 1.0, "top_p": 0.97, "aspect_ratio": "1:1 (square)", "pixels": "1M"}


@pytest.fixture(scope="module")
def loaded():
    """(INFINITY, CLIP, VAE, verifier, held out, extractor) as the node gives them."""
    from testtime.nodes.infinity_nodes import LoadShapesWorldVARNode

    assert LoadShapesWorldVARNode.validate_inputs() is True
    with torch.inference_mode():
        return LoadShapesWorldVARNode.execute().args


@pytest.fixture(scope="module")
def positive(loaded):
    clip = loaded[1]
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))


@pytest.fixture(scope="module")
def plain():
    """Code map ``[1, 16, 8, 8]`` of the library."""
    from testtime.models.tiny.var_pipeline import VarSettings, var_process

    process = var_process([PROMPT], VarSettings(cfg=3.0, tau=1.0, top_p=0.97, seed=7))
    state = process.start(1)
    for _ in range(process.steps):
        state, _ = process.advance(state)
    return state.x


def sample(loaded, positive, **changes):
    from testtime.nodes.infinity_sampler import InfinitySamplerNode

    with torch.inference_mode():
        result = InfinitySamplerNode.execute(loaded[0], positive, **{**DRAWN, "batch_size": 1, **changes})
    return result.args[0]["samples"]


def test_the_sampler_draws_what_the_library_draws(loaded, positive, plain):
    found = sample(loaded, positive)
    # The library's layers are laid out for the processor: a bit whose chances are even may fall the other way.
    assert found.shape == plain.shape and float((found - plain).abs().max()) < 1e-4


def test_images_of_a_batch_differ_and_the_first_is_that_of_a_single_run(loaded, positive):
    three, one = sample(loaded, positive, batch_size=3, vae=loaded[2]), sample(loaded, positive)
    assert torch.equal(three[:1], one) and not torch.equal(three[1], three[2])


def test_the_vae_codes_drawings(loaded):
    from testtime.shapes_world.captions import sample_prompt
    from testtime.shapes_world.drawing import draw
    from testtime.shapes_world.sampling import sample_scene
    from testtime.shapes_world.scene import TASKS

    prompts = [sample_prompt(31_000_000 + k, task) for k, task in enumerate(TASKS)]
    drawn = torch.stack([torch.from_numpy(draw(sample_scene(k, prompt))) for k, prompt in enumerate(prompts)])
    pixels = drawn.float() / 255
    vae = loaded[2]
    codes = vae.encode(pixels)
    assert codes.shape == (len(TASKS), 16, 8, 8)
    error = (vae.decode(codes).cpu() - pixels).square().mean((1, 2, 3))
    assert float(-10 * error.log10().mean()) > 22  # dB
    with pytest.raises(ValueError, match="this VAE codes images of"):
        vae.encode(pixels[:, :64])


def test_tts_var_finds_a_better_image_than_plain_sampling(loaded, positive, plain):
    from testtime.nodes.infinity_sampler import InfinitySearchNode
    from testtime.nodes.tts_var_node import TTSVARNode

    _, _, vae, verifier, held_out, extractor = loaded
    with torch.inference_mode():
        method = TTSVARNode.execute(2, "value", 10.0, "pca", extractor=extractor).args[0]
        best, finalists, _scores, trace = InfinitySearchNode.execute(
            loaded[0], positive, search=method, verifier=verifier, held_out=held_out, vae=vae, prompt=PROMPT,
            batch_size=1, **DRAWN,
        ).args  # fmt: skip
        plain_score = float(verifier.score(vae.decode(plain), [PROMPT])[0])
        best_score = float(verifier.score(vae.decode(best["samples"]), [PROMPT])[0])
    assert best_score > plain_score
    assert finalists["samples"].shape == (2, 16, 8, 8) and torch.equal(finalists["samples"][:1], best["samples"])
    populations = [len(record.particles) for record in trace.records]
    assert populations == [16, 16, 16, 12, 8, 4, 4, 2, 2]
    assert trace.meta["status"] == "complete" and trace.meta["ledger"]["flops"] > 0


def test_small_clusters_save_compute(loaded, positive):
    from testtime.nodes.infinity_sampler import InfinitySearchNode
    from testtime.nodes.tts_var_node import TTSVARNode

    _, _, vae, verifier, held_out, extractor = loaded
    flops = {}
    with torch.inference_mode():
        for side in (0, 4):
            method = TTSVARNode.execute(1, "value", 10.0, "pca", cluster_side=side, extractor=extractor).args[0]
            trace = InfinitySearchNode.execute(
                loaded[0], positive, search=method, verifier=verifier, held_out=held_out, vae=vae, prompt=PROMPT,
                batch_size=1, **DRAWN,
            ).args[3]  # fmt: skip
            flops[side] = trace.meta["ledger"]["flops"]
    # 14 of the 21 images are only clustered, and at half the side a decode costs a quarter.
    assert flops[4] < 0.65 * flops[0]


def test_other_shapes_are_ignored_aloud(loaded, positive, caplog):
    found = sample(loaded, positive, aspect_ratio="2:1 (landscape)")
    assert found.shape == (1, 16, 8, 8) and "aspect_ratio is ignored" in caplog.text
