"""What a next-scale process carries: its population between two scales, and the decoder that shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from ...samplers.state import State
from .attention import KVCache
from .vae import VaeConfig

# F [n, d, h, w] -> images [n, H, W, 3] around 0..1 (the process clamps)
Decode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ScaleState(State):
    """A population between two scales: ``x`` is F ``[n, d, H, W]``, ``step`` the scale that comes next.

    Attributes:
        cache: keys and values of the scales so far, particles in the order of ``x``.
    """

    cache: KVCache = field(default_factory=lambda: KVCache(0))

    def select(self, index: Tensor, slot: Tensor | None = None) -> ScaleState:
        """Reindex particles; the cache only notes it (see ``KVCache.select``)."""
        return replace(super().select(index, slot), cache=self.cache.select(index))


@dataclass(frozen=True)
class Decoder:
    """The decoder and what it costs.

    Attributes:
        decode: F ``[n, d, h, w]`` at any size -> images.
        config: its sizes, for the ledger; None if unknown.
        preview_side: codes along the longer side that unfinished images are decoded at, 0 for the full size. Verifiers
            look at 224 pixels or less, so that a quarter of the side costs a sixteenth and rarely changes a ranking.
    """

    decode: Decode
    config: VaeConfig | None = None
    preview_side: int = 0
