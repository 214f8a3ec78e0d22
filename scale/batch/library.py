"""Rows of the library, without ComfyUI: what a row may set, and how one is run."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...installation.errors import BadInput
from ...installation.files import write_text
from ...samplers.methods.registry import METHODS
from ...samplers.plan import Plan
from ...samplers.protocols import SearchError
from ...samplers.run.search import run_search
from ...verifiers.named import parse_verifier
from ..recipes import Recipe

PROMPT, SEED, METHOD = "prompt", "seed", "method"
PICTURE, TRACE = "image.png", "trace.json"


def parse_library(text: str, settings: Mapping[str, Any]) -> Recipe:
    """``shapes``, ``diffusers:FOLDER`` or ``package.module:function`` with settings. Raises BadInput."""
    name, _, rest = text.partition(":")
    recipe = Recipe("diffusers", {"folder": rest, **settings}) if name == "diffusers" else Recipe(text, dict(settings))
    try:
        recipe.check()
    except SearchError as error:
        raise BadInput(f"--library {text}: {error}") from error
    return recipe


def plan_of(text: str) -> Plan:
    """``NAME:KEY=VALUE,...`` -> a plan. Raises BadInput for unknown methods and settings."""
    name, settings = parse_verifier(text)
    if name not in METHODS:
        raise BadInput(f"--method {text}: choose one of {', '.join(METHODS)}")
    kind = METHODS[name].method
    known = [field.name for field in dataclasses.fields(kind)]
    for key in settings:
        if key not in known:
            raise BadInput(f"--method {text}: {name} has no setting {key!r}: choose from {', '.join(known)}")
    try:
        plan = Plan(kind(**settings))
        plan.check_settings()
    except (SearchError, TypeError, ValueError) as error:
        raise BadInput(f"--method {text}: {error}") from error
    return plan


def work_of(recipe: Recipe, method: str, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a worker is sent for a row. Raises BadInput where a value cannot be right."""
    values = {name: typed(value) if name != PROMPT else value for name, value in values.items()}
    prompt = values.pop(PROMPT, None)
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadInput(f"{where} has no {PROMPT}: the library needs a column {PROMPT}")
    seed = values.pop(SEED, 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise BadInput(f"{where}: seed is {seed!r}: it must be a whole number from 0")
    method = str(values.pop(METHOD, method))
    plan_of(method)
    settings = {**recipe.settings, **values}
    try:
        Recipe(recipe.factory, settings).check()
    except SearchError as error:
        raise BadInput(f"{where}: {error}") from error
    return {"factory": recipe.factory, "settings": settings, "prompt": prompt, "seed": seed, "method": method}


def typed(value: Any) -> Any:
    """Texts of a CSV that are numbers, true or false, as such."""
    return parse_verifier(f"x:x={value}")[1]["x"] if isinstance(value, str) and value and "," not in value else value


def run_row(work: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Search one image; ``image.png`` and ``trace.json`` into ``folder``; facts for the manifest."""
    from PIL import Image

    began = time.perf_counter()
    made = Recipe(work["factory"], work["settings"]).make([work["prompt"]], work["seed"])
    result = run_search(plan_of(work["method"]), made.process, made.verifier, [work["prompt"]], held_out=made.held_out)
    process: Any = made.process
    finished = dataclasses.replace(process.start(1), x=result.latents, x0=result.latents, step=process.steps)
    image = process.preview(finished)[0]
    Image.fromarray((image.cpu() * 255).round().byte().numpy()).save(folder / PICTURE)
    write_text(folder / TRACE, result.trace.to_json())
    score = float(result.scores[0])
    return {
        "score": None if score != score else round(score, 6),
        "nfe": result.ledger.nfe,
        "ended": result.status,
        "model_seconds": round(time.perf_counter() - began, 3),
    }


def canonical(work: Mapping[str, Any]) -> str:
    """One line of JSON."""
    return json.dumps(work, ensure_ascii=False)
