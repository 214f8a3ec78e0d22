"""What the browser reads: ``web/draw/schema.js`` (fields of a trace), ``web/old_nodes.json``. ``--check`` compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from testtime.graph.old_nodes import as_json
from testtime.reports.messages import PARTICLE, RECORD, RUN

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "samplers" / "run" / "trace.schema.json"
TARGET = ROOT / "web" / "draw" / "schema.js"
OLD_NODES = ROOT / "web" / "old_nodes.json"
HEAD = "// Names of a trace's fields, made by tools/build_schema.py from samplers/run/trace.schema.json.\n"
LISTS = (
    ("PARTICLE", "particle", PARTICLE, "Columns of a particle's row in messages and pages."),
    ("RECORD", "record", RECORD, "Fields of a record that messages and pages carry."),
    ("RUN", "meta", RUN, "What they carry of the whole run, where it is known."),
)


def text() -> str:
    """The module. Raises ValueError for a name that the schema does not have."""
    known = json.loads(SCHEMA.read_text(encoding="utf-8"))["$defs"]
    parts = [HEAD]
    for name, kind, fields, comment in LISTS:
        missing = [field for field in fields if field not in known[kind]["properties"]]
        if missing:
            raise ValueError(f"{', '.join(missing)}: not in the {kind} of {SCHEMA.name}")
        parts.append(f"/** {comment} */\nexport const {name} = {json.dumps(list(fields))};\n")
    return "\n".join(parts)


def files() -> dict[Path, str]:
    """Every file that is made, with its text."""
    return {TARGET: text(), OLD_NODES: json.dumps(as_json(), indent=1) + "\n"}


if __name__ == "__main__":
    for path, made in files().items():
        if "--check" not in sys.argv[1:]:
            path.write_text(made, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != made:
            sys.exit(f"{path.relative_to(ROOT)} is not what tools/build_schema.py makes: run it")
