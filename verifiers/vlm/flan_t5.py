"""VQAScore by CLIP-FlanT5, the model of its paper (Lin et al. 2024, arXiv 2404.01291), without its authors' package.

CLIP ViT-L/14 at 336 pixels sees the image, two linear layers bring its patches into the word space of a Flan-T5, which
reads them between the words of the question. The score is ``exp(-mean cross-entropy)`` of the answer "Yes" and the end
of sentence, that is the square root of their joint probability.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...samplers.protocols import ScoreContext, Verifier
from ..base import VerifierError, check_images, check_prompts, freeze, module_device
from ..caching import ImageCache
from ..clip_weights import read_weights
from ..preprocessing import CLIP_MEAN, Preprocessing
from ..text import Tokens

if TYPE_CHECKING:
    from transformers import T5Config

REPOSITORY = "zhiqiulin/clip-flant5-xl"
BEFORE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: "
)
AFTER = '\nDoes this figure show "{}"? Please answer yes or no. ASSISTANT: '
ANSWER = "Yes"
CONTEXT = 2048  # tokens that the model was trained on
_TIED = ("embed_tokens.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


class CLIPFlanT5(nn.Module):
    """The network: ``vision``, ``projector`` and ``t5``.

    Args:
        vision: options of ``transformers.CLIPVisionConfig``.
        text: a ``transformers.T5Config``.
    """

    def __init__(self, vision: dict[str, Any], text: T5Config):
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel, T5ForConditionalGeneration

        self.vision = CLIPVisionModel(CLIPVisionConfig(**vision))
        width = int(self.vision.config.hidden_size)
        self.projector = nn.Sequential(nn.Linear(width, text.d_model), nn.GELU(), nn.Linear(text.d_model, text.d_model))
        self.t5 = T5ForConditionalGeneration(text)

    def see(self, pixels: Tensor) -> Tensor:
        """Normalised pixels ``[n, 3, s, s]`` -> ``[n, patches, d_model]``: patches of the last layer but one."""
        pixels = pixels.to(next(self.projector.parameters()).dtype)
        states = self.vision(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
        return self.projector(states[:, 1:])

    def forward(self, pixels: Tensor, before: Tensor, after: Sequence[Tensor], answer: Tensor) -> Tensor:
        """Scores float32 ``[n]``.

        Args:
            pixels: ``[n, 3, s, s]``.
            before: token ids in front of the image, the same for all.
            after: token ids behind it, one tensor per image.
            answer: token ids of the answer with the end of sentence.
        """
        words = self.t5.get_input_embeddings()
        seen = self.see(pixels)
        rows = [torch.cat([words(before), patches, words(ids)]) for patches, ids in zip(seen, after, strict=True)]
        mask = nn.utils.rnn.pad_sequence([row.new_ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
        states = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        labels = answer.expand(len(rows), -1)
        told = self.t5.prepare_decoder_input_ids_from_labels(labels)
        logits = self.t5(inputs_embeds=states, attention_mask=mask, decoder_input_ids=told).logits.float()
        loss = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)
        return (-loss).exp()


def to_modules(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released tensors under the names of ``CLIPFlanT5``: T5's own, ``mm_projector.*``, ``vision_tower.*``."""
    converted = {}
    for key, value in state.items():
        if key.startswith("vision_tower."):
            key = "vision." + key.removeprefix("vision_tower.").removeprefix("vision_tower.")
        elif key.startswith("mm_projector."):
            key = "projector." + key.removeprefix("mm_projector.")
        elif key in _TIED:
            continue  # copies of shared.weight
        else:
            key = f"t5.{key}"
        converted[key] = value
    return converted


class CLIPFlanT5Verifier(Verifier):
    """VQAScore of the paper, 0 to 1.

    Args:
        model: a ``CLIPFlanT5`` with weights.
        tokenizer: of Flan-T5.
        batch: images per forward pass.
        quantize: round images to 8 bit before scoring, for parity with published numbers.
        name: for reports.
    """

    differentiable = True
    needs_prompt = True
    default_scale = (0.6, 0.25)
    bytes_per_image = 2**30

    def __init__(
        self, model: CLIPFlanT5, tokenizer: Any, batch: int = 4, quantize: bool = False, name: str = "vqa_flant5"
    ):
        self.module, self.tokenizer, self.name = freeze(model), tokenizer, name
        vision: Any = model.vision.config
        self.prepare = Preprocessing(size=int(vision.image_size), quantize=quantize)
        self._images = ImageCache(batch=batch)
        self._length = Tokens(tokenizer, CONTEXT, name)
        self._before, self._answer = self._ids(BEFORE), self._ids(ANSWER)
        self._after: dict[str, Tensor] = {}

    def score(self, images: Tensor, prompts: Sequence[str] | str, context: ScoreContext | None = None) -> Tensor:
        """Scores float32 ``[n]`` of ``images [n, H, W, 3]`` in 0..1; see ``samplers.protocols.Verifier``."""
        images = check_images(images)
        prompts = check_prompts(prompts, len(images), self.name)
        device = module_device(self.module)
        pixels = self.prepare(squared(images.to(device)))
        before, answer = self._before.to(device), self._answer.to(device)

        def ask(rows: Tensor) -> Tensor:
            after = [self._question(prompts[row]).to(device) for row in rows.tolist()]
            return self.module(pixels[rows.to(device)], before, after, answer)

        return self._images(pixels, ask, prompts)

    def _question(self, prompt: str) -> Tensor:
        if prompt not in self._after:
            ids = self._ids(AFTER.format(prompt))
            self._length.notice(len(self._before) + 1 + len(ids))
            self._after[prompt] = ids[: CONTEXT - len(self._before) - 1]  # the image counts as one token
        return self._after[prompt]

    def _ids(self, text: str) -> Tensor:
        return torch.tensor(self.tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)


