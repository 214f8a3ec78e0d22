"""Diversity of finished candidates: a search cannot choose between images that look alike.

Two figures of a set of feature vectors: the mean pairwise cosine distance, and the Vendi score (Friedman and Dieng
2023), the number of different images that the set is worth: ``exp(-sum l log l)`` over the eigenvalues ``l`` of
``K / n``, where ``K`` is the matrix of cosines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .clustering import PixelFeatures

ALIKE, FROM = 1.2, 4
"""Vendi score below which images look alike, and from how many images on that is said."""
SIDE = 8
"""Cells of an image whose average colours are compared, along each edge."""


class Diversity(TypedDict):
    """Diversity of the finished candidates of one image.

    Keys:
        images: how many. distance: mean pairwise cosine distance, 0..1. vendi: 1 (all equal) .. images.
    """

    images: int
    distance: float
    vendi: float


def cosines(features: ArrayLike) -> NDArray[np.float64]:
    """Cosines ``[n, n]`` of feature vectors ``[n, D]``; those of length 0 are equal to each other alone.

    Raises:
        ValueError: no vectors, or numbers that are not finite.
    """
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or not len(rows) or not np.isfinite(rows).all():
        raise ValueError(f"features have shape {rows.shape}: give finite numbers [n, D] with n >= 1")
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    empty = length < 1e-12
    rows = np.concatenate([rows / np.where(empty, 1.0, length), empty], axis=1)
    return np.clip(rows @ rows.T, -1.0, 1.0)


def mean_distance(features: ArrayLike) -> float:
    """Mean of ``1 - cosine`` over all pairs of ``[n, D]``; 0 for a single vector."""
    kernel = cosines(features)
    n = len(kernel)
    return float((n * n - kernel.sum()) / (n * (n - 1))) if n > 1 else 0.0


def vendi_score(features: ArrayLike) -> float:
    """Vendi score of ``[n, D]``: 1 where all point the same way, n where all are orthogonal."""
    kernel = cosines(features)
    values = np.linalg.eigvalsh(kernel / len(kernel))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def diversity_of(images: Tensor) -> Diversity | None:
    """Diversity of images ``[n, H, W, 3]`` (or clips ``[n, F, H, W, 3]``) in 0..1; None for fewer than two.

    Compared are the average colours of 8 x 8 cells: how much each is above mid-grey, and how much below. (The cosine
    of raw colours is near 1 for any two pictures on a light ground; of signed differences, a picture and its negative
    would count as one.) Images that are not finite are left out.
    """
    whole = images.detach().float()
    if whole.ndim == 5:
        whole = whole.mean(1)
    whole = whole[whole.flatten(1).isfinite().all(1)]
    if len(whole) < 2:
        return None
    grey = PixelFeatures(SIDE).tokens(whole).flatten(1).cpu().numpy() - 0.5
    features = np.concatenate([np.maximum(grey, 0.0), np.maximum(-grey, 0.0)], axis=1)
    return {
        "images": len(whole),
        "distance": round(mean_distance(features), 4),
        "vendi": round(vendi_score(features), 4),
    }


def in_words(found: Sequence[Diversity | None]) -> str:
    """Diversity of the images of a run, as people read it; "" where nothing is known."""
    lines = []
    for one in found:
        if one is not None:
            line = f"worth {one['vendi']:.2f} different images of {one['images']}, distance {one['distance']:.2f}"
            lines.append(line + (": they look alike" if looks_alike(one) else ""))
    return "; ".join(lines)


def looks_alike(found: Diversity) -> bool:
    """Whether there are enough images for it to matter, and they are hardly more than one."""
    return found["images"] >= FROM and found["vendi"] < ALIKE
