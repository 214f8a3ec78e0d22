"""Calls official functions in the environment that holds their packages, and reads what they said.

The interpreter is named by the variable ``OFFICIAL_PYTHON``; without it, that of ``tools/official_environment.py`` is
taken where it has been built. Files are exchanged through a folder, see ``bench.official``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .provenance import ROOT

VARIABLE = "OFFICIAL_PYTHON"
TIMEOUT = 1800.0  # seconds; all rows take one minute on a quiet core
BUILT = ROOT / "build" / "official" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
MISSING = f"the official packages are not there: run `python tools/official_environment.py`, or set {VARIABLE}"


class OfficialError(RuntimeError):
    """The official side is not there, or it failed; the message holds the end of what it printed."""


def interpreter() -> Path | None:
    """The Python of the environment with the official packages, None where there is none."""
    named = os.environ.get(VARIABLE)
    found = Path(named) if named else BUILT
    return found if found.is_file() else None


def call(row: str, folder: Path) -> str:
    """Let the official side make ``folder/ROW.npz``; returns what it printed.

    Raises:
        OfficialError: no interpreter, or a call that ended with an error.
    """
    python = interpreter()
    if python is None:
        raise OfficialError(MISSING)
    # what this process imports from is not what the other environment may import from
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [str(python), "-W", "ignore", "-m", "bench.official", row, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=kept | settings, capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        raise OfficialError(f"the official side of {row!r} failed: {done.stderr[-1500:]}")
    return done.stdout


def said(row: str, folder: Path) -> dict[str, np.ndarray]:
    """What the official function said: ``scores``, ``pixels-NAME`` and more, see ``bench.official.rows``.

    It is called where ``folder`` has no answer of it yet; ``call("all", folder)`` gets them in one process.
    """
    if not (folder / f"{row}.npz").is_file():
        call(row, folder)
    with np.load(folder / f"{row}.npz") as arrays:
        return dict(arrays)


def versions(folder: Path) -> dict[str, str]:
    """Versions of the official packages."""
    return json.loads(call("versions", folder))


def pictures(folder: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """The photographs as IMAGEs ``[1, H, W, C]`` in 0..1, by name; C is 4 with alpha and 1 for grey."""
    shown = {}
    for name in names:
        values = np.asarray(Image.open(folder / "pictures" / f"{name}.png"))
        shown[name] = torch.from_numpy(values.reshape(1, *values.shape[:2], -1).copy()).float() / 255
    return shown
