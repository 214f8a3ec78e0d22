"""``Denoise``: what a process asks its model for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from ..protocols import SearchError


class Denoised(NamedTuple):
    """What a model said, and what it cost.

    Attributes:
        x0: ``[n, ...]`` clean estimates.
        nfe: forward passes made: rows times conditional branches, less what rows could share.
    """

    x0: Tensor
    nfe: int


class Denoise(Protocol):
    """``(x [n, ...], sigma, group int64 [n], prompts) -> Denoised``: the model with its guidance and conditioning.

    ``group`` says whose conditioning each row uses. ``prompts`` is a text per row (None for the group's own), or None
    where nothing was re-prompted.

    Attributes:
        can_encode: whether ``encode`` can prepare prompts.
    """

    can_encode: bool

    @property
    def nfe_per_call(self) -> int:
        """Forward passes that one row costs at most: 2 under classifier-free guidance, else 1."""
        ...

    def __call__(self, x: Tensor, sigma: float, group: Tensor, prompts: Sequence[str | None] | None = None) -> Denoised:
        """Clean estimates ``[n, ...]`` of states ``x`` at ``sigma``, and what they cost."""
        ...

    def encode(self, texts: Sequence[str]) -> None:
        """Prepare prompts, all in one go, only where ``can_encode``."""
        ...

    def prompt_embedding(self, group: Tensor) -> Tensor | None:
        """One vector ``[n, W]`` for the prompt of each group, None where there is none."""
        ...


class PlainDenoiser:
    """A function ``(x [n, ...], sigma, group) -> x0 [n, ...]`` as a ``Denoise`` of one branch, without prompts.

    Args:
        function: the model. nfe_per_call: forward passes that it makes for a row.
    """

    can_encode = False

    def __init__(self, function: Callable[[Tensor, float, Tensor], Tensor], nfe_per_call: int = 1):
        self._function, self.nfe_per_call = function, nfe_per_call

    def __call__(self, x: Tensor, sigma: float, group: Tensor, prompts: Sequence[str | None] | None = None) -> Denoised:
        """See ``Denoise``; prompts do not count."""
        return Denoised(self._function(x, sigma, group), len(x) * self.nfe_per_call)

    def encode(self, texts: Sequence[str]) -> None:
        """Not available: SearchError."""
        raise SearchError("this model's conditioning cannot be changed during the search: it takes no prompts")

    def prompt_embedding(self, group: Tensor) -> None:
        """None: nothing is known of its prompts."""
