"""Who moves the particles: the one kernel, or a sampler that is run as it is.

A sampler that is not one of ``processes.stock`` can be run whole, for one candidate after the other, or in pauses: a
sampler function is a function of its start, the model's answers and its noise, so a run that is stopped at a model call
is resumed exactly by answering the earlier calls from a record. ``runs_of`` says which method can do with what.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .processes.mover import FRESH, JOINT, NEVER, KernelMover, Mover
from .processes.stock import STOCK, NativeSampler
from .protocols import Outline, SearchError

if TYPE_CHECKING:
    from .method import SearchMethod

__all__ = ["FRESH", "JOINT", "NEVER", "KernelMover", "Mover", "Runs", "StockSampler", "joint", "native_of", "runs_of"]

END, PAUSES, STEPS = "end", "pauses", "steps"
"""When a method decides: among finished images, at a few steps, or at every step."""
MOST_PAUSES = 4
JOINT_ETA = 0.7


class StockSampler(Protocol):
    """A host's sampler object, as far as a plan has to know it.

    Attributes:
        name: for messages and the trace.
        native: the same moves by the kernel, None where it has none.
        clones: ``NEVER``, ``FRESH`` or ``JOINT``.
        pauses: whether it asks the model once at every noise level of its schedule, so that it can be stopped there.
        calls_per_step: model calls that a step takes at most: 2 for heun and its kin.
    """

    name: str
    native: NativeSampler | None
    clones: str
    pauses: bool

    @property
    def calls_per_step(self) -> int:
        """See the class."""
        ...

    def calls(self, steps: int) -> int:
        """Model calls of a whole run of ``steps`` steps that ends at 0."""
        ...


@dataclass(frozen=True)
class Runs:
    """How a stock sampler is run.

    Attributes:
        sampler: the host's object.
        stops: steps at which runs are paused, increasing.
        joints: the stops are joints: the run ends there and noise is added, so that clones separate.
        eta: of the joints.
        first_only: the first candidate alone, the others are moved by the kernel.
        method: settings that the method is to have for it, None for its own.
    """

    sampler: StockSampler
    stops: tuple[int, ...] = ()
    joints: bool = False
    eta: float = JOINT_ETA
    first_only: bool = False
    method: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """For a trace: what a replay has to repeat."""
        return {"stops": list(self.stops), "joints": self.joints, "eta": self.eta, "first_only": self.first_only}


def native_of(sampler: str | StockSampler | None) -> NativeSampler | None:
    """The kernel's version of a plan's sampler. SearchError for a name that the kernel does not have."""
    if isinstance(sampler, str):
        if sampler not in STOCK:
            raise SearchError(f"sampler is {sampler!r}: the kernel has {', '.join(STOCK)}")
        return NativeSampler(sampler, STOCK[sampler].noise_of(None))
    return None if sampler is None else sampler.native


def runs_of(method: SearchMethod, sampler: StockSampler, outline: Outline, eta: float | None = None) -> Runs:
    """How ``method`` runs a sampler that the kernel does not have.

    Args:
        method, sampler: of the plan. outline: its schedule. eta: of the joints, None for the default.

    Raises:
        SearchError: a method that decides more often than this sampler can be stopped, or clones what cannot separate.
    """
    title, name = method.title, sampler.name
    take = f"take one of {', '.join(STOCK)}"
    if method.decides == END:
        return Runs(sampler)
    if method.decides == STEPS:
        raise SearchError(f"sampler is {name}: {title} decides at every step, and {name} runs as a whole; {take}")
    stops = tuple(method.decisions(outline))
    if "can_branch" not in method.needs:
        return Runs(sampler, stops if sampler.pauses else ())
    if sampler.clones == NEVER or not sampler.pauses:
        raise SearchError(
            f"sampler is {name}: {title} clones images on their way, and clones of a run of {name} never separate; "
            f"{take}, or use Best-of-N or Random Search"
        )
    if len(stops) > MOST_PAUSES:
        raise SearchError(
            f"sampler is {name}: {title} decides at {len(stops)} steps, and a run of {name} can be stopped at "
            f"{MOST_PAUSES} at most: decide less often, or {take}"
        )
    if sampler.clones == JOINT and stops and stops[0] == 0:
        raise SearchError(f"sampler is {name}: {title} decides at step 0, where nothing is drawn yet; start later")
    return Runs(sampler, stops, sampler.clones == JOINT, JOINT_ETA if eta is None else eta)


def joint(ratio: float, ratio_next: float, eta: float) -> float:
    """Noise-to-signal ratio that a part ends at, so that a joint may add noise up to ``ratio_next``.

    With Euler steps that is the kernel's move from ``ratio`` under ``eta``: of the noise at the next level the share
    ``s = eta^2 (1 - (ratio_next / ratio)^2)`` is drawn anew, and the part goes on down to ``ratio_next sqrt(1 - s)``.
    """
    return ratio_next * (1.0 - eta * eta * (1.0 - (ratio_next / ratio) ** 2)) ** 0.5
