"""The two that Refine by Edit works with: a critic that says what is missing, and an editor that changes an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from ..ledger import Ledger

Instruct = Callable[[Tensor, str, Sequence[str], Sequence[str]], str]
"""(image, prompt, failed items, instructions tried before) -> an instruction for the editor."""


class Critic(Protocol):
    """Says what an image should show, item by item, and whether it does."""

    name: str

    def checklist(self, prompt: str) -> list[str]:
        """1 to 12 things that can be seen or not, each a short statement."""
        ...

    def chances(self, images: Tensor, items: Sequence[str], again: bool = False) -> Tensor:
        """P(shown) float ``[n, C]`` of images ``[n, H, W, 3]``, NaN without an answer; ``again``: in other words."""
        ...


class Editor(Protocol):
    """Makes images, by an instruction out of another or anew.

    Attributes:
        name: for reports. starts_anew: whether ``fresh`` can be asked for.
    """

    name: str
    starts_anew: bool

    def edit(self, image: Tensor, instruction: str, seed: int, count: int, ledger: Ledger) -> Tensor:
        """``count`` images ``[K, H, W, 3]`` made of ``image [H, W, 3]``; counts its passes in ``ledger``."""
        ...

    def fresh(self, prompt: str, seed: int, count: int, ledger: Ledger) -> Tensor:
        """``count`` new images ``[K, H, W, 3]``."""
        ...


def plain_instruction(image: Tensor, prompt: str, failed: Sequence[str], tried: Sequence[str]) -> str:  # noqa: ARG001
    """Names what failed, and that the rest stays."""
    return f"Change the picture so that this is true: {'; '.join(failed)}. Keep everything else as it is."
