"""Searches over runs of ComfyUI's own samplers: whole, stopped and resumed, parted."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.methods import BestOfN, RandomSearch

from .conftest import watched

AUTO = -1.0


def names() -> list[str]:
    from testtime.installation.locate import find_comfyui

    if find_comfyui() is None:
        return []
    import comfy.samplers

    return list(comfy.samplers.KSampler.SAMPLERS)


# Draws its steps from an error that depends on the whole batch; our float64 rows are another matter.
ADAPTIVE = ("dpm_adaptive",)
PAUSED = (
    "euler heun dpm_2 dpmpp_2m res_multistep uni_pc ipndm deis lms gradient_estimation euler_ancestral dpmpp_2m_sde "
    "dpmpp_3m_sde er_sde lcm sa_solver seeds_2 dpmpp_sde dpmpp_2s_ancestral"
).split()
OTHERS = [name for name in PAUSED if name not in ("euler", "dpmpp_2m", "res_multistep", "euler_ancestral", "lcm")]


def first(result):
    """The latent of slot 0 among the finalists, whatever its rank."""
    starts = {e["id"]: e["slot"] for e in result.trace.records[0].particles}
    parents = {e["id"]: e["parent"] for record in result.trace.records for e in record.particles}
    for row, particle in enumerate(result.scores.particles):
        while parents.get(particle) is not None:
            particle = parents[particle]
        if starts.get(particle) == 0:
            return result.finalists["samples"][row : row + 1]
    raise AssertionError("slot 0 did not live")


@pytest.mark.parametrize("kind", ["eps", "sd3"])
@pytest.mark.parametrize("name", names())
def test_the_first_candidate_is_the_image_without_a_search(setup, search_ksampler, ksampler, kind, name):
    given = setup(kind)
    stock = ksampler(given, name, steps=5)["samples"]
    result = search_ksampler(given, BestOfN(2), sampler_name=name, eta=AUTO, steps=5)
    assert torch.equal(first(result), stock)
    assert result.trace.meta["sampler"] == name
    latents = result.finalists["samples"]
    assert not torch.equal(latents[0], latents[1])


@pytest.mark.parametrize("kind", ["eps", "sd3"])
@pytest.mark.parametrize("name", PAUSED)
def test_a_run_that_was_stopped_is_the_run_that_was_not(setup, search_ksampler, ksampler, kind, name):
    """Bit for bit, and no model call is made twice: calls are those of whole runs less what the culled ones save."""
    given = setup(kind)
    stock = ksampler(given, name, steps=6)["samples"]
    plain, rows = watched(given.model)
    given.model = plain
    ksampler(given, name, steps=6)
    whole = len(rows)
    rows.clear()
    result = search_ksampler(given, RandomSearch(2, (0.5,)), sampler_name=name, eta=AUTO, steps=6)
    assert len(result.finalists["samples"]) == 1
    calls = len(rows)
    assert whole < calls < 2 * whole, (whole, calls)
    slot = next(e["slot"] for e in result.trace.records[-1].particles)
    if slot == 0:
        assert torch.equal(result.finalists["samples"], stock)
    alone = search_ksampler(given, BestOfN(2), sampler_name=name, eta=AUTO, steps=6)
    kept = {e["slot"]: e["id"] for e in alone.trace.records[-1].particles}[slot]
    row = alone.scores.particles.index(kept)
    if name in OTHERS or slot == 0:
        assert torch.equal(result.finalists["samples"][0], alone.finalists["samples"][row])
    assert result.trace.meta["ledger"]["nfe"] == sum(rows[:calls])
