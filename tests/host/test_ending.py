"""A command that is ended from outside takes its ComfyUI along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from testtime.installation.errors import EXIT_INTERRUPTED

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


def children(process: subprocess.Popen) -> list[int]:
    """Process numbers of the direct children."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return [int(number) for number in listed.stdout.split()]


def alive(number: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("ending", ["SIGTERM", "SIGHUP"])
def test_comfyui_ends_with_the_command(tmp_path, ending):
    command = [sys.executable, "-m", "testtime", "demo", "--out", str(tmp_path / "demo")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with (tmp_path / "said").open("wb") as said:
        demo = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("testtime-comfyui-*/comfyui.log")):
            assert demo.poll() is None and time.monotonic() < deadline, (tmp_path / "said").read_text()
            time.sleep(0.1)
        while not (servers := children(demo)):
            assert demo.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        demo.send_signal(getattr(signal, ending))
        assert demo.wait(60) == EXIT_INTERRUPTED
    finally:
        demo.kill()
    assert not any(alive(server) for server in servers)
    assert not list(tmp_path.glob("testtime-comfyui-*"))
    assert "interrupted" in (tmp_path / "said").read_text()
