"""The contract of workers: where the rows of a search are predicted and judged, if not in this process.

The search itself stays here whole: states, noise, weights, resampling, books. Workers answer questions about rows, and
the same question has the same answer whoever is asked, as often as it is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from .protocols import Interrupted, Process
from .state import State
from .verifier import ScoreContext, Values, Verifier


class WorkersLost(Interrupted):
    """No worker can answer, or a question ends every worker that is asked; the best so far is returned."""


@dataclass(frozen=True)
class Seen:
    """What workers saw of a population.

    Attributes:
        values: scores float64 ``[n]``, not finite where there is none, and members.
        sound: bool ``[n]`` whether the decoded picture had no NaN.
        images: small previews ``[n, h, w, 3]`` in 0..1, for people.
        flops: of decoding.
    """

    values: Values
    sound: Tensor
    images: Tensor
    flops: float = 0.0


class Looker(Protocol):
    """Decodes and judges elsewhere."""

    def look(self, state: State, context: ScoreContext, prompts: Sequence[str]) -> Seen:
        """See a predicted population; ``prompts``: one per group."""
        ...


@dataclass
class Shared:
    """A process whose rows are shared out.

    Attributes:
        process: to search. looker: decodes and judges where the verifier is, or None.
        facts: for ``trace.meta["devices"]``, filled in as the run goes. notes: sentences for the user.
    """

    process: Process
    looker: Looker | None
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Workers(Protocol):
    """What ``Plan.workers`` is."""

    def sharing(
        self, process: Process, verifier: Verifier | None, prompts: Sequence[str]
    ) -> AbstractContextManager[Shared]:
        """Share the rows of a run out. Raises SearchError for a process or workers that cannot, before it begins."""
        ...
