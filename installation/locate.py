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
NEWEST_TESTED = (0, 33, 0)
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


def configured_paths() -> list[Path]:
    """The folders that COMFYUI_PATH names: one, or several separated as those of PATH are. Empty when it is not set.

    A single folder may have the separator in its name.
    """
    value = os.environ.get("COMFYUI_PATH", "")
    if value and is_comfyui(Path(value).expanduser()):
        return [Path(value).expanduser()]
    return [Path(entry).expanduser() for entry in value.split(os.pathsep) if entry]


def default_folder() -> Path:
    """Where comfy-cli installs ComfyUI unless it is told otherwise."""
    home = Path.home() / "Documents" if sys.platform in ("win32", "darwin") else Path.home()
    return home / "comfy" / "ComfyUI"


def candidates() -> list[tuple[str, Path]]:
    """Where a ComfyUI may be, best first: COMFYUI_PATH, the install around this pack, comfy-cli's default folder.

    When COMFYUI_PATH is set, nothing but its first folder is tried: a wrong path must not silently pick another
    installation. The other folders are for the tests, see ``find_hosts``.
    """
    configured = configured_paths()
    if configured:
        return [("COMFYUI_PATH", configured[0])]
    lexical_root = Path(os.path.abspath(__file__)).parents[1]
    around = [root for root in dict.fromkeys((PACK_ROOT, lexical_root)) if root.parent.name == "custom_nodes"]
    found = [("the installation around this pack", root.parent.parent) for root in around]
    return [*found, ("comfy-cli's default folder", default_folder())]


def find_comfyui() -> Installation | None:
    """The first candidate that is a ComfyUI checkout, or None."""
    for found_by, folder in candidates():
        if is_comfyui(folder):
            return Installation(folder.resolve(), found_by, read_version(folder))
    return None


def find_hosts() -> list[Installation]:
    """Every ComfyUI that host tests run in, each folder once; the first is ``find_comfyui``'s.

    COMFYUI_PATH names all of them. Without it: the candidates, then the folders beside comfy-cli's default one whose
    names begin with ``ComfyUI-`` (``ComfyUI-new``, ``ComfyUI-0.33``), by name. What is no checkout is left out.
    """
    configured = configured_paths()
    if configured:
        places = [("COMFYUI_PATH", folder) for folder in configured]
    else:
        default = default_folder()
        beside = sorted(default.parent.glob(default.name + "-*"))
        places = [*candidates(), *(("beside comfy-cli's default folder", folder) for folder in beside)]
    found: dict[Path, Installation] = {}
    for found_by, folder in places:
        if is_comfyui(folder):
            root = folder.resolve()
            found.setdefault(root, Installation(root, found_by, read_version(folder)))
    return list(found.values())


def explain_missing() -> str:
    """One sentence for a user without ComfyUI: where it was looked for and how to point at it."""
    tried = "; ".join(f"{folder} ({found_by})" for found_by, folder in candidates())
    return f"no ComfyUI found. Looked in: {tried}. Set COMFYUI_PATH to the folder that holds ComfyUI's main.py."


def find_python(root: Path) -> Path:
    """The interpreter for a ComfyUI: COMFYUI_PYTHON, the installation's own environment, else the running one."""
    configured = os.environ.get("COMFYUI_PYTHON")
    if configured:
        return Path(configured).expanduser()
    return own_python(root) or Path(sys.executable)


def own_python(root: Path) -> Path | None:
    """The interpreter of the environment that lies in or beside a ComfyUI's folder, None when there is none."""
    for relative in (
        ".venv/bin/python",
        "venv/bin/python",
        ".venv/Scripts/python.exe",
        "venv/Scripts/python.exe",
        "../python_embeded/python.exe",
    ):
        if (root / relative).exists():
            return root / relative
    return None
