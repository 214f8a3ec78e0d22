"""Edits inside ComfyUI: where a source comes from, what the nodes refuse, and a judge that sees both pictures."""

from __future__ import annotations

import pytest
import torch

from testtime.samplers.sources import Sources
from testtime.verifiers.image_image.preservation import PreservationVerifier

from ..unit.test_verifiers_judge import no_pauses, says, serve  # noqa: F401 - fixtures

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def family():
    """MODEL, CLIP, VAE of Shapes World, and a picture of it ``[1, 128, 128, 3]``."""
    from testtime.nodes.family_nodes import LoadShapesWorldNode

    with torch.inference_mode():
        model, clip, vae, *_ = LoadShapesWorldNode.execute("diffusion").args
    torch.manual_seed(0)
    picture = torch.full((1, 128, 128, 3), 0.9)
    picture[:, 30:80, 40:90] = torch.tensor([0.8, 0.1, 0.1])
    return model, clip, vae, picture


def stock(name):
    import nodes

    return nodes.NODE_CLASS_MAPPINGS[name]()


class Watch(PreservationVerifier):
    """Preservation that remembers the sources it was given."""

    def __init__(self, **options):
        super().__init__(**options, name="watch")
        self.found = []

    def score(self, images, prompts="", context=None):
        self.found += [context.source(row) for row in range(len(images))]
        return super().score(images, prompts, context)


def searched(family, judge, latent=None, denoise=1.0, references=(), **options):
    """Search KSampler with Best-of-2, two steps."""
    from testtime.nodes.search_ksampler import SearchKSamplerNode
    from testtime.samplers.methods import BestOfN
    from testtime.samplers.plan import as_plan

    model, clip, vae, _ = family
    with torch.inference_mode():
        positive, negative = (stock("CLIPTextEncode").encode(clip, text)[0] for text in ("a red square", ""))
        if references:
            positive = [[tokens, {**extra, "reference_latents": list(references)}] for tokens, extra in positive]
        latent = latent or stock("EmptyLatentImage").generate(128, 128, 1)[0]
        return SearchKSamplerNode.execute(
            model, 1, 3, 4.0, "normal", positive, negative, latent, denoise,
            verifier=judge, vae=vae, search=as_plan(BestOfN(2)), eta=0.0, prompt="a red square", **options,
        ).args  # fmt: skip


def encoded(family, picture):
    with torch.inference_mode():
        return {"samples": family[2].encode(picture)}


class TestWhereASourceComesFrom:
    def test_what_is_connected_wins(self, family):
        judge, other = Watch(), torch.rand(1, 64, 64, 3)
        searched(family, judge, encoded(family, family[3]), 0.5, [torch.zeros(1, 4, 16, 16)], source=other)
        assert judge.found and all(torch.equal(found.first, other[0]) for found in judge.found)

    def test_reference_latents_in_their_order(self, family):
        judge, mirrored = Watch(), family[3].flip(2)
        latents = [encoded(family, picture)["samples"] for picture in (family[3], mirrored)]
        searched(family, judge, references=latents)
        first, second = judge.found[0].images
        assert float((first - family[3][0]).abs().mean()) < 0.05 > float((second - mirrored[0]).abs().mean())

    def test_the_latent_of_image_to_image_and_of_inpainting_with_its_mask(self, family):
        judge, latent = Watch(), encoded(family, family[3])
        searched(family, judge, latent, 0.6)
        assert float((judge.found[0].first - family[3][0]).abs().mean()) < 0.05 and judge.found[0].mask is None
        judge, mask = Watch(), torch.zeros(1, 128, 128)
        mask[:, 24:88, 32:96] = 1.0
        searched(family, judge, {**latent, "noise_mask": mask})
        found = judge.found[0]
        assert found.mask.shape == (128, 128) and torch.equal(found.mask, mask[0])

    def test_without_any_the_search_ends_before_its_first_pass(self, family):
        with pytest.raises(ValueError, match="'watch' compares with the image that is edited and there is none"):
            searched(family, Watch())
        judge = PreservationVerifier(Sources((family[3][0],)))  # its own
        searched(family, judge)

    def test_a_batch_and_a_mask_of_another_picture(self, family):
        with pytest.raises(ValueError, match="source has 3 images for a batch of 1"):
            searched(family, Watch(), source=torch.rand(3, 64, 64, 3))
        with pytest.raises(ValueError, match=r"source_mask is 64 x 128 .* belongs to another image"):
            searched(family, Watch(), source=family[3], source_mask=torch.eye(128)[None, :, :64])

    def test_bars_are_said_once(self, family):
        trace = searched(family, Watch(), source=torch.rand(1, 64, 128, 3))[3]
        (said,) = [line for line in trace.meta["warnings"] if "grey bars" in line]
        assert "source is 128 x 64" in said


