"""Describe a workflow once in Python; write it in ComfyUI's UI format and in API format.

Both files come from the same description and from the server's node definitions (``/object_info``), so they cannot
drift apart. Nodes are placed in columns from left to right; columns belong to groups, drawn as boxes around them.
"""

from __future__ import annotations

import itertools
import json
import uuid
from dataclasses import dataclass, field
from typing import Any

from workflow_wires import Wire, route

from testtime.graph.widgets import UPLOADS, chosen_inputs, default_value, extra_values, has_widget, ordered_inputs

TITLE, SLOT, WIDGET, MARGIN = 30, 20, 24, 10
GAP_X, GAP_Y = 50, 34
GROUP_PADDING, GROUP_TITLE, GROUP_GAP = 20, 44, 18
GROUP_LETTER, BADGE = 13, 18
NOTE_WIDTH, NOTE_CHARACTERS, NOTE_LINE = 290, 50, 14
VIEW = {"scale": 0.6, "offset": [650, 250]}
"""What is seen when a workflow opens: prompt, search and result, right of an open sidebar, with text still drawn."""
NOTE = "MarkdownNote"
OUR_PREFIX, OUR_PACK = "TestTime", "test-time-scaling"


@dataclass(frozen=True)
class Link:
    """An output of a node, to be given as the input of another."""

    node: Node
    output: str | int


@dataclass(eq=False)
class Node:
    """A node of a description.

    Attributes:
        kind: class of the node (``class_type``).
        inputs: values and ``Link``s by input name; what is not given takes its default.
        title: title in the graph, "" for the display name.
        width: in pixels; the widest node of a column gives the width of all. picture: room for an image under the
            widgets, in pixels. lines: height of a text box in lines. drop: room left free above the node, in pixels.
        models: {"name", "url", "directory"} of the files it needs; the front end offers the missing ones.
    """

    kind: str
    inputs: dict[str, Any] = field(default_factory=dict)
    title: str = ""
    width: int = 320
    picture: int = 0
    lines: int = 4
    drop: int = 0
    models: tuple[dict[str, str], ...] = ()
    number: int = 0

    def __getitem__(self, output: str | int) -> Link:
        return Link(self, output)


