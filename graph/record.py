"""What a node keeps of the sampler that it stands for, so that everything can be put back."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from .api_page import ApiPage, Source
from .counters import counters_of
from .places import pair
from .ui_page import UiPage

RECORD = "testtime_replaced"
"""Where it is kept: in the node's properties (UI format) or its ``_meta`` (API format)."""


@dataclass
class Record:
    """A sampler before it was replaced.

    Attributes:
        node: as it was saved. sources: input -> what was linked to it. added: ids of nodes that came with the search.
        links: input -> (place in the list of links, the link as it was saved). leaving: (node, slot, ids of links) of
            outputs, in their order. counters: of ids. place: where the replacement was put.
    """

    node: dict
    sources: dict[str, Source]
    added: list[Any] = field(default_factory=list)
    links: dict[str, tuple[int, Any]] = field(default_factory=dict)
    leaving: list[tuple[Any, int, list]] = field(default_factory=list)
    counters: dict[str, Any] = field(default_factory=dict)
    place: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, page: ApiPage | UiPage, key: Any) -> Record:
        """The record of a sampler that is about to be replaced."""
        sources = {name: page.source(key, name) for name in page.inputs(key)}
        record = cls(deepcopy(page.node(key)), {name: source for name, source in sources.items() if source is not None})
        if isinstance(page, UiPage):
            record.links = page.links_into(key)
            record.leaving = page.leaving()
            record.counters = counters_of(page.workflow)
        return record

    def keep(self, page: ApiPage | UiPage, key: Any) -> None:
        """Write it into the node that took the sampler's place."""
        if isinstance(page, UiPage):
            self.place = pair(page.node(key).get("pos"))
            now = {(node, slot): links for node, slot, links in page.leaving()}
            own = set(self.sources.values())
            self.leaving = [e for e in self.leaving if (e[0], e[1]) in own or now.get((e[0], e[1])) != e[2]]
        page.notes(key)[RECORD] = {
            "node": self.node,
            "sources": {name: list(source) for name, source in self.sources.items()},
            "added": self.added,
            "links": {name: list(entry) for name, entry in self.links.items()},
            "leaving": [list(entry) for entry in self.leaving],
            "counters": self.counters,
            "place": list(self.place),
        }

    @classmethod
    def read(cls, saved: dict) -> Record:
        """What ``keep`` has written."""
        return cls(
            saved["node"],
            {name: tuple(source) for name, source in saved["sources"].items()},
            saved["added"],
            {name: tuple(entry) for name, entry in saved["links"].items()},
            [tuple(entry) for entry in saved["leaving"]],
            saved["counters"],
            pair(saved["place"]),
        )
