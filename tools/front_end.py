"""Bring the newest front end of ComfyUI beside the one it pins: ``python tools/front_end.py [VERSION]``.

ComfyUI pins one version of the package ``comfyui-frontend-package``. The newest one is unpacked to the place where
ComfyUI itself looks for other versions (its ``--front-end-version``), ``web_custom_versions/`` in its folder, so the
installation and its environment stay as they are. Host tests then also run in it. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "comfyui-frontend-package"
INSIDE = "comfyui_frontend_package/static/"
PLACE = Path("web_custom_versions", "Comfy-Org_ComfyUI_frontend")
VARIABLE = "COMFYUI_FRONTEND_ROOT"


def version_of(name: str) -> tuple[int, ...]:
    """``"1.58.1"`` -> ``(1, 58, 1)``; empty for anything else."""
    parts = name.split(".")
    return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else ()


def newest_front_end(comfyui: Path) -> Path | None:
    """The folder for ``--front-end-root``: COMFYUI_FRONTEND_ROOT, else the newest version in a ComfyUI's own folder.

    None where there is neither. ValueError when the variable names a folder without an ``index.html``: a wrong path
    must not silently pick another front end.
    """
    configured = os.environ.get(VARIABLE)
    if configured:
        if not Path(configured).expanduser().joinpath("index.html").is_file():
            raise ValueError(f"{VARIABLE}={configured} is no front end: it has no index.html")
        return Path(configured).expanduser().resolve()
    found = [path.parent for path in (comfyui / PLACE).glob("*/index.html") if version_of(path.parent.name)]
    return max(found, key=lambda path: version_of(path.name), default=None)


def explain_missing(comfyui: Path) -> str:
    """What to do where ``newest_front_end`` finds nothing."""
    return f"no newer front end in {comfyui / PLACE}. `make front-end` brings it, {VARIABLE} names another folder."


def unpack(wheel: Path, target: Path) -> None:
    """Write what the package serves into ``target``, which appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(INSIDE)]
        if INSIDE + "index.html" not in names:
            raise ValueError(f"{wheel.name} holds no front end ({INSIDE}index.html)")
        archive.extractall(folder, names)
        shutil.rmtree(target, ignore_errors=True)
        Path(folder, INSIDE).rename(target)


def download(version: str, folder: Path) -> Path:
    """The wheel of a version ("" is the newest), fetched by pip. Raises CalledProcessError when pip fails."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    wanted = f"{PACKAGE}=={version}" if version else PACKAGE
    subprocess.run([*command, "--dest", str(folder), wanted], check=True)
    return next(folder.glob("*.whl"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("version", nargs="?", default="", help="default: the newest")
    parser.add_argument("--wheel", type=Path, help="a wheel that is here already, in the place of a download")
    options = parser.parse_args()
    from environment import load_locate  # beside this file; only the command needs it

    locate = load_locate()
    comfyui = locate.find_comfyui()
    if comfyui is None:
        sys.exit(locate.explain_missing())
    with tempfile.TemporaryDirectory() as folder:
        wheel = options.wheel or download(options.version, Path(folder))
        target = comfyui.root / PLACE / wheel.name.split("-")[1]
        if options.wheel or not (target / "index.html").is_file():
            unpack(wheel, target)
    sys.stdout.write(f"{target}\n")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"pip could not fetch {PACKAGE} (exit status {error.returncode}); the lines above say why.")
