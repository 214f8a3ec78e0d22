"""The two verifiers of the embedded family: ShapesCLIP and the preference model of ``models/tiny``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..samplers.protocols import ScoreContext, Verifier
from .base import PromptCache, check_images, check_prompts, freeze, module_device


class _ShapesVerifier(Verifier):
    """Common part: images and prompts checked and brought to the network's layout and device."""

    name = ""
    differentiable = True
    needs_prompt = True

    def __init__(self, module: nn.Module):
        self.module = freeze(module)

    def score(self, images: Tensor, prompts: Sequence[str] | str, context: ScoreContext | None = None) -> Tensor:
        """Scores ``[n]`` float32 of ``images [n, H, W, 3]`` in 0..1; see ``samplers.protocols.Verifier``."""
        images = check_images(images)
        prompts = check_prompts(prompts, len(images), self.name)
        device = module_device(self.module)
        return self._score(images.to(device).float().movedim(-1, 1), prompts)

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        raise NotImplementedError


class ShapesCLIPVerifier(_ShapesVerifier):
    """Cosine between image and prompt in ShapesCLIP's space, in -1..1.

    Args:
        module: a ``models.tiny.clip.ShapesCLIP``; None loads the trained one.

    Raises:
        FileNotFoundError, ValueError: the weights are missing or damaged.
    """

    name = "shapes_clip"
    default_scale = (0.4, 0.2)

    def __init__(self, module: nn.Module | None = None):
        from ..models.tiny.clip import load_clip

        super().__init__(load_clip() if module is None else module)
        self._texts = PromptCache(self._encode)

    def _encode(self, prompts: list[str]) -> Tensor:
        from ..models.tiny.vocabulary import encode_batch

        return self.module.encode_text(encode_batch(prompts).to(module_device(self.module)))

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        text = self._texts(prompts, images.device)
        return (self.module.encode_image(images) * text).sum(-1)


class ShapesPreferenceVerifier(_ShapesVerifier):
    """Learned reward of the preference model, about -1.25 (wrong) .. +1.25 (right).

    Image and prompt meet inside the network, so only the word ids of a prompt can be kept.

    Args:
        module: a ``models.tiny.preference.PreferenceModel``; None loads the trained one.

    Raises:
        FileNotFoundError, ValueError: the weights are missing or damaged.
    """

    name = "shapes_preference"
    default_scale = (0.0, 0.7)

    def __init__(self, module: nn.Module | None = None):
        from ..models.tiny.preference import load_preference
        from ..models.tiny.vocabulary import encode_batch

        super().__init__(load_preference() if module is None else module)
        self._tokens = PromptCache(encode_batch)

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.module(images, self._tokens(prompts, images.device))


class ShapesFeatures:
    """Patch tokens of ShapesCLIP's image tower, for clustering: what DINOv2's are for photographs.

    Args:
        module: a ``models.tiny.clip.ShapesCLIP``; None loads the trained one.
    """

    name = "shapes_clip"

    def __init__(self, module: nn.Module | None = None):
        from ..models.tiny.clip import load_clip

        self.module: Any = freeze(load_clip() if module is None else module)

    def tokens(self, images: Tensor) -> Tensor:
        """``[n, 64, 160]`` of ``images [n, H, W, 3]`` in 0..1, row by row of an 8 x 8 grid."""
        images = check_images(images).to(module_device(self.module))
        return self.module.image_tokens(images.float().movedim(-1, 1))
