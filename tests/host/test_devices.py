"""Rows over the clones of a model. CPU clones stand for devices: ``cpu`` and ``cpu:0`` are different keys."""

from __future__ import annotations

import logging
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from testtime.samplers.methods import DAS, SMC, BestOfN
from testtime.samplers.smc.tempering import Alpha

from .conftest import build_model, feature
from .test_conditioning import with_hints

pytestmark = pytest.mark.host
STEERED = SMC(4, alpha=Alpha(0.5), ess_threshold=1.5, start=0.0)
OTHER = torch.device("cpu", 0)


@pytest.fixture(autouse=True)
def _host():
    try:
        import comfy.multigpu  # noqa: F401
    except ImportError:
        feature(False, "a MODEL has no multi-GPU clones")
    yield
    import comfy.model_management as management

    for number in range(2):  # the host would look for them on its own device
        management.free_memory(1e30, torch.device("cpu", number))


def with_clones(model, kind: str | None = None, count: int = 1):
    """A MODEL with ``count`` clones, made as the host makes them; ``kind`` for those whose loader knows no copies."""
    model = model.clone()
    if kind is not None:
        model.cached_patcher_init = (lambda: build_model(kind), ())
    clones = []
    for number in range(count):
        clone = model.deepclone_multigpu(new_load_device=torch.device("cpu", number))
        clone.is_multigpu_base_clone = True
        clones.append(clone)
    model.set_additional_models("multigpu", clones)
    model.match_multigpu_clones()
    return model


def watched(model, before=None):
    """(MODEL, {device key: rows of every pass}); ``before(device, rows)`` is called first and may raise or wait."""
    rows: dict[str, list[int]] = {}

    def count(apply_model, call):
        options = call["c"].get("transformer_options", {})
        device = str(options.get("multigpu_thread_device", "cpu"))
        if before is not None:
            before(device, len(call["input"]))
        rows.setdefault(device, []).append(len(call["input"]))
        return apply_model(call["input"], call["timestep"], **call["c"])

    model = model.clone()
    model.set_model_unet_function_wrapper(count)
    return model, rows


class Chunked:
    """The pack with a limit on the rows of a call, as a small device would have."""

    def __init__(self, monkeypatch, size):
        import testtime.nodes.host.process as process

        monkeypatch.setattr(process, "chunk_now", lambda *args: size)


def same(one, two) -> None:
    """Identical bits, scores and tree."""
    assert torch.equal(one.finalists["samples"], two.finalists["samples"])
    assert one.scores == two.scores
    assert [r.particles for r in one.trace.records] == [r.particles for r in two.trace.records]
    assert one.trace.meta["ledger"]["nfe"] == two.trace.meta["ledger"]["nfe"]


@pytest.mark.parametrize("kind", ["eps", "sd3"])
@pytest.mark.parametrize("cfg", [2.0, 1.0])
@pytest.mark.parametrize("search", [STEERED, BestOfN(4)], ids=lambda search: search.name)
def test_two_devices_are_one_with_the_same_rows_per_call(setup, search_ksampler, monkeypatch, kind, cfg, search):
    given = setup(kind, batch=2, prompts=2)
    plain = given.model
    given.model, shared = watched(with_clones(plain, kind))
    two = search_ksampler(given, search, cfg=cfg)
    assert set(shared) == {"cpu", "cpu:0"}
    branches = 2 if cfg > 1 else 1
    assert {size for sizes in shared.values() for size in sizes} == {2 * branches}
    Chunked(monkeypatch, 2)
    given.model = plain
    same(search_ksampler(given, search, cfg=cfg), two)
    assert two.trace.meta["devices"]["rows_per_call"] == 2


