"""ShapesEval: the exact evaluator of Shapes World.

It reads pictures with image processing only (`segmentation`, `templates`), shares nothing with a learned verifier, and
never scores a candidate of a search: it measures what a search has gained. (The rule-based rewriter looks at previews
with its detector; what that achieves, it cannot judge as an outsider.) Check it against drawn ground truth with
`python -m testtime.shapes_world.evaluator --check 2000`, which writes `metrics.json` beside this file.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..installation.files import write_text
from .captions import Prompt, sample_prompt
from .drawing import draw
from .rules import decide
from .sampling import sample_scene
from .scene import COLOURS, IMAGE_SIZE, RELATIONS, SHAPES, TASKS, Object
from .segmentation import find_pieces
from .templates import match

UNKNOWN = "unknown"
"""Shape of a detection that resembles no shape of the world; no prompt is satisfied by it."""

MIN_SCORE = 0.80
"""Correlation with the best template below which a piece is of no known shape."""

MIN_SIDE = 32
"""Smallest image side that can be read."""

_HELD_OUT = 900_000_000  # first seed of the check; training sets count from elsewhere


@dataclass(frozen=True)
class Detection:
    """An object found. `x`, `y`, `radius` are pixels of the image given, y pointing down; `confidence` is in 0..1."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    confidence: float


@dataclass(frozen=True)
class Verdict:
    """Whether an image satisfies a prompt, why, and what was seen in it."""

    correct: bool
    reason: str
    detections: tuple[Detection, ...]

    def to_dict(self) -> dict:
        """JSON-ready form."""
        return asdict(self)


def detect(image: np.ndarray) -> list[Detection]:
    """Find the objects of an image.

    Args:
        image: uint8 [H, W, 3], or floating point [H, W, 3] in 0..1 (values beyond are clipped). Other sizes than
            128x128 are resized first; sides under 32 are refused.

    Returns:
        Detections, the most confident first. Confidence is how well the outline matches its template and how far the
        next shape lies behind. Pieces that look like no shape are reported as `UNKNOWN`; specks are not reported.

    Raises:
        ValueError: not an image as described, or one with NaN.
    """
    pixels, scale = _as_pixels(image)
    found = []
    for piece in find_pieces(pixels):
        shape, score, runner_up, (x, y, radius) = match(piece.coverage)
        if score < MIN_SCORE:
            shape = UNKNOWN
        confidence = float(np.clip((score - 0.5) * 2, 0, 1) * np.clip(0.5 + 5 * (score - runner_up), 0, 1))
        found.append(
            Detection(
                shape,
                piece.colour,
                float(x + piece.left + 0.5) * scale[0],
                float(y + piece.top + 0.5) * scale[1],
                float(radius) * (scale[0] + scale[1]) / 2,
                round(confidence, 4),
            )
        )
    return sorted(found, key=lambda d: -d.confidence)


def evaluate(image: np.ndarray, prompt: Prompt) -> Verdict:
    """Decide `prompt` for `image` (as in `detect`) by GenEval's rules, see `rules.decide`."""
    detections = detect(image)
    correct, reason = decide(prompt, detections)
    return Verdict(correct, reason, tuple(detections))


def exactly(image: np.ndarray, prompt: Prompt) -> bool:
    """Whether ``image`` (as in ``detect``) satisfies ``prompt`` and shows nothing else.

    Stricter than ``evaluate``: by GenEval's rules "a star" is satisfied by two of them. A person who counts says no.
    """
    verdict = evaluate(image, prompt)
    return verdict.correct and len(verdict.detections) == sum(need.count or 1 for need in prompt.objects)


def falsify(prompt: Prompt, scene_objects: tuple[Object, ...], rng: np.random.Generator) -> Prompt | None:
    """A prompt of the same task with one thing changed so that it is false of the objects; None if none was found.

    Its `text` is that of the original: it serves to test deciders, not to be read.
    """
    for _ in range(20):
        needs = list(prompt.objects)
        index = int(rng.integers(len(needs)))
        relation, need = prompt.relation, needs[index]
        kind = str(rng.choice(["shape", "colour", "count", "relation"]))
        if kind == "shape":
            needs[index] = replace(need, shape=str(rng.choice(SHAPES)))
        elif kind == "colour" and need.colour:
            needs[index] = replace(need, colour=str(rng.choice(list(COLOURS))))
        elif kind == "count" and prompt.task == "counting":
            needs[index] = replace(need, count=int(rng.integers(1, 5)))
        elif kind == "relation" and relation:
            relation = str(rng.choice(RELATIONS))
        changed = replace(prompt, objects=tuple(needs), relation=relation)
        if not decide(changed, scene_objects)[0]:
            return changed
    return None


