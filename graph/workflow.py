"""Read a workflow file, tell its format, and change inputs of an API-format workflow.

API format: ``{node id: {"class_type", "inputs": {name: value or [node id, slot]}, "_meta": {"title"}}}``.
UI format: what the front end saves, ``{"nodes": [...], "links": [...], ...}``; see ``convert.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..installation.errors import BadInput

NUMBER_TYPES = {"INT": int, "FLOAT": float}
BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def read_workflow(path: Path) -> dict:
    """The parsed file. Raises ``BadInput`` unless it is JSON and one of the two workflow formats."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as a text file ({error})") from None
    try:
        workflow = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(
            f"{path} is not JSON (line {error.lineno}, column {error.colno}: {error.msg}). "
            "Expected a workflow saved by ComfyUI: Workflow > Save, or Workflow > Export (API)."
        ) from None
    except RecursionError:
        raise BadInput(f"{path} is nested too deeply to be a ComfyUI workflow") from None
    except ValueError:  # Python refuses numbers of thousands of digits
        raise BadInput(f"{path} has a number that is too long to be a value of a ComfyUI workflow") from None
    if not is_ui_format(workflow) and not is_api_format(workflow):
        raise BadInput(
            f"{path} is JSON but not a ComfyUI workflow: it has neither a list of nodes (UI format) nor nodes with "
            "class_type and inputs (API format)."
        )
    if not is_ui_format(workflow):
        for node in workflow.values():
            node.setdefault("inputs", {})
    return workflow


def is_ui_format(workflow: Any) -> bool:
    """Whether this is what the front end saves."""
    return isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list)


def is_api_format(workflow: Any) -> bool:
    """Whether this is what the server's /prompt route takes."""
    return (
        isinstance(workflow, dict)
        and bool(workflow)
        and all(isinstance(node, dict) and isinstance(node.get("class_type"), str) for node in workflow.values())
        and all(isinstance(node.get("inputs", {}), dict) for node in workflow.values())
    )


def title_of(node: dict, object_info: dict | None = None) -> str:
    """A node's title: the user's, else the display name, else the class."""
    info = (object_info or {}).get(node["class_type"], {})
    return own_title(node) or info.get("display_name") or node["class_type"]


def label_of(node_id: str, node: dict, object_info: dict | None = None) -> str:
    """How messages name a node: id, title and, where it differs, class."""
    title = title_of(node, object_info)
    return f"{node_id} {title}" if title == node["class_type"] else f"{node_id} {title} ({node['class_type']})"


def own_title(node: dict) -> str:
    """The title written in the file, or ""."""
    meta = node.get("_meta")
    return str(meta.get("title") or "") if isinstance(meta, dict) else ""


def find_nodes(workflow: dict, name: str) -> list[str]:
    """Ids of the nodes that ``name`` may mean: an id, else a title, else a class (both ignoring case)."""
    if name in workflow:
        return [name]
    wanted = name.casefold()
    by_title = [key for key, node in workflow.items() if own_title(node).casefold() == wanted]
    return by_title or [key for key, node in workflow.items() if node["class_type"].casefold() == wanted]


def names_of_nodes(workflow: dict) -> list[str]:
    """Everything that --set may call a node, without repetition: ids, titles, classes."""
    named = ((key, own_title(node), node["class_type"]) for key, node in workflow.items())
    return list(dict.fromkeys(name for names in named for name in names if name))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence with the names that are spelled like ``name``, "" when there are none."""
    by_lower = {candidate.casefold(): candidate for candidate in known}
    near = [by_lower[match] for match in get_close_matches(name.casefold(), by_lower, n=3, cutoff=0.6)]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def describe_nodes(workflow: dict, object_info: dict | None = None) -> str:
    """One line per node, with the inputs that --set can change."""
    lines = []
    for node_id, node in workflow.items():
        names = [name for name, value in node["inputs"].items() if not is_link(value)]
        lines.append(f"  {label_of(node_id, node, object_info)}: {', '.join(names) or '(no values)'}")
    return "\n".join(lines)


def is_link(value: Any) -> bool:
    """Whether an API-format input is a link to another node's output."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def parse_assignment(text: str) -> tuple[str, str, str]:
    """``NODE.INPUT=VALUE`` -> its three parts. The node may contain dots, the value anything."""
    target, equals, value = text.partition("=")
    node, dot, name = target.rpartition(".")
    if not equals or not dot or not node.strip() or not name.strip():
        raise BadInput(f"--set {text}: expected NODE.INPUT=VALUE, for example --set KSampler.seed=7")
    return node.strip(), name.strip(), value


def input_specs(info: dict) -> dict[str, list]:
    """All input specifications of a node class by name, required before optional."""
    sections = info.get("input", {})
    return {**sections.get("required", {}), **sections.get("optional", {})}


def parse_value(text: str, spec: list | tuple | None, where: str) -> Any:
    """``text`` as the type an input wants. Ranges are left to the server, which knows them best."""
    kind = spec[0] if spec else "STRING"
    if isinstance(kind, list) or kind == "COMBO":
        options = kind if isinstance(kind, list) else (spec[1] if len(spec) > 1 else {}).get("options", [])
        matches = [option for option in options if str(option) == text]
        return matches[0] if matches else text
    if kind in NUMBER_TYPES:
        try:
            return NUMBER_TYPES[kind](text)
        except ValueError:
            wanted = "a whole number" if kind == "INT" else "a number"
            raise BadInput(f"{where}={text}: expected {wanted}") from None
    if kind == "BOOLEAN":
        if text.strip().lower() not in BOOLEANS:
            raise BadInput(f"{where}={text}: expected true or false")
        return BOOLEANS[text.strip().lower()]
    if kind == "STRING":
        return text
    raise BadInput(f"{where}: this input is a {kind} socket, which takes a link and no value")


def apply_assignments(workflow: dict, assignments: Iterable[str], object_info: dict) -> dict:
    """A copy of an API workflow with ``NODE.INPUT=VALUE`` applied. Raises ``BadInput`` naming the candidates."""
    changed = {key: {**node, "inputs": dict(node["inputs"])} for key, node in workflow.items()}
    for assignment in assignments:
        name, input_name, text = parse_assignment(assignment)
        found = find_nodes(changed, name)
        if len(found) != 1:
            what = "no node has that id, title or class" if not found else f"means several nodes: {', '.join(found)}"
            near = "" if found else did_you_mean(name, names_of_nodes(changed))
            listed = describe_nodes(changed, object_info)
            raise BadInput(f"--set {assignment}: {name!r}: {what}.{near} Nodes:\n{listed}")
        node = changed[found[0]]
        specs = input_specs(object_info.get(node["class_type"], {}))
        if input_name not in specs and input_name not in node["inputs"]:
            raise BadInput(
                f"--set {assignment}: {label_of(found[0], node, object_info)} has no input {input_name!r}."
                f"{did_you_mean(input_name, specs)} Inputs: {', '.join(specs) or 'none'}"
            )
        node["inputs"][input_name] = parse_value(text, specs.get(input_name), f"--set {name}.{input_name}")
    return changed
