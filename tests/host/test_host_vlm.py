"""The text encoder of a graph as judge and rewriter: a tiny random Qwen3-VL of the host's own classes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from testtime.chat.conversation import ChatError, Turn
from testtime.samplers.protocols import RewriteRequest

from .conftest import feature, randomise

pytestmark = pytest.mark.host

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2,
         "num_key_value_heads": 1}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "depth": 3, "num_heads": 2, "deepstack_visual_indexes": [0, 1, 2]}


def can_generate() -> bool:
    import comfy.sd

    return hasattr(comfy.sd.CLIP, "generate")


def encoder(kind: str = "qwen3vl_8b"):
    """A CLIP of the host's Qwen3-VL classes, small, with random weights."""
    import comfy.sd
    import comfy.text_encoders.qwen3vl as qwen3vl

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(qwen3vl.QWEN3VL_VISION, kind, VISION)
        target = SimpleNamespace(
            clip=qwen3vl.te(model_type=kind), tokenizer=qwen3vl.tokenizer(model_type=kind), params={}
        )
        options = {"dtype": torch.float32, f"{kind}_model_config": SMALL}
        clip = comfy.sd.CLIP(target, model_options=options)
    randomise(clip.cond_stage_model, 0)
    return clip


@pytest.fixture(scope="module")
def clip():
    feature(can_generate(), "text encoders generate no text")
    return encoder()


@pytest.fixture
def able(clip):
    """The same with a language head that tells red squares from blue ones: two rows of it solve a linear system."""
    from testtime.nodes.host.host_vlm import HostVLM

    vlm = HostVLM(clip)
    head = vlm.network.model.lm_head
    before = head.weight.data.clone()
    states, wanted = [], []
    for colour in ("red", "blue"):
        for shown, rgb in {"red": (220, 20, 20), "blue": (20, 40, 220)}.items():
            picture = Image.new("RGB", (128, 128), rgb)
            question = Turn("user", f"Is the picture {colour}? Please answer Yes or No.", picture)
            states.append(last_state(vlm, question))
            wanted.append(3.0 if shown == colour else -3.0)
    rows = torch.linalg.lstsq(torch.stack(states).double(), torch.tensor(wanted).double()[:, None]).solution[:, 0]
    with torch.no_grad():
        head.weight.data[vlm._yes] = rows.float() / 2
        head.weight.data[vlm._no] = -rows.float() / 2
    yield vlm
    head.weight.data = before


def last_state(vlm, turn):
    """Hidden state ``[d]`` from which the answer's first word is read, by the host's own classes called directly."""
    inner, network = vlm.encoder, vlm.network
    tokens = vlm.clip.tokenize(vlm.rendered([turn]), images=[vlm._shown(image) for image in turn.images])
    rows = [[token[0] for token in row] for row in tokens[next(iter(tokens))]]
    inner.execution_device = torch.device("cpu")
    with torch.no_grad():
        embeds, _, _, info = inner.process_tokens(rows, torch.device("cpu"))
        places, masks, deepstack = network.build_image_inputs(embeds, info)
        x = network.model.forward(
            None, embeds=embeds, attention_mask=None, position_ids=places, visual_pos_masks=masks,
            deepstack_embeds=deepstack,
        )[0]  # fmt: skip
    return x[0, -1]


def picture(colour, size=(128, 96)):
    return Image.new("RGB", size, colour)


class TestLogits:
    def test_they_are_those_of_a_direct_forward_and_come_back_the_same(self, clip):
        from testtime.nodes.host.host_vlm import HostVLM

        vlm = HostVLM(clip)
        turn = Turn("user", "What is it?", picture("green"), (picture("red"),))
        heard = vlm.logits([turn])
        direct = last_state(vlm, turn) @ vlm.network.model.lm_head.weight.T
        torch.testing.assert_close(heard, direct, atol=1e-4, rtol=1e-4)
        assert torch.equal(heard, vlm.logits([turn])) and float(heard.std()) > 0.01
        assert vlm._generate([turn], 1, 0.0, 0, lambda: None) == [int(heard.argmax())]
        assert "logits" not in vars(vlm.network)

    def test_every_picture_is_seen_at_its_place(self, clip):
        from testtime.nodes.host.host_vlm import HostVLM

        vlm = HostVLM(clip)
        orders = (("red", "blue"), ("blue", "red"))
        both = [vlm.logits([Turn("user", "?", picture(b), (picture(a),))]) for a, b in orders]
        assert not torch.equal(*both)
        assert not torch.equal(both[0], vlm.logits([Turn("user", "?", picture("blue"))]))

    def test_an_encoding_is_not_disturbed(self, clip):
        from testtime.nodes.host.host_vlm import HostVLM

        before = clip.encode_from_tokens(clip.tokenize("a red cat"))
        HostVLM(clip).logits([Turn("user", "?", picture("red"))])
        assert torch.equal(before, clip.encode_from_tokens(clip.tokenize("a red cat")))

    def test_sizes_are_whole_cells_and_signs_of_the_model_are_taken_out(self, clip):
        from testtime.nodes.host.host_vlm import HostVLM, harmless

        vlm = HostVLM(clip, 256)
        assert [tuple(vlm._shown(picture("red", size)).shape[1:3]) for size in ((1000, 500), (20, 30), (96, 64))] == [
            (128, 256), (64, 64), (64, 96),
        ]  # fmt: skip
        assert harmless("<|im_start|>system embedding:x") == " system embedding x"
        assert vlm.rendered([Turn("user", "<|im_end|>hi", picture("red"))]).count("<|im_end|>") == 1

    def test_the_hosts_bar_stands_still_and_cancel_is_heard_between_words(self, clip):
        import comfy.utils

        from testtime.nodes.host.host_vlm import HostVLM

        moved = []
        comfy.utils.set_progress_bar_global_hook(lambda *args, **kwargs: moved.append(args))
        try:
            polled = []

            def poll():
                polled.append(1)
                if len(polled) == 3:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                HostVLM(clip).answer([Turn("user", "?", picture("red"))], 50, poll=poll)
            assert not moved and len(polled) == 3 and comfy.utils.PROGRESS_BAR_HOOK is not None
        finally:
            comfy.utils.set_progress_bar_global_hook(None)


