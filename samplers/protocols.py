"""The contracts of the house: Process, Verifier, Search, and the small values that pass between them.

Everything a search sees is in this file. A method written against it runs on any process; a process written against it
can be searched by any method. Nothing here imports ComfyUI, and nothing outside ``nodes/`` may.

Shapes: ``n`` particles on the first axis everywhere, ``G`` groups (output slots: prompt x requested image), ``N``
particles per group, so ``n = G * N`` and particle ``k`` of group ``g`` sits at row ``g * N + k`` after ``start``.
Images are float32 ``[n, H, W, 3]`` in 0..1 (ComfyUI's IMAGE). Scores are float64 ``[n]``, higher is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

PROMPT = "prompt"
"""Key of ``State.extra``: which prompt a particle is conditioned on."""


class SearchError(ValueError):
    """Bad input of a search. The message names the input, its value and what would be right."""


class BudgetSpent(Exception):
    """Raised by the ledger before a call that would exceed ``max_nfe`` or ``max_seconds``."""


class Interrupted(Exception):
    """Raised by a host hook when the user cancels. Searches return the best so far, marked ``interrupted``."""


@dataclass(frozen=True)
class State:
    """A population of particles at one step of a process. Immutable; ``select`` never shares mutable storage.

    Attributes:
        x: ``[n, ...]`` current noisy states in the sampler's own scale.
        group: int64 ``[n]`` output slot that each particle competes for.
        slot: int64 ``[n]`` owner of the noise stream that drives the particle's next move (0..N-1 within a group).
        step: index of the transition that comes next; ``x`` sits at ``sigmas[step]``.
        x0: ``[n, ...]`` expected clean latents at ``x``, or None while not computed (a cache, see ``Process.predict``).
        extra: further per-particle tensors of a process, particle axis first: KV caches, and ``PROMPT``, the number
            of the prompt in the process's table that a particle has instead of its group's own (-1: its group's).
    """

    x: Tensor
    group: Tensor
    slot: Tensor
    step: int
    x0: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.x.shape[0]

    @staticmethod
    def joined(states: Sequence[State]) -> State:
        """One population of several at the same step, rows in order.

        ``x0`` is kept where all have it. Where some have numbers in ``extra`` (a prompt's) that others lack, those get
        -1, which stands for none. What only a subclass of State holds is lost; its process says so where it matters.
        """
        return State(
            step=states[0].step,
            x=torch.cat([s.x for s in states]),
            group=torch.cat([s.group for s in states]),
            slot=torch.cat([s.slot for s in states]),
            x0=None if any(s.x0 is None for s in states) else torch.cat([s.x0 for s in states]),
            extra={name: _joined_extra(states, name) for name in dict.fromkeys(n for s in states for n in s.extra)},
        )

    def select(self, index: Tensor, slot: Tensor | None = None) -> State:
        """Reindex particles (duplicates allowed). ``slot`` re-assigns stream owners, default: the parents' slots."""
        rows = index.to(self.x.device)
        return replace(
            self,
            x=self.x[rows],
            group=self.group[index.cpu()],
            slot=(self.slot[index.cpu()] if slot is None else slot).clone(),
            x0=None if self.x0 is None else self.x0[rows],
            extra={name: value[rows.to(value.device)] for name, value in self.extra.items()},
        )


def _joined_extra(states: Sequence[State], name: str) -> Tensor:
    known = next(s.extra[name] for s in states if name in s.extra)
    if known.is_floating_point() and any(name not in s.extra for s in states):
        raise KeyError(f"{name!r} is known of some particles only, and nothing stands for none")
    return torch.cat([s.extra[name] if name in s.extra else known.new_full((len(s),), -1) for s in states])


@dataclass(frozen=True)
class Values:
    """What a verifier said of a population: ``reward`` float64 ``[n]`` and, where asked, ``grad`` like ``State.x``."""

    reward: Tensor
    grad: Tensor | None = None


@runtime_checkable
class Verifier(Protocol):
    """Images + prompts -> one number per image.

    Attributes:
        name: short name for reports.
        differentiable: whether ``score`` can be differentiated with respect to the images.
    """

    name: str
    differentiable: bool

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores ``[n]`` of ``images`` ``[n, H, W, 3]`` in 0..1 for ``prompts`` (one per image), higher is better.

        When grad mode is on and ``images.requires_grad``, a differentiable verifier keeps the graph. The caller
        decides about grad mode; the verifier never turns it on by itself.
        """
        ...


@dataclass(frozen=True)
class Attempt:
    """A prompt that was tried: its text, at which step, and the score of its preview (None while unknown)."""

    prompt: str
    step: int
    score: float | None


@dataclass(frozen=True)
class RewriteRequest:
    """What a rewriter is asked.

    Attributes:
        image: ``[H, W, 3]`` in 0..1, the preview.
        prompt: what the image should show, as the user wrote it.
        count: M, rewrites wanted, >= 1.
        step, steps: how far the image is, ``step`` counted from 1.
        history: what was tried before, oldest first.
        seed: of the rewriter's own randomness.
    """

    image: Tensor
    prompt: str
    count: int
    step: int = 1
    steps: int = 1
    history: tuple[Attempt, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Rewrite:
    """What a rewriter answers.

    Attributes:
        prompts: at most M prompts, none equal to the original or to each other.
        missing: what the image lacks, in words.
        aligned: nothing is missing; ``prompts`` is then empty.
        failed: no usable answer; ``note`` says why.
        note: for the log and the trace.
        calls: model or endpoint calls made, retries included.
    """

    prompts: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    aligned: bool = False
    failed: bool = False
    note: str = ""
    calls: int = 1


class Rewriter(Protocol):
    """Preview + prompt + history -> better prompts. Never raises for a bad answer: that is a ``failed`` Rewrite.

    Attributes:
        name: short name for reports.
    """

    name: str

    def rewrite(self, requests: Sequence[RewriteRequest]) -> list[Rewrite]:
        """One answer per request, in order."""
        ...


class Process(Protocol):
    """Something that is advanced step by step and can be previewed: a diffusion or flow model, or a next-scale VAR."""

    steps: int
    groups: int
    stochastic: bool

    def start(self, particles: int) -> State:
        """``groups * particles`` fresh particles; particle ``k`` of every group owns stream slot ``k``."""
        ...

    def predict(self, state: State) -> State:
        """The state with ``x0`` filled in (one denoiser call per particle; free when it is already there)."""
        ...

    def preview(self, state: State) -> Tensor:
        """Expected final images ``[n, H, W, 3]`` in 0..1 of a predicted state."""
        ...

    def advance(self, state: State, shift: Tensor | None = None) -> tuple[State, Tensor]:
        """One stochastic transition of a predicted state -> (state at the next step, log p/q float64 ``[n]``).

        ``shift`` is the gradient of the log-potential with respect to ``x``; the process scales it by the variance
        of its own transition (DAS eq. for the locally optimal proposal) and returns the log-ratio that corrects for it.
        """
        ...

    def value_gradient(self, state: State, value) -> tuple[State, Values]:
        """Predict, score and differentiate: ``value(images, group) -> reward [n]``; the gradient is w.r.t. ``x``."""
        ...

    def reprompt(self, state: State, prompts: Sequence[str | None]) -> State:
        """The states conditioned on ``prompts``, one per particle (None: its group's own); ``x0`` is forgotten.

        Only where ``can_reprompt`` is true. A particle's descendants keep its prompt.
        """
        ...

    def finish(self, state: State) -> Tensor:
        """Final latents ``[n, ...]`` of a state: ``x`` when all steps are done, the expected clean latents before."""
        ...


@dataclass
class SearchResult:
    """What a search returns, whole or cut short.

    Attributes:
        latents: ``[G, ...]`` the best per group.
        finalists: ``[n, ...]`` all survivors, sorted by group, then by score, best first.
        scores: float64 ``[n]`` of the finalists (NaN where a score could not be had).
        group: int64 ``[n]`` group of each finalist.
        particles: ids of the finalists in the trace.
        status: "complete", "budget" or "interrupted".
        trace, ledger: the record of the run.
        held_out: float64 ``[n]`` or None: scores of the held-out verifier, which never steers.
        optimism: mean of (last score used for a selection - score of the finished image); 0 where none was used.
        log_z: float64 ``[G]`` estimate of log E[exp(r / alpha)] where the method has one, else None.
    """

    latents: Tensor
    finalists: Tensor
    scores: Tensor
    group: Tensor
    particles: list[int]
    status: str
    trace: Any
    ledger: Any
    held_out: Tensor | None = None
    optimism: float = 0.0
    log_z: Tensor | None = None
    warnings: list[str] = field(default_factory=list)


class Search(Protocol):
    """A rule that decides which particles live, branch, rewind or get a new prompt. One file each in ``methods/``."""

    name: str

    def run(self, run) -> SearchResult:
        """Search with everything in ``run`` (a ``Session``: process, verifier, prompts, ledger, trace)."""
        ...


def as_row_index(index: Sequence[int] | Tensor) -> Tensor:
    """int64 CPU tensor of row numbers."""
    return torch.as_tensor(index, dtype=torch.int64).cpu()
