"""The prompt and the node that execute now, as the running server knows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
from comfy_execution.utils import get_executing_context

import nodes as host

from ...samplers.protocols import SearchError
from ...scale.rows.comfyui import worker_prompt
from .audience import server


def running_prompt() -> tuple[str, str, dict[str, Any]]:
    """(id of the prompt, id of the node, the prompt in API format).

    Raises:
        SearchError: no server, or a node that the prompt does not name, so that a worker could not find it.
    """
    context, running = get_executing_context(), server()
    if context is None or running is None:
        raise SearchError("workers share out the search of a running ComfyUI: there is none here")
    for item in running.prompt_queue.get_current_queue()[0]:
        if item[1] == context.prompt_id:
            prompt, node = item[2], str(context.node_id)
            if node not in prompt:
                raise SearchError(
                    f"this search runs inside a loop or a node that makes others (as node {node}): its workers could "
                    f"not find it, so take Use Workers out"
                )
            return context.prompt_id, node, prompt
    raise SearchError("workers share out the search of a queued workflow: this one was not queued")


def upstream(prompt: Mapping[str, Any], node: str) -> dict[str, Any]:
    """The part of a prompt that workers execute, see ``worker_prompt``.

    Raises:
        SearchError: naming a node in it that does more than compute: every worker would do it again.
    """
    wanted = worker_prompt(prompt, node)
    for key in wanted:
        if key == node or key not in prompt:
            continue
        name = prompt[key]["class_type"]
        kind = host.NODE_CLASS_MAPPINGS.get(name)
        title = prompt[key].get("_meta", {}).get("title") or name
        for mark, does in (("OUTPUT_NODE", "saves or shows something"), ("API_NODE", "calls a paid service")):
            if getattr(kind, mark, False):
                raise SearchError(
                    f"node {key} ({title}) {does}, and every worker would do so again: put it behind the search"
                )
    return wanted


def model_files(prompt: Mapping[str, Any]) -> list[Path]:
    """Files of the host's model folders that the nodes of a prompt name, each once."""
    names = {
        value
        for node in prompt.values()
        for value in node["inputs"].values()
        if isinstance(value, str) and Path(value).suffix.lower() in folder_paths.supported_pt_extensions
    }
    found = {}
    for name in sorted(names):
        for category in folder_paths.folder_names_and_paths:
            path = folder_paths.get_full_path(category, name)
            if path is not None and Path(path).is_file():
                found[str(path)] = Path(path)
    return list(found.values())
