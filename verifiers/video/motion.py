"""How much a clip moves, flickers and stays itself: measures of pixels, without weights.

A frozen clip has no flicker, is perfectly smooth, and is as like its first frame as can be, so none of these measures
is a reward by itself: whoever maximises them alone freezes the picture. The score therefore has a target for the amount
of motion, in the middle of which it is highest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...samplers.frames import FrameChoice
from ...samplers.looks import shown_in
from ...samplers.protocols import ScoreContext, Values, Verifier
from ...samplers.verifier import CLIP
from ..base import VerifierError, check_images

AMOUNTS = {"still": 0.002, "calm": 0.01, "lively": 0.03}
"""Mean absolute difference of neighbouring frames, in 0..1, that is aimed at."""
FLOOR = 0.0005  # below half a step of 8 bits nothing moves
FRAMES = 17  # of which a causal video VAE has to decode five latent frames only


class Motion(NamedTuple):
    """Measures of clips, ``[n]`` each, float64, in parts of the range 0..1 of a pixel.

    Attributes:
        amount: mean absolute difference of neighbouring frames.
        flicker: mean absolute second difference of the mean brightness: high where brightness goes up and down, low in
            a slow fade and where things move.
        jitter: mean absolute second difference of the pixels.
        likeness: 1 - mean absolute difference to the first frame.
    """

    amount: Tensor
    flicker: Tensor
    jitter: Tensor
    likeness: Tensor


def measure(clips: Tensor, gap: float = 1.0) -> Motion:
    """``Motion`` of clips ``[n, F, H, W, 3]``, F >= 2, whose frames are ``gap`` frames apart."""
    clips = clips.float()
    steps = clips[:, 1:] - clips[:, :-1]
    bright = clips.double().mean((2, 3, 4))
    turns = bright[:, 2:] - 2 * bright[:, 1:-1] + bright[:, :-2]
    bends = steps[:, 1:] - steps[:, :-1]
    none = torch.zeros(len(clips), dtype=torch.float64, device=clips.device)
    return Motion(
        amount=steps.abs().double().mean((1, 2, 3, 4)) / gap,
        flicker=turns.abs().mean(1) if turns.shape[1] else none,
        jitter=bends.abs().double().mean((1, 2, 3, 4)) if bends.shape[1] else none,
        likeness=1.0 - (clips[:, 1:] - clips[:, :1]).abs().double().mean((1, 2, 3, 4)),
    )


class MotionVerifier(Verifier):
    """Clips that move about as much as wanted, without flicker.

        score = -|log((amount + floor) / (target + floor))| - w_f flicker - w_l (1 - likeness)

    A frozen clip scores -3.0 against "calm", a clip that is right scores 0.

    Args:
        amount: "still", "calm" or "lively".
        flicker_weight: w_f >= 0. 10: brightness that goes up and down by 4 % costs about 1.
        likeness_weight: w_l >= 0, for clips that should stay near their first frame.
        frames: neighbouring frames from the beginning that are looked at, >= 2.

    Raises:
        VerifierError: naming the setting that cannot work.
    """

    name = "motion"
    differentiable = True
    needs_prompt = False
    default_scale = (-0.7, 0.5)
    sees = CLIP
    least_frames = 2

    def __init__(
        self, amount: str = "calm", flicker_weight: float = 10.0, likeness_weight: float = 0.0, frames: int = FRAMES
    ):
        if amount not in AMOUNTS:
            raise VerifierError(f"amount is {amount!r}: choose {', '.join(map(repr, AMOUNTS))}")
        for name, value in (("flicker_weight", flicker_weight), ("likeness_weight", likeness_weight)):
            if not 0.0 <= value < float("inf"):
                raise VerifierError(f"{name} is {value}: it must be at least 0")
        if frames < self.least_frames:
            raise VerifierError(f"frames is {frames}: motion needs at least {self.least_frames}")
        self.target, self.flicker_weight, self.likeness_weight = AMOUNTS[amount], flicker_weight, likeness_weight
        self.frames = FrameChoice("first", frames, longest=256)

    def score(self, images: Tensor, prompts: Sequence[str] = (), context: ScoreContext | None = None) -> Tensor:
        """Scores float64 ``[n]`` of clips ``[n, F, H, W, 3]``; the prompts are not read."""
        return self.judge(images, prompts, context).score

    def judge(self, images: Tensor, prompts: Sequence[str] = (), context: ScoreContext | None = None) -> Values:
        """``score``, and the four measures."""
        if images.dim() != 5:
            raise VerifierError(f"verifier {self.name!r} judges videos: these are {len(images)} images")
        shown = shown_in(images, context)
        places = shown.places(self.frames or FrameChoice("first", FRAMES))
        if len(places) < self.least_frames:
            raise VerifierError(f"verifier {self.name!r} judges videos: this clip has {len(places)} frame")
        n, count = len(images), len(places)
        clips = check_images(images[:, places].flatten(0, 1)).unflatten(0, (n, count))
        gap = (shown.numbers[places[-1]] - shown.numbers[places[0]]) / (count - 1)
        found = measure(clips, gap)
        score = -torch.log((found.amount + FLOOR) / (self.target + FLOOR)).abs()
        score = score - self.flicker_weight * found.flicker - self.likeness_weight * (1.0 - found.likeness)
        return Values(score, None, {name: part.detach() for name, part in found._asdict().items()})
