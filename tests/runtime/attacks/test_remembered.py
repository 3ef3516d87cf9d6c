"""An artefact that is asked about each image once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeadv_runtime.attacks.remembered import Remembered, pays
from edgeadv_runtime.backends.base import Backend


class Sums(Backend):
    """Two logits of what an image adds up to; it counts what it is asked."""

    name, provider, device, variant = "sums", "CPU", "none", "fp32"
    artifact_sha256, identity, n_classes = "a" * 64, "sums", 2

    def __init__(self) -> None:
        self.asked: list[int] = []

    def infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        self.asked.append(len(x))
        total = x.sum(axis=(1, 2, 3))
        return np.stack([total, -total], axis=1)

    def _infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        raise AssertionError("not asked")


def test_only_new_images_are_asked_about() -> None:
    backend = Sums()
    remembered = Remembered(backend)
    x = np.random.default_rng(0).random((6, 3, 16, 16), dtype=np.float32)
    moved = x.copy()
    # a pixel that no shortcut looks at is enough to make another image
    moved[2, 1, 7, 7] += 0.25
    moved[4] = x[0]
    for images, asked in ((x, 6), (x, None), (moved, 1), (np.concatenate([moved, x]), None)):
        backend.asked.clear()
        found = remembered.infer(images)
        assert backend.asked == ([] if asked is None else [asked])
        np.testing.assert_array_equal(found, Sums().infer(images))
    assert remembered.infer(x[:0]).shape == (0, 2)


def test_an_image_that_changes_afterwards_is_another() -> None:
    backend, x = Sums(), np.zeros((2, 3, 4, 4), np.float32)
    remembered = Remembered(backend)
    remembered.infer(x)
    # both are the same image: it is asked about twice within one call, and never again
    assert backend.asked == [2]
    x[1] += 1
    np.testing.assert_array_equal(remembered.infer(x), Sums().infer(x))


def test_who_is_no_faster_for_fewer_images_is_asked_about_all() -> None:
    def of(**attributes: str) -> Sums:
        backend = Sums()
        for name, value in attributes.items():
            setattr(backend, name, value)
        return backend

    assert pays(of(provider="cpu")) and pays(of(provider="CPUExecutionProvider"))
    assert not pays(of(provider="cuda")) and not pays(of(provider="cpu", name="torch-compiled"))
    assert not pays(of(provider="cpu", variant="fp32-u8in"))
