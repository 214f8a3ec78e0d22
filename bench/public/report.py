"""The report of a public benchmark: our rows, and the published ones beside them."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from ...installation.files import write_text
from ..provenance import commit, machine
from . import anchors
from .cost import in_words, measured_hours
from .prompts import Benchmark


def write_report(folder: Path, benchmark: Benchmark, facts: dict[str, Any], scores: dict[str, Any] | None) -> Path:
    """Write ``report.md`` and ``report.json``; path of the first.

    Args:
        facts: prompts, prompts_in_all, images, missing, method, model, seconds (a list, per image), nfe, evaluator.
        scores: per task and overall, None where nothing was evaluated yet.
    """
    partial = facts["prompts"] < facts["prompts_in_all"] or facts["missing"]
    lines = [f"# {benchmark.title}{', partial' if partial else ''}", ""]
    lines += [f"- model: {facts['model']}", f"- method: {facts['method']}"]
    lines.append(f"- images: {facts['images']} of {facts['prompts']} prompts ({facts['prompts_in_all']} in all)")
    if facts["missing"]:
        lines.append(f"- missing: {facts['missing']} images; the same command goes on")
    if facts["seconds"]:
        pace = statistics.fmean(facts["seconds"])
        whole = measured_hours(pace, facts["prompts_in_all"] * benchmark.images)
        lines.append(f"- pace: {pace:.2f} s per image; the whole benchmark takes {in_words(whole)} of one worker")
    lines += [f"- machine: {machine()}, code {commit()}", f"- {benchmark.note}", ""]
    if scores is None:
        lines += [f"Not evaluated yet. The folder is what {benchmark.official} reads.", ""]
    else:
        lines += [f"## Scores ({facts['evaluator']})", "", "| task | score |", "| --- | ---: |"]
        lines += [f"| {task}{', partial' if partial else ''} | {value:.4f} |" for task, value in scores.items()]
        lines.append("")
        if facts["evaluator"].startswith("own"):
            lines += ["An evaluator of our own: these numbers do not stand beside published ones.", ""]
    tables = anchors.of(benchmark.name)
    if tables:
        lines += ["## Published", "", "Comparable only with the same model, steps, budget, verifier and evaluator.", ""]
        lines += [anchors.markdown(table) for table in tables]
    write_text(folder / "report.md", "\n".join(lines))
    write_text(folder / "report.json", json.dumps({**facts, "partial": bool(partial), "scores": scores}, indent=1))
    return folder / "report.md"
