"""The process that builds one plan and ends: ``python -m edgeadv_runtime.engine.worker REQUEST <model.onnx >messages``.

A process of its own, because a build that fails poisons the next one in the same process, and because TensorRT answers
some errors with a segmentation fault. REQUEST is a JSON object::

    library      "tensorrt" or "tensorrt-rtx"
    options      EngineOptions, as msgspec writes it
    targets      GPUs to name to a library that can be told, e.g. ["sm_86"]
    onnx_sha256  what the ONNX file must hash to, or null
    out          an empty file that is there: the plan is written into it
    every_s      seconds between two words about the progress
    parent       process id: when that process is gone, so is this one

Every message is a line of JSON: ``{"phase", "step", "steps"}`` now and then, and at the end either ``{"built":
report}`` or ``{"error": sentence, "kind": name of an EdgeAdvError}``.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ..device.processes import end_with_parent
from ..errors import EdgeAdvError, EngineError, IntegrityError, StorageError
from ..files import sha256_bytes
from .external_data import check_self_contained
from .library import Library, find_library
from .messages import Heard, listening, one_line
from .options import INPUT, OUTPUT, BatchProfile, EngineOptions

_MOST_WARNINGS = 20
Step = Callable[[str, int, int], None]


def main() -> int:
    """Do what the request says; returns the exit status: 0 built, 2 refused with a sentence."""
    request = json.loads(sys.argv[1])
    _die_with(int(request["parent"]))
    messages = _Messages(float(request["every_s"]))
    try:
        report = _build(request, sys.stdin.buffer.read(), messages.step)
    except EdgeAdvError as error:
        messages.send({"error": one_line(str(error)), "kind": type(error).__name__})
        return 2
    except MemoryError:
        messages.send({"error": "the memory is not enough for this model", "kind": "EngineError"})
        return 2
    messages.send({"built": report})
    return 0


def _build(request: dict[str, Any], onnx: bytes, step: Step) -> dict[str, Any]:
    """Build the plan and write it, in a process that must do nothing else with TensorRT afterwards; the report."""
    digest = sha256_bytes(onnx)
    if request["onnx_sha256"] not in (None, digest):
        raise IntegrityError("the ONNX file is not the one that the bundle's manifest names: copy the bundle again")
    # TensorRT would look for such files in the working directory; the hash was not asked about them
    check_self_contained(onnx, "the ONNX file")
    library, options = find_library(request["library"]), msgspec.convert(request["options"], EngineOptions)
    start = time.perf_counter()
    with listening() as heard:
        builder = library.make("Builder", heard)
        network = library.create_network(builder, heard)  # the parser would crash on one that nobody else holds
        _parse(library, network, heard, onnx)
        config = library.create_config(builder, options, targets=request["targets"])
        _add_profile(builder, config, network, heard, options.profile)
        monitor = library.watch(config, step)
        memory = builder.build_serialized_network(network, config)
        del monitor
        if memory is None:
            raise EngineError(_refusal(library, heard, options))
        facts = library.read_back(config)
    seconds, plan = time.perf_counter() - start, memoryview(memory)
    try:
        # not created here: when the parent was killed its successor removes the file, and it must stay removed
        with Path(request["out"]).open("r+b") as stream:
            stream.write(plan)
    except OSError as error:
        raise StorageError(f"the plan cannot be written ({error.strerror}): make room there") from error
    return {
        "library": library.name,
        "version": library.version,
        "onnx_sha256": digest,
        "sha256": hashlib.sha256(plan).hexdigest(),
        "bytes": len(plan),
        "seconds": round(seconds, 3),
        "profile": options.profile.to_json(),
        "warnings": heard.warnings[:_MOST_WARNINGS],
        **facts,
    }


def _refusal(library: Library, heard: Heard, options: EngineOptions) -> str:
    """Why there is no plan; what to do comes first, for TensorRT's own words may be long enough to be cut."""
    said, advice = heard.first_error(), ""
    if "workspace" in said.lower():
        larger = "a larger `workspace` or " if options.workspace_mib is not None else ""
        advice = f", give {larger}a smaller batch"
    return f"{library} cannot build this model{advice}: {said}"


