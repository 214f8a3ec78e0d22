"""``Load Shapes World``: the embedded text-to-image family as MODEL, CLIP, VAE and two verifiers."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..models.tiny.loading import missing_weights
from ..verifiers.registry import create
from .host.managed_verifier import managed
from .host.shapes_world_host import MODEL_TYPES, load_clip, load_model, load_vae
from .types import CATEGORY, VerifierType


class LoadShapesWorldNode(io.ComfyNode):
    """Load Shapes World."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeLoadShapesWorld",
            display_name="Load Shapes World",
            category=f"{CATEGORY}/examples",
            description="A tiny text-to-image model that ships with the pack: coloured shapes at 128x128, a second "
            "per image on a CPU, with two verifiers trained for it. For trying out searches without any download. "
            'Understands prompts like "two red stars", "a ring above a cross", "a blue heart and a green square".',
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(MODEL_TYPES),
                    default="diffusion",
                    tooltip="diffusion: predicts the noise, on Stable Diffusion's schedule. flow: a rectified flow, as "
                    "SD3 and Flux are.",
                )
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Clip.Output(display_name="clip"),
                io.Vae.Output(display_name="vae"),
                VerifierType.Output(
                    display_name="verifier", tooltip="Learned preference: how well an image follows its prompt."
                ),
                VerifierType.Output(
                    display_name="held_out",
                    tooltip="An independent CLIP-like model: shows whether the images got better or just the score.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, model=None):
        # Naming an input here switches the host's own check of it off.
        if model is not None and model not in MODEL_TYPES:
            return f"model is {model!r}: choose one of {', '.join(MODEL_TYPES)}"
        generators = MODEL_TYPES if model is None else (model,)
        return missing_weights(["autoencoder", "text_encoder", *generators, "preference", "clip"]) or True

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        # Weights made in inference mode could not be differentiated through.
        with torch.inference_mode(False):
            verifiers = [managed(create(name)) for name in ("shapes_preference", "shapes_clip")]
            return io.NodeOutput(load_model(model), load_clip(), load_vae(), *verifiers)


NODES = [LoadShapesWorldNode]
