"""The package list in pyproject.toml, the import promise of the root package, and the locator of ComfyUI."""

from __future__ import annotations

import json
import subprocess
import sys
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
