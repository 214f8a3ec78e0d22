"""The local rewriter on real vision-language classes of transformers: processor, generation, reading of the answer."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from testtime.chat.conversation import ChatError, Turn
from testtime.chat.loading import check_folder
from testtime.chat.local import LocalVLM
from testtime.rewriters.base import RewriterError
from testtime.rewriters.template import Template
from testtime.rewriters.vlm import load_vlm
from testtime.samplers.protocols import Interrupted, RewriteRequest

transformers = pytest.importorskip("transformers", minversion="4.46")

TEMPLATE = Template("Help.", "Request: {prompt}\nMake {count}.", 20)
SAID = {"aligned": False, "missing": ["the ring"], "prompts": ["a big red star", "a red star on snow"]}
CHAT = (
    "{% for message in messages %}[{{ message['role'] }}]{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
SPECIAL = ["<pad>", "<s>", "</s>", "<image>"]


def tokenizer():
    """A byte-level BPE tokenizer, trained here."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet)
    made.train_from_iterator([json.dumps(SAID), "Request: a red star Make 2. Help."] * 20, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )


def llava(folder):
    """A LLaVA with a two-layer CLIP tower and a two-layer Llama, random weights, saved as a model folder."""
    words = tokenizer()
    text = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=1024, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14,
        projection_dim=32,
    )  # fmt: skip
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config)
    images = transformers.CLIPImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_center_crop=True
    )
    processor = transformers.LlavaProcessor(
        images, words, patch_size=14, vision_feature_select_strategy="default", chat_template=CHAT,
        image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def taught(rewriter, request, said: str, steps: int = 160):
    """Train the language model, which is random, until it answers ``request`` with ``said``."""
    from testtime.rewriters.base import picture

    turns = [
        Turn("system", rewriter.template.system),
        Turn("user", rewriter.template.question(request), picture(request.image, rewriter.image_side)),
    ]
    inputs = rewriter.module.inputs([turns])
    words = rewriter.module.processor.tokenizer
    answer = words(said + "</s>", return_tensors="pt", add_special_tokens=False)["input_ids"]
    length = inputs["input_ids"].shape[1]
    for name in ("input_ids", "attention_mask"):
        more = answer if name == "input_ids" else torch.ones_like(answer)
        inputs[name] = torch.cat([inputs[name], more], 1)
    for name in [name for name in inputs if name not in ("input_ids", "attention_mask", "pixel_values")]:
        inputs.pop(name)
    labels = inputs["input_ids"].clone()
    labels[:, :length] = -100
    model = rewriter.module.model.requires_grad_(True)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        loss = model(**inputs, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if loss.item() < 0.01:
            break
    model.requires_grad_(False)
    return rewriter


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return llava(tmp_path_factory.mktemp("models") / "small-llava")


@pytest.fixture
def rewriter(folder):
    return load_vlm(folder, template=TEMPLATE, temperature=0.0, max_tokens=120, dtype="float32")


def request(prompt="a red star", **fields):
    image = torch.rand(40, 56, 3, generator=torch.Generator().manual_seed(1))
    return RewriteRequest(image, prompt, 2, **fields)


@pytest.mark.slow
def test_from_model_folder_to_prompts(rewriter):
    """The whole chain with a model that has learned one answer by heart: what it writes is what the search gets."""
    asked = request()
    taught(rewriter, asked, json.dumps(SAID))
    (answer,) = rewriter.rewrite([asked])
    assert answer.prompts == tuple(SAID["prompts"]) and answer.missing == ("the ring",)
    assert answer.calls == 1 and not answer.failed


def test_random_weights_talk_nonsense_and_nothing_breaks(rewriter, caplog):
    (answer,) = rewriter.rewrite([request()])
    assert answer.failed and not answer.prompts and answer.calls == 2
    assert "going on with the original prompt" in caplog.text


def test_the_picture_is_seen_and_seeds_decide_the_words(folder):
    rewriter = load_vlm(folder, template=TEMPLATE, temperature=1.0, max_tokens=16)
    turns = [Turn("user", "Request", None)]
    said = [rewriter.complete(turns, seed, lambda: None).text for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]
    before = torch.get_rng_state()
    rewriter.complete(turns, 3, lambda: None)
    assert torch.equal(before, torch.get_rng_state())
    shown = [Turn("user", "Request", Image.new("RGB", (28, 28), colour)) for colour in ("black", "red")]
    pixels = [rewriter.module.inputs([[turn]])["pixel_values"] for turn in shown]
    assert pixels[0].shape == (1, 3, 28, 28) and not torch.equal(*pixels)


def test_cancel_ends_the_writing(rewriter):
    words = iter(range(1000))

    def cancel():
        if next(words) == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        rewriter.rewrite([request()], poll=cancel)
    assert next(words) == 6


def test_half_precision_weights_get_half_precision_pictures(folder):
    rewriter = load_vlm(folder, template=TEMPLATE, dtype="bfloat16", max_tokens=16)
    (answer,) = rewriter.rewrite([request()])
    assert answer.failed and "no prompts" in answer.note


def test_a_model_without_a_system_role_gets_its_text_before_the_question(rewriter):
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    rewriter.module.processor.chat_template = refuse + CHAT
    text = rewriter.module.rendered([Turn("system", "Help."), Turn("user", "Ask", Image.new("RGB", (8, 8)))])
    assert text == "[user]<image>Help.\n\nAsk[assistant]"


def test_model_without_chat_template_is_refused(rewriter):
    processor = rewriter.module.processor
    processor.chat_template = processor.tokenizer.chat_template = None
    with pytest.raises(ChatError, match="no chat template"):
        LocalVLM(rewriter.module.model, processor)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "no config.json"),
        ("{", "names no model_type"),
        ({"model_type": "internvl_chat", "auto_map": {}}, "needs code of its own, which is never run.*-hf"),
        ({"model_type": "brand_new"}, "not one transformers knows"),
        ({"model_type": "llama"}, "not one transformers knows"),
    ],
)
def test_other_folders_are_refused_before_they_are_loaded(tmp_path, config, message):
    if config is not None:
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(ChatError, match=message):
        check_folder(tmp_path)
    with pytest.raises(ChatError, match=message):
        load_vlm(tmp_path)


def test_a_folder_that_lacks_its_weights_is_named(tmp_path, folder):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ChatError, match="no chat model that can be loaded"):
        load_vlm(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float8"}, "dtype is 'float8'"),
        ({"quantisation": "int2"}, "quantisation is 'int2'"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"max_tokens": 2}, "max_tokens is 2"),
    ],
)
def test_wrong_settings_are_refused(folder, settings, message):
    with pytest.raises((ChatError, RewriterError), match=message):
        load_vlm(folder, **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here quantisation may work")
def test_quantisation_without_what_it_needs_says_so(folder):
    with pytest.raises(ChatError, match=r"bitsandbytes|CUDA"):
        load_vlm(folder, quantisation="int4")
