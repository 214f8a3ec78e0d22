"""Are the objects of the prompt there, as many, in their colours and places? A detector looks, GenEval's rules decide.

verifier = load_objects("models/verifiers/google--owlv2-base-patch16-ensemble", clip="models/verifiers/...clip...")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ...samplers.protocols import ScoreContext, Verifier
from ..base import PromptCache, VerifierError, check_images, check_prompts, freeze, module_device
from ..caching import ImageCache
from ..image_text.clip_score import CLIPScoreVerifier, load_clip_score_folder
from ..pictures import finite_rows, to_bytes
from ..preprocessing import Preprocessing
from .detectors import Detector, load_detector
from .geneval import Found, Rules, count_error, graded, strict, thin_out
from .requirements import COLOURS, Requirement, parse

MODES = ("graded", "strict", "count")
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
_SHARPNESS = 100.0  # CLIP's logit scale


class ColourReader(nn.Module):
    """Tells an object's colour by CLIP, as GenEval does: the crop against descriptions in ten colours.

    Args:
        clip: a CLIPScore verifier, for its towers and tokenizer.
    """

    def __init__(self, clip: CLIPScoreVerifier):
        super().__init__()
        self.towers = clip.module
        self.prepare = Preprocessing(size=clip.module.size)
        self._texts = PromptCache(clip._encode, size=1024)

    def forward(self, pixels: Tensor, name: str, boxes: Tensor) -> Tensor:
        """Probabilities of ``COLOURS`` ``[m, 10]`` of the boxes ``[m, 4]`` in uint8 ``pixels [H, W, 3]``."""
        device = module_device(self.towers)
        seen = torch.cat([self.towers.encode_image(self.prepare(crop.to(device))) for crop in crops(pixels, boxes)])
        told = torch.stack([self._texts(self._descriptions(colour, name), device).mean(0) for colour in COLOURS])
        told = torch.nn.functional.normalize(told, dim=-1)
        return torch.softmax(_SHARPNESS * seen @ told.T, -1).cpu()

    @staticmethod
    def _descriptions(colour: str, name: str) -> list[str]:
        return [template.format(colour=colour, name=name) for template in TEMPLATES]


def crops(pixels: Tensor, boxes: Tensor) -> list[Tensor]:
    """IMAGEs ``[1, h, w, 3]`` in 0..1 of the boxes, at least one pixel each."""
    height, width = pixels.shape[:2]
    cut = []
    for left, top, right, bottom in boxes.round().long().tolist():
        left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
        right, bottom = min(max(right, left + 1), width), min(max(bottom, top + 1), height)
        cut.append(pixels[None, top:bottom, left:right].float() / 255)
    return cut


class _Networks(nn.Module):
    """Detector and colour reader, for a host that moves them together."""

    def __init__(self, detector: Detector, colours: ColourReader | None):
        super().__init__()
        self.detector, self.colours = detector, colours


class ObjectsVerifier(Verifier):
    """Objects, their number, colours and places.

    Args:
        detector: what looks for them.
        colours: what tells colours; only needed for prompts that name some.
        mode: "graded" (0 to 1, for steering), "strict" (GenEval's verdict, 0 or 1), or "count" (minus the squared error
            of the numbers, as RBF uses it).
        objects: what to look for, instead of what the prompts say; see ``requirements.parse``.
        rules: when a box counts; None takes those for open-vocabulary detectors, ``geneval.OFFICIAL`` the benchmark's.
        batch: images per forward pass.
        name: for reports.

    Raises:
        VerifierError: unknown mode, or objects that cannot be read.
    """

    differentiable = False
    bytes_per_image = 2**30

    def __init__(
        self,
        detector: Detector,
        colours: ColourReader | None = None,
        mode: str = "graded",
        objects: str = "",
        rules: Rules | None = None,
        batch: int = 2,
        name: str = "objects",
    ):
        if mode not in MODES:
            raise VerifierError(f"mode is {mode!r}: choose one of {', '.join(MODES)}")
        self.module = freeze(_Networks(detector, colours))
        self.mode, self.rules, self.name = mode, rules or Rules(), name
        self.wanted: Requirement | None = parse(objects) if objects.strip() else None
        self.needs_prompt = self.wanted is None
        self.default_scale = {"graded": (0.6, 0.25), "strict": (0.5, 0.5), "count": (-1.0, 2.0)}[mode]
        self._images = ImageCache(batch=batch)

    def score(self, images: Tensor, prompts: Sequence[str] | str = "", context: ScoreContext | None = None) -> Tensor:
        """Scores float32 ``[n]`` of ``images [n, H, W, 3]`` in 0..1; NaN for an image with a pixel that is none."""
        images, wanted = self._checked(images, prompts)
        pixels = to_bytes(images)

        def look(rows: Tensor) -> Tensor:
            found = self._look(pixels[rows], [wanted[row] for row in rows.tolist()])
            return torch.tensor(
                [self._value(wanted[row], pixels[row], boxes) for row, boxes in zip(rows.tolist(), found, strict=True)]
            )

        return self._images(pixels, look, wanted).masked_fill(~finite_rows(images), torch.nan)

    def explain(self, images: Tensor, prompts: Sequence[str] | str = "") -> list[str]:
        """What strict rules find wrong with every image, "" where they are content. Looks anew."""
        images, wanted = self._checked(images, prompts)
        pixels = to_bytes(images)
        verdicts = []
        for image, requirement in zip(pixels, wanted, strict=True):
            (found,) = self._look(image[None], [requirement])
            verdicts.append("; ".join(strict(requirement, found, self._colours(image), self.rules)[1]))
        return verdicts

    def _checked(self, images: Tensor, prompts: Sequence[str] | str) -> tuple[Tensor, list[Requirement]]:
        images = check_images(images)
        prompts = check_prompts(prompts, len(images), self.name, self.needs_prompt)
        wanted = [self.wanted or parse(prompt) for prompt in prompts]
        if self.module.colours is None and any(requirement.has_colours for requirement in wanted):
            raise VerifierError(
                f"verifier {self.name!r} needs a CLIP model for prompts that name colours: give one as clip, e.g. "
                "openai/clip-vit-large-patch14"
            )
        return images, wanted

    def _look(self, pixels: Tensor, wanted: list[Requirement]) -> list[dict[str, Found]]:
        """Boxes per image and name, thinned out; images that ask for the same go together."""
        results: list[dict[str, Found]] = [{}] * len(wanted)
        for names in dict.fromkeys(tuple(requirement.names) for requirement in wanted):
            mine = [row for row, requirement in enumerate(wanted) if tuple(requirement.names) == names]
            with torch.no_grad():
                seen = self.module.detector(pixels[mine], names)
            for row, found in zip(mine, seen, strict=True):
                results[row] = {name: thin_out(objects, self.rules) for name, objects in found.items()}
        return results

    def _value(self, wanted: Requirement, image: Tensor, found: dict[str, Found]) -> float:
        if self.mode == "count":
            return count_error(wanted, found, self.rules)
        if self.mode == "strict":
            return float(strict(wanted, found, self._colours(image), self.rules)[0])
        return graded(wanted, found, self._colours(image), self.rules)

    def _colours(self, image: Tensor):
        reader = self.module.colours
        return None if reader is None else lambda name, boxes: reader(image, name, boxes)


def load_objects(folder: str | Path, clip: str | Path | None = None, **options) -> ObjectsVerifier:
    """Objects by a detector in a local Hugging Face folder. Nothing is downloaded.

    Args:
        folder: of ``google/owlv2-base-patch16-ensemble``, ``IDEA-Research/grounding-dino-base`` or a relative.
        clip: Hugging Face folder of a CLIP for colours, ``openai/clip-vit-large-patch14`` in the benchmark.
        options: of ``ObjectsVerifier``.

    Raises:
        VerifierError: a folder that holds no such model.
    """
    reader = None if clip is None else ColourReader(load_clip_score_folder(clip))
    options.setdefault("name", f"objects({Path(folder).name})")
    return ObjectsVerifier(load_detector(folder), reader, **options)
