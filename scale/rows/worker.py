"""A worker as a process of its own: messages on standard input, answers on standard output, until the input ends.

python -m testtime.scale.rows.worker
"""

from __future__ import annotations

import os
import queue
import sys
import threading

from .server import Server
from .wire import pack, receive, send, unpack


def main() -> None:
    """Answer until standard input closes, and end at once then: without a driver nobody wants the answer."""
    answers, questions = os.fdopen(os.dup(1), "wb"), os.fdopen(os.dup(0), "rb")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        try:
            while True:
                asked.put(receive(questions))
        except EOFError:
            os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    server = Server()
    while True:
        send(answers, pack(server.answer(unpack(asked.get()))))


if __name__ == "__main__":
    sys.exit(main())
