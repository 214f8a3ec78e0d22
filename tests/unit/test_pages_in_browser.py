"""The pages in a real browser, opened from a disk: drawn, readable in light and dark, by pointer and by keyboard."""

from __future__ import annotations

import asyncio

import pytest
import torch

from testtime.demo import page as demo_page
from testtime.demo.sections import SECTIONS
from testtime.reports.page import render
from testtime.reports.thumbs import thumbnail
from testtime.samplers.methods import SMC
from testtime.samplers.run.search import run_search
from testtime.samplers.smc.tempering import Alpha
from testtime.shapes_world.captions import sample_prompt
from testtime.shapes_world.scene import TASKS

from ..axe import find_axe, violations
from ..browser import Browser, find_chromium
from .oracles import keyed
from .searches import TARGET
from .test_demo_page import ABOUT, search

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the path"),
]
HOSTILE = 'a star <img src=x onerror="window.hacked=1">'
# How many pixels of a canvas have about the colour [r, g, b], and how many are painted at all.
PIXELS = """((canvas, rgb) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let [like, painted] = [0, 0];
  for (let k = 0; k < data.length; k += 4) {
    if (data[k + 3] > 40) painted += 1;
    if (data[k + 3] > 200 && rgb.every((value, c) => Math.abs(data[k + c] - value) < 12)) like += 1;
  }
  return [like, painted];
})"""
WON = {False: [182, 84, 0], True: [255, 158, 44]}
POINTED = {False: [40, 96, 200], True: [120, 170, 255]}


@pytest.fixture(scope="module")
def report_file(tmp_path_factory):
    searched = run_search(SMC(5, alpha=Alpha(0.3, "absolute")), keyed(), TARGET, [HOSTILE, "q"])
    picture = thumbnail(torch.full((64, 64, 3), 90, dtype=torch.uint8).numpy())
    file = tmp_path_factory.mktemp("pages") / "report.html"
    file.write_text(render(searched.trace, dict.fromkeys(searched.particles, picture)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def demo_file(tmp_path_factory):
    prompts = [sample_prompt(1, task) for task in TASKS[:2]]
    entries = [search(method, prompt) for prompt in prompts for method in SECTIONS[0].methods]
    file = tmp_path_factory.mktemp("pages") / "demo.html"
    file.write_text(demo_page.render(entries, ABOUT), encoding="utf-8")
    return file


async def looked(browser: Browser, file) -> dict:
    """Open a page and see what is wrong with it in general."""
    await browser.open(file.as_uri())
    await browser.wait_for("document.querySelector('.testtime-tree')?.ariaLabel", 30)
    return {
        "faint": await browser.faint("main"),
        "axe": await violations(browser, "main") if find_axe() else [],
        "loaded": await browser.run("performance.getEntriesByType('resource').filter((r) => !/^data:/.test(r.name))"),
        "wider": await browser.run("document.documentElement.scrollWidth - innerWidth"),
        "console": browser.console + browser.errors,
    }


NOTHING = {"faint": [], "axe": [], "loaded": [], "console": []}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_report_is_drawn_and_answers_to_pointer_and_keyboard(report_file, dark):
    tree = "document.querySelector('.testtime-tree')"

    async def look():
        async with Browser(1200, 900, dark) as browser:
            seen = await looked(browser, report_file)
            seen["hacked"] = await browser.run("!!window.hacked")
            seen["title"] = await browser.run("document.querySelector('h1').textContent")
            seen["tree"] = await browser.run(f"{PIXELS}({tree}, {WON[dark]})")
            seen["curves"] = await browser.run(f"{PIXELS}(document.querySelector('.testtime-curve'), {WON[dark]})")
            before = (await browser.run(f"{PIXELS}({tree}, {POINTED[dark]})"))[0]
            await browser.run(f"{tree}.scrollIntoView()")
            box = await browser.run(f"(({{ x, y }}) => [x, y])({tree}.getBoundingClientRect())")
            seen["hint"] = await browser.run("document.getElementById('inspector').textContent.trim()")
            await browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + 24, y=box[1] + 22)
            seen["pointed"] = await browser.run("document.getElementById('inspector').textContent")
            await browser.run(f"{tree}.focus()")
            for key, code in (("ArrowRight", 39), ("Escape", 27), ("ArrowLeft", 37)):
                await browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code)
                seen[key] = await browser.run("document.getElementById('inspector').textContent.trim()")
            seen["way"] = (await browser.run(f"{PIXELS}({tree}, {POINTED[dark]})"))[0] - before
            await browser.run("document.querySelector('main').style.width = '360px'")
            await asyncio.sleep(0.5)
            seen["narrow"] = await browser.run(f"{tree}.width / devicePixelRatio")
        return seen

    seen = asyncio.run(look())
    assert {name: seen[name] for name in NOTHING} == NOTHING and seen["wider"] <= 0
    assert seen["title"].startswith(HOSTILE) and not seen["hacked"]
    for name in ("tree", "curves"):
        assert seen[name][0] > 100 and seen[name][1] > 1000, name
    assert seen["pointed"].startswith("Particle 0, step 0 of")
    assert seen["ArrowRight"].startswith("Particle ") and "step 1 of" in seen["ArrowRight"]
    assert seen["Escape"] == seen["hint"] and "step" in seen["ArrowLeft"]
    assert seen["way"] > 500  # from the winner's parent back to noise
    assert seen["narrow"] < 340


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_demo_draws_a_prompt_when_it_is_opened(demo_file, dark):
    count = "document.querySelectorAll('details')[%d].querySelectorAll('canvas').length"

    async def look():
        async with Browser(1200, 900, dark) as browser:
            seen = await looked(browser, demo_file)
            seen["first"] = await browser.run(count % 0)
            seen["closed"] = await browser.run(count % 1)
            await browser.run("document.querySelectorAll('details')[1].open = true")
            await browser.wait_for(f"{count % 1} === 6", 10)  # two curves, a tree for each of the four searches
            await asyncio.sleep(0.5)
            seen["labels"] = await browser.run(
                "[...document.querySelectorAll('details')[1].querySelectorAll('canvas')].map((c) => c.ariaLabel)"
            )
            seen["painted"] = await browser.run(
                f"[...document.querySelectorAll('canvas')].map((canvas) => {PIXELS}(canvas, [0, 0, 0])[1])"
            )
            seen["after"] = browser.console + browser.errors
        return seen

    seen = asyncio.run(look())
    assert {name: seen[name] for name in NOTHING} == NOTHING and not seen["after"]
    assert (seen["first"], seen["closed"]) == (6, 0)
    assert "Best-of-N: " in seen["labels"][0] and seen["labels"][2].startswith("Family tree: ")
    assert len(seen["painted"]) == 12 and min(seen["painted"]) > 500
