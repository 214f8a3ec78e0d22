"""``Load Image Features``: DINOv2 or Inception, for TTS-VAR's clusters."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..verifiers.image_image.features import DINO_REPOSITORY, INCEPTION_FILE, load_dinov2, load_inception
from .host.managed_extractor import ManagedExtractor
from .model_folders import FILES, NO_MODEL, Weights, combo, file_choices, folder_choices, located, missing
from .types import CATEGORY, ExtractorType

DINO_PATCHES = Weights.of("dinov2_features")
INCEPTION = Weights.of("inception_features")


class LoadFeaturesNode(io.ComfyNode):
    """Load Image Features."""

    @classmethod
    def define_schema(cls):
        found = [*folder_choices(DINO_PATCHES), *file_choices(INCEPTION)]
        choices = [choice for choice in found if choice != NO_MODEL] or [NO_MODEL]
        return io.Schema(
            node_id="TestTimeLoadFeatures",
            display_name="Load Image Features",
            category=f"{CATEGORY}/infinity",
            description="Image features for clustering in TTS-VAR: DINOv2 (one vector per patch; the large model with "
            "registers is the published choice) or Inception v3 (one vector per image, small).",
            inputs=[
                combo(
                    "model",
                    choices,
                    DINO_PATCHES,
                    f"In models/verifiers: a folder of {DINO_REPOSITORY} or any other DINOv2, or the file "
                    f"{INCEPTION_FILE}.",
                )
            ],
            outputs=[ExtractorType.Output(display_name="extractor")],
        )

    @classmethod
    def validate_inputs(cls, model=None):
        wanted = (INCEPTION, DINO_PATCHES) if str(model).endswith(FILES) else (DINO_PATCHES, INCEPTION)
        return missing(model=(model, *wanted))

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        path = located("model", model, DINO_PATCHES, INCEPTION)
        with torch.inference_mode(False):
            return io.NodeOutput(ManagedExtractor((load_inception if path.is_file() else load_dinov2)(path)))


NODES = [LoadFeaturesNode]
