"""What verifiers keep: rows of images by content, half precision, prompts that are too long."""

from __future__ import annotations

import logging

import pytest
import torch

from testtime.verifiers import registry
from testtime.verifiers.base import VerifierError
from testtime.verifiers.caching import ImageCache, digest
from testtime.verifiers.image_text.clip_score import CLIPScoreVerifier, load_tokenizer
from testtime.verifiers.precision import precision_of, set_precision

from .test_verifiers_clip_score import PROMPTS, clip, pictures, tokenizer_folder  # noqa: F401 - fixtures


class TestImageCache:
    @staticmethod
    def doubling(asked, images):
        def compute(rows):
            asked.append(rows.tolist())
            return 2 * images[rows].flatten(1)[:, :1]

        return compute

    def test_each_content_is_computed_once_and_order_is_kept(self):
        cache, asked = ImageCache(), []
        first = torch.tensor([[1.0], [2.0], [1.0]])
        assert cache(first, self.doubling(asked, first)).flatten().tolist() == [2, 4, 2]
        second = torch.tensor([[3.0], [2.0]])
        assert cache(second, self.doubling(asked, second)).flatten().tolist() == [6, 4]
        assert asked == [[0, 1], [0]]

    def test_the_prompt_is_part_of_the_key(self):
        cache, asked, images = ImageCache(), [], torch.ones(2, 1)
        cache(images, self.doubling(asked, images), ["a", "b"])
        cache(images, self.doubling(asked, images), ["b", "a"])
        assert asked == [[0, 1]]

    def test_pieces_and_room(self):
        cache, asked, images = ImageCache(size=2, batch=3), [], torch.arange(7.0)[:, None]
        assert cache(images, self.doubling(asked, images)).flatten().tolist() == [0, 2, 4, 6, 8, 10, 12]
        assert asked == [[0, 1, 2], [3, 4, 5], [6]] and len(cache._kept) == 2

    def test_smaller_pieces_when_memory_runs_out(self):
        cache, sizes, images = ImageCache(batch=8), [], torch.arange(8.0)[:, None]

        def hungry(rows):
            sizes.append(len(rows))
            if len(rows) > 2:
                raise torch.OutOfMemoryError("no room")
            return images[rows]

        assert torch.equal(cache(images, hungry), images)
        assert sizes == [8, 4, 2, 2, 2, 2]

    def test_a_graph_passes_through(self):
        cache, images = ImageCache(), torch.ones(2, 1, requires_grad=True)
        for _ in range(2):
            cache(images, lambda rows: images[rows] * 3).sum().backward()
        assert images.grad.flatten().tolist() == [6, 6] and not cache._kept

    def test_rows_made_in_inference_mode_serve_a_backward_pass_later(self):
        cache, images = ImageCache(), torch.ones(1, 2)
        with torch.inference_mode():
            cache(images, lambda rows: images[rows])
        x = torch.ones(1, 2, requires_grad=True)
        (x * cache(images, lambda rows: images[rows])).sum().backward()
        assert torch.equal(x.grad, torch.ones(1, 2))

    def test_content_shape_and_type_make_the_name(self):
        row = torch.arange(4.0)
        assert digest(row) == digest(row.clone())
        names = {digest(row), digest(row.view(2, 2)), digest(row + 1), digest(row.half()), digest(row.bfloat16())}
        assert len(names) == 5


@pytest.fixture
def judge(clip, tokenizer_folder):  # noqa: F811
    import copy

    return CLIPScoreVerifier(copy.deepcopy(clip), load_tokenizer(tokenizer_folder))


def test_an_image_seen_before_costs_no_pass(judge, monkeypatch):
    seen = []
    encode = judge.module.encode_image
    monkeypatch.setattr(judge.module, "encode_image", lambda pixels: seen.append(len(pixels)) or encode(pixels))
    images = pictures(40, 40)
    first = judge.score(images, PROMPTS)
    again = judge.score(images.flip(0), PROMPTS[::-1]).flip(0)
    assert seen == [3] and torch.equal(first, again)
    assert not torch.equal(judge.score(images, PROMPTS[::-1]), first)
    assert seen == [3]


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 4e-2), ("fp16", 5e-3)])
def test_half_precision_is_close_and_the_cosine_stays_float32(judge, precision, tolerance):
    images = pictures(40, 40)
    full = judge.score(images, PROMPTS)
    set_precision(judge, precision)
    half = judge.score(images, PROMPTS)
    assert half.dtype == torch.float32 and not torch.equal(half, full)  # nothing kept of the float32 rows
    torch.testing.assert_close(half, full, atol=tolerance, rtol=0)
    set_precision(judge, "fp32")
    assert precision_of(judge) == torch.float32


def test_a_verifier_without_towers_stays_as_it_is():
    jpeg = registry.create("jpeg_compressibility", precision="fp16")
    assert precision_of(jpeg) == torch.float32
    with pytest.raises(VerifierError, match="precision is 'int4': choose one of fp32, fp16, bf16"):
        registry.create("jpeg_compressibility", precision="int4")


def test_a_prompt_of_two_thousand_words_is_cut_with_one_notice(judge, caplog):
    long = "the sea and a cat " * 400
    with caplog.at_level(logging.WARNING):
        scores = judge.score(pictures(28, 28, 2), [long, "the sea"])
        judge.score(pictures(28, 28, 1), long + "again")
    assert torch.isfinite(scores).all()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "clip_score reads 20 tokens" in said[0] and "is cut" in said[0]


def test_short_prompts_raise_no_notice(judge, caplog):
    with caplog.at_level(logging.WARNING):
        judge.score(pictures(28, 28), PROMPTS)
    assert not caplog.records
