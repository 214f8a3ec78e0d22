"""VideoReward (Liu et al. 2025, arXiv 2501.13918): visual quality, motion quality and text alignment of a clip.

A Qwen2-VL reads a few frames and an instruction with three marks in it; one linear map turns the state at each mark
into a grade. The network is transformers' own; the published file, low-rank updates and all, becomes its weights here.

Two things of the published pipeline are easily lost: positions are plain 0, 1, 2 .. for all three axes (the authors'
forward pass never asks for Qwen2-VL's own positions of rows and columns), and frames have 128 to 256 cells of 28 x 28.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...samplers.frames import FrameChoice
from ...samplers.looks import shown_in
from ...samplers.protocols import ScoreContext, Values, Verifier
from ...samplers.verifier import CLIP
from ..base import VerifierError, check_images, check_prompts, freeze, module_device
from ..caching import ImageCache
from ..pictures import finite_rows, to_bytes
from ..preprocessing import CLIP_MEAN, CLIP_STD

REPOSITORY, BASE = "KwaiVGI/VideoReward", "Qwen/Qwen2-VL-2B-Instruct"
INSTRUCTION_FILE = "prompt_template.py"
INSTRUCTION_FROM = "https://github.com/KwaiVGI/VideoAlign"
INSTRUCTION = "DETAILED_PROMPT_WITH_SPECIAL_TOKEN"
"""The constant in it that the published weights were trained with (``prompt_template_type`` "detailed_special")."""

GRADES = ("visual", "motion", "text")
OVERALL = "overall"
MARKS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
NORMS = ((3.6757, 2.2476), (1.1646, 1.3811), (2.8105, 2.5121))
"""Mean and spread of the three raw grades over the authors' data, where ``model_config.json`` has none."""

FRAMES = 10  # two a second of a clip of five seconds, as published
PATCH, MERGED, TOGETHER = 14, 2, 2  # pixels of a patch, patches a side and frames of one token
CELL = PATCH * MERGED
LEAST, MOST = 128 * CELL**2, 256 * CELL**2
"""Pixels of a frame."""


