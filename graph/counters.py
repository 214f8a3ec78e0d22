"""Ids of nodes and links in a UI-format workflow: which are free, and the counters that a file keeps of them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

NODE, LINK = "node", "link"
_NAMES = {NODE: ("nodes", "last_node_id", "lastNodeId"), LINK: ("links", "last_link_id", "lastLinkId")}


def levels_of(workflow: dict) -> list[dict]:
    """The workflow itself and the definitions of its sub-graphs."""
    return [workflow, *((workflow.get("definitions") or {}).get("subgraphs") or [])]


def used(workflow: dict, what: str) -> int:
    """The highest id of a node (``NODE``) or a link (``LINK``) anywhere in a workflow."""
    entries = _NAMES[what][0]
    ids = [e["id"] if isinstance(e, dict) else e[0] for level in levels_of(workflow) for e in level.get(entries) or []]
    return max((number for number in ids if isinstance(number, int)), default=0)


def counted(levels: list[dict], what: str) -> int:
    """The highest id that the counters of some levels know."""
    _, top, inside = _NAMES[what]
    found = [level.get(top) for level in levels] + [(level.get("state") or {}).get(inside) for level in levels]
    return max((number for number in found if isinstance(number, int)), default=0)


def next_id(workflow: dict, what: str) -> int:
    """An id that is nowhere in use; the counters are moved on."""
    levels = levels_of(workflow)
    number = max(used(workflow, what), counted(levels, what)) + 1
    _, top, inside = _NAMES[what]
    for level in levels:
        if top in level:
            level[top] = number
        if isinstance(level.get("state"), dict) and inside in level["state"]:
            level["state"][inside] = number
    return number


def counters_of(workflow: dict) -> dict[str, Any]:
    """The counters of all levels, and the highest ids in use."""
    names = ("last_node_id", "last_link_id", "state")
    levels = [{name: deepcopy(level[name]) for name in names if name in level} for level in levels_of(workflow)]
    return {"levels": levels, NODE: used(workflow, NODE), LINK: used(workflow, LINK)}


def put_back(workflow: dict, counters: dict[str, Any]) -> None:
    """Set the counters of all levels, unless nodes or links are there by now that they do not count."""
    levels, saved = levels_of(workflow), counters.get("levels", [])
    if len(levels) == len(saved) and all(used(workflow, what) <= counters[what] for what in (NODE, LINK)):
        for level, before in zip(levels, saved, strict=True):
            level.update(deepcopy(before))
