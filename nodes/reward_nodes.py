"""Loaders of published models: PickScore, HPSv2, ImageReward, aesthetic predictors, image similarity."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..verifiers.aesthetic.predictors import load_aesthetic
from ..verifiers.image_image.similarity import COMBINATIONS, load_similarity
from ..verifiers.preference.clip_rewards import SCALES, load_hps, load_pickscore
from ..verifiers.preference.image_reward import load_image_reward
from .clip_score_node import clip_tokenizer
from .host.managed_verifier import managed
from .model_folders import (
    Weights,
    combo,
    file_choices,
    folder_choices,
    located,
    missing,
    precision_input,
    vocabulary_choices,
)
from .types import VERIFIER_CATEGORY, VerifierType

PICKSCORE = Weights.of("pickscore")
HPS = Weights.of("hps_v2_1")
IMAGE_REWARD = Weights.of("image_reward")
BERT = Weights.of("image_reward_tokenizer")
CLIP_L = Weights.of("laion_aesthetic")
LAION_HEAD = Weights.of("laion_aesthetic_head")
SIGLIP = Weights.of("aesthetic_v25")
V25_HEAD = Weights.of("aesthetic_v25_head")
DINO = Weights.of("similarity")


def _schema(node_id: str, title: str, description: str, inputs: list) -> io.Schema:
    return io.Schema(
        node_id=node_id,
        display_name=title,
        category=VERIFIER_CATEGORY,
        description=description,
        inputs=[*inputs, precision_input()],
        outputs=[VerifierType.Output(display_name="verifier")],
    )


class PickScoreNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _schema(
            "TestTimePickScore",
            "PickScore Verifier",
            "Predicts which of two images people prefer for a prompt (Kirstain et al. 2023). Differentiable: works "
            "with DAS.",
            [
                combo("model", folder_choices(PICKSCORE), PICKSCORE, "Folder of PickScore_v1 in models/verifiers."),
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
        return missing(model=(model, PICKSCORE))

    @classmethod
    def execute(cls, model, scale="cos", precision="auto") -> io.NodeOutput:
        path = located("model", model, PICKSCORE)
        own = (path / "vocab.json").exists() or (path / "tokenizer.json").exists()
        with torch.inference_mode(False):
            return io.NodeOutput(
                managed(load_pickscore(path, None if own else clip_tokenizer(), scale=scale), precision)
            )


class HPSNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _schema(
            "TestTimeHPS",
            "HPSv2 Verifier",
            "Human Preference Score v2 and v2.1 (Wu et al. 2023). Differentiable: works with DAS.",
            [
                combo(
                    "model", file_choices(HPS), HPS, "HPS_v2.1_compressed.pt or HPS_v2_compressed.pt, models/verifiers."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, model=None):
        return missing(model=(model, HPS))

    @classmethod
    def execute(cls, model, precision="auto") -> io.NodeOutput:
        with torch.inference_mode(False):
            return io.NodeOutput(managed(load_hps(located("model", model, HPS), clip_tokenizer()), precision))


class ImageRewardNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _schema(
            "TestTimeImageReward",
            "ImageReward Verifier",
            "Human preference on BLIP (Xu et al. 2023): rewards images that follow the prompt. Differentiable: works "
            "with DAS.",
            [
                combo("model", file_choices(IMAGE_REWARD), IMAGE_REWARD, "ImageReward.pt in models/verifiers."),
                combo("tokenizer", vocabulary_choices(BERT), BERT, "Folder with vocab.txt of bert-base-uncased."),
            ],
        )

    @classmethod
    def validate_inputs(cls, model=None, tokenizer=None):
        return missing(model=(model, IMAGE_REWARD), tokenizer=(tokenizer, BERT))

    @classmethod
    def execute(cls, model, tokenizer, precision="auto") -> io.NodeOutput:
        file, vocabulary = located("model", model, IMAGE_REWARD), located("tokenizer", tokenizer, BERT)
        with torch.inference_mode(False):
            return io.NodeOutput(managed(load_image_reward(file, vocabulary), precision))


class AestheticNode(io.ComfyNode):
    """Aesthetic Verifier: two predictors, told apart by their image towers."""

    @classmethod
    def define_schema(cls):
        return _schema(
            "TestTimeAesthetic",
            "Aesthetic Verifier",
            "Aesthetic score; ignores the prompt. LAION's predictor on CLIP (about 3.5 to 7.5) or Aesthetic Predictor "
            "V2.5 on SigLIP (1 to 10, good from 5.5; its head is AGPL-3.0). Differentiable: works with DAS.",
            [
                combo(
                    "tower",
                    folder_choices(CLIP_L, SIGLIP),
                    CLIP_L,
                    "Image tower, a folder in models/verifiers: CLIP ViT-L/14 for LAION, SigLIP so400m-patch14-384 for "
                    "V2.5. The tower decides which predictor is used.",
                ),
                combo(
                    "head",
                    file_choices(),
                    LAION_HEAD,
                    "The predictor's own weights in models/verifiers: sac+logos+ava1-l14-linearMSE.pth for LAION, "
                    "aesthetic_predictor_v2_5.pth for V2.5.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, tower=None, head=None):
        return missing(tower=(tower, CLIP_L, SIGLIP), head=(head, LAION_HEAD, V25_HEAD))

    @classmethod
    def execute(cls, tower, head, precision="auto") -> io.NodeOutput:
        folder = located("tower", tower, CLIP_L, SIGLIP)
        file = located("head", head, LAION_HEAD, V25_HEAD)
        with torch.inference_mode(False):
            return io.NodeOutput(managed(load_aesthetic(folder, file), precision))


class SimilarityNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _schema(
            "TestTimeSimilarity",
            "Image Similarity Verifier",
            "Similarity to reference images, by CLIP, SigLIP or DINOv2; ignores the prompt. Differentiable: works "
            "with DAS.",
            [
                combo(
                    "model",
                    folder_choices(DINO, CLIP_L, SIGLIP),
                    DINO,
                    "Folder of an image encoder in models/verifiers.",
                ),
                io.Image.Input("references", tooltip="One or more reference images."),
                io.Combo.Input(
                    "combine",
                    options=list(COMBINATIONS),
                    default="mean",
                    optional=True,
                    tooltip="mean: similar to all references. max: similar to any of them.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, model=None):
        return missing(model=(model, DINO, CLIP_L, SIGLIP))

    @classmethod
    def execute(cls, model, references, combine="mean", precision="auto") -> io.NodeOutput:
        path = located("model", model, DINO, CLIP_L, SIGLIP)
        with torch.inference_mode(False):
            return io.NodeOutput(managed(load_similarity(path, references.clone(), combine=combine), precision))


NODES = [SimilarityNode, PickScoreNode, HPSNode, ImageRewardNode, AestheticNode]
