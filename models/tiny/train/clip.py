"""Train ShapesCLIP: `python -m testtime.models.tiny.train.clip`. Resumes by itself."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ....shapes_world.captions import Prompt, sample_prompt
from ....shapes_world.rules import decide, relations
from ....shapes_world.scene import COLOURS, RELATIONS, SHAPES
from ..clip import ShapesCLIP
from ..vocabulary import encode_batch
from .degrade import blur
from .verifier_data import REVERSED, Pair, meaning, mutate, opposite
from .verifier_loop import RUNS, VALIDATION_SEED, GridHead, parser, train
from .verifier_pool import Feed, to_float

WORDS_ALONE = 96
"""Captions a step that come without a picture: words are cheap, and order is what the text tower learns last."""

MAX_SCALE = 60.0
"""Upper bound of the logit scale: sharper logits overfit the near misses."""

_SHAPES, _COLOURS = {s: i for i, s in enumerate(SHAPES)}, {c: i for i, c in enumerate(COLOURS)}


class BindingHead(GridHead):
    """Grid labels, and which properties belong together, read from the finished vectors of both towers by one layer.

    A contrastive loss alone is content with a bag of words. Here the vector of a picture and that of a caption have to
    answer the same questions, "is a red star there", "is the star the left one", so that both learn to bind, in the
    same directions of their common space.
    """

    PAIRS, SIDES = len(SHAPES) * len(COLOURS), len(SHAPES) * len(RELATIONS)

    def __init__(self, width: int, dim: int):
        super().__init__(width)
        self.bind = nn.Linear(dim, self.PAIRS + self.SIDES)

    def binding_loss(self, vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of ``vectors [n, dim]`` (unit length) against ``labels [n, questions]``: 0, 1, or -1 (open)."""
        error = F.binary_cross_entropy_with_logits(
            self.bind(vectors * vectors.shape[-1] ** 0.5), labels.clamp(min=0).float(), reduction="none"
        )
        total = error.new_zeros(())
        for part in (slice(0, self.PAIRS), slice(self.PAIRS, None)):
            for answer in (1, 0):  # most answers are no: yes and no weigh the same in all
                chosen = labels[:, part] == answer
                total = total + (error[:, part] * chosen).sum() / chosen.sum().clamp(min=1)
        return total


def binding_of_prompt(prompt: Prompt) -> np.ndarray:
    """int8 ``[questions]``: what the words of ``prompt`` bind, 1 or 0; -1 where they leave it open."""
    pairs = np.full((len(SHAPES), len(COLOURS)), -1, np.int8)
    sides = np.full((len(SHAPES), len(RELATIONS)), -1, np.int8)
    if all(need.shape and need.colour for need in prompt.objects):
        pairs[:] = 0
        for need in prompt.objects:
            pairs[_SHAPES[need.shape], _COLOURS[need.colour]] = 1
    if prompt.relation:
        sides[:] = 0
        there, back = RELATIONS.index(prompt.relation), RELATIONS.index(REVERSED[prompt.relation])
        for need, side in zip(prompt.objects, (there, back), strict=True):
            sides[_SHAPES[need.shape], side] = 1
    return np.concatenate([pairs.ravel(), sides.ravel()])


def binding_of_picture(things: tuple) -> np.ndarray:
    """int8 ``[questions]`` of what is drawn; -1 where a malformed object or an unclear position leaves it open."""
    pairs = np.zeros((len(SHAPES), len(COLOURS)), np.int8)
    sides = np.full((len(SHAPES), len(RELATIONS)), -1, np.int8)
    for thing in things:
        for shape in filter(None, (thing.shape, thing.other_shape)):
            malformed = bool(thing.other_shape or thing.other_colour)
            pairs[_SHAPES[shape], _COLOURS[thing.colour]] = -1 if malformed else 1
            if thing.other_colour:
                pairs[_SHAPES[shape], _COLOURS[thing.other_colour]] = -1
    if len(things) == 2 and len({t.shape for t in things}) == 2 and not any(t.other_shape for t in things):
        found = [relations(*things), relations(*things[::-1])]
        if len(found[0]) == 1:
            sides[:] = 0
            for thing, names in zip(things, found, strict=True):
                sides[_SHAPES[thing.shape], RELATIONS.index(names[0])] = 1
    return np.concatenate([pairs.ravel(), sides.ravel()])


