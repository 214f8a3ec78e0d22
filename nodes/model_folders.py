"""Weights of published verifiers: what lies in ComfyUI's model folders and in the Hugging Face cache, what is missing.

Folders come first, then the cache as ``hf download`` fills it. Nothing is ever downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..verifiers.base import VerifierError
from ..verifiers.weights import RELEASED, Released
from .choices import open_ended
from .folders import file_names, find_inside, folders_with

FOLDER = "verifiers"
ALSO = "rewriters"  # where vision-language models may lie already
NO_MODEL = "none found"
HUB = "hub cache: "
FILES = (".pt", ".pth", ".bin", ".safetensors")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER), is_default=True)


def register_suffixes() -> None:
    """Let the file lists of ``models/verifiers`` show weights files."""
    paths, suffixes = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, set(suffixes) | folder_paths.supported_pt_extensions)


register_suffixes()


@dataclass(frozen=True)
class Weights(Released):
    """Released weights, and where they belong in this ComfyUI."""

    @classmethod
    def of(cls, key: str) -> Weights:
        """An entry of ``verifiers.weights.RELEASED``."""
        return cls(*astuple(RELEASED[key]))

    def place(self) -> Path:
        """Where the weights belong: a file or a folder in models/verifiers."""
        return Path(folder_paths.get_folder_paths(FOLDER)[0]) / self.entry

    def remedy(self) -> str:
        """What to download and where to put it."""
        searched = ", ".join([*folder_paths.get_folder_paths(FOLDER), "the Hugging Face cache"])
        return (
            f"{self.name} needs {self.file or self.repository} ({self.size}, {self.licence}). Put it at "
            f"{self.place()}, for example with:  {self.how_to_get(self.place().parent)}\nLooked in: {searched}"
        )


def roots(*kinds: str) -> list[Path]:
    """Folders of models/verifiers, and of other kinds that this ComfyUI knows."""
    known = [kind for kind in (FOLDER, *kinds) if kind in folder_paths.folder_names_and_paths]
    return [Path(path) for kind in known for path in folder_paths.get_folder_paths(kind)]


def folder_choices(*suited: Weights, kinds: Iterable[str] = (), marker: str = "config.json") -> list[str]:
    """Models in folders of models/verifiers (with a file ``marker`` in them), then those of ``suited`` in the cache."""
    return _choices(folders_with(marker, roots(*kinds)), suited)


def vocabulary_choices(*suited: Weights) -> list[str]:
    """Folders of models/verifiers with a vocab.txt, then those of ``suited`` in the cache."""
    return _choices(folders_with("vocab.txt", roots()), suited)


def file_choices(*suited: Weights) -> list[str]:
    """Weights files that lie directly in models/verifiers, then those of ``suited`` in the cache."""
    return _choices(
        [name for name in file_names(FOLDER) if Path(name).parent == Path() and name.endswith(FILES)], suited
    )


def _choices(found: list[str], suited: Iterable[Weights]) -> list[str]:
    cached = [HUB + weights.repository for weights in suited if weights.cached() is not None]
    return list(dict.fromkeys([*found, *cached])) or [NO_MODEL]


def located(input_name: str, choice: str, weights: Weights, *others: Weights, kinds: Iterable[str] = ()) -> Path:
    """Path of a choice; VerifierError names the input, the value, and what to download where it is not there."""
    for known in (weights, *others):
        if choice == HUB + known.repository and (path := known.cached()) is not None:
            return path
    found = None if choice == NO_MODEL else find_inside(roots(*kinds), choice)
    if found is not None:
        return found
    raise VerifierError(f"{input_name} is {choice!r}: there is no such model here. {weights.remedy()}")


def missing(**wanted: tuple) -> bool | str:
    """True, or the message about the first input whose model is not there.

    ``input=(choice, weights, ...)``; a choice of None is not known before the run.
    """
    try:
        for input_name, (choice, *weights) in wanted.items():
            if choice is not None:
                located(input_name, choice, *weights, kinds=(ALSO,))
    except VerifierError as error:
        return str(error)
    return True


def preferred(choices: list[str], weights: Weights) -> str:
    """The choice that looks like ``weights``, else the first."""
    wanted = (weights.place().name.lower(), (HUB + weights.repository).lower())
    return next((choice for choice in choices if choice.lower() in wanted), choices[0])


def combo(input_name: str, choices: list[str], weights: Weights, tooltip: str) -> io.Combo.Input:
    """Drop-down of models, the one that is meant preselected."""
    return open_ended(io.Combo.Input(input_name, options=choices, default=preferred(choices, weights), tooltip=tooltip))


def precision_input() -> io.Combo.Input:
    """How exactly a verifier's network computes."""
    return io.Combo.Input(
        "precision",
        options=list(PRECISIONS),
        default="auto",
        optional=True,
        tooltip="Precision of the network; scores stay fp32. auto: half precision if the device is faster with it, "
        "otherwise as stored.",
    )
