"""Two decoders of the same latents: a quick one for looks on the way, the full one for what is handed out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ..protocols import Process


class TwoDecoders:
    """A ``Decode`` that asks the full decoder where ``final`` is set, else the quick one.

    Args:
        full, quick: latents ``[n, ...]`` in the model's scale -> images ``[n, H, W, 3]`` around 0..1. Only ``full`` is
            ever differentiated.
    """

    def __init__(self, full: Callable[[Tensor], Tensor], quick: Callable[[Tensor], Tensor]):
        self.full, self.quick = full, quick
        self.final = True

    def __call__(self, x0: Tensor) -> Tensor:
        """See ``Decode``."""
        return (self.full if self.final else self.quick)(x0)


class CheapLooks:
    """Whether looks on the way go through the quick decoder. One object for all variants of a process.

    Attributes:
        trusted: until its scores were seen to rank candidates otherwise than those of the full decoder.
        paused: whether the full decoder is wanted for now, whatever the step.
    """

    def __init__(self):
        self.trusted, self.paused = True, False

    @property
    def on(self) -> bool:
        """Whether an unfinished candidate is decoded quickly now."""
        return self.trusted and not self.paused


@contextmanager
def in_full(process: Process) -> Iterator[None]:
    """Previews of ``process`` go through the full decoder inside."""
    looks = process.cheap_looks
    if looks is None:
        yield
        return
    before, looks.paused = looks.paused, True
    try:
        yield
    finally:
        looks.paused = before
