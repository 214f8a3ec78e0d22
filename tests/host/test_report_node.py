"""Search Report inside ComfyUI: from a real search to a saved picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def searched():
    """(images, scores, trace) of an FK search over two images on the embedded model."""
    import nodes
    from testtime.nodes.family_nodes import LoadShapesWorldNode
    from testtime.nodes.search_ksampler import SearchKSamplerNode
    from testtime.samplers.methods import FKSteering

    stock = nodes.NODE_CLASS_MAPPINGS
    with torch.inference_mode():
        model, clip, vae, verifier, held_out = LoadShapesWorldNode.execute("diffusion").args
        positive = stock["CLIPTextEncode"]().encode(clip, "a red star")[0]
        negative = stock["CLIPTextEncode"]().encode(clip, "")[0]
        latent = stock["EmptyLatentImage"]().generate(128, 128, 2)[0]
        _, finalists, scores, trace = SearchKSamplerNode.execute(
            model=model, seed=1, steps=6, cfg=4.0, scheduler="normal", positive=positive, negative=negative,
            latent_image=latent, denoise=1.0, verifier=verifier, vae=vae, search=FKSteering(particles=3, every=2),
            eta=1.0, prompt="a red star", held_out=held_out,
        ).args  # fmt: skip
        images = stock["VAEDecode"]().decode(vae, finalists)[0]
    return images, scores, trace


@pytest.fixture
def output(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


def test_a_search_becomes_a_saved_picture(searched, output):
    from testtime.nodes.report_nodes import PICTURE_AND_TRACE, SearchReportNode
    from testtime.samplers.run.trace import Trace

    images, scores, trace = searched
    out = SearchReportNode.execute(trace, images, scores, save=PICTURE_AND_TRACE, filename_prefix="deep/report")
    image = out.args[0]
    assert image.shape[0] == 1 and image.shape[3] == 3 and float(image.min()) >= 0 and float(image.max()) <= 1
    entry = out.ui["images"][0]
    saved = Path(output, entry["subfolder"], entry["filename"])
    assert Image.open(saved).size == (image.shape[2], image.shape[1])
    again = Trace.from_json(saved.with_suffix(".json").read_text())
    assert [len(r.particles) for r in again.records] == [len(r.particles) for r in trace.records]
    assert json.loads(saved.with_suffix(".json").read_text())["meta"]["method"] == "fk"


def test_numbers_go_on_and_a_preview_leaves_the_output_folder_alone(searched, output, tmp_path_factory, monkeypatch):
    import folder_paths

    from testtime.nodes.report_nodes import NO_FILE, SearchReportNode

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path_factory.mktemp("temp")))
    names = [SearchReportNode.execute(searched[2]).ui["images"][0]["filename"] for _ in range(2)]
    assert names == ["search_report_00001_.png", "search_report_00002_.png"]
    SearchReportNode.execute(searched[2], save=NO_FILE)
    assert sorted(path.name for path in output.iterdir()) == names
    assert len(list(Path(folder_paths.temp_directory).iterdir())) == 1


def test_it_needs_no_images(searched, output):
    from testtime.nodes.report_nodes import SearchReportNode

    full = SearchReportNode.execute(searched[2], searched[0], searched[1]).args[0]
    bare = SearchReportNode.execute(searched[2]).args[0]
    assert bare.shape[1] < full.shape[1]


def test_scores_of_another_batch_are_refused(searched, output):
    from testtime.nodes.report_nodes import SearchReportNode
    from testtime.samplers.protocols import SearchError

    images, scores, trace = searched
    with pytest.raises(SearchError, match="finalists has 2 images and scores 6"):
        SearchReportNode.execute(trace, images[:2], scores)
