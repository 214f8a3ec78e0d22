"""Conditioning and masks of every image follow its particles, as the stock sampler applies them to a batch."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.methods import SMC, BestOfN
from testtime.samplers.protocols import SearchError

from .conftest import SD15_CONFIG, conditioning, randomise

pytestmark = pytest.mark.host

STEERED = SMC(4, ess_threshold=1.5, start=0.0, end=1.0)


def controlnet():
    """A small random ControlNet of ComfyUI's own class."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.model_management as management
    import comfy.ops

    names = ("in_channels", "model_channels", "num_res_blocks", "channel_mult", "transformer_depth", "context_dim")
    config = {name: SD15_CONFIG[name] for name in names}
    network = comfy.cldm.cldm.ControlNet(
        image_size=32,
        hint_channels=3,
        num_heads=4,
        use_spatial_transformer=True,
        transformer_depth_middle=1,
        legacy=False,
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
        **config,
    )
    return comfy.controlnet.ControlNet(randomise(network, 9), load_device=management.get_torch_device())


def with_hints(given, hints: int):
    """The positive conditioning with a ControlNet and a hint image for each of ``hints`` images."""
    import nodes

    pictures = torch.rand(hints, 64, 64, 3, generator=torch.Generator().manual_seed(8))
    apply = nodes.ControlNetApplyAdvanced().apply_controlnet
    given.positive, given.negative = apply(given.positive, given.negative, controlnet(), pictures, 1.0, 0.0, 1.0)
    return given


def close(a, b, tolerance: float = 1e-5) -> bool:
    return float((a["samples"] - b["samples"]).abs().max() / b["samples"].std()) < tolerance


def assert_found_among(finalists, stock) -> None:
    """Slot 0 of every image is the stock run of that image, wherever it ends up among its four finalists."""
    for image, wanted in enumerate(stock["samples"]):
        apart = (finalists["samples"][4 * image : 4 * image + 4] - wanted).abs().amax((1, 2, 3))
        assert float(apart.min() / stock["samples"].std()) < 1e-4


@pytest.mark.parametrize("hints", [1, 2])
def test_controlnet_hints_go_with_their_images(setup, search_ksampler, ksampler, hints):
    given = setup("eps", batch=2)
    plain = ksampler(given, "euler")
    with_hints(given, hints)
    stock = ksampler(given, "euler")
    assert not close(stock, plain, 1e-2)
    assert close(search_ksampler(given, BestOfN(1), eta=0.0).best, stock)
    assert_found_among(search_ksampler(given, BestOfN(4), eta=0.0).finalists, stock)


def test_fewer_hints_than_images_are_repeated_as_prompts_are(setup, search_ksampler, ksampler):
    given = setup("eps", batch=4)
    plain = ksampler(given, "euler")
    with_hints(given, 2)
    stock = ksampler(given, "euler")
    assert not close(stock, plain, 1e-2)
    assert close(search_ksampler(given, BestOfN(1), eta=0.0).best, stock)
    assert_found_among(search_ksampler(given, BestOfN(4), eta=0.0).finalists, stock)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_mask_has_no_proportions(setup, search_ksampler, value):
    """Load Image gives 64 x 64 of zeros for a picture without alpha, whatever its size is."""
    given = setup("eps", size=(8, 12))
    known = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(4))
    given.latent = {"samples": known, "noise_mask": torch.full((1, 64, 64), value)}
    best = search_ksampler(given, BestOfN(2)).best["samples"]
    assert torch.allclose(best, known, atol=1e-4) == (value == 0.0)


def test_controlnet_hints_must_divide_the_batch(setup, search_ksampler):
    given = with_hints(setup("eps", batch=2), 3)
    with pytest.raises(SearchError, match="3 hint images for a latent batch of 2"):
        search_ksampler(given, BestOfN(2))


@pytest.mark.parametrize("kind", ["eps", "sd3"])
def test_areas_and_masked_conditioning(setup, search_ksampler, ksampler, kind):
    """Several entries on one image: one for an area, one for a mask that differs between the images."""
    import nodes

    given = setup(kind, batch=2)
    masks = torch.zeros(2, 64, 64)
    masks[0, :32], masks[1, 32:] = 1.0, 1.0
    other = conditioning(kind, 1, seed=5)
    masked = nodes.ConditioningSetMask().append(other, masks, "default", 1.0)[0]
    area = nodes.ConditioningSetArea().append(conditioning(kind, 1, seed=6), 32, 64, 32, 0, 1.0)[0]
    plain = ksampler(given, "euler")
    given.positive = given.positive + masked + area
    stock = ksampler(given, "euler")
    assert not close(stock, plain, 1e-2)
    assert close(search_ksampler(given, BestOfN(1), eta=0.0).best, stock)
    assert_found_among(search_ksampler(given, BestOfN(4), eta=0.0).finalists, stock)


@pytest.mark.parametrize("kind", ["eps", "sd3", "inpaint"])
def test_every_particle_keeps_the_known_area_of_its_image(setup, search_ksampler, kind):
    """Inpainting with a mask per image, resampled: what was to be kept is kept in every finalist."""
    given = setup(kind, batch=2)
    shape = given.latent["samples"].shape
    known = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    masks = torch.zeros(2, 64, 64)
    masks[0, :, 32:], masks[1, 32:] = 1.0, 1.0
    given.latent = {"samples": known, "noise_mask": masks}
    finalists = search_ksampler(given, STEERED).finalists["samples"]
    first, second = finalists.split(4)
    assert torch.allclose(first[..., :3], known[:1, ..., :3].expand(4, -1, -1, -1), atol=1e-4)
    assert torch.allclose(second[..., :3, :], known[1:, ..., :3, :].expand(4, -1, -1, -1), atol=1e-4)
    assert not torch.allclose(first[..., 5:], known[:1, ..., 5:].expand(4, -1, -1, -1), atol=0.1)
