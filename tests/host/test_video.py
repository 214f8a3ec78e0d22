"""Searches on clips: with one particle they are the stock sampler, what is told is what the stock decoder shows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from testtime.samplers.frames import FrameChoice
from testtime.samplers.methods import DAS, SMC, SVDD, BeamSearch, BestOfN, FKSteering, RandomSearch, ZeroOrderSearch
from testtime.samplers.protocols import SearchError
from testtime.samplers.smc.tempering import Alpha

from .conftest import Redness, build_vae, watched
from .video_models import ZOO, build_tae, build_video_model, build_wan_vae, video_conditioning, video_latent

pytestmark = pytest.mark.host

KINDS = list(ZOO)
PACKS = ["ltxav", "h3"]
ALONE = [kind for kind in KINDS if kind not in PACKS]


def streams(latent) -> list[torch.Tensor]:
    """The tensors of a LATENT."""
    samples = latent["samples"]
    return list(samples.unbind()) if getattr(samples, "is_nested", False) else [samples]


def gap(a, b) -> float:
    """Largest difference of two LATENTs over their spread, of the worst stream."""
    pairs = list(zip(streams(a), streams(b), strict=True))
    assert all(x.shape == y.shape for x, y in pairs)
    return max(float((x - y).abs().max() / y.std()) for x, y in pairs)


@pytest.fixture(scope="module")
def built():
    """Models and VAEs, made once."""
    return {}


@pytest.fixture
def clip_setup(built):
    """``clip_setup(kind, batch=1)`` -> what the sampling nodes take, for a model of the zoo."""

    def make(kind: str, batch: int = 1):
        channels, cell = ZOO[kind].shapes[0][0], 8
        if kind not in built:
            built[kind] = (build_video_model(kind), build_wan_vae(channels=channels))
        model, vae = built[kind]
        del cell
        return SimpleNamespace(
            kind=kind,
            model=model,
            vae=vae,
            positive=video_conditioning(kind, 1),
            negative=video_conditioning(kind, 1 if kind == "h3" else 2),
            latent={"samples": video_latent(kind, batch)},
            verifier=Redness(),
        )

    return make


def told(given, samples, choice: FrameChoice | None = None):
    """Scores of clips as the stock decoder shows them: the mean over the chosen frames."""
    seen = streams({"samples": samples})[0]
    with torch.inference_mode():
        scores = []
        for row in range(len(seen)):
            clip = given.vae.decode(seen[row : row + 1])[0]
            frames = clip[list((choice or FrameChoice()).of(len(clip)))]
            scores.append(float(given.verifier.score(frames, ["a red square"] * len(frames)).double().mean()))
    return scores


@pytest.mark.parametrize("kind", KINDS)
def test_one_clip_on_the_ode_is_euler(clip_setup, search_ksampler, ksampler, kind):
    given = clip_setup(kind)
    cfg = 1.0 if kind == "h3" else 2.0
    ours = search_ksampler(given, BestOfN(1), eta=0.0, cfg=cfg)
    assert gap(ours.best, ksampler(given, "euler", cfg=cfg)) < 1e-5
    assert ours.scores.values == pytest.approx(told(given, ours.best["samples"]), abs=1e-4)


@pytest.mark.parametrize("kind", ["wan", "hunyuan", "ltxav"])
def test_two_clips_of_a_batch_are_eulers(clip_setup, search_ksampler, ksampler, kind):
    given = clip_setup(kind, batch=2)
    assert gap(search_ksampler(given, BestOfN(1), eta=0.0).best, ksampler(given, "euler")) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_of_two_is_found_again(clip_setup, search_ksampler, kind):
    """Slot 0 of N = 2 is the clip of N = 1, and the finalists hold both, each as it was judged."""
    given = clip_setup(kind)
    cfg = 1.0 if kind == "h3" else 2.0
    one = search_ksampler(given, BestOfN(1), eta=0.0, cfg=cfg)
    two = search_ksampler(given, BestOfN(2), eta=0.0, cfg=cfg)
    assert [len(stream) for stream in streams(two.finalists)] == [2] * len(ZOO[kind].shapes)
    rows = [{"samples": stream_rows(two.finalists, row)} for row in range(2)]
    assert min(gap(row, one.best) for row in rows) < 1e-5
    assert two.scores.values == pytest.approx(told(given, two.finalists["samples"]), abs=1e-4)
    assert two.scores.values[0] == max(two.scores.values)
    assert gap(rows[0], two.best) == 0.0


def stream_rows(latent, row: int):
    """Samples of one row, in the LATENT's own form."""
    samples = latent["samples"]
    if not getattr(samples, "is_nested", False):
        return samples[row : row + 1]
    import comfy.nested_tensor

    return comfy.nested_tensor.NestedTensor([stream[row : row + 1] for stream in samples.unbind()])


