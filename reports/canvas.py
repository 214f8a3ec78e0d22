"""A small drawing surface: supersampled lines and dots, crisp text, two themes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SCALE = 2  # everything is drawn this much larger and reduced once

Point = tuple[float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Theme:
    """Colours of a picture; ``scores`` runs from the worst to the best (viridis, readable without colour vision)."""

    background: Colour
    panel: Colour
    text: Colour
    muted: Colour
    grid: Colour
    accent: Colour
    event: Colour
    scores: tuple[Colour, ...]


_ON_WHITE = ("482878", "3e4a89", "31688e", "26828e", "1f9e89", "6dcd59", "d8c21a")
_ON_BLACK = ("6c4ea0", "5c68b0", "4682b4", "329ba5", "3cb48c", "87d25f", "fae43c")


def _rgb(code: str) -> Colour:
    return int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16)


def _theme(scores: Sequence[str], *codes: str) -> Theme:
    return Theme(*map(_rgb, codes), scores=tuple(map(_rgb, scores)))


DARK = _theme(_ON_BLACK, "181a1f", "20232a", "e8eaee", "969ca8", "383d48", "ff9e2c", "78aaff")
LIGHT = _theme(_ON_WHITE, "ffffff", "f7f8fa", "1c1f24", "686e7a", "dee2e8", "c45c00", "2860c8")
THEMES = {"dark": DARK, "light": LIGHT}


def score_colour(theme: Theme, share: float) -> Colour:
    """Colour of a score at ``share`` (0 worst .. 1 best) of the range, interpolated."""
    position = min(max(share, 0.0), 1.0) * (len(theme.scores) - 1)
    low = min(int(position), len(theme.scores) - 2)
    mix = position - low
    first, second = theme.scores[low], theme.scores[low + 1]
    return tuple(round(a + (b - a) * mix) for a, b in zip(first, second, strict=True))


def faded(theme: Theme, colour: Colour, strength: float) -> Colour:
    """``colour`` mixed with the panel's: 1 = unchanged, 0 = invisible."""
    return tuple(round(p + (c - p) * strength) for c, p in zip(colour, theme.panel, strict=True))


class Canvas:
    """A picture of ``width`` x ``height`` pixels; coordinates are pixels of the finished picture."""

    def __init__(self, width: int, height: int, theme: Theme):
        self.width, self.height, self.theme = width, height, theme
        self._image = Image.new("RGB", (width * SCALE, height * SCALE), theme.background)
        self._draw = ImageDraw.Draw(self._image)

    def panel(self, box: tuple[float, float, float, float], radius: float = 8) -> None:
        """A rounded area for a chart."""
        self._draw.rounded_rectangle([v * SCALE for v in box], radius * SCALE, fill=self.theme.panel)

    def line(self, points: Sequence[Point], colour: Colour, width: float = 1.0) -> None:
        """A line through ``points``."""
        flat = [(x * SCALE, y * SCALE) for x, y in points]
        self._draw.line(flat, fill=colour, width=max(1, round(width * SCALE)), joint="curve")

    def branch(self, start: Point, end: Point, colour: Colour, width: float = 1.0) -> None:
        """An S-shaped line from left to right."""
        self.line(s_curve(start, end), colour, width)

    def dot(self, at: Point, radius: float, colour: Colour, ring: Colour | None = None) -> None:
        """A disc, with a ring around it where asked."""
        x, y = at[0] * SCALE, at[1] * SCALE
        if ring is not None:
            outer = (radius + 1.6) * SCALE
            self._draw.ellipse([x - outer, y - outer, x + outer, y + outer], fill=ring)
        r = radius * SCALE
        self._draw.ellipse([x - r, y - r, x + r, y + r], fill=colour)

    def frame(self, box: tuple[float, float, float, float], colour: Colour, width: float = 2.0) -> None:
        """A rectangle's outline."""
        self._draw.rectangle([v * SCALE for v in box], outline=colour, width=round(width * SCALE))

    def text(self, at: Point, text: str, size: float = 13, colour: Colour | None = None, anchor: str = "ls") -> None:
        """Text; ``anchor`` as in Pillow (default: left end of the base line)."""
        font = ImageFont.load_default(size * SCALE)
        place = (at[0] * SCALE, at[1] * SCALE)
        self._draw.text(place, text, fill=colour or self.theme.text, font=font, anchor=anchor)

    def picture(self, at: Point, image: np.ndarray, size: tuple[int, int]) -> None:
        """uint8 ``[H, W, 3]``, fitted into ``size`` (width, height) and centred in it."""
        source = Image.fromarray(image)
        ratio = min(size[0] * SCALE / source.width, size[1] * SCALE / source.height)
        wanted = (max(1, round(source.width * ratio)), max(1, round(source.height * ratio)))
        source = source.resize(wanted, Image.Resampling.LANCZOS)
        x = round(at[0] * SCALE + (size[0] * SCALE - wanted[0]) / 2)
        y = round(at[1] * SCALE + (size[1] * SCALE - wanted[1]) / 2)
        self._image.paste(source, (x, y))

    def finish(self) -> np.ndarray:
        """uint8 ``[height, width, 3]``."""
        return np.asarray(self._image.resize((self.width, self.height), Image.Resampling.LANCZOS))


def text_width(text: str, size: float) -> float:
    """Width in pixels of ``text`` at ``size``."""
    return ImageFont.load_default(size * SCALE).getlength(text) / SCALE


def shortened(text: str, size: float, room: float) -> str:
    """``text``, cut with an ellipsis where it is wider than ``room`` pixels."""
    if text_width(text, size) <= room:
        return text
    while text and text_width(text + "...", size) > room:
        text = text[:-1]
    return text.rstrip() + "..."


def s_curve(start: Point, end: Point, pieces: int = 14) -> list[Point]:
    """Points of a curve that leaves ``start`` and reaches ``end`` horizontally."""
    (x0, y0), (x1, y1) = start, end
    if abs(y1 - y0) < 0.5:
        return [start, end]
    shares = [i / pieces for i in range(pieces + 1)]
    return [(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t * t * (3 - 2 * t)) for t in shares]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers in [low, high]."""
    raw = max(high - low, 1e-12) / max(count, 1)
    magnitude = 10.0 ** np.floor(np.log10(raw))
    step = magnitude * next(m for m in (1, 2, 5, 10) if m * magnitude >= raw * (1 - 1e-9))
    first = np.ceil(low / step - 1e-9) * step
    return [round(float(v), 10) + 0.0 for v in np.arange(first, high + step * 1e-6, step)]
