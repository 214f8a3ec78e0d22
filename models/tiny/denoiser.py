"""The denoiser of the embedded family: one network, three ways to read its output.

The trunk sees a variance-preserving state ``x_vp = cos(phi) x0 + sin(phi) eps`` and predicts the velocity
``v = cos(phi) eps - sin(phi) x0`` (Salimans & Ho 2022), where ``phi = atan(sigma)``. An eps-prediction model on SD's
schedule and a rectified flow are exact re-readings of the same network,

    eps = sin(phi) x_vp + cos(phi) v        x0 = cos(phi) x_vp - sin(phi) v        flow velocity = eps - x0

so the trunk is trained once and each model is fine-tuned on its own objective.

The body is a small U-Net: convolutions at the latents' own resolution and, at half of it, convolutions in turn with
self-attention and cross-attention to the text. A shape is local evidence summed over a few cells of a noisy latent,
which is what convolutions do: a diffusion transformer of the same size needed six times as many training steps for the
same loss, and drew half as many shapes right.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attention

PARAMETERISATIONS = ("v", "eps", "flow")
BETA_START, BETA_END, TRAINING_STEPS = 0.00085, 0.012, 1000  # Stable Diffusion's scaled-linear schedule
_GRID = 8  # cells a side at half resolution, of the 128 x 128 pictures that were trained


def log_sigma_table() -> Tensor:
    """``log sigma`` of SD's training timesteps 0..999, float64 ``[1000]``."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAINING_STEPS, dtype=torch.float64) ** 2
    abar = torch.cumprod(1.0 - betas, 0)
    return 0.5 * ((1.0 - abar) / abar).log()


def _features(value: Tensor, size: int, highest: float) -> Tensor:
    """Sines and cosines ``[..., size]`` of ``value`` at ``size / 2`` frequencies from 1 to ``highest``."""
    exponents = torch.linspace(0, 1, size // 2, device=value.device, dtype=torch.float32)
    angles = value.float()[..., None] * highest**exponents
    return torch.cat([angles.sin(), angles.cos()], -1)


class _ResBlock(nn.Module):
    """Convolutional residual block, modulated by the conditioning vector."""

    def __init__(self, channels: int, condition: int, operations, **kw):
        super().__init__()
        self.norm_in = operations.GroupNorm(8, channels, **kw)
        self.conv_in = operations.Conv2d(channels, channels, 3, padding=1, **kw)
        self.modulation = operations.Linear(condition, 2 * channels, **kw)
        self.norm_out = operations.GroupNorm(8, channels, **kw)
        self.conv_out = operations.Conv2d(channels, channels, 3, padding=1, **kw)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, 1)
        h = self.norm_out(self.conv_in(F.silu(self.norm_in(x)))) * (1 + scale) + shift
        return x + self.conv_out(F.silu(h))


