"""Gradients inside a host that runs everything under ``torch.inference_mode``.

Nodes run in inference mode, and so do loaders: the weights are inference tensors, which autograd refuses to save.
Leaving inference mode is not enough; the weights have to be wrapped anew, once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def thaw_module(module: nn.Module) -> int:
    """Replace inference parameters and buffers of ``module`` by normal copies, one by one; returns how many.

    Values stay equal, so other users of a shared module notice nothing; the peak of extra memory is one tensor. No
    parameter asks for a gradient afterwards: only inputs are differentiated. Call it with inference mode off.
    """
    replaced = 0
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None:
                continue
            if parameter.is_inference():
                part._parameters[name] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
                replaced += 1
            elif parameter.requires_grad:
                parameter.requires_grad_(False)
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_inference():
                part._buffers[name] = buffer.clone()
                replaced += 1
    return replaced


def thaw_attributes(target: Any) -> None:
    """The same for tensors that are plain attributes of an object (latent formats keep their statistics like that)."""
    for name, value in list(vars(target).items()):
        if isinstance(value, torch.Tensor) and value.is_inference():
            setattr(target, name, value.clone())


def modules_of(value: Any, depth: int = 4) -> list[nn.Module]:
    """All ``nn.Module`` that an object (a verifier, an ensemble of verifiers, a patcher) keeps in its attributes."""
    found: dict[int, nn.Module] = {}
    _collect(value, depth, found)
    return list(found.values())


def _collect(value: Any, depth: int, found: dict[int, nn.Module]) -> None:
    if isinstance(value, nn.Module):
        found[id(value)] = value
        return
    if depth == 0:
        return
    if isinstance(value, dict):
        children: Iterable[Any] = value.values()
    elif isinstance(value, (list, tuple)):
        children = value
    elif type(value).__module__.split(".")[0] in ("builtins", "torch", "numpy"):
        return
    else:
        children = getattr(value, "__dict__", {}).values()
    for child in children:
        _collect(child, depth - 1, found)
