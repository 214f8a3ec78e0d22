"""Autoencoder of the embedded family: 128x128 pixels <-> 16x16x4 latents (f8), fully convolutional.

Convolutions at full resolution are what hurts on a CPU, so space-to-depth by 4 comes first and depth-to-space last, and
nothing runs above 32x32.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

LATENT_CHANNELS = 4
DOWNSCALE = 8


class _ResBlock(nn.Module):
    def __init__(self, channels: int, operations):
        super().__init__()
        self.norm_in = operations.GroupNorm(8, channels)
        self.conv_in = operations.Conv2d(channels, channels, 3, padding=1)
        self.norm_out = operations.GroupNorm(8, channels)
        self.conv_out = operations.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm_out(self.conv_in(F.silu(self.norm_in(x))))
        return x + self.conv_out(F.silu(h))


class Autoencoder(nn.Module):
    """Deterministic autoencoder whose decoder was trained on noised latents, so that it forgives small errors.

    Args:
        fine, coarse, decoder: channels at 32x32 and 16x16 of the encoder, and at 32x32 of the decoder.
        operations: namespace with ``Conv2d`` and ``GroupNorm`` (hosts pass their own).
    """

    def __init__(self, fine: int = 64, coarse: int = 128, decoder: int = 96, operations=nn):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            operations.Conv2d(48, fine, 3, padding=1),
            _ResBlock(fine, operations),
            operations.Conv2d(fine, coarse, 2, stride=2),
            _ResBlock(coarse, operations),
            _ResBlock(coarse, operations),
            operations.Conv2d(coarse, LATENT_CHANNELS, 1),
        )
        self.decoder = nn.Sequential(
            operations.Conv2d(LATENT_CHANNELS, coarse, 3, padding=1),
            _ResBlock(coarse, operations),
            _ResBlock(coarse, operations),
            operations.Conv2d(coarse, 4 * decoder, 1),
            nn.PixelShuffle(2),
            _ResBlock(decoder, operations),
            _ResBlock(decoder, operations),
            operations.Conv2d(decoder, 48, 3, padding=1),
            nn.PixelShuffle(4),
        )

    def encode(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` in -1..1, sides multiples of 8 -> latents ``[B, 4, H/8, W/8]``."""
        if images.shape[-1] % DOWNSCALE or images.shape[-2] % DOWNSCALE:
            raise ValueError(f"image size is {tuple(images.shape[-2:])}: height and width must be multiples of 8")
        return self.encoder(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``[B, 4, h, w]`` -> images ``[B, 3, 8h, 8w]`` around -1..1 (not clamped)."""
        return self.decoder(latents)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct."""
        return self.decode(self.encode(images))