def truth(prompts: list[Prompt], pictures: list[tuple]) -> tuple[np.ndarray, np.ndarray]:
    """(true, undecided), bool [pictures, prompts]; undecided are those that hinge on a malformed object."""
    sure = np.zeros((len(pictures), len(SHAPES) + 1, len(COLOURS) + 1), np.int64)
    maybe = np.zeros_like(sure)
    for row, things in enumerate(pictures):
        for t in things:
            for shape in filter(None, (t.shape, t.other_shape)):
                for colour in filter(None, (t.colour, t.other_colour)):
                    formed = not (t.other_shape or t.other_colour)
                    for s in (_SHAPES[shape], -1):
                        for c in (_COLOURS[colour], -1):
                            sure[row, s, c] += formed
                            maybe[row, s, c] += not formed
    true = np.ones((len(pictures), len(prompts)), bool)
    possible = np.ones_like(true)
    for column, prompt in enumerate(prompts):
        for need in prompt.objects:
            at = (slice(None), _SHAPES.get(need.shape, -1), _COLOURS.get(need.colour, -1))
            count, exact = need.count or 1, prompt.task == "counting"
            true[:, column] &= ((sure[at] == count) & (maybe[at] == 0)) if exact else (sure[at] >= count)
            possible[:, column] &= (sure[at] + maybe[at] >= count) & ((sure[at] <= count) if exact else True)
        if prompt.relation:
            for row in np.flatnonzero(true[:, column]):
                true[row, column] = possible[row, column] = decide(prompt, pictures[row])[0]
    return true, possible & ~true


def loss(model, head, pairs: list[Pair], images, labels, step):
    """Symmetric contrastive loss; what happens to be true of another picture of the batch is no negative there."""
    rng = np.random.default_rng([step, 0xC11F])
    prompts = [p for pair in pairs for p in pair.prompts]
    misses = [mutate(p, rng) for p in prompts for _ in range(2)]
    prompts += misses + [other for p in prompts if (other := opposite(p, rng))]
    pictures = [things for pair in pairs for things in pair.things]
    true, undecided = truth(prompts, pictures)
    true, undecided = torch.from_numpy(true), torch.from_numpy(undecided)

    tokens = model.image_tokens(images)
    seen = model.embed_tokens(tokens)
    captions = encode_batch([p.text for p in prompts])
    words = model.read(captions)
    told = model.embed_words(words, captions)
    logits = model.logit_scale.exp().clamp(max=MAX_SCALE) * seen @ told.T

    own = torch.arange(len(pictures))  # prompt i of the first ones was written for picture i
    has = true[own, own]
    masked = logits.masked_fill(true | undecided, -torch.inf)
    masked[own, own] = logits[own, own]
    picture_to_text = F.cross_entropy(masked[has], own[has])
    back = masked[:, : len(own)].T[has]
    text_to_picture = F.cross_entropy(back, own[has])
    aux = head.loss(tokens, labels) + head.words_loss(words, captions)
    bound = head.binding_loss(seen, torch.from_numpy(np.stack([binding_of_picture(things) for things in pictures])))
    bound = bound + words_loss(model, head, prompts, told, rng)
    weight = 0.5 if step < 1500 else 0.2
    hit = (masked[has].argmax(1) == own[has]).float().mean()
    return 0.6 * picture_to_text + 0.4 * text_to_picture + weight * aux + bound, {
        "image_to_text": picture_to_text, "text_to_image": text_to_picture, "aux": aux, "bound": bound, "hit": hit,
        "scale": model.logit_scale.exp(),
    }  # fmt: skip


