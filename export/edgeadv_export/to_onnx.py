"""From a PyTorch model to a float32 ONNX graph that says nothing about the machine it was made on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from edgeadv.models.builder import PixelModel
from edgeadv.models.checkpoints import copied
from edgeadv_runtime.errors import ExportError

from .onnx_form import INPUT, OPSET, OUTPUT, check, quiet, strip_metadata

# the exporter specialises a dimension of size 0 or 1, so the example must have more
_EXAMPLE_BATCH = 2


def to_onnx(model: PixelModel, input_shape: tuple[int, int, int]) -> Any:
    """Export ``model`` with a dynamic batch; normalisation and upsampling are part of the graph.

    Args:
        model: in eval mode, float32, on the CPU.
        input_shape: (channels, height, width) of its input.

    Returns:
        A checked ``onnx.ModelProto``: input ``image`` float32 (batch, channels, height, width) in [0, 1], output
        ``logits`` float32 (batch, classes).

    Raises:
        ExportError: the network cannot be exported, or only for one batch size.
    """
    example = torch.zeros(_EXAMPLE_BATCH, *input_shape)
    name = model.architecture.name
    model = plain(model)
    try:
        with quiet():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"{name} cannot be exported to ONNX: {_root_cause(error)}") from error
    assert program is not None  # it is None only without dynamo
    proto = program.model_proto
    strip_metadata(proto)
    # an initializer has its own type; a second statement of it misleads the float16 converter
    initializers = {initializer.name for initializer in proto.graph.initializer}
    for info in [info for info in proto.graph.value_info if info.name in initializers]:
        proto.graph.value_info.remove(info)
    check(proto, name)
    return proto


def plain(model: PixelModel) -> PixelModel:
    """A copy of a model in eval mode with the weights that ``weight_norm``, ``spectral_norm`` and parametrizations
    compute, in place of what they compute them from: constants, which fp16 and int8 know how to store."""
    copy: PixelModel = copied(model)
    for module in list(copy.modules()):
        if is_parametrized(module):
            # PyTorch's own removal changes the class, which the caller's module has too
            weights = {name: getattr(module, name) for name in module.parametrizations}  # type: ignore[union-attr]
            module.__class__ = type(module).__bases__[0]
            del module.parametrizations
            for name, weight in weights.items():
                module.register_parameter(name, nn.Parameter(weight))
        for key, hook in list(module._forward_pre_hooks.items()):
            # of old, a hook computes the weight before each pass
            if isinstance(hook, WeightNorm | SpectralNorm):
                hook.remove(module)
                del module._forward_pre_hooks[key]
    return copy.requires_grad_(False)


def _root_cause(error: BaseException) -> str:
    """First line of the innermost error: the exporter wraps the one that says what is wrong in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, GuardOnDataDependentSymNode):
        return "its code takes a branch that depends on the values of the image; compute both and choose by torch.where"
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
