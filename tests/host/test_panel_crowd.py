"""512 particles in the panel's own modules, in a real browser: one drawing per frame, few pictures, bounded memory."""

from __future__ import annotations

import asyncio

import pytest

from testtime.bench.panel import DRAW

from ..browser import Browser, find_chromium
from .test_panel import panel_modules

pytestmark = [
    pytest.mark.host,
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the path"),
]
PARTICLES = 512
# A search of 512 particles and 60 steps arrives as messages, 64 previews of 14 kB in each: more than a run may keep.
FEED = """(async () => {
  const base = '/extensions/%(module)s/';
  const [{ THUMB_CHARACTERS }, { RunStore }, { PanelView }] =
    await Promise.all(['draw/run.js', 'panel/store.js', 'panel/view.js'].map((name) => import(base + name)));
  document.body.replaceChildren();
  const store = new RunStore(async () => null);
  const view = new PanelView(store, { reportUrl: () => '', answer: async () => ({}), useParticle: () => [] });
  document.body.append(view.root);
  let drawn = 0;
  const draw = view.draw.bind(view);
  view.draw = () => { drawn += 1; draw(); };
  const [particles, steps] = [%(particles)d, 60];
  const picture = btoa('x'.repeat(10500));
  store.start({ run: 'crowd', method: 'smc', prompts: ['a star'] });
  const begun = performance.now();
  for (let step = 0; step < steps; step++) {
    await store.step({
      run: 'crowd', index: step, step, steps, nfe: particles * (step + 1), resampled: [], ledger: {},
      particles: Array.from({ length: particles }, (_, k) =>
        [step * particles + k, step ? (step - 1) * particles + k : null, 0, (k * 7919 %% particles) / particles, 0, 1]),
      thumbs: Array.from({ length: particles }, (_, k) => (k < 64 ? picture : null)),
    });
    if (step %% 20 === 19) await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  }
  const run = store.latest;
  const all = [...run.particles.values()];
  return {
    drawn, milliseconds: performance.now() - begun, particles: all.length, limit: THUMB_CHARACTERS,
    kept: all.reduce((sum, p) => sum + (p.thumb?.length ?? 0), 0), counted: run.characters,
    newest: run.records.at(-1).rows.filter((p) => p.thumb).length,
    oldest: run.records[0].rows.filter((p) => p.thumb).length,
    pictures: view.root.querySelectorAll('img').length, elements: view.root.querySelectorAll('*').length,
  };
})()"""


def test_512_particles_are_drawn_and_forgotten_in_time(comfy_server):
    module = panel_modules(comfy_server.url).split("/")[2]
    values = {"module": module, "particles": PARTICLES, "steps": 50, "milliseconds": 2000}

    async def look():
        async with Browser(900, 1200) as browser:
            await browser.open(comfy_server.url + "/testtime/runs")  # a page from which the modules can be imported
            await browser.wait_for("document.body")
            await asyncio.sleep(0.5)
            return await browser.run(FEED % values), await browser.run(DRAW % values), browser.console

    fed, drawn, console = asyncio.run(look())
    assert not console
    assert fed["particles"] == 60 * PARTICLES and drawn["particles"] == 51 * PARTICLES
    assert fed["drawn"] <= 12  # per frame, not per message
    assert fed["kept"] == fed["counted"] <= fed["limit"] < 60 * 64 * 14_000
    assert fed["newest"] == 64 and fed["oldest"] == 0  # what is new stays
    assert fed["pictures"] <= 10 and fed["elements"] < 120
    # Generous, for a machine that has other things to do: a pointer is followed, a step does not hold up the page.
    assert drawn["pointed"]["milliseconds_median"] < 100
    assert drawn["grown"]["milliseconds_median"] < 1000
