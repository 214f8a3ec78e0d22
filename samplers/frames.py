"""Which frames of a clip are looked at, and how their scores become one.

A preview is ``[n, H, W, 3]``, or ``[n, F, H, W, 3]`` where a particle is a clip; F are the few frames that are judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WHICH = ("uniform", "first", "middle", "last", "first and last", "all")
COUNTED = ("uniform", "first", "last")
"""Those that read how many."""
AGGREGATES = ("mean", "minimum", "lower quartile", "median", "first")
LONGEST = 512
_QUANTILES = {"minimum": 0.0, "lower quartile": 0.25, "median": 0.5}


@dataclass(frozen=True)
class FrameChoice:
    """Frames that a judge wants to see.

    Attributes:
        which: "uniform" (evenly spaced, both ends among them), "first", "middle", "last", "first and last", "all".
        count: how many, >= 1; read by "uniform", "first" and "last" (so many from that end) only.
        longest: pixels of the longer side, at most; a larger frame is averaged down.
    """

    which: str = "uniform"
    count: int = 5
    longest: int = LONGEST

    def __post_init__(self):
        if self.which not in WHICH:
            raise ValueError(f"which is {self.which!r}: choose {', '.join(map(repr, WHICH))}")
        if self.count < 1 or self.longest < 1:
            raise ValueError(f"count is {self.count} and longest {self.longest}: both must be at least 1")

    def of(self, count: int, first: int = 0) -> tuple[int, ...]:
        """Increasing numbers of the wanted frames of a clip of ``count``, from 0.

        Args:
            count: frames of the clip. A wish for more than there are gets all of them.
            first: frames at the beginning that say nothing (given by the user); left out while others remain.
        """
        if count < 1:
            raise ValueError(f"the clip has {count} frames: there must be at least one")
        if first >= count:
            first = 0
        free = count - first
        wanted = min(self.count, free)
        if self.which == "all":
            chosen: Iterable[int] = range(free)
        elif self.which == "first":
            chosen = range(wanted)
        elif self.which == "last":
            chosen = range(free - wanted, free)
        elif self.which == "middle" or (self.which == "uniform" and wanted == 1):
            chosen = [free // 2]
        elif self.which == "first and last":
            chosen = {0, free - 1}
        else:
            chosen = {(2 * k * (free - 1) + wanted - 1) // (2 * (wanted - 1)) for k in range(wanted)}
        return tuple(sorted(first + k for k in chosen))


@dataclass(frozen=True)
class Shown:
    """What of a clip a preview shows.

    Attributes:
        numbers: the F frames in it, counted from 0 within the clip.
        count: frames of the whole clip.
        first: frames at its beginning that the user gave, the same in every candidate.
        fps: frames per second, None where nobody said.
    """

    numbers: tuple[int, ...]
    count: int
    first: int = 0
    fps: float | None = None

    def places(self, choice: FrameChoice) -> list[int]:
        """Places in the preview of the frames that ``choice`` wants, those nearest to them where one is missing."""
        nearest = [
            min(range(len(self.numbers)), key=lambda place: (abs(self.numbers[place] - wanted), place))
            for wanted in choice.of(self.count, self.first)
        ]
        return list(dict.fromkeys(nearest))


def union(choices: Iterable[FrameChoice], count: int, first: int = 0) -> tuple[int, ...]:
    """Numbers of all frames that somebody wants to see of a clip of ``count``."""
    wanted = {number for choice in choices for number in choice.of(count, first)}
    return tuple(sorted(wanted or FrameChoice().of(count, first)))


def aggregate(scores: Tensor, how: str) -> Tensor:
    """One score per clip, float64 ``[n]``, of scores per frame ``[n, F]``; a NaN in any frame makes it NaN.

    Args:
        how: "mean", "minimum", "lower quartile", "median" (linear between neighbours), or "first".
    """
    scores = scores.double() if scores.device.type != "mps" else scores
    if how == "mean":
        return scores.mean(1)
    if how == "first":
        return torch.where(scores.isnan().any(1), torch.nan, scores[:, 0])
    if how not in _QUANTILES:
        raise ValueError(f"aggregate is {how!r}: choose {', '.join(map(repr, AGGREGATES))}")
    return scores.quantile(_QUANTILES[how], dim=1)


def still(images: Tensor) -> Tensor:
    """One picture per particle ``[n, H, W, 3]``: the middle frame of clips ``[n, F, H, W, 3]``, pictures themselves."""
    return images[:, images.shape[1] // 2] if images.dim() == 5 else images


def scaled(frames: Tensor, longest: int) -> Tensor:
    """Frames ``[F, H, W, C]`` averaged down so that no side exceeds ``longest`` pixels; smaller ones as they are."""
    height, width = frames.shape[1:3]
    larger = max(height, width)
    if larger <= longest:
        return frames
    size = [max(1, round(side * longest / larger)) for side in (height, width)]
    return torch.nn.functional.interpolate(frames.movedim(-1, 1), size=size, mode="area").movedim(1, -1)


def names(numbers: Sequence[int]) -> list[str]:
    """Names of per-frame scores in a trace, counted from 1 as a player does."""
    return [f"frame {number + 1}" for number in numbers]
