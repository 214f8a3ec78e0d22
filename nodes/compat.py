"""What differs between the versions of ComfyUI that this pack runs on, in one place.

Features are detected, not derived from version numbers; the version is only used to refuse hosts that are too old.
"""

from __future__ import annotations

import logging
import math

import comfy.model_management as management
import torch

from ..installation.locate import MINIMUM_VERSION, parse_version

log = logging.getLogger("testtime")

InterruptProcessing = management.InterruptProcessingException


def host_version() -> str:
    """Version of the running ComfyUI, "" when it does not say."""
    try:
        from comfyui_version import __version__
    except ImportError:
        return ""
    return str(__version__)


def refuse_old_host() -> None:
    """Raise RuntimeError, in one line, on a ComfyUI older than the V3 node schema this pack is written in."""
    version = host_version()
    if version and parse_version(version) < MINIMUM_VERSION:
        needed = ".".join(map(str, MINIMUM_VERSION))
        raise RuntimeError(f"Test-Time Scaling needs ComfyUI {needed} or newer, this one is {version}: update ComfyUI")


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


def total_memory(device: torch.device) -> float:
    """Bytes of ``device`` altogether."""
    total = management.get_total_memory(device)
    return float(total) if total else math.inf
