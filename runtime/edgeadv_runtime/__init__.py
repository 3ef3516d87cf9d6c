"""edgeadv on the device: classify, verify, evaluate and time what ships. It needs no PyTorch."""

from ._version import __version__
from .attacks.base import Attack, CallableAttack, Crafted
from .attacks.noise import NoiseAttack
from .attacks.pack import AttackPack
from .attacks.square_attack import SquareAttack, square
from .backends import Backend, OnnxRuntimeBackend, TensorRTBackend
from .backends.build_engine import build_engine
from .backends.golden_check import verify
from .benchmark.latency import bench
from .bundle.batches import DataInfo
from .bundle.bundle import Bundle
from .bundle.preprocess import Preprocess
from .camera.stream import Stream
from .engine import BatchProfile, EngineCache, EngineOptions
from .errors import EdgeAdvError, InputError
from .evaluation.loop import evaluate
from .inference.classifier import Classifier, Label
from .inference.smoothing import Smoother
from .records.bench import Bench
from .records.eps import Eps
from .records.results import Results
from .records.rows import Row

__all__ = [
    "Attack", "AttackPack", "Backend", "BatchProfile", "Bench", "Bundle", "CallableAttack", "Classifier", "Crafted",
    "DataInfo", "EdgeAdvError", "EngineCache", "EngineOptions", "Eps", "InputError", "Label", "NoiseAttack",
    "OnnxRuntimeBackend", "Preprocess", "Results", "Row", "Smoother", "SquareAttack", "Stream", "TensorRTBackend",
    "__version__", "bench", "build_engine", "evaluate", "square", "verify",
]
