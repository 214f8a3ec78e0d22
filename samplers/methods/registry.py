"""One row per method: panel, demo, presets, docs, README and command line read their names from here."""

from __future__ import annotations

from dataclasses import dataclass

from ..method import SearchMethod
from .beam import BeamSearch
from .best_of_n import BestOfN
from .das import DAS
from .fk_steering import FKSteering
from .importance_sampling import ImportanceSampling
from .path_search import PathSearch
from .random_search import RandomSearch
from .rbf import RBF
from .smc import SMC
from .svdd import SVDD
from .ttgen import TTGen
from .tts_var import TTSVAR
from .zero_order import ZeroOrderSearch


@dataclass(frozen=True)
class Row:
    """A method as people meet it.

    Attributes:
        method: its class, which has its key and its title.
        paper: authors, year and arXiv number, "" for what is nobody's. node: id of its node.
        summary: what it does, in a line.
        short: title where there is little room and something else beside it, "" for the title itself.
        aliases: other words that a search for its node finds.
    """

    method: type[SearchMethod]
    paper: str
    node: str
    summary: str
    short: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Name in traces, results and on the command line."""
        return self.method.name

    @property
    def title(self) -> str:
        """Name that people read, in the node menu too."""
        return self.method.title


ROWS = (
    Row(
        BestOfN,
        "",
        "TestTimeBestOfN",
        "Draws N images and keeps the best.",
        aliases=("best of", "bon", "rejection", "pick best"),
    ),
    Row(
        RandomSearch,
        "Ma et al. 2025, arXiv 2501.09732",
        "TestTimeRandomSearch",
        "Best-of-N that drops the worse half partway through.",
        aliases=("successive halving", "best of", "early stopping"),
    ),
    Row(
        ZeroOrderSearch,
        "Ma et al. 2025, arXiv 2501.09732",
        "TestTimeZeroOrderSearch",
        "Hill climbing over the initial noise.",
        aliases=("noise search", "hill climbing", "evolution"),
    ),
    Row(
        PathSearch,
        "Ma et al. 2025, arXiv 2501.09732",
        "TestTimePathSearch",
        "Adds noise back and removes it several ways, keeping the best.",
        aliases=("search over paths", "renoise"),
    ),
    Row(
        ImportanceSampling,
        "Chen et al. 2025, arXiv 2507.18537 (baseline)",
        "TestTimeFKSteering",
        "Resamples at a few steps by the present scores.",
    ),
    Row(
        SVDD,
        "Li et al. 2024, arXiv 2408.08252",
        "TestTimeSVDD",
        "Tries M continuations at every step and keeps the best.",
        aliases=("soft value", "value based decoding", "branching"),
    ),
    Row(
        SMC,
        "Del Moral et al. 2006; Kim et al. 2025, arXiv 2501.05803",
        "TestTimeSMC",
        "Phases the score in over the steps and resamples particles by weight.",
        aliases=("sequential monte carlo", "particle filter"),
    ),
    Row(
        DAS,
        "Kim et al. 2025, arXiv 2501.05803",
        "TestTimeDAS",
        "SMC whose steps follow the gradient of the score.",
        aliases=("diffusion alignment as sampling", "reward gradient", "guidance"),
    ),
    Row(
        FKSteering,
        "Singhal et al. 2025, arXiv 2501.06848",
        "TestTimeFKSteering",
        "Resamples at a few steps by how much the scores rose.",
        aliases=("feynman", "feynman-kac", "importance sampling", "particles"),
    ),
    Row(
        RBF,
        "Kim et al. 2025, arXiv 2503.19385",
        "TestTimeRBF",
        "Accepts the first candidate that improves, and saves the rest of the budget for later steps.",
        short="RBF",
        aliases=("rollover", "budget forcing"),
    ),
    Row(
        BeamSearch,
        "Oshima et al. 2025, arXiv 2501.19252",
        "TestTimeBeamSearch",
        "Keeps the best B of all children, judged by where they lead.",
        aliases=("beam", "lookahead"),
    ),
    Row(
        TTSVAR,
        "Chen et al. 2025, arXiv 2507.18537",
        "TestTimeTTSVAR",
        "Many candidates while images are small, few once they are large.",
        aliases=("infinity", "var", "next-scale"),
    ),
    Row(
        TTGen,
        "Qiao et al., OPPO Research",
        "TestTimeTTGen",
        "A vision-language model rewrites the prompt during sampling.",
        aliases=("prompt rewriting", "vlm", "llm"),
    ),
)
METHODS = {row.key: row for row in ROWS}


def row_of(method: type[SearchMethod]) -> Row:
    """The row of a class. KeyError for one that is not ours."""
    return METHODS[method.name]


def title_of(key: str) -> str:
    """A method's title by its key; the key itself for one that is not ours."""
    return METHODS[key].title if key in METHODS else key
