"""ESLint over ``web/``, as part of ``make lint``: ``python tools/lint_web.py``.

A tool for developers only. Without Node.js it says that it is skipped; the first run installs ESLint beside its
configuration in ``tools/web`` (git ignores it). In continuous integration (``CI`` is set) being skipped is an error.

Standard library only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "tools" / "web"
ESLINT = HOME / "node_modules" / "eslint" / "bin" / "eslint.js"
NEEDED = (18, 18)


def skipped(reason: str) -> int:
    """Say why nothing was checked; the exit status of that."""
    print(f"web/: not checked, {reason}")
    return 1 if os.environ.get("CI") else 0


def install(npm: str) -> str:
    """Install ESLint unless it is there and newer than the list of what is needed; what went wrong, or nothing."""
    stamp = HOME / "node_modules" / ".package-lock.json"
    if ESLINT.exists() and stamp.exists() and stamp.stat().st_mtime >= (HOME / "package.json").stat().st_mtime:
        return ""
    command = [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=600)
    return "" if done.returncode == 0 else f"npm install failed: {' '.join(done.stderr.split())[-300:]}"


def main() -> int:
    """Check; the exit status of ESLint."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return skipped("there is no Node.js with npm on the path")
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip()
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < NEEDED:
        return skipped(f"ESLint needs Node.js {'.'.join(map(str, NEEDED))} or newer, this is {version}")
    problem = install(npm)
    if problem:
        return skipped(problem)
    command = [node, str(ESLINT), "--config", str(HOME / "eslint.config.js"), "--max-warnings", "0", "web"]
    status = subprocess.run(command, cwd=ROOT).returncode
    if status == 0:
        print(f"web/: ESLint found nothing in {len(list((ROOT / 'web').rglob('*.js')))} files")
    return status


if __name__ == "__main__":
    sys.exit(main())
