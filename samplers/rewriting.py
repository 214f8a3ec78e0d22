"""Asking a rewriter in the course of a search: who is asked when, what becomes of the answers, and the books.

``Inquiry`` serves TTGen; ``Rewriting`` puts re-prompting as an operation inside any other search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .checks import at_least
from .frames import still
from .processes.streams import Streams
from .protocols import Attempt, Rewrite, Rewriter, RewriteRequest, SearchError
from .run.session import Session
from .run.trace import RewriteEntry
from .state import PROMPT, State

HISTORY = 32
THREAD = "thread"
"""Key of ``State.extra``: number of a particle's thread, inherited by its descendants."""


@dataclass(frozen=True)
class Rounds:
    """At which steps a rewriter is asked, steps counted from 1 as in the paper.

    Attributes:
        start_step: first step, >= 1.
        injection_step: last step, 0 = never.
        interval: steps from one round to the next, >= 1.
        patience: after so many answers in a row that nothing is missing (or as many failures) it is asked no more.
    """

    start_step: int = 1
    injection_step: int = 20
    interval: int = 1
    patience: int = 3

    def check(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        if self.start_step < 1:
            raise SearchError(f"start_step is {self.start_step}: steps are counted from 1")
        if self.injection_step < 0:
            raise SearchError(f"injection_step is {self.injection_step}: it must be >= 0 (0 = never)")
        at_least(1, interval=self.interval, patience=self.patience)

    def within(self, step: int) -> bool:
        """Whether step ``step`` (from 0) is before the injection step."""
        return self.start_step <= step + 1 <= self.injection_step

    def asks(self, step: int) -> bool:
        """Whether the rewriter is asked at step ``step`` (from 0)."""
        return self.within(step) and (step + 1 - self.start_step) % self.interval == 0


@dataclass
class _Thread:
    """What is known of one trajectory: its rewrites, what it tried, and how often in a row it got no new prompts."""

    prompts: tuple[str, ...] = ()
    history: list[Attempt] = field(default_factory=list)
    aligned: int = 0
    failures: int = 0


class Inquiry:
    """The conversation of a search with its rewriter, one thread per trajectory.

    Args:
        session: of the search.
        rewriter: who is asked; rounds: when; count: M.
        threads: number of trajectories.
    """

    def __init__(self, session: Session, rewriter: Rewriter, rounds: Rounds, count: int, threads: int):
        self.session, self.rewriter, self.rounds, self.count = session, rewriter, rounds, count
        self.threads = [_Thread() for _ in range(threads)]

    def prompts(self, step: int, state: State, images: Tensor, rows: Sequence[int] | None = None) -> list[list[str]]:
        """Rewrites for every particle: new ones where the round is due, those of the last round in between.

        Args:
            step: from 0.
            state: ``n`` particles; images: their previews ``[n, H, W, 3]``.
            rows: thread of every particle, default 0 .. n - 1.

        Returns:
            ``n`` lists of at most M prompts; empty where nothing is missing, and where no answer was ever usable.
        """
        rows = range(len(state)) if rows is None else rows
        threads = [self.threads[row] for row in rows]
        if self.rounds.asks(step):
            due = [row for row, thread in enumerate(threads) if self._listening(thread)]
            for row, answer in zip(due, self._ask(step, state, images, threads, due), strict=True):
                self._take(threads[row], answer)
        return [list(thread.prompts) if self._listening(thread) else [] for thread in threads]

    def any_due(self, step: int) -> bool:
        """Whether some trajectory needs its preview at ``step``."""
        return self.rounds.asks(step) and self.listening(range(len(self.threads)))

    def listening(self, rows: Sequence[int]) -> bool:
        """Whether one of the threads ``rows`` is still going on."""
        return any(self._listening(self.threads[row]) for row in rows)

    def fork(self, row: int) -> int:
        """A new thread that goes on from thread ``row`` (-1: from nothing); its number."""
        old = self.threads[row] if row >= 0 else _Thread()
        self.threads.append(replace(old, history=list(old.history)))
        return len(self.threads) - 1

    def tried(self, row: int, step: int, prompt: str, score: float | None) -> None:
        """Note the score of a prompt's preview, for the next question."""
        history = self.threads[row].history
        history.append(Attempt(prompt, step + 1, score))
        del history[:-HISTORY]

    def _listening(self, thread: _Thread) -> bool:
        return max(thread.aligned, thread.failures) < self.rounds.patience

    def _ask(self, step: int, state: State, images: Tensor, threads: list[_Thread], due: list[int]) -> list[Rewrite]:
        session, streams = self.session, self.session.process.streams
        group, slot = state.group.tolist(), state.slot.tolist()
        requests = [
            RewriteRequest(
                image=still(images)[row],
                prompt=session.prompts[group[row]],
                count=self.count,
                step=step + 1,
                steps=session.process.steps,
                history=tuple(threads[row].history),
                seed=_seed(streams, group[row], slot[row], step),
                sources=session.sources[group[row]].images if session.sources else (),
            )
            for row in due
        ]
        with session.ledger.rewrite() as answers:
            answers += self.rewriter.rewrite(requests)
        session.rewrote([_entry(group[row], slot[row], answer) for row, answer in zip(due, answers, strict=True)])
        return answers

    def _take(self, thread: _Thread, answer: Rewrite) -> None:
        if answer.failed:
            thread.failures += 1
            self.session.warn(
                f"rewriter {self.rewriter.name!r} failed ({answer.note}): going on with "
                + ("its last prompts" if thread.prompts else "the original prompt")
            )
            return
        thread.failures = 0
        thread.aligned = thread.aligned + 1 if answer.aligned or not answer.prompts else 0
        thread.prompts = tuple(dict.fromkeys(answer.prompts))[: self.count]


def _seed(streams: Streams, group: int, slot: int, step: int) -> int:
    """A seed for the rewriter, from the search's own randomness."""
    drawn = streams.normal((1,), group=group, slot=slot, step=step, purpose="rewrite")
    return int(drawn.view(torch.int32)) & 0x7FFFFFFF


def _entry(group: int, slot: int, answer: Rewrite) -> RewriteEntry:
    """An answer as ``StepRecord.rewrites`` has it."""
    return RewriteEntry(
        group=group,
        slot=slot,
        missing=list(answer.missing),
        prompts=list(answer.prompts),
        aligned=answer.aligned,
        failed=answer.failed,
        note=answer.note,
        calls=answer.calls,
    )


class ActiveRewriting:
    """``Rewriting`` in a run: particles get new prompts after their moves.

    Parents are asked about (clones of one parent together); the particles of a group then take their parent's prompts
    in turn: the original, then the rewrites. So candidates that differ in their noise now differ in their prompt too,
    and the search's own selection decides, at no further forward pass.
    """

    def __init__(self, session: Session, rewriting: Rewriting):
        self._session, self._keep_original = session, rewriting.keep_original
        self._inquiry = Inquiry(session, rewriting.asked, rewriting.rounds, rewriting.rewrites, threads=0)

    def after(self, state: State, moved: State) -> State:
        """``moved``, where ``state`` has moved to, under the prompts that it goes on with."""
        process, step, rounds = self._session.process, state.step, self._inquiry.rounds
        if not rounds.within(step) or moved.step >= process.steps:
            return process.reprompt(moved, [None] * len(moved)) if PROMPT in moved.extra else moved
        family, firsts = _families(state)
        heads = state.select(torch.tensor(firsts))
        threads = heads.extra.get(THREAD, torch.full((len(heads),), -1)).tolist()
        if rounds.asks(step) or -1 in threads:
            threads = [self._inquiry.fork(thread) for thread in threads]
        images = heads.x.new_empty(len(heads), 0)  # nobody looks at them where nobody is asked
        if rounds.asks(step) and self._inquiry.listening(threads):
            images = process.preview(heads)
        found = self._inquiry.prompts(step, heads, images, rows=threads)
        prompts: list[str | None] = []
        turn = _places(state.group)
        for row, parent in enumerate(family):
            options = [None, *found[parent]] if self._keep_original or not found[parent] else list(found[parent])
            prompts.append(options[turn[row] % len(options)])
        moved = process.reprompt(moved, prompts)
        return replace(moved, extra={**moved.extra, THREAD: torch.tensor([threads[parent] for parent in family])})


def _families(state: State) -> tuple[list[int], list[int]]:
    """(family of every particle, first row of every family): clones of each other are one family."""
    firsts: list[int] = []
    family = []
    for row in range(len(state)):
        same = (
            k
            for k, first in enumerate(firsts)
            if state.group[first] == state.group[row] and torch.equal(state.x[first], state.x[row])
        )
        mine = next(same, len(firsts))
        if mine == len(firsts):
            firsts.append(row)
        family.append(mine)
    return family, firsts


def _places(group: Tensor) -> list[int]:
    """Place of every particle within its group."""
    seen: dict[int, int] = {}
    places = []
    for g in group.tolist():
        places.append(seen.get(g, 0))
        seen[g] = places[-1] + 1
    return places


@dataclass(frozen=True)
class Rewriting:
    """A search's particles get rewritten prompts on their way.

    Before each move the rewriter sees a parent's preview; its children then go on under the original prompt and the
    rewrites in turn. SVDD chooses between (noise, prompt) pairs, SMC and FK steering let prompts compete by weight.

    Attributes:
        rewriter: who is asked; rewrites: M; rounds: when.
        keep_original: whether the original prompt is among those that children get.
    """

    rewriter: Rewriter | None = None
    rewrites: int = 3
    rounds: Rounds = Rounds()
    keep_original: bool = True

    @property
    def asked(self) -> Rewriter:
        """The rewriter. SearchError where there is none."""
        return check_rewriting(self.rewriter, self.rewrites, self.rounds)

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        check_rewriting(self.rewriter, self.rewrites, self.rounds)

    def begin(self, session: Session) -> ActiveRewriting:
        """Rewriting for one run."""
        session.uses(self.asked)
        return ActiveRewriting(session, self)


def check_rewriting(rewriter: Rewriter | None, count: int, rounds: Rounds) -> Rewriter:
    """The rewriter; SearchError for what a search with one cannot go without."""
    if rewriter is None:
        raise SearchError("rewriter is missing: connect one, e.g. the Shapes World Rewriter or an endpoint")
    at_least(1, rewrites=count)
    rounds.check()
    return rewriter
