"""The contracts of the house: Process, Verifier, Rewriter, Method, and the small values that pass between them.

Everything a method may touch is declared here, and nothing that is not may be touched: a method written against these
contracts runs on any process whose ``Capabilities`` cover the method's ``needs``, and ``run_search`` compares the two
once, before the first forward pass. Nothing here imports ComfyUI, and nothing outside ``nodes/`` may.

Shapes: ``n`` particles on the first axis everywhere, ``G`` groups (output slots: prompt x requested image), ``N``
particles per group, so ``n = G * N`` and particle ``k`` of group ``g`` sits at row ``g * N + k`` after ``start``.
Images are float32 ``[n, H, W, 3]`` in 0..1 (ComfyUI's IMAGE), previews of clips ``[n, F, H, W, 3]``. Scores are float64
``[n]``, higher is better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor

from .capabilities import Capabilities
from .rewriter import Attempt, Rewrite, Rewriter, RewriteRequest
from .state import PROMPT, State
from .verifier import ScoreContext, Values, Verifier

if TYPE_CHECKING:
    from .frames import Shown
    from .ledger import Ledger
    from .processes.chunking import Chunker
    from .processes.kernel import Interpolant, Noise
    from .processes.previews import CheapLooks
    from .processes.streams import Streams
    from .run.trace import Trace

__all__ = [
    "PROMPT",
    "Attempt",
    "Capabilities",
    "Rewrite",
    "RewriteRequest",
    "Rewriter",
    "ScoreContext",
    "State",
    "Values",
    "Verifier",
]


class SearchError(ValueError):
    """Bad input of a search. The message names the input, its value and what would be right."""


class BudgetSpent(Exception):
    """Raised by the ledger before a call that would exceed ``max_nfe`` or ``max_seconds``."""


class Interrupted(Exception):
    """Raised by a host hook when the user cancels. Searches return the best so far, marked ``interrupted``."""


class TextStates(Protocol):
    """Encoded prompts: ``features`` ``[n, T, W]``, and ``mask`` bool ``[n, T]``, True where there is a token."""

    @property
    def features(self) -> Tensor:
        """``[n, T, W]``."""
        ...

    @property
    def mask(self) -> Tensor:
        """Bool ``[n, T]``."""
        ...


class Outline(Protocol):
    """As much of a process as a method needs to say what it costs; see ``samplers.budget`` for one without a model."""

    @property
    def sigmas(self) -> Sequence[float]:
        """``[T + 1]`` decreasing noise levels; for next-scale models the share of tokens that is still to be drawn."""
        ...

    @property
    def steps(self) -> int:
        """Moves T."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What can be done with it."""
        ...

    @property
    def interpolant(self) -> Interpolant:
        """Coefficients of the states, where ``can_renoise``; SearchError elsewhere."""
        ...

    def branches(self, step: int) -> bool:
        """Whether the move out of ``step`` draws noise."""
        ...


