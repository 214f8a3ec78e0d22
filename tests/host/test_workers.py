"""One search over several ComfyUIs: the same image, scores and tree for any number, whoever dies; who is refused."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from testtime.cli.main import main
from testtime.installation.comfyui import HeadlessComfyUI, HeadlessOptions

pytestmark = [pytest.mark.host, pytest.mark.slow]
WORKFLOWS = Path(__file__).parents[2] / "workflows" / "api"
SMALL = {"TestTimeSearchKSampler": {"steps": 4}, "EmptyLatentImage": {"width": 64, "height": 64},
         "BasicScheduler": {"steps": 4}, "TestTimeSMC": {"particles": 4, "ess_threshold": 1.5}}  # fmt: skip


@pytest.fixture(scope="module")
def server():
    """A ComfyUI of its own: its workers are its children, and end with it."""
    with HeadlessComfyUI(HeadlessOptions(only_this_pack=True)) as made:
        yield made


def workflow(name: str, count: int | None, rows: int = 2) -> dict:
    """A shipped workflow, small, with *Use Workers* before its search, whose best latents are saved."""
    prompt = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    for node in prompt.values():
        node["inputs"].update({k: v for k, v in SMALL.get(node["class_type"], {}).items() if k in node["inputs"]})
    (searching,) = [node for node in prompt.values() if "search" in node["inputs"]]
    if count is not None:
        prompt["w"] = {
            "class_type": "TestTimeUseWorkers",
            "inputs": {"search": searching["inputs"]["search"], "workers": "this machine", "count": count,
                       "rows_per_call": rows},
        }  # fmt: skip
        searching["inputs"]["search"] = ["w", 0]
    sampler = next(key for key, node in prompt.items() if node is searching)
    drawn = next((key for key, node in prompt.items() if node["class_type"] == "SamplerCustomAdvanced"), sampler)
    for key in [key for key, node in prompt.items() if node["class_type"] in ("SaveImage", "TestTimeSearchReport")]:
        del prompt[key]
    prompt["best"] = {"class_type": "SaveLatent", "inputs": {"samples": [drawn, 0], "filename_prefix": "best"}}
    return prompt


def run(server, prompt: dict, folder: Path) -> tuple[torch.Tensor, dict]:
    """(best latent, trace) of a run of the command line; the trace by a second workflow, as the sampler's has none."""
    made = next(key for key, node in prompt.items() if "LoadShapesWorld" in node["class_type"])
    recover = {
        made: prompt[made],
        "r": {"class_type": "TestTimeRecoverSearch", "inputs": {"which": "last of any kind"}},
        "d": {"class_type": "VAEDecode", "inputs": {"samples": ["r", 0], "vae": [made, 2]}},
        "s": {"class_type": "TestTimeSaveSearch", "inputs": {"images": ["d", 0], "trace": ["r", 3], "page": False}},
    }
    folder.mkdir(parents=True)
    for name, what in (("search", prompt), ("recover", recover)):
        file = folder / f"{name}.json"
        file.write_text(json.dumps(what))
        assert main(["run", str(file), "--server", server.url, "--out", str(folder / "out")]) == 0
    latent = max((server.directory / "output").rglob("*.latent"), key=os.path.getmtime)
    trace = max((server.directory / "output").rglob("*.json"), key=os.path.getmtime)
    return load_file(latent)["latent_tensor"], json.loads(trace.read_text(encoding="utf-8"))


def tree(trace: dict) -> list:
    """What a search did, without its seconds."""
    return [{key: value for key, value in record.items() if key != "seconds"} for record in trace["records"]]


def worker_ids(server) -> list[int]:
    """Process ids of the workers of a server."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            words = (path.parent / "cmdline").read_text()
        except OSError:
            continue
        if parent == server.process.pid and "main.py" in words:
            found.append(int(path.parent.name))
    return sorted(found)


@pytest.mark.parametrize("name", ["smc", "search_sampler", "tts_var"])
def test_one_and_two_workers_find_the_same_as_each_other(server, tmp_path, name):
    one = run(server, workflow(name, 1), tmp_path / "one")
    two = run(server, workflow(name, 2), tmp_path / "two")
    assert torch.equal(one[0], two[0]) and tree(one[1]) == tree(two[1])
    assert two[1]["meta"]["devices"]["rows_per_call"] in (0, 2)
    assert one[1]["meta"]["status"] == two[1]["meta"]["status"] == "complete"


def steps_done(server) -> int:
    """Steps of the latest search, as the panel is told; 0 where it has ended."""
    with urllib.request.urlopen(f"{server.url}/testtime/runs", timeout=30) as answer:
        runs = json.load(answer)["runs"]
    if not runs or runs[-1]["status"] != "running":
        return 0
    with urllib.request.urlopen(f"{server.url}/testtime/runs/{runs[-1]['run']}", timeout=30) as answer:
        return len(json.load(answer)["records"])


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the processes of this system are not listed in /proc")
def test_a_killed_worker_s_call_is_repeated(server, tmp_path):
    prompt = workflow("smc", 2)
    next(node for node in prompt.values() if node["class_type"] == "TestTimeSearchKSampler")["inputs"]["steps"] = 20
    whole = run(server, prompt, tmp_path / "whole")
    before = worker_ids(server)
    assert len(before) == 2
    next(node for node in prompt.values() if "on_cancel" in node["inputs"])["inputs"]["on_cancel"] = (
        "finish with best so far"  # another input, so that the search is made again
    )

    def kill():
        while steps_done(server) < 6:
            time.sleep(0.02)
        os.kill(before[0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    again = run(server, prompt, tmp_path / "again")
    killer.join(1)
    assert not killer.is_alive()
    assert torch.equal(whole[0], again[0]) and tree(whole[1]) == tree(again[1])
    assert sum(again[1]["meta"]["devices"]["restarts"].values()) == 1
    assert len(set(worker_ids(server)) - set(before)) == 1


def told(server, prompt: dict, folder: Path, capsys) -> str:
    """What the command line says of a workflow that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "workflow.json"
    file.write_text(json.dumps(prompt))
    assert main(["run", str(file), "--server", server.url, "--out", str(folder / "out")]) != 0
    return capsys.readouterr().err


def test_what_cannot_be_shared_out_says_why(server, tmp_path, capsys):
    """Before any worker is started."""
    before = worker_ids(server)
    prompt = workflow("smc", 2)
    prompt["w"]["inputs"]["workers"] = "Ray cluster"
    words = told(server, prompt, tmp_path, capsys)
    assert "workers is 'Ray cluster' and RAY_ADDRESS is not set" in words
    prompt = workflow("smc", 2)
    prompt["8"]["inputs"]["sampler_name"] = "heun"
    prompt["6"] = {"class_type": "TestTimeBestOfN", "inputs": {"particles": 4}}
    words = told(server, prompt, tmp_path, capsys)
    assert "sampler is heun: workers share out single steps, and heun runs as a whole" in words
    assert worker_ids(server) == before
