"""A search that fits a budget: how many particles, over how many steps, for so many forward passes or seconds.

The published comparisons are made at equal numbers of forward passes (500 in the RBF paper); every method spends them
in its own way, so each one says what it costs (``calls`` and ``looks``, and ``passes`` where its calls share a part)
and this module turns that around. A search around another one (re-prompted, continued) says what goes on ``around`` it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .processes.kernel import Interpolant, Noise, check_sigmas, is_stochastic, transition_variance
from .processes.sde import OnPath
from .protocols import SearchError, Verifier

STEPS = ("may be fewer", "keep")
MOST = 1 << 16  # particles; no budget pays for more


@dataclass(frozen=True)
class Outline:
    """As much of a process as a method needs to say what it costs.

    Attributes:
        interpolant: of the model. sigmas: ``[T + 1]`` decreasing. eta: noise of the moves.
    """

    interpolant: Interpolant
    sigmas: Sequence[float]
    eta: float | Noise

    @property
    def steps(self) -> int:
        """Moves T."""
        return len(self.sigmas) - 1

    @property
    def stochastic(self) -> bool:
        """Whether any move draws noise."""
        return is_stochastic(self.eta)

    @property
    def ends_clean(self) -> bool:
        """Whether the last move leads to a finished image."""
        return self.sigmas[-1] == 0.0

    def branches(self, step: int) -> bool:
        """Whether the move out of ``step`` draws noise."""
        return transition_variance(self.interpolant, self.sigmas[step], self.sigmas[step + 1], self.eta) > 0

    def thinned(self, steps: int) -> Outline:
        """The same with ``steps`` moves."""
        return replace(self, sigmas=thinned(self.sigmas, steps))


@dataclass(frozen=True)
class Pace:
    """Seconds that one particle takes: a denoiser call (all guidance branches), and a look (decode and verify)."""

    call: float
    look: float

    @classmethod
    def measure(cls, process: Any, verifier: Verifier | None, prompts: Sequence[str], particles: int = 4) -> Pace:
        """Time a few particles on ``process``. The first call of each kind warms up and does not count."""
        state = process.start(particles)
        rows = torch.arange(len(state))
        texts = [prompts[g] for g in state.group.tolist()]

        def call():
            return process.predict(replace(state.select(rows), x0=None))

        def look():
            images = process.preview(predicted)
            if verifier is not None:
                with torch.no_grad():
                    verifier.score(images, texts)

        predicted = call()
        seconds = [_timed(call)]
        look()
        seconds.append(_timed(look))
        return cls(*(value / len(state) for value in seconds))


def _timed(function) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


@dataclass(frozen=True)
class WithinBudget:
    """A search together with what it may cost; its number of particles and of steps is chosen to use that up.

    Particles grow until the budget is used. Where it does not pay for ``least`` particles at the given number of steps,
    the steps become fewer (the schedule is thinned, its ends stay), down to half of them; then the particles do.

    Attributes:
        search: a method, or one on a path (``sde.OnPath``); its own number of particles (candidates, beams, ...) does
            not count.
        nfe: forward passes per image, 0 for no limit.
        seconds: seconds of the whole run, 0 for no limit. Seconds are measured on the machine, so that the same seed
            may give different results.
        steps: one of ``STEPS``.
        least: particles that are worth fewer steps, >= 1.
    """

    search: Any
    nfe: int = 0
    seconds: float = 0.0
    steps: str = "may be fewer"
    least: int = 4

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        if self.nfe < 0 or not self.seconds >= 0:
            raise SearchError(f"nfe is {self.nfe} and seconds is {self.seconds}: both must be >= 0 (0 = no limit)")
        if self.nfe == 0 and self.seconds == 0:
            raise SearchError("nfe and seconds are both 0: give the forward passes per image, or seconds")
        if self.steps not in STEPS:
            raise SearchError(f"steps is {self.steps!r}: choose one of {', '.join(STEPS)}")
        if self.least < 1:
            raise SearchError(f"least is {self.least}: at least 1 is needed")

    def fit(
        self, search: Any, outline: Outline, rows: int, groups: int = 1, pace: Pace | None = None
    ) -> tuple[Any, int]:
        """(search, steps) that use the budget up as far as possible.

        Args:
            search: the method to fit.
            outline: the process as it would be run.
            rows: forward passes per denoiser call.
            groups: images of the run, which share ``seconds``.
            pace: needed where there is a limit in seconds.

        Raises:
            SearchError: a budget that does not pay for one image, or a method that cannot be fitted.
        """
        self.check_settings()
        if not hasattr(search, "calls"):
            raise SearchError(f"method {search.name!r} has no automatic budget: set its particles and steps yourself")
        asked = outline.steps
        fixed = self.steps == "keep" or getattr(search, "needs_schedule", False)
        floor = asked if fixed else max(1, min(asked, max(asked // 2, 4)))
        found = None
        for steps in range(asked, floor - 1, -1):
            shorter = outline if steps == asked else outline.thinned(steps)
            fitted = self._widest(search, shorter, rows, groups, pace)
            if fitted is None:
                continue
            if found is None or width_of(fitted) > width_of(found[0]):
                found = (fitted, steps)
            if width_of(fitted) >= self.least:
                break
        if found is None:
            raise SearchError(self._too_small(search, outline.thinned(floor), rows, groups, pace))
        return found

    def _widest(self, search: Any, outline: Outline, rows: int, groups: int, pace: Pace | None) -> Any | None:
        """The search with as many particles as the budget pays for, None if it does not pay for one."""
        if hasattr(search, "fitted"):  # the budget is a setting of the method itself
            return _fitted(search, self._calls(rows, groups, pace), outline)
        one, two = (calls_of(widened(search, width), outline) for width in (1, 2))
        if self.nfe and not self.seconds and one == two:
            # A learned value chooses between candidates without denoiser calls: their number stays.
            return search if self._pays(search, outline, rows, groups, pace) else None
        low, high = 0, 1
        while high <= MOST and self._pays(widened(search, high), outline, rows, groups, pace):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            if self._pays(widened(search, middle), outline, rows, groups, pace):
                low = middle
            else:
                high = middle
        return widened(search, low) if low > 0 else None

    def _pays(self, search: Any, outline: Outline, rows: int, groups: int, pace: Pace | None) -> bool:
        if self.nfe and passes_of(search, outline, rows) > self.nfe:
            return False
        return not self.seconds or self._seconds(search, outline, groups, pace) <= self.seconds

    def _seconds(self, search: Any, outline: Outline, groups: int, pace: Pace | None) -> float:
        if pace is None:
            raise SearchError("a budget in seconds needs the pace of this machine: measure it (Pace.measure)")
        return groups * (calls_of(search, outline) * pace.call + looks_of(search, outline) * pace.look)

    def _calls(self, rows: int, groups: int, pace: Pace | None) -> int:
        """Denoiser calls per image, where each is followed by a look."""
        limits = [self.nfe // rows] if self.nfe else []
        if self.seconds:
            if pace is None:
                raise SearchError("a budget in seconds needs the pace of this machine: measure it (Pace.measure)")
            limits.append(int(self.seconds / (groups * (pace.call + pace.look))))
        return min(limits)

    def _too_small(self, search: Any, outline: Outline, rows: int, groups: int, pace: Pace | None) -> str:
        if hasattr(search, "fitted"):
            least = _least_calls(search, outline)
            passes = least * rows
        else:
            least = calls_of(widened(search, 1), outline)
            passes = passes_of(widened(search, 1), outline, rows)
        each = f"{least} denoiser calls" + (f" of {rows}" if passes == least * rows else "")
        what = f"{passes} forward passes per image ({each})"
        if self.nfe and passes > self.nfe:
            return f"nfe is {self.nfe}: {search.name} with {outline.steps} steps needs at least {what}"
        seconds = "" if pace is None else f", about {groups * least * (pace.call + pace.look):.3g} s here"
        return f"seconds is {self.seconds:g}: {search.name} with {outline.steps} steps needs at least {what}{seconds}"


def method_of(search: Any) -> Any:
    """The method itself, without the path that it is to run on and the budget that it is to fit."""
    while isinstance(search, OnPath | WithinBudget):
        search = search.search
    return search


def rewrapped(search: Any, change: Callable[[Any], Any]) -> Any:
    """``change`` applied to the method inside a path and a budget, both kept."""
    if isinstance(search, OnPath | WithinBudget):
        return replace(search, search=rewrapped(search.search, change))
    return change(search)


def calls_of(search: Any, outline: Outline) -> int:
    """Denoiser calls per image, those around the search included."""
    if _inside(search) is None:
        return search.calls(outline)
    spent, rest = search.around(outline)
    return spent + calls_of(search.search, rest)


def looks_of(search: Any, outline: Outline) -> int:
    """Decodes and verifications per image."""
    return search.looks(outline) if _inside(search) is None else looks_of(search.search, search.around(outline)[1])


def passes_of(search: Any, outline: Outline, rows: int) -> int:
    """Forward passes per image; ``rows`` per call, fewer where a method says that its calls share some."""
    if _inside(search) is None:
        return search.passes(outline, rows) if hasattr(search, "passes") else search.calls(outline) * rows
    spent, rest = search.around(outline)
    return spent * rows + passes_of(search.search, rest, rows)


def _inside(search: Any) -> Any | None:
    """The search that this one is wrapped around."""
    return search.search if hasattr(type(search), "around") else None


def _fitted(search: Any, calls: int, outline: Outline) -> Any | None:
    if _inside(search) is None:
        return search.fitted(calls, outline)
    spent, rest = search.around(outline)
    inner = _fitted(search.search, calls - spent, rest)
    return None if inner is None else replace(search, search=inner)


def _least_calls(search: Any, outline: Outline) -> int:
    if _inside(search) is None:
        return search.least_calls(outline)
    spent, rest = search.around(outline)
    return spent + _least_calls(search.search, rest)


def width_of(search: Any) -> int:
    """How many particles a method moves on with, by the field that ``widened`` sets; RBF's chains always count."""
    return getattr(search, search.width_field) if hasattr(search, "width_field") else MOST


