"""DINOv2 and Inception features against their own libraries, and in the clustering they are made for."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import nn

from testtime.samplers.clustering import REDUCTIONS, reduce_tokens, representatives
from testtime.verifiers.base import VerifierError
from testtime.verifiers.image_image import features
from testtime.verifiers.image_image.features import (
    DINOv2Features,
    InceptionFeatures,
    load_dinov2,
    load_inception,
    stretching,
)
from testtime.verifiers.precision import set_precision

from .test_verifiers_clip_score import pictures

transformers = pytest.importorskip("transformers")


def dino(registers: int = 4) -> nn.Module:
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 28, "patch_size": 7}
    torch.manual_seed(0)
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**sizes, mlp_ratio=2, num_register_tokens=registers)
        return transformers.Dinov2WithRegistersModel(config).eval()
    return transformers.Dinov2Model(transformers.Dinov2Config(**sizes, mlp_ratio=2)).eval()


@pytest.mark.parametrize("registers", [0, 4])
def test_patch_tokens_are_those_behind_class_and_registers(registers, tmp_path):
    tower = dino(registers)
    tower.save_pretrained(tmp_path / "dinov2-small")
    extractor = load_dinov2(tmp_path / "dinov2-small")
    images = pictures(28, 28)
    with torch.no_grad():
        expected = tower(pixel_values=stretching(28)(images)).last_hidden_state[:, 1 + registers :]
    got = extractor.tokens(images)
    assert got.shape == (3, 16, 48) and extractor.name == "dinov2(dinov2-small)"
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    # alone or together, and from memory
    torch.testing.assert_close(extractor.tokens(images[1:2]), expected[1:2], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 130), (300, 211)])
def test_stretching_is_pillows_bilinear(height, width):
    images = pictures(height, width)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (features.IMAGENET_MEAN, features.IMAGENET_STD))
    for image, mine in zip(images, stretching(56)(images) * std + mean, strict=True):
        shown = Image.fromarray((image * 255).round().to(torch.uint8).numpy())
        resized = torch.frombuffer(
            bytearray(shown.resize((56, 56), Image.Resampling.BILINEAR).tobytes()), dtype=torch.uint8
        )
        theirs = resized.view(56, 56, 3).movedim(-1, 0) / 255
        assert (mine - theirs).abs().max() < 1.6 / 255


def test_the_published_size_gives_256_patches():
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=1, image_size=518, patch_size=14
    )
    extractor = DINOv2Features(transformers.Dinov2Model(config))
    assert extractor.tokens(torch.rand(1, 40, 60, 3)).shape == (1, 256, 24)


def test_clusters_hold_what_looks_alike():
    """Three pictures, each four times with a little noise: every reduction finds one of each."""
    extractor = DINOv2Features(dino())
    generator = torch.Generator().manual_seed(1)
    originals = torch.rand(3, 28, 28, 3, generator=generator)
    images = originals.repeat(4, 1, 1, 1) + 0.01 * torch.randn(12, 28, 28, 3, generator=generator)
    for how in REDUCTIONS:
        if how == "pca_exact":  # its sign is arbitrary, which is what the others cure
            continue
        points = reduce_tokens(extractor.tokens(images), how)
        chosen, empty = representatives(points, 3, torch.rand(3, generator=generator))
        assert sorted(int(row) % 3 for row in chosen) == [0, 1, 2] and empty == 0, how


def test_half_precision_is_close(tmp_path):
    extractor = DINOv2Features(dino())
    images = pictures(28, 28)
    full = extractor.tokens(images)
    set_precision(extractor, "bf16")
    half = extractor.tokens(images)
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    torch.testing.assert_close(half, full, atol=0.1, rtol=0)


@pytest.fixture(scope="module")
def inception():
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    network = models.inception_v3(weights=None, transform_input=True, init_weights=False).eval()
    return network, {key: value.clone() for key, value in network.state_dict().items()}


@pytest.mark.slow
def test_inception_is_torchvisions_last_layer_but_one(inception, tmp_path):
    network, state = inception
    torch.save(state, tmp_path / features.INCEPTION_FILE)
    extractor = load_inception(tmp_path / features.INCEPTION_FILE)
    images = pictures(80, 60, 2)
    seen = {}
    network.fc.register_forward_hook(lambda module, inputs, output: seen.update(pooled=inputs[0]))
    with torch.no_grad():
        network(stretching(299)(images))
    got = extractor.tokens(images)
    assert got.shape == (2, 1, 2048)
    torch.testing.assert_close(got[:, 0], seen["pooled"], atol=1e-5, rtol=1e-4)
    assert reduce_tokens(got, "pca").shape == (2, 2048)


def test_missing_and_wrong_files_are_named(tmp_path, inception):
    with pytest.raises(VerifierError, match=r"109 MB, BSD-3-Clause.*download.pytorch.org"):
        load_inception(tmp_path / features.INCEPTION_FILE)
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "other.pth")
    with pytest.raises(VerifierError, match=r"other.pth is not the released inception_v3_google"):
        load_inception(tmp_path / "other.pth")
    with pytest.raises(VerifierError, match="hf download facebook/dinov2-with-registers-large"):
        load_dinov2(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(VerifierError, match="is a 'clip': choose one of dinov2, dinov2_with_registers"):
        load_dinov2(tmp_path)


def test_the_classifier_is_off(inception):
    assert isinstance(InceptionFeatures(inception[0]).module.network.fc, nn.Identity)
