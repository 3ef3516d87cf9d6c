"""The ONNX form of a bundle's graphs: one input, one output, a dynamic batch, and nothing about where it was made."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx

from edgeadv_runtime.errors import ExportError

OPSET = 20
INPUT, OUTPUT = "image", "logits"
_CHATTY_LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")


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
