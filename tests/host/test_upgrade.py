"""Search with this sampler on a real server: the dialog, the route, the command, and the workflow that comes out."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request

import pytest

from testtime.cli.main import main
from testtime.installation.errors import EXIT_BAD_INPUT

from ..browser import Browser, find_chromium
from ..workflow_files import load
from .test_panel import ready

pytestmark = pytest.mark.host
NAME = "compare_with_ksampler"


def ask(url: str, message: dict | None = None) -> dict:
    data = None if message is None else json.dumps(message).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/testtime/upgrade", data), timeout=120) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        assert error.code == 400
        return json.load(error)


def sampler() -> dict:
    return next(node for node in load(NAME)["nodes"] if node["type"] == "KSampler")


def test_the_dialog_is_offered_methods_and_verifiers_with_what_is_missing(comfy_server):
    offered = ask(comfy_server.url)
    titles = {choice["title"] for choice in offered["methods"]}
    assert {"Best-of-N", "SVDD", "SMC"} <= titles and offered["budget"]
    missing = {choice["title"]: choice["missing"] for choice in offered["verifiers"]}
    assert not missing["JPEG Verifier"] and "PickScore_v1" in missing["PickScore Verifier"]
    assert next(iter(missing.values())) == ""  # those that would run come first


def test_the_route_replaces_and_restores(comfy_server):
    workflow, key = load(NAME), sampler()["id"]
    wanted = {"workflow": workflow, "node": f"/{key}", "method": "SVDD", "verifier": "JPEG", "number": 3}
    done = ask(comfy_server.url, wanted)
    kinds = {node["id"]: node["type"] for node in done["workflow"]["nodes"]}
    assert kinds[key] == "TestTimeSearchKSampler" and done["prompt_found"]
    again = ask(comfy_server.url, {"workflow": done["workflow"], "node": f"/{key}", "back": True})
    assert again["workflow"] == workflow
    assert "choose one of" in ask(comfy_server.url, wanted | {"node": "/1"})["error"]
    for bad in ({}, {"workflow": 1, "node": "/1"}, wanted | {"number": "many"}, wanted | {"method": "none"}):
        assert ask(comfy_server.url, bad)["error"]


def test_the_command_writes_a_workflow_that_runs(comfy_server, tmp_path, capsys):
    source, out = tmp_path / "in.json", tmp_path / "out.json"
    source.write_text(json.dumps(load(NAME)), encoding="utf-8")
    key = str(sampler()["id"])
    command = ["upgrade", str(source), "--server", comfy_server.url, "-o", str(out)]
    assert main([*command, "--verifier", "JPEG", "--number", "2"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    changes = [f"--set={key}.steps=2"]
    assert main(["run", str(out), "--server", comfy_server.url, "--out", str(tmp_path / "images"), *changes]) == 0
    restored = tmp_path / "back.json"
    assert main(["upgrade", str(out), "--back", "--node", key, "--server", comfy_server.url, "-o", str(restored)]) == 0
    assert json.loads(restored.read_text()) == load(NAME)
    assert main(command) == EXIT_BAD_INPUT and "--verifier is missing" in capsys.readouterr().err


ENTRY = """(name) => {
  const node = window.app.graph._nodes.find((entry) => String(entry.id) === 'KEY');
  const found = window.app.canvas.getNodeMenuOptions(node).filter((entry) => entry?.content === name);
  found[0]?.callback?.();
  return found.length;
}"""
KIND = "window.app.graph._nodes.find((entry) => String(entry.id) === 'KEY')?.type"
DIALOG = "document.querySelector('dialog.testtime-upgrade')"


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the path")
def test_menu_dialog_undo_and_back(comfy_server):
    key = str(sampler()["id"])
    entry, kind = ENTRY.replace("KEY", key), KIND.replace("KEY", key)

    async def use():
        async with Browser(1400, 1000) as browser:
            await ready(browser, comfy_server.url)
            await browser.run(f"window.app.loadGraphData({json.dumps(load(NAME))}).then(() => true)")
            await browser.wait_for(f"{kind} === 'KSampler'", 30)
            browser.errors.clear()
            assert await browser.run(f"({entry})('Search with this sampler')") == 1
            await browser.wait_for(f"{DIALOG}?.open", 60)
            faint = await browser.faint("dialog.testtime-upgrade")
            await browser.run(
                f"(() => {{ const list = {DIALOG}.querySelectorAll('select')[1];"
                " list.value = 'TestTimePickScore'; list.dispatchEvent(new Event('change')); })()"
            )
            missing = await browser.run(f"{DIALOG}.querySelector('.testtime-missing').textContent")
            await browser.run(f"{DIALOG}.querySelector('form').requestSubmit()")
            await browser.wait_for(f"!{DIALOG} && {kind} === 'TestTimeSearchKSampler'", 60)
            await browser.run("window.app.extensionManager.command.execute('Comfy.Undo').then(() => true)")
            await browser.wait_for(f"{kind} === 'KSampler'", 30)
            await browser.run("window.app.extensionManager.command.execute('Comfy.Redo').then(() => true)")
            await browser.wait_for(f"{kind} === 'TestTimeSearchKSampler'", 30)
            assert await browser.run(f"({entry})('Back to KSampler')") == 1
            await browser.wait_for(f"{kind} === 'KSampler'", 30)
            return faint, missing, browser.errors, browser.console

    faint, missing, errors, console = asyncio.run(use())
    assert "PickScore_v1" in missing and not faint and not errors and not console
