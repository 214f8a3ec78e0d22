"""Pairs of drawings that differ in what binds, and in nothing else that a bag of words could tell.

For a prompt of each task the wrong picture is the right one with the one change that a generator which does not bind
makes: places exchanged (position), colours exchanged (two colours), one object more or fewer (counting), one of the two
shapes twice (two objects), another colour, another shape.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ....shapes_world.captions import Prompt, sample_prompt
from ....shapes_world.rules import decide
from ....shapes_world.sampling import sample_scene
from ....shapes_world.scene import COLOURS, RELATIONS, SHAPES, TASKS, Scene
from .verifier_data import Pair, Thing, add_thing, render, second_prompt


def hard_pair(seed: int, task: str) -> tuple[Prompt, tuple[tuple[Thing, ...], tuple[Thing, ...]], np.ndarray]:
    """Prompt, things of the right and of the wrong picture, and both drawings, uint8 ``[2, 128, 128, 3]``."""
    rng = np.random.default_rng([seed, 0x4A2D])
    while True:
        prompt = sample_prompt(int(rng.integers(2**31)), task)
        scene = sample_scene(int(rng.integers(2**31)), prompt)
        right = tuple(Thing.of(item) for item in scene.objects)
        wrong = unbound(right, prompt, rng)
        grounds = {"white", "black"} & {t.colour for t in (wrong or ()) if t.colour not in {r.colour for r in right}}
        if wrong is None or grounds or decide(prompt, wrong)[0] or not decide(prompt, right)[0]:
            continue
        seeds = [int(s) for s in rng.integers(2**31, size=2)]
        sides = (right, wrong)
        images = [render(Scene((), scene.background, s), side, rng) for s, side in zip(seeds, sides, strict=True)]
        return prompt, sides, np.stack(images)


def sample_hard_pair(seed: int) -> tuple[Pair, np.ndarray]:
    """As `verifier_data.sample_pair`, of hard pairs; half of them are about position."""
    rng = np.random.default_rng([seed, 0x4A2E])
    task = "position" if rng.random() < 0.5 else str(rng.choice(TASKS))
    while True:
        prompt, sides, images = hard_pair(int(rng.integers(2**31)), task)
        other = second_prompt(prompt, *sides, rng)
        if other is not None:
            return Pair(sides, (prompt, other)), images


def unbound(things: tuple[Thing, ...], prompt: Prompt, rng: np.random.Generator) -> tuple[Thing, ...] | None:
    """The one change of ``prompt``'s task (see above); None if there is no room for it. The caller checks."""
    out = list(things)
    if prompt.task == "position":
        first, second = out[:2]
        if rng.random() < 0.5:
            places = [(second.x, second.y, second.radius), (first.x, first.y, first.radius)]
        else:
            relation = str(rng.choice([r for r in RELATIONS if r != prompt.relation]))
            moved = sample_scene(int(rng.integers(2**31)), replace(prompt, relation=relation)).objects
            places = [(item.x, item.y, item.radius) for item in moved[:2]]
        return tuple(replace(t, x=x, y=y, radius=r) for t, (x, y, r) in zip(out, places, strict=True))
    if prompt.task == "color_attr":
        return (replace(out[0], colour=out[1].colour), replace(out[1], colour=out[0].colour))
    index = int(rng.integers(len(out)))
    thing = out[index]
    if prompt.task == "counting":
        if len(out) < 4 and rng.random() < 0.5:
            return add_thing(things, rng, (thing.shape, thing.colour))
        return tuple(out[:index] + out[index + 1 :])
    if prompt.task == "colors":
        out[index] = replace(thing, colour=str(rng.choice([c for c in COLOURS if c != thing.colour])))
    elif prompt.task == "two_object":
        out[index] = replace(thing, shape=out[1 - index].shape)
    else:
        out[index] = replace(thing, shape=str(rng.choice([s for s in SHAPES if s != thing.shape])))
    return tuple(out)
