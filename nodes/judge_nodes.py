"""Loaders of verifiers that ask a vision-language model, on this machine or behind an endpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from comfy_api.latest import io

from ..chat.endpoint import KEY_VARIABLE
from ..verifiers.base import VerifierError
from ..verifiers.vlm.endpoint import endpoint_judge
from ..verifiers.vlm.flan_t5 import is_clip_flan_t5, load_clip_flant5
from ..verifiers.vlm.judge import FAILURES, MEAN, VLMJudgeVerifier, load_vlm_judge
from ..verifiers.vlm.rubric import RUBRICS
from ..verifiers.vlm.vqa_score import load_vqa_score
from .endpoint_inputs import address_inputs, patience_inputs
from .host.compat import throw_if_interrupted
from .host.host_vlm import LONGEST, ClipAsker, tried
from .host.managed_verifier import managed
from .model_folders import ALSO, Weights, combo, folder_choices, located, missing
from .types import VERIFIER_CATEGORY, VerifierType

CHAT = Weights.of("vlm")
FLAN_T5 = Weights.of("vqa_flant5")
DEFAULT_AXIS = "default"
YES_NO = "yes_no"


def t5_tokenizer() -> Path:
    """Folder of T5's tokenizer files that ComfyUI brings along."""
    import comfy.sd1_clip

    return Path(comfy.sd1_clip.__file__).parent / "text_encoders" / "t5_tokenizer"


def longest_input(default: int) -> io.Int.Input:
    """How large the images are that the model is shown."""
    return io.Int.Input(
        "longest",
        default=default,
        min=64,
        max=4096,
        step=32,
        optional=True,
        tooltip="Longer side (pixels) of the images shown to the model. Larger = more detail, slower.",
    )


def rubric_inputs() -> list:
    """What is asked, what counts, and what happens without an answer."""
    axes = list(dict.fromkeys(axis for rubric in RUBRICS.values() for axis in rubric.axes))
    return [
        io.Combo.Input(
            "rubric",
            options=list(RUBRICS),
            default=YES_NO,
            tooltip="yes_no: probability that the image shows the prompt, 0 to 1. axes: five grades and an overall "
            "one, 0 to 10, with reasons; slow. unified_reward: three grades, 1 to 5, for UnifiedReward models.",
        ),
        io.Combo.Input(
            "axis",
            options=[DEFAULT_AXIS, MEAN, *axes],
            default=DEFAULT_AXIS,
            optional=True,
            tooltip="Which grade counts; the others are kept in the trace. default: the overall one of axes, the mean "
            "of unified_reward.",
        ),
        io.Combo.Input(
            "on_failure",
            options=list(FAILURES),
            default="skip",
            optional=True,
            tooltip="If an image gets no usable answer after all retries. skip: no score, it cannot win. neutral: "
            "the middle of the scale. error: stop the run. Such images are counted in the log.",
        ),
    ]


def axis_problem(rubric: str | None, axis: str | None) -> str | None:
    """What is wrong with a choice of axis; None where nothing is, or where it is not known yet."""
    if rubric in RUBRICS and axis not in (None, DEFAULT_AXIS, MEAN, *RUBRICS[rubric].axes):
        return f"axis is {axis!r}: the rubric {rubric!r} has {', '.join((DEFAULT_AXIS, MEAN, *RUBRICS[rubric].axes))}"
    return None


def _schema(node_id: str, title: str, description: str, inputs: list) -> io.Schema:
    return io.Schema(
        node_id=node_id,
        display_name=title,
        category=VERIFIER_CATEGORY,
        description=description,
        inputs=inputs,
        outputs=[VerifierType.Output(display_name="verifier")],
    )


def loadable(model: str) -> Path:
    """Folder of a choice of ``model``; VerifierError with what to download where it is not there."""
    return located("model", model, CHAT, FLAN_T5, kinds=(ALSO,))


