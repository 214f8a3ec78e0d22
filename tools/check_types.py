"""Check the types of the package with mypy, as ``[tool.mypy]`` in pyproject.toml has it; ``make lint`` runs this.

    .venv/bin/python tools/check_types.py [ROOM ...]

The folder of a checkout may have any name, and mypy finds a package by its folder's: so it is looked at through a link
called ``testtime``, made in ``.cache/types``. Without arguments the rooms in ``ROOMS`` are checked.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("samplers", "verifiers", "chat", "rewriters", "values", "pipelines")


def link(folder: Path, root: Path) -> None:
    """``folder / "testtime"`` -> ``root``."""
    folder.mkdir(parents=True, exist_ok=True)
    there = folder / "testtime"
    if there.is_symlink() and there.resolve() == root:
        return
    there.unlink(missing_ok=True)
    there.symlink_to(root, target_is_directory=True)


def check(rooms: tuple[str, ...] | list[str], root: Path = ROOT) -> int:
    """Run mypy on some folders of the checkout ``root``; its exit status."""
    folder = root / ".cache" / "types"
    link(folder, root)
    command = [sys.executable, "-m", "mypy", "--config-file", str(root / "pyproject.toml")]
    command += ["--cache-dir", str(folder / "mypy")]
    for room in rooms:
        command += ["-p", f"testtime.{room}"]
    environment = {**os.environ, "MYPYPATH": str(folder), "PYTHONPATH": ""}
    return subprocess.run(command, cwd=folder, env=environment).returncode


if __name__ == "__main__":
    sys.exit(check(sys.argv[1:] or ROOMS))
