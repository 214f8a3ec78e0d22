"""The images that a user gives to be edited, and how they come to those who judge what was made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .protocols import SearchError

if TYPE_CHECKING:
    from .verifier import Verifier

PROPORTIONS = 0.02
"""Width / height may differ by this share before a picture counts as one of other proportions."""


@dataclass(frozen=True)
class Sources:
    """What one image of the batch is made from.

    Attributes:
        images: ``[H, W, 3]`` in 0..1 each, at least one, of any sizes. The first is to be preserved, the others are
            references.
        mask: ``[H, W]`` in 0..1 over the first image, 1 where it may change; None where nobody said.

    Raises:
        SearchError: no image, one of another shape, or a mask that belongs to another picture.
    """

    images: tuple[Tensor, ...]
    mask: Tensor | None = None

    def __post_init__(self):
        if not self.images:
            raise SearchError("source is empty: give the image that is edited")
        for image in self.images:
            if image.dim() != 3 or image.shape[-1] != 3 or min(image.shape) < 1:
                raise SearchError(f"source has shape {list(image.shape)}: one image [H, W, 3] in 0..1 is needed")
        if self.mask is not None:
            check_mask(self.mask, *self.images[0].shape[:2])

    @property
    def first(self) -> Tensor:
        """The image that is to be preserved."""
        return self.images[0]


def check_mask(mask: Tensor, height: int, width: int) -> None:
    """Raise SearchError for a mask ``[h, w]`` that cannot belong to a source of ``height`` x ``width`` pixels."""
    if mask.dim() != 2 or min(mask.shape) < 1:
        raise SearchError(f"source_mask has shape {list(mask.shape)}: one mask [height, width] is needed")
    tall, wide = mask.shape
    if differs(tall, wide, height, width):
        raise SearchError(
            f"source_mask is {wide} x {tall} (width x height) and source {width} x {height}: the proportions differ, "
            f"this mask belongs to another image"
        )


def differs(tall: int, wide: int, height: int, width: int) -> bool:
    """Whether two sizes have other proportions, one pixel of rounding granted."""
    slack = PROPORTIONS + 1.0 / max(1, min(tall, wide, height, width))
    return abs((wide / tall) * (height / width) - 1.0) > slack


def sources_of(images: Tensor, groups: int, mask: Tensor | None = None) -> tuple[Sources, ...]:
    """``Sources`` for ``groups`` images of an IMAGE batch ``[b, H, W, C]`` and a MASK ``[m, h, w]`` or ``[h, w]``.

    One row serves all images of the batch; as many rows as images: one each; row ``g % b`` otherwise.

    Raises:
        SearchError: no images, a batch that is no multiple, or a mask of another picture.
    """
    if images.dim() != 4 or images.shape[-1] not in (3, 4) or min(images.shape) < 1:
        raise SearchError(f"source has shape {list(images.shape)}: it must be an IMAGE [n, H, W, 3]")
    if len(images) > groups or groups % len(images):
        raise SearchError(
            f"source has {len(images)} images for a batch of {groups}: give one for all of them, or one for each"
        )
    masks = None
    if mask is not None and bool((mask != mask.reshape(-1)[0]).any()):  # an even one (Load Image's) says nothing
        masks = mask[None] if mask.dim() == 2 else mask.reshape(-1, *mask.shape[-2:])
        if len(masks) > groups or groups % len(masks):
            raise SearchError(
                f"source_mask has {len(masks)} masks for a batch of {groups}: give one for all of them, or one for each"
            )
    return tuple(
        Sources((images[g % len(images)][..., :3],), None if masks is None else masks[g % len(masks)])
        for g in range(groups)
    )


def fitted(source: Tensor, height: int, width: int) -> Tensor:
    """``source`` ``[H, W, 3]`` at the size of a candidate: resized, other proportions padded with grey on both sides.

    Returns ``[height, width, 3]``, float32.
    """
    tall, wide = source.shape[:2]
    if (tall, wide) == (height, width):
        return source.float()
    inner = (height, width)
    if differs(tall, wide, height, width):
        scale = min(height / tall, width / wide)
        inner = max(1, round(tall * scale)), max(1, round(wide * scale))
    picture = resized(source.float(), inner)
    if inner == (height, width):
        return picture
    canvas = torch.full((height, width, 3), 0.5, dtype=picture.dtype, device=picture.device)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    canvas[top : top + inner[0], left : left + inner[1]] = picture
    return canvas


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """``[h, w, C]`` resized to ``size``: by area where that makes it smaller, else bilinear."""
    pixels = image.movedim(-1, 0)[None]
    smaller = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    options = {"mode": "area"} if smaller else {"mode": "bilinear", "antialias": True}
    return F.interpolate(pixels, size, **options)[0].movedim(0, -1)


def parts(verifier: Verifier | None) -> Iterator[Verifier]:
    """A verifier and all that it is made of."""
    if verifier is None:
        return
    yield verifier
    for member in verifier.members:
        yield from parts(member)


def check_sources(verifiers: Sequence[Verifier | None], sources: Sequence[Sources]) -> None:
    """Raise SearchError where a judge compares with a source and there is none."""
    if sources:
        return
    for verifier in verifiers:
        for part in parts(verifier):
            if part.needs_source:
                raise SearchError(
                    f"verifier {part.name!r} compares with the image that is edited and there is none: connect "
                    f"`source` of the search or of the verifier, or give the model that image as a reference latent"
                )


def padded_sentence(source: Tensor, height: int, width: int) -> str | None:
    """What to say of a source whose proportions are not the candidates'; None where they are."""
    tall, wide = source.shape[:2]
    if not differs(tall, wide, height, width):
        return None
    return (
        f"source is {wide} x {tall} (width x height) and the image {width} x {height}: it is compared with grey bars, "
        f"so preservation is judged only roughly; crop the source to the image's proportions"
    )
