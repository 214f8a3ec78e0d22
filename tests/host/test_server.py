"""``testtime run`` against a real headless ComfyUI, with stock nodes only: outputs, errors, interruption, death."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from testtime.cli.main import main
from testtime.installation.client import ComfyClient
from testtime.installation.comfyui import HeadlessComfyUI, HeadlessOptions, require_comfyui
from testtime.installation.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_SERVER, ServerTrouble
from testtime.installation.running import RunListener


def picture(width=64, colour=255) -> dict:
    """EmptyImage -> SaveImage in API format."""
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": width, "height": 32, "batch_size": 1, "color": colour}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "folder/picture"}},
    }


def slow(blurs: int) -> dict:
    """A saved picture, then a chain of blurs that takes about a second per link, then another saved picture."""
    workflow = picture()
    workflow["10"] = {
        "class_type": "EmptyImage",
        "inputs": {"width": 1024, "height": 1024, "batch_size": 4, "color": 9},
    }
    for k in range(blurs):
        inputs = {"image": [str(10 + k), 0], "blur_radius": 31, "sigma": 9.0 + k / 100}
        workflow[str(11 + k)] = {"class_type": "ImageBlur", "inputs": inputs}
    workflow["99"] = {"class_type": "SaveImage", "inputs": {"images": [str(10 + blurs), 0], "filename_prefix": "late"}}
    return workflow


def write(path: Path, workflow: dict) -> str:
    path.write_text(json.dumps(workflow))
    return str(path)


def get(server, path: str) -> dict:
    with urllib.request.urlopen(server.url + path, timeout=30) as response:
        return json.load(response)


def run(server, workflow: dict, tmp_path: Path, *extra: str) -> int:
    path = write(tmp_path / "workflow.json", workflow)
    return main(["run", path, "--server", server.url, "--out", str(tmp_path / "out"), *extra])


def test_output_is_fetched_and_its_path_printed(comfy_server, tmp_path, capsys):
    assert run(comfy_server, picture(colour=0xFF0000), tmp_path, "--set", "EmptyImage.width=96") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert Path(line).parent == tmp_path / "out" / "folder"
    with Image.open(line) as image:
        assert image.size == (96, 32)
        assert image.getpixel((5, 5)) == (255, 0, 0)


def test_cached_outputs_are_fetched_too_and_nothing_is_overwritten(comfy_server, tmp_path):
    for _ in range(2):
        assert run(comfy_server, picture(colour=77), tmp_path) == 0
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2


def test_ui_format_is_converted_and_kept_in_the_image(comfy_server, tmp_path):
    workflow = {
        "nodes": [
            {"id": 1, "type": "EmptyImage", "widgets_values": [48, 32, 1, 0], "outputs": [{"name": "IMAGE"}]},
            {
                "id": 2,
                "type": "SaveImage",
                "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
                "widgets_values": ["ui"],
            },
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"]],
        "version": 0.4,
    }
    assert run(comfy_server, workflow, tmp_path) == 0
    (path,) = (tmp_path / "out").glob("ui*.png")
    with Image.open(path) as image:
        assert image.size == (48, 32)
        assert json.loads(image.info["workflow"]) == workflow


def test_uploaded_image_reaches_the_node(comfy_server, tmp_path):
    Image.new("RGB", (20, 10), (1, 2, 3)).save(tmp_path / "mine.png")
    workflow = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "missing.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "back"}},
    }
    assert run(comfy_server, workflow, tmp_path, "--set", f"1.image=@{tmp_path / 'mine.png'}") == 0
    (path,) = (tmp_path / "out").glob("back*.png")
    with Image.open(path) as image:
        assert image.getpixel((3, 3)) == (1, 2, 3)


def test_value_out_of_range_is_refused_by_name(comfy_server, tmp_path, capsys):
    assert run(comfy_server, picture(), tmp_path, "--set", "1.width=-4") == EXIT_BAD_INPUT
    message = capsys.readouterr().err
    assert "1 EmptyImage" in message
    assert "-4 smaller than min of 1" in message


def test_unknown_nodes_and_targets_are_refused(comfy_server, tmp_path, capsys):
    workflow = picture()
    workflow["7"] = {"class_type": "NoSuchNode", "inputs": {}}
    assert run(comfy_server, workflow, tmp_path) == EXIT_BAD_INPUT
    assert "NoSuchNode (node 7)" in capsys.readouterr().err
    assert run(comfy_server, picture(), tmp_path, "--set", "Sampler.seed=1") == EXIT_BAD_INPUT
    assert re.search(r"\b1 .*EmptyImage\)?: width, height", capsys.readouterr().err)


def test_workflow_without_outputs_is_refused(comfy_server, tmp_path, capsys):
    workflow = picture()
    del workflow["2"]
    assert run(comfy_server, workflow, tmp_path) == EXIT_BAD_INPUT
    assert "no outputs" in capsys.readouterr().err


def test_failing_node_is_named_with_its_reason(comfy_server, tmp_path, capsys):
    workflow = picture()
    workflow["3"] = {"class_type": "ImageScale", "inputs": {"image": ["1", 0], "upscale_method": "nearest-exact"}}
    workflow["3"]["inputs"] |= {"width": 16, "height": 16, "crop": "disabled"}
    workflow["4"] = {"class_type": "ImageToMask", "inputs": {"image": ["3", 0], "channel": "alpha"}}
    workflow["5"] = {"class_type": "MaskToImage", "inputs": {"mask": ["4", 0]}}
    workflow["2"]["inputs"]["images"] = ["5", 0]
    assert run(comfy_server, workflow, tmp_path) == EXIT_FAILED
    assert "node 4 (ImageToMask) failed: IndexError" in capsys.readouterr().err


def wait_until_idle(server, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        queue = get(server, "/queue")
        if not queue["queue_running"] and not queue["queue_pending"]:
            return
        time.sleep(0.2)
    raise AssertionError("the queue did not empty")


@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process on Windows")
def test_ctrl_c_interrupts_the_prompt_and_keeps_what_was_fetched(comfy_server, tmp_path):
    path = write(tmp_path / "slow.json", slow(60))
    command = [sys.executable, "-m", "testtime", "run", path, "--server", comfy_server.url, "--out", str(tmp_path)]
    # A shell starts background jobs deaf to Ctrl-C, and children inherit that: so would this one under a runner.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("picture*.png")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert get(comfy_server, "/queue")["queue_running"], "the run ended before it could be interrupted"
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED, messages
    assert "interrupted" in messages
    wait_until_idle(comfy_server)
    assert list(tmp_path.rglob("picture*.png"))
    assert not list(tmp_path.rglob("late*.png"))


def test_timeout_interrupts_the_prompt(comfy_server, tmp_path, capsys):
    assert run(comfy_server, slow(61), tmp_path, "--timeout", "3") == EXIT_FAILED
    assert "--timeout 3 s" in capsys.readouterr().err
    wait_until_idle(comfy_server)


def test_waiting_prompt_is_taken_out_of_the_queue(comfy_server, tmp_path):
    async def scenario() -> None:
        async with ComfyClient(comfy_server.url) as first, ComfyClient(comfy_server.url) as second:
            running = asyncio.create_task(first.follow(slow(62), RunListener(first, {}, tmp_path, quiet=True)))
            await asyncio.sleep(1.0)
            waiting = asyncio.create_task(
                second.follow(picture(colour=5), RunListener(second, {}, tmp_path, quiet=True))
            )
            await asyncio.sleep(1.0)
            assert len(get(comfy_server, "/queue")["queue_pending"]) == 1
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert not get(comfy_server, "/queue")["queue_pending"]
            assert get(comfy_server, "/queue")["queue_running"], "cancelling the second run must not stop the first"
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario())
    wait_until_idle(comfy_server)


def test_server_that_dies_midway_is_reported_and_what_was_fetched_is_kept(tmp_path, capsys):
    with HeadlessComfyUI(HeadlessOptions(only_this_pack=True)) as server:

        def kill_when_first_picture_is_here() -> None:
            deadline = time.monotonic() + 60
            while not list((tmp_path / "out").rglob("picture*.png")) and time.monotonic() < deadline:
                time.sleep(0.1)
            server.process.kill()

        killer = threading.Thread(target=kill_when_first_picture_is_here)
        killer.start()
        status = run(server, slow(60), tmp_path)
        killer.join()
    captured = capsys.readouterr()
    assert status == EXIT_SERVER
    assert "went away while the workflow was running" in captured.err
    (kept,) = captured.out.splitlines()
    assert Path(kept).exists()


def test_headless_run_writes_nothing_into_the_installation(tmp_path, capsys):
    root = require_comfyui().root

    def files() -> set[str]:
        return {str(path) for path in root.rglob("*") if "__pycache__" not in path.parts and ".git" not in path.parts}

    before = files()
    path = write(tmp_path / "workflow.json", picture())
    assert main(["run", path, "--only-this-pack", "--out", str(tmp_path / "out")]) == 0
    assert files() == before
    assert Path(capsys.readouterr().out.strip()).exists()


def test_server_that_is_down(tmp_path, capsys):
    path = write(tmp_path / "workflow.json", picture())
    assert main(["run", path, "--server", "http://127.0.0.1:9"]) == EXIT_SERVER
    assert "http://127.0.0.1:9 does not answer" in capsys.readouterr().err


class Stranger(BaseHTTPRequestHandler):
    """Answers every GET with ``body``: a web server that is not a (recent) ComfyUI."""

    body = b"<html>hello</html>"

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *arguments):
        """Keep the test output clean."""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html>hello</html>", "is this a ComfyUI?"),
        (b'{"hello": 1}', "is not a ComfyUI server"),
        (b'{"system": {"comfyui_version": "0.3.63"}}', "is version 0.3.63; 0.3.64 or newer is needed"),
    ],
)
def test_other_servers_and_old_ones_are_refused(tmp_path, capsys, body, words):
    handler = type("Handler", (Stranger,), {"body": body})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        path = write(tmp_path / "workflow.json", picture())
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert main(["run", path, "--server", url]) == EXIT_SERVER
        server.shutdown()
    assert words in capsys.readouterr().err


def test_old_installation_is_refused_before_it_is_started(tmp_path, monkeypatch, capsys):
    (tmp_path / "comfy").mkdir()
    for name in ("main.py", "nodes.py"):
        (tmp_path / name).touch()
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.3.40"\n')
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    path = write(tmp_path / "workflow.json", picture())
    assert main(["run", path]) == EXIT_SERVER
    assert "is version 0.3.40; 0.3.64 or newer is needed" in capsys.readouterr().err


def test_installation_that_does_not_start_shows_its_last_words(tmp_path, monkeypatch):
    (tmp_path / "comfy").mkdir()
    (tmp_path / "nodes.py").touch()
    (tmp_path / "main.py").write_text("raise SystemExit('no such module: frobnicator')\n")
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.3.64"\n')
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    server = HeadlessComfyUI()
    with pytest.raises(ServerTrouble, match="frobnicator"):
        server.start()
    assert not server.directory.exists()
