"""Which part of a prompt workers execute, and what is refused before any is started."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from testtime.installation.comfyui import inherited
from testtime.samplers.protocols import SearchError
from testtime.scale.rows.comfyui import END, worker_prompt

pytestmark = pytest.mark.host
API = Path(__file__).parents[2] / "workflows" / "api"


def prompt_of(name: str) -> dict:
    return json.loads((API / f"{name}.json").read_text(encoding="utf-8"))


def executing(monkeypatch, prompt, node, prompt_id="p"):
    """As if ``node`` of ``prompt`` were executing in a server."""
    import testtime.nodes.host.running as running

    context = SimpleNamespace(prompt_id=prompt_id, node_id=node)
    queue = SimpleNamespace(get_current_queue=lambda: ([(0, "p", prompt, {}, [])], []))
    monkeypatch.setattr(running, "get_executing_context", lambda: context)
    monkeypatch.setattr(running, "server", lambda: SimpleNamespace(prompt_queue=queue))
    return running


def test_nothing_behind_the_search_is_executed():
    for name in ("smc", "search_sampler", "tts_var"):
        prompt = prompt_of(name)
        sampler = next(key for key, node in prompt.items() if node["class_type"] in
                       ("TestTimeSearchKSampler", "SamplerCustomAdvanced", "TestTimeInfinitySearch"))  # fmt: skip
        wanted = worker_prompt(prompt, sampler)
        kinds = {node["class_type"] for node in wanted.values()}
        assert not kinds & {"SaveImage", "VAEDecode", "TestTimeSearchReport"}
        assert wanted.pop(END)["inputs"]["source"] == [sampler, 0]
        links = {value[0] for node in wanted.values() for value in node["inputs"].values() if isinstance(value, list)}
        assert links < set(wanted) and sampler in wanted


def test_a_node_upstream_that_saves_or_is_paid_for_is_named(monkeypatch):
    import nodes as host
    import testtime.nodes.host.running as running

    class Saves:
        OUTPUT_NODE = True

    class Paid:
        OUTPUT_NODE, API_NODE = False, True

    prompt = prompt_of("smc")
    assert running.upstream(prompt, "8")
    for kind, words in ((Saves, "saves or shows something"), (Paid, "calls a paid service")):
        monkeypatch.setitem(host.NODE_CLASS_MAPPINGS, "Through", kind)
        between = {
            **prompt,
            "t": {"class_type": "Through", "inputs": {"latent": prompt["8"]["inputs"]["latent_image"]}},
        }
        between["8"] = {**prompt["8"], "inputs": {**prompt["8"]["inputs"], "latent_image": ["t", 0]}}
        with pytest.raises(SearchError, match=rf"node t \(Through\) {words}, and every worker would do so again"):
            running.upstream(between, "8")


def test_a_search_that_the_prompt_does_not_name_is_refused(monkeypatch):
    running = executing(monkeypatch, prompt_of("smc"), "8")
    assert running.running_prompt()[:2] == ("p", "8")
    for node, prompt_id, words in (
        ("8.0.3", "p", "inside a loop or a node that makes others"),
        ("8", "q", "not queued"),
    ):
        running = executing(monkeypatch, prompt_of("smc"), node, prompt_id)
        with pytest.raises(SearchError, match=words):
            running.running_prompt()
    monkeypatch.setattr(running, "server", lambda: None)
    with pytest.raises(SearchError, match="a running ComfyUI: there is none here"):
        running.running_prompt()


def test_a_second_search_of_one_node_is_refused():
    from testtime.nodes.host import workers

    first, second = (SimpleNamespace(denoise=SimpleNamespace(guider=object())) for _ in range(2))
    workers._check_first("p", "8", first)
    workers._check_first("p", "8", first)  # once more without guidance
    with pytest.raises(SearchError, match="node 8 searches more than once"):
        workers._check_first("p", "8", second)
    workers._check_first("q", "8", second)


def test_model_files_of_a_prompt_are_found_and_digested(tmp_path, monkeypatch):
    import folder_paths

    from testtime.nodes.host.running import model_files
    from testtime.scale.recipes import digest_of

    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.safetensors").write_bytes(name.encode())
        monkeypatch.setitem(
            folder_paths.folder_names_and_paths, "checkpoints", ([str(tmp_path / name)], {".safetensors"})
        )
        prompt = {
            "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors", "x": ["2", 0]}}
        }
        files = model_files(prompt)
        assert files == [tmp_path / name / "a.safetensors"]
        digests.append(digest_of(files))
    assert digests[0] != digests[1]
    assert (
        model_files({"1": {"class_type": "X", "inputs": {"text": "a cat", "n": 3, "file": "none.safetensors"}}}) == []
    )


def test_what_a_worker_takes_over_from_the_driver_s_command_line():
    words = ["--listen", "0.0.0.0", "--cuda-device", "1", "--lowvram", "--tls-keyfile=k", "--auto-launch", "--cpu"]
    assert inherited(words) == ["--listen", "0.0.0.0", "--lowvram", "--cpu"]


def test_workers_end_when_no_search_comes():
    import time

    from testtime.nodes.host.workers import Keeper

    ended = []
    keeper = Keeper(lambda place, number: SimpleNamespace(end=lambda: ended.append((place, number))), minutes=0.2 / 60)
    with keeper.lent("here", 2) as first:
        time.sleep(0.4)
        assert not ended
    with keeper.lent("here", 1) as again:
        assert again == first[:1]
    time.sleep(0.6)
    assert ended == [("here", 0), ("here", 1)]
