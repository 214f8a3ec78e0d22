"""``Recover Search``: what a cancelled (or the latest) search had found."""

from __future__ import annotations

from comfy_api.latest import io

from ..samplers.protocols import SearchError
from .host.results import HostResult, store
from .types import CATEGORY, ScoresType, TraceType

LAST_STOPPED = "last stopped"
LAST = "last of any kind"


class RecoverSearchNode(io.ComfyNode):
    """Outputs of an earlier search in this server, kept until a few newer ones replace it."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeRecoverSearch",
            display_name="Recover Search",
            category=CATEGORY,
            description="Gives what the last cancelled search had found: nothing that was computed is lost. Also gives "
            "the finalists and the trace of a search that ran through SamplerCustomAdvanced.",
            inputs=[
                io.Combo.Input(
                    "which",
                    options=[LAST_STOPPED, LAST],
                    default=LAST_STOPPED,
                    tooltip="The last search that was cancelled, or the last one whatever became of it.",
                )
            ],
            outputs=[
                io.Latent.Output(display_name="best"),
                io.Latent.Output(display_name="finalists"),
                ScoresType.Output(display_name="scores"),
                TraceType.Output(display_name="trace"),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, which):
        return store.revision

    @classmethod
    def execute(cls, which) -> io.NodeOutput:
        result: HostResult | None = store.latest("interrupted" if which == LAST_STOPPED else None)
        if result is None:
            what = "was cancelled" if which == LAST_STOPPED else "ran"
            raise SearchError(f"no search {what} since ComfyUI started: there is nothing to recover")
        return io.NodeOutput({"samples": result.best}, {"samples": result.finalists}, result.scores, result.trace)


NODES = [RecoverSearchNode]
