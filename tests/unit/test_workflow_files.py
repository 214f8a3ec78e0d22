"""The workflow files as they lie in the repository: complete pairs, one meaning, fit for the workflow browser."""

from __future__ import annotations

import itertools

import pytest
from PIL import Image

from ..conftest import load_tool
from ..workflow_files import EMBEDDED, FOLDER, NAMES, NEEDS, OTHERS, SHOWN, load

pytestmark = pytest.mark.docs
METHODS = {"best_of_n", "importance_sampling", "svdd", "smc", "das", "fk_steering", "flow_rbf", "beam_search"}
METHODS |= {"random_search", "zero_order_search", "path_search", "ttgen"}


def test_every_method_has_a_workflow():
    assert set(NAMES) >= METHODS
    assert any(name.startswith("sd15") for name in NAMES) and any(name.startswith("sdxl") for name in NAMES)


def test_every_workflow_has_its_twin_and_its_picture():
    shown = sorted(path.name for path in SHOWN.values() if path)
    assert len(shown) == len(NAMES) and shown == sorted(path.name for path in FOLDER.glob("*.json"))
    assert sorted(path.stem for path in FOLDER.glob("*.jpg")) == sorted(path.stem for path in SHOWN.values())


def test_names_say_what_to_open_first_and_what_needs_weights():
    """The template browser shows names of files, in no order; what is downloaded is said by loaders of the graph."""
    assert [path.stem for path in SHOWN.values() if path.stem.startswith("1 ")] == ["1 Best-of-N (start here)"]
    for name, path in SHOWN.items():
        kinds = {node["type"] for node in load(name)["nodes"]}
        own = {"TestTimeLoadShapesWorld", "TestTimeLoadShapesWorldVAR"} & kinds
        assert path.stem.endswith(NEEDS) == (not own), path.name
        assert not set(path.name) & set('<>:"/\\|?*#%'), f"{path.name} is no file name everywhere, or no address"
    assert len(OTHERS) > 5 and len(EMBEDDED) > 20


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_small(name):
    path = SHOWN[name].with_name(f"{SHOWN[name].stem}.jpg")
    assert path.stat().st_size < 40_000
    with Image.open(path) as image:
        assert image.width == image.height >= 256


@pytest.mark.parametrize("name", NAMES)
def test_nodes_do_not_overlap(name):
    """Boxes of nodes (with their titles) are apart, so the graph can be read when it opens."""
    nodes = load(name)["nodes"]
    boxes = [(n["pos"][0], n["pos"][1] - 30, n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1]) for n in nodes]
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@pytest.mark.parametrize("name", NAMES)
def test_nodes_stand_in_aligned_columns_inside_their_groups(name):
    """Nodes of a column share left edge and width, and no box of a group cuts through a node or another box."""
    workflow = load(name)
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
def test_no_link_runs_behind_a_node(name):
    """By the front end's formulas; ``tests/host/test_workflows.py`` looks at what is really drawn."""
    wires = load_tool("workflow_wires")
    workflow = load(name)
    boxes = {n["id"]: (*n["pos"], n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1]) for n in workflow["nodes"]}
    boxes = {number: (x, y - 30, right, low) for number, (x, y, right, low) in boxes.items()}
    reroutes = {reroute["id"]: reroute for reroute in workflow["extra"]["reroutes"]}
    last = {entry["id"]: entry["parentId"] for entry in workflow["extra"]["linkExtensions"]}
    for number, source, slot, target, place, _ in workflow["links"]:
        way, at = [], last.get(number)
        while at is not None:
            assert number in reroutes[at]["linkIds"]
            way.insert(0, tuple(reroutes[at]["pos"]))
            at = reroutes[at].get("parentId")
        start = (boxes[source][2], boxes[source][1] + 44 + 20 * slot)
        end = (boxes[target][0], boxes[target][1] + 44 + 20 * place)
        if "widget" in next(n for n in workflow["nodes"] if n["id"] == target)["inputs"][place]:
            if not way:
                continue  # how low a widget lies is known to the front end alone
            end = (way[-1][0] + 20, way[-1][1])
        assert not wires.behind([start, *way, end], boxes, (source, target)), number


def test_a_link_behind_a_node_is_noticed():
    wires = load_tool("workflow_wires")
    boxes = {1: (0, 0, 100, 100), 2: (200, 0, 300, 100), 3: (400, 0, 500, 100)}
    assert wires.behind([(100, 50), (400, 50)], boxes, (1, 3)) == [2]
    assert wires.behind([(100, 50), (0, 90)], boxes, (1, 1)) == [1]  # back behind the node that it comes from
    wire = wires.Wire(7, (1, 0), (100.0, 50.0), (400.0, 50.0), (1, 3))
    way = wires.route([wire], boxes)[7]
    assert way and not wires.behind([wire.start, *way, wire.end], boxes, (1, 3))
    wall = {1: (0, 0, 100, 100), 2: (130, -3000, 370, 3000), 3: (400, 0, 500, 100)}
    with pytest.raises(ValueError, match="no way for link 7"):
        wires.route([wire], wall)


@pytest.mark.parametrize("name", NAMES)
def test_a_note_says_what_it_does(name):
    notes = [n for n in load(name)["nodes"] if n["type"] == "MarkdownNote"]
    assert len(notes) == 1
    assert notes[0]["widgets_values"][0].startswith("## ")


@pytest.mark.parametrize("name", NAMES)
def test_links_are_consistent(name):
    workflow = load(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, slot, target, place, kind in workflow["links"]:
        assert number in nodes[source]["outputs"][slot]["links"]
        assert nodes[target]["inputs"][place]["link"] == number
        assert kind in (nodes[source]["outputs"][slot]["type"], "*")
    assert workflow["last_node_id"] == max(nodes) and workflow["last_link_id"] == len(workflow["links"])
