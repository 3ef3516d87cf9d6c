"""Every ONNX operator that is known against the onnx package's own node tests, and its gradient against differences."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from edgeadv.gradients import read_onnx
from edgeadv.gradients.graph import run_node
from edgeadv.gradients.movement import DTYPES
from edgeadv.gradients.operators import OPERATORS
from edgeadv.gradients.qoperators import QOPERATORS
from edgeadv.gradients.read_onnx import NEWEST, OLDEST, nodes_of
from edgeadv_runtime.errors import InputError

with warnings.catch_warnings():
    # making the cases divides by zero on purpose
    warnings.simplefilter("ignore")
    from onnx.backend.test.case.node import collect_testcases

    CASES = {case.name: case for case in collect_testcases()}

REWRITTEN = {"Constant", "Dropout", "QLinearConv", "QLinearMatMul", "Upsample"}
"""Operators that reading replaces."""
PYTORCH_HAS_NO = ("uint16", "uint32", "uint64", "bfloat16", "float8", "int4", "int2", "float4", "string")
BEYOND = {
    "training_mode": "training",
    "blocked": "numbers in blocks with scales of their own",
    "argmax_2d": "places of the maxima",
    "empty_set": "the largest of nothing",
    "identity_opt": "no tensor",
    "identity_sequence": "no tensor",
    "flexattention": "opset 26",
    "training_dropout": "training",
    "dropout_default_mask": "which numbers were dropped",
}


def known_cases() -> list[str]:
    """The names of all cases that consist of known operators, on numbers that PyTorch has."""
    found = []
    for name, case in CASES.items():
        ops = {node.op_type for node in case.model.graph.node}
        types = {each.type.tensor_type.elem_type for each in (*case.model.graph.input, *case.model.graph.output)}
        numbers = all(kind in DTYPES for kind in types) and not any(word in name.lower() for word in PYTORCH_HAS_NO)
        if ops <= {*OPERATORS, *REWRITTEN} and numbers and not any(word in name for word in BEYOND):
            found.append(name)
    return found


KNOWN = known_cases()


def computed(model: Any, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All values of ``model`` of opset 28 at most, which the onnx package's cases may have."""
    graph = nodes_of(model)
    values = {**graph.tensors, **given}
    for node in graph.nodes:
        values.update(run_node(node, values))
    return values


