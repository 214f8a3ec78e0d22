"""The widgets of a node as the front end makes them from its definition, and the values that a file holds for them.

A file saves the values of a node's widgets as a list without names. Which widget a value belongs to follows from the
definition in ``/object_info``: in its order, with further values for "control after generate", upload buttons and
players. A dynamic combo (``COMFY_DYNAMICCOMBO_V3``) is followed by the widgets of the option that was chosen, called
``NAME.SUB``, which may be dynamic combos again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Widgets that are drawn: colours, boxes, 3D views and the like, each known by the type of its input.
DRAWN = {
    "AUDIO_RECORD", "BOUNDING_BOX", "BOUNDING_BOXES", "CAMERA_ANGLE_VIEW", "CAMERA_INFO_STATE", "CHART", "COLOR",
    "COLORS", "COMPOSITOR", "CURVE", "GALLERIA", "IMAGECOMPARE", "LIGHT_INFO_PREVIEW", "LOAD_3D", "LOAD_3D_ADVANCED",
    "MARKDOWN", "PAINTER", "RANGE", "RESOLUTION_PREVIEW", "TEXTAREA", "VIDEO_EDIT", "WEBCAM",
}  # fmt: skip
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"} | DRAWN
BEGIN_WITH = {"IMAGECOMPARE": ["", ""], "LOAD_3D": "", "AUDIO_RECORD": ""}
"""Values of drawn widgets whose definitions name none."""
BUTTONS = {"LOAD_3D": ("upload3dmodel", "uploadExtraResources", "clear")}
"""Values of buttons that are saved before the widget that they belong to."""
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
# Inputs of these names always get a "control after generate" widget, whatever the node says (a front-end convention).
SEED_NAMES = {"seed", "noise_seed"}
UPLOADS = ("image_upload", "animated_image_upload", "video_upload", "audio_upload")
DEEPEST = 16
"""Dynamic combos inside one another that are followed."""

Slot = tuple[str | None, list]
"""A position of ``widgets_values``: the name of its input and its specification; (None, []) for one to skip."""
SKIPPED: Slot = (None, [])


def options_of(spec: list) -> dict:
    """The second part of an input's specification."""
    return spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}


def is_combo(spec: list) -> bool:
    """Whether an input is a drop-down with fixed choices."""
    return isinstance(spec[0], list) or spec[0] == "COMBO"


def choices_of(spec: list) -> list:
    """The choices of a drop-down, of a dynamic combo the keys of its options."""
    if isinstance(spec[0], list):
        return spec[0]
    options = options_of(spec).get("options") or []
    if spec[0] == DYNAMIC_COMBO:
        return [option.get("key") for option in options if isinstance(option, dict)]
    return options


def has_widget(spec: list) -> bool:
    """Whether the front end shows a widget for an input of this specification."""
    kind, options = spec[0], options_of(spec)
    known = isinstance(kind, list) or kind in WIDGET_TYPES or options.get("widgetType") in WIDGET_TYPES
    return known and not options.get("forceInput")


def ordered_inputs(info: dict) -> dict[str, list]:
    """Input specifications in the order the front end creates widgets: required, then optional, as declared."""
    sections = info.get("input", {})
    order = info.get("input_order", {})
    specs = {}
    for section in ("required", "optional"):
        declared = sections.get(section, {})
        for name in [*order.get(section, []), *declared]:
            if name in declared:
                specs[name] = declared[name]
    return specs


def extra_values(name: str, spec: list) -> int:
    """How many values without a meaning for the server follow the one of this widget in ``widgets_values``."""
    options = options_of(spec)
    if spec[0] == "INT":
        return int(bool(options.get("control_after_generate", name in SEED_NAMES)))
    if is_combo(spec) and options.get("control_after_generate"):
        return 2  # the control and its filter list
    return 0


def chosen_inputs(spec: list, value: Any) -> dict[str, list]:
    """The inputs that a dynamic combo brings with the option ``value``, required before optional."""
    for option in options_of(spec).get("options") or []:
        if isinstance(option, dict) and option.get("key") == value:
            sections = option.get("inputs") or {}
            return {**(sections.get("required") or {}), **(sections.get("optional") or {})}
    return {}


def slots(info: dict, named: set[str] = frozenset(), values: list | None = None) -> Iterator[Slot]:
    """The meaning of each position of ``widgets_values``, in order.

    Args:
        info: definition of the node.
        named: inputs that the file itself marks as widgets (packs may give any type a widget of their own).
        values: what was saved; says which options of dynamic combos were chosen, without it the first ones.
    """
    position = 0
    uploads = 0

    def walk(specs: dict[str, list], prefix: str, depth: int) -> Iterator[Slot]:
        nonlocal position, uploads
        for short, spec in specs.items():
            name = prefix + short
            if not has_widget(spec) and name not in named:
                continue
            buttons = BUTTONS.get(spec[0], ()) if isinstance(spec[0], str) else ()
            while values is not None and position < len(values) and values[position] in buttons:
                position += 1
                yield SKIPPED
            here = position
            position += 1 + extra_values(name, spec)
            yield name, spec
            yield from [SKIPPED] * extra_values(name, spec)
            uploads += any(options_of(spec).get(key) for key in UPLOADS)
            if spec[0] == DYNAMIC_COMBO and depth < DEEPEST:
                saved = values[here] if values is not None and here < len(values) else default_value(spec)
                yield from walk(chosen_inputs(spec, saved), f"{name}.", depth + 1)

    yield from walk(ordered_inputs(info), "", 0)
    yield from [SKIPPED] * uploads


def read_values(info: dict, values: list | dict, named: set[str] = frozenset()) -> dict[str, Any]:
    """Input name -> value of every widget of a node; what the file does not hold has its default."""
    if isinstance(values, dict):
        return _by_name(ordered_inputs(info), values)
    values = _without_forced(info, values, named)
    result = {}
    for position, (name, spec) in enumerate(slots(info, named, values)):
        if name is None:
            continue
        value = values[position] if position < len(values) else default_value(spec)
        if value is not None or position < len(values):
            result[name] = value
    return result


def _by_name(specs: dict[str, list], values: dict, prefix: str = "", depth: int = 0) -> dict[str, Any]:
    found = {}
    for short, spec in specs.items():
        name = prefix + short
        if name not in values:
            continue
        found[name] = values[name]
        if spec[0] == DYNAMIC_COMBO and depth < DEEPEST:
            found |= _by_name(chosen_inputs(spec, values[name]), values, f"{name}.", depth + 1)
    return found


def _without_forced(info: dict, values: list, named: set[str]) -> list:
    """Drop the values that old files hold for inputs with ``forceInput``, as the front end does."""
    entries: list[bool] = []
    for name, spec in ordered_inputs(info).items():
        forced = bool(options_of(spec).get("forceInput"))
        if has_widget(spec) or name in named or forced:
            entries += [forced] * (1 + extra_values(name, spec))
    if len(entries) != len(values) or not any(entries):
        return values
    return [value for value, forced in zip(values, entries, strict=True) if not forced]


def default_value(spec: list) -> Any:
    """What the front end would put into a widget without a saved value."""
    options = options_of(spec)
    if "default" in options:
        return options["default"]
    if isinstance(spec[0], str) and spec[0] in BEGIN_WITH:
        return BEGIN_WITH[spec[0]]
    choices = choices_of(spec) if is_combo(spec) or spec[0] == DYNAMIC_COMBO else []
    return choices[0] if choices else None
