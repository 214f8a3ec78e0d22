"""Find coloured pieces in a picture: background, foreground, connected components, pieces of one colour.

Works on numpy arrays in 0..255 and on nothing learned. Blur is expected: a pixel of an object is background + coverage
times (object colour - background), so a blurred edge lies on a line in colour space and is no colour of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from .scene import COLOURS

FOREGROUND = 28.0
"""Distance from the background, in units of 0..255 RGB, from which a pixel belongs to an object."""

MIN_AREA = 50
"""Pixels (of 128x128) below which a component is a speck. The smallest object of the world covers about 170."""

SAME_COLOUR = 55.0
"""RGB distance within which two colours of one component are shades of the same object."""

COLOUR_NAMES = tuple(COLOURS)

_FLAT_RANGE = 40.0  # largest spread in a 3x3 neighbourhood that still counts as the inside of an object
_EIGHT = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Piece:
    """A connected region of one colour.

    `coverage` is float32 [h, w] in 0..1 for the window whose upper left pixel is (`left`, `top`); `rgb` is the colour
    of its inside, 0..255; `colour` the nearest name.
    """

    left: int
    top: int
    coverage: np.ndarray
    rgb: np.ndarray
    colour: str


def find_pieces(image: np.ndarray) -> list[Piece]:
    """Pieces of `image`, float32 [128, 128, 3] in 0..255, in reading order."""
    ground = estimate_background(image)
    offset = image - ground
    distance = np.sqrt(np.einsum("ijk,ijk->ij", offset, offset))
    labels, count = ndimage.label(distance > FOREGROUND)
    pieces = []
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    for index, window in enumerate(ndimage.find_objects(labels), start=1):
        if areas[index] < MIN_AREA:
            continue
        rows, columns = (slice(max(0, s.start - 2), s.stop + 2) for s in window)
        view = (rows, columns)
        inside = labels[view] == index
        for part, rgb in _split_by_colour(image[view], ground[view], distance[view], inside):
            pieces += _split_by_coverage(offset[view], ground[view], part, rgb, columns.start, rows.start)
    return pieces


def estimate_background(image: np.ndarray) -> np.ndarray:
    """Smooth background, float32 [H, W, 3]: a quadratic in x and y, fitted to the border, then to all near it."""
    height, width = image.shape[:2]
    basis, border = _background_basis(height, width)
    pixels = image[::4, ::4].reshape(-1, 3)
    edge = pixels[border]
    # The border's most frequent brightness, not its mean: an object may well touch the border of a generated picture.
    keep = np.abs(edge - np.median(edge, axis=0)).max(axis=1) < 24.0
    ground = np.broadcast_to(np.median(edge[keep] if keep.any() else edge, axis=0), pixels.shape)
    for limit, terms in ((26.0, 3), (22.0, 6), (18.0, 6)):
        near = np.abs(pixels - ground).max(axis=1) < limit
        if near.sum() < 60:
            break
        fit, *_ = np.linalg.lstsq(basis[near, :terms], pixels[near], rcond=None)
        ground = basis[:, :terms] @ fit
    else:
        rows, columns = _axes(height, width)
        surface = np.empty((height, width, 3), dtype=np.float32)
        for channel in range(3):
            a, b, c, d, e, f = fit[:, channel]
            surface[..., channel] = (a + c * rows + f * rows**2)[:, None] + (b * columns + e * columns**2)[None]
            surface[..., channel] += d * rows[:, None] * columns[None]
        return np.clip(surface, 0, 255)
    return np.broadcast_to(np.float32(np.median(edge, axis=0)), image.shape)


def name_colour(rgb: np.ndarray) -> str:
    """The world's name of a colour, float [3] in 0..255: the nearest in CIELAB, as people judge."""
    return COLOUR_NAMES[int(np.argmin(((_lab(np.asarray(rgb, np.float32)) - _palette_lab()) ** 2).sum(axis=-1)))]


