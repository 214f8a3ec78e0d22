"""Searches among starting noises and along paths of noise: random, zero-order and path search."""

from __future__ import annotations

from comfy_api.latest import io

from ..samplers.methods import PathSearch, RandomSearch, ZeroOrderSearch
from ..samplers.methods.zero_order import AUTO, MUTATIONS, STUCK
from ..samplers.protocols import SearchError
from .method_inputs import NOISE_CATEGORY, method_schema, particles_input, search_output


class RandomSearchNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return method_schema(
            RandomSearch,
            "Best-of-N that drops the worse half partway through, so the same compute tries more seeds.",
            [
                particles_input(),
                io.String.Input(
                    "halvings",
                    default="0.5",
                    tooltip="Drop the worse half after these fractions of the steps, separated by commas, e.g. 0.4, "
                    "0.7. Empty = Best-of-N.",
                ),
            ],
            category=NOISE_CATEGORY,
        )

    @classmethod
    def validate_inputs(cls, halvings=None):
        try:
            fractions_of(halvings or "")
        except SearchError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, particles, halvings) -> io.NodeOutput:
        return search_output(RandomSearch(particles, fractions_of(halvings)))


class ZeroOrderSearchNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return method_schema(
            ZeroOrderSearch,
            "Hill climbing on the initial noise: tries variations of the best noise so far, round by round (Ma et "
            "al. 2025).",
            [
                io.Int.Input(
                    "neighbours", default=4, min=1, max=1024, tooltip="Variations of the best noise tried per round."
                ),
                io.Int.Input(
                    "rounds",
                    default=4,
                    min=0,
                    max=10_000,
                    tooltip="Number of rounds. Costs start + rounds x neighbours images.",
                ),
                io.Float.Input(
                    "cosine",
                    default=AUTO,
                    min=AUTO,
                    max=0.9999,
                    step=0.01,
                    tooltip="How similar the variations are: 0.95 = similar images, 0 = unrelated noise. -1 = auto: "
                    "finds it out, from how much of a score variations have inherited so far.",
                ),
                io.Combo.Input(
                    "stuck",
                    options=list(STUCK),
                    default="retry",
                    tooltip="If no variation is better: restart from new noise, retry, or shrink the distance.",
                ),
                io.Int.Input(
                    "start",
                    default=4,
                    min=1,
                    max=1024,
                    tooltip="Random noises before the first round; the best one leads.",
                ),
                io.Combo.Input(
                    "mutation",
                    options=list(MUTATIONS),
                    default="rotate",
                    tooltip="How variations are made. rotate: towards a random noise (as published). recombine: "
                    "towards what all noises so far say is better; needs no cosine.",
                ),
            ],
            category=NOISE_CATEGORY,
        )

    @classmethod
    def execute(cls, neighbours, rounds, cosine, stuck, start=4, mutation="rotate") -> io.NodeOutput:
        return search_output(ZeroOrderSearch(neighbours, rounds, cosine, stuck, start, mutation))


class PathSearchNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return method_schema(
            PathSearch,
            "Adds noise back, removes it again in several ways and keeps the best, until the image is clean (Ma et "
            "al. 2025). Works at eta 0 too.",
            [
                io.Int.Input("paths", default=2, min=1, max=1024, tooltip="N: images that are kept after every round."),
                io.Int.Input(
                    "branches", default=2, min=1, max=1024, tooltip="M: variations tried from each image, per round."
                ),
                io.Float.Input(
                    "start",
                    default=0.11,
                    min=0.01,
                    max=0.95,
                    step=0.01,
                    tooltip="Noise level of the first round, 0 to 1.",
                ),
                io.Float.Input(
                    "forward", default=0.78, min=0.01, max=0.98, step=0.01, tooltip="Noise added back per round."
                ),
                io.Float.Input(
                    "backward",
                    default=0.81,
                    min=0.02,
                    max=0.99,
                    step=0.01,
                    tooltip="Noise removed again per round (must be larger than forward).",
                ),
                io.Int.Input("steps", default=4, min=1, max=1000, tooltip="Denoising steps per round."),
            ],
            category=NOISE_CATEGORY,
        )

    @classmethod
    def validate_inputs(cls, forward=None, backward=None):
        if forward is not None and backward is not None and forward >= backward:
            return (
                f"forward {forward} must be less than backward {backward}: each round has to come closer to the image"
            )
        return True

    @classmethod
    def execute(cls, paths, branches, start, forward, backward, steps) -> io.NodeOutput:
        return search_output(PathSearch(paths, branches, start, forward, backward, steps))


def fractions_of(text: str) -> tuple[float, ...]:
    """Numbers of a comma-separated list; SearchError names what is no fraction."""
    try:
        values = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise SearchError(f"halvings is {text!r}: fractions separated by commas, e.g. 0.4, 0.7") from error
    RandomSearch(2, values).check_settings()
    return values


NODES = [RandomSearchNode, ZeroOrderSearchNode, PathSearchNode]
