"""edgeadv on the device: bundles, backends, evaluation and latency, without PyTorch."""

from ._version import __version__
from .attack import Attack, CallableAttack, Crafted
from .backends import Backend, OnnxRuntimeBackend, TensorRTBackend
from .bundle import Bundle
from .classifier import Classifier, Label
from .engine import BatchProfile, EngineCache, EngineOptions
from .eps import Eps
from .errors import EdgeAdvError
from .evaluate import DataInfo, evaluate
from .noise import NoiseAttack
from .pack import AttackPack
from .preprocess import Preprocess
from .results import Results, Row
from .smoothing import Smoother
from .square import SquareAttack, square

__all__ = [
    "Attack", "AttackPack", "Backend", "BatchProfile", "Bundle", "CallableAttack", "Classifier", "Crafted", "DataInfo",
    "EdgeAdvError", "EngineCache", "EngineOptions", "Eps", "Label", "NoiseAttack", "OnnxRuntimeBackend", "Preprocess", "Results", "Row",
    "Smoother", "SquareAttack", "TensorRTBackend", "__version__", "evaluate", "square",
]  # fmt: skip
