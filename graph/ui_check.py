"""Check that a UI-format file has the shape that the converter reads, so that a damaged one gets one clear line."""

from __future__ import annotations

from typing import Any

from ..installation.errors import BadInput

LINK_KEYS = ("id", "origin_id", "origin_slot", "target_id", "target_slot")


def check_shape(workflow: dict) -> None:
    """Raise ``BadInput`` that names the first part of a workflow that is not what it should be."""
    definitions = workflow.get("definitions")
    _need(definitions is None or isinstance(definitions, dict), "definitions", "an object")
    for place, entry in _entries(definitions or {}, "subgraphs", "definitions.subgraphs"):
        _need(isinstance(entry.get("id"), str), f"{place}.id", "a text")
        for side in ("inputs", "outputs"):
            for inner, socket in _entries(entry, side, f"{place}.{side}"):
                _need(isinstance(socket.get("name"), str), f"{inner}.name", "a text")
        _check_graph(entry, f"{place}.")
    _check_graph(workflow, "")


def _check_graph(graph: dict, where: str) -> None:
    for place, node in _entries(graph, "nodes", f"{where}nodes"):
        _need(_is_id(node.get("id")), f"{place}.id", "a number or a text")
        _need(isinstance(node.get("type"), str), f"{place}.type", "a text")
        values = node.get("widgets_values")
        _need(values is None or isinstance(values, (list, dict)), f"{place}.widgets_values", "a list")
        properties = node.get("properties")
        _need(properties is None or isinstance(properties, dict), f"{place}.properties", "an object")
        for inner, socket in _entries(node, "inputs", f"{place}.inputs"):
            _check_input(socket, inner)
        _entries(node, "outputs", f"{place}.outputs")
    _check_links(graph.get("links") or [], f"{where}links")


def _check_input(socket: dict, place: str) -> None:
    _need(isinstance(socket.get("name"), str), f"{place}.name", "a text")
    link, widget = socket.get("link"), socket.get("widget")
    _need(link is None or _is_id(link), f"{place}.link", "a number")
    known = widget is None or (isinstance(widget, dict) and isinstance(widget.get("name"), str))
    _need(known, f"{place}.widget", "an object with a name")


def _check_links(links: Any, where: str) -> None:
    _need(isinstance(links, list), where, "a list")
    for number, link in enumerate(links):
        if isinstance(link, dict):
            ends = [link.get(key) for key in LINK_KEYS]
        else:
            ends = link[:5] if isinstance(link, list) else []
        whole = len(ends) == 5 and all(map(_is_id, ends)) and isinstance(ends[2], int) and isinstance(ends[4], int)
        _need(whole, f"{where}[{number}]", "an id, a node and slot it comes from, and a node and slot it goes to")


def _entries(parent: dict, name: str, where: str) -> list[tuple[str, dict]]:
    """(place, entry) of a list of objects that may be absent."""
    found = parent.get(name)
    _need(found is None or isinstance(found, list), where, "a list")
    for number, entry in enumerate(found or []):
        _need(isinstance(entry, dict), f"{where}[{number}]", "an object")
    return [(f"{where}[{number}]", entry) for number, entry in enumerate(found or [])]


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _need(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise BadInput(f"The workflow is damaged: {where} must be {what}. Save it again in ComfyUI.")
