"""The demo page: one HTML file with everything inside (style, pictures), readable in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from ..reports.names import task_name
from ..reports.page import COMMON_STYLE
from ..samplers.trace import Trace
from ..shapes_world.captions import Prompt
from .demo_charts import best_so_far, curves, data_uri, step_scores, tree

STYLE_FILE = Path(__file__).with_name("demo.css")
# name, CSS colour, what it does in one sentence
METHOD_TEXTS = {
    "plain": (
        "Plain",
        "var(--plain)",
        "One sample, as without this pack. It is the reference, at a fraction of the cost.",
    ),
    "best_of_n": (
        "Best-of-N",
        "var(--bon)",
        "Draws N samples independently and keeps the one the verifier scores highest.",
    ),
    "svdd": (
        "SVDD",
        "var(--svdd)",
        "Tries M next moves at every step and goes on from the one whose preview scores best.",
    ),
    "das": (
        "DAS",
        "var(--das)",
        "Moves N particles along the gradient of the score and resamples them as the target sharpens.",
    ),
    "fk": (
        "FK steering",
        "var(--fk)",
        "Runs N particles side by side and now and then replaces weak ones with copies of strong ones.",
    ),
}


@dataclass(frozen=True)
class Entry:
    """One method on one prompt.

    Attributes:
        method: key of ``METHOD_TEXTS``; prompt: what was asked for.
        image: uint8 ``[H, W, 3]``, the winner; score, held_out: of the verifier that steered and of one that did not.
        correct: ShapesEval's verdict on the image.
        trace, winner: record of the search and the winner's particle id.
        finalists: (particle id, image) of finished images.
        nfe, backward, seconds: forward passes, how many of them were differentiated, and wall-clock time.
    """

    method: str
    prompt: Prompt
    image: np.ndarray
    score: float
    held_out: float | None
    correct: bool
    trace: Trace
    winner: int
    finalists: Sequence[tuple[int, np.ndarray]]
    nfe: int
    backward: int
    seconds: float

    @property
    def judged(self) -> int:
        """Images that the verifier saw, previews included."""
        return self.trace.meta["ledger"]["verifier_images"]


@dataclass(frozen=True)
class About:
    """How the page was made: ``where`` (ComfyUI or library), ``budget`` (multiple of plain), steps, seed, machine."""

    where: str
    budget: int
    steps: int
    seed: int
    machine: str
    seconds: float
    verifier: str
    held_out: str


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; NaN for nothing."""
    return float(np.mean(values)) if values else float("nan")


def render(entries: Sequence[Entry], about: About) -> str:
    """The whole page."""
    methods = [key for key in METHOD_TEXTS if any(entry.method == key for entry in entries)]
    prompts = list({entry.prompt.text: entry.prompt for entry in entries}.values())
    body = [_header(entries, about), _summary(entries, methods), _grid(entries, methods, prompts)]
    body += [_details(entries, methods, prompts), _methods(methods), _footer(about)]
    title = "Test-time scaling on six prompts"
    style = COMMON_STYLE.read_text(encoding="utf-8") + STYLE_FILE.read_text(encoding="utf-8")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _header(entries: Sequence[Entry], about: About) -> str:
    searched = [entry for entry in entries if entry.method != "plain"]
    plain = [entry for entry in entries if entry.method == "plain"]
    best = max({entry.method for entry in searched}, key=lambda key: _rank(searched, key))
    correct = sum(entry.correct for entry in searched if entry.method == best)
    before = sum(entry.correct for entry in plain)
    return (
        "<header><p class='eyebrow'>Test-time scaling</p>"
        "<h1>Same model, same prompts, more thought per image</h1>"
        f"<p class='lead'>One prompt from each of the six Shapes World tasks. Plain sampling gets "
        f"<b>{before} of {len(plain)}</b> right; {METHOD_TEXTS[best][0]}, with about {about.budget} times the forward "
        f"passes, <b>{correct} of {len(plain)}</b>. ShapesEval decides what is right: an exact check of shapes, "
        "colours, numbers and positions that no method gets to see.</p></header>"
    )


def _rank(entries: Sequence[Entry], method: str) -> tuple[int, float]:
    mine = [entry for entry in entries if entry.method == method]
    return sum(entry.correct for entry in mine), mean([entry.score for entry in mine])


def _summary(entries: Sequence[Entry], methods: Sequence[str]) -> str:
    best = max(methods, key=lambda key: _rank(entries, key))
    rows = []
    for key in methods:
        mine = [entry for entry in entries if entry.method == key]
        held_out = [entry.held_out for entry in mine if entry.held_out is not None]
        cells = [
            f"<td class='num strong'>{sum(entry.correct for entry in mine)} / {len(mine)}</td>",
            f"<td class='num'>{mean([entry.score for entry in mine]):.3f}</td>",
            f"<td class='num'>{mean(held_out):.3f}</td>" if held_out else "<td class='num'>-</td>",
            f"<td class='num'>{mean([entry.nfe for entry in mine]):.0f}</td>",
            f"<td class='num'>{mean([entry.judged for entry in mine]):.0f}</td>",
            f"<td class='num'>{mean([entry.seconds for entry in mine]):.1f}</td>",
        ]
        mark = " <span class='pill'>best</span>" if key == best else ""
        winner = " class='winner'" if key == best else ""
        rows.append(f"<tr{winner}><th>{_swatch(key)}{METHOD_TEXTS[key][0]}{mark}</th>{''.join(cells)}</tr>")
    heads = ("Method", "ShapesEval", "Reward", "Held-out reward", "NFE per image", "Images judged", "Seconds")
    head = "".join(f"<th{'' if k == 0 else ' class=num'}>{text}</th>" for k, text in enumerate(heads))
    return (
        "<section><h2>What it costs, what it brings</h2><div class='scroll'><table class='summary'>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        "<p class='fine'>NFE: forward passes of the denoiser, two per step and sample under guidance. Every judged "
        "image is also decoded; DAS sends the gradient of its score back through the decoder. The reward is what "
        "the search optimises; the held-out reward comes from a second model that only watches. Six images say "
        "little about a method: <code>testtime bench shapes</code> measures 240 prompts, with intervals.</p></section>"
    )


