"""Nodes that live in the browser only: what stands behind them, and which of them may be left out.

The server has no class for them; the front end resolves them before it queues. Core's own (notes, reroutes,
primitives) and the Set/Get pairs that several packs offer are resolved here, too. Others do something to the graph
that only their own JavaScript knows.
"""

from __future__ import annotations

from .ui_graph import Graph

NOTES = {"Note", "MarkdownNote"}
REROUTES = {"Reroute", "Reroute (rgthree)"}
PRIMITIVE = "PrimitiveNode"
SETTERS = {"SetNode", "easy setNode"}
GETTERS = {"GetNode", "easy getNode"}
# By what their names begin with; with links to or from them a workflow means something else than it shows.
BROWSER_ONLY = (
    "Anything Everywhere",
    "Prompts Everywhere",
    "Seed Everywhere",
    "Bookmark (rgthree)",
    "Label (rgthree)",
    "Fast ",
    "Mute / Bypass ",
    "Node Collector (rgthree)",
    "Random Unmuter (rgthree)",
    "Note Plus",
    "PrimitiveNode",
    "SetNode",
    "GetNode",
    "easy setNode",
    "easy getNode",
)


def is_virtual(node: dict) -> bool:
    """Whether a node is resolved here and never reaches the server."""
    return node["type"] in NOTES | REROUTES | SETTERS | GETTERS | {PRIMITIVE}


def is_browser_only(class_type: str) -> bool:
    """Whether a class is known to have no counterpart on any server."""
    return class_type.startswith(BROWSER_ONLY)


def is_unconnected(graph: Graph, node: dict) -> bool:
    """Whether no link leads to or from a node."""
    if any(slot.get("link") is not None for slot in node.get("inputs") or []):
        return False
    return all(node["id"] not in (link.origin, link.target) for link in graph.links.values())


def name_of_pair(node: dict) -> str | None:
    """The name by which a Set and a Get node find each other."""
    values = node.get("widgets_values")
    value = values[0] if isinstance(values, list) and values else None
    if isinstance(values, dict):
        value = next(iter(values.values()), None)
    return value if isinstance(value, str) and value else None


def setter_of(graph: Graph, node: dict) -> tuple[Graph, dict] | None:
    """(graph, Set node) that a Get node takes its value from: of the same graph, else of one around it."""
    name = name_of_pair(node)
    level: Graph | None = graph
    while level is not None and name is not None:
        for other in level.nodes.values():
            if other["type"] in SETTERS and name_of_pair(other) == name:
                return level, other
        level = level.parent
    return None
