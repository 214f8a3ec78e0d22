"""``testtime report``: the page of a search from the trace that was saved beside its image."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..installation.errors import BadInput
from ..installation.files import write_text
from ..reports.page import render
from ..samplers.after.trace_file import TraceFileError, read_trace_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``testtime report``."""
    parser.add_argument("trace", type=Path, help="trace file (JSON) or an image saved by Save Search or Search Report")
    parser.add_argument("-o", "--out", type=Path, default=None, help="page to write (default: TRACE with .html)")


def main(options: argparse.Namespace) -> int:
    """Write the page; returns the exit status."""
    source: Path = options.trace
    out: Path = options.out or source.with_suffix(".html")
    if out.resolve() == source.resolve():
        raise BadInput(f"--out {out}: that is the trace itself")
    try:
        found = read_trace_file(source)
        page = render(found.trace, found.thumbs, name=source.name, version=found.version)
    except OSError as error:
        raise BadInput(f"{source}: {error.strerror or error}") from error
    except (TraceFileError, ValueError) as error:
        raise BadInput(f"{source}: {error}") from error
    try:
        write_text(out, page)
    except OSError as error:
        raise BadInput(f"--out {out}: {error.strerror or error}") from error
    sys.stdout.write(f"{out}\n")
    return 0
