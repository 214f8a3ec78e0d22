"""Loaders of published models: PickScore, HPSv2, ImageReward, two aesthetic predictors, image similarity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..verifiers.aesthetic import load_aesthetic_v25, load_laion_aesthetic
from ..verifiers.base import VerifierError
from ..verifiers.clip_rewards import SCALES, load_hps, load_pickscore
from ..verifiers.image_reward import load_image_reward
from ..verifiers.similarity import COMBINATIONS, load_similarity
from .host.managed_verifier import managed
from .types import VerifierType
from .verifier_nodes import FOLDER, NO_MODEL, VERIFIER_CATEGORY, clip_tokenizer

FILES = (".pt", ".pth", ".bin", ".safetensors")


@dataclass(frozen=True)
class Weights:
    """A released model: what it is called, where it comes from, and what a user must know about it.

    Attributes:
        name: of the verifier, for messages.
        repository: on the Hugging Face hub, or an address.
        file: to download from it; "" for the whole repository, which then becomes a folder.
        size, licence: in words.
    """

    name: str
    repository: str
    file: str
    size: str
    licence: str

    def place(self) -> Path:
        """Where the weights belong: a file or a folder in models/verifiers."""
        return Path(folder_paths.get_folder_paths(FOLDER)[0]) / (self.file or self.repository.replace("/", "--"))

    def remedy(self) -> str:
        """What to download and where to put it."""
        place = self.place()
        if self.repository.startswith("http"):
            how = f"Download {self.repository} to {place}"
        elif self.file:
            how = f'hf download {self.repository} {self.file} --local-dir "{place.parent}"'
        else:
            how = f'hf download {self.repository} --local-dir "{place}"'
        searched = ", ".join(folder_paths.get_folder_paths(FOLDER))
        return (
            f"{self.name} needs {self.file or self.repository} ({self.size}, {self.licence}). "
            f"Put it at {place}, for example with:  {how}\nLooked in: {searched}"
        )


PICKSCORE = Weights("PickScore", "yuvalkirstain/PickScore_v1", "", "3.9 GB", "MIT licence of its code")
HPS = Weights("HPSv2.1", "xswu/HPSv2", "HPS_v2.1_compressed.pt", "2.0 GB", "Apache-2.0")
IMAGE_REWARD = Weights("ImageReward", "THUDM/ImageReward", "ImageReward.pt", "1.8 GB", "Apache-2.0")
BERT = Weights("ImageReward's tokenizer", "bert-base-uncased", "", "vocab.txt alone is enough, 0.2 MB", "Apache-2.0")
CLIP_L = Weights("LAION aesthetic v2", "openai/clip-vit-large-patch14", "", "1.7 GB", "MIT")
LAION_HEAD = Weights(
    "LAION aesthetic v2",
    "https://github.com/christophschuhmann/improved-aesthetic-predictor",
    "sac+logos+ava1-l14-linearMSE.pth",
    "3.7 MB",
    "Apache-2.0",
)
SIGLIP = Weights("Aesthetic Predictor V2.5", "google/siglip-so400m-patch14-384", "", "3.5 GB", "Apache-2.0")
V25_HEAD = Weights(
    "Aesthetic Predictor V2.5",
    "https://github.com/discus0434/aesthetic-predictor-v2-5",
    "aesthetic_predictor_v2_5.pth",
    "2.6 MB",
    "AGPL-3.0",
)
DINO = Weights("Image similarity", "facebook/dinov2-base", "", "0.35 GB", "Apache-2.0")


def folder_choices() -> list[str]:
    """Models in folders of models/verifiers (those with a config.json)."""
    roots = folder_paths.get_folder_paths(FOLDER)
    return [f"{p.parent.name}" for root in roots for p in sorted(Path(root).glob("*/config.json"))] or [NO_MODEL]


def vocabulary_choices() -> list[str]:
    """Folders of models/verifiers with a vocab.txt."""
    roots = folder_paths.get_folder_paths(FOLDER)
    return [f"{p.parent.name}" for root in roots for p in sorted(Path(root).glob("*/vocab.txt"))] or [NO_MODEL]


def file_choices() -> list[str]:
    """Weights files that lie directly in models/verifiers."""
    found = folder_paths.get_filename_list(FOLDER)
    return [name for name in found if Path(name).parent == Path() and name.endswith(FILES)] or [NO_MODEL]


def located(input_name: str, choice: str, weights: Weights) -> Path:
    """Path of a choice; VerifierError names the input, the value, and what to download where it is not there."""
    for root in folder_paths.get_folder_paths(FOLDER):
        path = Path(root) / choice
        if choice != NO_MODEL and path.exists():
            return path
    raise VerifierError(f"{input_name} is {choice!r}: there is no such model here. {weights.remedy()}")


def preferred(choices: list[str], weights: Weights) -> str:
    """The choice that looks like ``weights``, else the first."""
    wanted = weights.place().name.lower()
    return next((choice for choice in choices if choice.lower() == wanted), choices[0])


def _combo(input_name: str, choices: list[str], weights: Weights, tooltip: str) -> io.Combo.Input:
    return io.Combo.Input(input_name, options=choices, default=preferred(choices, weights), tooltip=tooltip)


def _schema(node_id: str, title: str, description: str, inputs: list) -> io.Schema:
    return io.Schema(
        node_id=node_id,
        display_name=title,
        category=VERIFIER_CATEGORY,
        description=description,
        inputs=inputs,
        outputs=[VerifierType.Output(display_name="verifier")],
    )


def _missing(**wanted: tuple[str | None, Weights]) -> bool | str:
    """True, or the message about the first input whose model is not there (None: not known before the run)."""
    try:
        for input_name, (choice, weights) in wanted.items():
            if choice is not None:
                located(input_name, choice, weights)
    except VerifierError as error:
        return str(error)
    return True


class PickScoreNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _schema(
            "TestTimePickScore",
            "PickScore Verifier",
            "What people chose between two images of a prompt (Kirstain et al. 2023). Differentiable: fit for DAS.",
            [
                _combo("model", folder_choices(), PICKSCORE, "Folder of PickScore_v1 in models/verifiers."),
                io.Combo.Input(
                    "scale",
                    options=list(SCALES),
                    default="cos",
                    optional=True,
                    tooltip="cos: about 0.17 .. 0.24. logit: a hundred times that, as published.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, model=None):
        return _missing(model=(model, PICKSCORE))

    @classmethod
    def execute(cls, model, scale="cos") -> io.NodeOutput:
        path = located("model", model, PICKSCORE)
        own = (path / "vocab.json").exists() or (path / "tokenizer.json").exists()
        with torch.inference_mode(False):
            return io.NodeOutput(managed(load_pickscore(path, None if own else clip_tokenizer(), scale=scale)))


class HPSNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _schema(
            "TestTimeHPS",
            "HPSv2 Verifier",
            "Human Preference Score v2 and v2.1 (Wu et al. 2023). Differentiable: fit for DAS.",
            [
                _combo(
                    "model", file_choices(), HPS, "HPS_v2.1_compressed.pt or HPS_v2_compressed.pt in models/verifiers."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, model=None):
        return _missing(model=(model, HPS))

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        with torch.inference_mode(False):
            return io.NodeOutput(managed(load_hps(located("model", model, HPS), clip_tokenizer())))


class ImageRewardNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _schema(
            "TestTimeImageReward",
            "ImageReward Verifier",
            "Human preference learned on BLIP (Xu et al. 2023): how well an image follows its prompt. Differentiable.",
            [
                _combo("model", file_choices(), IMAGE_REWARD, "ImageReward.pt in models/verifiers."),
                _combo("tokenizer", vocabulary_choices(), BERT, "Folder with vocab.txt of bert-base-uncased."),
            ],
        )

    @classmethod
    def validate_inputs(cls, model=None, tokenizer=None):
        return _missing(model=(model, IMAGE_REWARD), tokenizer=(tokenizer, BERT))

    @classmethod
    def execute(cls, model, tokenizer) -> io.NodeOutput:
        file, vocabulary = located("model", model, IMAGE_REWARD), located("tokenizer", tokenizer, BERT)
        with torch.inference_mode(False):
            return io.NodeOutput(managed(load_image_reward(file, vocabulary)))


class LAIONAestheticNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _schema(
            "TestTimeLAIONAesthetic",
            "LAION Aesthetic Verifier",
            "How pretty an image is, about 3.5 .. 7.5, whatever the prompt says. Differentiable: fit for DAS.",
            [
                _combo("clip", folder_choices(), CLIP_L, "Folder of CLIP ViT-L/14 in models/verifiers."),
                _combo("head", file_choices(), LAION_HEAD, "sac+logos+ava1-l14-linearMSE.pth in models/verifiers."),
            ],
        )

    @classmethod
    def validate_inputs(cls, clip=None, head=None):
        return _missing(clip=(clip, CLIP_L), head=(head, LAION_HEAD))

    @classmethod
    def execute(cls, clip, head) -> io.NodeOutput:
        tower, file = located("clip", clip, CLIP_L), located("head", head, LAION_HEAD)
        with torch.inference_mode(False):
            return io.NodeOutput(managed(load_laion_aesthetic(tower, file)))


class AestheticV25Node(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _schema(
            "TestTimeAestheticV25",
            "Aesthetic V2.5 Verifier",
            "How pretty an image is on SigLIP, 1 .. 10, from 5.5 on good. The head's licence is AGPL-3.0. "
            "Differentiable: fit for DAS.",
            [
                _combo("siglip", folder_choices(), SIGLIP, "Folder of SigLIP so400m-patch14-384 in models/verifiers."),
                _combo("head", file_choices(), V25_HEAD, "aesthetic_predictor_v2_5.pth in models/verifiers."),
            ],
        )

    @classmethod
    def validate_inputs(cls, siglip=None, head=None):
        return _missing(siglip=(siglip, SIGLIP), head=(head, V25_HEAD))

    @classmethod
    def execute(cls, siglip, head) -> io.NodeOutput:
        tower, file = located("siglip", siglip, SIGLIP), located("head", head, V25_HEAD)
        with torch.inference_mode(False):
            return io.NodeOutput(managed(load_aesthetic_v25(tower, file)))


class SimilarityNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _schema(
            "TestTimeSimilarity",
            "Image Similarity Verifier",
            "How similar an image is to reference images, by CLIP, SigLIP or DINOv2. The prompt is not read. "
            "Differentiable: fit for DAS.",
            [
                _combo("model", folder_choices(), DINO, "Folder of an image tower in models/verifiers."),
                io.Image.Input("references", tooltip="One or several images to be similar to."),
                io.Combo.Input(
                    "combine",
                    options=list(COMBINATIONS),
                    default="mean",
                    optional=True,
                    tooltip="mean: similar to all references. max: to any of them.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, model=None):
        return _missing(model=(model, DINO))

    @classmethod
    def execute(cls, model, references, combine="mean") -> io.NodeOutput:
        path = located("model", model, DINO)
        with torch.inference_mode(False):
            return io.NodeOutput(managed(load_similarity(path, references.clone(), combine=combine)))


NODES = [SimilarityNode, PickScoreNode, HPSNode, ImageRewardNode, LAIONAestheticNode, AestheticV25Node]
