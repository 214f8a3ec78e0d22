"""Backward passes for fused operations of newer hosts that have none.

ComfyUI computes rotary embeddings, with and without the normalisation before them, in operations of comfy-kitchen,
which autograd cannot go through. Most networks take plain ones while the host's switch for training is on
(``compat.differentiable_kernels``); Cosmos Predict 2, Anima, JoyImage and ERNIE-Image do not. Each of these operations
is a function of its inputs that the package also has in plain torch: the backward pass is that one's.

Other blocks (of language models, which HiDream-O1 is built of) write a sum over their own input to save memory,
``x = torch.add(y, z, out=x)``, and go on with what it returns. Autograd refuses that: ``sums_of_their_own`` gives such
a sum a tensor of its own. Its network also keeps keys and values of the prompt from one call to the next; a pass that
is recomputed for its gradient would find them and save other tensors than the first time, so ``passes_of`` begins each
differentiated pass without.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

log = logging.getLogger("testtime")

_PLAIN = ("comfy_kitchen.backends.eager.rope",)
"""Modules that hold an operation's definition, and under its name the same in plain torch."""
PREFIX_CACHE = "_kv_cache_entries"
"""Where networks keep keys and values of the prompt."""


@functools.cache
def register() -> tuple[str, ...]:
    """Give every such operation its backward pass; returns their names. Those that have one already keep it."""
    done = []
    for place in _PLAIN:
        try:
            module = importlib.import_module(place)
        except ImportError:  # older hosts
            continue
        for definition in list(vars(module).values()):
            if not isinstance(definition, torch.library.CustomOpDef) or getattr(definition, "_backward_fn", None):
                continue
            plain = getattr(module, definition._name, None)
            if plain is None or definition._name.endswith("_"):  # in place: such an input is no leaf of a graph
                continue
            definition.register_autograd(_backward(plain), setup_context=_remember)
            done.append(definition._name)
    log.debug("backward passes registered: %s", ", ".join(done))
    return tuple(done)


class sums_of_their_own(TorchFunctionMode):
    """While it lasts, ``torch.add`` with ``out=`` makes a new tensor where autograd, which refuses it, takes part."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.add and "out" in kwargs and torch.is_grad_enabled():
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            if any(value.requires_grad for value in tensors):
                kwargs = {name: value for name, value in kwargs.items() if name != "out"}
        return func(*args, **kwargs)


@contextmanager
def passes_of(network: Any) -> Iterator[None]:
    """A pass of a network that autograd takes part in, or its recomputation; of others nothing changes."""
    if not torch.is_grad_enabled():
        yield
        return
    kept = getattr(network, PREFIX_CACHE, None)
    if kept is not None:
        setattr(network, PREFIX_CACHE, [])
    try:
        with sums_of_their_own():
            yield
    finally:
        if kept is not None:
            setattr(network, PREFIX_CACHE, kept)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001 - the name is the library's
    ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
    ctx.others = [None if isinstance(value, Tensor) else (value,) for value in inputs]


def _backward(plain: Callable[..., Any]) -> Callable[..., Any]:
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        with torch.enable_grad():
            inputs = [next(saved).detach() if other is None else other[0] for other in ctx.others]
            wanted = [place for place, needed in enumerate(ctx.needs_input_grad) if needed]
            for place in wanted:
                inputs[place].requires_grad_()
            outputs = plain(*inputs)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            found = torch.autograd.grad(outputs, [inputs[place] for place in wanted], gradients, allow_unused=True)
        back: list[Tensor | None] = [None] * len(inputs)
        for place, gradient in zip(wanted, found, strict=True):
            back[place] = gradient
        return tuple(back)

    return backward
