"""The results file of a suite while it is being measured, and the manifest of what its unfinished rows have so far.

``NAME.json``: "suite", "format", "commit" and "machine" (all that rows were measured with, each once), "settings",
"figure" and "cost" (see ``suite.Suite``), "rows", and further tables and figures by name. Every row has the "commit"
that measured it. ``NAME.manifest.jsonl`` is there while rows are unfinished: a head, then a line for every group of
images that is done. It is only ever added to, so a run may be ended at any time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..installation.files import write_text
from .measured import Measured
from .provenance import commit, machine, origin, write_json

log = logging.getLogger("testtime")
FORMAT = 2
Key = tuple[str, str, int]


class SettingsDiffer(ValueError):
    """A results file was measured with other settings than those asked for."""


class Manifest:
    """Images of unfinished rows.

    Args:
        path: of the file; it is made with the first group of images.
        head: what its images were measured with. A manifest with another head is set aside.
    """

    def __init__(self, path: Path, head: dict[str, Any]):
        self.path, self._head = path, json.loads(json.dumps(head))
        self._parts: dict[Key, dict[int, Measured]] = {}
        lines = whole_lines(path) if path.exists() else []
        if lines and lines[0] != self._head:
            old = path.with_suffix(".old")
            log.warning("%s was begun with other settings: it is set aside as %s", path.name, old.name)
            path.replace(old)
        else:
            for line in lines[1:]:
                self._note(tuple(line["row"]), line["first"], Measured.from_dict(line["measured"]))

    def _note(self, key: Key, first: int, found: Measured) -> None:
        self._parts.setdefault(key, {})[first] = found

    def add(self, key: Key, first: int, found: Measured) -> None:
        """Keep a group of images of a row, which are its numbers ``first``, ``first + 1`` and so on."""
        found.commits = [commit()]
        self._note(key, first, found)
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            if new:
                file.write(json.dumps(self._head) + "\n")
            file.write(json.dumps({"row": key, "first": first, "measured": found.to_dict()}) + "\n")

    def missing(self, key: Key, total: int, each: int) -> list[tuple[int, int]]:
        """(first, count) of the images of a row that are still to be made, at most ``each`` together."""
        done, pieces, first = self._parts.get(key, {}), [], 0
        while first < total:
            if first in done:
                first += len(done[first])
                continue
            count = min(each, min((known for known in done if known > first), default=total) - first)
            pieces.append((first, count))
            first += count
        return pieces

    def found(self, key: Key, total: int) -> Measured | None:
        """All images of a row, or None while some are missing."""
        if self.missing(key, total, total):
            return None
        return Measured.joined(part for _, part in sorted(self._parts[key].items()))

    def remove(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines; a last one that was broken off is cut from the file."""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(path, whole)
    return [json.loads(line) for line in whole.splitlines()]


class Recording:
    """A results file to which rows are added; written after each.

    Args:
        path: of the file. One that is there is gone on with.
        suite: a ``suite.Suite``.

    Attributes:
        body: what the file holds.
        manifest: see ``Manifest``.

    Raises:
        SettingsDiffer: the file was measured with other settings; the message names them.
    """

    def __init__(self, path: Path, suite: Any):
        self.path, self.suite = path, suite
        settings = asdict(suite.settings)
        self.body = origin(suite=suite.name, format=FORMAT)
        self.body |= {"settings": settings, "figure": suite.figure, "cost": suite.cost, "rows": []}
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            # Settings that a file of format 1 does not know were as the defaults are.
            _compare(path, {**asdict(type(suite.settings)()), **stored.get("settings", {})}, settings)
            for row in all_rows(stored):  # files of format 1 have one commit for all rows
                row.setdefault("commit", stored.get("commit", "unknown"))
            self.body = {**stored, **{k: v for k, v in self.body.items() if k not in ("commit", "machine", "rows")}}
        self._order = {row.key: place for place, row in enumerate(suite.rows())}
        self.manifest = Manifest(path.with_suffix(".manifest.jsonl"), {"suite": suite.name, "settings": settings})

    def row(self, key: Key) -> dict[str, Any]:
        """A row that is there. KeyError where it is not."""
        part, method, budget = key
        for row in self.body.get(part, []):
            if (row["method"], row["budget"]) == (method, budget):
                return row
        raise KeyError(key)

    def has(self, key: Key) -> bool:
        """Whether a row is there."""
        return any((r["method"], r["budget"]) == key[1:] for r in self.body.get(key[0], []))

    def add(self, rows: Sequence[tuple[Any, dict[str, Any]]]) -> None:
        """Add (row of the suite, its figures), and write the file."""
        for row, figures in rows:
            named: dict[str, Any] = {"method": row.method, "budget": row.budget}
            named |= {} if row.eta is None else {"eta": row.eta}
            entry = {**named, **{key: value for key, value in figures.items() if key not in named}}
            part = self.body.setdefault(row.part, [])
            part.append(entry)
            part.sort(key=lambda r, part=row.part: self._order.get((part, r["method"], r["budget"]), len(self._order)))
            say(entry)
        if rows:
            self.body |= self.suite.derived(self.body["rows"])
            self._write()

    def merge(self, figures: dict[str, Any]) -> None:
        """Add figures that are no rows, and write the file; inner dicts are merged, too."""
        _merge(self.body, figures)
        self._write()

    def _write(self) -> None:
        commits = [name for row in all_rows(self.body) for name in row.get("commit", "").split(", ") if name]
        self.body["commit"] = ", ".join(dict.fromkeys(commits)) or commit()
        machines = [*self.body["machine"].split("; "), machine()]
        self.body["machine"] = "; ".join(dict.fromkeys(machines))
        write_json(self.path, self.body)

    def close(self) -> None:
        """All that was asked for is measured: the manifest is not needed any more."""
        self.manifest.remove()


def all_rows(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows with verdicts, of all tables of a results file."""
    for part in body.values():
        if isinstance(part, list):
            yield from (row for row in part if isinstance(row, dict) and "verdicts" in row)


def _compare(path: Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    differ = [f"{k} {stored[k]!r} there, {v!r} asked for" for k, v in asked.items() if stored[k] != v]
    if differ:
        raise SettingsDiffer(
            f"{path.name} was measured with other settings ({'; '.join(differ)}): "
            f"give --out another file, or remove this one"
        )


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def say(row: dict[str, Any]) -> None:
    """Log a row."""
    text = f"{row['method']:26s} {row['budget']:3d}  overall {row['overall']:.3f} [{{:.3f}}, {{:.3f}}]".format(
        *row["overall_ci"]
    )
    for key, form in (
        ("reward", ".4f"),
        ("held_out", ".4f"),
        ("diversity", ".3f"),
        ("nfe_per_image", ".0f"),
        ("gflop_per_image", ".1f"),
        ("rewriter_calls_per_image", ".1f"),
        ("seconds_per_image", ".2f"),
    ):
        if key in row:
            text += f"  {key.removesuffix('_per_image').replace('_', ' ')} {row[key]:{form}}"
    log.info("%s", text)
