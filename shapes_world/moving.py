"""Moving Shapes: clips, captions that say what moves where, and an exact evaluator of both.

A clip has 8 frames of 96 pixels. One shape moves left, right, up or down at an even pace; a second one may stay where
it is, or move as well. Nothing covers anything, so that every frame can be read alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from .drawing import draw
from .evaluator import Detection, detect
from .sampling import background_for
from .scene import COLOURS, IMAGE_SIZE, SHAPES, Object, Scene

FRAMES = 8
SIDE = 96
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
"""Word -> step in pixels (x, y), y pointing down."""
STAYS = "stays"
KINDS = ("one_moves", "one_stays", "two_move")

DISTANCE = (26.0, 40.0)  # pixels that a shape moves
RADIUS = (9.0, 13.0)
GAP = 4.0  # pixels between shapes, at all times
LEAST = 16.0  # of a motion to be one, along its axis
DRIFT = 8.0  # at most, across the axis; and of what stays
BACK = 1.0  # a frame may lie so far behind the one before: the detector's own noise

_OFFSET = (IMAGE_SIZE - SIDE) // 2
_PART = re.compile(r"an? (\w+) (\w+) (?:moves (left|right|up|down)|(stays))")


class Mover(NamedTuple):
    """A shape and what it does: a word of ``DIRECTIONS``, or ``STAYS``."""

    shape: str
    colour: str
    does: str


@dataclass(frozen=True)
class MovingPrompt:
    """A caption with its meaning: one or two shapes of different kinds, and what each does."""

    movers: tuple[Mover, ...]

    @property
    def text(self) -> str:
        """ "a red circle moves left and a blue square stays"."""
        return " and ".join(_said(mover) for mover in self.movers)

    @property
    def kind(self) -> str:
        """One of ``KINDS``."""
        if len(self.movers) == 1:
            return KINDS[0]
        return KINDS[1] if any(mover.does == STAYS for mover in self.movers) else KINDS[2]


class MotionVerdict(NamedTuple):
    """Whether a clip shows what its caption says, and why."""

    correct: bool
    reason: str


def _said(mover: Mover) -> str:
    article = "an" if mover.colour[0] in "aeiou" else "a"
    does = STAYS if mover.does == STAYS else f"moves {mover.does}"
    return f"{article} {mover.colour} {mover.shape} {does}"


def read_moving(text: str) -> MovingPrompt | None:
    """The meaning of a caption as ``MovingPrompt.text`` writes it, None for any other text."""
    movers = []
    for part in text.strip().rstrip(".").split(" and "):
        match = _PART.fullmatch(part)
        if match is None or match[1] not in COLOURS or match[2] not in SHAPES:
            return None
        movers.append(Mover(match[2], match[1], match[3] or match[4]))
    good = 1 <= len(movers) <= 2 and movers[0].does != STAYS
    return MovingPrompt(tuple(movers)) if good else None


def sample_moving(seed: int, kind: str | None = None) -> MovingPrompt:
    """A caption drawn from a seed; shapes and colours of two differ.

    Raises:
        ValueError: a kind that is none of ``KINDS``.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: choose {', '.join(KINDS)}")
    rng = np.random.default_rng([seed, 0x307E])
    kind = kind or str(rng.choice(KINDS))
    count = 1 if kind == "one_moves" else 2
    shapes, colours = (rng.choice(list(names), count, replace=False) for names in (SHAPES, COLOURS))
    does = [str(rng.choice(list(DIRECTIONS))) for _ in range(count)]
    if kind == "one_stays":
        does[1] = STAYS
    return MovingPrompt(tuple(Mover(str(s), str(c), d) for s, c, d in zip(shapes, colours, does, strict=True)))


def draw_moving(prompt: MovingPrompt, seed: int) -> np.ndarray:
    """Draw a clip of a caption.

    Returns:
        uint8 ``[8, 96, 96, 3]``, sRGB. Equal arguments give equal clips.
    """
    return np.stack(
        [draw(scene)[_OFFSET : _OFFSET + SIDE, _OFFSET : _OFFSET + SIDE] for scene in moving_scenes(prompt, seed)]
    )


