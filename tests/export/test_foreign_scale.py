"""On which scale a file takes its pictures: certain from plain constants that are whole, asked for everywhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeadv_export import Asked, Examined, examine
from edgeadv_export.examination import examine_here
from edgeadv_export.foreign_scale import parse_scale
from edgeadv_runtime.errors import InputError
from tests.foreign import SIDE, convolutional, saved

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def beginning(*steps: tuple[str, Any]) -> Any:
    """A file that begins with operators and their constants."""
    nodes, held, value = [], {}, "x"
    for i, (op, number) in enumerate(steps):
        held[f"c{i}"] = np.array(number, np.float32).reshape(1, -1, 1, 1)
        nodes.append(helper.make_node(op, [value, f"c{i}"], [f"s{i}"]))
        value = f"s{i}"
    return convolutional(first=nodes, begin=value, held=held)


def with_batch_norm(mean: Any, std: Any) -> Any:
    held = {"s": 1.3, "b": 0.2, "m": mean, "v": np.square(std)}
    return convolutional(
        first=[helper.make_node("BatchNormalization", ["x", *held], ["norm"])],
        begin="norm",
        held={name: np.broadcast_to(np.array(number, np.float32), 3).copy() for name, number in held.items()},
    )


def read(proto: Any, folder: Path, **asked: Any) -> Examined:
    about = {"color": "rgb", "shape": (3, SIDE, SIDE), **asked}
    return examine_here(saved(proto, folder / "theirs.onnx"), Asked(**about), None)


@pytest.mark.parametrize(
    ("steps", "notes"),
    [
        (
            [("Sub", MEAN), ("Div", STD)],
            ["scale 0..1 ((x - 0.485,0.456,0.406) / 0.229,0.224,0.225 is inside), by", "color rgb, by"],
        ),
        ([("Sub", MEAN[::-1] * 255), ("Div", STD[::-1] * 255)], ["scale 0..255", "color bgr, by"]),
        ([("Sub", 127.5), ("Div", 127.5)], ["scale 0..255"]),
        ([("Sub", 0.5), ("Div", 0.5)], ["scale 0..1"]),
        ([("Mul", 2), ("Sub", 1)], ["scale 0..1"]),
        ([("Mul", 1 / 127.5), ("Add", -1)], ["scale 0..255"]),
        ([("Mul", 1 / 255), ("Sub", MEAN), ("Div", STD)], ["scale 0..255", "color rgb, by"]),
        ([("Mul", 1 / STD), ("Add", -MEAN / STD)], ["scale 0..1", "color rgb, by"]),
    ],
)
def test_a_normalisation_inside_tells_the_scale(tmp_path: Path, steps: Any, notes: list[str]) -> None:
    found = read(beginning(*steps), tmp_path, color=None if "color" in notes[-1] else "rgb")
    assert found.needed == () and found.model is not None
    for note in notes:
        assert any(said.startswith(note) for said in found.notes), found.notes


@pytest.mark.parametrize(
    ("steps", "named"),
    [
        ([("Div", STD)], "x / 0.229,0.224,0.225"),
        ([("Sub", MEAN)], "x - 0.485,0.456,0.406"),
        ([("Div", 255)], "x / 255"),
        ([("Sub", 0), ("Div", 255)], "x / 255"),
        ([("Sub", [103.939, 116.779, 123.68])], "x - 103.9,116.8,123.7"),
        ([("Sub", 0.01), ("Div", 0.9)], "(x - 0.01) / 0.9"),
        ([("Sub", -3), ("Div", 2)], "(x - -3) / 2"),
        ([("Sub", 7), ("Div", 11)], "(x - 7) / 11"),
        ([("Mul", [3, 4, 5]), ("Add", [-1, -1.5, -2])], "a BatchNormalization, plain or folded, of mean 0.3333,"),
    ],
)
def test_half_a_normalisation_is_named_and_the_scale_is_asked_for(tmp_path: Path, steps: Any, named: str) -> None:
    found = read(beginning(*steps), tmp_path, color=None)
    what = dict(found.needed)["scale"]
    assert f"for {named}" in what and "-0 " not in what and found.model is None


@pytest.mark.parametrize(
    ("mean", "std"), [((0.39, 0.37, 0.33), (0.3, 0.29, 0.31)), (MEAN, STD), (120, 60), (0, 1), (0.45, 0.25)]
)
def test_statistics_of_a_batch_norm_prove_nothing(tmp_path: Path, mean: Any, std: Any) -> None:
    """They may be of pictures that were normalised before: nothing is assumed, and the right scale is not doubted."""
    proto = with_batch_norm(mean, std)
    assert [field for field, _ in read(proto, tmp_path, color=None).needed] == ["scale", "color"]
    found = read(proto, tmp_path, scale="0.5/0.5")
    assert "scale 0.5/0.5, which is -1..1" in found.notes
    assert not [note for note in found.notes if "warning" in note]


@pytest.mark.parametrize("scale", ["imagenet", "0..255", "0.5/0.5"])
def test_a_scale_against_the_constants_inside_is_refused(tmp_path: Path, scale: str) -> None:
    proto = beginning(("Sub", MEAN), ("Div", STD))
    says = rf"^`scale` {scale} was given, and the file takes 0\.\.1, for \(x - 0\.485,.* is inside: leave `scale` out$"
    with pytest.raises(InputError, match=says):
        read(proto, tmp_path, scale=scale)
    for same in ("0..1", "0/1", "0/255"):
        assert read(proto, tmp_path, scale=same).model is not None
    with pytest.raises(InputError, match=r"takes 0\.\.255, for"):
        read(beginning(("Sub", 127.5), ("Div", 127.5)), tmp_path, scale="0..1")


def test_bytes_are_0_to_255(tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT)
    proto = convolutional(kind=TensorProto.UINT8, first=[cast], begin="float")
    with pytest.raises(InputError, match=r"imagenet was given, and the file takes 0\.\.255, for the input is uint8"):
        read(proto, tmp_path, scale="imagenet")


@pytest.mark.parametrize(("means", "inside"), [(MEAN[::-1], "bgr"), (MEAN * 255, "rgb")])
def test_a_color_against_the_means_inside_is_refused(tmp_path: Path, means: Any, inside: str) -> None:
    other = {"rgb": "bgr", "bgr": "rgb"}[inside]
    proto = beginning(("Sub", means), ("Div", STD * means.max() * 2))
    with pytest.raises(InputError, match=rf"^`color` {other} was given, and the file takes {inside}: .*leave `color`"):
        read(proto, tmp_path, color=other)
    assert read(proto, tmp_path, color=inside).model is not None


def test_a_scale_says_its_range() -> None:
    assert parse_scale("0.5/0.5", "rgb").range == parse_scale("127.5/127.5", "gray").range == "-1..1"
    assert parse_scale("imagenet", "bgr").range == "-1.804..2.64, -2.036..2.429, -2.118..2.249"
    assert parse_scale("0..255", "rgb").range == "0..255" and parse_scale("0/1", "rgb").range == "0..1"
    with pytest.raises(InputError, match=r"^`scale` '-1\.\.1' is written 0\.5/0\.5$"):
        parse_scale("-1..1", "rgb")


@pytest.mark.parametrize(
    "text", ["", "0-1", "1/0", "1,2/1", "nan/1", "1,2,3,4/1", "0.5/0.5,0.5", "0.5", "0.5/-1", "imagenet/2"]
)
def test_scales_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match=r"^`scale` "):
        parse_scale(text, "rgb")


def test_all_is_examined_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = saved(beginning(("Div", 255)), tmp_path / "theirs.onnx")
    assert [field for field, _ in examine(path, Asked(color="rgb"), None).needed] == ["scale", "preprocess"]
