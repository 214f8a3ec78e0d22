"""What all rewriters that ask a language model share: the template, the reading of answers, a cache, the second try.

The contract itself is ``samplers.protocols.Rewriter``. An answer that cannot be used is a ``failed`` Rewrite and a line
in the log; the search goes on with the original prompt.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..chat.conversation import NotUnderstood, Poll, Reply, Turn, Unanswered
from ..chat.syntax import carried_over
from ..samplers.protocols import Rewrite, RewriteRequest, SearchError
from .parsing import listed, parse, usable
from .template import ONLY_JSON, Template

log = logging.getLogger("testtime")

CACHED = 256
IMAGE_SIDE = 448
EDITED = (
    "The last picture is the preview. The pictures before it are what is edited: the request says what is to change in "
    "the first, everything else of it stays as it is.\n\n"
)
"""What a question begins with where the image is made from others."""


class RewriterError(SearchError):
    """A rewriter that cannot be set up; the message names what is wrong and what is right."""


def check_request(request: RewriteRequest) -> None:
    """Raise RewriterError for a question that makes no sense."""
    if request.image.dim() != 3 or request.image.shape[-1] != 3:
        raise RewriterError(f"image has shape {list(request.image.shape)}: one image [H, W, 3] is needed")
    if not request.prompt.strip():
        raise RewriterError("prompt is empty: write what the image should show, the rewriter compares with it")
    if request.count < 1:
        raise RewriterError(f"rewrites is {request.count}: at least 1 is needed")


def picture(image: Tensor, side: int = IMAGE_SIDE) -> Image.Image:
    """PIL picture of ``[H, W, 3]`` in 0..1, its longer side brought to ``side``; NaN becomes black."""
    made = Image.fromarray(_bytes(image))
    scale = side / max(made.size)
    return made.resize([max(1, round(edge * scale)) for edge in made.size], Image.Resampling.BICUBIC)


def _bytes(image: Tensor) -> np.ndarray:
    """uint8 ``[H, W, 3]``."""
    return (image.detach().float().nan_to_num(0.0).clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).cpu().numpy()


class ChatRewriter:
    """A rewriter that shows a chat model the preview and asks for prompts. Subclasses answer ``complete``.

    Args:
        name: for reports.
        template: instructions.
        image_side: longer side of the picture that is sent, in pixels.
    """

    def __init__(self, name: str, template: Template | None = None, image_side: int = IMAGE_SIDE):
        self.name = name
        self.template = template or Template()
        self.template.check()
        self.image_side = image_side
        self._kept: OrderedDict[str, Rewrite] = OrderedDict()

    def complete(self, turns: Sequence[Turn], seed: int, poll: Poll) -> Reply:
        """Answer of the model to a conversation. Raises Unanswered."""
        raise NotImplementedError

    def rewrite(self, requests: Sequence[RewriteRequest], poll: Poll | None = None) -> list[Rewrite]:
        """See ``samplers.protocols.Rewriter``. A question that was answered before costs no call."""
        for request in requests:
            check_request(request)
        keys = [self._key(request) for request in requests]
        new = {key: request for key, request in zip(keys, requests, strict=True) if key not in self._kept}
        fresh = dict(zip(new, self._answers(list(new.values()), poll or (lambda: None)), strict=True))
        answers, paid = [], set()
        for key in keys:
            answer = fresh.get(key) or self._kept[key]
            answers.append(answer if key in fresh and key not in paid else replace(answer, calls=0))
            paid.add(key)
        for key, answer in fresh.items():
            if not answer.failed:  # what failed may work the next time
                self._kept[key] = answer
        while len(self._kept) > CACHED:
            self._kept.popitem(last=False)
        return answers

    def _answers(self, requests: list[RewriteRequest], poll: Poll) -> list[Rewrite]:
        """Answers to new questions, one after the other."""
        return [self.answer(request, poll) for request in requests]

    def answer(self, request: RewriteRequest, poll: Poll) -> Rewrite:
        """Ask once, and once more where the answer cannot be read."""
        shown = tuple(picture(source, self.image_side) for source in request.sources)
        asked = EDITED * bool(shown) + self.template.question(request)
        question = Turn("user", asked, picture(request.image, self.image_side), shown)
        turns, calls = [Turn("system", self.template.system), question], 0
        reason = ""
        for _ in range(2):
            try:
                reply = self.complete(turns, request.seed, poll)
            except Unanswered as error:
                return self._failed(str(error), calls + error.calls)
            calls += reply.calls
            try:
                return self._read(reply, request, calls)
            except NotUnderstood as error:
                reason = f"{error}{', it was cut off before its end' * reply.cut}"
                turns = [*turns[:2], Turn("assistant", reply.text[:2000]), Turn("user", ONLY_JSON)]
        return self._failed(reason, calls)

    def _read(self, reply: Reply, request: RewriteRequest, calls: int) -> Rewrite:
        # Some servers give the whole answer as "reasoning"; one that was cut off there is a thought, no answer.
        said = parse(reply.text if reply.text.strip() or reply.cut else reply.thoughts)
        missing = listed(said.missing)
        if said.aligned:
            return Rewrite(missing=missing, aligned=True, calls=calls)
        prompts = usable(said.prompts, request.prompt, request.count, self.template.words)
        if not prompts:
            raise NotUnderstood("the answer holds no prompt that differs from the request")
        return Rewrite(tuple(carried_over(request.prompt, p) for p in prompts), missing, calls=calls)

    def _failed(self, reason: str, calls: int) -> Rewrite:
        log.warning("rewriter %s: %s; going on with the original prompt", self.name, reason)
        return Rewrite(failed=True, note=reason, calls=calls)

    def _key(self, request: RewriteRequest) -> str:
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr(tuple(request.image.shape)).encode())
        digest.update(_bytes(request.image).tobytes())
        for source in request.sources:
            digest.update(repr(tuple(source.shape)).encode() + _bytes(source).tobytes())
        rest = (self.template.system, self.template.question(request), request.prompt, request.count, request.seed)
        digest.update(repr(rest).encode())
        return digest.hexdigest()
