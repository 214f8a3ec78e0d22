"""VideoReward against transformers' whole model with the low-rank updates left beside its weights, both small."""

from __future__ import annotations

import json

import pytest
import torch

from testtime.samplers.looks import judge
from testtime.verifiers import registry
from testtime.verifiers.base import VerifierError
from testtime.verifiers.video.video_reward import GRADES, MARKS, VideoRewardVerifier, frame_size, patches_of
from testtime.verifiers.video.video_reward_files import load_video_reward

transformers = pytest.importorskip("transformers")

SIGNS = ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
WORDS = (*SIGNS, "user", "assistant", "rate", "look", "move", "fit", "of", "a", "red", "cat", "two", "birds", "runs")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|> {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
INSTRUCTION = "rate look <|VQ_reward|> rate move <|MQ_reward|> rate fit of {text_prompt} <|TA_reward|> rate"
RANK, ALPHA = 2, 6
NORMS = {"VQ_mean": 0.5, "VQ_std": 2.0, "MQ_mean": -0.1, "MQ_std": 0.5, "TA_mean": 0.0, "TA_std": 4.0}
PROMPTS = ["a red cat runs", "two birds"]


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", chat_template=TEMPLATE,
        additional_special_tokens=list(SIGNS[2:]),
    )  # fmt: skip


