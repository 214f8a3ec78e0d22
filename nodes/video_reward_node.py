"""``VideoReward Verifier``: the published reward model of videos."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..verifiers.video.video_reward import GRADES, OVERALL
from ..verifiers.video.video_reward_files import load_video_reward
from .host.managed_verifier import managed
from .model_folders import ALSO, Weights, combo, folder_choices, located, missing, precision_input
from .types import VERIFIER_CATEGORY, VerifierType

REWARD = Weights.of("video_reward")
BASE = Weights.of("video_reward_base")


class VideoRewardNode(io.ComfyNode):
    """VideoReward Verifier."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeVideoReward",
            display_name="VideoReward Verifier",
            category=VERIFIER_CATEGORY,
            description="Grades videos as people would (Liu et al. 2025): visual quality, motion quality, and how well "
            "the prompt is followed. Looks at ten frames of a clip at once.",
            inputs=[
                combo(
                    "model",
                    folder_choices(REWARD, marker=REWARD.marker),
                    REWARD,
                    "Folder of VideoReward in models/verifiers. Put prompt_template.py of "
                    "github.com/KwaiVGI/VideoAlign into it: it has the instruction that the model was trained with.",
                ),
                combo(
                    "base",
                    folder_choices(BASE, kinds=(ALSO,)),
                    BASE,
                    "Folder of Qwen2-VL-2B-Instruct in models/verifiers or models/rewriters: its tokenizer is needed.",
                ),
                io.Combo.Input(
                    "grade",
                    options=[OVERALL, *GRADES],
                    default=OVERALL,
                    tooltip="What is the score. overall: the sum of the three; all are kept in the trace.",
                ),
                precision_input(),
            ],
            outputs=[VerifierType.Output(display_name="verifier")],
        )

    @classmethod
    def validate_inputs(cls, model=None, base=None):
        return missing(model=(model, REWARD), base=(base, BASE))

    @classmethod
    def execute(cls, model, base, grade=OVERALL, precision="auto") -> io.NodeOutput:
        folder, qwen = located("model", model, REWARD), located("base", base, BASE, kinds=(ALSO,))
        with torch.inference_mode(False):
            return io.NodeOutput(managed(load_video_reward(folder, qwen, grade=grade), precision))


NODES = [VideoRewardNode]
