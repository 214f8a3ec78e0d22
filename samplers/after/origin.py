"""Go on from a particle of an earlier search, with any method and any number of particles.

Nothing but seed and lineage is stored of a particle: its path is walked again (one forward pass per step and image,
as in a replay), and the search begins where it ends. Noise stays a function of (seed, group, slot, step), so a search
that is continued with the settings it had makes the moves it made; a ``branch`` above 0 sets other slots aside and
draws other noise, under the same seed, so that the lineages of the new particles are complete again.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..processes.streams import Streams
from ..protocols import Process, Search, SearchError, SearchResult, State, Verifier
from ..run.session import Session
from ..run.trace import Lineage, StepRecord, Trace, particle_entries
from .replay import NOT_REPLAYABLE, WINNER, check_same_run, replay_of

FROM_NOISE = (*NOT_REPLAYABLE, "random_search")
"""Methods that choose among starting noises, and so have nothing to do in the middle of a schedule."""
SLOTS_PER_BRANCH = 1 << 32
MAX_BRANCH = 4095


class _LaterStreams:
    """The streams of a run that starts ``steps`` late and draws from the slots of a branch.

    Initial noise (a step below 0) is that of the whole run.
    """

    def __init__(self, streams: Streams, steps: int, branch: int):
        self._streams, self._steps, self._branch = streams, steps, branch

    def __getattr__(self, name: str) -> Any:
        if name == "_streams":
            raise AttributeError(name)
        return getattr(self._streams, name)

    def _later(self, key: dict[str, Any]) -> dict[str, Any]:
        if key["step"] < 0:
            return key
        shifted = {**key, "step": key["step"] + self._steps}
        if "slot" in key:
            shifted["slot"] = key["slot"] + self._branch * SLOTS_PER_BRANCH
        elif self._branch:
            shifted["purpose"] = f"{key['purpose']}/{self._branch}"
        return shifted

    def normal(self, shape, **key) -> Tensor:
        """See ``Streams.normal``."""
        return self._streams.normal(shape, **self._later(key))

    def normals(self, shape, group: Tensor, slot: Tensor, **key) -> Tensor:
        """See ``Streams.normals``."""
        later = self._later({**key, "slot": slot})
        return self._streams.normals(shape, group, later.pop("slot"), **later)

    def uniform(self, n: int, **key) -> Tensor:
        """See ``Streams.uniform``."""
        return self._streams.uniform(n, **self._later(key))

    def uniforms(self, count: int, group: Tensor, slot: Tensor, **key) -> Tensor:
        """See ``Streams.uniforms``."""
        later = self._later({**key, "slot": slot})
        return self._streams.uniforms(count, group, later.pop("slot"), **later)


@dataclass(frozen=True)
class Continued:
    """``search``, begun at a particle instead of noise.

    Fractions of the schedule in the method's settings (``start``, ``end``) count from where the search begins.

    Attributes:
        search: the method.
        origin: trace of the earlier run; only its seed and settings are read.
        lineages: one per image, all with the same number of moves made.
        branch: 0 repeats the noise that the earlier run drew from there on, 1 .. 4095 draw other noise.
        guidance: of the method and of the way to the particle, for the host; 0 switches the method's off.
    """

    search: Search
    origin: Trace
    lineages: tuple[Lineage, ...]
    branch: int = 0
    guidance: float = -1.0
    needs_schedule: ClassVar[bool] = True

    def __post_init__(self):
        if self.guidance < 0:
            object.__setattr__(self, "guidance", float(max(getattr(self.search, "guidance", 0.0), self._way_guidance)))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "search":  # not set yet while being copied or unpickled
            raise AttributeError(name)
        return getattr(self.search, name)

    @property
    def step(self) -> int:
        """Moves that are made already."""
        return len(self.lineages[0].slots) - 1

    @property
    def _way_guidance(self) -> float:
        return max((scale for lineage in self.lineages for scale in lineage.gradient_scales), default=0.0)

    def around(self, outline: Any) -> tuple[int, Any]:
        """(denoiser calls besides the search's own, outline that the search runs on).

        The way costs a call per move and the particle's clean estimate one; all clones begin with that estimate.
        """
        rest = replace(outline, sigmas=list(outline.sigmas)[self.step :])
        width = getattr(self.search, "width_field", "")
        beginners = getattr(self.search, width) if width in ("particles", "beams") else 1
        return self.step + 1 - beginners, rest

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        if not 0 <= self.branch <= MAX_BRANCH:
            raise SearchError(f"new_noise is {self.branch}: it must lie in 0 (the same noise) .. {MAX_BRANCH}")
        if self.search.name in FROM_NOISE:
            raise SearchError(f"{self.search.name!r} searches among starting noises: it cannot go on from a particle")
        if hasattr(self.search, "check_settings"):
            self.search.check_settings()

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError if this process cannot have made the particle, or the method cannot run on it."""
        self.check_settings()
        if getattr(process, "sigmas", None) is None:
            raise SearchError("only searches on diffusion and flow models can go on from a particle")
        if process.groups != len(self.lineages):
            raise SearchError(
                f"the search made {len(self.lineages)} images and this batch has {process.groups}: use its latent batch"
            )
        check_same_run(self.origin, seed=process.streams.seed, sigmas=process.sigmas, eta=process.eta)
        if self.step >= process.steps:
            raise SearchError(
                f"the particle has made {self.step} of {process.steps} moves, it is finished: choose an earlier step"
            )
        if self._way_guidance > 0 and (verifier is None or not verifier.differentiable):
            raise SearchError("the particle was guided by a gradient: use the verifier of that search")
        if self._way_guidance > 0 and self.guidance == 0:
            raise SearchError("the particle was guided by a gradient, which cannot be had here")
        self.search.check(self._rest(process), verifier)

    def run(self, session: Session) -> SearchResult:
        """Walk to the particles, then search."""
        state, ids = self._walk(session)
        process, search = session.process, self.search
        if self.guidance == 0 and getattr(search, "guidance", 0.0) > 0:
            search = replace(search, guidance=0.0)
        session.process = self._tail(process, process.predict(state))
        session.trace.meta["continued"] = {
            "step": self.step,
            "branch": self.branch,
            "of": [list(lineage.slots) for lineage in self.lineages],
        }
        session.record = _Recorder(session, self, ids)
        try:
            return search.run(session)
        finally:
            del session.record  # the class's own method again

    def _walk(self, session: Session) -> tuple[State, list[int | None]]:
        """(the particles ``[G]``, trace ids of their parents) after the moves that are made already."""
        process, group = session.process, torch.arange(len(self.lineages))
        slots = torch.tensor([lineage.slots for lineage in self.lineages])
        scales = torch.tensor([[*lineage.gradient_scales, 0.0] for lineage in self.lineages])
        prompted = any(lineage.prompts for lineage in self.lineages)
        state = process.begin(process.initial_noise(group, slots[:, 0]), group, slots[:, 0])
        ids: list[int | None] = [None] * len(group)
        for i in range(self.step):
            gradient = None
            if prompted:
                state = process.reprompt(state, self._prompts(i))
            if (scales[:, i] > 0).any():
                state, values, _ = session.evaluate(state, gradient=True)
                strength = scales[:, i].view(-1, *[1] * (values.grad.dim() - 1))
                gradient = strength.to(values.grad) * values.grad
            else:
                state = process.predict(state)
            parents, ids = ids, session.trace.new_ids(len(group))
            session.remember(state, None, ids)
            made = scales[:, i - 1] if i else None
            entries = particle_entries(state, ids, parents, gradient_scale=made)
            session.record(StepRecord(i, process.steps, process.sigmas[i], entries), state)
            state, _ = process.advance(state.select(group, slot=slots[:, i + 1]), gradient)
        if prompted:
            state = process.reprompt(state, self._prompts(self.step))
        return state, ids

    def _prompts(self, step: int) -> list[str | None]:
        return [lineage.prompts[step] if step < len(lineage.prompts) else None for lineage in self.lineages]

    def _rest(self, process: Process) -> Process:
        """``process`` with the moves that are left."""
        rest = copy.copy(process)
        rest.sigmas = list(process.sigmas[self.step :])
        rest.steps = process.steps - self.step
        return rest

    def _tail(self, process: Process, origin: State) -> Process:
        """The rest of ``process``, whose populations are clones of ``origin``."""
        tail = self._rest(process)
        tail.streams = _LaterStreams(process.streams, self.step, self.branch)
        tail._initial_noise = {}

        def start(particles: int) -> State:
            rows = torch.arange(len(origin)).repeat_interleave(particles)
            return replace(origin.select(rows, slot=torch.arange(particles).repeat(len(origin))), step=0)

        tail.start = start
        return tail


class _Recorder:
    """``Session.record`` of the part that is searched: steps of the whole run, and particles linked to the walk."""

    def __init__(self, session: Session, continued: Continued, ids: list[int | None]):
        self._record, self._continued, self._ids = session.record, continued, ids
        self._known: dict[int, tuple[int | None, int, float]] = {}

    def __call__(self, record: StepRecord, state: State, images: Tensor | None = None) -> None:
        offset = self._continued.step
        record.step += offset
        record.steps += offset
        for entry in record.particles:
            if entry["id"] not in self._known:
                self._known[entry["id"]] = self._linked(entry)
            entry["parent"], entry["slot"], entry["gradient_scale"] = self._known[entry["id"]]
        self._record(record, state, images)

    def _linked(self, entry: dict[str, Any]) -> tuple[int | None, int, float]:
        if entry["parent"] is not None:
            slot = entry["slot"] + self._continued.branch * SLOTS_PER_BRANCH
            return entry["parent"], slot, entry["gradient_scale"]
        lineage = self._continued.lineages[entry["group"]]
        scale = lineage.gradient_scales[-1] if lineage.gradient_scales else 0.0
        return self._ids[entry["group"]], lineage.slots[-1], scale


def continued(
    search: Search, trace: Trace, particle: int = WINNER, *, group: int = 0, step: int = -1, branch: int = 0
) -> Continued:
    """``search`` from a particle of ``trace``; the other images of the batch go on from their winners' ancestors.

    Args:
        search: any method that does not search among starting noises.
        trace: of the earlier run.
        particle: its id, or ``WINNER`` for the winner of image ``group``.
        group: image of the batch, counted from 0; only read for ``WINNER``.
        step: go back to the particle's ancestor at this step; -1 stays at the particle.
        branch: see ``Continued``.

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
    return Continued(search, trace, tuple(lineages), branch)
