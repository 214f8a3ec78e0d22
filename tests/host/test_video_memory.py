"""Memory of searches on clips against the stock sampler's one clip, in bytes of tensors that live at once."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.methods import SVDD, BestOfN, RandomSearch

from .live_bytes import LiveBytes
from .test_video import built, clip_setup  # noqa: F401 - fixtures
from .video_models import video_latent

pytestmark = pytest.mark.host


def test_tensors_are_counted_while_they_live():
    with LiveBytes() as live:
        kept = torch.ones(1000)
        for _ in range(5):
            kept = kept + 1  # the old and the new
        view = kept[:10]
    assert live.peak == 2 * 4000 and live.now == 4000 and len(view) == 10
    del kept, view
    assert live.now == 0


def peak(run) -> int:
    run()  # what is made once (tables, caches) is no matter of candidates
    with LiveBytes() as live:
        run()
    return live.peak


LOOK = 5 * 32 * 32 * 3 * 4
"""Bytes of what judges are shown of a clip: five frames of 32 pixels."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "latents", "looks"),
    [(BestOfN, 8, 0), (RandomSearch, 12, 1), (SVDD, 12, 2)],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("kind", ["wan", "ltxav"])
def test_a_candidate_costs_its_latents_and_looks_and_no_activations(
    clip_setup,  # noqa: F811
    search_ksampler,
    ksampler,
    kind,
    method,
    latents,
    looks,
):
    """Above the stock sampler and decoder's one clip there are latents and judged frames, by candidate, and no more."""
    given = clip_setup(kind)

    def stock():
        samples = ksampler(given, "euler", cfg=1.0, steps=3)["samples"]
        with torch.inference_mode():
            given.vae.decode(samples.unbind()[0] if samples.is_nested else samples)

    def search(particles: int) -> int:
        return peak(lambda: search_ksampler(given, method(particles), eta=1.0, steps=3, cfg=1.0))

    made = video_latent(kind)
    latent = sum(stream.numel() * 4 for stream in (made.unbind() if made.is_nested else [made]))
    one, few, many = peak(stock), search(2), search(6)
    each = latents * latent + looks * LOOK
    assert (many - few) / 4 < each
    assert few - one < 2 * each + 8 * latent + LOOK  # and what the last look shows
