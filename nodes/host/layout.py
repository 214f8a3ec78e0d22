"""``LatentLayout``: what the latents of a sampling call are, in one value that answers every question of shape."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...samplers.protocols import SearchError
from .compat import nested, unpacked

IMAGE, VIDEO, LAYERS = "image", "video", "layers"

# Classes of models and latent formats whose latents no search works on, by the beginnings of their names.
_REFUSED_MODELS = {
    "SVD": "this model takes the latent batch for the frames of one video (SVD, SV3D): a search would mix them",
    "SV3D": "this model takes the latent batch for the frames of one video (SVD, SV3D): a search would mix them",
    "ACEStep": "this model makes sound (ACE-Step): no verifier hears it, searches work on images and videos",
}
_REFUSED_FORMATS = {"ACEAudio": _REFUSED_MODELS["ACEStep"]}
_BATCH_IS_TIME = "num_video_frames"  # a condition of models that count the batch as frames


@dataclass(frozen=True)
class LatentLayout:
    """What latents of a sampling call are.

    Attributes:
        kind: ``IMAGE``, ``VIDEO`` (the third axis is time) or ``LAYERS`` (it is layers of one picture).
        shape: of the part that is seen, without the batch: ``(C, h, w)`` or ``(C, T, h, w)``.
        streams: shapes of all streams, without the batch, where several are packed into one flat latent ``[n, 1, L]``
            (video and sound); empty for plain latents.
        first, last: latent frames at the beginning and the end that are no part of the clip (reference images, guides).
        given: latent frames at the beginning that the user gave, the same in every candidate.
    """

    kind: str
    shape: tuple[int, ...]
    streams: tuple[tuple[int, ...], ...] = ()
    first: int = 0
    last: int = 0
    given: int = 0

    @property
    def packed(self) -> bool:
        """Whether a latent is several streams in one row."""
        return len(self.streams) > 1

    @property
    def moving(self) -> bool:
        """Whether a particle is a clip."""
        return self.kind == VIDEO

    @property
    def frames(self) -> int:
        """Latent frames (or layers) T that are looked at; 1 for an image."""
        return self.shape[1] - self.first - self.last if len(self.shape) == 4 else 1

    @property
    def size(self) -> tuple[int, int]:
        """Latent height and width."""
        return self.shape[-2], self.shape[-1]

    @property
    def rows_per_call(self) -> int | None:
        """Particles of one model call at most: a clip fills a device alone, and some packs take one row only."""
        return 1 if self.moving or self.packed else None

    def visual(self, x: Tensor) -> Tensor:
        """The part that is seen, ``[n, C, T, h, w]`` or ``[n, C, h, w]``, of latents as the sampler has them."""
        return unpacked(x, self.full_shapes(len(x)))[0] if self.packed else x

    def clip(self, x: Tensor) -> Tensor:
        """``visual`` without the latent frames that are no part of the clip."""
        seen = self.visual(x)
        return seen[:, :, self.first : seen.shape[2] - self.last] if self.first or self.last else seen

    def restore(self, x: Tensor) -> Any:
        """Latents as the graph has them: a NestedTensor of a pack, others as they are."""
        return nested(unpacked(x, self.full_shapes(len(x)))) if self.packed else x

    def full_shapes(self, rows: int) -> list[list[int]]:
        """Shapes of the streams of ``rows`` latents."""
        return [[rows, *stream] for stream in self.streams]

    def frames_of(self, vae: Any) -> int:
        """Frames of the clip that ``vae`` decodes from these latents."""
        return frames_of(vae, self.frames)

    def cell_of(self, vae: Any) -> int:
        """Pixels per latent cell of ``vae``."""
        return int(vae.spacial_compression_decode())

    def describe(self, vae: Any = None) -> str:
        """In words: "an image", "a video of 81 frames, with sound"."""
        if self.kind == LAYERS:
            return f"a picture of {self.frames - 1} layers"  # the first is the whole picture
        said = "an image" if not self.moving else f"a video of {self.frames} latent frames"
        if self.moving and vae is not None:
            said = f"a video of {self.frames_of(vae)} frames"
        return said + (", with sound" if self.packed else "")


def frames_of(vae: Any, latents: int) -> int:
    """Frames that ``vae`` makes of so many latent frames."""
    ratio = getattr(vae, "upscale_ratio", 1)
    return int(ratio[0](latents)) if isinstance(ratio, tuple) and callable(ratio[0]) else latents


def latents_for(vae: Any, frames: int, latents: int) -> int:
    """Latent frames, of ``latents``, that a causal ``vae`` has to decode before ``frames`` frames are there."""
    return next((count for count in range(1, latents + 1) if frames_of(vae, count) >= frames), latents)


def layout_of(
    model: Any,
    shape: Sequence[int],
    *,
    streams: Sequence[Sequence[int]] | None = None,
    conds: Any = None,
    mask: Tensor | None = None,
    skip: int = 0,
) -> LatentLayout:
    """The layout of a latent batch under a model.

    Args:
        model: the BaseModel, or None where it is not known yet.
        shape: of the latents as the sampler has them, batch first.
        streams: shapes of the streams of a pack, batch first; default: those that the model was told of.
        conds: the guider's processed conditions, where there are some already.
        mask: ``denoise_mask`` of the call, in the latents' own layout.
        skip: latent frames at the beginning that are no part of the clip.

    Raises:
        SearchError: for latents that are neither images nor videos, with the reason.
    """
    _refuse(model, conds)
    told = streams if streams is not None else getattr(model, "latent_shapes", None)
    if told is None:
        told = next((list(value) for value in _values(conds, "latent_shapes")), None)
    packed = tuple(tuple(int(side) for side in stream[1:]) for stream in told) if told and len(told) > 1 else ()
    if packed and sum(math.prod(stream) for stream in packed) != math.prod(shape[1:]):
        packed = ()
    seen = packed[0] if packed else tuple(int(side) for side in shape[1:])
    if len(seen) not in (3, 4):
        raise SearchError(
            f"latent_image has shape {[shape[0], *seen]}: searches work on images [batch, channels, height, width] and "
            f"videos [batch, channels, frames, height, width]; sound and meshes are neither"
        )
    layout = LatentLayout(_kind(model, seen), seen, packed)
    if not layout.moving:
        return layout
    if getattr(getattr(model, "latent_format", None), "latent_dimensions", 3) == 2:
        raise SearchError(
            f"latent_image is {layout.describe()} and this model makes images: give latents [batch, channels, height, "
            f"width]"
        )
    last = _guides(conds, seen)
    if skip + last >= seen[1]:
        raise SearchError(f"skip_latents is {skip}: of {seen[1]} latent frames, {last} of them guides, none is left")
    layout = replace(layout, first=skip, last=last)
    return replace(layout, given=_given(layout, mask))


def _refuse(model: Any, conds: Any) -> None:
    names = [cls.__name__ for cls in type(model).__mro__]
    formats = [cls.__name__ for cls in type(getattr(model, "latent_format", None)).__mro__]
    for beginnings, found in ((_REFUSED_MODELS, names), (_REFUSED_FORMATS, formats)):
        for beginning, reason in beginnings.items():
            if any(name.startswith(beginning) for name in found):
                raise SearchError(reason)
    if next(_values(conds, _BATCH_IS_TIME), None) is not None:
        raise SearchError(_REFUSED_MODELS["SVD"])


def _kind(model: Any, seen: tuple[int, ...]) -> str:
    if len(seen) == 3 or seen[1] == 1:
        return IMAGE
    return LAYERS if any(cls.__name__ == "QwenImage" for cls in type(model).__mro__) else VIDEO


def _values(conds: Any, name: str) -> Iterator[Any]:
    """What processed conditions say of ``name``."""
    for entries in (conds or {}).values():
        for entry in entries:
            value = getattr(entry.get("model_conds", {}).get(name), "cond", None)
            if value is not None:
                yield value


def _guides(conds: Any, seen: tuple[int, ...]) -> int:
    """Latent frames at the end that are guides (LTX): stills after the clip, which are cut off before it is decoded."""
    for tokens in _values(conds, "keyframe_idxs"):
        return int(tokens.shape[2] // (seen[-2] * seen[-1]))
    return 0


def _given(layout: LatentLayout, mask: Tensor | None) -> int:
    """Latent frames at the beginning of the clip that the mask keeps as they are."""
    if mask is None:
        return 0
    seen = layout.clip(mask) if mask.dim() > 3 or layout.packed else None
    if seen is None or seen.dim() != 5:
        return 0
    kept = (seen == 0).transpose(1, 2).flatten(2).all(2).all(0)
    changes = torch.nonzero(~kept).flatten()
    return int(changes[0]) if len(changes) else 0
