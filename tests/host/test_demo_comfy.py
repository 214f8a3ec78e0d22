"""The demo through a real headless ComfyUI gives what the demo through the library gives."""

from __future__ import annotations

import numpy as np
import pytest

from testtime.demo.backends import LibraryBackend, Settings
from testtime.demo.comfy import ComfyBackend
from testtime.demo.sections import DIFFUSION, SECTIONS, VAR
from testtime.models.tiny.loading import missing_weights
from testtime.shapes_world.captions import sample_prompt

SETTINGS = Settings(budget=2, steps=4)
METHODS = {section.model: section.methods for section in SECTIONS}
pytestmark = pytest.mark.skipif(bool(missing_weights(["diffusion", "var", "var_vae"])), reason="no weights here")


@pytest.fixture(scope="module")
def backend(comfy_server):
    with ComfyBackend(SETTINGS, comfy_server.url) as backend:
        yield backend


@pytest.mark.parametrize("method", METHODS[DIFFUSION])
def test_entry_agrees_with_the_library(backend, method):
    prompt = sample_prompt(0, "colors")
    entry, other = backend.run(method, prompt), LibraryBackend(SETTINGS).run(method, prompt)
    assert entry.image.shape == (128, 128, 3) and entry.image.dtype == np.uint8
    assert entry.nfe == other.nfe and entry.judged == other.judged
    assert len(entry.trace.records) == len(other.trace.records)
    assert len(entry.finalists) == len(other.finalists)
    assert entry.winner == other.winner or method != "plain"
    assert entry.held_out is not None and abs(entry.held_out) <= 1.0
    assert entry.score == max(e["score"] for e in entry.trace.records[-1].particles)
    np.testing.assert_array_equal(entry.finalists[0][1], entry.image)


@pytest.mark.parametrize("method", METHODS[VAR])
def test_next_scale_model_draws_the_librarys_images(backend, method):
    prompt = sample_prompt(0, "colors")
    entry, other = (one.run(method, prompt, VAR) for one in (backend, LibraryBackend(SETTINGS)))
    assert (entry.nfe, entry.judged, entry.flops) == (other.nfe, other.judged, other.flops)
    assert (entry.model, entry.winner) == (VAR, other.winner)
    assert entry.score == pytest.approx(other.score, abs=1e-3)
    assert entry.held_out == pytest.approx(other.held_out, abs=1e-3)
    assert [key for key, _ in entry.finalists] == [key for key, _ in other.finalists]
    for (_, image), (_, same) in zip(entry.finalists, other.finalists, strict=True):
        # ComfyUI's own node cuts to 8 bits where the library rounds.
        assert image.shape == (128, 128, 3) and np.abs(image.astype(int) - same).max() <= 2
    assert [len(record.particles) for record in entry.trace.records] == [len(r.particles) for r in other.trace.records]


def test_score_belongs_to_the_saved_image(backend):
    """The saved picture, scored again by the library, has the score of the trace up to its 8 bits."""
    import torch

    from testtime.verifiers.registry import create

    prompt = sample_prompt(0, "counting")
    entry = backend.run("best_of_n", prompt)
    images = torch.tensor(np.stack([image for _, image in entry.finalists])) / 255.0
    scores = create(SETTINGS.verifier).score(images, [prompt.text] * len(images)).tolist()
    told = [e["score"] for e in entry.trace.finalists()]
    np.testing.assert_allclose(scores, told, atol=0.05)
    watched = create(SETTINGS.held_out).score(images[:1], [prompt.text]).item()
    assert watched == pytest.approx(entry.held_out, abs=0.05)
