"""Which value belongs to which widget: dynamic combos, promoted widgets, Set and Get, prompts with choices."""

from __future__ import annotations

import logging
import time

import pytest

from testtime.graph.convert import to_api
from testtime.graph.dynamic_prompts import drawn_by, first_choice, resolved, without_comments
from testtime.graph.widgets import read_values
from testtime.installation.errors import BadInput

from .test_cli_convert import INFO, base, node, socket, subgraph, widget_socket

RESIZE = {
    "input": {
        "required": {
            "input": ["IMAGE", {}],
            "resize_type": [
                "COMFY_DYNAMICCOMBO_V3",
                {
                    "options": [
                        {"key": "scale by", "inputs": {"required": {"multiplier": ["FLOAT", {"default": 1.0}]}}},
                        {"key": "scale longer dimension", "inputs": {"required": {"longer_size": ["INT", {}]}}},
                        {
                            "key": "within",
                            "inputs": {
                                "required": {"mask": ["MASK", {}], "side": ["INT", {"default": 64}]},
                                "optional": {
                                    "how": [
                                        "COMFY_DYNAMICCOMBO_V3",
                                        {
                                            "options": [
                                                {"key": "fit", "inputs": {}},
                                                {"key": "pad", "inputs": {"required": {"seed": ["INT", {}]}}},
                                            ]
                                        },
                                    ]
                                },
                            },
                        },
                    ]
                },
            ],
            "scale_method": ["COMBO", {"options": ["nearest", "lanczos"]}],
        }
    }
}
TEXT = {
    "input": {"required": {"text": ["STRING", {"multiline": True, "dynamicPrompts": True}], "plain": ["STRING", {}]}}
}


def resized(values) -> dict:
    workflow = {"nodes": [node(2, "Resize", values=values)], "links": []}
    return to_api(workflow, {"Resize": RESIZE})["2"]["inputs"]


def test_a_dynamic_combo_is_followed_by_the_widgets_of_its_option():
    assert resized(["scale longer dimension", 2048, "lanczos"]) == {
        "resize_type": "scale longer dimension",
        "resize_type.longer_size": 2048,
        "scale_method": "lanczos",
    }


def test_dynamic_combos_inside_dynamic_combos():
    assert resized(["within", 32, "pad", 7, "lanczos"]) == {
        "resize_type": "within",
        "resize_type.side": 32,
        "resize_type.how": "pad",
        "resize_type.how.seed": 7,
        "scale_method": "lanczos",
    }
    assert resized(["within", 32, "fit", "lanczos"])["scale_method"] == "lanczos"


def test_a_dynamic_combo_without_values_has_its_defaults():
    found = {"resize_type": "scale by", "resize_type.multiplier": 1.0, "scale_method": "nearest"}
    assert resized([]) == found
    assert resized(["scale by"]) == found


def test_an_option_that_is_gone_brings_no_widgets():
    assert resized(["gone", "lanczos"]) == {"resize_type": "gone", "scale_method": "lanczos"}


def test_values_by_name_follow_dynamic_combos():
    values = {"resize_type": "within", "resize_type.side": 5, "resize_type.how": "fit", "scale_method": "nearest"}
    assert resized(values) == values


def prompts(text: str, plain: str = "", **options) -> dict:
    workflow = {"nodes": [node(4, "Prompt", values=[text, plain])], "links": []}
    return to_api(workflow, {"Prompt": TEXT}, **options)["4"]["inputs"]


def test_choices_are_drawn_and_comments_left_out_where_the_node_says_so(caplog):
    caplog.set_level(logging.INFO, "testtime")
    found = prompts("{ugly|bad} /* c */ thing", "{a|b} // kept")
    assert found["text"] in ("ugly  thing", "bad  thing")
    assert found["plain"] == "{a|b} // kept"
    assert "4.text: choices drawn (--prompt-seed)" in caplog.text


