"""Images made on another network, and the advice to try them on a defended one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeadv.models.builder import PixelModel
from edgeadv_runtime.bundle.bundle import Bundle, Classes
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.records.results import Results

SCORE = ("--eps", "8/255", "--attack", "pgd-margin,linearity", "--backend", "torch,onnxruntime", "--precision", "fp32")


@pytest.fixture(scope="module")
def sibling(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: PixelModel,
    tiny_classes: Classes,
    tiny_preprocess: Preprocess,
    photographs: list[NDArray[np.uint8]],
) -> Bundle:
    """The tiny network with its last layer a little changed. Shared."""
    from edgeadv_export import Origin, export_bundle

    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        other.head.weight.mul_(1.5)
    out: Path = tmp_path_factory.mktemp("bundles") / "sibling.edgeadv"
    return export_bundle(
        other,
        out,
        classes=tiny_classes,
        preprocess=tiny_preprocess,
        frames=photographs,
        origin=Origin(title="sibling", provenance={}),
        variants=["fp32"],
    )


def test_images_of_another_network_are_rows_and_count_in_the_worst_case(
    cli: Callable[..., object], tiny_bundle: Bundle, sibling: Bundle, photos: Path
) -> None:
    scored = ("evaluate", tiny_bundle.path, "--data", photos, *SCORE)
    assert cli(*scored, "--out", "own.json").status == 0  # type: ignore[attr-defined]
    both = cli(*scored, "--transfer-from", sibling.path, "--out", "both.json")
    assert both.status == 0  # type: ignore[attr-defined]
    results = Results.load("both.json")
    name = f"transfer@{sibling.artifact_sha256('fp32')[:8]}"
    for row in results.select(attack=name):
        assert (row.threat, row.gradients, row.params.cumulative) == ("transfer", "graph of fp32 of sibling", True)
        (worst,) = results.select(attack="worst-case", backend=row.backend)
        assert name in (worst.params.attacks or ()) and worst.correct_top1 <= row.correct_top1
    assert len(results.select(attack=name)) == 2
    assert [item.attack for item in results.masking.evidence if item.rule == "transfer"] == [name]
    (before,) = Results.load("own.json").select(attack="worst-case", backend="torch")
    (after,) = results.select(attack="worst-case", backend="torch")
    assert after.correct_top1 <= before.correct_top1


def test_a_pack_carries_them(cli: Callable[..., object], tiny_bundle: Bundle, sibling: Bundle, photos: Path) -> None:
    made = cli(
        "attack",
        tiny_bundle.path,
        "--data",
        photos,
        "--eps",
        "8/255",
        "--attack",
        "fgsm",
        "--transfer-from",
        sibling.path,
        "--out",
        "p",
    )
    assert made.status == 0  # type: ignore[attr-defined]
    assert cli("evaluate", tiny_bundle.path, "--pack", "p", "--out", "r.json").status == 0  # type: ignore[attr-defined]
    assert Results.load("r.json").select(attack=f"transfer@{sibling.artifact_sha256('fp32')[:8]}")
    refused = cli("evaluate", tiny_bundle.path, "--pack", "p", "--transfer-from", sibling.path, "--out", "r.json")
    assert refused.status == 2 and "were settled with the pack" in refused.err  # type: ignore[attr-defined]


def test_the_network_itself_and_another_task_are_refused(
    cli: Callable[..., object], tiny_bundle: Bundle, rewritten: Callable[..., Path], photos: Path
) -> None:
    scored = ("evaluate", tiny_bundle.path, "--data", photos, *SCORE, "--out", "r.json", "--transfer-from")
    own = cli(*scored, tiny_bundle.path)
    assert own.status == 2 and "holds the network that is attacked" in own.err  # type: ignore[attr-defined]
    other = rewritten(classes=[{"id": entry.id + "x", "name": entry.name} for entry in tiny_bundle.manifest.classes])
    refused = cli(*scored, other)
    assert refused.status == 2 and "has other classes or another preprocessing" in refused.err  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("recipe", "advice"),
    [("papernot", "RUN/teacher"), ("at-pgd", "images that break an undefended one"), ("undefended", None)],
)
def test_it_is_advised_for_what_was_trained_to_withstand(
    recipe: str,
    advice: str | None,
    cli: Callable[..., object],
    rewritten: Callable[..., Path],
    sibling: Bundle,
    photos: Path,
) -> None:
    bundle = rewritten(provenance={"recipe": {"recipe": recipe}})
    scored = ("evaluate", bundle, "--data", photos, "--eps", "8/255", "--attack", "fgsm", "--out")
    told = cli(*scored, "a.json").out  # type: ignore[attr-defined]
    assert ("--transfer-from OTHER.edgeadv" in told) == (advice is not None)
    assert advice is None or advice in told
    assert "--transfer-from" not in cli(*scored, "b.json", "--transfer-from", sibling.path).out  # type: ignore[attr-defined]
