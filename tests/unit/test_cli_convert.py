"""UI format -> API format, on definitions of the shape that /object_info has (old style and V3 style)."""

from __future__ import annotations

import pytest

from testtime.graph.convert import Origin, origins_in, to_api
from testtime.installation.errors import BadInput

SAMPLER = {
    "input": {
        "required": {
            "model": ["MODEL", {}],
            "seed": ["INT", {"default": 0, "control_after_generate": True}],
            "steps": ["INT", {"default": 20}],
            "sampler_name": [["euler", "heun"], {}],
            "latent": ["LATENT", {}],
        },
        "optional": {"note": ["STRING", {"default": "hello"}], "strength": ["FLOAT", {"forceInput": True}]},
    },
    "input_order": {
        "required": ["model", "seed", "steps", "sampler_name", "latent"],
        "optional": ["note", "strength"],
    },
    "display_name": "A Sampler",
}
LOADER = {"input": {"required": {"name": ["COMBO", {"options": ["a", "b"]}]}}, "display_name": None}
LATENT = {"input": {"required": {"noise_seed": ["INT", {}], "size": ["INT", {"default": 64}]}}}
TEXT = {"input": {"required": {"text": ["STRING", {"multiline": True}]}}}
UPSCALE = {"input": {"required": {"latent": ["LATENT", {}], "factor": ["FLOAT", {"default": 2.0}]}}}
INFO = {"Sampler": SAMPLER, "Loader": LOADER, "Latent": LATENT, "Text": TEXT, "Upscale": UPSCALE}


def node(number, kind, *, values=None, inputs=(), outputs=(), **extra):
    return {
        "id": number,
        "type": kind,
        "inputs": [{"name": name, "type": type_, "link": link, **more} for name, type_, link, more in inputs],
        "outputs": [{"name": type_, "type": type_} for type_ in outputs],
        "widgets_values": values,
        **extra,
    }


def socket(name, type_, link):
    return (name, type_, link, {})


def widget_socket(name, type_, link):
    return (name, type_, link, {"widget": {"name": name}})


def base(*, sampler_values=(7, "randomize", 12, "heun", "hi"), middle=None):
    """Loader and Latent feed a Sampler; ``middle`` (a node) may sit between Latent and Sampler."""
    nodes = [
        node(1, "Loader", values=["b"], outputs=["MODEL"]),
        node(2, "Latent", values=[5, "fixed", 32], outputs=["LATENT"]),
        node(
            3,
            "Sampler",
            values=list(sampler_values),
            inputs=[socket("model", "MODEL", 1), socket("latent", "LATENT", 2)],
            outputs=["LATENT"],
        ),
    ]
    links = [[1, 1, 0, 3, 0, "MODEL"], [2, 2, 0, 3, 1, "LATENT"]]
    if middle is not None:
        nodes.append(middle)
        links[1] = [2, middle["id"], 0, 3, 1, "LATENT"]
        links.append([3, 2, 0, middle["id"], 0, "LATENT"])
    return {"nodes": nodes, "links": links, "version": 0.4}


def test_widgets_are_read_in_order_and_control_values_skipped():
    api = to_api(base(), INFO)
    assert api["3"]["inputs"] == {
        "model": ["1", 0],
        "seed": 7,
        "steps": 12,
        "sampler_name": "heun",
        "latent": ["2", 0],
        "note": "hi",
    }
    assert api["2"]["inputs"] == {"noise_seed": 5, "size": 32}
    assert api["1"]["inputs"] == {"name": "b"}


def test_titles_come_from_the_file_then_the_definition_then_the_class():
    workflow = base()
    workflow["nodes"][1]["title"] = "Start"
    titles = {key: entry["_meta"]["title"] for key, entry in to_api(workflow, INFO).items()}
    assert titles == {"1": "Loader", "2": "Start", "3": "A Sampler"}


def test_missing_trailing_values_take_their_defaults():
    assert to_api(base(sampler_values=(7, "fixed", 12, "heun")), INFO)["3"]["inputs"]["note"] == "hello"


def test_value_of_a_forced_input_in_an_old_file_is_dropped():
    api = to_api(base(sampler_values=(7, "fixed", 12, "heun", "hi", 0.5)), INFO)
    assert "strength" not in api["3"]["inputs"]
    assert api["3"]["inputs"]["note"] == "hi"


def test_widget_values_may_be_a_mapping():
    workflow = base()
    workflow["nodes"][1]["widgets_values"] = {"size": 16, "noise_seed": 3, "gone": 1}
    assert to_api(workflow, INFO)["2"]["inputs"] == {"noise_seed": 3, "size": 16}


def test_list_values_are_wrapped_so_that_they_are_no_links():
    workflow = base(sampler_values=(7, "fixed", 12, "heun", ["1", 0]))
    assert to_api(workflow, INFO)["3"]["inputs"]["note"] == {"__value__": ["1", 0]}


