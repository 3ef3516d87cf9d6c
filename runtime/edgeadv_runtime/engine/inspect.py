"""Precision truth: what a plan computes in, as TensorRT's engine inspector tells, against what its ONNX is written in.

The inspector's JSON differs between versions, and between TensorRT's own layers and those of its compiler ("myelin")::

    {"Layers": [{"Name": "conv_1 + relu_1", "LayerType": "CaskConvolution", "Weights": {"Type": "Half", "Count": 9408},
                 "Inputs": [{"Name": "x", "Format/Datatype": "Channel major FP16 format where channel % 4 == 0"}],
                 "TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_...", ...}, ...]}
    {"Layers": [{"Name": "/fc/MatMul_myl0_7", "LayerType": "gemm", "Metadata": "[ONNX Layer: /fc/MatMul]",
                 "Inputs": [{"Name": "x", "Format/Datatype": "Half"}], "TacticName":
                 "sm80_xmma_gemm_f16f16_f16f16_f16_..."}]}
    {"Layers": ["conv_1 + relu_1", ...]}                                 names alone: nothing can be said

So what is not understood is never called right: the label is ``"verified"`` only if every convolution and matrix
product of the ONNX was found among the layers, each in its own type. The comparison was tried on outputs that others
recorded; no inspector has been seen running under this code.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal

from ..bundle.variants import precision_of

Label = Literal["verified", "declared"]
UNKNOWN = "unknown"
_MOST_NAMED = 3
_TF32 = "TF32"
# in the order in which they are tried: BFloat16 holds Float, UInt8 and FP8 hold others
_DATATYPES = {
    "BFloat16": r"BF16|BFloat16",
    "FP8": r"FP8|E4M3|E5M2",
    "FP4": r"FP4|E2M1",
    "Half": r"FP16|Half",
    "Float": r"FP32|Float",
    **{kind: kind for kind in ("UInt8", "Int8", "Int4", "Int32", "Int64", "Bool")},
}
# operand types in the names of kernels, as in ..._i8i8_i8i32_f32_..., ..._f16f16_f16f16_f16_...,
# ..._f32f32_tf32f32_f32_... or turing_fp16_s1688gemm_fp16_..., ampere_h16816gemm_...,
# cutlass_80_tensorop_s1688bf16gemm_...
_OPERANDS = {
    "i8": "Int8",
    "s8": "Int8",
    "f16": "Half",
    "fp16": "Half",
    "bf16": "BFloat16",
    "f32": "Float",
    "e4m3": "FP8",
    "h884": "Half",
    "h1688": "Half",
    "h16816": "Half",
}
_KERNEL = re.compile(rf"(?:^|_|s1688)({'|'.join(_OPERANDS)})(?:{'|'.join(_OPERANDS)}|i32)*(?=_|gemm|cudnn)")
# a product of this shape takes float16, BFloat16 or TensorFloat-32; only the last goes without a word about its
# operands
_BARE_TF32_KERNEL = "s1688"
_COMPUTE_TYPE = re.compile(r"conv|gemm|gemv|matmul|matrixmul|fullyconnected", re.IGNORECASE)
_COMPUTE_KERNEL = re.compile(r"xmma_|_gemm_|implicit_gemm|fprop|cudnn|cutlass|gemv", re.IGNORECASE)
_METADATA = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_COMPILED = re.compile(r"_myl\d+(_\d+)?$")


@dataclass(frozen=True, kw_only=True)
class PrecisionReport:
    """What a plan computes in.

    Attributes:
        label: ``"verified"`` if every convolution and matrix product was seen in the type it was to have, else
            ``"declared"``: what was asked for, and nobody has looked.
        counts: convolutions and matrix products among the plan's layers by the type they compute in.
        problems: layers that compute in another type than their ONNX is written in; a plan with such is not what was
            asked for.
        sentence: all of this for a person.
    """

    label: Label
    counts: dict[str, int]
    problems: list[str]
    sentence: str


def compare_precision(
    inspector: Any, variant: str, *, nodes: Mapping[str, str] | None, written_in: Set[str], tf32: bool = False
) -> PrecisionReport:
    """Compare the layers of a plan with its ONNX.

    Args:
        inspector: what the engine inspector answered, parsed from JSON; anything else counts as no answer.
        variant: the artefact that the plan was built from.
        nodes: by the name of each convolution and matrix product of that artefact the type it is written in; None of a
            bundle that does not tell, whose plans are never ``"verified"``.
        written_in: the types that any of them may be written in.
        tf32: whether the plan may round float32 factors to TensorFloat-32.

    Returns:
        A report; the caller raises if it has problems.
    """
    found = inspector.get("Layers") if isinstance(inspector, Mapping) else inspector
    layers = [layer for layer in found if isinstance(layer, Mapping)] if isinstance(found, list) else []
    known = {_plain(name): kind for name, kind in (nodes or {}).items()}
    compute = list(filter(_computes, layers))
    counts: Counter[str] = Counter()
    problems: list[str] = []
    seen: set[str] = set()
    for layer in compute:
        names = known.keys() & _onnx_names(layer)
        seen |= names
        got = _computed_in(layer)
        counts[got] += 1
        # a layer that names no node may be any of them
        wanted = {known[name] for name in names} or set(written_in)
        allowed = wanted | ({_TF32} if tf32 and "Float" in wanted else set())
        if UNKNOWN not in allowed | {got} and got not in allowed:
            problems.append(f"{_name(layer)} computes in {got}, not in {' or '.join(sorted(allowed))}")
    if precision_of(variant) == "fp32":
        problems += _narrower(layer for layer in layers if not _computes(layer))
    missing = None if nodes is None else len(nodes) - len(seen)
    blind = counts[UNKNOWN] or UNKNOWN in written_in
    label: Label = "verified" if compute and missing == 0 and not (problems or blind) else "declared"
    return PrecisionReport(
        label=label,
        counts=dict(sorted(counts.items())),
        problems=problems,
        sentence=_sentence(variant, label, counts, problems, missing, len(nodes or ())),
    )


def _sentence(
    variant: str, label: str, counts: Counter[str], problems: list[str], missing: int | None, nodes: int
) -> str:
    if not counts:
        return f"{variant} is declared, not verified: the engine inspector tells of no convolution or matrix product"
    found = ", ".join(f"{count} in {kind}" for kind, count in sorted(counts.items()))
    seen = f"layers with convolutions or matrix products: {found}"
    if problems:
        more = f"; and {len(problems) - _MOST_NAMED} more" if len(problems) > _MOST_NAMED else ""
        return f"the plan is not {variant} as its ONNX is: {'; '.join(problems[:_MOST_NAMED])}{more} ({seen})"
    if label == "verified":
        return f"{variant} is verified: all {nodes} convolutions and matrix products were found ({seen})"
    why = f"{missing} of {nodes} were not found" if missing else "some of their types were not understood"
    if missing is None:
        why = "the bundle does not tell what they are, export it again"
    return f"{variant} is declared, not verified: {why} ({seen})"


def _computes(layer: Mapping[str, Any]) -> bool:
    """Whether it is a convolution or a matrix product, not one of the small operations that a kernel may merge."""
    kind = str(layer.get("LayerType", ""))
    if kind.lower() in ("kgen", "reformat", "noop", "constant", "shuffle"):
        return False
    named = f"{kind} {layer.get('ParameterType', '')}"
    return bool(_COMPUTE_TYPE.search(named) or (_COMPUTE_KERNEL.search(_tactic(layer)) and "pool" not in named.lower()))


def _computed_in(layer: Mapping[str, Any]) -> str:
    """The type that a convolution or matrix product multiplies in."""
    tactic = _tactic(layer).lower()
    if "tf32" in tactic:
        return _TF32
    kernel = _KERNEL.search(tactic)
    operands = _OPERANDS[kernel[1]] if kernel is not None else None
    if operands in (None, "Float") and _BARE_TF32_KERNEL in tactic:
        return _TF32
    if operands is not None:
        return operands
    # the image comes first among the inputs, then weights, or what is added to the result
    said = [_datatype(value) for value in (*_tensors(layer, "Inputs"), *_weights(layer))]
    return next((kind for kind in said if kind != UNKNOWN), UNKNOWN)


def _narrower(layers: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Layers of a float32 plan that take or give anything narrower."""
    narrow = {"Half", "BFloat16", "Int8", "FP8", "FP4", "Int4"}
    for layer in layers:
        kinds = {_datatype(tensor) for side in ("Inputs", "Outputs") for tensor in _tensors(layer, side)} & narrow
        if kinds:
            yield f"{_name(layer)} has {' and '.join(sorted(kinds))}, not Float"


