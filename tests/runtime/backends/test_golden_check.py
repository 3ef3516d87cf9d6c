"""The self-test passes on what was exported, and fails on anything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeadv_runtime.backends import Backend, OnnxRuntimeBackend
from edgeadv_runtime.backends.golden_check import Verification, verify
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.golden import Golden
from edgeadv_runtime.errors import BackendError, InputError


class Skewed(OnnxRuntimeBackend):
    """A device whose logits are off by whatever ``skew`` does to them."""

    skew: Callable[[NDArray[np.float32]], NDArray[np.float32]]

    def _infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.skew(super()._infer(x))


def skewed(
    bundle: Bundle, skew: Callable[[NDArray[np.float32]], NDArray[np.float32]], variant: str = "fp32"
) -> Backend:
    backend = Skewed(bundle, variant=variant, threads=1)
    backend.skew = skew
    return backend


class WithGolden(Bundle):
    """A bundle with other golden frames than its file."""

    golden_frames: Golden

    def golden(self) -> Golden:
        return self.golden_frames


def with_golden(bundle: Bundle, **changes: Any) -> Bundle:
    changed = WithGolden(bundle.path, bundle.manifest)
    object.__setattr__(changed, "golden_frames", replace(bundle.golden(), **changes))
    return changed


def test_every_backend_passes(tiny_bundle: Bundle) -> None:
    from edgeadv.backends.pytorch import TorchBackend

    backends = [
        OnnxRuntimeBackend(tiny_bundle, threads=1),
        OnnxRuntimeBackend(tiny_bundle, variant="fp16", threads=1),
        TorchBackend(tiny_bundle),
    ]
    results = verify(tiny_bundle, backends)
    assert [(r.backend, r.variant) for r in results] == [
        ("onnxruntime", "fp32"),
        ("onnxruntime", "fp16"),
        ("torch", "fp32"),
    ]
    for result in results:
        assert result.ok, str(result)
        assert result.frames == result.exact_frames == result.equal_labels == 8
        assert result.tolerance == tiny_bundle.tolerance(result.variant)
        assert "\n" not in str(result) and ": ok; pixels exact on 8 of 8 frames" in str(result)
    for backend in backends:
        backend.infer(np.zeros((1, 3, 32, 32), np.float32))  # still open
        backend.close()


@pytest.mark.parametrize(("share", "ok"), [(0.5, True), (2.0, False)])
@pytest.mark.parametrize("variant", ["fp32", "fp16"])
def test_the_tolerance_is_a_share_of_the_largest_logit(
    tiny_bundle: Bundle, variant: str, share: float, ok: bool
) -> None:
    error = share * tiny_bundle.tolerance(variant) * np.abs(tiny_bundle.golden().logits[variant]).max()
    (result,) = verify(tiny_bundle, [skewed(tiny_bundle, lambda logits: logits + np.float32(error), variant)])
    assert result.ok is ok
    assert result.equal_labels == 8
    assert result.max_relative_error == pytest.approx(share * result.tolerance, rel=0.02)
    assert ("FAILED" in str(result)) is not ok


def test_another_first_label_fails_however_small_the_error(tiny_bundle: Bundle) -> None:
    frames = tiny_bundle.golden().logits["fp32"].copy()
    best, second = np.argsort(frames[0])[[-1, -2]]
    frames[0, second] = np.nextafter(frames[0, best], np.float32(-9))
    device = frames.copy()
    device[0, second] = np.nextafter(frames[0, best], np.float32(9))
    rows = iter(device)
    (result,) = verify(
        with_golden(tiny_bundle, logits={"fp32": frames}), [skewed(tiny_bundle, lambda logits: next(rows)[None])]
    )
    assert result.max_relative_error < result.tolerance
    assert (result.equal_labels, result.ok) == (7, False)


def test_other_pixels_fail(tiny_bundle: Bundle) -> None:
    pixels = tiny_bundle.golden().pixels.copy()
    pixels[3, 0, 0, 0] ^= 1
    (result,) = verify(with_golden(tiny_bundle, pixels=pixels), [OnnxRuntimeBackend(tiny_bundle, threads=1)])
    assert result.exact_frames == 7
    assert not result.ok
    assert "pixels exact on 7 of 8 frames" in str(result)


def test_logits_that_are_not_finite_are_an_error(tiny_bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="NaN"):
        verify(tiny_bundle, [skewed(tiny_bundle, lambda logits: logits * np.float32("nan"))])


def test_a_variant_without_golden_logits(tiny_bundle: Bundle) -> None:
    without = with_golden(tiny_bundle, logits={"fp16": tiny_bundle.golden().logits["fp16"]})
    with pytest.raises(InputError, match="golden logits of fp16, not of fp32"):
        verify(without, [OnnxRuntimeBackend(tiny_bundle, threads=1)])


def test_a_slim_bundle_verifies_itself(tiny_bundle: Bundle, tmp_path: Path) -> None:
    slim = tiny_bundle.slim(tmp_path / "slim", variants=["fp16"], weights=False)
    results: list[Verification] = verify(slim, [OnnxRuntimeBackend(slim, variant="fp16", threads=1)])
    assert [r.ok for r in results] == [True]


@pytest.mark.parametrize("variant", ["fp32-u8in", "fp16-u8in", "int8-s8s8-u8in", "int8-u8s8-u8in"])
def test_the_variants_that_take_pixels_pass(digits_bundle: Bundle, variant: str) -> None:
    with OnnxRuntimeBackend(digits_bundle, variant=variant, threads=1) as backend:
        (found,) = verify(digits_bundle, [backend])
    assert found.ok and found.variant == variant and found.tolerance == digits_bundle.tolerance(variant[:-5])
    (found,) = verify(digits_bundle, [skewed(digits_bundle, lambda logits: logits[:, ::-1].copy(), variant)])
    assert not found.ok
