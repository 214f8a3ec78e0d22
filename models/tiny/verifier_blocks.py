"""Building blocks of the two small verifier networks: image stem, text embedding, transformer block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .attention import attention
from .vocabulary import CONTEXT_LENGTH, PAD, VOCABULARY_SIZE

IMAGE_SIZE = 128
"""Pixels the networks see; images of other sizes are resized."""

GRID = 8
"""Image tokens per side."""


def prepare_images(images: torch.Tensor) -> torch.Tensor:
    """Check images and bring them to [B, 3, 128, 128], centred around zero.

    Args:
        images: float [B, 3, H, W] in 0..1, any H and W; resized with antialiasing, differentiably.

    Raises:
        ValueError: another shape, or an integer type.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape [B, 3, H, W], got {list(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images must be floating point in 0..1, got {images.dtype}")
    if images.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
        images = F.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True, align_corners=False)
    return (images - 0.5) * 4.0


def check_tokens(tokens: torch.Tensor) -> torch.Tensor:
    """Raise ValueError unless `tokens` are integers of shape [B, 16] inside the embedding table."""
    if tokens.ndim != 2 or tokens.shape[1] != CONTEXT_LENGTH or tokens.is_floating_point():
        raise ValueError(f"tokens must be integers [B, {CONTEXT_LENGTH}], got {tokens.dtype} {list(tokens.shape)}")
    return tokens


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [B, C, H, W], pixel by pixel: no statistics that a blurred batch could shift."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvBlock(nn.Module):
    """Pre-norm residual block of two 3x3 convolutions."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> same shape."""
        return x + self.conv2(F.gelu(self.conv1(self.norm(x)), approximate="tanh"))


class ImageStem(nn.Module):
    """Convolutions from pixels to an 8x8 grid of tokens. Space-to-depth by 4 keeps them at 32x32 and below."""

    def __init__(self, width: int, blocks: int = 2, channels: tuple[int, int] = (64, 96)):
        super().__init__()
        self.stem = nn.Conv2d(48, channels[0], 3, padding=1)
        self.norm1 = ChannelNorm(channels[0])
        self.down1 = nn.Conv2d(channels[0], channels[1], 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(ConvBlock(channels[1]) for _ in range(blocks)))
        self.norm2 = ChannelNorm(channels[1])
        self.down2 = nn.Conv2d(channels[1], width, 3, stride=2, padding=1)
        self.position = nn.Parameter(torch.randn(1, GRID * GRID, width) * 0.02)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """float [B, 3, H, W] in 0..1 -> tokens [B, 64, width]."""
        x = F.pixel_unshuffle(prepare_images(images), 4).contiguous(memory_format=torch.channels_last)
        x = F.gelu(self.norm1(self.stem(x)), approximate="tanh")
        x = self.norm2(self.blocks(self.down1(x)))
        return self.down2(x).flatten(2).transpose(1, 2) + self.position


class TextEmbedding(nn.Module):
    """Word and position embeddings, and a convolution over neighbouring words.

    Which adjective belongs to which noun is a matter of neighbourhood. Attention has to discover that from absolute
    positions, which takes it thousands of steps (until then it reads a bag of words); the convolution has it built in.
    """

    REACH = 2  # words to either side

    def __init__(self, width: int):
        super().__init__()
        self.words = nn.Embedding(VOCABULARY_SIZE, width)
        self.position = nn.Parameter(torch.randn(1, CONTEXT_LENGTH, width) * 0.02)
        self.near = nn.Conv1d(width, width, 2 * self.REACH + 1, padding=self.REACH)
        nn.init.normal_(self.words.weight, std=0.1)
        nn.init.zeros_(self.near.weight)
        nn.init.zeros_(self.near.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """LongTensor [B, 16] -> [B, 16, width]."""
        x = self.words(check_tokens(tokens)) + self.position
        return x + self.near(x.transpose(1, 2)).transpose(1, 2)


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, width: int, heads: int, expansion: int = 3):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, expansion * width), nn.GELU(approximate="tanh"), nn.Linear(expansion * width, width)
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """[B, T, width] -> same shape; `mask` is bool [B, 1, 1, T], False where a token must not be attended to."""
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = attention(q, k, v, mask)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))


class AttentionPool(nn.Module):
    """Summarise tokens by a few learned queries, concatenated and projected."""

    def __init__(self, width: int, queries: int, out: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(1, queries, width) * width**-0.5)
        self.kv = nn.Linear(width, 2 * width)
        self.project = nn.Linear(queries * width, out)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """[B, T, width] -> [B, out]; `mask` as in `TransformerBlock`."""
        batch, length, width = x.shape
        k, v = self.kv(self.norm(x)).view(batch, length, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        q = self.queries.view(1, -1, self.heads, width // self.heads).transpose(1, 2).expand(batch, -1, -1, -1)
        pooled = attention(q.to(k.dtype), k, v, mask)
        return self.project(pooled.transpose(1, 2).reshape(batch, -1))


class Mix(nn.Module):
    """Residual MLP on pooled vectors.

    Pooling alone adds up what was found; "the star is the left one" is a conjunction and needs one more non-linearity.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.widen, self.narrow = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, dim] -> same shape."""
        return x + self.narrow(F.gelu(self.widen(self.norm(x)), approximate="tanh"))


def padding_mask(tokens: torch.Tensor, before: int = 0) -> torch.Tensor:
    """bool [B, 1, 1, before + 16]: True for `before` leading tokens, the first word and all that is no padding."""
    keep = tokens != PAD
    keep = torch.cat([torch.ones_like(keep[:, :1]), keep[:, 1:]], dim=1)  # an empty caption sees one padding token
    return F.pad(keep, (before, 0), value=True)[:, None, None]
