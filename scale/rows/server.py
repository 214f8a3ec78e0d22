"""What a worker does: it answers questions about rows, each as if it were the first.

The one thing that is remembered are caches of next-scale models, and only as a short cut: a question names the whole
way to its rows, and a worker that does not know it goes that way again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...samplers.ledger import Ledger
from ...samplers.processes.chunking import is_out_of_memory
from ...samplers.protocols import Process, SearchError
from ...samplers.run.judging import Judging
from ...samplers.state import State
from ...samplers.verifier import ScoreContext
from ..recipes import Made, Recipe, identity
from .wire import Message

PREVIEW_SIDE = 256
"""Pixels along the longer side of the previews that go back, which are for people only."""
KEPT = 2
"""States of an image that are remembered: the latest, and the one before it, from which a repeated question starts."""
History = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
"""Of one image's particles: per move, the rows that were selected before it and the noise slots that drove it."""


@dataclass
class _Open:
    made: Made
    prompts: list[str]
    seen: dict[int, dict[History, State]]


class Server:
    """Answers questions.

    Args:
        made: a process and judges that are there already, instead of those of the recipe in "open".
    """

    def __init__(self, made: Callable[[list[str], int], Made] | None = None):
        self._make = made
        self._open: _Open | None = None
        self._kinds = {"predict": self._predict, "look": self._look, "decode": self._decode, "advance": self._advance}

    def answer(self, asked: Message) -> Message:
        """The answer; errors are answers, too."""
        began = time.perf_counter()
        try:
            with torch.no_grad():
                made = self._opened(asked) if asked.kind == "open" else self._kinds[asked.kind](asked)
        except Exception as error:  # noqa: BLE001 - the driver decides what becomes of the search
            kind = "memory" if is_out_of_memory(error) else "search" if isinstance(error, SearchError) else "other"
            return Message("error", {"kind": kind, "type": type(error).__name__, "message": str(error)})
        values = {**made.values, "seconds": time.perf_counter() - began}
        return Message("answer", values, made.tensors)

    def _opened(self, asked: Message) -> Message:
        """Make the process; tell what it is, and what it predicts of fixed noise."""
        values = asked.values
        torch.set_num_threads(values["threads"])
        made = self.make(values)
        self._open = _Open(made, list(values["prompts"]), {})
        return Message("answer", {"identity": self.identity(made)}, {"probe": probe(made.process, values["sigma"])})

    def make(self, opening: Mapping[str, Any]) -> Made:
        """What answers, for an opening. Calls of the driver are not cut again."""
        prompts, seed = list(opening["prompts"]), int(opening["seed"])
        make = self._make or Recipe.from_json(opening["recipe"]).make
        made = make(prompts, seed)
        made.process.chunker.size = opening["rows_per_call"] or None
        return made

    def identity(self, made: Made) -> dict[str, Any]:
        """What must be the same on all workers."""
        return identity(made)

    @property
    def _now(self) -> _Open:
        if self._open is None:
            raise SearchError("this worker was asked before it was opened")
        return self._open

    def _predict(self, asked: Message) -> Message:
        """``x [n, ...]``, ``group [n]`` at ``sigma`` -> ``x0 [n, ...]`` and forward passes."""
        process: Any = self._now.made.process
        forget = getattr(process.denoise, "forget", None)
        if forget is not None:
            forget()  # what the call before left behind would make the answer depend on it
        prompts = asked.values["prompts"]
        if prompts is not None and process.denoise.can_encode:
            process.denoise.encode(list(dict.fromkeys(text for text in prompts if text is not None)))
        x = asked.tensors["x"].to(process.device)
        made = process.denoise(x, asked.values["sigma"], asked.tensors["group"], prompts)
        return Message("answer", {"nfe": made.nfe}, {"x0": made.x0})

    def _look(self, asked: Message) -> Message:
        """``x0 [n, ...]`` -> scores, members, whether pictures are sound, and small pictures."""
        now, values = self._now, asked.values
        process, ledger = now.made.process, Ledger()
        process.ledger = ledger
        group = asked.tensors["group"]
        state = State(self._here(asked.tensors["x0"]), group, torch.zeros_like(group), values["step"])
        images = process.preview(replace(state, x0=state.x))
        judging = Judging(process, now.made.verifier, values["prompts"], ledger)
        context = ScoreContext(group, values["step"], values["steps"], values["final"], now)
        seen, sound = judging.judged(images, context)
        members = {f"member {name}": part.detach().cpu().double() for name, part in seen.members.items()}
        told = {"flops": ledger.decode_flops, "names": list(seen.members)}
        return Message("answer", told, {"score": seen.score, "sound": sound, "images": small(images), **members})

    def _decode(self, asked: Message) -> Message:
        """``x0 [n, ...]`` -> images ``[n, H, W, 3]`` around 0..1, as the decoder gives them."""
        process: Any = self._now.made.process
        decode = process.decode if hasattr(process, "decode") else process.decoder.decode
        if asked.values["final"] is not None:
            decode.final = asked.values["final"]
        return Message("answer", {}, {"images": decode(self._here(asked.tensors["x0"]))})

    def _advance(self, asked: Message) -> Message:
        """The code maps of one image's particles at the end of a way, see ``History``."""
        group, history = asked.values["group"], history_of(asked.values["history"])
        process: Any = self._now.made.process
        process = process if asked.values["eta"] == process.eta else process.variant(eta=asked.values["eta"])
        known = self._now.seen.setdefault(group, {})
        state = walk(process, group, history, known)
        while len(known) > KEPT:
            known.pop(next(iter(known)))
        return Message("answer", {}, {"x": state.x})

    def _here(self, x: Tensor) -> Tensor:
        process: Any = self._now.made.process
        device = getattr(process, "device", None) or process.model.device
        return x.to(device)


