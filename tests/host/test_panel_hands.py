"""Picking by hand in a real browser on a real server: keyboard and mouse, a reload, two windows, cancelling."""

from __future__ import annotations

import asyncio
import json
import urllib.request

import pytest

from ..browser import Browser, find_chromium
from .test_panel import HOSTILE, WORKFLOW, ready

pytestmark = [
    pytest.mark.host,
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the path"),
]
ASK = "document.querySelector('.testtime-ask')"
OPEN = f"{ASK} && !{ASK}.hidden && document.querySelectorAll('.testtime-pick img').length"
STATUS = "document.querySelector('.testtime-status').dataset.status"
CLIENT = "window.comfyAPI.api.api.clientId"
KEYS = {"Enter": 13, "Delete": 46, "ArrowRight": 39, "1": 49, "3": 51}


def get(url: str, path: str):
    with urllib.request.urlopen(url + path, timeout=30) as response:
        return json.load(response)


def post(url: str, path: str, body: dict):
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read() or b"null")


def queue(url: str, client: str | None, ask_at: str = "50%", **changes) -> None:
    """The SMC workflow with a person between the search and its verifier, queued by ``client``."""
    workflow = json.loads(WORKFLOW.read_text())
    search = next(node for node in workflow.values() if node["class_type"] == "TestTimeSearchKSampler")
    judge = {"fallback": search["inputs"]["verifier"], "ask_at": ask_at, "seconds": 300.0}
    workflow["900"] = {"class_type": "TestTimePickByHand", "inputs": judge}
    search["inputs"]["verifier"] = ["900", 0]
    for node in workflow.values():
        for name, value in {"steps": 8, "particles": 6, "prompt": HOSTILE, **changes}.items():
            if name in node["inputs"]:
                node["inputs"][name] = value
    told = post(url, "/prompt", {"prompt": workflow, **({"client_id": client} if client else {})})
    assert not told["node_errors"]


