"""The ``testtime`` command. Sub-commands are imported when called, so ``--help`` and ``--version`` are quick."""

from __future__ import annotations

import argparse
import importlib
import logging
import signal
import sys
import threading
from collections.abc import Sequence

from .. import __version__
from ..installation.answers import shortened
from ..installation.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, CommandError

LONGEST_MESSAGE = 200
SUITES = ("shapes", "flow", "ttgen", "var", "panel", "overhead", "parity", "throughput", "simulate", "editing")


PUBLIC = ("geneval", "t2i-compbench", "coco", "genai", "drawbench")
"""Public benchmarks, of any model."""


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser; only the sub-command about to run fills in its options."""
    parser = argparse.ArgumentParser(
        prog="testtime",
        description="Test-time scaling for image generation: search with verifiers while sampling.",
        epilog="Exit status: 0 done, 1 the run failed, 2 bad input, 3 trouble with ComfyUI, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"testtime {__version__}")
    parser.add_argument("--verbose", action="store_true", help="log what is being done")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    texts = {
        "run": "run a workflow on a running ComfyUI, or on one started headless",
        "upgrade": "turn a sampler of a workflow into a search, or back",
        "batch": "run a workflow, or a search of the library, once for every row of a table",
        "demo": "compare the methods on the embedded models and write out/demo/index.html",
        "report": "make a page (HTML) of the trace of a search",
        "recover": "list searches that were cut off, and write what is left of one",
        "score": "score a folder of images with verifiers, into a CSV file",
        "train-value": "train a value network, so that SVDD and SMC need no previews",
        "doctor": "show what was found: PyTorch, weights, ComfyUI",
    }
    for name, text in texts.items():
        child = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == command:
            command_module(name).add_arguments(child)
    bench = commands.add_parser("bench", help="run a benchmark suite", add_help=False)
    bench.add_argument("suite", nargs="?", choices=(*SUITES, *PUBLIC, "gpu"), metavar="SUITE")
    bench.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser


def command_module(name: str):
    """The module of a sub-command."""
    module = "..demo.main" if name == "demo" else "." + name.replace("-", "_")
    return importlib.import_module(module, __package__)


def dispatch(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Call the sub-command; returns the exit status."""
    if options.command is None:
        parser.print_help()
        return EXIT_BAD_INPUT
    if options.command == "bench":
        if options.suite is None:
            parser.error(f"bench: which suite? Choose one of {', '.join((*SUITES, *PUBLIC, 'gpu'))}")
        if options.suite in PUBLIC or options.suite == "gpu":
            command = importlib.import_module("testtime.bench.public.command")
            given = options.arguments
            return command.gpu(given) if options.suite == "gpu" else command.main(options.suite, given)
        suite = importlib.import_module(f"testtime.bench.{options.suite}")
        return suite.main(options.arguments) or 0
    return command_module(options.command).main(options)


class ShortLines(logging.Formatter):
    """Messages as they are, cut to the length of a few lines: libraries put whole configurations into exceptions."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, cut."""
        return shortened(super().format(record), LONGEST_MESSAGE)


class Terminal(logging.StreamHandler):
    """The handler of this command."""


def log_to_terminal(verbose: bool) -> None:
    """Show what this pack logs, and warnings of others; ``verbose``: everything of this pack's, at full length."""
    root = logging.getLogger()
    for known in [handler for handler in root.handlers if isinstance(handler, Terminal)]:
        root.removeHandler(known)  # of an earlier call in this process
    handler = Terminal()
    handler.setFormatter(logging.Formatter("%(message)s") if verbose else ShortLines("%(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("testtime").setLevel(logging.DEBUG if verbose else logging.INFO)


def end_as_on_interrupt() -> None:
    """Take SIGTERM and SIGHUP (``timeout``, a closed terminal) as Ctrl-C, so that no ComfyUI of ours is left behind.

    Signals that are ignored (``nohup``) or handled already stay as they are, as do all outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    end_as_on_interrupt()
    argv = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in argv if not word.startswith("-")), None)
    parser = build_parser(command)
    options = parser.parse_args(argv)
    log_to_terminal(options.verbose)
    try:
        return dispatch(options, parser)
    except CommandError as error:
        sys.stderr.write(f"testtime: {error}\n")
        return error.status
    except KeyboardInterrupt:
        sys.stderr.write("testtime: interrupted\n")
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
