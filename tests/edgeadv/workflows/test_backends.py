"""Names on the command line become the backends that they stand for, or one sentence."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from edgeadv.cli import main
from edgeadv.workflows.backends import TensorRTPlan, backend_openers
from edgeadv_runtime.backends import TensorRTBackend
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.entries import InputEntry, OutputEntry, SizedFileEntry, VariantEntry
from edgeadv_runtime.bundle.manifest import Manifest
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.bundle.variants import FLOAT_VARIANTS, VARIANTS, int8_variant, precision_of
from edgeadv_runtime.device.cuda import Gpu
from edgeadv_runtime.engine import find_library
from edgeadv_runtime.errors import EngineError, InputError
from edgeadv_runtime.inference.classifier import Classifier
from edgeadv_runtime.records.about import Skipped


def bundle(*variants: str) -> Bundle:
    """What names are resolved against; nothing of it is opened."""
    entries = {
        variant: VariantEntry(
            file=f"model.{variant}.onnx",
            sha256=variant,
            bytes=0,
            precision=precision_of(variant),
            opset=20,
            tolerance=0.1,
            input=InputEntry(name="image", dtype="float32", layout="NCHW", range=(0, 1)),
            output=OutputEntry(name="logits", dtype="float32"),
        )
        for variant in variants
    }
    weights = SizedFileEntry(file="weights.safetensors", sha256="w", bytes=0)
    preprocess = Preprocess(resize=8, crop=8).entry
    return Bundle(Path("some.edgeadv"), Manifest.draft([], preprocess, variants=entries, weights=weights))


ALL_FOUR, ALL_EIGHT = bundle(*FLOAT_VARIANTS), bundle(*VARIANTS)


def resolved(*args: Bundle, **options: object) -> list[tuple[str, str]]:
    openers, _ = backend_openers(*args, **options)  # type: ignore[arg-type]
    found = []
    for opener in openers.values():
        assert isinstance(opener, functools.partial)
        name = getattr(opener.func, "name", "torch")
        found.append((name, opener.keywords.get("variant", "fp32")))
    return found


@pytest.fixture
def on_x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


@pytest.fixture
def on_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")


@pytest.mark.usefixtures("on_x86")
def test_int8_is_another_artefact_on_each_backend() -> None:
    assert resolved(ALL_FOUR, backends="onnxruntime,tensorrt", precisions="int8") == [
        ("onnxruntime", "int8-u8s8"),
        ("tensorrt", "int8-s8s8"),
    ]
    assert resolved(ALL_FOUR, backends="onnxruntime", precisions="int8", provider="cuda") == [
        ("onnxruntime", "int8-s8s8")
    ]


@pytest.mark.usefixtures("on_arm")
def test_int8_on_arm_is_signed() -> None:
    assert resolved(ALL_FOUR, backends="onnxruntime", precisions="int8") == [("onnxruntime", "int8-s8s8")]


def test_int8_and_the_variant_that_it_stands_for_are_opened_once() -> None:
    assert resolved(ALL_FOUR, backends="tensorrt", precisions="int8,int8-s8s8") == [("tensorrt", "int8-s8s8")]


@pytest.mark.usefixtures("on_x86")
def test_int8_with_pixels_is_another_artefact_on_each_backend() -> None:
    assert resolved(ALL_EIGHT, backends="onnxruntime,tensorrt", precisions="int8-u8in") == [
        ("onnxruntime", "int8-u8s8-u8in"),
        ("tensorrt", "int8-s8s8-u8in"),
    ]
    with pytest.raises(InputError, match="no variant 'int8-u8s8-u8in'"):
        resolved(ALL_FOUR, backends="onnxruntime", precisions="int8-u8in")


def test_of_the_variants_with_pixels_tensorrt_runs_all_but_unsigned_activations() -> None:
    openers, skipped = backend_openers(ALL_EIGHT, backends="tensorrt", precisions="all")
    assert [v for _, v in openers] == ["fp32", "fp16", "int8-s8s8", "fp32-u8in", "fp16-u8in", "int8-s8s8-u8in"]
    assert [pair.variant for pair in skipped] == ["int8-u8s8", "int8-u8s8-u8in"]


def test_torch_serves_all_and_times_fp32_only() -> None:
    assert resolved(ALL_EIGHT, backends="torch", precisions="all") == [("torch", variant) for variant in VARIANTS]
    openers, skipped = backend_openers(ALL_EIGHT, backends="torch", precisions="all", for_speed=True)
    assert [variant for _, variant in openers] == ["fp32", "fp32-u8in"]
    others = [variant for variant in VARIANTS if precision_of(variant) != "fp32"]
    assert [pair.reason for pair in skipped] == [
        f"torch computes {variant} in float32, so its speed is not that of {variant}" for variant in others
    ]


@pytest.mark.usefixtures("on_arm")
def test_what_is_timed_on_arm_is_signed_with_pixels_too() -> None:
    openers, skipped = backend_openers(ALL_EIGHT, backends="onnxruntime", precisions="all", for_speed=True)
    assert len(openers) == 6
    assert [pair.variant for pair in skipped] == ["int8-u8s8", "int8-u8s8-u8in"]


def test_tensorrt_runs_all_but_unsigned_activations() -> None:
    openers, skipped = backend_openers(ALL_FOUR, backends="tensorrt", precisions="all")
    assert [variant for _, variant in openers] == ["fp32", "fp16", "int8-s8s8"]
    assert skipped == [
        Skipped(
            backend="tensorrt",
            variant="int8-u8s8",
            reason="TensorRT takes symmetric int8 only, that is int8-s8s8; int8-u8s8 is for x86 processors",
        )
    ]
    with pytest.raises(
        InputError, match="nothing would run tensorrt and int8-u8s8: TensorRT takes symmetric int8 only"
    ):
        backend_openers(ALL_FOUR, backends="tensorrt", precisions="int8-u8s8")


@pytest.mark.usefixtures("on_x86")
def test_all_is_scored_but_not_timed_in_the_arithmetic_of_another_processor() -> None:
    everything = [("onnxruntime", variant) for variant in FLOAT_VARIANTS]
    assert resolved(ALL_FOUR, backends="onnxruntime", precisions="all") == everything
    openers, skipped = backend_openers(ALL_FOUR, backends="onnxruntime", precisions="all", for_speed=True)
    assert [variant for _, variant in openers] == ["fp32", "fp16", "int8-u8s8"]
    assert [pair.variant for pair in skipped] == ["int8-s8s8"]
    assert "name int8-s8s8 to time it all the same" in skipped[0].reason
    named = resolved(ALL_FOUR, backends="onnxruntime", precisions="int8-s8s8", for_speed=True)
    assert named == [("onnxruntime", "int8-s8s8")]


def test_what_the_bundle_does_not_carry_is_an_error() -> None:
    with pytest.raises(InputError, match=r"no variant 'int8-\w+' \(it has: fp32\)"):
        backend_openers(bundle("fp32"), backends="onnxruntime", precisions="int8")
    with pytest.raises(InputError, match="no variant 'fp16'"):
        backend_openers(bundle("fp32"), backends="tensorrt", precisions="fp16")


def test_a_name_that_nothing_would_run_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing would run int8: torch computes int8-s8s8 in float32"):
        backend_openers(ALL_FOUR, backends="torch", precisions="fp32,int8", for_speed=True)
    with pytest.raises(InputError, match="nothing would run torch and fp32: torch has no provider tensorrt"):
        backend_openers(ALL_FOUR, backends="torch", precisions="fp32", provider="tensorrt")


def test_the_plan_is_chosen_by_the_options_of_the_engine(tmp_path: Path) -> None:
    choice = TensorRTPlan(engine_batch="1,8,32", engine_cache=tmp_path, trust_plan="ab" * 32)
    openers, _ = backend_openers(ALL_FOUR, backends="tensorrt", precisions="fp16", plan=choice)
    opener = openers["tensorrt", "fp16"]
    assert opener.func is TensorRTBackend
    assert opener.keywords["options"].profile.to_json() == [1, 8, 32]
    assert opener.keywords["cache"].folder == tmp_path
    assert opener.keywords["trust_plan"] == "ab" * 32
    with pytest.raises(InputError):
        backend_openers(ALL_FOUR, backends="tensorrt", precisions="fp16", plan=TensorRTPlan(engine_batch="8,1"))


def test_all_backends_leave_out_what_cannot_be_here(tiny_bundle: Bundle) -> None:
    openers, skipped = backend_openers(tiny_bundle, backends="all", precisions="all")
    names = {name for name, _ in openers}
    assert {"torch", "onnxruntime"} <= names
    if "tensorrt" not in names:
        reasons = {pair.reason for pair in skipped if pair.backend == "tensorrt"}
        assert len(reasons) == 1 and reasons.pop()


@pytest.mark.parametrize("choice", [{"engine_batch": "8"}, {"trust_plan": "ab"}, {"workspace": 64}, {"tf32": True}])
def test_options_of_plans_that_nothing_reads_are_refused(choice: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="without `backends` tensorrt"):
        backend_openers(ALL_FOUR, backends="torch,onnxruntime", precisions="all", plan=TensorRTPlan(**choice))


def test_all_leaves_out_a_gpu_that_the_library_does_not_serve(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle
) -> None:
    """An H100 beside TensorRT-RTX: the rest of ``all`` has to run."""
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    hopper = Gpu(0, "H100", (9, 0), "580.1", 80_000, 79_000, integrated=False)
    monkeypatch.setattr("edgeadv.workflows.backends.find_gpu", lambda: hopper)
    monkeypatch.setattr("edgeadv.workflows.backends.find_library", lambda: find_library("tensorrt-rtx"))
    openers, skipped = backend_openers(tiny_bundle, backends="all", precisions="fp16")
    assert list(openers) == [("torch", "fp16"), ("onnxruntime", "fp16")]
    (reason,) = {pair.reason for pair in skipped if pair.backend == "tensorrt"}
    assert "does not serve H100 (sm_90)" in reason


def test_verify_goes_on_behind_an_artefact_that_does_not_open(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise EngineError("no memory for it")

    monkeypatch.setattr("edgeadv.workflows.backends.TensorRTBackend", refuse)
    assert main(["verify", str(tiny_bundle.path), "--backend", "tensorrt,onnxruntime", "--precision", "fp16"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("onnxruntime fp16") and ": ok;" in out
    assert err == "edgeadv: tensorrt fp16 did not run: no memory for it\n"


def test_int8_travels_in_a_slim_copy_and_the_right_one_is_taken(
    digits_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slim = tmp_path / "slim.edgeadv"
    assert main(["bundle", "slim", str(digits_bundle.path), "--variant", "int8", "--out", str(slim)]) == 0
    assert Bundle.open(slim).variants == ("int8-s8s8", "int8-u8s8")
    assert Bundle.open(slim).calibration_images == digits_bundle.calibration_images != frozenset()
    right = int8_variant("onnxruntime")
    capsys.readouterr()
    assert main(["verify", str(slim), "--precision", "int8"]) == 0
    assert capsys.readouterr().out.startswith(f"onnxruntime {right} ")
    with Classifier.open(slim) as classifier:
        assert classifier.backend.variant == right
