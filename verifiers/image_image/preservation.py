"""How well an edit keeps what it was not asked to change, by pixels alone: no network, no download, differentiable.

Picture and source are compared in 256 cells of a small blurred copy. With a mask the cells that may change are left
out; without one the cells that differ most are, because an edit may change a part of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...samplers.protocols import ScoreContext, SearchError, Verifier
from ...samplers.sources import Sources, fitted
from ..base import VerifierError, check_images

SIDE, CELL, BLUR = 256, 16, 4
SCALE = 0.1
"""Mean difference at which the score has fallen to 1/e."""
COVERED = 0.05
"""A cell with so much of the mask in it may change."""


class PreservationVerifier(Verifier):
    """exp(-d / 0.1), d the mean absolute difference to the source over the cells that should not change; in 0..1.

    Args:
        source: what is edited; None takes the search's own (``ScoreContext.sources``).
        share: without a mask, the share of cells, those that differ most, that an edit may change; 0 .. below 1.
        name: for reports.

    Raises:
        VerifierError: a share out of its range.
    """

    differentiable = True
    needs_prompt = False
    compares = True
    default_scale = (0.8, 0.15)

    def __init__(self, source: Sources | None = None, share: float = 0.3, name: str = "preservation"):
        if not 0.0 <= share < 1.0:
            raise VerifierError(f"share is {share}: it must lie in 0 (nothing may change) .. below 1")
        self.own, self.share, self.name = source, share, name
        self.needs_source = source is None

    def score(self, images: Tensor, prompts: Sequence[str] | str = "", context: ScoreContext | None = None) -> Tensor:
        """Scores ``[n]`` of ``images [n, H, W, 3]`` in 0..1. Raises SearchError where there is no source."""
        images = check_images(images)
        return torch.stack([self._one(image, source_for(self, row, context)) for row, image in enumerate(images)])

    def _one(self, image: Tensor, source: Sources) -> Tensor:
        before = fitted(source.first.to(image.device), *image.shape[:2])
        difference = (small(image) - small(before)).abs().mean(1, keepdim=True)
        cells = F.avg_pool2d(difference, CELL).flatten()
        if source.mask is not None:
            kept = ~covered(source.mask.to(image.device))
            if not bool(kept.any()):
                raise SearchError("source_mask covers the whole picture: nothing is left to be preserved")
            return torch.exp(-cells[kept].mean() / SCALE)
        count = len(cells) - math.floor(self.share * len(cells))
        return torch.exp(-cells.sort().values[:count].mean() / SCALE)


def small(image: Tensor) -> Tensor:
    """``[H, W, 3]`` -> ``[1, 3, 256, 256]``, every pixel the mean of a 4 x 4 block around it."""
    pixels = F.interpolate(image.float().movedim(-1, 0)[None], (SIDE, SIDE), mode="bilinear", antialias=True)
    return F.avg_pool2d(F.pad(pixels, (1, 2, 1, 2), mode="replicate"), BLUR, stride=1)


def covered(mask: Tensor) -> Tensor:
    """bool ``[256]``: cells that a mask ``[h, w]`` lets change."""
    pixels = F.interpolate(mask.float()[None, None], (SIDE, SIDE), mode="bilinear", antialias=True)
    return (F.avg_pool2d(pixels, CELL) >= COVERED).flatten()


def source_for(verifier: Verifier, row: int, context: ScoreContext | None) -> Sources:
    """What the picture of ``row`` is compared with: the verifier's ``own``, else the search's.

    Raises SearchError where there is neither.
    """
    own = getattr(verifier, "own", None)
    found = own if own is not None or context is None else context.source(row)
    if found is None:
        raise SearchError(f"verifier {verifier.name!r} compares with the image that is edited: connect `source`")
    return found