class _Attention(nn.Module):
    """Self-attention over the cells, then cross-attention to the text, both residual."""

    def __init__(self, width: int, heads: int, context: int, operations, **kw):
        super().__init__()
        self.heads = heads
        self.norm_self = operations.GroupNorm(8, width, **kw)
        self.qkv = operations.Linear(width, 3 * width, **kw)
        self.out_self = operations.Linear(width, width, **kw)
        self.norm_cross = operations.LayerNorm(width, **kw)
        self.q = operations.Linear(width, width, **kw)
        self.kv = operations.Linear(context, 2 * width, **kw)
        self.out_cross = operations.Linear(width, width, **kw)

    def _heads(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        return x.view(b, n, self.heads, c // self.heads).transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(self._heads(q), self._heads(k), self._heads(v)).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        rows, columns = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2)
        normed = self.norm_self(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.out_self(self._attend(*self.qkv(normed).chunk(3, -1)))
        tokens = tokens + self.out_cross(self._attend(self.q(self.norm_cross(tokens)), *self.kv(context).chunk(2, -1)))
        return tokens.transpose(1, 2).unflatten(2, (rows, columns))


class _MiddleBlock(nn.Module):
    """Convolutions, then attention."""

    def __init__(self, width: int, heads: int, context: int, operations, **kw):
        super().__init__()
        self.convolutions = _ResBlock(width, width, operations, **kw)
        self.attention = _Attention(width, heads, context, operations, **kw)

    def forward(self, x: Tensor, condition: Tensor, context: Tensor) -> Tensor:
        return self.attention(self.convolutions(x, condition), context)


class Denoiser(nn.Module):
    """Denoising network of the embedded family.

    Args:
        parameterisation: what ``forward`` takes and returns: "v" (x_vp, phi -> v), "eps" (x_vp, timestep 0..999 of SD's
            schedule -> eps) or "flow" (``(1 - s) x0 + s eps``, ``1000 s`` -> ``eps - x0``).
        channels, width: at the latents' resolution and at half of it.
        heads, context: of the attention; size of the text states.
        down, middle, up: number of blocks before, at and after the half resolution.
        dtype, device: of the parameters.
        operations: namespace with ``Linear``, ``Conv2d``, ``LayerNorm``, ``GroupNorm`` (hosts pass their own).

    Further keyword arguments are ignored, because hosts pass model-independent ones.
    """

    def __init__(
        self,
        parameterisation: str = "v",
        channels: int = 96,
        width: int = 192,
        heads: int = 6,
        context: int = 192,
        down: int = 2,
        middle: int = 4,
        up: int = 3,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations=nn,
        **_,
    ):
        super().__init__()
        if parameterisation not in PARAMETERISATIONS:
            raise ValueError(f"parameterisation is {parameterisation!r}: choose one of {', '.join(PARAMETERISATIONS)}")
        kw = {"dtype": dtype, "device": device}
        self.parameterisation, self.dtype = parameterisation, dtype or torch.float32
        self.time_in = operations.Linear(64, width, **kw)
        self.time_out = operations.Linear(width, width, **kw)
        self.pool = operations.Linear(context, width, **kw)
        self.stem = operations.Conv2d(4, channels, 3, padding=1, **kw)
        self.down_blocks = nn.ModuleList(_ResBlock(channels, width, operations, **kw) for _ in range(down))
        self.down = operations.Conv2d(channels, width, 2, stride=2, **kw)
        self.position = nn.Parameter(torch.zeros(1, width, _GRID, _GRID, **kw))
        self.middle = nn.ModuleList(_MiddleBlock(width, heads, context, operations, **kw) for _ in range(middle))
        self.up = operations.Conv2d(width, 4 * channels, 1, **kw)
        self.merge = operations.Conv2d(2 * channels, channels, 1, **kw)
        self.up_blocks = nn.ModuleList(_ResBlock(channels, width, operations, **kw) for _ in range(up))
        self.norm_out = operations.GroupNorm(8, channels, **kw)
        self.out = operations.Conv2d(channels, 4, 3, padding=1, **kw)
        self.register_buffer("log_sigmas", log_sigma_table().float(), persistent=False)

    def initialise(self) -> Denoiser:
        """Zero what closes a residual branch, so that training starts from the identity."""
        attentions = [block.attention for block in self.middle]
        convolutions = [block.convolutions for block in self.middle]
        blocks = [*self.down_blocks, *convolutions, *self.up_blocks]
        closing = [b.conv_out for b in blocks] + [b.modulation for b in blocks] + [self.out]
        for module in closing + [a.out_self for a in attentions] + [a.out_cross for a in attentions]:
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        nn.init.normal_(self.position, std=0.02)
        return self

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, **_) -> Tensor:
        """Predict in the model's own parameterisation.

        Args:
            x: ``[B, 4, h, w]``, h and w even; timesteps: ``[B]``; context: ``[B, L, context]`` text states.
        """
        if x.shape[-1] % 2 or x.shape[-2] % 2:
            raise ValueError(f"latent size is {tuple(x.shape[-2:])}: both must be even (16 pixels each)")
        if self.parameterisation == "v":
            return self.velocity(x, timesteps, context)
        if self.parameterisation == "eps":
            phi = self._angle_of_timestep(timesteps)
            sin, cos = _columns(phi, x)
            return sin * x + cos * self.velocity(x, phi, context)
        s = timesteps.float() / 1000.0
        phi = torch.atan2(s, 1.0 - s)
        sin, cos = _columns(phi, x)
        norm = torch.sqrt(s * s + (1.0 - s) ** 2).view(-1, 1, 1, 1).to(x)
        x_vp = x / norm
        v = self.velocity(x_vp, phi, context)
        return (sin * x_vp + cos * v) - (cos * x_vp - sin * v)

    def velocity(self, x: Tensor, phi: Tensor, context: Tensor) -> Tensor:
        """The trunk: variance-preserving ``x`` ``[B, 4, h, w]`` at angle ``phi`` ``[B]`` in 0..pi/2 -> v."""
        return self.velocity_and_cells(x, phi, context)[0]

    def velocity_and_cells(self, x: Tensor, phi: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """As ``velocity``, and what the last block at half resolution holds, ``[B, width, h / 2, w / 2]``.

        Training reads from it which object covers a cell (``train/cells.py``).
        """
        context = context.to(x.dtype)
        time = _features(4.0 * phi, 64, 64.0).to(x.dtype)
        condition = F.silu(self.time_out(F.silu(self.time_in(time))) + self.pool(context.mean(1)))
        h = self.stem(x)
        for block in self.down_blocks:
            h = block(h, condition)
        skip = h
        h = self.down(h)
        h = h + self._positions(h)
        for block in self.middle:
            h = block(h, condition, context)
        cells = h
        h = self.merge(torch.cat([F.pixel_shuffle(self.up(F.silu(h)), 2), skip], 1))
        for block in self.up_blocks:
            h = block(h, condition)
        return self.out(F.silu(self.norm_out(h))), cells

    def _positions(self, h: Tensor) -> Tensor:
        """Position vectors for the cells of ``h``: the trained 8x8 grid, stretched where the picture is larger."""
        position = self.position.to(h)
        if h.shape[-2:] == position.shape[-2:]:
            return position
        return F.interpolate(position.float(), h.shape[-2:], mode="bilinear", align_corners=False).to(h)

    def _angle_of_timestep(self, timesteps: Tensor) -> Tensor:
        """``atan(sigma)`` at fractional timesteps, log-linear between the schedule's entries."""
        t = timesteps.float().clamp(0, TRAINING_STEPS - 1)
        low = t.floor().long()
        weight = t - low
        table = self.log_sigmas.to(t.device)
        log_sigma = (1 - weight) * table[low] + weight * table[(low + 1).clamp(max=TRAINING_STEPS - 1)]
        return torch.atan(log_sigma.exp())


def _columns(phi: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """(sin, cos) of ``phi`` ``[B]`` as ``[B, 1, 1, 1]``."""
    return phi.sin().view(-1, 1, 1, 1).to(like), phi.cos().view(-1, 1, 1, 1).to(like)