def test_draws_repeat_and_depend_on_the_seed():
    text = "{a|b|c|d|e|f|g|h} {a|b|c|d|e|f|g|h}"
    assert prompts(text) == prompts(text)
    drawn = {prompts(text, choose=drawn_by(seed))["text"] for seed in range(12)}
    assert len(drawn) > 6
    assert any(one[0] != one[-1] for one in drawn)  # two choices of a prompt are two draws


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("a {red|blue} car", "a red car"),
        ("{a|{b|c} d}", "a"),
        ("{{b|c} d|a}", "b d"),
        ("{|a} x", " x"),
        ("{never closed|b", "never closed"),
        ("a } b | c", "a } b | c"),
        (r"\{a|b\} \| {x\|y|z}", "{a|b} | x|y"),
        ("one // two\nthree", "one \nthree"),
        ("http://x", "http:"),
        ("a /* b */ c /* d", "a  c /* d"),
        ("/* a // b */ c", " c"),
        ("// a /* b\nc */", "\nc */"),
        ("/*/ a */b", "b"),
        ("{}", ""),
        ("ends with \\", "ends with \\"),
        ("(cat:1.2)", "(cat:1.2)"),
    ],
)
def test_grammar_is_that_of_the_front_end(text, first):
    assert resolved(text, first_choice, "") == first


@pytest.mark.parametrize(
    "text", ["{" * 100_000, "/*" * 100_000, "{a|" * 50_000 + "}" * 50_000, "\\" * 99_999, "*/" * 50_000]
)
def test_no_text_takes_long(text):
    start = time.process_time()
    resolved(text, first_choice, "")
    without_comments(text)
    assert time.process_time() - start < 3


def with_pair(name="latent", other="latent", kinds=("SetNode", "GetNode")) -> dict:
    workflow = base(middle=node(4, kinds[1], values=[other], outputs=["LATENT"]))
    workflow["links"][2] = [3, 2, 0, 5, 0, "LATENT"]
    workflow["nodes"].append(node(5, kinds[0], values=[name], inputs=[socket("LATENT", "LATENT", 3)], outputs=["*"]))
    return workflow


@pytest.mark.parametrize("kinds", [("SetNode", "GetNode"), ("easy setNode", "easy getNode")])
def test_set_and_get_are_followed_by_name(kinds):
    api = to_api(with_pair(kinds=kinds), INFO)
    assert set(api) == {"1", "2", "3"}
    assert api["3"]["inputs"]["latent"] == ["2", 0]


def test_a_get_without_its_set_is_refused_with_the_way_out():
    with pytest.raises(BadInput, match=r"Node 4 \(GetNode\) finds no Set node.*Export \(API\)"):
        to_api(with_pair(other="another"), INFO)


def test_set_and_get_in_a_ring_are_named():
    workflow = with_pair()
    workflow["links"][2] = [3, 4, 0, 5, 0, "LATENT"]
    with pytest.raises(BadInput, match="circle"):
        to_api(workflow, INFO)


def test_an_unknown_node_without_links_is_left_out_and_named(caplog):
    caplog.set_level(logging.INFO, "testtime")
    workflow = base()
    workflow["nodes"].append(node(9, "Label (rgthree)", values=["a heading"]))
    assert set(to_api(workflow, INFO)) == {"1", "2", "3"}
    assert "left out: 9 Label (rgthree)" in caplog.text


def test_an_unknown_node_with_links_stays_and_is_refused_later():
    workflow = base(middle=node(4, "Elsewhere", inputs=[socket("latent", "LATENT", 3)], outputs=["LATENT"]))
    assert to_api(workflow, INFO)["4"]["class_type"] == "Elsewhere"


def proxied(proxies, values, border=("latent", "steps")) -> dict:
    """The sub-graph of ``test_cli_convert``: its Sampler 3 has ``steps`` behind the border, ``seed`` is inside only."""
    workflow = subgraph()
    instance = next(entry for entry in workflow["nodes"] if entry["id"] == 7)
    instance["properties"] = {"proxyWidgets": proxies}
    instance["widgets_values"] = values
    return workflow


@pytest.mark.parametrize(
    ("proxies", "values", "steps", "seed"),
    [
        ([["3", "steps"]], [33], 33, 7),
        ([["-1", "steps"]], [33], 33, 7),
        ([["3", "seed"]], [99], 12, 99),
        ([["3", "seed"], ["3", "steps"]], [99, 33], 33, 99),
        ([["3", "seed"], ["-1", "steps"]], [99, 33], 33, 99),
        ([["3", "$$canvas-image-preview"], ["3", "seed"]], [None, 99], 12, 99),
        ([["3", "seed"], ["3", "steps"]], [99], 12, 99),
        ([["3", "seed"], ["3", "steps"]], [None, 33], 33, 7),
        ([["3", "3: seed"]], [99], 12, 99),
        ([["8", "seed"]], [99], 12, 7),
        ([["3", "seed"]], [], 12, 7),
        ("not a list", [33], 33, 7),
        ([[], 5], [1, 2], 12, 7),
    ],
)
def test_values_of_an_instance_go_where_its_proxies_point(proxies, values, steps, seed):
    inputs = to_api(proxied(proxies, values), INFO)["7:3"]["inputs"]
    assert (inputs["steps"], inputs["seed"]) == (steps, seed)


