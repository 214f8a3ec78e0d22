"""Where a worker gets its model from: the name of a function and plain JSON settings, never a pickled object."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..samplers.protocols import Process, SearchError, Verifier
from ..verifiers.named import make_verifiers


@dataclass(frozen=True)
class Made:
    """What a recipe makes.

    Attributes:
        process: what is searched. verifier: the judge, or None. held_out: reported, never steers, or None.
        weights: files that the networks were read from; workers with other files are refused. A factory that has an
            attribute ``weights(settings) -> paths`` tells them without reading them.
    """

    process: Process
    verifier: Verifier | None = None
    held_out: Verifier | None = None
    weights: tuple[Path, ...] = ()


Factory = Callable[..., Made]


@dataclass(frozen=True)
class Recipe:
    """A function that makes a process and its judges, by name, and what it is called with.

    Attributes:
        factory: "shapes" or "diffusers", or "package.module:function" of your own. It is called as
            ``function(prompts, seed, **settings)`` and returns ``Made``.
        settings: JSON values by name.
    """

    factory: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def function(self) -> Factory:
        """The factory. Raises SearchError where there is none of that name."""
        name = SHIPPED.get(self.factory, self.factory)
        module, colon, attribute = name.partition(":")
        if not colon:
            raise SearchError(
                f"factory is {self.factory!r}: choose {', '.join(SHIPPED)}, or name a function, package.module:function"
            )
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise SearchError(f"factory {self.factory!r} cannot be imported on this worker: {error}") from error

    def check(self) -> None:
        """Raise SearchError for a factory that is not there, or settings that it does not take."""
        parameters = inspect.signature(self.function()).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return
        known = [name for name in parameters if name not in ("prompts", "seed")]
        for name in self.settings:
            if name not in known:
                raise SearchError(f"{self.factory} has no setting {name!r}: choose from {', '.join(known)}")

    def weights(self) -> tuple[Path, ...]:
        """Files that the factory reads its networks from, where it says so (an attribute ``weights``)."""
        told = getattr(self.function(), "weights", None)
        return () if told is None else tuple(told(dict(self.settings)))

    def make(self, prompts: Sequence[str], seed: int = 0) -> Made:
        """Call the factory. Raises SearchError for settings that it refuses."""
        self.check()
        return self.function()(list(prompts), seed, **self.settings)

    def to_json(self) -> str:
        """Canonical text."""
        return json.dumps({"factory": self.factory, "settings": dict(self.settings)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read ``to_json``'s text."""
        body = json.loads(text)
        return cls(body["factory"], body["settings"])


def digest_of(weights: Sequence[Path]) -> str:
    """Digest of files of weights: names, sizes and the first MiB of each. Raises SearchError for a missing one."""
    total = hashlib.sha256()
    for path in sorted(weights, key=lambda path: path.name):
        try:
            with open(path, "rb") as file:
                head = file.read(1 << 20)
            total.update(repr((path.name, path.stat().st_size)).encode() + hashlib.sha256(head).digest())
        except OSError as error:
            raise SearchError(f"model file {path} cannot be read on this worker: {error}") from error
    return total.hexdigest()[:16]


def identity(made: Made) -> dict[str, Any]:
    """What must be the same on all workers of a search: versions, classes, schedule, weights."""
    import torch

    process, verifier = made.process, made.verifier
    anything: Any = process
    device = torch.device(getattr(anything, "device", None) or anything.model.device)
    scales = [float(sigma) for sigma in process.sigmas] if process.capabilities.kind == "next-scale" else None
    return {
        "pack": __version__,
        "torch": torch.__version__.split("+")[0],
        "process": process.capabilities.kind,
        "shape": list(process.shape),
        "scales": scales,
        "verifier": None if verifier is None else verifier.name,
        "weights": digest_of(made.weights),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def shapes(
    prompts: list[str],
    seed: int,
    model: str = "diffusion",
    steps: int = 20,
    cfg: float | None = None,
    eta: float = 1.0,
    size: int = 128,
    max_batch: int | None = None,
    group_offset: int = 0,
    verifier: str = "shapes_preference",
    held_out: str | None = "shapes_clip",
) -> Made:
    """The embedded models: "diffusion", "flow" or "var"; verifiers as ``NAME:KEY=VALUE,...``."""
    from ..models.tiny.pipeline import MODELS, SamplingSettings, shapes_process
    from ..models.tiny.var_pipeline import VarSettings, var_process

    process: Process
    files = _shapes_weights({"model": model})
    if model == "var":
        process = var_process(
            prompts, VarSettings(cfg or 3.0, seed=seed, max_batch=max_batch, group_offset=group_offset)
        )
    elif model in MODELS:
        settings = SamplingSettings(
            model, steps, cfg or 2.5, eta, seed, (size, size), max_batch, group_offset=group_offset
        )
        process = shapes_process(prompts, settings)
    else:
        raise SearchError(f"model is {model!r}: choose one of {', '.join((*MODELS, 'var'))}")
    return Made(process, judge(verifier), judge(held_out), files)


def _shapes_weights(settings: Mapping[str, Any]) -> tuple[Path, ...]:
    from ..models.tiny.loading import WEIGHTS

    model = settings.get("model", "diffusion")
    names = ("var", "var_vae", "text_encoder") if model == "var" else (model, "autoencoder", "text_encoder")
    return tuple(WEIGHTS / f"{name}.safetensors" for name in names)


def diffusers(
    prompts: list[str],
    seed: int,
    folder: str = "",
    steps: int = 28,
    eta: float = 1.0,
    dtype: str = "float32",
    device: str = "",
    max_batch: int | None = None,
    group_offset: int = 0,
    verifier: str = "",
    held_out: str | None = None,
    **call: Any,
) -> Made:
    """A pipeline that diffusers saved in ``folder``; ``call`` are arguments of its own call (guidance_scale, ...)."""
    from ..pipelines.diffusion import pipeline_process

    pipe = load_pipeline(folder, dtype, device)
    process = pipeline_process(
        pipe, prompts, steps=steps, eta=eta, seed=seed, max_batch=max_batch, group_offset=group_offset, **call
    )
    return Made(process, judge(verifier), judge(held_out), _pipeline_weights({"folder": folder}))


def _pipeline_weights(settings: Mapping[str, Any]) -> tuple[Path, ...]:
    return tuple(sorted(Path(settings.get("folder", "")).rglob("*.safetensors")))


@functools.lru_cache(maxsize=1)
def load_pipeline(folder: str, dtype: str, device: str) -> Any:
    """The pipeline, loaded once per worker. Raises SearchError for a folder that is none."""
    if not (Path(folder) / "model_index.json").is_file():
        raise SearchError(f"{folder or repr(folder)} is no diffusers folder: it has no model_index.json")
    import torch
    from diffusers import DiffusionPipeline

    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise SearchError(f"dtype is {dtype!r}: choose float32, float16 or bfloat16")
    pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=kind, local_files_only=True, trust_remote_code=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


@functools.lru_cache(maxsize=8)
def judge(text: str | None) -> Verifier | None:
    """A verifier by ``NAME:KEY=VALUE,...``, made once per worker; None for none."""
    return next(iter(make_verifiers([text]).values())) if text else None


shapes.weights = _shapes_weights  # type: ignore[attr-defined]
diffusers.weights = _pipeline_weights  # type: ignore[attr-defined]
SHIPPED = {"shapes": f"{__name__}:shapes", "diffusers": f"{__name__}:diffusers"}
