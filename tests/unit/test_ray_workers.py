"""The wiring to Ray; that results do not depend on workers is tested without it (``test_row_workers``)."""

from __future__ import annotations

import os
import signal
import socket
import sys

import pytest

from testtime.samplers.methods import SMC
from testtime.samplers.protocols import SearchError
from testtime.scale.rows import ray_workers
from testtime.scale.rows.ray_workers import RayWorkers, check_address, connected

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
    assert "ray" not in vars(ray_workers)


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
    monkeypatch.setattr(ray_workers.Path, "home", lambda: tmp_path)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SearchError, match="joined with a token only"):
        check_address("192.0.2.1:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(SearchError, match="joined with a token only"):
        check_address("192.0.2.1:6379")