def note(text: str, width: int = NOTE_WIDTH) -> Node:
    """A note in Markdown: paragraphs are separated by blank lines, "- " begins an entry of a list."""
    paragraphs = [""]
    for line in map(str.strip, text.strip().splitlines()):
        if not line or line.startswith(("- ", "#")) or not paragraphs[-1] or paragraphs[-1].startswith("#"):
            paragraphs.append(line)
        else:
            paragraphs[-1] += " " + line
    rows = sum(1 + len(paragraph) // NOTE_CHARACTERS for paragraph in paragraphs)
    return Node(NOTE, {"": "\n".join(paragraphs[1:])}, "Read me", width, lines=rows + 4)


@dataclass
class Group:
    """A titled box around columns of nodes; without a title there is no box. ``below``: under the group before it."""

    title: str
    columns: list[list[Node]]
    colour: str = "#3f789e"
    below: bool = False


class Workflow:
    """A description: groups from left to right. ``ui`` and ``api`` write the two formats."""

    def __init__(self, name: str, groups: list[Group]):
        self.name = name
        self.groups = groups
        self.nodes = [node for group in groups for column in group.columns for node in column]
        for number, node in enumerate(self.nodes, start=1):
            node.number = number

    def unknown(self, object_info: dict) -> list[str]:
        """Kinds of nodes that a host does not have."""
        return sorted({node.kind for node in self.nodes if node.kind != NOTE and node.kind not in object_info})

    def api(self, object_info: dict) -> dict:
        """The API-format workflow."""
        result = {}
        for node in self.nodes:
            if node.kind == NOTE:
                continue
            info = definition(node, object_info)
            inputs = dict(values_of(node, info))
            for name, link in links_of(node).items():
                inputs[name] = [str(link.node.number), slot_of(link, object_info)]
            title = node.title or info.get("display_name") or node.kind
            result[str(node.number)] = {"class_type": node.kind, "inputs": inputs, "_meta": {"title": title}}
        return result

    def ui(self, object_info: dict) -> dict:
        """The UI-format workflow, version 0.4, as the front end saves it."""
        places, boxes = self._layout(object_info)
        links: list[list] = []
        nodes = []
        outgoing: dict[tuple[int, int], list[int]] = {}
        for node in self.nodes:
            for index, (name, kind) in enumerate(sockets_of(node, object_info)):
                link = node.inputs.get(name)
                if isinstance(link, Link):
                    slot = slot_of(link, object_info)
                    number = len(links) + 1
                    links.append([number, link.node.number, slot, node.number, index, kind])
                    outgoing.setdefault((link.node.number, slot), []).append(number)
        for order, node in enumerate(self._execution_order()):
            nodes.append(self._ui_node(node, order, object_info, places, (links, outgoing)))
        nodes.sort(key=lambda entry: entry["id"])
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"testtime/{self.name}")),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(links),
            "nodes": nodes,
            "links": links,
            "groups": boxes,
            "config": {},
            "extra": {"ds": VIEW, **self._reroutes(object_info, places, boxes, links)},
            "version": 0.4,
        }

    def _execution_order(self) -> list[Node]:
        """Every node after the nodes it takes inputs from."""
        done: list[Node] = []
        waiting = list(self.nodes)
        while waiting:
            ready = next(n for n in waiting if all(link.node in done for link in links_of(n).values()))
            waiting.remove(ready)
            done.append(ready)
        return done

    def _ui_node(self, node: Node, order: int, object_info: dict, places: dict, wires: tuple) -> dict:
        links, outgoing = wires
        x, y, width, height = places[node.number]
        entry = {
            "id": node.number,
            "type": node.kind,
            "pos": [x, y],
            "size": [width, height],
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": [],
            "outputs": [],
        }
        if node.title:
            entry["title"] = node.title
        if node.kind == NOTE:
            text = node.inputs[""]
            return entry | {"properties": {}, "widgets_values": [text], "color": "#432", "bgcolor": "#653"}
        info = definition(node, object_info)
        for index, (name, kind) in enumerate(sockets_of(node, object_info)):
            number = next((link[0] for link in links if link[3] == node.number and link[4] == index), None)
            socket = {"name": name, "type": kind, "link": number}
            spec = ordered_inputs(info)[name]
            if has_widget(spec):
                socket["widget"] = {"name": name}
            if name in info["input"].get("optional", {}) and not has_widget(spec):
                socket["shape"] = 7
            entry["inputs"].append(socket)
        for slot, kind in enumerate(info["output"]):
            name = (info.get("output_name") or info["output"])[slot]
            kind = "COMBO" if isinstance(kind, list) else kind
            used = outgoing.get((node.number, slot))
            entry["outputs"].append({"name": name, "type": kind, "slot_index": slot, "links": used})
        pack = OUR_PACK if node.kind.startswith(OUR_PREFIX) else "comfy-core"
        entry["properties"] = {"cnr_id": pack, "Node name for S&R": node.kind}
        if node.models:
            entry["properties"]["models"] = list(node.models)
        entry["widgets_values"] = widget_values(node, info)
        return entry

    def _layout(self, object_info: dict) -> tuple[dict[int, tuple], list[dict]]:
        """({node number: (x, y, width, height)}, group boxes)."""
        places: dict[int, tuple] = {}
        boxes: list[dict] = []
        left = 0
        for stack in self._stacks():
            floor, right = 0, left
            widths = [
                max(node.width for column in columns for node in column)
                for columns in itertools.zip_longest(*(group.columns for group in stack), fillvalue=[])
            ]
            for group in stack:
                x, bottom = left, floor
                for column, width in zip(group.columns, widths, strict=False):
                    y = floor
                    for node in column:
                        places[node.number] = (x, y + node.drop, width, height_of(node, object_info))
                        y += node.drop + shown_height(node, object_info) + GAP_Y + TITLE
                    bottom = max(bottom, y - GAP_Y - TITLE)
                    x += width + GAP_X
                if group.title:
                    top = floor - TITLE - GROUP_TITLE
                    bounding = [left - GROUP_PADDING, top, x - GAP_X - left + 2 * GROUP_PADDING]
                    bounding.append(bottom - top + GROUP_PADDING)
                    box = {"id": len(boxes) + 1, "title": group.title, "bounding": bounding, "color": group.colour}
                    boxes.append(box | {"font_size": 24, "flags": {}})
                floor, right = bottom + GROUP_PADDING + GROUP_GAP + GROUP_TITLE + TITLE, max(right, x - GAP_X)
            left = right + 2 * GROUP_PADDING + GROUP_GAP
        return places, boxes

    def _stacks(self) -> list[list[Group]]:
        """Groups that stand below one another."""
        stacks: list[list[Group]] = []
        for group in self.groups:
            if group.below:
                stacks[-1].append(group)
            else:
                stacks.append([group])
        return stacks

    def _reroutes(self, object_info: dict, places: dict, boxes: list[dict], links: list[list]) -> dict:
        """What ``extra`` says about links that would run behind a node: reroutes, and which links they carry."""
        obstacles = {}
        for node in self.nodes:
            x, y, width, _ = places[node.number]
            top = y - TITLE - (BADGE if node.kind.startswith(OUR_PREFIX) else 0)  # the name of the pack is shown there
            obstacles[node.number] = (x, top, x + width, y + shown_height(node, object_info))
        for box in boxes:
            left, top, *_ = box["bounding"]
            obstacles[-box["id"]] = (left, top, left + GROUP_LETTER * len(box["title"]), top + GROUP_TITLE - MARGIN)
        wires = []
        for number, source, slot, target, index, _ in links:
            x, y, width, _ = places[source]
            start = (x + width, y + MARGIN + SLOT * slot + 4)
            left, top, *_ = places[target]
            node = self.nodes[target - 1]
            name = sockets_of(node, object_info)[index][0]
            end = (left, top + socket_height(node, name, object_info))
            loose = has_widget(ordered_inputs(definition(node, object_info))[name])
            wires.append(Wire(number, (source, slot), start, end, (source, target), loose))
        reroutes: dict[tuple, dict] = {}
        last = []
        for number, points in route(wires, obstacles).items():
            output, before = next(wire.output for wire in wires if wire.number == number), ()
            for point in points:
                before = (*before, point)
                entry = reroutes.setdefault((output, before), {"id": len(reroutes) + 1, "pos": list(point)})
                if len(before) > 1:
                    entry["parentId"] = reroutes[output, before[:-1]]["id"]
                entry.setdefault("linkIds", []).append(number)
            last.append({"id": number, "parentId": reroutes[output, before]["id"]})
        return {"linkExtensions": sorted(last, key=lambda one: one["id"]), "reroutes": list(reroutes.values())}


