"""FID and KID of a folder of pictures against reference pictures.

Features are those of clean-fid (``pip install test-time-scaling[fid]``), which also resizes as its mode says; the
distances are computed here. Heusel et al. 2017, arXiv 1706.08500; Binkowski et al. 2018, arXiv 1801.01401; Parmar et
al. 2022, arXiv 2104.11222.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...installation.errors import BadInput

Matrix = npt.NDArray[np.float64]
Features = Callable[[Path], Matrix]
"""Folder of pictures -> features ``[n, d]``."""
MODES = ("clean", "legacy_pytorch", "legacy_tensorflow")
FEW = 10_000
"""Pictures below which FID is biased so much that KID is reported as well."""


@dataclass(frozen=True)
class Statistics:
    """What FID reads of a set of pictures.

    Attributes:
        mean: ``[d]``. covariance: ``[d, d]``, with n - 1 below. count: pictures, 0 where a file does not say.
    """

    mean: Matrix
    covariance: Matrix
    count: int = 0

    @classmethod
    def of(cls, features: Matrix) -> Statistics:
        """Of features ``[n, d]``. Raises BadInput for fewer than two."""
        if len(features) < 2:
            raise BadInput(f"FID of {len(features)} pictures: at least two are needed")
        values = features.astype(np.float64)
        return cls(values.mean(0), np.cov(values, rowvar=False), len(values))

    @classmethod
    def read(cls, path: Path) -> Statistics:
        """Of a ``.npz`` with ``mu`` and ``sigma``, as clean-fid and pytorch-fid write them. Raises BadInput."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(file["mu"].astype(np.float64), file["sigma"].astype(np.float64))
        except (OSError, ValueError, KeyError) as error:
            raise BadInput(f"--fid {path}: expected a .npz with mu and sigma ({error})") from None


def frechet_distance(one: Statistics, two: Statistics) -> float:
    """``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``.

    The trace of the root of a product of covariances is the sum of the roots of the eigenvalues of ``A C2 A`` with
    ``A = C1^(1/2)``, which is symmetric, so nothing complex comes up where a covariance is singular.
    """
    if one.mean.shape != two.mean.shape:
        raise BadInput(f"--fid: features have {one.mean.size} numbers and the reference's {two.mean.size}")
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ two.covariance @ root).clip(min=0)).sum()
    apart = one.mean - two.mean
    return float(apart @ apart + np.trace(one.covariance) + np.trace(two.covariance) - 2 * shared)


def kernel_distance(one: Matrix, two: Matrix, subsets: int = 100, largest: int = 1000, seed: int = 0) -> float:
    """KID: unbiased squared MMD under ``(x y / d + 1)^3``, the mean over random subsets of equal size."""
    size = min(len(one), len(two), largest)
    if size < 2:
        raise BadInput(f"KID of {size} pictures: at least two are needed")
    draw, dimension, total = np.random.default_rng(seed), one.shape[1], 0.0
    for _ in range(subsets):
        x, y = (part[draw.choice(len(part), size, replace=False)].astype(np.float64) for part in (one, two))
        own = sum(float(k.sum() - np.trace(k)) for k in ((a @ a.T / dimension + 1) ** 3 for a in (x, y)))
        total += own / (size - 1) - 2 * float(((x @ y.T / dimension + 1) ** 3).sum()) / size
    return total / subsets / size


def inception(mode: str, device: str) -> Features:
    """clean-fid's features; it downloads its Inception at the first use. Raises BadInput where it is missing."""
    try:
        fid: Any = importlib.import_module("cleanfid.fid")
        network = importlib.import_module("cleanfid.features").build_feature_extractor(mode, device, False)
    except ImportError as error:
        raise BadInput(f"--fid needs clean-fid ({error}): pip install test-time-scaling[fid]") from None
    except OSError as error:
        raise BadInput(f"--fid: clean-fid cannot have its Inception ({error})") from None

    def features(folder: Path) -> Matrix:
        options = {"model": network, "mode": mode, "num_workers": 0, "device": device, "verbose": False}
        return np.asarray(fid.get_folder_features(str(folder), **options), np.float64)

    return features


def fid_scores(pictures: Path, reference: Path, mode: str, features: Features) -> dict[str, float]:
    """FID of a folder, and KID below ``FEW`` pictures; ``reference`` is a folder, or a ``.npz`` (then without KID).

    Raises:
        BadInput: a reference that is neither, or holds fewer than two pictures.
    """
    mine = features(pictures)
    name = f"FID ({mode}, {len(mine):,} pictures"
    if reference.is_file():
        return {f"{name})": frechet_distance(Statistics.of(mine), Statistics.read(reference))}
    if not reference.is_dir():
        raise BadInput(f"--fid {reference}: no such folder of reference pictures, or .npz with mu and sigma")
    other = features(reference)
    scores = {f"{name}, {len(other):,} references)": frechet_distance(Statistics.of(mine), Statistics.of(other))}
    if min(len(mine), len(other)) < FEW:
        scores[f"KID ({mode})"] = kernel_distance(mine, other)
    return scores
