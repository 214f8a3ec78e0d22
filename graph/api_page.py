"""An API-format workflow as a page that nodes are exchanged on; see ``ui_page`` for the other format."""

from __future__ import annotations

from typing import Any

from .widgets import default_value, has_widget, ordered_inputs
from .workflow import is_link

Source = tuple[Any, int]
"""(node id, output slot) on a page."""


class ApiPage:
    """An API-format workflow as a page; ``workflow`` is changed."""

    def __init__(self, workflow: dict, object_info: dict):
        self.content = workflow
        self.object_info = object_info

    def node(self, key: str) -> dict:
        """The node as it is saved."""
        return self.content[key]

    def kind(self, key: str) -> str:
        """Class of a node."""
        return self.content[key]["class_type"]

    def source(self, key: str, name: str) -> Source | None:
        """What is linked to an input."""
        value = self.content[key]["inputs"].get(name)
        return (value[0], value[1]) if is_link(value) else None

    def values(self, key: str) -> dict[str, Any]:
        """Values of inputs that are not linked."""
        return {name: value for name, value in self.content[key]["inputs"].items() if not is_link(value)}

    def inputs(self, key: str) -> list[str]:
        """Names of all inputs that have a value or a link."""
        return list(self.content[key]["inputs"])

    def add(self, kind: str, values: dict[str, Any], sources: dict[str, Source], near: Any, title: str = "") -> str:
        """A new node; returns its id."""
        numbers = [int(key.split(":")[0]) for key in self.content if key.split(":")[0].isdigit()]
        inside, colon, _ = near.rpartition(":")
        number = max(numbers, default=0) + 1
        while f"{inside}{colon}{number}" in self.content:
            number += 1
        key = f"{inside}{colon}{number}"
        self.content[key] = {"class_type": kind, "inputs": {}, "_meta": {"title": title or self._title(kind)}}
        self._fill(key, values, sources)
        return key

    def reserve(self, key: str, kind: str) -> None:
        """Nothing to do: nodes of this format stand nowhere."""

    def replace(self, key: str, kind: str, values: dict[str, Any], sources: dict[str, Source]) -> None:
        """Another class in the place of a node, which keeps its id; who takes its outputs stays linked."""
        self.content[key] = {"class_type": kind, "inputs": {}, "_meta": {"title": self._title(kind)}}
        self._fill(key, values, sources)

    def connect(self, source: Source, key: str, name: str) -> None:
        """Link an input to an output, in place of what was there."""
        self.content[key]["inputs"][name] = list(source)

    def restore(self, key: str, node: dict) -> None:
        """Put a saved node into the place of another one."""
        self.content[key] = node

    def remove(self, key: str) -> None:
        """Take a node out."""
        del self.content[key]

    def taken(self, key: str) -> bool:
        """Whether anything takes an output of a node."""
        return any(is_link(v) and v[0] == key for node in self.content.values() for v in node["inputs"].values())

    def notes(self, key: str) -> dict:
        """Where the pack may keep notes of its own in a node."""
        meta = self.content[key].get("_meta")
        if not isinstance(meta, dict):
            meta = self.content[key]["_meta"] = {}
        return meta

    def notes_if_any(self, key: str) -> dict:
        """The notes that are there."""
        meta = self.content[key].get("_meta")
        return meta if isinstance(meta, dict) else {}

    def cut_outputs(self, key: str, count: int) -> None:
        """Take the links away that leave from outputs beyond the first ``count``."""
        for node in self.content.values():
            for name, value in list(node["inputs"].items()):
                if is_link(value) and value[0] == key and value[1] >= count:
                    del node["inputs"][name]

    def _title(self, kind: str) -> str:
        return self.object_info.get(kind, {}).get("display_name") or kind

    def _fill(self, key: str, values: dict[str, Any], sources: dict[str, Source]) -> None:
        inputs = self.content[key]["inputs"]
        for name, spec in ordered_inputs(self.object_info[self.kind(key)]).items():
            if name in sources:
                inputs[name] = list(sources[name])
            elif name in values:
                inputs[name] = values[name]
            elif has_widget(spec):
                inputs[name] = default_value(spec)
