"""A search that follows gradients refuses, when the workflow is queued, a verifier that has none. Holds no nodes.

A node's ``validate_inputs`` sees its own widgets only, so the graph is taken note of when the server receives it; both
happen in one task. Verifier nodes say what they are in a class attribute ``differentiable``: False, or a function of
their inputs and of the graph; without it nothing is said before the run.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar
from typing import Any

NODES: list[type] = []

Graph = dict[str, dict[str, Any]]
"""A workflow in API format."""

_queued: ContextVar[Graph | None] = ContextVar("testtime_queued", default=None)
_DEPTH = 50  # nodes that are followed in a row; a graph with a cycle is refused elsewhere


def note(request: dict[str, Any]) -> dict[str, Any]:
    """Server hook: remember the workflow of a request that is about to be validated."""
    graph = request.get("prompt")
    _queued.set(graph if isinstance(graph, dict) else None)
    return request


def queued() -> Graph | None:
    """The workflow that is being validated, where it is known."""
    return _queued.get()


def problem(node: str | None, graph: Graph | None) -> str | None:
    """Why the searches that the method node ``node`` ends up in cannot be guided; None where nothing speaks against it.

    Args:
        node: id of the method's node, None where it is not known.
        graph: the workflow, None where it is not known.
    """
    if not graph or node not in graph:
        return None
    for entry in consumers(node, graph):
        verifier = source(entry["inputs"].get("verifier"), graph)
        reason = None if verifier is None else unguidable(verifier, graph)
        if reason:
            return (
                f"{reason}, and DAS follows the gradient of the score: use SMC (or guidance 0) with this verifier, or "
                "a differentiable one, e.g. CLIPScore, PickScore, HPSv2, ImageReward or an aesthetic predictor"
            )
    return None


def consumers(node: str, graph: Graph, depth: int = 0) -> list[dict[str, Any]]:
    """Nodes with a verifier that the search of ``node`` reaches, also through nodes that hand a search on."""
    found = []
    for name, entry in graph.items():
        inputs = entry.get("inputs", {})
        if not is_link(inputs.get("search")) or str(inputs["search"][0]) != node:
            continue
        if "verifier" in inputs:
            found.append(entry)
        elif depth < _DEPTH:
            found += consumers(name, graph, depth + 1)
    return found


def is_link(value: Any) -> bool:
    """Whether an input's value is ``[node, output]``."""
    return isinstance(value, list) and len(value) == 2


def source(value: Any, graph: Graph) -> dict[str, Any] | None:
    """The entry that a link comes from."""
    return graph.get(str(value[0])) if is_link(value) else None


def unguidable(entry: dict[str, Any], graph: Graph, depth: int = 0) -> str | None:
    """Why a verifier node's score has no gradient; None where it has one, or where that is not known."""
    kind = node_class(entry.get("class_type", ""))
    declared = getattr(kind, "differentiable", None)
    if callable(declared) and depth < _DEPTH:
        return declared(entry.get("inputs", {}), lambda value: _linked(value, graph, depth + 1))
    if declared is False:
        title = entry.get("_meta", {}).get("title") or entry["class_type"]
        return f"the verifier {title!r} is not differentiable"
    return None


def _linked(value: Any, graph: Graph, depth: int) -> str | None:
    entry = source(value, graph)
    return None if entry is None else unguidable(entry, graph, depth)


def node_class(class_type: str) -> type | None:
    """The class of a node as the server knows it."""
    known = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
    return known.get(class_type)


def register() -> None:
    """Ask the running server for its workflows; nothing happens without one (tests, library use)."""
    instance = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if instance is not None and hasattr(instance, "add_on_prompt_handler"):
        instance.add_on_prompt_handler(note)


register()
