"""Clips in the panel: small moving pictures that are kept on the server, bounded in bytes, and fetched one by one."""

from __future__ import annotations

import asyncio
import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from testtime.reports.thumbs import film
from testtime.samplers.methods import SVDD
from testtime.verifiers.human import Question

from ..browser import Browser, find_chromium
from .conftest import Redness
from .test_panel import panel_modules, ready
from .video_models import build_video_model, build_wan_vae, video_conditioning, video_latent

pytestmark = pytest.mark.host


def clip(frames: int = 17, side: int = 200) -> np.ndarray:
    """A clip uint8 of a bright bar that moves over noise."""
    made = np.random.default_rng(3).integers(60, 90, (frames, side, side * 3 // 2, 3), dtype=np.uint8)
    for k in range(frames):
        made[k, :, 10 * k : 10 * k + 20] = 230
    return made


def test_a_clip_is_a_small_moving_picture():
    made = film(clip())
    with Image.open(io.BytesIO(made)) as picture:
        assert picture.format == "WEBP" and picture.n_frames == 8 and max(picture.size) == 160
        first = np.asarray(picture.convert("RGB")).astype(float)
        picture.seek(7)
        last = np.asarray(picture.convert("RGB")).astype(float)
    assert len(made) < 60_000
    # The bar was at the left edge first and has moved on by the last frame.
    assert first[:, :8].mean() > 150 > last[:, :8].mean()
    with Image.open(io.BytesIO(film(clip(3)))) as picture:
        assert picture.n_frames == 3


@pytest.fixture
def searched(search_ksampler):
    """What a search on clips left in the panel's store: (run as a tab gets it, number of rows per step)."""
    from types import SimpleNamespace

    from testtime.nodes.host.live import store

    given = SimpleNamespace(
        kind="wan", model=build_video_model("wan"), vae=build_wan_vae(), positive=video_conditioning("wan", 1),
        negative=video_conditioning("wan", 2), latent={"samples": video_latent("wan")}, verifier=Redness(),
    )  # fmt: skip

    def run():
        out = search_ksampler(given, SVDD(3), cfg=1.0, steps=3)
        return store.snapshot(out.trace.meta["run"])

    return run


def test_every_shown_clip_of_a_search_can_be_fetched(searched):
    from testtime.nodes.host.live import store

    run = searched()
    pictured = [record for record in run["records"] if record["thumbs"]]
    assert pictured
    for record in pictured:
        assert record["clips"] == [1] * len(record["particles"])
        for row, thumb in enumerate(record["thumbs"]):
            with Image.open(io.BytesIO(base64.b64decode(thumb))) as picture:
                assert picture.format == "JPEG" and picture.size == (32, 32)
            with Image.open(io.BytesIO(store.clip(run["run"], record["index"], row))) as picture:
                assert picture.n_frames == 5
    assert store.clip(run["run"], 99, 0) is None and store.clip("nobody", 0, 0) is None


def test_clips_of_a_run_are_bounded_in_bytes(searched, monkeypatch):
    from testtime.nodes.host import live

    monkeypatch.setattr(live, "CLIP_BYTES_PER_RUN", 4_000)
    run = searched()
    kept = live.store._clips[run["run"]]
    told = sum(sum(record["clips"] or ()) for record in run["records"])
    assert 0 < sum(map(len, kept.values())) <= 4_000 and told == len(kept)
    rows = sum(len(record["particles"]) for record in run["records"] if record["thumbs"])
    assert told < rows


def test_a_person_is_sent_the_clips(monkeypatch):
    from testtime.nodes.host import asking

    clips = torch.from_numpy(clip(5)).float().div(255)[None].repeat(3, 1, 1, 1, 1)
    question = Question(clips, ["a", "a", "a"], [0, 0, 0], torch.tensor([1.0, 2.0, 3.0]), 3, 4, "redness")
    candidates = asking.described(question, 60.0)["candidates"]
    for candidate in candidates:
        with Image.open(io.BytesIO(base64.b64decode(candidate["clip"]))) as picture:
            assert picture.n_frames == 5 and max(picture.size) == 256
    size = len(base64.b64decode(candidates[0]["clip"]))
    monkeypatch.setattr(asking, "CLIP_BYTES", 2 * size)
    limited = asking.described(question, 60.0)["candidates"]
    assert [candidate["clip"] is not None for candidate in limited] == [True, True, False]
    assert all(candidate["picture"] for candidate in limited)
    still = Question(clips[:, 0], ["a"] * 3, [0] * 3, torch.ones(3), 3, 4, "redness")
    assert all(candidate["clip"] is None for candidate in asking.described(still, 60.0)["candidates"])


def test_the_page_of_a_search_plays_its_clips(searched):
    from testtime.nodes.host.results import store as results
    from testtime.nodes.live_routes import page_of

    run = searched()
    page = page_of(run["run"])
    finalists = results.trace_of(run["run"]).records[-1].particles
    assert page.count("data:image/webp;base64,") == len(finalists)
    assert page.count('media="(prefers-reduced-motion: no-preference)"') == len(finalists)


def test_the_picture_of_a_report_shows_three_frames_of_every_clip():
    from testtime.nodes.host.scores import Scores
    from testtime.nodes.report_nodes import finalists_of

    frames = torch.arange(2 * 5).float().view(10, 1, 1, 1).expand(10, 4, 6, 3) / 10
    found = finalists_of(frames, Scores("redness", [0.5, 0.25], group=[0, 0]))
    assert found.images.shape == (2, 4, 18, 3)
    assert [round(float(found.images[1, 0, place, 0]) / 255, 1) for place in (0, 6, 12)] == [0.5, 0.7, 0.9]


SCENE = """
(async () => {
  const base = '%(panel)s../';
  const [{ Run }, { RunStore }, { PanelView }] =
    await Promise.all(['draw/run.js', 'panel/store.js', 'panel/view.js'].map((name) => import(base + name)));
  const [still, moving] = ['%(still)s', '%(moving)s'];
  const store = new RunStore(async () => null);
  store.start({ run: 'r', title: 'Best-of-N', method: 'best_of_n', prompts: ['a clip'] });
  const record = {
    run: 'r', index: 0, step: 4, steps: 4, sigma: 0, phase: 'final', ess: [], resampled: [], nfe: 8, seconds: 1,
    rewrites: [], ledger: {}, prompts: null, particles: [[1, null, 0, 0.5, null, 1], [2, null, 0, 0.25, null, 0]],
    thumbs: [still, still], clips: [1, 0],
  };
  const asked = [];
  const host = {
    answer: async () => ({ ok: true, body: {} }), reportUrl: () => '#', useParticle: () => [],
    clipUrl: (...place) => { asked.push(place); return 'data:image/webp;base64,' + moving; },
  };
  await store.step(record);
  const view = new PanelView(store, host);
  document.body.append(view.root);
  window.scene = { view, asked };
  return true;
})()
"""


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the path")
def test_the_panel_plays_clips_and_stops_them(comfy_server):
    moving = base64.b64encode(film(clip(4, 40))).decode()
    from testtime.reports.thumbs import thumbnail

    scene = SCENE % {"panel": panel_modules(comfy_server.url), "still": thumbnail(clip(1, 40)[0]), "moving": moving}
    image = "window.scene.view.inspector.querySelector('img')"
    button = "window.scene.view.inspector.querySelector('.testtime-play')"

    async def watch():
        async with Browser(1200, 900) as browser:
            await ready(browser, comfy_server.url)
            assert await browser.run(scene)
            await browser.wait_for(f"{image}?.src.startsWith('data:image/webp')")
            assert await browser.run(f"{button}.textContent") == "Stop"
            await browser.run(f"{button}.click()")
            assert await browser.run(f"{image}.src.startsWith('data:image/jpeg')")
            assert await browser.run(f"{button}.getAttribute('aria-pressed')") == "false"
            strip = "window.scene.view.strip.querySelectorAll('figure')"
            await browser.run(f"{strip}[0].dispatchEvent(new PointerEvent('pointerenter'))")
            assert await browser.run(f"{strip}[0].querySelector('img').src.startsWith('data:image/webp')")
            await browser.run(f"{strip}[0].dispatchEvent(new PointerEvent('pointerleave'))")
            assert await browser.run(f"{strip}[0].querySelector('img').src.startsWith('data:image/jpeg')")
            # The second has no clip: nobody asks the server for one.
            assert await browser.run("window.scene.asked.every(([run, step, row]) => step === 0 && row === 0)")
            assert not [line for line in browser.console if "testtime" in str(line)]

    asyncio.run(watch())
