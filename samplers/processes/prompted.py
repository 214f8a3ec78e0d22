"""Particles with prompts of their own, of a process whose denoiser reads texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..protocols import SearchError
from ..state import PROMPT, State
from .denoise import Denoise
from .extrapolation import forgetting


class Prompted:
    """The prompts of a process's particles.

    Attributes:
        denoise: encodes texts, where it can.
    """

    denoise: Denoise
    _texts: list[str]  # prompts that particles were given, numbered as in State.extra[PROMPT]

    def reprompt(self, state: State, prompts: Sequence[str | None]) -> State:
        """See ``Process.reprompt``. New texts are encoded together."""
        if not self.denoise.can_encode:
            raise SearchError("this model's conditioning cannot be changed during the search: it takes no prompts")
        new = [text for text in dict.fromkeys(prompts) if text is not None and text not in self._texts]
        if new:
            self.denoise.encode(new)
            self._texts += new
        ids = torch.tensor([-1 if text is None else self._texts.index(text) for text in prompts], dtype=torch.int64)
        changed = ids != state.extra.get(PROMPT, torch.full_like(ids, -1))
        # What another prompt led to says nothing of where this one goes.
        return replace(state, x0=None, extra={**forgetting(state.extra, changed), PROMPT: ids})

    def prompts_of(self, state: State) -> list[str | None] | None:
        """The prompt of every particle, None for its group's own; None altogether where nothing was re-prompted."""
        ids = state.extra.get(PROMPT)
        return None if ids is None else [None if i < 0 else self._texts[i] for i in ids.tolist()]

    def prompt_embedding(self, group: Tensor) -> Tensor | None:
        """See ``Process.prompt_embedding``."""
        return self.denoise.prompt_embedding(group)

    def text_states(self, group: Tensor) -> None:
        """None: value networks of noisy latents read ``prompt_embedding``."""
