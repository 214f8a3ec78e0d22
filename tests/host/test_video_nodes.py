"""Nodes for clips: two experts as one schedule, lists of clips, ranking of videos, looks without a decoder."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch

from testtime.samplers.methods import SVDD, BestOfN, RandomSearch
from testtime.samplers.protocols import SearchError, Verifier
from testtime.verifiers.base import VerifierError

from .conftest import Redness, conditioning, watched
from .test_video import gap, told
from .video_models import build_video_model, build_wan_vae, video_conditioning, video_latent

pytestmark = pytest.mark.host

BOUNDARY = 0.875


@pytest.fixture(scope="module")
def experts():
    """Two tiny Wans and a VAE for their clips."""
    return build_video_model("wan", 0), build_video_model("wan", 1), build_wan_vae()


@pytest.fixture
def sampled(experts):
    """``sampled(sampler, sigmas, batch=1, prompts=1)`` -> LATENT of SamplerCustomAdvanced on the two experts."""
    from comfy_extras import nodes_custom_sampler as custom

    from testtime.nodes.video_nodes import TwoExpertGuiderNode

    def run(sampler, sigmas, batch=1, cfgs=(1.0, 1.0), positive=None):
        high, low, _ = experts
        given = positive or video_conditioning("wan", 1)
        with torch.inference_mode():
            guider = TwoExpertGuiderNode.execute(
                high, low, given, video_conditioning("wan", 2), *cfgs, BOUNDARY
            ).result[0]
            noise = custom.Noise_RandomNoise(3)
            return custom.SamplerCustomAdvanced().sample(
                noise, guider, sampler, sigmas, {"samples": video_latent("wan", batch)}
            )[0]

    return run


def search_sampler(search, vae, eta=0.0, **options):
    from testtime.nodes.search_sampler import SearchSamplerNode

    return SearchSamplerNode.execute(Redness(), vae, search, eta, "a red square", **options).result[0]


def wan_sigmas(model, steps=4):
    from testtime.nodes.search_ksampler import schedule

    return schedule(model, "simple", steps, 1.0)


def two_stages(experts, sigmas, cfgs, batch=1):
    """The official way: KSamplerAdvanced on one model up to a step, on the other from there."""
    import nodes

    high, low, _ = experts
    split = int((sigmas[:-1] >= BOUNDARY).sum())
    assert 0 < split < len(sigmas) - 1
    advanced, latent = nodes.KSamplerAdvanced(), {"samples": video_latent("wan", batch)}
    conds = video_conditioning("wan", 1), video_conditioning("wan", 2)
    steps = len(sigmas) - 1
    with torch.inference_mode():
        first = advanced.sample(
            high, "enable", 3, steps, cfgs[0], "euler", "simple", *conds, latent, 0, split, "enable"
        )[0]
        return advanced.sample(
            low, "disable", 3, steps, cfgs[1], "euler", "simple", *conds, first, split, 10000, "disable"
        )[0]


@pytest.mark.parametrize("cfgs", [(1.0, 1.0), (3.0, 2.0)])
def test_two_experts_are_two_stages(experts, sampled, cfgs):
    from comfy_extras import nodes_custom_sampler as custom

    sigmas = wan_sigmas(experts[0])
    stock = two_stages(experts, sigmas, cfgs)
    euler = custom.KSamplerSelect().get_sampler("euler")[0]
    assert gap(sampled(euler, sigmas, cfgs=cfgs), stock) < 1e-5
    assert gap(sampled(search_sampler(BestOfN(1), experts[2]), sigmas, cfgs=cfgs), stock) < 1e-5


def test_a_search_crosses_from_one_expert_to_the_other_once(experts, monkeypatch):
    """Candidates are moved side by side: all steps of the first model come before all of the second."""
    from comfy_extras import nodes_custom_sampler as custom

    from testtime.nodes.host.results import store
    from testtime.nodes.video_nodes import TwoExpertGuiderNode

    order: list[str] = []
    high, _ = watched(experts[0], before=lambda rows: order.append(f"high {rows}"))
    low, _ = watched(experts[1], before=lambda rows: order.append(f"low {rows}"))
    sigmas = wan_sigmas(high)
    with torch.inference_mode():
        guider = TwoExpertGuiderNode.execute(
            high, low, video_conditioning("wan", 1), video_conditioning("wan", 2), 1.0, 1.0, BOUNDARY
        ).result[0]
        custom.SamplerCustomAdvanced().sample(
            custom.Noise_RandomNoise(3),
            guider,
            search_sampler(BestOfN(3), experts[2]),
            sigmas,
            {"samples": video_latent("wan")},
        )
    split = int((sigmas[:-1] >= BOUNDARY).sum())
    assert order == ["high 1"] * (3 * split) + ["low 1"] * (3 * (4 - split))
    assert store.latest().trace.meta["ledger"]["nfe"] == 12


@pytest.mark.parametrize("search", [SVDD(2), RandomSearch(4)], ids=lambda search: search.name)
def test_methods_run_through_both_experts(experts, sampled, search):
    from testtime.nodes.host.results import store

    sampled(search_sampler(search, experts[2], eta=1.0), wan_sigmas(experts[0]), cfgs=(2.0, 1.0))
    found = store.latest()
    given = SimpleNamespace(vae=experts[2], verifier=Redness())
    assert found.scores.values == pytest.approx(told(given, found.finalists), abs=1e-4)
    assert found.status == "complete" and not found.trace.meta["warnings"]


def test_a_prompt_for_every_clip_reaches_both_experts(experts, sampled):
    from comfy_extras import nodes_custom_sampler as custom

    sigmas, both = wan_sigmas(experts[0]), conditioning("eps", 2)
    euler = custom.KSamplerSelect().get_sampler("euler")[0]
    stock = sampled(euler, sigmas, batch=2, positive=both)
    assert gap(sampled(search_sampler(BestOfN(1), experts[2]), sigmas, batch=2, positive=both), stock) < 1e-5


class _Text:
    """A text encoder whose tokens depend on the text alone."""

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        return [[text_states(text), {}]]


def text_states(text: str) -> torch.Tensor:
    return torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(sum(map(ord, text))))


def test_rewritten_prompts_reach_both_experts(experts, sampled):
    """A candidate that is rewritten before its first step is the clip of that prompt, as if it had been the user's."""
    from testtime.nodes.host.results import store
    from testtime.nodes.ttgen_nodes import AddRewritingNode, TTGenNode
    from testtime.samplers.protocols import Rewrite

    class Rewriter:
        name = "fixed"

        def rewrite(self, requests):
            return [Rewrite(("a red circle", "two red circles"))] * len(requests)

    sigmas = wan_sigmas(experts[0])
    for search in (
        TTGenNode.execute(Rewriter(), rewrites=2, clip=_Text(), injection_step=3, interval=1).args[0],
        AddRewritingNode.execute(SVDD(3), Rewriter(), 2, _Text(), 3, 1).args[0],
    ):
        sampled(search_sampler(search, experts[2], eta=1.0), sigmas)
        trace = store.latest().trace
        prompts = {entry.get("prompt") for record in trace.records for entry in record.particles}
        assert {"a red circle", "two red circles"} <= prompts and trace.meta["status"] == "complete"

    seen = {}

    def catch(process):
        state = process.start(1)
        for _ in range(process.steps):
            state = process.advance(process.predict(process.reprompt(state, ["a red circle"])))[0]
        seen["clip"] = state.x

    from testtime.nodes.host.run import SearchOptions
    from testtime.nodes.search_sampler import SearchSampler

    search = AddRewritingNode.execute(BestOfN(1), Rewriter(), 2, _Text(), 3, 1).args[0]
    options = SearchOptions(search, Redness(), experts[2], "a red square", eta=0.0, before_run=catch)
    sampled(SearchSampler(options), sigmas)
    own = [[text_states("a red circle"), video_conditioning("wan", 1)[0][1]]]
    stock = sampled(search_sampler(BestOfN(1), experts[2]), sigmas, positive=own)
    scale = experts[0].model.latent_format.process_out(seen["clip"].cpu())
    assert gap({"samples": scale}, stock) < 1e-5