def test_a_slow_device_gets_fewer_rows_and_nothing_else_changes(setup, search_ksampler):
    def slow(device, rows):
        time.sleep(0.09 if device == "cpu:0" else 0.0)

    given = setup("eps", batch=2)
    plain = given.model
    given.model, fair = watched(with_clones(plain, "eps"), lambda device, rows: time.sleep(0.02))
    even = search_ksampler(given, STEERED)
    given.model, rows = watched(with_clones(plain, "eps"), slow)
    uneven = search_ksampler(given, STEERED)
    assert sum(rows["cpu"]) >= 2 * sum(rows["cpu:0"])
    assert abs(sum(fair["cpu"]) - sum(fair["cpu:0"])) <= 0.4 * sum(fair["cpu"])
    same(uneven, even)
    told = uneven.trace.meta["devices"]["rows"]
    assert told["cpu"] > told["cpu:0"] > 0


def test_three_devices_and_patches_and_loras(setup, search_ksampler, monkeypatch):
    given = setup("eps", batch=2)
    name = "diffusion_model.input_blocks.0.0.weight"
    change = 0.2 * torch.randn(32, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    plain = given.model
    loud = plain.clone()
    loud.add_patches({name: ("diff", (change,))})
    given.model, rows = watched(with_clones(loud, "eps", 2))
    three = search_ksampler(given, STEERED)
    assert set(rows) == {"cpu", "cpu:0", "cpu:1"}
    Chunked(monkeypatch, 2)
    given.model = loud
    same(search_ksampler(given, STEERED), three)
    given.model = plain
    assert not torch.equal(search_ksampler(given, STEERED).best["samples"], three.best["samples"])


def test_masks_and_areas_go_with_their_rows(setup, search_ksampler, monkeypatch):
    import node_helpers

    given = setup("eps", batch=2, prompts=2)
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    (area,) = node_helpers.conditioning_set_values(given.positive[:1], {"area": (4, 8, 0, 0), "strength": 1.0})
    masked = node_helpers.conditioning_set_values(given.positive, {"mask": mask, "set_area_to_bounds": False,
                                                                   "mask_strength": 1.0})  # fmt: skip
    given.positive = [*given.positive, area, *masked[:1]]
    plain = given.model
    given.model, rows = watched(with_clones(plain, "eps"))
    two = search_ksampler(given, STEERED)
    assert set(rows) == {"cpu", "cpu:0"}
    Chunked(monkeypatch, 2)
    given.model = plain
    same(search_ksampler(given, STEERED), two)


@pytest.mark.parametrize("hints", [1, 2])
def test_control_images_go_with_their_rows(setup, search_ksampler, hints):
    """A ControlNet has a copy on every device; with a hint per image the copies must be told of it, too."""
    given = with_hints(setup("eps", batch=2), hints)
    given.model = with_clones(without := given.model, "eps")
    two = search_ksampler(given, BestOfN(4))
    assert set(two.trace.meta["devices"]["rows"]) == {"cpu", "cpu:0"}
    given.model = without
    one = search_ksampler(given, BestOfN(4))
    scale = float(one.finalists["samples"].std())
    assert torch.allclose(one.finalists["samples"], two.finalists["samples"], atol=1e-5 * scale)
    assert [r.particles[0]["id"] for r in one.trace.records] == [r.particles[0]["id"] for r in two.trace.records]


def test_a_search_that_rewrites_shares_its_negatives_on_all_devices(caplog):
    from testtime.nodes.family_nodes import LoadShapesWorldNode

    from .test_ttgen import Fixed, sample, ttgen

    with torch.inference_mode():
        plain = LoadShapesWorldNode.execute("diffusion").args
    model, rows = watched(with_clones(plain[0]))
    one, two = (sample(world, ttgen(world, Fixed(), particles=2), batch=2) for world in (plain, (model, *plain[1:])))
    assert set(rows) == {"cpu", "cpu:0"}
    assert one[3].meta["ledger"]["nfe"] == two[3].meta["ledger"]["nfe"]
    chosen = [[[e["prompt"] for e in r.particles if e["selected"]] for r in trace.records] for *_, trace in (one, two)]
    assert chosen[0] == chosen[1]
    assert torch.allclose(one[0]["samples"], two[0]["samples"], atol=1e-3 * float(one[0]["samples"].std()))


def failing(times, error, device="cpu:0"):
    """``before`` that raises on one device the first ``times`` times."""
    left = SimpleNamespace(count=times)

    def before(where, rows):
        if where == device and left.count > 0:
            left.count -= 1
            raise error(rows) if callable(error) and not isinstance(error, type) else error("it broke")

    return before


def test_a_clone_that_fails_costs_no_row(setup, search_ksampler, caplog):
    given = setup("eps", batch=2)
    plain = given.model
    given.model = with_clones(plain, "eps")
    expected = search_ksampler(given, STEERED)
    for times, told in ((1, 0), (2, 1), (99, 1)):
        caplog.clear()
        given.model, rows = watched(with_clones(plain, "eps"), failing(times, RuntimeError))
        with caplog.at_level(logging.WARNING, "testtime"):
            same(search_ksampler(given, STEERED), expected)
        assert sum("cpu:0 failed twice (RuntimeError: it broke)" in line for line in caplog.messages) == told
        assert ("cpu:0" in rows) == (times == 1)


def test_an_error_of_the_main_device_arrives_as_itself_and_the_next_run_works(setup, search_ksampler):
    given = setup("eps", batch=2)
    plain, threads = given.model, threading.active_count()
    given.model, _ = watched(with_clones(plain, "eps"), failing(99, KeyError, "cpu"))
    with pytest.raises(KeyError, match="it broke"):
        search_ksampler(given, STEERED)
    given.model = with_clones(plain, "eps")
    assert search_ksampler(given, STEERED).trace.meta["status"] == "complete"
    assert threading.active_count() <= threads


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_out_of_memory_makes_calls_smaller(setup, search_ksampler, device, caplog):
    def small(where, rows):
        if where == device and rows > 2:
            raise torch.OutOfMemoryError(f"{rows} rows")

    given = setup("eps", batch=2)
    plain = given.model
    given.model, rows = watched(with_clones(plain, "eps"), small)
    with caplog.at_level(logging.WARNING, "testtime"):
        result = search_ksampler(given, STEERED)
    assert result.trace.meta["status"] == "complete"
    assert sum("out of memory with 2 rows on one device: going on with 1" in line for line in caplog.messages) == 1
    assert set(rows["cpu"][-4:]) | set(rows["cpu:0"][-4:]) == {2}  # one row, two branches


def test_cancelling_ends_all_devices(setup, search_ksampler):
    import comfy.model_management as management

    given = setup("eps", batch=2)
    seen = SimpleNamespace(count=0)

    def cancel(where, rows):
        seen.count += 1
        if seen.count == 6:
            management.interrupt_current_processing(True)

    given.model, _ = watched(with_clones(given.model, "eps"), cancel)
    with pytest.raises(management.InterruptProcessingException):
        search_ksampler(given, STEERED)
    management.interrupt_current_processing(False)
    assert seen.count <= 8


def test_gradients_stay_on_one_device_and_it_is_said(setup, search_ksampler, caplog):
    given = setup("eps")
    plain, guided = given.model, DAS(2, alpha=Alpha(0.5), ess_threshold=1.5, start=0.0)
    expected = search_ksampler(given, guided)
    given.model, rows = watched(with_clones(plain, "eps"))
    with caplog.at_level(logging.WARNING, "testtime"):
        result = search_ksampler(given, guided)
    assert torch.allclose(result.best["samples"], expected.best["samples"], atol=1e-5)
    assert sum(rows["cpu"]) > sum(rows.get("cpu:0", []))
    assert sum("gradients go through one device" in line for line in caplog.messages) == 1


def test_a_decoder_on_another_device_keeps_the_pictures(setup, search_ksampler):
    """As the stock node Select VAE Device leaves it: the pack hands latents over and takes images back."""
    given = setup("eps", batch=2)
    expected = search_ksampler(given, STEERED)
    clone = given.vae.patcher.clone()
    clone.load_device = OTHER
    vae = given.vae
    before = vae.patcher, vae.device
    try:
        vae.patcher, vae.device = clone, OTHER
        same(search_ksampler(given, STEERED), expected)
    finally:
        vae.patcher, vae.device = before
