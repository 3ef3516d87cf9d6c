"""Train it robust, ship it small, prove it on the device.

One call for each thing that edgeadv does. Importing this loads no PyTorch until a function needs it::

    import edgeadv as ea

    data = ea.load_data("gtsrb/")
    teacher = ea.train("resnet101", data, recipe="trades", eps="8/255", out="runs/teacher", epochs=20)
    student = ea.distill("regnet_y_400mf", data, recipe="rslad", teacher=teacher, eps="8/255", out="runs/student")
    bundle = ea.export(student, "signs.edgeadv", precisions=["fp32", "fp16", "int8"])
    results = ea.evaluate(bundle, data.test, eps=["2/255", "8/255"], backends=["torch", "onnxruntime"])
    results.gate(eps="8/255", min_clean=0.9, min_robust=0.5).raise_if_failed()
    ea.report([results, ea.bench(bundle, rate_hz=30)], "report.html")

The device's side, which needs no PyTorch, is :mod:`edgeadv_runtime`.
"""

from __future__ import annotations

import importlib
import types
import typing

if typing.TYPE_CHECKING:
    from edgeadv_runtime import (
        AttackPack,
        Bench,
        Bundle,
        CallableAttack,
        EdgeAdvError,
        Eps,
        InputError,
        Results,
        __version__,
    )
    from edgeadv_runtime.records.card import Card
    from edgeadv_runtime.records.study import Study

    from .data.sources import Data, load_data
    from .training.runs import Run
    from .workflows.attack_plan import AttackPlan
    from .workflows.backends import TensorRTPlan
    from .workflows.benchmarking import bench
    from .workflows.comparing import PipelineComparison, compare_pipelines
    from .workflows.engines import build_engines
    from .workflows.evaluation import Execution, evaluate
    from .workflows.exporting import ConfidenceOptions, Int8Options, TrainingDataOptions, export
    from .workflows.importing import ImportOptions, OnnxCheck, check_onnx, import_onnx
    from .workflows.networks import ModelSource
    from .workflows.packing import attack
    from .workflows.pretrained import Pretrained, study
    from .workflows.reporting import card, report
    from .workflows.runs import list_runs
    from .workflows.threads import configure
    from .workflows.training import DistillOptions, RecipeOptions, TrainConfig, TrainJob, distill, train
    from .workflows.verification import verify
    from .workflows.zoo import ZooNet, zoo, zoo_nets

__all__ = [
    "AttackPack",
    "AttackPlan",
    "Bench",
    "Bundle",
    "CallableAttack",
    "Card",
    "ConfidenceOptions",
    "Data",
    "DistillOptions",
    "EdgeAdvError",
    "Eps",
    "Execution",
    "ImportOptions",
    "InputError",
    "Int8Options",
    "ModelSource",
    "OnnxCheck",
    "PipelineComparison",
    "Pretrained",
    "RecipeOptions",
    "Results",
    "Run",
    "Study",
    "TensorRTPlan",
    "TrainConfig",
    "TrainJob",
    "TrainingDataOptions",
    "ZooNet",
    "__version__",
    "attack",
    "bench",
    "build_engines",
    "card",
    "check_onnx",
    "compare_pipelines",
    "configure",
    "distill",
    "evaluate",
    "export",
    "import_onnx",
    "list_runs",
    "load_data",
    "report",
    "study",
    "train",
    "verify",
    "zoo",
    "zoo_nets",
]

_LAZY = {
    "edgeadv_runtime": "AttackPack Bench Bundle CallableAttack EdgeAdvError Eps InputError Results __version__",
    "edgeadv_runtime.records.card": "Card",
    "edgeadv_runtime.records.study": "Study",
    ".data.sources": "Data load_data",
    ".training.runs": "Run",
    ".workflows.attack_plan": "AttackPlan",
    ".workflows.backends": "TensorRTPlan",
    ".workflows.benchmarking": "bench",
    ".workflows.comparing": "PipelineComparison compare_pipelines",
    ".workflows.engines": "build_engines",
    ".workflows.evaluation": "Execution evaluate",
    ".workflows.exporting": "ConfidenceOptions Int8Options TrainingDataOptions export",
    ".workflows.importing": "ImportOptions OnnxCheck check_onnx import_onnx",
    ".workflows.networks": "ModelSource",
    ".workflows.packing": "attack",
    ".workflows.pretrained": "Pretrained study",
    ".workflows.reporting": "card report",
    ".workflows.runs": "list_runs",
    ".workflows.threads": "configure",
    ".workflows.training": "DistillOptions RecipeOptions TrainConfig TrainJob distill train",
    ".workflows.verification": "verify",
    ".workflows.zoo": "ZooNet zoo zoo_nets",
}
_WHERE = {name: module for module, names in _LAZY.items() for name in names.split()}


def __getattr__(name: str) -> typing.Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name], __name__), name)
    if isinstance(value, types.FunctionType):
        from .arguments import checked

        value = checked(value)
    # a module of the same name would hide it otherwise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