def definition(node: Node, object_info: dict) -> dict:
    """The server's definition of a node's class; KeyError-like message when it has none."""
    if node.kind not in object_info:
        raise LookupError(f"the server does not know {node.kind}")
    known = ordered_inputs(object_info[node.kind])
    unknown = [name for name in node.inputs if name not in known]
    if unknown:
        raise LookupError(f"{node.kind} has no input {', '.join(unknown)}; it has {', '.join(known)}")
    return object_info[node.kind]


def links_of(node: Node) -> dict[str, Link]:
    """The linked inputs of a node."""
    return {name: value for name, value in node.inputs.items() if isinstance(value, Link)}


def values_of(node: Node, info: dict) -> dict[str, Any]:
    """Values of all widget inputs that are not linked: the given ones, else the defaults."""
    result: dict[str, Any] = {}

    def take(specs: dict[str, list], before: str = "") -> None:
        for short, spec in specs.items():
            name = before + short
            if not has_widget(spec) or isinstance(node.inputs.get(name), Link):
                continue
            result[name] = node.inputs.get(name, default_value(spec))
            if result[name] is None:
                raise LookupError(f"{node.kind}.{name} has no default: give a value")
            take(chosen_inputs(spec, result[name]), f"{name}.")  # what a dynamic combo brings with its option

    take(ordered_inputs(info))
    return result


