"""CLIP-FlanT5: the released keys, and the score against transformers' own classes put together by hand."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from testtime.verifiers import registry
from testtime.verifiers.base import VerifierError
from testtime.verifiers.preprocessing import CLIP_MEAN, CLIP_STD
from testtime.verifiers.vlm import flan_t5
from testtime.verifiers.vlm.flan_t5 import load_clip_flant5, squared

from .test_verifiers_clip_score import pictures

transformers = pytest.importorskip("transformers")
save_file = pytest.importorskip("safetensors.torch").save_file

WORDS = [
    "<pad>",
    "</s>",
    "<unk>",
    "Yes",
    "No",
    "A",
    "chat",
    "between",
    "user",
    "and",
    "an",
    "artificial",
    "intelligence",
    "assistant",
    ".",
    "The",
    "gives",
    "helpful",
    ",",
    "detailed",
    "polite",
    "answers",
    "to",
    "the",
    "'",
    "s",
    "questions",
    "USER",
    ":",
    "Does",
    "this",
    "figure",
    "show",
    '"',
    "a",
    "red",
    "cat",
    "two",
    "green",
    "birds",
    "sea",
    "?",
    "Please",
    "answer",
    "yes",
    "or",
    "no",
    "ASSISTANT",
]
PROMPTS = ["a red cat", "two green birds", "the sea and a cat"]


@pytest.fixture(scope="module")
def tokenizer():
    """Words and an end of sentence, as T5's tokenizer adds one to every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


class Parts:
    """The three networks of the release, small, with random weights, and the file that they make."""

    def __init__(self):
        torch.manual_seed(0)
        self.vision = transformers.CLIPVisionModel(
            transformers.CLIPVisionConfig(
                hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=1, image_size=28,
                patch_size=7, hidden_act="quick_gelu",
            )
        )  # fmt: skip
        self.config = transformers.T5Config(
            vocab_size=len(WORDS), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.1,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
            pad_token_id=0, eos_token_id=1,
        )  # fmt: skip
        self.t5 = transformers.T5ForConditionalGeneration(self.config)
        self.t5.lm_head.weight = nn.Parameter(torch.randn(len(WORDS), 32))  # Flan-T5 has one of its own
        self.projector = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 32))
        for module in (self.vision, self.t5, self.projector):
            module.eval()
            for parameter in module.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)

    def released(self) -> dict[str, torch.Tensor]:
        """Keys as in the published files: T5's own beside ``mm_projector`` and a tower inside a tower."""
        state = {key: value for key, value in self.t5.state_dict().items() if not key.endswith("embed_tokens.weight")}
        for key, value in self.vision.state_dict().items():
            key = key if key.startswith("vision_model.") else f"vision_model.{key}"
            state[f"vision_tower.vision_tower.{key}"] = value
        state["vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
        state |= {f"mm_projector.{key}": value for key, value in self.projector.state_dict().items()}
        state |= {f"{place}.embed_tokens.weight": self.t5.shared.weight for place in ("encoder", "decoder")}
        state["embed_tokens.weight"] = self.t5.shared.weight
        return {key: value.clone() for key, value in state.items()}

    def settings(self) -> dict:
        return {
            **self.config.to_dict(),
            "tie_word_embeddings": False,
            "model_type": "clip_t5",
            "architectures": ["CLIPT5ForConditionalGeneration"],
            "mm_vision_tower": "openai/clip-vit-large-patch14-336",
            "mm_hidden_size": 64,
        }

    def save(self, folder, tokenizer, drop=()):
        folder.mkdir(parents=True, exist_ok=True)
        state = {key: value for key, value in self.released().items() if not key.startswith(tuple(drop) or "-")}
        names = sorted(state)
        for number, part in enumerate((names[::2], names[1::2]), 1):  # in two shards, as the large ones are
            torch.save({key: state[key] for key in part}, folder / f"pytorch_model-0000{number}-of-00002.bin")
        (folder / "config.json").write_text(json.dumps(self.settings()))
        tokenizer.save_pretrained(str(folder))
        return folder

    def score(self, tokenizer, image, prompt):
        """One image alone: words, patches, words; exp(-mean cross-entropy) of "Yes" and the end of sentence."""
        question = flan_t5.BEFORE + "<image>" + flan_t5.AFTER.format(prompt)
        before, after = (torch.tensor(tokenizer(part)["input_ids"]) for part in question.split("<image>"))
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (CLIP_MEAN, CLIP_STD))
        with torch.no_grad():
            seen = self.vision(((image.movedim(-1, 0) - mean) / std)[None], output_hidden_states=True)
            patches = self.projector(seen.hidden_states[-2][0, 1:])
            states = torch.cat([self.t5.shared(before), patches, self.t5.shared(after)])[None]
            labels = torch.tensor([tokenizer("Yes")["input_ids"]])
            loss = self.t5(inputs_embeds=states, labels=labels).loss
        return float((-loss).exp())


@pytest.fixture(scope="module")
def parts():
    return Parts()


@pytest.fixture(scope="module")
def folder(parts, tokenizer, tmp_path_factory):
    return parts.save(tmp_path_factory.mktemp("flan") / "clip-flant5-xl", tokenizer)


