"""Go on from a particle of an earlier search, with any method and any number of particles.

Nothing but seed and lineage is stored of a particle: its path is walked again (one forward pass per step and image,
as in a replay), and the search begins where it ends. Noise stays a function of (seed, group, slot, step), so a search
that is continued with the settings it had makes the moves it made; a ``branch`` above 0 sets other slots aside and
draws other noise, under the same seed, so that the lineages of the new particles are complete again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..method import SearchMethod
from ..outline import NoiseOutline
from ..processes.streams import Streams
from ..protocols import Process, SearchError, Verifier
from ..run.session import Session
from ..run.trace import Lineage, Trace
from ..state import State
from .replay import WINNER, check_same_run, replay_of

SLOTS_PER_BRANCH = 1 << 32
MAX_BRANCH = 4095


class _LaterStreams(Streams):
    """The streams of a run that starts ``steps`` late and draws from the slots of a branch.

    Initial noise (a step below 0) is that of the whole run.
    """

    def __init__(self, streams: Streams, steps: int, branch: int):
        super().__init__(streams.seed, streams.group_offset)
        self._streams, self._steps, self._branch = streams, steps, branch

    def _later(self, key: dict[str, Any]) -> dict[str, Any]:
        if key["step"] < 0:
            return key
        shifted = {**key, "step": key["step"] + self._steps}
        if "slot" in key:
            shifted["slot"] = key["slot"] + self._branch * SLOTS_PER_BRANCH
        elif self._branch:
            shifted["purpose"] = f"{key['purpose']}/{self._branch}"
        return shifted

    def normal(self, shape: Sequence[int], *, group: int, slot: int, step: int, purpose: str) -> Tensor:
        """See ``Streams.normal``."""
        return self._streams.normal(
            shape, **self._later({"group": group, "slot": slot, "step": step, "purpose": purpose})
        )

    def normals(self, shape: Sequence[int], group: Tensor, slot: Tensor, *, step: int, purpose: str) -> Tensor:
        """See ``Streams.normals``."""
        later = self._later({"slot": slot, "step": step, "purpose": purpose})
        return self._streams.normals(shape, group, later.pop("slot"), **later)

    def uniform(self, n: int, *, group: int, step: int, purpose: str) -> Tensor:
        """See ``Streams.uniform``."""
        return self._streams.uniform(n, **self._later({"group": group, "step": step, "purpose": purpose}))

    def uniforms(self, count: int, group: Tensor, slot: Tensor, *, step: int, purpose: str) -> Tensor:
        """See ``Streams.uniforms``."""
        later = self._later({"slot": slot, "step": step, "purpose": purpose})
        return self._streams.uniforms(count, group, later.pop("slot"), **later)


@dataclass(frozen=True)
class Origin:
    """Where a search begins instead of at noise.

    Fractions of the schedule in the method's settings (``start``, ``end``) count from there.

    Attributes:
        trace: of the earlier run; only its seed and settings are read.
        lineages: one per image, all with the same number of moves made.
        branch: 0 repeats the noise that the earlier run drew from there on, 1 .. 4095 draw other noise.
        guided: False where gradients cannot be had.
    """

    trace: Trace
    lineages: tuple[Lineage, ...]
    branch: int = 0
    guided: bool = True

    @classmethod
    def at(cls, trace: Trace, particle: int = WINNER, *, group: int = 0, step: int = -1, branch: int = 0) -> Origin:
        """A particle of ``trace``; the other images of the batch go on from their winners' ancestors.

        Args:
            trace: of the earlier run.
            particle: its id, or ``WINNER`` for the winner of image ``group``.
            group: image of the batch, counted from 0; only read for ``WINNER``.
            step: go back to the particle's ancestor at this step; -1 stays at the particle.
            branch: see the class.

        Raises:
            SearchError: no such particle, image or step, or a method whose paths cannot be walked again.
        """
        chosen = replay_of(trace, particle, group).lineage
        made = len(chosen.slots) - 1
        if step > made:
            raise SearchError(
                f"step is {step}: the particle has made {made} moves; choose 0 to {made}, or -1 for where it is"
            )
        moves = made if step < 0 else step
        groups = 1 + max(entry["group"] for entry in trace.records[-1].particles)
        lineages = []
        for image in range(groups):
            lineage = chosen if image == chosen.group else replay_of(trace, WINNER, image).lineage
            if len(lineage.slots) <= moves:
                raise SearchError(
                    f"step is {moves}: the winner of image {image} has made only {len(lineage.slots) - 1} moves"
                )
            lineages.append(
                replace(
                    lineage,
                    slots=lineage.slots[: moves + 1],
                    gradient_scales=lineage.gradient_scales[:moves],
                    prompts=lineage.prompts[: moves + 1],
                )
            )
        return cls(trace, tuple(lineages), branch)

    @property
    def step(self) -> int:
        """Moves that are made already."""
        return len(self.lineages[0].slots) - 1

    @property
    def was_guided(self) -> bool:
        """Whether a gradient moved the particle."""
        return any(scale > 0 for lineage in self.lineages for scale in lineage.gradient_scales)

    @property
    def needs(self) -> frozenset[str]:
        """Names of ``Capabilities`` that the way to the particle cannot go without."""
        needs = {"has_initial_noise", "can_renoise"}
        if self.was_guided:
            needs.add("can_differentiate")
        if any(lineage.prompts for lineage in self.lineages):
            needs.add("can_reprompt")
        return frozenset(needs)

    def denoiser_calls(self, method: SearchMethod) -> int:
        """Denoiser calls besides the search's own: one per move, and one at the particle for all its clones."""
        return self.step + 1 - method.beginners

    def rest(self, process: Process) -> Process:
        """The process with the moves that are left."""
        return process.variant(sigmas=process.sigmas[self.step :])

    def rest_of(self, outline: NoiseOutline) -> NoiseOutline:
        """The outline with the moves that are left."""
        return replace(outline, sigmas=list(outline.sigmas)[self.step :])

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        if not 0 <= self.branch <= MAX_BRANCH:
            raise SearchError(f"new_noise is {self.branch}: it must lie in 0 (the same noise) .. {MAX_BRANCH}")

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError if this process cannot have made the particle."""
        if process.groups != len(self.lineages):
            raise SearchError(
                f"the search made {len(self.lineages)} images and this batch has {process.groups}: use its latent batch"
            )
        check_same_run(self.trace, seed=process.streams.seed, sigmas=process.sigmas, eta=process.eta)
        if self.step >= process.steps:
            raise SearchError(
                f"the particle has made {self.step} of {process.steps} moves, it is finished: choose an earlier step"
            )
        if self.was_guided and (verifier is None or not verifier.differentiable):
            raise SearchError("the particle was guided by a gradient: use the verifier of that search")
        if self.was_guided and not self.guided:
            raise SearchError("the particle was guided by a gradient, which cannot be had here")

    def walk(self, session: Session) -> None:
        """Walk to the particles; the session's process then starts from clones of them."""
        process, group = session.process, torch.arange(len(self.lineages))
        slots = torch.tensor([lineage.slots for lineage in self.lineages])
        scales = torch.tensor([[*lineage.gradient_scales, 0.0] for lineage in self.lineages])
        prompted = any(lineage.prompts for lineage in self.lineages)
        state = process.begin(process.initial_noise(group, slots[:, 0]), group, slots[:, 0])
        for i in range(self.step):
            gradient = None
            if prompted:
                state = process.reprompt(state, self._prompts(i))
            if (scales[:, i] > 0).any():
                state, values, _ = session.evaluate(state, gradient=True)
                gradient = _scaled(values.gradient, scales[:, i])
            else:
                state = process.predict(state)
            state = session.step(state, gradient_scale=scales[:, i - 1] if i else None)
            state, _ = process.advance(state.select(group, slot=slots[:, i + 1]), gradient)
        if prompted:
            state = process.reprompt(state, self._prompts(self.step))
        session.trace.meta["continued"] = {
            "step": self.step,
            "branch": self.branch,
            "of": [list(lineage.slots) for lineage in self.lineages],
        }
        session.process = process.variant(
            sigmas=process.sigmas[self.step :],
            streams=_LaterStreams(process.streams, self.step, self.branch),
            origin=replace(process.predict(state), step=0),
        )
        session.walked = Walked(self, state)

    def _prompts(self, step: int) -> list[str | None]:
        return [lineage.prompts[step] if step < len(lineage.prompts) else None for lineage in self.lineages]


class Walked:
    """The way to the particles, for the books of the search that goes on from them.

    Attributes:
        steps: moves that were made before the search.
    """

    def __init__(self, origin: Origin, state: State):
        self.steps, self._origin = origin.step, origin
        self._ends = set(state.node.tolist())

    def made_by(self, parent: int | None, group: int, slot: int, scale: float) -> tuple[int, float]:
        """(slot, gradient scale) of the move that made a particle, as the whole run numbers them.

        The search's first particles are the ones that were walked to, so the last move of the way made them.
        """
        if parent is not None and parent not in self._ends:
            return slot + self._origin.branch * SLOTS_PER_BRANCH, scale
        lineage = self._origin.lineages[group]
        return lineage.slots[-1], lineage.gradient_scales[-1] if lineage.gradient_scales else 0.0


def _scaled(gradient: Tensor | None, scales: Tensor) -> Tensor | None:
    """Gradients ``[n, ...]`` times their scales ``[n]``."""
    if gradient is None:
        return None
    return scales.view(-1, *[1] * (gradient.dim() - 1)).to(gradient) * gradient
