"""Names that freeze with the first release: a setting is called the same in its class and on its node."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from testtime.samplers.methods.population_plan import PopulationPlan
from testtime.samplers.methods.registry import ROWS
from testtime.samplers.smc.tempering import Alpha

from .conftest import feature

pytestmark = pytest.mark.host

# Widgets that make one value together: what they make -> (widget, field of the value or parameter of its maker).
PARTS = {
    "alpha": {"alpha": "value", "alpha_mode": "mode"},
    "plan": {name: name for name in ("batch_schedule", "cluster_scales", "resample_scales")},
}
MODIFIERS = {"clip": "encoder"}  # of the plan: a text encoder of ComfyUI becomes one that searches know


def nodes_by_id() -> dict:
    from testtime.nodes import collect_nodes

    return {node.define_schema().node_id: node for node in collect_nodes()}


def own_inputs(node) -> set[str]:
    return {entry.id for entry in node.define_schema().inputs or ()} - set(MODIFIERS)


def widgets_of(fields: set[str]) -> set[str]:
    """Names that widgets may have for a class's fields."""
    return fields | {widget for field, parts in PARTS.items() if field in fields for widget in parts}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_widgets_of_a_method_are_fields_of_its_class(row):
    fields = {field.name for field in dataclasses.fields(row.method)}
    assert own_inputs(nodes_by_id()[row.node]) <= widgets_of(fields)


def test_parts_are_called_as_in_what_they_make():
    assert {field.name for field in dataclasses.fields(Alpha)} == set(PARTS["alpha"].values())
    assert set(PARTS["plan"]) <= set(inspect.signature(PopulationPlan.from_batches).parameters)


def test_what_a_widget_says_arrives_in_the_field_of_its_name():
    """Every number, text and choice of a method's node, set to another value, changes the field of that name alone."""
    found = nodes_by_id()
    for row in ROWS:
        node = found[row.node]
        inputs = {
            entry.id: getattr(entry, "default", None) for entry in node.define_schema().inputs if not entry.optional
        }
        inputs.update({name: object() for name in ("rewriter", "clip") if name in inputs})
        plain = node.execute(**inputs).args[0].method
        for entry in node.define_schema().inputs:
            kind = type(entry).__qualname__.split(".")[0]
            if entry.id in MODIFIERS or kind not in ("Int", "Float") or entry.id in ("alpha", "ess_threshold"):
                continue
            default, most = entry.default, entry.max
            other = default + (1 if kind == "Int" else 0.01)
            other = min(other, most) if other <= most else default - 0.01
            changed = node.execute(**{**inputs, entry.id: other}).args[0].method
            differing = [
                field.name
                for field in dataclasses.fields(plain)
                if field.compare and getattr(plain, field.name) != getattr(changed, field.name)
            ]
            assert differing == [entry.id], row.key


VERIFIERS = {
    "TestTimeJPEG": "aesthetic.jpeg.JPEGVerifier",
    "TestTimeEnsemble": "ensemble.EnsembleVerifier",
    "TestTimeGenEval": "objects.verifier.ObjectsVerifier",
    "TestTimeSimilarity": "image_image.similarity.load_similarity",
    "TestTimePickScore": "preference.clip_rewards.load_pickscore",
    "TestTimeAesthetic": "aesthetic.predictors.load_aesthetic",
    "TestTimeVLMEndpoint": "vlm.endpoint.endpoint_judge",
    "TestTimePickByHand": "human.HumanVerifier",
}
SHARED = {"precision", "model", "seconds"}  # of the node's own work: where weights lie, how long it waits
OPTIONS_OF = {
    "image_image.similarity.load_similarity": "image_image.similarity.SimilarityVerifier",
    "preference.clip_rewards.load_pickscore": "preference.clip_rewards.PickScoreVerifier",
    "vlm.endpoint.endpoint_judge": "vlm.judge.VLMJudgeVerifier",
    "objects.verifier.ObjectsVerifier": "objects.geneval.Rules",
}


def parameters_of(path: str) -> set[str]:
    import importlib

    module, name = path.rsplit(".", 1)
    named = getattr(importlib.import_module(f"testtime.verifiers.{module}"), name)
    return set(inspect.signature(named).parameters)


@pytest.mark.parametrize("node_id", VERIFIERS)
def test_widgets_of_a_verifier_are_parameters_of_its_class(node_id):
    path = VERIFIERS[node_id]
    known = parameters_of(path) | (parameters_of(OPTIONS_OF[path]) if path in OPTIONS_OF else set())
    mine = {name for name in own_inputs(nodes_by_id()[node_id]) if not name.startswith(("verifier_", "weight_"))}
    assert mine - SHARED <= known


def test_ids_are_ours_and_names_are_unlike():
    schemas = [node.define_schema() for node in nodes_by_id().values()]
    names = [schema.display_name for schema in schemas]
    assert len(set(names)) == len(names)
    assert all(schema.node_id.startswith("TestTime") for schema in schemas)


def test_other_names_are_told_to_hosts_that_search_by_them():
    from comfy_api.latest import io

    from testtime.nodes.menu import ALIASES

    feature("search_aliases" in {field.name for field in dataclasses.fields(io.Schema)}, "nodes have no other names")
    known = nodes_by_id()
    assert set(ALIASES) <= set(known)
    for name, aliases in ALIASES.items():
        assert known[name].GET_NODE_INFO_V1()["search_aliases"] == list(aliases), name
    assert "ksampler" in " ".join(ALIASES["TestTimeSearchKSampler"]).lower()
