"""The denoiser of the embedded family: one network, three ways to read its output.

The trunk sees a variance-preserving state ``x_vp = cos(phi) x0 + sin(phi) eps`` and predicts the velocity
``v = cos(phi) eps - sin(phi) x0`` (Salimans & Ho 2022), where ``phi = atan(sigma)``. An eps-prediction model on SD's
schedule and a rectified flow are exact re-readings of the same network,

    eps = sin(phi) x_vp + cos(phi) v        x0 = cos(phi) x_vp - sin(phi) v        flow velocity = eps - x0

so the trunk is trained once and each model is fine-tuned on its own objective.

The body is a diffusion transformer (Peebles & Xie 2023) on 8x8 tokens with text cross-attention, between convolutional
blocks at 16x16, whose locality draws clean outlines.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attention

PARAMETERISATIONS = ("v", "eps", "flow")
BETA_START, BETA_END, TRAINING_STEPS = 0.00085, 0.012, 1000  # Stable Diffusion's scaled-linear schedule


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


class _Block(nn.Module):
    """Transformer block: self-attention and MLP under adaLN-zero, cross-attention to the text in between."""

    def __init__(self, width: int, heads: int, condition: int, context: int, operations, **kw):
        super().__init__()
        self.heads = heads
        self.modulation = operations.Linear(condition, 6 * width, **kw)
        self.norm_self = operations.LayerNorm(width, elementwise_affine=False, **kw)
        self.qkv = operations.Linear(width, 3 * width, **kw)
        self.out_self = operations.Linear(width, width, **kw)
        self.norm_cross = operations.LayerNorm(width, **kw)
        self.q = operations.Linear(width, width, **kw)
        self.kv = operations.Linear(context, 2 * width, **kw)
        self.out_cross = operations.Linear(width, width, **kw)
        self.norm_mlp = operations.LayerNorm(width, elementwise_affine=False, **kw)
        self.mlp_in = operations.Linear(width, 3 * width, **kw)
        self.mlp_out = operations.Linear(3 * width, width, **kw)

    def _heads(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        return x.view(b, n, self.heads, c // self.heads).transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mixed = attention(self._heads(q), self._heads(k), self._heads(v))
        return mixed.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, condition: Tensor, context: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition)[:, None].chunk(6, -1)
        h = self.norm_self(x) * (1 + scale_a) + shift_a
        x = x + gate_a * self.out_self(self._attend(*self.qkv(h).chunk(3, -1)))
        x = x + self.out_cross(self._attend(self.q(self.norm_cross(x)), *self.kv(context).chunk(2, -1)))
        h = self.norm_mlp(x) * (1 + scale_m) + shift_m
        return x + gate_m * self.mlp_out(F.gelu(self.mlp_in(h), approximate="tanh"))


class Denoiser(nn.Module):
    """Denoising network of the embedded family.

    Args:
        parameterisation: what ``forward`` takes and returns: "v" (x_vp, phi -> v), "eps" (x_vp, timestep 0..999 of SD's
            schedule -> eps) or "flow" (``(1 - s) x0 + s eps``, ``1000 s`` -> ``eps - x0``).
        width, depth, heads: of the transformer; channels: of the convolutions; context: size of text states.
        detail: further convolutional blocks beside the transformer, ``detail - 1`` before and ``detail`` after it.
        dtype, device: of the parameters.
        operations: namespace with ``Linear``, ``Conv2d``, ``LayerNorm``, ``GroupNorm`` (hosts pass their own).

    Further keyword arguments are ignored, because hosts pass model-independent ones.
    """

    def __init__(
        self,
        parameterisation: str = "v",
        width: int = 192,
        depth: int = 6,
        heads: int = 6,
        channels: int = 64,
        context: int = 192,
        detail: int = 3,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations=nn,
        **_,
    ):
        super().__init__()
        if parameterisation not in PARAMETERISATIONS:
            raise ValueError(f"parameterisation is {parameterisation!r}: choose one of {', '.join(PARAMETERISATIONS)}")
        kw = {"dtype": dtype, "device": device}
        self.parameterisation, self.dtype, self.width = parameterisation, dtype or torch.float32, width
        self.time_in = operations.Linear(64, width, **kw)
        self.time_out = operations.Linear(width, width, **kw)
        self.pool = operations.Linear(context, width, **kw)
        self.stem = operations.Conv2d(4, channels, 3, padding=1, **kw)
        self.down_block = _ResBlock(channels, width, operations, **kw)
        self.detail_in = nn.ModuleList(_ResBlock(channels, width, operations, **kw) for _ in range(detail - 1))
        self.down = operations.Conv2d(channels, width, 2, stride=2, **kw)
        self.blocks = nn.ModuleList(_Block(width, heads, width, context, operations, **kw) for _ in range(depth))
        self.norm_up = operations.LayerNorm(width, **kw)
        self.up = operations.Conv2d(width, 4 * channels, 1, **kw)
        self.merge = operations.Conv2d(2 * channels, channels, 1, **kw)
        self.up_blocks = nn.ModuleList(_ResBlock(channels, width, operations, **kw) for _ in range(2))
        self.detail_out = nn.ModuleList(_ResBlock(channels, width, operations, **kw) for _ in range(detail))
        self.norm_out = operations.GroupNorm(8, channels, **kw)
        self.out = operations.Conv2d(channels, 4, 3, padding=1, **kw)
        self.register_buffer("log_sigmas", log_sigma_table().float(), persistent=False)

    def initialise(self) -> Denoiser:
        """Zero the gates and the output, so that training starts from the identity (adaLN-zero)."""
        details = [block.conv_out for block in [*self.detail_in, *self.detail_out]]
        for module in [b.modulation for b in self.blocks] + [b.out_cross for b in self.blocks] + [self.out] + details:
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
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
        context = context.to(x.dtype)
        time = _features(4.0 * phi, 64, 64.0).to(x.dtype)
        condition = F.silu(self.time_out(F.silu(self.time_in(time))) + self.pool(context.mean(1)))
        skip = self.down_block(self.stem(x), condition)
        for block in self.detail_in:
            skip = block(skip, condition)
        h = self.down(skip)
        rows, columns = h.shape[-2:]
        tokens = h.flatten(2).transpose(1, 2) + self._positions(rows, columns, h)
        for block in self.blocks:
            tokens = block(tokens, condition, context)
        h = self.norm_up(tokens).transpose(1, 2).unflatten(2, (rows, columns))
        h = self.merge(torch.cat([F.pixel_shuffle(self.up(h), 2), skip], 1))
        for block in [*self.up_blocks, *self.detail_out]:
            h = block(h, condition)
        return self.out(F.silu(self.norm_out(h)))

    def _positions(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """Sine-cosine positions ``[1, rows * columns, width]`` in units of the trained 8x8 grid; any size works."""
        half = self.width // 2
        y = _features((torch.arange(rows, device=like.device) + 0.5) * (math.pi / 16), half, 16.0)
        x = _features((torch.arange(columns, device=like.device) + 0.5) * (math.pi / 16), half, 16.0)
        grid = torch.cat([y[:, None].expand(-1, columns, -1), x[None].expand(rows, -1, -1)], -1)
        return grid.reshape(1, rows * columns, self.width).to(like.dtype)

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
