"""Text encoder of the embedded generators: sixteen word tokens -> context states."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import attention
from .vocabulary import CONTEXT_LENGTH, VOCABULARY_SIZE


class _Layer(nn.Module):
    """Pre-norm transformer layer without masking: padding is a word like any other to the model."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(approximate="tanh"), nn.Linear(3 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.out(attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return x + self.mlp(self.norm_mlp(x))


class TextEncoder(nn.Module):
    """Small transformer over word tokens, trained together with the generators' common trunk.

    Args:
        width: size of the context states.
        depth, heads: layers and attention heads.
        reach: words to either side that a convolution before the first layer takes in, 0 for no convolution. Which
            adjective and which side of "left of" belong to a noun is a matter of neighbourhood, which attention has to
            discover from absolute positions; the convolution has it built in.
    """

    def __init__(self, width: int = 192, depth: int = 3, heads: int = 6, reach: int = 0):
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(VOCABULARY_SIZE, width)
        self.position = nn.Parameter(0.02 * torch.randn(CONTEXT_LENGTH, width))
        self.near = nn.Conv1d(width, width, 2 * reach + 1, padding=reach) if reach else None
        if self.near is not None:  # starts as nothing, so that weights without it can be trained on
            nn.init.zeros_(self.near.weight)
            nn.init.zeros_(self.near.bias)
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """int64 tokens ``[B, 16]`` -> (context ``[B, 16, width]``, pooled mean ``[B, width]``)."""
        x = self.embedding(tokens) + self.position
        if self.near is not None:
            x = x + self.near(x.transpose(1, 2)).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        context = self.norm(x)
        return context, context.mean(1)
