"""Several verifiers on the same images: who agrees with whom, and about which image they differ."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from .canvas import DARK, THEMES, Box, Canvas, Theme, score_colour, shortened, ticks

PLOT, GAP, MARGIN = 250, 18, 22  # pixels
ROW, PICTURE, COLUMN = 54, 46, 118
Scores = Mapping[str, Sequence[float | None]]


def ranks(values: Sequence[float | None]) -> np.ndarray:
    """Share of the other images that each one beats, ties counting half: 1 best, 0 worst; NaN without a score."""
    from scipy.stats import rankdata  # takes its time to import

    numbers = np.array([math.nan if value is None else value for value in values], float)
    known = np.isfinite(numbers)
    shares = np.where(known, 0.5, math.nan)
    if known.sum() > 1:
        shares[known] = (rankdata(numbers[known]) - 1) / (known.sum() - 1)
    return shares


def agreement(first: Sequence[float | None], second: Sequence[float | None]) -> float | None:
    """Spearman's rank correlation over the images that both have scored; None with fewer than three, or no spread."""
    both = [pair for pair in zip(first, second, strict=True) if all(v is not None and math.isfinite(v) for v in pair)]
    if len(both) < 3:
        return None
    from scipy.stats import spearmanr  # takes its time to import

    a, b = zip(*both, strict=True)
    return float(spearmanr(a, b).statistic) if len(set(a)) > 1 < len(set(b)) else None


def mean_ranks(scores: Scores) -> np.ndarray:
    """Mean over the verifiers of ``ranks``, per image; an image that none has scored gets 0."""
    table = np.stack([ranks(values) for values in scores.values()])
    known = np.isfinite(table)
    return np.where(known, table, 0.0).sum(0) / np.maximum(known.sum(0), 1)


def as_text(scores: Scores) -> str:
    """A table: images from the best mean rank down, a column per verifier, then the verifiers' agreement."""
    order = np.argsort(-mean_ranks(scores), kind="stable")
    lines = ["image  mean rank  " + "  ".join(f"{name:>18.18}" for name in scores)]
    for image in order:
        cells = ["n/a" if v[image] is None else f"{v[image]:.4f}" for v in scores.values()]
        lines.append(f"{image:5d}  {mean_ranks(scores)[image]:9.3f}  " + "  ".join(f"{cell:>18}" for cell in cells))
    for a, b in itertools.combinations(scores, 2):
        value = agreement(scores[a], scores[b])
        lines.append(f"agreement of {a} and {b}: " + ("n/a" if value is None else f"{value:+.2f}"))
    return "\n".join(lines)