def test_a_link_wins_over_a_proxy():
    workflow = subgraph(linked=True)
    instance = next(entry for entry in workflow["nodes"] if entry["id"] == 7)
    instance["properties"] = {"proxyWidgets": [["3", "steps"], ["3", "seed"]]}
    instance["widgets_values"] = [33, 99]
    inputs = to_api(workflow, INFO)["7:3"]["inputs"]
    assert (inputs["steps"], inputs["seed"]) == (40, 99)


def test_a_primitive_inside_takes_the_value_of_the_instance():
    workflow = proxied([["5", "value"]], [21])
    definition = workflow["definitions"]["subgraphs"][0]
    definition["nodes"][0]["inputs"].append(
        {"name": "seed", "type": "INT", "link": 9, "widget": {"name": "seed"}},
    )
    definition["nodes"].append(node(5, "PrimitiveNode", values=[3, "fixed"], outputs=["INT"]))
    definition["links"].append({"id": 9, "origin_id": 5, "origin_slot": 0, "target_id": 3, "target_slot": 2})
    assert to_api(workflow, INFO)["7:3"]["inputs"]["seed"] == 21


def two_behind_a_widget(**instance) -> dict:
    """The sub-graph's input "steps" feeds the sampler's widget, a socket and a second widget, in this order."""
    workflow = subgraph()
    definition = workflow["definitions"]["subgraphs"][0]
    definition["nodes"].append(node(5, "Show", inputs=[("value", "*", 11, {})]))
    definition["nodes"].append(node(6, "Latent", values=[5, "fixed", 48], inputs=[widget_socket("size", "INT", 12)]))
    definition["links"] += [
        {"id": number, "origin_id": -10, "origin_slot": 1, "target_id": target, "target_slot": 0}
        for number, target in ((11, 5), (12, 6))
    ]
    holder = next(entry for entry in workflow["nodes"] if entry["id"] == 7)
    holder["inputs"].append({"name": "steps", "type": "INT", "link": None, "widget": {"name": "steps"}})
    holder |= instance
    return workflow


@pytest.mark.parametrize(
    ("instance", "steps"),
    [
        ({"widgets_values": [], "properties": {"proxyWidgets": [["3", "steps"]]}}, 12),
        ({"widgets_values": []}, 12),
        ({"widgets_values": [33]}, 33),
        ({"widgets_values": [None], "properties": {"proxyWidgets": [["3", "steps"]]}}, 12),
    ],
)
def test_everything_behind_a_promoted_widget_is_given_its_value(instance, steps):
    known = {**INFO, "Show": {"input": {"required": {"value": ["*", {}]}}}}
    api = to_api(two_behind_a_widget(**instance), known)
    assert [api["7:3"]["inputs"]["steps"], api["7:5"]["inputs"]["value"], api["7:6"]["inputs"]["size"]] == [steps] * 3


def test_nothing_is_drawn_in_a_text_that_an_instance_shows():
    workflow = subgraph()
    inner = workflow["definitions"]["subgraphs"][0]
    inner["nodes"][0]["inputs"].append({"name": "note", "type": "STRING", "link": 9, "widget": {"name": "note"}})
    inner["nodes"][0]["widgets_values"] = [7, "fixed", 12, "heun", '{"style": "a|b"}']
    inner["inputs"].append({"name": "note", "type": "STRING"})
    inner["links"].append({"id": 9, "origin_id": -10, "origin_slot": 2, "target_id": 3, "target_slot": 2})
    drawing = {**INFO["Sampler"], "input": {**INFO["Sampler"]["input"]}}
    drawing["input"]["optional"] = {"note": ["STRING", {"dynamicPrompts": True}]}
    known = {**INFO, "Sampler": drawing}
    assert to_api(workflow, known, first_choice)["7:3"]["inputs"]["note"] == '{"style": "a|b"}'
    inner["nodes"][0]["inputs"][-1]["link"] = None  # a widget of its own again
    assert to_api(workflow, known, first_choice)["7:3"]["inputs"]["note"] == '"style": "a'


