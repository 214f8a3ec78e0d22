"""Does a quick decoder rank candidates as the full one does? Asked at the first looks, before much depends on it."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

ENOUGH = 8  # candidates seen both ways
LOOKS = 4  # looks that may be needed for that, where there are few candidates at once
LEAST = 0.7  # rank correlation below which the quick decoder is not used


class Agreement:
    """Rank correlation (Spearman) of the scores of the same candidates through two decoders.

    Candidates are compared within one look at one image only: ranks are centred there and pooled, so that neither an
    easy prompt nor a later step passes for agreement. One look at one image gives Spearman's coefficient itself.

    Attributes:
        candidates: seen both ways so far, of those that had another one beside them.
        looks: so far.
    """

    def __init__(self):
        self.candidates = self.looks = 0
        self._quick: list[np.ndarray] = []
        self._full: list[np.ndarray] = []

    @property
    def asks(self) -> bool:
        """Whether more candidates should be seen both ways."""
        return self.candidates < ENOUGH and self.looks < LOOKS

    @property
    def known(self) -> bool:
        """Whether enough were seen to go by the result."""
        return self.candidates >= ENOUGH

    def rows(self, group: Tensor) -> Tensor:
        """Rows int64 of a look at particles of ``group`` ``[n]`` that should be seen both ways: whole images first."""
        chosen: list[int] = []
        for g in group.unique().tolist():
            mine = torch.nonzero(group == g).flatten().tolist()
            missing = ENOUGH - self.candidates - len(chosen)
            if missing > 0 and len(mine) > 1:
                chosen += mine[: max(missing, 2)]
        return torch.tensor(chosen, dtype=torch.int64)

    def add(self, quick: Tensor, full: Tensor, group: Tensor) -> None:
        """Note the scores ``[n]`` of one look through both decoders; non-finite ones are left out."""
        self.looks += 1
        sound = torch.isfinite(quick) & torch.isfinite(full)
        for g in group.unique().tolist():
            rows = torch.nonzero((group == g) & sound).flatten()
            if len(rows) < 2:
                continue
            self.candidates += len(rows)
            for scores, ranks in ((quick, self._quick), (full, self._full)):
                found = rankdata(scores[rows].cpu().numpy())
                ranks.append(found - found.mean())

    def correlation(self) -> float | None:
        """-1..1; 0 where only one of them tells candidates apart; None where the full decoder does not either."""
        if not self._full:
            return None
        quick, full = np.concatenate(self._quick), np.concatenate(self._full)
        if not full.any():
            return None
        scale = float(np.sqrt((quick**2).sum() * (full**2).sum()))
        return float((quick * full).sum()) / scale if scale > 0 else 0.0
