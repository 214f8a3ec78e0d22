"""What a population that shrinks costs, against one particle all the way: FLOPs, seconds and memory without decoding.

    python -m testtime.bench.infinity_schedule [--rounds 3] [--out FILE]

TTS-VAR's argument (Chen et al. 2025, fig. 2): the last scales are nearly all of the cost, so that eight particles at
the early ones add little, and the cache never grows beyond that of a single image. Released sizes by formula, small
random models by the clock; rounds of the two alternate.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from ..models.infinity.config import RELEASED, InfinityConfig
from ..models.infinity.flops import cache_bytes, scale_flops
from ..models.infinity.packed import pack
from ..models.infinity.process import ScalewiseProcess
from ..models.infinity.sampling import ScaleSampling
from ..models.infinity.scale_state import Decoder
from ..models.infinity.schedules import ScaleSchedule, schedule_for
from ..models.infinity.text import TextFeatures
from ..models.infinity.transformer import Infinity
from ..models.tiny.var import SCHEDULE, TRANSFORMER
from ..samplers.methods.population_plan import default_plan
from ..samplers.processes.streams import Streams
from .provenance import RESULTS, clock, origin, write_json

TOKENS = 20  # of the prompt
BY_FORMULA = {
    f"{name} at {size}": (RELEASED[name], schedule_for(1.0, size))
    for name, size in (("infinity_2b", "1M"), ("infinity_8b", "1M"), ("infinity_2b", "0.25M"), ("infinity_2b", "0.06M"))
}
BY_CLOCK = {
    "125M at 0.06M": (RELEASED["layer12"], schedule_for(1.0, "0.06M")),
    "embedded sizes": (TRANSFORMER, SCHEDULE),
}


def populations(schedule: ScaleSchedule) -> list[int]:
    """Particles that TTS-VAR draws each scale with, for N = 1."""
    return default_plan(len(schedule)).populations(len(schedule))


def by_formula(config: InfinityConfig, schedule: ScaleSchedule, sizes: Sequence[int]) -> dict:
    """FLOPs of all scales and the largest cache, of ``sizes`` particles per scale against one.

    The cache of the last scale is not kept: nothing attends to it.
    """
    costs = [scale_flops(config, schedule, scale, TOKENS) for scale in range(len(schedule))]
    shrinking = sum(n * cost for n, cost in zip(sizes, costs, strict=True))
    offsets = schedule.offsets

    def cache(numbers: Sequence[int]) -> float:
        held = [n * cache_bytes(config, offsets[k + 1]) for k, n in enumerate(numbers[:-1])]
        return max(*held, numbers[-1] * cache_bytes(config, offsets[-2])) / 2**30

    ones = [1] * len(schedule)
    return {
        "tflop_of_one": round(sum(costs) / 1e12, 2),
        "tflop_shrinking": round(shrinking / 1e12, 2),
        "times_flop": round(shrinking / sum(costs), 3),
        "cache_gib_of_one": round(cache(ones), 3),
        "cache_gib_shrinking": round(cache(sizes), 3),
    }


class Sampler:
    """One image's population, drawn scale by scale with given sizes; who lives on does not matter here."""

    def __init__(self, model: Infinity, schedule: ScaleSchedule, sizes: Sequence[int]):
        generator = torch.Generator().manual_seed(0)
        features = [torch.randn(min(TOKENS, model.config.text_length), model.config.text_width, generator=generator)]
        self.model, self.schedule, self.sizes = model, schedule, sizes
        self.features = TextFeatures.stack(features)

    @torch.no_grad()
    def sample(self) -> float:
        """Seconds of one image."""
        began = clock()
        process = ScalewiseProcess(
            self.model, self.model.prompt(self.features), self.schedule, Decoder(lambda total: total), 1, Streams(7),
            sampling=ScaleSampling(3.0, 0.5),
        )  # fmt: skip
        process.expect(self.sizes)
        state = process.start(self.sizes[0])
        for size in self.sizes:
            state, _ = process.advance(state.select(torch.arange(size)))
        return clock() - began


def by_clock(config: InfinityConfig, schedule: ScaleSchedule, rounds: int) -> dict:
    """Seconds of one particle and of the shrinking population; the ratio is the median of the rounds' ratios."""
    torch.manual_seed(0)
    model = Infinity(config).eval().requires_grad_(False)
    pack(model)
    one = Sampler(model, schedule, [1] * len(schedule))
    many = Sampler(model, schedule, populations(schedule))
    one.sample(), many.sample()
    pairs = [(one.sample(), many.sample()) for _ in range(rounds)]
    return {
        "seconds_of_one": round(statistics.median(first for first, _ in pairs), 3),
        "seconds_shrinking": round(statistics.median(second for _, second in pairs), 3),
        "times_seconds": round(statistics.median(second / first for first, second in pairs), 3),
        "times_flop": by_formula(config, schedule, populations(schedule))["times_flop"],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    parser = argparse.ArgumentParser(prog="testtime bench infinity_schedule", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "infinity-schedule.json")
    options = parser.parse_args(arguments)
    cases = {name: by_formula(*case, populations(case[1])) for name, case in BY_FORMULA.items()}
    cases |= {name: by_clock(*case, options.rounds) for name, case in BY_CLOCK.items()}
    write_json(options.out, origin() | {"cases": cases})
    print(json.dumps(cases, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
