"""Exchange one stock sampler on a page; the table of what becomes what is in ``upgrade``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..installation.errors import BadInput
from .api_page import ApiPage, Source
from .catalogue import SEARCH, VERIFIER, Catalogue
from .record import Record
from .ui_page import UiPage
from .widgets import options_of, ordered_inputs

ALL_STEPS = 10_000
RANDOM_SAMPLERS = ("ancestral", "sde", "lcm", "ddpm", "seeds", "sa_solver")


@dataclass(frozen=True)
class Wanted:
    """What a sampler is to become.

    Attributes:
        method, verifier: any name that ``Catalogue`` knows.
        number: images that are compared; None leaves the method's own default.
        seconds: time that the search may take; 0 for as long as it takes.
    """

    method: str = "Best-of-N"
    verifier: str = "CLIPScore"
    number: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Prompt:
    """A prompt as a verifier gets it: its value as far as it is known, and the link of the page that brings it.

    ``found``: whether there is one. ``in_words``: whether the sampler is steered by a text at all.
    """

    value: str | None = ""
    source: Source | None = None
    found: bool = True
    notes: tuple[str, ...] = ()
    in_words: bool = True


class Builder:
    """Exchanges one sampler; see the table above."""

    def __init__(
        self, catalogue: Catalogue, page: ApiPage | UiPage, key: Any, wanted: Wanted, vae: Source, prompt: Prompt
    ):
        self.catalogue = catalogue
        self.info = catalogue.object_info
        self.page, self.key = page, key
        self.wanted = wanted
        self.vae, self.prompt = vae, prompt
        self.method = catalogue.method(wanted.method)
        self.verifier = catalogue.verifier(wanted.verifier)
        self.record = Record.of(page, key)
        self.added = self.record.added
        self.lost = self.record.sources

    def build(self) -> list[str]:
        """Change the page; returns sentences for the person."""
        kind = self.page.kind(self.key)
        self._check_borders(kind)
        if kind == "KSampler":
            self._ksampler()
        elif kind == "KSamplerAdvanced":
            self._advanced()
        else:
            self._custom()
        self.record.keep(self.page, self.key)
        return [] if not self.verifier.missing else [f"{self.verifier.title}: {self.verifier.missing}."]

    def _ksampler(self) -> None:
        kind = self.catalogue.search_ksampler()
        values, sources = self.page.values(self.key), dict(self.lost)
        specs = ordered_inputs(self.info[kind])
        self.page.reserve(self.key, kind)
        more, linked = self._search(kind, str(values.get("sampler_name", "euler")), adds_noise=True)
        self._keep_borders(specs, sources, values)
        keep = {name: source for name, source in sources.items() if name in specs}
        self.page.replace(self.key, kind, {**values, **more}, {**keep, **linked})

    def _advanced(self) -> None:
        values, sources = self.page.values(self.key), dict(self.lost)
        end, steps = values.get("end_at_step", ALL_STEPS), values.get("steps", ALL_STEPS)
        ends_early = "end_at_step" in sources or end < steps
        if ends_early and values.get("return_with_leftover_noise") == "disable":
            raise BadInput(
                f"node {self.key} (KSamplerAdvanced) ends at step {end} of {steps} and takes the rest of the noise "
                "away in one jump: set return_with_leftover_noise to enable, or end_at_step to the number of steps"
            )
        sampler_name = str(values.get("sampler_name", "euler"))
        named = {"sampler_name": sampler_name}
        select = {"sampler_name": sources["sampler_name"]} if "sampler_name" in sources else {}
        searcher = self.catalogue.search_sampler()
        self.page.reserve(self.key, "SamplerCustom")
        adds_noise = values.get("add_noise") != "disable"
        more, linked = self._search(searcher, sampler_name, adds_noise)
        own = self.catalogue.input_of(searcher, "SAMPLER")
        if own or select:
            chosen = self._add("KSamplerSelect", named, select)
            linked |= {own: (chosen, 0)} if own else {}
        search = self._add(searcher, more, linked)
        wires = {name: sources[name] for name in ("model", "scheduler", "steps") if name in sources}
        sigmas = (self._add("BasicScheduler", {**values, "denoise": 1.0}, wires), 0)
        if ends_early:
            sigmas = (self._split(sigmas, "end_at_step", values, sources), 0)
        if "start_at_step" in sources or values.get("start_at_step", 0) > 0:
            sigmas = (self._split(sigmas, "start_at_step", values, sources), 1)
        specs = ordered_inputs(self.info["SamplerCustom"])
        keep = {name: source for name, source in sources.items() if name in specs and name != "add_noise"}
        self.page.replace(
            self.key,
            "SamplerCustom",
            {**values, "add_noise": adds_noise},
            {**keep, "sampler": (search, 0), "sigmas": sigmas},
        )

    def _custom(self) -> None:
        kind = self.catalogue.search_sampler()
        adds_noise = self.page.values(self.key).get("add_noise", True) is not False
        noise = self.lost.get("noise")
        if noise is not None and self._kind(noise[0]) == "DisableNoise":
            adds_noise = False
        old = self.lost.get("sampler")
        name = self.page.values(old[0]).get("sampler_name", "") if old and self._kind(old[0]) else ""
        told = name or (self._kind(old[0]) if old else "")
        more, linked = self._search(kind, str(told).lower(), adds_noise)
        own = self.catalogue.input_of(kind, "SAMPLER")
        if own and old:
            linked[own] = old
        search = self._add(kind, more, linked)
        self.page.connect((search, self.catalogue.output_of(kind, "SAMPLER")), self.key, "sampler")

    def _kind(self, key: Any) -> str:
        """Class of a node, "" for a border."""
        try:
            return self.page.kind(key)
        except KeyError:
            return ""

    def _add(self, kind: str, values: dict[str, Any], sources: dict[str, Source]) -> Any:
        self.added.append(self.page.add(kind, values, sources, self.key))
        return self.added[-1]

    def _split(self, sigmas: Source, name: str, values: dict, sources: dict) -> Any:
        wires = {"sigmas": sigmas} | ({"step": sources[name]} if name in sources else {})
        return self._add("SplitSigmas", {"step": values.get(name, 0)}, wires)

    def _search(self, kind: str, sampler: str, adds_noise: bool) -> tuple[dict[str, Any], dict[str, Source]]:
        """(values, links) of a search node, its method and verifier being added."""
        info, catalogue = self.info, self.catalogue
        number = self._number()
        search = (self._add(self.method.kind, number, {}), catalogue.output_of(self.method.kind, SEARCH))
        budget = catalogue.budget()
        if self.wanted.seconds > 0 and budget is not None:
            limits = {"seconds": self.wanted.seconds} | ({"nfe": 0} if "nfe" in ordered_inputs(info[budget]) else {})
            search = (self._add(budget, limits, {catalogue.input_of(budget, SEARCH): search}), 0)
        judge = (self._add(self.verifier.kind, {}, {}), catalogue.output_of(self.verifier.kind, VERIFIER))
        specs = ordered_inputs(info[kind])
        values = {} if self.prompt.value is None else {"prompt": self.prompt.value}
        random = any(word in sampler for word in RANDOM_SAMPLERS)
        chooses_at_the_end = "start" not in ordered_inputs(info[self.method.kind])
        if "eta" in specs and catalogue.input_of(kind, "SAMPLER") is None and "sampler_name" not in specs:
            values["eta"] = 0.0 if chooses_at_the_end and adds_noise and not random else 1.0
        linked = {
            catalogue.input_of(kind, VERIFIER): judge,
            catalogue.input_of(kind, "VAE"): self.vae,
            catalogue.input_of(kind, SEARCH): search,
        }
        if self.prompt.source is not None:
            linked["prompt"] = self.prompt.source
        return values, linked

    def _number(self) -> dict[str, int]:
        """The method's widget for the number of images. ``BadInput`` for a number that it does not take."""
        number, name = self.wanted.number, self.method.number
        if number is None or not name:
            return {}
        options = options_of(ordered_inputs(self.info[self.method.kind])[name])
        least, most = options.get("min", 1), options.get("max", 1024)
        if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
            raise BadInput(
                f"number is {str(number)[:80]}: {self.method.title} takes a whole number from {least} to {most}"
            )
        return {name: number}

    def _keep_borders(self, specs: dict[str, list], sources: dict[str, Source], values: dict[str, Any]) -> None:
        """A sampler's name that comes from elsewhere keeps a taker, also where the search node has no such widget."""
        if "sampler_name" in sources and "sampler_name" not in specs:
            self._add("KSamplerSelect", values, {"sampler_name": sources["sampler_name"]})

    def _check_borders(self, kind: str) -> None:
        lost = [name for name in ("add_noise", "return_with_leftover_noise", "force_full_denoise") if name in self.lost]
        if kind == "KSamplerAdvanced" and lost:
            raise BadInput(f"node {self.key} ({kind}): its {lost[0]} comes from another node; give it a value instead")
