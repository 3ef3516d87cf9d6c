"""What a page may ask to be done to frames, and what the recognizer makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeadv_runtime import Bundle, Classifier
from edgeadv_runtime.attacks.patches import patch_shape
from edgeadv_runtime.attacks.stored_patch import StoredPatch
from edgeadv_runtime.bundle.preprocess import to_pixels, to_tensor
from edgeadv_runtime.camera.frames import Frame
from edgeadv_runtime.camera.recognizer import Recognizer
from edgeadv_runtime.camera.serve import Chosen, View
from edgeadv_runtime.corruptions.kinds import corrupt
from edgeadv_runtime.records.eps import Eps


def test_a_choice_changes_what_it_names() -> None:
    first = Chosen().changed({"patch": [0, 1]}, patch=True, corruptions=["fog"])
    assert first == Chosen((0.0, 1.0), None, 3)
    second = first.changed({"corruption": "fog", "severity": 5}, patch=True, corruptions=["fog"])
    assert second == Chosen((0.0, 1.0), "fog", 5)
    assert second.changed({"patch": None, "corruption": None}, patch=True, corruptions=["fog"]) == Chosen(severity=5)


@pytest.mark.parametrize(
    "asked",
    [
        None,
        [],
        {},
        {"strength": 1},
        {"patch": [0.5]},
        {"patch": [0.5, 0.5, 0.5]},
        {"patch": [0.5, 1.5]},
        {"patch": [0.5, "1"]},
        {"patch": [True, 0.5]},
        {"patch": [float("nan"), 0.5]},
        {"patch": 3},
        {"corruption": "snow"},
        {"corruption": 3},
        {"severity": 0},
        {"severity": 6},
        {"severity": 2.0},
        {"severity": True},
        {"severity": None},
    ],
)
def test_anything_else_is_refused(asked: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        Chosen().changed(asked, patch=True, corruptions=["fog"])


def test_what_is_not_offered_cannot_be_chosen() -> None:
    with pytest.raises(ValueError, match="not offered"):
        Chosen().changed({"patch": [0.5, 0.5]}, patch=False, corruptions=[])
    with pytest.raises(ValueError, match="not offered"):
        Chosen().changed({"corruption": "fog"}, patch=True, corruptions=[])


def test_a_frame_gets_the_patch_and_then_the_weather(tiny_bundle: Bundle) -> None:
    height, width, channels = tiny_bundle.preprocess.pixel_shape
    area = Eps.parse("10%", norm="area")
    side = len(patch_shape(area, height, width).mask)
    content = np.random.default_rng(0).integers(0, 256, (side, side, channels), dtype=np.uint8)
    stored = StoredPatch(content, area, "square", tiny_bundle.weights_sha256)
    view = View(title="t", eps=None, patch="10%", corruptions=["fog"])
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    frame = Frame(image, "rgb", 0.0, 0)
    with Classifier.open(tiny_bundle.path, variant="fp32") as classifier:
        recognizer = Recognizer(classifier, view=view, patch=stored)
        plain = recognizer(frame).pixels
        view.chosen = Chosen((0.25, 0.75))
        np.testing.assert_array_equal(recognizer(frame).pixels, stored.applied(plain, 0.25, 0.75))
        view.chosen = Chosen((0.25, 0.75), "fog", 4)
        both = to_tensor(stored.applied(plain, 0.25, 0.75)[None])[0]
        np.testing.assert_array_equal(recognizer(frame).pixels, to_pixels(corrupt(both, "fog", 4)[None])[0])
