"""``testtime batch`` on real headless ComfyUIs, one of which is killed, and on a server that runs already."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from testtime.cli.main import main
from testtime.installation.comfyui import HeadlessComfyUI, HeadlessOptions
from testtime.installation.errors import EXIT_BAD_INPUT, EXIT_SERVER

from ..unit.test_batch import lines, running, wait_for, worker_ids
from .test_server import picture, slow, write

pytestmark = pytest.mark.host


def table(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_on_a_server_that_runs(comfy_server, tmp_path, capsys):
    workflow = write(tmp_path / "picture.json", picture())
    rows = table(tmp_path / "rows.jsonl", [{"id": f"c{n}", "colour": n, "1.width": 32 + n} for n in range(5)])
    command = ["batch", workflow, "--rows", rows, "--out", str(tmp_path / "out"), "--quiet"]
    command += ["--servers", comfy_server.url]
    assert main(command) == EXIT_BAD_INPUT
    assert "column 'colour' names no input" in capsys.readouterr().err
    command += ["--map", "colour=EmptyImage.color"]
    assert main(command) == 0
    for line in lines(tmp_path / "out", "done"):
        (file,) = line["files"]
        with Image.open(tmp_path / "out" / "items" / line["key"] / file["name"]) as image:
            assert image.size[0] == line["row"]["1.width"] and image.getpixel((0, 0))[2] == line["row"]["colour"]
    assert main(command) == 0 and len(lines(tmp_path / "out", "done")) == 5


def test_one_bad_row_stops_the_start_by_its_line(comfy_server, tmp_path, capsys):
    workflow = write(tmp_path / "picture.json", picture())
    command = ["batch", workflow, "--out", str(tmp_path / "out"), "--servers", comfy_server.url, "--rows"]
    for bad, words in (({"1.width": "wide"}, "line 2: EmptyImage"), ({"1.wide": 3}, "has no input 'wide'")):
        rows = table(tmp_path / "rows.jsonl", [{"1.width": 32}, bad])
        assert main([*command, rows]) == EXIT_BAD_INPUT
        told = capsys.readouterr().err
        assert "line 2" in told and words.removeprefix("line 2: EmptyImage") in told
    rows = table(tmp_path / "rows.jsonl", [{"1.width": 32}])
    assert main([*command[:-3], "--servers", "http://127.0.0.1:9", "--rows", rows]) == EXIT_SERVER
    assert "does not answer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_server_refuses_a_row_and_the_others_are_done(comfy_server, tmp_path):
    workflow = write(tmp_path / "picture.json", picture())
    rows = table(tmp_path / "rows.jsonl", [{"1.width": 32}, {"1.width": -5}, {"1.width": 48}])
    command = ["batch", workflow, "--out", str(tmp_path / "out"), "--servers", comfy_server.url, "--quiet"]
    assert main([*command, "--rows", rows]) == EXIT_BAD_INPUT
    assert len(lines(tmp_path / "out", "done")) == 2
    (failed,) = lines(tmp_path / "out", "failed")
    assert failed["attempt"] == 1 and "smaller than min" in failed["error"]


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_two_headless_comfyuis_one_killed_then_the_driver(tmp_path):
    workflow, out = write(tmp_path / "slow.json", slow(1)), tmp_path / "out"
    rows = table(tmp_path / "rows.jsonl", [{"id": n, "EmptyImage.color": n} for n in range(8)])
    command = [sys.executable, "-m", "testtime", "batch", workflow, "--rows", rows, "--out", str(out), "--workers", "2",
               "--map", "EmptyImage.color=10.color", "--only-this-pack", "--backoff", "0.1", "--quiet"]  # fmt: skip
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(lines(out, "done")) >= 2 and len(worker_ids(out)) == 2, driver, 200)
    os.kill(worker_ids(out)[0], signal.SIGKILL)
    wait_for(lambda: lines(out, "retry"), driver, 60)
    driver.kill()
    driver.wait()
    left = worker_ids(out)
    ends = time.monotonic() + 30
    while any(running(process) for process in left) and time.monotonic() < ends:
        time.sleep(0.2)
    assert not any(running(process) for process in left), "ComfyUIs outlived their driver"
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    keys = [line["key"] for line in lines(out, "done")]
    assert len(keys) == len(set(keys)) == 8
    assert sorted(path.name for path in (out / "items").iterdir()) == sorted(keys)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_comfyui_of_ours_ends_with_the_process_that_started_it(tmp_path):
    with HeadlessComfyUI(HeadlessOptions(only_this_pack=True)) as server:
        assert running(server.process.pid)
        server.process.stdin.close()  # what the end of this process would do
        server.process.wait(timeout=20)
