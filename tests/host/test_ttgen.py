"""TTGen, rewriters and Rewrite Prompt as nodes, on the embedded model inside ComfyUI."""

from __future__ import annotations

import json
import socket

import pytest
import torch

from testtime.models.tiny.loading import missing_weights
from testtime.samplers.methods import SVDD, BestOfN
from testtime.samplers.plan import Plan
from testtime.samplers.processes.sde import SDE
from testtime.samplers.protocols import Rewrite, SearchError

from .test_memory import evict_all

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(bool(missing_weights(["diffusion", "autoencoder", "text_encoder"])), reason="no weights here"),
]

PROMPT = "a ring above a cross"
TWO = Rewrite(("a red ring above a blue cross", "a blue cross below a ring"))


@pytest.fixture(scope="module")
def world():
    """(MODEL, CLIP, VAE, verifier, held-out verifier) of the embedded diffusion family."""
    from testtime.nodes.family_nodes import LoadShapesWorldNode

    with torch.inference_mode():
        return LoadShapesWorldNode.execute("diffusion").args


def sample(world, search, prompt=PROMPT, batch=1, **inputs):
    """Search KSampler as the server runs it: (best, finalists, scores, trace)."""
    import nodes
    from testtime.nodes.search_ksampler import SearchKSamplerNode

    model, clip, vae, verifier, _ = world
    with torch.inference_mode():
        encode = nodes.CLIPTextEncode().encode
        values = {
            "model": model, "seed": 3, "steps": 6, "cfg": 2.5, "scheduler": "normal", "denoise": 1.0, "eta": 0.0,
            "positive": encode(clip, prompt)[0], "negative": encode(clip, "")[0], "verifier": verifier, "vae": vae,
            "latent_image": {"samples": torch.zeros(batch, 4, 16, 16)}, "search": search, "prompt": prompt, **inputs,
        }  # fmt: skip
        return SearchKSamplerNode.execute(**values).result


def ttgen(world, rewriter=None, **inputs):
    from testtime.nodes.rewriter_nodes import ShapesRewriterNode
    from testtime.nodes.ttgen_nodes import TTGenNode

    rewriter = rewriter or ShapesRewriterNode.execute().args[0]
    values = {"rewrites": 2, "injection_step": 4, "interval": 1, "clip": world[1], **inputs}
    return TTGenNode.execute(rewriter, **values).args[0]


class Fixed:
    """A rewriter that always proposes the same two prompts, after doing something."""

    name = "fixed"

    def __init__(self, action=lambda: None, answer=None):
        self.action, self.answer, self.calls = action, answer or TWO, 0

    def rewrite(self, requests):
        self.action()
        self.calls += len(requests)
        return [self.answer] * len(requests)


def test_the_host_finds_what_the_library_finds(world):
    """The same noise, prompts and choices in ComfyUI and without it: the same image."""
    import comfy.sample

    from testtime.models.tiny.pipeline import SamplingSettings, shapes_process
    from testtime.samplers.methods import TTGen
    from testtime.samplers.processes.diffusion import Start
    from testtime.samplers.run.search import run_search
    from testtime.verifiers.registry import create

    best, _, _, trace = sample(world, ttgen(world, Fixed()))
    process = shapes_process([PROMPT], SamplingSettings(steps=6, cfg=2.5, eta=0.0, seed=3))
    process.start_at = Start(noise=comfy.sample.prepare_noise(torch.zeros(1, 4, 16, 16), 3))
    result = run_search(TTGen(Fixed(), 2, 4), process, create("shapes_preference"), [PROMPT])
    from testtime.models.tiny.loading import load_family

    latents = result.latents / load_family().latent_scale
    assert torch.allclose(best["samples"], latents, atol=2e-3 * float(latents.std()))
    ledger = trace.meta["ledger"]
    assert ledger["nfe"] == result.ledger.nfe == 2 * 6 + 4 * 2
    assert ledger["rewriter_calls"] == 4
    chosen = [[e["prompt"] for e in record.particles if e["selected"]] for record in trace.records]
    assert chosen == [[e["prompt"] for e in record.particles if e["selected"]] for record in result.trace.records]


def test_without_rewrites_it_is_the_stock_sampler(world):
    plain = sample(world, BestOfN(1))[0]["samples"]
    same = sample(world, ttgen(world, Fixed(answer=Rewrite(aligned=True))))[0]["samples"]
    assert torch.allclose(plain, same, atol=1e-4)


