"""Find a ComfyUI installation, its version and the interpreter that runs it.

Standard library only and no relative imports: ``tools/environment.py`` loads this file before anything is installed.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

MINIMUM_VERSION = (0, 3, 64)
PACK_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Installation:
    """A ComfyUI checkout. ``found_by`` says which rule found it; ``version`` is empty when the file is missing."""

    root: Path
    found_by: str
    version: str

    @property
    def supported(self) -> bool:
        """Whether the version is at least ``MINIMUM_VERSION`` (an unreadable version counts as too old)."""
        return parse_version(self.version) >= MINIMUM_VERSION


def parse_version(text: str) -> tuple[int, ...]:
    """``"v0.3.64"`` -> ``(0, 3, 64)``; ``(0,)`` when there is no number in it."""
    numbers = re.findall(r"\d+", text)[:3]
    return tuple(int(number) for number in numbers) or (0,)


def is_comfyui(folder: Path) -> bool:
    """Whether ``folder`` looks like a ComfyUI checkout (main.py, nodes.py and the ``comfy`` package)."""
    return all((folder / name).exists() for name in ("main.py", "nodes.py", "comfy"))


def read_version(root: Path) -> str:
    """The version written in ``comfyui_version.py``, or "" when there is none."""
    try:
        text = (root / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        return ""
    match = re.search(r"__version__\s*=\s*[\"']([^\"']+)", text)
    return match.group(1) if match else ""


def candidates() -> list[tuple[str, Path]]:
    """Where a ComfyUI may be, best first: COMFYUI_PATH, the install around this pack, comfy-cli's default folder.

    When COMFYUI_PATH is set, nothing else is tried: a wrong path must not silently pick another installation.
    """
    configured = os.environ.get("COMFYUI_PATH")
    if configured:
        return [("COMFYUI_PATH", Path(configured).expanduser())]
    found = []
    lexical_root = Path(os.path.abspath(__file__)).parents[1]
    for root in dict.fromkeys((PACK_ROOT, lexical_root)):
        if root.parent.name == "custom_nodes":
            found.append(("the installation around this pack", root.parent.parent))
    documents = sys.platform in ("win32", "darwin")
    default = Path.home() / "Documents" / "comfy" / "ComfyUI" if documents else Path.home() / "comfy" / "ComfyUI"
    found.append(("comfy-cli's default folder", default))
    return found


def find_comfyui() -> Installation | None:
    """The first candidate that is a ComfyUI checkout, or None."""
    for found_by, folder in candidates():
        if is_comfyui(folder):
            return Installation(folder.resolve(), found_by, read_version(folder))
    return None


def explain_missing() -> str:
    """One sentence for a user without ComfyUI: where it was looked for and how to point at it."""
    tried = "; ".join(f"{folder} ({found_by})" for found_by, folder in candidates())
    return f"no ComfyUI found. Looked in: {tried}. Set COMFYUI_PATH to the folder that holds ComfyUI's main.py."


def find_python(root: Path) -> Path:
    """The interpreter for a ComfyUI: COMFYUI_PYTHON, the installation's own environment, else the running one."""
    configured = os.environ.get("COMFYUI_PYTHON")
    if configured:
        return Path(configured).expanduser()
    for relative in (
        ".venv/bin/python",
        "venv/bin/python",
        ".venv/Scripts/python.exe",
        "venv/Scripts/python.exe",
        "../python_embeded/python.exe",
    ):
        if (root / relative).exists():
            return root / relative
    return Path(sys.executable)
