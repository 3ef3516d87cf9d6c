"""PyTorch to ONNX to bundle. Ends at ONNX: engines are built on the device, by the runtime."""

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
