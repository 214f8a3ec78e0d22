"""Training data of the two verifiers: pairs of drawings that differ in what a prompt asks for.

A pair is a scene that satisfies a prompt and a corrupted copy of it. Corruptions are those generators make: wrong
count, colour or shape, swapped colours, wrong relation, missing or superfluous object, and malformed objects (two
shapes in one, two colours in one), which count in part. Everything follows from a seed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np

from ....shapes_world.captions import Prompt, Requirement, caption, compatible_prompts, sample_prompt
from ....shapes_world.drawing import draw, object_mask
from ....shapes_world.rules import decide
from ....shapes_world.sampling import sample_scene
from ....shapes_world.scene import COLOURS, IMAGE_SIZE, RELATIONS, SHAPES, TASKS, Object, Scene

REVERSED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

PARTIAL = 0.4
"""Credit of a malformed object for each of the two shapes or colours it could be."""


@dataclass(frozen=True)
class Thing:
    """An object as trained on: `Object`'s fields, and a second shape or colour if it is malformed."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    angle: float
    other_shape: str | None = None
    other_colour: str | None = None
    tint: str | None = None  # how the second colour is mixed in: None, "half" or "blend"

    @classmethod
    def of(cls, item: Object) -> Thing:
        """A well-formed object."""
        return cls(**vars(item))

    def plain(self, shape: str | None = None) -> Object:
        """The drawable object, optionally in another shape."""
        return Object(shape or self.shape, self.colour, self.x, self.y, self.radius, self.angle)


@dataclass(frozen=True)
class Pair:
    """Two pictures and two prompts: `prompts[0]` is true of `things[0]` and false of `things[1]`; `prompts[1]` is a
    near miss of the first, true of the second picture where that is possible."""

    things: tuple[tuple[Thing, ...], tuple[Thing, ...]]
    prompts: tuple[Prompt, Prompt]

    def to_dict(self) -> dict:
        """JSON-ready form."""
        return {
            "things": [[asdict(t) for t in side] for side in self.things],
            "prompts": [p.to_dict() for p in self.prompts],
        }

    @classmethod
    def from_dict(cls, data: dict) -> Pair:
        """Inverse of `to_dict`."""
        return cls(
            tuple(tuple(Thing(**t) for t in side) for side in data["things"]),
            tuple(Prompt.from_dict(p) for p in data["prompts"]),
        )


def sample_pair(seed: int) -> tuple[Pair, np.ndarray]:
    """A pair and its drawings, uint8 [2, 128, 128, 3], from a seed."""
    rng = np.random.default_rng([seed, 0x9A12])
    while True:
        prompt = sample_prompt(int(rng.integers(2**31)), TASKS[rng.integers(len(TASKS))])
        scene = sample_scene(int(rng.integers(2**31)), prompt)
        if rng.random() < 0.3:
            richer = [p for p in compatible_prompts(scene, rng) if decide(p, scene.objects)[0]]
            prompt = richer[rng.integers(len(richer))] if richer else prompt
        right = tuple(Thing.of(o) for o in scene.objects)
        wrong = corrupt(right, prompt, rng)
        if wrong is None or decide(prompt, [t for t in wrong if _well_formed(t)])[0] or not decide(prompt, right)[0]:
            continue
        if rng.random() < 0.1 and len(right) < 4 and prompt.task != "counting":  # harmless extra object: still right
            right = add_thing(right, rng, _random_kind(rng, avoid=right)) or right
        background = scene.background
        if {t.colour for t in wrong} & {"white", "black"} and rng.random() < 0.95:
            redo = sample_scene(
                int(rng.integers(2**31)),
                Prompt(
                    "",
                    "two_object",
                    tuple(Requirement("circle", c, 1) for c in sorted({t.colour for t in right + wrong})[:4]),
                ),
            )
            background = redo.background
        other = second_prompt(prompt, right, wrong, rng)
        if other is None:
            continue
        seeds = [int(s) for s in rng.integers(2**31, size=2)]
        images = [render(Scene((), background, s), side, rng) for s, side in zip(seeds, (right, wrong), strict=True)]
        return Pair((right, wrong), (prompt, other)), np.stack(images)


