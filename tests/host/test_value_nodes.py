"""Learned values inside ComfyUI: loading, what the network is told, SVDD and SMC with it, wrong networks."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.methods import SVDD
from testtime.samplers.protocols import SearchError
from testtime.values.network import ValueConfig, ValueNetwork

pytestmark = pytest.mark.host


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """models/value_networks, with a network for the embedded family and one for SD3."""
    import folder_paths

    from testtime.nodes import value_nodes

    monkeypatch.setitem(folder_paths.folder_names_and_paths, value_nodes.FOLDER, ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.pop(value_nodes.FOLDER, None)
    yield tmp_path
    folder_paths.filename_list_cache.pop(value_nodes.FOLDER, None)


def write(folder, name, **config):
    torch.manual_seed(0)
    network = ValueNetwork(ValueConfig(**{"channels": 4, "width": 16, **config}), {"verifier": "redness"})
    network.save(folder / name)


@pytest.fixture
def load(folder):
    from testtime.nodes.value_nodes import LoadValueNetworkNode

    def get(name, **config):
        write(folder, name, **config)
        with torch.inference_mode():
            return LoadValueNetworkNode.execute(name).args[0]

    return get


@pytest.mark.parametrize("method", ["SVDDNode", "SMCNode"])
def test_searches_choose_by_the_learned_value(setup, search_ksampler, load, method):
    from testtime.nodes import method_nodes

    given = setup("eps", batch=2)
    inputs = {"alpha": 0.5, "alpha_mode": "relative", "start": 0.0, "end": 0.9, "every": 1}
    if method == "SVDDNode":
        inputs["candidates"] = 3
    else:
        inputs |= {"particles": 3, "tempering": "exponential", "ess_threshold": 1.5, "resampling": "systematic"}
    value = load("sd.safetensors", condition=16)
    search = getattr(method_nodes, method).execute(**inputs, value_function=value).args[0]
    out = search_ksampler(given, search, steps=4)
    assert torch.isfinite(out.best["samples"]).all()
    finished = 2 if method == "SVDDNode" else 6
    assert out.trace.meta["ledger"]["decodes"] == finished  # nothing is decoded on the way
    if method == "SVDDNode":
        assert out.trace.meta["ledger"]["nfe"] == 2 * 4 * 2  # images, steps, branches: no call per candidate


def test_the_prompt_reaches_the_network_as_in_the_library():
    """The embedding that a network was trained with in Python is the one that it gets in ComfyUI."""
    import nodes
    from testtime.models.tiny.pipeline import SamplingSettings, shapes_process
    from testtime.nodes.family_nodes import LoadShapesWorldNode
    from testtime.nodes.search_ksampler import SearchKSamplerNode

    seen = []

    class Looking:
        verifier, caveat = "", ""

        def check(self, process):
            pass

        def bind(self, process):
            def value(x, sigma, group):
                seen.append(process.prompt_embedding(group))
                return torch.zeros(len(x))

            return value

    stock = nodes.NODE_CLASS_MAPPINGS
    with torch.inference_mode():
        model, clip, vae, verifier, _ = LoadShapesWorldNode.execute("flow").args
        positive, negative = (stock["CLIPTextEncode"]().encode(clip, text)[0] for text in ("a red star", ""))
        latent = stock["EmptyLatentImage"]().generate(128, 128, 1)[0]
        SearchKSamplerNode.execute(
            model=model, positive=positive, negative=negative, latent_image=latent, seed=1, steps=3, cfg=2.0,
            scheduler="simple", denoise=1.0, eta=1.0, vae=vae, verifier=verifier, prompt="a red star",
            search=SVDD(2, value_function=Looking()),
        )  # fmt: skip
    process = shapes_process(["a red star"], SamplingSettings(model="flow", steps=3))
    expected = process.prompt_embedding(torch.tensor([0, 0]))
    assert seen and torch.allclose(seen[0].cpu(), expected, atol=1e-5)


def test_networks_of_another_model_are_named(setup, search_ksampler, load):
    given = setup("eps")
    with pytest.raises(SearchError, match=r"takes latents \[16, h, w\].*are \[4, 8, 8\]"):
        search_ksampler(given, SVDD(2, value_function=load("sd3.safetensors", channels=16, condition=16)))
    with pytest.raises(SearchError, match=r"prompt embedding of width 77.*one of width 16"):
        search_ksampler(given, SVDD(2, value_function=load("wide.safetensors", condition=77)))


def test_missing_and_foreign_files_are_named_when_queued(folder):
    from safetensors.torch import save_file

    from testtime.nodes.value_nodes import NO_FILE, LoadValueNetworkNode, choices

    assert choices() == [NO_FILE]
    assert "testtime train-value" in LoadValueNetworkNode.validate_inputs(file=NO_FILE)
    save_file({"a": torch.zeros(1)}, folder / "other.safetensors")
    assert LoadValueNetworkNode.validate_inputs(file="other.safetensors") is True
    with pytest.raises(SearchError, match="no value network of this pack"):
        LoadValueNetworkNode.execute("other.safetensors")
