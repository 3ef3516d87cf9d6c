"""Latency of one network in PyTorch, ways of running it in turn: eager, as a CUDA graph, compiled with CUDA graphs, and
ONNX Runtime.

``eager`` is the network as it is trained, ``folded`` the same with its BatchNorms in its convolutions, which ``graph``
and ``compiled`` start from. All four are calls on a tensor that is on the device already, to the end of their kernels;
``infer`` is the backend ``torch-compiled`` from a host array to logits on the host, and ``onnxruntime`` the same by
ONNX Runtime's provider. Logits are compared with eager float32. Without a GPU there are no graphs and no float16.

    python benchmarks/torch_latency.py m.edgeadv --out benchmarks/results/torch_latency-regnet_y_400mf-cuda.json

On a GPU only float32 was run.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import in_turn, named, ratio, save
from torch import Tensor, nn

from edgeadv.backends.pytorch_compiled import CompiledTorchBackend
from edgeadv.gradients.artefact import open_graph
from edgeadv_runtime import Bundle, OnnxRuntimeBackend
from edgeadv_runtime.errors import EdgeAdvError


def as_graph(network: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """``network`` at ``x`` as a CUDA graph: all kernels in one launch."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.inference_mode():
        for _ in range(3):
            network(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.inference_mode():
        logits: Tensor = network(x)

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


def measure(bundle: Bundle, variant: str, batch: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One precision and batch size, every way in turn."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rng = np.random.default_rng(0)
    host = rng.random((batch, *bundle.preprocess.input_shape), dtype=np.float32)
    plain = open_graph(bundle, "fp32", device=device)
    x = torch.from_numpy(host).to(device).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = plain(x).float().cpu().numpy()
    dtype = torch.float16 if variant == "fp16" else torch.float32
    eager, given = copy.deepcopy(plain).to(dtype), x.to(dtype)
    provider = "cuda" if device.type == "cuda" else "cpu"
    on = named(device, torch.get_num_threads())
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        backend = stack.enter_context(
            CompiledTorchBackend(bundle, variant=variant, device=device, threads=options.threads)
        )
        backend.infer(host)
        compiled: Any = backend._compiled[1 << (batch - 1).bit_length()]
        ways: dict[str, Callable[[], Any]] = {
            "eager": lambda: eager(given),
            "compiled": lambda: compiled(given),
        }
        if provider == "cuda":
            ways["graph"] = as_graph(eager, given)
        ways["infer"] = lambda: backend.infer(host)
        try:
            served = OnnxRuntimeBackend(bundle, variant=variant, provider=provider, threads=options.threads)
            stack.callback(served.close)
            ways["onnxruntime"] = lambda: served.infer(host)
        except EdgeAdvError as error:
            rows.append(
                {"on": on, "variant": variant, "batch": batch, "way": "onnxruntime", "not_measured": str(error)}
            )

        def finished(way: Callable[[], Any], _: int) -> None:
            with torch.inference_mode():
                way()
            if provider == "cuda":
                torch.cuda.synchronize()

        errors = {}
        for name, way in ways.items():
            with torch.inference_mode():
                found = way()
            logits = found.float().cpu().numpy() if isinstance(found, Tensor) else found
            errors[name] = float(np.abs(logits - expected).max() / np.abs(expected).max())
        seconds = in_turn(
            {name: lambda i, w=way: finished(w, i) for name, way in ways.items()}, rounds=options.rounds, warm_up=20
        )
    for name, taken in seconds.items():
        rows.append(
            {
                "on": on,
                "variant": variant,
                "batch": batch,
                "way": name,
                "ms_median": round(1000 * statistics.median(taken), 4),
                "speedup_over_eager": ratio(seconds["eager"], taken),
                "relative_error": round(errors[name], 6),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variants", default="fp32,fp16", help="comma-separated; fp16 on a GPU")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--threads", type=int, help="of the processor")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    bundle = Bundle.open(options.bundle)
    variants = [v for v in options.variants.split(",") if v in bundle.variants]
    if not torch.cuda.is_available():
        variants = [variant for variant in variants if variant == "fp32"]
    rows: list[dict[str, Any]] = []
    for variant in variants:
        for batch in map(int, options.batches.split(",")):
            rows += measure(bundle, variant, batch, options)
            save(options.out, "torch_latency", vars(options), rows)


if __name__ == "__main__":
    main()
