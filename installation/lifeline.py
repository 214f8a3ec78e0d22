"""A child process that ends when its parent does, even when the parent is killed: the pipe between them closes."""

from __future__ import annotations

import os
import sys
import threading

ENDS_WITH_STDIN = "TESTTIME_ENDS_WITH_STDIN"
"""Set in a ComfyUI that was started by ``testtime``: it ends when its standard input closes."""


def end_with_stdin() -> None:
    """Begin to watch standard input, and end the process at once when it closes."""

    def watch() -> None:
        try:
            while os.read(0, 4096):
                pass
        except OSError:
            pass
        os._exit(0)

    threading.Thread(target=watch, name="testtime lifeline", daemon=True).start()


def end_with_parent() -> None:
    """``end_with_stdin`` where the parent asked for it."""
    if os.environ.pop(ENDS_WITH_STDIN, "") and sys.stdin is not None:
        end_with_stdin()