def check(count: int, seed: int = _HELD_OUT, transform=None) -> dict:
    """Measure the evaluator against drawn ground truth.

    Args:
        count: scenes to draw.
        seed: first seed.
        transform: applied to each drawing before it is judged (uint8 [128, 128, 3] -> image), for example a blur.

    Returns:
        dict of shares in 0..1 and of the milliseconds an image takes: object lists that are exactly right, true prompts
        accepted, false prompts rejected, and the agreement over both kinds of prompt.
    """
    rng = np.random.default_rng(seed)
    lists = accepted = rejected = falses = 0
    seconds = 0.0
    for index in range(count):
        prompt = sample_prompt(seed + index, TASKS[index % len(TASKS)])
        scene = sample_scene(seed + index, prompt)
        image = draw(scene)
        image = image if transform is None else transform(image)
        began = time.perf_counter()
        seen = detect(image)
        seconds += time.perf_counter() - began
        lists += same_objects(seen, scene.objects)
        accepted += decide(prompt, seen)[0]
        false = falsify(prompt, scene.objects, rng)
        if false is not None:
            falses += 1
            rejected += not decide(false, seen)[0]
    return {
        "drawings": count,
        "first_seed": seed,
        "object_lists_exact": round(lists / count, 5),
        "true_prompts_accepted": round(accepted / count, 5),
        "false_prompts": falses,
        "false_prompts_rejected": round(rejected / max(falses, 1), 5),
        "agreement": round((accepted + rejected) / (count + falses), 5),
        "milliseconds_per_image": round(1e3 * seconds / count, 2),
    }


def same_objects(seen: list[Detection], drawn: tuple[Object, ...], tolerance: float = 4.0) -> bool:
    """Whether detections and drawn objects are the same list: shape, colour, and centre within `tolerance` pixels."""
    left = list(drawn)
    for item in seen:
        fit = next((o for o in left if o.shape == item.shape and o.colour == item.colour
                    and np.hypot(o.x - item.x, o.y - item.y) <= tolerance), None)  # fmt: skip
        if fit is None:
            return False
        left.remove(fit)
    return not left


def _as_pixels(image: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """float32 [128, 128, 3] in 0..255, and the factors from its x and y back to the image's."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must have shape [H, W, 3], got {list(image.shape)}")
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"image sides must be at least {MIN_SIDE} pixels, got {height}x{width}")
    if image.dtype == np.uint8:
        pixels = image.astype(np.float32)
    elif np.issubdtype(image.dtype, np.floating):
        pixels = np.clip(image.astype(np.float32), 0.0, 1.0) * 255.0
        if np.isnan(pixels).any():
            raise ValueError("image contains NaN")
    else:
        raise ValueError(f"image must be uint8, or floating point in 0..1, got {image.dtype}")
    if (height, width) != (IMAGE_SIZE, IMAGE_SIZE):
        size = (IMAGE_SIZE, IMAGE_SIZE)
        channels = [Image.fromarray(pixels[..., c]).resize(size, Image.Resampling.BILINEAR) for c in range(3)]
        pixels = np.stack([np.asarray(c, dtype=np.float32) for c in channels], axis=-1)
    return pixels, (width / IMAGE_SIZE, height / IMAGE_SIZE)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Check ShapesEval against drawn ground truth.")
    parser.add_argument("--check", type=int, default=2000, metavar="N", help="drawings to check")
    parser.add_argument("--seed", type=int, default=_HELD_OUT, help="first seed")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("metrics.json"))
    options = parser.parse_args(argv)
    metrics = {"drawn": check(options.check, options.seed)}
    text = json.dumps(metrics, indent=1)
    write_text(options.out, text + "\n")
    print(text)


if __name__ == "__main__":
    main()