@pytest.mark.parametrize("kind", ["wan", "mochi", "ltxav"])
@pytest.mark.parametrize("search", [BestOfN(3), SVDD(3), SMC(3, start=0.0, end=1.0)], ids=lambda search: search.name)
def test_one_clip_per_call_equals_all_together(clip_setup, search_ksampler, monkeypatch, kind, search):
    from testtime.nodes.host.layout import LatentLayout

    given = clip_setup(kind)
    given.model, rows = watched(given.model)
    alone = search_ksampler(given, search, cfg=1.0)
    assert set(rows) == {1}
    rows.clear()
    monkeypatch.setattr(LatentLayout, "rows_per_call", None)
    together = search_ksampler(given, search, cfg=1.0, order="breadth" if search.name == "best_of_n" else "auto")
    assert 3 in rows
    assert gap(alone.finalists, together.finalists) < 1e-4
    assert alone.scores.values == pytest.approx(together.scores.values, abs=1e-5)


METHODS = [
    SVDD(2),
    SMC(2, start=0.0, end=1.0),
    FKSteering(2, start=0.0, end=1.0, every=1),
    BeamSearch(2, 2, 1),
    RandomSearch(3),
    ZeroOrderSearch(2, 1),
]


@pytest.mark.parametrize("search", METHODS, ids=lambda search: search.name)
@pytest.mark.parametrize("kind", ["wan_i2v", "wan5b", "hunyuan", "cosmos", "h3"])
def test_methods_on_clips_tell_what_the_decoder_shows(clip_setup, search_ksampler, kind, search):
    given = clip_setup(kind)
    out = search_ksampler(given, search, cfg=1.0, steps=3)
    assert all(torch.isfinite(stream).all() for stream in streams(out.finalists))
    assert out.scores.values == pytest.approx(told(given, out.finalists["samples"]), abs=1e-4)
    # Three steps of a model that is shifted towards strong noise: a warning of early decisions is right.
    assert [said for said in out.trace.meta["warnings"] if "decides above" not in said] == []


@pytest.mark.parametrize("search", [BestOfN(3), RandomSearch(4), ZeroOrderSearch(2, 2)], ids=lambda one: one.name)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_depth_first_is_breadth_first_to_the_bit(clip_setup, search_ksampler, search, eta):
    given = clip_setup("wan")
    depth = search_ksampler(given, search, eta=eta, order="depth")
    breadth = search_ksampler(given, search, eta=eta, order="breadth")
    assert torch.equal(depth.finalists["samples"], breadth.finalists["samples"])
    assert depth.scores.values == breadth.scores.values


def test_cancelling_leaves_whole_clips(clip_setup, search_ksampler):
    import comfy.model_management as management

    from testtime.nodes.host.results import store

    given = clip_setup("wan")

    def press(rows: int) -> None:
        calls.append(rows)
        if len(calls) == 10:
            management.interrupt_current_processing(True)

    calls: list[int] = []
    whole = search_ksampler(given, BestOfN(4), eta=0.0, cfg=1.0)
    given.model, _ = watched(given.model, before=press)
    try:
        with pytest.raises(management.InterruptProcessingException):
            search_ksampler(given, BestOfN(4), eta=0.0, cfg=1.0)
    finally:
        management.interrupt_current_processing(False)
    kept = store.latest("interrupted")
    assert len(kept.finalists) == 2
    for row in range(2):
        gaps = [float((kept.finalists[row] - one).abs().max()) for one in whole.finalists["samples"]]
        assert min(gaps) < 1e-4
    assert all(score is not None for score in kept.scores.values)


# --- masks


def first_frame_kept(kind: str):
    """A LATENT of random numbers whose mask keeps the first latent frame."""
    shape = ZOO[kind].shapes[0]
    mask = torch.ones(1, 1, shape[1], *shape[2:])
    mask[:, :, 0] = 0.0
    return {"samples": video_latent(kind, seed=5), "noise_mask": mask}


