"""Best-of-N: independent samples, one look at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..protocols import Process, SearchError, SearchResult, Verifier
from ..run.session import Session
from ..run.trace import StepRecord, particle_entries
from ..smc.weights import best_index


@dataclass(frozen=True)
class BestOfN:
    """Draw N samples and keep the one that the verifier likes best.

    Cost per image: ``N T`` denoiser calls, N decodes and N verifications. With N = 1 this is plain sampling; a verifier
    is then optional and only reports.
    """

    particles: int = 4
    name: str = "best_of_n"
    width_field: ClassVar[str] = "particles"

    def check(self, process: Process, verifier: Verifier | None) -> None:
        """Raise SearchError for settings that cannot work."""
        self.check_settings()
        if verifier is None and self.particles > 1:
            raise SearchError("verifier is missing: connect one, Best-of-N needs a judge")

    def check_settings(self) -> None:
        """Raise SearchError for settings that are wrong by themselves."""
        if self.particles < 1:
            raise SearchError(f"particles is {self.particles}: at least 1 is needed")

    def calls(self, process: Process) -> int:
        """Denoiser calls per image."""
        return self.particles * process.steps

    def looks(self, process: Process) -> int:
        """Decodes and verifications per image."""
        return self.particles

    def run(self, session: Session) -> SearchResult:
        """Advance all, score once."""
        process, n = session.process, self.particles
        state = process.start(n)
        parents: list[int | None] = [None] * len(state)
        for i in range(process.steps):
            state = process.predict(state)
            ids = session.trace.new_ids(len(state))
            session.remember(state, None, ids)
            record = StepRecord(i, process.steps, process.sigmas[i], particle_entries(state, ids, parents))
            session.record(record, state)
            state, _ = process.advance(state)
            parents = ids

        images = None
        reward = torch.full((len(state),), -math.inf, dtype=torch.float64)
        if session.verifier is not None:
            state, values, images = session.evaluate(state)
            reward = values.reward
        best = best_index(reward.view(process.groups, n)) + torch.arange(process.groups) * n
        ids = session.trace.new_ids(len(state))
        session.remember(state, reward, ids)
        entries = particle_entries(state, ids, parents, reward, selected=best.tolist())
        record = StepRecord(process.steps, process.steps, process.sigmas[-1], entries, phase="final")
        session.record(record, state, images)
        return session.result(state, reward, ids, best=best)
