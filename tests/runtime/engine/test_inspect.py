"""The comparison of a plan's layers with its ONNX, on answers of the engine inspector; ``inspector.json`` says
whose."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from edgeadv_runtime.engine.inspect import PrecisionReport
from edgeadv_runtime.engine.inspect import compare_precision as compare

ANSWERS: dict[str, Any] = json.loads((Path(__file__).parent / "inspector.json").read_text())
NODES = ("node_Conv_1", "node_Conv_2", "node_linear")


def compare_precision(found: Any, variant: str, *, nodes: dict[str, str], tf32: bool = False) -> PrecisionReport:
    """With the types that a bundle lists."""
    return compare(found, variant, nodes=nodes, written_in=frozenset(nodes.values()), tf32=tf32)


FP32, FP16, INT8 = (dict.fromkeys(NODES, kind) for kind in ("Float", "Half", "Int8"))


def answer(name: str) -> Any:
    return copy.deepcopy(ANSWERS[name])


def layer(found: Any, node: str) -> dict[str, Any]:
    """The convolution or matrix product of this node."""
    return next(
        part for part in found["Layers"] if node in part["Name"] and part["LayerType"] not in ("Reformat", "kgen")
    )


def retype(part: dict[str, Any], words: str, weights: str, tactic: str) -> None:
    """As the layer would look if it had been built in another type."""
    for tensor in part["Inputs"]:
        tensor["Format/Datatype"] = words
    for key in part:
        if key.endswith("Weights"):
            part[key]["Type"] = weights
    part["TacticName"] = tactic


@pytest.mark.parametrize(
    ("name", "variant", "nodes", "counts"),
    [
        ("layers, fp32", "fp32", FP32, {"Float": 3}),
        ("layers, fp16", "fp16", FP16, {"Half": 3}),
        ("layers, int8", "int8-s8s8", INT8, {"Int8": 3}),
        ("compiled, fp16", "fp16", FP16, {"Half": 3}),
    ],
)
def test_a_plan_that_is_what_was_asked_for(
    name: str, variant: str, nodes: dict[str, str], counts: dict[str, int]
) -> None:
    report = compare_precision(answer(name), variant, nodes=nodes)
    assert (report.label, report.counts, report.problems) == ("verified", counts, [])
    assert report.sentence.startswith(f"{variant} is verified: all 3 convolutions and matrix products were found")
    assert json.loads(json.dumps(asdict(report)))["label"] == "verified"


@pytest.mark.parametrize("name", ["layers, fp16", "compiled, fp16"])
@pytest.mark.parametrize("node", NODES)
def test_a_planted_float32_layer(name: str, node: str) -> None:
    found = answer(name)
    retype(
        layer(found, node),
        "Row major linear FP32",
        "Float",
        "sm80_xmma_fprop_implicit_gemm_f32f32_f32f32_f32_nchwkcrs_nchw_t",
    )
    report = compare_precision(found, "fp16", nodes=FP16)
    assert report.label == "declared" and report.counts == {"Float": 1, "Half": 2}
    assert len(report.problems) == 1 and "computes in Float, not in Half" in report.problems[0]
    assert report.problems[0] in report.sentence and report.sentence.startswith("the plan is not fp16 as its ONNX is")


@pytest.mark.parametrize("node", NODES)
def test_a_planted_float32_layer_in_int8(node: str) -> None:
    found = answer("layers, int8")
    retype(layer(found, node), "Row major linear FP32", "Float", "")
    (problem,) = compare_precision(found, "int8-s8s8", nodes=INT8).problems
    assert "computes in Float, not in Int8" in problem
    # but what the ONNX keeps in float may be
    kept = {**INT8, node: "Float"}
    report = compare_precision(found, "int8-s8s8", nodes=kept)
    assert (report.label, report.counts) == ("verified", {"Float": 1, "Int8": 2})
    # and must be
    (problem,) = compare_precision(answer("layers, int8"), "int8-s8s8", nodes=kept).problems
    assert "computes in Int8, not in Float" in problem


def test_weights_of_8_bits_alone_are_not_int8() -> None:
    found = answer("layers, int8")
    retype(layer(found, "node_Conv_2"), "Channel major FP16 format where channel % 8 == 0", "Int8", "")
    (problem,) = compare_precision(found, "int8-s8s8", nodes=INT8).problems
    assert "computes in Half, not in Int8" in problem


@pytest.mark.parametrize("node", NODES)
def test_a_planted_half_layer_in_float32(node: str) -> None:
    found = answer("layers, fp32")
    retype(
        layer(found, node),
        "Channel major FP16 format where channel % 8 == 0",
        "Half",
        "sm80_xmma_gemm_f16f16_f16f16_f16_tn_n_t",
    )
    (problem,) = compare_precision(found, "fp32", nodes=FP32).problems
    assert "computes in Half, not in Float" in problem


def test_a_half_layer_between_the_convolutions_of_a_float32_plan() -> None:
    found = answer("layers, fp32")
    found["Layers"].insert(
        1,
        {
            "Name": "node_relu_2",
            "LayerType": "PointWiseV2",
            "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP16 format"}],
        },
    )
    assert compare_precision(found, "fp32", nodes=FP32).problems == ["node_relu_2 has Half, not Float"]
    found["Layers"][1]["Outputs"][0]["Format/Datatype"] = "Row major linear INT32"  # a shape or an index
    assert compare_precision(found, "fp32", nodes=FP32).label == "verified"


@pytest.mark.parametrize(
    "tactic",
    [
        "sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize64x64x32_stage3",
        "sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize64x64x32",
        "cutlass_80_tensorop_s1688gemm_64x64_32x6_tn_align4",
    ],
)
def test_tensorfloat32_is_not_float32_unless_it_was_allowed(tactic: str) -> None:
    found = answer("layers, fp32")
    layer(found, "node_Conv_2")["TacticName"] = tactic
    report = compare_precision(found, "fp32", nodes=FP32)
    assert report.counts == {"Float": 2, "TF32": 1}
    assert "computes in TF32, not in Float" in report.problems[0]
    assert compare_precision(found, "fp32", nodes=FP32, tf32=True).label == "verified"
    # that does not make it right where the ONNX has something else
    assert compare_precision(found, "fp16", nodes=FP16, tf32=True).problems


@pytest.mark.parametrize(
    ("tactic", "kind"),
    [
        ("turing_fp16_s1688gemm_fp16_128x64_ldg8_f2f_tn", "Half"),
        ("ampere_fp16_s1688gemm_fp16_128x128_ldg8_f2f_stages_32x1_tn", "Half"),
        ("cutlass_75_tensorop_f16_s1688gemm_f16_128x128_tn_align8", "Half"),
        ("cutlass_75_tensorop_s1688gemm_f16_128x128_tn_align8", "Half"),
        ("turing_fp16_s1688cudnn_fp16_128x128_ldg8_relu_f2f_exp_small_nhwc_tn_v1", "Half"),
        ("turing_h1688gemm_128x64_ldg8_nn_v1", "Half"),
        ("ampere_h16816gemm_64x64_ldg8_stages_64x5_tn_v1", "Half"),
        ("volta_h884gemm_64x64_ldg8_tn", "Half"),
        ("volta_fp16_s884gemm_fp16_64x64_ldg8_f2f_tn", "Half"),
        ("sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize64x64", "Half"),
        ("ampere_bf16_s1688gemm_bf16_64x64_ldg8_tn", "BFloat16"),
        ("ampere_bf16_s16816gemm_bf16_64x64_sliced1x2_ldg8_f2f_stages_64x5_tn", "BFloat16"),
        ("cutlass_80_tensorop_s1688bf16gemm_128x128_16x3_tn_align4", "BFloat16"),
        ("cutlass_80_tensorop_s1688f16gemm_128x128_16x3_tn_align4", "Half"),
        ("cutlass_80_tensorop_s1688gemm_128x256_16x3_tn_align4", "TF32"),
        ("cutlass_80_tensorop_s1688tf32gemm_128x256_16x3_tn_align4", "TF32"),
        ("ampere_s1688cudnn_128x64_ldg4_relu_f2f_exp_small_nhwc_tn_v1", "TF32"),
        ("sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize64x64x16_stage3", "TF32"),
    ],
)
def test_the_operands_in_the_name_of_a_kernel(tactic: str, kind: str) -> None:
    """Whatever the layer says of its tensors: those may be converted on the way."""
    for nodes, variant, words in ((FP16, "fp16", "Half"), (FP32, "fp32", "Float")):
        found = answer(f"layers, {variant}")
        retype(layer(found, "node_linear"), words, words, tactic)
        found["Layers"] = [layer(found, "node_linear")]
        report = compare_precision(found, variant, nodes=nodes)
        assert report.counts == {kind: 1}
        assert bool(report.problems) is (kind != words)


@pytest.mark.parametrize(
    "nothing",
    [
        None,
        "",
        "not JSON",
        7,
        [],
        {},
        {"Layers": []},
        {"Layers": None},
        {"Layers": {}},
        {"Layers": [{}]},
        {"Layers": [None, 3]},
        {"Layers": [{"Name": "x", "Inputs": None, "Metadata": 5}]},
        ANSWERS["names alone"],
        ANSWERS["names alone"]["Layers"],
    ],
    ids=str,
)
def test_an_answer_that_says_nothing_verifies_nothing(nothing: Any) -> None:
    report = compare_precision(nothing, "fp16", nodes=FP16)
    assert (report.label, report.counts, report.problems) == ("declared", {}, [])
    assert (
        report.sentence
        == "fp16 is declared, not verified: the engine inspector tells of no convolution or matrix product"
    )


def test_a_list_of_layers_is_as_good_as_an_object() -> None:
    assert compare_precision(answer("layers, fp16")["Layers"], "fp16", nodes=FP16).label == "verified"


@pytest.mark.parametrize("words", ["N/A due to dynamic shapes", "Row major FP6", "", None])
def test_types_that_are_not_understood_verify_nothing(words: Any) -> None:
    found = answer("compiled, fp16")
    retype(layer(found, "node_linear"), words, "", "gemm_of_the_future")
    report = compare_precision(found, "fp16", nodes=FP16)
    assert (report.label, report.problems) == ("declared", [])
    assert report.counts == {"Half": 2, "unknown": 1}
    assert "some of their types were not understood" in report.sentence


def test_a_node_that_is_nowhere_verifies_nothing() -> None:
    found = answer("layers, fp16")
    found["Layers"].remove(layer(found, "node_Conv_2"))
    report = compare_precision(found, "fp16", nodes=FP16)
    assert (report.label, report.problems) == ("declared", [])
    assert "1 of 3 were not found" in report.sentence
    # of a convolution that a compiler made part of something else nobody knows the type
    found["Layers"].append(
        {
            "Name": "{ForeignNode[node_Conv_2...node_add]}",
            "LayerType": "Myelin",
            "Metadata": "[ONNX Layer: node_Conv_2]",
        }
    )
    assert compare_precision(found, "fp16", nodes=FP16).label == "declared"


def test_a_layer_without_a_name_from_the_onnx_must_be_one_that_could_be_there() -> None:
    found = answer("compiled, fp16")
    part = layer(found, "node_linear")
    part["Name"], part["Metadata"] = "__myl_gemm_17", ""
    report = compare_precision(found, "fp16", nodes=FP16)
    assert (report.label, report.problems) == ("declared", [])
    retype(part, "Float", "", "")
    assert compare_precision(found, "fp16", nodes=FP16).problems == ["__myl_gemm_17 computes in Float, not in Half"]


def test_names_survive_what_tensorrt_does_to_them() -> None:
    nodes = {"/layers.0/conv/Conv": "Half", "/layers.0/fc/MatMul": "Half", "/layers.1/fc/MatMul": "Half"}
    tensors = [{"Name": "x", "Format/Datatype": "Half"}]
    found = {
        "Layers": [
            {"Name": "/layers_0/conv/Conv_myl0_7", "LayerType": "conv", "Inputs": tensors},
            {
                "Name": "/layers.0/fc/MatMul || /layers.1/fc/MatMul",
                "LayerType": "CaskGemmMatrixMultiply",
                "Inputs": tensors,
            },
        ]
    }
    report = compare_precision(found, "fp16", nodes=nodes)
    assert (report.label, report.counts) == ("verified", {"Half": 2})


def test_many_problems_are_counted_not_listed() -> None:
    nodes = {f"node_Conv_{i}": "Half" for i in range(20)}
    found = {
        "Layers": [{"Name": name, "LayerType": "conv", "Inputs": [{"Format/Datatype": "Float"}]} for name in nodes]
    }
    report = compare_precision(found, "fp16", nodes=nodes)
    assert len(report.problems) == 20
    assert "; and 17 more (" in report.sentence and report.sentence.count("computes in") == 3


@pytest.mark.parametrize(
    "damage", [lambda part: part.clear(), lambda part: part.update(Inputs="x"), lambda part: part.update(Name=None)]
)
@pytest.mark.parametrize("name", [name for name in ANSWERS if "," in name])
def test_a_damaged_layer_is_never_verified_nor_a_crash(name: str, damage: Callable[[dict[str, Any]], None]) -> None:
    for index in range(len(ANSWERS[name]["Layers"])):
        found = answer(name)
        damage(found["Layers"][index])
        kind = name.partition(", ")[2]
        nodes = {"fp32": FP32, "fp16": FP16, "int8": INT8}[kind]
        report = compare_precision(found, kind, nodes=nodes)
        assert report.problems == []


@pytest.mark.parametrize(("kind", "found"), [("Half", "declared"), ("Float", "problem")])
def test_of_an_older_bundle_nothing_is_verified_and_another_type_is_a_problem_still(kind: str, found: str) -> None:
    layers = {"Layers": [{"Name": "conv", "LayerType": "conv", "Inputs": [{"Name": "x", "Format/Datatype": kind}]}]}
    report = compare(layers, "fp16", nodes=None, written_in=frozenset({"Half"}))
    assert report.label == "declared" and bool(report.problems) == (found == "problem")
    expected = (
        "the bundle does not tell what they are, export it again"
        if kind == "Half"
        else "computes in Float, not in Half"
    )
    assert expected in report.sentence
