"""What was measured of one row of a benchmark: figures per image, sums over the images, and the row made of them."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..samplers.protocols import SearchResult
from ..shapes_world.captions import Prompt
from ..shapes_world.intervals import Interval, mean_interval, per_prompt
from ..shapes_world.suite import by_task, score_table

SCORES = ("reward", "held_out", "selection_bias")
"""Figures per image that a row gives as mean and interval."""


@dataclass
class Measured:
    """Images of one row, in the order of its prompts, the images of a prompt one after another.

    Attributes:
        verdicts: of ShapesEval, a bool per image.
        scores: lists with a number per image: ``SCORES``. A reward that could not be had counts 0.
        sums: figures that are only known of images together: "nfe", "seconds" and so on, see ``add_search``.
        features: float32 ``[images, d]`` embeddings, where the suite compares images with each other.
        commits: short commits of the code, each once.
    """

    verdicts: list[bool] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    features: Tensor | None = None
    commits: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.verdicts)

    @classmethod
    def of_search(cls, result: SearchResult, verdicts: Sequence[bool], seconds: float, elapsed: float) -> Measured:
        """What a search over ``len(verdicts)`` groups brought and cost.

        Args:
            result: of the search.
            verdicts: of the winners, by group.
            seconds: of the search with the last decode, without the held-out verifier.
            elapsed: wall-clock seconds of the search by its ledger, for the overhead.
        """
        winners = torch.tensor([result.group.tolist().index(g) for g in range(len(verdicts))])
        ledger = result.ledger
        scores = {
            "reward": result.scores[winners].nan_to_num(0.0).tolist(),
            "held_out": [] if result.held_out is None else result.held_out[winners].tolist(),
            "selection_bias": [float(result.selection_bias)] * len(verdicts),
        }
        sums = {
            "nfe": ledger.nfe,
            "backward_nfe": ledger.backward,
            "decodes": ledger.decodes,
            "gflop": ledger.flops / 1e9,
            "decode_gflop": ledger.decode_flops / 1e9,
            "rewriter_calls": ledger.rewriter_calls,
            "rewriter_seconds": ledger.seconds.get("rewriter", 0.0),
            "seconds": seconds,
            "ledger_seconds": elapsed,
            "network_seconds": sum(ledger.seconds.values()),
        }
        return cls(list(verdicts), scores, {name: float(value) for name, value in sums.items()})

    @classmethod
    def joined(cls, parts: Iterable[Measured]) -> Measured:
        """Images of several parts, in order; costs add up."""
        whole, features = cls(), []
        for part in parts:
            whole.verdicts += part.verdicts
            for name, values in part.scores.items():
                whole.scores[name] = whole.scores.get(name, []) + values
            for name, value in part.sums.items():
                whole.sums[name] = whole.sums.get(name, 0.0) + value
            whole.commits += [name for name in part.commits if name not in whole.commits]
            features += [] if part.features is None else [part.features]
        whole.features = torch.cat(features) if features else None
        return whole

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without loss; see ``from_dict``."""
        body: dict[str, Any] = {"verdicts": written(self.verdicts), "scores": self.scores, "sums": self.sums}
        if self.features is not None:
            array = self.features.detach().cpu().float().contiguous().numpy()
            body["features"] = {"shape": list(array.shape), "float32": base64.b64encode(array.tobytes()).decode()}
        return {**body, "commits": self.commits}

    @classmethod
    def from_dict(cls, body: dict[str, Any]) -> Measured:
        """The inverse of ``to_dict``."""
        features = None
        if "features" in body:
            values = np.frombuffer(base64.b64decode(body["features"]["float32"]), dtype=np.float32)
            features = torch.from_numpy(values.reshape(body["features"]["shape"]).copy())
        verdicts = [letter == "1" for letter in body["verdicts"]]
        return cls(verdicts, body["scores"], body["sums"], features, list(body["commits"]))

    def row(self, prompts: Sequence[Prompt], images_per_prompt: int = 1) -> dict[str, Any]:
        """The figures of the results file that all suites share.

        Args:
            prompts: one per image, repeated where there are several images of a prompt.
            images_per_prompt: so many images in a row are of one prompt; intervals draw prompts, not images.

        Returns:
            means per image ("nfe_per_image", "seconds_per_image", ...), "overall" with interval, "tasks", the scores
            with intervals, "overhead" (seconds over those inside networks), "verdicts" as a text of 0 and 1, "commit".
        """
        table = score_table(prompts, self.verdicts)

        def interval(values: Sequence[float]) -> Interval:
            return mean_interval([per_prompt(v, images_per_prompt) for v in by_task(prompts, values).values()])

        mean = {name: value / len(self) for name, value in self.sums.items()}
        row: dict[str, Any] = {
            "nfe_per_image": round(mean["nfe"], 2),
            "backward_nfe_per_image": round(mean["backward_nfe"], 2),
            "decodes_per_image": round(mean["decodes"], 2),
        }
        if mean["gflop"]:
            row["gflop_per_image"] = round(mean["gflop"], 2)
            row["drawing_gflop_per_image"] = round(mean["gflop"] - mean["decode_gflop"], 2)
        row |= {
            "overall": table.pop("overall"),
            "overall_ci": bounds(interval(self.verdicts), 4),
            "tasks": table,
        }
        for name in SCORES:
            if self.scores.get(name):
                found = interval(self.scores[name])
                row |= {name: round(found.estimate, 5), f"{name}_ci": bounds(found, 5)}
        row["seconds_per_image"] = round(mean["seconds"], 4)
        row["overhead"] = round(mean["ledger_seconds"] / mean["network_seconds"], 4) if mean["network_seconds"] else 1.0
        if images_per_prompt > 1:
            row["images_per_prompt"] = images_per_prompt
        return {**row, "verdicts": written(self.verdicts), "commit": ", ".join(self.commits)}


def bounds(interval: Interval, digits: int) -> list[float]:
    """[low, high], as results files have them."""
    return list(interval.rounded(digits)[1:])


def written(verdicts: Sequence[bool]) -> str:
    """Verdicts as a text of 0 and 1."""
    return "".join("1" if verdict else "0" for verdict in verdicts)