class TestNodes:
    def test_edit_judge_asks_the_model_of_a_vlm_verifier(self, family, serve):  # noqa: F811
        from testtime.nodes.edit_nodes import EditJudgeNode
        from testtime.nodes.judge_nodes import VLMEndpointNode

        server = serve(says("Yes", {"Yes": 0.6, "No": 0.2}))
        vlm = VLMEndpointNode.execute(server.url, "m", "yes_no").args[0]
        judge = EditJudgeNode.execute(vlm, "yes_no", "make it blue", source=family[3]).args[0]
        assert judge.score(family[3], "").tolist() == pytest.approx([0.75])
        assert "make it blue" in server.requests[0][2]["messages"][0]["content"][0]["text"]
        _, _, scores, trace = searched(family, EditJudgeNode.execute(vlm, "yes_no").args[0], source=family[3])
        assert scores.values == pytest.approx([0.75, 0.75])
        assert any("natural" in name for name in trace.records[-1].particles[0]["members"])

    def test_a_local_model_is_asked_under_the_same_management(self, family, tmp_path):
        from testtime.bench.small_vlm import llava
        from testtime.nodes.edit_nodes import EditJudgeNode
        from testtime.nodes.host.managed_verifier import managed
        from testtime.verifiers.vlm.vqa_score import load_vqa_score

        llava(tmp_path)
        with torch.inference_mode(False):
            vlm = managed(load_vqa_score(tmp_path, longest=28))
        judge = EditJudgeNode.execute(vlm, "yes_no", "a red cat", source=family[3]).args[0]
        assert judge.patcher is vlm.patcher and judge.inner.asker.longest == 28
        with torch.inference_mode():
            assert 0 < float(judge.score(family[3], "")) < 1
        assert vlm.inner.name == "vqa_score(" + tmp_path.name + ")" and judge.name.startswith("edit_judge(")

    def test_who_cannot_be_asked_is_named(self):
        from testtime.nodes.edit_nodes import EditJudgeNode, judge_problem

        with pytest.raises(ValueError, match="judge is 'watch': Edit Judge asks a vision-language model: connect VLM"):
            EditJudgeNode.execute(Watch(), "yes_no")
        graph = {
            "1": {"class_type": "TestTimePickScore", "inputs": {}},
            "2": {"class_type": "TestTimeEditJudge", "inputs": {"judge": ["1", 0]}},
        }
        assert "judge comes from TestTimePickScore: Edit Judge asks" in judge_problem(graph)
        graph["1"]["class_type"] = "TestTimeVLM"
        assert judge_problem(graph) is None

    def test_preservation_takes_a_mask_and_names_one_without_a_source(self, family):
        from testtime.nodes.edit_nodes import PreservationNode

        mask = torch.zeros(1, 128, 128)
        mask[:, 24:88, 32:96] = 1.0
        judge = PreservationNode.execute(0.3, family[3], mask).args[0]
        changed = family[3].clone()
        changed[:, 32:80, 40:88] = 0.0
        assert judge.score(changed).tolist() == pytest.approx([1.0], abs=0.02)
        with pytest.raises(ValueError, match="mask is connected and source is not"):
            PreservationNode.execute(0.3, None, mask)


REFINED = {
    "prompt": "a red square, a blue ring", "items": "", "editor": "image to image", "seed": 1, "steps": 3, "cfg": 1.0,
    "sampler_name": "euler", "scheduler": "normal", "denoise": 0.6, "rounds": 2, "candidates": 2,
}  # fmt: skip


