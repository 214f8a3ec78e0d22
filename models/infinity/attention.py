"""Attention of Infinity's blocks and its key-value cache.

The cache belongs to a population of particles, never to the network, so that interrupting a run leaks nothing and
two populations can share one network. Its rows are ``[particle, branch]``: the branches (with and without text, or
one) of a particle lie next to each other, so that selecting particles and cutting a population into chunks are both
operations on the first axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rope import rotate

MAX_SCALE = math.log(100.0)


class _Buffer:
    """Storage of a cache: keys and values ``[depth, 2, n, branches, heads, capacity, head_dim]`` and how much is used.

    ``used`` is the high-water mark of all caches that share this buffer. A cache whose own length is below it was
    continued by someone else already, and must copy before it writes (as with slices in Go).
    """

    def __init__(self, layers: list[Tensor], used: int):
        self.layers, self.used = layers, used

    @property
    def capacity(self) -> int:
        return self.layers[0].shape[-2]


@dataclass(frozen=True)
class KVCache:
    """Keys and values of the scales drawn so far, for a population. Immutable: ``select`` and ``grow`` make new ones.

    ``select`` only notes the rows. They are gathered by the next ``grow``, which allocates anyway; a cache that has
    room and is not reordered is continued in place, without any copy.

    Attributes:
        n: particles.
        length: tokens that are cached.
    """

    n: int
    length: int = 0
    buffer: _Buffer | None = None
    rows: Tensor | None = None

    def select(self, index: Tensor) -> KVCache:
        """Particles ``index`` int64 ``[m]``, duplicates allowed. No copy."""
        index = index.cpu()
        if len(index) == self.n and torch.equal(index, torch.arange(self.n)):
            return self
        return replace(self, n=len(index), rows=index if self.rows is None else self.rows[index])

    def grow(self, tokens: int, capacity: int, layout: CacheLayout) -> KVCache:
        """A cache with ``tokens`` more places per particle; their contents are written by ``KVLayer.append``.

        Args:
            tokens: L new tokens.
            capacity: places to allocate if anything must be allocated, >= length + tokens.
        """
        total = self.length + tokens
        old = self.buffer
        if old is not None and self.rows is None and old.used == self.length and total <= old.capacity:
            old.used = total
            return replace(self, length=total)
        capacity = max(capacity, total)
        shape = (2, self.n, layout.branches, layout.heads, capacity, layout.head_dim)
        layers = []
        for layer in range(layout.depth):
            fresh = torch.empty(shape, dtype=layout.dtype, device=layout.device)
            if old is not None:
                kept = old.layers[layer][..., : self.length, :]
                if self.rows is not None:
                    kept = kept.index_select(1, self.rows.to(kept.device))
                fresh[..., : self.length, :] = kept
            layers.append(fresh)
        return KVCache(self.n, total, _Buffer(layers, total))

    def chunk(self, rows: slice, start: int) -> KVSlice:
        """Particles ``rows`` of a grown cache, to be written from token ``start`` on."""
        return KVSlice([layer[:, rows] for layer in self.buffer.layers], start, self.length)

    def frozen(self, rows: slice) -> KVSlice:
        """Particles ``rows`` to be read but not written: the last scale is attended to and then forgotten."""
        if self.buffer is None:
            return KVSlice([], 0, 0)
        if self.rows is not None:
            return KVSlice(self.buffer.layers, self.length, self.length, self.rows[rows])
        return KVSlice([layer[:, rows] for layer in self.buffer.layers], self.length, self.length)

    def bytes(self) -> int:
        """Size of the storage, shared or not."""
        return 0 if self.buffer is None else sum(layer.numel() * layer.element_size() for layer in self.buffer.layers)


@dataclass(frozen=True)
class CacheLayout:
    """What a cache's storage looks like: see ``_Buffer``."""

    depth: int
    branches: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class KVSlice:
    """A chunk of a cache during one forward pass.

    Attributes:
        layers: per layer ``[2, n, branches, heads, capacity, head_dim]``.
        start, stop: new tokens are written to ``start:stop``; with ``start == stop`` they are not kept.
        rows: particles of ``layers`` that are meant, or None for all; only where nothing is written.
    """

    layers: list[Tensor]
    start: int
    stop: int
    rows: Tensor | None = None

    def layer(self, index: int) -> KVLayer | None:
        """One layer's part, None where nothing is kept and nothing was."""
        return KVLayer(self.layers[index], self.start, self.stop, self.rows) if self.layers else None


