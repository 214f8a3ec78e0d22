"""The differentiable preprocessing against torchvision, Pillow and finite differences."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from testtime.bench.official import facts
from testtime.verifiers.base import VerifierError
from testtime.verifiers.image_image.similarity import IMAGENET_MEAN, IMAGENET_STD
from testtime.verifiers.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing, longer_side, shorter_side

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


def unnormalised(pixels, prepare):
    """``[n, 3, s, s]`` as the tower gets them -> 0..1."""
    return pixels * torch.tensor(prepare.std).view(3, 1, 1) + torch.tensor(prepare.mean).view(3, 1, 1)


@pytest.mark.parametrize("size", SIZES)
def test_resize_is_close_to_pillow(size):
    image, prepare = smooth(*size), Preprocessing(fit="stretch")
    ours = unnormalised(prepare(image[None]), prepare)[0].movedim(0, -1)
    gap = (ours - pillow(image, (224, 224))).abs() * 255
    assert gap.max() < 1.1 and gap.mean() < 0.3


@pytest.mark.parametrize("size", SIZES)
def test_quantised_resize_is_pillows(size):
    """Rounding after each pass, as Pillow does: the same bytes."""
    image, prepare = smooth(*size), Preprocessing(fit="stretch", quantize=True)
    ours = unnormalised(prepare(image[None]), prepare)[0].movedim(0, -1)
    torch.testing.assert_close(ours.double(), pillow(image, (224, 224)), atol=1e-6, rtol=0)


def test_unclamped_resize_equals_torchvision():
    transforms = pytest.importorskip("torchvision.transforms.v2.functional")
    x = torch.rand(2, 90, 130, 3, generator=torch.Generator().manual_seed(0))
    prepare = Preprocessing(48, fit="stretch", clamp=False)
    bicubic = transforms.InterpolationMode.BICUBIC
    theirs = transforms.resize(x.movedim(-1, 1), [48, 48], interpolation=bicubic, antialias=True)
    torch.testing.assert_close(unnormalised(prepare(x), prepare), theirs, atol=2e-6, rtol=0)


def test_overshoot_is_clamped():
    image = torch.zeros(1, 40, 40, 3)
    image[:, :, 20:] = 1.0
    free, kept = (unnormalised(p(image), p) for p in (Preprocessing(90, clamp=False), Preprocessing(90)))
    assert free.max() > 1.01 and kept.min() >= -1e-6 and kept.max() <= 1 + 1e-6


@pytest.mark.parametrize("centre", ["round", "floor"])
@pytest.mark.parametrize("width", [8, 9, 10, 11, 12])
def test_half_a_pixel_of_margin(centre, width):
    """torchvision rounds half to even, the processors of transformers floor."""
    x = torch.arange(float(width)).view(1, 1, width, 1).expand(1, 7, width, 3) / 16
    prepare = Preprocessing(7, centre=centre)
    first = round(float(unnormalised(prepare(x), prepare)[0, 0, 0, 0]) * 16)
    assert first == (round((width - 7) / 2) if centre == "round" else (width - 7) // 2)


FACTS = json.loads((Path(__file__).parent / "official_facts.json").read_text(encoding="utf-8"))
HALF = (0.5, 0.5, 0.5)
SETTINGS = {
    "hpsv2": Preprocessing(8, fit="pad", clamp=False),
    "openai": Preprocessing(8, quantize=True),
    "clip_processor": Preprocessing(8, centre="floor", quantize=True),
    "siglip_processor": Preprocessing(8, HALF, HALF, fit="stretch", quantize=True),
    "dinov2_processor": Preprocessing(8, IMAGENET_MEAN, IMAGENET_STD, edge=10, centre="floor", quantize=True),
    "tts_var": Preprocessing(8, IMAGENET_MEAN, IMAGENET_STD, "stretch", interpolation="bilinear", quantize=True),
}


@pytest.mark.parametrize("shape", [f"{height}x{width}" for height, width in facts.SHAPES])
@pytest.mark.parametrize("name", FACTS["pixels"])
def test_published_preprocessings(name, shape):
    """Numbers that the published functions gave for a small picture, see ``bench.official.facts``."""
    image = torch.from_numpy(facts.picture(*map(int, shape.split("x")))).float()[None] / 255
    theirs = torch.tensor(FACTS["pixels"][name][shape]).view(3, 8, 8)
    gap = (SETTINGS[name](image)[0] - theirs).abs() * torch.tensor(SETTINGS[name].std).view(3, 1, 1) * 255
    assert gap.max() < 2e-3


def test_hpsv2_sees_the_whole_picture_and_black_around_it():
    """Longer side 8 of a 4 x 8 picture: two black rows above and below, black before normalising."""
    prepare = Preprocessing(8, fit="pad", clamp=False)
    seen = unnormalised(prepare(torch.full((1, 40, 80, 3), 0.75)), prepare)[0, 0]
    torch.testing.assert_close(seen[2:6], torch.full((4, 8), 0.75))
    torch.testing.assert_close(seen[[0, 1, 6, 7]], torch.zeros(4, 8), atol=1e-6, rtol=0)
    assert longer_side((5000, 10), 224) == (224, 1)  # the published code asks for a picture of no pixels there


def test_transparent_colours_count_by_their_opacity():
    """As in Pillow's resize of RGBA, which torchvision's pipelines go through before they drop alpha."""
    alpha = (torch.linspace(0.2, 1, 30) ** 3).view(1, 1, 30, 1).expand(1, 30, 30, 1)
    image = torch.cat([torch.rand(1, 30, 30, 3, generator=torch.Generator().manual_seed(0)), alpha], -1)
    image = (image * 255).round() / 255
    shown = Image.fromarray((image[0].numpy() * 255).round().astype(np.uint8), "RGBA").resize((8, 8), 3)
    theirs = torch.from_numpy(np.asarray(shown)[..., :3] / 255.0)
    for quantize, bound in ((True, 0.01), (False, 60.0)):
        prepare = Preprocessing(8, weigh_alpha=True, quantize=quantize)
        ours = unnormalised(prepare(image), prepare)[0].movedim(0, -1)
        assert ((ours - theirs).abs() * 255).max() < bound
    dropped = Preprocessing(8)(image)
    torch.testing.assert_close(dropped, Preprocessing(8)(image[..., :3]), atol=0, rtol=0)
    assert (dropped - Preprocessing(8, weigh_alpha=True)(image)).abs().max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 300), (300, 224), (500, 400)])
def test_matches_the_clip_processor(size):
    transformers = pytest.importorskip("transformers")
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 224}, crop_size=224, image_mean=CLIP_MEAN, image_std=CLIP_STD
    )
    image = smooth(*size)
    theirs = processor((image * 255).round().to(torch.uint8).movedim(-1, 0), return_tensors="pt")["pixel_values"]
    gap = (Preprocessing(centre="floor")(image[None]) - theirs).abs() * torch.tensor(CLIP_STD).view(1, 3, 1, 1) * 255
    assert gap.mean() < 0.5 and gap.max() < 2.5


def test_stretching_sees_the_whole_image():
    image = torch.zeros(1, 10, 100, 3)
    image[:, :, :5] = 1.0  # would be cropped away
    assert Preprocessing(size=20, fit="stretch")(image).max() > Preprocessing(size=20)(image).max() + 1


def test_half_precision_is_resized_in_float32():
    image = torch.rand(1, 40, 40, 3)
    out = Preprocessing(size=14)(image.half())
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, Preprocessing(size=14)(image), atol=5e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_gradcheck(fit):
    x = (0.3 + 0.4 * torch.rand(2, 16, 19, 3, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(Preprocessing(size=7, fit=fit), (x,))


def test_quantising_lets_gradients_through():
    x = torch.rand(1, 9, 9, 3, requires_grad=True)
    prepare = Preprocessing(size=9, quantize=True)
    out = prepare(x)
    on_grid = (out * torch.tensor(CLIP_STD).view(1, 3, 1, 1) + torch.tensor(CLIP_MEAN).view(1, 3, 1, 1)) * 255
    torch.testing.assert_close(on_grid, on_grid.round(), atol=1e-3, rtol=0)
    out.sum().backward()
    assert (x.grad.abs() > 0).all()


@pytest.mark.parametrize(
    "bad", [{"size": 0}, {"std": (0.0, 1.0, 1.0)}, {"fit": "crop it"}, {"centre": "ceil"}, {"size": 8, "edge": 7}]
)
def test_bad_settings(bad):
    with pytest.raises(VerifierError):
        Preprocessing(**bad)
