"""From a workflow file and assignments to what a server's queue takes, without asking the server anything."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from .check import check_known_nodes, check_links, check_values
from .convert import Origin, origins_in, to_api
from .dynamic_prompts import drawn_by
from .old_nodes import renewed, renewed_ui
from .widgets import UPLOADS
from .workflow import apply_assignments, input_specs, is_ui_format

logger = logging.getLogger("testtime")


def checked_prompt(
    workflow: dict, assignments: Sequence[str], object_info: dict, version: str = "", prompt_seed: int = 0
) -> dict:
    """An API-format copy of a workflow of either format: converted, checked, with ``NODE.INPUT=VALUE`` applied.

    Args:
        workflow: as ``read_workflow`` gives it. assignments: applied in order.
        object_info: definitions of the server's nodes. version: of the server, for messages.
        prompt_seed: draws the choices of dynamic prompts, which only UI-format files have.

    Raises:
        BadInput: naming what is wrong.
    """
    origins: dict[str, Origin] = {}
    workflow, told = (renewed_ui if is_ui_format(workflow) else renewed)(workflow)
    for sentence in told:
        logger.info("%s", sentence)
    if is_ui_format(workflow):
        origins = origins_in(workflow)
        workflow = to_api(workflow, object_info, drawn_by(prompt_seed))
    check_known_nodes(workflow, object_info, origins, version)
    check_links(workflow, object_info)
    workflow = apply_assignments(workflow, assignments, object_info)
    check_values(workflow, object_info)
    return workflow


def uploads_in(workflow: dict, object_info: dict) -> Iterator[tuple[str, str, str]]:
    """(node id, input, path) of every ``@FILE`` that is to be sent to the server."""
    for node_id, node in workflow.items():
        for name, spec in input_specs(object_info[node["class_type"]]).items():
            value = node["inputs"].get(name)
            options = spec[1] if len(spec) > 1 else {}
            if isinstance(value, str) and value.startswith("@") and any(options.get(key) for key in UPLOADS):
                yield node_id, name, value[1:]