def comparison(images: np.ndarray, scores: Scores, theme: str | Theme = DARK, limit: int = 12) -> np.ndarray:
    """The picture.

    Args:
        images: uint8 ``[n, H, W, 3]``.
        scores: by verifier, ``n`` each, None where there is none; at least two verifiers.
        theme: "dark", "light" or a ``Theme``.
        limit: images listed.

    Returns:
        uint8 ``[height, width, 3]``.

    Raises:
        ValueError: fewer than two verifiers, or not one score per image.
    """
    if len(scores) < 2:
        raise ValueError(f"{len(scores)} verifier(s): a comparison needs at least two")
    for name, values in scores.items():
        if len(values) != len(images):
            raise ValueError(f"{name} has {len(values)} scores for {len(images)} images")
    pairs = list(itertools.combinations(scores, 2))
    across = 1 if len(pairs) == 1 else 2 if len(pairs) <= 4 else 3
    down = math.ceil(len(pairs) / across)
    listed = min(len(images), limit)
    plots = across * (PLOT + GAP)
    width = 2 * MARGIN + plots + PICTURE + 40 + COLUMN * len(scores)
    height = 2 * MARGIN + 24 + max(down * (PLOT + GAP), ROW * listed + 26)
    canvas = Canvas(width, height, THEMES[theme] if isinstance(theme, str) else theme)
    shares = mean_ranks(scores)
    canvas.text((MARGIN, MARGIN + 8), f"{len(images)} images, {len(scores)} verifiers", 15)
    for number, (a, b) in enumerate(pairs):
        left = MARGIN + (number % across) * (PLOT + GAP)
        top = MARGIN + 24 + (number // across) * (PLOT + GAP)
        _scatter(canvas, (left, top, left + PLOT, top + PLOT), (a, scores[a]), (b, scores[b]), shares)
    _table(canvas, (MARGIN + plots, MARGIN + 24), images, scores, shares, listed)
    return canvas.finish()


def _scatter(canvas: Canvas, box: Box, first, second, shares: np.ndarray) -> None:
    """One dot per image, coloured by its mean rank."""
    theme = canvas.theme
    canvas.panel(box)
    inner = (box[0] + 44, box[1] + 30, box[2] - 14, box[3] - 40)
    value = agreement(first[1], second[1])
    title = "agreement n/a" if value is None else f"agreement {value:+.2f}"
    canvas.text((box[0] + 12, box[1] + 20), title, 12, theme.muted)
    points = [
        (x, y, share)
        for x, y, share in zip(first[1], second[1], shares, strict=True)
        if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)
    ]
    canvas.text(((inner[0] + inner[2]) / 2, box[3] - 9), shortened(first[0], 11, PLOT - 60), 11, theme.text, "ms")
    canvas.text((box[2] - 12, box[1] + 20), "up: " + shortened(second[0], 11, PLOT - 150), 11, theme.text, "rs")
    if not points:
        return
    scales = [_scale([point[axis] for point in points]) for axis in (0, 1)]
    for tick in ticks(*scales[0]):
        x = inner[0] + (tick - scales[0][0]) / (scales[0][1] - scales[0][0]) * (inner[2] - inner[0])
        canvas.line([(x, inner[1]), (x, inner[3])], theme.grid)
        canvas.text((x, inner[3] + 14), f"{tick:g}", 10, theme.muted, "ms")
    for tick in ticks(*scales[1]):
        y = inner[3] - (tick - scales[1][0]) / (scales[1][1] - scales[1][0]) * (inner[3] - inner[1])
        canvas.line([(inner[0], y), (inner[2], y)], theme.grid)
        canvas.text((inner[0] - 6, y + 4), f"{tick:g}", 10, theme.muted, "rs")
    for px, py, share in points:
        x = inner[0] + (px - scales[0][0]) / (scales[0][1] - scales[0][0]) * (inner[2] - inner[0])
        y = inner[3] - (py - scales[1][0]) / (scales[1][1] - scales[1][0]) * (inner[3] - inner[1])
        canvas.dot((x, y), 4.5, score_colour(theme, share), theme.panel)


def _scale(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or max(abs(high), 1.0) * 0.05
    return low - room, high + room


def _table(canvas: Canvas, at: tuple[float, float], images, scores: Scores, shares: np.ndarray, listed: int) -> None:
    """The best images by mean rank, with every verifier's score and a dot in the colour of its rank."""
    theme, (left, top) = canvas.theme, at
    columns = [left + PICTURE + 40 + COLUMN * index for index in range(len(scores))]
    for x, name in zip(columns, scores, strict=True):
        canvas.text((x, top + 14), shortened(name, 11, COLUMN - 12), 11, theme.muted)
    table = [ranks(values) for values in scores.values()]
    for place, image in enumerate(np.argsort(-shares, kind="stable")[:listed]):
        y = top + 26 + place * ROW
        canvas.picture((left, y), images[image], (PICTURE, PICTURE))
        canvas.text((left + PICTURE + 8, y + PICTURE / 2 + 4), str(image), 11, theme.muted)
        for x, values, rank in zip(columns, scores.values(), table, strict=True):
            value = values[image]
            if value is None:
                canvas.text((x, y + PICTURE / 2 + 4), "n/a", 12, theme.muted)
                continue
            canvas.dot((x + 4, y + PICTURE / 2), 4.5, score_colour(theme, float(rank[image])))
            canvas.text((x + 16, y + PICTURE / 2 + 4), f"{value:.4g}", 12)
