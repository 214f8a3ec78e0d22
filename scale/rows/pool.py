"""Questions dealt out to workers: who is free takes the next; what a dead worker was asked is asked again.

Answers come in the order of the questions, and no answer depends on who gave it, so neither the number of workers nor
their speed nor their deaths show in a result.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch

from ...samplers.protocols import SearchError
from ...samplers.workers import WorkersLost
from .wire import Message, pack, unpack

log = logging.getLogger("testtime")
DEATHS = 3
"""Workers that a question may end, and starts of a worker that may fail, before it is given up."""


class LinkLost(Exception):
    """The worker behind a link is gone."""


class Link(Protocol):
    """A way to one worker.

    Attributes:
        name: for messages and the books.
    """

    name: str

    def start(self) -> None:
        """Start or restart the worker. Raises LinkLost."""
        ...

    def ask(self, data: bytes) -> bytes:
        """The answer to a packed question. Raises LinkLost."""
        ...

    def close(self) -> None:
        """End the worker."""
        ...


class RemoteError(RuntimeError):
    """What a worker's model or verifier raised."""


class Pool:
    """Workers behind links.

    Args:
        links: at least one.

    Attributes:
        rows, seconds, restarts: per worker's name: rows answered, seconds of its own work, times it was restarted.
        bytes: sent and received. wall: seconds in ``ask``.
    """

    def __init__(self, links: Sequence[Link]):
        self.links = list(links)
        self._threads = ThreadPoolExecutor(max_workers=len(self.links), thread_name_prefix="testtime-worker")
        self._lock = threading.Lock()
        self._opening: bytes | None = None
        self._first: Message | None = None
        self._started: set[int] = set()
        self._gone: set[int] = set()
        self.reset()

    def reset(self) -> None:
        """Begin new books."""
        self.rows: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.restarts: dict[str, int] = {}
        self.bytes, self.wall = 0, 0.0

    def open(self, opening: Message) -> list[Message]:
        """Open every worker; what each says of itself. Raises SearchError where one cannot open, WorkersLost."""
        self._opening = pack(opening)
        self._gone.clear()
        with self._lock:
            self._first = None
        told = list(self._threads.map(self._open, range(len(self.links))))
        found = [message for message in told if message is not None]
        if not found:
            raise WorkersLost("no worker starts")
        return found

    def ask(self, questions: Sequence[Message], rows: Sequence[int], prefer: Sequence[int] | None = None) -> list:
        """Answers in the order of the questions.

        Args:
            questions: independent of each other. rows: that each is about, for the books.
            prefer: number of the link that knows something of it, for each; others take it when they are free.

        Raises:
            WorkersLost; SearchError, torch.OutOfMemoryError and RemoteError as the first question in order raised it.
        """
        began = time.perf_counter()
        work = _Work(len(questions), prefer)
        packed = [pack(question) for question in questions]
        futures = [
            self._threads.submit(self._serve, number, work, packed, rows)
            for number in range(len(self.links))
            if number not in self._gone
        ]
        for future in futures:
            future.result()
        self.wall += time.perf_counter() - began
        if work.lost is not None:
            raise work.lost
        if len(work.answers) < len(questions):
            raise WorkersLost(f"no worker is left for {len(questions) - len(work.answers)} of {len(questions)} calls")
        answers = [work.answers[number] for number in range(len(questions))]
        for answer in answers:
            if answer.kind == "error":
                raise told_error(answer)
        return answers

    def close(self) -> None:
        """End all workers."""
        for link in self.links:
            link.close()
        self._threads.shutdown(wait=False)
        self._started.clear()

    def _serve(self, number: int, work: _Work, packed: Sequence[bytes], rows: Sequence[int]) -> None:
        """One worker takes questions until none is left."""
        link = self.links[number]
        while (question := work.next(number)) is not None:
            try:
                data = link.ask(packed[question])
            except LinkLost as error:
                log.warning("%s was lost (%s): its call is repeated", link.name, error)
                self._started.discard(number)
                work.back(question, rows[question])
                try:
                    reopened = self._open(number)
                except SearchError as refused:
                    log.warning("%s", refused)
                    reopened = None
                if reopened is None:
                    self._gone.add(number)
                    return
                with self._lock:
                    self.restarts[link.name] = self.restarts.get(link.name, 0) + 1
                continue
            answer = unpack(data)
            with self._lock:
                self.rows[link.name] = self.rows.get(link.name, 0) + rows[question]
                spent = float(answer.values.get("seconds", 0.0))
                self.seconds[link.name] = self.seconds.get(link.name, 0.0) + spent
                self.bytes += len(packed[question]) + len(data)
            work.done(question, answer, number)

    def _open(self, number: int) -> Message | None:
        """Start a worker where needed and open it; None where it does not start."""
        link = self.links[number]
        assert self._opening is not None
        for attempt in range(DEATHS):
            try:
                if number not in self._started:
                    link.start()
                    self._started.add(number)
                answer = unpack(link.ask(self._opening))
            except LinkLost as error:
                self._started.discard(number)
                log.warning("%s does not start (attempt %d of %d): %s", link.name, attempt + 1, DEATHS, error)
                continue
            if answer.kind == "error":
                raise told_error(answer)
            self.check(link.name, answer)
            return answer
        return None

    def check(self, name: str, told: Message) -> None:
        """Refuse a worker that is not what the others are."""
        with self._lock:
            if self._first is None:
                self._first = told
                return
        differ(name, told, self._first, "the other workers")


