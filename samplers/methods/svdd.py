"""SVDD: at every step one parent tries M moves, and the one with the highest expected reward is taken."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .. import few_steps
from ..checks import at_least, window
from ..heredity import Heredity, check_turns, exponents, neighbour
from ..method import SearchMethod, calls_of
from ..processes.streams import MOVE
from ..protocols import Outline, Process, SearchError, SearchResult, Values, Verifier
from ..run.session import Session
from ..smc.tempering import Alpha, AlphaScale, usual_spread
from ..smc.weights import best_index, gumbel_choice
from ..state import State
from ..values import AnyValue, as_value, values_of

LOUD = 1.2
"""Mean square of a chosen noise above which a search has left what the model was trained on."""


class _Tried(NamedTuple):
    """Candidates of one look, all of an image's side by side, and what they were made of.

    Attributes:
        state, values, images: see ``Session.evaluate``. noise: ``[n, ...]`` of their move, None where nobody turns it.
    """

    state: State
    values: Values
    images: Tensor | None = None
    noise: Tensor | None = None


@dataclass(frozen=True)
class SVDD(SearchMethod):
    """Soft value-based decoding (Li et al. 2024, arXiv 2408.08252, alg. 1), posterior-mean variant SVDD-PM.

        for each transition that draws noise:
            draw M candidates from the same parent
            v_m = r(decode(D(candidate_m)))                 or a learned value (SVDD-MC)
            R rounds: M more, with noises near that of the best so far                                 (published: 0)
            alpha = 0: argmax;   alpha > 0: index ~ softmax(v / alpha)

    The chosen candidate's clean estimate is kept for the next move, so an image costs ``1 + (T - 1) M (1 + R)``
    denoiser calls and ``(T - 1) M (1 + R)`` verifications. M = 1 is plain ancestral sampling.

    With blocks of B moves candidates go their own ways for B moves before they are compared, and the first ones begin
    from M noises of their own: ``T M`` calls, ``T M / B`` verifications. B = 1 is SVDD and B = T is Best-of-N, to the
    bit. (CoDe, Singh et al. 2025, arXiv 2502.00968, whose first block begins from one noise.)

    Attributes:
        candidates: M >= 1.
        alpha: temperature of the choice, None or value 0 for argmax (the published code has only this one).
        start, end, every: branch only at steps ``start*T, +every, .. end*T`` (1.0: to the last one); others take one
            candidate. every = 0: at every step, and below 12 steps at ``few_steps.branching``.
        value_function: a learned value (SVDD-MC), replaces decode and verify on the way; see ``samplers.values``.
        rounds: R >= 0, local search over a move's noise (cf. Zhang et al. 2025, arXiv 2506.03164), at the angle that
            ``heredity`` finds best. A stronger optimiser of the score, so of a weak judge's errors, too.
        block: B >= 1.
    """

    name: ClassVar[str] = "svdd"
    title: ClassVar[str] = "SVDD"
    width: ClassVar[str] = "candidates"

    candidates: int = 4
    alpha: Alpha | None = None
    start: float = 0.0
    end: float = 1.0
    every: int = 1
    value_function: AnyValue | None = None
    rounds: int = 0
    block: int = 1

    @property
    def needs(self) -> frozenset[str]:
        """Candidates must differ; rounds turn the noise of moves."""
        needs = {"can_branch"} if self.candidates > 1 else set()
        return frozenset(needs | ({"can_choose_noise"} if self.rounds and self.candidates > 1 else set()))

    @property
    def population(self) -> int:
        """Particles per image that run at once: a look's candidates are kept until it is over."""
        return self.candidates * (1 + self.rounds)

    @property
    def beginners(self) -> int:
        """One parent per image, or the first block's candidates."""
        return self.candidates if self.block > 1 and self.start == 0.0 else 1

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError for a value function of another model, and for noise that cannot be turned."""
        if self.value_function is not None:
            as_value(self.value_function).check(process)
        if self.rounds:
            check_turns(process)

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        at_least(1, candidates=self.candidates, block=self.block)
        at_least(0, every=self.every, rounds=self.rounds)
        window(self.start, self.end)
        if self.block > 1 and self.rounds:
            raise SearchError(
                f"rounds is {self.rounds} with block {self.block}: rounds turn the noise of one move, use block 1"
            )
        if self.block > 1 and self.every > 1:
            raise SearchError(f"every is {self.every} with block {self.block}: blocks follow each other, use every 1")

    def branching_steps(self, process: Outline) -> set[int]:
        """Steps whose transition is branched."""
        return set(self.blocks(process))

    def blocks(self, process: Outline) -> dict[int, int]:
        """First step of every block -> the last one, after whose move its candidates are compared."""
        if self.candidates == 1:
            return {}
        end = process.steps - 2 if process.capabilities.ends_clean else process.steps - 1
        found = {}
        for first in self.decisions(process)[:: self.block]:
            last = max(first, min(first + self.block - 1, end))
            if any(process.branches(step) for step in range(first, last + 1)):
                found[first] = last
        return found

    def decisions(self, process: Outline) -> list[int]:
        """See ``SearchMethod.decisions``: steps at which candidates are drawn, where the move draws noise."""
        steps = process.steps
        if self.every == 0 and steps < few_steps.MANY and self.block == 1:
            window = None if (self.start, self.end) == (type(self).start, type(self).end) else (self.start, self.end)
            return few_steps.chosen(few_steps.branching(steps), window, steps)
        first, last = math.ceil(self.start * steps), math.floor(self.end * steps)
        return [i for i in range(first, last + 1, self.every or 1) if i < steps]

    def denoiser_calls(self, process: Outline) -> int:
        """Denoiser calls per image: one per candidate, shared with its next move; a learned value needs none."""
        blocks = self.blocks(process)
        first = width = self._beginners(blocks)
        moved, seen = [], []
        for step in range(process.steps):
            looked = step in blocks.values()
            width = self.candidates if step in blocks else width
            moved.append(width * (1 + self.rounds if looked else 1))
            width = 1 if looked else width
            seen.append(1 if looked and self.value_function is not None else moved[-1])
        return calls_of(process, moved, seen, first)

    def verifications(self, process: Outline) -> int:
        """Decodes and verifications per image."""
        if self.value_function is not None:
            return 1
        return self.candidates * (1 + self.rounds) * len(self.blocks(process)) + 1

    def run(self, session: Session) -> SearchResult:
        """Algorithm of the class docstring."""
        process, m = session.process, self.candidates
        blocks = self.blocks(process)
        looks = set(blocks.values())
        final = self._last_choice(process, looks)
        scale, heredity, loudness = self._scale(session), [Heredity() for _ in range(process.groups)], []
        state = session.step(process.predict(process.start(self._beginners(blocks))))
        tried: _Tried | None = None
        best: Tensor | None = None
        for i in range(process.steps):
            parents, last = state, i == process.steps - 1
            if i in blocks and (i > 0 or self.block == 1):
                state = state.branched(m)
            elif not any(first <= i <= look for first, look in blocks.items()):
                state = state.branched(1)  # a lone candidate draws from slot 0: M = 1 is plain sampling to the bit
            noise = self._noise(session, state) if i in looks else None
            state = session.move(state, noise=noise)
            if i in looks:
                tried = self._look(session, state, noise)
                tried = self._turned(session, parents, tried, heredity)
                best = self._pick(process, tried.values.score.view(process.groups, -1), scale, i)
                loudness += [] if tried.noise is None else [tried.noise[best].flatten(1).square().mean(1)]
                state = tried.state
            elif not last:
                state, tried = process.predict(state), None
            if last:
                break
            if tried is None or best is None:
                state = process.predict(session.step(state))
                session.remember(state, None)
                continue
            pick = torch.arange(len(state)) if i == final else best
            beta = None if scale is None else 1.0 / scale.value()
            if self.rounds:  # written down look by look already
                session.select(state.node[pick].tolist())
            else:
                state = session.step(state, tried.values, tried.images, selected=pick, inverse_temperature=beta)
            state = process.predict(state.select(pick))  # known already, but where a learned value chose
            session.remember(state, tried.values.select(pick).score)
        self._tell(session, heredity, loudness)
        # The finished image is the last scored estimate, unless nothing was scored that late.
        if final is None or tried is None:
            return session.finish(state)
        return session.finish(state, tried.values, best=best)

    def _beginners(self, blocks: dict[int, int]) -> int:
        """Particles per image at the first step."""
        return self.candidates if self.block > 1 and 0 in blocks else 1

    def _scale(self, session: Session) -> AlphaScale | None:
        """What alpha means in score units; None for argmax."""
        if self.alpha is None:
            return None
        return AlphaScale(self.alpha, session.process.groups, usual_spread(session.verifier))

    def _last_choice(self, process: Process, looks: set[int]) -> int | None:
        """The look at candidates that are finished images already, so that all of them can be handed out."""
        if not looks or self.value_function is not None:
            return None
        last = process.steps - 2 if process.capabilities.ends_clean else process.steps - 1
        return last if last in looks else None

    def _look(self, session: Session, state: State, noise: Tensor | None) -> _Tried:
        """Values of candidates; predicted states and previews where these were made. Rounds are written down here."""
        if self.value_function is None:
            state, values, images = session.evaluate(state)
        else:
            values, images = values_of(session, self.value_function, state), None
        if self.rounds:
            state = session.step(state, values, images, selected=[])
        return _Tried(state, values, images, noise)

    def _noise(self, session: Session, state: State, first: int = 0) -> Tensor | None:
        """What the candidates' next move draws, where rounds are to turn it; slots count from ``first``."""
        if not self.rounds:
            return None
        process = session.process
        noise = process.streams.normals(process.shape, state.group, state.slot + first, step=state.step, purpose=MOVE)
        return noise.to(state.x)

    def _turned(self, session: Session, parents: State, tried: _Tried, heredity: list[Heredity]) -> _Tried:
        """The candidates with ``rounds`` times M more, each round near the best of all before it."""
        groups, m = session.process.groups, self.candidates
        for r in range(1, self.rounds + 1):
            score = tried.values.score.view(groups, -1)
            if r == 1:
                for g in range(groups):
                    heredity[g].plain = []  # scores of different steps are not compared
                    heredity[g].draw(score[g])
            best = best_index(score)
            top = [float(row[k]) for row, k in zip(score, best, strict=True)]
            cosine = torch.tensor([one.cosine(high, m) for one, high in zip(heredity, top, strict=True)])
            state, rows = parents.branched(m), torch.arange(groups).repeat_interleave(m)
            fresh, drawn = self._noise(session, state, first=r * m), tried.noise
            assert fresh is not None and drawn is not None
            pivot = drawn[best + torch.arange(groups) * score.shape[1]]
            noise = neighbour(pivot[rows], fresh, cosine[rows])
            state = replace(state, slot=state.slot + r * m)
            more = self._look(session, session.move(state, noise=noise), noise)
            for g in range(groups):
                heredity[g].learn(top[g], float(cosine[g]), more.values.score.view(groups, m)[g])
            tried = _joined(tried, more, groups)
        return tried

    def _pick(self, process: Process, value: Tensor, scale: AlphaScale | None, step: int) -> Tensor:
        """Rows ``[G]`` of the chosen candidates, given values ``[G, M]``."""
        m = value.shape[1]
        offset = torch.arange(len(value)) * m
        if scale is None:
            return best_index(value) + offset
        log_w = value / scale.update(value)[:, None]
        uniforms = [process.streams.uniform(m, group=g, step=step, purpose="choice") for g in range(len(value))]
        return gumbel_choice(log_w, torch.stack(uniforms)) + offset

    def _tell(self, session: Session, heredity: list[Heredity], loudness: list[Tensor]) -> None:
        """Write down how far rounds turned the noises and how loud the chosen ones are."""
        if not loudness:
            return
        meta = session.trace.meta
        mean = torch.stack(loudness).double().mean(0)
        meta["rounds"] = self.rounds
        meta["noise_square"] = [round(value, 4) for value in mean.tolist()]
        meta["heredity"] = exponents(heredity)
        if float(mean.max()) > LOUD:
            session.warn(
                f"the chosen noises have a mean square of {float(mean.max()):.2f} (1 is usual): the search pushes the "
                f"model where it was not trained; use fewer rounds"
            )


def _joined(first: _Tried, second: _Tried, groups: int) -> _Tried:
    """All candidates of both, those of an image side by side, the first ones first."""
    a, b = len(first.state) // groups, len(second.state) // groups
    at = torch.cat([torch.arange(groups * a).view(groups, a), groups * a + torch.arange(groups * b).view(groups, b)], 1)
    rows = at.flatten()
    images = None
    if first.images is not None and second.images is not None:
        images = torch.cat([first.images, second.images])[rows]
    noise = None
    if first.noise is not None and second.noise is not None:
        noise = torch.cat([first.noise, second.noise])[rows]
    state = State.joined([first.state, second.state]).select(rows)
    return _Tried(state, Values.joined([first.values, second.values]).select(rows), images, noise)
