"""The graphs of a UI-format workflow: its nodes and links by id, and the sub-graphs inside it.

A sub-graph is a definition (``definitions.subgraphs``) and any number of nodes whose type is its id. Inside, links that
come from the border start at a pseudo node for inputs, and links that leave end at one for outputs. In API format the
inner nodes of instance 7 are called ``7:ID``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..installation.errors import BadInput
from .promoted import Promoted, promoted_values
from .ui_check import check_shape

MOST_NODES = 20_000
"""Nodes of a workflow with all its sub-graphs, which may double on every level."""
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
        if not 0 <= slot < len(borders):
            label = self.definition.get("name")
            raise BadInput(
                f"The workflow is damaged: the sub-graph {label} has no input {slot}. Save it again in ComfyUI."
            )
        name = borders[slot]["name"]
        return next((entry.get("link") for entry in self.instance.get("inputs") or [] if entry["name"] == name), None)

    def outer_value(self, slot: int) -> tuple[Any] | None:
        """Inside a sub-graph: (value,) of the widget that stands in for border input ``slot``, or None."""
        # The instance may itself be inside of one that holds another value for it.
        borders = self.definition.get("inputs") or []
        names = [borders[slot]["name"]] if slot < len(borders) else []
        names += [entry["widget"]["name"] for _, entry in self.behind_input(slot) if entry.get("widget")]
        return self.parent.held_outside(self.instance, *names) or self.promoted.of_input.get(slot)

    def held_outside(self, node: dict, *widgets: str) -> tuple[Any] | None:
        """(value,) that the instance around this graph holds for one of the widgets of an inner node, or None."""
        if self.definition is None:
            return None
        found = (self.promoted.of_widget.get((str(node["id"]), widget)) for widget in widgets)
        return next((value for value in found if value is not None), None)

    @cached_property
    def promoted(self) -> Promoted:
        """Inside a sub-graph: the values that its instance holds for inner widgets."""
        return Promoted() if self.definition is None else promoted_values(self)

    def behind_input(self, slot: int) -> Iterator[tuple[dict, dict]]:
        """Inside a sub-graph: (node, its input) of everything that border input ``slot`` is linked to."""
        for link in self._from_border.get(slot, ()):
            inputs = self.nodes[link.target].get("inputs") or []
            if 0 <= link.target_slot < len(inputs):
                yield self.nodes[link.target], inputs[link.target_slot]

    @cached_property
    def _from_border(self) -> dict[int, list[LinkEnds]]:
        found: dict[int, list[LinkEnds]] = {}
        for link in self.links.values():
            if link.origin == INPUT_BORDER and link.target in self.nodes:
                found.setdefault(link.origin_slot, []).append(link)
        return found

    def link_to_output(self, slot: int) -> Any:
        """Inside a sub-graph: the id of the link that ends at border output ``slot``, or None."""
        ends = ((key, link) for key, link in self.links.items() if link.target == OUTPUT_BORDER)
        return next((key for key, link in ends if link.target_slot == slot), None)


def build(workflow: dict) -> Graph:
    """The top graph of a UI-format workflow, with its sub-graphs inside. Raises ``BadInput`` for damaged files."""
    check_shape(workflow)
    definitions = {entry["id"]: entry for entry in (workflow.get("definitions") or {}).get("subgraphs") or []}
    return _build(workflow, definitions, Graph("", {}, {}), (), [0])


def _build(content: dict, definitions: dict[str, dict], graph: Graph, path: tuple[str, ...], count: list[int]) -> Graph:
    """``count``: nodes so far, of the whole workflow."""
    graph.nodes.update({node["id"]: node for node in content.get("nodes") or []})
    graph.links.update(_links(content))
    count[0] += len(graph.nodes)
    if count[0] > MOST_NODES:
        raise BadInput(f"The workflow has more than {MOST_NODES} nodes, with all its sub-graphs: that cannot be run.")
    for node in graph.nodes.values():
        definition = definitions.get(node["type"])
        if definition is None:
            continue
        if node["type"] in path:
            raise BadInput(f"The workflow is damaged: the sub-graph {definition.get('name')} contains itself.")
        child = Graph(f"{graph.prefix}{node['id']}:", {}, {}, definition, graph, node)
        graph.inside[node["id"]] = _build(definition, definitions, child, (*path, node["type"]), count)
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
