"""Search methods, one file each; ``registry`` has one row per method."""

from ..method import SearchMethod
from .beam import BeamSearch
from .best_of_n import BestOfN
from .das import DAS
from .fk_steering import FKSteering
from .importance_sampling import ImportanceSampling
from .path_search import PathSearch
from .random_search import RandomSearch
from .rbf import RBF
from .registry import METHODS
from .smc import SMC
from .svdd import SVDD
from .ttgen import TTGen
from .tts_var import TTSVAR
from .zero_order import ZeroOrderSearch

__all__ = [
    "DAS",
    "METHODS",
    "RBF",
    "SMC",
    "SVDD",
    "TTSVAR",
    "BeamSearch",
    "BestOfN",
    "FKSteering",
    "ImportanceSampling",
    "PathSearch",
    "RandomSearch",
    "SearchMethod",
    "TTGen",
    "ZeroOrderSearch",
]
