"""The one runner of the benchmarks that compare searches: a suite declares what is measured, this module measures it.

A *suite* names its rows (a search with its budget), prompts, model and judges. Everything else is here: prompts run in
groups; every group that is finished is noted in a manifest beside the results file, so that a run that was stopped
goes on where it was; rows with the same search are measured once; several processes share the work; rows are written
whole, with the commit of the code that measured them.

Rows judge every image three times: by the exact evaluator, by the verifier that steers, and by one that only watches.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..samplers.protocols import ScoreContext, Values, Verifier
from ..samplers.run.search import run_search
from ..shapes_world.captions import Prompt
from ..shapes_world.evaluator import evaluate
from ..verifiers.base import WrappedVerifier
from ..verifiers.registry import create
from .measured import Measured
from .provenance import clock
from .recording import Recording
from .suite import ROWS, Row, Settings, Suite

log = logging.getLogger("testtime")


class InPrecision(WrappedVerifier):
    """A verifier whose networks run under autocast."""

    def __init__(self, verifier: Verifier, dtype: torch.dtype | None):
        super().__init__(verifier)
        self._dtype = dtype

    def judge(self, images: Tensor, prompts: Sequence[str], context: ScoreContext | None = None) -> Values:
        """See ``samplers.protocols.Verifier``."""
        with torch.autocast(images.device.type, self._dtype, enabled=self._dtype is not None):
            values = self.inner.judge(images, prompts, context)
        return replace(values, score=values.score.float())


@cache
def judges(steers: str, watches: str, dtype: torch.dtype | None) -> tuple[Verifier, Verifier]:
    """The two verifiers, loaded once per process."""
    return InPrecision(create(steers), dtype), InPrecision(create(watches), dtype)


def judges_of(settings: Settings) -> tuple[Verifier, Verifier]:
    """(the verifier that steers, the one that only watches)."""
    return judges(settings.verifier, settings.held_out, settings.autocast)


def measure(
    suite: Suite, row: Row, prompts: Sequence[Prompt], first: int, batch: int,
    listener: Callable[[Any, list[str]], Any] | None = None,
) -> Measured:  # fmt: skip
    """Search one image for each of ``prompts``, all at once, and judge the winners.

    Args:
        suite, row: what is run.
        prompts: one per image.
        first: number of the first of them in the row.
        batch: particles per model call.
        listener: makes the listener of the search from (process, texts).
    """
    steers, watches = judges_of(suite.settings)
    texts = [prompt.text for prompt in prompts]
    process = suite.process(row, texts, first, batch)
    search = row.search
    began = clock()
    heard = None if listener is None else listener(process, texts)
    result = run_search(search, process, steers, texts, held_out=watches, listener=heard)
    elapsed = result.ledger.total_seconds
    images = suite.images(process, result.latents)
    seconds = clock() - began - result.ledger.seconds.get("held_out", 0.0)
    verdicts = [evaluate(image.numpy(), prompt).correct for image, prompt in zip(images, prompts, strict=True)]
    found = Measured.of_search(result, verdicts, seconds, elapsed)
    found.features = suite.features(row, images)
    return found


@dataclass(frozen=True)
class Task:
    """Something that any process can measure: ``count`` images of a row from ``first`` on, or an extra."""

    suite: Suite
    batch: int
    row: int = -1  # its place in ``suite.rows()``
    first: int = 0
    count: int = 0
    extra: str = ""

    def run(self) -> Measured | dict[str, Any]:
        """Measure it."""
        if self.extra:
            return self.suite.extra(self.extra, self.batch)
        row = self.suite.rows()[self.row]
        prompts = self.suite.prompts(row)[self.first : self.first + self.count]
        return measure(self.suite, row, prompts, self.first, self.batch)


def _run(task: Task) -> Measured | dict[str, Any]:
    return task.run()


def finished(tasks: Sequence[Task], processes: int) -> Iterator[tuple[Task, Any]]:
    """Tasks with what they measured, as they are finished; several processes share the cores."""
    if processes == 1:
        for task in tasks:
            yield task, task.run()
        return
    threads = max(1, torch.get_num_threads() // processes)
    context = multiprocessing.get_context("spawn")  # forking after torch has made its threads deadlocks
    with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        futures = {pool.submit(_run, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()


def same_work(suite: Suite, row: Row) -> tuple:
    """Equal for rows that run the same search on the same prompts, whatever they are called."""
    return contents(row.search), row.eta, tuple(suite.prompts(row))


def contents(value: Any) -> Any:
    """A value to compare by: dataclasses by type and all fields, those too that their ``==`` leaves out."""
    if is_dataclass(value) and not isinstance(value, type):
        return (type(value), *((f.name, contents(getattr(value, f.name))) for f in fields(value)))
    return value


def groups_of(rows: Sequence[Row], suite: Suite) -> list[list[Row]]:
    """Rows with the same work, together."""
    found: list[tuple[tuple, list[Row]]] = []
    for row in rows:
        work = same_work(suite, row)
        twins = next((twins for known, twins in found if known == work), None)
        if twins is None:
            found.append((work, [row]))
        else:
            twins.append(row)
    return [twins for _, twins in found]


def run(
    suite: Suite, recording: Recording, parts: Sequence[str], methods: Sequence[str], batch: int, processes: int
) -> None:
    """Measure what ``recording`` lacks and write it, row by row.

    Args:
        suite: what is measured.
        recording: the results file.
        parts, methods: of those that the suite has; ``methods`` chooses among the rows of the main table.
        batch: particles per model call.
        processes: that work side by side.
    """
    everything = suite.rows()
    wanted = [r for r in everything if r.part in parts and (r.part != ROWS or not methods or r.method in methods)]
    unfinished: dict[int, list[Row]] = {}  # place of the row that is measured -> rows that it is for
    tasks: list[Task] = []
    for twins in groups_of(everything, suite):
        first, missing = twins[0], [row for row in twins if row in wanted and not recording.has(row.key)]
        known = next((recording.row(row.key) for row in twins if recording.has(row.key)), None)
        if known is not None:
            recording.add([(row, known) for row in missing])
        elif missing and (reason := suite.cannot(first)):
            log.info("%s at %s is left out: %s", missing[0].method, missing[0].budget, reason)
        elif missing:
            place = everything.index(first)
            unfinished[place] = missing
            each = max(1, batch // suite.width(first))
            pieces = recording.manifest.missing(first.key, len(suite.prompts(first)), each)
            tasks += [Task(suite, batch, place, *piece) for piece in pieces]
    # The dearest first, so that several processes end together.
    tasks.sort(key=lambda task: -everything[task.row].budget)
    for name in suite.extras():
        if name.split(":")[0] in parts and not suite.has_extra(name, recording.body):
            tasks.append(Task(suite, batch, extra=name))

    def complete(place: int) -> None:
        row = everything[place]
        prompts = suite.prompts(row)
        found = recording.manifest.found(row.key, len(prompts))
        if found is not None:
            figures = found.row(prompts, suite.settings.per_prompt) | suite.more_figures(row, found)
            recording.add([(row, figures) for row in unfinished.pop(place)])

    for place in list(unfinished):  # all images may be in the manifest, and the row not in the file
        complete(place)
    for task, found in finished(tasks, processes):
        if isinstance(found, Measured):
            recording.manifest.add(everything[task.row].key, task.first, found)
            complete(task.row)
        else:
            recording.merge(found)
    recording.close()