@pytest.fixture
def any_opset(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases are of the opset that changed an operator last, which may be one for types that are not known here."""
    monkeypatch.setattr(read_onnx, "OLDEST", 1)
    monkeypatch.setattr(read_onnx, "NEWEST", 28)


def inputs_of(case: Any, number: int = 0) -> dict[str, Tensor]:
    names = [each.name for each in case.model.graph.input]
    return {
        name: torch.from_numpy(_array(value)) for name, value in zip(names, case.data_sets[number][0], strict=False)
    }


def _array(value: Any) -> Any:
    return np.array(numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value)


def test_there_is_a_case_for_every_operator() -> None:
    tested = {node.op_type for name in KNOWN for node in CASES[name].model.graph.node}
    assert set(OPERATORS) - tested == set()
    assert len(KNOWN) > 800


@pytest.mark.parametrize("name", KNOWN)
def test_forward_agrees_with_onnx(name: str, any_opset: None) -> None:
    case = CASES[name]
    for number, (_, outputs) in enumerate(case.data_sets):
        values = computed(case.model, inputs_of(case, number))
        for output, wanted in zip(case.model.graph.output, outputs, strict=True):
            found = values[output.name].numpy()
            assert found.shape == _array(wanted).shape
            np.testing.assert_allclose(
                found.astype(np.float64), _array(wanted).astype(np.float64), rtol=case.rtol, atol=case.atol
            )


# steps, places and comparisons have no slope; a rounded number's is taken for the identity's on purpose
WITHOUT_SLOPE = {
    "ArgMax",
    "ArgMin",
    "Ceil",
    "Floor",
    "Hardmax",
    "Mod",
    "OneHot",
    "Range",
    "Round",
    "Sign",
    "QuantizeLinear",
    "Shape",
    "Size",
}


def smooth_cases() -> list[str]:
    found = []
    for name in KNOWN:
        case = CASES[name]
        ops = {node.op_type for node in case.model.graph.node}
        kinds = [
            each.type.tensor_type.elem_type for each in (*case.model.graph.input[:1], *case.model.graph.output[:1])
        ]
        single = len(case.model.graph.node) == 1
        empty = not all(value.numel() for value in inputs_of(case).values())
        if single and not empty and kinds == [onnx.TensorProto.FLOAT] * 2 and not ops & WITHOUT_SLOPE:
            found.append(name)
    return found


@pytest.mark.parametrize("name", smooth_cases())
def test_gradient_agrees_with_differences_in_float64(name: str, any_opset: None) -> None:
    case = CASES[name]
    given = {key: value.double() if value.dtype == torch.float32 else value for key, value in inputs_of(case).items()}
    first, output = case.model.graph.input[0].name, case.model.graph.output[0].name
    generator = torch.Generator().manual_seed(0)
    # off the kinks that the cases' round numbers stand on
    x = given[first] + 1e-3 * torch.rand(given[first].shape, generator=generator, dtype=torch.float64)
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)

    def run(point: Tensor) -> Tensor:
        result = computed(case.model, {**given, first: point})[output]
        weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        finite = torch.where(result.isfinite(), result, torch.zeros_like(result))
        return (finite * weights).sum()

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(run(x), x, allow_unused=True)
    slope = torch.zeros(()) if gradient is None else (gradient * direction).sum()
    step = 1e-7
    with torch.no_grad():
        difference = (run(x + step * direction) - run(x - step * direction)) / (2 * step)
    assert slope.item() == pytest.approx(difference.item(), rel=1e-4, abs=1e-5)


# --- opsets that the cases do not have


def old(op: str, opset: int, inputs: Mapping[str, Any], outputs: int = 1, **attributes: Any) -> tuple[Any, Any]:
    """A model of one node of an old opset, and what is given to it: arrays whose names begin with t are its own."""
    node = helper.make_node(op, list(inputs), [f"y{i}" for i in range(outputs)], **attributes)
    own = [numpy_helper.from_array(value, name) for name, value in inputs.items() if name.startswith("t")]
    given = {name: value for name, value in inputs.items() if not name.startswith("t")}
    graph = helper.make_graph(
        [node],
        "old",
        [helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in given.items()],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in node.output],
        own,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=4)
    return model, given


X = np.random.default_rng(0).normal(size=(2, 3, 8, 6)).astype(np.float32)
ONES = np.ones(3, np.float32)
OLD = [
    old("Softmax", 7, {"x": X}),
    old("Softmax", 12, {"x": X}, axis=2),
    old("Softmax", 11, {"x": X}, axis=0),
    old("LogSoftmax", 9, {"x": X}),
    old("Clip", 7, {"x": X}, min=-0.5, max=0.3),
    old("Clip", 10, {"x": X}, max=0.3),
    old("Pad", 7, {"x": X}, pads=[0, 0, 1, 2, 0, 0, 3, 0], value=0.5),
    old("Pad", 10, {"x": X}, pads=[0, 0, 1, 2, 0, 0, 3, 0], mode="reflect"),
    old("Pad", 9, {"x": X}, pads=[0, 0, 1, 2, 0, 0, 3, 0], mode="edge"),
    old("Slice", 7, {"x": X}, starts=[1, -4], ends=[8, 2**62], axes=[2, 3]),
    old("Slice", 9, {"x": X}, starts=[0, 1], ends=[1, 3]),
    old("Squeeze", 9, {"x": X[:1]}, axes=[0]),
    old("Unsqueeze", 11, {"x": X}, axes=[0, 3]),
    old("ReduceMean", 11, {"x": X}, axes=[2, 3]),
    old("ReduceMean", 17, {"x": X}, axes=[-1], keepdims=0),
    old("ReduceSum", 11, {"x": X}, axes=[1]),
    old("ReduceMax", 12, {"x": X}, axes=[1]),
    old("Split", 8, {"x": X}, outputs=2, axis=2, split=[3, 5]),
    old("Split", 11, {"x": X}, outputs=3, axis=1),
    old("Split", 13, {"x": X}, outputs=2, axis=2),
    old("Upsample", 7, {"x": X}, scales=[1.0, 1.0, 2.0, 3.0], mode="nearest"),
    old("Upsample", 9, {"x": X, "ts": np.array([1, 1, 2, 2], np.float32)}, mode="nearest"),
    old("Upsample", 9, {"x": X, "ts": np.array([1, 1, 2, 2], np.float32)}, mode="linear"),
    old("Resize", 10, {"x": X, "ts": np.array([1, 1, 1.5, 0.5], np.float32)}, mode="nearest"),
    old("BatchNormalization", 7, {"x": X, "ta": ONES * 2, "tb": ONES, "tc": ONES / 2, "td": ONES * 3}),
    old("BatchNormalization", 9, {"x": X, "ta": ONES * 2, "tb": ONES, "tc": ONES / 2, "td": ONES * 3}),
    old("Dropout", 7, {"x": X}, ratio=0.3),
    old("Dropout", 10, {"x": X}),
    old("Gemm", 7, {"x": X[0, 0], "tw": X[1, 1].T.copy(), "tb": np.ones(8, np.float32)}),
    old("AveragePool", 7, {"x": X}, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    old("AveragePool", 10, {"x": X}, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    old("MaxPool", 8, {"x": X}, kernel_shape=[3, 2], auto_pad="SAME_LOWER", strides=[2, 2]),
    old("Flatten", 9, {"x": X}, axis=2),
    old("HardSigmoid", 7, {"x": X}),
    old("LeakyRelu", 7, {"x": X}, alpha=0.2),
    old("GlobalAveragePool", 7, {"x": X}),
    old("InstanceNormalization", 7, {"x": X, "ta": ONES * 2, "tb": ONES}),
    old("LRN", 7, {"x": X}, size=3),
    old(
        "ConvTranspose",
        7,
        {"x": X, "tw": X[:1].transpose(1, 0, 2, 3)[:, :, :3, :3].copy()},
        strides=[2, 2],
        pads=[1, 1, 1, 1],
    ),
]


@pytest.mark.parametrize(("model", "given"), OLD, ids=lambda value: _title(value))
def test_old_opsets_agree_with_onnxruntime(model: Any, given: Mapping[str, Any]) -> None:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = computed(model, {name: torch.from_numpy(value) for name, value in given.items()})
    for output, wanted in zip(model.graph.output, session.run(None, dict(given)), strict=True):
        found = values[output.name].numpy()
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def _title(value: Any) -> str:
    return f"{value.graph.node[0].op_type}-{value.opset_import[0].version}" if hasattr(value, "graph") else ""


def test_what_is_not_known_is_one_line_that_names_operator_and_node() -> None:
    model, _ = old("Loop", 11, {"x": X})
    model.graph.node[0].name = "while"
    model.graph.node[0].attribute.append(helper.make_attribute("body", helper.make_graph([], "body", [], [])))
    with pytest.raises(InputError, match=r"^node 'while' is Loop, which holds a graph of its own"):
        nodes_of(model)
    model, _ = old("Gelu", 20, {"x": X})
    model.graph.node[0].domain = "com.vendor"
    with pytest.raises(InputError, match=r"^node 'y0' is Gelu of com.vendor"):
        nodes_of(model)
    for opset in (OLDEST - 1, NEWEST + 1):
        model, _ = old("Relu", opset, {"x": X})
        with pytest.raises(InputError, match=f"^the model is of opset {opset}: opsets {OLDEST} to {NEWEST} are read"):
            nodes_of(model)


def table() -> str:
    """Operators and opsets as ``docs/reference/operators.md`` has them."""
    first: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.domain:
            first[schema.name] = min(schema.since_version, first.get(schema.name, NEWEST))
    names = sorted({*OPERATORS, *REWRITTEN, *QOPERATORS})
    found: dict[str, list[str]] = {}
    for name in names:
        opsets = f"{max(first[name], OLDEST)} to {NEWEST}" if name in first else "ONNX Runtime's 1"
        found.setdefault(opsets, []).append(f"`{name}`")
    order = sorted(found, key=lambda opsets: int(opsets.split()[0]) if opsets[0].isdigit() else NEWEST + 1)
    rows = [f"| {opsets} | {', '.join(found[opsets])} |" for opsets in order]
    return "\n".join(["| opsets | operators |", "|---|---|", *rows])


def test_the_documentation_lists_what_is_known() -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "reference" / "operators.md"
    assert table() in page.read_text(encoding="utf-8")


def test_an_output_that_is_not_known_is_named() -> None:
    model, given = old("MaxPool", 12, {"x": X}, outputs=2, kernel_shape=[2, 2])
    with pytest.raises(InputError, match=r"^output 'y1' of MaxPool is not known here$"):
        computed(model, {name: torch.from_numpy(value) for name, value in given.items()})
