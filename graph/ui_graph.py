"""The graphs of a UI-format workflow: its nodes and links by id, and the sub-graphs inside it.

A sub-graph is a definition (``definitions.subgraphs``) and any number of nodes whose type is its id. Inside, links that
come from the border start at a pseudo node for inputs, and links that leave end at one for outputs. In API format the
inner nodes of instance 7 are called ``7:ID``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..installation.errors import BadInput
from .ui_check import check_shape

INPUT_BORDER, OUTPUT_BORDER = -10, -20


@dataclass(frozen=True)
class LinkEnds:
    """Where a link starts and ends: node ids and slots."""

    origin: Any
    origin_slot: int
    target: Any
    target_slot: int


@dataclass(eq=False)
class Graph:
    """One level of a workflow.

    Attributes:
        prefix: what the ids of its nodes begin with in API format ("" at the top, "7:" inside instance 7).
        nodes: by id; links: by id; definition: the sub-graph it is an instance of (None at the top).
        parent, instance: the graph and the node that this one is inside of (None at the top).
        inside: graphs of the sub-graph nodes in this one, by node id.
    """

    prefix: str
    nodes: dict[Any, dict]
    links: dict[Any, LinkEnds]
    definition: dict | None = None
    parent: Graph | None = None
    instance: dict | None = None
    inside: dict[Any, Graph] = field(default_factory=dict)

    def api_id(self, node: dict) -> str:
        """The id of a node in API format."""
        return f"{self.prefix}{node['id']}"

    def all_graphs(self) -> list[Graph]:
        """This graph and everything inside, depth first."""
        return [self, *(graph for child in self.inside.values() for graph in child.all_graphs())]

    def outer_link(self, slot: int) -> Any:
        """Inside a sub-graph: the id of the link (in the parent) that feeds border input ``slot``, or None."""
        borders = self.definition.get("inputs") or []
        if slot >= len(borders):
            label = self.definition.get("name")
            raise BadInput(
                f"The workflow is damaged: the sub-graph {label} has no input {slot}. Save it again in ComfyUI."
            )
        name = borders[slot]["name"]
        return next((entry.get("link") for entry in self.instance.get("inputs") or [] if entry["name"] == name), None)

    def outer_value(self, slot: int) -> tuple[Any] | None:
        """Inside a sub-graph: (value,) of the widget that stands in for border input ``slot``, or None."""
        values = self.instance.get("widgets_values")
        promoted = [k for k in range(len(self.definition.get("inputs") or [])) if self._feeds_widget(k)]
        if not isinstance(values, list) or slot not in promoted or promoted.index(slot) >= len(values):
            return None
        return (values[promoted.index(slot)],)

    def _feeds_widget(self, slot: int) -> bool:
        for link in self.links.values():
            if link.origin == INPUT_BORDER and link.origin_slot == slot and link.target in self.nodes:
                inputs = self.nodes[link.target].get("inputs") or []
                return link.target_slot < len(inputs) and bool(inputs[link.target_slot].get("widget"))
        return False

    def link_to_output(self, slot: int) -> Any:
        """Inside a sub-graph: the id of the link that ends at border output ``slot``, or None."""
        ends = ((key, link) for key, link in self.links.items() if link.target == OUTPUT_BORDER)
        return next((key for key, link in ends if link.target_slot == slot), None)


def build(workflow: dict) -> Graph:
    """The top graph of a UI-format workflow, with its sub-graphs inside. Raises ``BadInput`` for damaged files."""
    check_shape(workflow)
    definitions = {entry["id"]: entry for entry in (workflow.get("definitions") or {}).get("subgraphs") or []}
    return _build(workflow, definitions, Graph("", {}, {}), ())


def _build(content: dict, definitions: dict[str, dict], graph: Graph, path: tuple[str, ...]) -> Graph:
    graph.nodes.update({node["id"]: node for node in content.get("nodes") or []})
    graph.links.update(_links(content))
    for node in graph.nodes.values():
        definition = definitions.get(node["type"])
        if definition is None:
            continue
        if node["type"] in path:
            raise BadInput(f"The workflow is damaged: the sub-graph {definition.get('name')} contains itself.")
        child = Graph(f"{graph.prefix}{node['id']}:", {}, {}, definition, graph, node)
        graph.inside[node["id"]] = _build(definition, definitions, child, (*path, node["type"]))
    return graph


def _links(content: dict) -> dict[Any, LinkEnds]:
    """Links by id, from the list form (top level of version 0.4) or the object form (sub-graphs, version 1)."""
    links = {}
    for link in content.get("links") or []:
        if isinstance(link, dict):
            ends = (link["origin_id"], link["origin_slot"], link["target_id"], link["target_slot"])
            links[link["id"]] = LinkEnds(*ends)
        else:
            links[link[0]] = LinkEnds(*link[1:5])
    return links
