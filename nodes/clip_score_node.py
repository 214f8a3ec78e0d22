"""CLIPScore Verifier, and where its two towers are found."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..verifiers.base import VerifierError
from ..verifiers.image_text.clip_score import MODES, load_clip_score_files, load_clip_score_folder
from .choices import open_ended
from .folders import file_names, find_inside, folders_with
from .host.managed_verifier import managed
from .model_folders import FOLDER, HUB, NO_MODEL, Weights, precision_input
from .types import VERIFIER_CATEGORY, VerifierType

CLIP_REPOSITORY = "openai/clip-vit-large-patch14"
CLIP_WEIGHTS = Weights.of("clip_score")


NO_TEXT_TOWER = "in the same file"


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


NODES = [CLIPScoreNode]
"""Nodes of this module."""
