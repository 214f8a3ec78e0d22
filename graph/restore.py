"""Back to KSampler: a search becomes the stock sampler that it replaced, or the nearest one to it.

``upgrade`` keeps in the node what was there before. A graph that nobody has touched since is again exactly what it was;
values and links that were changed in the meantime are carried over.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from ..installation.errors import BadInput
from .api_page import ApiPage
from .catalogue import Catalogue
from .counters import put_back
from .places import pair
from .record import RECORD, Record
from .surroundings import find_page
from .ui_page import UiPage
from .widgets import ordered_inputs

ALSO_HOLD_VALUES = ("BasicScheduler", "KSamplerSelect")
"""Nodes that ``upgrade`` adds whose widgets were the sampler's."""
OWN_MEANING = ("add_noise",)


@dataclass
class Restored:
    """A workflow without the search. ``node``: the sampler's id on its page; ``notes``: sentences for the person."""

    workflow: dict
    node: Any
    notes: list[str] = field(default_factory=list)


def back(workflow: dict, object_info: dict, where: str) -> Restored:
    """A copy of a workflow in which a search (its sampler, or a node that came with it) is a stock sampler again.

    Args:
        where: as for ``upgrade``.

    Raises:
        BadInput: the node is no search, or the workflow cannot be read.
    """
    workflow = deepcopy(workflow)
    page, key = find_page(workflow, object_info, where)
    catalogue = Catalogue(object_info)
    for owner in _all(page):
        record = page.notes_if_any(owner).get(RECORD)
        if isinstance(record, dict) and (owner == key or key in record.get("added", ())):
            return Restored(workflow, owner, _restore(page, owner, Record.read(record)))
    kind = page.kind(key)
    random = page.values(key).get("eta", 1.0) != 0
    name = {"sampler_name": "euler_ancestral" if random else "euler"}
    if kind == catalogue.search_ksampler():
        target, values = "KSampler", {**name, **page.values(key)}
    elif kind == catalogue.search_sampler():
        target, values = "KSamplerSelect", name
    else:
        raise BadInput(f"node {key} is a {kind[:80]}: choose a search node")
    specs = ordered_inputs(object_info[target])
    kept = {entry: page.source(key, entry) for entry in page.inputs(key) if entry in specs and page.source(key, entry)}
    page.cut_outputs(key, len(object_info[target]["output"]))
    page.replace(key, target, values, kept)
    return Restored(workflow, key, [f"It was no KSampler before: it is one with {values['sampler_name']} now."])


def _all(page: ApiPage | UiPage) -> list:
    return list(page.content) if isinstance(page, ApiPage) else list(page.nodes)


def _restore(page: ApiPage | UiPage, key: Any, record: Record) -> list[str]:
    """Put the sampler back; returns sentences for the person."""
    now = {name: page.source(key, name) for name in page.inputs(key)}
    values = {}
    for holder in (*(other for other in record.added if _kind(page, other) in ALSO_HOLD_VALUES), key):
        values |= {name: value for name, value in page.values(holder).items() if name not in OWN_MEANING}
        if holder != key:
            now = {name: page.source(holder, name) for name in page.inputs(holder)} | now
    if isinstance(page, UiPage):
        _restore_ui(page, key, record, now, values)
    else:
        _restore_api(page, key, record, now, values)
    return []


def _kind(page: ApiPage | UiPage, key: Any) -> str:
    try:
        return page.kind(key)
    except KeyError:
        return ""


def _restore_api(page: ApiPage, key: str, record: Record, now: dict, values: dict) -> None:
    node = deepcopy(record.node)
    for name in node["inputs"]:
        source = now.get(name)
        if source is not None and source[0] not in record.added:
            node["inputs"][name] = list(source)
        elif name in values and record.sources.get(name) is None:
            node["inputs"][name] = values[name]
    page.restore(key, node)
    _remove_added(page, record)


def _restore_ui(page: UiPage, key: Any, record: Record, now: dict, values: dict) -> None:
    old = deepcopy(record.node)
    replaced = page.node(key)
    moved = pair(replaced.get("pos")) != record.place
    page.cut_outputs(key, len(old.get("outputs") or []))
    for name in page.inputs(key):
        page.disconnect(key, name)
    leaving = [entry.get("links") for entry in replaced.get("outputs") or []]
    page.restore(key, old)
    for slot in old.get("inputs") or []:
        slot["link"] = None
    for slot, links in zip(old.get("outputs") or [], leaving, strict=False):
        slot["links"] = links
    if moved:
        old["pos"] = list(pair(replaced.get("pos")))
    page.set_values(key, values)
    _remove_added(page, record)
    places = {name: place for name, (place, _) in record.links.items()}
    for name in sorted(dict.fromkeys([*record.sources, *now]), key=lambda name: places.get(name, math.inf)):
        before, source = record.sources.get(name), now.get(name)
        if source is None or source[0] in record.added or source[0] == key:
            source = before
        if source is None or not page.has_input(key, name) or not page.is_there(source[0]):
            continue
        page.connect(source, key, name, record.links.get(name) if source == before else None)
    page.put_in_order(record.leaving)
    put_back(page.workflow, record.counters)


def _remove_added(page: ApiPage | UiPage, record: Record) -> None:
    """Take out what came with the search, unless something else uses it by now."""
    left = [key for key in record.added if _kind(page, key)]
    while True:
        unused = [key for key in left if not page.taken(key)]
        if not unused:
            return
        for key in unused:
            page.remove(key)
            left.remove(key)