class VideoRewardModel(nn.Module):
    """Qwen2-VL without its language head, and the map from a state to a grade.

    Args:
        model: a ``transformers.Qwen2VLModel``.
        head: weight ``[1, width]``.
        marks: ids of ``MARKS``; video: id of the token that stands for a cell of the video.
    """

    half_safe = ("model",)

    def __init__(self, model: nn.Module, head: Tensor, marks: Sequence[int], video: int):
        super().__init__()
        self.model = model
        self.head = nn.Linear(head.shape[1], 1, bias=False, device="meta")
        self.head.weight = nn.Parameter(head.float())
        self.marks, self.video = list(marks), video

    def forward(self, ids: Tensor, patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Raw grades float32 ``[3]`` of one clip.

        Args:
            ids: int64 ``[tokens]``; patches: ``[t h w, values]``; grid: t, h, w in patches.
        """
        places = torch.arange(len(ids), device=ids.device).expand(3, 1, -1)
        states = self.model(
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids)[None],
            position_ids=places,
            pixel_values_videos=patches.to(next(self.model.parameters()).dtype),
            video_grid_thw=torch.tensor([grid], device=ids.device),
            use_cache=False,
        ).last_hidden_state[0]
        at = [int((ids == mark).nonzero()) for mark in self.marks]
        return self.head(states[at].float())[:, 0]


def frame_size(height: int, width: int, least: int = LEAST, most: int = MOST) -> tuple[int, int]:
    """Height and width that frames are brought to: whole cells, ``least`` to ``most`` pixels, as published."""
    sides = [max(CELL, round(side / CELL) * CELL) for side in (height, width)]
    if math.prod(sides) > most:
        ratio = math.sqrt(height * width / most)
        sides = [max(CELL, math.floor(side / ratio / CELL) * CELL) for side in (height, width)]
    elif math.prod(sides) < least:
        ratio = math.sqrt(least / (height * width))
        sides = [math.ceil(side * ratio / CELL) * CELL for side in (height, width)]
    return sides[0], sides[1]


def patches_of(frames: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Patches ``[t h w, 3 * 2 * 14 * 14]`` as Qwen2-VL takes them, and the grid (t, h, w), of frames.

    Args:
        frames: uint8 ``[F, H, W, 3]``; an odd number gets its last one twice.
    """
    x = frames.movedim(-1, 1).float()
    x = F.interpolate(x, frame_size(*x.shape[-2:]), mode="bicubic", antialias=True).round().clamp(0, 255)
    return in_patches(x)


def in_patches(x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """``patches_of`` frames ``[F, 3, H, W]`` in 0..255, of whole cells already."""
    x = (x / 255 - x.new_tensor(CLIP_MEAN).view(3, 1, 1)) / x.new_tensor(CLIP_STD).view(3, 1, 1)
    if len(x) % TOGETHER:
        x = torch.cat([x, x[-1:]])
    t, h, w = len(x) // TOGETHER, x.shape[-2] // PATCH, x.shape[-1] // PATCH
    x = x.reshape(t, TOGETHER, 3, h // MERGED, MERGED, PATCH, w // MERGED, MERGED, PATCH)
    # a token's four patches lie one behind the other
    return x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1), (t, h, w)


class VideoRewardVerifier(Verifier):
    """VideoReward's grades, each with mean 0 and spread 1 over the authors' data; "overall" is their sum.

    Args:
        model: a ``VideoRewardModel``.
        tokenizer: of Qwen2-VL, with its chat template; it knows ``MARKS``.
        instruction: with ``{text_prompt}`` and the three marks in it.
        grade: "overall", "visual", "motion" or "text": which one is the score; all are kept in the trace.
        norms: mean and spread of each raw grade.
        frames: of a clip that are looked at, >= 2.

    Raises:
        VerifierError: naming the setting that cannot work.
    """

    name = "video_reward"
    differentiable = False
    needs_prompt = True
    sees = CLIP
    least_frames = 2
    bytes_per_image = 2 * 2**30

    def __init__(
        self,
        model: VideoRewardModel,
        tokenizer: Any,
        instruction: str,
        grade: str = OVERALL,
        norms: Sequence[tuple[float, float]] = NORMS,
        frames: int = FRAMES,
    ):
        if grade not in (OVERALL, *GRADES):
            raise VerifierError(f"grade is {grade!r}: choose one of {', '.join((OVERALL, *GRADES))}")
        if frames < self.least_frames:
            raise VerifierError(f"frames is {frames}: motion needs at least {self.least_frames}")
        if any(instruction.count(part) != 1 for part in ("{text_prompt}", *MARKS)):
            raise VerifierError(f"instruction must hold {{text_prompt}} and {', '.join(MARKS)}, each once")
        self.module, self.tokenizer, self.instruction, self.grade = freeze(model), tokenizer, instruction, grade
        self.norms = torch.tensor(norms)
        self.default_scale = (0.0, 2.3) if grade == OVERALL else (0.0, 1.0)
        self.frames = FrameChoice("uniform", frames, longest=1024)
        self._signs = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}, key=len, reverse=True)
        self._clips = ImageCache(batch=1)

    def score(self, images: Tensor, prompts: Sequence[str] | str, context: ScoreContext | None = None) -> Tensor:
        """Scores float32 ``[n]`` of clips ``[n, F, H, W, 3]`` in 0..1; NaN for one with a pixel that is none."""
        return self.judge(images, prompts, context).score

    def judge(self, images: Tensor, prompts: Sequence[str] | str, context: ScoreContext | None = None) -> Values:
        """``score``, and the three grades."""
        if images.dim() != 5:
            raise VerifierError(f"verifier {self.name!r} judges videos: these are {len(images)} images")
        places = shown_in(images, context).places(self.frames or FrameChoice("uniform", FRAMES))
        if len(places) < self.least_frames:
            raise VerifierError(f"verifier {self.name!r} judges videos: this clip has {len(places)} frame")
        n, count = len(images), len(places)
        clips = check_images(images[:, places].flatten(0, 1)).unflatten(0, (n, count))
        prompts = check_prompts(prompts, n, self.name)
        good, pixels = finite_rows(clips), to_bytes(clips)
        raw = self._clips(pixels, lambda rows: self._ask(pixels[rows], [prompts[i] for i in rows.tolist()]), prompts)
        grades = ((raw - self.norms[:, 0]) / self.norms[:, 1]).masked_fill(~good[:, None], torch.nan)
        score = grades.sum(1) if self.grade == OVERALL else grades[:, GRADES.index(self.grade)].clone()
        return Values(score, None, {f"{self.name}.{name}": grades[:, k] for k, name in enumerate(GRADES)})

    def _ask(self, clips: Tensor, prompts: list[str]) -> Tensor:
        """Raw grades ``[k, 3]``, one clip per pass."""
        device, found = module_device(self.module), []
        for clip, prompt in zip(clips, prompts, strict=True):
            patches, grid = patches_of(clip.to(device))
            found.append(self.module(self.ids(prompt, math.prod(grid) // MERGED**2).to(device), patches, grid))
        return torch.stack(found)

    def ids(self, prompt: str, cells: int) -> Tensor:
        """Token ids int64 ``[tokens]`` of the conversation about a video of so many cells."""
        for sign in self._signs:  # of a prompt, they would be read as what they stand for
            prompt = prompt.replace(sign, "")
        said = [{"type": "video"}, {"type": "text", "text": self.instruction.replace("{text_prompt}", prompt)}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": said}], tokenize=False, add_generation_prompt=True
        )
        ids = torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        before, after = ids.tolist().index(self.module.video), ids.tolist().index(self.module.video) + 1
        return torch.cat([ids[:before], torch.full((cells,), self.module.video), ids[after:]])


def merged(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Plain weights of a state with low-rank updates as peft saves them, ``W + scale B A``, under today's names.

    Args:
        state: tensors under peft's names, with or without the adapter's name in them.
        scale: alpha / r.
    """
    plain: dict[str, Tensor] = {}
    updates: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        key = key.removeprefix("base_model.model.").replace(".default.", ".").replace(".base_layer.", ".")
        module, found, part = key.partition(".lora_")
        if found:
            updates.setdefault(todays_name(module), {})[part[0]] = value
        else:
            plain[todays_name(key)] = value
    for module, parts in updates.items():
        weight = plain.get(f"{module}.weight")
        if weight is None or set(parts) != {"A", "B"}:
            raise VerifierError(f"the low-rank update of {module} is not whole: download the weights again")
        # Summed in float32: in bfloat16 small updates would be lost.
        plain[f"{module}.weight"] = (weight.float() + scale * parts["B"].float() @ parts["A"].float()).to(weight.dtype)
    return plain


def todays_name(key: str) -> str:
    """Name within ``Qwen2VLModel`` of a tensor of ``Qwen2VLForConditionalGeneration``; heads keep theirs.

    Until transformers 4.51 the language model's layers lay directly in ``model`` and the vision tower beside it.
    """
    if key.startswith(("lm_head.", "rm_head.")):
        return key
    inner = key.removeprefix("model.")
    return inner if inner.startswith(("visual.", "language_model.")) else f"language_model.{inner}"
