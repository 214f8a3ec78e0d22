"""The wiring to Ray; that results do not depend on workers is tested without it (``test_row_workers``)."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import threading
import time

import pytest

from testtime.cli.main import main
from testtime.installation.errors import EXIT_BAD_INPUT
from testtime.samplers.methods import SMC
from testtime.samplers.protocols import SearchError
from testtime.scale import clusters
from testtime.scale.batch.ray_slots import actors_of
from testtime.scale.clusters import check_address, connected
from testtime.scale.rows.ray_workers import RayWorkers

from .test_batch import lines
from .test_row_workers import inline, recipe, same, search


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_local_cluster_gives_the_same_search_also_when_an_actor_is_killed():
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install test-time-scaling[ray]")
    expected = search("diffusion", SMC(4, ess_threshold=1.5), inline("diffusion", 2))
    try:
        with RayWorkers(recipe("diffusion"), 2, 2) as workers:
            same(expected, search("diffusion", SMC(4, ess_threshold=1.5), workers))

            def kill(record, state, images):
                if record.step == 2 and record.phase == "search":
                    os.kill(ray.get(workers.pool.links[0].actor.process_id.remote()), signal.SIGKILL)

            result = search("diffusion", SMC(4, ess_threshold=1.5), workers, listener=kill)
            same(expected, result)
            assert result.trace.meta["devices"]["restarts"] == {"ray-0": 1}
    finally:
        ray.shutdown()


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SearchError, match=r"Ray is missing .*: pip install test-time-scaling\[ray\]"):
        connected(None)


def test_ray_is_imported_by_nobody_who_does_not_ask_for_it():
    assert "ray" not in vars(clusters)


def test_an_address_that_does_not_answer_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(SearchError, match=f"Ray address 127.0.0.1:{port} does not answer"):
        RayWorkers(recipe("diffusion"), 2, address=f"127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["", "nowhere", "host:port", "10.0.0.5"])
def test_addresses_are_host_and_port(address):
    with pytest.raises(SearchError, match="expected HOST:PORT"):
        check_address(address)


def test_a_cluster_elsewhere_needs_a_token(monkeypatch, tmp_path):
    monkeypatch.setattr(clusters.Path, "home", lambda: tmp_path)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SearchError, match="joined with a token only"):
        check_address("192.0.2.1:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(SearchError, match="joined with a token only"):
        check_address("192.0.2.1:6379")


# ---------------------------------------------------------------------------------------------- many runs


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_rows_of_a_batch_on_a_cluster_of_which_an_actor_is_killed(tmp_path):
    """The same pictures as without Ray, each once."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install test-time-scaling[ray]")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": "a red star", "seed": seed}) + "\n" for seed in range(12)))
    command = ["batch", "--library", "shapes", "--method", "best_of_n:particles=1", "--set", "steps=2", "--set",
               "size=32", "--rows", str(rows), "--backoff", "0.1", "--quiet"]  # fmt: skip
    assert main([*command, "--out", str(tmp_path / "alone")]) == 0

    def kill_one():
        wait_until(lambda: len(lines(tmp_path / "ray", "done")) >= 2)
        alive = ray.util.state.list_actors(filters=[("state", "=", "ALIVE")])
        os.kill(next(actor.pid for actor in alive if actor.pid), signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    try:
        connected("local")
        importlib.import_module("ray.util.state")
        killer.start()
        assert main([*command, "--out", str(tmp_path / "ray"), "--ray", "local", "--workers", "2"]) == 0
    finally:
        killer.join(10)
        ray.shutdown()
    done = [{line["key"]: line["files"] for line in lines(tmp_path / where, "done")} for where in ("alone", "ray")]
    assert len(lines(tmp_path / "ray", "done")) == 12 and lines(tmp_path / "ray", "retry")
    pictures = [{key: [f for f in files if f["name"] == "image.png"] for key, files in each.items()} for each in done]
    assert pictures[0] == pictures[1]


def wait_until(ready):
    ends = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_a_batch_names_an_address_that_does_not_answer(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a red star"}\n')
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = ["batch", "--library", "shapes", "--rows", str(rows), "--out", str(tmp_path / "out")]
    assert main([*command, "--ray", f"127.0.0.1:{port}"]) == EXIT_BAD_INPUT
    assert f"--ray 127.0.0.1:{port}: Ray address 127.0.0.1:{port} does not answer" in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


class Cluster:
    """What ``actors_of`` asks Ray."""

    def __init__(self, gpus, nodes):
        self.cluster_resources, self.nodes = (
            (lambda: {"GPU": gpus} if gpus else {}),
            (lambda: [{"Alive": True}] * nodes),
        )


@pytest.mark.parametrize(
    ("gpus", "nodes", "workers", "expected"),
    [(8.0, 2, None, (8, 1.0)), (0, 3, None, (3, 0.0)), (2.0, 1, 4, (4, 0.5)), (8.0, 1, 2, (2, 1.0))],
)
def test_actors_of_a_cluster(gpus, nodes, workers, expected):
    assert actors_of(Cluster(gpus, nodes), workers) == expected
