"""Candidates that were finished, on the disk: the same run after a cancel or a crash takes them as they are.

Only where candidates are finished one after the other (``Capabilities.whole_first``), because there each is dear. What
is kept of one are its latents; it is decoded and judged again, so that verifiers may change in between.

A candidate is known by what leads to it: the state that it begins from, its noise slot, the seed, the schedule, the
sampler and what the host says of the call. That the model is the same is seen, not believed: the first pass of the
first candidate is made again and must give what it gave.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ...installation.files import write_bytes
from ..state import State

log = logging.getLogger("testtime")

FOLDER = "finished"
"""Name of the folder beside the journals."""
SUFFIX = ".candidate"
KEPT, BYTES = 128, 2 << 30
"""Candidates that are kept on the disk, and their bytes, at most."""
SAMPLED = 4096
"""Numbers of the first clean estimate that are kept, to know the model by."""
TOLERANCE = 1e-3
"""Root mean square difference of two such estimates over their spread, at most: a device may add up in any order."""


class FinishedCandidates:
    """Finished candidates of runs that were cut short.

    A failure to read or write costs a log line and the reuse, never the run.

    Args:
        folder: where they lie; it is made.
        facts: what the host says of the call (guidance, conditions): another one is another run.

    Attributes:
        taken: candidates of this run that an earlier one had finished.
    """

    def __init__(self, folder: Path | str, facts: Mapping[str, Any] | None = None):
        self.folder, self._facts = Path(folder), dict(facts or {})
        self.taken = 0
        self._same_model: bool | None = None
        self._mine: list[Path] = []
        self._works = True

    def begin(self, facts: Mapping[str, Any]) -> None:
        """What is known of the run: seed, schedule, sampler."""
        self._facts.update(facts)

    def known(self, state: State, predict: Callable[[State], State]) -> Tensor | None:
        """Finished latents ``[n, ...]`` of all candidates that begin at ``state``; None where one is missing.

        Args:
            predict: the process's; called once in a run, for the check of the model.
        """
        if not self._works or self._same_model is False:
            return None
        paths = self._paths(state)
        found = [one for path in paths if (one := self._read(path)) is not None]
        if len(found) < len(paths) or any(one["latents"].shape != state.x.shape[1:] for one in found):
            return None
        if self._same_model is None:
            seen = _sampled(predict(state).clean)
            kept = torch.stack([one["opening"] for one in found])
            self._same_model = seen.shape == kept.shape and _gap(seen, kept) < TOLERANCE
            if not self._same_model:
                log.info("finished candidates of an earlier run are not used: the model gives other estimates now")
                return None
        self.taken += len(found)
        self._mine += paths
        return torch.stack([one["latents"] for one in found]).to(state.x)

    def keep(self, begun: State, opening: Tensor, latents: Tensor) -> None:
        """Keep candidates: where they began, the first clean estimate and what they became, ``[n, ...]`` each."""
        if not self._works or not bool(torch.isfinite(latents).all()):
            return
        try:
            for path, first, last in zip(self._paths(begun), _sampled(opening), latents, strict=True):
                # the last move may hand out the estimate itself: two names of one memory cannot be saved
                body = {"latents": last.detach().cpu().contiguous(), "opening": first.clone()}
                write_bytes(path, safetensors.torch.save(body))
                self._mine.append(path)
            prune(self.folder)
        except OSError as error:
            self._works = False
            log.warning("finished candidates cannot be kept in %s (%s)", self.folder, error)

    def forget(self) -> None:
        """Remove those of this run: it came to its end."""
        for path in self._mine:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("%s cannot be removed (%s)", path, error)

    def _paths(self, state: State) -> list[Path]:
        facts = json.dumps(self._facts, sort_keys=True, default=repr).encode()
        names = []
        for row in range(len(state)):
            hasher = hashlib.blake2b(facts, digest_size=16)
            hasher.update(repr((state.step, int(state.group[row]), int(state.slot[row]))).encode())
            for name, value in sorted({**state.extra, "x": state.x}.items()):
                hasher.update(name.encode() + value[row].detach().float().cpu().contiguous().numpy().tobytes())
            names.append(self.folder / f"{hasher.hexdigest()}{SUFFIX}")
        return names

    def _read(self, path: Path) -> dict[str, Tensor] | None:
        try:
            found = safetensors.torch.load(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, safetensors.SafetensorError, ValueError) as error:
            log.warning("%s cannot be read (%s): the candidate is made again", path, error)
            return None
        return found if set(found) == {"latents", "opening"} else None


def prune(folder: Path) -> None:
    """Remove the oldest candidates of a folder beyond ``KEPT`` and ``BYTES``."""
    files = sorted(((s.st_mtime_ns, s.st_size, p) for p in folder.glob("*" + SUFFIX) if (s := p.stat())), reverse=True)
    total = 0
    for number, (_, size, path) in enumerate(files):
        total += size
        if number >= KEPT or total > BYTES:
            path.unlink(missing_ok=True)


def _sampled(x0: Tensor) -> Tensor:
    """``[n, at most SAMPLED]`` float32 numbers of ``[n, ...]``, evenly spaced, on the CPU."""
    flat = x0.detach().flatten(1)
    return flat[:, :: max(1, flat.shape[1] // SAMPLED)].float().cpu().contiguous()


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt() / b.std().clamp(min=1e-12))
