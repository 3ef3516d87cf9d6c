"""The first time that a graph is opened and run: in a process of its own, for until then any may crash ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.bundle import Bundle
from ..device.isolated import ADVICE, call_isolated
from ..errors import ExportError, require
from .onnxruntime import OnnxRuntimeBackend, first_line


@dataclass(frozen=True)
class FirstRun:
    """What an artefact made of some images, in a process of its own.

    Attributes:
        logits: for each batch that it was given, float32 (n, classes).
        provider: ONNX Runtime's name of what computed them.
    """

    logits: Sequence[NDArray[np.float32]]
    provider: str


def first_run(
    bundle: Bundle, variant: str, batches: Sequence[NDArray[np.uint8 | np.float32]], *, advice: str = ADVICE
) -> FirstRun:
    """Open ``variant`` of ``bundle`` on the CPU and run ``batches`` through it, in a process of its own.

    Args:
        bundle: as :class:`OnnxRuntimeBackend` takes it.
        variant: which artefact.
        batches: images as :meth:`Backend.infer_pixels` takes them, or, float32, as :meth:`Backend.infer` does.
        advice: what to do after a crash.

    Raises:
        ExportError: it crashed.
        BackendError: ONNX Runtime refuses it, or it did not deliver.
    """
    return call_isolated(_run, bundle, variant, list(batches), what=variant, advice=advice)


def _run(bundle: Bundle, variant: str, batches: Sequence[NDArray[Any]]) -> FirstRun:
    with OnnxRuntimeBackend(bundle, variant=variant) as backend:
        runs = (backend.infer_pixels if batch.dtype == np.uint8 else backend.infer for batch in batches)
        logits = [run(batch) for run, batch in zip(runs, batches, strict=True)]
        return FirstRun(logits, backend.provider)


def try_graph(
    graph: bytes, feeds: Mapping[str, NDArray[Any]], *, what: str, optimised: bool = True, advice: str = ADVICE
) -> list[NDArray[Any]]:
    """Open any ONNX graph on the CPU and run it once, in a process of its own.

    Args:
        graph: an ONNX file's bytes.
        feeds: a value for each of its inputs.
        what: it is, for messages.
        optimised: let ONNX Runtime choose its kernels as it does where it serves a graph.
        advice: what to do after a crash.

    Returns:
        All of its outputs.

    Raises:
        ExportError: it crashed, or ONNX Runtime refuses or fails to run it.
    """
    return call_isolated(_try, graph, dict(feeds), optimised, what, what=what, advice=advice)


def _try(graph: bytes, feeds: Mapping[str, NDArray[Any]], optimised: bool, what: str) -> list[NDArray[Any]]:
    try:
        outputs: list[NDArray[Any]] = open_graph(graph, optimised=optimised).run(None, feeds)
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ExportError(f"{what} does not run: {first_line(error)}") from None
    return outputs


def open_graph(graph: bytes, *, optimised: bool = True) -> Any:
    """A session of ONNX Runtime on the CPU for any graph: one that :func:`try_graph` went through with before."""
    ort = require("onnxruntime", extra="ort")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
