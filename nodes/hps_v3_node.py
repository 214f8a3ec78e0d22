"""``HPSv3 Verifier``: human preference by a vision-language model."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..verifiers.preference.hps_v3 import load_hps_v3
from .host.managed_verifier import managed
from .model_folders import ALSO, Weights, combo, folder_choices, located, missing, precision_input
from .types import VerifierType
from .verifier_nodes import VERIFIER_CATEGORY

REWARD = Weights.of("hps_v3")
BASE = Weights.of("hps_v3_base")


class HPSv3Node(io.ComfyNode):
    """HPSv3 Verifier."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeHPSv3",
            display_name="HPSv3 Verifier",
            category=VERIFIER_CATEGORY,
            description="How much people would prefer an image for its prompt, by a vision-language model of 7 billion "
            "parameters (Ma et al. 2025). Trained on newer and better images than HPSv2.",
            inputs=[
                combo(
                    "model",
                    folder_choices(REWARD, marker=REWARD.marker),
                    REWARD,
                    "Folder of HPSv3 in models/verifiers. Put data_collator_qwen.py of github.com/MizzenAI/HPSv3 into "
                    "it: it has the instruction that the model was trained with.",
                ),
                combo(
                    "base",
                    folder_choices(BASE, kinds=(ALSO,)),
                    BASE,
                    "Folder of Qwen2-VL-7B-Instruct in models/verifiers or models/rewriters: its tokenizer and "
                    "config.json are needed, its weights are not.",
                ),
                precision_input(),
            ],
            outputs=[VerifierType.Output(display_name="verifier")],
        )

    @classmethod
    def validate_inputs(cls, model=None, base=None):
        return missing(model=(model, REWARD), base=(base, BASE))

    @classmethod
    def execute(cls, model, base, precision="auto") -> io.NodeOutput:
        folder, qwen = located("model", model, REWARD), located("base", base, BASE, kinds=(ALSO,))
        with torch.inference_mode(False):
            return io.NodeOutput(managed(load_hps_v3(folder, qwen), precision))


NODES = [HPSv3Node]
