"""Search methods, one file each. ``METHODS`` maps their command-line names to their classes."""

from .beam import BeamSearch
from .best_of_n import BestOfN
from .das import DAS
from .fk_steering import FKSteering
from .importance_sampling import ImportanceSampling
from .noise_search import RandomSearch, ZeroOrderSearch
from .path_search import PathSearch
from .rbf import RBF
from .smc import SMC
from .svdd import SVDD
from .ttgen import TTGen
from .tts_var import TTSVAR

METHODS = {
    "best_of_n": BestOfN,
    "importance_sampling": ImportanceSampling,
    "svdd": SVDD,
    "smc": SMC,
    "das": DAS,
    "fk": FKSteering,
    "rbf": RBF,
    "beam_search": BeamSearch,
    "random_search": RandomSearch,
    "zero_order_search": ZeroOrderSearch,
    "path_search": PathSearch,
    "ttgen": TTGen,
    "tts_var": TTSVAR,
}

__all__ = [
    "METHODS",
    "BeamSearch",
    "BestOfN",
    "DAS",
    "FKSteering",
    "ImportanceSampling",
    "PathSearch",
    "RBF",
    "RandomSearch",
    "SMC",
    "SVDD",
    "TTGen",
    "TTSVAR",
    "ZeroOrderSearch",
]
