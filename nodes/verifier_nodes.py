"""``Verifier Ensemble``, and the verifiers that are only good for examples."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..models.tiny.loading import missing_weights
from ..verifiers.ensemble import COMBINATIONS, RELATIVE, EnsembleVerifier, Voice
from ..verifiers.registry import create
from .host.managed_verifier import managed
from .score_images_node import IMAGES_PER_CALL
from .types import CATEGORY, VERIFIER_CATEGORY, VerifierType

SHAPES_VERIFIERS = {"shapes_preference": "preference", "shapes_clip": "clip"}
"""Name of an embedded verifier -> its weights."""
MEMBERS = 4


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


NODES = [ShapesVerifierNode, JPEGNode, EnsembleNode]
"""Nodes of this module."""
