"""Socket types of the pack, each declared once, and the plain values that travel through them.

| socket | value |
| --- | --- |
| TESTTIME_SEARCH | a search method, ``samplers.protocols.Search`` |
| TESTTIME_VERIFIER | a judge, ``samplers.protocols.Verifier`` |
| TESTTIME_TRACE | the record of a run, ``samplers.run.trace.Trace`` |
| TESTTIME_SCORES | ``Scores`` below |
| TESTTIME_REWRITER | a rewriter of prompts, ``samplers.protocols.Rewriter`` |
| TESTTIME_INFINITY | a next-scale model, ``host.infinity_host.InfinityModel`` |
| TESTTIME_VALUE | a learned value of noisy images, ``values.learned.LearnedValue`` |
| TESTTIME_EXTRACTOR | image features for clustering, ``samplers.clustering.Extractor`` |

Every Custom type is created here and nowhere else, because two classes of the same name would look alike in the
graph and differ in Python.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from comfy_api.latest import io

CATEGORY = "test-time scaling"

SearchType = io.Custom("TESTTIME_SEARCH")
VerifierType = io.Custom("TESTTIME_VERIFIER")
TraceType = io.Custom("TESTTIME_TRACE")
ScoresType = io.Custom("TESTTIME_SCORES")
RewriterType = io.Custom("TESTTIME_REWRITER")
InfinityType = io.Custom("TESTTIME_INFINITY")
ValueType = io.Custom("TESTTIME_VALUE")
ExtractorType = io.Custom("TESTTIME_EXTRACTOR")


@dataclass(frozen=True)
class Scores:
    """Scores of a batch of images, row by row.

    Attributes:
        verifier: name of the verifier.
        values: one score per image, higher is better; None where no finite score could be had.
        held_out: scores of a verifier that did not steer, or empty.
        held_out_verifier: its name, or "".
        group: which image of the batch each row competed for (all 0 for a plain batch).
        particles: ids of the rows in the trace, or empty.
    """

    verifier: str
    values: list[float | None]
    held_out: list[float | None] = field(default_factory=list)
    held_out_verifier: str = ""
    group: list[int] = field(default_factory=list)
    particles: list[int] = field(default_factory=list)

    def as_text(self) -> str:
        """One line per row, best effort alignment, for a text preview."""
        lines = []
        for row, value in enumerate(self.values):
            cells = [f"{row:3d}", "   n/a  " if value is None else f"{value:8.4f}"]
            if self.held_out:
                other = self.held_out[row]
                cells.append("   n/a  " if other is None else f"{other:8.4f}")
            lines.append("  ".join(cells))
        head = f"{self.verifier}" + (f", held out: {self.held_out_verifier}" if self.held_out else "")
        return "\n".join([head, *lines])