def _parse(library: Library, network: Any, heard: Heard, onnx: bytes) -> None:
    """Fill ``network`` from ``onnx`` and check that it is a bundle's model.

    Raises:
        EngineError: it is not ONNX, has an operator that this TensorRT does not know, or other inputs and outputs.
    """
    parser = library.module.OnnxParser(network, library.logger())
    if not parser.parse(onnx):
        raise EngineError(f"{library} does not take this ONNX file: {_parser_error(parser, heard)}")
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    if not inputs or not outputs:  # of an empty file the parser says that all is well
        raise EngineError(
            "there is no model in the ONNX file, it is empty or not ONNX at all: copy or export the bundle again"
        )
    got = [[(tensor.name, tensor.dtype.name) for tensor in tensors] for tensors in (inputs, outputs)]
    layouts = {"FLOAT": "(batch, channels, height, width)", "UINT8": "(batch, height, width, channels)"}
    if got not in [[[(INPUT, kind)], [(OUTPUT, "FLOAT")]] for kind in layouts]:
        raise EngineError(
            f"the ONNX file does not have the one float32 input {INPUT!r} and output {OUTPUT!r} of a bundle, or a "
            "uint8 input in a variant with -u8in; export it again"
        )
    shape = tuple(inputs[0].shape)
    if len(shape) != 4 or shape[0] not in (-1, 1) or min(shape[1:]) < 1:
        raise EngineError(
            f"the input of the ONNX file is {shape}, not {layouts[inputs[0].dtype.name]}; export it again"
        )


def _parser_error(parser: Any, heard: Heard) -> str:
    """The parser's first error with the node that it names."""
    if not parser.num_errors:
        return heard.first_error()
    error = parser.get_error(0)
    if error.code().name == "MODEL_DESERIALIZE_FAILED":
        return "it is cut off or not ONNX at all; copy or export the bundle again"
    # 10.3 may lack the names, and has the node's number
    name, operator = (getattr(error, ask, str)() for ask in ("node_name", "node_operator"))
    where = f"node {name or error.node()}{f' ({operator})' if operator else ''}: " if error.node() >= 0 else ""
    more = f" (and {parser.num_errors - 1} more)" if parser.num_errors > 1 else ""
    return one_line(f"{where}{error.desc()}{more}")


def _add_profile(builder: Any, config: Any, network: Any, heard: Heard, batch: BatchProfile) -> None:
    image = network.get_input(0)
    rest = tuple(image.shape)[1:]
    if image.shape[0] == 1 and max(batch.to_json()) > 1:
        raise EngineError(f"the graph takes one image a call, and batch {batch} was asked for: ask for batch 1")
    profile = builder.create_optimization_profile()
    profile.set_shape(image.name, *((size, *rest) for size in batch.to_json()))
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"TensorRT does not take batch {batch}: {heard.first_error()}")


def _die_with(parent: int) -> None:
    """Have the kernel end this process with ``parent``, even if that is killed; elsewhere than on Linux do without."""
    end_with_parent()
    if os.getppid() != parent:  # it died before we said so
        os._exit(1)


class _Messages:
    """Lines of JSON to the parent. What TensorRT itself prints goes to standard error instead."""

    def __init__(self, every_s: float) -> None:
        self._stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._lock = threading.Lock()
        self._every_s = every_s
        self._due = time.monotonic() + every_s

    def send(self, message: dict[str, Any]) -> None:
        """Write one message; from any thread."""
        with self._lock:
            self._stream.write(json.dumps(message) + "\n")

    def step(self, phase: str, step: int, steps: int) -> None:
        """Tell where the build is, if it is some time since the last time."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self._every_s
            self.send({"phase": phase, "step": step, "steps": steps})


if __name__ == "__main__":
    sys.exit(main())