@pytest.mark.parametrize("kind", ["wan5b", "wan", "ltxav", "h3"])
def test_a_mask_that_keeps_the_first_frame(clip_setup, search_ksampler, ksampler, kind):
    given = clip_setup(kind)
    given.latent = first_frame_kept(kind)
    cfg = 1.0 if kind == "h3" else 2.0
    ours = search_ksampler(given, BestOfN(1), eta=0.0, cfg=cfg)
    assert gap(ours.best, ksampler(given, "euler", cfg=cfg)) < 1e-5
    kept = streams(ours.best)[0][:, :, 0]
    assert torch.allclose(kept, streams(given.latent)[0][:, :, 0], atol=1e-4)


def test_a_soft_mask_on_a_pack(clip_setup, search_ksampler, ksampler):
    """H3 asks for the states and the mask to know what it is told to keep."""
    given = clip_setup("h3")
    given.latent = first_frame_kept("h3")
    given.latent["noise_mask"] = given.latent["noise_mask"].clamp(min=0.35)
    ours = search_ksampler(given, BestOfN(1), eta=0.0, cfg=1.0).best
    assert gap(ours, ksampler(given, "euler", cfg=1.0)) < 1e-5


def test_a_mask_of_frames_is_one_mask(clip_setup, search_ksampler, ksampler):
    given = clip_setup("wan", batch=2)
    given.latent = {"samples": video_latent("wan", 2, seed=5), "noise_mask": torch.ones(3, 32, 32)}
    given.latent["noise_mask"][0] = 0.0
    assert gap(search_ksampler(given, BestOfN(1), eta=0.0).best, ksampler(given, "euler")) < 1e-5
    given.latent["noise_mask"] = torch.ones(3, 1, 3, 32, 32)
    with pytest.raises(SearchError, match="3 masks for a latent batch of 2"):
        search_ksampler(given, BestOfN(1))


def test_a_frame_that_was_given_is_not_judged(clip_setup, search_ksampler):
    given = clip_setup("wan5b")
    given.latent = first_frame_kept("wan5b")
    given.verifier.frames = FrameChoice("first", 2)
    out = search_ksampler(given, BestOfN(2), cfg=1.0, steps=2)
    assert list(out.trace.records[-1].particles[0]["members"]) == ["frame 2", "frame 3"]


# --- what is decoded


def test_only_the_latent_frames_that_the_first_frames_need_are_decoded(clip_setup, search_ksampler, monkeypatch):
    given, seen = clip_setup("wan"), []
    decode = given.vae.decode
    monkeypatch.setattr(given.vae, "decode", lambda latents: seen.append(tuple(latents.shape)) or decode(latents))
    given.verifier.frames = FrameChoice("first", 1)
    out = search_ksampler(given, BestOfN(2), cfg=1.0)
    assert set(seen) == {(1, 16, 1, 4, 4)}
    expected = told(given, out.finalists["samples"], FrameChoice("first", 1))
    assert out.scores.values == pytest.approx(expected, abs=1e-4)
    seen.clear()
    given.verifier.frames = FrameChoice("uniform", 3)
    search_ksampler(given, BestOfN(2), cfg=1.0)
    assert set(seen) == {(1, 16, 3, 4, 4)}


def test_looks_on_the_way_are_of_the_quick_decoder_and_the_last_of_the_real_one(clip_setup, search_ksampler):
    given, quick, real = clip_setup("wan"), build_tae(16), []
    tiny = []
    for vae, calls in ((quick, tiny), (given.vae, real)):
        network = vae.first_stage_model
        network.register_forward_pre_hook(lambda *_: None)
        decode = network.decode
        network.decode = lambda z, decode=decode, calls=calls, **more: calls.append(len(z)) or decode(z, **more)
    try:
        out = search_ksampler(given, SVDD(2), cfg=1.0, steps=3, preview_vae=quick)
        assert tiny and real
        expected = told(given, out.finalists["samples"])
    finally:
        del given.vae.first_stage_model.decode
    assert out.scores.values == pytest.approx(expected, abs=1e-4)


