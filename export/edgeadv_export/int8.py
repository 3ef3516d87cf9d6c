"""int8 inside the graph: Q/DQ nodes placed by ``onnxruntime.quantization``, with scales from real images.

Two graphs, for no one graph is right everywhere:

``int8-s8s8``  symmetric, at the inputs and weights of Conv, Gemm and MatMul only, biases in float32: what TensorRT
               takes (it refuses an int32 bias and any zero point but 0), and what ARM computes without saturation.
``int8-u8s8``  unsigned activations at every operator, weights in 7 bits: what an x86 CPU computes fast, and without
               VNNI without saturation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeadv_runtime.bundle.variants import S8S8, U8S8
from edgeadv_runtime.errors import ExportError

from .extremes import extremes
from .onnx_form import check, quiet, strip_metadata

METHOD = "minmax-p95"
# A network meets images on which a layer answers a hundred times louder than on others, and an attack that follows the
# gradients of int8 finds its way through the coarse steps of a wide range:
# docs/explanation/int8.md has what each percentile costs.
_IMAGES_IN_RANGE = 95.0
WEIGHTED = ("Conv", "Gemm", "MatMul")
_NET = "net."


@dataclass(frozen=True)
class Calibrated:
    """A float32 graph and the range of each of its tensors on the calibration images.

    Calibrated once, quantised as often as needed: for each variant, and for each layer that is tried on its own.

    Attributes:
        name: what to call the network in errors.
        fp32: the graph, with its shapes.
        ranges: least and greatest value of each float tensor, on 95 of 100 images.
    """

    name: str
    fp32: Any
    ranges: Mapping[str, tuple[float, float]]

    def layers(self, variant: str) -> dict[str, list[str]]:
        """What can be kept in float32: layers by name, in the order of the graph, and the nodes of each.

        A layer is a weighted node, by the name of its weight, and, where ``variant`` quantises them too, the nodes
        between it and the next ones: a tensor stays float32 only if neither its producer nor its consumers quantise it.
        """
        types = _op_types(variant)
        layers: dict[str, list[str]] = {}
        owner: dict[str, str] = {}  # of each tensor, the layer that it comes out of
        order: dict[str, int] = {}
        for node in self.fp32.graph.node:
            before = [owner[source] for source in node.input if source in owner]
            layer = max(before, key=lambda name: order[name], default=None)
            if node.op_type in types:
                if node.op_type in WEIGHTED or layer is None:
                    layer = _layer_name(node, layers)
                    order[layer] = len(order)
                layers.setdefault(layer, []).append(node.name)
            if layer is not None:
                owner.update(dict.fromkeys(node.output, layer))
        return layers

    def quantise(self, variant: str, *, float_layers: Sequence[str] = (), only: str | None = None) -> Any:
        """The graph as ``variant``.

        Args:
            variant: ``"int8-s8s8"`` or ``"int8-u8s8"``.
            float_layers: of :meth:`layers`, those to leave as they are.
            only: quantise this layer and no other.

        Returns:
            A checked ``onnx.ModelProto``, the same bytes every time.

        Raises:
            ExportError: the result is not a valid graph.
        """
        from onnxruntime.quantization import CalibrationMethod, QuantType
        from onnxruntime.quantization.calibrate import TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        layers = self.layers(variant)
        # copies, because the quantiser writes into the graph and even into the ranges
        ranges = {name: tuple(np.array(bounds, np.float32)) for name, bounds in self.ranges.items()}
        symmetric = variant == S8S8
        with quiet():
            quantizer = QDQQuantizer(
                copy.deepcopy(self.fp32),
                per_channel=True,
                reduce_range=not symmetric,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
                nodes_to_quantize=None if only is None else layers[only],
                nodes_to_exclude=[node for layer in float_layers for node in layers[layer]],
                op_types_to_quantize=_op_types(variant),
                extra_options=_OPTIONS[variant],
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
        proto = quantizer.model.model
        strip_metadata(proto)
        del proto.graph.value_info[:]  # of the float32 graph: the tensors around a Q/DQ pair have other names now
        check(proto, self.name)
        return proto


_OPTIONS: dict[str, dict[str, Any]] = {
    S8S8: {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        # quantised between a convolution and its activation, a network loses 11 points of top-1
        "OpTypesToExcludeOutputQuantization": list(WEIGHTED),
    },
    # among 256 steps for all logits the first two of 1,000 classes are often the same one
    U8S8: {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
}


def calibrate(fp32: Any, images: Iterable[NDArray[np.float32]], name: str) -> Calibrated:
    """Run the calibration images through ``fp32`` and note the range of every tensor, in which 95 of 100 images stay.

    The least and the greatest value on each image alone are kept, two numbers for a tensor; the range is their 5th and
    95th percentile over the images. On what goes beyond, the artefact saturates.

    Args:
        fp32: an ``onnx.ModelProto`` of :func:`to_onnx`; not changed.
        images: float32 of shape (channels, height, width) in [0, 1].
        name: what to call the network in errors.

    Raises:
        ExportError: a tensor takes a value that is not finite.
    """
    from onnxruntime.quantization.quant_utils import add_infer_metadata

    shaped, names, seen = extremes(fp32, images, name=name)
    add_infer_metadata(shaped)  # else the quantiser would infer the shapes again for each graph
    if not np.isfinite(seen).all():
        tensor = names[int(np.argmin(np.isfinite(seen).all(axis=(0, 2))))]
        raise ExportError(f"{name} cannot be calibrated: {tensor} is NaN or infinite on these images; train again")
    lows = np.percentile(seen[:, :, 0], 100 - _IMAGES_IN_RANGE, axis=0).tolist()
    highs = np.percentile(seen[:, :, 1], _IMAGES_IN_RANGE, axis=0).tolist()
    return Calibrated(name, shaped, {n: (low, high) for n, low, high in zip(names, lows, highs, strict=True)})


def _op_types(variant: str) -> list[str]:
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return list(WEIGHTED) if variant == S8S8 else sorted({*QDQRegistry, *QLinearOpsRegistry})


def _layer_name(node: Any, taken: Mapping[str, Any]) -> str:
    """The weight's name in ``weights.safetensors`` without its ending, or the node's where there is none of its own."""
    weight = node.input[1] if len(node.input) > 1 else ""
    name = weight.removeprefix(_NET).removesuffix(".weight")
    return name if weight.startswith(_NET) and weight.endswith(".weight") and name not in taken else str(node.name)
