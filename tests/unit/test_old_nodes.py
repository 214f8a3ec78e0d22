"""Old ids in workflow files of both formats become the nodes of today, and people are told in a sentence."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from pathlib import Path

import pytest

from testtime.graph.convert import to_api
from testtime.graph.old_nodes import OLD_NODES, REPLACEMENTS, REVISIONS, as_json, renewed, renewed_ui
from testtime.graph.prompt import checked_prompt

ROOT = Path(__file__).resolve().parents[2]
SOURCE = {"input": {"required": {}}, "output": ["IMAGE", "STRING"], "output_name": ["images", "text"]}
SCORE = {
    "input": {
        "required": {"images": ["IMAGE"], "prompt": ["STRING", {"default": ""}]},
        "optional": {
            "keep": ["INT", {"default": 0}],
            "order": ["COMBO", {"options": ["best first", "as given"], "default": "best first"}],
        },
    },
    "output": ["IMAGE", "S", "FLOAT", "STRING", "INT", "STRING"],
    "output_name": ["images", "scores", "best_score", "text", "best_index", "places"],
}
SINK = {"input": {"required": {"places": ["STRING", {"forceInput": True}], "images": ["IMAGE"]}}, "output": []}
INFO = {"Source": SOURCE, "TestTimeScoreImages": SCORE, "Sink": SINK}
UI = {
    "version": 0.4,
    "nodes": [
        {"id": 1, "type": "Source", "inputs": [], "outputs": [{"name": "images", "type": "IMAGE", "links": [1]}]},
        {
            "id": 2,
            "type": "TestTimeRankImages",
            "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
            "outputs": [
                {"name": "images", "type": "IMAGE", "links": [2]},
                {"name": "best_index", "type": "INT", "links": []},
                {"name": "order", "type": "STRING", "links": [3]},
            ],
            "widgets_values": ["a cat", 4],
        },
        {
            "id": 3,
            "type": "Sink",
            "inputs": [
                {"name": "places", "type": "STRING", "link": 3},
                {"name": "images", "type": "IMAGE", "link": 2},
            ],
        },
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 1, "IMAGE"], [3, 2, 2, 3, 0, "STRING"]],
}
API = {
    "1": {"class_type": "Source", "inputs": {}},
    "2": {"class_type": "TestTimeRankImages", "inputs": {"images": ["1", 0], "prompt": "a cat", "keep": 4}},
    "3": {"class_type": "Sink", "inputs": {"places": ["2", 2], "images": ["2", 0]}},
}
TODAY = {
    "1": {"class_type": "Source", "inputs": {}},
    "2": {
        "class_type": "TestTimeScoreImages",
        "inputs": {"images": ["1", 0], "prompt": "a cat", "keep": 4, "order": "best first"},
    },
    "3": {"class_type": "Sink", "inputs": {"places": ["2", 5], "images": ["2", 0]}},
}


def plain(workflow: dict) -> dict:
    return {key: {name: node[name] for name in ("class_type", "inputs")} for key, node in workflow.items()}


@pytest.mark.parametrize("file", [API, UI], ids=["api", "ui"])
def test_a_merged_node_keeps_values_and_links(file, caplog):
    before = json.dumps(file)
    with caplog.at_level(logging.INFO, "testtime"):
        assert plain(checked_prompt(file, [], INFO)) == TODAY
    assert json.dumps(file) == before
    assert "node 2: TestTimeRankImages is now Score Images (TestTimeScoreImages) with order best first" in caplog.text


def test_files_of_today_are_left_alone():
    assert renewed(TODAY) == (TODAY, []) and renewed(TODAY)[0] is TODAY
    made, told = renewed_ui(UI)
    assert len(told) == 1 and renewed_ui(made)[0] is made


def test_what_is_no_node_is_left_to_the_server():
    odd = {"1": None, "2": {"class_type": ["TestTimeRankImages"]}, "3": {"class_type": "TestTimeObjects", "inputs": {}}}
    assert renewed(odd)[0]["3"]["class_type"] == "TestTimeGenEval"


def test_ids_of_today_are_not_old():
    renamed = {row.old for row in REPLACEMENTS}
    assert not {row.new for row in OLD_NODES.values()} & renamed
    assert all(row.old == row.new for row in REVISIONS) and len(OLD_NODES) == len(REPLACEMENTS) + len(REVISIONS)
    assert all(row.sentence.count(".") == 0 and row.new in row.sentence for row in OLD_NODES.values())


def test_subgraphs_are_renewed():
    inner = {"nodes": [{"id": 7, "type": "TestTimeRankImages"}], "links": [{"origin_id": 7, "origin_slot": 1}]}
    made, told = renewed_ui({"nodes": [], "links": [], "definitions": {"subgraphs": [inner]}})
    (graph,) = made["definitions"]["subgraphs"]
    assert graph["nodes"][0]["type"] == "TestTimeScoreImages" and graph["links"][0]["origin_slot"] == 4
    assert len(told) == 1 and inner["links"][0]["origin_slot"] == 1


def test_the_browsers_table_is_this_one():
    assert json.loads((ROOT / "web" / "old_nodes.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(as_json())
    )


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_the_browser_makes_the_same(tmp_path):
    script = tmp_path / "renew.mjs"
    script.write_text(
        f"import {{ renew }} from {json.dumps((ROOT / 'web' / 'old_nodes.js').as_uri())};"
        f"const graph = {json.dumps(UI)}; const told = renew(graph, {json.dumps(as_json())});"
        "console.log(JSON.stringify([graph, told]));",
        encoding="utf-8",
    )
    done = subprocess.run(["node", str(script)], capture_output=True, text=True, timeout=60)
    graph, told = json.loads(done.stdout)
    assert plain(to_api(graph, INFO)) == TODAY and told == [OLD_NODES["TestTimeRankImages"].sentence]
