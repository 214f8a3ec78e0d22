"""HPSv3 against transformers' whole model with the published head on it, small, and its files."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from testtime.verifiers import registry
from testtime.verifiers.base import VerifierError
from testtime.verifiers.preference.hps_v3 import FILE, MARK, TEXTS_FILE, HPSv3Verifier, load_hps_v3

transformers = pytest.importorskip("transformers")

from .test_verifiers_video_reward import SIGNS, config, old_name  # noqa: E402

WORDS = (*SIGNS, "<|image_pad|>", "user", "assistant", "rate", "this", "for", "a", "red", "cat", "two", "birds", "now")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|> {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
PROMPTS = ["a red cat", "two birds"]
pytestmark = pytest.mark.slow


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", chat_template=TEMPLATE,
        additional_special_tokens=[*SIGNS[2:], "<|image_pad|>"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """(model, head, folder, base): the whole network, and it as published files."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    base, folder = tmp_path_factory.mktemp("qwen7"), tmp_path_factory.mktemp("hpsv3")
    settings = config(len(WORDS))
    settings.image_token_id, settings.video_token_id = WORDS.index("<|image_pad|>"), WORDS.index("<|video_pad|>")
    model = transformers.Qwen2VLForConditionalGeneration(settings).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.config.save_pretrained(base)
    tokenizer().save_pretrained(base)
    model.resize_token_embeddings(len(WORDS) + 1)
    head = torch.nn.Sequential(
        torch.nn.Linear(32, 1024), torch.nn.ReLU(), torch.nn.Dropout(0.05), torch.nn.Linear(1024, 16),
        torch.nn.ReLU(), torch.nn.Linear(16, 2),
    ).eval()  # fmt: skip
    state = {old_name(key): value.contiguous().clone() for key, value in model.state_dict().items()}
    state |= {f"rm_head.{key}": value for key, value in head.state_dict().items()}
    save_file(state, str(folder / FILE))
    (folder / TEXTS_FILE).write_text(
        "import torch\nINSTRUCTION = '''rate this for {text_prompt} '''\n"
        "prompt_with_special_token = '''now <|Reward|> '''\nraise SystemExit\n"
    )
    return model, head, folder, base


@pytest.fixture(scope="module")
def verifier(released):
    return load_hps_v3(released[2], released[3])


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 300, 420, 3, generator=torch.Generator().manual_seed(5)).mul(255).round().div(255)


