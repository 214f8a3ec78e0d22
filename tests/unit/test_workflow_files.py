"""The workflow files as they lie in the repository: complete pairs, one meaning, fit for the workflow browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
METHODS = {"best_of_n", "importance_sampling", "svdd", "smc", "das", "fk_steering"}


def test_every_method_has_a_workflow():
    assert METHODS <= set(NAMES)
    assert any(name.startswith("sd15") for name in NAMES) and any(name.startswith("sdxl") for name in NAMES)


def test_every_workflow_has_its_twin_and_its_picture():
    assert NAMES == sorted(path.stem for path in (FOLDER / "api").glob("*.json"))
    assert NAMES == sorted(path.stem for path in FOLDER.glob("*.jpg"))


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_small(name):
    path = FOLDER / f"{name}.jpg"
    assert path.stat().st_size < 60_000
    with Image.open(path) as image:
        assert image.width == image.height >= 256


@pytest.mark.parametrize("name", NAMES)
def test_nodes_do_not_overlap(name):
    """Boxes of nodes (with their titles) are apart, so the graph can be read when it opens."""
    nodes = json.loads((FOLDER / f"{name}.json").read_text())["nodes"]
    boxes = [(n["pos"][0], n["pos"][1] - 30, n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1]) for n in nodes]
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@pytest.mark.parametrize("name", NAMES)
def test_links_are_consistent(name):
    workflow = json.loads((FOLDER / f"{name}.json").read_text())
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, slot, target, place, kind in workflow["links"]:
        assert number in nodes[source]["outputs"][slot]["links"]
        assert nodes[target]["inputs"][place]["link"] == number
        assert kind in (nodes[source]["outputs"][slot]["type"], "*")
    assert workflow["last_node_id"] == max(nodes) and workflow["last_link_id"] == len(workflow["links"])
