"""One run of a search: scoring with its bookkeeping, and the best so far when a run is cut short."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..processes.kernel import as_float64_cpu
from ..protocols import BudgetSpent, Interrupted, Process, Search, SearchError, SearchResult, State, Values, Verifier
from ..smc.weights import best_index, clean_rewards
from .ledger import Ledger
from .members import MemberScores
from .notes import brief
from .trace import Listener, StepRecord, Trace

log = logging.getLogger("testtime")


@dataclass
class _Remembered:
    """The last population that could be handed out: its state with x0, and its rewards where it has any.

    ``hint`` ranks a population without rewards, by the scores of its ancestors for example.
    """

    state: State
    reward: Tensor | None
    ids: list[int]
    hint: Tensor | None = None


class Session:
    """What a method works with: the process, the judge, the books.

    Attributes:
        process, verifier, prompts: what is searched, by whom judged, for which prompt per group (``[G]`` strings).
        ledger, trace: the books.
        held_out: a verifier that is reported and never steers, or None.
        warnings: sentences for the user, each once.
    """

    def __init__(
        self,
        process: Process,
        verifier: Verifier | None,
        prompts: Sequence[str],
        ledger: Ledger | None = None,
        trace: Trace | None = None,
        held_out: Verifier | None = None,
    ):
        if len(prompts) != process.groups:
            raise SearchError(f"{len(prompts)} prompts for {process.groups} images: give one prompt per image")
        self.process, self.verifier, self.prompts, self.held_out = process, verifier, list(prompts), held_out
        self.ledger = ledger or Ledger()
        self.trace = trace or Trace()
        self.warnings: list[str] = []
        self.rewrites: list[dict] = []  # of the step that is recorded next
        self.remembered: _Remembered | None = None
        self._members = MemberScores()
        process.ledger = self.ledger

    def evaluate(self, state: State, gradient: bool = False) -> tuple[State, Values, Tensor | None]:
        """Predict, preview and score a population.

        Returns:
            (state with x0, values with rewards float64 ``[n]`` (non-finite ones as -inf, counted) and the gradient
            where asked, previews ``[n, H, W, 3]`` or None on the gradient path, which keeps none).
        """
        if gradient:
            self._members.begin()
            state, values = self.process.value_gradient(state, self._value)
            reward = self._clean(values.reward)
            self._members.end(reward)
            return state, Values(reward, values.grad), None
        state = self.process.predict(state)
        images = self.process.preview(state)
        return state, Values(self.rate(state, images)), images

    def score(self, images: Tensor, group: Tensor, held_out: bool = False) -> Tensor:
        """Scores float64 ``[n]`` of images by the verifier (or the held-out one), in chunks, without gradients."""
        judge = self.held_out if held_out else self.verifier
        prompts = [self.prompts[g] for g in group.tolist()]

        def chunk(rows: slice) -> Tensor:
            self.ledger.check()
            with torch.no_grad(), self.ledger.verify(len(prompts[rows]), held_out):
                scores = as_float64_cpu(self._checked(judge, images[rows], prompts[rows]))
            if not held_out:
                self._members.add(judge, len(scores))
            return scores

        # Judges that compare the candidates with each other must see all of them at once; ``whole``: this time only.
        if getattr(judge, "relative", False) or getattr(judge, "whole", False):
            return chunk(slice(0, len(images)))
        return self.process.chunker.cat(chunk, len(images))

    def rate(self, state: State, images: Tensor) -> Tensor:
        """Scores float64 ``[n]`` of previews that were made already; non-finite ones as -inf, counted."""
        notice = getattr(self.verifier, "notice", None)
        if notice is not None:  # a judge that wants to know what it is shown, see ``verifiers.human``
            notice(self, state)
        self._members.begin()
        reward = self._clean(self.score(images, state.group))
        self._members.end(reward)
        return reward

    def warn(self, message: str) -> None:
        """Keep a sentence for the user, shortened to one line, and log all of it, once."""
        if brief(message) not in self.warnings:
            self.warnings.append(brief(message))
            log.warning(message)

    def remember(self, state: State, reward: Tensor | None, ids: Sequence[int], hint: Tensor | None = None) -> None:
        """Note a population with ``x0`` as the best so far, in case the run is cut short.

        ``hint`` chooses the winner where ``reward`` is None and there is no time left to score.
        """
        reward, hint = (None if value is None else value.reshape(-1) for value in (reward, hint))
        self.remembered = _Remembered(state, reward, list(ids), hint)

    def record(self, record: StepRecord, state: State, images: Tensor | None = None) -> None:
        """Add a step to the trace with the ledger's totals."""
        record.nfe, record.seconds = self.ledger.nfe, round(self.ledger.total_seconds, 4)
        record.rewrites, self.rewrites = record.rewrites or self.rewrites, []
        prompts = getattr(self.process, "prompts_of", lambda _: None)(state)
        for entry, prompt in zip(record.particles, prompts or (), strict=False):
            entry["prompt"] = prompt
        self._members.write(record.particles)
        self.trace.add(record, state, images)

    def result(self, state: State, reward: Tensor, ids: Sequence[int], **fields) -> SearchResult:
        """Result of a population: finalists sorted by group and score, the best of each group first.

        ``fields`` may hold ``best`` (int64 ``[G]``, rows of the winners where the output rule is not the highest
        score), ``optimism`` (number) and ``log_z`` (``[G]``).
        """
        latents, reward = self.process.finish(state), reward.reshape(-1)
        best = fields.pop("best", None)
        # Python's sort is stable: equal scores keep the lowest index first.
        rank = {int(row): -1 for row in best} if best is not None else {}
        order = sorted(range(len(state)), key=lambda i: (int(state.group[i]), rank.get(i, 0), -float(reward[i])))
        index = torch.tensor(order)
        group = state.group[index]
        first = torch.tensor([group.tolist().index(g) for g in range(self.process.groups)])
        finalists = latents[index.to(latents.device)]
        return SearchResult(
            latents=finalists[first.to(finalists.device)],
            finalists=finalists,
            scores=torch.where(torch.isneginf(reward), torch.nan, reward)[index],
            group=group,
            particles=[ids[i] for i in order],
            status=fields.pop("status", "complete"),
            trace=self.trace,
            ledger=self.ledger,
            warnings=self.warnings,
            **fields,
        )

    def cut_short(self, status: str, may_score: bool) -> SearchResult | None:
        """The best so far as a result, or None if nothing was predicted yet."""
        if self.remembered is None:
            return None
        kept = self.remembered
        reward = kept.reward
        if reward is None and may_score and self.verifier is not None:
            self.ledger.max_seconds = None
            reward = self._clean(self.score(self.process.preview(kept.state), kept.state.group))
        best = None
        if reward is None:
            reward = torch.full((len(kept.state),), -torch.inf, dtype=torch.float64)
            best = None if kept.hint is None else self._highest(kept.hint, kept.state.group)
        return self.result(kept.state, reward, kept.ids, status=status, best=best)

    def _highest(self, values: Tensor, group: Tensor) -> Tensor:
        """Row of the highest value of every group, int64 ``[G]``, the first on ties."""
        rows = [torch.nonzero(group == g).flatten() for g in range(self.process.groups)]
        return torch.stack([mine[best_index(values[mine][None])[0]] for mine in rows])

    def _clean(self, reward: Tensor) -> Tensor:
        reward, bad = clean_rewards(reward)
        if bad:
            self.ledger.rejected_rewards += bad
            if not getattr(self.verifier, "rejects", False):  # a person may
                self.warn(f"verifier {self.verifier.name!r} gave NaN or infinite scores: such particles cannot win")
        return reward

    def _value(self, images: Tensor, group: Tensor) -> Tensor:
        """Differentiable scores of a chunk, for ``Process.value_gradient``."""
        prompts = [self.prompts[g] for g in group.tolist()]
        with self.ledger.verify(len(prompts)):
            scores = self._checked(self.verifier, images, prompts)
        self._members.add(self.verifier, len(scores))
        return scores

    @staticmethod
    def _checked(judge: Verifier, images: Tensor, prompts: list[str]) -> Tensor:
        scores = judge.score(images, prompts)
        if tuple(scores.shape) != (len(prompts),):
            raise SearchError(
                f"verifier {judge.name!r} returned shape {tuple(scores.shape)} for {len(prompts)} images: "
                f"one number per image is needed"
            )
        return scores