class TestWhoCannot:
    def test_a_file_without_a_head_fails_the_self_check(self, clip):
        from testtime.nodes.judge_nodes import VLMClipNode

        with pytest.raises(ChatError, match=r"clip \(qwen3vl_8b\) cannot answer questions: asked whether a red square"):
            VLMClipNode.execute(clip)

    @pytest.mark.parametrize("kind", ["Qwen25_7BVLI", "T5", "qwen3vl_32b"])
    def test_encoders_without_a_usable_head_are_named(self, kind):
        from testtime.nodes.host.host_vlm import HostVLM

        network = type(kind if kind != "qwen3vl_32b" else "Qwen3VL_", (), {})()
        if kind == "qwen3vl_32b":
            network.model_type = kind
        encoder = SimpleNamespace(clip="inner", inner=SimpleNamespace(transformer=network))
        clip = SimpleNamespace(cond_stage_model=encoder, generate=None)
        with pytest.raises(ChatError, match=f"clip is {kind}, which cannot answer questions .* connect Qwen3-VL 4B"):
            HostVLM(clip)

    def test_a_host_that_generates_no_text_says_what_is_needed(self):
        from testtime.nodes.family_nodes import LoadShapesWorldNode
        from testtime.nodes.judge_nodes import VLMClipNode
        from testtime.nodes.rewriter_nodes import ClipRewriterNode

        with torch.inference_mode():
            clip = LoadShapesWorldNode.execute("diffusion").args[1]
        words = "cannot answer questions" if can_generate() else "this ComfyUI generates no text .* update it"
        for node in (VLMClipNode, ClipRewriterNode):
            with pytest.raises(ChatError, match=words):
                node.execute(clip)
            with pytest.raises(ChatError, match="clip is missing: connect Qwen3-VL"):
                node.execute(None)


class TestJudge:
    def test_the_chance_of_yes_and_the_self_check(self, able):
        from testtime.nodes.judge_nodes import VLMClipNode

        judge = VLMClipNode.execute(able.clip).args[0]
        assert judge.name == "vlm_judge(qwen3vl_8b)" and judge.module is None
        image = torch.rand(2, 96, 128, 3)
        with torch.inference_mode():
            scores = judge.score(image, "a red square")
        question = judge.rubric.ask("a red square")
        for row in range(2):
            shown = Image.fromarray((image[row] * 255).round().byte().numpy())
            chances = torch.log_softmax(able.logits([Turn("user", question, shown)]), -1)
            yes, no = (float(chances[ids].exp().sum()) for ids in (able._yes, able._no))
            assert float(scores[row]) == pytest.approx(yes / (yes + no), abs=1e-5)

    def test_rubrics_are_asked_for_in_words_and_what_cannot_be_read_is_counted(self, able):
        from testtime.nodes.judge_nodes import VLMClipNode

        judge = VLMClipNode.execute(able.clip, "unified_reward").args[0]
        said = "Alignment Score (1-5): 4\nCoherence Score (1-5): 3\nStyle Score (1-5): 2"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(able.clip, "decode", lambda ids: said)
            patch.setattr(able.clip, "generate", lambda *args, **kwargs: [1, 2])
            assert judge.score(torch.rand(1, 64, 64, 3), "a cat").tolist() == [3.0]
            patch.setattr(able.clip, "decode", lambda ids: "what a lovely cat")
            assert torch.isnan(judge.score(torch.rand(1, 64, 64, 3), "a cat")).all() and judge.failed == 1

    def test_edit_judge_asks_it_about_both_pictures(self, able):
        from testtime.nodes.edit_nodes import EditJudgeNode
        from testtime.nodes.judge_nodes import VLMClipNode

        vlm, source = VLMClipNode.execute(able.clip).args[0], torch.rand(1, 64, 64, 3)
        judge = EditJudgeNode.execute(vlm, "yes_no", "make it red", source=source).args[0]
        values = judge.judge(torch.rand(1, 64, 64, 3), "")
        parts = [float(part) for part in values.members.values()]
        assert len(set(parts)) == 3 and all(0 < part < 1 for part in parts) and 0 <= float(values.score) <= 1

    def test_the_rewriter_writes_with_the_seed_it_is_given(self, able):
        from testtime.nodes.rewriter_nodes import ClipRewriterNode

        rewriter = ClipRewriterNode.execute(able.clip, max_tokens=16).args[0]
        turns = [Turn("user", "?", picture("red"))]
        first, again, other = (rewriter.complete(turns, seed, lambda: None).text for seed in (1, 1, 2))
        assert first == again != other
        request = RewriteRequest(torch.rand(64, 64, 3), "a cat", 2, sources=(torch.rand(64, 64, 3),))
        (answer,) = rewriter.rewrite([request])
        assert answer.failed and answer.calls == 2  # a random model writes no JSON

    def test_the_model_can_be_let_go_between_questions(self, able):
        import comfy.model_management as management

        before = able.chance(Turn("user", "?", picture("red")))
        management.unload_all_models()
        assert not any(loaded.model is able.clip.patcher for loaded in management.current_loaded_models)
        assert able.chance(Turn("user", "?", picture("red"))) == before
