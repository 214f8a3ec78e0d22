"""Search with this sampler with a real mouse: right click, menu, dialog, Undo, and back; also inside of a sub-graph."""

from __future__ import annotations

import asyncio
import json

import pytest

from ..browser import Browser, find_chromium
from ..workflow_files import load
from .test_panel import ready
from .test_workflows import complaints, setting

pytestmark = [
    pytest.mark.host,
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the path"),
]
NAME = "compare_with_ksampler"
GRAPH = "window.app.canvas.graph"
DIALOG = "document.querySelector('dialog.testtime-upgrade')"
WHOLE = "(window.app.rootGraph ?? window.app.graph).serialize()"
# The order of execution is worked out anew by the front end whenever something is linked.
SAVED = f"""JSON.stringify({WHOLE}, (key, value) => key === 'order' || key === 'ds' ? undefined : value)"""
TITLE = """(key) => {
  const shown = document.querySelector(`[data-node-id="${key}"]`)?.getBoundingClientRect();
  if (shown) return [shown.left + shown.width / 2, shown.top + 12];
  const canvas = window.app.canvas;
  const node = canvas.graph._nodes.find((entry) => String(entry.id) === key);
  const frame = canvas.canvas.getBoundingClientRect();
  const at = (axis, more) => (node.pos[axis] + canvas.ds.offset[axis] + more) * canvas.ds.scale;
  return [frame.left + at(0, node.size[0] / 2), frame.top + at(1, -12)];
}"""
ENTRY = """(name) => {
  const entries = [...document.querySelectorAll(".litemenu-entry, [role=menuitem], .p-contextmenu-item, button")];
  const found = entries.filter((entry) => entry.textContent.trim() === name && entry.checkVisibility());
  const frame = found[0]?.getBoundingClientRect();
  return frame ? [frame.left + frame.width / 2, frame.top + frame.height / 2] : null;
}"""
LOOK_AT = """(key) => {
  const canvas = window.app.canvas;
  const node = canvas.graph._nodes.find((entry) => String(entry.id) === key);
  canvas.ds.scale = 0.8;
  canvas.ds.offset[0] = 600 - node.pos[0];
  canvas.ds.offset[1] = 300 - node.pos[1];
  canvas.setDirty(true, true);
}"""
# The sampler with its decoder becomes a sub-graph, which is opened; the id of the sampler in it.
INTO_A_SUBGRAPH = """() => {
  const graph = window.app.graph;
  const sampler = graph._nodes.find((node) => node.type === "KSampler");
  const decoder = sampler.outputs[0].links.map((link) => graph.getNodeById(graph.links.get(link).target_id))[0];
  const { node } = graph.convertToSubgraph(new Set([sampler, decoder]));
  window.app.canvas.openSubgraph?.(node.subgraph, node) ?? window.app.canvas.setGraph(node.subgraph);
  return String(node.subgraph._nodes.find((entry) => entry.type === "KSampler").id);
}"""


class Hand:
    """A mouse in a page."""

    def __init__(self, browser: Browser):
        self.browser = browser

    async def click(self, place: list[float], button: str = "left") -> None:
        """Press and release a button somewhere."""
        x, y = place
        held = 2 if button == "right" else 1
        await self.browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind, buttons in (("mousePressed", held), ("mouseReleased", 0)):
            how = {"button": button, "buttons": buttons, "clickCount": 1}
            await self.browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **how)
            await asyncio.sleep(0.15)

    async def choose(self, key: str, name: str) -> None:
        """Right-click a node's title and choose from its menu."""
        await self.click(await self.browser.run(f"({TITLE})({json.dumps(key)})"), "right")
        await self.press(name)

    async def press(self, name: str) -> None:
        """Click an entry or a button by its text."""
        await self.browser.wait_for(f"({ENTRY})({json.dumps(name)})", 30)
        await self.click(await self.browser.run(f"({ENTRY})({json.dumps(name)})"))


async def walk(url: str, nested: bool) -> dict:
    seen = {}
    async with Browser(1500, 1000) as browser:
        hand = Hand(browser)
        await ready(browser, url)
        await browser.run(f"window.app.loadGraphData({json.dumps(load(NAME))}).then(() => true)")
        await browser.wait_for(f"{GRAPH}._nodes.some((node) => node.type === 'KSampler')", 30)
        if nested:
            key = await browser.run(f"({INTO_A_SUBGRAPH})()")
            await browser.run("window.app.extensionManager.workflow?.activeWorkflow?.changeTracker?.checkState?.()")
            await browser.wait_for(f"{GRAPH}.isRootGraph === false", 30)
        else:
            key = await browser.run(f"String({GRAPH}._nodes.find((node) => node.type === 'KSampler').id)")
        kind = f"{GRAPH}._nodes.find((node) => String(node.id) === {json.dumps(key)})?.type"
        await browser.run(f"({LOOK_AT})({json.dumps(key)})")
        await asyncio.sleep(2)
        before = await browser.run(SAVED)
        browser.errors.clear()
        await hand.choose(key, "Search with this sampler")
        await browser.wait_for(f"{DIALOG}?.open", 60)
        await browser.run(f"{DIALOG}.querySelectorAll('select')[1].value = 'TestTimeJPEG'")
        await hand.press("Replace")
        await browser.wait_for(f"!{DIALOG} && {kind} === 'TestTimeSearchKSampler'", 60)
        await browser.run("window.app.extensionManager.command.execute('Comfy.Undo').then(() => true)")
        await browser.wait_for(f"{kind} === 'KSampler'", 60)
        seen["undone"] = json.loads(await browser.run(SAVED)) == json.loads(before)
        await browser.run("window.app.extensionManager.command.execute('Comfy.Redo').then(() => true)")
        await browser.wait_for(f"{kind} === 'TestTimeSearchKSampler'", 60)
        await browser.run(f"({LOOK_AT})({json.dumps(key)})")
        await asyncio.sleep(2)
        await hand.choose(key, "Back to KSampler")
        await browser.wait_for(f"{kind} === 'KSampler'", 60)
        seen["stayed"] = await browser.run(f"{GRAPH}.isRootGraph === false") == nested
        seen["complaints"] = complaints(browser)
    return seen


RIGHT = {"undone": True, "stayed": True, "complaints": []}


@pytest.mark.parametrize("nested", [False, True], ids=["top", "sub-graph"])
@pytest.mark.parametrize("renderer", ["classic", "nodes-2.0"])
def test_in_the_newest_front_end(newest_server, renderer, nested):
    setting(newest_server.url, "Comfy.TutorialCompleted", True)
    setting(newest_server.url, "Comfy.VueNodes.Enabled", renderer != "classic")
    assert asyncio.run(walk(newest_server.url, nested)) == RIGHT


def test_in_the_pinned_front_end(comfy_server):
    assert asyncio.run(walk(comfy_server.url, nested=False)) == RIGHT
