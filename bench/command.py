"""The command line of a suite: an option per setting, what to measure, and how."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from .provenance import RESULTS
from .recording import Recording, SettingsDiffer
from .runner import run
from .suite import PRECISIONS, ROWS, Suite

log = logging.getLogger("testtime")
Choices = Mapping[str, Sequence[str]]
EVERYWHERE: Choices = {"precision": PRECISIONS}


def parser_of(suite: Suite, file: str, about: str, choices: Choices) -> argparse.ArgumentParser:
    """Options of a suite, whose settings and budgets are the defaults.

    Args:
        suite: with default settings.
        file: name of its module, for the usage.
        about: one sentence.
        choices: setting -> allowed values.
    """
    parser = argparse.ArgumentParser(prog=f"testtime bench {file}", description=about)
    for field in fields(suite.settings):
        value, allowed = getattr(suite.settings, field.name), {**EVERYWHERE, **choices}.get(field.name)
        parser.add_argument("--" + field.name.replace("_", "-"), type=type(value), default=value, choices=allowed)
    methods = list(dict.fromkeys(row.method for row in suite.rows() if row.part == ROWS))
    parser.add_argument("--methods", nargs="+", choices=methods, default=[], metavar="METHOD", help=", ".join(methods))
    if suite.budgets:
        parser.add_argument("--budgets", type=int, nargs="+", default=list(suite.budgets))
    if len(suite.parts) > 1:
        parser.add_argument("--parts", nargs="+", default=list(suite.parts), choices=suite.parts, help="of the file")
    parser.add_argument("--batch", type=int, default=64, help="particles per model call")
    parser.add_argument("--processes", type=int, default=1, help="that work side by side")
    parser.add_argument("--out", type=Path, default=None, help="results file; one that is there is gone on with")
    return parser


def main(
    suite: Suite, file: str, about: str | None, arguments: Sequence[str] | None, choices: Choices | None = None
) -> int:
    """Run a suite with the options of its command line.

    Args:
        suite: with the default settings.
        file, choices: see ``parser_of``.
        about: docstring of its module.
        arguments: of the command line, None for those of the process.

    Returns:
        exit code; 2 where the results file has other settings.
    """
    options = parser_of(suite, file, (about or "").split("\n")[0], choices or {}).parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = {field.name: getattr(options, field.name) for field in fields(suite.settings)}
    suite = replace(suite, settings=replace(suite.settings, **given), budgets=tuple(getattr(options, "budgets", ())))
    try:
        recording = Recording(options.out or RESULTS / suite.file, suite)
    except SettingsDiffer as error:
        log.error("%s", error)
        return 2
    run(suite, recording, getattr(options, "parts", suite.parts), options.methods, options.batch, options.processes)
    return 0
