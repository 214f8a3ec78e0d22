"""TTS-VAR: a population that shrinks while the image grows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import at_least, one_of
from ..clustering import REDUCTIONS, Extractor, reduce_tokens, representatives
from ..method import SearchMethod, calls_of
from ..protocols import Outline, Process, SearchError, SearchResult, Values, Verifier
from ..run.session import Session
from ..smc.resampling import SCHEMES, resample, uniforms_for
from ..smc.weights import best_rows, normalise
from ..state import State
from ..values import AnyValue, as_value, values_of
from .population_plan import NAMED_PLANS, PLANS, PopulationPlan

POTENTIALS = ("value", "max", "sum", "diff")
NO_EXTRACTOR = "no feature extractor: clustering needs one (or a plan that only resamples)"
HISTORIES = ("selection", "all")
TOP = "top"
CLUSTER_BY = ("features", "codes")


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
        plan: where the population shrinks: "published", "scores" (see ``NAMED_PLANS``), or one of your own.
        cluster_by: "features" of the decoded images, as published, or "codes": the code maps of a next-scale model as
            they are, which costs no decode.
        extractor: what sees the images for clustering; may be None if nothing is clustered, or clustered by codes.
        features: reduction of the extractor's tokens, see ``clustering.reduce_tokens``.
        potential: see above. All but "value" need scores of scales at which nothing is selected.
        strength: lambda, the inverse temperature of the resampling, >= 0.
        history: scales whose scores "max" and "sum" look at: "selection" starts at the first selection, "all" at 0.
        value_function: a learned value that chooses at the resampling scales, without decoding and judging there; see
            ``samplers.values``. Finished images are always judged by the verifier.
        selection: how survivors are chosen by their potentials: a scheme of ``smc.resampling`` that draws them
            ("multinomial" as published), or "top", which keeps the best, each once, and ignores ``strength``.
        cluster_side: codes along the longer side that images are decoded at where they are only clustered, 0 for the
            process's preview size. Only next-scale models decode at other sizes than their own.
    """

    name: ClassVar[str] = "tts_var"
    title: ClassVar[str] = "TTS-VAR"
    width: ClassVar[str] = "particles"

    particles: int = 2
    plan: PopulationPlan | str = "published"
    extractor: Extractor | None = field(default=None, compare=False)
    features: str = "pca"
    potential: str = "value"
    strength: float = 10.0
    history: str = "selection"
    cluster_side: int = 0
    cluster_by: str = "features"
    selection: str = "multinomial"
    value_function: AnyValue | None = None

    @property
    def needs(self) -> frozenset[str]:
        """Copies of a particle must separate; clusters by codes need codes."""
        return frozenset({"can_branch"} | ({"has_code_maps"} if self.cluster_by == "codes" else set()))

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError for a plan or a preview size that does not fit ``process``."""
        plan = self.plan_for(process.steps)
        plan.check(process.steps)
        if plan.cluster and self.extractor is None and self.cluster_by == "features":
            raise SearchError(NO_EXTRACTOR)
        if self.value_function is not None:
            as_value(self.value_function).check(process)
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
        one_of((*SCHEMES, TOP), selection=self.selection)
        one_of(CLUSTER_BY, cluster_by=self.cluster_by)
        if isinstance(self.plan, str):
            one_of(tuple(NAMED_PLANS), plan=self.plan)
        if not 0 <= self.strength < math.inf:
            raise SearchError(f"strength (lambda) is {self.strength}: it must be >= 0 and finite")
        if self.cluster_side < 0:
            raise SearchError(f"cluster_side is {self.cluster_side}: use the codes along a side, or 0 for preview size")

    @property
    def population(self) -> int:
        """Particles per image that the search begins with, its largest number."""
        return self.particles * (PLANS[13] if isinstance(self.plan, str) else self.plan).start

    def populations(self, steps: int) -> list[int]:
        """Particles per image that each scale is drawn with."""
        return [self.particles * size for size in self.plan_for(steps).populations(steps)]

    def denoiser_calls(self, process: Outline) -> int:
        """Denoiser calls per image: every particle once per scale.

        On a diffusion schedule particles are predicted before they are selected, those of the last move to 0 not at
        all; one that stops above 0 costs one more, to see the image.
        """
        return calls_of(process, self.populations(process.steps))

    def verifications(self, process: Outline) -> int:
        """Decodes and verifications per image."""
        plan, drawn = self.plan_for(process.steps), self.populations(process.steps)
        # after a scale, at the particles that drew it
        looked = self.scored_scales(plan) if self.value_function is None else set()
        if self.cluster_by == "features":
            looked |= set(plan.cluster)
        return sum(drawn[scale] for scale in looked if scale < process.steps - 1) + drawn[-1]

    def plan_for(self, steps: int) -> PopulationPlan:
        """The plan on ``steps`` scales."""
        return NAMED_PLANS[self.plan](steps) if isinstance(self.plan, str) else self.plan

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
                state, values, images = self._look(session, state)
                past = torch.cat([past, values.score[:, None]], 1)
            else:
                state = process.predict(state)
            rows, slot = None, None
            if scale in plan.cluster:
                if images is None and self.cluster_by == "features":
                    images = self._glimpse(process, state)
                rows = self._cluster(session, state, images, self.particles * plan.cluster[scale], scale)
            elif scale in plan.resample:
                keep = self.particles * plan.resample[scale]
                if self.selection != TOP and process.branches(state.step):
                    rows = self._resample(session, past, keep, scale)
                    # Copies must not draw the same bits again: the place owns the stream.
                    slot = torch.arange(len(rows) // process.groups).repeat(process.groups)
                else:  # also where copies could never separate any more
                    rows = self._top(session, past, keep)
            resampled = torch.full((process.groups,), scale in plan.resample)
            state = session.step(state, values, images, selected=rows, used=scale in plan.resample, resampled=resampled)
            if rows is not None:
                state, past = state.select(rows, slot=slot), past[rows]
        return session.finish(session.move(state))

    def _look(self, session: Session, state: State) -> tuple[State, Values, Tensor | None]:
        """Values of particles; previews where these were made."""
        if self.value_function is None:
            return session.evaluate(state)
        return session.process.predict(state), values_of(session, self.value_function, state), None

    def _warn_of_relative_scores(self, session: Session) -> None:
        if self.potential != "value" and session.verifier is not None and session.verifier.relative:
            session.warn(
                f"verifier {session.verifier.name!r} compares the candidates of a scale with each other, but the "
                f"potential {self.potential!r} compares scores of different scales: use 'value'"
            )

    def _glimpse(self, process: Process, state: State) -> Tensor:
        """Images that are clustered and not scored."""
        return process.preview(state, self.cluster_side or None)

    def _cluster(self, session: Session, state: State, images: Tensor | None, keep: int, scale: int) -> Tensor:
        """Rows of one particle per cluster, for every group."""
        process = session.process
        size = len(state) // process.groups
        points = self._points(process, state, images)
        rows = []
        for g in range(process.groups):
            uniforms = process.streams.uniform(keep, group=g, step=scale, purpose="cluster")
            chosen, empty = representatives(points[g], keep, uniforms)
            if empty:
                session.warn(
                    f"scale {scale}: fewer than {keep} different images to cluster; the remaining places went to the "
                    f"ones farthest from those chosen"
                )
            rows.append(chosen + g * size)
        return torch.cat(rows)

    def _points(self, process: Process, state: State, images: Tensor | None) -> list[Tensor]:
        """What is clustered: one vector per particle ``[N, F]``, for every group."""
        size = len(state) // process.groups
        if images is None:
            return list(state.x.flatten(1).float().cpu().split(size))
        extractor = self.extractor
        if extractor is None:
            raise SearchError(NO_EXTRACTOR)
        with torch.no_grad():
            tokens = process.chunker.cat(lambda rows: extractor.tokens(images[rows]).cpu(), len(images))
        points = [reduce_tokens(part, self.features) for part in tokens.split(size)]
        if not all(bool(torch.isfinite(part).all()) for part in points):
            raise SearchError(f"extractor {extractor.name!r} gave features that are not finite")
        return points

    def _top(self, session: Session, past: Tensor, keep: int) -> Tensor:
        """Rows of the highest potentials, for every group, each once; rejected ones last."""
        potential = self.log_potential(past).view(session.process.groups, -1)
        if bool((torch.isfinite(potential).sum(1) < keep).any()):
            session.warn(f"fewer than {keep} particles have a finite score: the first of the others fill the places")
        return best_rows(potential, keep)

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
            count = uniforms_for(self.selection, n, keep)
            uniforms = process.streams.uniform(count, group=g, step=scale, purpose="resample")
            rows.append(resample(self.selection, normalise(log_w[g]), uniforms, keep) + g * n)
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
