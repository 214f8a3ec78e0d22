"""Patches of a model that remember the last call, which would mix the candidates of a search.

Guidance with momentum and caches of earlier steps assume one image on its way down. They are found by what they hook
and hold, not by name: an object with a ``reset`` of its own among the options of the run is a memory; a function that
rebinds variables of its closure, or attributes of the object that it belongs to, may be one, and is tried: a model
without a memory answers the same question twice alike, whatever it was asked in between.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from ...samplers.protocols import SearchError

HOOKS = ("sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function", "model_function_wrapper")
OURS = "testtime"
TOLERANCE = 1e-4
"""Of the largest number: two equal questions may be rounded otherwise."""

Ask = Callable[[Tensor], Tensor]
"""States ``[1, ...]`` at the first noise level -> what the model says of them."""


def holders(model_options: dict[str, Any]) -> list[str]:
    """Names of objects in the options of a run that keep something from call to call."""
    found = []
    for key, value in (model_options.get("transformer_options") or {}).items():
        own = type(value).__module__.split(".")[0] not in ("builtins", "torch", "collections", "numpy")
        if own and not callable(value) and callable(getattr(type(value), "reset", None)):
            found.append(getattr(value, "name", None) or type(value).__name__.removesuffix("Holder") or str(key))
    return found


def suspects(model_options: dict[str, Any]) -> list[str]:
    """Names of hooked functions whose code writes to something that outlives the call."""
    return [named(hook) for hook in hooks(model_options) if writes(hook)]


def hooks(model_options: dict[str, Any]) -> Iterator[Any]:
    """Everything that is hooked into the sampling of a model, except our own."""
    for name in HOOKS:
        hooked = model_options.get(name)
        yield from hooked if isinstance(hooked, list | tuple) else [] if hooked is None else [hooked]
    transformer = model_options.get("transformer_options") or {}
    for table in (transformer.get("wrappers") or {}, model_options.get("wrappers") or {}):
        for by_key in table.values():
            for key, wrappers in by_key.items() if isinstance(by_key, dict) else ():
                if not str(key).startswith(OURS):
                    yield from wrappers


def writes(hook: Any) -> bool:
    """Whether a callable's own code rebinds variables of its closure or attributes of its object."""
    function, owner = hook, None
    if isinstance(function, MethodType):
        function, owner = function.__func__, function.__self__
    elif not isinstance(function, FunctionType) and callable(function):
        owner, function = function, inspect.getattr_static(type(function), "__call__", None)
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    first = code.co_varnames[:1] if owner is not None else ()
    return any(_rebinds(part, first) for part in _parts(code))


def _parts(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)


def _rebinds(code: CodeType, owner: tuple[str, ...]) -> bool:
    before = None
    for instruction in dis.get_instructions(code):
        if instruction.opname == "STORE_DEREF" and instruction.argval in code.co_freevars:
            return True
        if instruction.opname == "STORE_ATTR" and owner and before is not None and before.argval in owner:
            return True
        before = instruction
    return False


def named(hook: Any) -> str:
    """A hook as a person can find it: its node, or function, and the module."""
    function = getattr(hook, "__func__", hook)
    if isinstance(function, FunctionType):
        return f"{function.__qualname__.split('.')[0]} ({function.__module__.split('.')[-1]})"
    return f"{type(hook).__qualname__.split('.')[-1]} ({type(hook).__module__.split('.')[-1]})"


def remembers(ask: Ask, first: Tensor, second: Tensor) -> bool:
    """Whether what a model says depends on what it was asked before: ``first``, then ``second``, then ``first``."""
    before = ask(first)
    ask(second)
    after = ask(first)
    largest = float(before.abs().max()) or 1.0
    return not torch.allclose(before, after, rtol=0.0, atol=TOLERANCE * largest)


def refuse_memory(names: Iterable[str]) -> None:
    """Raise SearchError that names the patches, if there are any."""
    found = ", ".join(dict.fromkeys(names))
    if found:
        raise SearchError(
            f"model is patched by {found}, which remembers the last step of one image and would mix the candidates of "
            f"a search: remove it, or switch its memory off (momentum 0)"
        )
