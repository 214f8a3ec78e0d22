"""The table of a batch: one row per run, from JSON Lines or CSV, each with a key that stays while the row does."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...installation.errors import BadInput

ID = "id"
LONGEST_NAME = 60


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        key: name of its folder: the id or line number, and a digest of the row. A changed row is a new one.
        line: in the file, counted from 1.
        values: column -> value, as the file has it, without ``id``.
    """

    key: str
    line: int
    values: Mapping[str, Any]


def read_rows(path: Path) -> list[Row]:
    """All rows of a ``.jsonl`` or ``.csv`` file. An empty cell of a CSV leaves the input as it is.

    Raises:
        BadInput: naming the line that is wrong: not JSON, no values, an id that is missing or comes twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BadInput(f"--rows {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--rows {path}: cannot be read as a text file ({error})") from None
    kind = path.suffix.lower()
    if kind not in (".jsonl", ".csv"):
        raise BadInput(f"--rows {path}: expected a .jsonl or .csv file")
    numbered = list(_json_lines(path, text) if kind == ".jsonl" else _csv_lines(path, text))
    if not numbered:
        raise BadInput(f"--rows {path}: there are no rows in it")
    return keyed(numbered, str(path))


def keyed(numbered: Sequence[tuple[int, dict[str, Any]]], file: str = "rows") -> list[Row]:
    """Rows of (line, values) with their keys. Raises BadInput for ids that are missing, empty or double."""
    named = [line for line, values in numbered if ID in values]
    if named and len(named) < len(numbered):
        line = next(line for line, values in numbered if ID not in values)
        raise BadInput(f"--rows {file}: line {line} has no id, line {named[0]} has one: give one to all rows or none")
    rows, seen = [], {}
    for line, values in numbered:
        name = str(values.get(ID, line)).strip()
        if not name:
            raise BadInput(f"--rows {file}: the id of line {line} is empty")
        if name in seen:
            raise BadInput(f"--rows {file}: lines {seen[name]} and {line} have the same id {name!r}")
        seen[name] = line
        rest = {column: value for column, value in values.items() if column != ID}
        if not rest:
            raise BadInput(f"--rows {file}: line {line} sets nothing: a row needs a column besides {ID}")
        rows.append(Row(_key(name, rest), line, rest))
    return rows


def _key(name: str, values: Mapping[str, Any]) -> str:
    canonical = json.dumps([name, values], sort_keys=True, ensure_ascii=False)
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:LONGEST_NAME]
    return f"{safe}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"


def _json_lines(path: Path, text: str) -> Iterable[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"--rows {path}: line {number} is not JSON ({str(error)[:80]})") from None
        if not isinstance(values, dict):
            raise BadInput(f'--rows {path}: line {number} is not a JSON object such as {{"prompt": "a cat"}}')
        for column, value in values.items():
            if not isinstance(value, str | int | float):
                raise BadInput(f"--rows {path}: line {number}: {column} must be a text, a number, true or false")
        yield number, values


def _csv_lines(path: Path, text: str) -> Iterable[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [name.strip() for name in next(reader, [])]
        if len(set(header)) < len(header) or not all(header):
            raise BadInput(f"--rows {path}: the first line must name every column, each once: {', '.join(header)}")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise BadInput(
                    f"--rows {path}: line {reader.line_num} has {len(cells)} cells, the header {len(header)}"
                )
            yield reader.line_num, {name: cell for name, cell in zip(header, cells, strict=True) if cell or name == ID}
    except csv.Error as error:
        raise BadInput(f"--rows {path}: line {reader.line_num}: {error}") from None


def share(rows: Sequence[Row], text: str | None) -> list[Row]:
    """The rows of ``i/n``: those whose key falls to it, the same on every machine. Raises BadInput."""
    if not text:
        return list(rows)
    part, _, of = text.partition("/")
    if not (part.isdigit() and of.isdigit() and int(part) < int(of)):
        raise BadInput(f"--shard {text}: expected I/N with I from 0 to N - 1, for example 0/4")
    return [row for row in rows if int(hashlib.sha256(row.key.encode()).hexdigest()[:8], 16) % int(of) == int(part)]


def mapped(rows: Sequence[Row], mapping: Sequence[str]) -> list[Row]:
    """Rows with columns renamed by ``COLUMN=TARGET``; keys stay. Raises BadInput."""
    names: dict[str, str] = {}
    for text in mapping:
        column, equals, target = text.partition("=")
        if not equals or not column.strip() or not target.strip():
            raise BadInput(f"--map {text}: expected COLUMN=NODE.INPUT, for example prompt=6.text")
        if not any(column.strip() in row.values for row in rows):
            raise BadInput(f"--map {text}: no row has a column {column.strip()!r}")
        names[column.strip()] = target.strip()
    return [
        Row(row.key, row.line, {names.get(name, name): value for name, value in row.values.items()}) for row in rows
    ]


def as_text(value: Any) -> str:
    """A value as it would be written after ``--set NODE.INPUT=``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else json.dumps(value)
