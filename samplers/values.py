"""Value functions: what a search may ask of a noisy state instead of decoding a preview and judging it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .processes.kernel import as_float64_cpu
from .protocols import Process, Values
from .run.session import Session
from .smc.weights import clean_scores
from .state import State

Bound = Callable[[Tensor, float, Tensor], Tensor]
"""``(x [n, ...], sigma, group [n]) -> value [n]``."""


@runtime_checkable
class ValueFunction(Protocol):
    """Expects a verifier's score of the finished image from a noisy state."""

    @property
    def verifier(self) -> str:
        """Name of the verifier whose score it expects, "" if unknown."""
        ...

    @property
    def caveat(self) -> str:
        """A warning about its quality, "" where there is none."""
        ...

    def check(self, process: Process) -> None:
        """Raise SearchError where it was made for another kind of latent or prompt than the process has."""
        ...

    def bind(self, process: Process) -> Bound:
        """The function on the states of a process."""
        ...


@dataclass(frozen=True)
class PlainValue:
    """A function ``(x [n, ...], sigma) -> value [n]`` as a value function."""

    function: Callable[[Tensor, float], Tensor]
    verifier: str = ""
    caveat: str = ""

    def check(self, process: Process) -> None:
        """Any process will do."""

    def bind(self, process: Process) -> Bound:
        """See ``ValueFunction``."""
        return lambda x, sigma, _: self.function(x, sigma)


AnyValue = ValueFunction | Callable[[Tensor, float], Tensor]


def as_value(function: AnyValue) -> ValueFunction:
    """A plain function is wrapped; a value function is itself."""
    return function if isinstance(function, ValueFunction) else PlainValue(function)


def values_of(session: Session, function: AnyValue, state: State) -> Values:
    """Values of states, counted as verifications; non-finite ones become -inf."""
    process, value = session.process, as_value(function)
    sigma, bound = process.sigmas[state.step], value.bind(process)
    judge = "" if session.verifier is None else session.verifier.name
    if value.caveat:
        session.warn(value.caveat)
    if value.verifier and judge and value.verifier != judge:
        session.warn(f"the value network expects scores of {value.verifier!r}, the verifier is {judge!r}")

    def chunk(rows: slice) -> Tensor:
        session.ledger.check()
        with torch.no_grad(), session.ledger.verify(len(state.group[rows])):
            return as_float64_cpu(bound(state.x[rows], sigma, state.group[rows]))

    score, bad = clean_scores(process.chunker.cat(chunk, len(state)))
    session.ledger.rejected_scores += bad
    if bad:
        session.warn("the value network gave NaN or infinite values: such particles cannot win")
    return Values(score)
