"""Neighbours of a noise, and how much of a score they inherit.

A neighbour at cosine c of a noise whose image is z standard deviations better than plain ones is itself about ``h z``
better, with the rest of the variance, ``1 - h^2``, drawn anew: its law is near ``N(h z, 1 - h^2)``. The best of M such
neighbours is worth ``h z + sqrt(1 - h^2) E_M``, where ``E_M`` is the expected maximum of M standard normals, and that
is largest at ``h = z / sqrt(z^2 + E_M^2)``. Where the score is linear in the noise ``h = c``; on a model it falls much
faster, and ``h = c^p`` with a p that is read off the neighbours themselves.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from .protocols import Process, SearchError

LARGEST = 200.0
"""Exponent p at most: beyond, nothing is inherited anyway."""
CLOSEST = 0.9999
ROUGH = 0.5
"""Heredity at cosine .99 below which climbing on the noise is as good as drawing it anew."""

ENOUGH = 3
"""Rounds that must have been seen before anything is said."""


@cache
def expected_best(count: int) -> float:
    """Expected maximum of ``count`` independent standard normals: 0, .564, .846, 1.029 of 1, 2, 3, 4."""
    x = torch.linspace(-12, 12, 24001, dtype=torch.float64)
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    return float(torch.trapezoid(x * count * density * torch.special.ndtr(x).pow(count - 1), x))


def neighbour(pivot: Tensor, direction: Tensor, cosine: Tensor) -> Tensor:
    """Noises at angle ``arccos(cosine)`` from ``pivot``, of its length.

    Args:
        pivot, direction: ``[n, ...]``; only the part of ``direction`` that is orthogonal to the pivot counts.
        cosine: ``[n]`` in -1..1.

    Returns:
        ``y = |p| (c u + sqrt(1 - c^2) w)`` with ``u = p / |p|`` and w the unit vector of that part, ``[n, ...]``.
    """
    p, d = pivot.flatten(1).cpu().double(), direction.flatten(1).cpu().double()  # not every device has float64
    length = p.norm(dim=1, keepdim=True)
    u = p / length
    w = d - (d * u).sum(1, keepdim=True) * u
    w = w / w.norm(dim=1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)
    c = cosine.cpu().double()[:, None]
    return (length * (c * u + (1 - c * c).sqrt() * w)).to(pivot.dtype).to(pivot.device).view_as(pivot)


def angle(cosine: float) -> float:
    """Degrees between neighbours of a given cosine."""
    return math.degrees(math.acos(cosine))


@dataclass
class Heredity:
    """What one image's search has learnt of its noises.

    Attributes:
        plain: scores of unrelated noises. exponents: p of every round of neighbours, in order.
    """

    plain: list[float] = field(default_factory=list)
    exponents: list[float] = field(default_factory=list)

    @property
    def exponent(self) -> float:
        """p of ``h(c) = c^p``: the median of the rounds, 1 (a linear score) before the first."""
        return statistics.median(self.exponents) if self.exponents else 1.0

    @property
    def rough(self) -> bool:
        """Whether even close noises inherit little, as far as anything was learnt."""
        return len(self.exponents) >= ENOUGH and self.inherited(0.99) < ROUGH

    def inherited(self, cosine: float) -> float:
        """Share of a score that neighbours at ``cosine`` (0..1) inherit."""
        return max(cosine, 0.0) ** self.exponent

    def draw(self, scores: Tensor) -> None:
        """Note the scores ``[n]`` of unrelated noises; those that are not finite say nothing."""
        self.plain += [score for score in scores.tolist() if math.isfinite(score)]

    def standing(self, score: float) -> float | None:
        """How many standard deviations ``score`` lies above plain ones; None where their spread is not known."""
        if len(self.plain) < 2 or not math.isfinite(score):
            return None
        spread = statistics.stdev(self.plain)
        return (score - statistics.fmean(self.plain)) / spread if spread > 0 else None

    def cosine(self, score: float, count: int) -> float:
        """Closeness at which the best of ``count`` neighbours of a noise with this score is expected to be highest."""
        standing, reach = self.standing(score), expected_best(max(count, 2))
        if standing is None:
            return math.sqrt(0.5) ** (1 / self.exponent)
        best = max(standing, 0.0) / math.hypot(standing, reach)
        return min(best ** (1 / self.exponent), CLOSEST)

    def learn(self, score: float, cosine: float, children: Tensor) -> None:
        """Note what neighbours at ``cosine`` of a noise with ``score`` came to, scores ``[n]``."""
        children = children[torch.isfinite(children)]
        pivot = self.standing(score)
        if pivot is None or pivot <= 0 or not 0 < cosine < 1 or not len(children):
            return
        mean = self.standing(float(children.mean())) or 0.0
        found = math.log(mean / pivot) / math.log(cosine) if mean > 0 else LARGEST
        self.exponents.append(min(max(found, 1.0), LARGEST))


def exponents(images: Sequence[Heredity]) -> list[float | None]:
    """p of every image for a trace, None where nothing was learnt."""
    return [round(one.exponent, 3) if one.exponents else None for one in images]


def inheritance(exponent: Sequence[float | None], cosine: float = 0.95) -> str:
    """What was learnt, as people read it: "neighbours at 18 degrees inherit 42 % of a score"; "" where nothing was."""
    known = [p for p in exponent if p is not None]
    if not known:
        return ""
    share = statistics.fmean(cosine**p for p in known)
    return f"neighbours at {angle(cosine):.0f} degrees inherit {share * 100:.0f} % of a score"


def check_turns(process: Process) -> None:
    """Raise SearchError where a noise is one number, which has no neighbours."""
    if math.prod(process.shape) < 2:
        raise SearchError("the latent is a single number: its noise cannot be turned, use Best-of-N")
