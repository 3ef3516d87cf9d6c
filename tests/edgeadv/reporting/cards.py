"""What the tests of cards share: bundles, and what the commands measured of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgeadv.cli import main
from edgeadv.models.builder import PixelModel
from edgeadv_runtime import Bundle

ATTACKS = ("--attack", "fgsm,fgsm-rescaled,pgd-ce,pgd-margin,noise")


def command(*arguments: object) -> int:
    """The status with which a command ends."""
    return main([str(argument) for argument in arguments])


@dataclass(frozen=True)
class Measured:
    """A bundle and what the commands wrote of it."""

    bundle: Path
    results: Path
    bench: Path

    @property
    def files(self) -> tuple[Path, Path]:
        return self.results, self.bench

    def write(self, out: Path, *more: object) -> str:
        assert command("card", *self.files, "--bundle", self.bundle, "--out", out, *more) == 0
        return out.read_text(encoding="utf-8")


def measure(bundle: Path, folder: Path, *options: object) -> Measured:
    made = Measured(bundle, folder / "results.json", folder / "bench.json")
    assert command("evaluate", bundle, *options, "--out", made.results) == 0
    timed = ("--precision", "fp32", "--runs", "3", "--warm-up", "1", "--threads", "1")
    assert command("bench", bundle, *timed, "--out", made.bench) == 0
    return made


def of_int8(folder: Path, digits_bundle: Bundle) -> Measured:
    """A network in eight variants, three of which are scored, and one timed."""
    precisions = ("--precision", "fp32,fp16,int8-u8s8", "--eps", "0.05,0.1", "--limit", "320")
    return measure(digits_bundle.path, folder, "--data", "mnist5k", *precisions, *ATTACKS)


def of_masked(folder: Path, digits_model: PixelModel, digits_test: Any) -> Measured:
    """The same network, the logits so large that its softmax has no gradient: it hides them, and resists nothing."""
    from edgeadv_export import Origin, data_frames, export_bundle

    model = copy.deepcopy(digits_model)
    with torch.no_grad():
        model.net.head.weight *= 1000
        model.net.head.bias *= 1000
    bundle = export_bundle(
        model,
        folder / "masked.edgeadv",
        classes=digits_test.classes,
        preprocess=digits_test.preprocess,
        frames=data_frames(digits_test),
        variants=("fp32",),
        origin=Origin(title="hides", provenance={"recipe": {"recipe": "none", "teacher_worst_case": 0.99}}),
    )
    return measure(bundle.path, folder, "--data", "mnist5k", "--eps", "0.1", "--limit", "400", *ATTACKS)
