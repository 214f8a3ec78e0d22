"""Old ids inside a running ComfyUI: queued through the API, opened in the browser, told to hosts that replace nodes."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from testtime.graph.convert import to_api
from testtime.graph.old_nodes import REPLACEMENTS, REVISIONS, renewed, renewed_ui

from ..browser import Browser, find_chromium

pytestmark = pytest.mark.host


def test_the_table_names_widgets_and_outputs_that_the_nodes_have():
    from testtime.nodes import collect_nodes

    schemas = {schema.node_id: schema for schema in (node.define_schema() for node in collect_nodes())}
    for row in REPLACEMENTS:
        schema = schemas[row.new]
        assert row.old not in schemas and row.name == schema.display_name
        ids = [entry.id for entry in schema.inputs]
        assert set(row.inputs.values()) <= set(ids) and set(row.values) <= set(ids)
        assert max(row.outputs.values(), default=0) < len(schema.outputs)
        if row.new_widgets is not None:
            from comfy_api.latest import io

            widgets = [entry.id for entry in schema.inputs if isinstance(entry, io.WidgetInput)]
            assert list(row.new_widgets) == widgets, row.old


OLD_FILES = Path(__file__).parents[1] / "data" / "old_workflows"
"""Example workflows as they were before nodes were merged and renamed, in both formats."""


@pytest.fixture(scope="module")
def object_info(comfy_server):
    with urllib.request.urlopen(comfy_server.url + "/object_info", timeout=60) as response:
        return json.load(response)


@pytest.mark.parametrize("name", sorted(path.name.split(".")[0] for path in OLD_FILES.glob("*.api.json")))
def test_files_of_before_mean_the_same_today(name, object_info):
    """Every input is known and every required one given; both formats become the same, with the values they had."""
    api, ui = (json.loads((OLD_FILES / f"{name}.{kind}.json").read_text(encoding="utf-8")) for kind in ("api", "ui"))
    made, _ = renewed(api)
    converted = to_api(renewed_ui(ui)[0], object_info)
    assert renewed(made)[0] is made and made.keys() == converted.keys()
    for number, node in made.items():
        known = object_info[node["class_type"]]["input"]
        required = known.get("required", {})
        given = {key.split(".")[0] for key in node["inputs"]}
        assert given <= {*required, *known.get("optional", {})} and set(required) <= given | set(extra(required))
        both = {key for key in node["inputs"] if key in converted[number]["inputs"]}
        assert len(both) >= len(node["inputs"]) - 1, (number, node["inputs"].keys() - both)
        for key in both:
            assert converted[number]["inputs"][key] == node["inputs"][key], (number, key)


def extra(required: dict) -> list[str]:
    """Required inputs with a default: stock nodes of newer hosts have some that older files lack."""
    return [name for name, spec in required.items() if len(spec) > 1 and "default" in spec[1]]


def test_values_and_wires_of_nodes_that_kept_their_id():
    """Options and inputs that are called otherwise; a sampler that the node did not have."""
    inputs = {"value": ["9", 0], "candidates": 4}
    before = {"1": {"class_type": "TestTimeSVDD", "inputs": inputs}, "9": {"class_type": "Any", "inputs": {}}}
    made, (told,) = renewed(before)
    assert made["1"]["inputs"] == {"value_function": ["9", 0], "candidates": 4}
    assert told == "node 1: SVDD (TestTimeSVDD): value is now value_function"
    fk = {"1": {"class_type": "TestTimeFKSteering", "inputs": {"potential": "add"}}}
    assert renewed(fk)[0]["1"]["inputs"]["potential"] == "sum"
    values = [7, "fixed", 20, 2.5, "normal", 1.0, -1.0, "a cat", 0, 0, "stop"]
    node = {"id": 1, "type": "TestTimeSearchKSampler", "widgets_values": values, "inputs": []}
    (new,) = renewed_ui({"nodes": [node], "links": []})[0]["nodes"]
    assert new["widgets_values"] == [*values[:4], "euler", *values[4:]]


def test_revisions_name_inputs_and_options_that_the_nodes_have():
    from testtime.nodes import collect_nodes

    schemas = {schema.node_id: schema for schema in (node.define_schema() for node in collect_nodes())}
    for row in REVISIONS:
        known = {entry.id: entry for entry in schemas[row.new].inputs}
        assert set(row.inputs.values()) | set(row.values) | set(row.choices) <= set(known), row.old
        assert not set(row.inputs) & set(known) and row.name == schemas[row.new].display_name
        for name, ways in row.choices.items():
            assert set(ways.values()) <= set(known[name].options) and not set(ways) & set(known[name].options)


def queue(url: str, graph: dict) -> dict:
    request = urllib.request.Request(
        f"{url}/prompt", json.dumps({"prompt": graph}).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return json.load(error)


def graph() -> dict:
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 2, "color": 99}},
        "2": {"class_type": "TestTimeJPEG", "inputs": {"reward": "compressibility"}},
        "3": {
            "class_type": "TestTimeRankImages",
            "inputs": {"images": ["1", 0], "verifier": ["2", 0], "prompt": "", "keep": 1},
        },
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
        "5": {
            "class_type": "TestTimeImportanceSampling",
            "inputs": {
                "particles": 4, "alpha": 0.25, "alpha_mode": "relative", "start": 0.4, "end": 0.8, "every": 4,
                "resampling": "multinomial",
            },
        },
    }  # fmt: skip


def test_a_queued_workflow_is_brought_up_to_date(comfy_server):
    answer = queue(comfy_server.url, graph())
    assert answer.get("prompt_id") and not answer.get("node_errors"), answer


def test_a_node_that_never_was_is_still_refused(comfy_server):
    wrong = graph()
    wrong["3"]["class_type"] = "TestTimeNeverWas"
    assert "TestTimeNeverWas" in json.dumps(queue(comfy_server.url, wrong))


def test_hosts_that_replace_nodes_know_the_table(comfy_server):
    try:
        with urllib.request.urlopen(comfy_server.url + "/node_replacements", timeout=60) as response:
            told = json.load(response)
    except (urllib.error.HTTPError, json.JSONDecodeError):
        pytest.skip("this ComfyUI has no node replacements")
    for row in REPLACEMENTS:
        assert told[row.old][0]["new_node_id"] == row.new


OPENED = """(async () => {
  const app = window.app;
  const data = %s;
  await new Promise((done) => setTimeout(done, 3000)); // the front end opens its first workflow by itself
  await app.loadGraphData(data);
  await new Promise((done) => setTimeout(done, 1500));
  const nodes = app.graph._nodes.map((node) => [node.type, (node.widgets ?? []).map((w) => [w.name, w.value])]);
  return [nodes, document.body.innerText.includes("Missing Node"), document.body.innerText];
})()"""


@pytest.mark.skipif(find_chromium() is None, reason="needs Chromium")
def test_an_old_file_opens_in_the_browser(comfy_server):
    old = {
        "version": 0.4,
        "last_node_id": 1,
        "last_link_id": 0,
        "links": [],
        "nodes": [
            {
                "id": 1, "type": "TestTimeImportanceSampling", "pos": [0, 0], "size": [300, 200], "flags": {},
                "order": 0, "mode": 0, "inputs": [], "outputs": [], "properties": {},
                "widgets_values": [6, 0.5, "absolute", 0.3, 0.7, 5, "systematic"],
            }
        ],
    }  # fmt: skip

    async def look():
        async with Browser() as page:
            await page.open(comfy_server.url)
            await page.wait_for(
                "window.app && window.app.extensionManager && window.app.graph && "
                "window.LiteGraph?.registered_node_types?.TestTimeFKSteering",
                120,
            )
            return await page.run(OPENED % json.dumps(old))

    (nodes, missing, text) = asyncio.run(look())
    assert nodes[0][0] == "TestTimeFKSteering" and not missing
    values = dict(nodes[0][1])
    assert (values["particles"], values["alpha"], values["alpha_mode"]) == (6, 0.5, "absolute")
    assert (values["potential"], values["start"], values["every"], values["resampling"]) == ("rt", 0.3, 5, "systematic")
    assert "TestTimeImportanceSampling is now FK Steering" in text
