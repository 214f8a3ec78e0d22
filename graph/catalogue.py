"""The pack's nodes as a server describes them: which search, which judge, and how the two nodes that sample are called.

Everything is read from the definitions (``/object_info``) by the types of inputs and outputs, so a node that is renamed
or gets another widget needs no change here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..installation.errors import BadInput
from .widgets import choices_of, default_value, has_widget, is_combo, ordered_inputs
from .workflow import did_you_mean, input_specs

SEARCH, VERIFIER = "TESTTIME_SEARCH", "TESTTIME_VERIFIER"
STOCK = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
"""Samplers that can be searched with."""
NUMBERS = ("particles", "candidates", "beams", "paths", "neighbours")
"""What nodes of methods call the number of images that they compare, the most telling name first."""
NO_MODEL = "none found"


@dataclass(frozen=True)
class Choice:
    """A node that the dialog offers.

    Attributes:
        kind: class. title: display name. number: the input that says how many images it compares, "" for none.
        default: of that number. missing: why it would not run as it is; "" where nothing is missing.
    """

    kind: str
    title: str
    number: str = ""
    default: int = 0
    missing: str = ""


@dataclass
class Catalogue:
    """What a server offers for a search.

    Args:
        object_info: its definitions of nodes.
        missing: class -> what is missing, where somebody knows better than the definitions do.
    """

    object_info: dict
    missing: dict[str, str] = field(default_factory=dict)

    def methods(self) -> list[Choice]:
        """Nodes that make a search out of nothing but values, in the order of the menu."""
        return [self._choice(kind) for kind in self._makers(SEARCH) if self._suits_images(kind)]

    def verifiers(self) -> list[Choice]:
        """Nodes that make a verifier out of nothing but values; those that would run as they are come first."""
        found = [self._choice(kind) for kind in self._makers(VERIFIER)]
        return sorted(found, key=lambda choice: bool(choice.missing))

    def method(self, name: str) -> Choice:
        """The method that a class, display name or short name means; ``BadInput`` with the others for none."""
        return _named(name, self.methods(), "method")

    def verifier(self, name: str) -> Choice:
        """The verifier that a class, display name or short name means; ``BadInput`` with the others for none."""
        return _named(name, self.verifiers(), "verifier")

    def search_ksampler(self) -> str:
        """The class that is KSampler with a search. ``BadInput`` where the server has none."""
        return self._only({"MODEL", "CONDITIONING", "LATENT", "VAE", SEARCH, VERIFIER}, "LATENT")

    def search_sampler(self) -> str:
        """The class that makes a SAMPLER of a search. ``BadInput`` where the server has none."""
        return self._only({"VAE", SEARCH, VERIFIER}, "SAMPLER")

    def budget(self) -> str | None:
        """The class that fits a search to a budget in seconds, None where there is none."""
        for kind, info in self.object_info.items():
            specs = input_specs(info)
            sockets = [name for name, spec in specs.items() if not has_widget(spec)]
            if list(info.get("output", ())) == [SEARCH] and "seconds" in specs and len(sockets) == 1:
                return kind
        return None

    def input_of(self, kind: str, wanted: str) -> str | None:
        """The first input of a class that takes a type."""
        specs = ordered_inputs(self.object_info[kind])
        return next((name for name, spec in specs.items() if spec[0] == wanted), None)

    def output_of(self, kind: str, wanted: str) -> int:
        """The slot of the first output of a class that has a type."""
        return list(self.object_info[kind]["output"]).index(wanted)

    def _makers(self, wanted: str) -> list[str]:
        found = []
        for kind, info in self.object_info.items():
            needed = (info.get("input") or {}).get("required", {}).values()
            if list(info.get("output", ())) == [wanted] and all(map(has_widget, needed)):
                found.append(kind)
        return found

    def _suits_images(self, kind: str) -> bool:
        """Whether a method is one for diffusion; those of next-scale models choose by schedules over scales."""
        return not any("scale" in name for name in input_specs(self.object_info[kind]))

    def _choice(self, kind: str) -> Choice:
        info = self.object_info[kind]
        specs = ordered_inputs(info)
        number = next((name for name in NUMBERS if name in specs), "")
        default = default_value(specs[number]) if number else 0
        missing = self.missing.get(kind, "") or _missing_here(specs)
        return Choice(kind, info.get("display_name") or kind, number, default, missing)

    def _only(self, inputs: set[str], output: str) -> str:
        for kind, info in self.object_info.items():
            kinds = {spec[0] for spec in input_specs(info).values() if isinstance(spec[0], str)}
            if inputs <= kinds and list(info.get("output", ()))[:1] == [output]:
                return kind
        raise BadInput("The server has no search nodes: Test-Time Scaling is not loaded there; its log says why.")


def _missing_here(specs: dict[str, list]) -> str:
    """What the definitions themselves say is missing: drop-downs of models without a model."""
    empty = [name for name, spec in specs.items() if is_combo(spec) and choices_of(spec) == [NO_MODEL]]
    return f"no model found for {' and '.join(empty)}" if empty else ""


def short(text: str) -> str:
    """A name without what differs between ways of writing it."""
    lowered = text.lower().removeprefix("testtime").removesuffix(" verifier")
    return "".join(letter for letter in lowered if letter.isalnum())


def _named(name: str, choices: list[Choice], what: str) -> Choice:
    for choice in choices:
        if short(name) in (short(choice.kind), short(choice.title)):
            return choice
    titles = [choice.title for choice in choices]
    near = did_you_mean(name[:200], titles)
    raise BadInput(f"{what} {name[:80]!r}: there is none of that name.{near} Choose one of {', '.join(titles)}.")


def as_json(catalogue: Catalogue) -> dict[str, Any]:
    """What the dialog of the browser needs to know."""
    return {
        "methods": [vars(choice) for choice in catalogue.methods()],
        "verifiers": [vars(choice) for choice in catalogue.verifiers()],
        "budget": catalogue.budget() is not None,
    }
