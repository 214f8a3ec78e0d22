"""VQAScore: how probable it is that a model answers "Yes" when asked whether the image shows the prompt.

Lin et al. 2024, arXiv 2404.01291. The rule that its authors' current code applies to chat models: one forward pass, the
softmax over the whole vocabulary at the first position of the answer, the probability of "Yes", in the form (with or
without a space before it) that the model's chat template leads to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...chat.conversation import Turn
from ...chat.local import LocalVLM, load_local_vlm
from ...samplers.protocols import ScoreContext, Verifier
from ..base import VerifierError, check_images, check_prompts
from ..caching import ImageCache
from ..pictures import finite_rows, to_bytes, to_pictures

QUESTION = 'Does this figure show "{}"? Please answer Yes or No.'


class VQAScoreVerifier(Verifier):
    """P("Yes"), 0 to 1.

    Args:
        vlm: the model that is asked.
        question: with one pair of braces for the prompt.
        normalise: P("Yes") / (P("Yes") + P("No")) instead: steadier where a model likes to say something else first.
        longest: pixels of an image's longer side that the model is shown; None leaves images as they are.
        batch: images per forward pass.
        name: for reports.

    Raises:
        VerifierError: a question without braces.
        ChatError: a model without the words, or one that thinks first.
    """

    differentiable = False
    needs_prompt = True
    default_scale = (0.7, 0.25)
    bytes_per_image = 2 * 2**30

    def __init__(
        self,
        vlm: LocalVLM,
        question: str = QUESTION,
        normalise: bool = False,
        longest: int | None = 768,
        batch: int = 1,
        name: str = "vqa_score",
    ):
        if question.count("{}") != 1:
            raise VerifierError(f"question is {question!r}: it must hold {{}} once, where the prompt goes")
        if longest is not None and longest < 1:
            raise VerifierError(f"longest is {longest}: at least one pixel is needed")
        self.module, self.question, self.normalise, self.longest, self.name = vlm, question, normalise, longest, name
        self._yes, self._no = vlm.answer_token("Yes"), vlm.answer_token("No")
        self._images = ImageCache(batch=batch)

    def score(self, images: Tensor, prompts: Sequence[str] | str, context: ScoreContext | None = None) -> Tensor:
        """Scores float32 ``[n]`` of ``images [n, H, W, 3]`` in 0..1; NaN for an image with a pixel that is none."""
        images = check_images(images)
        prompts = check_prompts(prompts, len(images), self.name)
        good, pixels = finite_rows(images), to_bytes(images)

        def ask(rows: Tensor) -> Tensor:
            shown = to_pictures(pixels[rows], self.longest)
            asked = [self.question.replace("{}", prompts[row]) for row in rows.tolist()]
            said = self.module.next_token(
                [[Turn("user", text, picture)] for picture, text in zip(shown, asked, strict=True)]
            )
            yes, no = said[:, self._yes], said[:, self._no]
            return torch.sigmoid(yes - no) if self.normalise else yes.exp()

        return self._images(pixels, ask, prompts).masked_fill(~good, torch.nan)


def load_vqa_score(folder: str | Path, **options) -> VQAScoreVerifier:
    """VQAScore by a chat model in a local Hugging Face folder. Nothing is downloaded.

    Args:
        folder: e.g. of ``Qwen/Qwen3-VL-4B-Instruct``.
        options: of ``VQAScoreVerifier``.

    Raises:
        ChatError: no such model there.
    """
    options.setdefault("name", f"vqa_score({Path(folder).name})")
    return VQAScoreVerifier(load_local_vlm(folder), **options)
