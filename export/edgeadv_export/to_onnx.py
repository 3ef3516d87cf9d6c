"""From a PyTorch model to a float32 ONNX graph that says nothing about the machine it was made on."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from edgeadv.models.builder import PixelModel
from edgeadv.models.checkpoints import copied
from edgeadv_runtime.errors import ExportError

OPSET = 20
INPUT, OUTPUT = "image", "logits"
# the exporter specialises a dimension of size 0 or 1, so the example must have more
_EXAMPLE_BATCH = 2
_CHATTY_LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")


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


def check(proto: Any, name: str, *, uint8: bool = False) -> None:
    """Raise unless ``proto`` is valid ONNX with the one input and output of a bundle and a dynamic batch.

    Args:
        proto: an ``onnx.ModelProto``.
        name: what to call the network in errors.
        uint8: whether its input must be uint8, and not float32.

    Raises:
        ExportError: it is not; ``name`` says of what network.
    """
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the export of {name} is not valid ONNX: {str(error).splitlines()[0]}") from error
    for value, expected in ((proto.graph.input, INPUT), (proto.graph.output, OUTPUT)):
        names = [v.name for v in value]
        if names != [expected]:
            raise ExportError(f"{name} has {names} where {expected!r} is due; only plain classifiers can be exported")
        tensor = value[0].type.tensor_type
        due = onnx.TensorProto.UINT8 if uint8 and expected == INPUT else onnx.TensorProto.FLOAT
        if tensor.elem_type != due:
            kind = "uint8" if due == onnx.TensorProto.UINT8 else "float32"
            raise ExportError(f"{expected} of {name} is not {kind} in the export")
        batch = tensor.shape.dim[0]
        if not batch.dim_param:
            raise ExportError(
                f"the export of {name} works for batches of {batch.dim_value} only: its code fixes the size of the "
                "batch, e.g. by a reshape with a literal or len(x); take x.shape[0]"
            )


def strip_metadata(message: Any) -> None:
    """Remove, at every depth, what the exporter notes about its making: stack traces with local paths, module names,
    docs."""
    for name in ("metadata_props", "doc_string"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "DESCRIPTOR") else value:
                strip_metadata(part)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the chatter of exporter and quantiser off the terminal: their prints, their warnings, and their log lines;
    those of the quantiser, and the exporter's errors, still go where the application sends them."""
    root, nowhere = logging.getLogger(), logging.NullHandler()
    levels = {logger: logger.level for logger in map(logging.getLogger, _CHATTY_LOGGERS)}
    root.addHandler(nowhere)
    try:
        for logger in levels:
            logger.setLevel(logging.ERROR)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
        root.removeHandler(nowhere)


def _root_cause(error: BaseException) -> str:
    """First line of the innermost error: the exporter wraps the one that says what is wrong in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, GuardOnDataDependentSymNode):
        return "its code takes a branch that depends on the values of the image; compute both and choose by torch.where"
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
