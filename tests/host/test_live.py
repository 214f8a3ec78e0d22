"""The live view's server side: messages in order, thumbnails bounded, a store that late tabs can ask."""

from __future__ import annotations

import base64
import io
import json
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image

from testtime.samplers.protocols import State
from testtime.samplers.run.trace import StepRecord

pytestmark = pytest.mark.host
RUN_OF_STEPS = 80


def record(step: int, particles: int, scores=None) -> StepRecord:
    entries = [
        {"id": step * particles + k, "parent": None if step == 0 else (step - 1) * particles + k, "group": 0, "slot": k,
         "score": None if scores is None else scores[k], "log_weight": None, "gradient_scale": 0.0, "selected": True}
        for k in range(particles)
    ]  # fmt: skip
    return StepRecord(step, 5, 1.0, entries, nfe=step * particles)


def state(particles: int) -> State:
    return State(torch.zeros(particles, 4, 2, 2), torch.zeros(particles).long(), torch.arange(particles), 0)


def test_messages_come_in_order_with_their_pictures():
    from testtime.nodes.host.live import LiveRun, store

    sent = []
    run = LiveRun(
        {"method": "smc", "prompts": ["a <b>bold</b> star"]}, sink=lambda event, data: sent.append((event, data))
    )
    images = torch.zeros(3, 200, 100, 3)
    images[1, ..., 0] = 1.0
    run(record(0, 3), state(3), None)
    run(record(1, 3, [0.1, 0.9, None]), state(3), images)
    run.finish("complete", ["careful"])
    assert [event for event, _ in sent] == ["testtime.start", "testtime.step", "testtime.step", "testtime.end"]
    assert [data["index"] for event, data in sent if event == "testtime.step"] == [0, 1]
    assert sent[1][1]["thumbs"] is None
    thumb = np.asarray(Image.open(io.BytesIO(base64.b64decode(sent[2][1]["thumbs"][1]))))
    assert thumb.shape == (96, 48, 3) and thumb[..., 0].mean() > 250 and thumb[..., 1].mean() < 5
    assert sent[2][1]["particles"][1] == [4, 1, 0, 0.9, None, 1]
    kept = store.snapshot(run.run)
    assert kept["status"] == "complete" and kept["warnings"] == ["careful"] and len(kept["records"]) == 2
    assert json.loads(json.dumps(kept))["prompts"] == ["a <b>bold</b> star"]


@pytest.mark.parametrize(
    ("value", "seen", "to"),
    [("", {"anna", "ben", None}, [None]), ("own", {"anna"}, ["anna"]), ("OFF", set(), []), ("nonsense", set(), [])],
)
def test_who_sees_a_search(monkeypatch, value, seen, to):
    """The real sender and the real store, with a server that only notes to whom it sends."""
    import sys
    from types import SimpleNamespace

    from testtime.nodes.host.audience import VARIABLE
    from testtime.nodes.host.live import LiveRun, store

    sent = []
    note = SimpleNamespace(client_id="anna", send_sync=lambda event, data, sid: sent.append(sid))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=note)))
    monkeypatch.setenv(VARIABLE, value)
    run = LiveRun({"method": "smc", "prompts": ["a secret star"]})
    run(record(0, 3), state(3), None)
    run.finish("complete", [])
    assert sent == 3 * to
    assert {client for client in ("anna", "ben", None) if store.shows(run.run, client)} == seen
    assert {
        client for client in ("anna", "ben", None) if any(r["run"] == run.run for r in store.listing(client))
    } == seen
    assert store.enabled == (value in ("", "own"))


def test_a_warning_is_one_line_and_its_rest_is_in_the_log():
    from testtime.nodes.host.live import LiveRun, store
    from testtime.samplers.run.notes import LIMIT, brief

    run = LiveRun({"method": "smc"}, sink=lambda event, data: None)
    run.finish("failed", ["CheckpointError: " + "a key\nthat is missing, " * 400, "x" * 9000])
    for text in store.snapshot(run.run)["warnings"]:
        assert LIMIT - 30 < len(text) <= LIMIT and "\n" not in text and text.endswith("(more in the log)")
    assert brief("short\n  text") == "short text" and brief("y" * LIMIT) == "y" * LIMIT