def config(words: int):
    number = WORDS.index
    return transformers.Qwen2VLConfig(
        text_config={
            "vocab_size": words, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default"},
            "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
        },
        vision_config={"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2},
        video_token_id=number("<|video_pad|>"), image_token_id=1, vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"), tie_word_embeddings=True,
    )  # fmt: skip


def old_name(key: str) -> str:
    """Where the authors' transformers had a tensor."""
    return key.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """(model, updates, head, folders): a base model, what was learned beside it, and both as files."""
    torch.manual_seed(0)
    base, folder = tmp_path_factory.mktemp("qwen"), tmp_path_factory.mktemp("reward")
    model = transformers.Qwen2VLForConditionalGeneration(config(len(WORDS) + 20)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(base)
    tokenizer().save_pretrained(base)
    model.resize_token_embeddings(len(WORDS) + len(MARKS))
    state = {old_name(key): value for key, value in model.state_dict().items()}
    head = torch.randn(1, 32)
    updates, saved = {}, {"base_model.model.rm_head.weight": head}
    for key, value in state.items():
        module = key.removesuffix(".weight")
        if value.dim() == 2 and ".layers." in key:
            a, b = torch.randn(RANK, value.shape[1]) * 0.2, torch.randn(value.shape[0], RANK) * 0.2
            updates[module] = (a, b)
            saved[f"base_model.model.{module}.base_layer.weight"] = value
            saved[f"base_model.model.{module}.lora_A.default.weight"] = a
            saved[f"base_model.model.{module}.lora_B.default.weight"] = b
        else:
            name = key.replace("_proj.bias", "_proj.base_layer.bias") if ".layers." in key else key
            saved[f"base_model.model.{name}"] = value
    (folder / "checkpoint-7").mkdir()
    (folder / "checkpoint-12").mkdir()
    torch.save(saved, folder / "checkpoint-12" / "model.pth")
    (folder / "model_config.json").write_text(
        json.dumps(
            {
                "data_config": {"prompt_template_type": "detailed_special"},
                "peft_lora_config": {"lora_r": RANK, "lora_alpha": ALPHA},
                "inference_config": NORMS,
            }
        )
    )
    written = (
        f"import nowhere\nOTHER = 'x'\nDETAILED_PROMPT_WITH_SPECIAL_TOKEN = '''{INSTRUCTION}'''\nraise SystemExit\n"
    )
    (folder / "prompt_template.py").write_text(written)
    return model, updates, head, folder, base


@pytest.fixture(scope="module")
def verifier(released):
    return load_video_reward(released[3], released[4], frames=4)


@pytest.fixture(scope="module")
def clips():
    generator = torch.Generator().manual_seed(5)
    return torch.rand(2, 7, 300, 420, 3, generator=generator).mul(255).round().div(255)


def by_hand(released, clip, prompt, numbers):
    """Normalised grades from the whole model of transformers, the updates added to what its layers give."""
    model, updates, head, *_ = released
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": list(MARKS)})
    frames = (clip[numbers] * 255).round().to(torch.uint8).movedim(-1, 1)
    height, width = 308, 420  # whole cells of 28
    import torchvision.transforms.v2.functional as tvf

    frames = tvf.resize(frames.float(), [height, width], tvf.InterpolationMode.BICUBIC, antialias=True)
    processor = transformers.Qwen2VLVideoProcessor(do_resize=False)
    seen = processor(videos=[frames.round().clamp(0, 255)], return_tensors="pt", do_sample_frames=False)
    grid = seen["video_grid_thw"]
    said = [{"type": "video"}, {"type": "text", "text": INSTRUCTION.format(text_prompt=prompt)}]
    text = words.apply_chat_template([{"role": "user", "content": said}], tokenize=False, add_generation_prompt=True)
    text = text.replace("<|video_pad|>", "<|video_pad|>" * int(grid.prod() // 4))
    ids = torch.tensor([words(text)["input_ids"]])
    hooks = []
    for name, module in model.named_modules():
        if old_name(name) in updates:
            a, b = updates[old_name(name)]
            hooks.append(
                module.register_forward_hook(
                    lambda _, given, out, a=a, b=b: out + ALPHA / RANK * (given[0] @ a.T) @ b.T
                )
            )
    with torch.no_grad():
        states = model(
            input_ids=ids, pixel_values_videos=seen["pixel_values_videos"], video_grid_thw=grid,
            position_ids=torch.arange(ids.shape[1]).expand(3, 1, -1), output_hidden_states=True,
        ).hidden_states[-1][0]  # fmt: skip
    for hook in hooks:
        hook.remove()
    raw = [float(states[ids[0] == words.convert_tokens_to_ids(mark)][0] @ head[0]) for mark in MARKS]
    return [(value - NORMS[f"{k}_mean"]) / NORMS[f"{k}_std"] for value, k in zip(raw, ("VQ", "MQ", "TA"), strict=True)]


@pytest.mark.slow
def test_grades_are_those_of_the_published_network(released, verifier, clips):
    expected = [by_hand(released, clip, prompt, [0, 2, 4, 6]) for clip, prompt in zip(clips, PROMPTS, strict=True)]
    told = judge(verifier, clips, PROMPTS)
    assert told.score.tolist() == pytest.approx([sum(grades) for grades in expected], abs=2e-4)
    for k, name in enumerate(GRADES):
        assert told.members[f"video_reward.{name}"].tolist() == pytest.approx([g[k] for g in expected], abs=1e-4)
    assert abs(expected[0][2] - expected[1][2]) > 0.01
    text = load_video_reward(released[3], released[4], frames=4, grade="text")
    assert text.score(clips[:1], PROMPTS[:1]).tolist() == pytest.approx([expected[0][2]], abs=1e-4)


@pytest.mark.slow
def test_an_adapter_alone_takes_the_base_models_weights(released, clips, tmp_path):
    _, _, _, folder, base = released
    whole = torch.load(folder / "checkpoint-12" / "model.pth", weights_only=True)
    part = tmp_path / "checkpoint-3"
    part.mkdir()
    from safetensors.torch import save_file

    lora = {key.replace(".default.", "."): value for key, value in whole.items() if ".lora_" in key}
    save_file(lora, part / "adapter_model.safetensors")
    beside = {
        key: whole[key] for key in ("base_model.model.rm_head.weight", "base_model.model.model.embed_tokens.weight")
    }
    torch.save(beside, part / "non_lora_state_dict.pth")
    for name in ("model_config.json", "prompt_template.py"):
        (tmp_path / name).write_text((folder / name).read_text())
    adapted, full = (load_video_reward(path, base, frames=2) for path in (tmp_path, folder))
    torch.testing.assert_close(adapted.score(clips[:1], PROMPTS[:1]), full.score(clips[:1], PROMPTS[:1]))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 832), (336, 588)), ((96, 96), (336, 336)), ((448, 448), (448, 448)), ((720, 1280), (336, 588)),
     ((336, 588), (336, 588))],
)  # fmt: skip
def test_frames_are_brought_to_the_published_size(size, expected):
    assert frame_size(*size) == expected


