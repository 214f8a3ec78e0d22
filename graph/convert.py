"""UI-format workflow (what the front end saves) -> API format (what the server runs).

The front end does this in the browser; here the node definitions of the server (``/object_info``) stand in for it:
they say which inputs have widgets and in which order their values were saved (``widgets.py``). Covered: sub-graphs with
promoted widgets, inputs converted from widgets, dynamic combos, Reroute, Primitive, Set and Get nodes, notes, muted
nodes (left out, with the links to them), bypassed nodes (the link continues at an input of the same type) and dynamic
prompts. Group nodes are refused with the way around them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from ..installation.errors import BadInput
from .dynamic_prompts import Choose, drawn_by, has_choices, resolved
from .ui_graph import INPUT_BORDER, Graph, LinkEnds, build
from .virtual import GETTERS, PRIMITIVE, REROUTES, SETTERS, is_unconnected, is_virtual, setter_of
from .widgets import options_of, ordered_inputs, read_values

logger = logging.getLogger("testtime")

MUTED = 2
BYPASSED = 4
EXPORT_HINT = "Open the workflow in ComfyUI and use Workflow > Export (API); testtime run takes that file."


@dataclass(frozen=True)
class Value:
    """What a Primitive node feeds into an input: a plain value instead of a link."""

    value: Any


def to_api(workflow: dict, object_info: dict, choose: Choose | None = None) -> dict:
    """The API-format twin of a UI-format workflow.

    Nodes that the server does not know keep their links and are refused later (``check_known_nodes``); those without
    links are left out with a line in the log, since all they can do is done in the browser.

    Args:
        workflow: what the front end saved.
        object_info: the server's node definitions.
        choose: draws the choices of dynamic prompts; left out, they are drawn by seed 0.

    Raises:
        BadInput: group nodes, links that lead nowhere, Get nodes without their Set node, a damaged file.
    """
    try:
        return Converter(workflow, object_info, choose or drawn_by(0)).convert()
    except RecursionError:
        raise BadInput(f"The workflow has a chain of links that is too long to follow. {EXPORT_HINT}") from None


@dataclass(frozen=True)
class Origin:
    """Where a node comes from, as the file says: ``pack`` (its name in the registry, or "owner/name"), ``version``."""

    pack: str
    version: str = ""


def origins_in(workflow: dict) -> dict[str, Origin]:
    """Class -> origin for the nodes of a UI-format workflow that record where they come from."""
    found = {}
    for node in (node for graph in build(workflow).all_graphs() for node in graph.nodes.values()):
        properties = node.get("properties") or {}
        pack = properties.get("cnr_id") or properties.get("aux_id")
        if isinstance(pack, str) and pack:
            found[node["type"]] = Origin(pack[:100], str(properties.get("ver") or "")[:40])
    return found


class Converter:
    """One conversion: the graphs of a workflow, and the walk from an input to what feeds it."""

    def __init__(self, workflow: dict, object_info: dict, choose: Choose):
        self.object_info = object_info
        self.choose = choose
        self.top = build(workflow)
        types = {node["type"] for graph in self.top.all_graphs() for node in graph.nodes.values()}
        groups = sorted(kind for kind in types if kind.startswith(("workflow>", "workflow/")))
        if groups:
            raise BadInput(
                f"This workflow uses group nodes ({', '.join(groups)}), which are not converted. {EXPORT_HINT}"
            )

    def convert(self) -> dict:
        """The API-format workflow, nodes in the order of the file."""
        result = self._nodes(self.top)
        for node in result.values():
            for name, value in list(node["inputs"].items()):
                if isinstance(value, list) and len(value) == 2 and value[0] not in result:
                    del node["inputs"][name]
        return result

    def _nodes(self, graph: Graph) -> dict:
        result = {}
        for node in graph.nodes.values():
            if is_virtual(node) or node.get("mode") in (MUTED, BYPASSED):
                continue
            if node["id"] in graph.inside:
                result |= self._nodes(graph.inside[node["id"]])
                continue
            if node["type"] not in self.object_info and is_unconnected(graph, node):
                logger.info("left out: %s %s, which the server does not know and no link leads to",
                            graph.api_id(node), node["type"])  # fmt: skip
                continue
            result[graph.api_id(node)] = {
                "class_type": node["type"],
                "inputs": self._inputs(graph, node),
                "_meta": {"title": self._title(node)},
            }
        return result

    def _title(self, node: dict) -> str:
        display_name = self.object_info.get(node["type"], {}).get("display_name")
        return node.get("title") or display_name or node["type"]

    def _inputs(self, graph: Graph, node: dict) -> dict:
        inputs = self._widget_values(graph, node)
        for slot in node.get("inputs") or []:
            if self._is_of_another_version(node, slot):
                continue
            source = self._source(graph, slot.get("link"), slot.get("type", "*"), set())
            if isinstance(source, Value):
                inputs[slot["name"]] = unlike_a_link(source.value)
            elif source is not None:
                inputs[slot["name"]] = list(source)
        return inputs

    def _is_of_another_version(self, node: dict, slot: dict) -> bool:
        """Whether an input is the socket of a widget that the server's version of a core node does not have.

        The front end drops it; a node that is given it fails with an unexpected argument. Nodes of packs may have
        widgets that only their JavaScript knows.
        """
        info = self.object_info.get(node["type"])
        if info is None or not slot.get("widget") or not is_core(info):
            return False
        specs, name = ordered_inputs(info), slot["name"]
        return name not in specs and slot["widget"]["name"] not in specs and name.split(".")[0] not in specs

    def _own_values(self, node: dict) -> dict:
        """Values of a node's widgets as it was saved."""
        info = self.object_info.get(node["type"])
        if info is None:
            return {}
        named = {slot["widget"]["name"] for slot in node.get("inputs") or [] if slot.get("widget")}
        return read_values(info, node.get("widgets_values") or [], named)

    def _widget_values(self, graph: Graph, node: dict) -> dict:
        result = self._own_values(node)
        specs = ordered_inputs(self.object_info.get(node["type"], {}))
        for name in result:
            outside = graph.held_outside(node, name)
            if outside is not None:
                result[name] = outside[0]
            if isinstance(result[name], str) and options_of(specs.get(name, [""])).get("dynamicPrompts"):
                result[name] = self._drawn(f"{graph.api_id(node)}.{name}", result[name])
        return {name: unlike_a_link(value) for name, value in result.items()}

    def _drawn(self, place: str, text: str) -> str:
        """A prompt with its choices drawn and its comments left out."""
        drawn = resolved(text, self.choose, place)
        if has_choices(text):
            shown = drawn if len(drawn) <= 200 else drawn[:197] + "..."
            logger.info("%s: choices drawn (--prompt-seed) and comments left out: %s", place, shown)
        return drawn

    def _source(self, graph: Graph, link_id: Any, wanted: str, visited: set) -> tuple[str, int] | Value | None:
        """(API id, slot) or value that feeds a link, past virtual nodes, bypassed nodes and borders; None for nothing.

        ``wanted`` is the type of the input at the end of the link.
        """
        if link_id is None:
            return None
        if link_id not in graph.links:
            raise BadInput(f"The workflow is damaged: link {link_id} leads nowhere. Save it again in ComfyUI.")
        if (graph, link_id) in visited:
            raise BadInput(f"The workflow is damaged: link {link_id} runs in a circle.")
        visited.add((graph, link_id))
        link = graph.links[link_id]
        if link.origin == INPUT_BORDER and graph.parent is not None:
            outer = graph.outer_link(link.origin_slot)
            if outer is not None:
                return self._source(graph.parent, outer, wanted, visited)
            value = graph.outer_value(link.origin_slot) or self._shown_outside(graph, link)
            return None if value is None else Value(value[0])
        if link.origin not in graph.nodes:
            raise BadInput(f"The workflow is damaged: link {link_id} leads nowhere. Save it again in ComfyUI.")
        return self._output(graph, graph.nodes[link.origin], link.origin_slot, wanted, visited)

    def _shown_outside(self, graph: Graph, link: LinkEnds) -> tuple[Any] | None:
        """(value,) of the widget that a sub-graph's instance shows for a border input that it holds no value for.

        It is that of the first inner node with a widget there, as it is written: nothing is drawn in it. Whatever else
        the border input feeds is given it, too.
        """
        shown = ((target, e["widget"]["name"]) for target, e in graph.behind_input(link.origin_slot) if e.get("widget"))
        target, widget = next(shown, (None, ""))
        if target is None or target["type"] not in self.object_info:
            return None
        held = graph.held_outside(target, widget)
        value = self._own_values(target).get(widget)
        return held or (None if value is None else (value,))

    def _output(self, graph: Graph, node: dict, slot: int, wanted: str, visited: set) -> tuple[str, int] | Value | None:
        """What stands behind output ``slot`` of a node."""
        inputs = node.get("inputs") or []
        if node.get("mode") == MUTED:
            return None
        if node.get("mode") == BYPASSED:
            through = self._bypass(node, inputs, slot, wanted)
            if through is None:
                return None
            return self._source(graph, through.get("link"), through.get("type", "*"), visited)
        if node["id"] in graph.inside:
            inner = graph.inside[node["id"]]
            return self._source(inner, inner.link_to_output(slot), wanted, visited)
        if node["type"] in REROUTES | SETTERS:
            return self._source(graph, inputs[0].get("link"), wanted, visited) if inputs else None
        if node["type"] in GETTERS:
            return self._pair(graph, node, wanted, visited)
        if node["type"] == PRIMITIVE:
            held = graph.held_outside(node, "value", *((output.get("widget") or {}).get("name", "value")
                                                       for output in node.get("outputs") or []))  # fmt: skip
            values = node.get("widgets_values") or []
            return Value(held[0]) if held else Value(values[0]) if isinstance(values, list) and values else None
        return graph.api_id(node), slot

    def _pair(self, graph: Graph, node: dict, wanted: str, visited: set) -> tuple[str, int] | Value | None:
        """What a Get node stands for: whatever feeds its Set node."""
        found = setter_of(graph, node)
        if found is None:
            raise BadInput(f"Node {graph.api_id(node)} ({node['type']}) finds no Set node of its name. {EXPORT_HINT}")
        level, setter = found
        inputs = setter.get("inputs") or []
        return self._source(level, inputs[0].get("link"), wanted, visited) if inputs else None

    @staticmethod
    def _bypass(node: dict, inputs: list[dict], slot: int, wanted: str) -> dict | None:
        """The input of a bypassed node that takes over for its output ``slot``: same place first, then same type."""
        outputs = node.get("outputs") or []
        own = outputs[slot].get("type", "*") if 0 <= slot < len(outputs) else "*"
        if wanted in ("*", ""):
            return inputs[slot] if 0 <= slot < len(inputs) else (inputs[0] if inputs else None)

        def fits(entry: dict) -> bool:
            return compatible(entry.get("type", "*"), own) and compatible(entry.get("type", "*"), wanted)

        if 0 <= slot < len(inputs) and fits(inputs[slot]):
            return inputs[slot]
        exact = [entry for entry in inputs if entry.get("type") == wanted]
        return next(iter(exact or [entry for entry in inputs if fits(entry)]), None)


def is_core(info: dict) -> bool:
    """Whether a node is ComfyUI's own, by its definition."""
    return str(info.get("python_module", "custom_nodes")).startswith(("nodes", "comfy_extras", "comfy_api_nodes"))


def compatible(one: str, other: str) -> bool:
    """Whether two socket types connect: equal, a wildcard, or sharing one of their comma-separated names."""
    if "*" in (one, other) or one == other:
        return True
    return bool(set(str(one).lower().split(",")) & set(str(other).lower().split(",")))


def unlike_a_link(value: Any) -> Any:
    """A value as the server takes it: a list would be read as a link, so it is wrapped, which the server undoes."""
    return {"__value__": value} if isinstance(value, list) else value
