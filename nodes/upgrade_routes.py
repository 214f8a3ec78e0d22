"""HTTP routes of *Search with this sampler*: what the dialog offers, and the changed workflow. Holds no nodes."""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import Any

from aiohttp import web

import nodes as host

from ..graph.catalogue import Catalogue, as_json
from ..graph.exchange import Wanted
from ..graph.restore import back
from ..graph.upgrade import upgrade
from ..graph.widgets import default_value, has_widget
from ..graph.workflow import input_specs, is_ui_format
from ..installation.errors import BadInput
from .host.audience import server

NODES: list[type] = []
LARGEST = 64 * 2**20


def definitions() -> dict[str, dict]:
    """Definitions of all nodes, as ``/object_info`` gives them."""
    found = {}
    for kind, node in list(host.NODE_CLASS_MAPPINGS.items()):
        try:
            found[kind] = definition(kind, node)
        except Exception:  # noqa: BLE001 - a node of another pack that cannot describe itself; the host leaves it out, too
            continue
    return found


def definition(kind: str, node: type) -> dict:
    """One definition, with what ``graph`` reads of it."""
    if hasattr(node, "GET_NODE_INFO_V1"):
        info = node.GET_NODE_INFO_V1()
    else:
        inputs = node.INPUT_TYPES()
        info = {
            "input": inputs,
            "input_order": {section: list(entries) for section, entries in inputs.items()},
            "output": list(node.RETURN_TYPES),
            "output_name": list(getattr(node, "RETURN_NAMES", node.RETURN_TYPES)),
            "display_name": host.NODE_DISPLAY_NAME_MAPPINGS.get(kind, kind),
            "python_module": getattr(node, "RELATIVE_PYTHON_MODULE", "nodes"),
        }
    return json.loads(json.dumps(info, default=str))


def missing_of(object_info: dict) -> dict[str, str]:
    """Class -> what its own check says about the values that a new node has, for verifiers of this pack."""
    found = {}
    for choice in Catalogue(object_info).verifiers():
        node = host.NODE_CLASS_MAPPINGS[choice.kind]
        check = getattr(node, "validate_inputs", None)
        specs = input_specs(object_info[choice.kind])
        values = {name: default_value(spec) for name, spec in specs.items() if has_widget(spec)}
        if check is None:
            continue
        taken = inspect.signature(check).parameters
        try:
            answer = check(**{name: value for name, value in values.items() if name in taken})
        except Exception as error:  # noqa: BLE001 - whatever keeps a verifier from being checked is what is missing
            answer = f"{type(error).__name__}: {error}"
        if answer is not True:
            found[choice.kind] = str(answer)
    return found


def offered() -> dict[str, Any]:
    """What the dialog shows."""
    object_info = definitions()
    return as_json(Catalogue(object_info, missing_of(object_info)))


def changed(message: dict) -> dict[str, Any]:
    """The workflow after what the dialog asked for. ``BadInput`` with the sentence to show."""
    workflow, where = message.get("workflow"), message.get("node")
    if not isinstance(workflow, dict) or not is_ui_format(workflow) or not isinstance(where, str):
        raise BadInput('send {"workflow": as saved, "node": "SUB-GRAPH/ID", "method": ..., "verifier": ...}')
    object_info = definitions()
    if message.get("back"):
        done = back(workflow, object_info, where)
        return {"workflow": done.workflow, "node": done.node, "notes": done.notes, "prompt_found": True}
    number, seconds = message.get("number"), message.get("seconds") or 0
    wanted = Wanted(str(message.get("method")), str(message.get("verifier")), number, float(seconds))
    result = upgrade(workflow, object_info, where, wanted, Catalogue(object_info, missing_of(object_info)))
    return {
        "workflow": result.workflow,
        "node": result.node,
        "notes": result.notes,
        "prompt": result.prompt,
        "prompt_found": result.prompt_found,
    }


async def options(_: web.Request) -> web.Response:
    """Methods and verifiers."""
    try:
        return web.json_response(await asyncio.to_thread(offered))
    except BadInput as error:
        return web.json_response({"error": str(error)}, status=400)


async def change(request: web.Request) -> web.Response:
    """A workflow with one sampler replaced, or put back."""
    try:
        message = await request.json()
    except ValueError:
        message = None
    try:
        if not isinstance(message, dict):
            raise BadInput("send a JSON object")
        return web.json_response(await asyncio.to_thread(changed, message))
    except (BadInput, TypeError) as error:
        return web.json_response({"error": str(error)}, status=400)


ROUTES = (("GET", "/testtime/upgrade", options), ("POST", "/testtime/upgrade", change))


def register() -> None:
    """Add the routes to the running server; nothing happens without one (tests, library use)."""
    instance = server()
    if instance is not None:
        for method, path, handler in ROUTES:
            instance.routes.route(method, path)(handler)


register()
