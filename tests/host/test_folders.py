"""Drop-downs over whatever lies in folders, and choices that try to lead out of them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

OUTSIDE = ("../secret", "..\\secret", "sub/../../secret", "/etc/passwd", "C:\\secret", "C:secret", "\\\\host\\share\\x",
           "//host/share/x", "", ".", ".. /secret", "a\x00b", "x" * 5000)  # fmt: skip


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """Every folder that a drop-down looks at, full of what must not matter."""
    import folder_paths

    for folder in ("output", "input", "models"):
        (tmp_path / folder / "sub").mkdir(parents=True)
    for place in (tmp_path / "output", tmp_path / "input", tmp_path / "models", tmp_path / "output" / "sub"):
        (place / "dangling.json").symlink_to("nowhere.json")
        (place / "dangling.safetensors").symlink_to("nowhere.safetensors")
        (place / "ring").symlink_to(place)
        (place / "knot").symlink_to("knot")
        (place / "folder.json").mkdir()
        (place / "half").mkdir()
        (place / "half" / "config.json").symlink_to("nowhere")
        Path(os.fsdecode(os.fsencode(place) + b"/\xff\xfe.json")).write_text("{}")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "config.json").write_text("{}")
    (tmp_path / "output" / "good.json").write_text("{}")
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    for kind, (_, endings) in list(folder_paths.folder_names_and_paths.items()):
        if kind != "custom_nodes":
            monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path / "models")], endings))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def nodes_of_pack() -> list[type]:
    from testtime.nodes import collect_nodes

    return collect_nodes()


def test_no_drop_down_raises(hostile):
    found = {node.__name__: node.GET_NODE_INFO_V1() for node in nodes_of_pack()}
    assert len(found) > 50
    options = found["LoadTraceNode"]["input"]["required"]["file"][1]["options"]
    assert "good.json [output]" in options and not any("dangling" in name for name in options)


def test_no_drop_down_raises_where_folders_are_gone_or_locked(hostile, monkeypatch):
    import shutil

    import folder_paths

    nodes_of_pack()[0].GET_NODE_INFO_V1()
    for node in nodes_of_pack():
        node.GET_NODE_INFO_V1()  # fills the host's cache of names
    shutil.rmtree(hostile)
    for node in nodes_of_pack():
        node.GET_NODE_INFO_V1()
    monkeypatch.setattr(folder_paths, "output_directory", "/proc/1/root" if os.geteuid() else "/dev/null/x")
    for node in nodes_of_pack():
        node.GET_NODE_INFO_V1()


def loaders() -> list[tuple[type, str]]:
    """(node, drop-down) of every choice that stands for a file or a folder."""
    try:
        from testtime.nodes.choices import drop_downs
    except ImportError:  # no ComfyUI: the tests are skipped
        return []
    nodes = nodes_of_pack()
    files = [(node, name) for node in nodes for name in set(drop_downs(node)) - set(drop_downs(node, everyone=False))]
    return sorted([*files, *((n, "text_tower") for n in nodes if "text_tower" in drop_downs(n))], key=str)


LOADERS = loaders()


@pytest.mark.parametrize(("node", "name"), LOADERS, ids=[f"{node.__name__}-{name}" for node, name in LOADERS])
def test_a_choice_never_leads_out_of_its_folder(node, name, hostile, monkeypatch):
    """Whether there is something outside shows neither in the answer nor by a look at the disk."""
    from testtime.nodes import folders

    prefix = "verifiers/" if node.__name__ == "CLIPScoreNode" and name == "clip" else ""
    looked: list[str] = []
    real = folders.find_inside

    def watched(roots, choice, exists=Path.exists):
        return real(roots, choice, lambda path: looked.append(str(path)) or exists(path))

    monkeypatch.setattr(folders, "find_inside", watched)
    for value in OUTSIDE:
        answer = node.validate_inputs(**{name: prefix + value})
        assert answer is not True, f"{value!r} was accepted"
        assert name in str(answer)
    assert not looked


def test_there_are_loaders_to_try():
    assert len(LOADERS) > 18


@pytest.mark.parametrize(
    "name", ["a", "a/b", "a\\b.json", "verifiers/openai--clip", "name with spaces.png", "a..b", "...x"]
)
def test_plain_names_are_inside(name):
    from testtime.nodes.folders import is_inside

    assert is_inside(name)


@pytest.mark.parametrize("name", OUTSIDE[:-1])
def test_other_names_are_not(name):
    from testtime.nodes.folders import is_inside

    assert not is_inside(name)


def test_a_model_behind_a_link_is_found(tmp_path):
    from testtime.nodes.folders import find_inside

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "linked").symlink_to(tmp_path / "elsewhere")
    assert find_inside([tmp_path / "none", tmp_path / "models"], "linked") == tmp_path / "models" / "linked"


def test_twenty_thousand_files_are_listed_in_a_moment(tmp_path, monkeypatch):
    """The list is made on the server's event loop: milliseconds, and nothing at all while nothing changes."""
    import folder_paths

    from testtime.nodes.trace_nodes import LISTED, trace_choices

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    for part in range(20):
        folder = tmp_path / "output" / (f"day {part}" if part else "")
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(1000):
            (folder / f"{number}.{'json' if number % 2 else 'png'}").touch()
    old = time.time() - 100
    for folder, _, _ in os.walk(tmp_path):
        os.utime(folder, (old, old))

    def timed() -> float:
        start = time.process_time()
        assert len(trace_choices()) == LISTED
        return time.process_time() - start

    first = timed()
    again = min(timed() for _ in range(5))
    assert first < 0.25, f"{first:.3f} s"
    assert again < 0.03, f"{again:.4f} s"
    new = tmp_path / "output" / "day 3" / "new.json"
    new.touch()
    assert trace_choices()[0] == "day 3/new.json [output]"


def test_an_endless_folder_costs_no_more_than_a_large_one(tmp_path, monkeypatch):
    from testtime.nodes import folders

    monkeypatch.setattr(folders, "LOOKED_AT", 50)
    for number in range(200):
        (tmp_path / f"{number}.json").touch()
    assert len(folders.Lister((".json",), 3, 500).newest(tmp_path)) == 50
