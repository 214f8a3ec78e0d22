"""Prompts of particles inside ComfyUI: many in one batch equal one at a time, on small networks of every family."""

from __future__ import annotations

import functools
import types

import pytest
import torch

from testtime.samplers.methods import BestOfN
from testtime.samplers.processes.diffusion import DiffusionProcess
from testtime.samplers.protocols import SearchError

from .conftest import SD15_CONFIG, _patcher, build_model, channels_of, conditioning, randomise, watched

pytestmark = pytest.mark.host

SHORT = "a red fox"
WEIGHTED = "a (red:1.4) fox \\(small\\)"
LONG = "a red fox " + "beside a very tall old tree " * 20  # more than 75 tokens
TEXTS = [SHORT, "a blue bicycle", None, LONG, SHORT, WEIGHTED]


class SmallCLIP:
    """ComfyUI's own SD1 tokenizer and text model, sixteen wide and random; pooled outputs of eight."""

    def __new__(cls, width: int = 16):
        import comfy.sd
        import comfy.sd1_clip
        import comfy.supported_models_base as base

        config = {
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "hidden_size": width,
            "intermediate_size": 32,
            "hidden_act": "quick_gelu",
            "max_position_embeddings": 77,
            "vocab_size": 49408,
            "eos_token_id": 49407,
            "projection_dim": width,
        }

        class Small(comfy.sd1_clip.SDClipModel):
            def __init__(self, device=None, dtype=None, model_options=None, **_):
                super().__init__(device=device, dtype=dtype, textmodel_json_config=config, model_options={})

        class Model(comfy.sd1_clip.SD1ClipModel):
            def __init__(self, device=None, dtype=None, model_options=None):
                super().__init__(device=device, dtype=dtype, model_options={}, clip_model=Small)

        clip = comfy.sd.CLIP(base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, Model), parameters=1_000_000)
        randomise(clip.cond_stage_model, 21)
        return clip


class SeededText:
    """What families beside SD1.5 need of a text encoder: tokens and a pooled output that depend on the text.

    As T5 in Flux and SD3, it gives as many tokens as the text has words: no two prompts need be of one length.
    """

    def __init__(self, kind: str, pooled: int):
        self.kind, self.pooled, self.encoded = kind, pooled, []

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        self.encoded.append(text)
        generator = torch.Generator().manual_seed(sum(map(ord, text)))
        tokens = torch.randn(1, min(40, 1 + len(text.split())), 16, generator=generator)
        return [[tokens, {"pooled_output": torch.randn(1, self.pooled, generator=generator)}]]


def sdxl():
    """A tiny random SDXL: like SD1.5's small UNet, with a vector of 16 pooled and 6 x 256 size features."""
    import comfy.supported_models as supported

    config = supported.SDXL({**SD15_CONFIG, "adm_in_channels": 16 + 1536, "num_classes": "sequential"})
    config.unet_config |= {"num_heads": 4, "num_head_channels": -1}
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    randomise(model.diffusion_model, 0)
    return _patcher(config, model)


@functools.lru_cache
def network(kind: str):
    return sdxl() if kind == "sdxl" else build_model(kind)


@pytest.fixture(autouse=True, scope="module")
def _networks_go_with_this_module():
    yield
    network.cache_clear()


def encoder_for(kind: str):
    from testtime.nodes.host.prompts import ClipEncoder

    return ClipEncoder(SmallCLIP() if kind == "eps" else SeededText(kind, 16 if kind == "sdxl" else 8))


def own_conditioning(kind: str, batch: int = 1, seed: int = 1):
    made = conditioning("eps" if kind == "sdxl" else kind, batch, seed)
    if kind == "sdxl":
        made[0][1]["pooled_output"] = torch.randn(batch, 16, generator=torch.Generator().manual_seed(seed))
        made[0][1] |= {"width": 512, "height": 768, "crop_w": 8}
    return made


def inside(kind, use, *, batch=1, positive=None, cfg=3.0, model=None, encoder=None):
    """``use(process)`` in the middle of ComfyUI's own sampling of a small network of ``kind``."""
    import comfy.sample
    import comfy.samplers

    from testtime.nodes.host.process import host_process
    from testtime.nodes.host.sampling_call import HostSettings, SamplingCall

    seen = types.SimpleNamespace()
    encoder = encoder or encoder_for(kind)

    class Sampler(comfy.samplers.Sampler):
        def sample(self, wrap, sigmas, extra, callback, noise, latent=None, mask=None, disable_pbar=False):
            call = SamplingCall(wrap, sigmas, extra["model_options"], 3, noise, latent, mask)
            process = host_process(call, HostSettings(None, 0.0, 8, encoder=encoder))
            seen.result = use(process)
            return noise

    channels = channels_of("eps" if kind == "sdxl" else kind)
    latent = torch.zeros(batch, channels, 8, 8)
    guider = comfy.samplers.CFGGuider(model or network(kind))
    guider.set_conds(positive or own_conditioning(kind), own_conditioning(kind, seed=2))
    guider.set_cfg(cfg)
    with torch.inference_mode():
        guider.sample(comfy.sample.prepare_noise(latent, 3), latent, Sampler(), torch.tensor([0.9, 0.5, 0.0]))
    return seen.result


