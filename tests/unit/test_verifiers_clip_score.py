"""CLIPScore's loader and score against transformers itself, on small random models."""

from __future__ import annotations

import json
import math

import pytest
import torch

from testtime.verifiers import registry
from testtime.verifiers.base import VerifierError
from testtime.verifiers.clip_weights import infer_config
from testtime.verifiers.image_text.clip_score import (
    CLIPScoreVerifier,
    load_clip_score_files,
    load_clip_score_folder,
    load_tokenizer,
)

transformers = pytest.importorskip("transformers")
save_file = pytest.importorskip("safetensors.torch").save_file

PROMPTS = ["a red cat", "two green birds", "the sea"]
START, END = "<|startoftext|>", "<|endoftext|>"


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """CLIP's own kind of tokenizer with letters for words: no file of a real one is needed."""
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(letter + "</w>" for letter in letters), "th", "the</w>", START, END]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n")
    return folder


@pytest.fixture(scope="module")
def clip():
    """A small CLIP whose two towers have different widths, so that a mix-up cannot pass."""
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        projection_dim=24,
        text_config={
            "vocab_size": 56, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 1, "max_position_embeddings": 20, "projection_dim": 24, "bos_token_id": 54,
            "eos_token_id": 55,
        },
        vision_config={
            "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 7, "projection_dim": 24,
        },
    )  # fmt: skip
    model = transformers.CLIPModel(config).eval()
    for parameter in model.parameters():  # biases start at zero and scales at one: a lost one would not be noticed
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def weights(clip):
    return {key: value.clone().contiguous() for key, value in clip.state_dict().items()}


@pytest.fixture(scope="module")
def whole_file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "clip_small.safetensors"
    save_file(weights, path)
    return path


@pytest.fixture(scope="module")
def verifier(whole_file, tokenizer_folder):
    return load_clip_score_files([whole_file], tokenizer_folder)


