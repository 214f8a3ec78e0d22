"""LATENT dictionaries: checks of what comes in, and masks and batch indices of what goes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...samplers.protocols import SearchError
from ..compat import EMPTY_SCALE
from .process import check_latent

Latent = dict[str, Any]


def check_latent_input(latent: Latent) -> None:
    """Raise SearchError, naming the part, for a LATENT that a search cannot work on."""
    samples = latent["samples"]
    if getattr(samples, "is_nested", False) or not isinstance(samples, Tensor):
        raise SearchError("latent_image holds several latents of different shapes: searches work on one kind of image")
    check_latent(samples.shape)
    images = samples.shape[0]
    index = latent.get("batch_index")
    if index is not None and len(index) != images:
        raise SearchError(
            f"latent_image has {images} latents and a batch_index of {len(index)} entries: they must be equally many"
        )
    mask = latent.get("noise_mask")
    if mask is not None:
        _check_mask(mask, samples)


def _check_mask(mask: Tensor, samples: Tensor) -> None:
    images, (height, width) = samples.shape[0], samples.shape[-2:]
    if mask.dim() < 2:
        raise SearchError(f"noise_mask has shape {list(mask.shape)}: give [batch, height, width]")
    rows = mask.reshape(-1, *mask.shape[-2:]).shape[0]
    if rows > images or images % rows:
        raise SearchError(
            f"noise_mask has {rows} masks for a latent batch of {images}: give one mask, or one per image"
        )
    tall, wide = mask.shape[-2:]
    # ComfyUI stretches any mask over the image; one of other proportions is a mask of another picture. Latent sizes
    # are rounded to whole cells, so half a cell of slack on every side is granted.
    slack = 1.0 / min(height, width) + 1e-6
    if abs((wide / tall) * (height / width) - 1.0) > slack:
        raise SearchError(
            f"noise_mask is {wide} x {tall} (width x height) and the latent {width} x {height}: the proportions "
            f"differ, this mask belongs to another image"
        )


def with_samples(latent: Latent, samples: Tensor, rows: Sequence[int] | None = None) -> Latent:
    """A copy of ``latent`` with new samples, and without what only an empty latent says (the scale of its cells).

    Args:
        latent: what the search started from, G images.
        samples: ``[n, ...]``.
        rows: for each new sample the image it came from (n numbers below G); None: the same images in the same order.
    """
    out = {**latent, "samples": samples}
    for key in EMPTY_SCALE:
        out.pop(key, None)
    if rows is None:
        return out
    mask = latent.get("noise_mask")
    if mask is not None and mask.dim() > 2 and mask.shape[0] > 1:
        out["noise_mask"] = mask[[row % mask.shape[0] for row in rows]]
    if latent.get("batch_index") is not None:
        out["batch_index"] = [latent["batch_index"][row] for row in rows]
    return out
