"""A verifier is shown previews: pictures as they are, clips frame by frame unless it wants them whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .frames import FrameChoice, Shown, aggregate, names
from .verifier import CLIP, ScoreContext, Values, Verifier


def judge(verifier: Verifier, images: Tensor, prompts: Sequence[str], context: ScoreContext | None = None) -> Values:
    """``verifier.judge`` of previews ``[n, H, W, 3]`` or ``[n, F, H, W, 3]``.

    A verifier of pictures scores the frames that it wants (``verifier.frames``), and a clip gets their mean; the scores
    of the frames are ``members``.
    """
    if images.dim() != 5 or verifier.sees == CLIP:
        return verifier.judge(images, prompts, context)
    return judge_frames(verifier, images, prompts, context, verifier.frames or FrameChoice())


def judge_frames(
    verifier: Verifier,
    images: Tensor,
    prompts: Sequence[str],
    context: ScoreContext | None,
    choice: FrameChoice,
    how: str = "mean",
) -> Values:
    """Score some frames of clips ``[n, F, H, W, 3]`` with a verifier of pictures; one score per clip.

    Args:
        choice: which of the frames. how: see ``frames.aggregate``.
    """
    shown = shown_in(images, context)
    places = shown.places(choice)
    frames = images[:, places].flatten(0, 1)
    count = len(places)
    told = [prompt for prompt in prompts for _ in range(count)]
    if context is not None:
        context = replace(context, group=context.group.repeat_interleave(count), frames=None)
    values = verifier.judge(frames, told, context)
    each = values.score.reshape(-1, count)
    score = aggregate(each, how)
    if not values.score.requires_grad:
        score = score.to(torch.float64)
    members = {}
    if count > 1:
        numbers = [shown.numbers[place] for place in places]
        members = {name: each[:, k].detach() for k, name in enumerate(names(numbers))}
    for name, part in values.members.items():
        members[name] = aggregate(part.reshape(-1, count), how)
    return Values(score, None, members)


def shown_in(images: Tensor, context: ScoreContext | None) -> Shown:
    """What of their clips previews ``[n, F, H, W, 3]`` show; outside a search all F frames are the clip."""
    if context is not None and context.frames is not None:
        return context.frames
    return Shown(tuple(range(images.shape[1])), images.shape[1])


def wishes(verifier: Verifier) -> list[FrameChoice]:
    """The frames that a verifier, or the members that it is made of, wants to see of a clip."""
    if verifier.frames is not None:
        return [verifier.frames]
    return [choice for member in verifier.members for choice in wishes(member)] or [FrameChoice()]