def _onnx_names(layer: Mapping[str, Any]) -> set[str]:
    """The nodes of the ONNX that a layer is made of, in the form of :func:`_plain`."""
    names = _METADATA.findall(str(layer.get("Metadata", "")))
    names += [_COMPILED.sub("", part.strip()) for part in re.split(r"\+|\|\|", str(layer.get("Name", "")))]
    return {_plain(name) for name in names}


def _plain(name: str) -> str:
    """A name without what TensorRT may change about it."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")


def _tensors(layer: Mapping[str, Any], side: str) -> list[Any]:
    found = layer.get(side)
    tensors = found if isinstance(found, list) else []
    return [tensor.get("Format/Datatype") for tensor in tensors if isinstance(tensor, Mapping)]


def _weights(layer: Mapping[str, Any]) -> list[Any]:
    # "Weights", and "ConvWeights" where a pooling was merged into the convolution
    return [value.get("Type") for key, value in layer.items() if key.endswith("Weights") and isinstance(value, Mapping)]


def _datatype(text: Any) -> str:
    kinds = (kind for kind, words in _DATATYPES.items() if re.search(rf"\b(?:{words})\b", str(text), re.IGNORECASE))
    return next(kinds, UNKNOWN)


def _tactic(layer: Mapping[str, Any]) -> str:
    return str(layer.get("TacticName", ""))


def _name(layer: Mapping[str, Any]) -> str:
    return str(layer.get("Name", "a layer without a name"))
