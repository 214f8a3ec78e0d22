"""VideoReward from its published files. Nothing is downloaded, and no code in them is run."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..base import VerifierError
from ..clip_weights import read_weights
from .video_reward import (
    BASE,
    INSTRUCTION,
    INSTRUCTION_FILE,
    INSTRUCTION_FROM,
    MARKS,
    NORMS,
    REPOSITORY,
    VideoRewardModel,
    VideoRewardVerifier,
    merged,
)

CONFIG = "model_config.json"


def load_video_reward(folder: str | Path, base: str | Path, **options) -> VideoRewardVerifier:
    """VideoReward from its folder and that of the model which it was made from.

    Args:
        folder: with ``model_config.json``, ``checkpoint-*/model.pth`` (or ``adapter_model.safetensors`` with
            ``non_lora_state_dict.pth``), and the authors' ``prompt_template.py``, out of which the instruction is read.
        base: of Qwen2-VL-2B-Instruct: configuration and tokenizer; its weights only for an adapter.
        options: of ``VideoRewardVerifier``.

    Raises:
        VerifierError: a file is missing, incomplete or another one, with where to get it.
    """
    folder, base = Path(folder), Path(base)
    config = _config(folder)
    instruction = _instruction(folder)
    without = partial(_without_base, base)
    tokenizer = tokenizer_of(base, MARKS, without)
    state = merged(_state(folder, base), _scale(config))
    head = state.pop("rm_head.weight", None)
    if head is None or len(head) != 1:
        raise VerifierError(f"{folder} has no rm_head.weight of one row: it is not {REPOSITORY}")
    state.pop("lm_head.weight", None)
    model = network_of(base, state, folder, "VideoReward", BASE, without)
    marks = tokenizer.convert_tokens_to_ids(list(MARKS))
    rows = model.get_input_embeddings().weight.shape[0]
    if max(marks) >= rows:
        raise VerifierError(
            f"the weights in {folder} know {rows} tokens and the marks are {marks}: base is not the {BASE} that they "
            f"were made from"
        )
    norms = _norms(config.get("inference_config"))
    made = VideoRewardModel(model, head, marks, model.config.video_token_id)
    return VideoRewardVerifier(made, tokenizer, instruction, norms=norms, **options)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise VerifierError(
            f"there is no file {path}: VideoReward (4.9 GB, Apache-2.0) belongs there, e.g. "
            f'`hf download {REPOSITORY} --local-dir "{folder}"`'
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = config["data_config"]["prompt_template_type"]
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise VerifierError(f"{path} is not the configuration of {REPOSITORY}: {error!r}") from error
    if kind != "detailed_special":
        raise VerifierError(f"{path} has prompt_template_type {kind!r}: only 'detailed_special' is known, as published")
    return config


def _instruction(folder: Path) -> str:
    return texts_in(folder / INSTRUCTION_FILE, [INSTRUCTION], "VideoReward", INSTRUCTION_FROM)[0]


def texts_in(path: Path, names: Sequence[str], model: str, origin: str) -> list[str]:
    """Texts that weights were trained with: constants of a Python file, which is read and never run.

    Args:
        path: of the file. names: of the constants. model, origin: whose, and where the file comes from, for messages.
    """
    if not path.is_file():
        raise VerifierError(
            f"there is no file {path}: the instruction that {model} was trained with is in {path.name} of {origin}; "
            f"put that file there"
        )
    found: dict[str, str] = {}
    try:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = [getattr(name, "id", "") for name in node.targets] if isinstance(node, ast.Assign) else []
            if len(targets) == 1 and targets[0] in names and isinstance(node, ast.Assign):
                value = ast.literal_eval(node.value)
                if isinstance(value, str):
                    found[targets[0]] = value
    except (SyntaxError, ValueError, OSError, RecursionError) as error:
        raise VerifierError(f"{path} cannot be read: {error}") from error
    for name in names:
        if name not in found:
            raise VerifierError(f"{path} has no text {name}: take the file from {origin}")
    return [found[name] for name in names]


def tokenizer_of(base: Path, marks: Sequence[str], without: Callable[[object], str]) -> Any:
    """The base model's tokenizer, which also knows ``marks``; ``without(reason)`` says what to get where it lacks."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(base), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the folder is somebody else's, and libraries raise what they like
        raise VerifierError(without(error)) from error
    if not getattr(tokenizer, "chat_template", None):
        path = base / "chat_template.json"
        if not path.is_file():
            raise VerifierError(without("it has no chat template"))
        tokenizer.chat_template = json.loads(path.read_text(encoding="utf-8"))["chat_template"]
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    return tokenizer


