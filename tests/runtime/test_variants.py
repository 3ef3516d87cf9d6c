"""Names of artefacts, and which int8 artefact is right where."""

from __future__ import annotations

import platform

import pytest

from edgeadv_runtime.variants import VARIANTS, int8_variant, is_x86, precision_of


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
    assert [precision_of(variant) for variant in VARIANTS] == ["fp32", "fp16", "int8", "int8"]
