"""Memory: chunks change nothing but the peak, and models that are pushed off the device come back as they were."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.methods import DAS, SMC, BestOfN
from testtime.samplers.protocols import SearchError
from testtime.samplers.smc.tempering import Alpha

from .conftest import Redness, conditioning, watched

pytestmark = pytest.mark.host

STEERED = SMC(6, alpha=Alpha(0.5), ess_threshold=1.5, start=0.0, end=1.0)


def evict_all() -> None:
    """What a big model does that somebody loads in the middle of a search."""
    import comfy.model_management as management

    management.free_memory(1e30, torch.device("cpu"))
    assert not management.current_loaded_models


class EvictingRedness(Redness):
    """A verifier that needs the whole device for itself."""

    def score(self, images, prompts, context=None):
        evict_all()
        return super().score(images, prompts)


def with_chunks_of(given, particles: int):
    """The MODEL with a memory demand that lets ``particles`` run at once, so that they run in chunks."""
    import comfy.model_management as management

    model = given.model.model
    one = model.memory_required([2, *given.latent["samples"].shape[1:]]) / model.memory_usage_factor
    free = management.get_free_memory(torch.device("cpu"))
    # Half a particle of slack on either side for what other programs take meanwhile.
    model.memory_usage_factor = free / (1.5 * one * (particles + 0.5))
    return watched(given.model)


@pytest.fixture
def restored(models):
    """Puts the memory factors of the shared models back."""
    kept = {kind: models(kind).model.memory_usage_factor for kind in ("eps", "sd3")}
    yield
    for kind, factor in kept.items():
        models(kind).model.memory_usage_factor = factor


@pytest.mark.parametrize("kind", ["eps", "sd3"])
@pytest.mark.parametrize("search", [BestOfN(6), STEERED, DAS(2, alpha=Alpha(0.5))], ids=lambda search: search.name)
def test_chunks_change_nothing(setup, search_ksampler, restored, kind, search):
    """Two images with a prompt each: a chunk holds particles of one, of the other, or of both."""
    given = setup(kind, batch=2, prompts=2)
    whole = search_ksampler(given, search, steps=3)
    for size in (1, 5):
        given.model, rows = with_chunks_of(given, size)
        pieces = search_ksampler(given, search, steps=3)
        assert max(rows) <= 2 * size and len(rows) > 3
        assert pieces.scores.particles == whole.scores.particles
        assert torch.allclose(pieces.finalists["samples"], whole.finalists["samples"], rtol=1e-3, atol=1e-2)


def test_chunk_sizes_follow_from_the_hosts_estimate():
    from testtime.nodes.host.residency import chunk_size

    gigabyte = 2.0**30
    assert chunk_size(24 * gigabyte, 2 * gigabyte) == 8  # ComfyUI wants 1.5 times the estimate
    assert chunk_size(2.9 * gigabyte, 2 * gigabyte) == 1  # one particle always runs
    assert chunk_size(gigabyte, 0.0) >= 1_000_000


def test_memory_is_reserved_for_what_will_run(setup, search_ksampler, monkeypatch):
    """Six particles of two images: the model is loaded with room for twelve latents, guided, not for the two."""
    import comfy.model_management as management

    asked = []
    load = management.load_models_gpu

    def spy(models, memory_required=0, **kwargs):
        asked.append(memory_required)
        return load(models, memory_required=memory_required, **kwargs)

    monkeypatch.setattr(management, "load_models_gpu", spy)
    given = setup("eps", batch=2)
    search_ksampler(given, BestOfN(6), steps=1)
    assert asked[0] >= given.model.model.memory_required([2 * 12, 4, 8, 8])


def test_reservation_stops_where_the_weights_would_have_to_leave(models):
    """A population that cannot run at once is not reserved for: ComfyUI would offload weights to make room."""
    import comfy.model_management as management

    from testtime.nodes.host.residency import chunk_to_reserve

    patcher = models("eps")
    total = management.get_total_memory(torch.device("cpu"))
    beside = total - 1.1 * patcher.model_size() - management.extra_reserved_memory()
    one = beside / (1.5 * 4.5)
    assert chunk_to_reserve(patcher, one, population=100) == 4
    assert chunk_to_reserve(patcher, one, population=3) == 3


def test_out_of_memory_halves_the_chunk(setup, search_ksampler):
    """A device that takes four rows: the search goes on in smaller chunks, with the same result."""

    def small_device(rows: int) -> None:
        if rows > 4:
            raise torch.OutOfMemoryError(f"no room for {rows} rows")

    given = setup("eps", batch=2)
    whole = search_ksampler(given, STEERED, steps=3)
    given.model, rows = watched(given.model, before=small_device)
    pieces = search_ksampler(given, STEERED, steps=3)
    assert max(rows) <= 4
    assert pieces.scores.particles == whole.scores.particles
    assert torch.allclose(pieces.finalists["samples"], whole.finalists["samples"], rtol=1e-3, atol=1e-2)


def test_out_of_memory_with_one_particle_is_raised(setup, search_ksampler):
    """The executor knows what to do with it: unload every model and say so."""

    def no_device(rows: int) -> None:
        raise torch.OutOfMemoryError("no room at all")

    given = setup("eps")
    given.model, _ = watched(given.model, before=no_device)
    with pytest.raises(torch.OutOfMemoryError):
        search_ksampler(given, BestOfN(3))


def test_more_previews_than_memory_are_refused_before_anything_runs(setup, search_ksampler):
    given = setup("eps", batch=2)
    given.model, rows = watched(given.model)
    with pytest.raises(SearchError, match=r"200000000 particles of 64 x 64 pixels.*GiB.*use at most \d+, by fewer"):
        search_ksampler(given, BestOfN(100_000_000))
    assert not rows


@pytest.mark.parametrize("search", [STEERED, DAS(2, alpha=Alpha(0.5))], ids=lambda search: search.name)
def test_an_evicted_model_comes_back_with_its_patches(setup, search_ksampler, search):
    """Unloading takes LoRA weights off and sampling patches with them; both must be there at the next model call."""
    import comfy.model_management as management
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
    from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM

    given = setup("eps")
    # The mask is a threshold in time: it tells which sampling parameters the model had when it was asked.
    given.latent["samples"] = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    given.latent["noise_mask"] = torch.linspace(0, 1, 64).expand(1, 64, 64)
    patched = ModelSamplingContinuousEDM().patch(given.model, "eps", 80.0, 0.002)[0]
    name = "diffusion_model.input_blocks.0.0.weight"
    change = torch.randn(32, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert patched.add_patches({name: ("diff", (0.2 * change,))}) == [name]
    patched = DifferentialDiffusion.execute(patched).result[0]

    plain = search_ksampler(given, search)
    given.model = patched
    quiet = search_ksampler(given, search)
    assert not torch.allclose(quiet.best["samples"], plain.best["samples"], atol=1e-2)

    def loaded(rows: int) -> None:
        assert any(entry.model.model is patched.model for entry in management.current_loaded_models)

    given.model, rows = watched(patched, before=loaded)
    given.verifier = EvictingRedness() if search.name == "smc" else Redness()
    crowded = search_ksampler(given, search)
    assert rows
    assert torch.allclose(crowded.finalists["samples"], quiet.finalists["samples"], atol=1e-5)
    evict_all()
    given.model = setup("eps").model
    again = search_ksampler(given, search)
    assert torch.equal(again.best["samples"], plain.best["samples"])


def test_decoding_in_between_leaves_the_model_loaded(setup, search_ksampler):
    """The VAE joins the model on the device; nothing is loaded twice when both fit."""
    import comfy.model_management as management

    given = setup("eps")
    evict_all()
    loads = []

    def here(rows: int) -> None:
        loads.append(sorted(type(entry.model.model).__name__ for entry in management.current_loaded_models))

    given.model, _ = watched(given.model, before=here)
    search_ksampler(given, STEERED, steps=3)
    assert loads[0] == ["BaseModel"] and set(map(tuple, loads[1:])) <= {("BaseModel",), ("AutoencoderKL", "BaseModel")}
    assert loads[-1] == ["AutoencoderKL", "BaseModel"]


def test_a_prompt_per_image_survives_resampling(setup, search_ksampler):
    """Resampling mixes rows of an image; each keeps the prompt of its image, as when that image is made alone."""
    given = setup("sd3", batch=2, prompts=2)
    both = search_ksampler(given, STEERED)
    assert any(any(record.resampled) for record in both.trace.records)
    for image in range(2):
        tokens, extra = conditioning("sd3", 2, seed=1)[0]
        alone = setup("sd3")
        alone.positive = [[tokens[image : image + 1], {"pooled_output": extra["pooled_output"][image : image + 1]}]]
        alone.latent["batch_index"] = [image]
        best = search_ksampler(alone, STEERED).best["samples"][0]
        assert torch.allclose(best, both.best["samples"][image], atol=1e-3)


def test_models_that_were_collected_are_no_longer_asked_for(setup, search_ksampler):
    """The host's list may hold an entry whose model is gone: loading it again would end the run."""
    import comfy.model_management as management

    class Gone:
        currently_used, model, device = True, None, torch.device("cpu")

        def __getattr__(self, name):
            return lambda *args, **kwargs: True

    from testtime.nodes.host.residency import Residency

    kept = list(management.current_loaded_models)
    management.current_loaded_models.append(Gone())
    try:
        residency = Residency()
    finally:
        management.current_loaded_models[:] = kept
    residency.reserve()  # raised AttributeError on None
    assert search_ksampler(setup("eps"), BestOfN(2), steps=2).scores.particles
