"""Verifiers of edits: ``Edit Judge`` and ``Preservation Verifier``."""

from __future__ import annotations

import copy
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..chat.local import LocalVLM
from ..samplers.protocols import SearchError, Verifier
from ..samplers.sources import Sources, sources_of
from ..verifiers.base import VerifierError, WrappedVerifier
from ..verifiers.image_image.preservation import PreservationVerifier
from ..verifiers.vlm.edit import MANNERS, EditJudgeVerifier
from ..verifiers.vlm.judge import FAILURES, Asker, LocalAsker, VLMJudgeVerifier
from ..verifiers.vlm.vqa_score import VQAScoreVerifier
from .guidance_check import is_link, queued
from .host.managed_verifier import ManagedVerifier
from .types import VERIFIER_CATEGORY, VerifierType

VLM_NODES = ("TestTimeVLM", "TestTimeVLMEndpoint", "TestTimeVLMClip")
"""Nodes whose verifiers can be asked other questions, too."""
NO_VLM = (
    "Edit Judge asks a vision-language model: connect VLM Verifier, VLM Verifier (endpoint) or VLM Verifier (loaded "
    "CLIP)"
)


def source_input() -> io.Image.Input:
    """The image that is edited, on a verifier."""
    return io.Image.Input(
        "source",
        optional=True,
        tooltip="The image that is edited. Of a batch the first; the others are shown as references. Without it: "
        "`source` of the search, else reference latents, else the latent of image to image or inpainting.",
    )


def own_source(source: Tensor | None, mask: Tensor | None = None) -> Sources | None:
    """``Sources`` of an IMAGE and a MASK on a verifier; None without an image. SearchError for a mask that is wrong."""
    if source is None:
        if mask is not None and bool((mask != mask.reshape(-1)[0]).any()):
            raise SearchError("mask is connected and source is not: connect the image that it belongs to")
        return None
    first = sources_of(source[:1].detach().float().cpu(), 1, None if mask is None else mask.detach().float().cpu())[0]
    return Sources(tuple(image.float().cpu() for image in source[..., :3]), first.mask)


def asker_of(judge: Verifier) -> Asker:
    """Who a VLM verifier asks. VerifierError where ``judge`` is no such verifier."""
    inner: Any = judge
    while isinstance(inner, WrappedVerifier):
        inner = inner.inner
    if isinstance(inner, VLMJudgeVerifier):
        return inner.asker
    if isinstance(inner, VQAScoreVerifier) and isinstance(inner.module, LocalVLM):
        return LocalAsker(inner.module, inner.longest, inner.module.name)
    raise VerifierError(f"judge is {judge.name!r}: {NO_VLM}")


def asking_through(judge: Verifier, verifier: Verifier) -> Verifier:
    """``verifier`` under the same management as ``judge``, whose network it uses."""
    if not isinstance(judge, ManagedVerifier):
        return verifier
    managed = copy.copy(judge)
    WrappedVerifier.__init__(managed, verifier)
    managed.verifier = verifier
    return managed


def judge_problem(graph: Any) -> str | None:
    """What is wrong with what is connected to ``judge`` of the Edit Judges of a workflow, as far as it can be seen."""
    from .menu import ALIASES

    for entry in (graph or {}).values():
        if not isinstance(entry, dict) or entry.get("class_type") != "TestTimeEditJudge":
            continue
        link = entry.get("inputs", {}).get("judge")
        asked = graph.get(str(link[0])) if is_link(link) else None
        kind = asked.get("class_type") if isinstance(asked, dict) else None
        if kind in ALIASES and kind not in VLM_NODES:  # nodes of others may hand a judge on
            return f"judge comes from {kind}: {NO_VLM}"
    return None


class EditJudgeNode(io.ComfyNode):
    """Edit Judge: three questions to the model of a VLM verifier."""

    differentiable = False  # see guidance_check

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeEditJudge",
            display_name="Edit Judge",
            category=VERIFIER_CATEGORY,
            description="Judges edits with a vision-language model: is the instruction carried out, did nothing else "
            "change, does it look right? Shows it the source and the result. Handing back the source unchanged earns "
            "nothing.",
            inputs=[
                VerifierType.Input(
                    "judge",
                    tooltip="Whose model is asked: VLM Verifier, VLM Verifier (endpoint) or VLM Verifier (loaded "
                    "CLIP). Its rubric does not matter.",
                ),
                io.Combo.Input(
                    "manner",
                    options=list(MANNERS),
                    default=MANNERS[0],
                    tooltip="yes_no: three questions, probability of yes each, 0 to 1. grades: two questions, grades "
                    "of 0 to 25, for models that were trained to grade edits (EditScore, UnifiedReward-Edit); 0 to 10.",
                ),
                io.String.Input(
                    "instruction",
                    multiline=True,
                    default="",
                    tooltip="What is to be done to the source, e.g. 'make the jacket red'. Empty: the search's prompt.",
                ),
                io.Combo.Input(
                    "on_failure",
                    options=list(FAILURES),
                    default="skip",
                    tooltip="If an image gets no usable answer. skip: no score, it cannot win. neutral: the middle of "
                    "the scale. error: stop the run.",
                ),
                source_input(),
            ],
            outputs=[VerifierType.Output(display_name="verifier")],
        )

    @classmethod
    def validate_inputs(cls, manner=None):
        if manner is not None and manner not in MANNERS:
            return f"manner is {manner!r}: choose one of {', '.join(MANNERS)}"
        return judge_problem(queued()) or True

    @classmethod
    def execute(cls, judge, manner, instruction="", on_failure="skip", source=None) -> io.NodeOutput:
        if judge is None:
            raise VerifierError(f"judge is missing: {NO_VLM}")
        verifier = EditJudgeVerifier(asker_of(judge), manner, own_source(source), instruction, on_failure)
        return io.NodeOutput(asking_through(judge, verifier))


class PreservationNode(io.ComfyNode):
    """Preservation Verifier: how well an edit keeps the rest, without a network."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimePreservation",
            display_name="Preservation Verifier",
            category=VERIFIER_CATEGORY,
            description="How well the result keeps what should not change, by pixels: 1 = the same, 0 = another "
            "picture. No model, differentiable. It does not see whether the edit was made: use it beside Edit Judge in "
            "a Verifier Ensemble (weight 0.3), or as held_out.",
            inputs=[
                io.Float.Input(
                    "share",
                    default=0.3,
                    min=0.0,
                    max=0.95,
                    step=0.05,
                    tooltip="Without a mask: how much of the picture an edit may change. The cells that differ most "
                    "are left out, up to this share.",
                ),
                source_input(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the source may change (white). Replaces `share`; needs `source`.",
                ),
            ],
            outputs=[VerifierType.Output(display_name="verifier")],
        )

    @classmethod
    def execute(cls, share=0.3, source=None, mask=None) -> io.NodeOutput:
        return io.NodeOutput(PreservationVerifier(own_source(source, mask), share))


NODES = [EditJudgeNode, PreservationNode]
