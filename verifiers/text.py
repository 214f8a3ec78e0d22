"""Prompts for text towers: cut to what a tower reads, which is said once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("testtime")


class Tokens:
    """Token ids of prompts at a fixed length. A prompt that is too long is cut, and the first one is reported.

    Args:
        tokenizer: of transformers.
        length: tokens per prompt, padding and special tokens included.
        name: of the verifier, for the notice.
    """

    def __init__(self, tokenizer: Any, length: int, name: str):
        self.tokenizer, self.length, self.name = tokenizer, length, name
        self._said = False

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """``[n, 2, length]`` int64: token ids, and the attention mask (1 = read)."""
        whole = self.tokenizer(list(prompts), verbose=False)["input_ids"]
        self.notice(max(len(ids) for ids in whole))
        words = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        return torch.stack([words["input_ids"], words["attention_mask"]], 1)

    def notice(self, count: int) -> None:
        """Log, the first time, that a prompt of ``count`` tokens is longer than what is read."""
        if count > self.length and not self._said:
            self._said = True
            log.warning(
                "verifier %s reads %d tokens: a prompt of %d tokens is cut, what follows is not judged",
                self.name,
                self.length,
                count,
            )
