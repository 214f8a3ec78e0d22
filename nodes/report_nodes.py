"""``Search Report``: the picture of a search, as IMAGE and as a saved PNG with its trace beside it."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io, ui

from ..reports.canvas import THEMES
from ..reports.report import Finalists, report
from ..samplers.protocols import SearchError
from ..verifiers.base import check_images
from .host.saved import thumbs_of, with_essentials, write_trace
from .types import CATEGORY, ScoresType, TraceType

NO_FILE, PICTURE, PICTURE_AND_TRACE, EVERYTHING = "nothing", "picture", "picture and trace", "picture, trace and page"


class SearchReportNode(io.ComfyNode):
    """The report as an IMAGE, shown on the node and saved as the user wishes."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeSearchReport",
            display_name="Search Report",
            category=f"{CATEGORY}/trace",
            description="A search in one picture: scores over compute, the family tree with the winner's path, the "
            "finished images with their scores, and the cost.",
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
                    options=[PICTURE, PICTURE_AND_TRACE, EVERYTHING, NO_FILE],
                    default=PICTURE,
                    optional=True,
                    tooltip="What to save in the output folder. Trace: a JSON file for Load Trace. Page: one HTML "
                    "file with tree, curves, images and cost.",
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
        # The host's own helper: numbering, sub-folders, and the workflow in the file unless the user switched that off.
        # Beside it go the essentials of the search.
        saved = ui.ImageSaveHelper.get_save_images_ui(image, filename_prefix, cls=with_essentials(cls, trace)).as_dict()
        if save in (PICTURE_AND_TRACE, EVERYTHING):
            entry = saved["images"][0]
            file = Path(folder_paths.get_output_directory(), entry["subfolder"], entry["filename"])
            found = finalists_of(finalists, scores)
            write_trace(file, trace, thumbs_of(trace, found.images, found.particles), page=save == EVERYTHING)
        return io.NodeOutput(image, ui=saved)


def finalists_of(images, scores) -> Finalists:
    """Images and scores of the inputs, either of which may be missing; raises SearchError where they do not belong
    together."""
    if images is None:
        return Finalists(np.zeros((0, 8, 8, 3), np.uint8))
    pixels = (check_images(images).clamp(0, 1) * 255.0).round().to("cpu", torch.uint8).numpy()
    if scores is None:
        return Finalists(pixels)
    pixels = of_clips(pixels, len(scores.values))
    if len(scores.values) != len(pixels):
        raise SearchError(
            f"finalists has {len(pixels)} images and scores {len(scores.values)} entries: decode the `finalists` "
            f"output of the node that gave the scores"
        )
    return Finalists(
        images=pixels,
        scores=scores.values,
        held_out=scores.held_out,
        group=scores.group,
        verifier=scores.verifier,
        held_out_verifier=scores.held_out_verifier,
        particles=scores.particles,
    )


def of_clips(pixels: np.ndarray, count: int) -> np.ndarray:
    """One picture for each of ``count`` clips whose frames lie in a row: first, middle and last frame side by side.

    VAE Decode puts the frames of all clips of a batch into one; of images there are as many as scores.
    """
    frames = len(pixels) // count if count else 0
    if frames < 2 or len(pixels) != frames * count:
        return pixels
    clips = pixels.reshape(count, frames, *pixels.shape[1:])
    return np.concatenate([clips[:, place] for place in (0, frames // 2, frames - 1)], axis=2)


NODES = [SearchReportNode]
