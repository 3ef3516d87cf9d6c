"""PyTorch to ONNX to bundle. Ends at ONNX: engines are built on the device, by the runtime.

Importing it loads no PyTorch: a process that only runs a graph starts in a fraction of a second.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from edgeadv.data.datasets import imagenet_classes

    from .calibration import Calibration, calibration_images, choose_calibration, gate_images
    from .confidence_fit import ConfidencePlan, confidence_images
    from .examination import Examined, examine
    from .foreign_input import Asked
    from .frames import data_frames, folder_frames, read_classes
    from .from_onnx import import_bundle
    from .int8_quality import Int8Plan
    from .package import Origin, export_bundle
    from .parity import TOLERANCES

__all__ = [
    "TOLERANCES",
    "Asked",
    "Calibration",
    "ConfidencePlan",
    "Examined",
    "Int8Plan",
    "Origin",
    "calibration_images",
    "choose_calibration",
    "confidence_images",
    "data_frames",
    "examine",
    "export_bundle",
    "folder_frames",
    "gate_images",
    "imagenet_classes",
    "import_bundle",
    "read_classes",
]

_LAZY = {
    "edgeadv.data.datasets": "imagenet_classes",
    ".calibration": "Calibration calibration_images choose_calibration gate_images",
    ".confidence_fit": "ConfidencePlan confidence_images",
    ".examination": "Examined examine",
    ".foreign_input": "Asked",
    ".frames": "data_frames folder_frames read_classes",
    ".from_onnx": "import_bundle",
    ".int8_quality": "Int8Plan",
    ".package": "Origin export_bundle",
    ".parity": "TOLERANCES",
}
_WHERE = {name: module for module, names in _LAZY.items() for name in names.split()}


def __getattr__(name: str) -> typing.Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name], __name__), name)
    globals()[name] = value
    return value
