"""``NoiseOutline``: what a method that counts its costs needs to know of a process, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .processes.kernel import Interpolant, Noise, is_stochastic, transition_variance
from .protocols import Capabilities

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class NoiseOutline:
    """As much of a diffusion or flow process as a method needs to say what it costs.

    Attributes:
        interpolant: of the model. sigmas: ``[T + 1]`` decreasing. eta: noise of the moves.
        can: capabilities of the process; those that follow from eta and the schedule are set anew.
    """

    interpolant: Interpolant
    sigmas: Sequence[float]
    eta: float | Noise
    can: Capabilities = field(default_factory=Capabilities)

    @property
    def steps(self) -> int:
        """Moves T."""
        return len(self.sigmas) - 1

    @property
    def capabilities(self) -> Capabilities:
        """See ``Outline``."""
        return replace(self.can, can_branch=is_stochastic(self.eta), ends_clean=self.sigmas[-1] == 0.0)

    def branches(self, step: int) -> bool:
        """Whether the move out of ``step`` draws noise."""
        return transition_variance(self.interpolant, self.sigmas[step], self.sigmas[step + 1], self.eta) > 0

    def thinned(self, steps: int) -> NoiseOutline:
        """The same with ``steps`` moves."""
        return replace(self, sigmas=thinned(self.sigmas, steps))


def thinned(sigmas: Sequence[float], steps: int) -> list[float]:
    """``steps + 1`` of the sigmas, evenly picked; the first and the last two stay (only the ends for one step).

    Raises:
        ValueError: fewer than one step, or more than there are.
    """
    values = [float(sigma) for sigma in sigmas]
    if not 1 <= steps <= len(values) - 1:
        raise ValueError(f"steps is {steps}: a schedule of {len(values) - 1} can be thinned to 1 .. {len(values) - 1}")
    # The last move (to 0) is a jump of its own kind: the level before it stays too, if there is room.
    if steps == 1:
        return [values[0], values[-1]]
    inner = len(values) - 2
    places = [round(i * inner / (steps - 1)) for i in range(steps)]
    return [values[place] for place in places] + [values[-1]]