@dataclass(frozen=True)
class KVLayer:
    """One layer of a ``KVSlice``; the same type for every layer, so that a compiled block serves them all.

    Attributes:
        stored: ``[2, n, branches, heads, capacity, head_dim]``.
        start, stop, rows: see ``KVSlice``.
    """

    stored: Tensor
    start: int
    stop: int
    rows: Tensor | None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[rows, heads, L, head_dim]`` of new tokens -> those of all tokens so far."""
        stored = self.stored
        if self.rows is not None:  # one layer at a time, so that no second copy of the whole cache comes to be
            stored = stored[..., : self.start, :].index_select(1, self.rows.to(stored.device))
        stored = stored.flatten(1, 2)
        if self.stop > self.start:
            stored[0, :, :, self.start : self.stop] = key
            stored[1, :, :, self.start : self.stop] = value
            return stored[0, :, :, : self.stop], stored[1, :, :, : self.stop]
        past = stored[..., : self.start, :]
        return torch.cat([past[0], key.to(past)], 2), torch.cat([past[1], value.to(past)], 2)


class SelfAttention(nn.Module):
    """Cosine attention: unit keys, unit queries times a learned scale per head, then rotary embedding."""

    def __init__(self, width: int, heads: int, linear: type[nn.Linear] = nn.Linear):
        super().__init__()
        self.heads = heads
        self.log_scale = nn.Parameter(torch.full((heads,), math.log(4.0)))
        self.qkv = linear(width, 3 * width)
        self.out = linear(width, width)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: KVLayer | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """``x`` ``[R, L, C]`` attends to itself and to the cache.

        Args:
            rotary: cosines and sines ``[L, head_dim / 2]``, float32.
            cache: where this layer's keys and values of earlier scales lie and those of this one go, or None.
            mask: bool ``[L, L]`` for a pass over several scales at once.
        """
        rows, length, width = x.shape
        query, key, value = self.qkv(x).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scale = self.log_scale.float().clamp(max=MAX_SCALE).exp()[:, None, None]
        cos, sin = rotary
        query = rotate(F.normalize(query.float(), dim=-1, eps=1e-12), cos * scale, sin * scale).to(value)
        key = rotate(F.normalize(key.float(), dim=-1, eps=1e-12), cos, sin).to(value)
        if cache is not None:
            key, value = cache.append(key, value)
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
        return self.out(heads.transpose(1, 2).reshape(rows, length, width))


class CrossAttention(nn.Module):
    """Attention to the text, whose keys and values are computed once per prompt (``project``)."""

    def __init__(self, width: int, heads: int, linear: type[nn.Linear] = nn.Linear):
        super().__init__()
        self.heads = heads
        self.query = linear(width, width)
        self.key_value = linear(width, 2 * width)
        self.out = linear(width, width)

    def project(self, context: Tensor) -> Tensor:
        """Context ``[R, T, C]`` -> keys and values ``[R, 2, heads, T, head_dim]``."""
        rows, length, _ = context.shape
        return self.key_value(context).view(rows, length, 2, self.heads, -1).permute(0, 2, 3, 1, 4).contiguous()

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        """``x`` ``[R, L, C]`` and projected text ``[R, 2, heads, T, head_dim]``, bool mask ``[R, 1, 1, T]`` or None."""
        rows, length, width = x.shape
        query = self.query(x).view(rows, length, self.heads, -1).transpose(1, 2)
        heads = F.scaled_dot_product_attention(query, text[:, 0], text[:, 1], attn_mask=mask)
        return self.out(heads.transpose(1, 2).reshape(rows, length, width))
