"""The rest of a search that compares nothing before the end: all particles side by side, or one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..protocols import SearchResult, Values
from ..state import State
from .session import Session


def turns_of(session: Session, state: State) -> list[Tensor]:
    """Rows int64 of the particles to finish one after the other: the k-th of every image in the k-th entry.

    One entry of all rows where the process does not ask for whole candidates (``Capabilities.whole_first``). Noise is a
    function of (seed, group, slot, step), so the numbers are the same in either order.
    """
    rows = torch.arange(len(state))
    if not session.process.capabilities.whole_first:
        return [rows]
    return list(rows.view(session.process.groups, -1).T)


def to_the_end(session: Session, state: State) -> SearchResult:
    """Make all moves that are left, judge the finished candidates, and hand out the best.

    In turns every candidate is finished and judged before the next one is begun, so that a cancel, a limit or a failure
    leaves whole ones, and the same run made again goes on from there (``FinishedCandidates``).
    """
    process = session.process
    turns = turns_of(session, state)
    if len(turns) == 1:
        while state.step < process.steps:
            state = session.move(session.step(process.predict(state)))
        return session.finish(state)
    done: list[State] = []
    values: list[Values] = []
    for rows in turns:
        turn = all_moves(session, state.select(rows), lambda seen: session.step(seen, keep=not done))
        turn, value, images = session.evaluate(turn)
        done.append(session.step(turn, value, images, sigma=process.sigmas[-1], keep=False))
        values.append(value)
        session.remember(State.joined(done), Values.joined(values).score)
    return session.finish(State.joined(done), Values.joined(values), known=True, path=True)


def all_moves(session: Session, turn: State, seen: Callable[[State], State]) -> State:
    """The rest of the way of candidates that are finished together, or what an earlier run had made of them.

    Args:
        seen: told of every predicted state on the way, which it gives back; of candidates that are taken from an
            earlier run, with what they became in the place of the estimate.
    """
    process, finished = session.process, session.finished
    if finished is None or session.rewriting is not None or turn.step >= process.steps:
        while turn.step < process.steps:
            turn = session.move(seen(process.predict(turn)))
        return turn
    known = finished.known(turn, process.predict)
    if known is not None:
        while turn.step < process.steps:
            turn = replace(seen(replace(turn, x0=known)), step=turn.step + 1, x0=None)
        return replace(turn, x=known)
    begun, opening = turn, None
    while turn.step < process.steps:
        predicted = process.predict(turn)
        opening = predicted.clean if opening is None else opening
        turn = session.move(seen(predicted))
    assert opening is not None
    finished.keep(begun, opening, turn.x)
    return turn
