"""Moving Shapes' network: the embedded family's denoiser on every frame, and attention over time between its blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attention
from .denoiser import Denoiser, _columns, _features

FRAMES = 8
"""Frames of a clip, whose positions are trained."""


class _OverTime(nn.Module):
    """Self-attention of every cell over the frames, residual; nothing at the start of training."""

    def __init__(self, width: int, heads: int, operations, **kw):
        super().__init__()
        self.heads = heads
        self.norm = operations.LayerNorm(width, **kw)
        self.place = nn.Parameter(torch.zeros(1, FRAMES, width, **kw))
        self.qkv = operations.Linear(width, 3 * width, **kw)
        self.out = operations.Linear(width, width, **kw)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """``[B F, width, h, w]`` -> the same shape."""
        rows, width, h, w = x.shape
        cells = x.view(rows // frames, frames, width, h * w).permute(0, 3, 1, 2).reshape(-1, frames, width)
        q, k, v = self.qkv(self.norm(cells) + positions(self.place, frames).to(cells)).chunk(3, -1)
        parts = (part.view(len(cells), frames, self.heads, -1).transpose(1, 2) for part in (q, k, v))
        seen = self.out(attention(*parts).transpose(1, 2).reshape(len(cells), frames, width))
        return x + seen.view(-1, h * w, frames, width).permute(0, 2, 3, 1).reshape(x.shape)


class _AlongTime(nn.Module):
    """Convolution over three neighbouring frames, residual; nothing at the start of training."""

    def __init__(self, channels: int, operations, **kw):
        super().__init__()
        self.norm = operations.GroupNorm(8, channels, **kw)
        self.conv = operations.Conv1d(channels, channels, 3, padding=1, **kw)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """``[B F, channels, h, w]`` -> the same shape."""
        rows, channels, h, w = x.shape
        lines = F.silu(self.norm(x)).view(rows // frames, frames, channels, h * w).permute(0, 3, 2, 1)
        moved = self.conv(lines.reshape(-1, channels, frames)).view(-1, h * w, channels, frames)
        return x + moved.permute(0, 3, 2, 1).reshape(x.shape)


class MovingDenoiser(Denoiser):
    """Rectified flow of short clips: ``(1 - s) x0 + s eps``, ``1000 s`` -> ``eps - x0``, latents ``[B, 4, F, h, w]``.

    The parts of ``Denoiser`` see one frame at a time, with a place of its own; after every middle block each cell
    attends to itself in the other frames, and before and after the middle neighbouring frames are mixed.

    Args:
        as ``Denoiser``; its parameterisation is "flow".
    """

    def __init__(self, channels: int = 96, width: int = 192, heads: int = 6, middle: int = 4, dtype=None, device=None,
                 operations=nn, **settings):  # fmt: skip
        super().__init__("flow", channels, width, heads, middle=middle, dtype=dtype, device=device,
                         operations=operations, **settings)  # fmt: skip
        kw = {"dtype": dtype, "device": device}
        self.frame = nn.Parameter(torch.zeros(1, FRAMES, width, **kw))
        self.over_time = nn.ModuleList(_OverTime(width, heads, operations, **kw) for _ in range(middle))
        self.before = _AlongTime(channels, operations, **kw)
        self.after = _AlongTime(channels, operations, **kw)

    def initialise_time(self) -> MovingDenoiser:
        """Zero what closes the branches over time, so that training starts from a model of single frames."""
        for module in (*(mixer.out for mixer in self.over_time), self.before.conv, self.after.conv):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        for place in (self.frame, *(mixer.place for mixer in self.over_time)):
            nn.init.normal_(place, std=0.02)
        return self

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, **_) -> Tensor:
        """Predict the flow's velocity.

        Args:
            x: ``[B, 4, F, h, w]``, h and w even; timesteps: ``[B]``, 1000 s; context: ``[B, L, context]`` text states.
        """
        if x.dim() != 5 or x.shape[-1] % 2 or x.shape[-2] % 2:
            raise ValueError(f"latent is {list(x.shape)}: [B, 4, frames, h, w] with even h and w is needed")
        return self.flow_and_cells(x, timesteps, context)[0]

    def flow_and_cells(self, x: Tensor, timesteps: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """As ``forward``, and what the last block at half resolution holds, ``[B F, width, h / 2, w / 2]``."""
        frames = x.shape[2]
        flat = x.transpose(1, 2).flatten(0, 1)
        s = timesteps.float() / 1000.0
        phi = torch.atan2(s, 1.0 - s).repeat_interleave(frames)
        sin, cos = _columns(phi, flat)
        norm = torch.sqrt(s * s + (1.0 - s) ** 2).repeat_interleave(frames).view(-1, 1, 1, 1).to(flat)
        x_vp = flat / norm
        v, cells = self._velocity(x_vp, phi, context.repeat_interleave(frames, 0), frames)
        flow = (sin * x_vp + cos * v) - (cos * x_vp - sin * v)
        return flow.unflatten(0, (-1, frames)).transpose(1, 2), cells

    def _velocity(self, x: Tensor, phi: Tensor, context: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """``Denoiser.velocity_and_cells`` of the frames ``[B F, 4, h, w]``, mixed over time on the way."""
        context = context.to(x.dtype)
        time = _features(4.0 * phi, 64, 64.0).to(x.dtype)
        place = positions(self.frame, frames).to(x.dtype).expand(len(x) // frames, -1, -1).flatten(0, 1)
        condition = F.silu(self.time_out(F.silu(self.time_in(time))) + self.pool(context.mean(1)) + place)
        h = self.stem(x)
        for block in self.down_blocks:
            h = block(h, condition)
        h = skip = self.before(h, frames)
        h = self.down(h)
        h = h + self._positions(h) + place[:, :, None, None]
        for block, mixer in zip(self.middle, self.over_time, strict=True):
            h = mixer(block(h, condition, context), frames)
        cells = h
        h = self.merge(torch.cat([F.pixel_shuffle(self.up(F.silu(h)), 2), skip], 1))
        h = self.after(h, frames)
        for block in self.up_blocks:
            h = block(h, condition)
        return self.out(F.silu(self.norm_out(h))), cells


def positions(place: Tensor, frames: int) -> Tensor:
    """Vectors ``[1, frames, width]`` of the frames: the trained ones, stretched for clips of another length."""
    if frames == place.shape[1]:
        return place
    return F.interpolate(place.float().transpose(1, 2), frames, mode="linear", align_corners=True).transpose(1, 2)