def run_search(
    search: Search,
    process: Process,
    verifier: Verifier | None,
    prompts: Sequence[str],
    *,
    held_out: Verifier | None = None,
    listener: Listener | None = None,
    max_nfe: int | None = None,
    max_seconds: float | None = None,
    interrupts: tuple[type[BaseException], ...] = (),
) -> SearchResult:
    """Run a search to the end, to the end of its budget, or until the user interrupts.

    Args:
        search: a method from ``samplers.methods``.
        process: what is searched.
        verifier: the judge (None only for methods that need none).
        prompts: one per group.
        held_out: reported, never steers.
        listener: called after every step, see ``trace.Listener``.
        max_nfe, max_seconds: budgets; when one is spent the best so far is returned with status "budget".
        interrupts: a host's own cancellation exceptions. They end the run like ``Interrupted``: the best so far comes
            back with status "interrupted". If nothing was computed yet the exception goes through.

    Raises:
        SearchError: bad input, or a budget that does not pay for the first step.
    """
    ledger = Ledger(max_nfe=max_nfe, max_seconds=max_seconds)
    trace = Trace(listener, seed=process.streams.seed, propagate=interrupts)
    session = Session(process, verifier, prompts, ledger, trace, held_out)
    trace.meta.update(
        {
            "method": search.name,
            "prompts": list(prompts),
            "verifier": getattr(verifier, "name", None),
            "eta": process.eta if isinstance(process.eta, int | float) else repr(process.eta),
        }
    )
    search.check(process, verifier)
    try:
        result = search.run(session)
    except BudgetSpent as spent:
        session.warn(f"budget spent: {spent}; returning the best so far")
        result = session.cut_short("budget", may_score=True)
        if result is None:
            raise SearchError(
                f"the budget does not pay for the first step ({spent}): raise it, or use fewer particles"
            ) from spent
    except (Interrupted, *interrupts):
        result = session.cut_short("interrupted", may_score=False)
        if result is None:
            raise
    if held_out is not None and result.status != "interrupted":
        _report_held_out(session, result, (Interrupted, *interrupts))
    trace.meta.update({"status": result.status, "ledger": ledger.to_dict(), "warnings": session.warnings})
    return result


def _report_held_out(session: Session, result: SearchResult, interrupts: tuple[type[BaseException], ...]) -> None:
    """Held-out scores of the finished latents (decoded once more: they may differ from the last previews).

    They are only a report: neither an error in there nor a cancellation may cost a search that is done.
    """
    session.ledger.max_seconds = None
    final, ledger = session.process.steps, session.ledger
    flops = ledger.flops, ledger.decode_flops
    state = State(result.finalists, result.group, torch.zeros_like(result.group), final, x0=result.finalists)
    try:
        result.held_out = session.score(session.process.preview(state), result.group, held_out=True)
    except interrupts:
        result.status = "interrupted"
        return
    except Exception as error:  # noqa: BLE001 - see the docstring
        name = getattr(session.held_out, "name", "held out")
        session.warn(f"held-out verifier {name!r} failed, its scores are missing: {type(error).__name__}: {error}")
        return
    finally:
        ledger.flops, ledger.decode_flops = flops  # what a report costs is no cost of the search
    session.trace.add_held_out(result.particles, result.held_out)
