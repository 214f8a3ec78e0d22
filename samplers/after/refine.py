"""Refine by Edit: look at a finished image, mend what is wrong with it, keep what is not worse, and look again.

    C <- checklist of the prompt
    x <- the image
    for r in 1..R:
        failed = items of C that x does not show;   none -> stop "complete"
        y_k <- edit(x, instruction for failed, noise k),  k = 1..K
        y <- best of y_k by (items right, mean P(yes), preservation of x)
        x <- y if right(y) >= right(x)
        two refusals in a row, or most of C failed -> a fresh image in place of an edit
    return the best of all that were judged, the best two judged once more in other words

"Not worse" and not "better", because a judge that errs would else hold on to its own false praise. Cf. arXiv
2601.15286, 2605.11722. An outer loop over ordinary searches: whoever edits may run any ``Plan`` for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..checks import at_least
from ..ledger import Ledger
from ..protocols import BudgetSpent, Interrupted, SearchError
from ..run.trace import Listener, ParticleEntry, StepRecord, Trace, finite
from ..state import State
from .editors import Critic, Editor, Instruct, plain_instruction

log = logging.getLogger("testtime")

REFUSALS = 2
"""So many in a row, and a fresh image is made; so many in all, and one instruction names everything that failed."""
MOST_ITEMS = 12


Compare = Callable[[Tensor, Tensor], Tensor]
"""(candidates ``[K, H, W, 3]``, image ``[H, W, 3]``) -> how well each keeps the rest, ``[K]``."""


@dataclass(frozen=True)
class Refine:
    """Settings.

    Attributes:
        rounds: R, edits in a row at most, >= 1.
        candidates: K, edits per round, >= 1.
        fresh: whether the editor may begin anew where edits lead nowhere.
        accept: "not worse", or "better" (for comparison; a judge that errs freezes it).
    """

    rounds: int = 4
    candidates: int = 2
    fresh: bool = True
    accept: str = "not worse"

    def check(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        at_least(1, rounds=self.rounds, candidates=self.candidates)
        if self.accept not in ("not worse", "better"):
            raise SearchError(f"accept is {self.accept!r}: choose 'not worse' or 'better'")


@dataclass
class Refined:
    """What came of it.

    Attributes:
        image: ``[H, W, 3]``, the best.
        items: the checklist. chances: P(shown) of each on ``image``, float64 ``[C]``.
        status: "complete" (every item shown, or all rounds done), "budget" or "interrupted".
        aligned: whether every item was found on ``image``.
        trace: the family tree; an edit's instruction is the ``prompt`` of its entries.
        images: every image that was judged, by id of the trace.
        warnings: sentences for the user.
    """

    image: Tensor
    items: list[str]
    chances: Tensor
    status: str
    aligned: bool
    trace: Trace
    images: dict[int, Tensor] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass
class _Judged:
    """An image with its answers and its place in the trace."""

    image: Tensor
    chances: Tensor
    node: int

    @property
    def right(self) -> int:
        """Items that it shows."""
        return int((self.chances > 0.5).sum())

    @property
    def score(self) -> float:
        """In 0..1: items right, then mean P."""
        mean = float(self.chances.nan_to_num(0.0).mean())
        return (self.right + mean) / (len(self.chances) + 1)


def refine(
    settings: Refine,
    image: Tensor,
    prompt: str,
    critic: Critic,
    editor: Editor,
    *,
    seed: int = 0,
    instruct: Instruct = plain_instruction,
    compare: Compare | None = None,
    listener: Listener | None = None,
    ledger: Ledger | None = None,
    interrupts: tuple[type[BaseException], ...] = (),
    rescue: Callable[[Refined], None] | None = None,
) -> Refined:
    """Refine one image; see the module.

    Args:
        image: ``[H, W, 3]`` in 0..1, where it begins.
        prompt: what it should show.
        instruct: words an edit. compare: breaks ties between candidates.
        listener, interrupts: of ``run_search``; the best so far comes back in every case.
        ledger: the books, with a budget if there is one; default: without.
        rescue: called with the best so far before an error of a model goes through.

    Raises:
        SearchError: bad input, or a checklist that cannot be used.
    """
    settings.check()
    if not prompt.strip():
        raise SearchError("prompt is empty: write what the image should show, it is checked item by item")
    if image.dim() != 3 or image.shape[-1] != 3:
        raise SearchError(f"image has shape {list(image.shape)}: one image [H, W, 3] is needed")
    run = _Run(settings, prompt, critic, editor, seed, instruct, compare, Trace(listener, seed, interrupts))
    run.ledger = ledger or Ledger()
    status = "complete"
    stops: tuple[type[BaseException], ...] = (Interrupted, *interrupts)
    try:
        run.go(image)
    except BudgetSpent as spent:
        status = "budget"
        run.warnings.append(f"budget spent: {spent}; returning the best so far")
    except stops:
        if not run.judged:
            raise
        status = "interrupted"
    except Exception as error:
        if rescue is not None and run.judged:
            run.warnings.append(f"failed: {type(error).__name__}: {error}; this is the best so far")
            rescue(run.result("failed", image))
        raise
    return run.result(status, image)


class _Run:
    """One refinement as it goes."""

    def __init__(
        self,
        settings: Refine,
        prompt: str,
        critic: Critic,
        editor: Editor,
        seed: int,
        instruct: Instruct,
        compare: Compare | None,
        trace: Trace,
    ):
        self.settings, self.prompt, self.critic, self.editor, self.seed = settings, prompt, critic, editor, seed
        self.instruct, self.compare, self.trace = instruct, compare, trace
        self.ledger = Ledger()
        self.items: list[str] = []
        self.judged: list[_Judged] = []
        self.tried: list[str] = []
        self.warnings: list[str] = []
        self.best: _Judged | None = None
        trace.meta.update(
            {"method": "refine_by_edit", "title": "Refine by Edit", "prompts": [prompt], "verifier": critic.name}
        )

    def go(self, image: Tensor) -> None:
        """The rounds."""
        self.items = _usable(self.critic.checklist(self.prompt), self.prompt)
        (now,) = self._judge(image[None])
        now = self._write(0, [now], [None], [None], 0)[0]
        in_a_row = refused = 0
        for number in range(1, self.settings.rounds + 1):
            failed = [item for item, shown in zip(self.items, (now.chances > 0.5).tolist(), strict=True) if not shown]
            if not failed:
                break
            anew = self.settings.fresh and self.editor.starts_anew
            anew = anew and (in_a_row >= REFUSALS or 2 * len(failed) > len(self.items))
            told = None
            if not anew:
                told = self.instruct(now.image, self.prompt, failed if refused >= REFUSALS else failed[:1], self.tried)
                self.tried.append(told)
            made = self._make(now, told, number)
            found = self._judge(made)
            keeps = torch.zeros(len(made)) if anew or self.compare is None else self.compare(made, now.image)
            chosen = max(range(len(found)), key=lambda k: (found[k].right, found[k].score, float(keeps[k]), -k))
            least = now.right + (self.settings.accept == "better")
            taken = found[chosen].right >= least
            parents = [now.node] * (len(found) + 1) if not anew else [now.node, *[None] * len(found)]
            written = self._write(
                number, [now, *found], parents, [None, *[told] * len(found)], 1 + chosen if taken else 0
            )
            now = written[1 + chosen if taken else 0]
            refused, in_a_row = (refused, 0) if taken else (refused + 1, in_a_row + 1)
            in_a_row = 0 if anew else in_a_row
        self._settle()

    def _make(self, now: _Judged, told: str | None, number: int) -> Tensor:
        """Candidates of a round; ``told`` None: fresh ones."""
        self.ledger.check()
        seed, count = self.seed + number, self.settings.candidates
        if told is None:
            return self.editor.fresh(self.prompt, seed, count, self.ledger)
        return self.editor.edit(now.image, told, seed, count, self.ledger)

    def _judge(self, images: Tensor, again: bool = False) -> list[_Judged]:
        self.ledger.check()
        with self.ledger.verify(len(images)):
            chances = self.critic.chances(images, self.items, again).detach().cpu().double()
        if chances.shape != (len(images), len(self.items)):
            raise SearchError(
                f"critic {self.critic.name!r} gave {list(chances.shape)} answers for {len(images)} images and "
                f"{len(self.items)} items: one each is needed"
            )
        return [_Judged(image, row, -1) for image, row in zip(images, chances, strict=True)]

    def _write(
        self,
        number: int,
        found: list[_Judged],
        parents: Sequence[int | None],
        told: Sequence[str | None],
        selected: int,
        phase: str = "search",
    ) -> list[_Judged]:
        """A record of a round; what was found, with its ids."""
        ids = self.trace.new_ids(len(found))
        entries: list[ParticleEntry] = []
        for slot, (one, node, parent, text) in enumerate(zip(found, ids, parents, told, strict=True)):
            names = {f"{k + 1}. {item}": value for k, (item, value) in enumerate(zip(self.items, finite(one.chances)))}  # noqa: B905
            entries.append(
                {
                    "id": node, "parent": parent, "group": 0, "slot": slot, "score": one.score, "log_weight": None,
                    "gradient_scale": 0.0, "selected": slot == selected, "members": names, "prompt": text,
                }
            )  # fmt: skip
        written = [_Judged(one.image, one.chances, node) for one, node in zip(found, ids, strict=True)]
        self.judged += written
        best = max(written, key=lambda one: one.score)
        if self.best is None or best.score > self.best.score:
            self.best = best
        steps, group = self.settings.rounds + 1, torch.zeros(len(found), dtype=torch.int64)
        record = StepRecord(
            number, steps, 0.0, entries, [float(len(found))], [False], [0.0], self.ledger.nfe,
            self.ledger.total_seconds, phase,
        )  # fmt: skip
        images = torch.stack([one.image for one in found])
        state = State(images, group, torch.arange(len(found)), number, images, node=torch.tensor(ids))
        self.trace.add(record, state, images)
        return written

    def _settle(self) -> None:
        """The two best, judged again in other words, so that one lucky answer decides nothing."""
        unique: list[_Judged] = []
        for one in sorted(self.judged, key=lambda one: -one.score):
            if all(one.image is not other.image for other in unique):
                unique.append(one)
        if len(unique) < 2 or unique[0].right > unique[1].right + 1:
            return
        pair = unique[:2]
        again = self._judge(torch.stack([one.image for one in pair]), again=True)
        both = [
            _Judged(one.image, torch.stack([one.chances, other.chances]).mean(0), one.node)
            for one, other in zip(pair, again, strict=True)
        ]
        self.best = max(both, key=lambda one: one.score)

    def result(self, status: str, image: Tensor) -> Refined:
        """What there is now; ``image`` where nothing was judged."""
        best = self.best
        chances = torch.full((len(self.items),), torch.nan, dtype=torch.float64) if best is None else best.chances
        meta = self.trace.meta
        meta.update({"status": status, "ledger": self.ledger.to_dict(), "warnings": self.warnings})
        if best is not None:
            meta["winners"] = [best.node]
        return Refined(
            image if best is None else best.image,
            self.items,
            chances,
            status,
            bool(len(self.items)) and bool((chances > 0.5).all()),
            self.trace,
            {one.node: one.image for one in self.judged},
            self.warnings,
        )


def _usable(items: Sequence[str], prompt: str) -> list[str]:
    found = list(dict.fromkeys(item.strip() for item in items if item.strip()))[:MOST_ITEMS]
    if not found:
        raise SearchError(f"the checklist of {prompt!r} is empty: write at least one thing that can be seen")
    return found
