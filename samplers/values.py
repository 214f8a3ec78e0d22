"""Value functions: what a search may ask of a noisy state instead of decoding a preview and judging it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from .processes.kernel import as_float64_cpu
from .protocols import State
from .smc.weights import clean_rewards


class BoundValue(Protocol):
    """A value that knows the process: ``bind(process) -> (x [n, ...], sigma, group [n]) -> value [n]``.

    Attributes:
        verifier: name of the verifier whose score it expects, "" if unknown.
    """

    verifier: str

    def bind(self, process: Any) -> Callable[[Tensor, float, Tensor], Tensor]: ...

    def check(self, process: Any) -> None: ...


ValueFunction = Callable[[Tensor, float], Tensor] | BoundValue
"""``(x [n, ...], sigma) -> value [n]``, or a learned one that is bound to the process first."""


def check_value(function: ValueFunction | None, process: Any) -> None:
    """Raise SearchError for a learned value that was made for another kind of latent."""
    if hasattr(function, "check") and hasattr(process, "shape"):
        function.check(process)


def values_of(session: Any, function: ValueFunction, state: State) -> Tensor:
    """Values float64 ``[n]`` of states, counted as verifications; non-finite ones become -inf."""
    process = session.process
    sigma = process.sigmas[state.step]
    if hasattr(function, "bind"):
        bound, judge = function.bind(process), getattr(session.verifier, "name", "")
        if function.verifier and judge and function.verifier != judge:
            session.warn(f"the value network expects scores of {function.verifier!r}, the verifier is {judge!r}")
    else:

        def bound(x: Tensor, sigma: float, group: Tensor) -> Tensor:
            return function(x, sigma)

    def chunk(rows: slice) -> Tensor:
        session.ledger.check()
        with torch.no_grad(), session.ledger.verify(len(state.group[rows])):
            return as_float64_cpu(bound(state.x[rows], sigma, state.group[rows]))

    value, bad = clean_rewards(process.chunker.cat(chunk, len(state)))
    session.ledger.rejected_rewards += bad
    return value


def prompt_embedding(denoise: Any, group: Tensor) -> Tensor | None:
    """One vector per particle ``[n, W]`` for the prompt of its group: the mean of the text states over the tokens.

    Denoisers give it by ``condition(group)``, or have text states ``context`` ``[G, L, W]``; None where neither.
    """
    if hasattr(denoise, "condition"):
        return denoise.condition(group)
    context = getattr(denoise, "context", None)
    return None if context is None else context.mean(1)[group.to(context.device)]
