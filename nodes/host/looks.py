"""What a judge is shown of latents in the host: an image, a few frames of a clip, or layers put together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...samplers.frames import COUNTED, LONGEST, FrameChoice, Shown, scaled, union
from ...samplers.looks import wishes
from ...samplers.protocols import SearchError, Verifier
from .layout import LAYERS, LatentLayout, frames_of, latents_for

log = logging.getLogger("testtime")

# Networks whose first frames need the first latent frames only. HunyuanVideo's normalises over time.
_CAUSAL = ("WanVAE", "CausalContinuousVideoTokenizer", "TAEHV")
# Tiny autoencoders of videos that newer hosts load from models/vae_approx, by channels of the latents.
TINY = {16: "lighttaew2_1 or taehv", 24: "taeh3", 32: "lighttaehy1_5", 48: "lighttaew2_2", 128: "taeltx_2"}
SMALL = {4: "taesd or taesdxl", 16: "taesd3 or taef1"}
GREY = 0.5


def is_causal(vae: Any) -> bool:
    """Whether decoding the first latent frames gives the first frames of the whole clip."""
    return any(cls.__name__ in _CAUSAL for cls in type(getattr(vae, "first_stage_model", None)).__mro__)


@dataclass(frozen=True)
class Look:
    """Which part of latents is decoded, and which frames of it are kept.

    Attributes:
        layout: what the latents are.
        shown: the frames, None for images.
        longest: pixels of the longer side of a frame, at most.
    """

    layout: LatentLayout
    shown: Shown | None = None
    longest: int = LONGEST

    def decoded(self, vae: Any, latents: Tensor, decode: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Images ``[n, H, W, 3]`` or frames ``[n, F, H, W, 3]`` of latents in the VAE's scale, still packed.

        Clips are decoded one by one, and only as much of each as the wanted frames need: a whole one in float32 takes
        hundreds of megabytes.

        Args:
            decode: instead of ``vae.decode``, keeping the graph.
        """
        decode = decode or vae.decode
        seen = self.layout.clip(latents)
        if self.layout.kind == LAYERS:
            return torch.stack([flattened(one_frame(decode(layers_of(one)), channels=4)) for one in seen])
        if self.shown is None:
            return one_frame(decode(as_vae_takes(vae, seen)))
        return torch.cat([self._frames(vae, seen[row : row + 1], decode) for row in range(len(seen))])

    def _frames(self, vae: Any, clip: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
        """``[1, F, H, W, 3]`` of one clip ``[1, C, T, h, w]``."""
        latents = clip.shape[2]
        numbers = self.numbers(frames_of(vae, latents))
        needed = latents_for(vae, max(numbers) + 1, latents) if is_causal(vae) else latents
        images = decode(clip[:, :, :needed])
        if images.dim() == 4:  # hosts fold a single frame into the batch
            images = images[None]
        frames = scaled(images[0, list(numbers), ..., :3].float(), self.longest)
        return (frames if frames.requires_grad else frames.cpu())[None]

    def numbers(self, count: int) -> tuple[int, ...]:
        """The frames to show in a decode of ``count`` frames; a tiny decoder may make other ones than the real."""
        assert self.shown is not None
        if count >= self.shown.count:
            return self.shown.numbers
        last = max(self.shown.count - 1, 1)
        return tuple(round(number * (count - 1) / last) for number in self.shown.numbers)

    def differentiable(self, vae: Any) -> bool:
        """Whether a backward pass through the decoder is affordable: images, and the first frames of a causal VAE."""
        if self.shown is None:
            return True
        return is_causal(vae) and latents_for(vae, max(self.shown.numbers) + 1, self.layout.frames) <= 2


def look_at(layout: LatentLayout, vae: Any, judges: Iterable[Verifier]) -> Look:
    """The look that all judges of a run together want.

    Raises:
        SearchError: a judge of motion on latents that do not move.
    """
    judges = list(judges)
    count = layout.frames_of(vae) if layout.moving and vae is not None else 1
    for judge in judges:
        if judge.least_frames > count:
            raise SearchError(f"verifier {judge.name!r} judges videos: this latent is {layout.describe(vae)}")
    if not layout.moving or vae is None:
        return Look(layout)
    given = frames_of(vae, layout.given) if layout.given else 0
    choices = [choice for judge in judges for choice in wishes(judge)] or [FrameChoice()]
    wanted = max((choice.count for choice in choices if choice.which in COUNTED), default=0)
    if wanted > count - given:
        log.info("frames is %d and this clip has %d: all are judged", wanted, count - given)
    numbers = union(choices, count, given)
    return Look(layout, Shown(numbers, count, given), max(choice.longest for choice in choices))


def check_vae(layout: LatentLayout, vae: Any, channels: int, name: str = "vae") -> None:
    """Raise SearchError for a VAE that cannot decode these latents.

    Args:
        channels: of the model's latents. name: of the input, "vae" or "preview_vae".
    """
    if vae is None:
        return
    if not layout.moving:
        decoded = getattr(vae, "latent_channels", channels)
        if name == "preview_vae" and decoded != channels:
            raise SearchError(
                f"preview_vae decodes {decoded} channels, this model's latents have {channels}: connect a small "
                f"decoder of the same latents, such as {SMALL.get(channels, 'its TAESD')}"
            )
        return
    own = "connect the model's own video VAE" if name == "vae" else f"connect {TINY.get(channels, 'a tiny one of it')}"
    if getattr(vae, "latent_dim", 3) == 2:
        raise SearchError(f"{name} decodes single images, this latent is {layout.describe()}: {own}")
    decoded = getattr(vae, "latent_channels", channels)
    if decoded != channels:
        raise SearchError(f"{name} decodes {decoded} channels, this model's video latents have {channels}: {own}")


def as_vae_takes(vae: Any, latents: Tensor) -> Tensor:
    """Latents without their time axis, for a VAE of images under a model that keeps one (``[n, C, 1, h, w]``).

    As ``VAE.decode`` of newer hosts does; older ones cannot decode these.
    """
    return latents[:, :, 0] if latents.dim() == 5 and getattr(vae, "latent_dim", 3) == 2 else latents


def one_frame(images: Tensor, channels: int = 3) -> Tensor:
    """Images ``[n, H, W, C]``, C at most ``channels``; the only frame where a video VAE decoded an image."""
    if images.dim() == 5:
        images = images[:, 0]
    return images[..., :channels]


def layers_of(latents: Tensor) -> Tensor:
    """The layers ``[layers, C, 1, h, w]`` of latents ``[C, layers + 1, h, w]``: the first is the whole picture."""
    return latents[:, 1:].movedim(0, 1)[:, :, None]


def flattened(layers: Tensor) -> Tensor:
    """One picture ``[H, W, 3]`` of layers ``[k, H, W, 4]``, the last on top, over grey; without alpha their mean."""
    if layers.shape[-1] == 3:
        return layers.mean(0)
    picture = torch.full_like(layers[0, ..., :3], GREY)
    for layer in layers:
        alpha = layer[..., 3:]
        picture = layer[..., :3] * alpha + picture * (1 - alpha)
    return picture
