"""Nodes that were renamed, merged or given other inputs: what they are today, for workflow files of either format.

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
        choices: input -> old value -> new value, of options that are called otherwise.

    Where ``old`` is ``new``, the node kept its id: it is old where an input has its old name, a value its old word, an
    input of ``values`` is missing, or a UI file has as many values as there are ``old_widgets``.
    """

    old: str
    new: str
    name: str
    inputs: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    outputs: dict[int, int] = field(default_factory=dict)
    old_widgets: tuple[str, ...] | None = SAME
    new_widgets: tuple[str, ...] | None = SAME
    choices: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """What a person is told."""
        if self.old == self.new:
            said = [f"{old} is now {new}" for old, new in self.inputs.items()]
            said += [f"{name} {old} is now {new}" for name, ways in self.choices.items() for old, new in ways.items()]
            return f"{self.name} ({self.new}): " + "; ".join(
                said + [f"{k} is set to {v}" for k, v in self.values.items()]
            )
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
_SEED = ("seed", "control_after_generate")
_STEPS, _LIMITS = ("steps", "cfg"), ("prompt", "max_nfe", "max_seconds", "on_cancel")
_SCALES = (*_SEED, "cfg", "tau", "top_p", "aspect_ratio", "pixels", "batch_size", *_LIMITS)
REVISIONS = (
    Replacement("TestTimeSVDD", "TestTimeSVDD", "SVDD", {"value": "value_function"}),
    Replacement("TestTimeSMC", "TestTimeSMC", "SMC", {"value": "value_function"}),
    Replacement("TestTimeTTSVAR", "TestTimeTTSVAR", "TTS-VAR", {"value": "value_function"}),
    Replacement(
        "TestTimeFKSteering", "TestTimeFKSteering", "FK Steering", choices={"potential": {"add": "sum"}},
        old_widgets=(*_FK, "potential", *_WINDOW), new_widgets=(*_FK, "potential", *_WINDOW),
    ),
    Replacement(
        "TestTimeSearchKSampler", "TestTimeSearchKSampler", "Search KSampler", values={"sampler_name": "euler"},
        old_widgets=(*_SEED, *_STEPS, "scheduler", "denoise", "eta", *_LIMITS),
        new_widgets=(*_SEED, *_STEPS, "sampler_name", "scheduler", "denoise", "eta", *_LIMITS),
    ),
    Replacement(
        "TestTimeInfinitySearch", "TestTimeInfinitySearch", "Infinity Search", values={"output": "score"},
        old_widgets=(*_SCALES, "cfg_layer"), new_widgets=(*_SCALES, "output", "cfg_layer"),
    ),
)  # fmt: skip
"""Nodes that kept their id."""
OLD_NODES: Mapping[str, Replacement] = {row.old: row for row in (*REPLACEMENTS, *REVISIONS)}


def as_json() -> dict[str, Any]:
    """The table for the browser."""
    return {row.old: {**asdict(row), "sentence": row.sentence} for row in REPLACEMENTS}


def renewed(workflow: dict) -> tuple[dict, list[str]]:
    """(an API-format workflow with the nodes of today, sentences about what was changed); itself where nothing is old.

    Entries that are no nodes stay as they are: the server says what is wrong with them.
    """
    old = {key: OLD_NODES[node["class_type"]] for key, node in workflow.items() if _is_old_api(node)}
    if not old:
        return workflow, []
    made = deepcopy(workflow)
    for key, row in old.items():
        node = made[key]
        inputs = {row.inputs.get(name, name): value for name, value in node.get("inputs", {}).items()}
        inputs = {name: _chosen(row, name, value) for name, value in inputs.items()}
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
    if not any(_is_old_ui(node) for graph in _graphs(workflow) for node in graph["nodes"]):
        return workflow, told
    made = deepcopy(workflow)
    for graph in _graphs(made):
        old = {node.get("id"): OLD_NODES[node["type"]] for node in graph["nodes"] if _is_old_ui(node)}
        for node in graph["nodes"]:
            if _is_old_ui(node):
                told.append(f"node {node.get('id')}: {old[node['id']].sentence}")
                _renew(node, old[node["id"]])
        for link in graph.get("links") or []:
            _relink(link, old)
    return made, told


def _row_of(node: Any, key: str) -> Replacement | None:
    return OLD_NODES.get(node[key]) if isinstance(node, dict) and isinstance(node.get(key), str) else None


def _is_old_api(node: Any) -> bool:
    row = _row_of(node, "class_type")
    if row is None or row.old != row.new:
        return row is not None
    inputs = node.get("inputs")
    if not isinstance(inputs, dict):
        return False
    required = set() if row.old_widgets is None else set(row.values) - {"output"}
    renamed = any(old in inputs and new not in inputs for old, new in row.inputs.items())
    return renamed or not required <= set(inputs) or any(_chosen(row, k, v) != v for k, v in inputs.items())


def _is_old_ui(node: Any) -> bool:
    row = _row_of(node, "type")
    if row is None or row.old != row.new:
        return row is not None
    slots, values = node.get("inputs") or [], node.get("widgets_values")
    if any(isinstance(slot, dict) and slot.get("name") in row.inputs for slot in slots):
        return True
    if not isinstance(values, list) or row.old_widgets is None or len(values) != len(row.old_widgets):
        return False
    return bool(row.values) or any(
        _chosen(row, name, value) != value for name, value in zip(row.old_widgets, values, strict=True)
    )


def _chosen(row: Replacement, name: str, value: Any) -> Any:
    """A value by its word of today."""
    words = row.choices.get(name, {})
    return words.get(value, value) if isinstance(value, str) else value


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
        named = {**row.values, **{name: _chosen(row, name, value) for name, value in named.items()}}
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
