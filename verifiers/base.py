"""What every verifier shares: input checks, the clear errors they raise, and a small cache of prompt encodings.

The contract itself is the class ``samplers.protocols.Verifier``. Images are ComfyUI IMAGEs:
float ``[n, H, W, 3]`` in 0..1. Scores that come out non-finite are passed on as they are: the search counts them and
keeps such particles from winning.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..chat.syntax import plain
from ..samplers.protocols import ScoreContext, SearchError, Values, Verifier

Network = TypeVar("Network", bound=nn.Module)

# Far above any overshoot of a decoder, far below 255: tells 8-bit values from mere over-bright pixels.
_PLAUSIBLE_MAXIMUM = 16.0


class VerifierError(SearchError):
    """Bad input of a verifier, or weights that cannot be used; the message names what is wrong and what is right."""


def check_images(images: Tensor, alpha: bool = False) -> Tensor:
    """Images as verifiers work on them: floating point ``[n, H, W, 3]``, the graph of autograd intact.

    Grey is repeated and alpha is dropped, because nodes of ComfyUI deliver both.

    Args:
        images: float ``[n, H, W, C]`` in 0..1 with C = 3 (RGB), 4 (RGBA) or 1 (grey).
        alpha: keep a fourth channel; the result may then be ``[n, H, W, 4]``.

    Raises:
        VerifierError: no tensor, another shape, an integer type, or values on the 0..255 scale.
    """
    if not isinstance(images, Tensor):
        raise VerifierError(f"images is a {type(images).__name__}: it must be a tensor [n, H, W, 3] in 0..1")
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise VerifierError(f"images has shape {list(images.shape)}: it must be [n, H, W, 3] (4: alpha, 1: grey)")
    if min(images.shape[:3]) < 1:
        raise VerifierError(f"images has shape {list(images.shape)}: there is no image in it")
    if not images.is_floating_point():
        raise VerifierError(f"images has type {images.dtype}: it must be floating point in 0..1 (divide bytes by 255)")
    if images.shape[-1] == 4 and not alpha:
        images = images[..., :3]
    elif images.shape[-1] == 1:
        images = images.expand(*images.shape[:-1], 3)
    largest = float(images.detach().amax())
    if not math.isfinite(largest):  # a broken pixel is that image's own trouble; only then a copy is worth it
        largest = float(images.detach().nan_to_num(0.0, 0.0, 0.0).amax())
    if largest > _PLAUSIBLE_MAXIMUM:
        raise VerifierError(f"images reaches {largest:g}: values must lie in 0..1 (divide 8-bit values by 255)")
    return images


def check_prompts(prompts: Sequence[str] | str, n: int, name: str, required: bool = True) -> list[str]:
    """One prompt per image, as ``chat.syntax.plain`` says it; a single string is used for all of them.

    Args:
        prompts: ``n`` strings, or one.
        n: number of images.
        name: verifier, for the message.
        required: whether the verifier reads the prompt; if not, an empty one is fine.

    Raises:
        VerifierError: wrong count, no string, or an empty prompt where one is required.
    """
    listed = [prompts] * n if isinstance(prompts, str) else list(prompts)
    if len(listed) != n:
        raise VerifierError(f"prompts has {len(listed)} entries for {n} images: give one per image, or a single string")
    for index, prompt in enumerate(listed):
        if not isinstance(prompt, str):
            raise VerifierError(f"prompts[{index}] is a {type(prompt).__name__}: it must be a string")
        listed[index] = plain(prompt)
        if required and not listed[index].strip():
            reason = "is empty" if not prompt.strip() else f"is {prompt!r}, in which nothing is left to be seen"
            raise VerifierError(f"prompts[{index}] {reason}: verifier {name!r} compares images with their prompt")
    return listed


def module_device(module: nn.Module) -> torch.device:
    """Device of a module's first parameter; the CPU if it has none."""
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def freeze(module: Network) -> Network:
    """The module in evaluation mode with weights that take no gradient (gradients to the images still flow)."""
    return module.eval().requires_grad_(False)


def image_side(config: Any) -> int:
    """Pixels per side of the picture that a tower of this configuration (of transformers) sees."""
    return int(config.image_size)


class WrappedVerifier(Verifier):
    """A verifier around another one, whose attributes it has; subclasses change how it is asked."""

    def __init__(self, inner: Verifier):
        self.inner = inner
        self.name, self.differentiable, self.relative = inner.name, inner.differentiable, inner.relative
        self.rejects, self.needs_prompt, self.default_scale = inner.rejects, inner.needs_prompt, inner.default_scale
        self.members, self.module, self.bytes_per_image = (inner,), inner.module, inner.bytes_per_image
        self.sees, self.frames, self.least_frames = inner.sees, inner.frames, inner.least_frames
        self.compares, self.needs_source = inner.compares, inner.needs_source
        self.pairwise = inner.pairwise

    def score(self, images: Tensor, prompts: Sequence[str], context: ScoreContext | None = None) -> Tensor:
        """See ``Verifier.score``."""
        return self.judge(images, prompts, context).score

    def judge(self, images: Tensor, prompts: Sequence[str], context: ScoreContext | None = None) -> Values:
        """See ``Verifier.judge``."""
        return self.inner.judge(images, prompts, context)

    def prefer(
        self, first: Tensor, second: Tensor, prompts: Sequence[str], context: ScoreContext | None = None
    ) -> Tensor:
        """See ``Verifier.prefer``."""
        return self.inner.prefer(first, second, prompts, context)

    def wants_all(self, context: ScoreContext) -> bool:
        """See ``Verifier.wants_all``."""
        return self.inner.wants_all(context)


class PromptCache:
    """Encodings of prompts, kept on the CPU, least recently used dropped first.

    Args:
        encode: list of distinct prompts ``[k]`` -> tensor ``[k, ...]``; called without gradients.
        size: number of prompts kept.
    """

    def __init__(self, encode: Callable[[list[str]], Tensor], size: int = 256):
        self._encode, self._size = encode, size
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, prompts: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """Encodings ``[n, ...]`` of ``prompts``, in order, on ``device``."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._kept]
        fresh: dict[str, Tensor] = {}
        if missing:
            with torch.no_grad():
                fresh = dict(zip(missing, self._encode(missing).cpu(), strict=True))
        rows = []
        for prompt in prompts:
            row = fresh[prompt] if prompt in fresh else self._kept[prompt]
            self._kept[prompt] = row
            self._kept.move_to_end(prompt)
            rows.append(row)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)
        # stack copies, so a row that was encoded under inference mode can be saved for a backward pass outside of it
        return torch.stack(rows).to(device)
