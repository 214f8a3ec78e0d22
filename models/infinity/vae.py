"""Multi-scale binary spherical quantisation: Infinity's autoencoder (Han et al. 2024; Zhao et al. 2024 for BSQ)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bits import add_scale, bits_of, fold, scale_input
from .schedules import Grid, ScaleSchedule


@dataclass(frozen=True)
class VaeConfig:
    """Sizes of an autoencoder; the released ones differ in ``code_dim`` and ``multipliers`` only.

    Attributes:
        code_dim: channels d of the codes, one bit each.
        base: channels at full resolution.
        multipliers: channel factor per level; each level but the last halves the resolution.
        blocks: residual blocks per level of the encoder; the decoder has one more.
        groups: groups of the group norms.
    """

    code_dim: int = 32
    base: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
    blocks: int = 2
    groups: int = 32

    @property
    def stride(self) -> int:
        """Pixels along one side of a code."""
        return 2 ** (len(self.multipliers) - 1)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], groups: int = 32) -> VaeConfig:
        """Sizes of a checkpoint (our names, see ``loading.convert_vae``). KeyError if it is something else."""
        base = shapes["encoder.conv_in.weight"][0]
        levels = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.down."))
        blocks = 1 + max(int(name.split(".")[4]) for name in shapes if name.startswith("encoder.down.0.block."))
        widths = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
        code_dim = shapes["encoder.conv_out.weight"][0]
        return cls(code_dim, base, tuple(width // base for width in widths), blocks, groups)


RELEASED_VAES = {
    **{f"infinity_vae_d{d}": VaeConfig(d) for d in (16, 24, 32, 64)},
    "infinity_vae_d32reg": VaeConfig(32),
    "infinity_vae_d56_f8_14_patchify": VaeConfig(14, multipliers=(1, 2, 4, 4)),
}
"""Configurations of the published autoencoders. The 2B transformer needs d32reg, the 8B one d56_f8_14_patchify."""


class ResidualBlock(nn.Module):
    """Norm, swish, convolution, twice, around a shortcut."""

    def __init__(self, fan_in: int, fan_out: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, fan_in, eps=1e-6)
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, fan_out, eps=1e-6)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1)
        if fan_in != fan_out:
            self.nin_shortcut = nn.Conv2d(fan_in, fan_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, fan_in, h, w]`` -> ``[n, fan_out, h, w]``."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class _Level(nn.Module):
    """Residual blocks, then an optional change of resolution (module under the published name)."""

    def __init__(self, widths: Sequence[int], groups: int, change: dict[str, nn.Module]):
        super().__init__()
        pairs = itertools.pairwise(widths)
        self.block = nn.ModuleList(ResidualBlock(fan_in, fan_out, groups) for fan_in, fan_out in pairs)
        for name, module in change.items():
            self.add_module(name, module)


class _Middle(nn.Module):
    def __init__(self, width: int, groups: int):
        super().__init__()
        self.block_1 = ResidualBlock(width, width, groups)
        self.block_2 = ResidualBlock(width, width, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.block_1(x))


class Encoder(nn.Module):
    """Images ``[n, 3, H, W]`` in -1..1 -> codes before quantisation ``[n, d, H / stride, W / stride]``."""

    def __init__(self, config: VaeConfig):
        super().__init__()
        widths = [config.base * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(3, config.base, 3, padding=1)
        self.down = nn.ModuleList()
        fan_in = config.base
        for level, width in enumerate(widths):
            change = {} if level == len(widths) - 1 else {"downsample": nn.Conv2d(width, width, 3, stride=2)}
            self.down.append(_Level([fan_in, *[width] * config.blocks], config.groups, change))
            fan_in = width
        self.mid = _Middle(fan_in, config.groups)
        self.norm_out = nn.GroupNorm(config.groups, fan_in, eps=1e-6)
        self.conv_out = nn.Conv2d(fan_in, config.code_dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[n, 3, H, W]`` -> continuous codes ``[n, code_dim, h, w]``."""
        h = self.conv_in(x)
        for level in self.down:
            for block in level.block:
                h = block(h)
            if hasattr(level, "downsample"):
                h = level.downsample(F.pad(h, (0, 1, 0, 1)))  # at the right and bottom only, as it was trained
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Summed codes ``[n, d, h, w]`` -> images ``[n, 3, stride h, stride w]``, about -1..1."""

    def __init__(self, config: VaeConfig):
        super().__init__()
        widths = [config.base * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(config.code_dim, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1], config.groups)
        levels = []
        fan_in = widths[-1]
        for level in reversed(range(len(widths))):
            width = widths[level]
            change = {"upsample": nn.Conv2d(width, width, 3, padding=1)} if level else {}
            levels.append(_Level([fan_in, *[width] * (config.blocks + 1)], config.groups, change))
            fan_in = width
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = nn.GroupNorm(config.groups, fan_in, eps=1e-6)
        self.conv_out = nn.Conv2d(fan_in, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Codes ``[n, code_dim, h, w]`` -> images ``[n, 3, H, W]``."""
        h = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            for block in level.block:
                h = block(h)
            if hasattr(level, "upsample"):
                h = level.upsample(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(h)))