def walk(process: Process, group: int, history: History, known: dict[History, State]) -> State:
    """The state at the end of ``history``, from the longest part of it that is known; it is known then."""
    done = next((n for n in range(len(history), 0, -1) if history[:n] in known), 0)
    state = known.get(history[:done])
    for number in range(done, len(history)):
        rows, slots = (torch.tensor(part, dtype=torch.int64) for part in history[number])
        if state is None:
            mine = torch.full_like(slots, group)
            state = process.begin(process.initial_noise(mine, slots), mine, slots)
        else:
            state = state.select(rows, slot=slots)
        state, _ = process.advance(process.predict(state))
        known[history[: number + 1]] = state
        if len(known) > KEPT:
            known.pop(next(iter(known)))
    assert state is not None
    return state


def history_of(plain: list) -> History:
    """A history from JSON."""
    return tuple((tuple(rows), tuple(slots)) for rows, slots in plain)


def probe(process: Process, sigma: float) -> Tensor:
    """What the network makes of fixed numbers, for one row at ``sigma``: shows other weights and patches."""
    made: Any = process
    numbers = torch.randn(1, *process.shape, generator=torch.Generator().manual_seed(0))
    group = torch.zeros(1, dtype=torch.int64)
    if hasattr(made, "denoise"):
        return made.denoise(numbers.to(made.device), sigma, group, None).x0.float().cpu()
    known: dict[History, State] = {}
    return walk(process, 0, (((0,), (0,)), ((0,), (0,))), known).x.float().cpu()


def small(images: Tensor) -> Tensor:
    """Previews for people: uint8, at most ``PREVIEW_SIDE`` pixels along the longer side; frames of clips likewise."""
    factor = -(-max(images.shape[-3:-1]) // PREVIEW_SIDE)
    shown = images.detach().float().cpu().flatten(0, -4).movedim(-1, 1)
    if factor > 1:
        shown = torch.nn.functional.avg_pool2d(shown, factor, ceil_mode=True)
    shown = (shown.movedim(1, -1).nan_to_num().clamp(0, 1) * 255).round().byte()
    return shown.reshape(*images.shape[:-3], *shown.shape[1:])