def words_loss(model, head: BindingHead, prompts: list[Prompt], told: torch.Tensor, rng: np.random.Generator):
    """What captions bind: those of the batch, told already, and ``WORDS_ALONE`` of the tasks that are about binding."""
    tasks = [("position", "color_attr")[i % 2] for i in range(WORDS_ALONE)]
    more = [sample_prompt(int(rng.integers(2**31)), task) for task in tasks]
    vectors = torch.cat([told, model.encode_text(encode_batch([p.text for p in more]))])
    return head.binding_loss(vectors, torch.from_numpy(np.stack([binding_of_prompt(p) for p in prompts + more])))


def distractors(prompt: Prompt, things: tuple, rng: np.random.Generator, count: int = 63) -> list[Prompt]:
    """Near misses of `prompt`, all false of `things` and of different meaning: first all found that differ in one
    attribute, then, as few prompts have 63 of those, some that differ from one of these in one more."""
    found = {meaning(prompt): prompt}
    for depth, tries in ((1, 400), (2, 2000)):
        sources = [prompt] if depth == 1 else list(found.values())
        for _ in range(tries):
            if len(found) > count:
                break
            other = mutate(sources[rng.integers(len(sources))], rng)
            if not decide(other, things)[0]:
                found.setdefault(meaning(other), other)
    return list(found.values())[1 : count + 1]


@lru_cache(maxsize=1)
def _candidates() -> list[torch.Tensor]:
    """Tokens [64, 16] of the true caption and its near misses, for every held-out pair's first picture."""
    rng = np.random.default_rng(7)
    pairs = Feed(RUNS / "pool", 500, VALIDATION_SEED).pairs
    prompts = [[pair.prompts[0], *distractors(pair.prompts[0], pair.things[0], rng)] for pair in pairs]
    return [encode_batch([p.text for p in group]) for group in prompts]


@torch.no_grad()
def evaluate(model: ShapesCLIP) -> dict:
    """Top-1 retrieval of the true caption among 64 near misses, on held-out pictures in several conditions."""
    feed = Feed(RUNS / "pool", 500, VALIDATION_SEED)
    feed.find_decoded()
    told = [model.encode_text(tokens) for tokens in _candidates()]
    tasks = [pair.prompts[0].task for pair in feed.pairs]
    texts = encode_batch([pair.prompts[0].text for pair in feed.pairs])

    def measure(both: torch.Tensor) -> tuple[np.ndarray, float]:
        seen = torch.cat([model.encode_image(part) for part in both.split(50)])
        top = np.array([int((t @ s).argmax()) == 0 for s, t in zip(seen[::2], told, strict=True)])
        caption = model.encode_text(texts)
        return top, float(((seen[::2] * caption).sum(1) > (seen[1::2] * caption).sum(1)).float().mean())

    drawn = to_float(feed.images.reshape(-1, *feed.images.shape[2:]))
    views = {"drawn": drawn, "blurred_to_32": blur(drawn, 32), "blurred_to_16": blur(drawn, 16)}
    if feed.decoded is not None:
        views["decoded"] = to_float(feed.decoded[:, 0].reshape(-1, *feed.images.shape[2:]))
    metrics = {"validation_pictures": len(feed.pairs), "captions_per_picture": 64}
    for name, images in views.items():
        top, pairs = measure(images)
        metrics[f"retrieval_top1_{name}"] = round(float(top.mean()), 4)
        metrics[f"pair_accuracy_{name}"] = round(pairs, 4)
        if name == "drawn":
            metrics["retrieval_top1_by_task"] = {
                task: round(float(top[[t == task for t in tasks]].mean()), 4) for task in sorted(set(tasks))
            }
    return metrics


def main() -> None:
    """Command line."""
    args = parser("clip", seed=10).parse_args()
    torch.manual_seed(args.seed)
    model = ShapesCLIP()
    train(args, model, BindingHead(model.text_embedding.words.embedding_dim, model.dim), loss, evaluate)


if __name__ == "__main__":
    main()
