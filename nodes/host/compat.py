"""What differs between the versions of ComfyUI that this pack runs on, in one place.

Features are detected, not derived from version numbers; the version is only used to refuse hosts that are too old.
"""

from __future__ import annotations

import inspect
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.model_management as management
import comfy.sample
import torch
from torch import Tensor

from ...installation.locate import MINIMUM_VERSION, NEWEST_TESTED, parse_version

log = logging.getLogger("testtime")

# An Exception on older hosts, a BaseException on newer ones, where every layer of a network may raise it.
InterruptProcessing = management.InterruptProcessingException
COPY = "_testtime_scaling_loaded"
"""Name under which the first copy of the pack notes where it lies: copies have package names of their own."""
# How many pixels and frames a cell of an empty latent stands for, as the nodes of newer hosts note it in the LATENT.
EMPTY_SCALE = ("downscale_ratio_spacial", "downscale_ratio_temporal")


def host_version() -> str:
    """Version of the running ComfyUI, "" when it does not say."""
    try:
        from comfyui_version import __version__
    except ImportError:
        return ""
    return str(__version__)


def check_host_version() -> None:
    """Raise RuntimeError, in one line, on a ComfyUI older than the V3 node schema this pack is written in.

    One that is newer than any the pack was tested with is told of in the log, and used.
    """
    version = host_version()
    needed, tested = (".".join(map(str, numbers)) for numbers in (MINIMUM_VERSION, NEWEST_TESTED))
    if version and parse_version(version) < MINIMUM_VERSION:
        raise RuntimeError(f"Test-Time Scaling needs ComfyUI {needed} or newer, this one is {version}: update ComfyUI")
    if parse_version(version) > NEWEST_TESTED:
        log.info("Test-Time Scaling was tested up to ComfyUI %s, this one is %s: it should work", tested, version)


def check_single_copy(folder: Path | None = None) -> None:
    """Raise RuntimeError, in one line, where another copy of the pack is loaded already: both would have all nodes."""
    folder = folder or Path(__file__).resolve().parents[1]
    known = sys.modules.setdefault(COPY, ModuleType(COPY))
    first = known.__dict__.setdefault("folder", folder)
    if first != folder:
        raise RuntimeError(f"Test-Time Scaling is installed twice, in {first} and in {folder}: remove one of them")


def is_oom(error: BaseException) -> bool:
    """Whether ``error`` means that device memory ran out.

    Newer hosts have their own test, which also knows accelerator errors. Older ones only name an exception class, and
    on some builds that name is bound to plain ``Exception``, which would turn every bug into an "out of memory".
    """
    own_test = getattr(management, "is_oom", None)
    if own_test is not None:
        return bool(own_test(error))
    kinds = [getattr(torch, "OutOfMemoryError", None), getattr(torch.cuda, "OutOfMemoryError", None)]
    if management.OOM_EXCEPTION is not Exception:
        kinds.append(management.OOM_EXCEPTION)
    return isinstance(error, tuple(kind for kind in kinds if isinstance(kind, type)))


def throw_if_interrupted() -> None:
    """Raise the host's cancellation exception if the user pressed Cancel."""
    management.throw_exception_if_processing_interrupted()


def free_memory(device: torch.device) -> float:
    """Bytes that a computation on ``device`` may use now."""
    return float(management.get_free_memory(device))


def free_for(patcher: Any, device: torch.device) -> float:
    """The same for a model call: where weights give way on demand (dynamic VRAM), their memory counts as free."""
    own = getattr(patcher, "get_free_memory", None)
    return free_memory(device) if own is None else float(own(device))


def loads_on_demand(patcher: Any) -> bool:
    """Whether weights of a ModelPatcher come layer by layer and may go again within a pass (dynamic VRAM)."""
    return bool(getattr(patcher, "is_dynamic", lambda: False)())


def total_memory(device: torch.device) -> float:
    """Bytes of ``device`` altogether."""
    total = management.get_total_memory(device)
    return float(total) if total else math.inf


def fitting_latent(model: Any, latent: Mapping[str, Any]) -> Tensor:
    """The samples of a LATENT as KSampler begins with them, for a MODEL.

    An empty latent (all zeros) gets the model's channels and, on hosts whose empty latents tell their scale, its size:
    64 x 64 cells of 8 pixels become 32 x 32 for a model whose cells are 16 pixels wide. Others stay as they are.
    """
    known = inspect.signature(comfy.sample.fix_empty_latent_channels).parameters
    scale = {key: latent[key] for key in EMPTY_SCALE if key in known and key in latent}
    return comfy.sample.fix_empty_latent_channels(model, latent["samples"], **scale)


def is_nested(value: Any) -> bool:
    """Whether ``value`` holds several latents of different shapes, as newer hosts pack video and sound."""
    return bool(getattr(value, "is_nested", False)) and not isinstance(value, Tensor)


def nested(streams: Sequence[Tensor]) -> Any:
    """A NestedTensor of streams; only on hosts whose latents may hold several."""
    import comfy.nested_tensor

    return comfy.nested_tensor.NestedTensor(list(streams))


def unpacked(latents: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The streams of ``shapes``, batch first, of packed latents ``[n, 1, L]``."""
    sizes = [math.prod(shape[1:]) for shape in shapes]
    parts = latents.reshape(latents.shape[0], -1).split(sizes, dim=1)
    return [part.reshape(list(shape)) for part, shape in zip(parts, shapes, strict=True)]


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Operations that have a backward pass, while the context lasts; the switch is put back whatever happens.

    Newer hosts compute rotary embeddings and normalisations in fused kernels that autograd cannot go through, and plain
    operations while they train. Older hosts only have the plain ones.
    """
    before = getattr(management, "in_training", None)
    if before is None:
        yield
        return
    management.in_training = True
    try:
        yield
    finally:
        management.in_training = before
