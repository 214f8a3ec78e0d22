"""Which ComfyUIs are found, which environment each is tested in, and what the last lines of ``make test`` say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import testtime
from testtime.installation import locate

ROOT = Path(testtime.__file__).resolve().parent


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


def roots(hosts) -> list[str]:
    return [host.root.name for host in hosts]


def test_comfyui_path_names_several(tmp_path, monkeypatch):
    """The product uses the first, the tests use all, each once; what is no checkout is left out of the list."""
    new, old = make_comfyui(tmp_path / "new", "0.33.0"), make_comfyui(tmp_path / "old", "0.3.64")
    (tmp_path / "again").symlink_to(new)
    paths = [new, tmp_path / "nothing", old, tmp_path / "again"]
    monkeypatch.setenv("COMFYUI_PATH", locate.os.pathsep.join(map(str, paths)))
    assert locate.configured_paths() == paths
    assert roots(locate.find_hosts()) == ["new", "old"]
    assert locate.find_comfyui() == locate.find_hosts()[0]


def test_a_first_path_that_is_wrong_does_not_fall_back_to_the_second(tmp_path, monkeypatch):
    old = make_comfyui(tmp_path / "old", "0.3.64")
    monkeypatch.setenv("COMFYUI_PATH", locate.os.pathsep.join([str(tmp_path / "nothing"), str(old)]))
    assert locate.find_comfyui() is None
    assert "nothing (COMFYUI_PATH)" in locate.explain_missing()


@pytest.mark.skipif(locate.os.pathsep != ":", reason="no folder on Windows has the separator in its name")
def test_one_path_may_have_the_separator_in_its_name(tmp_path, monkeypatch):
    odd = make_comfyui(tmp_path / "with:colon", "0.3.64")
    monkeypatch.setenv("COMFYUI_PATH", str(odd))
    assert [host.root for host in locate.find_hosts()] == [odd.resolve()]


def test_folders_beside_the_default_one_are_tested_but_never_used(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(locate, "default_folder", lambda: tmp_path / "ComfyUI")
    monkeypatch.setattr(locate, "PACK_ROOT", tmp_path / "elsewhere" / "pack")
    make_comfyui(tmp_path / "ComfyUI-new", "0.33.0")
    (tmp_path / "ComfyUI-manager").mkdir()
    assert locate.find_comfyui() is None
    assert roots(locate.find_hosts()) == ["ComfyUI-new"]
    make_comfyui(tmp_path / "ComfyUI", "0.3.64")
    assert roots(locate.find_hosts()) == ["ComfyUI", "ComfyUI-new"]
    assert locate.find_comfyui().version == "0.3.64"


@pytest.fixture
def tools(monkeypatch):
    """``tools/run_tests.py`` and the ``environment`` it stands on, as modules."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    for name in ("environment", "run_tests"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import environment
    import run_tests

    yield environment, run_tests
    for name in ("environment", "run_tests"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_a_layered_environment_sees_what_lies_below_and_keeps_its_own(tools, tmp_path):
    """Two layers: what the lower one has is there, what the upper one has comes first, and the lower stays as it is."""
    environment, _ = tools
    lower = environment.layer(Path(sys.executable), tmp_path / "lower")
    upper = environment.layer(lower, tmp_path / "upper")
    for python, name, version in ((lower, "pinned", 1), (lower, "shared", 1), (upper, "pinned", 2)):
        Path(environment.site_folders(python)[0], f"{name}.py").write_text(f"version = {version}\n")

    def versions(python: Path) -> str:
        code = "import pinned, shared, pytest; print(pinned.version, shared.version, pytest.__version__)"
        return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout

    assert versions(upper).split() == ["2", "1", pytest.__version__]
    assert versions(lower).split() == ["1", "1", pytest.__version__]


def test_requirements_of_a_comfyui_leave_out_what_would_move_torch(tools, tmp_path):
    environment, _ = tools
    text = "torch\ntorchaudio>=2  # sound\ntorchvision\n\n#optional:\nkornia>=0.7.1\n"
    (tmp_path / "requirements.txt").write_text(text)
    assert environment.comfyui_requirements(tmp_path) == ["torch", "torchvision", "kornia>=0.7.1"]


@pytest.mark.slow
def test_every_comfyui_gets_a_line(tools, tmp_path, monkeypatch, capfd):
    """Unit tests run once; a host without an environment, or too old, is told of and fails nothing."""
    environment, run_tests = tools
    monkeypatch.setattr(run_tests, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(environment, "VENV", tmp_path / "environments")
    hosts = [make_comfyui(tmp_path / name, name) for name in ("0.3.64", "0.33.0", "0.3.1", "0.34.0")]
    (hosts[3] / "comfy" / "cli_args.py").write_text("class args: pass\n")
    monkeypatch.setenv("COMFYUI_PATH", locate.os.pathsep.join(map(str, hosts)))
    ready = environment.host_environment(locate.find_hosts()[3])
    environment.layer(Path(sys.executable), ready)
    (ready / "installed").touch()
    assert run_tests.main(["tests/unit/test_packaging.py", "-q", "-p", "no:cacheprovider"]) == 0
    output = capfd.readouterr().out
    (passed,), (deselected,) = (re.findall(rf"(\d+) {what}", output) for what in ("passed", "deselected"))
    assert int(passed) == int(deselected) > 0  # all in the first host, none of them again in the others
    lines = output.strip().splitlines()[-4:]
    for line, host, words in zip(
        lines,
        hosts,
        ["no host test was selected", "no environment for tests", "older than what the pack needs", "no host test was"],
        strict=True,
    ):
        assert line.startswith(f"ComfyUI {host.name} in {host}: ") and words in line
    failing = tmp_path / "test_failing.py"
    failing.write_text("def test_that_fails():\n    assert False\n")
    assert run_tests.main([str(failing), "-q", "-p", "no:cacheprovider"]) == 1
