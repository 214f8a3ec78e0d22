"""Similarity to references, by every kind of tower, against transformers' own output."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from testtime.verifiers.base import VerifierError
from testtime.verifiers.image_image.similarity import TOWERS, SimilarityVerifier, load_similarity
from testtime.verifiers.preprocessing import Preprocessing

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 28, "patch_size": 7}


def tower(kind: str):
    torch.manual_seed(0)
    if kind == "clip":
        config = transformers.CLIPVisionConfig(**SMALL, intermediate_size=64, projection_dim=24)
        return transformers.CLIPVisionModelWithProjection(config).eval()
    if kind == "siglip":
        return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SMALL, intermediate_size=64)).eval()
    name = {"dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}[kind]
    config = getattr(transformers, f"{name}Config")(**SMALL, mlp_ratio=2)
    return getattr(transformers, f"{name}Model")(config).eval()


KINDS = ("clip", "siglip", "dinov2", "dinov2_with_registers")


@pytest.mark.parametrize("kind", KINDS)
def test_is_the_cosine_of_the_towers_own_embeddings(kind):
    model = tower(kind)
    images, references = torch.rand(3, 28, 28, 3), torch.rand(2, 28, 28, 3)
    _, mean, std, fit = TOWERS[model.config.model_type]
    # the processor of DINOv2 cuts 224 pixels out of 256, so these 28 out of 32
    prepare = Preprocessing(28, mean, std, fit=fit, edge=32 if kind.startswith("dino") else None, centre="floor")

    def embedded(pictures):
        with torch.no_grad():
            output = model(pixel_values=prepare(pictures))
        return F.normalize(output.image_embeds if kind == "clip" else output.pooler_output, dim=-1)

    cosines = embedded(images) @ embedded(references).T
    torch.testing.assert_close(SimilarityVerifier(model, references).score(images), cosines.mean(1), atol=1e-5, rtol=0)
    largest = SimilarityVerifier(model, references, combine="max").score(images)
    torch.testing.assert_close(largest, cosines.amax(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_folder_gradient_and_identity(kind, tmp_path):
    tower(kind).save_pretrained(tmp_path)
    reference = torch.rand(1, 40, 30, 3)
    verifier = load_similarity(tmp_path, reference)
    assert verifier.score(reference).item() == pytest.approx(1.0, abs=1e-5)
    images = torch.rand(2, 40, 30, 3, requires_grad=True)
    verifier.score(images, ["read", "by nobody"]).sum().backward()
    assert images.grad.abs().amax((1, 2, 3)).min() > 0


def test_works_when_first_used_in_inference_mode():
    verifier = SimilarityVerifier(tower("dinov2"), torch.rand(1, 28, 28, 3))
    with torch.inference_mode():
        verifier.score(torch.rand(1, 28, 28, 3))
    images = torch.rand(1, 28, 28, 3, requires_grad=True)
    verifier.score(images).sum().backward()
    assert images.grad is not None


def test_bad_input_is_named(tmp_path):
    with pytest.raises(VerifierError, match="hf download facebook/dinov2-base"):
        load_similarity(tmp_path, torch.rand(1, 8, 8, 3))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(VerifierError, match="is a 'bert': choose one of clip"):
        load_similarity(tmp_path, torch.rand(1, 8, 8, 3))
    with pytest.raises(VerifierError, match="combine is 'min'"):
        SimilarityVerifier(tower("clip"), torch.rand(1, 8, 8, 3), combine="min")
    with pytest.raises(VerifierError, match="no image in it"):
        SimilarityVerifier(tower("clip"), torch.rand(0, 8, 8, 3))
