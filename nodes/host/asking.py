"""Asking a person in the middle of a run: the open question, who may answer it, and the waiting.

A run waits only where somebody can answer: it was queued from a browser window that holds the panel, and at least one
such window is open. Everything else (API, scripts, command line) goes on at once with the other verifier.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...reports.thumbs import film
from ...samplers.frames import still
from ...verifiers.human import Answer, Question
from .audience import OFF, audience, connected, may_see, queued_by, sender
from .compat import throw_if_interrupted
from .live import as_bytes, place, quick_thumbnail

log = logging.getLogger("testtime")

GRACE = 20.0
"""Seconds that a run waits on when the last window was closed or is being reloaded."""
POLL = 0.1
WINDOWS_KEPT = 64
"""Closed windows that are remembered, in case they are only being reloaded; open ones are never forgotten."""
SIDES = ((16, 256), (64, 192), (512, 128))  # pixels of a picture for up to so many candidates
SHOWN = 512
CLIP_SIDE = 256
CLIP_BYTES = 8_000_000
"""Of all moving pictures of a question together; candidates beyond it are shown by a still."""


@dataclass
class _Open:
    """The question that is open now, as windows get it, and its answer."""

    body: dict[str, Any]
    group: list[int]
    deadline: float
    owner: str | None = None
    answer: Answer | None = None
    over: str = ""  # "person", "verifier", "time", "nobody" or "cancelled"
    by: str = ""


class Desk:
    """One question at a time. Thread-safe: the sampling thread waits, the server's thread answers.

    Args:
        windows: ids of the windows that are connected; None asks the running server.
        owner: id of the client that queued the run, or None; None asks the running server.

    Attributes:
        unanswered: questions so far that ran out of time, or whose windows were all closed: a workflow that is queued
            again asks again, where the host would otherwise remember its result.
    """

    def __init__(self, windows: Callable[[], set[str]] | None = None, owner: Callable[[], str | None] | None = None):
        self._windows, self._owner = windows or connected, owner or queued_by
        self._panels: OrderedDict[str, None] = OrderedDict()
        self._open: _Open | None = None
        self._last: _Open | None = None
        self._lock = threading.Condition()
        self.unanswered = 0
        self.sink: Callable[[str, dict[str, Any]], None] | None = None

    def hello(self, client: str) -> bool:
        """A window says that it holds the panel and can show questions.

        Returns False for one that is not connected: whoever only claims to be a window can push no real one out.
        """
        windows = self._windows()
        if client not in windows:
            return False
        with self._lock:
            self._panels[client] = None
            self._panels.move_to_end(client)
            closed = [known for known in self._panels if known not in windows]
            for known in closed[: max(0, len(closed) - WINDOWS_KEPT)]:
                del self._panels[known]
        return True

    def somebody(self) -> bool:
        """Whether a window that can answer is open."""
        with self._lock:
            return bool(self._windows() & set(self._panels))

    def attended(self) -> bool:
        """Whether the run that executes now was queued from such a window, and questions are shown at all."""
        if audience() == OFF:
            return False
        owner = self._owner()
        with self._lock:
            known = owner is not None and owner in self._panels
        return known and self.somebody()

    def current(self, client: str | None = None) -> dict[str, Any] | None:
        """The open question with the seconds that are left, or None, also where it is not for the window ``client``."""
        with self._lock:
            if self._open is None or not may_see(self._open.owner, client):
                return None
            return {**self._open.body, "seconds": max(0.0, self._open.deadline - time.monotonic())}

    def ask(self, question: Question, seconds: float) -> Answer | None:
        """Show a question and wait for the first answer.

        Returns None at once where nobody can answer, and otherwise after ``seconds``, when the other verifier was
        told to decide, or when all windows have been closed for a while. Raises the host's cancellation.
        """
        if not self.attended():
            log.info("nobody has the panel open: %s decides", question.fallback)
            return None
        body, owner = described(question, seconds), self._owner()
        asked = _Open(body, list(question.group), time.monotonic() + seconds, owner)
        send = self.sink or sender(owner)
        with self._lock:
            self._open = asked
        send("testtime.ask", {key: value for key, value in body.items() if key != "candidates"})
        try:
            asked.over = self._wait(asked)
        except BaseException:
            asked.over = "cancelled"
            raise
        finally:
            with self._lock:
                self._open, self._last = None, asked
            send("testtime.answered", {"question": body["question"], "how": asked.over, "by": asked.by})
        if asked.over in ("time", "nobody"):
            self.unanswered += 1
            log.warning("no answer (%s): %s decides", asked.over, question.fallback)
        return asked.answer

    def _wait(self, asked: _Open) -> str:
        alone_since: float | None = None
        while True:
            throw_if_interrupted()
            now = time.monotonic()
            alone_since = None if self.somebody() else (alone_since or now)
            with self._lock:
                if asked.over:
                    return asked.over
                if now >= asked.deadline:
                    return "time"
                if alone_since is not None and now - alone_since > GRACE:
                    return "nobody"
                self._lock.wait(POLL)

    def answer(self, number: str, message: Any) -> tuple[int, dict[str, Any]]:
        """An answer from a window -> (HTTP status, what the window is told). The first valid one counts."""
        if not isinstance(message, dict):
            return 400, {"error": 'send {"client": ..., "ranked": [...], "dropped": [...]} or {"skip": true}'}
        client = str(message.get("client", ""))[:64]
        with self._lock:
            for known in (self._open, self._last):
                if known is not None and not may_see(known.owner, client):
                    continue
                if known is not None and known.body["question"] == number and known.over:
                    return 409, {"error": "this question is answered already", "how": known.over, "by": known.by}
            mine = self._open is not None and may_see(self._open.owner, client)
            if not mine or self._open.body["question"] != number:
                return 404, {"error": "this question is not open"}
            asked = self._open
            if message.get("skip") is True:
                asked.over = "verifier"
            else:
                try:
                    answer = Answer(tuple(message.get("ranked", ())), frozenset(message.get("dropped", ())))
                except TypeError:
                    return 400, {"error": "ranked and dropped must be lists of numbers"}
                problem = answer.problem(asked.group)
                if problem:
                    return 400, {"error": problem}
                asked.answer, asked.over = answer, "person"
            asked.by = client
            self._lock.notify_all()
        return 200, {"how": asked.over}


def described(question: Question, seconds: float) -> dict[str, Any]:
    """A question as windows get it."""
    n = len(question.images)
    side = next((pixels for count, pixels in SIDES if n <= count), SIDES[-1][1])
    shown = as_bytes(question.images[:SHOWN])
    pictures, clips = still(shown), films(shown)
    candidates = [
        {
            "row": row,
            "image": question.group[row],
            "score": _finite(float(question.scores[row])),
            "picture": quick_thumbnail(pictures[row], side) if row < len(pictures) else None,
            "clip": clips.get(row),
        }
        for row in range(n)
    ]
    prompts: dict[int, str] = {}
    for image, prompt in zip(question.group, question.prompts, strict=True):
        prompts.setdefault(image, prompt)
    return {
        "question": uuid.uuid4().hex[:12],
        **place(),
        "step": question.step,
        "steps": question.steps,
        "fallback": question.fallback,
        "prompts": [prompts[image] for image in sorted(prompts)],
        "limit": seconds,
        "candidates": candidates,
    }


def films(shown: Tensor) -> dict[int, str]:
    """Row -> base64 of a moving picture, of clips uint8 ``[n, F, H, W, 3]``, until ``CLIP_BYTES`` are used up."""
    found: dict[int, str] = {}
    left = CLIP_BYTES
    for row, clip in enumerate(shown if shown.dim() == 5 else ()):
        made = film(clip.numpy(), CLIP_SIDE)
        left -= len(made)
        if left < 0:
            break
        found[row] = base64.b64encode(made).decode()
    return found


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if abs(value) != float("inf") and value == value else None


desk = Desk()
