"""Batches cut to what a plan takes, with an executor that computes the bundle's very logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.engine import BatchProfile
from edgeadv_runtime.engine.execution import execute_batch, pieces

PROFILES = [BatchProfile(*sizes) for sizes in [(1, 1, 1), (8, 8, 8), (1, 8, 32), (4, 8, 16), (3, 5, 7)]]


class OnnxExecutor:
    """Computes with ONNX Runtime, and like a plan only what its profile allows, always into the same memory."""

    def __init__(self, bundle: Bundle, profile: BatchProfile) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(bundle.onnx_path("fp32")), options, providers=["CPUExecutionProvider"]
        )
        self.profile = profile
        self.staging = np.full((profile.max, 3, 32, 32), np.nan, np.float32)
        self.logits = np.full((profile.max, 10), np.nan, np.float32)
        self.sizes: list[int] = []

    def execute(self, images: NDArray[np.float32], size: int) -> NDArray[np.float32]:
        assert self.profile.min <= size <= self.profile.max and 1 <= len(images) <= size
        self.sizes.append(size)
        self.staging[: len(images)] = images
        self.staging[len(images) : size] = 0.0
        self.logits[:size] = self.session.run(["logits"], {"image": self.staging[:size]})[0]
        return self.logits[: len(images)]


@pytest.fixture(scope="module")
def images(tiny_bundle: Bundle) -> NDArray[np.float32]:
    """Seventy different images."""
    pixels = to_tensor(tiny_bundle.golden().pixels)
    rng = np.random.default_rng(0)
    batch = np.concatenate([pixels] * 9)[:70]
    return np.clip(batch + rng.uniform(-0.1, 0.1, batch.shape), 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def expected(tiny_bundle: Bundle, images: NDArray[np.float32]) -> NDArray[np.float32]:
    whole: Any = OnnxExecutor(tiny_bundle, BatchProfile(1, 70, 70)).session.run(["logits"], {"image": images})[0]
    return np.asarray(whole)


@pytest.mark.parametrize("profile", PROFILES, ids=str)
def test_every_batch_up_to_70(
    tiny_bundle: Bundle, images: NDArray[np.float32], expected: NDArray[np.float32], profile: BatchProfile
) -> None:
    executor = OnnxExecutor(tiny_bundle, profile)
    for n in range(1, 71):
        executor.sizes.clear()
        logits = execute_batch(executor.execute, profile, images[:n], 10)
        assert logits.shape == (n, 10) and logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected[:n], atol=1e-5 * np.abs(expected).max())
        assert executor.sizes == [piece.size for piece in pieces(n, profile)]
        assert not np.shares_memory(logits, executor.logits)
    # an earlier batch that was larger leaves nothing in a smaller one
    np.testing.assert_allclose(
        execute_batch(executor.execute, profile, images[69:], 10), expected[69:], atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("profile", PROFILES, ids=str)
def test_pieces_cover_a_batch_in_order_with_no_waste(profile: BatchProfile) -> None:
    for n in range(1, 200):
        cut = list(pieces(n, profile))
        assert [piece.start for piece in cut] == [0, *(piece.stop for piece in cut[:-1])]
        assert cut[-1].stop == n
        assert all(piece.stop - piece.start <= piece.size <= profile.max for piece in cut)
        assert all(piece.size == profile.max for piece in cut[:-1])
        assert cut[-1].size == max(profile.min, cut[-1].stop - cut[-1].start)


def test_pieces_of_a_dynamic_profile() -> None:
    assert [tuple(piece) for piece in pieces(70, BatchProfile(4, 8, 32))] == [(0, 32, 32), (32, 64, 32), (64, 70, 6)]
    assert [tuple(piece) for piece in pieces(33, BatchProfile(4, 8, 32))] == [(0, 32, 32), (32, 33, 4)]
    assert [tuple(piece) for piece in pieces(3, BatchProfile(8, 8, 8))] == [(0, 3, 8)]
