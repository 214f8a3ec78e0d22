"""A small drawing surface: supersampled lines and dots, crisp text, two themes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SCALE = 3  # everything is drawn this much larger and reduced once
# Fonts for what Pillow's own has no glyphs for (prompts in Chinese, Cyrillic, ...), by names that Windows, macOS and
# Linux know. Where none is installed such letters are drawn as boxes.
OTHER_FONTS = (
    "msyh.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "arial.ttf",
    "NotoSans-Regular.ttf", "DejaVuSans.ttf",
)  # fmt: skip

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom
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

    def panel(self, box: Box, radius: float = 8) -> None:
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

    def frame(self, box: Box, colour: Colour, width: float = 2.0) -> None:
        """A rectangle's outline."""
        self._draw.rectangle([v * SCALE for v in box], outline=colour, width=round(width * SCALE))

    def text(self, at: Point, text: str, size: float = 13, colour: Colour | None = None, anchor: str = "ls") -> None:
        """One line of text; ``anchor`` as in Pillow (default: left end of the base line)."""
        place = (at[0] * SCALE, at[1] * SCALE)
        self._draw.text(place, text, fill=colour or self.theme.text, font=font_for(text, size), anchor=anchor)

    def triangle(self, tip: Point, size: float, colour: Colour) -> None:
        """A small triangle that points down to ``tip``."""
        (x, y), half = tip, size * 0.6
        corners = [(x, y), (x - half, y - size), (x + half, y - size)]
        self._draw.polygon([(px * SCALE, py * SCALE) for px, py in corners], fill=colour)

    def score_bar(self, box: Box) -> None:
        """The colours of the scores from worst (left) to best."""
        left, top, right, bottom = (round(v * SCALE) for v in box)
        for x in range(left, right):
            colour = score_colour(self.theme, (x - left) / max(right - left - 1, 1))
            self._draw.line([(x, top), (x, bottom)], fill=colour)

    def legend(self, right: float, y: float, items: Sequence[tuple[str, Colour, str]]) -> float:
        """A row of explanations that ends at ``right``, texts on base line ``y``; returns its left end.

        Items are (sign, colour, text) with "line", "dot", "event" (line and triangle) or "" (text alone) as the sign.
        """
        for sign, colour, text in reversed(items):
            self.text((right, y), text, 11, self.theme.muted, "rs")
            right -= text_width(text, 11) + 6
            middle = y - 4
            if sign == "line":
                self.line([(right - 18, middle), (right, middle)], colour, 2)
                right -= 18
            elif sign == "dot":
                self.dot((right - 4, middle), 3.4, colour)
                right -= 8
            elif sign == "event":
                self.line([(right - 4, middle - 7), (right - 4, middle + 7)], colour, 1)
                self.triangle((right - 4, middle - 2), 5.5, colour)
                right -= 8
            right -= 16
        return right

    def picture(self, at: Point, image: np.ndarray, size: tuple[int, int]) -> None:
        """uint8 ``[H, W, 3]``, fitted into ``size`` (width, height) and centred in it."""
        source = Image.fromarray(image)
        ratio = min(size[0] * SCALE / source.width, size[1] * SCALE / source.height)
        wanted = (max(1, round(source.width * ratio)), max(1, round(source.height * ratio)))
        source = source.resize(wanted, Image.Resampling.BICUBIC)
        x = round(at[0] * SCALE + (size[0] * SCALE - wanted[0]) / 2)
        y = round(at[1] * SCALE + (size[1] * SCALE - wanted[1]) / 2)
        self._image.paste(source, (x, y))

    def finish(self) -> np.ndarray:
        """uint8 ``[height, width, 3]``."""
        return np.asarray(self._image.resize((self.width, self.height), Image.Resampling.LANCZOS))


@lru_cache(maxsize=256)
def _font(size: float, name: str | None = None) -> ImageFont.FreeTypeFont:
    """Pillow's own font, or an installed one by name; OSError where that is not installed."""
    return ImageFont.load_default(size * SCALE) if name is None else ImageFont.truetype(name, size * SCALE)


@lru_cache(maxsize=4096)
def _has_glyph(name: str | None, letter: str) -> bool:
    """Whether a font has a picture for ``letter``, rather than the one for unknown letters."""
    font = _font(16, name)
    return bytes(font.getmask(letter)) != bytes(font.getmask("\uffff"))


@lru_cache(maxsize=64)
def _font_name(letters: str) -> str | None:
    """The first font with all ``letters``; Pillow's own (None) where no installed one has them."""
    for name in (None, *OTHER_FONTS):
        try:
            if all(_has_glyph(name, letter) for letter in letters):
                return name
        except OSError:
            continue
    return None


def font_for(text: str, size: float) -> ImageFont.FreeTypeFont:
    """A font that has the letters of ``text``: Pillow's own wherever possible."""
    return _font(size, _font_name("".join(sorted(set(text) - {" "}))))


def text_width(text: str, size: float) -> float:
    """Width in pixels of one line of ``text`` at ``size``."""
    return font_for(text, size).getlength(text) / SCALE


def one_line(text: str) -> str:
    """``text`` with all line breaks and runs of spaces as single spaces."""
    return " ".join(text.split())


def shortened(text: str, size: float, room: float) -> str:
    """``text`` on one line, cut with an ellipsis where it is wider than ``room`` pixels."""
    text = one_line(text)[:2000]  # far more than fits any width
    if text_width(text, size) <= room:
        return text
    fitting = bisect_right(range(len(text)), room, key=lambda count: text_width(text[:count] + "...", size))
    return text[: max(fitting - 1, 0)].rstrip() + "..."


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
