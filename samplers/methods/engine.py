"""The one sequential Monte Carlo engine: tempered SMC, DAS, FK steering and importance sampling are its settings.

Target: ``p(x0) exp(r(x0) / alpha)``. Per step, for all particles of all groups:

    x0_i = D(x_i);  r_i = r(decode(x0_i));  g_i = grad_x r_i                       look
    log_w += potential(r_i, lambda_i / alpha)                                      weigh
    ESS < threshold * N  ->  ancestors ~ W;  everything follows the ancestors      resample
    x_{i+1} ~ N(mean + v (lambda_{i+1} / alpha) g_i,  v)                           move
    log_w += log p - log q                                                         correct

The last move into sigma = 0 is deterministic, so the score of the last clean estimate is the score of the finished
image and is not paid for twice. ``E[Z_hat] = Z`` holds for any N and any fixed tempering.

Sources: DAS (Kim et al. 2025, alg. 1), FK steering (Singhal et al. 2025, alg. 1), Del Moral et al. 2006.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .. import few_steps
from ..checks import above, at_least, one_of, window
from ..method import SearchMethod, calls_of
from ..movers import PAUSES, STEPS
from ..protocols import Outline, Process, SearchError, SearchResult, Values, Verifier
from ..run.session import Session
from ..smc.population import Population
from ..smc.potentials import POTENTIALS
from ..smc.resampling import SCHEMES
from ..smc.tempering import TEMPERINGS, Alpha, AlphaScale, usual_spread
from ..smc.weights import ess_threshold
from ..state import State
from ..values import AnyValue, as_value, values_of
from .course import Course

MOST_FULL_RESAMPLINGS = 2
"""Resamplings by the full score (potentials other than "diff") that few particles stand."""


@dataclass(frozen=True)
class Engine(SearchMethod):
    """Settings of the SMC engine.

    Attributes:
        particles: N per group, >= 1.
        alpha: temperature of the target.
        tempering: "exponential", "linear", "none" or "adaptive" (at most linear, and no faster than ``ess_threshold``
            allows); ``gamma`` as in ``tempering.exponential``.
        potential: "diff", "max", "rt" or "sum", see ``potentials``.
        guidance: 0 = no gradient proposal, 1 = DAS; scales the gradient (weights stay correct for any value).
        start, end, every: resampling is allowed at steps ``start*T, start*T + every, ...`` up to ``end*T``. every = 0:
            as often as usual, and below 12 steps at ``few_steps.points``, where the score is phased in as well.
        points: steps at which resampling is allowed, instead of start, end and every.
        ess_threshold: ESS below which a group is resampled, as a fraction of N; None for the default by N, >= 1 to
            resample at every allowed step.
        resampling: scheme, see ``resampling``.
        value_function: a learned value, replaces decode and verify on the way; see ``samplers.values``. The finished
            images are judged by the verifier.
    """

    name: ClassVar[str] = "engine"
    title: ClassVar[str] = "SMC engine"
    width: ClassVar[str] = "particles"
    weighted: ClassVar[bool] = True

    particles: int = 4
    alpha: Alpha = Alpha()  # noqa: RUF009 - frozen
    tempering: str = "exponential"
    gamma: float | None = None
    potential: str = "diff"
    guidance: float = 0.0
    start: float = 0.0
    end: float = 0.9
    every: int = 1
    points: tuple[int, ...] | None = None
    ess_threshold: float | None = None
    resampling: str = "systematic"
    value_function: AnyValue | None = None

    @property
    def needs(self) -> frozenset[str]:
        """Clones must separate; guidance follows gradients."""
        needs = {"can_branch"} if self.particles > 1 else set()
        return frozenset(needs | ({"can_differentiate"} if self.guidance > 0 else set()))

    @property
    def decides(self) -> str:
        """At the steps of resampling; guided moves follow a gradient at every step."""
        return STEPS if self.guidance > 0 else PAUSES

    def decisions(self, process: Outline) -> list[int]:
        """See ``SearchMethod.decisions``."""
        return self.resampling_steps(process.steps) if self.particles > 1 else []

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError for a value function that was made for another model."""
        if self.value_function is not None:
            as_value(self.value_function).check(process)

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        at_least(1, particles=self.particles)
        at_least(0, every=self.every)
        at_least(0, guidance=self.guidance)
        one_of((*TEMPERINGS, "adaptive"), tempering=self.tempering)
        one_of(POTENTIALS, potential=self.potential)
        one_of(tuple(SCHEMES), resampling=self.resampling)
        window(self.start, self.end)
        above(0, gamma=self.gamma)
        if self.ess_threshold is not None:
            at_least(0, ess_threshold=self.ess_threshold)
        if self.tempering == "adaptive" and self.potential != "diff":
            raise SearchError(f"tempering is 'adaptive' with potential {self.potential!r}: it goes with 'diff' only")
        if self.guidance > 0 and self.value_function is not None:
            raise SearchError("guidance follows the gradient of the verifier: leave out the value function, or use 0")
        if self.guidance > 0 and self.particles == 1 and self.alpha.mode == "relative":
            raise SearchError("alpha mode is 'relative' with 1 particle: a spread needs at least 2; use 'absolute'")

    def resampling_steps(self, steps: int) -> list[int]:
        """Steps at which resampling is allowed; never the last one, whose move draws no noise."""
        if self.points is not None:
            return [step for step in self.points if step <= steps - 2]
        if self.short(steps):
            return few_steps.chosen(few_steps.points(steps), self._window(), steps)
        first, last = math.ceil(self.start * steps), min(math.floor(self.end * steps), steps - 2)
        return list(range(first, last + 1, self.every or type(self).every))

    def short(self, steps: int) -> bool:
        """Whether decision points come from the number of steps. (A gradient is followed at every step.)"""
        return self.every == 0 and steps < few_steps.MANY and self.guidance == 0

    def _window(self) -> tuple[float, float] | None:
        """Start and end, where they are not this method's own."""
        given = (self.start, self.end)
        return None if given == (type(self).start, type(self).end) else given

    def _lambdas(self, steps: int) -> Tensor:
        """lambda of every step, float64 ``[T]``; on a short schedule raised where particles are chosen, alone."""
        at = self.resampling_steps(steps)
        if not self.short(steps) or not at or self.gamma is not None:
            name = "linear" if self.tempering == "adaptive" else self.tempering
            return TEMPERINGS[name](steps, self.gamma, self.start)
        if self.tempering == "none":
            return (torch.arange(steps) >= at[0]).double()
        return torch.tensor(few_steps.tempered(at, steps), dtype=torch.float64)

    def denoiser_calls(self, process: Outline) -> int:
        """Denoiser calls per image; a guided one also goes backward. A schedule that stops above 0 costs one more."""
        return calls_of(process, [self.particles] * process.steps)

    def verifications(self, process: Outline) -> int:
        """Decodes and verifications per image."""
        if self.guidance > 0:
            return self.particles * process.steps
        on_the_way = 0 if self.value_function is not None else len(self.resampling_steps(process.steps))
        return self.particles * ((on_the_way if self.particles > 1 else 0) + 1)

    def unguided(self) -> Engine:
        """The same settings without the gradient proposal."""
        return replace(self, guidance=0.0)

    def run(self, session: Session) -> SearchResult:
        """Algorithm of the module docstring."""
        process, n = session.process, self.particles
        course = self._course(session)
        lambdas, allowed = course.lambdas, course.allowed
        scale = AlphaScale(self.alpha, process.groups, usual_spread(session.verifier))
        pop = Population(process.groups, n, self.potential)
        state, values = process.start(n), None
        for i in range(process.steps):
            last = i == process.steps - 1
            guided = self.guidance > 0 and not last and bool(lambdas[i + 1] > 0)
            if guided or (i in allowed and lambdas[i] > 0) or (last and process.capabilities.ends_clean):
                state, values, images = self._look(session, state, guided, last)
                beta = self._weigh(session, pop, values, scale, course, i)
            else:
                state, values, images = process.predict(state), None, None
                beta = torch.zeros(process.groups, dtype=torch.float64)
            ess, log_w, ranking = pop.ess(), pop.log_w, pop.winnable()
            chosen = course.to_resample(i, ess, n)
            rows = pop.resample(chosen, self.resampling, process.streams, i)
            state = session.step(
                state,
                values,
                images,
                selected=rows,
                score=ranking,
                log_weight=log_w,
                gradient_scale=pop.gradient_scale,
                ess=ess,
                resampled=chosen,
                inverse_temperature=beta,
            )
            if chosen.any():
                # After a resampling the slot, not the ancestor, owns the stream: clones get different noise.
                state = state.select(rows, slot=torch.arange(n).repeat(process.groups))
            gradient = None
            if guided and values is not None:
                gradient = self._guide(pop, values.select(rows), lambdas[i + 1], beta, scale, state)
            else:
                pop.gradient_scale = torch.zeros_like(beta)
            state, log_ratio = session.advance(state, gradient)
            pop.add(log_ratio.view(process.groups, n))
        return self._finish(session, state, values, pop, scale)

    def _course(self, session: Session) -> Course:
        """How the score is phased in, and when resampling is allowed; says what will not work as one may think."""
        steps, n = session.process.steps, self.particles
        adaptive_tempering = self.tempering == "adaptive"
        allowed = set(self.resampling_steps(steps)) if n > 1 else set()
        threshold = ess_threshold(n, self.ess_threshold)
        if self.ess_threshold is not None and threshold != self.ess_threshold:
            session.warn(
                f"ess_threshold is {self.ess_threshold}: with {n} particles it could never resample, {threshold:g} is "
                f"used"
            )
        if allowed and session.verifier is not None and session.verifier.relative:
            session.warn(
                f"verifier {session.verifier.name!r} compares the candidates of a step with each other, but "
                f"{self.title} compares scores of different steps: combine by zscore or sum"
            )
        lambdas = self._lambdas(steps)
        looked = sum(bool(lambdas[i] > 0) for i in allowed)
        if self.potential != "diff" and looked > MOST_FULL_RESAMPLINGS:
            session.warn(
                f"potential is {self.potential!r} and {looked} steps resample by the full score: few particles come "
                f"out too extreme; use 'diff', or leave at most {MOST_FULL_RESAMPLINGS} such steps (start, end, every)"
            )
        return Course(lambdas, allowed, threshold, adaptive_tempering, session.process.groups)

    def _look(self, session: Session, state: State, guided: bool, last: bool) -> tuple[State, Values, Tensor | None]:
        """Scores of the clean estimates, or values of the states where a learned value stands for them."""
        if self.value_function is None or last:
            return session.evaluate(state, gradient=guided)
        state = session.process.predict(state)
        return state, values_of(session, self.value_function, state), None

    def _weigh(
        self, session: Session, pop: Population, values: Values, scale: AlphaScale, course: Course, i: int
    ) -> Tensor:
        """Count the scores in; returns lambda / alpha ``[G]``, 0 where nobody has a finite score."""
        if not pop.observe(values.score):
            session.warn("no particle has a finite score: selection is skipped where that happens")
            return torch.zeros(pop.groups, dtype=torch.float64)
        alpha = scale.update(pop.score)
        beta = course.advance(i, pop, alpha) / alpha
        if course.lambdas[i] > 0:
            pop.add(pop.potential.weigh(pop.score, beta, final=i == session.process.steps - 1))
        return beta

    def _guide(
        self, pop: Population, values: Values, lambda_next: Tensor, beta: Tensor, scale: AlphaScale, state: State
    ) -> Tensor | None:
        """Gradient of the log-potential that the move is drawn by.

        It takes the NEXT lambda: the move leads into the distribution that is weighed next (DAS, eq. 12).
        """
        strength = torch.maximum(lambda_next.expand(pop.groups), beta * scale.value())
        # Scores that are all equal give no scale; a gradient over next to nothing would blow the move up.
        pop.gradient_scale = torch.where(scale.known(), self.guidance * strength / scale.value(), 0.0)
        if values.gradient is None:
            return None
        column = pop.gradient_scale[state.group].view(-1, *[1] * (state.x.dim() - 1))
        return values.gradient * column.to(values.gradient)

    def _finish(
        self, session: Session, state: State, values: Values | None, pop: Population, scale: AlphaScale
    ) -> SearchResult:
        """Terminal weights and the winners; ``values`` are those of the last clean estimates."""
        images = None
        if not session.process.capabilities.ends_clean:  # stops at some noise level: judge what it is on the way to
            state, values, images = session.evaluate(state)
            pop.observe(values.score)
            scale.update(pop.score)
        if torch.isfinite(pop.score).any():
            pop.add(pop.potential.weigh(pop.score, 1.0 / scale.value(), final=True))
        return session.finish(
            state,
            values,
            images,
            score=pop.winnable(),
            log_weight=pop.log_w,
            gradient_scale=pop.gradient_scale,
            ess=pop.ess(),
            selection_bias=pop.selection_bias(),
            log_z=pop.log_z + torch.logsumexp(pop.log_w, 1) - math.log(pop.particles),
        )
