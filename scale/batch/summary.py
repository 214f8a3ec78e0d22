"""What a batch leaves to be read: ``index.csv`` with a line per row, and ``index.html``."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...installation.files import write_text
from ...reports.pages import environment
from .manifest import Manifest
from .rows import Row

TEMPLATES = Path(__file__).with_name("templates")
SHOWN = 200
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
FACTS = ("status", "attempts", "worker", "score", "nfe", "seconds", "error")


def write_index(manifest: Manifest, rows: Sequence[Row]) -> Path:
    """Write ``index.csv``; its path."""
    columns = list(dict.fromkeys(name for row in rows for name in row.values))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["key", "line", *columns, *FACTS, "files"])
    for row in rows:
        entry = manifest.entry(row.key)
        facts = {**entry.record, "status": entry.status, "attempts": entry.record.get("attempts", entry.attempts)}
        files = " ".join(f"items/{row.key}/{file['name']}" for file in entry.record.get("files", []))
        values = [row.values.get(name, "") for name in columns]
        table.writerow([row.key, row.line, *values, *(facts.get(name, "") for name in FACTS), files])
    write_text(manifest.folder / "index.csv", text.getvalue())
    return manifest.folder / "index.csv"


def write_failed(manifest: Manifest, rows: Sequence[Row]) -> None:
    """Write ``failed.csv``, the rows that were set aside and why; none is left where all are done."""
    path = manifest.folder / "failed.csv"
    failed = [row for row in rows if manifest.entry(row.key).status == "failed"]
    if not failed:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["key", "line", "attempts", "error"])
    for row in failed:
        entry = manifest.entry(row.key)
        table.writerow([row.key, row.line, entry.attempts, entry.record.get("error", "")])
    write_text(path, text.getvalue())


def facts_of(manifest: Manifest, rows: Sequence[Row]) -> dict[str, Any]:
    """Numbers of a batch: rows by status, seconds, passes, mean score, rows per worker."""
    entries = [manifest.entry(row.key) for row in rows]
    done = [entry.record for entry in entries if entry.status == "done"]
    scores = [record["score"] for record in done if isinstance(record.get("score"), int | float)]
    workers: dict[str, int] = {}
    for record in done:
        name = str(record.get("worker", "?"))
        workers[name] = workers.get(name, 0) + 1
    return {
        "rows": len(rows),
        "done": len(done),
        "failed": sum(entry.status == "failed" for entry in entries),
        "left": sum(entry.status == "new" for entry in entries),
        "repeated": sum(entry.attempts for entry in entries),
        "seconds": sum(float(record.get("seconds", 0.0)) for record in done),
        "nfe": sum(int(record.get("nfe") or 0) for record in done),
        "score": statistics.fmean(scores) if scores else None,
        "workers": dict(sorted(workers.items())),
    }


def write_page(manifest: Manifest, rows: Sequence[Row], title: str) -> Path:
    """Write ``index.html``, which shows the first rows with their pictures; its path."""
    shown = []
    for row in rows[:SHOWN]:
        entry = manifest.entry(row.key)
        names = [file["name"] for file in entry.record.get("files", []) if file["name"].lower().endswith(PICTURES)]
        shown.append(
            {
                "key": row.key,
                "values": row.values,
                "status": entry.status,
                "picture": f"items/{row.key}/{names[0]}" if names and entry.status == "done" else "",
                "score": entry.record.get("score"),
                "error": entry.record.get("error", "") if entry.status == "failed" else "",
            }
        )
    failed = [(row, manifest.entry(row.key)) for row in rows if manifest.entry(row.key).status == "failed"]
    text = (
        environment(TEMPLATES)
        .get_template("batch.html")
        .render(title=title, facts=facts_of(manifest, rows), shown=shown, failed=failed[:SHOWN], total=len(rows))
    )
    write_text(manifest.folder / "index.html", text)
    return manifest.folder / "index.html"
