"""The vision-language model that a graph has loaded as its text encoder, asked through the host's own text generation.

The only module that knows how a CLIP generates text. The logits of an answer's first word are those that
``CLIP.generate`` itself computes: for one call they are overheard on their way. One question per call, because the
host's attention mask serves one row.
"""

from __future__ import annotations

import re
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management as management
import comfy.utils
import torch
from PIL import Image
from torch import Tensor

from ...chat.conversation import ChatError, NotUnderstood, Poll, Reply, Turn, Unanswered, writable
from ...chat.reading import answer_in
from ...rewriters.base import ChatRewriter, RewriterError
from ...rewriters.template import Template
from ...verifiers.vlm.judge import Asked, LocalAsker, as_turn
from ...verifiers.vlm.rubric import Rubric, read_yes_no
from .compat import is_oom, throw_if_interrupted

MARKS = {
    "Qwen3VL": ("<|vision_start|><|image_pad|><|vision_end|>", "<think>\n\n</think>\n\n"),
    "Qwen35": ("<|vision_start|><|image_pad|><|vision_end|>", "<think>\n</think>\n\n"),
}
"""Class of the host's network (a prefix) -> what stands for a picture, and the closed thought before the answer."""
GOOD = "Qwen3-VL 4B or 8B (the text encoder of Krea 2, Qwen-Image 2.1, Ideogram 4, JoyImage), or Qwen3.5"
WHY_NOT = {
    "Qwen25_7BVLI": "ComfyUI loads Qwen2.5-VL (Qwen-Image, HunyuanImage) without its language head",
    "qwen3vl_32b": "its file is cut off after layer 50 and has no language head",
}
CELL, LEAST, LONGEST = 32, 64, 512
"""Sides of pictures are multiples of 32 pixels, so that the host's own resize changes nothing."""
APART = 0.2
_SIGNS = re.compile(r"<\|[^|<>]{0,40}\|>")
_SQUARES = {"red": (220, 20, 20), "blue": (20, 40, 220)}
_checked: weakref.WeakSet = weakref.WeakSet()


