"""Gradients of the differentiable verifiers, from pixels to score, against finite differences in float64."""

from __future__ import annotations

import pytest
import torch

from testtime.bench import reference_models as models
from testtime.verifiers.aesthetic.predictors import AestheticV25Verifier, LAIONAestheticVerifier, laion_head, v25_head
from testtime.verifiers.image_image.similarity import SimilarityVerifier
from testtime.verifiers.image_text.clip_score import CLIPScoreVerifier, load_tokenizer
from testtime.verifiers.preference.clip_rewards import HPSVerifier, PickScoreVerifier
from testtime.verifiers.preference.image_reward import ImageRewardModel, ImageRewardVerifier

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(models.clip_tokenizer(tmp_path_factory.mktemp("clip")))


def image_reward(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join(models.BERT_WORDS) + "\n")
    model = models.shaken(ImageRewardModel(*models.ReferenceImageReward.options()))
    return ImageRewardVerifier(model, transformers.BertTokenizer(str(path)))


def make(kind, tokenizer, tmp_path_factory):
    if kind == "image_reward":
        return image_reward(tmp_path_factory)
    if kind == "laion":
        tower = transformers.CLIPVisionModelWithProjection(models.small_clip().config.vision_config)
        return LAIONAestheticVerifier(models.shaken(tower), laion_head(24))
    if kind == "v25":
        return AestheticV25Verifier(models.small_siglip(), v25_head(48))
    if kind == "similarity":
        return SimilarityVerifier(models.small_dinov2(), torch.rand(2, 30, 30, 3))
    clip_kinds = {"clip_score": CLIPScoreVerifier, "pickscore": PickScoreVerifier, "hps": HPSVerifier}
    return clip_kinds[kind](models.small_clip(), tokenizer)


@pytest.mark.parametrize("kind", ["clip_score", "pickscore", "hps", "image_reward", "laion", "v25", "similarity"])
def test_gradient_from_pixels_to_score(kind, tokenizer, tmp_path_factory, float64_masks):
    judge = make(kind, tokenizer, tmp_path_factory)
    judge.module.double()
    generator = torch.Generator().manual_seed(1)
    # well inside 0..1, so that no clamp of the resize is at its corner
    images = 0.3 + 0.4 * torch.rand(2, 37, 45, 3, dtype=torch.float64, generator=generator)
    images.requires_grad_()
    prompts = ["a red cat", "two green birds"]
    scores = judge.score(images, prompts)
    assert scores.dtype == torch.float64 and judge.differentiable
    assert torch.autograd.gradcheck(lambda x: judge.score(x, prompts), (images,), fast_mode=True, rtol=1e-4, atol=1e-8)
    (gradient,) = torch.autograd.grad(judge.score(images, prompts).sum(), images)
    assert gradient.abs().amax((1, 2, 3)).min() > 1e-8
