"""Small random models of the verifiers' architectures, and the released modules that no current package brings along.

``ReferenceImageReward`` is written from the key layout of ImageReward's file and from the BLIP and BERT papers, not on
top of transformers, so that it can be compared with the verifier, which is.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "two", "green", "birds", "the", "sea"]
SIZE = 28  # pixels of the small towers


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every tensor moved off its start value, so that a lost bias or a swapped norm shows."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def clip_tokenizer(folder: Path) -> Path:
    """CLIP's kind of tokenizer with letters for words, in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(letter + "</w>" for letter in letters), "th", "the</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n")
    return folder


def small_clip(hidden_act: str = "quick_gelu") -> nn.Module:
    """A ``transformers.CLIPModel`` whose towers have different widths."""
    from transformers import CLIPConfig, CLIPModel

    text = {"vocab_size": 56, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 1, "max_position_embeddings": 32, "projection_dim": 24, "bos_token_id": 54,
            "eos_token_id": 55, "hidden_act": hidden_act}  # fmt: skip
    vision = {"hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 2,
              "image_size": SIZE, "patch_size": 7, "projection_dim": 24, "hidden_act": hidden_act}  # fmt: skip
    torch.manual_seed(0)
    return shaken(CLIPModel(CLIPConfig(projection_dim=24, text_config=text, vision_config=vision)))


def small_open_clip() -> nn.Module:
    """An ``open_clip`` model with the layout of ViT-H-14."""
    import open_clip

    vision = open_clip.CLIPVisionCfg(image_size=SIZE, layers=3, width=128, head_width=64, patch_size=7)
    text = open_clip.CLIPTextCfg(context_length=32, vocab_size=56, width=64, heads=1, layers=2)
    torch.manual_seed(0)
    return shaken(open_clip.model.CLIP(24, vision, text), 1)


def small_siglip() -> nn.Module:
    """A ``transformers.SiglipVisionModel``."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 3}
    torch.manual_seed(0)
    return shaken(SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=SIZE, patch_size=7)), 3)


def small_dinov2() -> nn.Module:
    """A ``transformers.Dinov2WithRegistersModel``."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "mlp_ratio": 2}
    config = Dinov2WithRegistersConfig(**sizes, image_size=SIZE, patch_size=7, num_register_tokens=4)
    torch.manual_seed(0)
    return shaken(Dinov2WithRegistersModel(config), 4)


def released_head(width: int, indices: tuple[int, ...]) -> nn.Sequential:
    """The Sequential that an aesthetic predictor was trained as: linear layers with dropout between."""
    sizes = (width, 1024, 128, 64, 16, 1)
    linear = {index: nn.Linear(a, b) for index, a, b in zip(indices, sizes, sizes[1:], strict=False)}
    torch.manual_seed(2)
    return nn.Sequential(*(linear.get(place, nn.Dropout(0.2)) for place in range(max(indices) + 1))).eval()


class _ViTBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: Tensor) -> Tensor:
        n, places, width = x.shape
        q, k, v = self.attn["qkv"](self.norm1(x)).view(n, places, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        chances = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1)
        x = x + self.attn["proj"]((chances @ v).transpose(1, 2).reshape(n, places, width))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class _ViT(nn.Module):
    def __init__(self, width: int = 32, depth: int = 2, heads: int = 4, patch: int = 7, hidden: int = 48):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (SIZE // patch) ** 2 + 1, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.ModuleList(_ViTBlock(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class _Attention(nn.Module):
    """BERT's attention with the residual and the norm behind it, to itself or to something else."""

    def __init__(self, width: int, heads: int, seen: int | None = None):
        super().__init__()
        self.heads = heads
        sources = {"query": width, "key": seen or width, "value": seen or width}
        self.self = nn.ModuleDict({name: nn.Linear(source, width) for name, source in sources.items()})
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)})

    def forward(self, x: Tensor, seen: Tensor, allowed: Tensor) -> Tensor:
        q, k, v = (
            self.self[name](source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name, source in (("query", x), ("key", seen), ("value", seen))
        )
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~allowed, -torch.inf)
        mixed = (torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2)
        return self.output["LayerNorm"](x + self.output["dense"](mixed))


class _BERTLayer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, seen: int):
        super().__init__()
        self.attention = _Attention(width, heads)
        self.crossattention = _Attention(width, heads, seen)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, hidden)})
        self.output = nn.ModuleDict({"dense": nn.Linear(hidden, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)})

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
        x = self.attention(x, x, mask[:, None, None].bool())
        x = self.crossattention(x, seen, torch.ones(1, 1, 1, 1, dtype=torch.bool))
        widened = F.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](x + self.output["dense"](widened))


class _BERT(nn.Module):
    def __init__(self, words: int, width: int = 24, heads: int = 3, hidden: int = 40, depth: int = 2, seen: int = 32):
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(words, width),
                "position_embeddings": nn.Embedding(512, width),
                "LayerNorm": nn.LayerNorm(width, eps=1e-12),
            }
        )
        layers = nn.ModuleList(_BERTLayer(width, heads, hidden, seen) for _ in range(depth))
        self.encoder = nn.ModuleDict({"layer": layers})

    def forward(self, ids: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
        places = self.embeddings["position_embeddings"](torch.arange(ids.shape[1]))
        x = self.embeddings["LayerNorm"](self.embeddings["word_embeddings"](ids) + places)
        for layer in self.encoder["layer"]:
            x = layer(x, seen, mask)
        return x


class ReferenceImageReward(nn.Module):
    """ImageReward, small: the state dict has the released names."""

    def __init__(self):
        super().__init__()
        self.blip = nn.ModuleDict({"visual_encoder": _ViT(), "text_encoder": _BERT(len(BERT_WORDS))})
        self.mlp = nn.ModuleDict({"layers": released_head(24, (0, 2, 4, 6, 7))})

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Raw rewards ``[n]``."""
        state = self.blip["text_encoder"](ids, mask, self.blip["visual_encoder"](pixels))[:, 0]
        return self.mlp["layers"](state).squeeze(-1)

    @staticmethod
    def options() -> tuple[dict, dict]:
        """(vision, text) options of ``verifiers.preference.image_reward.ImageRewardModel`` that describe this model."""
        vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                  "image_size": SIZE, "patch_size": 7}  # fmt: skip
        text = {"vocab_size": len(BERT_WORDS), "hidden_size": 24, "encoder_hidden_size": 32, "intermediate_size": 40,
                "num_hidden_layers": 2, "num_attention_heads": 3}  # fmt: skip
        return vision, text