def test_converted_widget_takes_its_link_and_still_counts_in_the_order():
    workflow = base()
    workflow["nodes"][2]["inputs"].append(
        {"name": "steps", "type": "INT", "link": 9, "widget": {"name": "steps"}},
    )
    workflow["nodes"].append(node(4, "Text", values=["x"], outputs=["INT"]))
    workflow["links"].append([9, 4, 0, 3, 2, "INT"])
    inputs = to_api(workflow, INFO)["3"]["inputs"]
    assert inputs["steps"] == ["4", 0]
    assert inputs["sampler_name"] == "heun"


def test_primitive_becomes_a_value():
    workflow = base()
    workflow["nodes"][2]["inputs"].append({"name": "steps", "type": "INT", "link": 9, "widget": {"name": "steps"}})
    workflow["nodes"].append(node(4, "PrimitiveNode", values=[33, "fixed"], outputs=["INT"]))
    workflow["links"].append([9, 4, 0, 3, 2, "INT"])
    api = to_api(workflow, INFO)
    assert api["3"]["inputs"]["steps"] == 33
    assert "4" not in api


def test_reroutes_and_notes_disappear():
    reroute = node(4, "Reroute", inputs=[socket("", "*", 3)], outputs=["LATENT"])
    workflow = base(middle=reroute)
    workflow["nodes"].append(node(5, "Note", values=["read me"]))
    workflow["nodes"].append(node(6, "MarkdownNote", values=["# read me"]))
    api = to_api(workflow, INFO)
    assert set(api) == {"1", "2", "3"}
    assert api["3"]["inputs"]["latent"] == ["2", 0]


def test_bypassed_node_hands_its_input_of_the_same_type_on():
    upscale = node(4, "Upscale", values=[2.0], inputs=[socket("latent", "LATENT", 3)], outputs=["LATENT"], mode=4)
    api = to_api(base(middle=upscale), INFO)
    assert "4" not in api
    assert api["3"]["inputs"]["latent"] == ["2", 0]


def test_bypassed_node_without_a_fitting_input_breaks_the_link():
    text = node(4, "Text", values=["x"], inputs=[socket("text", "STRING", 3)], outputs=["LATENT"], mode=4)
    assert "latent" not in to_api(base(middle=text), INFO)["3"]["inputs"]


def test_muted_node_is_left_out_with_the_links_to_it():
    upscale = node(4, "Upscale", values=[2.0], inputs=[socket("latent", "LATENT", 3)], outputs=["LATENT"], mode=2)
    api = to_api(base(middle=upscale), INFO)
    assert "4" not in api
    assert "latent" not in api["3"]["inputs"]


def test_links_may_be_objects_as_in_schema_1():
    workflow = base()
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    workflow["links"] = [dict(zip(names, link, strict=True)) for link in workflow["links"]]
    assert to_api(workflow, INFO)["3"]["inputs"]["model"] == ["1", 0]


def test_damaged_links_are_named():
    workflow = base()
    workflow["links"].pop()
    with pytest.raises(BadInput, match="link 2 leads nowhere"):
        to_api(workflow, INFO)


def test_circle_of_reroutes_is_named():
    reroute = node(4, "Reroute", inputs=[socket("", "*", 3)], outputs=["LATENT"])
    workflow = base(middle=reroute)
    workflow["links"][2] = [3, 4, 0, 4, 0, "LATENT"]
    with pytest.raises(BadInput, match="circle"):
        to_api(workflow, INFO)


def test_group_nodes_are_refused_with_the_way_out():
    workflow = base()
    workflow["nodes"].append(node(9, "workflow>My group"))
    with pytest.raises(BadInput, match=r"My group.*Export \(API\)"):
        to_api(workflow, INFO)


def test_pack_recorded_in_the_file_is_found():
    workflow = base()
    workflow["nodes"][0]["properties"] = {"cnr_id": "comfy-core", "ver": "0.3.70"}
    workflow["nodes"][1]["properties"] = {"cnr_id": "some-pack"}
    workflow["nodes"][2]["properties"] = {"aux_id": "someone/other-pack"}
    assert origins_in(workflow) == {
        "Loader": Origin("comfy-core", "0.3.70"),
        "Latent": Origin("some-pack"),
        "Sampler": Origin("someone/other-pack"),
    }


