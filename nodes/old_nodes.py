"""Old ids of nodes inside ComfyUI: queued workflows are brought up to date. Holds no nodes.

What is loaded in the browser is renewed there (``web/old_nodes.js``). What comes through the API is renewed when the
server receives it; a host with node replacements is told the same table, for its own dialogs.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from ..graph.old_nodes import REPLACEMENTS, Replacement, renewed

NODES: list[type] = []
log = logging.getLogger("testtime")


def renew(request: dict[str, Any]) -> dict[str, Any]:
    """Server hook: the request with the nodes of today."""
    graph = request.get("prompt")
    if not isinstance(graph, dict):
        return request
    made, told = renewed(graph)
    for sentence in told:
        log.info("%s", sentence)
    return request if made is graph else {**request, "prompt": made}


def mapping_of(row: Replacement, inputs: list[str]) -> list[dict[str, Any]]:
    """A row as node replacements of the host say it, for a new node with these inputs."""
    back = {new: old for old, new in row.inputs.items()}
    return [
        {"new_id": name, "set_value": row.values[name]} if name in row.values else
        {"new_id": name, "old_id": back.get(name, name)}
        for name in inputs
        if row.new_widgets is None or name in (*row.new_widgets, "images", "verifier")
    ]  # fmt: skip


async def tell_host(nodes: list[type]) -> None:
    """Register the table as node replacements where the host has them."""
    import comfy_api.latest as latest

    if not hasattr(latest.io, "NodeReplace"):
        return
    schemas = {schema.node_id: schema for schema in (node.define_schema() for node in nodes)}
    registry = latest.ComfyAPI().node_replacement
    for row in REPLACEMENTS:
        if row.new in schemas:
            await registry.register(
                latest.io.NodeReplace(
                    new_node_id=row.new,
                    old_node_id=row.old,
                    old_widget_ids=list(row.old_widgets) if row.old_widgets else None,
                    input_mapping=mapping_of(row, [entry.id for entry in schemas[row.new].inputs or ()]),
                    output_mapping=[
                        {"new_idx": row.outputs.get(slot, slot), "old_idx": slot}
                        for slot in range(max(row.outputs) + 1)
                    ]
                    if row.outputs
                    else None,
                )
            )


def register() -> None:
    """Ask the running server for its workflows; nothing happens without one (tests, library use)."""
    instance = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if instance is not None and hasattr(instance, "add_on_prompt_handler"):
        instance.add_on_prompt_handler(renew)


register()
