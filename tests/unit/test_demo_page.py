"""The demo page from real searches on two small processes: complete, self-contained and truthful."""

from __future__ import annotations

import dataclasses
import html
import json
import re

import numpy as np
import pytest
import torch

from testtime.bench.presets import search_for
from testtime.demo.page import render
from testtime.demo.sections import COLOURS, DIFFUSION, SECTIONS, VAR, About, Entry
from testtime.reports.names import method_name
from testtime.samplers.clustering import PixelFeatures
from testtime.samplers.methods import TTSVAR
from testtime.samplers.processes.denoise import PlainDenoiser
from testtime.samplers.processes.diffusion import DiffusionProcess
from testtime.samplers.processes.kernel import VE
from testtime.samplers.processes.schedules import karras
from testtime.samplers.processes.streams import Streams
from testtime.samplers.protocols import Verifier
from testtime.samplers.run.search import run_search
from testtime.samplers.run.trace import Trace
from testtime.shapes_world.captions import sample_prompt
from testtime.shapes_world.scene import TASKS

from . import scale_world

ABOUT = About("the library", 4, 6, 0, "a machine", 1.0, "brightness", "redness")


def exact(x, sigma, group):
    """The clean estimate for data from N(0, 1)."""
    return x / (1.0 + sigma * sigma)


class Brightness(Verifier):
    """Scores the mean of all pixels."""

    name = "brightness"
    differentiable = True

    def score(self, images, prompts, context=None):
        return images.mean((1, 2, 3))


def decode(x0):
    """``[n, 3, 4, 4]`` -> ``[n, 16, 16, 3]``."""
    return torch.nn.functional.interpolate(0.5 + x0 / 4.0, scale_factor=4).movedim(1, -1)


def search(method, prompt, seed=0):
    process = DiffusionProcess(
        PlainDenoiser(exact, 2), VE(), karras(6, 0.05, 10.0), decode, (3, 4, 4), 1, Streams(seed)
    )
    return found(DIFFUSION, method, prompt, process, search_for(method, 4), decode)


def search_scales(nets, method, prompt, seed=0):
    method_on_scales = TTSVAR(2, extractor=PixelFeatures()) if method == "tts_var" else search_for(method, 4)
    return found(VAR, method, prompt, scale_world.process(nets, seed=seed), method_on_scales, nets[1].decode)


def found(model, method, prompt, process, searcher, to_images):
    finished = {}

    def keep(record, state, images):
        if record.phase == "final" and images is not None:
            finished.update({entry["id"]: images[k] for k, entry in enumerate(record.particles)})

    result = run_search(searcher, process, Brightness(), [prompt.text], listener=keep)
    images = (to_images(result.latents).clamp(0, 1)[0] * 255).byte().numpy()
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
        model=model,
    )


@pytest.fixture(scope="module")
def entries():
    prompts, (first, second) = [sample_prompt(1, task) for task in TASKS], SECTIONS
    nets = scale_world.networks()
    return [search(method, prompt) for prompt in prompts for method in first.methods] + [
        search_scales(nets, method, prompt) for prompt in prompts for method in second.methods
    ]


def parts(page):
    """The two parts of the page."""
    _, *found = page.split('<div class="part"')
    return found


def data_of(page):
    """What the page's script reads."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL).group(1))


@pytest.mark.slow
def test_page_has_everything_inside(entries):
    page = render(entries, ABOUT)
    assert page.count("<figure") == len(entries)
    assert [part.count("&#10003;") for part in parts(page)] == [24, 12]
    assert [part.count("&#10007;") for part in parts(page)] == [6, 6]
    for prompt in {entry.prompt.text for entry in entries}:
        assert prompt in page
    sources = re.findall(r"<[^<>]* (?:src|href)=['\"]([^'\"]{0,30})", page)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in html.unescape(page)


def test_page_survives_hostile_prompts(entries):
    prompt = dataclasses.replace(entries[0].prompt, text="<script>alert(1)</script> \"'&")
    page = render([dataclasses.replace(entry, prompt=prompt) for entry in (*entries[:5], *entries[-3:])], ABOUT)
    assert "<script>alert" not in page and page.count("<script") == 2
    assert "&lt;script&gt;alert(1)" in page


def test_summary_marks_the_best_method(entries):
    for section, part in zip(SECTIONS, parts(render(entries, ABOUT)), strict=True):
        (row,) = re.findall(r'<tr class="winner">.*?</tr>', part, re.DOTALL)
        mine = [entry for entry in entries if entry.model == section.model]
        means = {key: np.mean([e.score for e in mine if e.method == key]) for key in section.methods if key != "plain"}
        assert method_name(max(means, key=means.get)) in row


def test_methods_appear_where_they_belong(entries):
    for section, part in zip(SECTIONS, parts(render(entries, ABOUT)), strict=True):
        heads = re.findall(r'<div class="colhead">.*?</i>(.*?)</div>', part)
        assert heads == [method_name(key) for key in section.methods]


def test_a_part_without_entries_is_left_out(entries):
    page = render([entry for entry in entries if entry.model == DIFFUSION], ABOUT)
    assert len(parts(page)) == 1
    assert "next-scale" not in page


def test_only_the_next_scale_part_tells_compute(entries):
    told = [at_cost(entry, 3.14e9 if entry.method == "tts_var" else 1e9) for entry in entries]
    first, second = parts(render(told, ABOUT))
    assert "FLOP" not in first and "GFLOP per image" in second
    (row,) = [row for row in re.findall(r"<tr.*?</tr>", second, re.DOTALL) if "</i>TTS-VAR" in row]
    assert '<td class="num">3.1</td>' in row


def at_cost(entry, flops):
    """The entry with other FLOPs in its books."""
    trace = Trace.from_json(entry.trace.to_json())
    trace.meta["ledger"]["flops"] = flops
    return dataclasses.replace(entry, trace=trace)


def test_headlines_keep_the_models_apart(entries):
    """With every image of the next-scale model wrong, only the second sentence changes."""
    wrong = [dataclasses.replace(entry, correct=entry.model == DIFFUSION and entry.correct) for entry in entries]
    before, after = render(entries, ABOUT), render(wrong, ABOUT)
    assert before.split('<div class="part"')[0] == after.split('<div class="part"')[0]
    spent = {key: sum(e.flops for e in entries if (e.model, e.method) == (VAR, key)) for key in COLOURS}
    for page, right in ((before, 6), (after, 0)):
        assert (
            f"Plain sampling gets <b>0</b> of 6 right; TTS-VAR with N = 2 gets <b>{right}</b>; Best-of-N with N = 4 "
            f"gets <b>{right}</b>, at {spent['best_of_n'] / spent['tts_var']:.1f} times the compute"
        ) in " ".join(parts(page)[1].split())


def test_every_search_is_in_the_data_with_its_winner(entries):
    page = render(entries, ABOUT)
    data = data_of(page)
    assert [int(n) for n in re.findall(r'data-prompt="(\d+)"', page)] == list(range(len(data))) == list(range(12))
    told = {(e["method"], e["search"]["winners"][0], len(e["pictures"])) for entries in data for e in entries}
    assert told == {(entry.method, entry.winner, len(entry.finalists)) for entry in entries}
    for entry, told in zip(entries[:5], data[0], strict=True):
        rows = [row[0] for record in told["search"]["records"] for row in record["particles"]]
        assert rows == [e["id"] for record in entry.trace.records for e in record.particles]
