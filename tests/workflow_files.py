"""The example workflows by their short names, which are those of the files in API format."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "workflows"
NAMES = sorted(path.stem for path in (FOLDER / "api").glob("*.json"))
_BY_ID = {json.loads(path.read_text(encoding="utf-8"))["id"]: path for path in sorted(FOLDER.glob("*.json"))}
SHOWN = {name: _BY_ID.get(str(uuid.uuid5(uuid.NAMESPACE_URL, f"testtime/{name}"))) for name in NAMES}
"""Short name -> file that the template browser shows; None where there is none."""
NEEDS = "(needs weights)"
EMBEDDED = [name for name in NAMES if NEEDS not in (SHOWN[name] or FOLDER).stem]
OTHERS = [name for name in NAMES if name not in EMBEDDED]  # need files of the user's
NEWER = ("ltx2_t2v", "flux2_klein_best_of_n")
"""Workflows whose nodes only newer hosts have."""


def load(name: str, api: bool = False) -> dict:
    """A workflow in one of its formats."""
    path = FOLDER / "api" / f"{name}.json" if api else SHOWN[name]
    return json.loads(path.read_text(encoding="utf-8"))