def widened(search: Any, width: int) -> Any:
    """The method with another number of particles (candidates, beams, rounds, ...)."""
    if _inside(search) is not None:
        return replace(search, search=widened(search.search, width))
    return replace(search, **{search.width_field: width})


def thinned(sigmas: Sequence[float], steps: int) -> list[float]:
    """``steps`` moves of a schedule ``[T + 1]``: evenly chosen levels, the first and the last stay.

    Raises:
        ValueError: more steps than there are, or fewer than one.
    """
    values = list(sigmas)
    if not 1 <= steps < len(values):
        raise ValueError(f"steps is {steps}: a schedule of {len(values) - 1} can be thinned to 1 .. {len(values) - 1}")
    # The last move (to 0) is a jump of its own kind: the level before it stays too, if there is room.
    if steps == 1:
        return [values[0], values[-1]]
    inner = len(values) - 2
    places = [round(i * inner / (steps - 1)) for i in range(steps)]
    return [values[place] for place in places] + [values[-1]]


def auto(
    search: Any,
    process: Any,
    verifier: Verifier | None,
    prompts: Sequence[str],
    *,
    nfe: int = 0,
    seconds: float = 0.0,
    steps: str = "may be fewer",
    least: int = 4,
) -> tuple[Any, Any]:
    """(search, process) that use up a budget; hand both to ``run_search``, with the budget as its limit too.

    Args:
        search: a method; its number of particles is replaced.
        process: a ``DiffusionProcess``; the schedule of the one that comes back may be thinned.
        verifier, prompts: as for ``run_search``, to measure seconds.
        nfe, seconds, steps, least: see ``WithinBudget``. ``nfe`` counts per image.

    Raises:
        SearchError: a budget that does not pay for one image.
    """
    budget = WithinBudget(search, nfe, seconds, steps, least)
    budget.check_settings()
    outline = Outline(process.interpolant, check_sigmas(Tensor(process.sigmas)), process.eta)
    pace = Pace.measure(process, verifier, prompts) if seconds else None
    fitted, count = budget.fit(search, outline, process.denoise.rows_per_particle, process.groups, pace)
    if count < process.steps:
        process = copy.copy(process)
        process.sigmas = thinned(process.sigmas, count)
        process.steps = count
    return fitted, process
