"""Create and update ``.venv``: this pack with its test extras and, where a ComfyUI is found, ComfyUI's requirements.

Every further ComfyUI that tests run in gets an environment of its own in ``.venv/hosts``: a thin one, which sees all
that the environment below it has (the ComfyUI's own where it has one, else ``.venv``) and adds what is missing or
pinned to another version. Nothing is installed into a ComfyUI's own environment, and PyTorch is there once.

Standard library only, so that a bare ``python3`` (3.10 or newer) can run it. A stamp in each environment records what
was installed; while nothing changed, a call costs a few milliseconds.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
# Published rarely, and often not for the newest torch: pip would take torch back to the version that fits.
LAGGING = "torchaudio"


def python_of(venv: Path) -> Path:
    """The interpreter of a virtual environment."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


PYTHON = python_of(VENV)


def load_locate():
    """``installation/locate.py`` as a module, without importing the package around it (nothing is installed yet)."""
    spec = importlib.util.spec_from_file_location("testtime_locate", ROOT / "installation" / "locate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def comfyui_requirements(root: Path) -> list[str]:
    """The requirement lines of a ComfyUI checkout without comments and without ``LAGGING``."""
    lines = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
    stripped = [line.split("#")[0].strip() for line in lines]
    return [line for line in stripped if line and re.split(r"[\s<>=!~\[;]", line)[0].lower() != LAGGING]


def fingerprint(*parts: str) -> str:
    """A digest of everything an environment depends on."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return hashlib.sha256("\n".join([sys.version, str(ROOT), project, *parts]).encode()).hexdigest()


def up_to_date(venv: Path, digest: str) -> bool:
    """Whether ``venv`` was installed from what ``digest`` tells."""
    stamp = venv / "installed"
    return stamp.exists() and stamp.read_text(encoding="utf-8") == digest


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


def site_folders(python: Path) -> list[str]:
    """Where an interpreter's packages are."""
    code = "import json, sysconfig; print(json.dumps([sysconfig.get_path(name) for name in ('purelib', 'platlib')]))"
    done = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True)
    return list(dict.fromkeys(json.loads(done.stdout)))


def layer(below: Path, venv: Path) -> Path:
    """A virtual environment on top of another one; returns its interpreter.

    It sees every package that the interpreter ``below`` sees. What is installed into it comes first, and stays in it.
    """
    subprocess.run([str(below), "-m", "venv", "--without-pip", str(venv)], check=True)
    python = python_of(venv)
    calls = [f"site.addsitedir({folder!r})" for folder in site_folders(below)]
    link = Path(site_folders(python)[0], "environment_below.pth")
    link.write_text("import site; " + "; ".join(calls) + "\n", encoding="utf-8")
    return python


def pip_install(python: Path, *what: str) -> None:
    """``pip install`` into an interpreter's environment, with the pip of ``.venv``."""
    # Without --no-compile pip spends a minute on byte code, most of which no test ever imports.
    quiet = ["--quiet", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([str(PYTHON), "-m", "pip", "--python", str(python), "install", *quiet, *what], check=True, cwd=ROOT)


def add_lagging(python: Path, comfyui: Path) -> None:
    """Install ``LAGGING`` beside the torch that is there, if this ComfyUI cannot even be imported without it.

    Older ones only have fewer audio nodes then.
    """
    code = "from comfy.cli_args import args; args.cpu = True; import comfy.sd"
    done = subprocess.run([str(python), "-c", code], cwd=comfyui, capture_output=True, text=True)
    if f"No module named '{LAGGING}'" in done.stderr:
        pip_install(python, "--no-deps", LAGGING)


def host_environment(host) -> Path:
    """The folder of the environment in which tests run inside a further ComfyUI (an ``Installation``)."""
    return VENV / "hosts" / f"{host.root.name}-{hashlib.sha256(str(host.root).encode()).hexdigest()[:8]}"


def install_pack(comfyui) -> str:
    """Bring ``.venv`` up to date, with what ``comfyui`` (an ``Installation`` or None) needs; returns its digest."""
    requirements = comfyui_requirements(comfyui.root) if comfyui else []
    digest = fingerprint(*requirements)
    if up_to_date(VENV, digest):
        return digest
    create_venv()
    with_comfyui = f" and the requirements of ComfyUI {comfyui.version} in {comfyui.root}" if comfyui else ""
    print(f"Setting up {VENV}: this pack{with_comfyui} (PyTorch is a large download the first time)", flush=True)
    pip_install(PYTHON, "-e", f"{ROOT}[test,bench]", *requirements)
    if comfyui:
        add_lagging(PYTHON, comfyui.root)
    (VENV / "installed").write_text(digest, encoding="utf-8")
    return digest


def install_host(host, below: Path, pack_digest: str) -> None:
    """Bring the environment of a further ComfyUI up to date, on top of the interpreter ``below``."""
    venv, requirements = host_environment(host), comfyui_requirements(host.root)
    digest = fingerprint(pack_digest, str(below), *requirements)
    if up_to_date(venv, digest):
        return
    print(f"Setting up {venv}: what ComfyUI {host.version} in {host.root} needs besides {below}", flush=True)
    shutil.rmtree(venv, ignore_errors=True)
    python = layer(below, venv)
    pip_install(python, "-e", f"{ROOT}[test]", *requirements)
    add_lagging(python, host.root)
    (venv / "installed").write_text(digest, encoding="utf-8")


def main() -> None:
    """Bring ``.venv`` and the environments of further ComfyUIs up to date."""
    if sys.version_info < (3, 10):
        running = sys.version.split()[0]
        sys.exit(f"Python 3.10 or newer is needed, this is {running}: make PYTHON=/path/to/python3.12 ...")
    locate = load_locate()
    configured = locate.configured_paths()
    for folder in configured:
        if not locate.is_comfyui(folder):
            sys.exit(f"COMFYUI_PATH names {folder}, which is not a ComfyUI checkout (no main.py, nodes.py, comfy/).")
    hosts = locate.find_hosts()
    digest = install_pack(hosts[0] if hosts else None)
    for host in hosts[1:]:
        if not host.supported:
            continue
        try:
            install_host(host, locate.own_python(host.root) or PYTHON, digest)
        except (subprocess.CalledProcessError, OSError) as error:
            if configured:
                raise
            # Nobody asked for this one: it only lies there.
            print(f"ComfyUI {host.version} in {host.root} could not be set up for the tests: {error}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"Installation failed (exit status {error.returncode}); the lines above say why.")
