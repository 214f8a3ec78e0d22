"""HPSv3 (Ma et al. 2025, arXiv 2508.03789): human preference by a vision-language model, over a wide range of images.

A Qwen2-VL-7B reads the picture, an instruction with the prompt in it, and a mark at its end; a small network turns the
state at the mark into mean and spread of the preference. The mean is the score.

What is easily lost: the published forward pass hands in embeddings and never asks for Qwen2-VL's positions of rows and
columns, so every token has a plain position, 0, 1, 2 .. on all three axes. And the state dict has names from before
transformers 4.52.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...samplers.protocols import ScoreContext, Values, Verifier
from ..base import VerifierError, check_images, check_prompts, freeze, module_device
from ..caching import ImageCache
from ..clip_weights import read_weights
from ..pictures import finite_rows, to_bytes
from ..pillow import resized
from ..video.video_reward import CELL, MERGED, frame_size, in_patches, todays_name
from ..video.video_reward_files import missing_base, network_of, texts_in, tokenizer_of

NAME, REPOSITORY, FILE, BASE = "HPSv3", "MizzenAI/HPSv3", "HPSv3.safetensors", "Qwen/Qwen2-VL-7B-Instruct"
TEXTS_FILE, TEXTS = "data_collator_qwen.py", ("INSTRUCTION", "prompt_with_special_token")
TEXTS_FROM = "https://github.com/MizzenAI/HPSv3 (hpsv3/dataset)"
MARK = "<|Reward|>"
PIXELS = 256 * CELL**2
"""Of a picture, least and most."""
USUAL = (6.0, 4.0)
"""Mean and spread of scores: the authors print means from -0.2 (SD 2) to 10.4 (FLUX.1 dev)."""


class HPSv3Model(nn.Module):
    """Qwen2-VL without its language head, and the network behind the state at the mark.

    Args:
        model: a ``transformers.Qwen2VLModel``.
        head: ``rm_head`` of the published file: width -> 1024 -> 16 -> 2, in float32.
        mark: id of ``MARK``; image: id of the token that stands for a cell of the picture.
    """

    half_safe = ("model",)

    def __init__(self, model: nn.Module, head: nn.Module, mark: int, image: int):
        super().__init__()
        self.model, self.head, self.mark, self.image = model, head, mark, image

    def forward(self, ids: Tensor, patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Mean and log of the spread, float32 ``[2]``, of one picture.

        Args:
            ids: int64 ``[tokens]``; patches: ``[h w, values]``; grid: 1, h, w in patches.
        """
        states = self.model(
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids)[None],
            position_ids=torch.arange(len(ids), device=ids.device).expand(3, 1, -1),
            pixel_values=patches.to(next(self.model.parameters()).dtype),
            image_grid_thw=torch.tensor([grid], device=ids.device),
            use_cache=False,
        ).last_hidden_state[0]
        return self.head(states[int((ids == self.mark).nonzero())].float())


