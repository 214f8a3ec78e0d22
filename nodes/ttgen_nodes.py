"""``TTGen``, and re-prompting as an operation inside another search."""

from __future__ import annotations

from comfy_api.latest import io

from ..samplers.methods import TTGen
from ..samplers.methods.ttgen import AFTER, CHOICES
from ..samplers.protocols import SearchError
from ..samplers.rewriting import Rewriting, Rounds
from .host.prompts import ClipEncoder
from .method_inputs import MODIFIER_CATEGORY, method_schema, search_output, search_schema
from .types import RewriterType, SearchType


def rewriting_inputs(injection: int) -> list:
    """Inputs that both nodes share, after the rewriter."""
    return [
        io.Clip.Input("clip", tooltip="The model's text encoder: it encodes the new prompts."),
        io.Int.Input(
            "injection_step",
            default=injection,
            min=0,
            max=10_000,
            tooltip="Last step with rewrites, counted from 1. The paper recommends 20 to 30 of 50 steps; later, "
            "previews hardly change.",
        ),
        io.Int.Input(
            "interval",
            default=1,
            min=1,
            max=1000,
            tooltip="Ask the rewriter every this many steps. In between, its last prompts compete again.",
        ),
        io.Int.Input(
            "start_step",
            default=1,
            min=1,
            max=10_000,
            optional=True,
            tooltip="First step with rewrites, counted from 1. The very first previews show little.",
        ),
        io.Boolean.Input(
            "keep_original",
            default=True,
            optional=True,
            tooltip="Let the original prompt compete with its rewrites.",
        ),
        io.Int.Input(
            "patience",
            default=3,
            min=1,
            max=1000,
            optional=True,
            tooltip="Stop asking after this many answers in a row that nothing is missing, or this many failures.",
        ),
    ]


def rewrites_input(default: int, tooltip: str) -> io.Int.Input:
    """How many prompts a round asks for."""
    return io.Int.Input("rewrites", default=default, min=1, max=64, tooltip=tooltip)


class TTGenNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return method_schema(
            TTGen,
            "At each early step a rewriter sees the preview and proposes prompts for what is missing. The prompt "
            "whose preview fits the original best is used for the step (Qiao et al.). Use eta 0 as in the paper.",
            [
                RewriterType.Input("rewriter", tooltip="Proposes the new prompts."),
                rewrites_input(4, "M: rewritten prompts per step, besides the original. Cost grows in proportion."),
                *rewriting_inputs(20),
                io.Int.Input(
                    "particles",
                    default=1,
                    min=1,
                    max=256,
                    optional=True,
                    tooltip="N: candidates, each from its own noise. The best finished image is kept.",
                ),
                io.Boolean.Input(
                    "keep_winner",
                    default=True,
                    optional=True,
                    tooltip="Let the prompt that won last compete again, instead of one new rewrite.",
                ),
                io.Combo.Input(
                    "choice",
                    options=list(CHOICES),
                    default="best",
                    optional=True,
                    tooltip="best: take the highest score. worst: take the lowest, the paper's lower bound.",
                ),
                io.Combo.Input(
                    "after",
                    options=list(AFTER),
                    default="original",
                    optional=True,
                    tooltip="Prompt for the steps after injection_step: the original, or the one that won last.",
                ),
            ],
        )

    @classmethod
    def execute(cls, rewriter, rewrites, clip, injection_step, interval, **optional) -> io.NodeOutput:
        search = TTGen(
            rewriter=rewriter,
            rewrites=rewrites,
            injection_step=injection_step,
            interval=interval,
            **optional,
        )
        return search_output(search, encoder=ClipEncoder(clip))


class AddRewritingNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return search_schema(
            "TestTimeAddRewriting",
            "Add Prompt Rewriting",
            "Adds prompt rewriting to a search, at no extra model calls: its candidates take turns with the original "
            "prompt and the rewrites, and the search picks as usual. For SVDD, SMC, FK Steering and others that "
            "branch or resample.",
            [
                SearchType.Input("search", tooltip="Any search method that does not follow gradients."),
                RewriterType.Input("rewriter", tooltip="Proposes the new prompts."),
                rewrites_input(3, "M: rewritten prompts per candidate. With M + 1 continuations each prompt gets one."),
                *rewriting_inputs(10),
            ],
            category=MODIFIER_CATEGORY,
        )

    @classmethod
    def execute(
        cls,
        search,
        rewriter,
        rewrites,
        clip,
        injection_step,
        interval,
        start_step=1,
        keep_original=True,
        patience=3,
    ) -> io.NodeOutput:
        if search is None:
            raise SearchError("search is missing: connect a method node, e.g. SVDD")
        rounds = Rounds(start_step, injection_step, interval, patience)
        rewriting = Rewriting(rewriter, rewrites, rounds, keep_original)
        return search_output(search, rewriting=rewriting, encoder=ClipEncoder(clip))


NODES = [TTGenNode, AddRewritingNode]
