"""The live panel in a real browser on a real server: it grows while a search runs, survives a reload, runs no HTML."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path

import pytest

from ..browser import Browser, find_chromium

pytestmark = [
    pytest.mark.host,
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the path"),
]
WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "api" / "smc.json"
HOSTILE = 'a red star <img src=x onerror="window.hacked=1">'
TAB = "window.app.extensionManager.command.execute('Workspace.ToggleSidebarTab.testtime.search')"

THEME = "window.app.extensionManager.setting.set('Comfy.ColorPalette', 'NAME').then(() => true)"


def queue(url: str, **changes) -> None:
    workflow = json.loads(WORKFLOW.read_text())
    for node in workflow.values():
        for name, value in changes.items():
            if name in node["inputs"]:
                node["inputs"][name] = value
    body = json.dumps({"prompt": workflow}).encode()
    request = urllib.request.Request(url + "/prompt", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        assert not json.load(response)["node_errors"]


def panel_modules(url: str) -> str:
    """Where a server has the panel's modules, so that a page of it can import them."""
    with urllib.request.urlopen(url + "/object_info/TestTimeBestOfN", timeout=60) as response:
        module = json.load(response)["TestTimeBestOfN"]["python_module"]
    return f"/extensions/{module.split('.', 1)[1]}/panel/"


async def ready(browser: Browser, url: str) -> None:
    """Open the front end and the panel; what the front end complains about while it starts is its own."""
    await browser.open(url)
    await browser.wait_for("window.app && window.app.extensionManager && window.app.graph", 300)
    await browser.wait_for(
        "document.querySelector('[class*=\"testtime\"]') || document.querySelector('.side-tool-bar-container')"
    )
    await asyncio.sleep(2)
    await browser.run("(document.querySelector('.p-dialog-close-button') || document.body).click()")
    for kind in ("keyDown", "keyUp"):  # newer front ends greet with a window of templates
        await browser.call("Input.dispatchKeyEvent", type=kind, key="Escape", windowsVirtualKeyCode=27)
    browser.console.clear()
    await browser.run(f"document.querySelector('.testtime-panel') || {TAB}")  # a question opens the panel by itself
    await browser.wait_for("document.querySelector('.testtime-panel')")


def test_the_panel_follows_a_search(comfy_server):
    async def watch():
        async with Browser(1500, 1200) as browser:
            await ready(browser, comfy_server.url)
            queue(comfy_server.url, steps=40, particles=6, seed=3, prompt=HOSTILE)
            status = "document.querySelector('.testtime-status').dataset.status"
            shown = "document.querySelector('.testtime-status')?.textContent ?? ''"
            await browser.wait_for(f"/Running, step [12]?[0-9] of/.test({shown})", 120)  # any one: steps fly past
            early = await browser.run("document.querySelector('.testtime-tree').clientHeight")
            await browser.wait_for(f"{status} === 'complete'", 120)
            seen = await browser.run(
                "({late: document.querySelector('.testtime-tree').clientHeight,"
                " prompt: document.querySelector('.testtime-prompt').textContent,"
                " injected: !!window.hacked || !!document.querySelector('.testtime-prompt img'),"
                " pictures: document.querySelectorAll('.testtime-strip img').length,"
                " costs: document.querySelector('.testtime-costs').innerText})"
            )
            await browser.run(
                "document.querySelector('.testtime-tree').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowUp'}))"
            )
            inspected = await browser.run("document.querySelector('.testtime-inspector').innerText")
            console = list(browser.console)
            faint = await browser.faint(".testtime-panel")
            assert await browser.run(THEME.replace("NAME", "light"))
            await browser.wait_for("!document.querySelector('.testtime-panel').classList.contains('testtime-dark')", 20)
            faint += await browser.faint(".testtime-panel")
            assert await browser.run(THEME.replace("NAME", "dark"))
            await ready(browser, comfy_server.url)
            await browser.wait_for(f"{status} === 'complete'")
            return (
                early,
                seen,
                inspected,
                console,
                faint,
                await browser.run("document.querySelector('.testtime-costs').innerText"),
            )

    early, seen, inspected, console, faint, after_reload = asyncio.run(watch())
    assert seen["late"] > early
    assert seen["prompt"] == HOSTILE and not seen["injected"]
    assert seen["pictures"] == 6
    assert str(40 * 6 * 2) in seen["costs"]
    assert inspected.startswith("Particle ") and "step 39 of 40" in inspected
    assert not console and not faint
    assert after_reload == seen["costs"]


MENU = """(type) => {
  const node = window.LiteGraph.createNode(type);
  window.app.graph.add(node);
  const found = window.app.canvas.getNodeMenuOptions(node).filter((entry) => entry?.content === 'Show search panel');
  window.app.graph.remove(node);
  found[0]?.callback?.();
  return found.length;
}"""


def test_the_menu_of_a_search_node_opens_the_panel(comfy_server):
    """Once each, whether the front end asks extensions for entries of the menu or, like the pinned one, does not."""

    async def click():
        async with Browser(1200, 900) as browser:
            await ready(browser, comfy_server.url)
            await browser.run(TAB)
            await browser.wait_for("!document.querySelector('.testtime-panel')")
            entries = {
                name: await browser.run(f"({MENU})({name!r})") for name in ("TestTimeBestOfN", "TestTimeSearchKSampler")
            }
            await browser.wait_for("document.querySelector('.testtime-panel')", 20)
            return entries, browser.console

    entries, console = asyncio.run(click())
    assert entries == {"TestTimeBestOfN": 0, "TestTimeSearchKSampler": 1} and not console


def test_two_runs_in_the_queue_are_both_kept_and_can_be_chosen(comfy_server):
    """The panel follows the newest; the older one can be chosen, and is left alone while the newer one grows."""
    url = comfy_server.url
    shown = "document.querySelector('.testtime-prompt')?.textContent"

    async def watch():
        async with Browser(1200, 1200) as browser:
            await ready(browser, url)
            for number in (1, 2):
                queue(url, steps=6, particles=4, seed=40 + number, prompt=f"a red star, run {number}")
            await browser.wait_for(f"{shown} === 'a red star, run 2'", 120)
            select = "document.querySelector('.testtime-runs')"
            await browser.run(
                f"{select}.selectedIndex = {select}.options.length - 2, {select}.dispatchEvent(new Event('change'))"
            )
            older = await browser.run(shown)
            await asyncio.sleep(1)  # messages of the newer one arrive
            later = await browser.run(shown)
            status = await browser.run("document.querySelector('.testtime-status').textContent")
            await browser.run(
                f"{select}.selectedIndex = {select}.options.length - 1, {select}.dispatchEvent(new Event('change'))"
            )
            await browser.wait_for("document.querySelector('.testtime-status').dataset.status === 'complete'", 60)
            return older, later, status, await browser.run(shown), browser.console

    older, later, status, newer, console = asyncio.run(watch())
    assert older == later == "a red star, run 1" and status == "Done, step 6 of 6"
    assert newer == "a red star, run 2" and not console