def head_of(state: dict[str, Tensor]) -> nn.Sequential:
    """The published network from ``rm_head.{0,3,5}``, which are taken out of ``state``; KeyError where one is missing.

    Behind 0 and 3 stand ReLUs, behind the first one dropout, which is off here.
    """
    layers: list[nn.Module] = []
    for number in (0, 3, 5):
        weight, bias = (state.pop(f"rm_head.{number}.{part}").float() for part in ("weight", "bias"))
        layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class HPSv3Verifier(Verifier):
    """HPSv3's mean preference; the second number of its head is kept in the trace as ``spread``.

    Args:
        model: a ``HPSv3Model``.
        tokenizer: of Qwen2-VL, with its chat template; it knows ``MARK``.
        instruction: with ``{text_prompt}`` and ``MARK`` in it, each once.

    Raises:
        VerifierError: an instruction that is another one.
    """

    name = "hps_v3"
    differentiable = False
    needs_prompt = True
    default_scale = USUAL
    bytes_per_image = 2 * 2**30

    def __init__(self, model: HPSv3Model, tokenizer: Any, instruction: str):
        if any(instruction.count(part) != 1 for part in ("{text_prompt}", MARK)):
            raise VerifierError(f"instruction must hold {{text_prompt}} and {MARK}, each once")
        self.module, self.tokenizer, self.instruction = freeze(model), tokenizer, instruction
        self._signs = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}, key=len, reverse=True)
        self._images = ImageCache(batch=1)

    def score(self, images: Tensor, prompts: Sequence[str] | str, context: ScoreContext | None = None) -> Tensor:
        """Scores float32 ``[n]`` of ``images [n, H, W, 3]`` in 0..1; NaN for one with a pixel that is none."""
        return self.judge(images, prompts, context).score

    def judge(self, images: Tensor, prompts: Sequence[str] | str, context: ScoreContext | None = None) -> Values:
        """``score``, and the spread that the model expects."""
        images = check_images(images)
        prompts = check_prompts(prompts, len(images), self.name)
        good, pixels = finite_rows(images), to_bytes(images)
        found = self._images(pixels, lambda rows: self._ask(pixels[rows], [prompts[i] for i in rows.tolist()]), prompts)
        found = found.masked_fill(~good[:, None], torch.nan)
        return Values(found[:, 0], None, {f"{self.name}.spread": found[:, 1]})

    def _ask(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """What the head says ``[k, 2]``, one picture per pass."""
        device, found = module_device(self.module), []
        for picture, prompt in zip(pixels, prompts, strict=True):
            patches, grid = self.patches(picture)
            ids = self.ids(prompt, math.prod(grid) // MERGED**2)
            found.append(self.module(ids.to(device), patches.to(device), grid))
        return torch.stack(found)

    @staticmethod
    def patches(picture: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """Patches and grid of a picture, uint8 ``[H, W, 3]``, brought to ``PIXELS`` by Pillow's resize."""
        size = frame_size(picture.shape[0], picture.shape[1], least=PIXELS, most=PIXELS)
        return in_patches(resized(picture.cpu().movedim(-1, 0)[None].double() / 255, size, "bicubic").float() * 255)

    def ids(self, prompt: str, cells: int) -> Tensor:
        """Token ids int64 ``[tokens]`` of the conversation about a picture of so many cells."""
        for sign in self._signs:  # of a prompt, they would be read as what they stand for
            prompt = prompt.replace(sign, "")
        said = [{"type": "image"}, {"type": "text", "text": self.instruction.replace("{text_prompt}", prompt)}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": said}], tokenize=False, add_generation_prompt=True
        )
        ids = torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        place = ids.tolist().index(self.module.image)
        return torch.cat([ids[:place], torch.full((cells,), self.module.image), ids[place + 1 :]])


def load_hps_v3(folder: str | Path, base: str | Path) -> HPSv3Verifier:
    """HPSv3 from its folder and that of the model which it was made from. Nothing is downloaded, no code is run.

    Args:
        folder: with ``HPSv3.safetensors`` and the authors' ``data_collator_qwen.py``, out of which the instruction is
            read.
        base: of Qwen2-VL-7B-Instruct: configuration and tokenizer; its weights are not needed.

    Raises:
        VerifierError: a file is missing, incomplete or another one, with where to get it.
    """
    folder, base = Path(folder), Path(base)
    if not (folder / FILE).is_file():
        raise VerifierError(
            f"there is no file {folder / FILE}: HPSv3 (16.6 GB) belongs there, e.g. "
            f'`hf download {REPOSITORY} --local-dir "{folder}"`'
        )
    instruction = "".join(texts_in(folder / TEXTS_FILE, TEXTS, NAME, TEXTS_FROM))
    without = partial(missing_base, base, what=f"{BASE} (tokenizer and config.json)", repository=BASE)
    tokenizer = tokenizer_of(base, [MARK], without)
    state = {todays_name(key): value for key, value in read_weights([folder / FILE]).items()}
    try:
        head = head_of(state)
    except KeyError as error:
        raise VerifierError(f"{folder / FILE} has no {error.args[0]}: it is not {REPOSITORY}") from error
    state.pop("lm_head.weight", None)
    model = network_of(base, state, folder, NAME, BASE, without)
    mark = tokenizer.convert_tokens_to_ids(MARK)
    rows = model.get_input_embeddings().weight.shape[0]
    if mark >= rows:
        raise VerifierError(
            f"the weights in {folder} know {rows} tokens and the mark is {mark}: base is not the {BASE} that they were "
            f"made from"
        )
    return HPSv3Verifier(HPSv3Model(model, head, mark, model.config.image_token_id), tokenizer, instruction)