def _swatch(key: str) -> str:
    return f"<i class='swatch' style='background:{METHOD_TEXTS[key][1]}'></i>"


def _find(entries: Sequence[Entry], method: str, prompt: Prompt) -> Entry | None:
    return next((e for e in entries if e.method == method and e.prompt.text == prompt.text), None)


def _grid(entries: Sequence[Entry], methods: Sequence[str], prompts: Sequence[Prompt]) -> str:
    head = "<div></div>" + "".join(f"<div class='colhead'>{_swatch(k)}{METHOD_TEXTS[k][0]}</div>" for k in methods)
    rows = []
    for prompt in prompts:
        mine = [entry for entry in (_find(entries, key, prompt) for key in methods) if entry]
        top = max(mine, key=lambda entry: (entry.correct, entry.score))
        cards = "".join(_card(entry, entry is top) for entry in mine)
        task = task_name(prompt.task)
        rows.append(f"<div class='prompt'><span class='task'>{task}</span>{escape(prompt.text)}</div>{cards}")
    return (
        "<section><h2>Six prompts, side by side</h2>"
        f"<div class='scroll'><div class='grid' style='--columns:{len(methods)}'>{head}{''.join(rows)}</div></div>"
        "<p class='fine'>Under each image its reward; the frame marks the best of a row: right before wrong, then by "
        "reward.</p></section>"
    )


def _card(entry: Entry, top: bool) -> str:
    verdict = ("good", "&#10003;", "ShapesEval: correct") if entry.correct else ("bad", "&#10007;", "ShapesEval: wrong")
    alt = escape(f"{METHOD_TEXTS[entry.method][0]}: {entry.prompt.text}", quote=True)
    watcher = "" if entry.held_out is None else f", held-out reward {entry.held_out:.3f}"
    title = f"reward {entry.score:.3f}{watcher}, {entry.nfe} forward passes"
    return (
        f"<figure class='card{' top' if top else ''}' title='{title}'><img src='{data_uri(entry.image)}' alt='{alt}'>"
        f"<span class='verdict {verdict[0]}' title='{verdict[2]}'>{verdict[1]}</span>"
        f"<figcaption>{entry.score:.3f}</figcaption></figure>"
    )


def _details(entries: Sequence[Entry], methods: Sequence[str], prompts: Sequence[Prompt]) -> str:
    blocks = []
    for number, prompt in enumerate(prompts):
        mine = [entry for entry in (_find(entries, key, prompt) for key in methods) if entry]
        series = [(METHOD_TEXTS[e.method][0], METHOD_TEXTS[e.method][1], best_so_far(e.trace)) for e in mine]
        now = [(METHOD_TEXTS[e.method][0], METHOD_TEXTS[e.method][1], step_scores(e.trace)) for e in mine]
        legend = "".join(f"<span>{_swatch(e.method)}{METHOD_TEXTS[e.method][0]}</span>" for e in mine)
        trees = "".join(
            f"<h4>{_swatch(e.method)}{METHOD_TEXTS[e.method][0]}</h4>"
            f"{tree(e.trace, e.winner, e.finalists, METHOD_TEXTS[e.method][1])}"
            for e in mine
            if e.method != "plain"
        )
        blocks.append(
            f"<details{' open' if number == 0 else ''}><summary>{escape(prompt.text)}</summary>"
            f"<div class='pair'><div><h3>Best preview so far</h3>{curves(series)}</div>"
            f"<div><h3>Best particle at each step</h3>{curves(now)}</div></div><p class='legend'>{legend}</p>"
            f"<h3>Family trees</h3><p class='fine'>From noise on the left to finished images on the right. A line that "
            f"ends early is a particle that was given up; the coloured line leads to the winner.</p>{trees}</details>"
        )
    return f"<section><h2>How each search went</h2>{''.join(blocks)}</section>"


def _methods(methods: Sequence[str]) -> str:
    items = "".join(f"<dt>{_swatch(k)}{METHOD_TEXTS[k][0]}</dt><dd>{METHOD_TEXTS[k][2]}</dd>" for k in methods)
    return f"<section><h2>The methods in one sentence each</h2><dl>{items}</dl></section>"


def _footer(about: About) -> str:
    return (
        f"<footer><p>Made by <code>testtime demo</code> in {about.seconds:.0f} s, through {escape(about.where)}, on "
        f"{escape(about.machine)}. Embedded diffusion model, {about.steps} steps, seed {about.seed}; reward: "
        f"{escape(about.verifier)}, held out: {escape(about.held_out)}. The same seed gives the same page.</p></footer>"
    )