def test_experts_that_do_not_belong_together_are_named(experts):
    from testtime.nodes.host.experts import TwoExpertGuider

    with pytest.raises(SearchError, match=r"boundary is 1\.5"):
        TwoExpertGuider(experts[0], experts[1], 1.5)
    with pytest.raises(SearchError, match="model_high makes latents of Wan21 and model_low of Wan22"):
        TwoExpertGuider(experts[0], build_video_model("wan5b"), BOUNDARY)


# --- clips one by one


def test_finalists_come_one_by_one():
    from testtime.nodes.video_nodes import FinalistsAsListNode

    latent = {
        "samples": video_latent("wan", 3, seed=1),
        "batch_index": [4, 5, 6],
        "noise_mask": torch.rand(3, 1, 3, 4, 4),
    }
    (found,) = FinalistsAsListNode.execute(latent, 2).result
    assert [tuple(one["samples"].shape) for one in found] == [(1, 16, 3, 4, 4)] * 2
    assert torch.equal(found[1]["samples"][0], latent["samples"][1]) and found[1]["batch_index"] == [5]
    assert torch.equal(found[1]["noise_mask"][0], latent["noise_mask"][1])


def test_packs_come_one_by_one_with_their_sound():
    from .video_models import ZOO, build_video_model

    build_video_model("ltxav")  # skips where there are no packs
    from testtime.nodes.video_nodes import one_by_one

    found = one_by_one({"samples": video_latent("ltxav", 2, seed=1)})
    assert [[tuple(s.shape) for s in one["samples"].unbind()] for one in found] == [
        [(1, *shape) for shape in ZOO["ltxav"].shapes]
    ] * 2


