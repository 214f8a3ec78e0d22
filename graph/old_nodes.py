"""Nodes that were renamed or merged: old id -> the node of today, for workflow files of either format.

``testtime run``, the server (for what is queued through its API) and the browser (``web/old_nodes.json``, made from
this table by ``tools/build_schema.py``) read the same rows; newer hosts are told them as node replacements, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any

SAME = None
"""Widgets as they were: only the id (and possibly an input's name) is another one."""


@dataclass(frozen=True)
class Replacement:
    """What an old node is today.

    Attributes:
        old, new: ids. name: what the new node is called in the menu.
        inputs: old input -> new input, of those that are called otherwise.
        values: what inputs that the old node did not have are set to.
        outputs: old output -> new output, of those that lie elsewhere.
        old_widgets, new_widgets: names in the order in which UI files keep their values; ``SAME``.
    """

    old: str
    new: str
    name: str
    inputs: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    outputs: dict[int, int] = field(default_factory=dict)
    old_widgets: tuple[str, ...] | None = SAME
    new_widgets: tuple[str, ...] | None = SAME

    @property
    def sentence(self) -> str:
        """What a person is told."""
        set_to = ", ".join(f"{name} {value}" for name, value in self.values.items() if isinstance(value, str))
        return f"{self.old} is now {self.name} ({self.new})" + (f" with {set_to}" if set_to else "")


_FK = ("particles", "alpha", "alpha_mode")
_WINDOW = ("start", "end", "every", "resampling")
_VLM = ("model", "rubric", "axis", "on_failure", "longest", "normalise")
_YES_NO = {"rubric": "yes_no", "axis": "default", "on_failure": "skip"}
_AESTHETIC = ("tower", "head", "precision")

REPLACEMENTS = (
    Replacement("TestTimeObjects", "TestTimeGenEval", "GenEval Object Verifier", {"clip": "colours"}),
    Replacement("TestTimeReprompted", "TestTimeAddRewriting", "Add Prompt Rewriting"),
    Replacement("TestTimeStochasticPath", "TestTimeSetSDE", "Set SDE"),
    Replacement("TestTimeSearchBudget", "TestTimeFitToBudget", "Fit to Budget"),
    Replacement("TestTimeHumanVerifier", "TestTimePickByHand", "Pick by Hand"),
    Replacement("TestTimeReplayParticle", "TestTimeRerenderParticle", "Re-render Particle"),
    Replacement("TestTimeEndpointJudge", "TestTimeVLMEndpoint", "VLM Verifier (endpoint)"),
    Replacement("TestTimeDINOv2Features", "TestTimeLoadFeatures", "Load Image Features"),
    Replacement("TestTimeInceptionFeatures", "TestTimeLoadFeatures", "Load Image Features"),
    Replacement(
        "TestTimeImportanceSampling", "TestTimeFKSteering", "FK Steering", values={"potential": "rt"},
        old_widgets=(*_FK, *_WINDOW), new_widgets=(*_FK, "potential", *_WINDOW),
    ),
    Replacement(
        "TestTimeLAIONAesthetic", "TestTimeAesthetic", "Aesthetic Verifier", {"clip": "tower"},
        old_widgets=("clip", "head", "precision"), new_widgets=_AESTHETIC,
    ),
    Replacement(
        "TestTimeAestheticV25", "TestTimeAesthetic", "Aesthetic Verifier", {"siglip": "tower"},
        old_widgets=("siglip", "head", "precision"), new_widgets=_AESTHETIC,
    ),
    Replacement(
        "TestTimeVQAScore", "TestTimeVLM", "VLM Verifier", values=_YES_NO,
        old_widgets=("model", "normalise", "longest"), new_widgets=_VLM,
    ),
    Replacement(
        "TestTimeFlanT5VQAScore", "TestTimeVLM", "VLM Verifier", values={**_YES_NO, "longest": 768, "normalise": False},
        old_widgets=("model",), new_widgets=_VLM,
    ),
    Replacement(
        "TestTimeVLMJudge", "TestTimeVLM", "VLM Verifier", values={"normalise": False},
        old_widgets=_VLM[:-1], new_widgets=_VLM,
    ),
    Replacement(
        "TestTimeRankImages", "TestTimeScoreImages", "Score Images", values={"order": "best first"},
        outputs={1: 4, 2: 5}, old_widgets=("prompt", "keep"), new_widgets=("prompt", "keep", "order"),
    ),
)  # fmt: skip
OLD_NODES: Mapping[str, Replacement] = {row.old: row for row in REPLACEMENTS}


def as_json() -> dict[str, Any]:
    """The table for the browser."""
    return {row.old: {**asdict(row), "sentence": row.sentence} for row in REPLACEMENTS}


def renewed(workflow: dict) -> tuple[dict, list[str]]:
    """(an API-format workflow with the nodes of today, sentences about what was changed); itself where nothing is old.

    Entries that are no nodes stay as they are: the server says what is wrong with them.
    """
    old = {key: OLD_NODES[node["class_type"]] for key, node in workflow.items() if _is_old(node, "class_type")}
    if not old:
        return workflow, []
    made = deepcopy(workflow)
    for key, row in old.items():
        node = made[key]
        inputs = {row.inputs.get(name, name): value for name, value in node.get("inputs", {}).items()}
        node |= {"class_type": row.new, "inputs": {**row.values, **inputs}}
    for node in made.values():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        for name, value in (inputs if isinstance(inputs, dict) else {}).items():
            if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in old:
                inputs[name] = [value[0], old[value[0]].outputs.get(value[1], value[1])]
    return made, [f"node {key}: {row.sentence}" for key, row in old.items()]


def renewed_ui(workflow: dict) -> tuple[dict, list[str]]:
    """The same for a workflow as the front end saves it, subgraphs included."""
    told: list[str] = []
    if not any(True for graph in _graphs(workflow) for node in graph["nodes"] if _is_old(node, "type")):
        return workflow, told
    made = deepcopy(workflow)
    for graph in _graphs(made):
        old = {node.get("id"): OLD_NODES[node["type"]] for node in graph["nodes"] if _is_old(node, "type")}
        for node in graph["nodes"]:
            if node.get("id") in old and _is_old(node, "type"):
                told.append(f"node {node.get('id')}: {old[node['id']].sentence}")
                _renew(node, old[node["id"]])
        for link in graph.get("links") or []:
            _relink(link, old)
    return made, told


def _is_old(node: Any, key: str) -> bool:
    return isinstance(node, dict) and isinstance(node.get(key), str) and node[key] in OLD_NODES


def _graphs(workflow: dict) -> list[dict]:
    """The graph and its subgraphs."""
    definitions = workflow.get("definitions")
    inner = definitions.get("subgraphs") if isinstance(definitions, dict) else None
    return [
        graph
        for graph in (workflow, *(inner if isinstance(inner, list) else []))
        if isinstance(graph, dict) and isinstance(graph.get("nodes"), list)
    ]


def _renew(node: dict, row: Replacement) -> None:
    """Turn a saved node into that of today, in place."""
    node["type"] = row.new
    properties = node.get("properties")
    if isinstance(properties, dict) and properties.get("Node name for S&R") == row.old:
        properties["Node name for S&R"] = row.new
    for slot in node.get("inputs") or []:
        if isinstance(slot, dict):
            slot["name"] = row.inputs.get(slot.get("name"), slot.get("name"))
            if isinstance(slot.get("widget"), dict):
                slot["widget"]["name"] = slot["name"]
    values = node.get("widgets_values")
    if isinstance(values, list) and row.old_widgets is not None and row.new_widgets is not None:
        named = {row.inputs.get(name, name): value for name, value in zip(row.old_widgets, values, strict=False)}
        named = {**row.values, **named}
        node["widgets_values"] = [named[name] for name in row.new_widgets if name in named]
    if row.outputs and isinstance(node.get("outputs"), list):
        del node["outputs"]  # the front end and ``convert`` take them from the node's definition


def _relink(link: Any, old: Mapping[Any, Replacement]) -> None:
    """Links are lists [id, from, slot, to, slot, type], in subgraphs dictionaries."""
    if isinstance(link, list) and len(link) >= 3 and link[1] in old:
        link[2] = old[link[1]].outputs.get(link[2], link[2])
    elif isinstance(link, dict) and link.get("origin_id") in old:
        slot = link.get("origin_slot")
        link["origin_slot"] = old[link["origin_id"]].outputs.get(slot, slot)
