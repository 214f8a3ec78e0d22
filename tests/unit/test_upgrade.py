"""Search with this sampler: what is kept, what is found, what is refused, and the way back, in both formats."""

from __future__ import annotations

from copy import deepcopy

import pytest

from testtime.graph.convert import to_api
from testtime.graph.exchange import Wanted
from testtime.graph.places import box_of, overlap
from testtime.graph.record import RECORD
from testtime.graph.restore import back
from testtime.graph.upgrade import samplers_in, upgrade
from testtime.installation.errors import BadInput

COND, STRING = ["CONDITIONING"], ["STRING", {"multiline": True}]
INT, FLOAT = ["INT", {"default": 1}], ["FLOAT", {"default": 1.0}]


def define(outputs: list[str], names: list[str] | None = None, optional: dict | None = None, **required) -> dict:
    sections = {"required": required, "optional": optional or {}}
    return {"input": sections, "output": outputs, "output_name": names or outputs, "python_module": "nodes"}


SAMPLING = {
    "seed": ["INT", {"default": 0}],
    "steps": ["INT", {"default": 20}],
    "cfg": ["FLOAT", {"default": 8.0}],
}
JUDGING = {
    "verifier": ["TESTTIME_VERIFIER"],
    "vae": ["VAE"],
    "search": ["TESTTIME_SEARCH"],
    "eta": ["FLOAT", {"default": 1.0}],
    "prompt": STRING,
}
COMMON = {"positive": COND, "negative": COND, "latent_image": ["LATENT"]}
SCHEDULER, SAMPLER = [["normal", "karras"]], [["euler", "lcm"]]
INFO = {
    "Load": define(["MODEL", "CLIP", "VAE"], name=[["a"]]),
    "Encode": define(["CONDITIONING"], text=["STRING", {"multiline": True, "dynamicPrompts": True}], clip=["CLIP"]),
    "LotusConditioning": define(["CONDITIONING"], strength=FLOAT),
    "Depth": define(["CONDITIONING"], strength=FLOAT),
    "Guide": define(["CONDITIONING"], conditioning=COND, guidance=FLOAT),
    "Control": define(["CONDITIONING", "CONDITIONING"], ["positive", "negative"], positive=COND, negative=COND),
    "Combine": define(["CONDITIONING"], conditioning_1=COND, conditioning_2=COND),
    "Text": define(["STRING"], value=STRING),
    "Ask": define(["STRING"], prompt=STRING, seed=["INT", {"default": 0}]),
    "Empty": define(["LATENT"], width=INT),
    "Clip": define(["LATENT"], width=INT, length=["INT", {"default": 1}]),
    "Upscale": define(["LATENT"], samples=["LATENT"]),
    "Decode": define(["IMAGE"], samples=["LATENT"], vae=["VAE"]),
    "Hear": define(["AUDIO"], samples=["LATENT"], vae=["VAE"]),
    "Save": define([], images=["IMAGE"]),
    "Film": define(["VIDEO"], images=["IMAGE"]),
    "KSampler": define(
        ["LATENT"], model=["MODEL"], **SAMPLING, sampler_name=SAMPLER, scheduler=SCHEDULER, **COMMON, denoise=FLOAT
    ),
    "KSamplerAdvanced": define(
        ["LATENT"], model=["MODEL"], add_noise=[["enable", "disable"]], noise_seed=["INT", {"default": 0}],
        steps=["INT", {"default": 20}], cfg=FLOAT, sampler_name=SAMPLER, scheduler=SCHEDULER, **COMMON,
        start_at_step=["INT", {"default": 0}], end_at_step=["INT", {"default": 10000}],
        return_with_leftover_noise=[["disable", "enable"]],
    ),
    "SamplerCustom": define(
        ["LATENT", "LATENT"], ["output", "denoised_output"], model=["MODEL"], add_noise=["BOOLEAN", {"default": True}],
        noise_seed=["INT", {"default": 0}], cfg=FLOAT, positive=COND, negative=COND, sampler=["SAMPLER"],
        sigmas=["SIGMAS"], latent_image=["LATENT"],
    ),
    "SamplerCustomAdvanced": define(
        ["LATENT", "LATENT"], noise=["NOISE"], guider=["GUIDER"], sampler=["SAMPLER"], sigmas=["SIGMAS"],
        latent_image=["LATENT"],
    ),
    "CFGGuider": define(["GUIDER"], model=["MODEL"], positive=COND, negative=COND, cfg=FLOAT),
    "RandomNoise": define(["NOISE"], noise_seed=["INT", {"default": 0}]),
    "KSamplerSelect": define(["SAMPLER"], sampler_name=SAMPLER),
    "BasicScheduler": define(["SIGMAS"], model=["MODEL"], scheduler=SCHEDULER, steps=INT, denoise=FLOAT),
    "SplitSigmas": define(["SIGMAS", "SIGMAS"], ["high_sigmas", "low_sigmas"], sigmas=["SIGMAS"], step=INT),
    "Best": define(["TESTTIME_SEARCH"], particles=["INT", {"default": 4, "min": 1, "max": 1024}]),
    "Judge": define(["TESTTIME_VERIFIER"], model=["COMBO", {"options": ["none found"]}]),
    "Fit": define(["TESTTIME_SEARCH"], search=["TESTTIME_SEARCH"], nfe=INT, seconds=FLOAT),
    "OurKSampler": define(["LATENT"], model=["MODEL"], **SAMPLING, scheduler=SCHEDULER, **COMMON, denoise=FLOAT,
                          **JUDGING),
    "OurSampler": define(["SAMPLER"], **JUDGING),
}  # fmt: skip
WANTED = Wanted("Best", "Judge", 6)


