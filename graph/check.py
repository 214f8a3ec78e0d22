"""Look a workflow over before it is queued: nodes, links and values against the server's definitions."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from ..installation.errors import BadInput
from .convert import EXPORT_HINT, Origin
from .virtual import is_browser_only
from .widgets import DYNAMIC_COMBO, UPLOADS, choices_of, chosen_inputs, has_widget, is_combo, options_of, ordered_inputs
from .workflow import did_you_mean, is_link, label_of

logger = logging.getLogger("testtime")

OWN_PREFIX = "TestTime"
OWN_PACK = "test-time-scaling"
CORE = "comfy-core"
LISTED = 12
"""Choices that a message lists, and nodes that it lists ids of."""
# What may be a file that the server knows and its list does not show: the server decides about those.
LIKE_A_FILE = re.compile(r"[\\/.]| \[")


def check_known_nodes(
    workflow: dict, object_info: dict, origins: Mapping[str, Origin] | None = None, server_version: str = ""
) -> None:
    """Raise ``BadInput`` listing every class the server does not know, each with what to do about it.

    Args:
        workflow: API format.
        object_info: the server's definitions.
        origins: class -> pack and version that the file names.
        server_version: of the ComfyUI that was asked, "" if it does not say.
    """
    unknown: dict[str, list[str]] = {}
    for node_id, node in workflow.items():
        if node["class_type"] not in object_info:
            unknown.setdefault(node["class_type"], []).append(node_id)
    if not unknown:
        return
    lines = []
    for class_type, ids in sorted(unknown.items()):
        told = ", ".join(ids[:LISTED]) + (f" and {len(ids) - LISTED} more" if len(ids) > LISTED else "")
        advice = _advice(class_type, (origins or {}).get(class_type), object_info, server_version)
        lines.append(f"  {class_type[:100]} (node {told}): {advice}")
    more = [f"  and {len(lines) - 30} more"] if len(lines) > 30 else []
    raise BadInput("\n".join(["The server does not know these nodes:", *lines[:30], *more]))


def installed_packs(object_info: dict) -> set[str]:
    """Names of the folders in custom_nodes that the server has nodes of, in lower case."""
    modules = (str(info.get("python_module", "")) for info in object_info.values() if isinstance(info, dict))
    return {module.split(".")[1].lower() for module in modules if module.startswith("custom_nodes.")}


def _advice(class_type: str, origin: Origin | None, object_info: dict, server_version: str) -> str:
    saved = f" (saved with version {origin.version})" if origin and origin.version else ""
    if class_type.startswith(OWN_PREFIX) or (origin and origin.pack == OWN_PACK):
        if any(name.startswith(OWN_PREFIX) for name in object_info):
            return f"this pack is installed there, in a version without this node: update it{saved}"
        return "of Test-Time Scaling (this pack), which that ComfyUI has not loaded; its log says whether it failed"
    if is_browser_only(class_type):
        return f"it lives in the browser only. {EXPORT_HINT}"
    if origin is None:
        return "the file does not say which pack it is from; ComfyUI's manager can search for it"
    if origin.pack == CORE:
        this = f", this is {server_version}" if server_version else ""
        written = f" It was saved with {origin.version}{this}." if origin.version else ""
        return f"part of ComfyUI itself: update ComfyUI.{written}"
    folder = origin.pack.split("/")[-1].lower()
    if folder in installed_packs(object_info):
        return f"the pack {origin.pack} is installed there, without this node: update it{saved}"
    return f"install the pack {origin.pack}{saved}"


def check_links(workflow: dict, object_info: dict) -> None:
    """Raise ``BadInput`` for a link to a node that is not there, and for nodes that wait in a circle."""
    sources: dict[str, list[str]] = {key: [] for key in workflow}
    for key, node in workflow.items():
        for name, value in node["inputs"].items():
            if not is_link(value):
                continue
            origin = value[0]
            if origin not in workflow:
                where = f"{label_of(key, node, object_info)}: input {name!r}"
                raise BadInput(f"{where} is linked to node {origin}, which is not in the workflow")
            sources[key].append(origin)
    try:
        TopologicalSorter(sources).prepare()
    except CycleError as error:
        circle = " -> ".join(label_of(key, workflow[key], object_info) for key in error.args[1])
        raise BadInput(f"these nodes wait for each other: {circle}") from None


def check_values(workflow: dict, object_info: dict) -> None:
    """Raise ``BadInput`` listing every widget whose value the node would silently take for another one.

    ComfyUI itself looks at ranges and at most drop-downs. Not all versions look at V3 drop-downs; none minds a text for
    a switch (any text is true), a fraction for a whole number, or the name of an input that the node does not have.
    Old drop-downs it does look at, unless a node says that it knows better (some fill them in the browser): of those
    only values that are spelled like a choice are refused here, since then the choice can be named.
    """
    faults = []
    for key, node in workflow.items():
        info = object_info.get(node["class_type"])
        if info is None:
            continue
        label = label_of(key, node, object_info)
        specs = specs_of(info, node["inputs"])
        for name, value in node["inputs"].items():
            if name not in specs:
                near = did_you_mean(name, specs)
                if near:
                    logger.warning("%s has no input %r, it is ignored.%s", label, name, near)
                continue
            fault = _fault(name, value, specs[name])
            if fault:
                faults.append(f"  {label}: {fault}")
    if faults:
        more = [f"  and {len(faults) - 30} more"] if len(faults) > 30 else []
        raise BadInput("\n".join(["These values are not what their nodes take:", *faults[:30], *more]))


def specs_of(info: dict, inputs: Mapping[str, Any]) -> dict[str, list]:
    """Input name -> specification, with the inputs of the chosen options of dynamic combos."""
    found: dict[str, list] = {}

    def add(specs: Mapping[str, list], prefix: str, depth: int) -> None:
        for short, spec in specs.items():
            name = prefix + short
            found[name] = spec
            if spec and spec[0] == DYNAMIC_COMBO and depth < 16:
                add(chosen_inputs(spec, inputs.get(name)), f"{name}.", depth + 1)

    add(ordered_inputs(info), "", 0)
    return found


def _fault(name: str, value: Any, spec: list) -> str | None:
    """What is wrong with the value of a widget; None for links, and for what only the server can tell."""
    if isinstance(value, dict) and set(value) == {"__value__"}:
        value = value["__value__"]
    elif is_link(value):
        return None
    if not has_widget(spec):
        return None
    shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    kind, options = spec[0], options_of(spec)
    if kind == "BOOLEAN" and not isinstance(value, bool) and value not in (0, 1):
        return f"{name} is {shown}: true or false is needed"
    if kind in ("INT", "FLOAT"):
        return _number_fault(name, value, kind, shown)
    if is_combo(spec) or kind == DYNAMIC_COMBO:
        if options.get("remote") or any(options.get(key) for key in UPLOADS):
            return None
        choices = choices_of(spec)
        wrong = [v for v in (value if isinstance(value, list) and options.get("multiselect") else [value])
                 if v not in choices and not LIKE_A_FILE.search(str(v))]  # fmt: skip
        looked_at_later = isinstance(kind, list) and not (
            wrong and did_you_mean(str(wrong[0])[:200], map(str, choices))
        )
        if wrong and choices and not looked_at_later:
            return f"{name} is {shown}: {_choose_one(wrong[0], choices)}"
    return None


def _number_fault(name: str, value: Any, kind: str, shown: str) -> str | None:
    wanted = "a whole number" if kind == "INT" else "a number"
    try:
        number = float(value)
        whole = kind == "FLOAT" or int(value) == number
    except (TypeError, ValueError, OverflowError):
        return f"{name} is {shown}: {wanted} is needed"
    return None if whole else f"{name} is {shown}: {wanted} is needed"


def _choose_one(value: Any, choices: list) -> str:
    near = did_you_mean(str(value), map(str, choices)) if len(str(value)) <= 200 else ""
    listed = ", ".join(map(str, choices[:LISTED])) + (f", ... ({len(choices)} in all)" * (len(choices) > LISTED))
    return f"choose one of {listed}.{near}"
