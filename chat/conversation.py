"""What is said to a model and what it says: turns, replies, and the ways in which an answer can fail."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image

from ..samplers.protocols import SearchError

T = TypeVar("T")

Poll = Callable[[], None]
"""Called while waiting; raises to end the wait (a user's Cancel)."""

# Lone halves of UTF-16 pairs cannot be written to a file, control characters garble a terminal.
_UNWRITABLE = re.compile(r"[\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class ChatError(SearchError):
    """A model or server that cannot be asked at all; the message names what is wrong and what is right."""


class Unanswered(Exception):
    """A question that got no answer, for a reason in words. ``calls`` were made."""

    def __init__(self, reason: str, calls: int = 1):
        super().__init__(reason)
        self.calls = calls


class NotUnderstood(ValueError):
    """An answer came and does not hold what was asked for; the message says what is wrong with it."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation: "system", "user" or "assistant", its text, and a picture or None.

    ``before`` are pictures that are shown before it (the sources of an edit), in order.
    """

    role: str
    text: str
    image: Image.Image | None = None
    before: tuple[Image.Image, ...] = ()

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """All its pictures, in the order in which they are shown."""
        return self.before if self.image is None else (*self.before, self.image)


@dataclass(frozen=True)
class Reply:
    """What a model answered.

    Attributes:
        text: the answer itself.
        thoughts: what a server gave apart from it as the way there ("reasoning"); never an answer.
        cut: the answer stopped because it had reached its longest, not because the model was done.
        words: likeliest first words and their probabilities, None where they were not asked for or not given.
        calls: requests that it took.
    """

    text: str
    thoughts: str = ""
    cut: bool = False
    words: tuple[tuple[str, float], ...] | None = None
    calls: int = 1


def writable(text: str) -> str:
    """A text that can be written to any file: without control characters and halves of UTF-16 pairs."""
    return _UNWRITABLE.sub("\ufffd", text)


def shown(text: str, length: int = 60) -> str:
    """A text in one line and in quotes for a message, shortened to ``length``; "an empty answer" for none."""
    flat = " ".join(writable(text[: 20 * length]).split())
    if not flat:
        return "an empty answer"
    made = repr(flat if len(flat) <= length else flat[:length] + "..")
    return made if len(made) <= 3 * length else f"{made[: 3 * length]}.."  # signs that are written as \\u202e


def data_url(image: Image.Image) -> str:
    """A picture as the ``data:`` address of a JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def side_by_side(jobs: Sequence[Callable[[Poll], T]], parallel: int, poll: Poll) -> list[T]:
    """Results of ``jobs``, in order, at most ``parallel`` at a time.

    ``poll`` runs on the calling thread, which a host may demand; when it raises, the jobs are told through the Poll
    that they are given, which then raises Unanswered, and nobody waits for them.
    """
    if not jobs:
        return []
    stop = threading.Event()

    def cancelled() -> None:
        if stop.is_set():
            raise Unanswered("cancelled", calls=0)

    pool = concurrent.futures.ThreadPoolExecutor(min(parallel, len(jobs)))
    try:
        waiting = [pool.submit(job, cancelled) for job in jobs]
        while concurrent.futures.wait(waiting, timeout=0.1).not_done:
            poll()
        return [future.result() for future in waiting]
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
