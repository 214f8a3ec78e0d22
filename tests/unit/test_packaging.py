"""The package list in pyproject.toml, the import promise of the root package, and the locator of ComfyUI."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import testtime

ROOT = Path(testtime.__file__).resolve().parent
tomllib = pytest.importorskip("tomllib", reason="tomllib is part of Python 3.11 and newer")
NOT_PACKAGES = {"tests", "tools", "docs", "web", "workflows", "out", "build", "dist"}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def packages_in_tree() -> set[str]:
    found = {"testtime"}
    for init in ROOT.glob("**/__init__.py"):
        parts = init.parent.relative_to(ROOT).parts
        if parts and not parts[0].startswith(".") and parts[0] not in NOT_PACKAGES:
            found.add(".".join(("testtime", *parts)))
    return found


def test_every_package_of_the_tree_is_listed():
    assert set(project()["tool"]["setuptools"]["packages"]) == packages_in_tree()


def test_every_folder_with_code_is_a_package():
    for name in packages_in_tree():
        folder = ROOT.joinpath(*name.split(".")[1:])
        for child in folder.iterdir():
            if child.is_dir() and child.name not in NOT_PACKAGES | {"__pycache__"} and not child.name.startswith("."):
                assert not list(child.glob("*.py")) or (child / "__init__.py").exists(), f"{child} has no __init__.py"


def test_version_is_the_same_in_both_places():
    assert project()["project"]["version"] == testtime.__version__


def test_importing_the_root_package_imports_neither_torch_nor_comfy():
    code = "import sys, json, testtime; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.anchor)
    assert not {"torch", "comfy", "transformers", "aiohttp"} & set(json.loads(done.stdout))


def copy_of_the_tree(target: Path) -> Path:
    """What git tracks, or would: a build leaves folders behind, which do not belong into a checkout."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "out", "runs", "node_modules", "*.egg-info")
    return Path(shutil.copytree(ROOT, target, ignore=ignored))


@pytest.mark.slow
def test_a_wheel_holds_what_pages_and_panel_need_and_makes_a_page(tmp_path):
    tree = copy_of_the_tree(tmp_path / "tree")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    subprocess.run([*command, str(tree)], check=True, capture_output=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    needed = [path for folder in ("web", "locales", "reports", "demo") for path in ROOT.joinpath(folder).rglob("*.*")]
    needed += [ROOT / "samplers" / "run" / "trace.schema.json"]
    wanted = {
        f"testtime/{p.relative_to(ROOT).as_posix()}" for p in needed if p.is_file() and "__pycache__" not in p.parts
    }
    assert len(wanted) > 100 and not wanted - names
    entry = {"id": 0, "parent": None, "group": 0, "slot": 0, "score": 0.5, "log_weight": None, "gradient_scale": 0.0}
    record = {"step": 0, "steps": 0, "sigma": 0.0, "phase": "final", "particles": [{**entry, "selected": True}]}
    source = tmp_path / "trace.json"
    source.write_text(json.dumps({"schema": 1, "seed": 0, "meta": {}, "records": [record]}), encoding="utf-8")
    code = "import sys, testtime.cli.main as m; print(m.__file__); sys.exit(m.main(['report', sys.argv[1]]))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    command = [sys.executable, "-c", code, str(source)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.startswith(str(tmp_path / "installed")), done.stderr
    assert "<h2>Family tree</h2>" in source.with_suffix(".html").read_text(encoding="utf-8")
