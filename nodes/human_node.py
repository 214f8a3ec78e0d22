"""``Pick by Hand``: pick by hand, in the panel, at chosen steps of a search."""

from __future__ import annotations

from comfy_api.latest import io

from ..verifiers.human import HumanVerifier, parse_marks
from .host.asking import desk
from .types import VERIFIER_CATEGORY, VerifierType


class PickByHandNode(io.ComfyNode):
    """A verifier that asks the person at the panel."""

    differentiable = False  # see guidance_check

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimePickByHand",
            display_name="Pick by Hand",
            category=VERIFIER_CATEGORY,
            description="Pauses the search at chosen steps and shows the candidates in the Search panel: pick the "
            "ones you like in order, drop the ones you don't. Runs that nobody watches (API, scripts) never wait.",
            inputs=[
                VerifierType.Input(
                    "fallback",
                    tooltip="Scores all other steps, and whenever nobody answers. Your ranking is expressed in this "
                    "verifier's scores.",
                ),
                io.String.Input(
                    "ask_at",
                    default="50%, end",
                    tooltip="When to ask, in percent of the steps; `end` = the finished images. If the method scores "
                    "nothing there, it asks the next time it does.",
                ),
                io.Float.Input(
                    "seconds",
                    default=120.0,
                    min=1.0,
                    max=86_400.0,
                    step=1.0,
                    tooltip="Seconds to wait for an answer. After that, fallback decides; queue the workflow again "
                    "to be asked again. Waiting does not count against time limits.",
                ),
            ],
            outputs=[VerifierType.Output(display_name="verifier")],
        )

    @classmethod
    def validate_inputs(cls, ask_at=None):
        if ask_at is None:
            return True
        try:
            parse_marks(ask_at)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, fallback=None, ask_at=None, seconds=None):  # noqa: ARG003 - passed by the host
        """A question that nobody answered in time is asked again when the workflow is queued again."""
        return desk.unanswered

    @classmethod
    def execute(cls, fallback, ask_at, seconds) -> io.NodeOutput:
        return io.NodeOutput(HumanVerifier(fallback, lambda question: desk.ask(question, seconds), parse_marks(ask_at)))


NODES = [PickByHandNode]
