"""The differentiable preprocessing against torchvision, Pillow and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from testtime.verifiers.base import VerifierError
from testtime.verifiers.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing, centre_crop, resize, shorter_side

SIZES = [(512, 512), (768, 1344), (300, 517), (64, 64), (1000, 1333)]


def smooth(height, width):
    """A picture with slopes and edges, on the 8-bit grid."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    edges = ((x * 7).floor() + (y * 5).floor()) % 2
    image = torch.stack([x, 0.5 + 0.5 * torch.sin(9 * y), edges], -1)
    return (image * 255).round() / 255


def pillow(image, shape):
    """Pillow's bicubic resize of ``[H, W, 3]``."""
    pixels = Image.fromarray((image.numpy() * 255).round().astype(np.uint8))
    return torch.from_numpy(np.asarray(pixels.resize(shape[::-1], Image.Resampling.BICUBIC)) / 255.0)


@pytest.mark.parametrize(
    ("size", "expected"), [((1000, 1333), (224, 298)), ((1333, 1000), (298, 224)), ((7, 7), (224, 224))]
)
def test_shorter_side_floors_the_longer(size, expected):
    assert shorter_side(size, 224) == expected


@pytest.mark.parametrize("size", SIZES)
def test_resize_is_close_to_pillow(size):
    image, target = smooth(*size), shorter_side(size, 224)
    ours = resize(image.movedim(-1, 0)[None], target)[0].movedim(0, -1)
    gap = (ours - pillow(image, target)).abs() * 255
    assert gap.max() < 1.1 and gap.mean() < 0.3


def test_unclamped_resize_equals_torchvision():
    transforms = pytest.importorskip("torchvision.transforms.v2.functional")
    x = torch.rand(2, 3, 90, 130, generator=torch.Generator().manual_seed(0))
    theirs = transforms.resize(x, [48, 64], interpolation=transforms.InterpolationMode.BICUBIC, antialias=True)
    torch.testing.assert_close(resize(x, (48, 64), clamp=False), theirs, atol=2e-6, rtol=0)


def test_overshoot_is_clamped():
    image = torch.zeros(1, 3, 40, 40)
    image[..., 20:] = 1.0
    assert resize(image, (90, 90), clamp=False).max() > 1.01
    assert 0 <= resize(image, (90, 90)).min() and resize(image, (90, 90)).max() <= 1


@pytest.mark.parametrize("width", [8, 9, 10, 11, 12])
def test_crop_offsets_round_half_to_even(width):
    x = torch.arange(float(width)).expand(1, 1, 7, width)
    assert centre_crop(x, 7)[0, 0, 0, 0] == round((width - 7) / 2)


@pytest.mark.parametrize("size", [(224, 300), (300, 224), (500, 400)])
def test_matches_the_clip_processor(size):
    transformers = pytest.importorskip("transformers")
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 224}, crop_size=224, image_mean=CLIP_MEAN, image_std=CLIP_STD
    )
    image = smooth(*size)
    theirs = processor((image * 255).round().to(torch.uint8).movedim(-1, 0), return_tensors="pt")["pixel_values"]
    gap = (Preprocessing()(image[None]) - theirs).abs() * torch.tensor(CLIP_STD).view(1, 3, 1, 1) * 255
    assert gap.mean() < 0.5 and gap.max() < 2.5


def test_stretching_sees_the_whole_image():
    image = torch.zeros(1, 10, 100, 3)
    image[:, :, :5] = 1.0  # would be cropped away
    assert Preprocessing(size=20, crop=False)(image).max() > Preprocessing(size=20)(image).max() + 1


def test_half_precision_is_resized_in_float32():
    image = torch.rand(1, 40, 40, 3)
    out = Preprocessing(size=14)(image.half())
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, Preprocessing(size=14)(image), atol=5e-3, rtol=0)


@pytest.mark.parametrize("crop", [True, False])
def test_gradcheck(crop):
    x = (0.3 + 0.4 * torch.rand(2, 16, 19, 3, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(Preprocessing(size=7, crop=crop), (x,))


def test_quantising_lets_gradients_through():
    x = torch.rand(1, 9, 9, 3, requires_grad=True)
    prepare = Preprocessing(size=9, quantize=True)
    out = prepare(x)
    on_grid = (out * torch.tensor(CLIP_STD).view(1, 3, 1, 1) + torch.tensor(CLIP_MEAN).view(1, 3, 1, 1)) * 255
    torch.testing.assert_close(on_grid, on_grid.round(), atol=1e-3, rtol=0)
    out.sum().backward()
    assert (x.grad.abs() > 0).all()


@pytest.mark.parametrize("bad", [{"size": 0}, {"std": (0.0, 1.0, 1.0)}])
def test_bad_settings(bad):
    with pytest.raises(VerifierError):
        Preprocessing(**bad)