class BSQVae(nn.Module):
    """Images to bits on a pyramid of grids and back. The parameters carry the published names."""

    def __init__(self, config: VaeConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @torch.no_grad()
    def encode(self, images: Tensor, schedule: ScaleSchedule, factor: int = 1) -> tuple[list[Tensor], Tensor]:
        """Bits of images, scale by scale.

        Args:
            images: ``[n, H, W, 3]`` in 0..1, H and W the stride times the last grid (times ``factor``).
            schedule: grids in tokens.
            factor: codes along one side of a token.

        Returns:
            (bits uint8 ``[n, h w, bits]`` per scale, ``F`` ``[n, d, ...]`` that the decoder takes).
        """
        grid = tuple(factor * side for side in schedule.grids[-1])
        expected = tuple(side * self.config.stride for side in grid)
        if tuple(images.shape[1:3]) != expected:
            raise ValueError(f"images are {tuple(images.shape[1:3])} pixels: this schedule needs {expected}")
        weight = self.encoder.conv_in.weight
        z = self.encoder(images.to(weight).permute(0, 3, 1, 2) * 2 - 1).float()
        total = torch.zeros_like(z)
        bits = []
        for grid in schedule.grids:
            own, total = quantize_scale(z, total, grid, factor)
            bits.append(own)
        return bits, total

    def decode(self, total: Tensor) -> Tensor:
        """``F`` ``[n, d, h, w]`` -> images float32 ``[n, H, W, 3]`` in 0..1."""
        y = self.decoder(total.to(self.decoder.conv_in.weight))
        return (y.float().clamp(-1, 1).permute(0, 2, 3, 1) + 1) / 2


def quantize_scale(
    z: Tensor, total: Tensor, grid: Grid, factor: int = 1, corrupt: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """One scale of residual quantisation.

    Args:
        z: what to code, ``[n, d, H, W]``.
        total: what is coded so far.
        grid: of the scale, in tokens.
        factor: codes along one side of a token.
        corrupt: optional change of the bits before they are added (bitwise self-correction in training).

    Returns:
        (true bits uint8 ``[n, h w, bits]``, the new total). Every code has length 1 at every scale: step sizes do
        not shrink, coarse scales are only averaged over a larger area.
    """
    size = (factor * grid[0], factor * grid[1])
    residual = z - total
    if tuple(residual.shape[-2:]) != size:
        residual = F.interpolate(residual, size=size, mode="area")
    bits = fold(bits_of(residual).to(torch.uint8).float(), factor).flatten(2).transpose(1, 2).to(torch.uint8)
    added = bits if corrupt is None else corrupt(bits)
    return bits, add_scale(total, added, grid, factor)


def teacher_inputs(
    z: Tensor, schedule: ScaleSchedule, factor: int = 1, corrupt: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Inputs of scales 1 .. K - 1 ``[n, S - 1, bits]`` and target bits uint8 ``[n, S, bits]`` for training.

    With ``corrupt`` the inputs carry mistakes that later targets make up for (Han et al. 2024, section 3.3).
    """
    total = torch.zeros_like(z)
    inputs, targets = [], []
    for scale, grid in enumerate(schedule.grids):
        bits, total = quantize_scale(z, total, grid, factor, corrupt)
        targets.append(bits)
        if scale + 1 < len(schedule):
            inputs.append(scale_input(total, schedule.grids[scale + 1], factor))
    return torch.cat(inputs, 1), torch.cat(targets, 1)
