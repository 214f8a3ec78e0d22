"""Widgets of a sub-graph's inner nodes that its instances show, and the values that an instance holds for them.

Two ways of saving are in use. Without ``proxyWidgets``, the values of an instance belong to those inputs of the
sub-graph that feed a widget inside, in order. With it, they belong to its entries ``[inner node, widget]``, in order,
some of which are fed by an input of the sub-graph (``-1`` names that input itself), while others stand for an inner
widget directly. The newest front ends also save ``widgets_values_named``, by the names of the sub-graph's inputs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ui_graph import Graph

PREFIX = re.compile(r"^\s*\d+\s*:\s*")  # of entries that older files hold for widgets of nested sub-graphs
PREVIEW = "$$"  # what names of pictures begin with, which are shown and hold no value


@dataclass
class Promoted:
    """Values of one instance.

    Attributes:
        of_input: slot of the sub-graph's input -> (value,).
        of_widget: (inner node id as text, widget) -> (value,).
    """

    of_input: dict[int, tuple[Any]] = field(default_factory=dict)
    of_widget: dict[tuple[str, str], tuple[Any]] = field(default_factory=dict)


def promoted_values(graph: Graph) -> Promoted:
    """What the instance that ``graph`` is inside of says about its widgets."""
    found = Promoted()
    values = graph.instance.get("widgets_values")
    if not isinstance(values, list):
        return found
    proxies = (graph.instance.get("properties") or {}).get("proxyWidgets")
    named = graph.instance.get("widgets_values_named")
    if isinstance(named, dict) and not proxies:
        borders = enumerate(graph.definition.get("inputs") or [])
        found.of_input = {slot: (named[border["name"]],) for slot, border in borders if border["name"] in named}
        return found
    if not isinstance(proxies, list) or not proxies:
        fed = [slot for slot in range(len(graph.definition.get("inputs") or [])) if widget_behind(graph, slot)]
        found.of_input = {slot: (value,) for slot, value in zip(fed, values, strict=False)}
        return found
    for entry, value in zip(proxies, values, strict=False):
        if value is None or not isinstance(entry, list) or len(entry) < 2 or str(entry[1]).startswith(PREVIEW):
            continue
        node, widget = str(entry[0]), str(entry[1])
        slot = _input_that_feeds(graph, node, widget)
        if slot is None and PREFIX.match(widget):
            widget = PREFIX.sub("", widget)
            slot = _input_that_feeds(graph, node, widget)
        if slot is not None:
            found.of_input[slot] = (value,)
        else:
            found.of_widget[node, widget] = (value,)
    return found


def widget_behind(graph: Graph, slot: int) -> tuple[str, str] | None:
    """(inner node id as text, widget) that an input of the sub-graph feeds; None where it feeds no widget."""
    for target, entry in graph.behind_input(slot):
        widget = entry.get("widget")
        return (str(target["id"]), widget["name"]) if widget else None
    return None


def _input_that_feeds(graph: Graph, node: str, widget: str) -> int | None:
    """Slot of the sub-graph's input that feeds a widget of an inner node, None where none does."""
    for slot, border in enumerate(graph.definition.get("inputs") or []):
        if node == "-1":
            if border["name"] == widget:
                return slot
            continue
        for target, entry in graph.behind_input(slot):
            shown = (entry.get("widget") or {}).get("name", entry["name"])
            if str(target["id"]) == node and widget in (shown, entry["name"], _innermost(graph, target, entry)):
                return slot
    return None


def _innermost(graph: Graph, target: dict, entry: dict) -> str | None:
    """What the widget behind an input of a nested instance is called where it really is."""
    inner = graph.inside.get(target["id"])
    if inner is None:
        return None
    for slot, border in enumerate(inner.definition.get("inputs") or []):
        if border["name"] == entry["name"]:
            for deeper, behind in inner.behind_input(slot):
                return _innermost(inner, deeper, behind) or (behind.get("widget") or {}).get("name")
    return None
