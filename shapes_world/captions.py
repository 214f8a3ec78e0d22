"""Prompts of Shapes World: what a caption asks for, in words and as a checkable specification."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .scene import COLOURS, RELATIONS, SHAPES, TASKS, Scene, relation_between

NUMBER_WORDS = {1: "one", 2: "two", 3: "three", 4: "four"}
PREFIXES = ("", "a photo of ", "a picture of ", "a drawing of ", "an image of ")

_PLURALS = {"cross": "crosses"}


@dataclass(frozen=True)
class Requirement:
    """One thing that must be in the picture; None leaves the property open (an open count means one)."""

    shape: str | None = None
    colour: str | None = None
    count: int | None = None


@dataclass(frozen=True)
class Prompt:
    """A caption with its meaning.

    `relation` is one of `RELATIONS` or None and tells where the first object is relative to the second.
    """

    text: str
    task: str
    objects: tuple[Requirement, ...]
    relation: str | None = None

    def to_dict(self) -> dict:
        """JSON-ready form; `from_dict` restores an equal prompt."""
        return {
            "text": self.text,
            "task": self.task,
            "objects": [vars(o).copy() for o in self.objects],
            "relation": self.relation,
        }

    @classmethod
    def from_dict(cls, data: dict) -> Prompt:
        """Inverse of `to_dict`."""
        return cls(data["text"], data["task"], tuple(Requirement(**o) for o in data["objects"]), data.get("relation"))


def plural(shape: str) -> str:
    """The plural of a shape name."""
    return _PLURALS.get(shape, shape + "s")


def sample_prompt(seed: int, task: str) -> Prompt:
    """Draw a prompt of `task` (one of `TASKS`) from a seed, with one of its phrasings.

    Raises:
        ValueError: unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
    rng = np.random.default_rng([seed, 0xCA97, TASKS.index(task)])
    shapes = [str(s) for s in rng.choice(SHAPES, size=2, replace=False)]
    colours = [str(c) for c in rng.choice(list(COLOURS), size=2, replace=False)]
    relation = None
    if task == "single_object":
        objects = (Requirement(shapes[0], None, 1),)
    elif task == "colors":
        objects = (Requirement(shapes[0], colours[0], 1),)
    elif task == "counting":
        objects = (Requirement(shapes[0], None, int(rng.choice([2, 3, 4]))),)
    elif task == "color_attr":
        objects = tuple(Requirement(s, c, 1) for s, c in zip(shapes, colours, strict=True))
    else:
        objects = tuple(Requirement(s, None, 1) for s in shapes)
        relation = str(rng.choice(RELATIONS)) if task == "position" else None
    prompt = Prompt("", task, objects, relation)
    return Prompt(caption(prompt, rng), task, objects, relation)


def caption(prompt: Prompt, rng: np.random.Generator) -> str:
    """Word the requirements of `prompt` (its `text` is ignored), choosing a phrasing with `rng`.

    All phrasings of a prompt mean the same and use lower-case words of the world's vocabulary only.
    """
    prefix = PREFIXES[0] if rng.random() < 0.4 else PREFIXES[rng.integers(1, len(PREFIXES))]
    names = [_noun(o) for o in prompt.objects]
    if prompt.relation is None:
        return prefix + " and ".join(names)
    wordings = {
        "left of": ("left of", "to the left of", "on the left of"),
        "right of": ("right of", "to the right of", "on the right of"),
        "above": ("above", "over"),
        "below": ("below", "under"),
    }[prompt.relation]
    verb = "is " if not prefix and rng.random() < 0.15 else ""
    return f"{prefix}{names[0]} {verb}{wordings[rng.integers(len(wordings))]} {names[1]}"


def compatible_prompts(scene: Scene, rng: np.random.Generator) -> list[Prompt]:
    """Every task's prompt that is true of `scene` and complete (it accounts for all objects), freshly worded.

    Besides the six plain forms this yields richer ones (coloured counts and coloured relations, under the task of their
    plain form), so that models understand prompts that a rewriter has made more specific.
    """
    items = scene.objects
    shapes, colours = {o.shape for o in items}, {o.colour for o in items}
    found: list[tuple[str, tuple[Requirement, ...], str | None]] = []
    if len(items) == 1:
        found.append(("single_object", (Requirement(items[0].shape, None, 1),), None))
        found.append(("colors", (Requirement(items[0].shape, items[0].colour, 1),), None))
    elif len(shapes) == 1:
        found.append(("counting", (Requirement(items[0].shape, None, len(items)),), None))
        if len(colours) == 1:
            found.append(("counting", (Requirement(items[0].shape, items[0].colour, len(items)),), None))
    elif len(items) == 2:
        first, second = items if rng.random() < 0.5 else items[::-1]
        plain = tuple(Requirement(o.shape, None, 1) for o in (first, second))
        coloured = tuple(Requirement(o.shape, o.colour, 1) for o in (first, second))
        relation = relation_between(first, second)
        found += [("two_object", plain, None), ("color_attr", coloured, None)]
        if relation is not None:
            found += [("position", plain, relation), ("position", coloured, relation)]
    prompts = [Prompt("", task, objects, relation) for task, objects, relation in found]
    return [Prompt(caption(p, rng), p.task, p.objects, p.relation) for p in prompts]


def _noun(need: Requirement) -> str:
    """ "a red star", "three stars"; a missing shape reads "object"."""
    count = need.count or 1
    words = [need.colour] if need.colour else []
    if count == 1:
        words.append(need.shape or "object")
        article = "an" if words[0][0] in "aeiou" else "a"
        return " ".join([article, *words])
    words.append(plural(need.shape or "object"))
    return " ".join([NUMBER_WORDS.get(count, str(count)), *words])
