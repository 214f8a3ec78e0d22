"""The editing benchmark: "make the red circle blue, keep the rest", checked exactly.

    python -m testtime.bench.editing [--cases 60] [--steps 8] [--denoise 0.7]

Drawn pictures of two objects; the colour of one is to be changed. No edit model is embedded: the editor is the embedded
diffusion model, image to image from the source's latent under the caption of the wanted picture. So this measures what
searches and the loop make of an editor that changes more than it should, not how well edit models edit.

*Done*: an object of the wanted shape and colour within 8 pixels of the old place. *Kept*: the other object is where it
was and nothing else came. *Both* is what counts. Plain is one edit; Best-of-8 and Refine by Edit (4 rounds of 2) have
the same number of edits at most. Learned judges are the embedded preference model with the preservation score. The
exact checklist reads pictures as the test itself does, so it says what a perfect judge would bring; the erring one
misreads every item with .1.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..installation.files import write_text
from ..models.tiny.loading import Family, load_family
from ..models.tiny.pipeline import SamplingSettings, shapes_process
from ..samplers.after.refine import Refine, refine
from ..samplers.ledger import Ledger
from ..samplers.methods import BestOfN
from ..samplers.processes.conditions import Start
from ..samplers.processes.diffusion import DiffusionProcess
from ..samplers.run.search import run_search
from ..samplers.sources import Sources
from ..shapes_world.captions import Prompt, Requirement, caption, sample_prompt
from ..shapes_world.drawing import draw
from ..shapes_world.evaluator import Detection, detect
from ..shapes_world.intervals import mean_interval
from ..shapes_world.sampling import sample_scene
from ..shapes_world.scene import COLOURS, Object, Scene
from ..verifiers.ensemble import EnsembleVerifier, Voice
from ..verifiers.image_image.preservation import PreservationVerifier
from ..verifiers.registry import create
from .provenance import RESULTS

log = logging.getLogger("testtime")
FIRST = 700_000_000  # seeds that no training set uses
NEAR = 8.0
EDITS, ROUNDS, CANDIDATES = 8, 4, 2
ERRS = 0.1
FILE = RESULTS / "editing.json"
TITLES = {
    "source": "the source, unchanged",
    "plain": "plain, one edit",
    "best_of_n": "Best-of-8, learned judges",
    "best_of_n_erring": "Best-of-8, erring checklist",
    "refine_erring": "Refine by Edit, erring checklist",
    "best_of_n_exact": "Best-of-8, exact checklist",
    "refine_exact": "Refine by Edit, exact checklist",
}


@dataclass(frozen=True)
class Case:
    """A picture and what is to become of it.

    Attributes:
        source: the scene. colour: what its first object gets.
    """

    source: Scene
    colour: str

    @property
    def wanted(self) -> tuple[Object, ...]:
        """The objects of the wanted picture."""
        first, *rest = self.source.objects
        return replace(first, colour=self.colour), *rest

    @property
    def instruction(self) -> str:
        """For somebody who understands instructions."""
        first = self.source.objects[0]
        return f"make the {first.colour} {first.shape} {self.colour}, keep the rest"

    @property
    def caption(self) -> str:
        """Of the wanted picture, for the embedded model."""
        needs = tuple(Requirement(item.shape, item.colour, 1) for item in self.wanted)
        return caption(Prompt("", "color_attr", needs), np.random.default_rng(0))

    def picture(self) -> Tensor:
        """The source ``[128, 128, 3]`` in 0..1."""
        return torch.from_numpy(draw(self.source)).float() / 255.0


def cases(count: int) -> list[Case]:
    """Two objects of different shapes and colours each, and a third colour."""
    found = []
    for number in range(count):
        scene = sample_scene(FIRST + number, sample_prompt(FIRST + number, "color_attr"))
        used = {item.colour for item in scene.objects} | {"white", "black", "grey"}
        free = [colour for colour in COLOURS if colour not in used]
        found.append(Case(scene, free[number % len(free)]))
    return found


def shown(case: Case, image: Tensor) -> tuple[bool, bool]:
    """(done, kept) of a picture ``[H, W, 3]``."""
    seen = detect(image.detach().float().cpu().numpy())
    first, *rest = case.wanted
    done = any(_is(item, first) for item in seen)
    at_first = [item for item in seen if np.hypot(item.x - first.x, item.y - first.y) <= NEAR]
    kept = all(any(_is(item, other) for item in seen) for other in rest) and len(seen) <= len(rest) + len(at_first)
    return done, kept


def _is(item: Detection, wanted: Object) -> bool:
    near = np.hypot(item.x - wanted.x, item.y - wanted.y) <= NEAR
    return bool(near) and (item.shape, item.colour) == (wanted.shape, wanted.colour)


class Checklist:
    """A critic whose items are the test's own two; it misreads each with ``errs``."""

    name = "checklist"

    def __init__(self, case: Case, errs: float, seed: int):
        self.case, self.errs, self.draw = case, errs, np.random.default_rng([seed, 0xED17])

    def checklist(self, prompt: str) -> list[str]:
        """See ``samplers.after.refine.Critic``."""
        return [prompt.split(", ")[0], "the rest is kept"]

    def chances(self, images: Tensor, items: Sequence[str], again: bool = False) -> Tensor:
        """See ``Critic``."""
        rows = []
        for image in images:
            read = np.array(shown(self.case, image)) ^ (self.draw.random(len(items)) < self.errs)
            rows.append(np.where(read, 0.9, 0.1))
        return torch.from_numpy(np.stack(rows))