class HostVLM:
    """A CLIP that answers questions about pictures.

    Args:
        clip: a ComfyUI CLIP.
        longest: pixels of the longer side of the pictures it is shown.

    Raises:
        ChatError: a host that generates no text, or an encoder that cannot answer, by name.
    """

    def __init__(self, clip: Any, longest: int = LONGEST):
        self.clip, self.longest = clip, max(LEAST, longest)
        encoder = clip.cond_stage_model
        self.encoder = getattr(encoder, str(getattr(encoder, "clip", "")), encoder)
        self.network = getattr(self.encoder, "transformer", None)
        self.kind = str(getattr(self.network, "model_type", "") or type(self.network).__name__)
        self.name = self.kind
        if not hasattr(clip, "generate"):
            raise ChatError(
                "this ComfyUI generates no text with text encoders: update it (0.33 is tested), or use VLM Verifier or "
                "Prompt Rewriter with a model of its own"
            )
        names = [kind.__name__ for kind in type(self.network).__mro__]
        refused = next((why for key, why in WHY_NOT.items() if key in (*names, self.kind)), None)
        found = next((marks for key, marks in MARKS.items() if any(name.startswith(key) for name in names)), None)
        if refused or found is None:
            reason = refused or "it reads no pictures, or writes no answers"
            raise ChatError(f"clip is {self.kind}, which cannot answer questions ({reason}): connect {GOOD}")
        self._picture, self._thought = found
        self._yes, self._no = (self._spellings(word) for word in ("yes", "no"))

    def check(self) -> None:
        """Raise ChatError where the loaded file has no language head: it must tell a red square from a blue one.

        Asked once per loaded model.
        """
        if self.clip.cond_stage_model in _checked:
            return
        for colour in _SQUARES:
            question = f"Is the picture {colour}? Please answer Yes or No."
            said = {
                shown: self.chance(Turn("user", question, Image.new("RGB", (128, 128), rgb)))
                for shown, rgb in _SQUARES.items()
            }
            other = next(shown for shown in _SQUARES if shown != colour)
            if not said[colour] - said[other] >= APART:
                raise ChatError(
                    f"clip ({self.kind}) cannot answer questions: asked whether a {colour} square is {colour} it says "
                    f"yes with {said[colour]:.2f}, of a {other} one with {said[other]:.2f}; this file has no language "
                    f"head in it: load the complete one, or use VLM Verifier"
                )
        _checked.add(self.clip.cond_stage_model)

    def logits(self, turns: Sequence[Turn]) -> Tensor | None:
        """Logits of the answer's first word, float32 ``[vocabulary]``; None where the host keeps them to itself."""
        with _overheard(self.network) as heard:
            self._generate(turns, 1, 0.0, 0, throw_if_interrupted)
        return heard[0] if heard else None

    def chance(self, turn: Turn) -> float:
        """P(yes) / (P(yes) + P(no)) of the answer to a question, over their spellings of one word.

        Raises Unanswered where there are no probabilities and the first word is neither.
        """
        logits = self.logits([turn])
        if logits is None:
            try:
                return read_yes_no(self.answer([turn], 4).text)["yes"]
            except NotUnderstood as error:
                raise Unanswered(str(error)) from error
        chances = torch.log_softmax(logits, -1)
        yes, no = (torch.logsumexp(chances[ids], 0) for ids in (self._yes, self._no))
        return float(torch.sigmoid(yes - no))

    def answer(
        self,
        turns: Sequence[Turn],
        tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        poll: Poll = throw_if_interrupted,
    ) -> Reply:
        """What the model says in at most ``tokens`` tokens, thoughts left out. Raises Unanswered: out of memory."""
        ids = self._generate(turns, tokens, temperature, seed, poll)
        stops = getattr(getattr(getattr(self.network, "model", None), "config", None), "stop_tokens", ())
        said, unfinished = answer_in(writable(self.clip.decode(ids)))
        return Reply(said, cut=unfinished or (len(ids) >= tokens and ids[-1] not in stops))

    def _generate(self, turns: Sequence[Turn], tokens: int, temperature: float, seed: int, poll: Poll) -> list[int]:
        poll()
        images = [self._shown(image) for turn in turns for image in turn.images]
        asked = self.clip.tokenize(self.rendered(turns), **({"images": images} if images else {}))
        sampled = temperature > 0
        options = {"temperature": temperature, "top_k": 20, "top_p": 0.9, "seed": seed} if sampled else {}
        with _quietly(self.network, poll), torch.no_grad():
            try:
                return [int(one) for one in self.clip.generate(asked, do_sample=sampled, max_length=tokens, **options)]
            except Exception as error:
                if not is_oom(error):
                    raise
                management.soft_empty_cache()
                raise Unanswered(f"out of memory while {self.name} was answering") from error

    def rendered(self, turns: Sequence[Turn]) -> str:
        """A conversation in the model's own form, up to where its answer begins.

        It begins with the family's turn marker, so that the host's tokenizer adds nothing to it.
        """
        parts = []
        for turn in turns:
            marks = self._picture * len(turn.images)
            parts.append(f"<|im_start|>{turn.role}\n{marks}{harmless(turn.text)}<|im_end|>\n")
        return "".join([*parts, "<|im_start|>assistant\n", self._thought])

    def _shown(self, picture: Image.Image) -> Tensor:
        """``[1, H, W, 3]`` in 0..1, sides multiples of 32, the longer one at most ``longest``."""
        scale = min(1.0, self.longest / max(picture.size))
        wide, tall = (max(LEAST, CELL * round(side * scale / CELL)) for side in picture.size)
        if (wide, tall) != picture.size:
            picture = picture.resize((wide, tall), Image.Resampling.BICUBIC)
        pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
        return pixels.view(1, tall, wide, 3).float() / 255.0

    def _spellings(self, word: str) -> list[int]:
        """Tokens that are ``word`` alone: yes, Yes, YES, with and without a space before it."""
        tokenizer = self.clip.tokenizer
        inner = getattr(tokenizer, str(getattr(tokenizer, "clip", "")), tokenizer).tokenizer
        forms = [space + form for form in (word, word.capitalize(), word.upper()) for space in ("", " ")]
        found = [inner(form, add_special_tokens=False)["input_ids"] for form in forms]
        single = sorted({ids[0] for ids in found if len(ids) == 1})
        if not single:
            raise ChatError(f"the vocabulary of clip ({self.kind}) has no token for {word!r}: connect {GOOD}")
        return single


