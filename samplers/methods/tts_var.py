"""TTS-VAR: a population that shrinks while the image grows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import at_least, one_of
from ..clustering import REDUCTIONS, Extractor, reduce_tokens, representatives
from ..method import SearchMethod
from ..protocols import Outline, Process, SearchError, SearchResult, Verifier
from ..run.session import Session
from ..smc.resampling import SCHEMES, resample, uniforms_for
from ..smc.weights import best_rows, normalise
from ..state import State

POTENTIALS = ("value", "max", "sum", "diff")
HISTORIES = ("selection", "all")


@dataclass(frozen=True)
class PopulationPlan:
    """Where a population shrinks, in multiples of N. Scales count from 0; selection comes after a scale is drawn.

    Attributes:
        start: particles of the first scale.
        cluster, resample: scale -> particles that are kept after it.
    """

    start: int
    cluster: Mapping[int, int]
    resample: Mapping[int, int]

    @property
    def keep(self) -> dict[int, int]:
        """Scale -> particles that are kept, both kinds."""
        return {**self.cluster, **self.resample}

    def populations(self, steps: int) -> list[int]:
        """Multiples of N that each scale is drawn with."""
        sizes, size = [], self.start
        for step in range(steps):
            sizes.append(size)
            size = self.keep.get(step, size)
        return sizes

    def check(self, steps: int) -> None:
        """Raise SearchError if the plan does not fit ``steps`` scales."""
        both = sorted(self.cluster.keys() & self.resample.keys())
        if both:
            raise SearchError(f"scale {both[0]} is clustered and resampled: choose one of the two for each scale")
        outside = [scale for scale in self.keep if not 0 <= scale < steps - 1]
        if outside:
            raise SearchError(
                f"selection after scale {outside[0]}: with {steps} scales it must lie in 0 .. {steps - 2} "
                f"(the best of the last scale is the result)"
            )
        size = self.start
        for scale, kept in sorted(self.keep.items()):
            if kept < 1 or kept > size:
                raise SearchError(f"the population rises from {size} N to {kept} N at scale {scale}: it may only fall")
            size = kept

    @classmethod
    def from_batches(
        cls, batches: Sequence[int], cluster: Sequence[int], resample: Sequence[int], steps: int
    ) -> PopulationPlan:
        """PopulationPlan of the paper's list: population after the selection at each scale, in multiples of N.

        The published code draws scale i with ``batches[i - 1]`` particles and selects ``batches[i]`` of them.
        """
        if len(batches) != steps:
            raise SearchError(f"the batch schedule has {len(batches)} numbers for {steps} scales: give {steps}")
        for scale, (before, after) in enumerate(zip(batches, batches[1:], strict=False), 1):
            if after > before:
                raise SearchError(f"the batch schedule rises from {before} to {after} at scale {scale}")
            if after < before and scale not in (*cluster, *resample):
                raise SearchError(
                    f"the batch schedule falls from {before} to {after} at scale {scale}, where nothing selects: "
                    f"add it to the cluster or resample scales"
                )
        for scale in (*cluster, *resample):
            if not 0 <= scale < steps:
                raise SearchError(f"selection after scale {scale}: there are scales 0 .. {steps - 1}")
        plan = cls(batches[0], {s: batches[s] for s in cluster}, {s: batches[s] for s in resample})
        plan.check(steps)
        return plan


PLANS = {
    13: PopulationPlan(8, {2: 6, 5: 4}, {6: 2, 9: 1}),  # the published one
    12: PopulationPlan(8, {2: 6, 5: 4}, {6: 2, 9: 1}),
    10: PopulationPlan(8, {2: 6, 4: 4}, {5: 2, 7: 1}),
    8: PopulationPlan(8, {1: 6, 2: 4}, {3: 2, 5: 1}),
    7: PopulationPlan(8, {1: 6, 3: 4}, {4: 2, 5: 1}),
    6: PopulationPlan(8, {1: 6, 2: 4}, {3: 2, 4: 1}),
}


def default_plan(steps: int) -> PopulationPlan:
    """The plan for a number of scales, or of denoising steps: the published one in proportion where none is listed."""
    if steps in PLANS:
        return PLANS[steps]
    if steps < 6:
        raise SearchError(f"{steps} scales are too few for the default plan of four selections: give a plan")
    at = [max(1, round(scale * (steps - 1) / 12)) for scale in (2, 5, 6, 9)]
    for i in range(1, 4):
        at[i] = max(at[i], at[i - 1] + 1)
    return PopulationPlan(8, {at[0]: 6, at[1]: 4}, {at[2]: 2, at[3]: 1})


@dataclass(frozen=True)
class TTSVAR(SearchMethod):
    """Test-time scaling for visual autoregressive models (Chen et al. 2025, arXiv 2507.18537).

    Many particles while scales are cheap, few when they are expensive. After early scales, whose images say little
    about the final quality, k-means over image features keeps one particle per cluster; after later ones particles
    are drawn in proportion to ``exp(lambda * potential)`` of their scores (eq. 6 to 9):

        value  r_k          diff  r_k - r_{k-1}          max  max_i r_i          sum  sum_i r_i

    The result is the best finished image. It runs on diffusion processes too, where a scale is a denoising step.

    Attributes:
        particles: N; the plan multiplies it.
        plan: where the population shrinks, None for ``default_plan``.
        extractor: what sees the images for clustering; may be None if nothing is clustered.
        features: reduction of the extractor's tokens, see ``clustering.reduce_tokens``.
        potential: see above. All but "value" need scores of scales at which nothing is selected.
        strength: lambda, the inverse temperature of the resampling, >= 0.
        history: scales whose scores "max" and "sum" look at: "selection" starts at the first selection, "all" at 0.
        resampling: scheme that particles are drawn by, see ``smc.resampling``; multinomial is the published one.
        cluster_side: codes along the longer side that images are decoded at where they are only clustered, 0 for the
            process's preview size. Only next-scale models decode at other sizes than their own.
    """

    name: ClassVar[str] = "tts_var"
    title: ClassVar[str] = "TTS-VAR"
    width: ClassVar[str] = "particles"

    particles: int = 2
    plan: PopulationPlan | None = None
    extractor: Extractor | None = field(default=None, compare=False)
    features: str = "pca"
    potential: str = "value"
    strength: float = 10.0
    history: str = "selection"
    cluster_side: int = 0
    resampling: str = "multinomial"

    @property
    def needs(self) -> frozenset[str]:
        """Copies of a particle must separate."""
        return frozenset({"can_branch"})

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError for a plan or a preview size that does not fit ``process``."""
        plan = self.plan_for(process.steps)
        plan.check(process.steps)
        if plan.cluster and self.extractor is None:
            raise SearchError("no feature extractor: clustering needs one (or a plan that only resamples)")
        if self.cluster_side and not process.capabilities.can_resize:
            raise SearchError(
                f"cluster_side is {self.cluster_side}: only next-scale models decode at other sizes, set it to 0"
            )

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        at_least(1, particles=self.particles)
        one_of(POTENTIALS, potential=self.potential)
        one_of(tuple(REDUCTIONS), features=self.features)
        one_of(HISTORIES, history=self.history)
        one_of(tuple(SCHEMES), resampling=self.resampling)
        if not 0 <= self.strength < math.inf:
            raise SearchError(f"strength (lambda) is {self.strength}: it must be >= 0 and finite")
        if self.cluster_side < 0:
            raise SearchError(f"cluster_side is {self.cluster_side}: use the codes along a side, or 0 for preview size")

    @property
    def population(self) -> int:
        """Particles per image that the search begins with, its largest number."""
        return self.particles * (self.plan or PLANS[13]).start

    def populations(self, steps: int) -> list[int]:
        """Particles per image that each scale is drawn with."""
        return [self.particles * size for size in self.plan_for(steps).populations(steps)]

    def denoiser_calls(self, process: Outline) -> int:
        """Denoiser calls per image: every particle once per scale, and once more where the schedule stops above 0."""
        sizes = self.populations(process.steps)
        once_more = sizes[-1] if process.capabilities.can_renoise and not process.capabilities.ends_clean else 0
        return sum(sizes) + once_more

    def verifications(self, process: Outline) -> int:
        """Decodes and verifications per image."""
        plan, drawn = self.plan_for(process.steps), self.populations(process.steps)
        looked = self.scored_scales(plan) | set(plan.cluster)  # after a scale, at the particles that drew it
        return sum(drawn[scale] for scale in looked if scale < process.steps - 1) + drawn[-1]

    def plan_for(self, steps: int) -> PopulationPlan:
        """The plan on ``steps`` scales."""
        return self.plan or default_plan(steps)

    def scored_scales(self, plan: PopulationPlan) -> set[int]:
        """Scales after which all particles are scored; the finished images are scored in any case."""
        if not plan.resample or self.potential == "value":
            return set(plan.resample)
        if self.potential == "diff":
            return {scale for k in plan.resample for scale in (k - 1, k) if scale >= 0}
        first = 0 if self.history == "all" else min(plan.keep)
        return set(range(first, max(plan.resample) + 1))

    def run(self, session: Session) -> SearchResult:
        """Draw, look, select; the module's names follow the paper."""
        process = session.process
        plan = self.plan_for(process.steps)
        scored = self.scored_scales(plan)
        self._warn_of_relative_scores(session)
        process.expect(self.populations(process.steps))
        state = session.step(process.predict(process.start(self.particles * plan.start)))
        past = torch.empty(len(state), 0, dtype=torch.float64)  # scores so far [n, scales], rows follow the particles
        for scale in range(process.steps - 1):
            state, values, images = session.move(state), None, None
            if scale in scored:
                state, values, images = session.evaluate(state)
                past = torch.cat([past, values.score[:, None]], 1)
            else:
                state = process.predict(state)
            rows, slot = None, None
            if scale in plan.cluster:
                images = self._glimpse(process, state) if images is None else images
                rows = self._cluster(session, images, self.particles * plan.cluster[scale], scale)
            elif scale in plan.resample:
                keep = self.particles * plan.resample[scale]
                if process.branches(state.step):
                    rows = self._resample(session, past, keep, scale)
                else:  # copies could never separate any more: the best are kept, each once
                    rows = best_rows(self.log_potential(past).view(process.groups, -1), keep)
                # Copies must not draw the same bits again: the place owns the stream.
                slot = torch.arange(len(rows) // process.groups).repeat(process.groups)
            resampled = torch.full((process.groups,), scale in plan.resample)
            state = session.step(state, values, images, selected=rows, used=scale in plan.resample, resampled=resampled)
            if rows is not None:
                state, past = state.select(rows, slot=slot), past[rows]
        return session.finish(session.move(state))

    def _warn_of_relative_scores(self, session: Session) -> None:
        if self.potential != "value" and session.verifier is not None and session.verifier.relative:
            session.warn(
                f"verifier {session.verifier.name!r} compares the candidates of a scale with each other, but the "
                f"potential {self.potential!r} compares scores of different scales: use 'value'"
            )

    def _glimpse(self, process: Process, state: State) -> Tensor:
        """Images that are clustered and not scored."""
        return process.preview(state, self.cluster_side or None)

    def _cluster(self, session: Session, images: Tensor, keep: int, scale: int) -> Tensor:
        """Rows of one particle per cluster, for every group."""
        process, extractor = session.process, self.extractor
        if extractor is None:
            raise SearchError("no feature extractor: clustering needs one (or a plan that only resamples)")
        with torch.no_grad():
            tokens = process.chunker.cat(lambda rows: extractor.tokens(images[rows]).cpu(), len(images))
        size = len(images) // process.groups
        rows = []
        for g in range(process.groups):
            points = reduce_tokens(tokens[g * size : (g + 1) * size], self.features)
            if not bool(torch.isfinite(points).all()):
                raise SearchError(f"extractor {extractor.name!r} gave features that are not finite")
            uniforms = process.streams.uniform(keep, group=g, step=scale, purpose="cluster")
            chosen, empty = representatives(points, keep, uniforms)
            if empty:
                session.warn(
                    f"scale {scale}: fewer than {keep} different images to cluster; the remaining places went to the "
                    f"ones farthest from those chosen"
                )
            rows.append(chosen + g * size)
        return torch.cat(rows)

    def _resample(self, session: Session, past: Tensor, keep: int, scale: int) -> Tensor:
        """Rows drawn in proportion to ``exp(strength * potential)``, for every group."""
        process = session.process
        log_w = self.strength * self.log_potential(past).view(process.groups, -1)
        # 0 * -inf is NaN: without selection pressure all finite scores are equal, a rejected one still may not live.
        log_w = torch.where(torch.isnan(log_w), -math.inf, log_w)
        if bool(torch.isneginf(log_w).all()):
            session.warn("no particle has a finite score: selection is by chance where that happens")
        n, rows = log_w.shape[1], []
        for g in range(process.groups):
            count = uniforms_for(self.resampling, n, keep)
            uniforms = process.streams.uniform(count, group=g, step=scale, purpose="resample")
            rows.append(resample(self.resampling, normalise(log_w[g]), uniforms, keep) + g * n)
        return torch.cat(rows)

    def log_potential(self, past: Tensor) -> Tensor:
        """Potential ``[n]`` of score histories ``[n, scales]``, latest last; a rejected latest score is -inf."""
        latest = past[:, -1]
        rejected = torch.isneginf(latest)
        known = torch.where(torch.isneginf(past), torch.nan, past)
        if self.potential == "max":
            value = past.amax(1)
        elif self.potential == "sum":
            value = known.nansum(1)
        elif self.potential == "diff" and past.shape[1] > 1:
            before = known[:, -2]
            value = torch.where(torch.isnan(before), 0.0, latest - before)
        else:
            value = latest
        return torch.where(rejected, -math.inf, value)
