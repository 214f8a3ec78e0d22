"""Loaders of verifiers that ask a vision-language model, on this machine or behind an endpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from comfy_api.latest import io

from ..chat.endpoint import KEY_VARIABLE
from ..verifiers.vlm.endpoint import endpoint_judge
from ..verifiers.vlm.flan_t5 import load_clip_flant5
from ..verifiers.vlm.judge import FAILURES, MEAN, load_vlm_judge
from ..verifiers.vlm.rubric import RUBRICS
from ..verifiers.vlm.vqa_score import load_vqa_score
from .compat import throw_if_interrupted
from .endpoint_inputs import address_inputs, patience_inputs
from .host.managed_verifier import managed
from .model_folders import ALSO, Weights, combo, folder_choices, located, missing
from .types import VerifierType
from .verifier_nodes import VERIFIER_CATEGORY

CHAT = Weights.of("vlm")
FLAN_T5 = Weights.of("vqa_flant5")
DEFAULT_AXIS = "default"


def t5_tokenizer() -> Path:
    """Folder of T5's tokenizer files that ComfyUI brings along."""
    import comfy.sd1_clip

    return Path(comfy.sd1_clip.__file__).parent / "text_encoders" / "t5_tokenizer"


def chat_input() -> io.Combo.Input:
    """Drop-down of vision-language models."""
    tip = "Folder of a vision-language model (Qwen3-VL, Qwen2.5-VL, LLaVA, SmolVLM) in models/verifiers or rewriters."
    return combo("model", folder_choices(CHAT, kinds=(ALSO,)), CHAT, tip)


def longest_input(default: int) -> io.Int.Input:
    """How large the images are that the model is shown."""
    return io.Int.Input(
        "longest",
        default=default,
        min=64,
        max=4096,
        step=32,
        optional=True,
        tooltip="Pixels of the longer side of the images that the model is shown. More sees more and costs more.",
    )


def rubric_inputs() -> list:
    """What is asked, what counts, and what happens without an answer."""
    axes = list(dict.fromkeys(axis for rubric in RUBRICS.values() for axis in rubric.axes))
    return [
        io.Combo.Input(
            "rubric",
            options=list(RUBRICS),
            default="yes_no",
            tooltip="yes_no: how probable it is that the image shows the prompt, 0 .. 1. axes: five grades and an "
            "overall one, 0 .. 10, with reasons; slow. unified_reward: three grades, 1 .. 5, for UnifiedReward models.",
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
            tooltip="An image that gets no usable answer after all retries: skip = no score, it cannot win. neutral = "
            "the middle of the scale. error = the run ends. Such images are counted in the log.",
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


class VQAScoreNode(io.ComfyNode):
    differentiable = False  # see guidance_check

    @classmethod
    def define_schema(cls):
        return _schema(
            "TestTimeVQAScore",
            "VQAScore Verifier",
            "How probable it is that a vision-language model answers Yes when asked whether the image shows the prompt "
            "(Lin et al. 2024). Reads counts and relations. Not differentiable.",
            [
                chat_input(),
                io.Boolean.Input(
                    "normalise",
                    default=False,
                    optional=True,
                    tooltip="P(Yes) / (P(Yes) + P(No)): steadier with models that like to begin with another word.",
                ),
                longest_input(768),
            ],
        )

    @classmethod
    def validate_inputs(cls, model=None):
        return missing(model=(model, CHAT))

    @classmethod
    def execute(cls, model, normalise=False, longest=768) -> io.NodeOutput:
        path = located("model", model, CHAT, kinds=(ALSO,))
        with torch.inference_mode(False):
            return io.NodeOutput(managed(load_vqa_score(path, normalise=normalise, longest=longest)))


class FlanT5Node(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _schema(
            "TestTimeFlanT5VQAScore",
            "VQAScore Verifier (CLIP-FlanT5)",
            "VQAScore with the model of its paper, for comparison with published numbers. Differentiable, at a price.",
            [combo("model", folder_choices(FLAN_T5), FLAN_T5, "Folder of clip-flant5-xl or -xxl in models/verifiers.")],
        )

    @classmethod
    def validate_inputs(cls, model=None):
        return missing(model=(model, FLAN_T5))

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        path = located("model", model, FLAN_T5)
        with torch.inference_mode(False):
            tokenizer = None if (path / "tokenizer.json").exists() else t5_tokenizer()
            return io.NodeOutput(managed(load_clip_flant5(path, tokenizer)))


class VLMJudgeNode(io.ComfyNode):
    differentiable = False  # see guidance_check

    @classmethod
    def define_schema(cls):
        return _schema(
            "TestTimeVLMJudge",
            "VLM Judge Verifier",
            "A vision-language model on this machine as the judge: a yes or no, or grades with reasons.",
            [chat_input(), *rubric_inputs(), longest_input(768)],
        )

    @classmethod
    def validate_inputs(cls, model=None, rubric=None, axis=None):
        return axis_problem(rubric, axis) or missing(model=(model, CHAT))

    @classmethod
    def execute(cls, model, rubric, axis=DEFAULT_AXIS, on_failure="skip", longest=768) -> io.NodeOutput:
        path = located("model", model, CHAT, kinds=(ALSO,))
        chosen = None if axis == DEFAULT_AXIS else axis
        with torch.inference_mode(False):
            judge = load_vlm_judge(path, longest, rubric=rubric, axis=chosen, on_failure=on_failure)
            return io.NodeOutput(managed(judge))


class EndpointJudgeNode(io.ComfyNode):
    differentiable = False  # see guidance_check

    @classmethod
    def define_schema(cls):
        return _schema(
            "TestTimeEndpointJudge",
            "VLM Judge Verifier (endpoint)",
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
                    tooltip="Images that are asked about at a time.",
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


NODES = [VQAScoreNode, FlanT5Node, VLMJudgeNode, EndpointJudgeNode]
