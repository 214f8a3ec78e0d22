"""Small random models of the official packages' own classes, and the files that the pack loads them from."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path

import torch
from torch import nn

VISION, TEXT, JOINT, PATCH, SIZE = 128, 64, 24, 32, 224
WORDS = 49408
BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "##s", "an", "the", "in",
              "orange", "suit", "astronaut", "temple", "rocket", "its", "tower", "at", "night", "cat", "coins", "of",
              "coffee", "table", "on", "seen", "from", "above", ",", ":", "'", "&"]  # fmt: skip


def without_init(package: str, module: str) -> types.ModuleType:
    """``package.module`` without the package's ``__init__``, which would import forty models and their needs."""
    parts = package.split(".")
    for count in range(1, len(parts) + 1):
        name, above = ".".join(parts[:count]), ".".join(parts[: count - 1])
        if name in sys.modules:
            continue
        places = (
            [str(Path(place) / parts[count - 1]) for place in sys.modules[above].__path__]
            if above
            else list(importlib.util.find_spec(name).submodule_search_locations)
        )
        shell = types.ModuleType(name)
        shell.__path__ = places
        sys.modules[name] = shell
    return importlib.import_module(f"{package}.{module}")


def shaken(module: nn.Module, seed: int, by: float = 0.1) -> nn.Module:
    """Every tensor moved off its start value, so that a lost bias or a swapped norm shows."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += by * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def clip_tokenizer(folder: Path) -> Path:
    """CLIP's published merges, out of open_clip's package, as ``vocab.json`` and ``merges.txt``."""
    import open_clip
    from open_clip.tokenizer import bytes_to_unicode

    packed = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    with gzip.open(packed) as file:
        merges = file.read().decode("utf-8").split("\n")[1 : WORDS - 256 - 256 - 2 + 1]
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return folder


def hub_clip(folder: Path, hidden_act: str) -> Path:
    """A ``CLIPModel`` with tokenizer and processor as on the hub."""
    import transformers

    clip_tokenizer(folder)
    text = {"vocab_size": WORDS, "hidden_size": TEXT, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 1, "hidden_act": hidden_act, "bos_token_id": WORDS - 2,
            "eos_token_id": WORDS - 1, "projection_dim": JOINT}  # fmt: skip
    vision = {"hidden_size": VISION, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 2,
              "image_size": SIZE, "patch_size": PATCH, "hidden_act": hidden_act, "projection_dim": JOINT}  # fmt: skip
    torch.manual_seed(0)
    config = transformers.CLIPConfig(projection_dim=JOINT, text_config=text, vision_config=vision)
    shaken(transformers.CLIPModel(config), 1).save_pretrained(folder)
    words = transformers.CLIPTokenizerFast.from_pretrained(folder, model_max_length=77, trust_remote_code=False)
    words.save_pretrained(folder)
    transformers.CLIPImageProcessor().save_pretrained(folder)
    return folder


def hps_clip() -> nn.Module:
    """A CLIP of HPSv2's own fork of open_clip."""
    from hpsv2.src.open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(image_size=SIZE, layers=3, width=VISION, head_width=64, patch_size=PATCH)
    text = CLIPTextCfg(context_length=77, vocab_size=WORDS, width=TEXT, heads=1, layers=2)
    torch.manual_seed(0)
    return shaken(CLIP(JOINT, vision, text, output_dict=True), 2)


def openai_clip() -> nn.Module:
    """A CLIP of OpenAI's package."""
    from clip.model import CLIP

    torch.manual_seed(0)
    return shaken(CLIP(JOINT, SIZE, 3, VISION, PATCH, 77, WORDS, TEXT, 1, 2), 3).float()


def image_reward(folder: Path) -> nn.Module:
    """ImageReward with a small vision transformer and a small BERT, both of its own classes."""
    package = without_init("ImageReward", "ImageReward")
    med = importlib.import_module("ImageReward.models.BLIP.med")
    vit = importlib.import_module("ImageReward.models.BLIP.vit")
    from transformers import BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(BERT_WORDS) + "\n", encoding="utf-8")
    config = med.BertConfig(
        vocab_size=len(BERT_WORDS), hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        layer_norm_eps=1e-12, add_cross_attention=True, is_decoder=True, encoder_width=32, hidden_act="gelu",
        attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    blip = nn.Module()
    blip.visual_encoder = vit.VisionTransformer(SIZE, PATCH, embed_dim=32, depth=2, num_heads=4, mlp_ratio=1.5)
    blip.text_encoder = med.BertModel(config=config, add_pooling_layer=False)
    blip.tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    whole = package.ImageReward.__new__(package.ImageReward)  # its constructor fixes the size and asks the hub
    nn.Module.__init__(whole)
    whole.device, whole.preprocess, whole.blip, whole.mlp = "cpu", package._transform(SIZE), blip, package.MLP(24)
    whole.mean, whole.std = 0.16717362830052426, 1.0333394966054072
    return shaken(whole, 4)


def hub_siglip(folder: Path) -> Path:
    """A SigLIP image tower with the processor of so400m-patch14-384."""
    import transformers

    config = transformers.SiglipVisionConfig(
        hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=3, image_size=384, patch_size=48
    )
    torch.manual_seed(0)
    shaken(transformers.SiglipVisionModel(config), 5).save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 384, "width": 384}).save_pretrained(folder)
    return folder


def hub_dinov2(folder: Path) -> Path:
    """A DINOv2 with registers and the processor of ``facebook/dinov2-base``: 256 pixels, of which 224 are cut out."""
    import transformers

    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, mlp_ratio=2, image_size=518, patch_size=14,
        num_register_tokens=4,
    )  # fmt: skip
    torch.manual_seed(0)
    shaken(transformers.Dinov2WithRegistersModel(config), 6).save_pretrained(folder)
    transformers.BitImageProcessor(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)  # fmt: skip
    return folder