def video(values, audio=None):
    """A VIDEO whose frames have these shades of red."""
    from comfy_api.latest import InputImpl, Types

    frames = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 16, 16, 3).clone()
    frames[..., 1:] = 0.0
    return InputImpl.VideoFromComponents(Types.VideoComponents(images=frames, frame_rate=Fraction(8), audio=audio))


class Clipwise(Verifier):
    name, needs_prompt, sees, least_frames = "clipwise", False, "clip", 2

    def score(self, images, prompts, context=None):
        return images[:, -1].mean((1, 2, 3)) - images[:, 0].mean((1, 2, 3))


def test_videos_are_ranked():
    from testtime.nodes.video_nodes import FramesVerifierNode, RankVideosNode

    videos = [video([0.2] * 6), video([0.9] * 6), video([0.0, 0.0, 0.0, 0.0, 0.0, 0.6])]
    ranked, scores, order = RankVideosNode.execute(videos, [Redness()], ["a red square"], [2]).result
    assert ranked == [videos[1], videos[0]] and order == "1, 0"
    assert scores.values == pytest.approx([0.9, 0.2])
    last = FramesVerifierNode.execute(Redness(), "last", 1, "mean").result[0]
    assert RankVideosNode.execute(videos, [last], ["a red square"], [0]).result[2] == "1, 2, 0"
    assert RankVideosNode.execute(videos, [Clipwise()], [""], [0]).result[2] == "2, 0, 1"
    with pytest.raises(SearchError, match="'clipwise' judges videos: this one has 1 frame"):
        RankVideosNode.execute([video([0.5])], [Clipwise()], [""], [0])


def test_wrong_settings_of_the_judges_are_named():
    from testtime.nodes.video_nodes import FramesVerifierNode, MotionVerifierNode

    with pytest.raises(VerifierError, match="count is 0"):
        FramesVerifierNode.execute(Redness(), "uniform", 0, "mean")
    with pytest.raises(VerifierError, match="amount is 'fast'"):
        MotionVerifierNode.execute("fast", 1.0)


def test_save_search_keeps_the_trace_beside_the_video(setup, search_ksampler, tmp_path, monkeypatch):
    import json

    import av
    import folder_paths

    from testtime.nodes.trace_nodes import SaveSearchNode
    from testtime.samplers.after.trace_file import ESSENTIALS_KEY, read_trace_file

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    out = search_ksampler(setup("eps"), BestOfN(2), steps=2)
    given = video([0.1, 0.5, 0.9, 0.5])
    SaveSearchNode.execute(out.trace, video=given, filename_prefix="clip", page=False)
    (saved,) = tmp_path.glob("*.mp4")
    with av.open(str(saved)) as container:
        assert len(list(container.decode(video=0))) == 4
        assert json.loads(container.metadata[ESSENTIALS_KEY])
    trace = read_trace_file(saved.with_suffix(".json"))
    assert trace.trace.meta["method"] == "best_of_n"
    with pytest.raises(SearchError, match="neither images nor a video"):
        SaveSearchNode.execute(out.trace)
    with pytest.raises(SearchError, match="images and a video"):
        SaveSearchNode.execute(out.trace, images=torch.rand(1, 8, 8, 3), video=given)
