"""``Recover Search``: what a cancelled, failed or killed (or the latest) search had found."""

from __future__ import annotations

from comfy_api.latest import io

from ..samplers.protocols import SearchError
from .host.journals import left_behind, newest_journal
from .host.results import HostResult, store
from .types import CATEGORY, ScoresType, TraceType

LAST_STOPPED = "last stopped"
LAST = "last of any kind"


def found(which: str) -> HostResult | None:
    """The search that ``which`` means: of this server, or of an earlier one from its journal."""
    store.settle()
    result = store.last_stopped() if which == LAST_STOPPED else store.latest()
    return result or left_behind(stopped=which == LAST_STOPPED)


class RecoverSearchNode(io.ComfyNode):
    """Outputs of an earlier search, kept until a few newer ones replace it; after a crash from its journal."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeRecoverSearch",
            display_name="Recover Search",
            category=f"{CATEGORY}/trace",
            description="Returns the best results of the last cancelled, failed or crashed search. Also returns the "
            "finalists and the trace of a search that ran through SamplerCustomAdvanced.",
            inputs=[
                io.Combo.Input(
                    "which",
                    options=[LAST_STOPPED, LAST],
                    default=LAST_STOPPED,
                    tooltip="The last search that did not finish (cancelled, failed, crashed, also while decoding or "
                    "saving), or simply the last search.",
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
        result = store.last_stopped() if which == LAST_STOPPED else store.latest()
        return f"{store.revision} {store.place_of(result)} {newest_journal()}"

    @classmethod
    def execute(cls, which) -> io.NodeOutput:
        result = found(which)
        if result is None:
            what = "was cut off" if which == LAST_STOPPED else "ran"
            raise SearchError(f"no search {what} since ComfyUI started, nor left a journal: nothing is to recover")
        return io.NodeOutput({"samples": result.best}, {"samples": result.finalists}, result.scores, result.trace)


NODES = [RecoverSearchNode]
