"""Where the population of TTS-VAR shrinks: the published plan for every number of scales, and another."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..protocols import SearchError


@dataclass(frozen=True)
class PopulationPlan:
    """Where a population shrinks, in multiples of N. Scales count from 0; selection comes after a scale is drawn.

    Attributes:
        start: particles of the first scale.
        cluster, resample: scale -> particles that are kept after it.
    """

    start: int
    cluster: Mapping[int, int]
    resample: Mapping[int, int]

    @property
    def keep(self) -> dict[int, int]:
        """Scale -> particles that are kept, both kinds."""
        return {**self.cluster, **self.resample}

    def populations(self, steps: int) -> list[int]:
        """Multiples of N that each scale is drawn with."""
        sizes, size = [], self.start
        for step in range(steps):
            sizes.append(size)
            size = self.keep.get(step, size)
        return sizes

    def check(self, steps: int) -> None:
        """Raise SearchError if the plan does not fit ``steps`` scales."""
        both = sorted(self.cluster.keys() & self.resample.keys())
        if both:
            raise SearchError(f"scale {both[0]} is clustered and resampled: choose one of the two for each scale")
        outside = [scale for scale in self.keep if not 0 <= scale < steps - 1]
        if outside:
            raise SearchError(
                f"selection after scale {outside[0]}: with {steps} scales it must lie in 0 .. {steps - 2} "
                f"(the best of the last scale is the result)"
            )
        size = self.start
        for scale, kept in sorted(self.keep.items()):
            if kept < 1 or kept > size:
                raise SearchError(f"the population rises from {size} N to {kept} N at scale {scale}: it may only fall")
            size = kept

    @classmethod
    def from_batches(
        cls, batch_schedule: Sequence[int], cluster_scales: Sequence[int], resample_scales: Sequence[int], steps: int
    ) -> PopulationPlan:
        """PopulationPlan of the paper's list: population after the selection at each scale, in multiples of N.

        The published code draws scale i with ``batch_schedule[i - 1]`` particles and selects ``batch_schedule[i]`` of
        them.
        """
        if len(batch_schedule) != steps:
            raise SearchError(f"the batch schedule has {len(batch_schedule)} numbers for {steps} scales: give {steps}")
        for scale, (before, after) in enumerate(itertools.pairwise(batch_schedule), 1):
            if after > before:
                raise SearchError(f"the batch schedule rises from {before} to {after} at scale {scale}")
            if after < before and scale not in (*cluster_scales, *resample_scales):
                raise SearchError(
                    f"the batch schedule falls from {before} to {after} at scale {scale}, where nothing selects: "
                    f"add it to the cluster or resample scales"
                )
        for scale in (*cluster_scales, *resample_scales):
            if not 0 <= scale < steps:
                raise SearchError(f"selection after scale {scale}: there are scales 0 .. {steps - 1}")
        plan = cls(
            batch_schedule[0],
            {s: batch_schedule[s] for s in cluster_scales},
            {s: batch_schedule[s] for s in resample_scales},
        )
        plan.check(steps)
        return plan


PLANS = {
    13: PopulationPlan(8, {2: 6, 5: 4}, {6: 2, 9: 1}),  # the published one
    12: PopulationPlan(8, {2: 6, 5: 4}, {6: 2, 9: 1}),
    10: PopulationPlan(8, {2: 6, 4: 4}, {5: 2, 7: 1}),
    8: PopulationPlan(8, {1: 6, 2: 4}, {3: 2, 5: 1}),
    7: PopulationPlan(8, {1: 6, 3: 4}, {4: 2, 5: 1}),
    6: PopulationPlan(8, {1: 6, 2: 4}, {3: 2, 4: 1}),
}


def default_plan(steps: int) -> PopulationPlan:
    """The plan for a number of scales, or of denoising steps: the published one in proportion where none is listed."""
    if steps in PLANS:
        return PLANS[steps]
    if steps < 6:
        raise SearchError(f"{steps} scales are too few for the default plan of four selections: give a plan")
    at = [max(1, round(scale * (steps - 1) / 12)) for scale in (2, 5, 6, 9)]
    for i in range(1, 4):
        at[i] = max(at[i], at[i - 1] + 1)
    return PopulationPlan(8, {at[0]: 6, at[1]: 4}, {at[2]: 2, at[3]: 1})


def scores_plan(steps: int) -> PopulationPlan:
    """Scores in the place of blind clusters: all 8N go on until scores say something, then as ``default_plan``.

    On the embedded model it finds more than the published plan for a fifth more drawing; unmeasured on Infinity.
    """
    return replace(default_plan(steps), cluster={})


NAMED_PLANS = {"published": default_plan, "scores": scores_plan}
