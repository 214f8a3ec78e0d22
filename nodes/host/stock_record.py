"""What is kept of a run of a sampler, and what it is run with: answers, noise, and the guider as it sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import comfy.k_diffusion.sampling as k_diffusion
import torch
from torch import Tensor

from .process import HostProcess
from .sampling_call import SamplingCall
from .stock_samplers import BROWNIAN

if TYPE_CHECKING:
    from .stock_runs import StockMover


class Paused(BaseException):
    """Raised through a sampler to stop it; no ``except Exception`` on the way may hold it up."""


class Diverged(BaseException):
    """A resumed run asked the model at another state than the run that was stopped."""


@dataclass(eq=False)
class Record:
    """A run of one image, as far as it has come. Clones share the answers that they have in common.

    Attributes:
        image: group. slot: owner of the noise of what comes next. batch: records that began together, one per image.
        noise: ``[C, h, w]`` that it started from. seed: of the run.
        answers: of the model. at: step -> place of the answer that its first call got. asked: the latest state.
        sources: (answers made, seed) from which on the sampler's noise is another one's.
        begins: step of the first call. start: state there, None at noise. result: of the run or part, when it ended.
    """

    image: int
    slot: int
    batch: int
    noise: Tensor
    seed: int
    answers: list[Tensor] = field(default_factory=list)
    at: dict[int, int] = field(default_factory=dict)
    asked: Tensor | None = None
    sources: tuple[tuple[int, int], ...] = ()
    begins: int = 0
    start: Tensor | None = None
    result: Tensor | None = None

    def fork(self, slot: int, seed: int) -> Record:
        """A clone that goes on with noise of its own."""
        made = len(self.answers)
        return replace(
            self,
            slot=slot,
            answers=list(self.answers),
            at=dict(self.at),
            sources=(*self.sources, (made, seed)),
        )

    def answer(self, step: int) -> Tensor:
        """The clean estimate at a step; the latest before it where the sampler asked nothing there."""
        place = self.at[max(known for known in self.at if known <= step)]
        return self.answers[place]


class Run:
    """The guider, as a sampler sees it during one run: answers from the record, then from the model."""

    def __init__(self, mover: StockMover, process: HostProcess, rows: list[Record], until: int | None):
        self._mover, self._process, self._rows, self._until = mover, process, rows, until
        self._images = [record.image for record in rows]
        self.calls = 0
        self.options: dict[str, Any] = {}
        self._known = len(rows[0].answers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mover.call.guider, name)

    def __call__(self, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed: int | None = None):
        """Clean estimates ``[n, ...]`` of the run's images."""
        place = self.calls
        self.calls += 1
        if place < self._known:
            if place == self._known - 1:
                self._compare(x)
            return torch.stack([record.answers[place] for record in self._rows])
        answer = self._ask(x, timestep, model_options or {}, seed)
        for row, record in enumerate(self._rows):
            record.answers.append(answer[row].detach().clone())
        self._note(x, answer, float(timestep.max()), place, model_options or {})
        return answer

    def _compare(self, x: Tensor) -> None:
        before = torch.stack([record.asked for record in self._rows])
        if not float((x - before).abs().max()) <= 1e-4 * max(float(before.abs().max()), 1e-6):
            raise Diverged()

    def _ask(self, x: Tensor, timestep: Tensor, model_options: dict, seed: int | None) -> Tensor:
        process, n = self._process, len(self._rows)
        with process.ledger.model(n * process.nfe_per_call) as call:
            whole = self._images == list(range(process.groups))
            groups = None if whole else torch.tensor(self._images)
            answer, call.nfe = process.denoise.as_sampler(x, timestep, model_options, seed, groups)
        return answer

    def _note(self, x: Tensor, answer: Tensor, sigma: float, place: int, model_options: dict) -> None:
        """Which step this was the first call of; stop where the run is to stop."""
        sigmas, first = self._process.sigmas, self._rows[0]
        step = max(first.at, default=first.begins - 1) + 1
        while step < self._process.steps and place > 0 and sigma < sigmas[step] * (1.0 - 1e-4):
            step += 1  # the sampler went past a level without asking there
            if step - 1 == self._until:
                self._until = None
                self._mover.cannot_pause("chooses steps of its own")
        if step >= self._process.steps or (place > 0 and sigma > sigmas[step] * (1.0 + 1e-4)):
            return
        for record, latent in zip(self._rows, x, strict=True):
            record.at[step] = place
            record.asked = latent.detach().clone()
        self._mover.tell(answer, x)
        if step != self._until:
            return
        if self._hooked(model_options):
            self._mover.cannot_pause("reads more of the model than its answer")
            return
        raise Paused()

    def _hooked(self, model_options: dict) -> bool:
        """Whether the sampler set functions of its own into the model's options (as the cfg_pp samplers do)."""
        names = ("sampler_post_cfg_function", "sampler_pre_cfg_function", "sampler_cfg_function")
        return any(model_options.get(name) != self.options.get(name) for name in names)


class RunNoise:
    """``noise_sampler`` of a run whose images have noise of their own: what the host would draw for the whole batch by
    each image's seed, and of that the image's row. After a clone's beginning it is the clone's.

    Attributes:
        needed: the host's own would not do.
    """

    def __init__(self, name: str, rows: list[Record], run: Run, call: SamplingCall):
        self._rows, self._run, self._call = rows, run, call
        self._brownian, self._on_device = name in BROWNIAN, name.endswith("_gpu")
        self._made: dict[int, Callable] = {}
        plain = all(record.sources == rows[0].sources and len(record.sources) == 1 for record in rows)
        self.needed = len(rows) < call.groups or not plain

    def __call__(self, sigma, sigma_next) -> Tensor:
        """Standard normals ``[n, ...]`` for a move of the run's images."""
        drawn: dict[int, Tensor] = {}
        parts = []
        for record in self._rows:
            seed = [seed for made, seed in record.sources if self._run.calls >= made or made == 0][-1]
            if seed not in drawn:
                drawn[seed] = self._source(seed)(sigma, sigma_next)
            parts.append(drawn[seed][record.image])
        return torch.stack(parts)

    def _source(self, seed: int) -> Callable:
        if seed not in self._made:
            like = torch.zeros_like(self._call.noise)
            if self._brownian:
                sigmas = self._call.sigmas
                low, high = sigmas[sigmas > 0].min(), sigmas.max()
                made = k_diffusion.BrownianTreeNoiseSampler(like, low, high, seed=seed, cpu=not self._on_device)
            else:
                made = k_diffusion.default_noise_sampler(like, seed=seed)
            self._made[seed] = made
        return self._made[seed]
