"""Images compared as sets: embeddings of the embedded CLIP model, and the Frechet distance of two sets of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..verifiers.registry import create


@torch.no_grad()
def features(images: Tensor | Sequence[Tensor], at_once: int = 64) -> Tensor:
    """ShapesCLIP's embeddings float32 ``[n, d]`` of images ``[n, H, W, 3]`` in 0..1, ``at_once`` per call."""
    encoder: Any = create("shapes_clip")
    encoder = encoder.module
    parts = [torch.stack(list(images[k : k + at_once])) for k in range(0, len(images), at_once)]
    return torch.cat([encoder.encode_image(part.movedim(-1, 1)) for part in parts])


def frechet(first: Tensor, second: Tensor) -> float:
    """Frechet distance of two sets of features ``[n, d]``: of the normal distributions with their moments.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` (Heusel et al. 2017, arXiv 1706.08500, eq. 6).
    """
    from scipy import linalg

    a, b = first.double().numpy(), second.double().numpy()
    gap = a.mean(0) - b.mean(0)
    ours, theirs = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(ours @ theirs).real
    return float(gap @ gap + np.trace(ours + theirs - 2 * root))