def harmless(text: str) -> str:
    """A text without the model's own signs and without the host's ``embedding:``."""
    return _SIGNS.sub(" ", text).replace("embedding:", "embedding ")


@contextmanager
def _overheard(network: Any) -> Iterator[list[Tensor]]:
    """Collects the logits of every word that ``network`` generates meanwhile, float32 ``[vocabulary]`` on the CPU."""
    heard: list[Tensor] = []
    plain = getattr(network, "logits", None)
    if plain is None:
        yield heard
        return

    def logits(x: Tensor) -> Tensor:
        out = plain(x)
        heard.append(out[0, -1].detach().float().cpu())
        return out

    network.logits = logits
    try:
        yield heard
    finally:
        del network.logits  # the instance's; the class has its own


@contextmanager
def _quietly(network: Any, poll: Poll) -> Iterator[None]:
    """The host's bars would run to the end at every question; in their place ``poll`` is called between two words."""

    def between(*_: Any, **__: Any) -> None:
        poll()

    hook = comfy.utils.PROGRESS_BAR_HOOK
    writer = sys.modules.get(getattr(getattr(type(network), "generate", None), "__module__", ""))
    drawn = getattr(writer, "tqdm", None)
    comfy.utils.set_progress_bar_global_hook(between)
    try:
        if drawn is not None:
            writer.tqdm = lambda steps, **_: steps
        yield
    finally:
        comfy.utils.set_progress_bar_global_hook(hook)
        if drawn is not None:
            writer.tqdm = drawn


def tried(clip: Any, longest: int = LONGEST) -> HostVLM:
    """The model of a CLIP after its self-check. ChatError where it cannot answer."""
    if clip is None:
        raise ChatError(f"clip is missing: connect {GOOD}")
    vlm = HostVLM(clip, longest)
    vlm.check()
    return vlm


class ClipAsker(LocalAsker):
    """Asks the model of a CLIP; see ``verifiers.vlm.judge.Asker``. The host moves the network itself."""

    def __init__(self, vlm: HostVLM):
        self.model, self.longest, self.name = vlm, vlm.longest, vlm.name
        self.module = None

    def ask_of(self, asked: Sequence[Asked], rubric: Rubric) -> list[dict[str, float] | str]:
        """See ``Asker``: one question after the other."""
        if rubric.name != "yes_no":
            return [self._fill(one, rubric) for one in asked]
        answers: list[dict[str, float] | str] = []
        for one in asked:
            try:
                answers.append({"yes": self.model.chance(as_turn(one, self.longest))})
            except Unanswered as error:
                answers.append(str(error))
        return answers


class ClipRewriter(ChatRewriter):
    """A rewriter by the model of a CLIP.

    Args:
        vlm: the model. template: instructions. temperature: 0 takes the likeliest words. max_tokens: longest answer.
    """

    def __init__(self, vlm: HostVLM, template: Template | None = None, temperature: float = 0.7, max_tokens: int = 400):
        super().__init__(vlm.name, template)
        if not temperature >= 0:
            raise RewriterError(f"temperature is {temperature}: it must be >= 0")
        if max_tokens < 16:
            raise RewriterError(f"max_tokens is {max_tokens}: at least 16 are needed")
        self.vlm, self.temperature, self.max_tokens = vlm, temperature, max_tokens

    def complete(self, turns: Sequence[Turn], seed: int, poll: Poll) -> Reply:
        """One generation; the same seed gives the same answer on the same device."""
        return self.vlm.answer(turns, self.max_tokens, self.temperature, seed, poll)
