"""``Use Workers``: one search over several ComfyUIs."""

from __future__ import annotations

from comfy_api.latest import io

from .host.workers import PLACES, HostWorkers
from .method_inputs import MODIFIER_CATEGORY, search_output
from .types import SearchType


class UseWorkersNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTimeUseWorkers",
            display_name="Use Workers",
            category=MODIFIER_CATEGORY,
            description="Shares one search out to several ComfyUIs in the background, so that it ends sooner. Each "
            "loads the same models. The result does not depend on how many there are.",
            is_experimental=True,
            inputs=[
                SearchType.Input("search", tooltip="Any search method."),
                io.Combo.Input(
                    "workers",
                    options=list(PLACES),
                    default=PLACES[0],
                    tooltip="this machine: ComfyUIs that are started here and end after ten minutes without a search. "
                    "Ray cluster: the one that RAY_ADDRESS names where this ComfyUI was started.",
                ),
                io.Int.Input(
                    "count", default=0, min=0, max=1024, tooltip="How many workers. 0 = one per GPU of this machine."
                ),
                io.Int.Input(
                    "rows_per_call",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Candidates that a worker computes at once. 0 = two calls per worker. With the same "
                    "number here, any number of workers gives the same result to the last bit.",
                ),
            ],
            outputs=[SearchType.Output(display_name="search")],
        )

    @classmethod
    def execute(cls, search, workers, count, rows_per_call) -> io.NodeOutput:
        return search_output(search, workers=HostWorkers(workers, count, rows_per_call))


NODES = [UseWorkersNode]
