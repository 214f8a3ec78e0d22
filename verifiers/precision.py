"""Half precision for the large part of a verifier's network.

Towers run in half precision; normalisation, cosines and heads stay in float32 (the verifiers see to that). A module
says which of its children may be cast in ``half_safe``; without that attribute it stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .base import VerifierError
from .caching import ImageCache

PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def towers(verifier: Any) -> list[nn.Module]:
    """The parts of a verifier's network that may be cast."""
    module = verifier.module
    return [getattr(module, name) for name in getattr(module, "half_safe", ())]


def precision_of(verifier: Any) -> torch.dtype:
    """Type of the first tower's weights; float32 where nothing can be cast."""
    parameter = next((p for tower in towers(verifier) for p in tower.parameters() if p.is_floating_point()), None)
    return torch.float32 if parameter is None else parameter.dtype


def set_precision(verifier: Any, precision: str | torch.dtype) -> None:
    """Cast the towers; what was kept of earlier images is forgotten.

    Args:
        precision: "fp32", "fp16", "bf16" or a type of torch.

    Raises:
        VerifierError: another word.
    """
    if isinstance(precision, str) and precision not in PRECISIONS:
        raise VerifierError(f"precision is {precision!r}: choose one of {', '.join(PRECISIONS)}")
    dtype = PRECISIONS[precision] if isinstance(precision, str) else precision
    if precision_of(verifier) == dtype:
        return
    # cast under inference mode, weights could never take part in a backward pass
    with torch.inference_mode(False), torch.no_grad():
        for tower in towers(verifier):
            tower.to(dtype)
    for value in vars(verifier).values():
        if isinstance(value, ImageCache):
            value.clear()
