"""``Tournament``: the best finished images are compared two at a time."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..samplers.plan import as_plan
from ..samplers.tournament import Tournament
from .method_inputs import MODIFIER_CATEGORY, search_output
from .types import SearchType, VerifierType


class TournamentNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeTournament",
            display_name="Tournament",
            category=MODIFIER_CATEGORY,
            description="After the search, shows a vision-language model the best images two at a time, in both "
            "orders, and hands out the winner. Grades of one image often tie at the top; comparisons do not.",
            inputs=[
                SearchType.Input("search", tooltip="Any search method."),
                VerifierType.Input(
                    "judge",
                    tooltip="VLM Verifier, local or endpoint. The search itself may use another verifier.",
                ),
                io.Int.Input(
                    "finalists",
                    default=4,
                    min=2,
                    max=16,
                    tooltip="Images that take part, the best by score. 4 are 12 comparisons, 8 are 56.",
                ),
            ],
            outputs=[SearchType.Output(display_name="search")],
        )

    @classmethod
    def execute(cls, search, judge, finalists) -> io.NodeOutput:
        plan = as_plan(search)
        return search_output(replace(plan, tournament=Tournament(judge, finalists)))


NODES = [TournamentNode]