def test_guides_at_the_end_are_no_part_of_the_clip(clip_setup):
    from testtime.nodes.host.layout import layout_of

    given = clip_setup("wan")
    tokens = SimpleNamespace(cond=torch.zeros(1, 3, 16, 2))  # a frame of 4 x 4 cells
    conds = {"positive": [{"model_conds": {"keyframe_idxs": tokens}}]}
    layout = layout_of(given.model.model, (1, 16, 3, 4, 4), conds=conds)
    assert (layout.last, layout.frames, layout.frames_of(given.vae)) == (1, 2, 5)
    x = torch.randn(2, 16, 3, 4, 4)
    assert torch.equal(layout.clip(x), x[:, :, :2]) and layout.restore(x) is x
    skipping = layout_of(given.model.model, (1, 16, 3, 4, 4), conds=conds, skip=1)
    assert torch.equal(skipping.clip(x), x[:, :, 1:2])
    with pytest.raises(SearchError, match="skip_latents is 2: of 3 latent frames, 1 of them guides, none is left"):
        layout_of(given.model.model, (1, 16, 3, 4, 4), conds=conds, skip=2)


# --- gradients


def test_a_gradient_goes_through_the_first_frames_of_a_clip_and_no_further(clip_setup, search_ksampler):
    given = clip_setup("wan")
    das = DAS(2, alpha=Alpha(0.5), start=0.0)
    with pytest.raises(SearchError, match="gradient"):
        search_ksampler(given, das, steps=6, cfg=1.0)
    given.verifier.frames = FrameChoice("first", 1)
    out = search_ksampler(given, das, steps=6, cfg=1.0)
    assert all(torch.isfinite(stream).all() for stream in streams(out.finalists))


# --- what is refused, and why


def test_models_whose_batch_is_time_and_models_of_sound_are_refused():
    import comfy.latent_formats
    import comfy.model_base

    from testtime.nodes.host.layout import layout_of

    for name in ("SVD_img2vid", "SV3D_u", "SV3D_p"):
        model = object.__new__(getattr(comfy.model_base, name))
        with pytest.raises(SearchError, match="takes the latent batch for the frames of one video"):
            layout_of(model, (4, 4, 8, 8))
    sound = object.__new__(comfy.model_base.ACEStep)
    with pytest.raises(SearchError, match="makes sound"):
        layout_of(sound, (1, 8, 16, 64))
    told = SimpleNamespace(latent_format=comfy.latent_formats.ACEAudio())
    with pytest.raises(SearchError, match="makes sound"):
        layout_of(told, (1, 8, 16, 64))
    conds = {"positive": [{"model_conds": {"num_video_frames": SimpleNamespace(cond=14)}}]}
    with pytest.raises(SearchError, match="frames of one video"):
        layout_of(SimpleNamespace(), (4, 4, 8, 8), conds=conds)
    with pytest.raises(SearchError, match=r"shape \[1, 64, 100\].*sound and meshes are neither"):
        layout_of(SimpleNamespace(), (1, 64, 100))


def test_vaes_that_cannot_decode_a_clip_are_named(clip_setup, search_ksampler):
    given = clip_setup("wan")
    given.model, rows = watched(given.model)
    real, given.vae = given.vae, build_vae(16)
    with pytest.raises(SearchError, match="vae decodes single images, this latent is a video of 3 latent frames"):
        search_ksampler(given, BestOfN(2))
    given.vae = build_wan_vae(channels=48)
    with pytest.raises(SearchError, match="vae decodes 48 channels, this model's video latents have 16"):
        search_ksampler(given, BestOfN(2))
    given.vae = real
    with pytest.raises(SearchError, match=r"preview_vae decodes 48 channels.*connect lighttaew2_1"):
        search_ksampler(given, BestOfN(2), preview_vae=build_wan_vae(channels=48))
    with pytest.raises(SearchError, match="SVDD compares candidates on the way: order must be 'breadth'"):
        search_ksampler(given, SVDD(2), order="depth")
    assert not rows


def test_a_clip_too_large_for_memory_is_told_with_numbers(clip_setup, search_ksampler, monkeypatch):
    from testtime.nodes.host import residency

    monkeypatch.setattr(residency, "free_memory", lambda device: 150_000.0)
    given = clip_setup("wan")
    with pytest.raises(SearchError, match=r"one clip of 9 frames of 32 x 32 pixels needs .* use fewer frames"):
        search_ksampler(given, BestOfN(2))


def test_a_judge_of_motion_is_refused_on_an_image(setup, search_ksampler):
    given = setup("eps")
    given.verifier.least_frames, given.verifier.name = 2, "motion"
    with pytest.raises(SearchError, match="verifier 'motion' judges videos: this latent is an image"):
        search_ksampler(given, BestOfN(2))


