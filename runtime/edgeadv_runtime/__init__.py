"""edgeadv on the device: bundles, backends, evaluation and latency, without PyTorch."""

from ._version import __version__
from .attacks.base import Attack, CallableAttack, Crafted
from .attacks.noise import NoiseAttack
from .attacks.pack import AttackPack
from .attacks.square_attack import SquareAttack, square
from .backends import Backend, OnnxRuntimeBackend, TensorRTBackend
from .bundle.batches import DataInfo
from .bundle.bundle import Bundle
from .bundle.preprocess import Preprocess
from .engine import BatchProfile, EngineCache, EngineOptions
from .errors import EdgeAdvError
from .evaluation.loop import evaluate
from .inference.classifier import Classifier, Label
from .inference.smoothing import Smoother
from .records.eps import Eps
from .records.results import Results
from .records.rows import Row

__all__ = [
    "Attack", "AttackPack", "Backend", "BatchProfile", "Bundle", "CallableAttack", "Classifier", "Crafted", "DataInfo",
    "EdgeAdvError", "EngineCache", "EngineOptions", "Eps", "Label", "NoiseAttack", "OnnxRuntimeBackend", "Preprocess", "Results", "Row",
    "Smoother", "SquareAttack", "TensorRTBackend", "__version__", "evaluate", "square",
]  # fmt: skip
