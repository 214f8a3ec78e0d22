"""Small random detectors of transformers' own classes in Hugging Face folders."""

from __future__ import annotations

import torch
from torch import nn


def shaken(model: nn.Module, seed: int = 0, by: float = 0.1) -> nn.Module:
    """Every tensor moved off its start value."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += by * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def owl(folder, tokenizer_folder, version: int = 2, side: int = 32) -> None:
    """OWLv2 or OWL-ViT with 16 patches, for pictures of ``side`` pixels, a multiple of 4."""
    import transformers

    kind = {1: "OwlViT", 2: "Owlv2"}[version]
    text = {"vocab_size": 56, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 16, "bos_token_id": 54, "eos_token_id": 55,
            "pad_token_id": 55}  # fmt: skip
    vision = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 3,
              "image_size": side, "patch_size": side // 4}  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision, projection_dim=32)
    torch.manual_seed(0)
    shaken(getattr(transformers, f"{kind}ForObjectDetection")(config)).save_pretrained(str(folder))
    size = {"height": side, "width": side}
    options = {"size": size} if version == 2 else {"size": size, "do_center_crop": False}
    tokenizer = transformers.CLIPTokenizer
    words = tokenizer.from_pretrained(str(tokenizer_folder), model_max_length=16, trust_remote_code=False)
    images = getattr(transformers, f"{kind}ImageProcessor")(**options)
    getattr(transformers, f"{kind}Processor")(image_processor=images, tokenizer=words).save_pretrained(str(folder))


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "dog", "red", "cat", "teddy", "bear", "tree", "##s"]


def grounding_dino(folder) -> None:
    """Grounding DINO on a ResNet-like Swin of two stages."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    backbone = transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=16, depths=[1, 1, 1], num_heads=[2, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3"],
    )  # fmt: skip
    text = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    config = transformers.GroundingDinoConfig(
        backbone_config=backbone, text_config=text, d_model=32, num_queries=12, encoder_layers=1, decoder_layers=2,
        encoder_ffn_dim=48, decoder_ffn_dim=48, encoder_attention_heads=2, decoder_attention_heads=2,
        num_feature_levels=4, max_text_len=32, fusion_dropout=0.0, fusion_droppath=0.0, dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(1)
    shaken(transformers.GroundingDinoForObjectDetection(config), 1).save_pretrained(str(folder))
    words = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    images = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    transformers.GroundingDinoProcessor(image_processor=images, tokenizer=words).save_pretrained(str(folder))
