"""What the live panel costs: seconds of a search with and without it, messages and bytes per step, frames per second.

    python -m testtime.bench.panel [--particles 8 64] [--steps 20] [--repeats 5] [--out bench/results/panel.json]

Seconds: the same search on one ComfyUI of our own, the panel switched on and off in turn, other seeds each time (or the
host would answer from its cache); the median of the ratios of neighbours. A browser-like client listens all the while.
Messages: what that client gets per step. Frames: a tree of 64 and of 512 particles x 50 steps in headless Chromium,
once with another particle pointed at in every frame, once with everything (tree and curve) drawn anew in every frame.
Needs a checkout (for the browser driver in ``tests``), a ComfyUI and Chromium.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import aiohttp

from ..installation.comfyui import HeadlessComfyUI, HeadlessOptions
from .provenance import RESULTS, ROOT, module_of_tests, origin, write_json

log = logging.getLogger("testtime")
OUT = RESULTS / "panel.json"
WORKFLOW = ROOT / "workflows" / "api" / "smc.json"
EVENTS = ("testtime.start", "testtime.step", "testtime.end")
TREES = ((64, 50), (512, 50))  # particles, steps
FRAMES_SECONDS = 4.0

# A run as the server tells of it, with resampling at every fifth step, into the panel's own modules.
DRAW = """(async () => {
  const base = '/extensions/%(module)s/draw/';
  const [{ Run }, { TreeView }, { CurveView }] =
    await Promise.all(['run.js', 'tree.js', 'curves.js'].map((name) => import(base + name)));
  const [particles, steps] = [%(particles)d, %(steps)d];
  let seed = 7;
  const random = () => (seed = (seed * 1103515245 + 12345) %% 2147483648) / 2147483648;
  const run = new Run({ run: 'bench', method: 'smc', prompts: ['a star'] });
  for (let step = 0; step <= steps; step++) {
    const from = (k) => (step %% 5 ? k : Math.floor(random() * particles));
    run.add({
      index: step, step, steps, nfe: 2 * particles * (step + 1), resampled: [step %% 5 === 4], ledger: {},
      particles: Array.from({ length: particles }, (_, k) => [
        step * particles + k, step ? (step - 1) * particles + from(k) : null, 0, random(), 0, 1,
      ]),
    });
  }
  document.body.replaceChildren();
  const holder = document.body.appendChild(document.createElement('div'));
  holder.style.width = '420px';
  const tree = new TreeView();
  const curve = new CurveView();
  holder.append(curve.canvas, tree.canvas);
  tree.canvas.style.width = curve.canvas.style.width = '100%%';
  const ids = [...run.particles.values()];
  const measured = async (draw) => {
    const until = performance.now() + %(milliseconds)d;
    let [frames, first, last, busy] = [0, 0, 0, []];
    await new Promise((resolve) => {
      const frame = () => {
        const begun = performance.now();
        if (!frames) first = begun;
        draw(frames);
        busy.push(performance.now() - begun);
        frames += 1;
        last = begun;
        if (begun < until) requestAnimationFrame(frame);
        else resolve();
      };
      requestAnimationFrame(frame);
    });
    busy.sort((a, b) => a - b);
    return {
      frames, frames_per_second: (1000 * (frames - 1)) / Math.max(last - first, 1),
      milliseconds_median: busy[Math.floor(busy.length / 2)], milliseconds_max: busy[busy.length - 1],
    };
  };
  tree.show(run, true);
  curve.show(run, true);
  const pointed = await measured((frame) => tree.choose(ids[(frame * 97) %% ids.length]));
  const grown = await measured(() => {
    tree.planKey = null;
    tree.show(run, true);
    curve.show(run, true);
  });
  return { particles: ids.length, pointed, grown };
})()"""


def browser_class() -> type:
    """The Chromium driver of the tests."""
    module = module_of_tests("browser.py")
    if module.find_chromium() is None:
        raise SystemExit("bench panel: no Chromium on the path")
    return module.Browser


class Server:
    """A running ComfyUI, a client that listens to it, and the messages of the panel that the client got."""

    def __init__(self, url: str, session: aiohttp.ClientSession):
        self.url, self._session = url, session
        self.client = "bench-panel"
        self.messages: list[tuple[str, int]] = []
        self._task: asyncio.Task | None = None

    async def __aenter__(self) -> Server:
        socket = await self._session.ws_connect(f"{self.url}/ws?clientId={self.client}", max_msg_size=0)
        self._task = asyncio.create_task(self._listen(socket))
        return self

    async def __aexit__(self, *exception) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if message.type == aiohttp.WSMsgType.TEXT:
                kind = json.loads(message.data).get("type")
                if kind in EVENTS:
                    self.messages.append((kind, len(message.data.encode())))

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON answer to a POST of ``body``."""
        async with self._session.post(self.url + path, json=body) as response:
            response.raise_for_status()
            return await response.json()

    async def seconds(self, workflow: dict[str, Any]) -> float:
        """Run a workflow; seconds between its start and its end, by the server's clock."""
        number = (await self.post("/prompt", {"prompt": workflow, "client_id": self.client}))["prompt_id"]
        while True:
            async with self._session.get(f"{self.url}/history/{number}") as response:
                found = (await response.json()).get(number)
            if found is not None:
                break
            await asyncio.sleep(0.2)
        times = {name: details.get("timestamp") for name, details in found["status"]["messages"]}
        if "execution_success" not in times:
            raise SystemExit(f"bench panel: the search failed: {found['status']['messages'][-1]}")
        return (times["execution_success"] - times["execution_start"]) / 1000.0


