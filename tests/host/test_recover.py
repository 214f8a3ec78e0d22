"""Recover Search: after Cancel or an error in what follows the search, and after kill -9 of ComfyUI itself."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from testtime.cli.main import main
from testtime.installation.comfyui import HeadlessComfyUI, HeadlessOptions
from testtime.samplers.after.recovery import KILLED, recover, unfinished
from testtime.samplers.run.journal import FOLDER, journals

pytestmark = pytest.mark.host
ROOT = Path(__file__).parents[2]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of the test's own, with its journals where users have them."""
    monkeypatch.delenv("TESTTIME_JOURNAL", raising=False)
    options = HeadlessOptions(only_this_pack=True, directory=tmp_path / "comfy")
    with HeadlessComfyUI(options) as running:
        yield running


def post(server, path: str, body: dict) -> dict:
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        text = response.read()
    return json.loads(text) if text else {}


def history(server, prompt_id: str) -> dict:
    with urllib.request.urlopen(f"{server.url}/history/{prompt_id}", timeout=30) as response:
        return json.load(response).get(prompt_id, {})


def wait_for(condition, seconds: float = 120.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def workflow(**sampler) -> dict:
    """SVDD on Shapes World, decoded and saved, without its report."""
    nodes = json.loads((ROOT / "workflows" / "api" / "svdd.json").read_text(encoding="utf-8"))
    search = next(key for key, node in nodes.items() if node["class_type"] == "TestTimeSearchKSampler")
    nodes[search]["inputs"].update(sampler)
    kept = {}

    def take(key):
        if key not in kept:
            kept[key] = nodes[key]
            for value in nodes[key]["inputs"].values():
                if isinstance(value, list):
                    take(value[0])

    take(search)
    vae = kept[search]["inputs"]["vae"]
    kept["decode"] = {"class_type": "VAEDecode", "inputs": {"samples": [search, 0], "vae": vae}}
    kept["save"] = {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "run"}}
    return kept


def slow_after(nodes: dict, blurs: int = 40) -> dict:
    """The same, with a chain of work between decoding and saving."""
    nodes = dict(nodes)
    inputs = {"image": ["decode", 0], "upscale_method": "bilinear", "width": 2048, "height": 2048, "crop": "disabled"}
    nodes["b0"] = {"class_type": "ImageScale", "inputs": inputs}
    for k in range(blurs):
        inputs = {"image": [f"b{k}", 0], "blur_radius": 31, "sigma": 9.0 + k / 100}
        nodes[f"b{k + 1}"] = {"class_type": "ImageBlur", "inputs": inputs}
    nodes["save"] = {"class_type": "SaveImage", "inputs": {"images": [f"b{blurs}", 0], "filename_prefix": "slow"}}
    return nodes


def recovering(which: str = "last stopped") -> dict:
    """Recover Search, decoded and saved."""
    return {
        "1": {"class_type": "TestTimeLoadShapesWorld", "inputs": {"model": "diffusion"}},
        "2": {"class_type": "TestTimeRecoverSearch", "inputs": {"which": which}},
        "3": {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["1", 2]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "recovered"}},
    }


def picture(server, prefix: str) -> np.ndarray:
    newest = max((server.directory / "output").glob(f"{prefix}_*.png"), key=lambda path: path.stat().st_mtime_ns)
    return np.asarray(Image.open(newest).convert("RGB")).astype(int)


def run(server, nodes: dict, tmp_path: Path) -> int:
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(nodes), encoding="utf-8")
    return main(["run", str(path), "--server", server.url, "--out", str(tmp_path / "out")])


def test_cancel_after_the_search_recovers_this_run_and_not_an_older_one(server, tmp_path):
    folder = server.directory / "output" / FOLDER
    # An older one, cancelled in the search.
    post(server, "/prompt", {"prompt": workflow(seed=1, steps=300)})
    wait_for(lambda: journals(folder) and len(journals(folder)[0].read_text().splitlines()) > 10)
    post(server, "/interrupt", {})
    wait_for(lambda: recover(journals(folder)[0]).status == "interrupted")
    # One that comes to its end, and is cancelled while its picture is being made.
    made = post(server, "/prompt", {"prompt": slow_after(workflow(seed=2, steps=4))})["prompt_id"]
    wait_for(lambda: recover(journals(folder)[0]).status == "complete")
    post(server, "/interrupt", {})
    assert wait_for(lambda: history(server, made))["status"]["status_str"] == "error"
    assert run(server, recovering(), tmp_path) == 0
    assert run(server, workflow(seed=2, steps=4), tmp_path) == 0
    assert np.abs(picture(server, "recovered") - picture(server, "run")).max() <= 1
    # Now that this workflow has come to its end the search is no stopped one any more; the cancelled one still is.
    assert run(server, recovering("last of any kind"), tmp_path) == 0


