"""``Save Search``, ``Load Trace`` and ``Continue Search``: a search that outlives its session."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import io, ui

from ..reports.tree import winner_ids
from ..samplers.after.origin import MAX_BRANCH, Origin
from ..samplers.after.trace_file import TraceFileError, read_trace_file
from ..samplers.protocols import SearchError
from .choices import open_ended
from .folders import Lister, find_inside, is_inside
from .host.saved import thumbs_of, with_essentials, write_trace
from .method_inputs import search_output
from .replay_node import particle_input
from .report_nodes import finalists_of
from .types import CATEGORY, ScoresType, SearchType, TraceType

NO_TRACE = "none found"
SUFFIXES = (".json", ".png")
LISTED = 500
DEPTH = 3  # output folders can be huge: no deeper
ROOTS = {"output": folder_paths.get_output_directory, "input": folder_paths.get_input_directory}


_listers = {folder: Lister((".json",), DEPTH, LISTED) for folder in ROOTS}


def trace_choices() -> list[str]:
    """Traces of the output and input folders as ``name [folder]``, newest first.

    Only names are read here, so other JSON files are listed too; Load Trace says what is wrong with one.
    """
    found = [
        (changed, f"{name} [{folder}]")
        for folder, root in ROOTS.items()
        for changed, name in _listers[folder].newest(root())
    ]
    return [name for _, name in sorted(found, reverse=True)][:LISTED] or [NO_TRACE]


def trace_path(name: str) -> Path:
    """The file that ``name [folder]`` stands for; without a folder, the output folder's.

    Raises:
        SearchError: nothing chosen, no such file, another kind of file, or one outside the folder.
    """
    if not name or name == NO_TRACE:
        raise SearchError("file is empty: choose a trace, e.g. one written by Save Search into the output folder")
    stem, folder = name, "output"
    for known in ROOTS:
        if name.endswith(f" [{known}]"):
            stem, folder = name.removesuffix(f" [{known}]"), known
    base = Path(ROOTS[folder]()).resolve()
    # A link in the output folder may lead out of it only where the choice itself does not: nothing else is looked up.
    path = (base / stem).resolve() if is_inside(stem) else None
    if path is None or not path.is_relative_to(base):
        raise SearchError(f"file is {name!r}: it must lie in ComfyUI's {folder} folder")
    if path.suffix.lower() not in SUFFIXES:
        raise SearchError(f"file is {name!r}: a trace (.json), or an image with one in its metadata (.png), is needed")
    if find_inside([base], stem, Path.is_file) is None:
        raise SearchError(f"file is {name!r}: there is no such file in ComfyUI's {folder} folder")
    return path


class SaveSearchNode(io.ComfyNode):
    """Images with the essentials of their search in the metadata, the whole trace and its page beside them."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeSaveSearch",
            display_name="Save Search",
            category=f"{CATEGORY}/trace",
            description="Saves images with the workflow and the search in their metadata (seed, settings, cost, "
            "lineage of the winners), the trace beside them as a JSON file and, if you like, an HTML page.",
            inputs=[
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="The decoded `best` or `finalists` of Search KSampler, in their order.",
                ),
                TraceType.Input("trace", tooltip="The record of the search, from Search KSampler."),
                ScoresType.Input(
                    "scores", optional=True, tooltip="Needed with `finalists`: says which image is which particle."
                ),
                io.String.Input(
                    "filename_prefix",
                    default="search",
                    optional=True,
                    tooltip="Name of the saved files, as in Save Image.",
                ),
                io.Boolean.Input(
                    "page",
                    default=True,
                    optional=True,
                    tooltip="Also save one HTML file with tree, curves, images and cost.",
                ),
                io.Video.Input(
                    "video",
                    optional=True,
                    tooltip="Instead of images: the video of the `best` latent, from Create Video. It is saved with "
                    "its sound, and the trace beside it.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trace, images=None, scores=None, filename_prefix="search", page=True, video=None) -> io.NodeOutput:
        if (images is None) == (video is None):
            raise SearchError(f"{'neither images nor' if video is None else 'images and'} a video: connect one of them")
        if video is not None:
            file, saved = save_video(cls, video, trace, filename_prefix)
            write_trace(file, trace, thumbs_of(trace), page)
            return io.NodeOutput(ui=saved)
        found = finalists_of(images, scores)
        particles = list(found.particles) or winner_ids(trace)
        if len(particles) != len(images):
            raise SearchError(
                f"images has {len(images)} images and the search made {len(particles)}: decode the `best` output, or "
                f"the `finalists` output and connect `scores`"
            )
        saved = ui.ImageSaveHelper.get_save_images_ui(
            images, filename_prefix, cls=with_essentials(cls, trace)
        ).as_dict()
        entry = saved["images"][0]
        file = Path(folder_paths.get_output_directory(), entry["subfolder"], entry["filename"])
        write_trace(file, trace, thumbs_of(trace, found.images, particles), page)
        return io.NodeOutput(ui=saved)


def save_video(cls, video, trace, filename_prefix: str) -> tuple[Path, Any]:
    """Write a VIDEO into the output folder as Save Video does, with the essentials of its search in the metadata.

    Returns (file, what the node shows).
    """
    width, height = video.get_dimensions()
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        filename_prefix, folder_paths.get_output_directory(), width, height
    )
    hidden = with_essentials(cls, trace).hidden
    metadata = None
    if not args.disable_metadata:
        metadata = {**hidden.extra_pnginfo, **({} if hidden.prompt is None else {"prompt": hidden.prompt})}
    file = Path(folder) / f"{name}_{counter:05}_.mp4"
    video.save_to(str(file), metadata=metadata)
    return file, ui.PreviewVideo([ui.SavedResult(file.name, subfolder, io.FolderType.output)])