class TestRefineByEdit:
    def refined(self, family, serve, *script, **changes):  # noqa: F811
        from testtime.nodes.judge_nodes import VLMEndpointNode
        from testtime.nodes.refine_node import RefineByEditNode

        server = serve(*script)
        model, clip, vae, picture = family
        judge = VLMEndpointNode.execute(server.url, "m", "yes_no", parallel=1).args[0]
        with torch.inference_mode():
            negative = stock("CLIPTextEncode").encode(clip, "")[0]
            out = RefineByEditNode.execute(picture, model, clip, vae, negative, judge, **{**REFINED, **changes})
        return out.args, server

    @staticmethod
    def answers(*chances):
        return [says("Yes", {"Yes": chance, "No": 1 - chance}) for chance in chances]

    def test_what_is_right_is_left_alone(self, family, serve):  # noqa: F811
        (image, trace, text), server = self.refined(family, serve, *self.answers(0.9))
        assert torch.equal(image, family[3]) and len(server.requests) == 2 and text.startswith("everything is there")
        assert trace.meta["status"] == "complete" and trace.meta["ledger"]["nfe"] == 0

    @pytest.mark.parametrize("editor", ["image to image", "reference latent"])
    def test_it_edits_judges_and_keeps(self, family, serve, editor):  # noqa: F811
        from testtime.nodes.host.results import store

        script = self.answers(0.9, 0.1, 0.9, 0.9, 0.2, 0.9, 0.9, 0.9)  # then all right
        (image, trace, text), _ = self.refined(family, serve, *script, editor=editor, fresh=False)
        assert trace.meta["status"] == "complete" and "everything is there" in text
        assert trace.meta["ledger"]["nfe"] == 6 and len(trace.records) == 2
        assert not torch.equal(image, family[3]) and image.shape == family[3].shape
        edits = trace.records[1].particles
        assert (
            "a blue ring" in edits[1]["prompt"] and edits[0]["parent"] == 0 and "1. a red square" in edits[0]["members"]
        )
        assert store.latest().trace is trace

    def test_an_edit_may_be_a_search(self, family, serve):  # noqa: F811
        from testtime.samplers.methods import BestOfN
        from testtime.samplers.plan import as_plan

        watch = Watch()
        (_, trace, _), _ = self.refined(
            family, serve, *self.answers(0.9, 0.1), rounds=1, candidates=1, fresh=False, search=as_plan(BestOfN(3)),
            verifier=watch,
        )  # fmt: skip
        assert trace.meta["ledger"]["nfe"] == 9 and all(torch.equal(s.first, family[3][0]) for s in watch.found)

    def test_budget_cancel_and_what_is_kept(self, family, serve, monkeypatch):  # noqa: F811
        import comfy.model_management as management

        (image, trace, text), _ = self.refined(family, serve, *self.answers(0.9, 0.1), max_nfe=4, fresh=False)
        assert trace.meta["status"] == "budget" and "budget spent" in text and image.shape == family[3].shape
        from testtime.nodes import editing

        def cancel(*args, **kwargs):
            raise management.InterruptProcessingException

        monkeypatch.setattr(editing.GraphEditor, "_made", cancel)
        with pytest.raises(management.InterruptProcessingException):
            self.refined(family, serve, *self.answers(0.9, 0.1), fresh=False)
        from testtime.nodes.recover_node import RecoverSearchNode

        latent = RecoverSearchNode.execute("last stopped").args[0]
        assert latent["samples"].shape == (1, 4, 16, 16)
        (_, trace, _), _ = self.refined(
            family, serve, *self.answers(0.9, 0.1), fresh=False, on_cancel="finish with best so far"
        )
        assert trace.meta["status"] == "interrupted"

    def test_what_is_wrong_is_named(self, family, serve):  # noqa: F811
        from testtime.nodes.refine_node import RefineByEditNode

        for changes, words in (
            ({"editor": "magic"}, "editor is 'magic': choose one of reference latent"),
            ({"search": object()}, "search is connected and verifier is not"),
            ({"items": "\n".join(map(str, range(13)))}, "items has 13 lines: at most 12"),
            ({"prompt": " "}, "prompt is empty"),
        ):
            with pytest.raises(ValueError, match=words):
                self.refined(family, serve, *self.answers(0.9), **changes)
        assert "more than 12 lines" in RefineByEditNode.validate_inputs("p", "\n".join(map(str, range(13))))