def test_more_frames_than_there_are_means_all_and_is_told_of(clip_setup, search_ksampler, caplog):
    given = clip_setup("wan")
    given.verifier.frames = FrameChoice("uniform", 64)
    with caplog.at_level("INFO", logger="testtime"):
        out = search_ksampler(given, BestOfN(1), steps=1, cfg=1.0)
    assert len(out.trace.records[-1].particles[0]["members"]) == 9
    said = [record.getMessage() for record in caplog.records if "frames is 64" in record.getMessage()]
    assert said == ["frames is 64 and this clip has 9: all are judged"]


def test_the_pace_of_clips_is_measured_on_one_at_a_time(clip_setup, search_ksampler):
    from testtime.samplers.budget import Budget
    from testtime.samplers.plan import Plan

    given = clip_setup("wan")
    given.model, rows = watched(given.model)
    out = search_ksampler(given, Plan(BestOfN(2), budget=Budget(seconds=60.0)), steps=2, cfg=1.0)
    measured = len(rows) - out.trace.meta["ledger"]["nfe"]
    assert 0 < measured <= 2 and set(rows) == {1}


# --- what outlives the server


@pytest.mark.parametrize("kind", ["wan", "ltxav"])
def test_the_journal_of_a_run_keeps_clips_and_their_sound(clip_setup, search_ksampler, monkeypatch, tmp_path, kind):
    """After a crash Recover Search has the best so far, with every stream."""
    from testtime.nodes.host.journals import left_behind

    monkeypatch.setenv("TESTTIME_JOURNAL", str(tmp_path))
    given = clip_setup(kind)
    out = search_ksampler(given, BestOfN(2), eta=0.0, steps=2)
    found = left_behind(stopped=False)
    assert gap({"samples": found.best}, out.best) == 0.0
    assert [stream.shape for stream in streams({"samples": found.finalists})] == [
        stream.shape for stream in streams(out.best)
    ]


@pytest.mark.parametrize("kind", ["wan", "h3"])
def test_a_run_that_is_made_again_takes_the_clips_that_were_finished(
    clip_setup, search_ksampler, monkeypatch, tmp_path, caplog, kind
):
    """Also after a restart: what was finished lies on the disk. A changed prompt or model begins anew."""
    monkeypatch.setenv("TESTTIME_JOURNAL", str(tmp_path))
    given = clip_setup(kind)
    whole = search_ksampler(given, BestOfN(4), eta=1.0, steps=3, cfg=1.0)
    search_ksampler(given, BestOfN(4), eta=1.0, steps=3, cfg=1.0, max_nfe=8)
    assert len(list((tmp_path / "finished").iterdir())) == 2
    given.model, rows = watched(given.model)
    with caplog.at_level("INFO", logger="testtime"):
        again = search_ksampler(given, BestOfN(4), eta=1.0, steps=3, cfg=1.0)
    assert "2 finished candidates taken from an earlier run" in caplog.text
    assert len(rows) == 1 + 2 * 3 and gap(again.finalists, whole.finalists) == 0.0
    assert again.scores.values == whole.scores.values and not list((tmp_path / "finished").iterdir())

    search_ksampler(given, BestOfN(4), eta=1.0, steps=3, cfg=1.0, max_nfe=8)
    rows.clear()
    given.positive = video_conditioning(kind, 5)
    search_ksampler(given, BestOfN(2), eta=1.0, steps=3, cfg=1.0)
    assert len(rows) == 2 * 3


# --- the sampler of the user's choice


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "uni_pc", "heun"])
@pytest.mark.parametrize("kind", ["wan", "cosmos", "ltxav", "h3"])
def test_other_samplers_on_clips(clip_setup, search_ksampler, ksampler, kind, sampler):
    given = clip_setup(kind)
    ours = search_ksampler(given, BestOfN(1), cfg=1.0, eta=-1.0, sampler_name=sampler)
    assert gap(ours.best, ksampler(given, sampler, cfg=1.0)) < 2e-5
    two = search_ksampler(given, BestOfN(2), cfg=1.0, eta=-1.0, sampler_name=sampler)
    rows = [{"samples": stream_rows(two.finalists, row)} for row in range(2)]
    assert min(gap(row, ours.best) for row in rows) < 1e-4
