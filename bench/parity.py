"""How far the verifiers are from the functions that published them, called on photographs.

    python tools/official_environment.py     # once: the published packages, in an environment of their own
    python -m testtime.bench.parity [--check]

Writes ``bench/results/parity.json`` and the table in ``docs/verifiers.md``. Every row calls the official function
itself (``bench.official``) with small random models of its own classes; preprocessings run at their published size.
Photographs are of seven shapes and kinds, prompts hold what tokenizers disagree about. Compared are what a tower sees,
the token ids and the score, with the pack's defaults (floating point, so that there are gradients) and with
``quantize`` (8 bit where the published pipeline is). ``before`` in the file is the same of the verifiers as they were
when they had only been compared with rewritten copies; it is kept.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..installation.files import write_text
from . import parity_here as here
from . import parity_link as link
from . import parity_rows as rows_of
from .official.pictures import PROMPTS
from .provenance import ROOT
from .results_tables import markdown
from .tables import BLOCK

log = logging.getLogger("testtime")
OUT = ROOT / "bench" / "results" / "parity.json"
PAGE = ROOT / "docs" / "verifiers.md"
NAME = "verifier-parity"
NONE = "-"


def measure(folder: Path) -> list[rows_of.Row]:
    """All rows. Takes about two minutes on one core.

    Raises:
        OfficialError: the official packages are not there, or a call of them failed.
    """
    link.call("all", folder)
    rows = []
    for key in rows_of.SUBJECTS:
        log.info("%s", key)
        rows.append(rows_of.measure(key, folder))
    shown = link.pictures(folder, PROMPTS)
    return rows + [make(folder / f"here-{key}", shown) for key, make in here.ROWS.items()]


def most(values: Mapping[str, Any], key: str | None = None) -> float | None:
    """The largest over the pictures, None where nothing was compared."""
    return max((value if key is None else value[key] for value in values.values()), default=None)


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else "0" if value == 0 else format(value, form)


def _pixels(row: Mapping[str, Any], key: str) -> str:
    values = row[key]
    if not values:
        return NONE
    mean = max(value["mean"] for value in values.values())
    return f"{_number(mean, '.2g')} / {_number(most(values, 'max'), '.3g')}"


def table(rows: Sequence[Mapping[str, Any]], before: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows as Markdown, each figure the worst picture's, with what it was before."""
    head = ["verifier", "compared with", "tower's input", "was", "score", "was", "8 bit: input", "8 bit: score"]
    head += ["spread of the scores"]
    lines = []
    for row in rows:
        was = before.get(row["verifier"], {"pixels": {}, "scores": {}})
        cells = [f"`{row['verifier']}`", row["official"], _pixels(row, "pixels"), _pixels(was, "pixels")]
        cells += [_number(most(row["scores"]), ".1g"), _number(most(was["scores"]), ".1g")]
        cells += [_pixels(row, "pixels_quantized"), _number(most(row["scores_quantized"]), ".1g")]
        lines.append([*cells, _number(row["spread"], ".2g")])
    return markdown(head, lines)


def by_picture(rows: Sequence[Mapping[str, Any]], before: Mapping[str, Mapping[str, Any]]) -> str:
    """Largest difference of the score per picture, of the rows in which one was ten times another, now and before."""
    lines = []
    for row in rows:
        was = before.get(row["verifier"], {"scores": {}})["scores"]
        if most(was) and most(was) > 10 * most(row["scores"]):
            cells = [f"{_number(row['scores'][name], '.0e')} ({_number(was[name], '.0e')})" for name in PROMPTS]
            lines.append([f"`{row['verifier']}`", *cells])
    return markdown(["score differs by (was)", *PROMPTS], lines)


def filled(page: str, body: Mapping[str, Any]) -> str:
    """The page with the tables written anew. ValueError: it has no block for them."""
    block = next((match for match in BLOCK.finditer(page) if match["name"] == NAME), None)
    if block is None:
        raise ValueError(f"there is no block <!-- bench:{NAME} --> in the page")
    versions = {
        where: ", ".join(f"{name} {v}" for name, v in found.items()) for where, found in body["versions"].items()
    }
    rows, before = list(body["cases"].values()), body["before"]["cases"]
    text = f"{table(rows, before)}\n\n{by_picture(rows, before)}\n\nOfficial side: {versions['official']}.\n"
    text += f"This side: {versions['own']}. Before: the verifiers of commit {body['before']['commit']}.\n"
    return page[: block.start("body")] + text + page[block.end("body") :]


def own_versions() -> dict[str, str]:
    """Of the packages here that the figures depend on."""
    return {name: importlib.metadata.version(name).split("+")[0] for name in ("torch", "transformers", "pillow")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; 1: the table in the docs is not that of the results (with --check); 2: no official side."""
    parser = argparse.ArgumentParser(prog="testtime bench parity", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="measure nothing, compare the docs with the results")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.check:
        page = PAGE.read_text(encoding="utf-8")
        return int(filled(page, json.loads(options.out.read_text(encoding="utf-8"))) != page)
    before = json.loads(OUT.read_text(encoding="utf-8"))["before"]
    with tempfile.TemporaryDirectory() as name:
        try:
            found = measure(Path(name))
        except link.OfficialError as error:
            log.error("%s", error)
            return 2
        versions = {"official": link.versions(Path(name)), "own": own_versions()}
    body = {"versions": versions, "cases": {row.verifier: asdict(row) for row in found}, "before": before}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, json.dumps(_short(body), indent=1, ensure_ascii=False) + "\n")
    log.info("%s", table(list(body["cases"].values()), before["cases"]))
    if options.out == OUT:
        page = PAGE.read_text(encoding="utf-8")
        write_text(PAGE, filled(page, json.loads(OUT.read_text(encoding="utf-8"))))
    return 0


def _short(value: Any) -> Any:
    """Figures with four digits."""
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_short(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
