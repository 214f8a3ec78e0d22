"""``Search Report``: the picture of a search, as IMAGE and as a saved PNG with its trace beside it."""

from __future__ import annotations

import json
from pathlib import Path

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..reports.canvas import THEMES
from ..reports.report import Finalists, report
from ..samplers.protocols import SearchError
from ..verifiers.base import check_images
from .types import CATEGORY, ScoresType, TraceType

NO_FILE, PICTURE, PICTURE_AND_TRACE = "nothing", "picture", "picture and trace"


class SearchReportNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeSearchReport",
            display_name="Search Report",
            category=CATEGORY,
            description="What a search did, in one picture: scores over compute, the family tree with the winner's "
            "path, the finished images with their scores, and what it cost.",
            inputs=[
                TraceType.Input("trace", tooltip="The record of the search, from Search KSampler."),
                io.Image.Input(
                    "finalists",
                    optional=True,
                    tooltip="The decoded finalists of Search KSampler, in its order (VAE Decode of `finalists`).",
                ),
                ScoresType.Input("scores", optional=True, tooltip="The scores of Search KSampler, for the captions."),
                io.Combo.Input(
                    "theme", options=list(THEMES), default="dark", optional=True, tooltip="Colours of the picture."
                ),
                io.Combo.Input(
                    "save",
                    options=[PICTURE, PICTURE_AND_TRACE, NO_FILE],
                    default=PICTURE,
                    optional=True,
                    tooltip="What to write into the output folder. The trace is a JSON file that can be read again.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="search_report",
                    optional=True,
                    tooltip="Name of the saved files, as in Save Image.",
                ),
            ],
            outputs=[io.Image.Output(display_name="report")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, trace, finalists=None, scores=None, theme="dark", save=PICTURE, filename_prefix="search_report"
    ) -> io.NodeOutput:
        drawn = report(trace, finalists_of(finalists, scores), theme)
        image = torch.from_numpy(drawn.astype(np.float32) / 255.0)[None]
        if save == NO_FILE:
            return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))
        entry = save_report(drawn, trace, filename_prefix, save == PICTURE_AND_TRACE, cls.hidden)
        return io.NodeOutput(image, ui={"images": [entry]})


def finalists_of(images, scores) -> Finalists:
    """Images and scores of the inputs, either of which may be missing; raises SearchError where they do not belong
    together."""
    if images is None:
        return Finalists(np.zeros((0, 8, 8, 3), np.uint8))
    pixels = (check_images(images).clamp(0, 1) * 255.0).round().to("cpu", torch.uint8).numpy()
    if scores is None:
        return Finalists(pixels)
    if len(scores.values) != len(pixels):
        raise SearchError(
            f"finalists has {len(pixels)} images and scores {len(scores.values)} entries: decode the `finalists` "
            f"output of the node that gave the scores"
        )
    return Finalists(pixels, scores.values, scores.held_out, scores.group, scores.verifier, scores.held_out_verifier)


def save_report(drawn: np.ndarray, trace, prefix: str, with_trace: bool, hidden) -> dict[str, str]:
    """Write the PNG (with the workflow in it, as Save Image does) and the trace; returns the front end's entry."""
    height, width = drawn.shape[:2]
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), width, height
    )
    info = PngInfo()
    if getattr(hidden, "prompt", None) is not None:
        info.add_text("prompt", json.dumps(hidden.prompt))
    for key, value in (getattr(hidden, "extra_pnginfo", None) or {}).items():
        info.add_text(key, json.dumps(value))
    file = f"{name}_{counter:05}_.png"
    Image.fromarray(drawn).save(Path(folder) / file, pnginfo=info, compress_level=4)
    if with_trace:
        Path(folder, f"{name}_{counter:05}_.json").write_text(trace.to_json(), encoding="utf-8")
    return {"filename": file, "subfolder": subfolder, "type": "output"}


NODES = [SearchReportNode]
