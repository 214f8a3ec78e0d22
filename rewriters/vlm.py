"""A vision-language model on this machine as a rewriter, through transformers' own classes: no remote code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..chat.conversation import Poll, Reply, Turn
from ..chat.local import LocalVLM, load_local_vlm
from .base import ChatRewriter, RewriterError
from .template import Template


class VLMRewriter(ChatRewriter):
    """Shows the preview to an image-text-to-text model.

    Args:
        vlm: the model.
        template: instructions.
        temperature: 0 takes the likeliest words, above it samples.
        max_tokens: longest answer.

    Attributes:
        module: the network, for a host that moves it between devices.
        movable: False for quantised weights, which stay where they were loaded.
    """

    def __init__(
        self, vlm: LocalVLM, template: Template | None = None, temperature: float = 0.7, max_tokens: int = 512
    ):
        super().__init__(vlm.name, template)
        if not temperature >= 0:
            raise RewriterError(f"temperature is {temperature}: it must be >= 0")
        if max_tokens < 16:
            raise RewriterError(f"max_tokens is {max_tokens}: at least 16 are needed")
        self.module, self.movable = vlm, vlm.movable
        self.temperature, self.max_tokens = temperature, max_tokens

    def complete(self, turns: Sequence[Turn], seed: int, poll: Poll) -> Reply:
        """One generation; the same seed gives the same answer on the same device."""
        return self.module.answer(turns, self.max_tokens, self.temperature, seed, poll)


def load_vlm(
    folder: Path,
    *,
    dtype: str = "auto",
    quantisation: str = "none",
    template: Template | None = None,
    temperature: float = 0.7,
    max_tokens: int = 512,
) -> VLMRewriter:
    """A rewriter of a model folder as it is downloaded from the Hugging Face hub.

    Nothing is fetched, no remote code is run.

    Args:
        folder, dtype, quantisation: of ``chat.local.load_local_vlm``.
        template, temperature, max_tokens: see ``VLMRewriter``.

    Raises:
        ChatError: not such a folder, an unknown model type, or a missing library, with what would help.
        RewriterError: settings that cannot work.
    """
    return VLMRewriter(load_local_vlm(folder, dtype, quantisation), template, temperature, max_tokens)
