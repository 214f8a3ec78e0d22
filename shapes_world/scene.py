"""Scenes of Shapes World: what is in a picture, before it is drawn.

A `Scene` is one to four coloured objects on a plain background, everything in pixels of a 128x128 image with the
origin in the upper left corner and y pointing down. `sampling` draws them from seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

IMAGE_SIZE = 128
"""Width and height of a drawing in pixels."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent")

COLOURS = {
    "red": (218, 24, 32),
    "orange": (252, 138, 12),
    "yellow": (252, 226, 44),
    "green": (30, 158, 66),
    "blue": (36, 82, 220),
    "purple": (124, 38, 168),
    "brown": (118, 70, 34),
    "pink": (250, 128, 184),
    "black": (16, 16, 18),
    "white": (250, 250, 250),
}
"""Colour name -> sRGB. The closest pair is more than 70 units apart, so that names stay decidable after a VAE."""

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's six tasks, under GenEval's names."""

RELATIONS = ("left of", "right of", "above", "below")

_OFF_AXIS = 0.45  # a relation is drawn with an off-axis offset of at most this fraction of the offset along the axis
BACKGROUND_LEVELS = {"light": (218, 236), "dark": (52, 68), "grey": (132, 148)}


@dataclass(frozen=True)
class Object:
    """One shape. `x`, `y` and `radius` are pixels (the shape fits the circle), `angle` is degrees, anticlockwise."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Background:
    """A plain background: `rgb` (0..255), a linear gradient and smooth texture, both given as amplitudes in 0..255."""

    kind: str
    rgb: tuple[float, float, float]
    gradient: float
    gradient_angle: float
    texture: float


@dataclass(frozen=True)
class Scene:
    """Objects, background and the seed that also fixes the background's texture."""

    objects: tuple[Object, ...]
    background: Background
    seed: int

    def to_dict(self) -> dict:
        """JSON-ready form; `from_dict` restores an equal scene."""
        return {
            "objects": [vars(o).copy() for o in self.objects],
            "background": {**vars(self.background), "rgb": list(self.background.rgb)},
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, data: dict) -> Scene:
        """Inverse of `to_dict`."""
        background = Background(**{**data["background"], "rgb": tuple(data["background"]["rgb"])})
        return cls(tuple(Object(**o) for o in data["objects"]), background, int(data["seed"]))


def relation_between(first: Object, second: Object) -> str | None:
    """The relation of `first` to `second` if one axis clearly dominates, else None."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dy) <= _OFF_AXIS * abs(dx):
        return "left of" if dx < 0 else "right of"
    if abs(dx) <= _OFF_AXIS * abs(dy):
        return "above" if dy < 0 else "below"
    return None
