"""Potentials: how the history of scores becomes a weight (FK steering, Singhal et al. 2025, section 3.2).

All are written as a target for the accumulated log-potential of a particle's path: ``weigh`` returns what to add to
the log-weight now, and remembers what has been added since birth (``log_past``), so that the last step can make every
path end at the same total ``r(x0) / alpha``. Memory is ancestor-indexed with the particles.

With ``lambda_i`` the tempering exponent and ``alpha`` the temperature:

    diff   total = lambda_i r_i / alpha                            (SMC / DAS, and FK's difference potential)
    max    adds lambda_i max(r_1..r_i) / alpha each time           then corrects to r(x0) / alpha at the end
    rt     adds lambda_i r_i / alpha each time                     then corrects (importance sampling by value)
    sum    adds lambda_i (r_1 + .. + r_i) / alpha each time        then corrects; heavy-tailed, experimental
"""

from __future__ import annotations

import torch
from torch import Tensor

POTENTIALS = ("diff", "max", "rt", "sum")


class Potential:
    """Path potential of a ``[G, N]`` population.

    Unlike the published code the running maximum starts at -inf (a floor of 0 is silent while rewards are negative),
    and the final correction uses the score of the finished image, not the running maximum or sum.
    """

    def __init__(self, kind: str, groups: int, particles: int):
        if kind not in POTENTIALS:
            raise ValueError(f"potential is {kind!r}: choose one of {', '.join(POTENTIALS)}")
        self.kind = kind
        self.log_past = torch.zeros(groups, particles, dtype=torch.float64)
        self._running = torch.full_like(self.log_past, -torch.inf if kind == "max" else 0.0)

    def reindex(self, ancestors: Tensor) -> None:
        """Follow a resampling; ``ancestors`` int64 ``[G, N]``."""
        self.log_past = self.log_past.gather(1, ancestors)
        self._running = self._running.gather(1, ancestors)

    def weigh(self, score: Tensor, inverse_temperature: Tensor, final: bool = False) -> Tensor:
        """Log-weight increment ``[G, N]`` for scores ``[G, N]`` at ``inverse_temperature = lambda / alpha`` ``[G]``.

        A score of -inf gives -inf and leaves the particle's memory as it was.
        """
        good = ~torch.isneginf(score)
        r = torch.where(good, score, torch.zeros_like(score))
        beta = inverse_temperature[:, None]
        if self.kind == "diff" or final:
            increment = beta * r - self.log_past
        else:
            combined = torch.maximum(r, self._running) if self.kind == "max" else r
            if self.kind == "sum":
                combined = r + self._running
            if self.kind != "rt":
                self._running = torch.where(good, combined, self._running)
            increment = beta * combined
        self.log_past = torch.where(good, self.log_past + increment, self.log_past)
        return torch.where(good, increment, torch.full_like(increment, -torch.inf))
