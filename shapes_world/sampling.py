"""Scenes of Shapes World from seeds.

A scene is a pure function of an integer seed and, when one is given, of the `Prompt` that it has to satisfy.
"""

from __future__ import annotations

import math

import numpy as np

from .captions import Prompt, sample_prompt
from .scene import (
    BACKGROUND_LEVELS,
    COLOURS,
    IMAGE_SIZE,
    RELATIONS,
    SHAPES,
    TASKS,
    Background,
    Object,
    Scene,
    relation_between,
)

_RADII = {1: (18.0, 28.0), 2: (16.0, 26.0), 3: (14.0, 22.0), 4: (12.0, 20.0)}
_MARGIN = 3.0  # pixels between an object and the border
_GAP = 4.0  # pixels between two objects: same-coloured neighbours must not merge into one component


def sample_scene(seed: int, prompt: Prompt | None = None) -> Scene:
    """Draw a scene from a seed.

    Args:
        seed: any non-negative integer; equal seeds and prompts give equal scenes.
        prompt: what the scene must show. The scene contains exactly the required objects and nothing else; whatever the
            prompt leaves open (colours, positions, sizes, background) is random. Without a prompt, a task and a prompt
            of that task are drawn first, tasks being equally likely.

    Raises:
        ValueError: the prompt asks for more than four objects, or for an unknown shape, colour or relation.
    """
    rng = np.random.default_rng([seed, 0x5CE7E])
    if prompt is None:
        prompt = sample_prompt(int(rng.integers(2**31)), TASKS[rng.integers(len(TASKS))])
    kinds = _object_kinds(rng, prompt)
    places = _places(rng, len(kinds), prompt.relation)
    objects = tuple(
        Object(shape, colour, round(x, 2), round(y, 2), round(radius, 2), round(float(rng.uniform(-15.0, 15.0)), 2))
        for (shape, colour), (x, y, radius) in zip(kinds, places, strict=True)
    )
    return Scene(objects, background_for(rng, {o.colour for o in objects}), seed)


def _object_kinds(rng: np.random.Generator, prompt: Prompt) -> list[tuple[str, str]]:
    """(shape, colour) of every object, open choices filled in."""
    kinds: list[tuple[str, str]] = []
    for need in prompt.objects:
        if need.shape is not None and need.shape not in SHAPES:
            raise ValueError(f"unknown shape {need.shape!r}; known: {', '.join(SHAPES)}")
        if need.colour is not None and need.colour not in COLOURS:
            raise ValueError(f"unknown colour {need.colour!r}; known: {', '.join(COLOURS)}")
        shape = need.shape or str(rng.choice(SHAPES))
        colour = need.colour or str(rng.choice(list(COLOURS)))
        uniform = rng.random() < 0.7  # groups are mostly of one colour, as in photographs of things counted
        kinds += [
            (shape, colour if need.colour or uniform else str(rng.choice(list(COLOURS))))
            for _ in range(need.count or 1)
        ]
    if not 1 <= len(kinds) <= 4:
        raise ValueError(f"a scene holds 1 to 4 objects, the prompt asks for {len(kinds)}")
    if prompt.relation is not None and (prompt.relation not in RELATIONS or len(kinds) != 2):
        raise ValueError(f"relation {prompt.relation!r} needs two objects and one of: {', '.join(RELATIONS)}")
    return kinds


def _places(rng: np.random.Generator, n: int, relation: str | None) -> list[tuple[float, float, float]]:
    """Rejection-sample (x, y, radius) of `n` objects that do not touch and keep the relation."""
    low, high = _RADII[n]
    while True:
        places: list[tuple[float, float, float]] = []
        for _ in range(60):
            radius = float(rng.uniform(low, high))
            x, y = (float(v) for v in rng.uniform(radius + _MARGIN, IMAGE_SIZE - radius - _MARGIN, size=2))
            if all(math.hypot(x - px, y - py) >= radius + pr + _GAP for px, py, pr in places):
                places.append((x, y, radius))
                if len(places) == n:
                    break
        if len(places) < n:
            continue
        if relation is None or _related(places[0], places[1], relation):
            return places


def _related(first: tuple[float, float, float], second: tuple[float, float, float], relation: str) -> bool:
    a, b = (Object("circle", "red", x, y, r, 0.0) for x, y, r in (first, second))
    return relation_between(a, b) == relation


def background_for(rng: np.random.Generator, colours: set[str]) -> Background:
    """White objects never lie on light ground, nor black ones on dark ground; both together get mid-grey ground."""
    kinds = [kind for kind, bad in (("light", "white"), ("dark", "black")) if bad not in colours]
    kind = str(rng.choice(kinds)) if kinds else "grey"
    level = rng.uniform(*BACKGROUND_LEVELS[kind])
    rgb = tuple(round(float(level + t), 1) for t in rng.uniform(-5.0, 5.0, size=3))  # a hint of tint
    return Background(
        kind,
        rgb,
        round(float(rng.uniform(0, 8)), 2),
        round(float(rng.uniform(0, 360)), 1),
        round(float(rng.uniform(0, 4)), 2),
    )