def subgraph(*, promoted_value=None, linked=False, nested=False):
    """Top: Latent 2 -> instance 7 -> Upscale 8. Inside 7: border -> Sampler 3 (latent; steps as a widget) -> border."""
    inner_sampler = node(
        3,
        "Sampler",
        values=[7, "fixed", 12, "heun", "hi"],
        inputs=[socket("latent", "LATENT", 1), widget_socket("steps", "INT", 2)],
        outputs=["LATENT"],
    )
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    inner_links = [(1, -10, 0, 3, 0, "LATENT"), (2, -10, 1, 3, 1, "INT"), (3, 3, 0, -20, 0, "LATENT")]
    definition = {
        "id": "aaaa",
        "name": "My sub-graph",
        "inputs": [{"name": "latent", "type": "LATENT"}, {"name": "steps", "type": "INT"}],
        "outputs": [{"name": "LATENT", "type": "LATENT"}],
        "nodes": [inner_sampler],
        "links": [dict(zip(names, link, strict=True)) for link in inner_links],
    }
    if nested:
        definition["nodes"].append(node(9, "aaaa"))
    inputs = [socket("latent", "LATENT", 1)]
    nodes = [node(2, "Latent", values=[5, "fixed", 32], outputs=["LATENT"])]
    links = [[1, 2, 0, 7, 0, "LATENT"], [2, 7, 0, 8, 0, "LATENT"]]
    if linked:
        inputs.append(widget_socket("steps", "INT", 3))
        nodes.append(node(4, "PrimitiveNode", values=[40, "fixed"], outputs=["INT"]))
        links.append([3, 4, 0, 7, 1, "INT"])
    values = [] if promoted_value is None else [promoted_value]
    nodes.append(node(7, "aaaa", values=values, inputs=inputs, outputs=["LATENT"]))
    nodes.append(node(8, "Upscale", values=[2.0], inputs=[socket("latent", "LATENT", 2)]))
    return {"nodes": nodes, "links": links, "definitions": {"subgraphs": [definition]}, "version": 0.4}


def test_nodes_of_a_subgraph_get_composite_ids_and_links_cross_the_border():
    api = to_api(subgraph(), INFO)
    assert set(api) == {"2", "7:3", "8"}
    assert api["7:3"]["inputs"]["latent"] == ["2", 0]
    assert api["8"]["inputs"]["latent"] == ["7:3", 0]
    assert api["7:3"]["inputs"]["steps"] == 12


def test_promoted_widget_of_a_subgraph_wins_over_the_inner_value():
    assert to_api(subgraph(promoted_value=33), INFO)["7:3"]["inputs"]["steps"] == 33


def test_link_into_a_promoted_widget_wins_over_both():
    assert to_api(subgraph(promoted_value=33, linked=True), INFO)["7:3"]["inputs"]["steps"] == 40


def test_bypassed_and_muted_subgraphs():
    workflow = subgraph()
    workflow["nodes"][1]["mode"] = 4
    assert to_api(workflow, INFO)["8"]["inputs"]["latent"] == ["2", 0]
    workflow["nodes"][1]["mode"] = 2
    assert set(to_api(workflow, INFO)) == {"2", "8"}
    assert "latent" not in to_api(workflow, INFO)["8"]["inputs"]


def test_subgraph_inside_itself_is_named():
    with pytest.raises(BadInput, match="My sub-graph contains itself"):
        to_api(subgraph(nested=True), INFO)


BORDERLESS = {"id": "a", "name": "Inner", "nodes": [], "links": []}
BORDERLESS["nodes"] = [{"id": 5, "type": "Text", "inputs": [{"name": "text", "type": "STRING", "link": 1}]}]
BORDERLESS["links"] = [{"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 5, "target_slot": 0}]

DAMAGED = {
    "the sub-graph Inner has no input 0": {
        "nodes": [{"id": 1, "type": "a"}],
        "definitions": {"subgraphs": [BORDERLESS]},
    },
    "nodes[0] must be an object": {"nodes": [1]},
    "nodes[0].type must be": {"nodes": [{"id": 1}]},
    "nodes[0].id must be": {"nodes": [{"type": "Text"}]},
    "nodes[0].inputs must be a list": {"nodes": [{"id": 1, "type": "Text", "inputs": {"a": 1}}]},
    "nodes[0].inputs[0].name must be": {"nodes": [{"id": 1, "type": "Text", "inputs": [{"link": 1}]}]},
    "nodes[0].inputs[0].widget must be": {
        "nodes": [{"id": 1, "type": "Text", "inputs": [{"name": "text", "widget": "text"}]}]
    },
    "nodes[0].widgets_values must be": {"nodes": [{"id": 1, "type": "Text", "widgets_values": "x"}]},
    "links must be a list": {"nodes": [], "links": {"1": 2}},
    "links[1] must be": {"nodes": [], "links": [[1, 2, 0, 3, 0, "IMAGE"], [1, 2]]},
    "links[0] must be": {"nodes": [], "links": [{"id": 1, "origin_id": 2}]},
    "definitions must be": {"nodes": [], "definitions": []},
    "definitions.subgraphs[0].id must be": {"nodes": [], "definitions": {"subgraphs": [{"nodes": []}]}},
    "definitions.subgraphs[0].nodes[0] must be": {
        "nodes": [],
        "definitions": {"subgraphs": [{"id": "a", "inputs": [], "outputs": [], "nodes": [None]}]},
    },
}


@pytest.mark.parametrize("words", DAMAGED)
def test_damaged_files_are_refused_by_place(words):
    with pytest.raises(BadInput) as caught:
        to_api(DAMAGED[words], INFO)
    assert words in str(caught.value)
