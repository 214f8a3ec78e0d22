"""Log-weights of a population, per group, in float64 and log space only.

``log_w`` is ``[G, N]``: G groups (output slots) that never compete with each other, N particles each.
``-inf`` marks a particle that must not survive; NaN never enters (``clean_scores``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normalise(log_w: Tensor) -> Tensor:
    """Softmax over the last axis. A row of only ``-inf`` becomes uniform: with nothing to choose by, chance decides."""
    dead = torch.isneginf(log_w).all(-1, keepdim=True)
    return torch.softmax(torch.where(dead, torch.zeros_like(log_w), log_w), -1)


def effective_sample_size(log_w: Tensor) -> Tensor:
    """``1 / sum W^2`` per group, in [1, N]."""
    return 1.0 / normalise(log_w).square().sum(-1)


def log_mean(log_w: Tensor) -> Tensor:
    """``log(mean(exp(log_w)))`` per group: the increment of log Z at a resampling."""
    return torch.logsumexp(log_w, -1) - math.log(log_w.shape[-1])


def ess_threshold(particles: int, tau: float | None) -> float:
    """The fraction tau of N below which ESS triggers resampling, raised where it could never do so.

    ESS is at least 1 and the test is strict, so ``tau * N`` must exceed 1: with N = 2 the usual tau = 0.5 silently
    never resamples (as in the published FK steering and DAS code). Default .75 for N <= 4, .5 above.
    """
    if tau is None:
        tau = 0.75 if particles <= 4 else 0.5
    if particles > 1 and tau * particles <= 1.0:
        tau = 1.5 / particles
    return tau


def clean_scores(score: Tensor) -> tuple[Tensor, int]:
    """Scores with every non-finite value as ``-inf``, and how many there were.

    A NaN is not zero: where scores are negative zero would win. ``-inf`` gives such a particle no weight at all.
    """
    bad = ~torch.isfinite(score)
    return torch.where(bad, torch.full_like(score, -math.inf), score), int(bad.sum())


def best_index(score: Tensor) -> Tensor:
    """Index of the best per group, int64 ``[G]``; lowest index on ties; all ``-inf`` gives 0."""
    # argmax of torch does not promise the first of equal entries on every backend.
    top = score.max(-1, keepdim=True).values
    return (score == top).to(torch.int8).argmax(-1)


def gumbel_choice(log_w: Tensor, uniforms: Tensor) -> Tensor:
    """One index per group drawn from ``softmax(log_w)`` (Gumbel-argmax, safe at any temperature). int64 ``[G]``."""
    gumbel = -torch.log(-torch.log(uniforms.clamp(min=1e-300, max=1 - 1e-16)))
    perturbed = log_w + gumbel
    return best_index(torch.where(torch.isneginf(log_w), log_w, perturbed))


def best_rows(score: Tensor, count: int) -> Tensor:
    """Flat rows int64 ``[G * count]`` of the ``count`` best of every group ``[G, N]``, in the order of the particles.

    Equal scores keep the lower row.
    """
    kept = score.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values
    return (kept + torch.arange(len(score))[:, None] * score.shape[1]).flatten()
