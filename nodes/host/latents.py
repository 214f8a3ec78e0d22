"""LATENT dictionaries: checks of what comes in, and masks and batch indices of what goes out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...samplers.protocols import SearchError
from .compat import EMPTY_SCALE, is_nested, nested
from .layout import LatentLayout, layout_of

Latent = dict[str, Any]


def check_latent_input(latent: Latent, model: Any) -> LatentLayout:
    """The layout of a LATENT under a BaseModel. Raise SearchError, naming the part, where no search can work on it."""
    samples = latent["samples"]
    layout = layout_of_samples(samples, model)
    images = samples.shape[0]
    index = latent.get("batch_index")
    if index is not None and len(index) != images:
        raise SearchError(
            f"latent_image has {images} latents and a batch_index of {len(index)} entries: they must be equally many"
        )
    mask = latent.get("noise_mask")
    if mask is not None:
        _check_mask(mask.unbind()[0] if is_nested(mask) else mask, images, layout)
    return layout


def layout_of_samples(samples: Any, model: Any) -> LatentLayout:
    """The layout of a LATENT's samples, a tensor or a NestedTensor, under a BaseModel."""
    if not is_nested(samples):
        return layout_of(model, samples.shape, streams=())
    streams = [stream.shape for stream in samples.unbind()]
    return layout_of(model, (streams[0][0], 1, sum(math.prod(stream[1:]) for stream in streams)), streams=streams)


def _check_mask(mask: Tensor, images: int, layout: LatentLayout) -> None:
    height, width = layout.size
    if mask.dim() < 2:
        raise SearchError(f"noise_mask has shape {list(mask.shape)}: give [batch, height, width]")
    # Of a model with a time axis ComfyUI takes anything below five axes for the frames of one mask.
    timed = len(layout.shape) == 4
    rows = (mask.shape[0] if mask.dim() == 5 else 1) if timed else mask.reshape(-1, *mask.shape[-2:]).shape[0]
    if rows > images or images % rows:
        raise SearchError(
            f"noise_mask has {rows} masks for a latent batch of {images}: give one mask, or one per image"
        )
    if bool((mask == mask.reshape(-1)[:1]).all()):  # Load Image's 64 x 64 of zeros, say: it has no proportions
        return
    tall, wide = mask.shape[-2:]
    # ComfyUI stretches any mask over the image; one of other proportions is a mask of another picture. Latent sizes
    # are rounded to whole cells, so half a cell of slack on every side is granted.
    slack = 1.0 / min(height, width) + 1e-6
    if abs((wide / tall) * (height / width) - 1.0) > slack:
        raise SearchError(
            f"noise_mask is {wide} x {tall} (width x height) and the latent {width} x {height}: the proportions "
            f"differ, this mask belongs to another image"
        )


def with_samples(latent: Latent, samples: Any, rows: Sequence[int] | None = None) -> Latent:
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
    if is_nested(mask):
        out["noise_mask"] = nested([_rows_of(stream, rows, timed=stream.dim() == 5) for stream in mask.unbind()])
    elif mask is not None:
        out["noise_mask"] = _rows_of(mask, rows, timed=is_nested(samples) or samples.dim() == 5)
    if latent.get("batch_index") is not None:
        out["batch_index"] = [latent["batch_index"][row] for row in rows]
    return out


def _rows_of(mask: Tensor, rows: Sequence[int], timed: bool) -> Tensor:
    """A mask with an entry for each of ``rows``; one that serves them all (of a clip: its frames) stays as it is."""
    if mask.dim() < (5 if timed else 3) or mask.shape[0] == 1:
        return mask
    return mask[[row % mask.shape[0] for row in rows]]
