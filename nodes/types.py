"""Socket types of the pack, each declared once.

| socket | value |
| --- | --- |
| TESTTIME_SEARCH | a search method, ``samplers.protocols.Search`` |
| TESTTIME_VERIFIER | a judge, ``samplers.protocols.Verifier`` |
| TESTTIME_TRACE | the record of a run, ``samplers.run.trace.Trace`` |
| TESTTIME_SCORES | ``host.scores.Scores`` |
| TESTTIME_REWRITER | a rewriter of prompts, ``samplers.protocols.Rewriter`` |
| TESTTIME_INFINITY | a next-scale model, ``host.infinity_host.InfinityModel`` |
| TESTTIME_VALUE | a learned value of noisy images, ``values.learned.LearnedValue`` |
| TESTTIME_EXTRACTOR | image features for clustering, ``samplers.clustering.Extractor`` |

Every Custom type is created here and nowhere else, because two classes of the same name would look alike in the
graph and differ in Python.
"""

from __future__ import annotations

from comfy_api.latest import io

CATEGORY = "test-time scaling"
VERIFIER_CATEGORY = f"{CATEGORY}/verifiers"

SearchType = io.Custom("TESTTIME_SEARCH")
VerifierType = io.Custom("TESTTIME_VERIFIER")
TraceType = io.Custom("TESTTIME_TRACE")
ScoresType = io.Custom("TESTTIME_SCORES")
RewriterType = io.Custom("TESTTIME_REWRITER")
InfinityType = io.Custom("TESTTIME_INFINITY")
ValueType = io.Custom("TESTTIME_VALUE")
ExtractorType = io.Custom("TESTTIME_EXTRACTOR")
