"""The demo through a real headless ComfyUI gives what the demo through the library gives."""

from __future__ import annotations

import numpy as np
import pytest

from testtime.cli.demo_backends import LibraryBackend, Settings
from testtime.cli.demo_comfy import METHOD_NODES, ComfyBackend
from testtime.cli.demo_page import METHOD_TEXTS
from testtime.shapes_world.captions import sample_prompt

SETTINGS = Settings(budget=2, steps=4)


@pytest.fixture(scope="module")
def backend(comfy_server):
    with ComfyBackend(SETTINGS, comfy_server.url) as backend:
        yield backend


def test_every_method_of_the_page_has_a_node():
    assert set(METHOD_NODES) == set(METHOD_TEXTS)


@pytest.mark.parametrize("method", METHOD_TEXTS)
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
