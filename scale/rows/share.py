"""A process whose rows are predicted and judged by workers, and everything else here."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...models.infinity.process import ScalewiseProcess
from ...samplers.processes.chunking import Chunker
from ...samplers.processes.diffusion import Denoised, DiffusionProcess
from ...samplers.processes.kernel import as_float64_cpu
from ...samplers.protocols import Process, SearchError, Verifier
from ...samplers.state import State
from ...samplers.verifier import ScoreContext, Values
from ...samplers.workers import Seen, Shared
from ..recipes import Made, Recipe, identity
from .pool import Link, Pool, differ
from .scalewise import SharedScalewise
from .server import probe
from .wire import Message

CALLS_PER_WORKER = 2
GUIDED = "gradients are computed by the driver: workers predict and judge what is not guided"


class RowWorkers:
    """Workers of one kind of link, for any number of searches, one after the other.

    Args:
        links: ways to the workers. recipe: how each makes its model.
        rows_per_call: rows of every call; 0: so that each worker gets two calls of a population. Results depend on it
            by rounding, and on nothing else here: set it where runs with other numbers of workers must agree.
        between: called before every question; it may raise, to end the search.
    """

    def __init__(self, links: Sequence[Link], recipe: Recipe, rows_per_call: int = 0, between=lambda: None):
        if not links:
            raise SearchError("count is 0: at least one worker is needed")
        if rows_per_call < 0:
            raise SearchError(f"rows_per_call is {rows_per_call}: it must be at least 1, or 0 to be chosen")
        self.recipe, self.rows_per_call, self.between = recipe, rows_per_call, between
        self.pool = Pool(links)

    @property
    def count(self) -> int:
        """Workers."""
        return len(self.pool.links)

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """End all workers."""
        self.pool.close()

    @contextmanager
    def sharing(self, process: Process, verifier: Verifier | None, prompts: Sequence[str]) -> Iterator[Shared]:
        """See ``samplers.workers.Workers``."""
        self.pool.reset()
        notes = self._open(process, verifier, prompts)
        sender = Sender(self.pool, self.rows_per_call, self.between)
        shared = Shared(shared_process(process, sender, notes), Look(sender), notes=notes)
        try:
            yield shared
        finally:
            shared.facts.update(self.facts(sender.rows_per_call))

    def facts(self, rows_per_call: int) -> dict[str, Any]:
        """Books of a run for its trace."""
        pool = self.pool
        return {
            "rows_per_call": rows_per_call,
            "rows": dict(sorted(pool.rows.items())),
            "seconds": {name: round(spent, 4) for name, spent in sorted(pool.seconds.items())},
            "restarts": dict(sorted(pool.restarts.items())),
            "bytes": pool.bytes,
            "wall": round(pool.wall, 4),
        }

    def opening(self, process: Process) -> dict[str, Any]:
        """What tells a worker which process it needs."""
        offset, recipe = process.streams.group_offset, self.recipe
        if offset and recipe.settings.get("group_offset", 0) != offset:
            recipe = replace(recipe, settings={**recipe.settings, "group_offset": offset})
        return {"recipe": recipe.to_json()}

    def identity(self, process: Process, verifier: Verifier | None) -> dict[str, Any]:
        """What the workers must be, too."""
        return identity(Made(process, verifier, weights=self.recipe.weights()))

    def _open(self, process: Process, verifier: Verifier | None, prompts: Sequence[str]) -> list[str]:
        """Open all workers and compare them with the driver; sentences about differences that may be."""
        opening = {
            **self.opening(process),
            "prompts": list(prompts),
            "seed": process.streams.seed,
            "threads": torch.get_num_threads(),
            "rows_per_call": self.rows_per_call,
            "sigma": float(process.sigmas[0]),
        }
        own = self.identity(process, verifier)
        with torch.no_grad():
            mine = Message("answer", {"identity": own}, {"probe": probe(process, opening["sigma"])})
        told = self.pool.open(Message("open", opening))
        for link, message in zip(self.pool.links, told, strict=False):
            differ(link.name, message, mine, "the driver")
        devices = sorted({message.values["identity"]["device"] for message in told} | {own["device"]})
        if len(devices) > 1:
            return [
                f"workers and driver compute on different devices ({', '.join(devices)}): same within rounding only"
            ]
        return []


class Sender:
    """Cuts populations into calls of one size.

    Args:
        pool: who answers. wanted: rows per call, 0 to choose. between: see ``RowWorkers``.

    Attributes:
        rows_per_call: of the latest population.
    """

    def __init__(self, pool: Pool, wanted: int, between: Callable[[], None] = lambda: None):
        self.pool, self.wanted, self.rows_per_call, self.between = pool, wanted, wanted, between

    def __call__(self, n: int, question: Callable[[slice], Message]) -> list[Message]:
        """Answers to ``question(rows)`` for consecutive rows of ``n``."""
        self.between()
        self.rows_per_call = self.wanted or max(1, math.ceil(n / (CALLS_PER_WORKER * len(self.pool.links))))
        cuts = [slice(k, min(k + self.rows_per_call, n)) for k in range(0, n, self.rows_per_call)]
        return self.pool.ask([question(rows) for rows in cuts], [rows.stop - rows.start for rows in cuts])


class SharedDenoise:
    """A ``Denoise`` that workers compute; with a gradient it is the driver's own."""

    def __init__(self, own: Any, sender: Sender, notes: list[str]):
        self._own, self._send, self._notes = own, sender, notes
        self.can_encode, self.nfe_per_call = own.can_encode, own.nfe_per_call

    def __call__(self, x: Tensor, sigma: float, group: Tensor, prompts: Sequence[str | None] | None = None) -> Denoised:
        """See ``Denoise``."""
        if torch.is_grad_enabled() and x.requires_grad:
            if GUIDED not in self._notes:
                self._notes.append(GUIDED)
            return self._own(x, sigma, group, prompts)

        def question(rows: slice) -> Message:
            values = {"sigma": sigma, "prompts": None if prompts is None else list(prompts[rows])}
            return Message("predict", values, {"x": x[rows], "group": group[rows]})

        answers = self._send(len(x), question)
        nfe = sum(int(answer.values["nfe"]) for answer in answers)
        if prompts is None:
            self.nfe_per_call = -(-nfe // len(x))
        return Denoised(torch.cat([answer.tensors["x0"] for answer in answers]).to(x.device), nfe)

    def encode(self, texts: Sequence[str]) -> None:
        """Texts travel with the rows; workers encode and keep them."""

    def prompt_embedding(self, group: Tensor) -> Tensor | None:
        """The driver's own."""
        return self._own.prompt_embedding(group)


class SharedDecode:
    """Latents -> images by workers, where a judge or a report needs them whole; with a gradient the driver's own."""

    def __init__(self, own: Callable[[Tensor], Tensor], sender: Sender):
        self._own, self._send = own, sender

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_own"], name)

    @property
    def final(self) -> bool | None:
        """Whether finished candidates are shown, where the decoder asks."""
        return getattr(self._own, "final", None)

    @final.setter
    def final(self, value: bool) -> None:
        self._own.final = value  # type: ignore[attr-defined]

    def __call__(self, x0: Tensor) -> Tensor:
        """See ``Decode``."""
        if torch.is_grad_enabled() and x0.requires_grad:
            return self._own(x0)
        told = {"final": self.final}
        answers = self._send(len(x0), lambda rows: Message("decode", told, {"x0": x0[rows]}))
        return torch.cat([answer.tensors["images"] for answer in answers]).to(x0.device)


class Look:
    """A ``samplers.workers.Looker``: decoding and judging in one call, small pictures back."""

    def __init__(self, sender: Sender):
        self._send = sender

    def look(self, state: State, context: ScoreContext, prompts: Sequence[str]) -> Seen:
        """See ``Looker``."""
        x0 = state.x if state.x0 is None else state.x0
        told = {"step": context.step, "steps": context.steps, "final": context.final, "prompts": list(prompts)}

        def question(rows: slice) -> Message:
            return Message("look", told, {"x0": x0[rows], "group": state.group[rows]})

        answers = self._send(len(state), question)
        parts = [
            Values(
                as_float64_cpu(answer.tensors["score"]),
                None,
                {name: answer.tensors[f"member {name}"] for name in answer.values["names"]},
            )
            for answer in answers
        ]
        images = torch.cat([answer.tensors["images"] for answer in answers]).float() / 255
        sound = torch.cat([answer.tensors["sound"] for answer in answers])
        return Seen(Values.joined(parts), sound, images, sum(float(answer.values["flops"]) for answer in answers))


def shared_process(process: Process, sender: Sender, notes: list[str]) -> Process:
    """A copy of a process whose networks are the workers'. Raises SearchError for a kind that cannot be shared out."""
    if isinstance(process, DiffusionProcess):
        own = copy.copy(process)
        own.denoise, own.decode = SharedDenoise(process.denoise, sender, notes), SharedDecode(process.decode, sender)
        # Workers cut; here the size only has to fit a gradient, which stays.
        own.chunker = Chunker(None, process.chunker._is_oom, process.chunker._after_oom)
        return own
    if isinstance(process, ScalewiseProcess):
        decoder = replace(process.decoder, decode=SharedDecode(process.decoder.decode, sender))
        return SharedScalewise.of(process, decoder, sender.pool)
    raise SearchError(f"a {type(process).__name__} cannot be shared out to workers: leave workers empty")
