"""Every workflow in a real ComfyUI: known nodes, equal twins, runs through `testtime run`, opens in a browser."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from testtime.cli.main import main
from testtime.graph.convert import to_api
from testtime.installation.locate import MINIMUM_VERSION, parse_version

from ..browser import Browser, find_chromium
from ..graph_geometry import PANEL, check_layout, measure
from ..workflow_files import EMBEDDED, FOLDER, NAMES, NEWER, OTHERS, load
from .conftest import feature

pytestmark = pytest.mark.host
ROOT = FOLDER.parent
# Texts of the open dialogs: missing nodes, missing models and errors are shown in one.
# Nodes 2.0, once it is no experiment any more: that of front end 1.27 draws other sizes than it lays out.
VUE_NODES = (
    "window.LiteGraph.vueNodesMode && Number((window.__COMFYUI_FRONTEND_VERSION__ || '0.0').split('.')[1]) >= 40"
)
DIALOGS = "[...document.querySelectorAll('[role=dialog]')].map(d => d.innerText)"


@pytest.fixture(scope="module")
def object_info(comfy_server):
    with urllib.request.urlopen(comfy_server.url + "/object_info", timeout=60) as response:
        return json.load(response)


def needs_nodes_of(name: str, object_info: dict) -> None:
    """Skips a workflow that is for newer hosts only."""
    missing = sorted({node["class_type"] for node in load(name, api=True).values()} - set(object_info))
    feature(name not in NEWER or not missing, f"there are no nodes {', '.join(missing)}")


@pytest.mark.parametrize("name", NAMES)
def test_all_nodes_and_inputs_are_known(name, object_info):
    needs_nodes_of(name, object_info)
    for node in load(name, api=True).values():
        known = object_info[node["class_type"]]["input"]
        names = {*known.get("required", {}), *known.get("optional", {})}
        assert {given.split(".")[0] for given in node["inputs"]} <= names  # a dynamic combo's own: combo.input
        assert set(known.get("required", {})) <= set(node["inputs"])


@pytest.mark.parametrize("name", NAMES)
def test_both_formats_mean_the_same(name, object_info, comfy_server):
    needs_nodes_of(name, object_info)
    written_here = parse_version(comfy_server.installation.version) == MINIMUM_VERSION
    converted = to_api(load(name), object_info)
    twin = load(name, api=True)
    assert converted.keys() == twin.keys()
    for number, node in twin.items():
        assert converted[number]["class_type"] == node["class_type"]
        found = converted[number]["inputs"]
        if written_here or node["class_type"].startswith("TestTime"):
            assert found == node["inputs"], number
        else:  # newer hosts equip stock nodes anew: what both have is the same
            assert {key: found[key] for key in found.keys() & node["inputs"].keys()}.items() <= node["inputs"].items()


def test_files_are_what_the_tool_writes(comfy_server):
    """With the node definitions of the oldest host that has all their nodes; newer ones name and equip some anew."""
    oldest = parse_version(comfy_server.installation.version) == MINIMUM_VERSION
    names = [] if oldest else [name for name in made_for(comfy_server.url) if name in NEWER]
    feature(oldest or bool(names), "no file is written")
    tool = str(ROOT / "tools" / "build_workflows.py")
    command = [sys.executable, tool, *names, "--check", "--server", comfy_server.url]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("name", EMBEDDED)
def test_it_runs(name, comfy_server, tmp_path):
    """Queued headless with fewer steps; saves pictures that are not blank, and a report where there is one."""
    workflow = load(name, api=True)
    changes = []
    for number, node in workflow.items():
        if isinstance(node["inputs"].get("steps"), int):
            changes += ["--set", f"{number}.steps=4"]
        if node["class_type"] == "TestTimeContinueSearch":
            changes += ["--set", f"{number}.step=2"]
    path = str(FOLDER / "api" / f"{name}.json")
    assert main(["run", path, "--server", comfy_server.url, "--out", str(tmp_path), *changes]) == 0
    pictures = list(tmp_path.rglob("*.png"))
    kinds = [node["class_type"] for node in workflow.values()]
    assert len(pictures) >= kinds.count("SaveImage") + kinds.count("TestTimeSearchReport")
    for picture in pictures:
        assert np.asarray(Image.open(picture).convert("RGB")).std() > 0.5


def setting(url: str, name: str, value) -> None:
    """Set a setting of the front end, as its own window of settings does."""
    request = urllib.request.Request(f"{url}/settings/{name}", json.dumps(value).encode())
    urllib.request.urlopen(request, timeout=30).close()


# What a front end complains about by itself. The dialog of missing models asks their servers for sizes, also where
# there is no network; front ends that are newer than the server ask it for a list of jobs that it does not have.
ITS_OWN = ("fetching file size", "JobsApiError")


def complaints(browser: Browser) -> list[str]:
    """Uncaught exceptions, and errors written to the console that may be ours."""
    return browser.console + [text for text in browser.errors if not any(own in text for own in ITS_OWN)]


def made_for(url: str) -> list[str]:
    """Workflows whose nodes the host at ``url`` has: all but those for newer ones."""
    with urllib.request.urlopen(f"{url}/object_info", timeout=60) as response:
        known = set(json.load(response))
    fits = {name: {node["class_type"] for node in load(name, api=True).values()} <= known for name in NEWER}
    return [name for name in EMBEDDED + OTHERS if fits.get(name, True)]


async def open_all(browser: Browser, url: str) -> dict[str, dict]:
    """Load every workflow that fits the host into its open front end; what it makes of each."""
    await browser.wait_for("window.LiteGraph.registered_node_types['TestTimeSearchKSampler']", 60)
    found = {}
    browser.console.clear()  # what the front end complains about while it starts is its own
    browser.errors.clear()
    for name in made_for(url):
        await browser.run(f"window.app.loadGraphData({json.dumps(load(name))}).then(() => true)")
        dialogs = await browser.run(DIALOGS)
        allowed = name not in EMBEDDED and all("models were not found" in text for text in dialogs)
        assert allowed or not dialogs, (name, dialogs)
        found[name] = await browser.run(
            "window.app.graphToPrompt().then(p => ({nodes: window.app.graph.nodes.map(n => [n.type, "
            "!!n.has_errors, !window.LiteGraph.registered_node_types[n.type]]), output: p.output}))"
        )
        found[name]["layout"] = await measure(browser)
    return found


def check_opened(found: dict[str, dict]) -> None:
    """No node is missing, no link is hidden, and what the front end would queue is what lies in ``workflows/api``."""
    assert len(found) >= len(NAMES) - len(NEWER)
    for name, state in found.items():
        # Newer front ends mark a loader whose file is not there; those of the user's checkpoints are not.
        wrong = [kind for kind, errors, missing in state["nodes"] if missing or (errors and name in EMBEDDED)]
        assert not wrong, name
        check_layout(name, state["layout"])
        for number, node in load(name, api=True).items():
            assert state["output"][number]["class_type"] == node["class_type"]
            for key, value in node["inputs"].items():
                assert state["output"][number]["inputs"][key] == value, (name, number, key)


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the path")
@pytest.mark.parametrize("renderer", ["classic", "nodes-2.0"])
def test_they_open_in_the_front_end(renderer, comfy_server):
    """ComfyUI's own front end loads every workflow without a missing node, and converts it as we do.

    In a window of 1600 x 1000 with the open Search tab, prompt, search and result are seen at once.
    """
    # As for somebody who is not new here: no greeting, which opens some time after the start.
    setting(comfy_server.url, "Comfy.TutorialCompleted", True)
    setting(comfy_server.url, "Comfy.VueNodes.Enabled", renderer != "classic")

    async def look():
        async with Browser(1600, 1000) as browser:
            await browser.open(comfy_server.url)
            await browser.wait_for("window.app && window.app.graph && window.app.extensionManager", 120)
            if renderer != "classic" and not await browser.run(VUE_NODES):
                return None, None
            await browser.run(f"document.querySelector('.testtime-panel') || {PANEL}")
            await browser.wait_for("document.querySelector('.testtime-panel')")
            return await open_all(browser, comfy_server.url), complaints(browser)

    try:
        found, said = asyncio.run(look())
    finally:
        setting(comfy_server.url, "Comfy.VueNodes.Enabled", False)
    feature(found is not None, "there is one renderer of nodes")
    assert not said
    check_opened(found)


@pytest.mark.parametrize("name", OTHERS)
def test_only_files_are_missing(name, object_info, comfy_server):
    """What the server itself says about a workflow that needs weights, before anything is run."""
    needs_nodes_of(name, object_info)
    body = json.dumps({"prompt": load(name, api=True)}).encode()
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(f"{comfy_server.url}/prompt", body), timeout=60)
    answer = json.load(caught.value)
    assert answer["error"]["type"] == "prompt_outputs_failed_validation"
    offered = {file["name"] for node in load(name)["nodes"] for file in node.get("properties", {}).get("models", ())}
    for node in answer["node_errors"].values():
        for fault in node["errors"]:
            if node["class_type"].startswith("TestTime"):  # verifiers name the folder that they look for
                assert fault["type"] in ("custom_validation_failed", "value_not_in_list"), fault
            elif node["class_type"] == "LoadImage":  # the folder of images is the test's own, and empty
                assert fault["details"].endswith("Invalid image file: example.png"), fault
            else:
                missing = fault.get("extra_info", {}).get("received_value")
                assert fault["type"] == "value_not_in_list" and missing in offered, fault