class _Work:
    """Questions that wait, run, and are answered."""

    def __init__(self, count: int, prefer: Sequence[int] | None):
        self.waiting = deque(range(count))
        self.prefer = prefer
        self.answers: dict[int, Message] = {}
        self.by: dict[int, int] = {}
        self.deaths: dict[int, int] = {}
        self.running = 0
        self.lost: WorkersLost | None = None
        self._changed = threading.Condition()

    def next(self, link: int) -> int | None:
        """A question for a worker, one that it knows something of first; None when all are answered or given up."""
        with self._changed:
            while self.lost is None:
                if self.waiting:
                    chosen = next((q for q in self.waiting if self.prefer and self.prefer[q] == link), self.waiting[0])
                    self.waiting.remove(chosen)
                    self.running += 1
                    return chosen
                if not self.running:
                    return None
                self._changed.wait()  # a worker may die, and its question come back
            return None

    def done(self, question: int, answer: Message, link: int) -> None:
        with self._changed:
            self.answers[question], self.by[question] = answer, link
            self.running -= 1
            self._changed.notify_all()

    def back(self, question: int, rows: int) -> None:
        """Its worker died; a question that ends every worker is asked no more."""
        with self._changed:
            self.deaths[question] = self.deaths.get(question, 0) + 1
            self.running -= 1
            if self.deaths[question] >= DEATHS:
                self.lost = WorkersLost(f"call {question + 1} ({rows} rows) ended {DEATHS} workers one after the other")
            else:
                self.waiting.appendleft(question)
            self._changed.notify_all()


def told_error(answer: Message) -> Exception:
    """The error that a worker tells of."""
    kind, name, message = (answer.values[key] for key in ("kind", "type", "message"))
    if kind == "memory":
        return torch.OutOfMemoryError(message)
    if kind == "search":
        return SearchError(message)
    return RemoteError(f"{name} on a worker: {message}")


def differ(name: str, told: Message, reference: Message, whose: str) -> None:
    """Raise SearchError where a worker is not what it should be, naming what differs."""
    mine, wanted = told.values["identity"], reference.values["identity"]
    for key, value in wanted.items():
        if key == "device":
            continue  # results then agree within rounding, which is said
        if mine.get(key) != value:
            raise SearchError(f"{name} is refused: its {key} is {mine.get(key)!r}, that of {whose} {value!r}")
    one, two = told.tensors["probe"], reference.tensors["probe"]
    same_device = mine.get("device") == wanted.get("device")
    if one.shape != two.shape or not (torch.equal(one, two) if same_device else _close(one, two)):
        raise SearchError(
            f"{name} is refused: its network predicts something else of the same noise than {whose} "
            f"(other weights, LoRAs or patches?)"
        )


def _close(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether predictions of different kinds of devices may be of the same network."""
    return float((one - two).abs().max()) <= 1e-2 * max(float(two.std(correction=0)), 1e-6)