def plain(kind: str = "KSampler", **sampler) -> dict:
    """API format: a KSampler, decoded and saved; ``sampler`` changes its inputs."""
    inputs = {
        "model": ["1", 0], "seed": 7, "steps": 9, "cfg": 2.5, "sampler_name": "euler", "scheduler": "karras",
        "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "denoise": 0.8,
    }  # fmt: skip
    nodes = {
        "1": ("Load", {"name": "a"}),
        "2": ("Encode", {"text": "a fox", "clip": ["1", 1]}),
        "3": ("Encode", {"text": "blurry", "clip": ["1", 1]}),
        "4": ("Empty", {"width": 64}),
        "5": (kind, inputs | sampler),
        "6": ("Decode", {"samples": ["5", 0], "vae": ["1", 2]}),
        "7": ("Save", {"images": ["6", 0]}),
    }
    return {
        key: {"class_type": name, "inputs": values, "_meta": {"title": name}} for key, (name, values) in nodes.items()
    }


def add(workflow: dict, key: str, kind: str, **inputs) -> None:
    workflow[key] = {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def as_ui(workflow: dict) -> dict:
    """The UI-format twin, all nodes in one column."""
    nodes, links = [], []
    for row, (key, node) in enumerate(workflow.items()):
        specs = {k: v for part in INFO[node["class_type"]]["input"].values() for k, v in part.items()}
        inputs, values = [], []
        for name, spec in specs.items():
            value = node["inputs"].get(name)
            linked = isinstance(value, list)
            widget = isinstance(spec[0], list) or spec[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
            if linked or not widget:
                number = len(links) + 1 if linked else None
                inputs.append({"name": name, "type": str(spec[0]), "link": number})
                if widget:
                    inputs[-1]["widget"] = {"name": name}
                if linked:
                    links.append([number, int(value[0]), value[1], int(key), len(inputs) - 1, str(spec[0])])
            if widget:
                values += [0 if linked else value] + ["randomize"] * (name in ("seed", "noise_seed"))
        outputs = [{"name": kind, "type": kind, "links": None} for kind in INFO[node["class_type"]]["output"]]
        nodes.append({"id": int(key), "type": node["class_type"], "pos": [0, 300 * row], "size": [300, 260],
                      "mode": 0, "inputs": inputs, "outputs": outputs, "widgets_values": values})  # fmt: skip
    by_id = {node["id"]: node for node in nodes}
    for link in links:
        output = by_id[link[1]]["outputs"][link[2]]
        output["links"] = [*(output["links"] or []), link[0]]
    return {"nodes": nodes, "links": links, "last_node_id": len(nodes), "last_link_id": len(links), "version": 0.4}


def search_of(api: dict) -> dict:
    """Inputs of the node that holds the search."""
    return next(node["inputs"] for node in api.values() if node["class_type"].startswith("Our"))


@pytest.mark.parametrize("ui", [False, True])
def test_everything_of_a_ksampler_is_kept(ui):
    workflow = as_ui(plain()) if ui else plain()
    done = upgrade(workflow, INFO, "5", WANTED)
    api = to_api(done.workflow, INFO) if ui else done.workflow
    before = plain()
    sampler = api["5"]
    assert sampler["class_type"] == "OurKSampler"
    kept = {name: value for name, value in before["5"]["inputs"].items() if name != "sampler_name"}
    assert {name: sampler["inputs"][name] for name in kept} == kept
    assert sampler["inputs"]["vae"] == ["1", 2] and sampler["inputs"]["prompt"] == "a fox"
    assert sampler["inputs"]["eta"] == 0.0
    assert api[sampler["inputs"]["search"][0]]["inputs"] == {"particles": 6}
    assert api[sampler["inputs"]["verifier"][0]]["class_type"] == "Judge"
    assert {key: node for key, node in api.items() if key in before and key != "5"} == {
        key: node for key, node in before.items() if key != "5"
    }
    assert done.prompt_found and any("no model found for model" in note for note in done.notes)


def samplers() -> list[dict]:
    """One workflow for each class of samplers."""
    advanced = plain("KSamplerAdvanced", add_noise="enable", noise_seed=3, start_at_step=2, end_at_step=6,
                     return_with_leftover_noise="enable")  # fmt: skip
    for name in ("seed", "denoise"):
        del advanced["5"]["inputs"][name]
    custom = plain("SamplerCustom")
    for name in ("seed", "denoise", "steps", "sampler_name", "scheduler"):
        del custom["5"]["inputs"][name]
    custom["5"]["inputs"] |= {"add_noise": True, "noise_seed": 5, "sampler": ["8", 0], "sigmas": ["9", 0]}
    add(custom, "8", "KSamplerSelect", sampler_name="lcm")
    add(custom, "9", "BasicScheduler", model=["1", 0], scheduler="normal", steps=4, denoise=1.0)
    guided = deepcopy(custom)
    guided["5"] = {"class_type": "SamplerCustomAdvanced", "_meta": {"title": "SamplerCustomAdvanced"}, "inputs": {
        "noise": ["11", 0], "guider": ["10", 0], "sampler": ["8", 0], "sigmas": ["9", 0], "latent_image": ["4", 0],
    }}  # fmt: skip
    add(guided, "10", "CFGGuider", model=["1", 0], positive=["2", 0], negative=["3", 0], cfg=2.0)
    add(guided, "11", "RandomNoise", noise_seed=4)
    return [plain(), advanced, custom, guided]


@pytest.mark.parametrize("workflow", samplers(), ids=lambda workflow: workflow["5"]["class_type"])
@pytest.mark.parametrize("ui", [False, True])
def test_back_gives_exactly_the_workflow_of_before(workflow, ui):
    workflow = as_ui(workflow) if ui else workflow
    copy = deepcopy(workflow)
    done = upgrade(workflow, INFO, "5", WANTED)
    assert workflow == copy and done.workflow != copy
    assert back(done.workflow, INFO, "5").workflow == copy


@pytest.mark.parametrize("workflow", samplers(), ids=lambda workflow: workflow["5"]["class_type"])
def test_nothing_overlaps_and_all_has_its_prompt_and_vae(workflow):
    done = upgrade(as_ui(workflow), INFO, "5", WANTED).workflow
    boxes = [box_of(node) for node in done["nodes"]]
    assert not [1 for k, one in enumerate(boxes) for other in boxes[:k] if overlap(one, other)]
    held = search_of(to_api(done, INFO))
    assert held["vae"] == ["1", 2] and held["prompt"] == "a fox"


def test_the_advanced_sampler_keeps_its_part_of_the_sigmas():
    api = upgrade(samplers()[1], INFO, "5", WANTED).workflow
    late = api[api["5"]["inputs"]["sigmas"][0]]
    early = api[late["inputs"]["sigmas"][0]]
    whole = api[early["inputs"]["sigmas"][0]]
    assert (late["inputs"]["step"], api["5"]["inputs"]["sigmas"][1]) == (2, 1)
    assert (early["inputs"]["step"], late["inputs"]["sigmas"][1]) == (6, 0)
    assert whole["inputs"] == {"model": ["1", 0], "scheduler": "karras", "steps": 9, "denoise": 1.0}
    assert api["5"]["inputs"]["add_noise"] is True and api["5"]["inputs"]["noise_seed"] == 3


def test_values_changed_since_then_are_carried_back():
    done = upgrade(as_ui(plain()), INFO, "5", WANTED).workflow
    search = next(node for node in done["nodes"] if node["id"] == 5)
    search["widgets_values"][2] = 33  # steps, behind the seed and its control
    restored = next(node for node in back(done, INFO, "5").workflow["nodes"] if node["id"] == 5)
    assert restored["widgets_values"] == [7, "randomize", 33, 2.5, "euler", "karras", 0.8]
    assert RECORD not in restored.get("properties", {})


def test_the_prompt_is_followed_through_the_nodes_in_between():
    workflow = plain(positive=["9", 0], negative=["9", 1])
    add(workflow, "8", "Guide", conditioning=["2", 0], guidance=3.0)
    add(workflow, "9", "Control", positive=["8", 0], negative=["3", 0])
    assert search_of(upgrade(workflow, INFO, "5", WANTED).workflow)["prompt"] == "a fox"
    add(workflow, "10", "Encode", text="in the snow", clip=["1", 1])
    add(workflow, "11", "Combine", conditioning_1=["2", 0], conditioning_2=["10", 0])
    workflow["8"]["inputs"]["conditioning"] = ["11", 0]
    done = upgrade(workflow, INFO, "5", WANTED)
    assert search_of(done.workflow)["prompt"] == "a fox, in the snow" and "2 texts" in done.notes[-1]


def test_a_linked_prompt_is_linked_again_and_the_vae_found_behind_other_nodes():
    workflow = plain()
    add(workflow, "8", "Ask", prompt="describe a fox", seed=1)
    workflow["2"]["inputs"]["text"] = ["8", 0]
    add(workflow, "9", "Upscale", samples=["5", 0])
    workflow["6"]["inputs"]["samples"] = ["9", 0]
    for given in (workflow, as_ui(workflow)):
        done = upgrade(given, INFO, "5", WANTED).workflow
        held = search_of(to_api(done, INFO) if "nodes" in done else done)
        assert held["prompt"] == ["8", 0] and held["vae"] == ["1", 2]


def test_without_a_text_the_prompt_is_empty_and_a_note_says_so():
    workflow = plain()
    workflow["2"]["inputs"]["text"] = ""
    done = upgrade(workflow, INFO, "5", WANTED)
    assert not done.prompt_found and search_of(done.workflow)["prompt"] == ""
    assert "type it into the search node" in done.notes[-1] and done.in_words


def test_a_sampler_without_a_text_encoder_is_told_apart():
    workflow = plain(positive=["8", 0])
    add(workflow, "8", "Depth", strength=1.0)
    for given in (workflow, as_ui(workflow)):
        done = upgrade(given, INFO, "5", WANTED)
        assert not done.prompt_found and not done.in_words
        assert "told nothing in words" in done.notes[-1] and "Depth" in done.notes[-1]


def test_maps_of_lotus_are_refused():
    workflow = plain(positive=["8", 0])
    add(workflow, "8", "LotusConditioning", strength=1.0)
    assert "searches cannot steer it" in refused(workflow)


def test_of_several_texts_the_one_that_is_made_during_the_run_is_linked():
    workflow = plain(positive=["11", 0])
    add(workflow, "8", "Ask", prompt="describe a fox", seed=1)
    add(workflow, "10", "Encode", text=["8", 0], clip=["1", 1])
    add(workflow, "11", "Combine", conditioning_1=["2", 0], conditioning_2=["10", 0])
    for given in (workflow, as_ui(workflow)):
        done = upgrade(given, INFO, "5", WANTED)
        held = search_of(to_api(done.workflow, INFO) if "nodes" in done.workflow else done.workflow)
        assert held["prompt"] == ["8", 0] and done.prompt_found and "2 texts" in done.notes[-1]


def refused(workflow: dict, key: str = "5", wanted: Wanted = WANTED) -> str:
    with pytest.raises(BadInput) as caught:
        upgrade(workflow, INFO, key, wanted)
    return str(caught.value)


def test_what_cannot_be_searched_is_refused_in_a_sentence():
    video = plain()
    add(video, "4", "Clip", width=64, length=81)
    assert "makes a video of 81 frames" in refused(video)
    video["4"]["inputs"]["length"] = 1
    assert upgrade(video, INFO, "5", WANTED).prompt_found
    film = plain()
    add(film, "7", "Film", images=["6", 0])
    assert "makes a video" in refused(film)
    sound = plain()
    sound["6"]["class_type"] = "Hear"
    assert "makes sound" in refused(sound)
    alone = {key: node for key, node in plain().items() if key not in ("6", "7")}
    assert "never meets a VAE" in refused(alone)
    unknown = plain()
    unknown["6"]["class_type"] = "FromElsewhere"
    assert "FromElsewhere" in refused(unknown) and "does not know" in refused(unknown)
    muted = as_ui(plain())
    next(node for node in muted["nodes"] if node["id"] == 5)["mode"] = 4
    assert "bypassed" in refused(muted)
    assert "choose one of KSampler" in refused(plain(), "2") and "no node of this id" in refused(plain(), "99")
    early = samplers()[1]
    early["5"]["inputs"]["return_with_leftover_noise"] = "disable"
    assert "return_with_leftover_noise" in refused(early)
    assert "Choose one of Best" in refused(plain(), wanted=Wanted("Worst", "Judge"))
    assert "from 1 to 1024" in refused(plain(), wanted=Wanted("Best", "Judge", 0))
    with pytest.raises(BadInput, match="choose a search node"):
        back(plain(), INFO, "5")


def test_a_time_limit_brings_the_node_that_keeps_it():
    done = upgrade(plain(), INFO, "5", Wanted("Best", "Judge", None, 30.0)).workflow
    limit = done[search_of(done)["search"][0]]
    assert limit["class_type"] == "Fit" and limit["inputs"]["seconds"] == 30.0
    assert done[limit["inputs"]["search"][0]]["inputs"] == {"particles": 4}


def in_a_subgraph() -> dict:
    """The workflow of ``plain`` inside of a sub-graph whose input is the prompt; one of its instances is node 20."""
    inner = as_ui(plain())
    links = [dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))
             for link in inner["links"]]  # fmt: skip
    encode = next(node for node in inner["nodes"] if node["id"] == 2)
    encode["inputs"].append({"name": "text", "type": "STRING", "widget": {"name": "text"}, "link": 90})
    links.append({"id": 90, "origin_id": -10, "origin_slot": 0, "target_id": 2,
                  "target_slot": len(encode["inputs"]) - 1, "type": "STRING"})  # fmt: skip
    border = [{"id": "b", "name": "text", "type": "STRING", "linkIds": [90]}]
    definition = {"id": "sub", "name": "Sub", "nodes": inner["nodes"], "links": links, "inputs": border,
                  "outputs": [], "state": {"lastNodeId": 20, "lastLinkId": 90}}  # fmt: skip
    instance = {"id": 20, "type": "sub", "pos": [0, 0], "size": [200, 100], "mode": 0, "outputs": [],
                "inputs": [{"name": "text", "type": "STRING", "widget": {"name": "text"}, "link": None}],
                "properties": {}, "widgets_values": ["a heron"]}  # fmt: skip
    return {"nodes": [instance], "links": [], "last_node_id": 20, "last_link_id": 90, "version": 0.4,
            "definitions": {"subgraphs": [definition]}}  # fmt: skip


@pytest.mark.parametrize("where", ["20:5", "sub/5"])
def test_inside_of_a_subgraph_the_prompt_comes_from_its_border(where):
    workflow = in_a_subgraph()
    assert samplers_in(workflow) == [("20:5", "KSampler")]
    done = upgrade(workflow, INFO, where, WANTED).workflow
    api = to_api(done, INFO)
    assert api["20:5"]["inputs"]["prompt"] == "a heron" and api["20:5"]["inputs"]["vae"] == ["20:1", 2]
    done["nodes"][0]["widgets_values"] = ["an owl"]
    assert to_api(done, INFO)["20:5"]["inputs"]["prompt"] == "an owl"
    done["nodes"][0]["widgets_values"] = ["a heron"]
    assert back(done, INFO, where).workflow == workflow


def test_values_that_an_instance_holds_by_name_go_by_name():
    workflow = in_a_subgraph()
    workflow["nodes"][0] |= {
        "widgets_values": ["of another input", "a heron"],
        "widgets_values_named": {"text": "an owl"},
    }
    assert to_api(workflow, INFO)["20:2"]["inputs"]["text"] == "an owl"