@dataclass(frozen=True)
class ImageToImage:
    """The embedded diffusion model as the editor, see the module. Every edit has its own noise."""

    family: Family
    case: Case
    steps: int
    denoise: float
    name: str = "image to image"
    starts_anew: bool = False

    def process(self, image: Tensor, seed: int) -> DiffusionProcess:
        """Image to image from ``image [H, W, 3]``."""
        whole = max(self.steps, round(self.steps / self.denoise))
        made = shapes_process(
            [self.case.caption], SamplingSettings(steps=whole, cfg=2.5, eta=0.0, seed=seed), self.family
        )
        with torch.no_grad():
            latent = self.family.autoencoder.encode(image.movedim(-1, 0)[None] * 2.0 - 1.0) * self.family.latent_scale
        made.start_at = Start(latent=latent, full_denoise=False)
        return made.variant(sigmas=torch.tensor(list(made.sigmas)[-(self.steps + 1) :]))

    def edit(self, image: Tensor, instruction: str, seed: int, count: int, ledger: Ledger) -> Tensor:
        """See ``samplers.after.refine.Editor``."""
        process = self.process(image, seed)
        process.ledger = ledger
        with torch.no_grad():
            state = process.start(count)
            while state.step < process.steps:
                state, _ = process.advance(process.predict(state))
            return process.to_pixels(process.decode(state.x))

    def fresh(self, prompt: str, seed: int, count: int, ledger: Ledger) -> Tensor:
        """See ``Editor``; never asked for."""
        raise NotImplementedError("an edit begins with its source")


def measure(case: Case, number: int, family: Family, judge: Any, steps: int, denoise: float) -> dict[str, Any]:
    """(done, kept, passes) of every row for one case."""
    editor, source = ImageToImage(family, case, steps, denoise), case.picture()
    found: dict[str, Any] = {"source": (*shown(case, source), 0)}
    sources = (Sources((source,)),)

    process, method = editor.process(source, number), BestOfN(EDITS)
    result = run_search(method, process, judge, [case.caption], sources=sources, instruction=case.instruction)
    with torch.no_grad():
        images = process.to_pixels(process.decode(torch.cat([result.latents, result.finalists])))
    passes = int(result.trace.meta["ledger"]["nfe"])
    found["best_of_n"] = (*shown(case, images[0]), passes)
    alone = editor.edit(source, "", number, 1, ledger := Ledger())
    found["plain"] = (*shown(case, alone[0]), ledger.nfe)
    for name, errs in (("exact", 0.0), ("erring", ERRS)):
        critic = Checklist(case, errs, number)
        answers = critic.chances(images[1:], ["", ""])
        best = 1 + int(((answers > 0.5).sum(1) + answers.mean(1)).argmax())
        found[f"best_of_n_{name}"] = (*shown(case, images[best]), passes)
        ledger = Ledger()
        settings = Refine(ROUNDS, CANDIDATES, fresh=False)
        mended = refine(
            settings, source, case.instruction, Checklist(case, errs, number), editor, seed=1000 * number, ledger=ledger
        )
        found[f"refine_{name}"] = (*shown(case, mended.image), ledger.nfe)
    return found


def table(body: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["| | done | kept | both | passes |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in body["rows"]:
        cells = [f"{100 * row[key][0]:.0f} ({100 * row[key][1]:.0f}..{100 * row[key][2]:.0f})" for key in KEYS]
        lines.append(f"| {TITLES[row['method']]} | {' | '.join(cells)} | {row['nfe']:.0f} |")
    return "\n".join(lines)


KEYS = ("done", "kept", "both")


def rows_of(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means with 95 % intervals over the cases."""
    rows = []
    for method in TITLES:
        done, kept, nfe = (np.array([float(one[method][k]) for one in found]) for k in range(3))
        parts = {"done": done, "kept": kept, "both": done * kept}
        intervals = {key: [round(float(x), 4) for x in mean_interval([values])] for key, values in parts.items()}
        rows.append({"method": method, **intervals, "nfe": round(float(nfe.mean()), 1)})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    parser = argparse.ArgumentParser(prog="testtime bench editing", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--denoise", type=float, default=0.7)
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args(arguments)
    logging.getLogger("testtime").setLevel(logging.ERROR)
    family, found, began = load_family(), [], time.process_time()
    preference, kept = create("shapes_preference"), PreservationVerifier()
    judge = EnsembleVerifier([Voice(preference, 1.0), Voice(kept, 1.0)])
    for number, case in enumerate(cases(options.cases)):
        found.append(measure(case, number, family, judge, options.steps, options.denoise))
        body = {
            "suite": "editing", "cases": len(found), "steps": options.steps, "denoise": options.denoise,
            "cpu_seconds": round(time.process_time() - began, 1), "rows": rows_of(found),
        }  # fmt: skip
        write_text(options.out, json.dumps(body, indent=1) + "\n")
    print(table(body))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