def sockets_of(node: Node, object_info: dict) -> list[tuple[str, str]]:
    """(name, type) of the inputs a saved node lists: plain sockets, and widgets that are linked."""
    if node.kind == NOTE:
        return []
    specs = ordered_inputs(definition(node, object_info))
    return [
        (name, "COMBO" if isinstance(spec[0], list) else spec[0])
        for name, spec in specs.items()
        if not has_widget(spec) or isinstance(node.inputs.get(name), Link)
    ]


def slot_of(link: Link, object_info: dict) -> int:
    """Index of a linked output."""
    info = definition(link.node, object_info)
    if isinstance(link.output, int):
        return link.output
    names = list(info.get("output_name") or info["output"])
    if link.output not in names:
        raise LookupError(f"{link.node.kind} has no output {link.output}; it has {', '.join(names)}")
    return names.index(link.output)


def widget_values(node: Node, info: dict) -> list:
    """``widgets_values`` of a saved node, with the values of "control after generate" widgets."""
    result = []
    uploads = 0
    for name, spec in ordered_inputs(info).items():
        if not has_widget(spec):
            continue
        value = node.inputs.get(name, default_value(spec))
        if isinstance(value, Link):
            value = default_value(spec)
        result.append("" if value is None else value)
        result += ["fixed", ""][: extra_values(name, spec)]
        uploads += any((spec[1] if len(spec) > 1 else {}).get(key) for key in UPLOADS)
    return result + ["image"] * uploads


def height_of(node: Node, object_info: dict) -> int:
    """A height at which the front end shows a node without cutting anything off."""
    if node.kind == NOTE:
        return MARGIN + NOTE_LINE * node.lines
    info = definition(node, object_info)
    specs = ordered_inputs(info)
    sockets = [spec for spec in specs.values() if not has_widget(spec)]
    height = max(len(sockets), len(info["output"])) * SLOT + MARGIN
    for name, spec in specs.items():
        if not has_widget(spec):
            continue
        multiline = len(spec) > 1 and spec[1].get("multiline")
        height += (node.lines * SLOT + MARGIN if multiline else WIDGET) + WIDGET * extra_values(name, spec)
    return height + node.picture + MARGIN


def shown_height(node: Node, object_info: dict) -> int:
    """``height_of``, or what Nodes 2.0 need: higher rows, and a badge or a warning below."""
    if node.kind == NOTE:
        return height_of(node, object_info) + MARGIN
    widgets = [spec for spec in ordered_inputs(definition(node, object_info)).values() if has_widget(spec)]
    texts = sum(bool(len(spec) > 1 and spec[1].get("multiline")) for spec in widgets)
    badge = 20 if node.kind.startswith(OUR_PREFIX) or node.models else 0
    return height_of(node, object_info) + badge + 5 * len(widgets) + MARGIN * texts


def socket_height(node: Node, name: str, object_info: dict) -> int:
    """How far below the top of its node an input lies: sockets come first, then the widgets in their order."""
    specs = ordered_inputs(definition(node, object_info))
    sockets = [key for key, spec in specs.items() if not has_widget(spec)]
    if name in sockets:
        return MARGIN + 4 + SLOT * sockets.index(name)
    height = max(len(sockets), len(object_info[node.kind]["output"])) * SLOT + MARGIN
    for key, spec in specs.items():
        if key == name:
            break
        if has_widget(spec):
            multiline = len(spec) > 1 and spec[1].get("multiline")
            height += (node.lines * SLOT + MARGIN if multiline else WIDGET) + WIDGET * extra_values(key, spec)
    return height + WIDGET // 2


def dump(workflow: dict) -> str:
    """The text of a workflow file."""
    return json.dumps(workflow, indent=2, ensure_ascii=False) + "\n"
