"""Prompt encodings of a diffusers pipeline: each prompt is encoded once, batches are put together from these."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Remembered:
    """``encode_prompt`` that encodes every prompt once and puts batches together from these.

    Pipelines whose encodings of different prompts cannot be joined (their lengths differ) are asked for each batch.
    """

    def __init__(self, encode: Callable):
        self._encode, self._signature = encode, inspect.signature(encode)
        self._known: dict[tuple, Any] = {}
        functools.update_wrapper(self, encode)

    def __call__(self, *args, **kwargs):
        """See the pipeline's ``encode_prompt``."""
        given = self._signature.bind(*args, **kwargs).arguments
        prompts = given.get("prompt")
        if not isinstance(prompts, list):
            return self._one(given)
        n = len(prompts)
        rows = [
            self._one({k: v[i] if isinstance(v, list) and len(v) == n else v for k, v in given.items()})
            for i in range(n)
        ]
        try:
            return tuple(_joined(parts) for parts in zip(*rows, strict=True))
        except RuntimeError:
            with torch.no_grad():
                return self._encode(**given)

    def of(self, prompt: str) -> Any:
        """What ``prompt`` was encoded to first, or None."""
        return next((made for key, made in self._known.items() if key[0] == prompt), None)

    def _one(self, given: dict[str, Any]) -> Any:
        key = (given.get("prompt"), repr(sorted((k, v) for k, v in given.items() if k != "prompt")))
        if key not in self._known:
            with torch.no_grad():
                made = self._encode(**given)
            self._known[key] = made if isinstance(made, tuple) else (made,)
        return self._known[key]


def _joined(parts: Sequence[Any]) -> Any:
    """Encodings of single prompts as those of a batch; what has no batch axis (position ids) is shared."""
    first = parts[0]
    if not isinstance(first, Tensor) or len(parts) == 1:
        return first
    return torch.cat(list(parts)) if len(first) == 1 else first


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of a tuple; none of anything else."""
    return [item for item in value if isinstance(item, Tensor)] if isinstance(value, tuple) else []
