"""Image features for TTS-VAR's clusters: DINOv2, Inception."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..verifiers.image_image.features import DINO_REPOSITORY, INCEPTION_FILE, load_dinov2, load_inception
from .host.managed_extractor import ManagedExtractor
from .model_folders import Weights, combo, file_choices, folder_choices, located, missing
from .types import CATEGORY, ExtractorType

DINO_PATCHES = Weights.of("dinov2_features")
INCEPTION = Weights.of("inception_features")


def _schema(node_id: str, title: str, description: str, entry: io.Combo.Input) -> io.Schema:
    return io.Schema(
        node_id=node_id,
        display_name=title,
        category=f"{CATEGORY}/features",
        description=description,
        inputs=[entry],
        outputs=[ExtractorType.Output(display_name="extractor")],
    )


class DINOv2FeaturesNode(io.ComfyNode):
    """DINOv2 Features."""

    @classmethod
    def define_schema(cls):
        choices = folder_choices(DINO_PATCHES)
        return _schema(
            "TestTimeDINOv2Features",
            "DINOv2 Features",
            "Patch features that TTS-VAR clusters images by. The large model with registers is the published choice; "
            "every other size works.",
            combo(
                "model",
                choices,
                DINO_PATCHES,
                f"Folder of {DINO_REPOSITORY}, or of another DINOv2, in models/verifiers.",
            ),
        )

    @classmethod
    def validate_inputs(cls, model=None):
        return missing(model=(model, DINO_PATCHES))

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        path = located("model", model, DINO_PATCHES)
        with torch.inference_mode(False):
            return io.NodeOutput(ManagedExtractor(load_dinov2(path)))


class InceptionFeaturesNode(io.ComfyNode):
    """Inception Features."""

    @classmethod
    def define_schema(cls):
        return _schema(
            "TestTimeInceptionFeatures",
            "Inception Features",
            "One vector per image that TTS-VAR clusters images by; small, and a little worse than DINOv2 in the paper.",
            combo("model", file_choices(INCEPTION), INCEPTION, f"{INCEPTION_FILE} in models/verifiers."),
        )

    @classmethod
    def validate_inputs(cls, model=None):
        return missing(model=(model, INCEPTION))

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        path = located("model", model, INCEPTION)
        with torch.inference_mode(False):
            return io.NodeOutput(ManagedExtractor(load_inception(path)))


NODES = [DINOv2FeaturesNode, InceptionFeaturesNode]