def moving_scenes(prompt: MovingPrompt, seed: int) -> list[Scene]:
    """What ``draw_moving`` draws: a scene of 128 pixels a side for every frame, of which the middle is shown."""
    rng = np.random.default_rng([seed, 0xC11B])
    background = background_for(rng, {mover.colour for mover in prompt.movers})
    paths = _paths(prompt, rng)
    turns = [float(rng.uniform(-15, 15)) for _ in prompt.movers]
    scenes = []
    for number in range(FRAMES):
        objects = tuple(
            Object(mover.shape, mover.colour, path[number, 0] + _OFFSET, path[number, 1] + _OFFSET, radius, turn)
            for mover, (radius, path), turn in zip(prompt.movers, paths, turns, strict=True)
        )
        scenes.append(Scene(objects, background, seed))
    return scenes


def _paths(prompt: MovingPrompt, rng: np.random.Generator) -> list[tuple[float, np.ndarray]]:
    """(radius, positions ``[8, 2]`` in pixels) of every shape: inside the frame, and never in each other's way."""
    while True:
        found = [_path(mover, rng) for mover in prompt.movers]
        if len(found) == 1:
            return found
        (first, there), (second, here) = found
        if float(np.hypot(*(there - here).T).min()) > first + second + GAP:
            return found


def _path(mover: Mover, rng: np.random.Generator) -> tuple[float, np.ndarray]:
    radius = float(rng.uniform(*RADIUS))
    low, high = radius + 2.0, SIDE - radius - 2.0
    step = np.array(DIRECTIONS.get(mover.does, (0.0, 0.0))) * float(rng.uniform(*DISTANCE))
    begin = np.array([rng.uniform(low - min(s, 0.0), high - max(s, 0.0)) for s in step])
    return radius, begin + np.linspace(0.0, 1.0, FRAMES)[:, None] * step


def evaluate_moving(clip: np.ndarray, prompt: MovingPrompt) -> MotionVerdict:
    """Whether a clip shows exactly what a caption says, in every frame and from frame to frame.

    Every shape of the caption, and no other, is seen in every frame; what moves goes at least 16 pixels of 96 along its
    axis and never back, and at most 8 across; what stays leaves its place by at most 8.

    Args:
        clip: uint8 ``[F, H, W, 3]``, or floating point in 0..1; F >= 2.

    Raises:
        ValueError: no clip as described.
    """
    clip = np.asarray(clip)
    if clip.ndim != 4 or len(clip) < 2:
        raise ValueError(f"clip must have shape [F, H, W, 3] with at least 2 frames, got {list(clip.shape)}")
    scale = SIDE / np.array([clip.shape[2], clip.shape[1]])
    tracks = np.zeros((len(prompt.movers), len(clip), 2))
    for number, frame in enumerate(clip):
        seen = detect(frame)
        for place, mover in enumerate(prompt.movers):
            mine = _of(seen, mover)
            if len(mine) != 1:
                return MotionVerdict(False, f"frame {number + 1}: {len(mine)} times {mover.colour} {mover.shape}")
            tracks[place, number] = np.array([mine[0].x, mine[0].y]) * scale
        if len(seen) != len(prompt.movers):
            return MotionVerdict(False, f"frame {number + 1}: {len(seen)} shapes, not {len(prompt.movers)}")
    for mover, track in zip(prompt.movers, tracks, strict=True):
        if reason := _wrong(mover, track):
            return MotionVerdict(False, f"the {mover.colour} {mover.shape} {reason}")
    return MotionVerdict(True, "as the caption says")


def _of(seen: Sequence[Detection], mover: Mover) -> list[Detection]:
    return [found for found in seen if (found.shape, found.colour) == (mover.shape, mover.colour)]


def _wrong(mover: Mover, track: np.ndarray) -> str:
    """What is wrong with the positions ``[F, 2]`` of a shape, "" for nothing."""
    if mover.does == STAYS:
        away = float(np.abs(track - track[0]).max())
        return f"leaves its place by {away:.0f} pixels" if away > DRIFT else ""
    step = np.array(DIRECTIONS[mover.does])
    along, across = track @ step, track @ step[::-1]
    gone = float(along[-1] - along[0])
    if gone < LEAST:
        return f"goes {gone:.0f} pixels {mover.does}"
    if float(np.diff(along).min()) < -BACK:
        return "goes back on its way"
    drift = float(np.abs(across - across[0]).max())
    return f"drifts by {drift:.0f} pixels" if drift > DRIFT else ""


def reversed_prompt(prompt: MovingPrompt) -> MovingPrompt:
    """The caption of the clip played backwards."""
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up", STAYS: STAYS}
    return replace(prompt, movers=tuple(mover._replace(does=opposite[mover.does]) for mover in prompt.movers))
