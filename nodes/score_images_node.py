"""Score Images: any batch of images, judged and sorted."""

from __future__ import annotations

import math

import comfy.model_management as management
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..samplers.processes.chunking import Chunker
from ..samplers.protocols import SearchError
from ..verifiers.base import check_images, check_prompts
from .host.compat import is_oom, throw_if_interrupted
from .host.scores import Scores
from .types import VERIFIER_CATEGORY, ScoresType, VerifierType

ORDERS = ("best first", "as given")
IMAGES_PER_CALL = 8


class ScoreImagesNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeScoreImages",
            display_name="Score Images",
            category=VERIFIER_CATEGORY,
            description="Scores a batch of images, sorts it and keeps the best. Works on any images; no search needed.",
            inputs=[
                io.Image.Input("images", tooltip="A batch of images."),
                VerifierType.Input("verifier", tooltip="Judges the images; they are sorted by its score."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="What the images should show. One line for all, or as many lines as images: one for each. "
                    "Verifiers that ignore prompts need none.",
                ),
                VerifierType.Input("held_out", optional=True, tooltip="A second verifier, shown beside the first."),
                io.Int.Input(
                    "keep", default=0, min=0, max=4096, optional=True, tooltip="How many of the best to keep. 0 = all."
                ),
                io.Combo.Input(
                    "order",
                    options=list(ORDERS),
                    default=ORDERS[0],
                    optional=True,
                    tooltip="best first: sorted by score. as given: the kept images stay in the order of the batch.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The kept images."),
                ScoresType.Output(display_name="scores", tooltip="Their scores, in the same order."),
                io.Float.Output(display_name="best_score"),
                io.String.Output(display_name="text", tooltip="The scores as a table."),
                io.Int.Output(display_name="best_index", tooltip="Position of the best image in the batch, from 0."),
                io.String.Output(display_name="places", tooltip="Positions of the kept images in the batch, from 0."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, verifier, prompt, held_out=None, keep=0, order=ORDERS[0]) -> io.NodeOutput:
        images = check_images(images)
        prompts = prompts_for(prompt, len(images), verifier)
        values = score_batch(verifier, images, prompts)
        others = None
        if held_out is not None:
            others = score_batch(held_out, images, prompts_for(prompt, len(images), held_out))
        rows, best, scores = ranked(verifier, values, keep, order, held_out, others)
        text, places = scores.as_text(), places_of(rows)
        return io.NodeOutput(images[rows], scores, float(values[best]), text, best, places, ui=ui.PreviewText(text))


def ranked(
    verifier, values: Tensor, keep: int, order: str = ORDERS[0], held_out=None, others: Tensor | None = None
) -> tuple[Tensor, int, Scores]:
    """(rows that are kept, the best one, their scores), of images or of videos.

    ``values`` and ``others``, those of ``held_out``: ``[n]``, NaN where there is no score; such rows come last.
    ``keep`` 0: all.
    """
    best_first = torch.argsort(values.nan_to_num(nan=-math.inf), descending=True, stable=True)[: keep or None]
    rows = best_first if order == ORDERS[0] else best_first.sort().values
    scores = Scores(
        verifier=verifier.name,
        values=_listed(values[rows]),
        held_out=[] if others is None else _listed(others[rows]),
        held_out_verifier="" if held_out is None else held_out.name,
        group=[0] * len(rows),
    )
    return rows, int(best_first[0]), scores


def places_of(rows: Tensor) -> str:
    """Positions as a text."""
    return ", ".join(map(str, rows.tolist()))


def prompts_for(prompt: str, n: int, verifier) -> list[str]:
    """One prompt per image of a text box: the whole text for all, or a line each. Raises VerifierError when empty."""
    lines = [line.strip() for line in prompt.splitlines() if line.strip()]
    listed = lines if len(lines) == n and n > 1 else [" ".join(lines)] * n
    return check_prompts(listed, n, verifier.name, getattr(verifier, "needs_prompt", True))


def score_batch(verifier, images: Tensor, prompts: list[str]) -> Tensor:
    """Scores float64 ``[n]``, NaN where there is none. Interruptible, except for ensembles that need all at once."""

    def score(rows: slice) -> Tensor:
        throw_if_interrupted()
        scores = verifier.score(images[rows], prompts[rows])
        if tuple(scores.shape) != (len(prompts[rows]),):
            raise SearchError(
                f"verifier {verifier.name!r} returned {tuple(scores.shape)} for {len(prompts[rows])} images"
            )
        return scores.detach().cpu().double()

    size = len(images) if getattr(verifier, "relative", False) else IMAGES_PER_CALL
    return Chunker(size, is_oom=is_oom, after_oom=management.soft_empty_cache).cat(score, len(images))


def _listed(values: Tensor) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


NODES = [ScoreImagesNode]
"""Nodes of this module."""
