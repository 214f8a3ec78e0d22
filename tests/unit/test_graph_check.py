"""What is said of a workflow before it is queued: unknown nodes with what to do, values that are taken for others."""

from __future__ import annotations

import logging

import pytest

from testtime.graph.check import check_known_nodes, check_values, installed_packs
from testtime.graph.convert import Origin
from testtime.installation.errors import BadInput

INFO = {
    "Sampler": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "steps": ["INT", {"min": 1}],
                "cfg": ["FLOAT", {}],
                "scheduler": ["COMBO", {"options": ["simple", "karras", "normal"]}],
                "sampler": [["euler", "heun"], {}],
                "tiled": ["BOOLEAN", {}],
            },
            "optional": {
                "style": ["COMFY_DYNAMICCOMBO_V3", {"options": [
                    {"key": "plain", "inputs": {}},
                    {"key": "fancy", "inputs": {"required": {"size": ["INT", {}]}}},
                ]}],
                "image": [["a.png"], {"image_upload": True}],
                "file": ["COMBO", {"options": ["x.json [output]"]}],
                "far": ["COMBO", {"remote": {"route": "/x"}, "options": ["a"]}],
                "several": ["COMBO", {"options": ["a", "b"], "multiselect": True}],
            },
        },
        "python_module": "custom_nodes.Some-Pack",
    },
    "Core": {"input": {}, "python_module": "nodes"},
}  # fmt: skip
GOOD = {"model": ["1", 0], "steps": 5, "cfg": 1, "scheduler": "karras", "sampler": "heun", "tiled": False}


def check(**changes) -> None:
    check_values({"7": {"class_type": "Sampler", "inputs": {**GOOD, **changes}}}, INFO)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps": 5.0},
        {"steps": "5"},
        {"steps": ["1", 0]},
        {"tiled": 1},
        {"scheduler": ["1", 0]},
        {"scheduler": {"__value__": "karras"}},
        {"style": "fancy", "style.size": 4},
        {"image": "new.png"},
        {"file": "later.json [output]"},
        {"far": "anything"},
        {"sampler": "of the browser's own"},
        {"several": ["a", "b"]},
        {"cfg": "1.5"},
    ],
)
def test_values_that_are_fine(changes):
    check(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler": "karas"}, "7 Sampler: scheduler is 'karas': choose one of simple, karras, normal. Did you mean "
                                 "karras?"),
        ({"sampler": "eular"}, "Did you mean euler?"),
        ({"tiled": "false"}, "tiled is 'false': true or false is needed"),
        ({"steps": 5.7}, "steps is 5.7: a whole number is needed"),
        ({"steps": "many"}, "steps is 'many': a whole number is needed"),
        ({"cfg": "low"}, "cfg is 'low': a number is needed"),
        ({"steps": float("inf")}, "steps is inf: a whole number"),
        ({"style": "fansy"}, "style is 'fansy': choose one of plain, fancy. Did you mean fancy?"),
        ({"style": "fancy", "style.size": "x"}, "style.size is 'x'"),
        ({"several": ["a", "c"]}, "choose one of a, b"),
        ({"scheduler": {"__value__": ["karras"]}}, "scheduler is"),
    ],
)  # fmt: skip
def test_values_that_would_silently_be_others(changes, message):
    with pytest.raises(BadInput) as caught:
        check(**changes)
    assert message in str(caught.value)


def test_all_faults_are_listed_and_bounded():
    workflow = {str(k): {"class_type": "Sampler", "inputs": {**GOOD, "scheduler": "x" * 5000}} for k in range(200)}
    with pytest.raises(BadInput, match="and 170 more") as caught:
        check_values(workflow, INFO)
    assert len(str(caught.value)) < 10_000


def test_a_misspelt_input_is_named(caplog):
    caplog.set_level(logging.WARNING, "testtime")
    check(schedular="karras")
    assert "has no input 'schedular', it is ignored. Did you mean scheduler?" in caplog.text


def advice(class_type: str, origin: Origin | None = None, info=INFO, version: str = "0.3.64") -> str:
    with pytest.raises(BadInput) as caught:
        check_known_nodes({"4": {"class_type": class_type, "inputs": {}}}, info, {class_type: origin}, version)
    return str(caught.value)


@pytest.mark.parametrize(
    ("class_type", "origin", "words"),
    [
        ("New", Origin("comfy-core", "0.3.70"), "update ComfyUI. It was saved with 0.3.70, this is 0.3.64"),
        ("New", Origin("comfy-core"), "part of ComfyUI itself: update ComfyUI."),
        ("New", Origin("some-pack", "1.2"), "the pack some-pack is installed there, without this node: update it "
                                            "(saved with version 1.2)"),
        ("New", Origin("someone/Some-Pack"), "is installed there, without this node: update it"),
        ("New", Origin("other-pack"), "install the pack other-pack"),
        ("New", None, "the file does not say which pack it is from"),
        ("TestTimeNew", None, "which that ComfyUI has not loaded"),
        ("Anything Everywhere", None, "lives in the browser only. Open the workflow in ComfyUI"),
        ("Fast Groups Muter (rgthree)", Origin("rgthree-comfy"), "lives in the browser only"),
    ],
)  # fmt: skip
def test_every_unknown_node_gets_its_own_advice(class_type, origin, words):
    assert words in advice(class_type, origin)


def test_nobody_is_told_to_install_this_pack_where_it_is_installed():
    told = advice("TestTimeNew", Origin("test-time-scaling", "0.9"), {**INFO, "TestTimeSVDD": {"input": {}}})
    assert "this pack is installed there, in a version without this node: update it (saved with version 0.9)" in told


def test_long_lists_are_cut():
    workflow = {str(k): {"class_type": f"Kind{k % 50}", "inputs": {}} for k in range(5000)}
    with pytest.raises(BadInput, match="and 20 more") as caught:
        check_known_nodes(workflow, INFO)
    assert len(str(caught.value)) < 8000


def test_packs_are_known_by_the_folders_of_their_nodes():
    assert installed_packs(INFO) == {"some-pack"}