class VLMNode(io.ComfyNode):
    """VLM Verifier: VQAScore where yes or no is asked, a judge with grades for the other rubrics."""

    @staticmethod
    def differentiable(inputs, unguidable) -> str | None:  # noqa: ARG004 - see guidance_check
        """Why a workflow's node has no gradient; None for CLIP-FlanT5, which has one."""
        try:
            if is_clip_flan_t5(loadable(str(inputs.get("model")))):
                return None
        except VerifierError:
            pass
        return "a vision-language model that is asked questions is not differentiable"

    @classmethod
    def define_schema(cls):
        return _schema(
            "TestTimeVLM",
            "VLM Verifier",
            "Asks a vision-language model on this machine about the image. yes_no is VQAScore (Lin et al. 2024): how "
            "likely the model is to answer Yes when asked whether the image shows the prompt; it reads counts and "
            "relations. Other rubrics give grades.",
            [
                combo(
                    "model",
                    folder_choices(CHAT, FLAN_T5, kinds=(ALSO,)),
                    CHAT,
                    "Folder of a vision-language model in models/verifiers or models/rewriters: Qwen3-VL, Qwen2.5-VL, "
                    "LLaVA, SmolVLM, or CLIP-FlanT5 (VQAScore's own; differentiable, slow).",
                ),
                *rubric_inputs(),
                longest_input(768),
                io.Boolean.Input(
                    "normalise",
                    default=False,
                    optional=True,
                    tooltip="yes_no only: P(Yes) / (P(Yes) + P(No)). Steadier for models that often start with another "
                    "word.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, model=None, rubric=None, axis=None):
        return axis_problem(rubric, axis) or missing(model=(model, CHAT, FLAN_T5))

    @classmethod
    def execute(
        cls, model, rubric="yes_no", axis=DEFAULT_AXIS, on_failure="skip", longest=768, normalise=False
    ) -> io.NodeOutput:
        path, chosen = loadable(model), None if axis == DEFAULT_AXIS else axis
        with torch.inference_mode(False):
            if is_clip_flan_t5(path):
                if rubric != YES_NO:
                    raise VerifierError(f"rubric is {rubric!r}: CLIP-FlanT5 only answers yes or no, choose {YES_NO!r}")
                tokenizer = None if (path / "tokenizer.json").exists() else t5_tokenizer()
                return io.NodeOutput(managed(load_clip_flant5(path, tokenizer)))
            if rubric == YES_NO:
                return io.NodeOutput(managed(load_vqa_score(path, normalise=normalise, longest=longest)))
            judge = load_vlm_judge(path, longest, rubric=rubric, axis=chosen, on_failure=on_failure)
            return io.NodeOutput(managed(judge))


class VLMEndpointNode(io.ComfyNode):
    differentiable = False  # see guidance_check

    @classmethod
    def define_schema(cls):
        return _schema(
            "TestTimeVLMEndpoint",
            "VLM Verifier (endpoint)",
            "Asks a vision-language model behind an OpenAI-compatible endpoint (vLLM, Ollama, llama.cpp, hosted "
            f"services). A key is read from the environment variable {KEY_VARIABLE}, never from a workflow.",
            [
                *address_inputs(),
                *rubric_inputs(),
                *patience_inputs(),
                io.Int.Input(
                    "parallel",
                    default=4,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip="Images sent at the same time.",
                ),
                longest_input(512),
            ],
        )

    @classmethod
    def validate_inputs(cls, rubric=None, axis=None, model=None):
        if model is not None and not model.strip():
            return "model is empty: give the name under which the server offers the model"
        return axis_problem(rubric, axis) or True

    @classmethod
    def execute(
        cls, url, model, rubric, axis=DEFAULT_AXIS, on_failure="skip", timeout=60.0, retries=2, parallel=4, longest=512
    ) -> io.NodeOutput:
        return io.NodeOutput(
            endpoint_judge(
                url,
                model,
                timeout=timeout,
                retries=retries,
                parallel=parallel,
                longest=longest,
                poll=throw_if_interrupted,
                rubric=rubric,
                axis=None if axis == DEFAULT_AXIS else axis,
                on_failure=on_failure,
            )
        )


class VLMClipNode(io.ComfyNode):
    """VLM Verifier (loaded CLIP): the text encoder of the graph as the judge."""

    differentiable = False  # see guidance_check

    @classmethod
    def define_schema(cls):
        return _schema(
            "TestTimeVLMClip",
            "VLM Verifier (loaded CLIP)",
            "Asks the text encoder that the graph has loaded anyway, where it is a vision-language model: Qwen3-VL 4B "
            "or 8B (Krea 2, Qwen-Image 2.1, Ideogram 4), Qwen3.5. No second model. Needs a ComfyUI that generates text "
            "with its text encoders. Files without a language head are refused by a test with two squares.",
            [
                io.Clip.Input("clip", tooltip="A CLIP with a vision-language model in it, from Load CLIP."),
                *rubric_inputs(),
                longest_input(LONGEST),
            ],
        )

    @classmethod
    def validate_inputs(cls, rubric=None, axis=None):
        return axis_problem(rubric, axis) or True

    @classmethod
    def execute(cls, clip, rubric=YES_NO, axis=DEFAULT_AXIS, on_failure="skip", longest=LONGEST) -> io.NodeOutput:
        vlm = tried(clip, longest)
        chosen = None if axis == DEFAULT_AXIS else axis
        return io.NodeOutput(VLMJudgeVerifier(ClipAsker(vlm), rubric, chosen, on_failure))


NODES = [VLMNode, VLMEndpointNode, VLMClipNode]
