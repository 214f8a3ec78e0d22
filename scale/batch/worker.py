"""A worker of a batch: rows as lines of JSON on standard input, answers on standard output, until the input ends.

python -m testtime.scale.batch.worker
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from pathlib import Path

from ...installation.errors import CommandError
from ...samplers.processes.chunking import is_out_of_memory
from ...samplers.protocols import SearchError
from .library import run_row


def main() -> None:
    """Serve until standard input closes; an answer is ``{"facts"}`` or ``{"error", "final"}``."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    answers.write(json.dumps({"ready": os.getpid()}) + "\n")
    answers.flush()
    asked_for: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(asked_for,), daemon=True).start()
    while True:
        asked = json.loads(asked_for.get())
        try:
            answer = {"facts": run_row(asked["work"], Path(asked["folder"]))}
        except (SearchError, CommandError) as error:
            answer = {"error": str(error), "final": True}
        except Exception as error:  # noqa: BLE001 - the driver decides what becomes of the row
            fatal = is_out_of_memory(error) or isinstance(error, MemoryError)
            answer = {"error": f"{type(error).__name__}: {error}", "final": False, "fatal": fatal}
        answers.write(json.dumps(answer, ensure_ascii=False) + "\n")
        answers.flush()


def _read(lines: queue.SimpleQueue[str]) -> None:
    """Hand on what is asked; without a driver nobody wants the row that runs, so the process ends at once."""
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