def test_every_image_of_a_batch_gets_its_own_rewrites(world):
    best, finalists, _scores, trace = sample(world, ttgen(world, particles=2, patience=9), batch=2)
    assert best["samples"].shape[0] == 2 and finalists["samples"].shape[0] == 4
    asked = {(entry["group"], entry["slot"]) for record in trace.records for entry in record.rewrites}
    assert asked == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert trace.meta["rewriter"] == "shapes rules" and trace.meta["status"] == "complete"


def test_models_pushed_off_by_the_rewriter_come_back(world):
    plain = sample(world, ttgen(world, Fixed()))[0]["samples"]
    pushed = sample(world, ttgen(world, Fixed(evict_all)))[0]["samples"]
    assert torch.equal(plain, pushed)


def test_cancel_while_the_rewriter_thinks_keeps_the_best_so_far(world):
    import comfy.model_management as management

    from testtime.nodes.host.results import store

    rewriter = Fixed()

    def cancel():
        if rewriter.calls == 2:
            raise management.InterruptProcessingException()

    rewriter.action = cancel
    with pytest.raises(management.InterruptProcessingException):
        sample(world, ttgen(world, rewriter))
    kept = store.latest("interrupted")
    assert kept is not None and torch.isfinite(kept.best).all()
    assert sample(world, ttgen(world, Fixed(cancel)), on_cancel="finish with best so far")[3].meta["status"]


@pytest.mark.parametrize("path", [False, True], ids=["plain", "on a path"])
def test_reprompted_search(world, path):
    from testtime.nodes.ttgen_nodes import AddRewritingNode

    inner = Plan(SVDD(3), moves=SDE("linear") if path else None)
    search = AddRewritingNode.execute(inner, Fixed(), 2, world[1], 4, 1).args[0]
    assert (search.moves is not None) == path
    _, _, _, trace = sample(world, search, eta=1.0)
    prompts = {entry.get("prompt") for record in trace.records for entry in record.particles}
    assert prompts == {None, *Fixed().answer.prompts}
    assert trace.meta["method"] == "svdd" and trace.meta["ledger"]["nfe"] == sample(
        world, inner, eta=1.0
    )[3].meta["ledger"]["nfe"]  # fmt: skip


@pytest.mark.parametrize("wrapped", [False, True], ids=["ttgen", "re-prompted"])
def test_a_budget_is_used_up_and_kept(world, wrapped):
    from testtime.nodes.budget_node import FitToBudgetNode
    from testtime.nodes.ttgen_nodes import AddRewritingNode

    inner = (
        AddRewritingNode.execute(BestOfN(9), Fixed(), 2, world[1], 4, 1).args[0] if wrapped else ttgen(world, Fixed())
    )
    search = FitToBudgetNode.execute(inner, 60, 0.0, "keep", 1).args[0]
    _, _, scores, trace = sample(world, search, eta=1.0)
    # Three trajectories of 2 * 6 passes and 4 rounds with 2 rewrites, or five particles of 2 * 6 passes.
    assert len(scores.values) == (5 if wrapped else 3) and trace.meta["ledger"]["nfe"] == 60
    assert trace.meta["ledger"]["rewriter_calls"] > 0


def test_winner_is_replayed_with_its_prompts(world):
    import nodes
    from testtime.nodes.replay_node import RerenderParticleNode

    model, clip, *_ = world
    best, _, _, trace = sample(world, ttgen(world, Fixed(), keep_original=False))
    with torch.inference_mode():
        encode = nodes.CLIPTextEncode().encode
        inputs = {
            "trace": trace, "particle": -1, "image": 0, "model": model, "seed": 3, "steps": 6, "cfg": 2.5,
            "scheduler": "normal", "positive": encode(clip, PROMPT)[0], "negative": encode(clip, "")[0],
            "latent_image": {"samples": torch.zeros(1, 4, 16, 16)}, "denoise": 1.0, "eta": 0.0,
        }  # fmt: skip
        again = RerenderParticleNode.execute(**inputs, clip=clip).result[0]
        assert torch.allclose(again["samples"], best["samples"], atol=1e-3)
        with pytest.raises(SearchError, match="clip is missing, connect the CLIP"):
            RerenderParticleNode.execute(**inputs)


