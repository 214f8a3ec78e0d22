"""CLIPScore on real CLIP weights: the cosine between an image and its prompt.

    verifier = load_clip_score_folder("models/verifiers/openai--clip-vit-large-patch14")
    verifier = load_clip_score_files(["models/clip_vision/clip-vit-large-patch14.safetensors"], tokenizer=folder)

Hessel et al. 2021, arXiv 2104.08718; FK steering and DAS use the raw cosine of ViT-L/14. One ``transformers.CLIPModel``
serves every CLIP in the Hugging Face key layout; images go through ``preprocessing.py``, never through a processor, so
that the score can be differentiated.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...samplers.protocols import ScoreContext, Verifier
from ..base import PromptCache, VerifierError, check_prompts, freeze, image_side, module_device
from ..caching import ImageCache
from ..clip_weights import build_clip, read_weights
from ..preprocessing import Preprocessing
from ..text import Tokens

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

log = logging.getLogger("testtime")

MODES = ("cos", "x100", "hessel")
_HESSEL_PREFIX = "A photo depicts "  # part of the published metric, easily missed


class CLIPTowers(nn.Module):
    """Both towers of a ``CLIPModel`` behind a plain module, whose ``device`` a host may set."""

    half_safe = ("clip",)

    def __init__(self, clip: CLIPModel):
        super().__init__()
        self.clip = clip

    @property
    def size(self) -> int:
        """Pixels per side that the image tower sees."""
        return image_side(self.clip.config.vision_config)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Normalised pixels ``[n, 3, size, size]`` -> unit vectors ``[n, d]`` float32 (float64 for a float64 tower)."""
        return _unit(self.clip.get_image_features(pixel_values=pixels.to(self.clip.dtype)))

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and attention mask ``[n, tokens]`` -> unit vectors ``[n, d]``."""
        return _unit(self.clip.get_text_features(input_ids=ids, attention_mask=mask))


def _unit(features) -> Tensor:
    # transformers 5 returns an output object whose pooler_output is what version 4 returned itself
    features = getattr(features, "pooler_output", features)
    return F.normalize(features if features.dtype == torch.float64 else features.float(), dim=-1)


class CLIPScoreVerifier(Verifier):
    """CLIPScore.

    Args:
        clip: a ``transformers.CLIPModel`` with weights.
        tokenizer: its CLIP tokenizer.
        mode: "cos" (raw cosine, about .15 to .35), "x100", or "hessel" (2.5 max(cos, 0), prompt after "A photo
            depicts ").
        quantize: round to 8 bit where the published pipeline does, for parity with published numbers.
        name: for reports.

    Raises:
        VerifierError: unknown mode.
    """

    differentiable = True
    needs_prompt = True

    def __init__(
        self,
        clip: CLIPModel,
        tokenizer: CLIPTokenizer,
        mode: str = "cos",
        quantize: bool = False,
        name: str = "clip_score",
    ):
        if mode not in MODES:
            raise VerifierError(f"mode is {mode!r}: choose one of {', '.join(MODES)}")
        self.module = freeze(CLIPTowers(clip))
        self.tokenizer, self.mode, self.name = tokenizer, mode, name
        # Hessel's own code stands on OpenAI's package and torchvision, everybody else's on transformers' processor.
        hessel = mode == "hessel"
        self.prepare = Preprocessing(
            size=self.module.size, centre="round" if hessel else "floor", quantize=quantize, weigh_alpha=hessel
        )
        self.default_scale = {"cos": (0.26, 0.03), "x100": (26.0, 3.0), "hessel": (0.65, 0.075)}[mode]
        text: Any = clip.config.text_config
        length = int(text.max_position_embeddings)
        self._tokens = Tokens(tokenizer, length, name, clean=hessel)
        self._texts, self._images = PromptCache(self._encode), ImageCache()

    def score(self, images: Tensor, prompts: Sequence[str] | str, context: ScoreContext | None = None) -> Tensor:
        """Scores ``[n]`` of ``images [n, H, W, 3]`` in 0..1; see ``samplers.protocols.Verifier``."""
        device = module_device(self.module)
        pixels = self.prepare(images, device)
        prompts = self._asked(check_prompts(prompts, len(pixels), self.name))
        seen = self._images(pixels, lambda rows: self.module.encode_image(pixels[rows.to(device)]))
        cosine = (seen * self._texts(prompts, device)).sum(-1)
        if self.mode == "x100":
            return 100.0 * cosine
        # clamp would turn a NaN pixel's score into a number on some devices; relu keeps it
        return 2.5 * torch.relu(cosine) if self.mode == "hessel" else cosine

    def token_ids(self, prompts: Sequence[str]) -> Tensor:
        """int64 ``[n, tokens]``: what the text tower reads of ``prompts``, padding included."""
        return self._tokens(self._asked(check_prompts(prompts, len(prompts), self.name)))[:, 0]

    def _asked(self, prompts: list[str]) -> list[str]:
        return [_HESSEL_PREFIX + prompt for prompt in prompts] if self.mode == "hessel" else prompts

    def _encode(self, prompts: list[str]) -> Tensor:
        ids, mask = self._tokens(prompts).to(module_device(self.module)).unbind(1)
        return self.module.encode_text(ids, mask)


def load_clip_score_folder(folder: str | Path, tokenizer: str | Path | None = None, **options) -> CLIPScoreVerifier:
    """CLIPScore of a local Hugging Face folder (config.json, weights, tokenizer files). Nothing is downloaded.

    Args:
        folder: the folder.
        tokenizer: folder with ``vocab.json`` and ``merges.txt`` if they lie elsewhere.
        options: of ``CLIPScoreVerifier``.

    Raises:
        VerifierError: folder or files missing, or weights that are no CLIP.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise VerifierError(
            f"folder {folder} has no config.json: it must hold a CLIP model as on the Hugging Face hub, e.g. "
            f'`hf download openai/clip-vit-large-patch14 --local-dir "{folder}"`'
        )
    from transformers import CLIPModel

    try:
        clip = CLIPModel.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise VerifierError(f"the CLIP model in {folder} cannot be loaded: {error}") from error
    options.setdefault("name", f"clip_score({folder.name})")
    return CLIPScoreVerifier(clip.float(), load_tokenizer(tokenizer or folder), **options)


def load_clip_score_files(
    files: Sequence[str | Path], tokenizer: str | Path, hidden_act: str | None = None, **options
) -> CLIPScoreVerifier:
    """CLIPScore of one file with both towers, or of an image tower and a text tower in two files.

    Args:
        files: safetensors (or ``.bin``/``.pt`` loaded without unpickling code) in Hugging Face key layout.
        tokenizer: folder with CLIP's ``vocab.json`` and ``merges.txt``.
        hidden_act: "quick_gelu" or "gelu"; None decides by size (``clip_weights.infer_config``).
        options: of ``CLIPScoreVerifier``.

    Raises:
        VerifierError: a file that is missing, damaged, in another layout, or lacks one of the towers.
    """
    paths = [Path(file) for file in files]
    clip = build_clip(read_weights(paths), " + ".join(path.name for path in paths), hidden_act)
    options.setdefault("name", f"clip_score({paths[0].stem})")
    return CLIPScoreVerifier(clip, load_tokenizer(tokenizer), **options)


def load_tokenizer(folder: str | Path) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer from a local folder.

    Raises:
        VerifierError: its files are not there.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
        if missing:
            raise VerifierError(f"folder {folder} lacks CLIP's tokenizer: {' and '.join(missing)} must be in it")
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