def pictures(height, width, n=3):
    """Smooth pictures on the 8-bit grid."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    shift = torch.arange(n)[:, None, None, None] * 0.7
    waves = torch.stack([torch.sin(5 * x + 3 * y), torch.sin(7 * y), torch.cos(6 * x - 2 * y)], -1)
    return ((0.5 + 0.45 * torch.sin(2 * waves + shift)) * 255).round() / 255


def transformers_cosine(clip, folder, images, prompts):
    """transformers' own pipeline: processor, tokenizer, forward, diagonal of the logits without their scale."""
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=28)
    pixels = processor((images * 255).round().to(torch.uint8).movedim(-1, 1), return_tensors="pt")["pixel_values"]
    words = transformers.CLIPTokenizer.from_pretrained(str(folder), trust_remote_code=False)(
        prompts, padding="max_length", max_length=20, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits = clip(pixel_values=pixels, **words).logits_per_image
    return logits.diagonal() / clip.logit_scale.exp()


@pytest.mark.parametrize(
    ("height", "width", "tolerance"),
    [
        # nothing to resize: every number is the same
        (28, 28, 1e-5),
        (28, 44, 1e-5),
        (41, 28, 1e-5),
        # the processor rounds to 8 bit within its resize, and random weights amplify that
        (64, 64, 1e-3),
        (50, 130, 2e-3),
    ],
)
def test_score_equals_transformers_own(verifier, clip, tokenizer_folder, height, width, tolerance):
    images = pictures(height, width)
    theirs = transformers_cosine(clip, tokenizer_folder, images, PROMPTS)
    torch.testing.assert_close(verifier.score(images, PROMPTS), theirs, atol=tolerance, rtol=0)
    assert theirs.std() > 10 * tolerance  # otherwise agreement would mean nothing


def test_folder_as_on_the_hub(clip, tokenizer_folder, verifier, tmp_path):
    clip.save_pretrained(tmp_path)
    images = pictures(40, 40)
    loaded = registry.create("clip_score", folder=tmp_path, tokenizer=tokenizer_folder)
    torch.testing.assert_close(loaded.score(images, PROMPTS), verifier.score(images, PROMPTS), atol=1e-6, rtol=0)


def test_towers_in_two_files(weights, tokenizer_folder, verifier, tmp_path):
    parts = {"vision": ("vision_model.", "visual_projection."), "text": ("text_model.", "text_projection.")}
    for name, prefixes in parts.items():
        tower = {key: value for key, value in weights.items() if key.startswith(prefixes)}
        save_file(tower, tmp_path / f"{name}.safetensors")
    loaded = load_clip_score_files([tmp_path / "vision.safetensors", tmp_path / "text.safetensors"], tokenizer_folder)
    images = pictures(40, 40)
    torch.testing.assert_close(loaded.score(images, PROMPTS), verifier.score(images, PROMPTS), atol=1e-6, rtol=0)


def test_half_precision_files_and_old_buffers(weights, tokenizer_folder, verifier, tmp_path):
    old = {key: value.half() for key, value in weights.items()}
    old["text_model.embeddings.position_ids"] = torch.arange(20)[None]
    save_file(old, tmp_path / "old.safetensors")
    loaded = load_clip_score_files([tmp_path / "old.safetensors"], tokenizer_folder)
    images = pictures(40, 40)
    torch.testing.assert_close(loaded.score(images, PROMPTS), verifier.score(images, PROMPTS), atol=5e-3, rtol=0)


def test_activation_is_a_choice(whole_file, tokenizer_folder, verifier):
    other = load_clip_score_files([whole_file], tokenizer_folder, hidden_act="gelu")
    images = pictures(28, 28)
    assert (other.score(images, PROMPTS) - verifier.score(images, PROMPTS)).abs().max() > 1e-4


def test_modes(clip, tokenizer_folder, verifier):
    tokenizer, images = load_tokenizer(tokenizer_folder), pictures(28, 28)
    cosine = verifier.score(images, PROMPTS)
    torch.testing.assert_close(CLIPScoreVerifier(clip, tokenizer, "x100").score(images, PROMPTS), 100 * cosine)
    hessel = CLIPScoreVerifier(clip, tokenizer, "hessel").score(images, PROMPTS)
    prefixed = verifier.score(images, ["A photo depicts " + prompt for prompt in PROMPTS])
    torch.testing.assert_close(hessel, 2.5 * prefixed.clamp(min=0))
    with pytest.raises(VerifierError, match="cos, x100, hessel"):
        CLIPScoreVerifier(clip, tokenizer, "best")


def test_gradient_equals_central_differences(clip, tokenizer_folder, float64_masks):
    import copy

    judge = CLIPScoreVerifier(copy.deepcopy(clip).double(), load_tokenizer(tokenizer_folder))
    images = pictures(40, 33, 1).double().requires_grad_()
    judge.score(images, "a red cat").sum().backward()
    direction = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    step = 1e-5
    with torch.no_grad():
        up, down = (judge.score(images + sign * step * direction, "a red cat") for sign in (1, -1))
    torch.testing.assert_close((images.grad * direction).sum(), ((up - down) / (2 * step))[0], rtol=1e-4, atol=1e-9)
    assert images.grad.abs().max() > 0


def test_batches_and_a_broken_image(verifier):
    images = pictures(40, 40)
    together = verifier.score(images, PROMPTS)
    alone = torch.cat([verifier.score(images[i : i + 1], PROMPTS[i]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    images[1] = math.nan
    broken = verifier.score(images, PROMPTS)
    assert torch.isnan(broken[1])
    torch.testing.assert_close(broken[[0, 2]], together[[0, 2]], atol=1e-5, rtol=0)


def test_long_prompts_are_cut(verifier):
    assert torch.isfinite(verifier.score(pictures(28, 28, 1), "word " * 200)).all()


@pytest.mark.parametrize(
    ("width", "heads", "activation"), [(768, 12, "quick_gelu"), (1024, 16, "quick_gelu"), (1280, 16, "gelu")]
)
def test_published_architectures_are_recognised(width, heads, activation):
    """The shapes that ViT-B/32, ViT-L/14 and ViT-H/14 files have, without their weights."""
    size = {
        "vision_model.embeddings.patch_embedding.weight": (width, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (257, width),
        "vision_model.encoder.layers.0.mlp.fc1.weight": (4 * width, width),
        "vision_model.encoder.layers.23.mlp.fc1.weight": (4 * width, width),
        "visual_projection.weight": (768, width),
        "text_model.embeddings.token_embedding.weight": (49408, 768),
        "text_model.embeddings.position_embedding.weight": (77, 768),
        "text_model.encoder.layers.0.mlp.fc1.weight": (3072, 768),
        "text_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
        "text_projection.weight": (768, 768),
    }
    config = infer_config({key: torch.empty(shape, device="meta") for key, shape in size.items()}, "x")
    vision, text = config.vision_config, config.text_config
    assert (vision.num_attention_heads, vision.hidden_act, vision.image_size) == (heads, activation, 224)
    assert (vision.num_hidden_layers, text.num_hidden_layers, text.num_attention_heads) == (24, 12, 12)
    assert (text.bos_token_id, text.eos_token_id) == (49406, 49407)


class TestBadFiles:
    def test_missing(self, tokenizer_folder, tmp_path):
        with pytest.raises(VerifierError, match=r"gone.safetensors"):
            load_clip_score_files([tmp_path / "gone.safetensors"], tokenizer_folder)

    def test_truncated(self, whole_file, tokenizer_folder, tmp_path):
        (tmp_path / "cut.safetensors").write_bytes(whole_file.read_bytes()[:5000])
        with pytest.raises(VerifierError, match=r"cut\.safetensors.*incomplete"):
            load_clip_score_files([tmp_path / "cut.safetensors"], tokenizer_folder)

    def test_not_a_weights_file(self, tokenizer_folder, tmp_path):
        (tmp_path / "page.pt").write_text("<html>not found</html>")
        with pytest.raises(VerifierError, match=r"page\.pt"):
            load_clip_score_files([tmp_path / "page.pt"], tokenizer_folder)

    @pytest.mark.parametrize(
        ("drop", "words"),
        [
            ("text_model", "text tower"),
            ("text_projection", "projection of the text tower"),
            ("vision_model", "image tower"),
            ("vision_model.encoder.layers.1.", "lacks vision_model.encoder.layers.1"),
        ],
    )
    def test_lacking_a_part(self, weights, tokenizer_folder, tmp_path, drop, words):
        rest = {key: value for key, value in weights.items() if not key.startswith(drop)}
        save_file(rest, tmp_path / "part.safetensors")
        with pytest.raises(VerifierError, match=words):
            load_clip_score_files([tmp_path / "part.safetensors"], tokenizer_folder)

    def test_a_fragment_in_open_clips_layout_is_named(self, tokenizer_folder, tmp_path):
        save_file({"visual.conv1.weight": torch.zeros(1)}, tmp_path / "oc.safetensors")
        with pytest.raises(VerifierError, match=r"oc.safetensors has no visual_projection.weight"):
            load_clip_score_files([tmp_path / "oc.safetensors"], tokenizer_folder)

    def test_unknown_tensors(self, weights, tokenizer_folder, tmp_path):
        save_file({**weights, "aesthetic.weight": torch.zeros(3)}, tmp_path / "more.safetensors")
        with pytest.raises(VerifierError, match=r"unknown aesthetic.weight"):
            load_clip_score_files([tmp_path / "more.safetensors"], tokenizer_folder)

    def test_folder_without_a_model(self, tmp_path):
        with pytest.raises(VerifierError, match=r"config.json"):
            load_clip_score_folder(tmp_path)

    def test_tokenizer_missing(self, whole_file, tmp_path):
        with pytest.raises(VerifierError, match=r"vocab.json and merges.txt"):
            load_clip_score_files([whole_file], tmp_path)
