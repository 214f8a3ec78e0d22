"""open_clip's key layout -> that of ``transformers.CLIPModel``: HPSv2 and most CLIPs of LAION come in the former.

Nothing is computed: fused query-key-value weights are cut in three, two projections transposed, the rest is renamed.
"""

from __future__ import annotations

import re

from torch import Tensor

_TOP = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "logit_scale": "logit_scale",
}
_NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",  # spelt so in transformers
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_INSIDE = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"(?P<tower>visual\.)?transformer\.resblocks\.(?P<layer>\d+)\.(?P<rest>.+)")
_COMPUTED = ("attn_mask", "num_batches_tracked", "logit_bias")


def is_openclip(keys) -> bool:
    """Whether a file's keys are in open_clip's layout (or in OpenAI's, which is the same)."""
    return any(key.startswith(("visual.", "transformer.resblocks.", "module.visual.")) for key in keys)


def to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an open_clip ViT under the names of ``CLIPModel``. Keys that are not known keep theirs, so that a
    strict load reports them."""
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        key = key.removeprefix("module.")
        stem, _, kind = key.rpartition(".")
        block = _BLOCK.fullmatch(key)
        if key in _COMPUTED:
            continue
        if block:
            converted |= _of_block(block, value)
        elif key in _TRANSPOSED:
            converted[_TRANSPOSED[key]] = value.T.contiguous()
        elif key in _TOP:
            converted[_TOP[key]] = value
        elif stem in _NORMS:
            converted[f"{_NORMS[stem]}.{kind}"] = value
        else:
            converted[key] = value
    return converted


def _of_block(block: re.Match, value: Tensor) -> dict[str, Tensor]:
    tower = "vision_model" if block["tower"] else "text_model"
    prefix = f"{tower}.encoder.layers.{block['layer']}."
    rest = block["rest"]
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        parts = zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True)
        return {f"{prefix}self_attn.{name}.{kind}": part.contiguous() for name, part in parts}
    stem, _, kind = rest.rpartition(".")
    return {f"{prefix}{_INSIDE.get(stem, stem)}.{kind}": value}
