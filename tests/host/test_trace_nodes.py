"""Save Search, Load Trace and Continue Search inside ComfyUI: a search is saved, read, and goes on as it went."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.host

SAMPLING = {"seed": 5, "steps": 6, "cfg": 2.0, "scheduler": "normal", "denoise": 1.0, "eta": 1.0}
CLOSE = {"atol": 3e-3, "rtol": 0}  # one row and many differ in the last bit, which the steps amplify


@pytest.fixture(scope="module")
def family():
    import nodes
    from testtime.nodes.family_nodes import LoadShapesWorldNode

    stock = nodes.NODE_CLASS_MAPPINGS
    with torch.inference_mode():
        model, clip, vae, verifier, _ = LoadShapesWorldNode.execute("diffusion").args
        positive = stock["CLIPTextEncode"]().encode(clip, "a red star")[0]
        negative = stock["CLIPTextEncode"]().encode(clip, "")[0]
        latent = stock["EmptyLatentImage"]().generate(128, 128, 2)[0]
    graph = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    return graph, vae, verifier


def run(family, search, **changed):
    from testtime.nodes.search_ksampler import SearchKSamplerNode

    graph, vae, verifier = family
    inputs = {**graph, **SAMPLING, "verifier": verifier, "vae": vae, "prompt": "a <b>red</b> star", **changed}
    with torch.inference_mode():
        return SearchKSamplerNode.execute(search=search, **inputs).args


@pytest.fixture(scope="module")
def searched(family):
    """(best, finalists, scores, trace, decoded best, decoded finalists) of an SVDD search over two images."""
    import nodes
    from testtime.samplers.methods import SVDD

    best, finalists, scores, trace = run(family, SVDD(3))
    with torch.inference_mode():
        images = [nodes.NODE_CLASS_MAPPINGS["VAEDecode"]().decode(family[1], x)[0] for x in (best, finalists)]
    return best, finalists, scores, trace, *images


@pytest.fixture
def folders(tmp_path, monkeypatch):
    import folder_paths

    for name in ("output", "input"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    return tmp_path


def saved(searched, **inputs):
    from testtime.nodes.trace_nodes import SaveSearchNode

    _, _, _, trace, images, _ = searched
    return SaveSearchNode.execute(**{"images": images, "trace": trace, **inputs}).ui["images"]


def test_a_search_is_saved_with_everything(searched, folders):
    entries = saved(searched, filename_prefix="deep/search")
    files = [Path(folders, "output", entry["subfolder"], entry["filename"]) for entry in entries]
    assert len(files) == 2
    few = json.loads(Image.open(files[1]).info["testtime"])
    assert few["schema"] == 2 and few["seed"] == 5 and few["method"] == "svdd" and len(few["winners"]) == 2
    trace = json.loads(files[0].with_suffix(".json").read_text(encoding="utf-8"))
    assert trace["format"] == "testtime-trace" and len(trace["records"]) == len(searched[3].records)
    winners = {str(w["particle"]) for w in few["winners"]}
    assert winners < set(trace["thumbs"])  # more than the winners: previews of their ways
    page = files[0].with_suffix(".html").read_text(encoding="utf-8")
    assert "a &lt;b&gt;red&lt;/b&gt; star" in page and "<b>red" not in page
    assert files[0].with_suffix(".json").stat().st_size < 300_000


def test_finalists_need_their_scores(searched, folders):
    from testtime.samplers.protocols import SearchError

    _, _, scores, _, _, finalists = searched
    with pytest.raises(SearchError, match="connect `scores`"):
        saved(searched, images=finalists)
    entries = saved(searched, images=finalists, scores=scores, page=False)
    trace = Path(folders, "output", entries[0]["filename"]).with_suffix(".json")
    assert {str(particle) for particle in scores.particles} <= set(json.loads(trace.read_text())["thumbs"])
    assert not trace.with_suffix(".html").exists()


def test_the_report_node_writes_the_page_and_the_essentials_too(searched, folders):
    from testtime.nodes.report_nodes import EVERYTHING, SearchReportNode

    _, _, scores, trace, _, finalists = searched
    entry = SearchReportNode.execute(trace, finalists, scores, save=EVERYTHING).ui["images"][0]
    file = Path(folders, "output", entry["filename"])
    assert json.loads(Image.open(file).info["testtime"])["seed"] == 5
    assert file.with_suffix(".json").exists() and file.with_suffix(".html").exists()


@pytest.mark.parametrize("step", [2, 4])
@pytest.mark.parametrize("suffix", [".json", ".png"])
def test_a_loaded_search_goes_on_as_it_went(family, searched, folders, step, suffix):
    """From the file alone, or from the image alone, and with the earlier settings: the same images."""
    from testtime.nodes.trace_nodes import ContinueSearchNode, LoadTraceNode, trace_choices
    from testtime.samplers.methods import SVDD

    entry = saved(searched)[0]
    name = Path(entry["filename"]).with_suffix(suffix).name
    if suffix == ".json":
        assert trace_choices()[0] == f"{name} [output]"
    assert LoadTraceNode.validate_inputs(f"{name} [output]") is True
    trace, seed, prompt = LoadTraceNode.execute(f"{name} [output]").args
    assert (seed, prompt) == (5, "a <b>red</b> star")
    search = ContinueSearchNode.execute(SVDD(3), trace, -1, step, 0).args[0]
    best, finalists, _scores, again = run(family, search, seed=seed)
    assert torch.allclose(best["samples"], searched[0]["samples"], **CLOSE)
    assert torch.allclose(finalists["samples"], searched[1]["samples"], **CLOSE)
    assert again.meta["continued"]["step"] == step

    other = ContinueSearchNode.execute(SVDD(3), trace, -1, step, 1).args[0]
    assert not torch.allclose(run(family, other, seed=seed)[0]["samples"], searched[0]["samples"], **CLOSE)


def test_other_methods_go_on_with_more_particles_and_replay(family, searched):
    from testtime.nodes.replay_node import RerenderParticleNode
    from testtime.nodes.trace_nodes import ContinueSearchNode
    from testtime.samplers.methods import SMC
    from testtime.samplers.smc.tempering import Alpha

    search = ContinueSearchNode.execute(SMC(4, alpha=Alpha(0.5, "absolute")), searched[3], -1, 3, 2).args[0]
    best, finalists, _, trace = run(family, search)
    assert len(finalists["samples"]) == 8
    with torch.inference_mode():
        again = RerenderParticleNode.execute(trace=trace, particle=-1, image=1, **family[0], **SAMPLING).args[0]
    assert torch.allclose(again["samples"][0], best["samples"][1], **CLOSE)


def test_files_that_cannot_be_read_are_refused(folders):
    from testtime.nodes.trace_nodes import NO_TRACE, LoadTraceNode, trace_choices
    from testtime.samplers.protocols import SearchError

    assert trace_choices() == [NO_TRACE]
    (folders / "secret.json").write_text("{}")
    out = folders / "output"
    (out / "cut.json").write_text('{"schema": 1, "records": [{"parti')
    (out / "new.json").write_text('{"schema": 3, "records": [], "version": "3.0"}')
    (out / "notes.txt").write_text("hello")
    for name, message in (
        (NO_TRACE, "choose a trace"),
        ("../secret.json", "must lie in ComfyUI's output folder"),
        (f"{folders}/secret.json [input]", "must lie in ComfyUI's input folder"),
        ("missing.json", "no such file"),
        ("notes.txt", "a trace .*is needed"),
    ):
        said = LoadTraceNode.validate_inputs(name)
        assert isinstance(said, str)
        with pytest.raises(SearchError, match=message):
            LoadTraceNode.execute(name)
        assert LoadTraceNode.fingerprint_inputs(name) == ""
    for name, message in (("cut.json", "ends in the middle"), ("new.json [output]", "written by version 3.0")):
        assert LoadTraceNode.validate_inputs(name) is True
        with pytest.raises(SearchError, match=message):
            LoadTraceNode.execute(name)


def test_a_finished_particle_or_another_seed_is_refused(family, searched):
    from testtime.nodes.trace_nodes import ContinueSearchNode
    from testtime.samplers.methods import SVDD, RandomSearch
    from testtime.samplers.protocols import SearchError

    with pytest.raises(SearchError, match="finished"):
        run(family, ContinueSearchNode.execute(SVDD(3), searched[3], -1, -1, 0).args[0])
    search = ContinueSearchNode.execute(SVDD(3), searched[3], -1, 2, 0).args[0]
    with pytest.raises(SearchError, match="seed is 6"):
        run(family, search, seed=6)
    with pytest.raises(SearchError, match="starting noises"):
        ContinueSearchNode.execute(RandomSearch(3), searched[3], -1, 2, 0)
