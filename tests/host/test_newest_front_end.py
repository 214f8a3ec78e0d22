"""The newest front end instead of the one that ComfyUI pins, with both of its renderers of nodes, on a real server."""

from __future__ import annotations

import asyncio
import json
import urllib.request
import zipfile

import pytest

from ..axe import find_axe, violations
from ..browser import Browser, find_chromium
from ..conftest import load_tool
from ..workflow_files import load
from .test_panel import ready
from .test_panel_hands import ASK, CLIENT, OPEN, STATUS, finished, press
from .test_workflows import check_opened, complaints, open_all, setting

pytestmark = [
    pytest.mark.host,
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the path"),
]
TREE = "document.querySelector('.testtime-tree')"
RENDERED = "document.querySelectorAll('[data-node-id]').length"  # nodes that are elements of the page


async def into_the_graph(browser: Browser, name: str, **changes) -> None:
    """Open a workflow and change some of its widgets, as somebody would by hand."""
    await browser.run(f"window.app.loadGraphData({json.dumps(load(name))}).then(() => true)")
    await browser.run(
        f"Object.entries({json.dumps(changes)}).forEach(([name, value]) => window.app.graph.nodes.forEach((node) =>"
        " node.widgets?.filter((w) => w.name === name).forEach((w) => { w.value = value; w.callback?.(value); })))"
    )


@pytest.mark.parametrize("renderer", ["classic", "nodes-2.0"])
def test_a_search_from_opening_to_its_report(renderer, newest_server):
    """All workflows open; one is queued, watched, reloaded, answered by hand, reported; another one is cancelled."""
    url = newest_server.url
    setting(url, "Comfy.TutorialCompleted", True)
    setting(url, "Comfy.VueNodes.Enabled", renderer != "classic")

    async def use():
        seen = {}
        async with Browser(1600, 1300) as browser:
            await ready(browser, url)
            seen["opened"] = await open_all(browser, url)
            await into_the_graph(browser, "pick_by_hand", steps=10, particles=6, seed=21 + len(renderer))
            seen["rendered"] = await browser.run(RENDERED)
            await browser.run("window.app.queuePrompt(0).then(() => true)")
            await browser.wait_for(OPEN, 120)
            seen["complaints"] = complaints(browser)
            client = await browser.run(CLIENT)
            await ready(browser, url)  # reload in the middle of the question
            browser.errors.clear()
            await browser.wait_for(OPEN, 60)
            halfway = await browser.run(f"{TREE}.clientHeight")  # the search waits for an answer: nothing moves
            seen["same window"] = await browser.run(CLIENT) == client
            await browser.run("document.querySelector('.testtime-pick').focus()")
            await press(browser, "1")
            await press(browser, "3")
            await press(browser, "Enter", ctrl=True)
            await browser.wait_for(f"{OPEN} && {ASK}.innerText.includes('finished images')", 120)
            seen["grown"] = await browser.run(f"{TREE}.clientHeight") - halfway
            await browser.run("document.querySelectorAll('.testtime-actions button')[2].click()")  # leaves it to others
            await browser.wait_for(f"{ASK}.hidden && {STATUS} === 'complete'", 120)
            seen["run"] = await finished(url)
            await browser.wait_for("!document.querySelector('.testtime-report').hidden")
            report = await browser.run("document.querySelector('.testtime-report').href")
            seen["faint"] = await browser.faint(".testtime-panel")
            # Once is enough: the panel is the same with both renderers, and axe reads the whole page.
            looked = renderer == "classic" and find_axe()
            seen["axe"] = await violations(browser, ".testtime-panel") if looked else []

            await into_the_graph(browser, "smc", steps=40, particles=8, seed=31 + len(renderer))
            await browser.run("window.app.queuePrompt(0).then(() => true)")
            await browser.wait_for(f"{STATUS} === 'running'", 60)
            await browser.run("window.comfyAPI.api.api.interrupt().then(() => true)")
            await browser.wait_for(f"{STATUS} === 'interrupted'", 60)
            seen["cancelled"] = await finished(url)
            seen["complaints"] += complaints(browser)
            await browser.open(report)
            await browser.wait_for("document.querySelector('#tree .testtime-tree')?.ariaLabel")
            seen["tree"] = await browser.run("document.querySelector('.testtime-tree').ariaLabel")
        return seen

    seen = asyncio.run(use())
    check_opened(seen["opened"])
    assert bool(seen["rendered"]) == (renderer != "classic")
    assert not seen["complaints"] and not seen["faint"] and not seen["axe"]
    assert seen["grown"] > 0 and seen["same window"]
    run = seen["run"]
    assert run["status"] == "complete"
    asked = next(record for record in run["records"] if record["step"] == 5)
    kept = {asked["particles"][row][0] for row in (0, 2)}
    after = next(record for record in run["records"] if record["step"] == 6)
    assert {particle[1] for particle in after["particles"]} == kept  # both, and nobody else
    assert f": {sum(len(record['particles']) for record in run['records'])} particles in" in seen["tree"]
    assert seen["cancelled"]["status"] == "interrupted" and seen["cancelled"]["run"] != run["run"]


def test_it_is_not_the_pinned_front_end(newest_server, comfy_server):
    """Both servers are the same ComfyUI; the page that they serve is not."""

    def get(url: str) -> bytes:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.read()

    stats = [json.loads(get(server.url + "/system_stats"))["system"] for server in (newest_server, comfy_server)]
    assert stats[0]["comfyui_version"] == stats[1]["comfyui_version"]
    assert get(newest_server.url) != get(comfy_server.url)


def test_the_newest_version_is_found_and_the_variable_wins(tmp_path, monkeypatch):
    tool = load_tool("front_end")
    monkeypatch.delenv(tool.VARIABLE, raising=False)
    assert tool.newest_front_end(tmp_path) is None and "make front-end" in tool.explain_missing(tmp_path)
    for version in ("1.9.12", "1.10.2", "1.7"):
        wheel = tmp_path / f"comfyui_frontend_package-{version}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(tool.INSIDE + "index.html", version)
            archive.writestr("comfyui_frontend_package/__init__.py", "")
        tool.unpack(wheel, tmp_path / tool.PLACE / version)
    newest = tool.newest_front_end(tmp_path)
    assert newest.name == "1.10.2" and [path.name for path in newest.iterdir()] == ["index.html"]
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setenv(tool.VARIABLE, str(other))
    with pytest.raises(ValueError, match=r"no index.html"):
        tool.newest_front_end(tmp_path)
    (other / "index.html").touch()
    assert tool.newest_front_end(tmp_path) == other.resolve()
