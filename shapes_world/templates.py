"""Name a shape by its outline: correlation with templates over rotation and blur, scale taken from the area."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy import ndimage

from .drawing import object_mask
from .scene import SHAPES, Object

FRAME = 32
"""Templates are FRAME x FRAME samples, centred on the centroid."""

REACH = 1.3
"""Half the side of the frame, in units of the square root of the area."""

_PERIODS = {
    "circle": 0,
    "ring": 0,
    "square": 90,
    "cross": 90,
    "triangle": 120,
    "star": 72,
    "heart": 360,
    "crescent": 360,
}
_STEP = 6.0  # degrees between templates
_RADIUS = 24.0  # pixels at which templates are drawn
_BLURS = (0.8, 2.2)  # pixels at that radius: a sharp drawing, and a decoded or half-finished picture


def match(coverage: np.ndarray) -> tuple[str, float, float, np.ndarray]:
    """Name the shape of a coverage map, float [h, w] in 0..1.

    Returns:
        (shape, score, runner_up, geometry): the best shape and its correlation in -1..1, the best correlation of any
        other shape, and float [3] of the shape's centre x, y and its radius in pixels of the map.
    """
    frame, centroid, scale = normalise(coverage)
    templates, owners, geometry = _templates()
    scores = templates @ frame
    best = int(scores.argmax())
    others = scores[owners != owners[best]]
    dx, dy, radius = geometry[best]
    place = np.array([centroid[0] + dx * scale, centroid[1] + dy * scale, radius * scale])
    return SHAPES[owners[best]], float(scores[best]), float(others.max()), place


def normalise(coverage: np.ndarray) -> tuple[np.ndarray, tuple[float, float], float]:
    """Move the centroid to the centre and the area to one: (unit vector [FRAME**2], centroid (x, y), sqrt(area))."""
    area = float(coverage.sum())
    columns, rows = coverage.sum(axis=0), coverage.sum(axis=1)
    x = float(columns @ np.arange(len(columns))) / area
    y = float(rows @ np.arange(len(rows))) / area
    scale = math.sqrt(area)
    axis = np.linspace(-REACH, REACH, FRAME, dtype=np.float32) * scale
    grid = np.empty((2, FRAME, FRAME), np.float32)
    grid[0], grid[1] = (y + axis)[:, None], (x + axis)[None, :]
    frame = ndimage.map_coordinates(coverage, grid, order=1, mode="constant").ravel()
    frame -= frame.mean()
    return frame / (np.linalg.norm(frame) + 1e-6), (x, y), scale


@lru_cache(maxsize=1)
def _templates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(float32 [n, FRAME**2] unit rows, index into SHAPES [n], centre and radius against centroid and area [n, 3])."""
    rows, owners, geometry = [], [], []
    for index, shape in enumerate(SHAPES):
        period = _PERIODS[shape]
        angles = np.arange(0, period, _STEP) if period else [0.0]
        for angle in angles:
            item = Object(shape, "red", 64.0, 64.0, _RADIUS, float(angle))
            left, top, mask = object_mask(item)
            for blur in _BLURS:
                frame, (x, y), scale = normalise(ndimage.gaussian_filter(np.pad(mask, 10), blur))
                rows.append(frame)
                owners.append(index)
                # Object coordinates are pixel corners, array coordinates pixel centres: half a pixel apart.
                geometry.append(((64 - left + 9.5 - x) / scale, (64 - top + 9.5 - y) / scale, _RADIUS / scale))
    return np.stack(rows).astype(np.float32), np.array(owners), np.array(geometry)
