"""The demo page: one HTML file with everything inside, readable in light and dark; ``reports/pages.py`` says how."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..reports.messages import whole
from ..reports.names import method_name, task_name
from ..reports.pages import page
from ..shapes_world.captions import Prompt
from .sections import COLOURS, DIFFUSION, SECTIONS, TTS_VAR_PARTICLES, VAR, About, Entry, Section, summary_of

TEMPLATES = Path(__file__).with_name("templates")
THUMB = 88  # pixels of a finished image beside a tree, twice as many as it is shown with


def render(entries: Sequence[Entry], about: About) -> str:
    """The whole page: a part per model that there are entries of. The headline needs entries of the diffusion model."""
    parts, data = [], []
    for section in SECTIONS:
        mine = [entry for entry in entries if entry.model == section.model]
        if mine:
            parts.append(_part(section, mine, about, len(data)))
            data += [_searches(section, [e for e in mine if e.prompt.text == text]) for text in _texts(mine)]
    return page(
        "demo.html",
        folders=(TEMPLATES,),
        script=("pages/demo.js", "showDemo"),
        styles=("page.css", "demo.css"),
        data=data,
        headline=_headline([entry for entry in entries if entry.model == DIFFUSION]),
        parts=parts,
        about=about,
    )


def data_uri(image: np.ndarray, size: int | None = None) -> str:
    """A PNG of uint8 ``[H, W, 3]``, optionally scaled to ``size`` pixels, as a data URI."""
    picture = Image.fromarray(image)
    if size is not None:
        picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; NaN for nothing."""
    return float(np.mean(values)) if values else float("nan")


def _texts(entries: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(entry.prompt.text for entry in entries))


def _correct(entries: Sequence[Entry], method: str) -> int:
    return sum(entry.correct for entry in entries if entry.method == method)


def _rank(entries: Sequence[Entry], method: str) -> tuple[int, float]:
    mine = [entry for entry in entries if entry.method == method]
    return sum(entry.correct for entry in mine), mean([entry.score for entry in mine])


def _headline(entries: Sequence[Entry]) -> dict[str, Any]:
    """What the best method of the diffusion model brought."""
    best = max({entry.method for entry in entries} - {"plain"}, key=lambda key: _rank(entries, key))
    plain = [entry for entry in entries if entry.method == "plain"]
    return {
        "plain": _correct(entries, "plain"),
        "of": len(plain),
        "name": method_name(best),
        "right": _correct(entries, best),
    }


def _part(section: Section, entries: Sequence[Entry], about: About, first: int) -> dict[str, Any]:
    """One model: headings, table, images. Its first prompt is number ``first`` of the page's data."""
    keys = [key for key in section.methods if any(entry.method == key for entry in entries)]
    best = max(keys, key=lambda key: _rank(entries, key))
    figures = {key: _figures(section, [entry for entry in entries if entry.method == key]) for key in keys}
    methods = [
        {
            "key": key,
            "name": method_name(key),
            "colour": COLOURS[key],
            "text": summary_of(key),
            "best": key == best,
            "figures": list(figures[key].values()),
        }
        for key in keys
    ]
    prompts = {entry.prompt.text: entry.prompt for entry in entries}.values()
    return {
        "model": section.model,
        "title": section.title,
        "lead": section.lead,
        "start": section.start,
        "cost": section.cost.format(budget=about.budget),
        "bench": section.bench,
        "columns": list(figures[best]),
        "methods": methods,
        "prompts": [_prompt(prompt, entries, keys, first + number) for number, prompt in enumerate(prompts)],
        "comparison": _next_scale(entries) if section.model == VAR else None,
    }


def _next_scale(entries: Sequence[Entry]) -> dict[str, Any]:
    """What the next-scale part found; entries of all its methods."""
    keys = ("plain", "tts_var", "best_of_n")
    compute = {key: sum(entry.flops for entry in entries if entry.method == key) for key in keys}
    return {
        **{key: _correct(entries, key) for key in keys},
        "of": sum(entry.method == "plain" for entry in entries),
        "particles": TTS_VAR_PARTICLES,
        "times": f"{compute['best_of_n'] / compute['tts_var']:.1f}",
    }


def _figures(section: Section, entries: Sequence[Entry]) -> dict[str, str]:
    """Head of a column -> what one method, whose entries these are, has there."""
    held_out = [entry.held_out for entry in entries if entry.held_out is not None]
    compute = {"GFLOP per image": f"{mean([entry.flops for entry in entries]) / 1e9:.1f}"} if section.compute else {}
    return {
        "Correct": f"{sum(entry.correct for entry in entries)} / {len(entries)}",
        "Reward": f"{mean([entry.score for entry in entries]):.3f}",
        "Held-out reward": f"{mean(held_out):.3f}" if held_out else "-",
        "NFE per image": f"{mean([entry.nfe for entry in entries]):.0f}",
        **compute,
        "Images scored": f"{mean([entry.judged for entry in entries]):.0f}",
        "Seconds": f"{mean([entry.seconds for entry in entries]):.1f}",
    }


def _prompt(prompt: Prompt, entries: Sequence[Entry], keys: Sequence[str], number: int) -> dict[str, Any]:
    """A row of the grid; ``number`` of its searches in the page's data."""
    mine = [e for key in keys for e in entries if e.method == key and e.prompt.text == prompt.text]
    top = max(mine, key=lambda entry: (entry.correct, entry.score))
    cards = [_card(entry, entry is top) for entry in mine]
    return {"number": number, "text": prompt.text, "task": task_name(prompt.task), "cards": cards}


def _card(entry: Entry, top: bool) -> dict[str, Any]:
    watcher = "" if entry.held_out is None else f", held-out reward {entry.held_out:.3f}"
    return {
        "top": top,
        "picture": data_uri(entry.image),
        "alt": f"{method_name(entry.method)}: {entry.prompt.text}",
        "title": f"reward {entry.score:.3f}{watcher}, {entry.nfe} forward passes",
        "correct": entry.correct,
        "score": f"{entry.score:.3f}",
    }


def _searches(section: Section, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The searches of one prompt, as ``web/pages/demo.js`` takes them."""
    order = sorted(entries, key=lambda entry: section.methods.index(entry.method))
    return [
        {
            "method": entry.method,
            "name": method_name(entry.method),
            "colour": COLOURS[entry.method],
            "start": section.start,
            "search": whole(entry.trace),
            "pictures": {key: data_uri(image, THUMB) for key, image in entry.finalists},
        }
        for entry in order
    ]
