"""The contract of verifiers: images + prompts -> one number per image, and what passes between them and a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .frames import FrameChoice, Shown

if TYPE_CHECKING:
    from .sources import Sources

IMAGE, CLIP = "image", "clip"
"""What a verifier is shown at a time, see ``Verifier.sees``."""


@dataclass(frozen=True)
class Values:
    """What was said of a population.

    Attributes:
        score: float64 ``[n]``, of a verifier or of a value function.
        gradient: like ``State.x``, of the score with respect to it, where asked.
        members: the parts that a score was made of (an ensemble's members, a rubric's axes), name -> ``[n]``.
        broken: bool ``[n]`` rows whose latent or picture is NaN or infinite, None where nobody looked for them.
    """

    score: Tensor
    gradient: Tensor | None = None
    members: Mapping[str, Tensor] = field(default_factory=dict)
    broken: Tensor | None = None

    def select(self, rows: Tensor) -> Values:
        """The values of some rows."""
        gradient = None if self.gradient is None else self.gradient[rows.to(self.gradient.device)]
        broken = None if self.broken is None else self.broken[rows]
        return Values(self.score[rows], gradient, {name: part[rows] for name, part in self.members.items()}, broken)

    @staticmethod
    def joined(parts: Sequence[Values]) -> Values:
        """Values of several chunks or rounds, rows in order; gradients are kept where all have one."""
        gradients = [part.gradient for part in parts if part.gradient is not None]
        names = list(dict.fromkeys(name for part in parts for name in part.members))
        broken = [part.broken for part in parts if part.broken is not None]
        return Values(
            torch.cat([part.score for part in parts]),
            torch.cat(gradients) if len(gradients) == len(parts) else None,
            {name: torch.cat([_part(part, name) for part in parts]) for name in names},
            torch.cat(broken) if len(broken) == len(parts) else None,
        )


def _part(values: Values, name: str) -> Tensor:
    """A member's scores, NaN where it gave none."""
    missing = torch.full((len(values.score),), torch.nan, dtype=torch.float64)
    return values.members.get(name, missing).detach().cpu().double()


def _nothing(seconds: float) -> None:
    """Nobody counts."""


@dataclass(frozen=True)
class ScoreContext:
    """Which images of a run a verifier is shown.

    Attributes:
        group: int64 ``[n]`` image of the batch that each candidate competes for.
        step, steps: moves made, of how many.
        final: whether these are finished images.
        run: stands for the run: the same object throughout one run. Verifiers may keep a weak reference to it.
        excuse: takes seconds that were spent waiting for a person out of the run's time.
        sources: per group what the user gave to be edited, empty where nothing was given.
        instruction: what is to be done to it where that is not the prompt, "" otherwise.
        frames: which frames of a clip are shown, None where candidates are pictures.
    """

    group: Tensor
    step: int = 0
    steps: int = 1
    final: bool = True
    run: object = None
    excuse: Callable[[float], None] = _nothing
    sources: Sequence[Sources] = ()
    instruction: str = ""
    frames: Shown | None = None

    def rows(self, rows: slice) -> ScoreContext:
        """The context of a chunk."""
        return replace(self, group=self.group[rows])

    def source(self, row: int) -> Sources | None:
        """What the image of row ``row`` is made from, None where nothing was given."""
        return self.sources[int(self.group[row]) % len(self.sources)] if self.sources else None


class Verifier:
    """Images + prompts -> one number per image. Subclass it and write ``score``.

    Attributes:
        name: short name for reports.
        differentiable: whether ``score`` can be differentiated with respect to the images.
        relative: scores compare the candidates of one call with each other, so all of a step must come in one call,
            and scores of different steps mean different things.
        rejects: -inf is a verdict (a person dropped the image), not a failure to be warned of.
        needs_prompt: whether the prompt is read.
        compares: whether it is shown the image that is edited.
        needs_source: whether it compares with the image that is edited, and has none of its own.
        pairwise: whether it can compare two images (``prefer``).
        default_scale: usual (mean, standard deviation) of scores, to weigh verifiers against each other.
        members: verifiers that this one is made of.
        module: its network, where it has one that a host may move between devices.
        bytes_per_image: working memory of a score, None where nothing is known.
        sees: ``IMAGE``: ``score`` takes pictures ``[n, H, W, 3]``, of a clip its frames one by one. ``CLIP``: it takes
            clips ``[n, F, H, W, 3]``, too.
        frames: which frames of a clip it wants, None for the usual few.
        least_frames: below so many it has nothing to say: 2 of a verifier that judges motion.
    """

    name: str = "verifier"
    differentiable: bool = False
    relative: bool = False
    rejects: bool = False
    needs_prompt: bool = True
    compares: bool = False
    needs_source: bool = False
    pairwise: bool = False
    default_scale: tuple[float, float] = (0.0, 1.0)
    members: Sequence[Verifier] = ()
    module: Any = None
    bytes_per_image: float | None = None
    sees: str = IMAGE
    frames: FrameChoice | None = None
    least_frames: int = 1

    def score(self, images: Tensor, prompts: Sequence[str], context: ScoreContext | None = None) -> Tensor:
        """Scores ``[n]`` of ``images`` ``[n, H, W, 3]`` in 0..1 for ``prompts`` (one per image), higher is better.

        When grad mode is on and ``images.requires_grad``, a differentiable verifier keeps the graph. The caller
        decides about grad mode; the verifier never turns it on by itself. ``context`` is None outside a search.
        """
        raise NotImplementedError(f"{type(self).__name__} has no score()")

    def judge(self, images: Tensor, prompts: Sequence[str], context: ScoreContext | None = None) -> Values:
        """``score`` with the scores of its parts; what a search calls. Override it where there are some."""
        return Values(self.score(images, prompts, context))

    def prefer(
        self, first: Tensor, second: Tensor, prompts: Sequence[str], context: ScoreContext | None = None
    ) -> Tensor:
        """Which of two images is better, only where ``pairwise``.

        Args:
            first, second: ``[n, H, W, 3]`` in 0..1, shown in this order. prompts: one per pair.

        Returns:
            Log-odds ``[n]`` that the first is the better one; +-inf for a word without a probability, NaN for none.
        """
        raise NotImplementedError(f"{type(self).__name__} compares no images")

    def wants_all(self, context: ScoreContext) -> bool:
        """Whether the images of ``context`` must come in one call, none left for a second chunk."""
        return self.relative