def test_panel_gets_prompts_and_what_was_missing(world):
    from testtime.reports.messages import compact

    _, _, _, trace = sample(world, ttgen(world, Fixed()))
    first, last = (compact(trace.records[k], k, {}) for k in (0, -1))
    assert first["prompts"] == [None, *Fixed().answer.prompts] and first["rewrites"][0]["calls"] == 1
    assert last["prompts"] is None and last["rewrites"] == []
    json.dumps([first, last])


def test_endpoint_that_is_not_there_costs_no_image(world, caplog):
    from testtime.nodes.rewriter_nodes import EndpointRewriterNode

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    rewriter = EndpointRewriterNode.execute(url, "some-vlm", 0.7, timeout=1.0, retries=0).args[0]
    best, _, _, trace = sample(world, ttgen(world, rewriter, patience=1))
    assert torch.allclose(best["samples"], sample(world, BestOfN(1))[0]["samples"], atol=1e-4)
    assert trace.meta["ledger"]["rewriter_failures"] == 1
    assert "cannot be reached" in trace.meta["warnings"][0] and "going on with the original prompt" in caplog.text


def test_local_vlm_runs_under_model_management(world, tmp_path, monkeypatch):
    """A small real LLaVA from a model folder: found by name, loaded, asked during a search, no image lost."""
    import comfy.model_management as management
    import folder_paths

    from testtime.nodes import rewriter_nodes

    from ..unit.test_rewriter_vlm import llava

    llava(tmp_path / "small-llava")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "rewriters", ([str(tmp_path)], set()))
    assert rewriter_nodes.model_choices() == ["small-llava"]
    node = rewriter_nodes.LocalRewriterNode
    assert node.validate_inputs("small-llava") is True
    assert "hf download" in node.validate_inputs("another")
    with torch.inference_mode():
        rewriter = node.execute("small-llava", 0.7, max_tokens=16).args[0]
    best, _, _, trace = sample(world, ttgen(world, rewriter, injection_step=1))
    assert torch.isfinite(best["samples"]).all()
    assert trace.meta["ledger"]["rewriter_calls"] == 2 and trace.meta["ledger"]["rewriter_failures"] == 1
    assert any(loaded.model is rewriter.patcher for loaded in management.current_loaded_models)


def test_rewrite_prompt_on_its_own(world):
    from testtime.nodes.rewriter_nodes import RewritePromptNode, ShapesRewriterNode
    from testtime.shapes_world.captions import sample_prompt
    from testtime.shapes_world.drawing import draw
    from testtime.shapes_world.sampling import sample_scene

    rewriter = ShapesRewriterNode.execute().args[0]
    image = torch.full((1, 128, 128, 4), 0.8)
    prompts, missing, text = RewritePromptNode.execute(image, rewriter, PROMPT, 3).args
    assert len(prompts) == 3 and "ring" in missing and all(p in text for p in prompts)
    prompt = sample_prompt(4, "colors")
    right = torch.from_numpy(draw(sample_scene(4, prompt)))[None].float() / 255
    assert RewritePromptNode.execute(right, rewriter, prompt.text, 3).args[:2] == ([prompt.text], "")
    failed = RewritePromptNode.execute(image, rewriter, "a sunset", 3).args
    assert failed[0] == ["a sunset"] and "failed" in failed[2]
    assert "prompt is empty" in RewritePromptNode.validate_inputs(" ")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"clip": None}, "clip is missing"),
        ({"rewrites": 0}, "rewrites is 0"),
        ({"injection_step": -3}, "injection_step is -3"),
        ({"choice": "any"}, "choice is 'any'"),
    ],
)
def test_wrong_inputs_are_refused_by_the_node(world, inputs, message):
    with pytest.raises(SearchError, match=message):
        ttgen(world, **inputs)


def test_weights_and_embeddings_in_the_prompt(world):
    """The rewriter reads plain words; what it writes cannot be taken for emphasis."""
    seen = []

    class Echo(Fixed):
        def rewrite(self, requests):
            seen.extend(requests)
            return super().rewrite(requests)

    best, *_ = sample(world, ttgen(world, Echo()), prompt="a (red:1.4) ring, embedding:nothing")
    assert torch.isfinite(best["samples"]).all() and seen[0].prompt.startswith("a (red:1.4)")
    from testtime.rewriters.shapes import ShapesRewriter

    with_syntax = list(seen[:1])
    (answer,) = ShapesRewriter().rewrite(with_syntax)
    assert all(prompt.endswith("embedding:nothing") for prompt in answer.prompts) and answer.prompts
