"""A small random chat model that sees images, of transformers' own classes, and a tokenizer of a few words."""

from __future__ import annotations

import torch

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
WORDS = (
    "<pad> <unk> <s> </s> <image> Yes No user assistant : Does this figure show a red cat two green birds the sea "
    '? Please answer or . " score 0 1 2 3 4 5 6 7 8 9 { }'
).split()


def tokenizer(words=WORDS):
    """Whole words, split at spaces and punctuation."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special, additional_special_tokens=["<image>"])


def llava(folder, template: str | None = TEMPLATE) -> None:
    """Save a LLaVA of two layers, its processor and its tokenizer into ``folder``, in Hugging Face layout."""
    import transformers

    words = tokenizer()
    towers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**towers, image_size=28, patch_size=14),
        text_config=transformers.LlamaConfig(
            **towers, vocab_size=len(words), num_key_value_heads=2, max_position_embeddings=4096,
            bos_token_id=2, eos_token_id=3, pad_token_id=0,
        ),
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    model = transformers.LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(str(folder))
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=28),
        tokenizer=words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    processor.save_pretrained(str(folder))