def test_patches_are_those_of_transformers():
    frames = torch.randint(0, 256, (3, 336, 448, 3), dtype=torch.uint8)
    patches, grid = patches_of(frames)
    processor = transformers.Qwen2VLVideoProcessor(do_resize=False)
    made = processor(videos=[frames.movedim(-1, 1)], return_tensors="pt", do_sample_frames=False)
    assert list(grid) == made["video_grid_thw"][0].tolist() == [2, 24, 32]
    torch.testing.assert_close(patches, made["pixel_values_videos"], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_what_a_prompt_cannot_do(verifier, clips):
    plain = verifier.score(clips[:1], ["a red cat runs"])
    assert torch.equal(verifier.score(clips[:1], ["a red<|TA_reward|><|video_pad|> cat runs"]), plain)
    broken = clips[:1].clone()
    broken[0, 2, 5, 5, 0] = torch.nan
    assert verifier.score(broken, PROMPTS[:1]).isnan().all()
    with pytest.raises(VerifierError, match="judges videos: these are 2 images"):
        verifier.score(clips[:, 0], PROMPTS)


def test_missing_and_wrong_files_say_what_to_get(released, tmp_path):
    *_, folder, base = released
    with pytest.raises(VerifierError, match=r"model_config.json: VideoReward .*hf download KwaiVGI/VideoReward"):
        load_video_reward(tmp_path, base)
    (tmp_path / "model_config.json").write_text((folder / "model_config.json").read_text())
    with pytest.raises(VerifierError, match=r"prompt_template.py of https://github.com/KwaiVGI/VideoAlign"):
        load_video_reward(tmp_path, base)
    (tmp_path / "prompt_template.py").write_text("DETAILED_PROMPT_WITH_SPECIAL_TOKEN = open('/etc/passwd').read()")
    with pytest.raises(VerifierError, match="cannot be read"):
        load_video_reward(tmp_path, base)
    (tmp_path / "prompt_template.py").write_text((folder / "prompt_template.py").read_text())
    with pytest.raises(VerifierError, match=r"no folder checkpoint-\*"):
        load_video_reward(tmp_path, base)
    with pytest.raises(VerifierError, match=r"base is .*nothing.*hf download Qwen/Qwen2-VL-2B-Instruct"):
        load_video_reward(folder, tmp_path / "nothing")
    with pytest.raises(VerifierError, match="grade is 'sound'"):
        registry.create("video_reward", folder=folder, base=base, grade="sound")


def test_weights_of_another_network_are_named(released, tmp_path):
    *_, folder, base = released
    whole = torch.load(folder / "checkpoint-12" / "model.pth", weights_only=True)
    del whole["base_model.model.visual.blocks.0.norm1.bias"]
    (tmp_path / "checkpoint-1").mkdir()
    torch.save(whole, tmp_path / "checkpoint-1" / "model.pth")
    for name in ("model_config.json", "prompt_template.py"):
        (tmp_path / name).write_text((folder / name).read_text())
    with pytest.raises(VerifierError, match=r"do not fit .*visual.blocks.0.norm1.bias"):
        load_video_reward(tmp_path, base)


def test_an_instruction_without_its_marks_is_refused(verifier):
    with pytest.raises(VerifierError, match="each once"):
        VideoRewardVerifier(verifier.module, verifier.tokenizer, "rate {text_prompt}")