class Process(Outline, Protocol):
    """Something that is advanced step by step and can be previewed: a diffusion or flow model, or a next-scale VAR.

    Attributes:
        groups: images G that are made at once.
        eta: noise of the moves, 0 (ODE) .. 1 (ancestral), or a rule of ``processes.sde``.
        shape: of one particle's state.
        streams: source of all noise.
        chunker: how many particles fit a call.
        ledger: books of the run; set by the session.
        shown: which frames a preview shows where particles are clips, None where they are pictures.
        cheap_looks: whether looks on the way go through a quick decoder; None where there is only one.
    """

    groups: int
    eta: float | Noise
    shape: tuple[int, ...]
    streams: Streams
    chunker: Chunker
    ledger: Ledger
    shown: Shown | None
    cheap_looks: CheapLooks | None

    @property
    def nfe_per_call(self) -> int:
        """Forward passes that one call of one particle takes: one per branch of its guidance."""
        ...

    def start(self, particles: int) -> State:
        """``groups * particles`` fresh particles; particle ``k`` of every group owns stream slot ``k``."""
        ...

    def initial_noise(self, group: Tensor, slot: Tensor) -> Tensor:
        """Noise ``[n, ...]`` that slots ``[n]`` of groups ``[n]`` start from."""
        ...

    def begin(self, noise: Tensor, group: Tensor, slot: Tensor) -> State:
        """Particles that grow from ``noise`` ``[n, ...]``."""
        ...

    def predict(self, state: State) -> State:
        """The state with ``x0`` filled in (one denoiser call per particle; free when it is already there)."""
        ...

    def preview(self, state: State, side: int | None = None) -> Tensor:
        """Expected final images ``[n, H, W, 3]`` in 0..1 of a predicted state; of clips ``[n, F, H, W, 3]``.

        ``side``: codes along the longer side to decode at, for next-scale models; None: the usual size.
        """
        ...

    def advance(self, state: State, gradient: Tensor | None = None) -> tuple[State, Tensor]:
        """One transition of a predicted state -> (state at the next step, log p/q float64 ``[n]``).

        ``gradient`` is that of the log-potential with respect to ``x``; the process scales it by the variance of its
        own transition (the locally optimal proposal of DAS) and returns the log-ratio that corrects for it.
        """
        ...

    def value_gradient(self, state: State, value: Callable[[Tensor, Tensor], Tensor]) -> tuple[State, Values]:
        """Predict, score and differentiate: ``value(images, group) -> score [n]``; the gradient is w.r.t. ``x``."""
        ...

    def reprompt(self, state: State, prompts: Sequence[str | None]) -> State:
        """The states conditioned on ``prompts``, one per particle (None: its group's own); ``x0`` is forgotten.

        Only where ``can_reprompt``. A particle's descendants keep its prompt.
        """
        ...

    def prompts_of(self, state: State) -> list[str | None] | None:
        """The prompt of every particle, None for its group's own; None altogether where nothing was re-prompted."""
        ...

    def prompt_embedding(self, group: Tensor) -> Tensor | None:
        """One vector ``[n, W]`` for the prompt of each group ``[n]``, for value functions; None if there is none."""
        ...

    def text_states(self, group: Tensor) -> TextStates | None:
        """What the text encoder gave for the prompt of each group ``[n]``, for value functions; None if unknown."""
        ...

    def finish(self, state: State) -> Tensor:
        """Final latents ``[n, ...]`` of a state: ``x`` when all steps are done, the expected clean latents before."""
        ...

    def variant(
        self,
        *,
        sigmas: Sequence[float] | None = None,
        eta: float | Noise | None = None,
        gradient_through: str | None = None,
        streams: Streams | None = None,
        origin: State | None = None,
    ) -> Process:
        """This process with other settings and the same books; what is None stays.

        Args:
            sigmas: another schedule (where ``can_renoise``).
            eta: other noise of the moves; 0 is the ODE, or the likelier bit.
            gradient_through: "denoiser" or "decoder", see ``DiffusionProcess``.
            streams: other noise.
            origin: one particle per group: ``start`` gives clones of them instead of fresh particles.
        """
        ...

    def expect(self, populations: Sequence[int]) -> None:
        """Announce with how many particles per group each step is made, so that no more memory is reserved."""
        ...


@dataclass
class SearchResult:
    """What a search returns, whole or cut short.

    Attributes:
        latents: ``[G, ...]`` the winners, one per group.
        finalists: ``[n, ...]`` all survivors, sorted by group, the winner first, then by score.
        scores: float64 ``[n]`` of the finalists (NaN where a score could not be had).
        group: int64 ``[n]`` group of each finalist.
        particles: ids of the finalists in the trace.
        status: "complete", "budget", "interrupted" or "failed" (an error cut it short; the best so far is here).
        trace, ledger: the record of the run.
        held_out: float64 ``[n]`` or None: scores of the held-out verifier, which never steers.
        selection_bias: mean of (last score that a selection used - score of the finished image); 0 where none was.
        log_z: float64 ``[G]`` estimate of log E[exp(r / alpha)] where the method has one, else None.
        warnings: sentences for the user.
    """

    latents: Tensor
    finalists: Tensor
    scores: Tensor
    group: Tensor
    particles: list[int]
    status: str
    trace: Trace
    ledger: Ledger
    held_out: Tensor | None = None
    selection_bias: float = 0.0
    log_z: Tensor | None = None
    warnings: list[str] = field(default_factory=list)


class Method(Protocol):
    """A rule that decides which particles live, branch, rewind or get a new prompt. One file each in ``methods/``.

    ``samplers.method`` has a base class with the defaults, ``docs/methods.md`` says how to write one.

    Attributes:
        name: key in the registry, the trace and on the command line.
        width: name of the field that a budget may change, "" for none.
        weighted: whether finalists have weights, so that ``Plan.output`` may be "weight" or "sample".
    """

    name: ClassVar[str]
    width: ClassVar[str]
    weighted: ClassVar[bool]

    @property
    def needs(self) -> frozenset[str]:
        """Names of ``Capabilities`` that these settings cannot go without."""
        ...

    @property
    def population(self) -> int:
        """Particles per image that run at once, at most."""
        ...

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        ...

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError for what is special to this method on this process; ``needs`` are met already."""
        ...

    def run(self, session: Any) -> SearchResult:
        """Search with everything in the ``Session``: process, verifier, prompts, books."""
        ...
