"""``ScalewiseProcess``: next-scale image generation (VAR, Infinity) as a ``Process``, so that every search runs on it.

Step k draws the bits of scale k. A particle's state is its code map F, the sum of the scales so far: what the decoder
would show at once, which makes previews free of model calls. The noise of a step is one uniform per bit from the
particle's own stream, so that a particle does not depend on how many others there are, on chunking, or on the device.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...samplers.ledger import Ledger
from ...samplers.processes.chunking import Chunker
from ...samplers.processes.kernel import Interpolant, Noise, is_stochastic
from ...samplers.processes.streams import Streams
from ...samplers.protocols import Capabilities, SearchError, Values
from ...samplers.state import State
from . import bits as codes
from .attention import KVCache
from .flops import cache_bytes, decode_flops, scale_flops
from .sampling import ScaleSampling
from .scale_state import Decoder, ScaleState
from .schedules import ScaleSchedule
from .text import TextFeatures
from .transformer import Infinity, Prompt


class ScalewiseProcess:
    """N particles per group, drawn scale by scale.

    Args:
        model: the transformer.
        prompt: prepared prompts (``model.prompt``), one for all groups or one per group.
        schedule: grids, coarse to fine.
        decoder: code maps -> images.
        groups: output slots G.
        streams: source of all noise.
        sampling: cfg, temperature, nucleus.
        text: the prompts as the text encoder gave them, for value networks; one for all groups or one per group.
        chunker: how many particles fit a model call.
        between: called before each scale and decode of a chunk: hosts raise their cancellation there.

    Raises:
        SearchError: prompts that do not match the groups, or sampling settings that cannot work.
    """

    shown = None
    cheap_looks = None

    def __init__(
        self,
        model: Infinity,
        prompt: Prompt,
        schedule: ScaleSchedule,
        decoder: Decoder,
        groups: int,
        streams: Streams,
        *,
        sampling: ScaleSampling | None = None,
        text: TextFeatures | None = None,
        chunker: Chunker | None = None,
        between: Callable[[], None] = lambda: None,
    ):
        if groups < 1:
            raise SearchError(f"groups is {groups}: there must be at least one image to make")
        if len(prompt.pooled) not in (1, groups):
            raise SearchError(f"{len(prompt.pooled)} prompts for {groups} images: give one, or one per image")
        if len(schedule) > model.config.levels:
            raise SearchError(f"{len(schedule)} scales: this model knows {model.config.levels} at most")
        self.sampling = sampling or ScaleSampling()
        self.sampling.check(len(schedule), model.config.depth)
        if self.sampling.guided and prompt.branches != 2:
            raise SearchError(
                f"cfg is {self.sampling.cfg} but the prompt has no unconditional branch: prepare it guided"
            )
        self.model, self.schedule, self.decoder = model, schedule, decoder
        self.prompt = prompt if self.sampling.guided else prompt.conditional()
        self.groups, self.streams, self.text = groups, streams, text
        self.chunker = chunker or Chunker()
        self.between = between
        self.steps = len(schedule)
        # Noise level in the books: the share of tokens that is still to be drawn.
        offsets = schedule.offsets
        self.sigmas = [1.0 - done / offsets[-1] for done in offsets]
        self.eta: float | Noise = 1.0
        self.ledger = Ledger()
        self._populations: Sequence[int] | None = None

    @property
    def capabilities(self) -> Capabilities:
        """See ``Capabilities``. The last scale is drawn like the others: only finished images can be judged as such."""
        return Capabilities(
            kind="next-scale",
            has_initial_noise=False,
            can_branch=self._draws,
            can_renoise=False,
            can_join=False,
            can_differentiate=False,
            can_choose_noise=False,
            can_resize=True,
            has_code_maps=True,
            ends_clean=False,
        )

    @property
    def _draws(self) -> bool:
        """Whether bits are drawn by chance, not the likelier ones taken."""
        return is_stochastic(self.eta)

    @property
    def nfe_per_call(self) -> int:
        """Forward passes per scale of one particle."""
        return self.prompt.branches

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the code map F."""
        h, w = (self.model.config.fold * side for side in self.schedule.grids[-1])
        return (self.model.config.code_dim, h, w)

    def branches(self, step: int) -> bool:
        """Whether the move out of ``step`` draws noise."""
        return self._draws and step < self.steps

    def expect(self, populations: Sequence[int]) -> None:
        """Announce with how many particles per group each scale is drawn, so that no more cache is reserved."""
        self._populations = list(populations)

    def variant(
        self,
        *,
        sigmas: Sequence[float] | None = None,
        eta: float | Noise | None = None,
        gradient_through: str | None = None,
        streams: Streams | None = None,
        origin: State | None = None,
    ) -> ScalewiseProcess:
        """See ``Process.variant``. ``eta=0`` is the greedy version: every bit takes its likelier value.

        Raises:
            SearchError: another schedule or an origin, which a next-scale model cannot have.
        """
        if (sigmas is not None and list(sigmas) != list(self.sigmas)) or origin is not None:
            raise SearchError("a next-scale model has one schedule, from its first scale to its last")
        other = copy.copy(self)
        other.eta = self.eta if eta is None else eta
        other.streams = self.streams if streams is None else streams
        return other

    @property
    def interpolant(self) -> Interpolant:
        """Not available: raises SearchError for searches that move between noise levels."""
        raise SearchError("this search moves between noise levels, which a next-scale model does not have")

    def start(self, particles: int) -> ScaleState:
        """``G * N`` empty code maps."""
        group = torch.arange(self.groups).repeat_interleave(particles)
        slot = torch.arange(particles).repeat(self.groups)
        return self.begin(self.initial_noise(group, slot), group, slot)

    def initial_noise(self, group: Tensor, slot: Tensor) -> Tensor:
        """Zeros: an image starts from nothing, and all its noise is drawn with its scales."""
        return torch.zeros(len(group), *self.shape, device=self.model.device)

    def begin(self, noise: Tensor, group: Tensor, slot: Tensor) -> ScaleState:
        """Initial state of given groups and slots; ``noise`` is only its shape."""
        return ScaleState(noise, group, slot, step=0, cache=KVCache(len(group)))

    def predict(self, state: State) -> State:
        """``x0`` is F itself: the image so far, without a model call."""
        return state if state.x0 is not None else replace(state, x0=state.x)

    def preview(self, state: State, side: int | None = None) -> Tensor:
        """Images ``[n, H, W, 3]`` in 0..1 of the code maps so far; unfinished ones at the preview size.

        ``side``: codes along the longer side, instead of the decoder's ``preview_side``; 0 for the full size.
        """
        h, w = state.x0.shape[-2:]
        side = self.decoder.preview_side if side is None else side
        if side and state.step < self.steps and max(h, w) > side:
            h, w = (max(1, round(length * side / max(h, w))) for length in (h, w))
        flops = decode_flops(self.decoder.config, h, w) if self.decoder.config else 0

        def decode(rows: slice) -> Tensor:
            self.between()
            maps = codes.resize(state.x0[rows], (h, w))
            with self.ledger.decode(len(maps), flops * len(maps)):
                return self.decoder.decode(maps).clamp(0.0, 1.0).float()

        return self.chunker.cat(decode, len(state))

    @torch.no_grad()
    def advance(self, state: State, gradient: Tensor | None = None) -> tuple[ScaleState, Tensor]:
        """Draw the next scale of all particles; the log-ratio is 0."""
        if gradient is not None:
            raise SearchError("gradients cannot steer a next-scale model, whose bits are discrete: set guidance to 0")
        if not isinstance(state, ScaleState):
            raise SearchError("this search joins populations, which the cache of a next-scale model cannot follow")
        scale, start = state.step, state.cache.length
        length, last = self.schedule.lengths[scale], scale == self.steps - 1
        cache = state.cache
        if not last:  # nothing attends to the last scale: it is not stored
            cache = cache.grow(length, self._capacity(scale), self.model.layout(self.prompt.branches))

        def draw(rows: slice) -> Tensor:
            self.between()
            part = cache.frozen(rows) if last else cache.chunk(rows, start)
            return self._draw(state, rows, part)

        x = self.chunker.cat(draw, len(state))
        moved = replace(state, x=x, x0=None, step=scale + 1, cache=KVCache(len(state)) if last else cache)
        return moved, torch.zeros(len(state), dtype=torch.float64)

    def value_gradient(self, state: State, value) -> tuple[State, Values]:
        """Not available: bits are discrete."""
        raise SearchError("gradients cannot steer a next-scale model, whose bits are discrete: set guidance to 0")

    def reprompt(self, state: State, prompts: Sequence[str | None]) -> State:
        """Not available: the prompt is read once, before the first scale."""
        raise SearchError("a next-scale model reads its prompt once, before the first scale")

    def prompts_of(self, state: State) -> None:
        """None: particles keep their group's prompt."""

    def prompt_embedding(self, group: Tensor) -> None:
        """None: value networks of next-scale models read ``text_states``."""

    def text_states(self, group: Tensor) -> TextFeatures | None:
        """See ``Process.text_states``."""
        if self.text is None:
            return None
        rows = group.to(self.text.features.device) if len(self.text) > 1 else torch.zeros_like(group)
        return TextFeatures(self.text.features[rows], self.text.mask[rows])

    def finish(self, state: State) -> Tensor:
        """The code maps F."""
        return state.x

    def scale_cost(self, scale: int) -> float:
        """FLOPs of one particle at one scale."""
        tokens = self.prompt.text[0].shape[-2]
        return scale_flops(self.model.config, self.schedule, scale, tokens, self.prompt.branches)

    def memory(self, particles: int, scale: int) -> int:
        """Bytes of cache that ``particles`` particles hold after ``scale`` (the last one is not stored)."""
        layout = self.model.layout(self.prompt.branches)
        tokens = self.schedule.offsets[min(scale + 1, self.steps - 1)]
        return particles * cache_bytes(self.model.config, tokens, layout.branches, layout.dtype.itemsize)

    def _capacity(self, scale: int) -> int:
        """Tokens to reserve when ``scale`` needs new storage: up to where the population is next reindexed."""
        until = scale
        plan = self._populations
        while until + 1 < self.steps - 1 and (plan is None or plan[until + 1] == plan[scale]):
            until += 1
        return self.schedule.offsets[until + 1]

    def _draw(self, state: ScaleState, rows: slice, cache) -> Tensor:
        """F of a chunk after the next scale."""
        scale, fold = state.step, self.model.config.fold
        grid = self.schedule.grids[scale]
        total, group, slot = state.x[rows], state.group[rows], state.slot[rows]
        guidance, tau = self.sampling.at(scale)
        prompts = self.prompt.rows(group if len(self.prompt.pooled) > 1 else torch.zeros_like(group))
        inputs = codes.scale_input(total, grid, fold) if scale else None
        with self.ledger.model(len(group) * self.prompt.branches, flops=len(group) * self.scale_cost(scale)):
            logits = self.model.step(inputs, prompts, self.schedule, scale, cache, guidance)
            if self._draws:
                count = logits.shape[1] * logits.shape[2]
                uniforms = self.streams.uniforms(count, group, slot, step=scale, purpose="bits")
                uniforms = uniforms.to(logits.device).view(logits.shape[:-1])
            else:
                uniforms = torch.full(logits.shape[:-1], 0.5, device=logits.device)
            drawn = codes.sample_bits(logits, uniforms, tau, self.sampling.top_p)
            # A NaN would make one of the two bits without a word.
            sound = torch.isfinite(logits).flatten(1).all(1)
            drawn = torch.where(sound.view(-1, *[1] * (drawn.dim() - 1)), drawn, torch.nan)
        return codes.add_scale(total, drawn, grid, fold)