def render(ground: Scene, things: tuple[Thing, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw things, malformed ones included, on the background of `ground`: uint8 [128, 128, 3]."""
    objects = []
    for thing in things:
        objects.append(thing.plain())
        if thing.other_shape:
            objects.append(replace(thing.plain(thing.other_shape), radius=thing.radius * float(rng.uniform(0.85, 1.0))))
    image = draw(Scene(tuple(objects), ground.background, ground.seed)).astype(np.float32)
    ys, xs = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE].astype(np.float32)
    for thing in things:
        if not thing.other_colour:
            continue
        part = np.full((IMAGE_SIZE, IMAGE_SIZE), 0.5, np.float32)
        if thing.tint == "half":
            turn = rng.uniform(0, 2 * np.pi)
            side = (xs - thing.x) * np.cos(turn) + (ys - thing.y) * np.sin(turn)
            part = 1 / (1 + np.exp(-side / rng.uniform(0.5, 5.0)))
        colour = np.asarray(COLOURS[thing.other_colour], np.float32)
        for shape in (thing.shape, thing.other_shape):
            if shape:
                left, top, alpha = object_mask(thing.plain(shape))
                view = image[top : top + alpha.shape[0], left : left + alpha.shape[1]]
                cover = alpha * np.pad(part, 64)[top + 64 :, left + 64 :][: alpha.shape[0], : alpha.shape[1]]
                view += cover[: view.shape[0], : view.shape[1], None] * (colour - view)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def corrupt(things: tuple[Thing, ...], prompt: Prompt, rng: np.random.Generator) -> tuple[Thing, ...] | None:  # noqa: C901
    """A random corruption that may break `prompt`; None if the one drawn does not apply. The caller checks."""
    kinds = {"shape": 3, "recolour": 2, "missing": 2, "hybrid": 2, "tint": 1}
    if prompt.task == "counting":
        kinds = {"count": 6, "shape": 2, "missing": 2, "hybrid": 2}
    elif any(n.colour for n in prompt.objects):
        kinds |= {"recolour": 4, "tint": 2, "swap": 4 if len(things) > 1 else 0}
    elif prompt.relation:
        kinds |= {"move": 8}
    kind = str(rng.choice(list(kinds), p=np.array(list(kinds.values())) / sum(kinds.values())))
    index = int(rng.integers(len(things)))
    thing = things[index]
    out = list(things)
    if kind == "shape":
        # Often the shape of a neighbour: "two stars" for "a star and a ring" is what generators draw.
        pool = [t.shape for t in things if t.shape != thing.shape] if rng.random() < 0.4 else []
        out[index] = replace(thing, shape=str(rng.choice(pool or [s for s in SHAPES if s != thing.shape])))
    elif kind == "recolour":
        pool = [t.colour for t in things if t.colour != thing.colour] if rng.random() < 0.4 else []
        out[index] = replace(thing, colour=str(rng.choice(pool or [c for c in COLOURS if c != thing.colour])))
    elif kind == "missing":
        if len(out) == 1:
            return None
        del out[index]
    elif kind == "count":
        if rng.random() < 0.5 and len(out) < 4:
            return add_thing(things, rng, (thing.shape, thing.colour))
        if len(out) > 1:
            del out[index]
    elif kind == "hybrid":
        other = str(rng.choice([s for s in SHAPES if s != thing.shape]))
        out[index] = replace(thing, other_shape=other)
    elif kind == "tint":
        other = str(rng.choice([c for c in COLOURS if c != thing.colour]))
        out[index] = replace(thing, other_colour=other, tint=str(rng.choice(["half", "blend"])))
    elif kind == "swap":
        first, second = rng.permutation(len(things))[:2]
        out[first] = replace(things[first], colour=things[second].colour)
        out[second] = replace(things[second], colour=things[first].colour)
    elif kind == "move":
        first, second = out[:2]
        if rng.random() < 0.6:
            out[:2] = [replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y)]
        else:
            relation = str(rng.choice([r for r in RELATIONS if r != prompt.relation]))
            moved = sample_scene(int(rng.integers(2**31)), replace(prompt, relation=relation)).objects[:2]
            out[:2] = [replace(a, x=b.x, y=b.y, radius=b.radius) for a, b in zip(out, moved, strict=False)]
    if kind != "count" and len(out) < 4 and rng.random() < 0.1:
        return add_thing(tuple(out), rng, _random_kind(rng))
    return tuple(out)


def score(prompt: Prompt, things: tuple[Thing, ...]) -> float:
    """Graded quality in -1..1: 1 for a correct picture, less the more of the prompt is missing.

    Malformed objects earn part of their requirement; superfluous objects cost a little even where GenEval ignores them.
    """
    wanted = sum(n.count or 1 for n in prompt.objects)
    extras = max(0, len(things) - wanted)
    if decide(prompt, [t for t in things if _well_formed(t)])[0]:
        if prompt.task == "counting" and any(not _well_formed(t) and _credit(t, prompt.objects[0]) for t in things):
            return -0.2
        return 1.0 - 0.1 * extras
    parts = []
    for need in prompt.objects:
        credits = sorted((_credit(t, need) for t in things), reverse=True)
        if prompt.task == "counting":
            parts.append(max(0.0, 1.0 - 0.5 * abs(sum(c for c in credits if c > 0.3) - need.count)))
        else:
            count = need.count or 1
            parts.append(sum(credits[:count]) / count)
    good = float(np.mean(parts)) * (0.6 if prompt.task == "counting" else 1.0)
    if prompt.relation is not None and min(parts) > 0.9:
        good = 0.5
    return max(-1.0, -1.0 + 0.9 * good**2 - 0.05 * extras)


def mutate(prompt: Prompt, rng: np.random.Generator) -> Prompt:
    """A prompt that differs in one attribute: a shape, a colour, a count, the relation, or the colours' order."""
    needs = list(prompt.objects)
    options = ["shape"]
    if prompt.relation:
        options += ["relation"] * 2
    if prompt.task == "counting":
        options += ["count"] * 2
    if any(n.colour for n in needs):
        options.append("colour")
    if len(needs) == 2 and needs[0].colour and needs[1].colour and needs[0].colour != needs[1].colour:
        options.append("swap")
    option = str(rng.choice(options))
    relation = prompt.relation
    index = int(rng.integers(len(needs)))
    need = needs[index]
    if option == "shape":
        taken = {n.shape for n in needs}
        needs[index] = replace(need, shape=str(rng.choice([s for s in SHAPES if s not in taken])))
    elif option == "relation":
        relation = str(rng.choice([r for r in RELATIONS if r != relation]))
    elif option == "count":
        needs[index] = replace(need, count=int(rng.choice([c for c in (2, 3, 4) if c != need.count])))
    elif option == "colour":
        index = next(i for i in rng.permutation(len(needs)) if needs[i].colour)
        needs[index] = replace(needs[index], colour=str(rng.choice([c for c in COLOURS if c != needs[index].colour])))
    else:
        needs = [replace(needs[0], colour=needs[1].colour), replace(needs[1], colour=needs[0].colour)]
    changed = replace(prompt, objects=tuple(needs), relation=relation)
    return replace(changed, text=caption(changed, rng))


def opposite(prompt: Prompt, rng: np.random.Generator) -> Prompt | None:
    """The same words bound the other way round: relation reversed or colours swapped; None where nothing is bound.

    A sum over words cannot tell these from the truth, which is why contrastive models rarely learn them by themselves
    (Yuksekgonul et al. 2023, "When and why vision-language models behave like bags-of-words").
    """
    if prompt.relation:
        changed = replace(prompt, relation=REVERSED[prompt.relation])
    elif len(prompt.objects) == 2 and len({need.colour for need in prompt.objects} - {None}) == 2:
        first, second = prompt.objects
        changed = replace(prompt, objects=(replace(first, colour=second.colour), replace(second, colour=first.colour)))
    else:
        return None
    return replace(changed, text=caption(changed, rng))


def meaning(prompt: Prompt) -> tuple:
    """What a prompt asks for, regardless of its wording."""
    return (prompt.task == "counting", prompt.objects, prompt.relation)


def _well_formed(thing: Thing) -> bool:
    return thing.other_shape is None and thing.other_colour is None


def _credit(thing: Thing, need: Requirement) -> float:
    """How far a thing serves a requirement, 0..1; the right shape in a wrong colour earns half."""
    if need.shape is None or need.shape == thing.shape:
        shape = PARTIAL if thing.other_shape else 1.0
    else:
        shape = PARTIAL if need.shape == thing.other_shape else 0.0
    if need.colour is None or need.colour == thing.colour:
        colour = PARTIAL if thing.other_colour and need.colour else 1.0
    else:
        colour = PARTIAL if need.colour == thing.other_colour else 0.0
    return shape * (0.5 + 0.5 * colour)


def second_prompt(
    prompt: Prompt, right: tuple[Thing, ...], wrong: tuple[Thing, ...], rng: np.random.Generator
) -> Prompt | None:
    """Preferably a prompt true of `wrong` and false of `right`, else a near miss of `prompt` that is false of both."""
    if all(_well_formed(t) for t in wrong) and rng.random() < 0.8:
        scene = Scene(tuple(t.plain() for t in wrong), None, 0)
        fitting = [p for p in compatible_prompts(scene, rng) if decide(p, wrong)[0] and not decide(p, right)[0]]
        if fitting:
            return fitting[rng.integers(len(fitting))]
    for _ in range(4):
        other = mutate(prompt, rng)
        if not decide(other, right)[0]:
            return other
    return None


def add_thing(things: tuple[Thing, ...], rng: np.random.Generator, kind: tuple[str, str]) -> tuple[Thing, ...] | None:
    """Things with one more of `kind`, (shape, colour), that touches none; None if no room is found."""
    for _ in range(30):
        radius = float(rng.uniform(11, 18))
        x, y = (float(v) for v in rng.uniform(radius + 3, IMAGE_SIZE - radius - 3, size=2))
        if all(np.hypot(x - t.x, y - t.y) > radius + t.radius + 2 for t in things):
            return (*things, Thing(*kind, x, y, radius, float(rng.uniform(-15, 15))))
    return None


def _random_kind(rng, avoid=()) -> tuple[str, str]:
    shapes = [s for s in SHAPES if s not in {t.shape for t in avoid}]
    return str(rng.choice(shapes)), str(rng.choice([c for c in COLOURS if c not in ("white", "black")]))
