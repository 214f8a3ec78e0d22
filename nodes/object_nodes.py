"""Loader of the verifier that looks for objects."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..verifiers.base import VerifierError
from ..verifiers.image_text.clip_score import load_clip_score_folder
from ..verifiers.objects.detectors import load_detector
from ..verifiers.objects.geneval import Rules
from ..verifiers.objects.requirements import parse
from ..verifiers.objects.verifier import MODES, ColourReader, ObjectsVerifier
from .choices import open_ended
from .clip_score_node import clip_tokenizer
from .host.managed_verifier import managed
from .model_folders import (
    NO_MODEL,
    Weights,
    combo,
    folder_choices,
    located,
    missing,
    preferred,
)
from .types import VERIFIER_CATEGORY, VerifierType

DETECTOR = Weights.of("objects")
COLOURS = Weights.of("objects_colours")
NO_COLOURS = "none"
RULES = Rules()


class GenEvalNode(io.ComfyNode):
    differentiable = False  # see guidance_check

    @classmethod
    def define_schema(cls):
        clips = [choice for choice in folder_choices(COLOURS) if choice != NO_MODEL]
        return io.Schema(
            node_id="TestTimeGenEval",
            display_name="GenEval Object Verifier",
            category=VERIFIER_CATEGORY,
            description="Detects the objects of the prompt and checks presence, count, colour and position by "
            "GenEval's rules (Ghosh et al. 2023). Uses an open-vocabulary detector. Not differentiable.",
            inputs=[
                combo(
                    "detector", folder_choices(DETECTOR), DETECTOR,
                    "Folder of OWLv2, OWL-ViT, Grounding DINO, MM Grounding DINO or LLMDet in models/verifiers.",
                ),
                open_ended(io.Combo.Input(
                    "colours",
                    options=[NO_COLOURS, *clips],
                    default=preferred(clips, COLOURS) if clips else NO_COLOURS,
                    tooltip="CLIP model for colours, a folder in models/verifiers. Needed if the prompt names "
                    "colours.",
                )),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="graded",
                    tooltip="graded: 0 to 1, rises as the image gets closer; for steering. strict: the benchmark's "
                    "verdict, 0 or 1. count: minus the squared error of the counts.",
                ),
                io.String.Input(
                    "objects",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="What to look for, instead of the prompt: e.g. two dogs, a red ball, a cat left of a "
                    "tree. Needed if the prompt is not such a list.",
                ),
                io.Float.Input(
                    "threshold",
                    default=RULES.threshold,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    optional=True,
                    tooltip="Detector score above which an object counts.",
                ),
                io.Float.Input(
                    "counting_threshold",
                    default=RULES.counting_threshold,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    optional=True,
                    tooltip="The same if the prompt gives an exact number.",
                ),
            ],
            outputs=[VerifierType.Output(display_name="verifier")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, detector=None, colours=None, objects=None):
        if objects is not None and objects.strip():
            try:
                parse(objects)
            except VerifierError as error:
                return str(error)
        wanted = {"detector": (detector, DETECTOR), "colours": (None if colours == NO_COLOURS else colours, COLOURS)}
        return missing(**wanted)

    @classmethod
    def execute(
        cls, detector, colours, mode, objects="", threshold=RULES.threshold,
        counting_threshold=RULES.counting_threshold,
    ) -> io.NodeOutput:  # fmt: skip
        path = located("detector", detector, DETECTOR)
        rules = Rules(threshold, counting_threshold)
        with torch.inference_mode(False):
            reader = None
            if colours != NO_COLOURS:
                folder = located("colours", colours, COLOURS)
                own = (folder / "vocab.json").exists() or (folder / "tokenizer.json").exists()
                reader = ColourReader(load_clip_score_folder(folder, None if own else clip_tokenizer()))
            name = f"objects({path.name})"
            return io.NodeOutput(managed(ObjectsVerifier(load_detector(path), reader, mode, objects, rules, name=name)))


NODES = [GenEvalNode]
