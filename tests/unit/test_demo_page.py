"""The demo page from real searches on a closed-form process: complete, self-contained and truthful."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from testtime.bench.presets import search_for
from testtime.cli.demo_charts import best_so_far, curves, ticks, tree, winner_lineage
from testtime.cli.demo_page import METHOD_TEXTS, About, Entry, render
from testtime.samplers.diffusion import DiffusionProcess
from testtime.samplers.kernel import VE
from testtime.samplers.schedules import karras
from testtime.samplers.session import run_search
from testtime.samplers.streams import Streams
from testtime.shapes_world.captions import sample_prompt
from testtime.shapes_world.scene import TASKS

ABOUT = About("the library", 4, 6, 0, "a machine", 1.0, "brightness", "redness")


class Denoise:
    """Exact for data from N(0, 1)."""

    rows_per_particle = 2

    def __call__(self, x, sigma, group):
        return x / (1.0 + sigma * sigma)


class Brightness:
    """Scores the mean of all pixels."""

    name = "brightness"
    differentiable = True

    def score(self, images, prompts):
        return images.mean((1, 2, 3))


def decode(x0):
    """``[n, 3, 4, 4]`` -> ``[n, 16, 16, 3]``."""
    return torch.nn.functional.interpolate(0.5 + x0 / 4.0, scale_factor=4).movedim(1, -1)


def search(method, prompt, seed=0):
    shape = (3, 4, 4)
    process = DiffusionProcess(Denoise(), VE(), karras(6, 0.05, 10.0), decode, shape, 1, Streams(seed))
    finished = {}

    def keep(record, state, images):
        if record.phase == "final" and images is not None:
            finished.update({entry["id"]: images[k] for k, entry in enumerate(record.particles)})

    result = run_search(search_for(method, 4, 6), process, Brightness(), [prompt.text], listener=keep)
    images = (decode(result.latents).clamp(0, 1)[0] * 255).byte().numpy()
    return Entry(
        method=method,
        prompt=prompt,
        image=images,
        score=float(result.scores[0]),
        held_out=0.25,
        correct=method != "plain",
        trace=result.trace,
        winner=result.particles[0],
        finalists=[(key, (value * 255).byte().numpy()) for key, value in finished.items()],
        nfe=result.ledger.nfe,
        backward=result.ledger.backward,
        seconds=result.ledger.total_seconds,
    )


@pytest.fixture(scope="module")
def entries():
    prompts = [sample_prompt(1, task) for task in TASKS]
    return [search(method, prompt) for prompt in prompts for method in METHOD_TEXTS]


def test_page_has_everything_inside(entries):
    page = render(entries, ABOUT)
    assert page.count("<figure") == len(entries)
    assert page.count("&#10003;") == 24
    assert page.count("&#10007;") == 6
    for prompt in {entry.prompt.text for entry in entries}:
        assert prompt in page
    sources = re.findall(r"(?:src|href)=['\"]([^'\"]{0,30})", page)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "@import" not in page
    assert "url(" not in page


def test_page_survives_hostile_prompts(entries):
    import dataclasses

    prompt = dataclasses.replace(entries[0].prompt, text="<script>alert(1)</script> \"'&")
    page = render([dataclasses.replace(entry, prompt=prompt) for entry in entries[:5]], ABOUT)
    assert "<script" not in page


def test_summary_marks_the_best_method(entries):
    page = render(entries, ABOUT)
    (row,) = re.findall(r"<tr class='winner'>.*?</tr>", page)
    means = {key: np.mean([e.score for e in entries if e.method == key]) for key in METHOD_TEXTS if key != "plain"}
    assert METHOD_TEXTS[max(means, key=means.get)][0] in row


def test_best_so_far_never_falls_and_ends_at_the_best(entries):
    for entry in entries:
        points = best_so_far(entry.trace)
        values = [score for _, score in points]
        assert values == sorted(values)
        costs = [nfe for nfe, _ in points]
        assert costs == sorted(costs)


def test_tree_draws_every_particle_and_the_winner_line(entries):
    for entry in entries:
        picture = tree(entry.trace, entry.winner, entry.finalists, "red")
        particles = sum(len(record.particles) for record in entry.trace.records)
        assert picture.count("<circle") == particles
        chain = winner_lineage(entry.trace, entry.winner)
        assert picture.count('class="leaf alive"') == len(chain) == len(entry.trace.records)
        assert picture.count('class="branch alive"') == len(chain) - 1


def test_curves_of_nothing_are_nothing():
    assert curves([("a", "red", [])]) == ""


def test_curves_cope_with_a_single_and_with_equal_points():
    for line in ([(10, 1.0)], [(10, 1.0), (20, 1.0)]):
        assert "NaN" not in curves([("a", "red", line)]) and "nan" not in curves([("a", "red", line)])


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2, 17.0), (0.991, 0.992), (5.0, 5.0)])
def test_ticks_are_inside(low, high):
    values = ticks(low, high)
    assert all(low - 1e-6 <= value <= high + max(1e-6, (high - low) * 1e-6) for value in values)
    assert len(values) <= 6
