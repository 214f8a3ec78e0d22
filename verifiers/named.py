"""Verifiers as a command line names them: ``NAME:KEY=VALUE,...``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..installation.errors import BadInput
from ..samplers.protocols import SearchError
from .registry import create


def parse_verifier(text: str) -> tuple[str, dict[str, Any]]:
    """``NAME:KEY=VALUE,...`` -> name and options; numbers, true and false are read as such."""
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise BadInput(f"--verifier {text}: {item!r} is no KEY=VALUE")
        options[key.strip()] = _value(value.strip())
    return name, options


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def make_verifiers(texts: Sequence[str]) -> dict[str, Any]:
    """Verifiers by name, in order; a name that comes again is called ``NAME#2``.

    Raises:
        BadInput: an option that is no KEY=VALUE, or what the verifier says is wrong with it.
    """
    made: dict[str, Any] = {}
    for text in texts:
        name, options = parse_verifier(text)
        column = name if name not in made else f"{name}#{sum(key.split('#')[0] == name for key in made) + 1}"
        try:
            made[column] = create(name, **options)
        except SearchError as error:
            raise BadInput(f"--verifier {text}: {error}") from error
    return made
