"""The study: figures against another library's attack and transforms, what survives an interruption, what the pages
say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchattacks
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from edgeadv.data.datasets import ImageSet, imagenet_classes, open_data
from edgeadv.models.builder import Architecture, save_weights
from edgeadv.reporting.study import FGSM_ALONE, entries, markdown, page
from edgeadv.workflows.study import choose_images, make_subjects, published_name, published_preprocess, run_study
from edgeadv_runtime.bundle.preprocess import Preprocess, to_tensor
from edgeadv_runtime.errors import InputError, SchemaError, StorageError
from edgeadv_runtime.files import sha256_file
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.statistics import wilson_interval
from edgeadv_runtime.records.study import Study

EPS = Eps.parse_list("1/255,8/255")
NAMES = ["timm/test_resnet", "timm/test_efficientnet"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def images(imagenet_photos: Path) -> ImageSet:
    return open_data(str(imagenet_photos), split="test").relabel(imagenet_classes())


@pytest.fixture(scope="module")
def arguments(images: ImageSet, imagenet_weights: dict[str, Path]) -> dict[str, Any]:
    """Both classifiers on 20 of the 24 photographs."""
    weights = ",".join(f"{name}={file}" for name, file in imagenet_weights.items())
    return {
        "subjects": make_subjects(NAMES, imagenet_classes(), weights=weights),
        "images": images,
        "n": 20,
        "eps": EPS,
        "seed": 3,
    }


@pytest.fixture(scope="module")
def study(arguments: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run_study(tmp_path_factory.mktemp("study") / "out", **arguments)


# preprocessing


def libraries_own(architecture: Architecture) -> Any:
    """Picture to normalised tensor, by the code of the library."""
    if architecture.source == "torchvision":
        return torchvision.models.get_model_weights(architecture.name)["DEFAULT"].transforms()
    config = resolve_data_config(
        pretrained_cfg=timm.get_pretrained_cfg(architecture.name).to_dict(), use_test_size=True
    )
    return create_transform(**config, is_training=False)


@pytest.mark.parametrize(
    ("name", "resize", "crop"),
    [
        ("resnet101", 232, 224),
        ("alexnet", 256, 224),
        ("regnet_y_400mf", 232, 224),
        ("efficientnet_b0", 256, 224),
        ("vit_h_14", 518, 518),
        ("timm/efficientnet_lite0", 256, 224),
        ("timm/test_resnet", 168, 160),
        ("timm/resnet50", 288, 288),
        ("timm/vit_base_patch16_224", 248, 224),
    ],
)
def test_preprocessing_is_what_the_library_publishes(name, resize, crop, photographs):
    architecture = Architecture.find(name, num_classes=1000)
    steps = published_preprocess(architecture)
    assert (steps.resize, steps.crop) == (resize, crop)
    theirs = libraries_own(architecture)
    mean, std = (np.reshape(v, (3, 1, 1)).astype(np.float32) for v in (architecture.mean, architecture.std))
    for frame in photographs[:4]:
        ours = (to_tensor(steps(frame, color_order="rgb")[None])[0] - mean) / std
        np.testing.assert_allclose(ours, theirs(Image.fromarray(frame)).numpy(), atol=1e-5)


def of_crop_mode(mode):
    return next(name for name in timm.list_models() if (c := timm.get_pretrained_cfg(name)) and c.crop_mode == mode)


def test_a_squashed_picture_is_a_stretched_one(photographs):
    architecture = Architecture.find(f"timm/{of_crop_mode('squash')}", num_classes=1000)
    steps = published_preprocess(architecture)
    assert steps.resize_mode == "stretch"
    mean, std = (np.reshape(v, (3, 1, 1)).astype(np.float32) for v in (architecture.mean, architecture.std))
    for frame in photographs[:4]:
        ours = (to_tensor(steps(frame, color_order="rgb")[None])[0] - mean) / std
        theirs = libraries_own(architecture)(Image.fromarray(frame)).numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_transform_that_is_no_resize_and_crop_is_refused():
    bordered = of_crop_mode("border")
    with pytest.raises(InputError, match=r"crop mode border.*state one with `preprocess`"):
        published_preprocess(Architecture.find(f"timm/{bordered}", num_classes=1000))
    # what the user states is taken
    (subject,) = make_subjects(
        [f"timm/{bordered}"], imagenet_classes(), weights="default", preprocess="resize=256,crop=224"
    )
    assert subject.preprocess == Preprocess(resize=256, crop=224) and not subject.published


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet101", "ResNet101_Weights.IMAGENET1K_V2"),
        ("alexnet", "AlexNet_Weights.IMAGENET1K_V1"),
        ("timm/resnet18", "timm/resnet18.a1_in1k"),
        ("timm/resnet18.tv_in1k", "timm/resnet18.tv_in1k"),
    ],
)
def test_default_weights_are_named(name, weights):
    (subject,) = make_subjects([name], imagenet_classes(), weights="default")
    assert published_name(subject.architecture) == weights
    assert subject.to_json()["weights"] == {"file": None, "name": weights}


# the choice of images


def test_images_are_chosen_by_seed(images):
    first, again, other = (choose_images(images, 12, seed=seed) for seed in (0, 0, 1))
    assert len(set(first.tolist())) == 12
    assert first.tolist() == again.tolist() != other.tolist()
    assert set(first.tolist()) < set(choose_images(images, 20, seed=0).tolist())


def test_more_images_than_there_are(images):
    with pytest.raises(InputError, match=r"`n` 25, but .* holds 24 images: ask for `n` 24 or fewer"):
        choose_images(images, 25, seed=0)


# the figures


class Normalised(nn.Module):
    def __init__(self, net: nn.Module, config: dict[str, Any]) -> None:
        super().__init__()
        self.net = net
        self.normalise = torchvision.transforms.Normalize(config["mean"], config["std"])

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(self.normalise(x))
        return logits


@pytest.mark.parametrize("position", [0, 1])
def test_counts_agree_with_torchattacks_and_timm(study, images, imagenet_weights, position):
    """Nothing of edgeadv here but the choice of photographs: timm's network and transform, torchattacks' FGSM."""
    name = NAMES[position]
    net = timm.create_model(name.removeprefix("timm/"), num_classes=1000)
    net.load_state_dict(torch.load(imagenet_weights[name], weights_only=True))
    config = resolve_data_config(model=net, use_test_size=True)
    model = Normalised(net, config).eval()
    transform = create_transform(**{**config, "mean": (0.0,) * 3, "std": (1.0,) * 3}, is_training=False)
    order = choose_images(images, 20, seed=3)
    x = torch.stack([transform(images.image(int(i))) for i in order])
    y = torch.from_numpy(images.labels[order])
    result = study.results[position]
    for eps in (None, *EPS):
        attacked = x if eps is None else torchattacks.FGSM(model, eps=eps.value)(x, y)
        best = model(attacked).topk(5).indices
        first, among5 = int((best[:, 0] == y).sum()), int((best == y[:, None]).any(dim=1).sum())
        (row,) = result.select(attack="clean" if eps is None else "fgsm", eps="0" if eps is None else eps.text)
        assert row.n == 20
        # a gradient near zero may have another sign
        assert abs(row.correct_top1 - first) <= 1 and abs(row.correct_top5 - among5) <= 1
    if position == 0:
        (clean,), (hit,) = result.select(attack="clean"), result.select(attack="fgsm", eps="8/255")
        assert clean.correct_top1 >= 14 > hit.correct_top1, "the attack did nothing: the comparison shows nothing"


def test_a_study_says_what_was_measured_on_what(study, arguments, imagenet_weights, images, tmp_path):
    assert [result.bundle.title for result in study.results] == NAMES
    for subject, result, name in zip(arguments["subjects"], study.results, NAMES, strict=True):
        # the hash that a bundle exported of these weights has
        save_weights(subject.load(), tmp_path / "weights.safetensors")
        digest = sha256_file(tmp_path / "weights.safetensors")
        assert result.bundle.weights_sha256 == digest == result.rows[0].artifact_sha256
        assert result.bundle.provenance["weights"]["sha256"] == sha256_file(imagenet_weights[name])
        assert {row.threat for row in result.rows} == {None, "white-box"}
        assert result.masking.verdict == "UNCHECKED"
        assert result.data.n == 20 and result.data.classes == 1000
    settings = study.settings
    assert (settings.seed, settings.eps, settings.attack) == (3, ("1/255", "8/255"), "fgsm")
    assert settings.data.name == Path(images.spec).name
    assert [entry.preprocess.resize for entry in settings.architectures] == [168, 168]
    assert json.dumps(Study.load(study.path).to_json()) == json.dumps(study.to_json())
    # no path of this machine
    assert str(Path(images.spec).parent) not in study.path.read_text()


def test_a_file_of_another_kind_or_without_its_keys_is_refused(study, tmp_path):
    value = json.loads(study.path.read_text())
    for change, says in (({"kind": "results"}, "is a 'results'"), ({"schema_version": 2}, "version 2")):
        (tmp_path / "study.json").write_text(json.dumps({**value, **change}))
        with pytest.raises(SchemaError, match=says):
            Study.load(tmp_path / "study.json")
    del value["results"][0]["rows"][0]["n"]
    (tmp_path / "study.json").write_text(json.dumps(value))
    with pytest.raises(SchemaError, match=r"study\.json is not a complete"):
        Study.load(tmp_path / "study.json")


# pages


def test_every_error_has_its_interval_and_every_attacked_one_its_verdict(study):
    rows = [line.split(" | ") for line in markdown(study).splitlines() if line.startswith("| timm")]
    assert len(rows) == 2 * 3
    for i, (title, eps, *figures, n, verdict) in enumerate(rows):
        result = study.results[i // 3]
        assert title == f"| {result.bundle.title}" and n == "20"
        attack = "clean" if eps == "no attack" else "fgsm"
        (row,) = result.select(attack=attack, eps="0" if attack == "clean" else eps)
        for correct, (error, interval) in zip(
            (row.correct_top1, row.correct_top5), (figures[:2], figures[2:]), strict=True
        ):
            low, high = wilson_interval(20 - correct, 20)
            assert (error, interval) == (f"{(20 - correct) / 20:.1%}", f"{100 * low:.1f}–{100 * high:.1f}%")
        assert verdict.strip(" |") == ("" if attack == "clean" else "UNCHECKED")


def test_both_pages_say_what_fgsm_alone_is_worth(study):
    text = markdown(study)
    words = re.sub(r"<[^>]*>", "", page(study))
    assert FGSM_ALONE in text and FGSM_ALONE.replace("`", "") in words
    for entry in entries(study):
        assert entry.judgement in text and entry.how in text and entry.how in words
        assert "resize=168," in entry.how and "the published transform" in entry.how
    assert words.count("masking check: UNCHECKED") == 2


def test_the_page_needs_nothing_but_itself(study):
    html = page(study)
    assert "<script" not in html and not re.search(r"(src|href)=.(?!data:|#)", html)
    assert html.count('class="curves"') == 2
    assert html == page(study)
    assert (study.path.parent / "study.html").read_text() == html
    assert (study.path.parent / "study.md").read_text() == markdown(study)


# interruption


def stops_before(name: str) -> Any:
    def progress(done: int, total: int, what: str) -> None:
        if what.startswith(name):
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_study_goes_on_with_the_next_classifier(study, arguments, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_study(out, **{**arguments, "progress": stops_before(NAMES[1])})
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    (kept,) = Study.load(tmp_path / "out.partial" / "study.json").results
    assert kept.rows == study.results[0].rows
    with pytest.raises(StorageError, match="continue it with `resume`"):
        run_study(out, **arguments)
    with pytest.raises(InputError, match="started with other settings"):
        run_study(out, **{**arguments, "seed": 4}, resume=True)
    asked: list[str] = []
    finished = run_study(out, **{**arguments, "progress": lambda done, total, what: asked.append(what)}, resume=True)
    assert set(asked) == {f"{NAMES[1]} (2 of 2)"}
    assert [result.rows for result in finished.results] == [result.rows for result in study.results]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in out.iterdir()) == ["study.html", "study.json", "study.md"]
    with pytest.raises(StorageError, match="exists: choose another `out`"):
        run_study(out, **arguments, resume=True)


def test_weights_that_do_not_fit_are_found_before_anything_is_measured(arguments, imagenet_weights, tmp_path):
    files = {NAMES[0]: imagenet_weights[NAMES[0]], NAMES[1]: imagenet_weights[NAMES[0]]}
    weights = ",".join(f"{name}={file}" for name, file in files.items())
    subjects = make_subjects(NAMES, imagenet_classes(), weights=weights)
    asked: list[str] = []
    with pytest.raises(InputError, match="does not fit the network"):
        run_study(tmp_path / "out", **{**arguments, "subjects": subjects, "progress": lambda *call: asked.append(call)})
    assert asked == [] and list(tmp_path.iterdir()) == []
