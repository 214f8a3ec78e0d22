"""``Compare Verifiers``: for batches of any images, no search needed."""

from __future__ import annotations

import math

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..reports.canvas import THEMES
from ..reports.compare import as_text, comparison
from ..samplers.protocols import SearchError
from ..verifiers.base import check_images
from .score_images_node import prompts_for, score_batch
from .types import VERIFIER_CATEGORY, VerifierType
from .verifier_nodes import MEMBERS


class CompareVerifiersNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        inputs: list = [
            io.Image.Input("images", tooltip="A batch of images; use eight or more."),
            io.String.Input("prompt", multiline=True, default="", tooltip="What the images should show."),
        ]
        inputs += [
            VerifierType.Input(f"verifier_{number}", optional=number > 2, tooltip="A verifier to compare.")
            for number in range(1, MEMBERS + 1)
        ]
        inputs.append(
            io.Combo.Input(
                "theme", options=list(THEMES), default="dark", optional=True, tooltip="Colours of the picture."
            )
        )
        return io.Schema(
            node_id="TestTimeCompareVerifiers",
            display_name="Compare Verifiers",
            category=VERIFIER_CATEGORY,
            description="Scores a batch with several verifiers and plots how much they agree.",
            inputs=inputs,
            outputs=[
                io.Image.Output(display_name="picture", tooltip="Scatter plots and a table of scores."),
                io.String.Output(display_name="text", tooltip="The scores as a table."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, prompt, verifier_1, verifier_2, theme="dark", **others) -> io.NodeOutput:
        images = check_images(images)
        judges = [verifier_1, verifier_2, *(v for _, v in sorted(others.items()) if v is not None)]
        scores: dict[str, list[float | None]] = {}
        for number, judge in enumerate(judges, 1):
            name = judge.name if judge.name not in scores else f"{judge.name} ({number})"
            values = score_batch(judge, images, prompts_for(prompt, len(images), judge)).tolist()
            scores[name] = [value if math.isfinite(value) else None for value in values]
        pixels = (images.clamp(0, 1) * 255).round().to("cpu", torch.uint8).numpy()
        try:
            drawn = comparison(pixels, scores, theme)
        except ValueError as error:
            raise SearchError(str(error)) from error
        picture = torch.from_numpy(drawn.astype(np.float32) / 255)[None]
        return io.NodeOutput(picture, as_text(scores), ui=ui.PreviewImage(picture, cls=cls))


NODES = [CompareVerifiersNode]