def _split_by_colour(image, ground, distance, inside) -> list[tuple[np.ndarray, np.ndarray]]:
    """(mask, colour) of every colour in one component; blurred edges count as no colour."""
    spread = (ndimage.maximum_filter(image, (3, 3, 1)) - ndimage.minimum_filter(image, (3, 3, 1))).max(axis=2)
    flat = inside & (spread < _FLAT_RANGE)
    names = _nearest_name()[tuple((image.astype(np.uint8) >> 3).transpose(2, 0, 1))]
    if flat.sum() >= 12:
        counts = np.bincount(names[flat], minlength=len(COLOUR_NAMES))
    else:
        counts = np.zeros(len(COLOUR_NAMES), int)
    needed = max(16, 0.06 * inside.sum())
    groups = []  # [mask of flat pixels, mean colour]
    for name in np.argsort(-counts):
        if counts[name] < needed:
            break
        mask = flat & (names == name)
        colour = image[mask].mean(axis=0)
        near = next((g for g in groups if np.linalg.norm(g[1] - colour) < SAME_COLOUR), None)
        if near is None:
            groups.append([mask, colour])
        else:
            near[0] |= mask
    base = ground[inside].mean(axis=0)
    groups = [g for g in groups if not any(_is_edge_of(g, h, base) for h in groups if h is not g)]
    if len(groups) < 2:
        return [(inside, _inner_colour(image, distance, groups[0][0] if groups else inside))]
    seeds = np.zeros(inside.shape, np.int32)
    for index, (mask, _) in enumerate(groups, start=1):
        seeds[mask] = index
    nearest = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    owner = seeds[tuple(nearest)]
    return [(inside & (owner == i), _inner_colour(image, distance, g[0])) for i, g in enumerate(groups, start=1)]


def _is_edge_of(group, other, base) -> bool:
    """Whether a group of flat pixels is only the thin blurred rim of another: its colour mixed with the background."""
    line = other[1] - base
    share = float((group[1] - base) @ line / (line @ line + 1e-6))
    if not 0.1 < share < 0.9 or np.linalg.norm(group[1] - base - share * line) > 40.0:
        return False
    return ndimage.binary_erosion(group[0], _EIGHT, iterations=2).sum() < 20


def _inner_colour(image, distance, mask) -> np.ndarray:
    """Median colour of the pixels that differ most from the background: thin shapes have few fully covered ones."""
    values = distance[mask]
    return np.median(image[mask][values >= np.quantile(values, 0.6)], axis=0)


def _split_by_coverage(offset, ground, mask, rgb, left, top) -> list[Piece]:
    """Cut a region of one colour where its coverage falls under one half: neighbours that only their blur connects."""
    line = rgb - ground[mask].mean(axis=0)
    coverage = np.clip(offset @ line / (line @ line), 0.0, 1.0).astype(np.float32)
    labels, count = ndimage.label(mask & (coverage > 0.45))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    big = [i for i, area in enumerate(areas, start=1) if area >= MIN_AREA]
    name = name_colour(rgb)
    pieces = []
    for index in big:
        core = labels == index
        grown = ndimage.binary_dilation(core, _EIGHT, iterations=2) & ndimage.binary_dilation(mask, _EIGHT)
        if len(big) > 1:
            grown &= core | (labels == 0)
        pieces.append(Piece(left, top, np.where(grown, coverage, np.float32(0)), rgb, name))
    return pieces


@lru_cache(maxsize=4)
def _background_basis(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = (a[::4] for a in _axes(height, width))
    y, x = (v.ravel() for v in np.meshgrid(rows, columns, indexing="ij"))
    border = (np.minimum(np.abs(x - columns[0]), np.abs(x - columns[-1])) < 1e-6) | (
        np.minimum(np.abs(y - rows[0]), np.abs(y - rows[-1])) < 1e-6
    )
    return np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=1), border


def _axes(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    return np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32)


@lru_cache(maxsize=1)
def _palette_lab() -> np.ndarray:
    return _lab(np.array(list(COLOURS.values()), dtype=np.float32))


@lru_cache(maxsize=1)
def _nearest_name() -> np.ndarray:
    """Index of the nearest colour name for RGB quantised to five bits: uint8 [32, 32, 32]."""
    level = np.arange(32, dtype=np.float32) * 8 + 4
    grid = np.stack(np.meshgrid(level, level, level, indexing="ij"), axis=-1)
    gaps = ((_lab(grid)[..., None, :] - _palette_lab()) ** 2).sum(axis=-1)
    return gaps.argmin(axis=-1).astype(np.uint8)


def _lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB 0..255 -> CIELAB (D65)."""
    linear = np.clip(rgb, 0, 255) / 255.0
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32)
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089], np.float32)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)