async def press(browser: Browser, key: str, ctrl: bool = False) -> None:
    """A real key stroke, as the browser gets it from the keyboard."""
    common = {"key": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": 2 if ctrl else 0}
    text = {"text": "\r" if key == "Enter" else key} if key in "13" or key == "Enter" else {}
    await browser.call("Input.dispatchKeyEvent", type="keyDown", **common, **({} if ctrl else text))
    await browser.call("Input.dispatchKeyEvent", type="keyUp", **common)


async def finished(url: str) -> dict:
    """The newest run as the server has it, once it is over."""
    for _ in range(600):
        runs = get(url, "/testtime/runs")["runs"]
        if runs and runs[-1]["status"] != "running":
            return get(url, f"/testtime/runs/{runs[-1]['run']}")
        await asyncio.sleep(0.5)
    raise TimeoutError("the run does not end")


def test_two_are_picked_by_keyboard_after_a_reload_and_live_on(comfy_server):
    url = comfy_server.url

    async def pick():
        async with Browser(1500, 1300) as browser:
            await ready(browser, url)
            client = await browser.run(CLIENT)
            queue(url, client, "50%, end", seed=11, alpha=10.0)  # hardly any difference between the two picked
            await browser.wait_for(OPEN, 120)
            await ready(browser, url)  # reload in the middle of the question
            await browser.wait_for(OPEN, 60)
            assert await browser.run(CLIENT) == client
            injected = await browser.run(f"!!window.hacked || !!{ASK}.querySelector('p img')")
            seen = await browser.run(f"{ASK}.innerText")
            await browser.run("document.querySelector('.testtime-pick').focus()")
            await press(browser, "1")
            for _ in range(2):
                await press(browser, "ArrowRight")
            focused = await browser.run("document.activeElement.textContent")
            await press(browser, "Enter")
            labels = await browser.run("[...document.querySelectorAll('.testtime-pick')].map((b) => b.textContent)")
            keep = await browser.run("document.querySelector('.testtime-primary').textContent")
            await press(browser, "Enter", ctrl=True)
            await browser.wait_for(f"{OPEN} && {ASK}.innerText.includes('finished images')", 120)
            await browser.run("document.querySelectorAll('.testtime-pick')[4].click()")
            await browser.run("document.querySelectorAll('.testtime-drop')[0].click()")
            prefer = await browser.run("document.querySelectorAll('.testtime-actions button')[1].textContent")
            await browser.run("document.querySelectorAll('.testtime-actions button')[1].click()")
            await browser.wait_for(f"{ASK}.hidden && {STATUS} === 'complete'", 120)
            run = await finished(url)
            await browser.wait_for("!document.querySelector('.testtime-report').hidden")
            report = await browser.run("document.querySelector('.testtime-report').href")
            errors = list(browser.console)
            await browser.open(report)
            await browser.wait_for("document.querySelector('#tree .testtime-tree')?.ariaLabel")
            page = await browser.run(
                "({title: document.querySelector('h1').textContent, hacked: !!window.hacked,"
                " pictures: document.querySelectorAll('.gallery img').length,"
                " dots: document.querySelector('.testtime-tree').ariaLabel})"
            )
            return injected, seen, focused, labels, keep, prefer, run, errors + browser.console, page

    injected, seen, focused, labels, keep, prefer, run, errors, page = asyncio.run(pick())
    assert not injected and HOSTILE in seen and "step 4 of 8" in seen
    assert focused.startswith("Candidate 3,")
    assert "picked, rank 1" in labels[0] and "picked, rank 2" in labels[2] and "picked" not in labels[1]
    assert keep == "Keep 2, drop the rest" and prefer == "Rank 1 first, drop 1"
    asked = next(record for record in run["records"] if record["step"] == 4)
    kept = {asked["particles"][row][0] for row in (0, 2)}
    after = next(record for record in run["records"] if record["step"] == 5)
    assert {particle[1] for particle in after["particles"]} == kept  # both, and nobody else
    scores = [particle[3] for particle in run["records"][-1]["particles"]]
    assert scores[0] is None and max(s for s in scores if s is not None) == scores[4]
    assert not errors
    assert page["title"] == HOSTILE and not page["hacked"]
    assert (
        page["pictures"] == 6
        and f": {sum(len(r['particles']) for r in run['records'])} particles in 9 steps" in page["dots"]
    )


def test_the_first_of_two_windows_counts_and_the_other_is_told(comfy_server):
    url = comfy_server.url

    async def both():
        async with Browser(1500, 1200) as anna, Browser(1500, 1200) as ben:
            await ready(anna, url)
            await ready(ben, url)
            assert await anna.run(CLIENT) != await ben.run(CLIENT)
            queue(url, await anna.run(CLIENT), "50%", seed=12)
            await anna.wait_for(OPEN, 120)
            await ben.wait_for(OPEN, 60)
            await ben.run("document.querySelectorAll('.testtime-pick')[1].click()")
            await ben.run("document.querySelector('.testtime-primary').click()")
            await anna.wait_for(f"{ASK}.innerText.includes('Answered in another window')", 30)
            disabled = await anna.run(
                "[...document.querySelectorAll('.testtime-actions button')].every((b) => b.disabled)"
            )
            await ben.wait_for(f"{ASK}.hidden", 10)
            return disabled, await finished(url)

    disabled, run = asyncio.run(both())
    assert disabled and run["status"] == "complete"
    asked = next(record for record in run["records"] if record["step"] == 4)
    after = next(record for record in run["records"] if record["step"] == 5)
    assert {particle[1] for particle in after["particles"]} == {asked["particles"][1][0]}


def test_cancel_ends_the_waiting_and_scripts_never_wait(comfy_server):
    url = comfy_server.url

    async def cancel():
        async with Browser(1500, 1200) as browser:
            await ready(browser, url)
            queue(url, await browser.run(CLIENT), "50%", seed=13)
            await browser.wait_for(OPEN, 120)
            post(url, "/interrupt", {})
            await browser.wait_for(f"{STATUS} === 'interrupted'", 30)
            said = await browser.run(f"{ASK}.innerText")
            cancelled = await finished(url)
            queue(url, None, "50%, end", seed=14)  # the bare API, with a panel open
            await browser.wait_for(f"{STATUS} === 'complete'", 120)
            return said, cancelled, await finished(url)

    said, cancelled, headless = asyncio.run(cancel())
    assert "The run was cancelled." in said
    assert cancelled["status"] == "interrupted"
    assert headless["status"] == "complete" and headless["run"] != cancelled["run"]


def test_a_closed_browser_does_not_hold_the_queue_for_ever(comfy_server):
    """The window goes away in mid-question; the run ends by itself, long before the question's own limit."""
    url = comfy_server.url

    async def leave():
        async with Browser(1500, 1200) as browser:
            await ready(browser, url)
            queue(url, await browser.run(CLIENT), "50%", seed=15)
            await browser.wait_for(OPEN, 120)
        return await finished(url)

    run = asyncio.run(leave())
    assert run["status"] == "complete"
