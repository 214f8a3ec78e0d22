"""Verifier loaders, ``Verifier Ensemble`` and ``Score Images``."""

from __future__ import annotations

import math
from pathlib import Path

import comfy.model_management as management
import folder_paths
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..models.tiny.loading import missing_weights
from ..samplers.processes.chunking import Chunker
from ..samplers.protocols import SearchError
from ..verifiers.base import VerifierError, check_images, check_prompts
from ..verifiers.ensemble import COMBINATIONS, RELATIVE, EnsembleVerifier, Voice
from ..verifiers.image_text.clip_score import MODES, load_clip_score_files, load_clip_score_folder
from ..verifiers.registry import create
from .choices import open_ended
from .folders import file_names, find_inside, folders_with
from .host.compat import is_oom, throw_if_interrupted
from .host.managed_verifier import managed
from .host.scores import Scores
from .model_folders import FOLDER, HUB, NO_MODEL, Weights, precision_input
from .types import CATEGORY, ScoresType, VerifierType

VERIFIER_CATEGORY = f"{CATEGORY}/verifiers"
CLIP_REPOSITORY = "openai/clip-vit-large-patch14"
CLIP_WEIGHTS = Weights.of("clip_score")
NO_TEXT_TOWER = "in the same file"
SHAPES_VERIFIERS = {"shapes_preference": "preference", "shapes_clip": "clip"}
"""Name of an embedded verifier -> its weights."""
ORDERS = ("best first", "as given")
MEMBERS = 4
IMAGES_PER_CALL = 8


def register_suffixes() -> None:
    """Let the file lists of ``models/verifiers`` show weights files."""
    paths, suffixes = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, set(suffixes) | folder_paths.supported_pt_extensions)


register_suffixes()


def clip_choices() -> list[str]:
    """CLIP models on this machine: folders and files of models/verifiers, then image towers of models/clip_vision."""
    roots = folder_paths.get_folder_paths(FOLDER)
    found = [f"{FOLDER}/{name}" for name in folders_with("config.json", roots)]
    found += [f"{FOLDER}/{name}" for name in file_names(FOLDER) if Path(name).parent == Path()]
    found += [f"clip_vision/{name}" for name in file_names("clip_vision")]
    found += [HUB + CLIP_REPOSITORY] * (CLIP_WEIGHTS.cached() is not None)
    return found or [NO_MODEL]


def text_tower_choices() -> list[str]:
    """Text towers: files of models/text_encoders."""
    return [NO_TEXT_TOWER, *file_names("text_encoders")]


def text_tower_file(choice: str) -> Path:
    """Path of an entry of ``text_tower_choices``; raises VerifierError where it is not there."""
    roots = folder_paths.get_folder_paths("text_encoders")
    path = find_inside(roots, choice, Path.is_file)
    if path is None:
        raise VerifierError(f"text_tower is {choice!r}: there is no such file in {', '.join(roots)}")
    return path


def how_to_get_clip() -> str:
    """What to download for CLIPScore, and where to put it."""
    searched = folder_paths.get_folder_paths(FOLDER) + folder_paths.get_folder_paths("clip_vision")
    folder = Path(searched[0]) / CLIP_REPOSITORY.replace("/", "--")
    return (
        f"CLIPScore needs a CLIP model with both towers, e.g. {CLIP_REPOSITORY} (1.7 GB, MIT licence). Put its files "
        f"(config.json, model.safetensors, vocab.json, merges.txt) into {folder}, for example with:  "
        f'hf download {CLIP_REPOSITORY} --local-dir "{folder}"'
        f"\nLooked in: {', '.join(searched)}"
    )


def resolve(choice: str) -> Path:
    """Path of an entry of ``clip_choices``; raises VerifierError with what to download where it is not there."""
    kind, _, name = choice.partition("/")
    cached = CLIP_WEIGHTS.cached() if choice == HUB + CLIP_REPOSITORY else None
    if cached is not None:
        return cached
    if choice != NO_MODEL and kind in (FOLDER, "clip_vision"):
        path = find_inside(folder_paths.get_folder_paths(kind), name)
        if path is not None:
            return path
    raise VerifierError(f"clip is {choice!r}: there is no such model here. {how_to_get_clip()}")


def clip_tokenizer() -> Path:
    """Folder of CLIP's tokenizer files that ComfyUI brings along."""
    import comfy.sd1_clip

    return Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"


class ShapesVerifierNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeShapesVerifier",
            display_name="Shapes World Verifier",
            category=f"{CATEGORY}/examples",
            description="The two verifiers of Load Shapes World on their own. They only know coloured shapes.",
            inputs=[
                io.Combo.Input(
                    "verifier",
                    options=list(SHAPES_VERIFIERS),
                    tooltip="shapes_preference: a learned reward, about -1.25 .. 1.25. shapes_clip: the cosine of "
                    "image and prompt.",
                )
            ],
            outputs=[VerifierType.Output(display_name="verifier")],
        )

    @classmethod
    def validate_inputs(cls, verifier=None):
        # Naming an input here switches the host's own check of it off.
        if verifier is not None and verifier not in SHAPES_VERIFIERS:
            return f"verifier is {verifier!r}: choose one of {', '.join(SHAPES_VERIFIERS)}"
        return missing_weights(SHAPES_VERIFIERS.values() if verifier is None else [SHAPES_VERIFIERS[verifier]]) or True

    @classmethod
    def execute(cls, verifier) -> io.NodeOutput:
        with torch.inference_mode(False):
            return io.NodeOutput(managed(create(verifier)))


class CLIPScoreNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeCLIPScore",
            display_name="CLIPScore Verifier",
            category=VERIFIER_CATEGORY,
            description="Similarity of image and prompt according to CLIP (Hessel et al. 2021). Differentiable: "
            "works with DAS.",
            inputs=[
                open_ended(
                    io.Combo.Input(
                        "clip",
                        options=clip_choices(),
                        tooltip="CLIP model: a folder or file in models/verifiers, or an image encoder in "
                        "models/clip_vision.",
                    )
                ),
                io.Combo.Input(
                    "text_tower",
                    options=text_tower_choices(),
                    default=NO_TEXT_TOWER,
                    optional=True,
                    tooltip="The text encoder of the same CLIP in models/text_encoders, if `clip` is only an image "
                    "encoder.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="cos",
                    optional=True,
                    tooltip="cos: the cosine, about 0.15 .. 0.35. x100: a hundred times that. hessel: the published "
                    "metric, 2.5 max(cos, 0).",
                ),
                precision_input(),
            ],
            outputs=[VerifierType.Output(display_name="verifier")],
        )

    @classmethod
    def validate_inputs(cls, clip=None):
        try:
            if clip is not None:
                resolve(clip)
        except VerifierError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, clip, text_tower=NO_TEXT_TOWER, mode="cos", precision="auto") -> io.NodeOutput:
        path = resolve(clip)
        with torch.inference_mode(False):
            if path.is_dir():
                own = (path / "vocab.json").exists() or (path / "tokenizer.json").exists()
                verifier = load_clip_score_folder(path, None if own else clip_tokenizer(), mode=mode)
            else:
                files = [path]
                if text_tower != NO_TEXT_TOWER:
                    files.append(text_tower_file(text_tower))
                verifier = load_clip_score_files(files, clip_tokenizer(), mode=mode)
            return io.NodeOutput(managed(verifier, precision))


class JPEGNode(io.ComfyNode):
    differentiable = False  # see guidance_check

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeJPEG",
            display_name="JPEG Verifier",
            category=f"{CATEGORY}/examples",
            description="Scores images by their size as a JPEG file (kB). Needs no model: good for trying out a "
            "search. Not differentiable.",
            inputs=[
                io.Combo.Input(
                    "reward",
                    options=["compressibility", "incompressibility"],
                    tooltip="compressibility: plain, smooth images. incompressibility: busy, detailed ones.",
                ),
                io.Boolean.Input(
                    "per_megapixel",
                    default=False,
                    optional=True,
                    tooltip="Divide by the image's megapixels, so that scores of different sizes compare.",
                ),
            ],
            outputs=[VerifierType.Output(display_name="verifier")],
        )

    @classmethod
    def execute(cls, reward, per_megapixel=False) -> io.NodeOutput:
        return io.NodeOutput(create(f"jpeg_{reward}", per_megapixel=per_megapixel))


class EnsembleNode(io.ComfyNode):
    @staticmethod
    def differentiable(inputs, unguidable) -> str | None:
        """Why a workflow's ensemble has no gradient, see ``guidance_check``; None where it may have one."""
        if inputs.get("combine") in RELATIVE:
            return (
                f"an ensemble that combines by {inputs['combine']!r} compares candidates, so it is not differentiable"
            )
        counts = [number for number in range(1, MEMBERS + 1) if inputs.get(f"weight_{number}", 1.0) != 0]
        reasons = [unguidable(inputs.get(f"verifier_{number}")) for number in counts]
        return next((reason for reason in reasons if reason), None)

    @classmethod
    def define_schema(cls):
        inputs: list = [
            io.Combo.Input(
                "combine",
                options=list(COMBINATIONS),
                default="zscore",
                tooltip="zscore: weighted mean on a fixed common scale; use it with SMC, DAS and FK Steering. "
                "zscore_set, rank, softmax: relative to the other candidates; for Best-of-N and SVDD. sum: weighted "
                "sum of the raw scores.",
            )
        ]
        for number in range(1, MEMBERS + 1):
            inputs += [
                VerifierType.Input(f"verifier_{number}", optional=number > 1, tooltip="A verifier of the ensemble."),
                io.Float.Input(
                    f"weight_{number}",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.05,
                    optional=number > 1,
                    tooltip=f"How much verifier_{number} counts. Negative: the less it likes an image, the better. "
                    "0: held out, it is reported in the trace and never steers.",
                ),
            ]
        inputs.append(
            io.Float.Input(
                "temperature",
                default=0.0,
                min=0.0,
                max=1000.0,
                step=0.05,
                optional=True,
                tooltip="For softmax. 0: each verifier's own spread, so that all count alike. 1: as in the TTS-VAR "
                "paper.",
            )
        )
        return io.Schema(
            node_id="TestTimeEnsemble",
            display_name="Verifier Ensemble",
            category=VERIFIER_CATEGORY,
            description="Combines several verifiers into one. What fools one of them rarely fools all.",
            inputs=inputs,
            outputs=[VerifierType.Output(display_name="verifier")],
        )

    @classmethod
    def execute(cls, combine, verifier_1, weight_1, **others) -> io.NodeOutput:
        voices = [Voice(verifier_1, weight_1)]
        for number in range(2, MEMBERS + 1):
            verifier = others.get(f"verifier_{number}")
            if verifier is not None:
                voices.append(Voice(verifier, others.get(f"weight_{number}", 1.0)))
        temperature = others.get("temperature") or None
        return io.NodeOutput(EnsembleVerifier(voices, combine, max_batch=IMAGES_PER_CALL, temperature=temperature))


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


NODES = [ScoreImagesNode, CLIPScoreNode, ShapesVerifierNode, JPEGNode, EnsembleNode]
"""Nodes of this module."""
