"""Create and update ``.venv``: this pack with its test extras and, where a ComfyUI is found, ComfyUI's requirements.

Standard library only, so that a bare ``python3`` (3.10 or newer) can run it. A stamp in ``.venv`` records what was
installed; while nothing changed, a call costs a few milliseconds.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
STAMP = VENV / "installed"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
# torchaudio is only imported by ComfyUI's audio nodes, behind a try; its wheels often lag behind torch's.
SKIPPED = {"torchaudio"}


def load_locate():
    """``installation/locate.py`` as a module, without importing the package around it (nothing is installed yet)."""
    spec = importlib.util.spec_from_file_location("testtime_locate", ROOT / "installation" / "locate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def comfyui_requirements(root: Path) -> list[str]:
    """The requirement lines of a ComfyUI checkout without comments and without ``SKIPPED`` packages."""
    lines = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
    stripped = [line.split("#")[0].strip() for line in lines]
    return [line for line in stripped if line and re.split(r"[\s<>=!~\[;]", line)[0].lower() not in SKIPPED]


def fingerprint(requirements: list[str]) -> str:
    """A digest of everything the environment depends on."""
    parts = [sys.version, str(ROOT), (ROOT / "pyproject.toml").read_text(encoding="utf-8"), *requirements]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def create_venv() -> None:
    """Make ``.venv``, with pip inside; explain what to install when this Python cannot."""
    if PYTHON.exists():
        return
    result = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if result.returncode == 0:
        return
    sys.exit(
        f"{result.stdout}{result.stderr}\n{sys.executable} cannot create a virtual environment. On Debian and Ubuntu: "
        "apt install python3-venv. Any other Python 3.10 or newer works too: make PYTHON=/path/to/python ..."
    )


def main() -> None:
    """Bring ``.venv`` up to date."""
    if sys.version_info < (3, 10):
        running = sys.version.split()[0]
        sys.exit(f"Python 3.10 or newer is needed, this is {running}: make PYTHON=/path/to/python3.12 ...")
    locate = load_locate()
    comfyui = locate.find_comfyui()
    if comfyui is None and os.environ.get("COMFYUI_PATH"):
        sys.exit(f"COMFYUI_PATH={os.environ['COMFYUI_PATH']} is not a ComfyUI checkout (no main.py, nodes.py, comfy/).")
    requirements = comfyui_requirements(comfyui.root) if comfyui else []
    digest = fingerprint(requirements)
    if STAMP.exists() and STAMP.read_text(encoding="utf-8") == digest:
        return
    create_venv()
    with_comfyui = f" and the requirements of ComfyUI {comfyui.version} in {comfyui.root}" if comfyui else ""
    print(f"Setting up {VENV}: this pack{with_comfyui} (PyTorch is a large download the first time)", flush=True)
    # Without --no-compile pip spends a minute on byte code, most of which no test ever imports.
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([*command, "-e", f"{ROOT}[test,bench]", *requirements], check=True, cwd=ROOT)
    STAMP.write_text(digest, encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"Installation failed (exit status {error.returncode}); the lines above say why.")
