"""Any verifier of pictures as a judge of clips: which frames it sees, and how their scores become one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...samplers.frames import AGGREGATES, LONGEST, FrameChoice
from ...samplers.looks import judge, judge_frames
from ...samplers.protocols import ScoreContext, Values, Verifier
from ...samplers.verifier import CLIP
from ..base import VerifierError, WrappedVerifier


class FramesVerifier(WrappedVerifier):
    """A verifier of pictures that is shown some frames of every clip.

    Args:
        verifier: of pictures, or one that takes clips whole and then sees these frames of it.
        which, count, longest: see ``FrameChoice``.
        how: "mean", "minimum" (a clip is as good as its worst frame), "lower quartile", "median" or "first".

    Of a picture it says what the verifier says. The scores of the frames are ``members``.

    Raises:
        VerifierError: naming the setting that cannot work.
    """

    def __init__(
        self, verifier: Verifier, which: str = "uniform", count: int = 5, how: str = "mean", longest: int = LONGEST
    ):
        super().__init__(verifier)
        try:
            self.frames = FrameChoice(which, count, longest)
        except ValueError as error:
            raise VerifierError(str(error)) from error
        if how not in AGGREGATES:
            raise VerifierError(f"aggregate is {how!r}: choose {', '.join(map(repr, AGGREGATES))}")
        self.how, self.sees, self.module = how, CLIP, None
        self.name = f"{verifier.name} on frames"

    def judge(self, images: Tensor, prompts: Sequence[str], context: ScoreContext | None = None) -> Values:
        """Values of clips ``[n, F, H, W, 3]`` or pictures ``[n, H, W, 3]``."""
        if images.dim() != 5 or self.inner.sees == CLIP:
            return judge(self.inner, images, prompts, context)
        assert self.frames is not None
        return judge_frames(self.inner, images, prompts, context, self.frames, self.how)