def test_released_keys_load_and_score_as_the_parts_do(parts, folder, tokenizer):
    verifier = registry.create("vqa_flant5", folder=folder)
    images = pictures(28, 28)
    expected = [parts.score(tokenizer, image, prompt) for image, prompt in zip(images, PROMPTS, strict=True)]
    scores = verifier.score(images, PROMPTS)  # one batch of questions of different length
    assert scores.tolist() == pytest.approx(expected, abs=1e-6)
    assert max(expected) > 1.01 * min(expected)


def test_it_is_the_square_root_of_a_product(parts, folder, tokenizer):
    """exp(-mean of two) = sqrt(P(Yes) P(end | Yes)), computed from the probabilities themselves."""
    verifier = load_clip_flant5(folder)
    image = pictures(28, 28, 1)
    chances = []
    own = verifier.module.t5.forward

    def spy(**inputs):
        output = own(**inputs)
        chances.append(torch.softmax(output.logits, -1))
        return output

    verifier.module.t5.forward = spy
    score = float(verifier.score(image, "the sea"))
    yes, end = (int(i) for i in tokenizer("Yes")["input_ids"])
    assert score == pytest.approx(float((chances[0][0, 0, yes] * chances[0][0, 1, end]).sqrt()), abs=1e-6)


def test_safetensors_and_half_precision_files(parts, folder, tokenizer, tmp_path):
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    half = {key: value if value.dtype == torch.int64 else value.bfloat16() for key, value in parts.released().items()}
    save_file(half, tmp_path / "model.safetensors")
    verifier = load_clip_flant5(tmp_path)
    assert verifier.module.t5.shared.weight.dtype == torch.bfloat16
    images = pictures(28, 28)
    full = load_clip_flant5(folder).score(images, PROMPTS)
    half_scores = verifier.score(images, PROMPTS)
    assert half_scores.dtype == torch.float32
    torch.testing.assert_close(half_scores, full, atol=0.05, rtol=0)
    wide = load_clip_flant5(tmp_path, dtype=torch.float32).score(images, PROMPTS)
    torch.testing.assert_close(wide, full, atol=0.02, rtol=0)


def test_the_gradient_reaches_the_pixels(folder):
    images = pictures(40, 28, 2).requires_grad_()
    load_clip_flant5(folder).score(images, PROMPTS[:2]).sum().backward()
    assert torch.isfinite(images.grad).all() and images.grad.abs().amax((1, 2, 3)).min() > 0


def test_images_are_padded_in_the_middle_with_the_mean_colour():
    from PIL import Image

    wide = (torch.rand(1, 5, 12, 3) * 255).round() / 255
    expected = Image.new("RGB", (12, 12), tuple(int(255 * value) for value in CLIP_MEAN))
    expected.paste(Image.fromarray((wide[0] * 255).round().to(torch.uint8).numpy()), (0, (12 - 5) // 2))
    got = (squared(wide)[0] * 255).round().to(torch.uint8)
    assert got.numpy().tolist() == [list(map(list, row)) for row in _rows(expected)]
    assert squared(wide.transpose(1, 2)).shape == (1, 12, 12, 3)


def _rows(image):
    width, height = image.size
    return [[image.getpixel((x, y)) for x in range(width)] for y in range(height)]


@pytest.mark.slow
def test_a_long_prompt_is_cut_with_one_notice(folder, caplog):
    verifier = load_clip_flant5(folder)
    for _ in range(2):
        assert torch.isfinite(verifier.score(pictures(28, 28, 1), "a red cat " * 700)).all()
    said = [record.getMessage() for record in caplog.records if "is cut" in record.getMessage()]
    assert len(said) == 1 and "vqa_flant5 reads 2048 tokens" in said[0]


def test_the_full_size_tower_has_the_released_shape():
    """ViT-L/14 at 336: 24 layers, 577 places, 16 heads."""
    prefix = "vision.vision_model."
    state = {
        f"{prefix}embeddings.patch_embedding.weight": torch.empty(1024, 3, 14, 14, device="meta"),
        f"{prefix}embeddings.position_embedding.weight": torch.empty(577, 1024, device="meta"),
        **{f"{prefix}encoder.layers.{i}.mlp.fc1.weight": torch.empty(4096, 1024, device="meta") for i in range(24)},
    }
    settings = flan_t5.vision_settings(state)
    assert [settings[key] for key in ("image_size", "num_hidden_layers", "num_attention_heads", "hidden_act")] == [
        336, 24, 16, "quick_gelu",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("drop", "words"),
    [
        (["vision_tower."], r"vision_tower\.\* or mm_projector\.\* are not in its weights"),
        (["decoder.final_layer_norm"], r"(?s)can be used.*t5\.decoder\.final_layer_norm\.weight"),
        (["lm_head"], r"(?s)can be used.*t5\.lm_head\.weight"),
    ],
)
def test_missing_parts_are_named(parts, tokenizer, tmp_path, drop, words):
    with pytest.raises(VerifierError, match=words):
        load_clip_flant5(parts.save(tmp_path / "cut", tokenizer, drop))


def test_nothing_there(tmp_path):
    with pytest.raises(VerifierError, match=r"6.3 GB, Apache-2.0.*hf download zhiqiulin/clip-flant5-xl"):
        load_clip_flant5(tmp_path)
