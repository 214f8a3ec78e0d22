"""Rewriters of prompts, and ``Rewrite Prompt``, which uses one on its own."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io, ui

from ..chat.conversation import ChatError
from ..chat.endpoint import KEY_VARIABLE, Endpoint
from ..chat.loading import DTYPES, QUANTISATIONS, SUGGESTION, check_folder
from ..rewriters.base import RewriterError
from ..rewriters.endpoint import EndpointRewriter
from ..rewriters.shapes import ShapesRewriter
from ..rewriters.template import SYSTEM, USER, Template
from ..rewriters.vlm import load_vlm
from ..samplers.protocols import RewriteRequest, SearchError
from .choices import open_ended
from .endpoint_inputs import address_inputs, patience_inputs
from .folders import find_inside, folders_with
from .host.host_vlm import ClipRewriter, tried
from .host.rewriting import ask, managed_rewriter
from .types import CATEGORY, RewriterType

REWRITER_CATEGORY = f"{CATEGORY}/rewriters"
FOLDER = "rewriters"
NO_MODEL = "none found"

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER), is_default=True)
folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / "LLM"))


def model_choices() -> list[str]:
    """Model folders (with a config.json) of models/rewriters and models/LLM."""
    return sorted(set(folders_with("config.json", folder_paths.get_folder_paths(FOLDER)))) or [NO_MODEL]


def model_folder(choice: str) -> Path:
    """Folder of a choice; RewriterError with what to download where it is not there."""
    roots = [Path(root) for root in folder_paths.get_folder_paths(FOLDER)]
    found = None if choice == NO_MODEL else find_inside(roots, choice, Path.is_dir)
    if found is not None:
        return found
    name = SUGGESTION.split()[0]
    place = roots[0] / name.replace("/", "--")
    raise RewriterError(
        f"model is {choice!r}: there is no such model here. Take a vision-language model of transformers, e.g. "
        f'{SUGGESTION}, for example with:  hf download {name} --local-dir "{place}"'
        f"\nLooked in: {', '.join(map(str, roots))}"
    )


def template_inputs() -> list:
    """The drop-downs of the template and of what it is filled with."""
    return [
        io.String.Input(
            "system",
            multiline=True,
            default=SYSTEM,
            optional=True,
            tooltip="System prompt.",
        ),
        io.String.Input(
            "template",
            multiline=True,
            default=USER,
            optional=True,
            tooltip="The question. Filled in: {prompt}, {step}, {steps}, {history}, {count}, {words}; literal braces "
            "are written twice. Answers are read as JSON, and leniently where they are not.",
        ),
        io.Int.Input(
            "max_words",
            default=50,
            min=3,
            max=1000,
            optional=True,
            tooltip="Longest rewrite in words. Text encoders like SD1.5's read 75 tokens at a time.",
        ),
    ]


def temperature_input() -> io.Float.Input:
    """Temperature of the language model."""
    return io.Float.Input(
        "temperature",
        default=0.7,
        min=0.0,
        max=2.0,
        step=0.05,
        tooltip="Variety of the answers. 0 = always the most likely words.",
    )


class ShapesRewriterNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeShapesRewriter",
            display_name="Shapes World Rewriter",
            category=f"{CATEGORY}/examples",
            description="Rewrites Shapes World prompts by fixed rules: measures what the preview shows and stresses "
            "what is missing. Needs no model. For trying out TTGen.",
            inputs=[],
            outputs=[RewriterType.Output(display_name="rewriter")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(ShapesRewriter())


class EndpointRewriterNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeEndpointRewriter",
            display_name="Prompt Rewriter (endpoint)",
            category=REWRITER_CATEGORY,
            description="Asks a vision-language model behind an OpenAI-compatible endpoint (vLLM, Ollama, llama.cpp, "
            f"hosted services). A key is read from the environment variable {KEY_VARIABLE}, never from a workflow. "
            "When the endpoint does not answer, images are finished with the original prompt.",
            inputs=[
                *address_inputs(),
                temperature_input(),
                *patience_inputs(),
                *template_inputs(),
            ],
            outputs=[RewriterType.Output(display_name="rewriter")],
        )

    @classmethod
    def execute(
        cls, url, model, temperature, timeout=60.0, retries=2, system=SYSTEM, template=USER, max_words=50
    ) -> io.NodeOutput:
        endpoint = Endpoint(url.strip(), model.strip(), temperature, timeout=timeout, retries=retries)
        return io.NodeOutput(EndpointRewriter(endpoint, Template(system, template, max_words)))


class LocalRewriterNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeLocalRewriter",
            display_name="Prompt Rewriter (local VLM)",
            category=REWRITER_CATEGORY,
            description="Asks a vision-language model on this machine, through transformers and without remote code: "
            "Qwen3-VL, Qwen2.5-VL, InternVL3 (-hf), SmolVLM2, Gemma 3, LLaVA-OneVision and others. It shares the GPU "
            "with the image model under ComfyUI's memory management.",
            inputs=[
                open_ended(
                    io.Combo.Input(
                        "model",
                        options=model_choices(),
                        tooltip=f"A model folder in models/rewriters or models/LLM. Suggested: {SUGGESTION}.",
                    )
                ),
                temperature_input(),
                io.Combo.Input(
                    "quantisation",
                    options=list(QUANTISATIONS),
                    default="none",
                    optional=True,
                    tooltip="int8 and int4 need bitsandbytes and a CUDA GPU. The model then stays on the GPU.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="auto",
                    optional=True,
                    tooltip="Number format of the weights. auto = as in the file.",
                ),
                io.Int.Input(
                    "max_tokens",
                    default=512,
                    min=16,
                    max=8192,
                    optional=True,
                    tooltip="Longest answer in tokens. Reasoning models need more.",
                ),
                *template_inputs(),
            ],
            outputs=[RewriterType.Output(display_name="rewriter")],
        )

    @classmethod
    def validate_inputs(cls, model=None):
        try:
            if model is not None:
                check_folder(model_folder(model))
        except (ChatError, RewriterError) as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model,
        temperature,
        quantisation="none",
        dtype="auto",
        max_tokens=512,
        system=SYSTEM,
        template=USER,
        max_words=50,
    ) -> io.NodeOutput:
        with torch.inference_mode(False):
            rewriter = load_vlm(
                model_folder(model),
                dtype=dtype,
                quantisation=quantisation,
                template=Template(system, template, max_words),
                temperature=temperature,
                max_tokens=max_tokens,
            )
        return io.NodeOutput(managed_rewriter(rewriter))


class ClipRewriterNode(io.ComfyNode):
    """Prompt Rewriter (loaded CLIP): the text encoder of the graph as the rewriter."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeClipRewriter",
            display_name="Prompt Rewriter (loaded CLIP)",
            category=REWRITER_CATEGORY,
            description="Rewrites prompts with the text encoder that the graph has loaded anyway, where it is a "
            "vision-language model: Qwen3-VL 4B or 8B (Krea 2, Qwen-Image 2.1, Ideogram 4), Qwen3.5. No second model. "
            "Needs a ComfyUI that generates text with its text encoders.",
            inputs=[
                io.Clip.Input("clip", tooltip="A CLIP with a vision-language model in it, from Load CLIP."),
                temperature_input(),
                io.Int.Input("max_tokens", default=400, min=16, max=8192, tooltip="Longest answer, in tokens."),
                *template_inputs(),
            ],
            outputs=[RewriterType.Output(display_name="rewriter")],
        )

    @classmethod
    def execute(cls, clip, temperature=0.7, max_tokens=400, system=SYSTEM, template=USER, max_words=50):
        made = Template(system, template, max_words)
        return io.NodeOutput(ClipRewriter(tried(clip), made, temperature, max_tokens))


class RewritePromptNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeRewritePrompt",
            display_name="Rewrite Prompt",
            category=REWRITER_CATEGORY,
            description="Shows an image and its prompt to a rewriter and returns prompts for what is missing. The "
            "prompts are a list: connected nodes run once for each.",
            inputs=[
                io.Image.Input("image", tooltip="The image to compare with the prompt; of a batch the first."),
                RewriterType.Input("rewriter", tooltip="Proposes the new prompts."),
                io.String.Input("prompt", multiline=True, default="", tooltip="What the image should show."),
                io.Int.Input("rewrites", default=4, min=1, max=64, tooltip="Number of rewritten prompts."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    optional=True,
                    tooltip="Seed of the rewriter.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="prompts",
                    is_output_list=True,
                    tooltip="The rewritten prompts; the original if there are none.",
                ),
                io.String.Output(display_name="missing", tooltip="What the rewriter found missing, one per line."),
                io.String.Output(display_name="text", tooltip="Everything as text."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, prompt=None):
        if prompt is not None and not prompt.strip():
            return "prompt is empty: write what the image should show, the rewriter compares with it"
        return True

    @classmethod
    def execute(cls, image, rewriter, prompt, rewrites, seed=0) -> io.NodeOutput:
        if rewriter is None:
            raise SearchError("rewriter is missing: connect one, e.g. the Shapes World Rewriter or an endpoint")
        (answer,) = ask(rewriter, [RewriteRequest(image[0, ..., :3], prompt, rewrites, seed=seed % 2**63)])
        prompts = list(answer.prompts) or [prompt]
        missing = "\n".join(answer.missing)
        verdict = "nothing is missing" if answer.aligned else "missing:"
        if answer.failed:
            verdict = f"failed, the original prompt is given: {answer.note}"
        text = "\n".join([verdict, *(f"- {line}" for line in answer.missing), "", *prompts])
        return io.NodeOutput(prompts, missing, text, ui=ui.PreviewText(text))


NODES = [ShapesRewriterNode, LocalRewriterNode, EndpointRewriterNode, ClipRewriterNode, RewritePromptNode]
