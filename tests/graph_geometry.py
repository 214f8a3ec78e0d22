"""What a workflow looks like once a front end has opened it: measured from what is drawn, not from the file."""

from __future__ import annotations

import json

from .browser import Browser

PANEL = "window.app.extensionManager.command.execute('Workspace.ToggleSidebarTab.testtime.search')"

# Boxes of nodes as shown (elements of the page under Nodes 2.0), strokes of links as painted. A link runs behind a node
# where a stroke crosses the node's edge; at its own two nodes the 26 pixels next to their sides are free for slots.
MEASURE = """(async () => {
  const app = window.app, graph = app.graph, ds = app.canvas.ds;
  const next = () => new Promise((done) => requestAnimationFrame(done));
  for (let frame = 0; frame < 4; frame++) { app.canvas.draw(true, true); await next(); }
  await new Promise((done) => setTimeout(done, window.LiteGraph.vueNodesMode ? 600 : 50));
  app.canvas.draw(true, true);
  await next();
  const page = app.canvas.canvas.getBoundingClientRect();
  const boxOf = (node) => {
    const shown = window.LiteGraph.vueNodesMode && document.querySelector(`[data-node-id="${node.id}"]`);
    if (shown) {
      const r = shown.getBoundingClientRect();
      const [x, y] = [(r.left - page.left) / ds.scale - ds.offset[0], (r.top - page.top) / ds.scale - ds.offset[1]];
      return [x, y, x + r.width / ds.scale, y + r.height / ds.scale];
    }
    const b = node.boundingRect ?? node.getBounding();
    return [b[0], b[1], b[0] + b[2], b[1] + b[3]];
  };
  const boxes = graph._nodes.map((node) => [node, boxOf(node)]);
  const pen = document.createElement("canvas").getContext("2d");
  pen.lineWidth = 3;
  const hidden = [], overlapping = [], outside = [];
  let drawn = 0;
  for (const link of graph._links.values()) {
    const strokes = link.path ? [link.path] : [];
    for (let id = link.parentId; id !== undefined; id = graph.reroutes.get(id)?.parentId) {
      const path = graph.reroutes.get(id)?.path;
      if (path) strokes.push(path);
    }
    drawn += strokes.length;
    const on = (x, y) => strokes.some((path) => pen.isPointInStroke(path, x, y));
    for (const [node, box] of boxes) {
      const own = [link.origin_id, link.target_id].map(String).includes(String(node.id));
      const [left, top, right, low] = [box[0] + (own ? 26 : 3), box[1] + 3, box[2] - (own ? 26 : 3), box[3] - 3];
      let crossed = false;
      for (let x = left; x <= right && !crossed; x += 2) crossed = on(x, top) || on(x, low);
      for (let y = top; y <= low && !crossed; y += 2) crossed = on(left, y) || on(right, y);
      if (crossed) hidden.push([link.type, link.origin_id, link.target_id, node.title ?? node.type].join(" "));
    }
  }
  boxes.forEach(([node, a], k) => {
    for (const [other, b] of boxes.slice(0, k))
      if (a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]) overlapping.push(`${node.type} ${other.type}`);
    for (const group of graph._groups) {
      const [left, top] = group.pos, [right, low] = [left + group.size[0], top + group.size[1]];
      const within = left <= a[0] && a[2] <= right && top <= a[1] && a[3] <= low;
      const beside = a[2] <= left || right <= a[0] || a[3] <= top || low <= a[1];
      if (!within && !beside) outside.push(`${node.type} ${group.title}`);
    }
  });
  const free = document.querySelector(".testtime-panel")?.getBoundingClientRect().right ?? page.left;
  const unseen = boxes.filter(([node, box]) => KINDS.some((kind) => node.type.startsWith(kind))).filter(([, box]) => {
    const [x, y] = [page.left + (box[0] + ds.offset[0]) * ds.scale, page.top + (box[1] + ds.offset[1]) * ds.scale];
    const [right, low] = [x + (box[2] - box[0]) * ds.scale, y + (box[3] - box[1]) * ds.scale];
    return x < free || y < page.top || right > window.innerWidth || low > window.innerHeight;
  }).map(([node]) => node.title ?? node.type);
  return {drawn, hidden, overlapping, outside, unseen, small: ds.scale < 0.6};
})()"""
PROMPT_RUN_RESULT = (
    "PrimitiveStringMultiline",
    "TestTimeSearch",  # Search KSampler, Search Sampler, Search Report
    "TestTimeInfinityS",
    "TestTimeScoreImages",
    "SaveImage",
    "TestTimeSaveSearch",
    "SaveVideo",
)
"""Beginnings of the kinds of nodes that somebody who opens a workflow has to see without moving anything."""


async def measure(browser: Browser) -> dict:
    """Links behind nodes, nodes over nodes and over the edge of a group, and which of those to be seen are not."""
    return await browser.run(MEASURE.replace("KINDS", json.dumps(PROMPT_RUN_RESULT)))


def check_layout(name: str, found: dict) -> None:
    """Everything is as it should be in what ``measure`` found."""
    assert found["drawn"] > 0, name
    for wrong in ("hidden", "overlapping", "outside", "unseen", "small"):
        assert not found[wrong], (name, wrong, found[wrong])
