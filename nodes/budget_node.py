"""``Fit to Budget``: particles and steps of a search from what it may cost."""

from __future__ import annotations

from comfy_api.latest import io

from ..samplers.budget import STEPS, Budget
from .method_inputs import MODIFIER_CATEGORY, search_output
from .types import SearchType


class FitToBudgetNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeFitToBudget",
            display_name="Fit to Budget",
            category=MODIFIER_CATEGORY,
            description="Picks as many particles as a budget allows, and fewer steps if needed. Overrides the "
            "particles (candidates, beams, rounds) of the method node.",
            inputs=[
                SearchType.Input("search", tooltip="Any search method, with or without Set SDE."),
                io.Int.Input(
                    "nfe",
                    default=500,
                    min=0,
                    max=10_000_000,
                    tooltip="Forward passes of the model per image; under CFG a step costs two. 0 = no limit.",
                ),
                io.Float.Input(
                    "seconds",
                    default=0.0,
                    min=0.0,
                    max=1_000_000.0,
                    step=1.0,
                    tooltip="Seconds for all images together, measured on this machine before the search begins. "
                    "0 = no limit.",
                ),
                io.Combo.Input(
                    "steps",
                    options=list(STEPS),
                    default=STEPS[0],
                    tooltip="may be fewer: down to half of the sampler's steps if the budget is too small for enough "
                    "particles. keep: the sampler's steps.",
                ),
                io.Int.Input(
                    "least",
                    default=4,
                    min=1,
                    max=1024,
                    tooltip="Use fewer steps rather than fewer particles than this.",
                ),
            ],
            outputs=[SearchType.Output(display_name="search")],
        )

    @classmethod
    def validate_inputs(cls, nfe=None, seconds=None):
        for name, value in (("nfe", nfe), ("seconds", seconds)):
            if value is not None and value < 0:
                return f"{name} is {value}: it must be >= 0 (0 = no limit)"
        if nfe == 0 and seconds == 0:
            return "nfe and seconds are both 0: give the forward passes per image, or seconds"
        return True

    @classmethod
    def execute(cls, search, nfe, seconds, steps, least) -> io.NodeOutput:
        return search_output(search, budget=Budget(nfe, seconds, steps, least))


NODES = [FitToBudgetNode]
