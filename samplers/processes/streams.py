"""All randomness of a search, as a function of (seed, group, slot, step, purpose).

There is no other random source. A number therefore does not depend on how many particles there are, on chunking, on
the device, or on what was drawn before, and a single particle can be replayed alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

MOVE = "move"
"""Purpose of the noise of moves."""


class Streams:
    """Counter-based random streams, drawn on the CPU.

    Args:
        seed: base seed, any int in 0 .. 2**64 - 1.
        group_offset: added to every group number, so that images k, k+1, .. of a larger batch can be made on their own.
    """

    def __init__(self, seed: int, group_offset: int = 0):
        if not 0 <= int(seed) < 2**64:
            raise ValueError(f"seed is {seed}: it must lie in 0 .. 2**64 - 1")
        self.seed = int(seed)
        self.group_offset = int(group_offset)
        self._generator = torch.Generator(device="cpu")

    def _seeded(self, *key: int | str) -> torch.Generator:
        # A cryptographic hash keeps streams of neighbouring keys independent; torch's Mersenne twister is then
        # seeded with 63 bits (manual_seed rejects larger ints on some platforms).
        digest = hashlib.blake2b(repr((self.seed, *key)).encode(), digest_size=8).digest()
        return self._generator.manual_seed(int.from_bytes(digest, "little") >> 1)

    def normal(self, shape: Sequence[int], *, group: int, slot: int, step: int, purpose: str) -> Tensor:
        """Standard normal float32 tensor of ``shape`` on the CPU."""
        generator = self._seeded(int(group) + self.group_offset, int(slot), int(step), purpose)
        return torch.randn(tuple(shape), generator=generator)

    def normals(self, shape: Sequence[int], group: Tensor, slot: Tensor, *, step: int, purpose: str) -> Tensor:
        """Standard normals ``[n, *shape]``, row ``k`` from the stream of (``group[k]``, ``slot[k]``)."""
        rows = [
            self.normal(shape, group=g, slot=s, step=step, purpose=purpose)
            for g, s in zip(group.tolist(), slot.tolist(), strict=True)
        ]
        return torch.stack(rows) if rows else torch.empty((0, *shape))

    def uniform(self, n: int, *, group: int, step: int, purpose: str) -> Tensor:
        """``n`` uniforms in [0, 1), float64 on the CPU."""
        generator = self._seeded(int(group) + self.group_offset, -1, int(step), purpose)
        return torch.rand(n, generator=generator, dtype=torch.float64)

    def uniforms(self, count: int, group: Tensor, slot: Tensor, *, step: int, purpose: str) -> Tensor:
        """Uniforms in [0, 1) ``[n, count]``, float32 on the CPU, row ``k`` from the stream of its group and slot."""
        rows = [
            torch.rand(count, generator=self._seeded(g + self.group_offset, s, int(step), purpose))
            for g, s in zip(group.tolist(), slot.tolist(), strict=True)
        ]
        return torch.stack(rows) if rows else torch.empty((0, count))


class GivenMoves(Streams):
    """Streams whose next moves draw given noise: row k of what is asked for is row k of ``noise``.

    Args:
        streams: where everything else comes from. noise: ``[n, ...]`` of one move of n particles.
    """

    def __init__(self, streams: Streams, noise: Tensor):
        super().__init__(streams.seed, streams.group_offset)
        self._streams, self._noise = streams, noise

    def normal(self, shape: Sequence[int], *, group: int, slot: int, step: int, purpose: str) -> Tensor:
        """See ``Streams.normal``."""
        return self._streams.normal(shape, group=group, slot=slot, step=step, purpose=purpose)

    def normals(self, shape: Sequence[int], group: Tensor, slot: Tensor, *, step: int, purpose: str) -> Tensor:
        """See ``Streams.normals``. ValueError where a move is of other particles than those the noise is for."""
        if purpose != MOVE:
            return self._streams.normals(shape, group, slot, step=step, purpose=purpose)
        if len(group) != len(self._noise):
            raise ValueError(f"noise is for {len(self._noise)} particles: {len(group)} are moved")
        return self._noise

    def uniform(self, n: int, *, group: int, step: int, purpose: str) -> Tensor:
        """See ``Streams.uniform``."""
        return self._streams.uniform(n, group=group, step=step, purpose=purpose)