def test_crowds_get_thumbnails_for_the_best_only():
    from testtime.nodes.host.live import THUMBS_PER_STEP, shown_rows

    scores = [float(k % 100) for k in range(512)]
    rows = shown_rows(record(1, 512, scores))
    assert len(rows) == THUMBS_PER_STEP and rows == sorted(rows)
    assert min(scores[row] for row in rows) >= 100 - THUMBS_PER_STEP / 5 - 1


def test_512_particles_stay_bounded():
    """Noise, the worst there is for JPEG: every message and what is kept of the run stay small, all rows are there."""
    from testtime.nodes.host.live import THUMB_BYTES_PER_RUN, THUMBS_PER_STEP, LiveRun, store

    sent = []
    run = LiveRun({"method": "smc"}, sink=lambda event, data: sent.append((event, len(json.dumps(data)), data)))
    images = torch.rand(512, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    for step in range(3):
        run(record(step, 512, [k / 512 for k in range(512)]), state(512), images)
    run.finish("complete", [])
    steps = [(size, data) for event, size, data in sent if event == "testtime.step"]
    assert len(steps) == 3 and len(sent) == 5
    for size, data in steps:
        assert len(data["particles"]) == 512 and sum(thumb is not None for thumb in data["thumbs"]) == THUMBS_PER_STEP
        assert size < 600_000
    assert steps[0][0] * RUN_OF_STEPS > THUMB_BYTES_PER_RUN  # so that the allowance of a run is reached below
    for index in range(3, RUN_OF_STEPS):
        store.add(run.run, {**steps[0][1], "index": index})
    kept = store.snapshot(run.run)["records"]
    assert len(kept) == RUN_OF_STEPS and len(json.dumps(kept)) < THUMB_BYTES_PER_RUN + RUN_OF_STEPS * 40_000


def test_the_store_is_bounded():
    from testtime.nodes.host.live import RUNS_KEPT, THUMB_BYTES_PER_RUN, LiveStore

    store = LiveStore()
    for k in range(RUNS_KEPT + 3):
        store.begin({"run": f"r{k}"})
    assert [run["run"] for run in store.listing()] == [f"r{k}" for k in range(3, RUNS_KEPT + 3)]
    half = "x" * (THUMB_BYTES_PER_RUN // 2 + 1)
    for index in range(3):
        store.add("r5", {"index": index, "thumbs": [half, None]})
    assert [r["thumbs"] is None for r in store.snapshot("r5")["records"]] == [False, True, True]
    assert store.snapshot("r0") is None
    store.add("r0", {"index": 0, "thumbs": None})


def test_a_search_in_a_real_server_can_be_followed(comfy_server, tmp_path):
    """Queue the FK workflow; afterwards the run is there with every step, and the off switch works."""
    from pathlib import Path

    from testtime.cli.main import main

    def get(path):
        with urllib.request.urlopen(comfy_server.url + path, timeout=30) as response:
            return json.load(response)

    def switch(enabled):
        body = json.dumps({"enabled": enabled}).encode()
        request = urllib.request.Request(comfy_server.url + "/testtime/live", body, method="POST")
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    workflow = str(Path(__file__).resolve().parents[2] / "workflows" / "api" / "fk_steering.json")

    def queue(seed):
        numbers = {n["class_type"]: k for k, n in json.loads(Path(workflow).read_text()).items()}
        node = numbers["TestTimeSearchKSampler"]
        changes = ["--set", f"{node}.steps=5", "--set", f"{node}.seed={seed}"]
        return main(["run", workflow, "--server", comfy_server.url, "--out", str(tmp_path), *changes]), node

    status, node = queue(1)
    assert status == 0
    listed = get("/testtime/runs")
    assert listed["enabled"] and listed["runs"][-1]["method"] == "fk" and listed["runs"][-1]["status"] == "complete"
    run = get(f"/testtime/runs/{listed['runs'][-1]['run']}")
    assert run["node"] == node and len(run["records"]) == 6
    assert run["records"][-1]["ledger"]["nfe"] == 5 * 8 * 2
    assert any(r["thumbs"] for r in run["records"])
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get("/testtime/runs/unknown")

    assert switch(False) == {"enabled": False}
    assert queue(2)[0] == 0
    assert len(get("/testtime/runs")["runs"]) == len(listed["runs"])
    assert switch(True) == {"enabled": True}