@pytest.mark.skipif(os.name == "nt", reason="needs kill -9")
def test_kill_9_of_the_server_loses_nothing_that_was_computed(server, tmp_path):
    folder = server.directory / "output" / FOLDER
    post(server, "/prompt", {"prompt": workflow(seed=3, steps=200)})
    wait_for(lambda: journals(folder) and len(journals(folder)[0].read_text().splitlines()) > 20)
    wait_for(lambda: journals(folder)[0].with_suffix(".latent").exists())
    server.process.kill()
    server.process.wait()
    (found,) = unfinished(folder)
    assert found.status == KILLED and found.step >= 18 and found.latents.shape == (1, 4, 16, 16)
    assert found.trace.meta["cfg"] == 2.5 and found.trace.seed == 3
    server.start()
    assert run(server, recovering(), tmp_path) == 0
    shown = picture(server, "recovered")
    assert shown.shape == (128, 128, 3) and shown.std() > 5
    # And the search goes on from there.
    trace = folder.parent / "left.json"
    assert main(["recover", str(found.path), "--out", str(folder.parent)]) == 0
    (folder.parent / f"{found.path.stem}.json").rename(trace)
    again = workflow(seed=3, steps=200)
    search = next(key for key, node in again.items() if node["class_type"] == "TestTimeSearchKSampler")
    again["load"] = {"class_type": "TestTimeLoadTrace", "inputs": {"file": "left.json [output]"}}
    inputs = {"search": again[search]["inputs"]["search"], "trace": ["load", 0], "particle": -1, "step": -1}
    again["go on"] = {"class_type": "TestTimeContinueSearch", "inputs": {**inputs, "new_noise": 0}}
    again[search]["inputs"].update(search=["go on", 0], max_nfe=200)
    assert run(server, again, tmp_path) == 0


def test_an_error_late_in_the_search_is_the_last_stopped_one(setup, search_ksampler):
    import torch

    from testtime.nodes.host.results import store
    from testtime.nodes.recover_node import LAST_STOPPED, RecoverSearchNode
    from testtime.samplers.methods import SVDD

    given = setup("eps")
    inner = given.verifier.score

    def score(images, prompts, context=None):
        if len(given.verifier.calls) == 3:
            raise RuntimeError("the judge has left")
        return inner(images, prompts, context)

    given.verifier.score = score
    before = store.revision
    with pytest.raises(RuntimeError, match="the judge has left"):
        search_ksampler(given, SVDD(3), steps=6)
    assert store.revision == before + 1
    best, _finalists, _scores, trace = RecoverSearchNode.execute(LAST_STOPPED).result
    assert trace.meta["status"] == "failed" and torch.isfinite(best["samples"]).all()


def test_a_question_that_ran_out_of_time_is_asked_again(monkeypatch):
    """The host remembers results of nodes whose inputs are the same, so the node says that it is another one."""
    import torch

    from testtime.nodes.host import asking
    from testtime.nodes.human_node import PickByHandNode
    from testtime.verifiers.human import Question

    windows = {"anna"}
    desk = asking.Desk(lambda: set(windows), lambda: "anna")
    desk.sink = lambda event, payload: None
    desk.hello("anna")
    monkeypatch.setattr("testtime.nodes.human_node.desk", desk)
    question = Question(torch.zeros(2, 8, 8, 3), ["a"] * 2, [0, 0], torch.zeros(2).double(), 1, 2, "other")
    before = PickByHandNode.fingerprint_inputs(fallback=None, ask_at="end", seconds=1.0)
    assert desk.ask(question, 0.2) is None
    after = PickByHandNode.fingerprint_inputs(fallback=None, ask_at="end", seconds=1.0)
    assert before != after
    assert PickByHandNode.fingerprint_inputs(fallback=None, ask_at="end", seconds=1.0) == after
