"""The checks that settings share, each with its one sentence: name of the input, its value, and what would be right."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .protocols import SearchError


def at_least(least: float, /, **settings: float) -> None:
    """Raise SearchError unless every setting is a number >= ``least``."""
    for name, value in settings.items():
        if not value >= least:  # written so that NaN is refused too
            raise SearchError(f"{name} is {value}: at least {least:g} is needed")


def above(bound: float, /, **settings: float | None) -> None:
    """Raise SearchError unless every setting that is given is a finite number > ``bound``."""
    for name, value in settings.items():
        if value is not None and not (value > bound and math.isfinite(value)):
            raise SearchError(f"{name} is {value}: it must be > {bound:g}")


def between(low: float, high: float, /, **settings: float) -> None:
    """Raise SearchError unless every setting lies strictly between ``low`` and ``high``."""
    for name, value in settings.items():
        if not low < value < high:
            raise SearchError(f"{name} is {value}: it must lie between {low:g} and {high:g}")


def one_of(choices: Sequence[str], /, **settings: str) -> None:
    """Raise SearchError unless every setting is one of ``choices``."""
    for name, value in settings.items():
        if value not in choices:
            raise SearchError(f"{name} is {value!r}: choose one of {', '.join(choices)}")


def window(start: float, end: float) -> None:
    """Raise SearchError unless ``0 <= start <= end <= 1``, fractions of the steps."""
    if not 0.0 <= start <= end <= 1.0:
        raise SearchError(f"start {start} and end {end}: 0 <= start <= end <= 1 is needed")