def started(process: DiffusionProcess, rows: int, spread: float = 0.0):
    """``rows`` particles, of equal states unless ``spread`` > 0."""
    state = process.start(1).select(torch.zeros(rows, dtype=torch.int64))
    noise = torch.randn(state.x.shape, generator=torch.Generator().manual_seed(6))
    from dataclasses import replace

    return replace(state, x=state.x + spread * noise)


def apart(a, b) -> float:
    return float((a - b).abs().max() / b.std())


KINDS = ["eps", "sdxl", "sd3", "flux"]


@pytest.mark.parametrize("spread", [0.0, 1.0], ids=["one-state", "many-states"])
@pytest.mark.parametrize("kind", KINDS)
def test_many_prompts_in_one_batch_equal_one_at_a_time(kind, spread):
    def use(process):
        state = started(process, len(TEXTS), spread)
        together = process.predict(process.reprompt(state, TEXTS)).x0
        single = []
        for row, text in enumerate(TEXTS):
            process.denoise._negatives._shared.clear()  # nothing carried over
            only = process.reprompt(state.select(torch.tensor([row])), [text])
            single.append(process.predict(only).x0)
        return together, torch.cat(single)

    together, single = inside(kind, use)
    assert apart(together, single) < 1e-5
    assert apart(together[1:2], single[:1]) > 1e-3  # prompts matter at all


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_of_a_particle_equals_that_prompt_in_the_stock_guider(kind):
    """The conditioning that a rewrite gets is the one that CLIPTextEncode and CFGGuider would have made."""
    encoder = encoder_for(kind)
    with torch.inference_mode():
        tokens, outputs = encoder(LONG)
    mine = own_conditioning(kind)
    theirs = [[tokens, {**mine[0][1], **outputs}]]

    def ours(process):
        return process.predict(process.reprompt(started(process, 1), [LONG])).x0

    def stock(process):
        return process.predict(started(process, 1)).x0

    got = inside(kind, ours, positive=mine, encoder=encoder)
    assert apart(got, inside(kind, stock, positive=theirs, encoder=encoder)) < 1e-5
    assert apart(got, inside(kind, stock, positive=mine, encoder=encoder)) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_share_the_negative_prediction(kind):
    """M + 2 forward passes for an original and M rewrites, not 2 (M + 1); the ledger tells the same."""
    model, rows = watched(network(kind))
    texts = ["a red fox", "a big fox", "a shy fox"]

    def use(process):
        nfe = []

        def spent(more):
            process.ledger.nfe += more

        process.denoise.on_extra_rows = spent
        state = started(process, 1)
        base = process.predict(process.reprompt(state, [None]))
        nfe.append(process.ledger.nfe)
        process.predict(process.reprompt(base.select(torch.zeros(3, dtype=torch.int64)), texts))
        nfe.append(process.ledger.nfe)
        return nfe

    assert inside(kind, use, model=model) == [2, 5]
    assert sum(rows) == 5


def test_same_length_prompts_run_in_one_call():
    model, rows = watched(network("eps"))

    def use(process):
        process.predict(process.reprompt(started(process, 4), [SHORT, "a blue bicycle", None, WEIGHTED]))

    positive = [[torch.randn(1, 77, 16), {}]]
    inside("eps", use, model=model, cfg=1.0, positive=positive)
    assert rows == [4]


def test_encodings_are_kept():
    text = SeededText("flux", 8)
    from testtime.nodes.host.prompts import ClipEncoder

    encoder = ClipEncoder(text)
    for _ in range(2):
        inside(
            "flux",
            lambda process: process.reprompt(started(process, 3), [SHORT, LONG, SHORT]),
            encoder=encoder,
        )
    assert text.encoded == [SHORT, LONG]


def test_areas_and_their_texts_stay(setup):
    """Two entries: the whole image and an area. A rewrite replaces the text of the whole image only."""
    import nodes

    area = nodes.ConditioningSetArea().append(conditioning("eps", 1, seed=6), 32, 64, 32, 0, 1.0)[0]
    encoder = encoder_for("eps")
    with torch.inference_mode():
        tokens, outputs = encoder(SHORT)

    def ours(process):
        return process.predict(process.reprompt(started(process, 2), [SHORT, None])).x0

    def stock(process):
        return process.predict(started(process, 1)).x0

    got = inside("eps", ours, positive=conditioning("eps") + area, encoder=encoder)
    first = inside("eps", stock, positive=[[tokens, outputs], *area], encoder=encoder)
    second = inside("eps", stock, positive=conditioning("eps") + area, encoder=encoder)
    assert apart(got, torch.cat([first, second])) < 1e-5
    with pytest.raises(SearchError, match="areas or masks only"):
        inside("eps", stock, positive=area, encoder=encoder)


def test_images_of_a_batch_keep_their_own_prompts():
    def use(process):
        state = process.start(2)
        return process.predict(process.reprompt(state, [None, SHORT, SHORT, None])).x0, process.predict(state).x0

    mixed, plain = inside("sd3", use, batch=2, positive=own_conditioning("sd3", 2))
    assert apart(mixed[[0, 3]], plain[[0, 3]]) < 1e-5
    assert apart(mixed[[1, 2]], plain[[1, 2]]) > 1e-3


def test_without_clip_nothing_can_be_rewritten():
    from testtime.nodes.host.prompts import ClipEncoder

    with pytest.raises(SearchError, match="clip is missing"):
        ClipEncoder(None)
    assert BestOfN(1).name  # searches without a text encoder are as before
