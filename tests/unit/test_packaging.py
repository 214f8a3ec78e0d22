"""The package list in pyproject.toml, the import promise of the root package, and the locator of ComfyUI."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import testtime
from testtime.installation import locate

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


def make_comfyui(folder: Path, version: str) -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "nodes.py").touch()
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return folder


@pytest.mark.parametrize(
    ("version", "supported"),
    [("0.3.63", False), ("0.3.64", True), ("0.4.0", True), ("1.0", True), ("", False), ("v0.3.65-rc1", True)],
)
def test_installation_knows_whether_it_is_new_enough(tmp_path, monkeypatch, version, supported):
    monkeypatch.setenv("COMFYUI_PATH", str(make_comfyui(tmp_path / "comfyui", version)))
    found = locate.find_comfyui()
    assert found.version == version
    assert found.supported is supported


def test_wrong_comfyui_path_does_not_fall_back_to_another_installation(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert locate.find_comfyui() is None
    assert str(tmp_path) in locate.explain_missing()


def test_enclosing_installation_wins_over_the_default_folder(tmp_path, monkeypatch):
    root = make_comfyui(tmp_path / "install", "0.3.64")
    pack = root / "custom_nodes" / "pack"
    pack.mkdir(parents=True)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(locate, "PACK_ROOT", pack)
    found = locate.find_comfyui()
    assert found.root == root.resolve()
    assert "around this pack" in found.found_by


def test_own_environment_of_comfyui_is_preferred(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PYTHON", raising=False)
    assert locate.find_python(tmp_path) == Path(sys.executable)
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert locate.find_python(tmp_path) == python
    monkeypatch.setenv("COMFYUI_PYTHON", "/elsewhere/python")
    assert locate.find_python(tmp_path) == Path("/elsewhere/python")
