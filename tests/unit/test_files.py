"""Files that appear whole or not at all, whatever happens to the writer; and that every writer does so."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time

import pytest

from testtime.installation.files import replacing, write_bytes, write_text

from .test_architecture import MODULES

ALLOWED = {
    "installation/files.py",  # the helper itself
    "bench/reference_models.py", "bench/small_detectors.py",  # models in a temporary folder
    "bench/official/facts.py", "bench/official/models.py",  # the same, in an environment that lacks the pack
    "bench/infinity_speed.py",  # /proc/self/clear_refs
}  # fmt: skip


def test_content_arrives_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "new" / "trace.json"
    write_text(path, "eins\nzwei\r\n\u00e4")
    assert path.read_bytes() == "eins\nzwei\r\n\u00e4".encode()
    write_bytes(path, b"again")
    assert path.read_bytes() == b"again"
    assert [entry.name for entry in path.parent.iterdir()] == ["trace.json"]


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "trace.json"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as partial:  # noqa: PT012 - a body that fails
        assert partial.suffix == ".json" and partial.parent == path.parent
        partial.write_text("half")
        raise RuntimeError
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_text(path, "old")
    code = (
        "import sys, time\nfrom testtime.installation.files import replacing\n"
        "with replacing(sys.argv[1]) as partial, open(partial, 'w') as file:\n"
        "    file.write('half'); file.flush(); print('now', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "now\n"
    child.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
    child.wait()
    assert path.read_text() == "old"


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    write_text(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "new"


def test_files_have_the_usual_permissions(tmp_path):
    write_text(tmp_path / "one", "")
    (tmp_path / "other").write_text("")
    assert (tmp_path / "one").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_names_of_any_length(tmp_path):
    write_text(tmp_path / ("x" * 245 + ".json"), "long")


def test_readers_never_see_half(tmp_path):
    """A reader beside a writer: every state that it sees is a whole one."""
    path = tmp_path / "page.html"
    write_text(path, "0" * 200_000)
    code = (
        "import sys\nfrom testtime.installation.files import write_text\n"
        "for k in range(40): write_text(sys.argv[1], str(k % 10) * 200_000)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)])
    seen = 0
    while child.poll() is None:
        text = path.read_text()
        assert len(text) == 200_000 and len(set(text)) == 1
        seen += 1
        time.sleep(0.001)
    assert child.returncode == 0 and seen


def is_plain_writer(call: ast.Call) -> bool:
    """Whether a call writes under the final name: ``path.write_text``, ``path.write_bytes``, ``open(path, "w")``."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("write_text", "write_bytes"):
        return isinstance(call.func, ast.Attribute)
    modes = [*call.args[:2], *(k.value for k in call.keywords if k.arg == "mode")]
    texts = [part.value for part in modes if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return name == "open" and any(text in ("w", "wb", "wt", "w+", "x", "xb") for text in texts)


def test_every_writer_renames():
    """``log.open("wb")`` of a running server and rows that are appended are no files that must be whole."""
    assert is_plain_writer(ast.parse("a.b.write_text(x)").body[0].value)
    assert is_plain_writer(ast.parse("open(a, 'w')").body[0].value)
    assert not is_plain_writer(ast.parse("write_text(a, x)").body[0].value)
    found = [
        f"{module}:{node.lineno}"
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if module not in ALLOWED and isinstance(node, ast.Call) and is_plain_writer(node)
    ]
    assert [place for place in found if not place.startswith("installation/comfyui.py")] == []
