"""The one sequential Monte Carlo engine: tempered SMC, DAS, FK steering and importance sampling are its settings.

Target: ``p(x0) exp(r(x0) / alpha)``. Per step, for all particles of all groups:

    x0_i = D(x_i);  r_i = r(decode(x0_i));  g_i = grad_x r_i                       evaluate
    log_w += potential(r_i, lambda_i / alpha)                                      weigh
    ESS < tau N  ->  ancestors ~ W;  everything follows the ancestors              resample
    x_{i+1} ~ N(mean + v (lambda_{i+1} / alpha) g_i,  v)                           move
    log_w += log p - log q                                                         correct

The last move into sigma = 0 is deterministic, so the score of the last clean estimate is the score of the finished
image and is not paid for twice. ``E[Z_hat] = Z`` holds for any N and any fixed tempering.

Sources: DAS (Kim et al. 2025, alg. 1), FK steering (Singhal et al. 2025, alg. 1), Del Moral et al. 2006.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..protocols import Process, SearchError, SearchResult, State, Values, Verifier
from ..run.session import Session
from ..run.trace import StepRecord, particle_entries
from ..values import ValueFunction, check_value, values_of
from .population import Population
from .potentials import POTENTIALS
from .resampling import SCHEMES
from .tempering import TEMPERINGS, Alpha, AlphaScale, adaptive
from .weights import best_index, ess_threshold, gumbel_choice

OUTPUTS = ("argmax_reward", "argmax_weight", "sample")


@dataclass(frozen=True)
class Engine:
    """Settings of the SMC engine.

    Attributes:
        particles: N per group, >= 1.
        alpha: temperature of the target.
        tempering: "exponential", "linear", "none" or "adaptive"; ``gamma`` as in ``tempering.exponential``.
        potential: "diff", "max", "rt" or "add", see ``potentials``.
        guidance: 0 = no gradient proposal, 1 = DAS; scales the shift (weights stay correct for any value).
        start, end, every: resampling is allowed at steps ``start*T, start*T + every, ...`` up to ``end*T``.
        tau: ESS threshold as a fraction of N, None for the default by N, >= 1 to resample at every allowed step.
        scheme: resampling scheme.
        output: rule for the winner: "argmax_reward", "argmax_weight", or "sample" in proportion to the weights.
        adaptive_target: ESS fraction of adaptive tempering.
        value_function: a learned value, replaces decode and verify on the way; see ``samplers.values``. The finished
            images are judged by the verifier.
        name: for the trace.
    """

    particles: int = 4
    alpha: Alpha = Alpha()
    tempering: str = "exponential"
    gamma: float | None = None
    potential: str = "diff"
    guidance: float = 0.0
    start: float = 0.0
    end: float = 0.9
    every: int = 1
    tau: float | None = None
    scheme: str = "systematic"
    output: str = "argmax_reward"
    adaptive_target: float = 0.9
    value_function: ValueFunction | None = None
    name: str = "engine"
    width_field: ClassVar[str] = "particles"

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError for settings that cannot work on ``process`` with ``verifier``."""
        self.check_settings()
        if verifier is None:
            raise SearchError("verifier is missing: connect one, a search needs a judge")
        if self.particles > 1 and not process.stochastic:
            raise SearchError(
                f"eta is {process.eta}: clones of a particle never separate on an ODE; use eta > 0 (1 = ancestral), "
                f"or Best-of-N"
            )
        if self.guidance > 0 and not verifier.differentiable:
            raise SearchError(
                f"verifier {verifier.name!r} is not differentiable: guidance must be 0 with it (SMC instead of DAS)"
            )
        check_value(self.value_function, process)

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        if self.particles < 1:
            raise SearchError(f"particles is {self.particles}: at least 1 is needed")
        if self.tempering not in (*TEMPERINGS, "adaptive"):
            raise SearchError(f"tempering is {self.tempering!r}: choose one of {', '.join(TEMPERINGS)}, adaptive")
        if self.potential not in POTENTIALS:
            raise SearchError(f"potential is {self.potential!r}: choose one of {', '.join(POTENTIALS)}")
        if self.scheme not in SCHEMES:
            raise SearchError(f"resampling is {self.scheme!r}: choose one of {', '.join(SCHEMES)}")
        if self.output not in OUTPUTS:
            raise SearchError(f"output is {self.output!r}: choose one of {', '.join(OUTPUTS)}")
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise SearchError(f"start {self.start} and end {self.end}: 0 <= start <= end <= 1 is needed")
        if self.every < 1:
            raise SearchError(f"every is {self.every}: it must be at least 1")
        if not self.guidance >= 0:  # written so that NaN is refused too
            raise SearchError(f"guidance is {self.guidance}: it must be >= 0")
        if self.tau is not None and not self.tau >= 0:
            raise SearchError(f"tau is {self.tau}: it must be >= 0 (>= 1 resamples at every allowed step)")
        if self.gamma is not None and not self.gamma > 0:
            raise SearchError(f"gamma is {self.gamma}: it must be > 0")
        if not 0.0 < self.adaptive_target < 1.0:
            raise SearchError(f"adaptive_target is {self.adaptive_target}: it must lie between 0 and 1")
        if self.guidance > 0 and self.value_function is not None:
            raise SearchError("guidance follows the gradient of the verifier: leave out the value function, or use 0")
        if self.guidance > 0 and self.particles == 1 and self.alpha.mode == "relative":
            raise SearchError("alpha mode is 'relative' with 1 particle: a spread needs at least 2; use 'absolute'")

    def resampling_steps(self, steps: int) -> list[int]:
        """Steps at which resampling is allowed; never the last one, whose move draws no noise."""
        first, last = math.ceil(self.start * steps), min(math.floor(self.end * steps), steps - 2)
        return list(range(first, last + 1, self.every))

    def calls(self, process: Process) -> int:
        """Denoiser calls per image; a guided one also goes backward."""
        return self.particles * process.steps

    def looks(self, process: Process) -> int:
        """Decodes and verifications per image."""
        if self.guidance > 0:
            return self.particles * process.steps
        on_the_way = 0 if self.value_function is not None else len(self.resampling_steps(process.steps))
        return self.particles * ((on_the_way if self.particles > 1 else 0) + 1)

    def run(self, session: Session) -> SearchResult:
        """Algorithm of the module docstring."""
        process = session.process
        steps, groups, n = process.steps, process.groups, self.particles
        lambdas = TEMPERINGS["exponential" if self.tempering == "adaptive" else self.tempering](
            steps, self.gamma, self.start
        )
        allowed = set(self.resampling_steps(steps)) if n > 1 else set()
        tau = ess_threshold(n, self.tau)
        if self.tau is not None and tau != self.tau:
            session.warn(f"tau is {self.tau}: with {n} particles it could never resample, {tau:g} is used")
        scale = AlphaScale(self.alpha, groups)
        if allowed and getattr(session.verifier, "relative", False):
            session.warn(
                f"verifier {session.verifier.name!r} compares the candidates of a step with each other, "
                f"but {self.name} compares scores of different steps: combine by zscore or sum"
            )

        state = process.start(n)
        pop = Population(groups, n, self.potential, session.trace.new_ids(groups * n))
        parents: list[int | None] = [None] * (groups * n)

        for i in range(steps):
            last = i == steps - 1
            guided = self.guidance > 0 and not last and lambdas[i + 1] > 0
            scored = guided or (i in allowed and lambdas[i] > 0) or (last and process.ends_clean)
            images, grad, temperature = None, None, torch.zeros(groups, dtype=torch.float64)
            if scored:
                if self.value_function is not None and not last:
                    state = session.process.predict(state)
                    values = Values(values_of(session, self.value_function, state))
                else:
                    state, values, images = session.evaluate(state, gradient=guided)
                grad = values.grad
                if pop.observe(values.reward):
                    alpha = scale.update(pop.reward)
                    temperature = self._lambda(i, lambdas, pop, alpha) / alpha
                    if lambdas[i] > 0:
                        pop.add(pop.potential.weigh(pop.reward, temperature, final=last))
                else:
                    session.warn("no particle has a finite score: selection is skipped where that happens")
            else:
                state = process.predict(state)
            session.remember(state, pop.winnable() if scored else None, pop.ids, hint=pop.winnable())

            ess = pop.ess()
            chosen = (ess < tau * n) if i in allowed else torch.zeros(groups, dtype=torch.bool)
            entries = self._entries(state, pop, parents, scored)
            rows = pop.resample(chosen, self.scheme, process.streams, i) if chosen.any() else None
            survivors = set(pop.ids)
            for entry in entries:
                entry["selected"] = entry["id"] in survivors
            session.record(
                StepRecord(i, steps, process.sigmas[i], entries, ess.tolist(), chosen.tolist(), temperature.tolist()),
                state,
                images,
            )
            if rows is not None:
                # After a resampling the slot, not the ancestor, owns the stream: clones get different noise.
                state = state.select(rows, slot=torch.arange(n).repeat(groups))
                grad = None if grad is None else grad[rows.to(grad.device)]

            parents = pop.ids
            pop.ids = session.trace.new_ids(groups * n)
            pop.gradient_scale = torch.zeros(groups, dtype=torch.float64)
            shift = None
            if guided:
                # The NEXT lambda: the move leads into the distribution that is weighed next (DAS, eq. 12).
                strength = torch.maximum(lambdas[i + 1].expand(groups), temperature * scale.value())
                # Scores that are all equal give no scale; a gradient over next to nothing would blow the move up.
                pop.gradient_scale = torch.where(scale.known(), self.guidance * strength / scale.value(), 0.0)
                shift = grad * _column(pop.gradient_scale, state).to(grad)
            state, log_ratio = process.advance(state, shift)
            pop.add(log_ratio.view(groups, n))

        return self._finish(session, state, pop, parents, scale)

    def _lambda(self, i: int, lambdas: Tensor, pop: Population, alpha: Tensor) -> Tensor:
        """Tempering exponent of step i per group ``[G]``."""
        if self.tempering != "adaptive":
            return lambdas[i].expand(pop.groups)
        floor = float(lambdas[i])
        return adaptive(pop.log_w, pop.reward, alpha, pop.potential.log_past, floor, self.adaptive_target)

    def _finish(
        self, session: Session, state: State, pop: Population, parents: list[int | None], scale: AlphaScale
    ) -> SearchResult:
        """Terminal weight and output rule."""
        process = session.process
        images = None
        if not process.ends_clean:  # the schedule stops at some noise level: judge what it is on the way to
            state, values, images = session.evaluate(state)
            pop.observe(values.reward)
            scale.update(pop.reward)
        if torch.isfinite(pop.reward).any():
            pop.add(pop.potential.weigh(pop.reward, 1.0 / scale.value(), final=True))
        log_z = pop.log_z + torch.logsumexp(pop.log_w, 1) - math.log(pop.particles)
        reward = pop.winnable()
        session.remember(state, reward, pop.ids)
        best = self._best(session, pop, reward)
        rows = best + torch.arange(pop.groups) * pop.particles
        entries = self._entries(state, pop, parents, True, selected=rows.tolist())
        final = StepRecord(process.steps, process.steps, process.sigmas[-1], entries, pop.ess().tolist(), phase="final")
        session.record(final, state, images)
        return session.result(state, reward, pop.ids, best=rows, optimism=pop.optimism(), log_z=log_z)

    def _best(self, session: Session, pop: Population, reward: Tensor) -> Tensor:
        """Index of the winner per group ``[G]`` by the output rule; barred particles never win."""
        if self.output == "argmax_reward":
            return best_index(reward)
        log_w = pop.log_w.masked_fill(torch.isneginf(reward), -math.inf)
        if self.output == "argmax_weight":
            return best_index(log_w)
        streams, steps = session.process.streams, session.process.steps
        uniforms = [streams.uniform(pop.particles, group=g, step=steps, purpose="output") for g in range(pop.groups)]
        return gumbel_choice(log_w, torch.stack(uniforms))

    @staticmethod
    def _entries(state: State, pop: Population, parents: list[int | None], scored: bool, selected=None) -> list[dict]:
        """Trace entries of the population, rows in order."""
        return particle_entries(
            state,
            pop.ids,
            parents,
            pop.reward.flatten() if scored else None,
            log_w=pop.log_w.flatten(),
            gradient_scale=pop.gradient_scale,
            selected=selected,
        )


def _column(per_group: Tensor, state: State) -> Tensor:
    """Per-group numbers ``[G]`` as ``[n, 1, ...]`` to multiply states with."""
    return per_group[state.group].view(-1, *[1] * (state.x.dim() - 1))
