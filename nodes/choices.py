"""Drop-downs are checked by the pack itself, at queue time and again when a node runs.

ComfyUI 0.3.64 does not compare the value of a V3 drop-down with its options, so through the API (or from an old
workflow) any text would get as far as the node, where it would run as something else than what was asked for. Newer
hosts compare it at queue time. A value that arrives through a link is compared by neither.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

from comfy_api.internal import first_real_override
from comfy_api.latest import io

from ..graph.workflow import did_you_mean
from ..samplers.protocols import SearchError

LISTED = 20
"""Options that a message lists; of longer drop-downs only those that are spelled alike."""


def choice_problem(name: str, value: Any, options: Sequence[Any]) -> str | None:
    """The sentence about a value that is not among ``options``; None where it is, or is not known yet (None)."""
    if value is None or value in options:
        return None
    listed = list(map(str, options[:LISTED])) + [f"... ({len(options)} in all)"] * (len(options) > LISTED)
    # A value of any length may come in through the API.
    shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    near = did_you_mean(str(value), map(str, options)) if len(str(value)) <= 200 else ""
    return f"{name} is {shown}: choose one of {', '.join(listed) or '(none found)'}.{near}"


def open_ended(entry: io.Combo.Input) -> io.Combo.Input:
    """Mark a drop-down of files whose node's own ``validate_inputs`` knows better which values are right.

    The list may be older than a file, and leaves some out that can be chosen through the API.
    """
    entry.open_ended = True
    return entry


def drop_downs(node: type[io.ComfyNode], everyone: bool = True) -> dict[str, list]:
    """Input name -> options of the drop-downs of a node class; without ``everyone`` not those that are open-ended."""
    combos = (entry for entry in node.define_schema().inputs if _is_combo(entry))
    return {
        entry.id: list(entry.options or ()) for entry in combos if everyone or not getattr(entry, "open_ended", False)
    }


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """Make a node class refuse values that its drop-downs do not offer; returns the class.

    Its own ``validate_inputs``, where it has one, is asked first.
    """
    if hasattr(node.__dict__.get("validate_inputs"), "checks_choices"):
        return node
    override = first_real_override(node, "validate_inputs")
    own = getattr(override, "own_check", override.__func__) if override is not None else None
    own_names = tuple(inspect.signature(own).parameters)[1:] if own is not None else ()
    names = tuple(name for name in drop_downs(node, everyone=False) if name not in own_names)
    if drop_downs(node, everyone=False):
        node.validate_inputs = _validator(own, own_names, names)
        node.execute = _guarded(node.execute.__func__)
    return node


def _validator(own: Any, own_names: tuple[str, ...], names: tuple[str, ...]) -> classmethod:
    """``validate_inputs`` that asks ``own`` first and then compares all values with their options.

    ``own_names``: the inputs that ``own`` takes; names: drop-downs beside them.
    """

    def validate_inputs(cls, *places, **values):
        values |= dict(zip((*own_names, *names), places, strict=False))
        if own is not None:
            answer = own(cls, **{name: value for name, value in values.items() if name in own_names})
            if answer is not True:
                return answer
        return _first_problem(cls, values) or True

    # The host reads the names of the parameters to know what to pass and what to leave to this method.
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("cls", kinds)]
    parameters += [inspect.Parameter(name, kinds, default=None) for name in (*own_names, *names)]
    validate_inputs.__signature__ = inspect.Signature(parameters)
    validate_inputs.own_check = own
    method = classmethod(validate_inputs)
    method.checks_choices = True
    return method


def _guarded(execute: Any) -> classmethod:
    """``execute`` that raises SearchError for a value that came through a link and is not among the options."""

    @functools.wraps(execute)
    def guarded(cls, *args, **values):
        problem = _first_problem(cls, values)
        if problem:
            raise SearchError(problem)
        return execute(cls, *args, **values)

    return classmethod(guarded)


def _first_problem(node: type[io.ComfyNode], values: dict[str, Any]) -> str | None:
    options = drop_downs(node, everyone=False)
    return next(filter(None, (choice_problem(name, values.get(name), options[name]) for name in options)), None)


def _is_combo(entry: Any) -> bool:
    return isinstance(entry, io.Combo.Input) and not getattr(entry, "multiselect", False)
