"""Names of artefacts, and which int8 artefact is right where."""

from __future__ import annotations

import platform

import pytest

from edgeadv_runtime.bundle.variants import (
    FLOAT_VARIANTS,
    VARIANTS,
    base_of,
    expanded,
    int8_variant,
    is_x86,
    precision_of,
    takes_uint8,
    variant_for,
)


@pytest.mark.parametrize(
    ("backend", "provider", "machine", "expected"),
    [
        ("onnxruntime", "cpu", "x86_64", "int8-u8s8"),
        ("onnxruntime", "cpu", "AMD64", "int8-u8s8"),
        ("onnxruntime", "cpu", "aarch64", "int8-s8s8"),
        ("onnxruntime", "cpu", "arm64", "int8-s8s8"),
        ("onnxruntime", "cuda", "x86_64", "int8-s8s8"),
        ("onnxruntime", "tensorrt", "x86_64", "int8-s8s8"),
        ("tensorrt", "cpu", "x86_64", "int8-s8s8"),
        ("tensorrt", "cpu", "aarch64", "int8-s8s8"),
    ],
)
def test_int8_means_the_artefact_that_is_right_there(backend, provider, machine, expected):
    assert int8_variant(backend, provider=provider, machine=machine) == expected


def test_without_a_machine_it_is_this_one():
    assert is_x86() == is_x86(platform.machine())
    assert int8_variant("onnxruntime") == int8_variant("onnxruntime", machine=platform.machine())


def test_every_variant_has_its_precision():
    assert [precision_of(variant) for variant in VARIANTS] == ["fp32", "fp16", "int8", "int8"] * 2


def test_every_variant_has_one_that_takes_pixels():
    assert len(set(VARIANTS)) == 8
    for variant in FLOAT_VARIANTS:
        assert not takes_uint8(variant) and takes_uint8(f"{variant}-u8in") and f"{variant}-u8in" in VARIANTS
        assert base_of(variant) == base_of(f"{variant}-u8in") == variant


def test_the_suffix_counts_once():
    assert base_of("fp32-u8in-u8in") == "fp32-u8in" and "fp32-u8in-u8in" not in VARIANTS


@pytest.mark.parametrize(
    ("name", "backend", "provider", "expected"),
    [
        ("int8-u8in", "tensorrt", "cpu", "int8-s8s8-u8in"),
        ("int8", "tensorrt", "cpu", "int8-s8s8"),
        ("int8-u8in", "onnxruntime", "cuda", "int8-s8s8-u8in"),
        ("int8-u8s8", "tensorrt", "cpu", "int8-u8s8"),
        ("fp16-u8in", "tensorrt", "cpu", "fp16-u8in"),
        ("nothing", "onnxruntime", "cpu", "nothing"),
    ],
)
def test_what_a_name_means_on_a_backend(name, backend, provider, expected):
    assert variant_for(name, backend, provider=provider) == expected


def test_on_this_processor_int8_with_pixels_is_what_int8_is():
    assert variant_for("int8-u8in", "onnxruntime") == int8_variant("onnxruntime") + "-u8in"


def test_int8_stands_for_both_of_its_variants():
    assert expanded(["fp16", "int8"], VARIANTS) == ["fp16", "int8-s8s8", "int8-u8s8"]
    assert expanded(["int8-u8in"], VARIANTS) == ["int8-s8s8-u8in", "int8-u8s8-u8in"]
    assert expanded(["int8", "int8-u8in"], ("fp32", "int8-s8s8")) == ["int8-s8s8", "int8-u8in"]
    assert expanded(["int8-s8s8", "int4"], VARIANTS) == ["int8-s8s8", "int4"]