@pytest.mark.parametrize(
    ("values", "view"),
    [
        (["a.glb", "", 640, 480], ""),
        (["a.glb", "upload3dmodel", "uploadExtraResources", "clear", {"image": "x.png"}, 640, 480], {"image": "x.png"}),
        (["a.glb", "upload3dmodel", "uploadExtraResources", "", 640, 480], ""),
    ],
)
def test_buttons_before_a_drawn_widget_are_skipped(values, view):
    known = {"required": {"file": ["COMBO", {}], "image": ["LOAD_3D", {}], "width": ["INT", {}], "height": ["INT", {}]}}
    found = read_values({"input": known}, values)
    assert found == {"file": "a.glb", "image": view, "width": 640, "height": 480}


def test_drawn_widgets_without_a_saved_value_have_the_front_ends():
    known = {"required": {"view": ["IMAGECOMPARE", {}], "background": ["COLOR", {"default": "#000000"}]}}
    assert read_values({"input": known}, []) == {"view": ["", ""], "background": "#000000"}


@pytest.mark.parametrize(("module", "kept"), [("comfy_extras.nodes_video", False), ("custom_nodes.pack", True)])
def test_a_link_into_a_widget_of_another_version_is_dropped(module, kept):
    workflow = base()
    workflow["nodes"][2]["inputs"].append({"name": "gone", "type": "INT", "link": 9, "widget": {"name": "gone"}})
    workflow["links"].append([9, 2, 0, 3, 2, "INT"])
    known = {**INFO, "Sampler": {**INFO["Sampler"], "python_module": module}}
    assert ("gone" in to_api(workflow, known)["3"]["inputs"]) == kept


def nested(outer_proxies, outer_values) -> dict:
    """Top: instance 20 of "bbbb", which holds instance 7 of the sub-graph "aaaa"."""
    inner = subgraph()
    instance = next(entry for entry in inner["nodes"] if entry["id"] == 7)
    instance["inputs"].append({"name": "steps", "type": "INT", "link": None, "widget": {"name": "steps"}})
    instance["widgets_values"] = [50]
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    outer = {
        "id": "bbbb",
        "name": "Outer",
        "inputs": [],
        "outputs": [],
        "nodes": inner["nodes"],
        "links": [dict(zip(names, link, strict=True)) for link in inner["links"]],
    }
    top = node(20, "bbbb", values=outer_values, properties={"proxyWidgets": outer_proxies})
    definitions = {"subgraphs": [outer, *inner["definitions"]["subgraphs"]]}
    return {"nodes": [top], "links": [], "definitions": definitions}


@pytest.mark.parametrize(("proxies", "values", "steps"), [([], [], 50), ([["7", "steps"]], [60], 60)])
def test_values_reach_through_two_levels(proxies, values, steps):
    assert to_api(nested(proxies, values), INFO)["20:7:3"]["inputs"]["steps"] == steps


def test_a_chain_that_is_too_long_is_refused():
    count = 15_000
    nodes = [node(k, "Reroute", inputs=[socket("", "*", k)], outputs=["*"]) for k in range(1, count)]
    nodes.append(node(count, "Upscale", inputs=[socket("latent", "LATENT", count)]))
    nodes.append(node(0, "Latent", values=[5, "fixed", 32], outputs=["LATENT"]))
    links = [[k, k - 1, 0, k, 0, "LATENT"] for k in range(1, count + 1)]
    with pytest.raises(BadInput, match="too long to follow"):
        to_api({"nodes": nodes, "links": links}, INFO)


def test_widget_sockets_of_other_types_count():
    info = {"Odd": {"input": {"required": {"curve": ["CURVE", {}], "size": ["INT", {}]}}}}
    workflow = {"nodes": [node(1, "Odd", values=["c", 3], inputs=[widget_socket("curve", "CURVE", None)])], "links": []}
    assert to_api(workflow, info)["1"]["inputs"] == {"curve": "c", "size": 3}