def _without_base(base: Path, reason: object) -> str:
    return missing_base(base, reason, f"{BASE} (4.4 GB, Apache-2.0)", BASE)


def missing_base(base: Path, reason: object, what: str, repository: str) -> str:
    """What to get where the base model's folder lacks something."""
    said = " ".join(str(reason).split())[:200]
    return f'base is {base}: {said}; {what} belongs there, e.g. `hf download {repository} --local-dir "{base}"`'


def _state(folder: Path, base: Path) -> dict[str, Tensor]:
    """All tensors of the latest checkpoint; those of ``base`` below them where it is an adapter only."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    if not found:
        raise VerifierError(
            f"there is no folder checkpoint-* in {folder}: the download is not complete, e.g. "
            f'`hf download {REPOSITORY} --local-dir "{folder}"`'
        )
    latest = max(found, key=lambda path: int(path.name.split("-")[1]))
    if (latest / "model.pth").is_file():
        return read_weights([latest / "model.pth"])
    parts = sorted(base.glob("*.safetensors"))
    if not parts:
        raise VerifierError(_without_base(base, f"there are no weights in it, and {latest} holds an adapter only"))
    return read_weights([*parts, latest / "non_lora_state_dict.pth", latest / "adapter_model.safetensors"])


def _scale(config: dict[str, Any]) -> float:
    lora = config.get("peft_lora_config") or {}
    rank, alpha = lora.get("lora_r", 64), lora.get("lora_alpha", 128)
    return alpha / (rank**0.5 if lora.get("use_rslora") else rank)


def _norms(config: Any) -> list[tuple[float, float]]:
    if not isinstance(config, dict):
        return list(NORMS)
    return [(float(config[f"{short}_mean"]), float(config[f"{short}_std"])) for short in ("VQ", "MQ", "TA")]


def network_of(
    base: Path, state: dict[str, Tensor], folder: Path, name: str, repository: str, without: Callable[[object], str]
) -> Any:
    """A ``Qwen2VLModel`` with exactly these weights.

    Args:
        base: whose configuration it has. state: its tensors under today's names. folder: where they were read.
        name, repository, without: of the reward model, of the base model, and what to get where that lacks something.
    """
    import transformers

    if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (4, 52):
        raise VerifierError(f"{name} needs transformers 4.52 or newer, this is {transformers.__version__}")
    try:
        config = transformers.AutoConfig.from_pretrained(str(base), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # see above
        raise VerifierError(without(error)) from error
    if config.model_type != "qwen2_vl":
        raise VerifierError(without(f"it holds a {config.model_type}"))
    words = state.get("language_model.embed_tokens.weight")
    if words is not None:
        config.text_config.vocab_size = len(words)  # the authors cut it to the words that there are, and the marks
    made: Any = transformers.Qwen2VLModel  # its types know nothing of the second value
    model, told = made.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=next(iter(state.values())).dtype,
        output_loading_info=True,
        trust_remote_code=False,
    )
    wrong = [*told["missing_keys"], *told["unexpected_keys"], *told["mismatched_keys"]]
    if wrong:
        raise VerifierError(f"the weights in {folder} do not fit {repository}: {wrong[0]} and {len(wrong) - 1} more")
    return model
