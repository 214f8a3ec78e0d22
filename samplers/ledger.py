"""What a run has spent, and what it may spend."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .protocols import BudgetSpent, Rewrite, SearchError


@dataclass
class Call:
    """A model call: ``nfe`` forward passes."""

    nfe: int


@dataclass
class Ledger:
    """Counts of all paid work, with budgets enforced before a call is made.

    Attributes:
        max_nfe: forward passes allowed, or None. One forward pass of one sample on one conditional branch is one NFE,
            so a sample under classifier-free guidance costs two.
        max_seconds: wall-clock seconds allowed from the construction of the ledger, or None.
        nfe, model_calls: samples x branches, and batched calls.
        backward: NFE that were also differentiated (about two further forward passes' worth of time each).
        decodes, quick_decodes: images decoded for verification or preview, and those of them by a quick decoder.
        verifier_images, verifier_calls, held_out_images, rewriter_calls, rewriter_failures: counts.
        seconds: wall-clock seconds per kind ("model", "decode", "quick_decode", "verifier", "held_out",
            "backward", "rewriter").
        peak_memory: bytes of the accelerator's memory, at most.
        flops, decode_flops: floating-point operations of model and decoder where the process knows them, and the
            decoder's part of them.
        rejected_scores: non-finite scores met (each such particle was barred from winning).
    """

    max_nfe: int | None = None
    max_seconds: float | None = None
    nfe: int = 0
    model_calls: int = 0
    backward: int = 0
    decodes: int = 0
    quick_decodes: int = 0
    verifier_images: int = 0
    verifier_calls: int = 0
    held_out_images: int = 0
    rewriter_calls: int = 0
    rewriter_failures: int = 0
    rejected_scores: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory: int = 0
    flops: float = 0.0
    decode_flops: float = 0.0

    def __post_init__(self):
        if self.max_nfe is not None and self.max_nfe < 1:
            raise SearchError(f"max_nfe is {self.max_nfe}: it must be at least 1 (or empty for no limit)")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise SearchError(f"max_seconds is {self.max_seconds}: it must be > 0 (or empty for no limit)")
        self._started = time.perf_counter()

    @property
    def total_seconds(self) -> float:
        """Wall-clock seconds since the run began."""
        return time.perf_counter() - self._started

    def check(self, nfe: int = 0) -> None:
        """Raise BudgetSpent if ``nfe`` more passes would exceed a budget, or the time is up."""
        if self.max_nfe is not None and self.nfe + nfe > self.max_nfe:
            raise BudgetSpent(f"{self.nfe} of {self.max_nfe} NFE are spent and the next call needs {nfe}")
        if self.max_seconds is not None and self.total_seconds > self.max_seconds:
            raise BudgetSpent(f"{self.total_seconds:.1f} s of {self.max_seconds:g} s are spent")

    @contextmanager
    def model(self, nfe: int, backward: bool = False, flops: float = 0.0) -> Iterator[Call]:
        """Account for one batched model call of at most ``nfe``; refuses it if the budget does not allow it.

        Yields a ``Call`` whose ``nfe`` the caller may set to what it really was.
        """
        self.check(nfe)
        call = Call(nfe)
        with self._timed("model"):
            yield call
        self.nfe += call.nfe
        self.model_calls += 1
        self.backward += call.nfe if backward else 0
        self.flops += flops

    @contextmanager
    def decode(self, images: int, flops: float = 0.0, quick: bool = False):
        """Account for decoding ``images`` previews, by the quick decoder or the full one."""
        with self._timed("quick_decode" if quick else "decode"):
            yield
        self.decodes += images
        self.quick_decodes += images if quick else 0
        self.flops += flops
        self.decode_flops += flops

    @contextmanager
    def verify(self, images: int, held_out: bool = False):
        """Account for one verifier call on ``images``."""
        with self._timed("held_out" if held_out else "verifier"):
            yield
        if held_out:
            self.held_out_images += images
        else:
            self.verifier_images += images
            self.verifier_calls += 1

    @contextmanager
    def differentiate(self):
        """Time a backward pass (its forward passes are accounted for as usual)."""
        with self._timed("backward"):
            yield

    @contextmanager
    def rewrite(self):
        """Account for a round of rewriting; yields a list that takes the round's ``Rewrite``s."""
        answers: list[Rewrite] = []
        self.check()
        with self._timed("rewriter"):
            yield answers
        self.rewriter_calls += sum(answer.calls for answer in answers)
        self.rewriter_failures += sum(answer.failed for answer in answers)

    @contextmanager
    def _timed(self, kind: str):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - start
            if torch.cuda.is_available() and torch.cuda.is_initialized():
                self.peak_memory = max(self.peak_memory, torch.cuda.max_memory_allocated())

    def excuse(self, seconds: float, kind: str = "verifier") -> None:
        """Take out seconds spent waiting for a person in a call of ``kind``: no budget and no report counts them."""
        self._started += seconds
        self.seconds[kind] = self.seconds.get(kind, 0.0) - seconds

    def overhead(self) -> float:
        """Total seconds over the seconds spent inside model, decode and verifier calls (1.0 = the search is free)."""
        paid = sum(self.seconds.values())
        return self.total_seconds / paid if paid > 0 else 1.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready copy with ``total_seconds``."""
        names = (
            "max_nfe max_seconds nfe model_calls backward decodes quick_decodes verifier_images verifier_calls "
            "held_out_images rewriter_calls rewriter_failures rejected_scores peak_memory flops decode_flops"
        ).split()
        return {
            **{name: getattr(self, name) for name in names},
            "seconds": {kind: round(value, 4) for kind, value in self.seconds.items()},
            "total_seconds": round(self.total_seconds, 4),
        }
