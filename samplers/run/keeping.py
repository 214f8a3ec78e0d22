"""What a run could hand out if it ended now: the latest population, and per image the last one that was sound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..state import State


@dataclass
class Kept:
    """A population that could be handed out.

    Attributes:
        state: with x0.
        score: float64 ``[n]``, or None where nobody looked.
        hint: float64 ``[n]`` that ranks a population without scores, by those of its ancestors for example.
    """

    state: State
    score: Tensor | None
    hint: Tensor

    def sound(self) -> Tensor:
        """Bool ``[n]``: particles whose clean estimate holds no NaN and no infinity."""
        return sound_rows(self.state.x0)


class Keeper:
    """The latest population, and for every image the latest that had a sound particle, and a scored one.

    Populations are held by reference: while nothing breaks they are one and the same.

    Args:
        groups: images G.
    """

    def __init__(self, groups: int):
        self.groups = groups
        self.latest: Kept | None = None
        self._sound: dict[int, Kept] = {}
        self._scored: dict[int, Kept] = {}

    def remember(self, kept: Kept) -> None:
        """A population that was just reached."""
        self.latest = kept
        good = kept.sound()
        for g in range(self.groups):
            mine = good & (kept.state.group == g)
            if mine.any():
                self._sound[g] = kept
                if kept.score is not None and bool(torch.isfinite(kept.score[mine]).any()):
                    self._scored[g] = kept

    def of(self, group: int) -> Kept | None:
        """What there is of an image: the latest population where it is sound, else the last one that had a score."""
        if self.latest is not None and self._sound.get(group) is self.latest:
            return self.latest
        return self.before(group)

    def before(self, group: int) -> Kept | None:
        """The last population of an image with a finite score, else the last sound one, None without any."""
        return self._scored.get(group) or self._sound.get(group)


def sound_rows(values: Tensor | None) -> Tensor:
    """Bool ``[n]`` on the CPU: rows of ``[n, ...]`` without NaN and infinities."""
    if values is None:
        return torch.ones(0, dtype=torch.bool)
    return torch.isfinite(values.detach()).reshape(len(values), -1).all(1).cpu()


def sound_pictures(images: Tensor) -> Tensor:
    """``sound_rows`` of images ``[n, H, W, 3]`` in 0..1, without a copy of them: a sum keeps every NaN."""
    return torch.isfinite(images.detach().reshape(len(images), -1).sum(1)).cpu()


def at_the_bottom(score: Tensor, where: Tensor) -> Tensor:
    """Scores ``[n]`` with -inf in the rows of ``where`` bool ``[n]``."""
    return score.masked_fill(where, -math.inf)


@dataclass(frozen=True)
class Finalists:
    """Particles that are handed out, rows in any order.

    Attributes:
        latents: ``[n, ...]``. group, node: int64 ``[n]``. score: float64 ``[n]``, -inf for none.
        won: bool ``[n]``, one for every image.
    """

    latents: Tensor
    group: Tensor
    node: Tensor
    score: Tensor
    won: Tensor

    def rows(self, index: Tensor) -> Finalists:
        """Some of them, by number or by bool ``[n]``."""
        latents = self.latents[index.to(self.latents.device)]
        return Finalists(latents, self.group[index], self.node[index], self.score[index], self.won[index])

    def with_others(self, others: Mapping[int, Finalists]) -> Finalists:
        """The same with the particles of some images from elsewhere."""
        parts = [self.rows(~torch.isin(self.group, torch.tensor(list(others), dtype=torch.int64)))]
        parts += [other.rows(other.group == image) for image, other in others.items()]
        columns = zip(*((p.latents, p.group, p.node, p.score, p.won) for p in parts), strict=True)
        return Finalists(*(torch.cat(column) for column in columns))

    def sorted(self) -> Finalists:
        """By image, the winner first, then by score, the highest first; the order stays where scores are equal."""
        # Python's sort is stable.
        order = sorted(
            range(len(self.group)), key=lambda row: (int(self.group[row]), not self.won[row], -float(self.score[row]))
        )
        return self.rows(torch.tensor(order, dtype=torch.int64))
