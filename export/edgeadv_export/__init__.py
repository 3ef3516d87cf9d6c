"""PyTorch to ONNX to bundle. Ends at ONNX: engines are built on the device, by the runtime."""

from .inputs import data_frames, folder_frames, imagenet_classes, read_classes
from .package import export_bundle
from .parity import TOLERANCES

__all__ = ["TOLERANCES", "data_frames", "export_bundle", "folder_frames", "imagenet_classes", "read_classes"]
