"""Every image model of the host, small and random: one particle is the stock sampler, and what is told is true.

With ``TESTTIME_ZOO`` (a file) what was found is written down, one line of JSON per model: ``tools/build_models.py``
makes docs/models.md of it.
"""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest
import torch

from testtime.samplers.methods import (
    DAS,
    RBF,
    SMC,
    SVDD,
    TTSVAR,
    BeamSearch,
    BestOfN,
    FKSteering,
    ImportanceSampling,
    PathSearch,
    RandomSearch,
    ZeroOrderSearch,
)
from testtime.samplers.methods.population_plan import PopulationPlan
from testtime.samplers.protocols import SearchError
from testtime.samplers.smc.tempering import Alpha

from .conftest import Redness, build_vae, feature, judged
from .zoo import build_image_model, build_image_vae, exists, image_conditioning, image_latent
from .zoo_models import ZOO

pytestmark = pytest.mark.host

SEARCHED = [kind for kind, model in ZOO.items() if not model.refusal]
REFUSED = [kind for kind, model in ZOO.items() if model.refusal]
# Networks of the same class as another of the zoo, of other sizes only.
KIN = {"ssd1b", "vega", "koala700", "koala1b", "unclip_l", "zero123", "pixart_alpha", "hydit1", "flux_schnell"}
STEPS = 3
HALF = Alpha(0.5)


@pytest.fixture(scope="module")
def built():
    """Models and VAEs, made once."""
    return {}


@pytest.fixture
def zoo(built):
    """``zoo(kind)`` -> what the sampling nodes take; skips where the host has no such model."""

    def make(kind: str):
        feature(exists(kind), "this image model is not known yet")
        if kind not in built:
            built.clear()  # tests come model by model
            model = build_image_model(kind)
            built[kind] = (model, build_vae() if ZOO[kind].refusal else build_image_vae(kind, model))
        model, vae = built[kind]
        return SimpleNamespace(
            kind=kind,
            model=model,
            vae=vae,
            positive=image_conditioning(kind, 1),
            negative=image_conditioning(kind, 2),
            latent=image_latent(kind),
            verifier=Redness(),
        )

    return make


def gap(latent, other) -> float:
    """Largest difference of two LATENTs over the spread of the second."""
    return float((latent["samples"] - other["samples"]).abs().max() / other["samples"].std())


def rounding(given, ksampler, stock) -> float:
    """How far the stock sampler's result moves when its start moves by one unit in the last place of float32.

    A schedule from sigma 4,500 (zero terminal SNR) adds and takes away numbers of that size.
    """
    import comfy.sample

    nudged = comfy.sample.prepare_noise

    def noise(*arguments, **options):
        return nudged(*arguments, **options) * (1 + 2**-23)

    comfy.sample.prepare_noise = noise
    try:
        return gap(ksampler(given, "euler", steps=STEPS), stock)
    finally:
        comfy.sample.prepare_noise = nudged


def note(kind: str, **found) -> None:
    """Write down what was found of a model."""
    if os.environ.get("TESTTIME_ZOO"):
        from testtime.nodes.host.compat import host_version

        with open(os.environ["TESTTIME_ZOO"], "a", encoding="utf-8") as file:
            file.write(json.dumps({"model": kind, "host": host_version(), **found}) + "\n")


def marked(kinds):
    """Parameters of these models; kin of others are slow tests."""
    return [pytest.param(kind, marks=pytest.mark.slow) if kind in KIN else kind for kind in kinds]


def rows_of(out) -> list[dict]:
    """Finalists of two particles as LATENTs of one."""
    return [{"samples": out.finalists["samples"][row : row + 1]} for row in range(2)]


@pytest.mark.parametrize("kind", marked(SEARCHED))
def test_a_model_of_the_zoo(zoo, search_ksampler, ksampler, monkeypatch, kind):
    from testtime.nodes.host import process

    given = zoo(kind)
    stock = ksampler(given, "euler", steps=STEPS)
    one = search_ksampler(given, BestOfN(1), eta=0.0, steps=STEPS)
    apart = gap(one.best, stock)
    assert apart < 2e-5 or apart < 3 * rounding(given, ksampler, stock)

    two = search_ksampler(given, BestOfN(2), eta=0.0, steps=STEPS)
    rows = rows_of(two)
    assert min(gap(row, one.best) for row in rows) < 1e-4 and gap(*rows) > 1e-2

    out = search_ksampler(given, SVDD(3), steps=STEPS)
    assert out.scores.values == pytest.approx(judged(given, out.finalists).tolist(), abs=5e-5)
    monkeypatch.setattr(process, "chunk_now", lambda *_: 1)
    alone = search_ksampler(given, SVDD(3), steps=STEPS)
    assert gap(alone.finalists, out.finalists) < 1e-3
    monkeypatch.undo()

    guided = search_ksampler(given, DAS(2, alpha=HALF, start=0.0), steps=STEPS)
    scale = max(entry["gradient_scale"] for record in guided.trace.records for entry in record.particles)
    warnings = guided.trace.meta["warnings"]
    if ZOO[kind].no_gradient:
        assert scale == 0 and any(ZOO[kind].no_gradient in warning for warning in warnings)
    else:
        assert scale > 0 and warnings == []
    assert torch.isfinite(guided.best["samples"]).all()
    hardly = search_ksampler(given, DAS(2, alpha=Alpha(1e12), start=0.0), steps=STEPS)
    drawn = search_ksampler(given, BestOfN(2), steps=STEPS)  # the same predictions, without a gradient
    assert max(min(gap(a, b) for b in rows_of(drawn)) for a in rows_of(hardly)) < 1e-3
    note(kind, gap=apart, gradient=scale > 0, warnings=warnings)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_is_refused(zoo, search_ksampler, kind):
    """In the same sentence as docs/models.md has it, and before the first step."""
    given = zoo(kind)
    with pytest.raises(SearchError) as caught:
        search_ksampler(given, BestOfN(2))
    assert str(caught.value) == ZOO[kind].refusal
    note(kind, refusal=str(caught.value))