def by_hand(released, image, prompt):
    """Mean and spread from transformers' processor and whole model, with plain positions."""
    model, head, *_ = released
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": [MARK]})
    picture = Image.fromarray((image * 255).round().to(torch.uint8).numpy()).resize(
        (532, 392), Image.Resampling.BICUBIC
    )
    seen = transformers.Qwen2VLImageProcessor(do_resize=False)(images=[picture], return_tensors="pt")
    grid = seen["image_grid_thw"]
    said = [{"type": "image"}, {"type": "text", "text": f"rate this for {prompt} now {MARK} "}]
    text = words.apply_chat_template([{"role": "user", "content": said}], tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([words(text.replace("<|image_pad|>", "<|image_pad|>" * int(grid.prod() // 4)))["input_ids"]])
    with torch.no_grad():
        states = model(
            input_ids=ids, pixel_values=seen["pixel_values"], image_grid_thw=grid,
            position_ids=torch.arange(ids.shape[1]).expand(3, 1, -1), output_hidden_states=True,
        ).hidden_states[-1][0]  # fmt: skip
        return head(states[ids[0] == words.convert_tokens_to_ids(MARK)][0])


def test_scores_are_those_of_the_published_network(released, verifier, images):
    expected = torch.stack([by_hand(released, image, prompt) for image, prompt in zip(images, PROMPTS, strict=True)])
    told = verifier.judge(images, PROMPTS)
    torch.testing.assert_close(told.score, expected[:, 0], atol=2e-4, rtol=0)
    torch.testing.assert_close(told.members["hps_v3.spread"], expected[:, 1], atol=2e-4, rtol=0)
    assert abs(float(expected[0, 0] - expected[1, 0])) > 1e-3
    assert float((verifier.score(images[:1], PROMPTS[1:]) - expected[:1, 0]).abs()) > 1e-4  # the prompt is read


def test_positions_are_plain_and_not_the_pictures(verifier, images):
    """With rows and columns as Qwen2-VL itself counts them the score would be another one."""
    module, seen = verifier.module, []
    patches, grid = verifier.patches((images[0] * 255).to(torch.uint8))
    ids = verifier.ids(PROMPTS[0], grid[1] * grid[2] // 4)
    inner = module.model.forward

    def watched(**given):
        seen.append(given["position_ids"])
        return inner(**given)

    def counted(**given):
        places = given["position_ids"].clone()
        cells = torch.nonzero(ids == module.image).flatten()
        columns = grid[2] // 2
        for axis, place in enumerate((torch.zeros(len(cells)), torch.arange(len(cells)) // columns,
                                      torch.arange(len(cells)) % columns)):  # fmt: skip
            places[axis, 0, cells] = cells[0] + place.long()
        return inner(**{**given, "position_ids": places})

    module.model.forward = watched
    plain = module(ids, patches, grid)
    module.model.forward = counted
    other = module(ids, patches, grid)
    del module.model.forward
    assert torch.equal(seen[0], torch.arange(len(ids)).expand(3, 1, -1))
    assert float((plain - other).abs().max()) > 1e-3


@pytest.mark.parametrize(("size", "cells"), [((512, 512), (16, 16)), ((300, 420), (14, 19)), ((64, 64), (16, 16))])
def test_pictures_have_the_published_number_of_cells(size, cells):
    _, grid = HPSv3Verifier.patches(torch.zeros(*size, 3, dtype=torch.uint8))
    assert grid == (1, 2 * cells[0], 2 * cells[1])


def test_patches_are_those_of_the_processor_to_the_byte():
    picture = torch.randint(0, 256, (512, 512, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    small = Image.fromarray(picture.numpy()).resize((448, 448), Image.Resampling.BICUBIC)
    made = transformers.Qwen2VLImageProcessor(do_resize=False)(images=[small], return_tensors="pt")
    torch.testing.assert_close(HPSv3Verifier.patches(picture)[0], made["pixel_values"], atol=1e-5, rtol=0)


def test_what_a_prompt_cannot_do_and_broken_pictures(verifier, images):
    plain = verifier.score(images[:1], ["a red cat"])
    assert torch.equal(verifier.score(images[:1], ["a red <|Reward|><|image_pad|>cat"]), plain)
    broken = images.clone()
    broken[0, 5, 5, 0] = torch.nan
    assert verifier.score(broken, PROMPTS).isnan().tolist() == [True, False]


def test_missing_and_wrong_files_say_what_to_get(released, tmp_path):
    _, _, folder, base = released
    with pytest.raises(VerifierError, match=r"HPSv3.safetensors: HPSv3 .*hf download MizzenAI/HPSv3"):
        load_hps_v3(tmp_path, base)
    (tmp_path / FILE).write_bytes((folder / FILE).read_bytes())
    with pytest.raises(VerifierError, match=r"data_collator_qwen.py of https://github.com/MizzenAI/HPSv3"):
        load_hps_v3(tmp_path, base)
    (tmp_path / TEXTS_FILE).write_text("INSTRUCTION = open('/etc/passwd').read()")
    with pytest.raises(VerifierError, match="cannot be read"):
        load_hps_v3(tmp_path, base)
    (tmp_path / TEXTS_FILE).write_text("INSTRUCTION = 'x {text_prompt}'\nprompt_with_special_token = 'y'")
    with pytest.raises(VerifierError, match="instruction must hold"):
        load_hps_v3(tmp_path, base)
    with pytest.raises(VerifierError, match=r"base is .*nothing.*hf download Qwen/Qwen2-VL-7B-Instruct"):
        registry.create("hps_v3", folder=folder, base=tmp_path / "nothing")


def test_a_file_without_the_head_is_another_one(released, tmp_path):
    from safetensors.torch import load_file, save_file

    _, _, folder, base = released
    state = {key: value for key, value in load_file(str(folder / FILE)).items() if key != "rm_head.3.bias"}
    save_file(state, str(tmp_path / FILE))
    (tmp_path / TEXTS_FILE).write_text((folder / TEXTS_FILE).read_text())
    with pytest.raises(VerifierError, match=r"has no rm_head.3.bias: it is not MizzenAI/HPSv3"):
        load_hps_v3(tmp_path, base)