class LoadTraceNode(io.ComfyNode):
    """A trace from a file, for Search Report, Re-render Particle and Continue Search."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeLoadTrace",
            display_name="Load Trace",
            category=f"{CATEGORY}/trace",
            description="Reads the trace of an earlier search from ComfyUI's output or input folder, also from an "
            "image saved by Save Search. Re-render Particle and Continue Search work from it.",
            inputs=[
                open_ended(
                    io.Combo.Input(
                        "file",
                        options=trace_choices(),
                        tooltip="A trace file, newest first. Through the API also an image: `name.png [output]`.",
                    )
                )
            ],
            outputs=[
                TraceType.Output(display_name="trace", tooltip="The record of the search."),
                io.Int.Output(display_name="seed", tooltip="Its seed, for the sampler that continues it."),
                io.String.Output(display_name="prompt", tooltip="The prompt of the first image."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file=None):
        """Naming the input makes the host accept names that are not in its list (images, files that came later)."""
        try:
            if file is not None:
                trace_path(file)
        except SearchError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file):
        try:
            return hashlib.sha256(trace_path(file).read_bytes()).hexdigest()
        except (SearchError, OSError):
            return ""

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        path = trace_path(file)
        try:
            trace = read_trace_file(path).trace
        except (TraceFileError, OSError) as error:
            raise SearchError(f"file is {file!r}: {error}") from error
        return io.NodeOutput(trace, trace.seed, str((trace.meta.get("prompts") or [""])[0]))


class ContinueSearchNode(io.ComfyNode):
    """A search that begins at a particle of an earlier one."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeContinueSearch",
            display_name="Continue Search",
            category=f"{CATEGORY}/modifiers",
            description="Starts a search from a particle of an earlier one instead of from noise. Use the model, "
            "seed, scheduler, steps and prompts of the earlier search in Search KSampler.",
            inputs=[
                SearchType.Input("search", tooltip="Any search method; it need not be the earlier one."),
                TraceType.Input("trace", tooltip="The record of the earlier search, from its sampler or Load Trace."),
                particle_input(),
                io.Int.Input(
                    "step",
                    default=-1,
                    min=-1,
                    max=10_000,
                    tooltip="Go back to the particle's ancestor at this step. -1 = start from the particle itself.",
                ),
                io.Int.Input(
                    "new_noise",
                    default=0,
                    min=0,
                    max=MAX_BRANCH,
                    tooltip="0 = the same noise as in the earlier search. Any other number gives new noise and new "
                    "images.",
                ),
                io.Int.Input(
                    "image",
                    default=0,
                    min=0,
                    max=4095,
                    optional=True,
                    tooltip="If particle is -1: which image of the batch, from 0. The other images continue from "
                    "their own winners.",
                ),
            ],
            outputs=[SearchType.Output(display_name="search")],
        )

    @classmethod
    def execute(cls, search, trace, particle, step, new_noise, image=0) -> io.NodeOutput:
        origin = Origin.at(trace, particle, group=image, step=step, branch=new_noise)
        return search_output(search, origin=origin)


NODES = [SaveSearchNode, LoadTraceNode, ContinueSearchNode]
