"""One level of a UI-format workflow as a page that nodes are exchanged on: read an input, add a node, link.

The two kinds of page offer the same methods. Ids of nodes are those of the page; inside of a sub-graph the node of a
source may be the border (-10).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from .api_page import Source
from .counters import LINK, NODE, next_id
from .places import free_place, pair, size_of
from .ui_graph import INPUT_BORDER
from .widgets import default_value, extra_values, has_widget, ordered_inputs, slots


class UiPage:
    """One level of a UI-format workflow; ``workflow`` and ``content`` (itself, or a sub-graph in it) are changed."""

    def __init__(self, workflow: dict, content: dict, object_info: dict):
        self.workflow = workflow
        self.content = content
        self.object_info = object_info
        self.nodes: dict[Any, dict] = {node["id"]: node for node in content["nodes"]}

    def node(self, key: Any) -> dict:
        """The node as it is saved."""
        return self.nodes[key]

    def kind(self, key: Any) -> str:
        """Class of a node."""
        return self.nodes[key]["type"]

    def source(self, key: Any, name: str) -> Source | None:
        """What is linked to an input."""
        slot = next((entry for entry in self.nodes[key].get("inputs") or [] if entry["name"] == name), None)
        if slot is None or slot.get("link") is None:
            return None
        link = self._link(slot["link"])
        return (_get(link, "origin_id"), _get(link, "origin_slot"))

    def values(self, key: Any) -> dict[str, Any]:
        """Values of the widgets, also of those that a link overrules; a "control after generate" as ``NAME + k``."""
        node = self.nodes[key]
        info = self.object_info.get(node["type"])
        saved = node.get("widgets_values") or []
        if info is None:
            return {}
        if isinstance(saved, dict):
            return dict(saved)
        named = {slot["widget"]["name"] for slot in node.get("inputs") or [] if slot.get("widget")}
        found: dict[str, Any] = {}
        last, extra = "", 0
        for position, (name, _) in enumerate(slots(info, named, saved)):
            if position >= len(saved):
                break
            last, extra = (last, extra + 1) if name is None else (name, 0)
            found[f"{last}+{extra}" if name is None else name] = saved[position]
        return found

    def inputs(self, key: Any) -> list[str]:
        """Names of all inputs that have a value or a link."""
        linked = [entry["name"] for entry in self.nodes[key].get("inputs") or [] if entry.get("link") is not None]
        return list(dict.fromkeys([*linked, *(name for name in self.values(key) if "+" not in name)]))

    def add(self, kind: str, values: dict[str, Any], sources: dict[str, Source], near: Any, title: str = "") -> int:
        """A new node on free space near another one; returns its id."""
        key = next_id(self.workflow, NODE)
        place = free_place(self.content, size_of(kind, self.object_info), self.nodes[near].get("pos"))
        node = self._fresh(key, kind, values, place)
        if title:
            node["title"] = title
        self._place(node)
        for name, source in sources.items():
            self.connect(source, key, name)
        return key

    def reserve(self, key: Any, kind: str) -> None:
        """Give a node the place that one of another class needs, before others are put beside it."""
        node = self.nodes[key]
        width, height = size_of(kind, self.object_info)
        size = max(width, pair(node.get("size"))[0]), height
        node["pos"] = list(free_place(self.content, size, node.get("pos"), but=key))
        node["size"] = list(size)

    def replace(self, key: Any, kind: str, values: dict[str, Any], sources: dict[str, Source]) -> None:
        """Another class in the place of a node; links keep their ids, and what cannot stay linked loses its link."""
        old = self.nodes[key]
        kept = {entry["name"]: entry["link"] for entry in old.get("inputs") or [] if entry.get("link") is not None}
        for name in [name for name in kept if self.source(key, name) != sources.get(name)]:
            self.disconnect(key, name)
            del kept[name]
        self.reserve(key, kind)
        node = self._fresh(key, kind, values, pair(old.get("pos")))
        node["size"] = list(pair(old.get("size")))
        for name in ("order", "mode", "flags", "color", "bgcolor"):
            if name in old:
                node[name] = deepcopy(old[name])
        for before, after in zip(old.get("outputs") or [], node["outputs"], strict=False):
            after["links"] = before.get("links")
        self._exchange(old, node)
        for name, source in sources.items():
            if name in kept:
                slot = self._slot(node, name)
                node["inputs"][slot]["link"] = kept[name]
                _set(self._link(kept[name]), "target_slot", slot)
            else:
                self.connect(source, key, name)

    def connect(self, source: Source, key: Any, name: str, saved: tuple[int, Any] | None = None) -> None:
        """Link an input to an output, in place of what was there; ``saved``: as ``links_into`` gave it."""
        self.disconnect(key, name)
        node = self.nodes[key]
        slot = self._slot(node, name)
        if saved is not None and all(_get(link, "id") != _get(saved[1], "id") for link in self.content["links"]):
            self.content["links"].insert(saved[0], saved[1])
            node["inputs"][slot]["link"] = _get(saved[1], "id")
            self._leaving(source, lambda links: [*links, _get(saved[1], "id")])
            return
        number = next_id(self.workflow, LINK)
        kind = node["inputs"][slot]["type"]
        ends = {"id": number, "origin_id": source[0], "origin_slot": source[1], "target_id": key, "target_slot": slot}
        as_objects = self.content is not self.workflow or any(isinstance(e, dict) for e in self.content["links"])
        link = {**ends, "type": kind} if as_objects else [*ends.values(), kind]
        self.content.setdefault("links", []).append(link)
        node["inputs"][slot]["link"] = number
        self._leaving(source, lambda links: [*links, number])

    def disconnect(self, key: Any, name: str) -> None:
        """Take the link of an input away, if it has one."""
        slot = next((entry for entry in self.nodes[key].get("inputs") or [] if entry["name"] == name), None)
        if slot is None or slot.get("link") is None:
            return
        number, source = slot["link"], self.source(key, name)
        slot["link"] = None
        self.content["links"].remove(self._link(number))
        self._leaving(source, lambda links: [link for link in links if link != number])

    def restore(self, key: Any, node: dict) -> None:
        """Put a saved node into the place of another one."""
        self._exchange(self.nodes[key], node)

    def remove(self, key: Any) -> None:
        """Take a node out, with the links to it."""
        for entry in self.nodes[key].get("inputs") or []:
            self.disconnect(key, entry["name"])
        self.content["nodes"].remove(self.nodes.pop(key))

    def taken(self, key: Any) -> bool:
        """Whether anything takes an output of a node."""
        return any(_get(link, "origin_id") == key for link in self.content.get("links") or [])

    def notes(self, key: Any) -> dict:
        """Where the pack may keep notes of its own in a node."""
        return self.nodes[key].setdefault("properties", {})

    def notes_if_any(self, key: Any) -> dict:
        """The notes that are there."""
        return self.nodes[key].get("properties") or {}

    def cut_outputs(self, key: Any, count: int) -> None:
        """Take the links away that leave from outputs beyond the first ``count``."""
        for link in [link for link in self.content.get("links") or [] if _get(link, "origin_id") == key]:
            if _get(link, "origin_slot") < count:
                continue
            self.content["links"].remove(link)
            target = self.nodes.get(_get(link, "target_id"))
            for entry in (target or {}).get("inputs") or []:
                if entry.get("link") == _get(link, "id"):
                    entry["link"] = None
            for entry in self.content.get("outputs") or [] if target is None else []:
                entry["linkIds"] = [number for number in entry.get("linkIds") or [] if number != _get(link, "id")]

    def has_input(self, key: Any, name: str) -> bool:
        """Whether a node has an input of this name, be it a widget."""
        node = self.nodes[key]
        known = ordered_inputs(self.object_info.get(node["type"], {}))
        return name in known or any(entry["name"] == name for entry in node.get("inputs") or [])

    def is_there(self, key: Any) -> bool:
        """Whether a source's node is on this page, be it the border."""
        return key in self.nodes or (key == INPUT_BORDER and self.content is not self.workflow)

    def set_values(self, key: Any, values: dict[str, Any]) -> None:
        """Give widgets other values; names that the node does not have are left alone."""
        node = self.nodes[key]
        before = self.values(key)
        changed = {name: values[name] for name in before if name in values and values[name] != before[name]}
        if not changed:
            return
        if isinstance(node.get("widgets_values"), dict):
            node["widgets_values"] |= changed
            return
        for position, name in enumerate(before):
            node["widgets_values"][position] = changed.get(name, before[name])

    def links_into(self, key: Any) -> dict[str, tuple[int, Any]]:
        """Input -> (place in the list of links, copy of the link)."""
        places = {_get(link, "id"): place for place, link in enumerate(self.content.get("links") or [])}
        linked = [entry for entry in self.nodes[key].get("inputs") or [] if entry.get("link") in places]
        return {e["name"]: (places[e["link"]], deepcopy(self.content["links"][places[e["link"]]])) for e in linked}

    def leaving(self) -> list[tuple[Any, int, list]]:
        """(node, output slot, ids of links) of every output and border input that has links."""
        borders = [] if self.content is self.workflow else self.content.get("inputs") or []
        found = [(INPUT_BORDER, slot, list(entry.get("linkIds") or [])) for slot, entry in enumerate(borders)]
        for key, node in self.nodes.items():
            found += [(key, slot, list(e.get("links") or [])) for slot, e in enumerate(node.get("outputs") or [])]
        return found

    def put_in_order(self, leaving: list[tuple[Any, int, list]]) -> None:
        """Give outputs the order of links that they had, where the links are the same again."""
        for key, slot, links in leaving:
            if self.is_there(key):
                self._leaving((key, slot), lambda now, links=links: links if sorted(now) == sorted(links) else now)

    def _fresh(self, key: Any, kind: str, values: dict[str, Any], place: tuple[float, float]) -> dict:
        info = self.object_info[kind]
        specs = ordered_inputs(info)
        optional = (info.get("input") or {}).get("optional") or {}
        sockets = [
            {"name": name, "type": spec[0], **({"shape": 7} if name in optional else {}), "link": None}
            for name, spec in specs.items()
            if not has_widget(spec)
        ]
        names = info.get("output_name") or info["output"]
        outputs = [
            {"name": name, "type": kind_, "slot_index": slot, "links": None}
            for slot, (name, kind_) in enumerate(zip(names, info["output"], strict=False))
        ]
        pack = "test-time-scaling" if str(info.get("python_module", "")).startswith("custom_nodes") else "comfy-core"
        return {
            "id": key,
            "type": kind,
            "pos": list(place),
            "size": list(size_of(kind, self.object_info)),
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": sockets,
            "outputs": outputs,
            "properties": {"cnr_id": pack, "Node name for S&R": kind},
            "widgets_values": widget_values(specs, values),
        }

    def _slot(self, node: dict, name: str) -> int:
        """Index of an input; a widget gets a socket where it has none yet."""
        for index, entry in enumerate(node["inputs"]):
            if entry["name"] == name:
                return index
        spec = ordered_inputs(self.object_info[node["type"]])[name]
        kind = "COMBO" if isinstance(spec[0], list) else spec[0]
        node["inputs"].append({"name": name, "type": kind, "widget": {"name": name}, "link": None})
        return len(node["inputs"]) - 1

    def _exchange(self, old: dict, new: dict) -> None:
        self.content["nodes"][next(k for k, node in enumerate(self.content["nodes"]) if node is old)] = new
        self.nodes[new["id"]] = new

    def _place(self, node: dict) -> None:
        self.content["nodes"].append(node)
        self.nodes[node["id"]] = node

    def _link(self, number: Any) -> Any:
        return next(link for link in self.content["links"] if _get(link, "id") == number)

    def _leaving(self, source: Source, change: Callable[[list], list]) -> None:
        """Apply ``change`` to the list of links that an output (or a border input) keeps."""
        if source[0] == INPUT_BORDER and source[0] not in self.nodes:
            entry, name = self.content["inputs"][source[1]], "linkIds"
        elif source[0] in self.nodes and source[1] < len(self.nodes[source[0]].get("outputs") or []):
            entry, name = self.nodes[source[0]]["outputs"][source[1]], "links"
        else:
            return
        entry[name] = change(entry.get(name) or []) or ([] if name == "linkIds" else None)


def widget_values(specs: dict[str, list], values: dict[str, Any]) -> list:
    """``widgets_values`` of a node, see ``widgets.slots``; what ``values`` lacks has its default."""
    result: list[Any] = []
    for name, spec in specs.items():
        if not has_widget(spec):
            continue
        value = values.get(name, default_value(spec))
        result.append("" if value is None else value)
        extras = range(1, extra_values(name, spec) + 1)
        result += [values.get(f"{name}+{number}", "fixed" if number == 1 else "") for number in extras]
    return result


_ENDS = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


def _get(entry: Any, name: str) -> Any:
    """A part of a link or node, in either form."""
    return entry.get(name) if isinstance(entry, dict) else entry[_ENDS.index(name)]


def _set(link: Any, name: str, value: Any) -> None:
    link[name if isinstance(link, dict) else _ENDS.index(name)] = value
