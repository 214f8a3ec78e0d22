"""The workflow files as they lie in the repository: complete pairs, one meaning, fit for the workflow browser."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.docs

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
METHODS = {"best_of_n", "importance_sampling", "svdd", "smc", "das", "fk_steering", "flow_rbf", "beam_search"}
METHODS |= {"random_search", "zero_order_search", "path_search", "ttgen"}


def test_every_method_has_a_workflow():
    assert set(NAMES) >= METHODS
    assert any(name.startswith("sd15") for name in NAMES) and any(name.startswith("sdxl") for name in NAMES)


def test_every_workflow_has_its_twin_and_its_picture():
    assert sorted(path.stem for path in (FOLDER / "api").glob("*.json")) == NAMES
    assert sorted(path.stem for path in FOLDER.glob("*.jpg")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_small(name):
    path = FOLDER / f"{name}.jpg"
    assert path.stat().st_size < 40_000
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
def test_nodes_stand_in_aligned_columns_inside_their_groups(name):
    """Nodes of a column share left edge and width, and no box of a group cuts through a node or another box."""
    workflow = json.loads((FOLDER / f"{name}.json").read_text())
    widths: dict[float, set[float]] = {}
    groups = [group["bounding"] for group in workflow["groups"]]
    for node in workflow["nodes"]:
        x, y, width, height = *node["pos"], *node["size"]
        widths.setdefault(x, set()).add(width)
        for left, top, across, down in groups:
            inside = left < x and x + width < left + across and top < y - 30 and y + height < top + down
            beside = x + width < left or x > left + across or y + height < top or y - 30 > top + down
            assert inside or beside, node["type"]
    assert all(len(found) == 1 for found in widths.values())
    for (left, top, across, down), (x, y, width, height) in itertools.combinations(groups, 2):
        assert left + across < x or x + width < left or top + down < y or y + height < top


@pytest.mark.parametrize("name", NAMES)
def test_a_note_says_what_it_does(name):
    notes = [n for n in json.loads((FOLDER / f"{name}.json").read_text())["nodes"] if n["type"] == "MarkdownNote"]
    assert len(notes) == 1 and notes[0]["pos"][0] == 0
    assert notes[0]["widgets_values"][0].startswith("## ")


@pytest.mark.parametrize("name", NAMES)
def test_links_are_consistent(name):
    workflow = json.loads((FOLDER / f"{name}.json").read_text())
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, slot, target, place, kind in workflow["links"]:
        assert number in nodes[source]["outputs"][slot]["links"]
        assert nodes[target]["inputs"][place]["link"] == number
        assert kind in (nodes[source]["outputs"][slot]["type"], "*")
    assert workflow["last_node_id"] == max(nodes) and workflow["last_link_id"] == len(workflow["links"])
