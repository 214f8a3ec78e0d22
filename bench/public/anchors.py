"""Published figures with their budgets: ``anchors.json`` for programs, made from ``anchors.txt`` for people.

python -m testtime.bench.public.anchors     # writes the JSON anew
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ...installation.files import write_text

TEXT, FILE = (Path(__file__).with_name(f"anchors.{kind}") for kind in ("txt", "json"))
FACTS = ("title", "source", "benchmark", "setting", "note", "columns")


@dataclass(frozen=True)
class Row:
    """A published row.

    Attributes:
        name, budget: as the source has them. values: a figure per column, as text with all its digits.
        doubtful: columns whose figure the source itself contradicts.
    """

    name: str
    budget: str
    values: tuple[str, ...]
    doubtful: tuple[str, ...] = ()

    def value(self, column: int) -> float:
        """A figure as a number."""
        return float(self.values[column])


@dataclass(frozen=True)
class Table:
    """A published table; see the head of ``anchors.txt``."""

    key: str
    title: str
    source: str
    benchmark: str
    setting: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def parse(text: str) -> list[Table]:
    """Tables of the text form. Raises ValueError naming a line that is none."""
    tables: list[Table] = []
    for block in re.split(r"^table ", "\n".join(_plain(text)), flags=re.MULTILINE)[1:]:
        key, *lines = [line for line in block.splitlines() if line.strip()]
        facts = dict(line.split(": ", 1) for line in lines[: len(FACTS)])
        if tuple(facts) != FACTS:
            raise ValueError(f"table {key}: expected {', '.join(FACTS)} in this order")
        columns = tuple(facts.pop("columns").split(", "))
        tables.append(Table(key.strip(), **facts, columns=columns, rows=tuple(_row(r, columns) for r in lines[6:])))
    return tables


def _plain(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def _row(line: str, columns: Sequence[str]) -> Row:
    parts = [part.strip() for part in line.split("|")]
    if len(parts) != 3 or len(parts[2].split()) != len(columns):
        raise ValueError(f"{line!r} is no row of {len(columns)} figures")
    figures = parts[2].split()
    doubtful = tuple(name for name, figure in zip(columns, figures, strict=True) if figure.endswith("*"))
    return Row(parts[0], parts[1], tuple(figure.rstrip("*") for figure in figures), doubtful)


def to_json(tables: Sequence[Table]) -> str:
    """The data file."""
    return json.dumps([asdict(table) for table in tables], indent=1) + "\n"


def load() -> list[Table]:
    """Tables of the data file."""
    told = json.loads(FILE.read_text(encoding="utf-8"))
    return [
        Table(
            **{
                **table,
                "columns": tuple(table["columns"]),
                "rows": tuple(
                    Row(r["name"], r["budget"], tuple(r["values"]), tuple(r["doubtful"])) for r in table["rows"]
                ),
            }
        )
        for table in told
    ]


def of(benchmark: str) -> list[Table]:
    """Tables of a benchmark."""
    return [table for table in load() if table.benchmark == benchmark]


def markdown(table: Table) -> str:
    """A table for a report, figures as published; doubtful ones have a star."""
    head = ["", "budget", *table.columns]
    lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * len(table.columns)]
    for row in table.rows:
        stars = ["*" if column in row.doubtful else "" for column in table.columns]
        cells = [figure + star for figure, star in zip(row.values, stars, strict=True)]
        lines.append("| " + " | ".join([row.name, row.budget, *cells]) + " |")
    note = "" if table.note == "-" else f" Note: {table.note}."
    return f"**{table.title}** ({table.source}; {table.setting}).{note}\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_text(FILE, to_json(parse(TEXT.read_text(encoding="utf-8"))))
