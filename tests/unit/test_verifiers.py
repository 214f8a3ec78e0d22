"""Input checks, registry, embedded verifiers, JPEG: contracts that every verifier keeps."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from testtime.models.tiny.clip import ShapesCLIP
from testtime.models.tiny.preference import PreferenceModel
from testtime.samplers.protocols import SearchError, Verifier
from testtime.verifiers import registry
from testtime.verifiers.aesthetic.jpeg import JPEGVerifier
from testtime.verifiers.base import PromptCache, VerifierError, check_images, check_prompts
from testtime.verifiers.embedded import ShapesCLIPVerifier, ShapesPreferenceVerifier

PROMPTS = ["a red circle", "two green stars", "a photo of a dragon"]


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 128, 128, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=[ShapesCLIPVerifier, ShapesPreferenceVerifier])
def embedded(request):
    torch.manual_seed(0)
    module = ShapesCLIP() if request.param is ShapesCLIPVerifier else PreferenceModel()
    return request.param(module)


class TestChecks:
    def test_alpha_is_dropped_and_grey_repeated(self, images):
        with_alpha = torch.cat([images, torch.zeros_like(images[..., :1])], -1)
        assert torch.equal(check_images(with_alpha), images)
        grey = check_images(images[..., :1])
        assert grey.shape[-1] == 3 and torch.equal(grey[..., 2], images[..., 0])

    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            (torch.zeros(3, 8, 8), "shape"),
            (torch.zeros(1, 3, 8, 8), "shape"),
            (torch.zeros(0, 8, 8, 3), "no image"),
            (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "floating point"),
            (torch.full((1, 8, 8, 3), 255.0), "0..1"),
            ([[0.0]], "list"),
        ],
    )
    def test_bad_images_are_named(self, bad, words):
        with pytest.raises(VerifierError, match=words):
            check_images(bad)

    def test_nan_pixels_are_let_through(self):
        assert torch.isnan(check_images(torch.full((1, 8, 8, 3), math.nan))).all()

    def test_one_prompt_serves_all(self):
        assert check_prompts("a star", 3, "x") == ["a star"] * 3

    @pytest.mark.parametrize(
        ("bad", "words"), [(["a", "b"], "2 entries for 3"), (["a", " ", "b"], "empty"), ([1, 2, 3], "int")]
    )
    def test_bad_prompts_are_named(self, bad, words):
        with pytest.raises(SearchError, match=words):
            check_prompts(bad, 3, "x")

    def test_empty_prompt_is_fine_where_none_is_read(self):
        assert check_prompts("", 1, "x", required=False) == [""]


class TestPromptCache:
    def test_each_prompt_is_encoded_once_and_order_is_kept(self):
        asked = []

        def encode(prompts):
            asked.append(list(prompts))
            return torch.tensor([[float(len(prompt))] for prompt in prompts])

        cache = PromptCache(encode)
        assert cache(["aa", "b", "aa"]).flatten().tolist() == [2, 1, 2]
        assert cache(["b", "ccc"]).flatten().tolist() == [1, 3]
        assert asked == [["aa", "b"], ["ccc"]]

    def test_more_prompts_than_room(self):
        cache = PromptCache(lambda prompts: torch.tensor([[float(len(p))] for p in prompts]), size=2)
        assert cache(["a", "bb", "ccc", "dddd"]).flatten().tolist() == [1, 2, 3, 4]
        assert len(cache._kept) == 2

    def test_encodings_made_in_inference_mode_can_be_differentiated_through_later(self):
        cache = PromptCache(lambda prompts: torch.ones(len(prompts), 3))
        with torch.inference_mode():
            cache(["a"])
        x = torch.ones(1, 3, requires_grad=True)
        (x * cache(["a"])).sum().backward()
        assert torch.equal(x.grad, torch.ones(1, 3))


class TestEmbedded:
    def test_is_a_verifier(self, embedded):
        assert isinstance(embedded, Verifier) and embedded.differentiable

    def test_scores_do_not_depend_on_the_batch(self, embedded, images):
        together = embedded.score(images, PROMPTS)
        alone = torch.cat([embedded.score(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
        assert together.shape == (3,)
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)

    def test_prompt_matters_and_is_matched_by_row(self, embedded, images):
        straight = embedded.score(images, PROMPTS)
        turned = embedded.score(images.flip(0), PROMPTS[::-1]).flip(0)
        torch.testing.assert_close(straight, turned, atol=1e-5, rtol=0)
        assert not torch.allclose(straight, embedded.score(images, PROMPTS[::-1]), atol=1e-6)

    def test_gradient_reaches_every_image(self, embedded, images):
        x = images.clone().requires_grad_()
        embedded.score(x, PROMPTS).sum().backward()
        assert torch.isfinite(x.grad).all() and (x.grad.flatten(1).abs().sum(1) > 0).all()

    def test_grad_mode_is_the_callers_decision(self, embedded, images):
        with torch.no_grad():
            assert not embedded.score(images.clone().requires_grad_(), PROMPTS).requires_grad

    def test_a_nan_image_spoils_only_itself(self, embedded, images):
        broken = images.clone()
        broken[1] = math.nan
        scores = embedded.score(broken, PROMPTS)
        assert torch.isfinite(scores[[0, 2]]).all() and not torch.isfinite(scores[1])

    def test_other_sizes_are_scored(self, embedded):
        assert embedded.score(torch.rand(1, 96, 160, 3), "a star").shape == (1,)


class TestJPEG:
    def test_equals_the_length_of_pillows_file(self, images):
        score = JPEGVerifier().score(images)
        for image, value in zip(images, score.tolist(), strict=True):
            file = io.BytesIO()
            pixels = np.clip(np.round(image.numpy() * 255), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(file, "JPEG", quality=95)
            assert value == -len(file.getvalue()) / 1000

    def test_flat_beats_noise_and_the_sign_turns(self, images):
        both = torch.cat([torch.full_like(images[:1], 0.5), images[:1]])
        small, large = JPEGVerifier().score(both), JPEGVerifier("incompressibility").score(both)
        assert small[0] > small[1] and torch.equal(small, -large)

    def test_per_megapixel(self, images):
        plain, scaled = JPEGVerifier().score(images), JPEGVerifier(per_megapixel=True).score(images)
        torch.testing.assert_close(scaled, plain / (128 * 128 / 1e6))

    def test_non_finite_pixels_score_nan(self, images):
        broken = images.clone()
        broken[0, 0, 0, 0] = math.inf
        assert torch.isnan(JPEGVerifier().score(broken)).tolist() == [True, False, False]

    def test_bad_quality(self):
        with pytest.raises(VerifierError, match="quality is 0"):
            JPEGVerifier(quality=0)


class TestRegistry:
    def test_every_contracted_name_is_there(self):
        assert {"shapes_clip", "shapes_preference", "clip_score", "jpeg_compressibility"} <= set(registry.names())

    def test_creates_by_name(self):
        assert registry.create("jpeg_incompressibility", quality=80).quality == 80

    def test_unknown_name_lists_the_known(self):
        with pytest.raises(VerifierError, match="jpeg_compressibility"):
            registry.create("beauty")

    def test_unknown_option_is_named(self):
        with pytest.raises(VerifierError, match="speed"):
            registry.create("jpeg_compressibility", speed=3)

    def test_a_name_is_taken_once(self):
        with pytest.raises(ValueError, match="already"):
            registry.register("shapes_clip")(lambda: None)
