"""Draw a scene: Pillow polygons, supersampled four times, blended over a mildly textured background."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from .scene import COLOURS, IMAGE_SIZE, Background, Object, Scene

SUPERSAMPLING = 4


def draw(scene: Scene) -> np.ndarray:
    """Draw `scene`.

    Returns:
        uint8 array of shape [128, 128, 3], sRGB. Equal scenes give equal arrays.
    """
    canvas = _draw_background(scene.background, scene.seed)
    for item in scene.objects:
        left, top, alpha = object_mask(item)
        height, width = alpha.shape
        patch = canvas[top : top + height, left : left + width]
        alpha = alpha[: patch.shape[0], : patch.shape[1], None]
        patch += alpha * (np.asarray(COLOURS[item.colour], dtype=np.float32) - patch)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def object_mask(item: Object) -> tuple[int, int, np.ndarray]:
    """Antialiased coverage of one object.

    Returns:
        (left, top, alpha): the pixel position of the mask's upper left corner, cut to be non-negative, and the
        coverage, float32 [h, w] in 0..1. The mask may reach past the right and lower border.
    """
    left, top = max(0, math.floor(item.x - item.radius) - 1), max(0, math.floor(item.y - item.radius) - 1)
    size = 2 * math.ceil(item.radius) + 4
    mask = Image.new("L", (size * SUPERSAMPLING, size * SUPERSAMPLING), 0)
    pen = ImageDraw.Draw(mask)
    turn = math.radians(item.angle)
    # y points down in pixels and up in the outlines, so an anticlockwise turn is this matrix.
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [-math.sin(turn), -math.cos(turn)]])
    for outline, fill in outlines(item.shape):
        points = outline @ rotation.T * item.radius + (item.x - left, item.y - top)
        pen.polygon([tuple(p) for p in (points * SUPERSAMPLING).tolist()], fill=fill)
    mask = mask.resize((size, size), Image.Resampling.BOX)
    return left, top, np.asarray(mask, dtype=np.float32) / 255.0


@cache
def outlines(shape: str) -> tuple[tuple[np.ndarray, int], ...]:
    """Outlines of a shape inside the unit circle, y up, as (points [n, 2], fill 255 or 0), painted in order.

    Raises:
        ValueError: unknown shape.
    """
    if shape == "circle":
        return ((_arc(0, 360, 1.0), 255),)
    if shape == "square":
        return ((_arc(45, 405, 1.0, 5)[:-1], 255),)
    if shape == "triangle":
        return ((_arc(90, 450, 1.0, 4)[:-1], 255),)
    if shape == "star":
        points = _arc(90, 450, 1.0, 11)[:-1]
        points[1::2] *= 0.42
        return ((points, 255),)
    if shape == "cross":
        a, b = 0.30, 0.95
        corners = [(-a, b), (a, b), (a, a), (b, a), (b, -a), (a, -a), (a, -b), (-a, -b), (-a, -a), (-b, -a), (-b, a)]
        return ((np.array([*corners, (-a, a)]), 255),)
    if shape == "ring":
        return ((_arc(0, 360, 1.0), 255), (_arc(0, 360, 0.55), 0))
    if shape == "heart":
        t = np.linspace(0, 2 * math.pi, 80, endpoint=False)
        x = 16 * np.sin(t) ** 3
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return ((np.stack([x, y + 2.5], axis=1) / 17.0, 255),)
    if shape == "crescent":
        return ((_arc(0, 360, 1.0), 255), (_arc(0, 360, 0.80) + np.array((0.45, 0.0)), 0))
    raise ValueError(f"unknown shape {shape!r}")


def _arc(start: float, stop: float, radius: float, n: int = 72) -> np.ndarray:
    angle = np.radians(np.linspace(start, stop, n))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius


def _draw_background(background: Background, seed: int) -> np.ndarray:
    """float32 [128, 128, 3]: base colour, linear gradient and smooth noise, so mild that colours stay decidable."""
    rng = np.random.default_rng([seed, 0xBAC6])
    axis = np.linspace(-1, 1, IMAGE_SIZE, dtype=np.float32)
    turn = math.radians(background.gradient_angle)
    ramp = (math.cos(turn) * axis[None, :] + math.sin(turn) * axis[:, None]) / math.sqrt(2)
    coarse = Image.fromarray(rng.standard_normal((6, 6)).astype(np.float32))
    noise = np.asarray(coarse.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))
    shade = background.gradient * ramp + background.texture * noise
    return np.asarray(background.rgb, dtype=np.float32) + shade[..., None].astype(np.float32)
