"""``Mover``: who moves the particles of a process; ``KernelMover`` is the one kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from ..state import State
from .extrapolation import extrapolated, remembering
from .kernel import transition
from .stock import extrapolation_of
from .streams import MOVE

NEVER, FRESH, JOINT = "never", "fresh noise", "joint"
"""What separates clones of a particle: nothing, the sampler's own noise, or noise that is added between two parts."""


class Mover(Protocol):
    """Moves the particles of a ``DiffusionProcess``, which it is given with every call.

    Attributes:
        name: of the sampler, None for the kernel under an eta.
        clones: ``NEVER``, ``FRESH`` or ``JOINT``; None where the noise of the moves decides (``Process.eta``).
        can_differentiate, can_renoise, can_reprompt: whether particles can follow gradients, change their noise level,
            have prompts of their own.
    """

    name: str | None
    clones: str | None
    can_differentiate: bool
    can_renoise: bool
    can_reprompt: bool

    def begin(self, process: Any, state: State, noise: Tensor) -> State:
        """Note that ``state`` grows from ``noise`` ``[n, ...]``."""
        ...

    def predict(self, process: Any, state: State) -> State:
        """See ``Process.predict``; ``x0`` is missing and the step is not the last."""
        ...

    def advance(self, process: Any, state: State, gradient: Tensor | None) -> tuple[State, Tensor]:
        """See ``Process.advance``."""
        ...


class KernelMover:
    """The transition kernel, with the process's noise and what its sampler remembers. All particles in one call."""

    name: str | None = None
    clones: str | None = None
    can_differentiate = True
    can_renoise = True
    can_reprompt = True

    def begin(self, process: Any, state: State, noise: Tensor) -> State:
        """Nothing has to be noted."""
        return state

    def predict(self, process: Any, state: State) -> State:
        """One model call per chunk."""
        return replace(state, x0=process.chunker.cat(lambda rows: process.estimate(state, rows), len(state)))

    def advance(self, process: Any, state: State, gradient: Tensor | None) -> tuple[State, Tensor]:
        """One reverse transition, see ``processes.kernel``."""
        if state.x0 is None:
            raise ValueError("the state is not predicted yet: call process.predict first")
        sigma, sigma_next = process.level(state.step), process.sigmas[state.step + 1]
        x0, extra, rule = state.x0, state.extra, extrapolation_of(process.eta)
        target = x0
        if rule is not None:
            target = extrapolated(rule, process.interpolant, state, x0, sigma, sigma_next)
            extra = remembering(rule, state, x0, sigma)
        move = transition(process.interpolant, state.x, target, sigma, sigma_next, process.eta)
        noise = None
        if move.std > 0:
            noise = process.streams.normals(process.shape, state.group, state.slot, step=state.step, purpose=MOVE)
            noise = noise.to(state.x)
        x, log_ratio = move.sample(noise, gradient)
        return replace(state, x=x, x0=None, step=state.step + 1, extra=extra), log_ratio