FAMILIES = ["sd15", "sdxl_v", "playground", "sd3", "flux", "cosmos2", "qwen", "radiance", "hidream_o1"]
"""One model of every kind of sampling and of latents."""

METHODS = {
    "best_of_n": BestOfN(3),
    "importance_sampling": ImportanceSampling(3, alpha=HALF),
    "svdd": SVDD(3, alpha=HALF),
    "smc": SMC(3, alpha=HALF),
    "das": DAS(2, alpha=HALF, start=0.0),
    "fk_steering": FKSteering(3, alpha=HALF, every=1),
    "rbf": RBF(budget=16, chains=1, initial=2),
    "beam_search": BeamSearch(1, 2, 2),
    "random_search": RandomSearch(3),
    "zero_order_search": ZeroOrderSearch(2, 1),
    "path_search": PathSearch(1, 2, steps=1),
    "tts_var": TTSVAR(1, plan=PopulationPlan(4, {}, {1: 3, 2: 2}), strength=1.0),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_method_ends_on_every_kind_of_model(zoo, search_ksampler, kind, name):
    given = zoo(kind)
    out = search_ksampler(given, METHODS[name], steps=4, cfg=1.0)
    assert out.best["samples"].shape == given.latent["samples"].shape
    assert torch.isfinite(out.finalists["samples"]).all()
    assert out.scores.values == pytest.approx(judged(given, out.finalists).tolist(), abs=1e-4)
    note(kind, method=name)


@pytest.mark.parametrize("mask", [False, True], ids=["image to image", "inpainting"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_given_is_treated_as_the_stock_sampler_treats_it(zoo, search_ksampler, ksampler, kind, mask):
    given = zoo(kind)
    samples = torch.randn(given.latent["samples"].shape, generator=torch.Generator().manual_seed(5))
    given.latent = {"samples": samples}
    if mask:
        given.latent["noise_mask"] = torch.zeros(1, *samples.shape[-2:])
        given.latent["noise_mask"][..., : samples.shape[-1] // 2] = 1.0
    options = {} if mask else {"denoise": 0.5}
    stock = ksampler(given, "euler", steps=STEPS, **options)
    ours = search_ksampler(given, BestOfN(1), eta=0.0, steps=STEPS, **options).best
    assert gap(ours, stock) < 2e-5 or gap(ours, stock) < 3 * rounding(given, ksampler, stock)
    note(kind, given="inpainting" if mask else "image to image")


EDITORS = ["qwen", "omnigen2", "flux2", "krea2", "joy", "mage", "boogu", "z_image"]
"""Models that look at images: all of them as latents in the conditioning."""


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", EDITORS)
def test_references_are_there_for_every_particle(zoo, search_ksampler, ksampler, kind, count):
    from comfy_extras.nodes_edit_model import ReferenceLatent

    given = zoo(kind)
    plain = ksampler(given, "euler", steps=STEPS)
    generator = torch.Generator().manual_seed(12)
    for _ in range(count):
        latent = {"samples": torch.randn(given.latent["samples"].shape, generator=generator)}
        given.positive = ReferenceLatent.execute(given.positive, latent).result[0]
        given.negative = ReferenceLatent.execute(given.negative, latent).result[0]
    stock = ksampler(given, "euler", steps=STEPS)
    assert gap(stock, plain) > 1e-3
    three = search_ksampler(given, BestOfN(3), eta=0.0, steps=STEPS)
    rows = [{"samples": three.finalists["samples"][row : row + 1]} for row in range(3)]
    assert min(gap(row, stock) for row in rows) < 1e-4 and gap(*rows[:2]) > 1e-2


NOT_IMAGES = {
    "videos": "GenmoMochi LTXV LTXAV MiniMaxH3 HunyuanVideo HunyuanVideo15 HunyuanVideo15_SR_Distilled HunyuanVideoI2V "
    "HunyuanVideoSkyreelsI2V CosmosT2V CosmosI2V CosmosI2VPredict2 WAN21_T2V WAN21_I2V WAN21_FunControl2V WAN21_Vace "
    "WAN21_Camera WAN22_Camera WAN22_S2V WAN21_HuMo WAN22_Animate WAN22_T2V WAN21_CausalAR_T2V WAN_Animate2 "
    "WAN21_FlowRVS WAN21_SCAIL WAN21_SCAIL2 WAN22_WanDancer SeedVR2 Kandinsky5 CogVideoX_T2V CogVideoX_I2V "
    "CogVideoX_Inpaint SVD_img2vid SV3D_u SV3D_p",
    "sound": "StableAudio StableAudio3 ACEStep ACEStep15 MiniMaxMusic3",
    "things": "Hunyuan3Dv2 Hunyuan3Dv2_1 Hunyuan3Dv2mini TripoSplat Trellis2",
    "what is in an image": "RT_DETR_v4 SAM3 SAM31 DepthAnything3",
}
"""Classes of models that make, or find, something else."""


def test_every_image_model_of_the_host_is_in_the_zoo():
    import comfy.supported_models as supported

    others = {name for names in NOT_IMAGES.values() for name in names.split()}
    families = {model.family for model in ZOO.values()}
    assert not families & others
    assert {cls.__name__ for cls in supported.models} <= families | others
