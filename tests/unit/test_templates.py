"""How two conversions of a workflow are compared, see ``tools/templates.py``."""

from __future__ import annotations

from copy import deepcopy

import pytest

from ..conftest import load_tool

INFO = {
    "Load": {"input": {"required": {"name": ["STRING"]}}},
    "Mix": {"input": {"required": {"one": ["IMAGE"], "two": ["IMAGE"], "seed": ["INT"]}}},
    "Save": {"input": {"required": {"images": ["IMAGE"]}}},
}
PROMPT = {
    "1": {"class_type": "Load", "inputs": {"name": "a"}},
    "2": {"class_type": "Load", "inputs": {"name": "b"}},
    "3": {"class_type": "Mix", "inputs": {"one": ["1", 0], "two": ["2", 0], "seed": 7}},
    "4": {"class_type": "Mix", "inputs": {"one": ["3", 0], "two": ["3", 0], "seed": 7}},
    "5": {"class_type": "Save", "inputs": {"images": ["4", 0]}},
}


def renumbered(prompt: dict, ids: dict[str, str]) -> dict:
    def moved(value):
        return [ids.get(value[0], value[0]), value[1]] if isinstance(value, list) else value

    return {
        ids.get(key, key): {**node, "inputs": {name: moved(value) for name, value in node["inputs"].items()}}
        for key, node in prompt.items()
    }


@pytest.fixture
def templates():
    return load_tool("templates")


def test_other_ids_are_the_same_graph(templates):
    other = renumbered(PROMPT, {"1": "2", "2": "1", "4": "57:9"})
    assert templates.differences(other, PROMPT, INFO) and templates.same_but_for_ids(other, PROMPT, INFO)


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        ("4", "seed", 8),
        ("3", "one", ["2", 0]),
        ("4", "one", ["1", 0]),
        ("5", "images", ["3", 0]),
        ("3", "two", ["2", 1]),
    ],
)
def test_another_value_or_link_is_another_graph(templates, key, name, value):
    other = deepcopy(PROMPT)
    other[key]["inputs"][name] = value
    moved = renumbered(other, {"3": "9", "4": "3"})
    assert not templates.same_but_for_ids(moved, PROMPT, INFO)


def test_a_null_is_told_from_another_value(templates):
    other = renumbered(PROMPT, {"1": "8"})
    other["3"]["inputs"]["seed"] = None
    assert templates.only_nulls(other, PROMPT, INFO) and not templates.only_nulls(PROMPT, PROMPT, INFO)
    other["2"]["inputs"]["name"] = "c"
    assert not templates.only_nulls(other, PROMPT, INFO)
