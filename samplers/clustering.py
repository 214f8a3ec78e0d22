"""Clusters of images, and one image to stand for each: how TTS-VAR keeps early populations diverse.

An extractor sees images as patch tokens; a reduction turns an image's tokens into one vector; k-means groups the
vectors; the member nearest to each centre is kept (Chen et al. 2025, arXiv 2507.18537, section 3.2).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

REDUCTIONS = ("pca", "pca_exact", "pca_all", "pool")


class Extractor(Protocol):
    """Images -> patch tokens. ``name`` for reports."""

    name: str

    def tokens(self, images: Tensor) -> Tensor:
        """Float tokens ``[n, P, D]`` of images ``[n, H, W, 3]`` in 0..1; extractors without patches return P = 1."""
        ...


class PixelFeatures:
    """Average colours of a ``side`` x ``side`` grid: needs no network, sees layout and palette, nothing else."""

    name = "pixels"

    def __init__(self, side: int = 16):
        self.side = side

    def tokens(self, images: Tensor) -> Tensor:
        """``[n, side * side, 3]``."""
        pooled = torch.nn.functional.adaptive_avg_pool2d(images.float().movedim(-1, 1), self.side)
        return pooled.flatten(2).transpose(1, 2)


def reduce_tokens(tokens: Tensor, how: str) -> Tensor:
    """One vector per image, float32 on the CPU.

    Args:
        tokens: ``[n, P, D]``.
        how: "pca" projects each image's centred tokens on their own first principal component ``[n, P]``, its sign
            chosen to agree with the component of the whole batch; "pca_exact" leaves the sign as it comes (the
            published code: near-identical images may then lie far apart); "pca_all" uses the batch's component for
            every image; "pool" averages the tokens ``[n, D]``, as does any reduction of a single token.
    """
    if how not in REDUCTIONS:
        raise ValueError(f"features are {how!r}: choose one of {', '.join(REDUCTIONS)}")
    tokens = tokens.detach().float().cpu()
    if how == "pool" or tokens.shape[1] == 1:
        return tokens.mean(1)
    centred = tokens - tokens.mean(1, keepdim=True)
    common = _component(centred.flatten(0, 1)[None])
    if how == "pca_all":
        return (centred @ common[0][:, None]).squeeze(-1)
    own = _component(centred)
    if how == "pca":
        own = torch.where((own * common).sum(-1, keepdim=True) < 0, -own, own)
    return (centred @ own[..., None]).squeeze(-1)


def _component(x: Tensor) -> Tensor:
    """First right singular vector ``[b, D]`` of each ``[P, D]`` matrix."""
    return torch.linalg.svd(x, full_matrices=False).Vh[:, 0]


def k_means(
    points: Tensor, clusters: int, uniforms: Tensor, rounds: int = 300, tolerance: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from a k-means++ start (Arthur & Vassilvitskii 2007).

    Args:
        points: ``[n, F]``.
        clusters: k, at most n.
        uniforms: ``[k]`` in [0, 1), one per starting centre.
        rounds: most iterations.
        tolerance: stop when the centres move less than this fraction of the points' mean variance.

    Returns:
        (labels int64 ``[n]``, centres ``[k, F]``). With fewer distinct points than k some clusters are empty.
    """
    points = points.cpu().double()
    if not 1 <= clusters <= len(points):
        raise ValueError(f"{clusters} clusters of {len(points)} images: give between 1 and {len(points)}")
    centres = [points[int(uniforms[0] * len(points))]]
    for uniform in uniforms[1:clusters].cpu().double():
        nearest = torch.cdist(points, torch.stack(centres)).square().amin(1)
        cumulative = nearest.cumsum(0)
        if cumulative[-1] <= 0:  # every point sits on a centre
            centres.append(points[0])
            continue
        pick = torch.searchsorted(cumulative, uniform * cumulative[-1], right=True)
        centres.append(points[int(pick.clamp(max=len(points) - 1))])
    centre = torch.stack(centres)
    threshold = tolerance * float(points.var(0, correction=0).mean())
    labels = torch.cdist(points, centre).argmin(1)
    for _ in range(rounds):
        moved = centre.clone()
        for k in labels.unique().tolist():
            moved[k] = points[labels == k].mean(0)
        shift = float((moved - centre).square().sum())
        centre = moved
        labels = torch.cdist(points, centre).argmin(1)
        if shift <= threshold:
            break
    return labels, centre


def representatives(points: Tensor, count: int, uniforms: Tensor) -> tuple[Tensor, int]:
    """``count`` different images, one for each cluster of ``points`` ``[n, F]``.

    Returns:
        (int64 ``[count]`` ascending, how many clusters were empty). For an empty cluster the image that is farthest
        from all chosen ones stands in, the first one where all are alike.
    """
    labels, centres = k_means(points, count, uniforms)
    points = points.cpu().double()
    chosen = []
    for k in labels.unique().tolist():
        members = torch.nonzero(labels == k).flatten()
        chosen.append(int(members[(points[members] - centres[k]).norm(dim=1).argmin()]))
    empty = count - len(chosen)
    while len(chosen) < count:
        distance = torch.cdist(points, points[chosen]).amin(1)
        distance[chosen] = -1.0
        chosen.append(int(distance.argmax()))
    return torch.tensor(sorted(chosen)), empty
