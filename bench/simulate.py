"""A batch of a million prompts on a thousand GPUs, simulated: stragglers, lost machines, dispatch and storage.

    testtime bench simulate [--prompts 1000000] [--gpus 1000] [--rows-per-task 1 16 64 256]

The driver hands out tasks of some rows each, one after the other. A GPU may be slow, and may be lost in the middle of a
task, which then begins again elsewhere: within a task nothing is kept. Times are drawn from one seed.
"""

from __future__ import annotations

import argparse
import heapq
import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

log = logging.getLogger("testtime")
MEGABYTE = 1e6


@dataclass(frozen=True)
class Cluster:
    """What is simulated.

    Attributes:
        prompts, gpus: counts. seconds, spread: of one prompt on a usual GPU, log-normal: mean and coefficient of
            variation. slow, slowness: share of slow GPUs, and how many times longer they take.
        between_losses, absence: seconds that a GPU lasts on average (0: for ever), and until it is back.
        dispatch: seconds of the driver per task. rows_per_task: prompts of a task.
        duplicate_last: share of the tasks at the end that idle GPUs run a second time; the first to end counts.
        seed: of all draws.
    """

    prompts: int = 1_000_000
    gpus: int = 1_000
    seconds: float = 40.0
    spread: float = 0.3
    slow: float = 0.05
    slowness: float = 2.0
    between_losses: float = 6 * 3600.0
    absence: float = 180.0
    dispatch: float = 0.001
    rows_per_task: int = 1
    duplicate_last: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        hours: until the last prompt is done. ideal: hours of usual GPUs that never wait.
        lost: work that was lost with GPUs, as a share of the useful work.
        idle: share of all GPUs' time that lies behind their last task.
        losses: GPUs lost while they worked. doubled: tasks run twice at the end.
    """

    hours: float
    ideal: float
    lost: float
    idle: float
    losses: int
    doubled: int


def simulate(cluster: Cluster) -> Outcome:
    """Run the batch, event by event."""
    draws = np.random.default_rng(cluster.seed)
    costs = _task_costs(cluster, draws)
    pace = np.where(draws.random(cluster.gpus) < cluster.slow, cluster.slowness, 1.0)
    free = [(0.0, gpu) for gpu in range(cluster.gpus)]
    lasts = _Losses(cluster, draws)
    waiting, back = deque(range(len(costs))), []  # tasks to hand out, and (when, task) of those that are lost
    ends: dict[int, float] = {}  # task -> when it ends, as soon as that is known
    last_end = dict.fromkeys(range(cluster.gpus), 0.0)
    most, doubles = math.ceil(cluster.duplicate_last * len(costs)), set()
    driver = useful = lost = 0.0
    losses = 0
    while free:
        now, gpu = heapq.heappop(free)
        while back and back[0][0] <= now:
            waiting.appendleft(heapq.heappop(back)[1])
        if waiting:
            task = waiting.popleft()
        elif back:
            heapq.heappush(free, (back[0][0], gpu))  # a task is about to come back
            continue
        else:
            task = max((t for t in ends if t not in doubles), key=ends.__getitem__) if len(doubles) < most else -1
            if task < 0 or ends[task] <= now:
                continue
            doubles.add(task)
        driver = max(driver, now) + cluster.dispatch
        cost = costs[task] * pace[gpu]
        loss = lasts.of(gpu, driver)
        if loss < driver + cost:
            losses += 1
            lost += loss - driver
            lasts.renew(gpu, loss + cluster.absence)
            heapq.heappush(free, (loss + cluster.absence, gpu))
            if task not in ends:
                heapq.heappush(back, (loss, task))
            continue
        useful += cost if task not in ends else 0.0
        ends[task] = min(driver + cost, ends.get(task, math.inf))
        last_end[gpu] = driver + cost
        heapq.heappush(free, (driver + cost, gpu))
    finish = float(max(ends.values()))
    idle = sum(max(0.0, finish - min(end, finish)) for end in last_end.values()) / (cluster.gpus * finish)
    ideal = cluster.prompts * cluster.seconds / cluster.gpus
    return Outcome(finish / 3600, ideal / 3600, float(lost / max(useful, 1e-9)), float(idle), losses, len(doubles))


def _task_costs(cluster: Cluster, draws: np.random.Generator) -> np.ndarray:
    """Seconds of every task on a usual GPU."""
    variance = math.log(1 + cluster.spread**2)
    rows = draws.lognormal(math.log(cluster.seconds) - variance / 2, math.sqrt(variance), cluster.prompts)
    tasks = math.ceil(cluster.prompts / cluster.rows_per_task)
    padded = np.zeros(tasks * cluster.rows_per_task)
    padded[: cluster.prompts] = rows
    return padded.reshape(tasks, cluster.rows_per_task).sum(1)


class _Losses:
    """When each GPU is lost next."""

    def __init__(self, cluster: Cluster, draws: np.random.Generator):
        self._mean, self._draws = cluster.between_losses, draws
        self._next = {gpu: self._drawn(0.0) for gpu in range(cluster.gpus)}

    def _drawn(self, now: float) -> float:
        return now + float(self._draws.exponential(self._mean)) if self._mean else math.inf

    def of(self, gpu: int, now: float) -> float:
        """When it is lost, after ``now``."""
        while self._next[gpu] < now:  # lost while it waited, which costs nothing
            self._next[gpu] = self._drawn(now)
        return self._next[gpu]

    def renew(self, gpu: int, back: float) -> None:
        """It is back."""
        self._next[gpu] = self._drawn(back)


@dataclass(frozen=True)
class Kept:
    """What is kept of a prompt: bytes of a picture and of what goes with it."""

    title: str
    picture: float
    beside: float = 0.0

    def terabytes(self, prompts: int) -> float:
        """Of all prompts."""
        return prompts * (self.picture + self.beside) / 1e12

    def megabytes_per_second(self, prompts: int, hours: float) -> float:
        """To be written while the batch runs."""
        return prompts * (self.picture + self.beside) / MEGABYTE / (hours * 3600)


KEPT = (
    Kept("winner as PNG, 1024 pixels", 1.5 * MEGABYTE),
    Kept("winner as WebP, quality 90", 0.3 * MEGABYTE),
    Kept("eight finalists as PNG", 8 * 1.5 * MEGABYTE),
    Kept("trace of 8 x 20 steps, gzip", 0.0, 5.7e3),
)
"""Sizes of pictures are estimates, that of a trace is measured."""


def table(base: Cluster, rows_per_task: Sequence[int]) -> str:
    """The report: by rows per task, then storage."""
    lines = [f"{base.prompts:,} prompts of {base.seconds:g} s on {base.gpus:,} GPUs", ""]
    lines += ["| rows per task | hours | ideal | lost work | idle at the end | GPUs lost |", "| ---: |" + " ---: |" * 5]
    hours = math.inf
    for rows in rows_per_task:
        found = simulate(replace(base, rows_per_task=rows))
        hours = min(hours, found.hours)
        lines.append(
            f"| {rows} | {found.hours:.2f} | {found.ideal:.2f} | {100 * found.lost:.1f} % | {100 * found.idle:.1f} % | "
            f"{found.losses} |"
        )
    lines += ["", f"The driver must hand out {base.prompts / (hours * 3600):.0f} rows per second.", ""]
    lines += ["| kept of a prompt | TB | MB per second |", "| --- | ---: | ---: |"]
    lines += [
        f"| {kept.title} | {kept.terabytes(base.prompts):.2f} | {kept.megabytes_per_second(base.prompts, hours):.1f} |"
        for kept in KEPT
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry."""
    base = Cluster()
    parser = argparse.ArgumentParser(prog="testtime bench simulate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows-per-task", type=int, nargs="+", default=[1, 16, 64, 256])
    for name in ("prompts", "gpus", "seconds", "spread", "slow", "slowness", "between_losses", "absence", "dispatch",
                 "duplicate_last", "seed"):  # fmt: skip
        value = getattr(base, name)
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    options = vars(parser.parse_args(arguments))
    rows = options.pop("rows_per_task")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    log.info("%s", table(Cluster(**options), rows))
    return 0
