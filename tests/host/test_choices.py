"""Every drop-down of every node refuses what it does not offer, at queue time and when the value comes by a link."""

from __future__ import annotations

import asyncio

import pytest


def nodes_of_pack() -> list[type]:
    from testtime.nodes import collect_nodes

    return collect_nodes()


def combos() -> list[tuple[type, str]]:
    try:
        from testtime.nodes.choices import drop_downs
    except ImportError:  # no ComfyUI: the tests are skipped
        return []
    return [(node, name) for node in nodes_of_pack() for name in drop_downs(node)]


COMBOS = combos()
IDS = [f"{node.__name__}-{name}" for node, name in COMBOS]


def validated(node: type, inputs: dict, monkeypatch) -> tuple[bool, list[dict]]:
    """The host's own validation of one node with these values."""
    import execution

    import nodes

    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, node.__name__, node)
    prompt = {"1": {"class_type": node.__name__, "inputs": dict(inputs)}}
    answer = asyncio.run(execution.validate_inputs("p", prompt, "1", {}))
    return answer[0], answer[1]


@pytest.mark.parametrize(("node", "name"), COMBOS, ids=IDS)
def test_an_unknown_choice_is_refused_by_name(node, name, monkeypatch):
    valid, errors = validated(node, {name: "karas"}, monkeypatch)
    assert not valid
    told = [error["details"] for error in errors if error["type"] == "custom_validation_failed"]
    assert any(f"{name} is 'karas'" in text for text in told), errors


@pytest.mark.parametrize(("node", "name"), COMBOS, ids=IDS)
def test_every_choice_that_is_offered_passes(node, name, monkeypatch):
    from testtime.nodes.choices import drop_downs

    for option in drop_downs(node)[name]:
        if str(option) == "none found":
            continue
        _, errors = validated(node, {name: option}, monkeypatch)
        about = [error for error in errors if f"{name} is " in error.get("details", "")]
        assert not about or "there is no such model here" in about[0]["details"], errors


def test_there_are_dozens_of_drop_downs():
    assert len(COMBOS) > 40


def test_the_nearest_choice_is_named(monkeypatch):
    from testtime.nodes.search_ksampler import SearchKSamplerNode

    nodes_of_pack()
    _, errors = validated(SearchKSamplerNode, {"scheduler": "karas"}, monkeypatch)
    told = " ".join(error["details"] for error in errors)
    assert "Did you mean karras?" in told


def test_a_choice_through_a_link_is_checked_when_the_node_runs():
    from testtime.nodes.report_nodes import SearchReportNode
    from testtime.samplers.protocols import SearchError

    nodes_of_pack()
    with pytest.raises(SearchError, match=r"save is 'pictur'.*Did you mean picture"):
        SearchReportNode.execute(trace=None, save="pictur")


def test_checks_of_other_inputs_stay_the_hosts(monkeypatch):
    """Naming an input in validate_inputs switches the host's own checks of it off: ranges must not be named."""
    from testtime.nodes.search_ksampler import SearchKSamplerNode

    nodes_of_pack()
    _, errors = validated(SearchKSamplerNode, {"cfg": -1.0}, monkeypatch)
    assert any(error["type"] == "value_smaller_than_min" for error in errors)


def test_collecting_twice_wraps_once():
    from testtime.nodes.search_ksampler import SearchKSamplerNode

    nodes_of_pack()
    first = SearchKSamplerNode.__dict__["validate_inputs"]
    nodes_of_pack()
    assert SearchKSamplerNode.__dict__["validate_inputs"] is first


def test_a_long_value_does_not_make_a_long_message():
    from testtime.nodes.choices import choice_problem

    assert len(choice_problem("save", "x" * 10_000, ["picture"])) < 200
    assert choice_problem("save", None, ["picture"]) is None
