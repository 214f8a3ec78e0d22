"""The demo page: one HTML file with everything inside (style, pictures), readable in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from ..reports.names import task_name
from ..reports.page import COMMON_STYLE
from ..shapes_world.captions import Prompt
from .charts import best_so_far, curves, data_uri, step_scores, tree
from .sections import DIFFUSION, METHOD_TEXTS, SECTIONS, TTS_VAR_PARTICLES, VAR, About, Entry, Section

STYLE_FILE = Path(__file__).with_name("demo.css")


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; NaN for nothing."""
    return float(np.mean(values)) if values else float("nan")


def render(entries: Sequence[Entry], about: About) -> str:
    """The whole page: a part per model that there are entries of. The headline needs entries of the diffusion model."""
    body = [_header([entry for entry in entries if entry.model == DIFFUSION], about)]
    for section in SECTIONS:
        mine = [entry for entry in entries if entry.model == section.model]
        if mine:
            body.append(_part(section, mine, about))
    body.append(_footer(about))
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


def _part(section: Section, entries: Sequence[Entry], about: About) -> str:
    """One model: its heading, table, grid, details and methods."""
    methods = [key for key in section.methods if any(entry.method == key for entry in entries)]
    prompts = list({entry.prompt.text: entry.prompt for entry in entries}.values())
    leads = [section.lead, *([_next_scale_headline(entries, about)] if section.model == VAR else [])]
    body = [_summary(section, entries, methods, about), _grid(entries, methods, prompts)]
    body += [_details(section, entries, methods, prompts), _methods(methods)]
    lead = "".join(f"<p class='lead'>{text}</p>" for text in leads)
    return f"<div class='part'><h2>{section.title}</h2>{lead}{''.join(body)}</div>"


def _next_scale_headline(entries: Sequence[Entry], about: About) -> str:
    """What the next-scale part found, in one sentence; entries of all its methods."""
    mine = {key: [entry for entry in entries if entry.method == key] for key in ("plain", "tts_var", "best_of_n")}
    right = {key: f"<b>{sum(entry.correct for entry in own)}</b>" for key, own in mine.items()}
    compute = {key: sum(entry.flops for entry in own) for key, own in mine.items()}
    total = len(mine["plain"])
    return (
        f"Plain sampling gets {right['plain']} of {total} right; TTS-VAR with N = {TTS_VAR_PARTICLES} gets "
        f"{right['tts_var']} of {total}; Best-of-N with N = {about.budget} gets {right['best_of_n']} of {total}, at "
        f"{compute['best_of_n'] / compute['tts_var']:.1f} times the compute of TTS-VAR."
    )


def _rank(entries: Sequence[Entry], method: str) -> tuple[int, float]:
    mine = [entry for entry in entries if entry.method == method]
    return sum(entry.correct for entry in mine), mean([entry.score for entry in mine])


def _summary(section: Section, entries: Sequence[Entry], methods: Sequence[str], about: About) -> str:
    best = max(methods, key=lambda key: _rank(entries, key))
    table = {key: _figures(section, [entry for entry in entries if entry.method == key]) for key in methods}
    rows = []
    for key, figures in table.items():
        verdicts, *others = figures.values()
        cells = f"<td class='num strong'>{verdicts}</td>" + "".join(f"<td class='num'>{text}</td>" for text in others)
        mark = " <span class='pill'>best</span>" if key == best else ""
        winner = " class='winner'" if key == best else ""
        rows.append(f"<tr{winner}><th>{_swatch(key)}{METHOD_TEXTS[key][0]}{mark}</th>{cells}</tr>")
    head = "".join(f"<th class=num>{text}</th>" for text in table[best])
    return (
        "<section><h3>What it costs, what it brings</h3><div class='scroll'><table class='summary'>"
        f"<thead><tr><th>Method</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"<p class='fine'>{section.cost.format(budget=about.budget)}</p></section>"
    )


def _figures(section: Section, entries: Sequence[Entry]) -> dict[str, str]:
    """Head of a column -> what one method, whose entries these are, has there."""
    held_out = [entry.held_out for entry in entries if entry.held_out is not None]
    compute = {"GFLOP per image": f"{mean([entry.flops for entry in entries]) / 1e9:.1f}"} if section.compute else {}
    return {
        "ShapesEval": f"{sum(entry.correct for entry in entries)} / {len(entries)}",
        "Reward": f"{mean([entry.score for entry in entries]):.3f}",
        "Held-out reward": f"{mean(held_out):.3f}" if held_out else "-",
        "NFE per image": f"{mean([entry.nfe for entry in entries]):.0f}",
        **compute,
        "Images judged": f"{mean([entry.judged for entry in entries]):.0f}",
        "Seconds": f"{mean([entry.seconds for entry in entries]):.1f}",
    }


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
        "<section><h3>Six prompts, side by side</h3>"
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


def _details(section: Section, entries: Sequence[Entry], methods: Sequence[str], prompts: Sequence[Prompt]) -> str:
    blocks = []
    for number, prompt in enumerate(prompts):
        mine = [entry for entry in (_find(entries, key, prompt) for key in methods) if entry]
        series = [(METHOD_TEXTS[e.method][0], METHOD_TEXTS[e.method][1], best_so_far(e.trace)) for e in mine]
        now = [(METHOD_TEXTS[e.method][0], METHOD_TEXTS[e.method][1], step_scores(e.trace)) for e in mine]
        legend = "".join(f"<span>{_swatch(e.method)}{METHOD_TEXTS[e.method][0]}</span>" for e in mine)
        trees = "".join(
            f"<h5>{_swatch(e.method)}{METHOD_TEXTS[e.method][0]}</h5>"
            f"{tree(e.trace, e.winner, e.finalists, METHOD_TEXTS[e.method][1], section.start)}"
            for e in mine
            if e.method != "plain"
        )
        blocks.append(
            f"<details{' open' if number == 0 else ''}><summary>{escape(prompt.text)}</summary>"
            f"<div class='pair'><div><h4>Best preview so far</h4>{curves(series)}</div>"
            f"<div><h4>Best particle at each step</h4>{curves(now)}</div></div><p class='legend'>{legend}</p>"
            f"<h4>Family trees</h4><p class='fine'>From the left ({section.start}) to the right (finished images). A "
            f"line that ends early is a particle that was given up; the coloured line leads to the winner.</p>{trees}"
            "</details>"
        )
    return f"<section><h3>How each search went</h3>{''.join(blocks)}</section>"


def _methods(methods: Sequence[str]) -> str:
    items = "".join(f"<dt>{_swatch(k)}{METHOD_TEXTS[k][0]}</dt><dd>{METHOD_TEXTS[k][2]}</dd>" for k in methods)
    return f"<section><h3>The methods in one sentence each</h3><dl>{items}</dl></section>"


def _footer(about: About) -> str:
    return (
        f"<footer><p>Made by <code>testtime demo</code> in {about.seconds:.0f} s, through {escape(about.where)}, on "
        f"{escape(about.machine)}. Embedded models, {about.steps} denoising steps, seed {about.seed}; reward: "
        f"{escape(about.verifier)}, held out: {escape(about.held_out)}. The same seed gives the same page.</p></footer>"
    )