def search(particles: int, steps: int, seed: int) -> dict[str, Any]:
    """The SMC workflow of the embedded model, up to its sampler and one decode."""
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    for node in workflow.values():
        for name, value in {"particles": particles, "steps": steps, "seed": seed}.items():
            if name in node["inputs"]:
                node["inputs"][name] = value
    return workflow


async def costs(url: str, particles: int, steps: int, repeats: int) -> dict[str, Any]:
    """Seconds with and without the panel, in turn, and what a client is sent."""
    rows, sent = [], []
    async with aiohttp.ClientSession() as session, Server(url, session) as server:
        await server.seconds(search(2, 2, 0))  # loads everything
        for repeat in range(repeats):
            row = {}
            for enabled in (True, False) if repeat % 2 else (False, True):
                await server.post("/testtime/live", {"enabled": enabled})
                server.messages.clear()
                row["with" if enabled else "without"] = await server.seconds(
                    search(particles, steps, 2 * repeat + 1 + enabled)
                )
                await asyncio.sleep(0.5)
                if enabled:
                    sent.append(list(server.messages))
                elif server.messages:
                    raise SystemExit("bench panel: messages came although the panel was off")
            row["ratio"] = row["with"] / row["without"]
            log.info("with %.2f s, without %.2f s, ratio %.4f", row["with"], row["without"], row["ratio"])
            rows.append(row)
        await server.post("/testtime/live", {"enabled": True})
    step_bytes = [size for messages in sent for kind, size in messages if kind == "testtime.step"]
    ratios = [row["ratio"] for row in rows]
    return {
        "rows": rows,
        "seconds_with": statistics.median(row["with"] for row in rows),
        "seconds_without": statistics.median(row["without"] for row in rows),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "messages_per_step": len(step_bytes) / (len(sent) * (steps + 1)),
        "messages_per_run": statistics.mean(len(messages) for messages in sent),
        "bytes_per_step_mean": round(statistics.mean(step_bytes)),
        "bytes_per_step_max": max(step_bytes),
        "bytes_per_run": round(statistics.mean(sum(size for _, size in messages) for messages in sent)),
    }


async def frames(url: str, tree: tuple[int, int]) -> dict[str, Any]:
    """Frames per second of a tree of (particles, steps) in headless Chromium."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/object_info/TestTimeBestOfN") as response:
        module = (await response.json())["TestTimeBestOfN"]["python_module"].split(".", 1)[1]
    values = {"module": module, "particles": tree[0], "steps": tree[1], "milliseconds": int(1000 * FRAMES_SECONDS)}
    async with browser_class()(900, 1200) as browser:
        await browser.open(f"{url}/testtime/runs")  # any page of the server, so that its modules can be imported
        await browser.wait_for("document.body")
        await asyncio.sleep(1.0)
        found = await browser.run(DRAW % values)
    for name in ("pointed", "grown"):
        row = found[name]
        shown = (*tree, name, row["frames_per_second"], row["milliseconds_median"])
        log.info("%d x %d, %s: %.1f frames per second, %.1f ms each", *shown)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    parser = argparse.ArgumentParser(prog="testtime bench panel", description=__doc__.split("\n")[0])
    parser.add_argument("--particles", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    browser_class()  # complain now, not after the long part
    begun = time.perf_counter()
    cases: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    with HeadlessComfyUI(HeadlessOptions(only_this_pack=True)) as server:
        for particles, steps in TREES:
            cases[f"drawing, {particles} x {steps}"] = asyncio.run(frames(server.url, (particles, steps)))
        for particles in options.particles:
            cost = asyncio.run(costs(server.url, particles, options.steps, options.repeats))
            rows += [{"particles": particles, **row} for row in cost.pop("rows")]
            cases[f"search, {particles} particles"] = cost
    # "cases" tells the tables of the search methods that this is no suite of theirs.
    body = origin(suite="panel") | {
        "settings": {"particles": options.particles, "steps": options.steps, "repeats": options.repeats},
        "seconds": round(time.perf_counter() - begun, 1),
        "cases": cases,
        "rows": rows,
    }
    write_json(options.out, body)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