def squared(images: Tensor) -> Tensor:
    """Images ``[n, H, W, 3]`` in the middle of a square of CLIP's mean colour, rounded to 8 bit as published."""
    height, width = images.shape[1:3]
    side = max(height, width)
    if height == width:
        return images
    colour = images.new_tensor([int(255 * value) / 255 for value in CLIP_MEAN])
    top, left = (side - height) // 2, (side - width) // 2
    square = colour.expand(len(images), side, side, 3).clone()
    square[:, top : top + height, left : left + width] = images
    return square


def is_clip_flan_t5(folder: str | Path) -> bool:
    """Whether a Hugging Face folder says that it holds CLIP-FlanT5: its ``config.json`` describes a T5."""
    try:
        settings = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        return "t5" in str(settings.get("model_type", "")).lower()
    except (OSError, ValueError, AttributeError):
        return False


def load_clip_flant5(
    folder: str | Path, tokenizer: str | Path | None = None, dtype: torch.dtype | None = None, **options
) -> CLIPFlanT5Verifier:
    """CLIP-FlanT5 from a local Hugging Face folder. Nothing is downloaded.

    Args:
        folder: ``config.json`` and all weights of ``zhiqiulin/clip-flant5-xl`` or ``-xxl``.
        tokenizer: folder with Flan-T5's ``tokenizer.json`` if it lies elsewhere.
        dtype: bfloat16 or float32, None for that of the file (T5 overflows in float16).
        options: of ``CLIPFlanT5Verifier``.

    Raises:
        VerifierError: something is missing, or is not this model.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files or not (folder / "config.json").is_file():
        raise VerifierError(
            f"folder {folder} lacks config.json or weights: it must hold {REPOSITORY} (6.3 GB, Apache-2.0), e.g. "
            f'`hf download {REPOSITORY} --local-dir "{folder}"`'
        )
    from transformers import AutoTokenizer, T5Config

    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings.pop("model_type", None)
    state = to_modules(read_weights(files))
    if "vision.vision_model.embeddings.patch_embedding.weight" not in state or "projector.0.weight" not in state:
        raise VerifierError(f"{folder} holds no CLIP-FlanT5: vision_tower.* or mm_projector.* are not in its weights")
    with torch.device("meta"):
        model = CLIPFlanT5(vision_settings(state), T5Config.from_dict(settings))
    fill(model, state, folder, dtype, tied=settings.get("tie_word_embeddings", True))
    try:
        words = AutoTokenizer.from_pretrained(str(tokenizer or folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise VerifierError(f"folder {tokenizer or folder} lacks Flan-T5's tokenizer (tokenizer.json)") from error
    return CLIPFlanT5Verifier(model, words, **options)


def vision_settings(state: dict[str, Tensor]) -> dict[str, Any]:
    """Options of ``CLIPVisionConfig`` from the shapes of the tower's tensors."""
    prefix = "vision.vision_model."
    patches = state[f"{prefix}embeddings.patch_embedding.weight"]
    places = state[f"{prefix}embeddings.position_embedding.weight"].shape[0] - 1
    layers = f"{prefix}encoder.layers."
    return {
        "hidden_size": patches.shape[0],
        "intermediate_size": state[f"{layers}0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": 1 + max(int(k[len(layers) :].split(".")[0]) for k in state if k.startswith(layers)),
        "num_attention_heads": max(1, patches.shape[0] // 64),
        "patch_size": patches.shape[-1],
        "image_size": round(places**0.5) * patches.shape[-1],
        "hidden_act": "quick_gelu",
    }


def fill(
    model: CLIPFlanT5, state: dict[str, Tensor], folder: Path, dtype: torch.dtype | None, tied: bool = False
) -> None:
    """Put converted tensors into a model made on the meta device, strictly.

    ``tied``: whether the words written are those read, as in T5; Flan-T5 keeps an ``lm_head`` of its own.

    Raises:
        VerifierError: tensors are missing, left over or of another shape.
    """
    wanted = model.state_dict().keys()
    if not any(key.startswith("vision.vision_model.") for key in wanted):  # newer transformers drops a level
        state = {key.replace("vision.vision_model.", "vision."): value for key, value in state.items()}
    shared = state.get("t5.shared.weight")
    if shared is not None:
        copies = ["t5.encoder.embed_tokens.weight", "t5.decoder.embed_tokens.weight"]
        copies += ["t5.lm_head.weight"] * tied
        state |= {key: shared for key in copies if key in wanted}
    dtype = dtype or (torch.float32 if shared is None or shared.dtype == torch.float16 else shared.dtype)
    try:
        model.load_state_dict({key: value.to(dtype) for key, value in state.items()}, assign=True)
    except RuntimeError as error:
        raise VerifierError(f"{folder} holds no CLIP-FlanT5 that can be used: {error}") from error
    places = getattr(model.vision, "vision_model", model.vision).embeddings
    # 0, 1, 2 .. are no weights; transformers makes them itself, but not on the meta device
    places.register_buffer("position_ids", torch.arange(places.num_positions)[None], persistent=False)
    # by hand: newer transformers' own tie_weights would take away Flan-T5's lm_head
    model.t5.encoder.embed_tokens.weight = model.t5.decoder.embed_tokens.weight = model.t5.shared.weight
