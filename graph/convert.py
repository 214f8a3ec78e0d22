"""UI-format workflow (what the front end saves) -> API format (what the server runs).

The front end does this in the browser; here the node definitions of the server (``/object_info``) stand in for it:
they say which inputs have widgets and in which order their values were saved. Covered: widget order with the extra
"control after generate" values, inputs converted from widgets, Reroute and Primitive nodes, notes, muted nodes (left
out, with the links to them) and bypassed nodes (the link continues at an input of the same type). Sub-graphs and group
nodes are refused with the way around them. Random choices in prompts such as ``{a|b}`` are not drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..installation.errors import BadInput
from .ui_graph import INPUT_BORDER, Graph, build

MUTED = 2
BYPASSED = 4
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTES = {"Note", "MarkdownNote"}
# Inputs of these names always get a "control after generate" widget, whatever the node says (a front-end convention).
SEED_NAMES = {"seed", "noise_seed"}
UPLOADS = ("image_upload", "animated_image_upload", "video_upload", "audio_upload")
EXPORT_HINT = "Open the workflow in ComfyUI and use Workflow > Export (API); testtime run takes that file."


@dataclass(frozen=True)
class Value:
    """What a Primitive node feeds into an input: a plain value instead of a link."""

    value: Any


def to_api(workflow: dict, object_info: dict) -> dict:
    """The API-format twin of a UI-format workflow. Nodes the server does not know keep their links and raise later.

    Raises ``BadInput`` for workflows with group nodes, and for links that lead nowhere.
    """
    return Converter(workflow, object_info).convert()


def packs_named_in(workflow: dict) -> dict[str, str]:
    """Class -> pack for the nodes of a UI-format workflow that record where they come from."""
    packs = {}
    for node in (node for graph in build(workflow).all_graphs() for node in graph.nodes.values()):
        properties = node.get("properties") or {}
        pack = properties.get("cnr_id") or properties.get("aux_id")
        if pack and pack != "comfy-core":
            packs[node["type"]] = f"from the pack {pack}"
    return packs


def has_widget(spec: list) -> bool:
    """Whether the front end shows a widget for an input of this specification."""
    kind = spec[0]
    options = spec[1] if len(spec) > 1 else {}
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput")


def ordered_inputs(info: dict) -> dict[str, list]:
    """Input specifications in the order the front end creates widgets: required, then optional, as declared."""
    sections = info.get("input", {})
    order = info.get("input_order", {})
    specs = {}
    for section in ("required", "optional"):
        declared = sections.get(section, {})
        for name in [*order.get(section, []), *declared]:
            if name in declared:
                specs[name] = declared[name]
    return specs


def extra_values(name: str, spec: list) -> int:
    """How many values without a meaning for the server follow the one of this widget in ``widgets_values``."""
    options = spec[1] if len(spec) > 1 else {}
    if spec[0] == "INT":
        return int(bool(options.get("control_after_generate", name in SEED_NAMES)))
    if (isinstance(spec[0], list) or spec[0] == "COMBO") and options.get("control_after_generate"):
        return 2  # the control and its filter list
    return 0


def widget_slots(info: dict, named_widgets: set[str] = frozenset()) -> list[str | None]:
    """The meaning of each position of ``widgets_values``: an input's name, or None for a value to skip.

    ``named_widgets``: inputs that the file itself marks as widgets (packs may give any type a widget of their own).
    """
    slots: list[str | None] = []
    uploads = 0
    for name, spec in ordered_inputs(info).items():
        if not has_widget(spec) and name not in named_widgets:
            continue
        slots += [name] + [None] * extra_values(name, spec)
        uploads += any((spec[1] if len(spec) > 1 else {}).get(key) for key in UPLOADS)
    return slots + [None] * uploads


class Converter:
    """One conversion: the graphs of a workflow, and the walk from an input to what feeds it."""

    def __init__(self, workflow: dict, object_info: dict):
        self.object_info = object_info
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
            if self._is_virtual(node) or node.get("mode") in (MUTED, BYPASSED):
                continue
            if node["id"] in graph.inside:
                result |= self._nodes(graph.inside[node["id"]])
                continue
            result[graph.api_id(node)] = {
                "class_type": node["type"],
                "inputs": self._inputs(graph, node),
                "_meta": {"title": self._title(node)},
            }
        return result

    def _is_virtual(self, node: dict) -> bool:
        return node["type"] in NOTES or node["type"] in ("Reroute", "PrimitiveNode")

    def _title(self, node: dict) -> str:
        display_name = self.object_info.get(node["type"], {}).get("display_name")
        return node.get("title") or display_name or node["type"]

    def _inputs(self, graph: Graph, node: dict) -> dict:
        inputs = self._widget_values(node)
        for slot in node.get("inputs") or []:
            source = self._source(graph, slot.get("link"), slot.get("type", "*"), set())
            if isinstance(source, Value):
                inputs[slot["name"]] = source.value
            elif source is not None:
                inputs[slot["name"]] = list(source)
        return inputs

    def _widget_values(self, node: dict) -> dict:
        values = node.get("widgets_values")
        info = self.object_info.get(node["type"])
        if info is None or not values:
            values = values if isinstance(values, dict) else []
        named = {slot["widget"]["name"] for slot in node.get("inputs") or [] if slot.get("widget")}
        specs = ordered_inputs(info or {})
        if isinstance(values, dict):
            return {name: values[name] for name in specs if name in values}
        slots = widget_slots(info or {}, named)
        values = self._without_forced(values, specs, slots)
        result = {name: value for name, value in zip(slots, values, strict=False) if name is not None}
        for name in slots:
            if name is not None and name not in result:
                default = default_value(specs[name])
                if default is not None:
                    result[name] = default
        # A list would be read as a link; the server unwraps this form.
        return {name: {"__value__": value} if isinstance(value, list) else value for name, value in result.items()}

    @staticmethod
    def _without_forced(values: list, specs: dict, slots: list) -> list:
        """Drop the values that old files hold for inputs with ``forceInput``, as the front end does."""
        entries: list[bool] = []
        for name, spec in specs.items():
            forced = bool((spec[1] if len(spec) > 1 else {}).get("forceInput"))
            if name in slots or forced:
                entries += [forced] * (1 + extra_values(name, spec))
        if len(entries) != len(values) or not any(entries):
            return values
        return [value for value, forced in zip(values, entries, strict=True) if not forced]

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
            value = graph.outer_value(link.origin_slot)
            return None if value is None else Value(value[0])
        if link.origin not in graph.nodes:
            raise BadInput(f"The workflow is damaged: link {link_id} leads nowhere. Save it again in ComfyUI.")
        return self._output(graph, graph.nodes[link.origin], link.origin_slot, wanted, visited)

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
        if node["type"] == "Reroute":
            return self._source(graph, inputs[0].get("link"), wanted, visited) if inputs else None
        if node["type"] == "PrimitiveNode":
            values = node.get("widgets_values") or []
            return Value(values[0]) if values else None
        return graph.api_id(node), slot

    @staticmethod
    def _bypass(node: dict, inputs: list[dict], slot: int, wanted: str) -> dict | None:
        """The input of a bypassed node that takes over for its output ``slot``: same place first, then same type."""
        outputs = node.get("outputs") or []
        own = outputs[slot].get("type", "*") if slot < len(outputs) else "*"
        if wanted in ("*", ""):
            return inputs[slot] if slot < len(inputs) else (inputs[0] if inputs else None)

        def fits(entry: dict) -> bool:
            return compatible(entry.get("type", "*"), own) and compatible(entry.get("type", "*"), wanted)

        if slot < len(inputs) and fits(inputs[slot]):
            return inputs[slot]
        exact = [entry for entry in inputs if entry.get("type") == wanted]
        return next(iter(exact or [entry for entry in inputs if fits(entry)]), None)


def compatible(one: str, other: str) -> bool:
    """Whether two socket types connect: equal, a wildcard, or sharing one of their comma-separated names."""
    if "*" in (one, other) or one == other:
        return True
    return bool(set(str(one).lower().split(",")) & set(str(other).lower().split(",")))


def default_value(spec: list) -> Any:
    """What the front end would put into a widget without a saved value."""
    options = spec[1] if len(spec) > 1 else {}
    if "default" in options:
        return options["default"]
    choices = spec[0] if isinstance(spec[0], list) else options.get("options") or []
    return choices[0] if choices else None
