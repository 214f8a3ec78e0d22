"""A search that fits a budget: how many particles, over how many steps, for so many forward passes or seconds.

The published comparisons are made at equal numbers of forward passes (500 in the RBF paper); every method spends them
in its own way, so each one says what it costs (``denoiser_calls``, ``verifications``, and ``nfe`` where its calls share
a part) and this module turns that around.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from .checks import at_least, one_of
from .looks import judge
from .movers import END, native_of
from .outline import NoiseOutline
from .protocols import Outline, Process, ScoreContext, SearchError, Verifier

if TYPE_CHECKING:
    from .method import SearchMethod
    from .plan import Plan

STEPS = ("may be fewer", "keep")
MOST = 1 << 16  # particles; no budget pays for more


@dataclass(frozen=True)
class Pace:
    """Seconds that one particle takes.

    Attributes:
        call: a denoiser call, all guidance branches. look: a decode and a verification.
        spent: what measuring took, in all.
    """

    call: float
    look: float
    spent: float = 0.0

    @classmethod
    def measure(cls, process: Process, verifier: Verifier | None, prompts: Sequence[str], particles: int = 4) -> Pace:
        """Time a few particles on ``process``. The first call of each kind warms up and does not count."""
        begun = time.perf_counter()
        state = process.start(particles)
        texts = [prompts[g] for g in state.group.tolist()]

        def call():
            return process.predict(replace(state, x0=None))

        def look():
            images = process.preview(predicted)
            if verifier is not None:
                with torch.no_grad():
                    judge(verifier, images, texts, ScoreContext(state.group, frames=process.shown))

        predicted = call()
        per_call = _timed(call) / len(state)
        look()
        per_look = _timed(look) / len(state)
        return cls(per_call, per_look, spent=time.perf_counter() - begun)


def _timed(function) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


@dataclass(frozen=True)
class Budget:
    """What a search may cost; its number of particles and of steps is chosen to use that up.

    Particles grow until the budget is used. Where it does not pay for ``least`` particles at the given number of steps,
    the steps become fewer (the schedule is thinned, its ends stay), down to half of them; then the particles do.

    Attributes:
        nfe: forward passes per image, 0 for no limit.
        seconds: seconds of the whole run, 0 for no limit. Seconds are measured on the machine, so that the same seed
            may give different results.
        steps: one of ``STEPS``.
        least: use fewer steps rather than fewer particles than this, >= 1.
    """

    nfe: int = 0
    seconds: float = 0.0
    steps: str = "may be fewer"
    least: int = 4

    @property
    def title(self) -> str:
        """The budget in words, as a search's title has it."""
        limits = [f"{self.nfe} passes"] if self.nfe else []
        limits += [f"{self.seconds:g} s"] if self.seconds else []
        return f"within {' and '.join(limits)}"

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        if self.nfe < 0 or not self.seconds >= 0:
            raise SearchError(f"nfe is {self.nfe} and seconds is {self.seconds}: both must be >= 0 (0 = no limit)")
        if self.nfe == 0 and self.seconds == 0:
            raise SearchError("nfe and seconds are both 0: give the forward passes per image, or seconds")
        one_of(STEPS, steps=self.steps)
        at_least(1, least=self.least)

    def after(self, seconds: float) -> Budget:
        """What is left when ``seconds`` of it were spent on measuring the pace. SearchError where nothing is."""
        if self.seconds and seconds >= self.seconds:
            raise SearchError(f"seconds is {self.seconds:g}: measuring the pace alone took longer, give more")
        return replace(self, seconds=self.seconds - seconds) if self.seconds else self

    def fit(
        self, plan: Plan, outline: Outline, nfe_per_call: int, groups: int = 1, pace: Pace | None = None
    ) -> tuple[SearchMethod, int]:
        """(method, steps) that use the budget up as far as possible.

        Args:
            plan: the search to fit. outline: the process as it would be run.
            nfe_per_call: forward passes per denoiser call.
            groups: images of the run, which share ``seconds``.
            pace: needed where there is a limit in seconds.

        Raises:
            SearchError: a budget that does not pay for one image, or a method that cannot be fitted.
        """
        self.check_settings()
        if not plan.method.width and not plan.method.holds_budget:
            raise SearchError(f"{plan.method.title} has no automatic budget: set its particles and steps yourself")
        asked = outline.steps
        fixed = (
            self.steps == "keep"
            or plan.method.fixed_schedule
            or plan.origin is not None
            or not isinstance(outline, NoiseOutline)
        )
        floor = asked if fixed else max(1, min(asked, max(asked // 2, 4)))
        found: tuple[SearchMethod, int] | None = None
        for steps in range(asked, floor - 1, -1):
            cost = Cost(plan, _shortened(outline, steps), nfe_per_call, groups, pace)
            fitted = self._widest(plan.method, cost)
            if fitted is None:
                continue
            if found is None or width_of(fitted) > width_of(found[0]):
                found = (fitted, steps)
            if width_of(fitted) >= self.least:
                break
        if found is None:
            cost = Cost(plan, _shortened(outline, floor), nfe_per_call, groups, pace)
            raise SearchError(self._too_small(plan.method, cost))
        return found

    def _widest(self, method: SearchMethod, cost: Cost) -> SearchMethod | None:
        """The method with as many particles as the budget pays for, None if it does not pay for one."""
        if method.holds_budget:
            return method.within(self._calls(cost) - cost.before(method), cost.outline)
        if self.nfe and not self.seconds and cost.calls(widened(method, 1)) == cost.calls(widened(method, 2)):
            # A learned value chooses between candidates without denoiser calls: their number stays.
            return method if self._pays(method, cost) else None
        low, high = 0, 1
        while high <= MOST and self._pays(widened(method, high), cost):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            if self._pays(widened(method, middle), cost):
                low = middle
            else:
                high = middle
        return widened(method, low) if low > 0 else None

    def _pays(self, method: SearchMethod, cost: Cost) -> bool:
        if self.nfe and cost.nfe(method) > self.nfe:
            return False
        return not self.seconds or cost.seconds(method) <= self.seconds

    def _calls(self, cost: Cost) -> int:
        """Denoiser calls per image, where each is followed by a look."""
        limits = [self.nfe // cost.nfe_per_call] if self.nfe else []
        limits += [cost.calls_within(self.seconds)] if self.seconds else []
        return min(limits)

    def _too_small(self, method: SearchMethod, cost: Cost) -> str:
        if method.holds_budget:
            least = cost.before(method) + method.least_calls(cost.outline)
            passes = least * cost.nfe_per_call
        else:
            least = cost.calls(widened(method, 1))
            passes = cost.nfe(widened(method, 1))
        each = f"{least} denoiser calls" + (f" of {cost.nfe_per_call}" if passes == least * cost.nfe_per_call else "")
        what = f"{passes} forward passes per image ({each})"
        needs = f"{method.title} with {cost.steps} steps needs at least {what}"
        if self.nfe and passes > self.nfe:
            return f"nfe is {self.nfe}: {needs}"
        return f"seconds is {self.seconds:g}: {needs}{cost.told(least)}"


class Cost:
    """What a method costs on an outline, with the way to the particle that the search goes on from.

    Args:
        plan, outline, nfe_per_call, groups, pace: as for ``Budget.fit``.
    """

    def __init__(self, plan: Plan, outline: Outline, nfe_per_call: int = 1, groups: int = 1, pace: Pace | None = None):
        self._origin, self.steps, self.nfe_per_call = plan.origin, outline.steps, nfe_per_call
        sampler = None if plan.sampler is None or isinstance(plan.sampler, str) else plan.sampler
        self._runs = sampler if sampler is not None and native_of(sampler) is None else None
        self._groups, self._pace = groups, pace
        self.outline = outline
        if plan.origin is not None and isinstance(outline, NoiseOutline):
            self.outline = plan.origin.rest_of(outline)

    def before(self, method: SearchMethod) -> int:
        """Denoiser calls before the search begins."""
        return 0 if self._origin is None else self._origin.denoiser_calls(method)

    def calls(self, method: SearchMethod) -> int:
        """Denoiser calls per image; those of samplers that ask more than once a step are all counted."""
        return self.before(method) + self._of_runs(method, method.denoiser_calls(self.outline))

    def _of_runs(self, method: SearchMethod, calls: int) -> int:
        """Model calls of ``calls`` steps by a host's sampler: exact for whole runs, else at most so many."""
        if self._runs is None:
            return calls
        if method.decides == END and self.steps and calls % self.steps == 0:
            return calls // self.steps * self._runs.calls(self.steps)
        return calls * self._runs.calls_per_step

    def nfe(self, method: SearchMethod) -> int:
        """Forward passes per image."""
        if self._runs is not None:
            return self.calls(method) * self.nfe_per_call
        return self.before(method) * self.nfe_per_call + method.nfe(self.outline, self.nfe_per_call)

    def seconds(self, method: SearchMethod) -> float:
        """Seconds of the whole run."""
        pace, looks = self._measured(), method.verifications(self.outline)
        return self._groups * (self.calls(method) * pace.call + looks * pace.look)

    def calls_within(self, seconds: float) -> int:
        """Denoiser calls per image that ``seconds`` pay for, each followed by a look."""
        pace = self._measured()
        return int(seconds / (self._groups * (pace.call + pace.look)))

    def told(self, calls: int) -> str:
        """The seconds of so many calls with their looks, for a message."""
        if self._pace is None:
            return ""
        return f", about {self._groups * calls * (self._pace.call + self._pace.look):.3g} s here"

    def _measured(self) -> Pace:
        if self._pace is None:
            raise SearchError("a budget in seconds needs the pace of this machine: measure it (Pace.measure)")
        return self._pace


def _shortened(outline: Outline, steps: int) -> Outline:
    if steps == outline.steps or not isinstance(outline, NoiseOutline):
        return outline
    return outline.thinned(steps)


def widened(method: SearchMethod, width: int) -> SearchMethod:
    """The method with another number of particles."""
    return replace(method, **{method.width: width})


def width_of(method: SearchMethod) -> int:
    """The number that a budget changes: particles, or the budget where the method holds it."""
    return int(getattr(method, method.width)) if method.width else MOST
