"""A rewriter for Shapes World that needs no model: it sees the preview with the exact evaluator's eyes.

It stands in for a vision-language model in the demo and the tests. Because it reads previews with the detector that
ShapesEval uses, ShapesEval is not an independent judge of what it achieves: it knows what will be asked, though the
search still chooses by its verifier's score alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..chat.syntax import carried_over, plain
from ..samplers.protocols import Rewrite, RewriteRequest
from ..shapes_world.captions import Prompt, caption
from ..shapes_world.evaluator import UNKNOWN, Detection, detect
from ..shapes_world.reading import read_caption
from ..shapes_world.rules import decide, matches
from ..shapes_world.scene import COLOURS
from .base import Poll, check_request
from .parsing import usable

_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_VIVID = ("red", "blue", "green", "yellow", "orange", "purple")


class ShapesRewriter:
    """Detects what is in the preview, decides what the prompt lacks, and words the prompt so that it stands out.

    Rewrites keep every fact of the prompt and make it more specific: the missing object first, colours for objects
    whose colour is open (those that are seen keep theirs), a place for an object that is missing, coloured groups for
    counts.
    """

    name = "shapes rules"

    def rewrite(self, requests: Sequence[RewriteRequest], poll: Poll | None = None) -> list[Rewrite]:
        """See ``samplers.protocols.Rewriter``."""
        answers = []
        for request in requests:
            if poll is not None:
                poll()
            check_request(request)
            answers.append(self._answer(request))
        return answers

    @staticmethod
    def _answer(request: RewriteRequest) -> Rewrite:
        prompt = read_caption(plain(request.prompt))
        if prompt is None:
            return Rewrite(failed=True, note=f"{request.prompt!r} is not a prompt of Shapes World")
        try:
            seen = detect(request.image.detach().float().cpu().numpy())
        except ValueError as error:
            return Rewrite(failed=True, note=str(error))
        correct, reason = decide(prompt, seen)
        if correct:
            return Rewrite(aligned=True)
        rng = np.random.default_rng([request.seed % 2**63, int.from_bytes(_digest(request.prompt), "little")])
        specific = variants(prompt, seen, rng, request.image.shape[1])
        wordings = [caption(variant, rng) for variant in specific for _ in range(2)]
        tried = [attempt.prompt for attempt in request.history]
        fresh = [text for text in wordings if text not in tried]
        chosen = usable([*fresh, *wordings], request.prompt, request.count, words=16)
        return Rewrite(tuple(carried_over(request.prompt, text) for text in chosen), (reason,))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def variants(prompt: Prompt, seen: Sequence[Detection], rng: np.random.Generator, width: int) -> Iterator[Prompt]:
    """More specific prompts with the same facts, the most promising first; ``width`` is the image's, in pixels."""
    known = [item for item in seen if item.shape != UNKNOWN]
    coloured = _coloured(prompt, known, rng)
    if len(prompt.objects) == 2:
        absent = [not any(matches(item, need) for item in known) for need in prompt.objects]
        turned = _turned(coloured)
        if prompt.relation is None:
            placed = replace(coloured, relation=_free_side(coloured, known, rng, width))
            yield from (turned, _turned(placed)) if absent[1] and not absent[0] else (coloured, placed)
            yield from (placed, turned, _turned(prompt))
        else:
            yield from (turned, coloured, _turned(prompt))
    else:
        yield coloured
    for _ in range(6):
        yield _coloured(prompt, [], rng)
    yield prompt


def _coloured(prompt: Prompt, seen: Sequence[Detection], rng: np.random.Generator) -> Prompt:
    """Open colours filled in: an object that is seen keeps its colour, the others get vivid ones that are free."""
    taken = {need.colour for need in prompt.objects}
    objects = []
    for need in prompt.objects:
        if need.colour is None:
            found = next((item.colour for item in seen if matches(item, need) and item.colour not in taken), None)
            free = [colour for colour in _VIVID if colour not in taken] or list(COLOURS)
            need = replace(need, colour=found or str(rng.choice(free)))
            taken.add(need.colour)
        objects.append(need)
    return replace(prompt, objects=tuple(objects))


def _turned(prompt: Prompt) -> Prompt:
    """The same with the objects in the other order."""
    relation = None if prompt.relation is None else _OPPOSITE[prompt.relation]
    return replace(prompt, objects=prompt.objects[::-1], relation=relation)


def _free_side(prompt: Prompt, seen: Sequence[Detection], rng: np.random.Generator, width: int) -> str:
    """Where the first object should be relative to the second: away from what is there already."""
    for place, need in enumerate(prompt.objects):
        item = next((item for item in seen if item.shape == need.shape), None)
        if item is not None:
            side = "left of" if item.x < width / 2 else "right of"
            return side if place == 0 else _OPPOSITE[side]
    return str(rng.choice(list(_OPPOSITE)))
