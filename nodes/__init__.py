"""ComfyUI nodes. The only folder that imports ``comfy``, ``comfy_api``, ``folder_paths`` and ``server``."""

from __future__ import annotations

import importlib
import logging

log = logging.getLogger("testtime")

# Modules that each hold a list ``NODES``; one that cannot be imported takes only its own nodes out of the menu.
MODULES = (
    "old_nodes",
    "method_nodes",
    "flow_method_nodes",
    "noise_method_nodes",
    "ttgen_nodes",
    "rewriter_nodes",
    "value_nodes",
    "budget_node",
    "tournament_node",
    "workers_node",
    "tts_var_node",
    "extractor_nodes",
    "search_ksampler",
    "search_sampler",
    "infinity_nodes",
    "infinity_sampler",
    "replay_node",
    "recover_node",
    "family_nodes",
    "score_images_node",
    "clip_score_node",
    "verifier_nodes",
    "reward_nodes",
    "judge_nodes",
    "edit_nodes",
    "refine_node",
    "object_nodes",
    "human_node",
    "video_nodes",
    "hps_v3_node",
    "video_reward_node",
    "compare_nodes",
    "report_nodes",
    "trace_nodes",
    "guidance_check",
    "live_routes",
    "worker_routes",
    "upgrade_routes",
)


def collect_nodes() -> list[type]:
    """All node classes of the pack, in menu order, with drop-downs that are checked (see ``choices``).

    Modules that fail to import are logged by name and left out.
    """
    from .choices import checked
    from .menu import described, place

    found = []
    for name in MODULES:
        try:
            module = importlib.import_module(f".{name}", __name__)
        except Exception as error:  # noqa: BLE001 - whatever a dependency raises, the other nodes must still load
            log.error("nodes of %s are missing: %s: %s", name, type(error).__name__, error)
            continue
        found.extend(described(checked(node)) for node in module.NODES)
    return sorted(found, key=place)


async def comfy_entrypoint():
    """The ``ComfyExtension`` of the pack.

    Raises RuntimeError, in one line, on a ComfyUI that is too old, and where another copy of the pack is loaded.
    """
    from .host.compat import check_host_version, check_single_copy

    check_host_version()
    check_single_copy()
    from comfy_api.latest import ComfyExtension

    from . import old_nodes

    class TestTimeExtension(ComfyExtension):
        async def get_node_list(self) -> list[type]:
            nodes = collect_nodes()
            await old_nodes.tell_host(nodes)
            return nodes

    return TestTimeExtension()
