"""VQAScore by a chat model against a forward pass of transformers written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from testtime.bench.small_vlm import llava
from testtime.chat.conversation import ChatError
from testtime.chat.local import load_local_vlm
from testtime.verifiers import registry
from testtime.verifiers.base import VerifierError
from testtime.verifiers.pictures import to_bytes, to_pictures
from testtime.verifiers.vlm.vqa_score import VQAScoreVerifier, load_vqa_score

from .test_verifiers_clip_score import PROMPTS, pictures

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("vlm") / "tiny--llava"
    llava(made)
    return made


@pytest.fixture(scope="module")
def verifier(folder):
    return load_vqa_score(folder)


def by_hand(folder, image, prompt):
    """P(Yes), P(No) at the first position of the answer, one image alone, no padding."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(str(folder), trust_remote_code=False).eval()
    processor = transformers.AutoProcessor.from_pretrained(str(folder), trust_remote_code=False)
    text = f'user : <image> Does this figure show "{prompt}"? Please answer Yes or No. assistant : '
    inputs = processor(text=text, images=to_pictures(to_bytes(image[None]))[0], return_tensors="pt")
    with torch.no_grad():
        chances = torch.softmax(model(**inputs).logits[0, -1].float(), -1)
    return [float(chances[processor.tokenizer.convert_tokens_to_ids(word)]) for word in ("Yes", "No")]


def test_is_the_probability_of_yes(verifier, folder):
    images = pictures(28, 28)
    expected = [by_hand(folder, image, prompt) for image, prompt in zip(images, PROMPTS, strict=True)]
    assert verifier.score(images, PROMPTS).tolist() == pytest.approx([yes for yes, _ in expected], abs=1e-6)
    assert max(yes for yes, _ in expected) > 1.2 * min(yes for yes, _ in expected)
    balanced = load_vqa_score(folder, normalise=True)
    shares = [yes / (yes + no) for yes, no in expected]
    assert balanced.score(images, PROMPTS).tolist() == pytest.approx(shares, abs=1e-5)


def test_batches_with_prompts_of_different_length_change_nothing(verifier, folder):
    several = load_vqa_score(folder, batch=3)
    images = pictures(40, 28)
    torch.testing.assert_close(several.score(images, PROMPTS), verifier.score(images, PROMPTS), atol=1e-5, rtol=0)


def test_a_question_asked_before_costs_nothing(folder, monkeypatch):
    judge = load_vqa_score(folder)
    asked = []
    ask = judge.module.next_token
    monkeypatch.setattr(judge.module, "next_token", lambda turns: asked.extend(turns) or ask(turns))
    images = pictures(28, 28)
    first = judge.score(images, PROMPTS)
    assert torch.equal(judge.score(images.flip(0), PROMPTS[::-1]).flip(0), first) and len(asked) == 3


def test_large_images_are_brought_down_and_small_ones_left():
    shown = to_pictures(to_bytes(torch.rand(1, 90, 180, 3)), 60)[0]
    assert shown.size == (60, 30)
    assert to_pictures(to_bytes(torch.rand(1, 20, 30, 3)), 60)[0].size == (30, 20)


def test_alpha_grey_and_a_broken_image(verifier):
    images = pictures(28, 28)
    with_alpha = torch.cat([images, torch.zeros(3, 28, 28, 1)], -1)
    assert torch.equal(verifier.score(with_alpha, PROMPTS), verifier.score(images, PROMPTS))
    assert torch.isfinite(verifier.score(images[..., :1], PROMPTS)).all()
    broken = images.clone()
    broken[1, 3, 3, 0] = math.nan
    scores = verifier.score(broken, PROMPTS)
    assert torch.isnan(scores[1])
    assert torch.equal(scores[[0, 2]], verifier.score(images, PROMPTS)[[0, 2]])


def test_bad_settings_and_folders_are_named(folder, tmp_path):
    vlm = load_local_vlm(folder)
    with pytest.raises(VerifierError, match=r"must hold {} once"):
        VQAScoreVerifier(vlm, question="Is this nice?")
    with pytest.raises(ChatError, match="no token for 'Zebra'"):
        vlm.answer_token("Zebra")
    with pytest.raises(ChatError, match="hf download Qwen/Qwen3-VL-4B-Instruct"):
        registry.create("vqa_score", folder=tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ChatError, match="no chat model that can be loaded"):
        load_local_vlm(tmp_path)
    llava(tmp_path / "base", template=None)
    with pytest.raises(ChatError, match="no chat template"):
        load_local_vlm(tmp_path / "base")
