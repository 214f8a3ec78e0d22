"""Bad input that every verifier with a network takes the same way: odd sizes, alpha, grey, wild values, broken rows."""

from __future__ import annotations

import math

import pytest
import torch

from testtime.bench import reference_models as models
from testtime.bench.small_detectors import owl
from testtime.bench.small_vlm import llava
from testtime.verifiers.aesthetic.predictors import AestheticV25Verifier, LAIONAestheticVerifier, laion_head, v25_head
from testtime.verifiers.base import VerifierError
from testtime.verifiers.image_image.similarity import SimilarityVerifier
from testtime.verifiers.image_text.clip_score import CLIPScoreVerifier, load_tokenizer
from testtime.verifiers.objects.verifier import load_objects
from testtime.verifiers.preference import image_reward
from testtime.verifiers.preference.clip_rewards import HPSVerifier, PickScoreVerifier
from testtime.verifiers.preference.image_reward import ImageRewardModel, ImageRewardVerifier
from testtime.verifiers.vlm.vqa_score import load_vqa_score

transformers = pytest.importorskip("transformers")
KINDS = ("clip_score", "pickscore", "hps", "image_reward", "laion", "v25", "similarity", "vqa_score", "objects")
PROMPT = "a cat"


@pytest.fixture(scope="module")
def verifiers(tmp_path_factory):
    root = tmp_path_factory.mktemp("small")
    tokenizer = load_tokenizer(models.clip_tokenizer(root / "clip"))
    clip = models.small_clip()
    tower = transformers.CLIPVisionModelWithProjection(clip.config.vision_config).eval()
    (root / "vocab.txt").write_text("\n".join(models.BERT_WORDS) + "\n")
    reward = models.shaken(ImageRewardModel(*models.ReferenceImageReward.options()))
    llava(root / "vlm")
    owl(root / "owl", root / "clip")
    return {
        "clip_score": CLIPScoreVerifier(clip, tokenizer),
        "pickscore": PickScoreVerifier(clip, tokenizer),
        "hps": HPSVerifier(clip, tokenizer),
        "image_reward": ImageRewardVerifier(reward, transformers.BertTokenizer(str(root / "vocab.txt"))),
        "laion": LAIONAestheticVerifier(tower, laion_head(24)),
        "v25": AestheticV25Verifier(models.small_siglip(), v25_head(48)),
        "similarity": SimilarityVerifier(models.small_dinov2(), torch.rand(1, 30, 30, 3)),
        "vqa_score": load_vqa_score(root / "vlm"),
        "objects": load_objects(root / "owl"),
    }


@pytest.fixture(params=KINDS)
def judge(request, verifiers):
    return verifiers[request.param]


def rand(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 57), (333, 7), (41, 39)])
def test_odd_sizes(judge, height, width):
    scores = judge.score(rand(2, height, width, 3), PROMPT)
    assert scores.shape == (2,) and torch.isfinite(scores).all()


def test_alpha_is_weighed_or_dropped_and_grey_is_repeated(judge):
    images, alpha = rand(2, 30, 40, 3), rand(2, 30, 40, 1)
    plain = judge.score(images, PROMPT)
    opaque = judge.score(torch.cat([images, torch.ones_like(alpha)], -1), PROMPT)
    torch.testing.assert_close(opaque, plain, atol=1e-5, rtol=0)
    # torchvision's pipelines convert to RGB after they have resized, the others before
    weighed = "prepare" in vars(judge) and judge.prepare.weigh_alpha
    with_alpha = judge.score(torch.cat([images, alpha], -1), PROMPT)
    assert torch.allclose(with_alpha, plain, atol=1e-5, rtol=0) is not weighed
    grey = images[..., :1]
    torch.testing.assert_close(
        judge.score(grey, PROMPT), judge.score(grey.expand(-1, -1, -1, 3).contiguous(), PROMPT), atol=1e-5, rtol=0
    )


def test_overshoot_is_judged_and_bytes_are_refused(judge):
    assert torch.isfinite(judge.score(2.4 * rand(1, 30, 30, 3) - 0.7, PROMPT)).all()
    with pytest.raises(VerifierError, match="divide 8-bit values by 255"):
        judge.score(255 * rand(1, 30, 30, 3), PROMPT)
    with pytest.raises(VerifierError, match="must be floating point"):
        judge.score((255 * rand(1, 30, 30, 3)).byte(), PROMPT)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_image_gets_no_number_and_spoils_no_other(judge, bad):
    images = rand(3, 30, 30, 3)
    whole = judge.score(images, PROMPT)
    images[1, 10:20, 10:20] = bad
    scores = judge.score(images, PROMPT)
    assert not torch.isfinite(scores[1])
    torch.testing.assert_close(scores[[0, 2]], whole[[0, 2]], atol=1e-5, rtol=0)


def test_no_image_and_wrong_numbers_of_prompts(judge):
    with pytest.raises(VerifierError, match="no image in it"):
        judge.score(rand(0, 30, 30, 3), PROMPT)
    if judge.needs_prompt:
        with pytest.raises(VerifierError, match="3 entries for 2 images"):
            judge.score(rand(2, 30, 30, 3), [PROMPT] * 3)
        with pytest.raises(VerifierError, match="is empty"):
            judge.score(rand(1, 30, 30, 3), "  ")


@pytest.mark.parametrize("kind", ["clip_score", "hps", "image_reward"])
def test_two_thousand_words_are_cut_with_one_notice(verifiers, kind, caplog):
    judge = verifiers[kind]
    for prompt in ("the sea a red cat " * 400, "two green birds " * 700):
        assert torch.isfinite(judge.score(rand(1, 30, 30, 3), prompt)).all()
    said = [record.getMessage() for record in caplog.records if "is cut" in record.getMessage()]
    assert len(said) == 1 and str(image_reward.TOKENS if kind == "image_reward" else 32) in said[0]


def test_half_precision_images_are_judged(judge):
    scores = judge.score(rand(1, 30, 30, 3).half(), PROMPT)
    assert scores.dtype in (torch.float32, torch.float64) and torch.isfinite(scores).all()
