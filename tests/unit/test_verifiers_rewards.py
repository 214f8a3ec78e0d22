"""PickScore, HPSv2, both aesthetic predictors and ImageReward against the official implementations, on small models."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from testtime.verifiers.aesthetic.predictors import (
    AestheticV25Verifier,
    LAIONAestheticVerifier,
    laion_head,
    load_head,
    load_laion_aesthetic,
    v25_head,
)
from testtime.verifiers.base import VerifierError
from testtime.verifiers.clip_weights import build_clip, read_weights
from testtime.verifiers.image_text.clip_score import load_tokenizer
from testtime.verifiers.openclip_layout import is_openclip, to_transformers
from testtime.verifiers.preference import image_reward
from testtime.verifiers.preference.clip_rewards import HPSVerifier, PickScoreVerifier, load_hps, load_pickscore
from testtime.verifiers.preference.image_reward import ImageRewardModel, ImageRewardVerifier, load_image_reward
from testtime.verifiers.preprocessing import CLIP_MEAN, CLIP_STD

from .test_verifiers_clip_score import PROMPTS, clip, pictures, tokenizer_folder  # noqa: F401 - fixtures

transformers = pytest.importorskip("transformers")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "two", "green", "birds", "the", "sea"]


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every tensor moved off its start value, so that a lost bias or a swapped norm shows."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


class TestOpenCLIP:
    @pytest.fixture(scope="class")
    @classmethod
    def official(cls):
        open_clip = pytest.importorskip("open_clip")
        vision = {"image_size": 28, "layers": 3, "width": 128, "head_width": 64, "patch_size": 7}
        text = {"context_length": 20, "vocab_size": 56, "width": 64, "heads": 1, "layers": 2}
        model = open_clip.model.CLIP(24, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text))
        return randomised(model, 1)

    @pytest.fixture(scope="class")
    @classmethod
    def file(cls, official, tmp_path_factory):
        path = tmp_path_factory.mktemp("hps") / "HPS_v2.1_compressed.pt"
        torch.save({"state_dict": official.state_dict(), "epoch": 3}, path)
        return path

    def test_the_converted_towers_are_open_clips(self, official, file):
        converted = build_clip(read_weights([file]), file.name, "gelu").eval()
        pixels = torch.randn(3, 3, 28, 28)
        # open_clip takes the state at the highest token id for the caption's, whatever follows it
        ids = torch.randint(1, 50, (3, 20))
        for row, end in enumerate((4, 11, 19)):
            ids[row, end] = 55
            ids[row, end + 1 :] = 0
        with torch.no_grad():
            image = converted.get_image_features(pixel_values=pixels)
            text = converted.get_text_features(input_ids=ids)
            image, text = (getattr(f, "pooler_output", f) for f in (image, text))
            torch.testing.assert_close(image, official.encode_image(pixels), atol=2e-5, rtol=2e-5)
            torch.testing.assert_close(text, official.encode_text(ids), atol=2e-5, rtol=2e-5)
        assert float(converted.logit_scale) == pytest.approx(float(official.logit_scale))

    def test_hps_is_the_official_cosine(self, official, file, tokenizer_folder):  # noqa: F811
        verifier = load_hps(file, tokenizer_folder)
        assert isinstance(verifier, HPSVerifier) and verifier.name == "hps_v2_1"
        images = pictures(40, 60)
        length = 20
        tokens = verifier.tokenizer(PROMPTS, padding="max_length", max_length=length, return_tensors="pt")["input_ids"]
        first_end = (tokens == 55).int().argmax(1)
        tokens = torch.where(torch.arange(length)[None] > first_end[:, None], 0, tokens)
        with torch.no_grad():
            pixels = official_hps_pixels(images)
            image, text = official.encode_image(pixels, normalize=True), official.encode_text(tokens, normalize=True)
            expected = (image @ text.T).diagonal()
        torch.testing.assert_close(verifier.score(images, PROMPTS), expected, atol=1e-4, rtol=0)

    def test_every_key_is_known(self, official):
        state = official.state_dict()
        assert is_openclip(state) and not is_openclip(to_transformers(state))
        assert is_openclip({f"module.{key}": value for key, value in state.items()})
        fused = sum(key.endswith(("in_proj_weight", "in_proj_bias")) for key in state)
        assert len(to_transformers(state)) == len(state) + 2 * fused - ("attn_mask" in state)

    def test_a_missing_tensor_is_named(self, file, tokenizer_folder, tmp_path):  # noqa: F811
        state = torch.load(file, weights_only=True)["state_dict"]
        del state["visual.ln_pre.bias"]
        torch.save(state, tmp_path / "cut.pt")
        with pytest.raises(VerifierError, match=r"cut.pt .*lacks vision_model.pre_layrnorm.bias"):
            load_hps(tmp_path / "cut.pt", tokenizer_folder)

    def test_a_missing_file_says_what_to_get(self, tokenizer_folder, tmp_path):  # noqa: F811
        with pytest.raises(VerifierError, match=r"HPS_v2.1_compressed.pt .*hf download xswu/HPSv2"):
            load_hps(tmp_path / "HPS_v2.1_compressed.pt", tokenizer_folder)


def official_hps_pixels(images: torch.Tensor) -> torch.Tensor:
    """HPSv2's own order: to tensor, longer side to 28 (antialiased, unclamped), black around it, normalise.

    That this is what the published transform does is what ``test_verifiers_preprocessing`` has stored numbers for.
    """
    x = images.movedim(-1, 1)
    scale = 28 / max(x.shape[-2:])
    height, width = (round(side * scale) for side in x.shape[-2:])
    x = F.interpolate(x, (height, width), mode="bicubic", antialias=True)
    down, right = 28 - height, 28 - width
    x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
    return (x - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)


class TestPickScore:
    def test_is_the_models_own_logit(self, clip, tokenizer_folder):  # noqa: F811
        verifier = PickScoreVerifier(clip, load_tokenizer(tokenizer_folder), scale="logit")
        images = pictures(28, 28)  # no resize: transformers sees the same pixels
        words = verifier.tokenizer(PROMPTS, padding="max_length", max_length=20, return_tensors="pt")
        with torch.no_grad():
            expected = clip(
                pixel_values=verifier.prepare(images),
                input_ids=words["input_ids"],
                attention_mask=words["attention_mask"],
            ).logits_per_image.diagonal()
        torch.testing.assert_close(verifier.score(images, PROMPTS), expected, atol=1e-4, rtol=1e-5)
        cosine = PickScoreVerifier(clip, load_tokenizer(tokenizer_folder))
        torch.testing.assert_close(
            cosine.score(images, PROMPTS) * clip.logit_scale.exp(), expected, atol=1e-4, rtol=1e-5
        )

    def test_folder_round_trip_and_errors(self, clip, tokenizer_folder, tmp_path):  # noqa: F811
        clip.save_pretrained(tmp_path / "pick")
        loaded = load_pickscore(tmp_path / "pick", tokenizer_folder)
        images = pictures(30, 44)
        own = PickScoreVerifier(clip, load_tokenizer(tokenizer_folder))
        torch.testing.assert_close(loaded.score(images, PROMPTS), own.score(images, PROMPTS))
        with pytest.raises(VerifierError, match="hf download yuvalkirstain/PickScore_v1"):
            load_pickscore(tmp_path / "none")
        with pytest.raises(VerifierError, match="scale is 'percent': choose one of cos, logit"):
            PickScoreVerifier(clip, load_tokenizer(tokenizer_folder), scale="percent")


class TestAesthetics:
    @pytest.mark.parametrize(("make", "indices"), [(laion_head, (0, 2, 4, 6, 7)), (v25_head, (0, 2, 4, 6, 8))])
    def test_heads_load_released_keys_and_are_affine(self, make, indices, tmp_path):
        """The released Sequential, dropout and all, in evaluation mode."""
        widths = (24, 1024, 128, 64, 16, 1)
        linear = {index: nn.Linear(a, b) for index, a, b in zip(indices, widths, widths[1:], strict=False)}
        released = nn.Sequential(*(linear.get(place, nn.Dropout(0.3)) for place in range(max(indices) + 1))).eval()
        prefix = "layers" if make is laion_head else "scoring_head"
        torch.save({f"{prefix}.{key}": value for key, value in released.state_dict().items()}, tmp_path / "head.pth")
        head = load_head(make(24), tmp_path / "head.pth")
        x = torch.randn(5, 24)
        torch.testing.assert_close(head(x), released(x).squeeze(-1))
        offset = head(torch.zeros(1, 24))
        torch.testing.assert_close(head(x[:1] + x[1:2]) - offset, head(x[:1]) + head(x[1:2]) - 2 * offset)
        with pytest.raises(VerifierError, match="not the head that was expected"):
            load_head(make(25), tmp_path / "head.pth")

    def test_laion_reads_the_projected_unit_embedding(self, clip, tmp_path):  # noqa: F811
        clip.save_pretrained(tmp_path / "clip")
        torch.manual_seed(2)
        torch.save(laion_head(24).state_dict(), tmp_path / "head.pth")
        verifier = load_laion_aesthetic(tmp_path / "clip", tmp_path / "head.pth")
        images = pictures(28, 28)
        with torch.no_grad():
            features = clip.get_image_features(pixel_values=verifier.prepare(images))
            embedding = F.normalize(getattr(features, "pooler_output", features), dim=-1)
            expected = verifier.module.head(embedding)
        assert isinstance(verifier, LAIONAestheticVerifier) and not verifier.needs_prompt
        torch.testing.assert_close(verifier.score(images), expected, atol=1e-5, rtol=1e-5)
        with pytest.raises(VerifierError, match="hf download openai/clip-vit-large-patch14"):
            load_laion_aesthetic(tmp_path / "none", tmp_path / "head.pth")

    def test_v25_stretches_and_pools(self):
        config = transformers.SiglipVisionConfig(
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=3,
            image_size=32,
            patch_size=8,
        )
        tower = randomised(transformers.SiglipVisionModel(config), 3)
        verifier = AestheticV25Verifier(tower, v25_head(48))
        images = pictures(32, 32)
        with torch.no_grad():
            pooled = tower(pixel_values=(images.movedim(-1, 1) - 0.5) / 0.5).pooler_output
            expected = verifier.module.head(F.normalize(pooled, dim=-1))
        torch.testing.assert_close(verifier.score(images), expected, atol=1e-5, rtol=1e-5)
        assert verifier.prepare(pictures(20, 60)).shape == (3, 3, 32, 32)


class ReferenceVision(nn.Module):
    """The image half of the released module, written down from its key layout: a pre-norm ViT with fused qkv."""

    def __init__(self, width=32, depth=2, heads=4, patch=8, size=32):
        super().__init__()
        self.heads = heads
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width, eps=1e-6),
                    "attn": nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}),
                    "norm2": nn.LayerNorm(width, eps=1e-6),
                    "mlp": nn.ModuleDict({"fc1": nn.Linear(width, 48), "fc2": nn.Linear(48, width)}),
                }
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels):
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            b, n, c = x.shape
            q, k, v = block["attn"]["qkv"](block["norm1"](x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
            x = x + block["attn"]["proj"](mixed)
            x = x + block["mlp"]["fc2"](F.gelu(block["mlp"]["fc1"](block["norm2"](x))))
        return self.norm(x)


class TestImageReward:
    SMALL = (
        {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
         "patch_size": 8},
        {"vocab_size": len(WORDS), "hidden_size": 24, "encoder_hidden_size": 32, "intermediate_size": 40,
         "num_hidden_layers": 2, "num_attention_heads": 3},
    )  # fmt: skip

    @pytest.fixture(scope="class")
    @classmethod
    def released(cls):
        """State dict in the released layout, and the reference network of its image half."""
        vision = randomised(ReferenceVision(), 4)
        model = randomised(ImageRewardModel(*cls.SMALL), 5)
        state = {f"blip.visual_encoder.{key}": value for key, value in vision.state_dict().items()}
        state |= {f"blip.text_encoder.{key}": value for key, value in model.text.state_dict().items()}
        state |= {f"mlp.{key}": value for key, value in model.head.state_dict().items()}
        state |= {"blip.vision_proj.weight": torch.zeros(3, 3), "blip.text_proj.bias": torch.zeros(3)}
        state["blip.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
        return state, vision

    @pytest.fixture(scope="class")
    @classmethod
    def vocabulary(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("bert")
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        return folder

    @pytest.fixture
    def small(self, monkeypatch):
        monkeypatch.setattr(image_reward, "VISION", image_reward.VISION | self.SMALL[0])
        monkeypatch.setattr(image_reward, "TEXT", image_reward.TEXT | self.SMALL[1])

    def test_released_file_loads_and_sees_as_the_original(self, released, vocabulary, small, tmp_path):
        state, vision = released
        torch.save(state, tmp_path / "ImageReward.pt")
        verifier = load_image_reward(tmp_path / "ImageReward.pt", vocabulary)
        pixels = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            seen = verifier.module.vision(pixel_values=pixels).last_hidden_state
            torch.testing.assert_close(seen, vision(pixels), atol=1e-5, rtol=1e-5)
        scores = verifier.score(pictures(32, 48), PROMPTS)
        assert scores.shape == (3,) and torch.isfinite(scores).all() and scores.std() > 0

    def test_normalisation_and_gradient(self, vocabulary):
        tokenizer = transformers.BertTokenizer(str(vocabulary / "vocab.txt"))
        model = randomised(ImageRewardModel(*self.SMALL), 6)
        published = ImageRewardVerifier(model, tokenizer)
        raw = ImageRewardVerifier(model, tokenizer, normalise=False)
        images = pictures(32, 32).requires_grad_()
        scores = published.score(images, PROMPTS)
        torch.testing.assert_close(raw.score(images, PROMPTS), scores * 1.0333394966054072 + 0.16717362830052426)
        scores.sum().backward()
        assert images.grad.abs().amax((1, 2, 3)).min() > 0

    def test_reading_is_bidirectional_and_looks_at_the_image(self):
        """Told again that it is a decoder, the text tower would read from left to right: another number."""
        model = randomised(ImageRewardModel(*self.SMALL), 7)
        ids, mask = torch.tensor([[2, 5, 6, 7, 3]]), torch.ones(1, 5, dtype=torch.long)
        seen = torch.randn(1, 17, 32)
        with torch.no_grad():
            both = model.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
            changed = model.text(
                input_ids=torch.tensor([[2, 5, 6, 8, 3]]), attention_mask=mask, encoder_hidden_states=seen
            ).last_hidden_state
            blind = model.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=-seen).last_hidden_state
        assert (both[:, 0] - changed[:, 0]).abs().max() > 1e-4  # [CLS] knows a later word
        assert (both - blind).abs().max() > 1e-3

    def test_the_full_size_model_has_the_released_count(self):
        """446,665,953 parameters in the file, less the two unused projections of 459,264."""
        with torch.device("meta"):
            model = ImageRewardModel()
        assert sum(p.numel() for p in model.parameters()) == 303_301_632 + 141_977_088 + 927_969

    def test_wrong_and_missing_files(self, released, vocabulary, small, tmp_path):
        state, _ = released
        cut = {key: value for key, value in state.items() if "crossattention" not in key}
        torch.save(cut, tmp_path / "ImageReward.pt")
        with pytest.raises(
            VerifierError, match=r"(?s)is not the released ImageReward.pt \(1,786,880,927 bytes\).*crossatt"
        ):
            load_image_reward(tmp_path / "ImageReward.pt", vocabulary)
        with pytest.raises(VerifierError, match=r"hf download THUDM/ImageReward ImageReward.pt"):
            load_image_reward(tmp_path / "none.pt", vocabulary)
        with pytest.raises(VerifierError, match=r"hf download bert-base-uncased vocab.txt"):
            load_image_reward(tmp_path / "ImageReward.pt", tmp_path)
