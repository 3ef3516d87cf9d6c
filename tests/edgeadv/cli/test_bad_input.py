"""What a user can get wrong: one line that helps, exit status 2, and not a file more or less than before."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from edgeadv_runtime.bundle.manifest import bundle_id
from tests.edgeadv.desk import Desk

CLASS = "n0000"


Arguments = list[Any]
Case = Callable[[Desk], Arguments]
CASES: list[Any] = []


def case(says: str) -> Callable[[Case], Case]:
    """Register a case: what it prepares is there before, and it returns the arguments of a command that must fail."""

    def register(function: Case) -> Case:
        CASES.append(pytest.param(function, says, id=function.__name__))
        return function

    return register


def edit(path: Path, change: Callable[[dict[str, Any]], object], *, sign: bool = False) -> Path:
    """Change a JSON file; ``sign`` gives a manifest the id that it then must have."""
    value = json.loads(path.read_text())
    change(value)
    if sign:
        value["bundle_id"] = bundle_id(value)
    path.write_text(json.dumps(value))
    return path.parent


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace_file(bundle: Path, name: str, content: bytes) -> None:
    """Put ``content`` into a bundle under a manifest that vouches for it."""
    (bundle / name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()

    def change(manifest: dict[str, Any]) -> None:
        for entry in (*manifest["variants"].values(), manifest["weights"], manifest["golden"]):
            if entry["file"] == name:
                entry["sha256"] = digest

    edit(bundle / "manifest.json", change, sign=True)


def verify(desk: Desk) -> Arguments:
    return ["verify", desk.bundle()]


def evaluate(desk: Desk, *more: object, out: str = "out.json") -> Arguments:
    """Score the photographs; later options win over earlier ones."""
    data = ["--data", desk.photos(), "--eps", "8/255", "--attack", "fgsm"]
    return ["evaluate", desk.bundle(), *data, "--out", out, *more]


def attack(desk: Desk, *more: object, out: str = "out.pack") -> Arguments:
    return [
        "attack",
        desk.bundle(),
        "--data",
        desk.photos(),
        "--eps",
        "8/255",
        "--attack",
        "fgsm",
        "--out",
        out,
        *more,
    ]


def score(desk: Desk, *more: object) -> Arguments:
    return ["evaluate", desk.bundle(), "--pack", desk.pack(), "--out", "out.json", *more]


def train(desk: Desk, *more: object, out: str = "out") -> Arguments:
    return [
        "train",
        "--data",
        desk.split(),
        "--arch",
        "timm/test_resnet",
        "--epochs",
        "1",
        "--batch-size",
        "16",
        "--out",
        out,
        *more,
    ]


def distill(desk: Desk, *more: object, out: str = "out") -> Arguments:
    return ["distill", *train(desk, *more, out=out)[1:]]


def export(desk: Desk, weights: Path, *more: object) -> Arguments:
    """Export a file of weights for the photographs' ten classes."""
    classes = desk.file("classes.tsv", "".join(f"n{i:04d}\tclass {i}\n" for i in range(10)))
    return [
        "export",
        "--arch",
        "timm/test_resnet",
        "--weights",
        weights,
        "--classes",
        classes,
        "--preprocess",
        "resize=32,crop=32",
        "--golden",
        desk.photos(),
        "--out",
        "out.edgeadv",
        *more,
    ]


def weights(desk: Desk, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """The tiny network's weights as a file of their own, changed."""
    state = safetensors.torch.load_file(desk.tiny_bundle / "weights.safetensors")
    change(state)
    path = desk.home / "weights.safetensors"
    safetensors.torch.save_file(state, path)
    return path


class Code:
    """What a pickle of makes whoever loads it without care create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


# bundles


@case("no bundle manifest there")
def missing_bundle(desk):
    return ["verify", "nowhere.edgeadv"]


@case("is a file: give the bundle's folder")
def bundle_that_is_a_file(desk):
    return ["verify", desk.file("model.edgeadv")]


@case("not a readable bundle manifest")
def manifest_that_is_not_json(desk):
    (desk.bundle() / "manifest.json").write_text('{"kind": "bundle",')
    return verify(desk)


@case("is not a complete bundle manifest")
def manifest_that_is_a_list(desk):
    (desk.bundle() / "manifest.json").write_text("[]")
    return verify(desk)


@case("schema version None")
def manifest_that_is_empty(desk):
    (desk.bundle() / "manifest.json").write_text("{}")
    return verify(desk)


@case("schema version 2")
def bundle_of_another_version(desk):
    edit(desk.bundle() / "manifest.json", lambda m: m.update(schema_version=2), sign=True)
    return verify(desk)


@case("is a 'results'")
def bundle_of_another_kind(desk):
    edit(desk.bundle() / "manifest.json", lambda m: m.update(kind="results"), sign=True)
    return verify(desk)


@case("was changed after export")
def manifest_that_was_edited(desk):
    edit(desk.bundle() / "manifest.json", lambda m: m.update(title="a better model"))
    return verify(desk)


@case("not the manifest you expect")
def wrong_expected_hash(desk):
    return [*verify(desk), "--expected-sha256", "0" * 64]


@case("model.fp32.onnx is damaged")
def flipped_bit_in_an_artefact(desk):
    flip(desk.bundle() / "model.fp32.onnx")
    return verify(desk)


@case("weights.safetensors is damaged")
def flipped_bit_in_the_weights(desk):
    flip(desk.bundle() / "weights.safetensors")
    return evaluate(desk)


@case("golden.npz is missing")
def file_missing_from_a_bundle(desk):
    (desk.bundle() / "golden.npz").unlink()
    return verify(desk)


@case("a path outside the folder")
def path_outside_the_bundle(desk):
    desk.file("secret.onnx")
    edit(desk.bundle() / "manifest.json", lambda m: m["variants"]["fp32"].update(file="../secret.onnx"), sign=True)
    return verify(desk)


@case("not a plain file")
def link_out_of_the_bundle(desk):
    file = desk.bundle() / "model.fp32.onnx"
    (desk.home / "elsewhere.onnx").write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(desk.home / "elsewhere.onnx")
    return verify(desk)


@case("is not readable as ONNX")
def artefact_that_is_not_onnx(desk):
    replace_file(desk.bundle(), "model.fp32.onnx", b"not a graph")
    return verify(desk)


@case("not a golden file")
def golden_file_that_is_not_one(desk):
    replace_file(desk.bundle(), "golden.npz", b"not an archive")
    return verify(desk)


@case("not a golden file")
def golden_file_that_is_empty(desk):
    replace_file(desk.bundle(), "golden.npz", b"")
    return verify(desk)


@case("not a golden file")
def golden_file_that_is_cut_short(desk):
    replace_file(desk.bundle(), "golden.npz", (desk.bundle() / "golden.npz").read_bytes()[:1000])
    return ["bench", desk.bundle(), "--out", "out.json"]


@case("is not readable as ONNX")
def graph_of_a_bundle_that_is_garbage(desk):
    replace_file(desk.bundle(), "model.fp32.onnx", b"garbage")
    return evaluate(desk)


@case("its speed is not that of fp16")
def speed_of_fp16_in_torch(desk):
    return ["bench", desk.bundle(), "--backend", "torch", "--precision", "fp16", "--out", "bench-torch.json"]


@case("carries no variant 'int8-s8s8'")
def variant_that_a_bundle_lacks(desk):
    return ["bundle", "slim", desk.bundle(), "--variant", "int8-s8s8", "--out", "out.edgeadv"]


@case("exists: choose another --out")
def slim_onto_a_bundle_that_is_there(desk):
    return ["bundle", "slim", desk.bundle(), "--variant", "fp16", "--out", desk.bundle()]


# data


@case("neither a folder nor one of mnist5k")
def missing_data_folder(desk):
    return evaluate(desk, "--data", "nowhere")


@case("neither a folder nor one of mnist5k")
def data_that_is_a_file(desk):
    return evaluate(desk, "--data", desk.file("photos.zip"))


@case("pass --download")
def data_set_that_was_not_downloaded(desk):
    return evaluate(desk, "--data", "cifar10", "--data-root", "empty")


def damage(desk: Desk, content: Callable[[bytes], bytes]) -> str:
    """Damage one photograph of 72, which is more than 1%; returns its name."""
    first = min(desk.photos().rglob("*.png"))
    first.write_bytes(content(first.read_bytes()))
    return first.name


@case("1 of 72 images are unreadable, e.g. ")
def image_that_is_cut_short(desk):
    damage(desk, lambda data: data[: len(data) // 2])
    return evaluate(desk)


@case("1 of 72 images are unreadable, e.g. ")
def image_of_no_bytes(desk):
    damage(desk, lambda data: b"")
    return evaluate(desk)


@case("1 of 72 images are unreadable, e.g. ")
def image_that_is_a_text(desk):
    damage(desk, lambda data: b"not a picture")
    return evaluate(desk)


@case("1 of 72 images are unreadable, e.g. ")
def unreadable_image_in_a_pack(desk):
    damage(desk, lambda data: b"")
    return attack(desk)


@case("no image could be scored")
def only_unreadable_images(desk):
    for file in desk.photos().rglob("*.png"):
        file.write_bytes(b"")
    return evaluate(desk, "--allow-unreadable")


@case("class(es) that the model does not know: zebra")
def class_that_the_model_does_not_know(desk):
    shutil.copytree(next(desk.photos().iterdir()), desk.photos() / "zebra")
    return evaluate(desk)


@case("holds no images")
def class_folder_without_images(desk):
    (desk.photos() / "n0009").mkdir(exist_ok=True)
    for file in (desk.photos() / "n0009").iterdir():
        file.unlink()
    return evaluate(desk)


@case("holds 1 class folder(s)")
def only_one_class_folder(desk):
    shutil.copytree(next(desk.photos().iterdir()), desk.home / "data" / CLASS)
    return evaluate(desk, "--data", "data")


@case("holds 0 class folder(s)")
def folder_without_class_folders(desk):
    (desk.home / "data").mkdir()
    return evaluate(desk, "--data", "data")


@case("training needs")
def training_on_a_folder_that_is_not_split(desk):
    return train(desk, "--data", desk.photos())


@case("has no test part")
def training_without_a_test_part(desk):
    shutil.rmtree(desk.split() / "test")
    return ["train", "--data", desk.home / "split", *train_rest()]


def train_rest() -> Arguments:
    return ["--arch", "timm/test_resnet", "--epochs", "1", "--batch-size", "16", "--out", "out"]


@case("class(es) that the model does not know: c")
def part_to_test_with_a_class_of_its_own(desk):
    shutil.copytree(desk.split() / "test" / "b", desk.home / "split" / "test" / "c")
    return ["train", "--data", desk.home / "split", *train_rest()]


@case("training images are unreadable, e.g. ")
def unreadable_training_images(desk):
    for file in (desk.split() / "train" / "a").iterdir():
        file.write_bytes(b"")
    return ["train", "--data", desk.home / "split", *train_rest()]


@case("test images of")
def unreadable_test_images(desk):
    for file in (desk.split() / "test").rglob("*.png"):
        file.write_bytes(b"")
    return ["train", "--data", desk.home / "split", *train_rest()]


# budgets, names and numbers


def options(name: str, says: str, base: Callable[..., Arguments], *more: str) -> None:
    """Register a command that fails by its options alone."""

    def function(desk: Desk) -> Arguments:
        return base(desk, *more)

    function.__name__ = name
    case(says)(function)


options("eps_below_zero", "not in (0, 1]", evaluate, "--eps=-0.03")
options("eps_that_is_a_negative_fraction", "is not a number", evaluate, "--eps=-8/255")
options("eps_of_zero", "not in (0, 1]", evaluate, "--eps", "0")
options("eps_of_8", "did you mean 8/255?", evaluate, "--eps", "8")
options("eps_that_is_nan", "not in (0, 1]", evaluate, "--eps", "nan")
options("eps_over_zero", "is not a number", evaluate, "--eps", "8/0")
options("eps_that_is_garbage", "is not a number", attack, "--eps", "a lot")
options("eps_that_is_empty", "is not a number", attack, "--eps", "")
options("eps_twice", "names a budget twice", evaluate, "--eps", "8/255,4/255,8/255")
options("eps_in_another_order", "not in ascending order: write 4/255,8/255", evaluate, "--eps", "8/255,4/255")
options("eps_twice_in_other_words", "names a budget twice", evaluate, "--eps", "0.2,1/5")
options("eps_below_a_grey_level", "less than one grey level", attack, "--eps", "0.001")
options(
    "target_of_none",
    "--target is for fgsm and fgsm-rescaled, which do not run",
    evaluate,
    "--attack",
    "pgd-margin",
    "--target",
    "cat",
)
options("unknown_attack", "unknown attack autoattack", evaluate, "--attack", "autoattack")
options("unknown_suite", "--suite 'slow' is not one of fast, standard, full", evaluate, "--suite", "slow")
options("queries_without_square", "--queries is for square", evaluate, "--attack", "fgsm", "--queries", "9")
options("queries_of_zero", "queries", evaluate, "--queries", "0")
options("attack_twice", "without gaps or repetitions", attack, "--attack", "fgsm,fgsm")
options("no_attack", "without gaps or repetitions", attack, "--attack", "")
options("unknown_target", "class 'zebra' is not one of", attack, "--target", "zebra")
options("unknown_backend", "--backend 'tensorflow' is not one of", evaluate, "--backend", "tensorflow")
options("unknown_precision", "carries no variant 'fp8'", evaluate, "--precision", "fp8")
options("unknown_provider", "--provider 'tpu' is not one of", evaluate, "--provider", "tpu")
options("limit_of_zero", "--limit must be at least 1", evaluate, "--limit", "0")
options("limit_below_zero", "--limit must be at least 1", attack, "--limit", "-3")
options("threads_of_zero", "threads", evaluate, "--threads", "0")
options("threads_of_zero_for_torch", "threads", evaluate, "--threads", "0", "--backend", "torch", "--precision", "fp32")
options("workers_below_zero", "workers", evaluate, "--workers", "-1")
options("workers_below_zero_in_attack", "workers", attack, "--workers", "-1")
options("examples_below_zero", "examples", evaluate, "--examples", "-1")
options("unknown_architecture", "did you mean", train, "--arch", "regnet_y_40mf")
options("architecture_that_is_no_classifier", "unknown architecture", train, "--arch", "fasterrcnn_resnet50_fpn")
options("architecture_too_deep_for_small_images", "alexnet", train, "--arch", "alexnet")
options("no_epochs", "epochs must be at least 1", train, "--epochs", "0")
options("batches_of_one", "batch-size must be at least 2", train, "--batch-size", "1")
options("batch_larger_than_the_data", "do not fill one batch", train, "--batch-size", "4000")
options("learning_rate_of_zero", "lr must be in", train, "--lr", "0")
options("weight_decay_below_zero", "--weight-decay must be", train, "--weight-decay", "-1")
options("unknown_augmentation", "augment is one of none, crop-flip", train, "--augment", "mixup")
options("training_limit_of_zero", "--limit must be at least 1", train, "--limit", "0")
options("seed_below_zero", "seed must be at least 0", train, "--seed", "-1")
options("training_workers_below_zero", "workers must be at least 0", train, "--workers", "-1")
options("upsampling_by_zero", "upsample must be at least 1", train, "--upsample", "0")
options("preprocessing_that_is_garbage", "--preprocess is written", train, "--preprocess", "224")
options("crop_larger_than_the_picture", "is larger than resize", train, "--preprocess", "resize=32,crop=64")
options("preprocessing_that_no_image_fits", "unreadable", train, "--preprocess", "crop=64")
options("unknown_weights_map", "--weights-map 'by-luck'", train, "--weights-map", "by-luck")
options("missing_start_weights", "does not exist", train, "--weights", "nowhere.pth")
options(
    "unknown_training_recipe",
    "recipe 'papernot' is not one of undefended, at-fgsm, n-fgsm, fgsm-pgi, at-pgd, trades, adr, awp (edgeadv distill",
    train,
    "--recipe",
    "papernot",
)
options("adversarial_training_without_a_budget", "at-pgd needs --eps, e.g. 8/255", train, "--recipe", "at-pgd")
options(
    "budget_without_adversarial_training", "add --recipe at-pgd, n-fgsm, trades or another", train, "--at-eps", "8/255"
)
options(
    "steps_without_adversarial_training", "add --recipe at-pgd, n-fgsm, trades or another", train, "--at-steps", "3"
)
options("adversarial_budget_in_grey_levels", "did you mean 8/255?", train, "--recipe", "at-pgd", "--at-eps", "8")
options("adversarial_budget_of_zero", "is not in (0, 1]", train, "--recipe", "at-fgsm", "--at-eps", "0")
options(
    "adversarial_budget_that_is_garbage",
    "is not a number: write it 8/255",
    train,
    "--recipe",
    "at-pgd",
    "--at-eps",
    "small",
)
options("adversarial_budget_that_is_nan", "is not in (0, 1]", train, "--recipe", "at-pgd", "--at-eps", "nan")
options(
    "no_adversarial_steps",
    "at least 1 step, not 0",
    train,
    "--recipe",
    "at-pgd",
    "--at-eps",
    "8/255",
    "--at-steps",
    "0",
)
options(
    "steps_of_a_recipe_that_takes_one",
    "at-fgsm takes one step",
    train,
    "--recipe",
    "at-fgsm",
    "--at-eps",
    "8/255",
    "--at-steps",
    "2",
)
options(
    "beta_without_trades",
    "--beta belongs to --recipe trades and fgsm-pgi",
    train,
    "--recipe",
    "at-fgsm",
    "--at-eps",
    "8/255",
    "--beta",
    "6",
)
options(
    "smoothing_of_1",
    "label smoothing must be in [0, 1)",
    train,
    "--recipe",
    "at-fgsm",
    "--at-eps",
    "8/255",
    "--label-smoothing",
    "1",
)
options(
    "smoothing_without_a_recipe", "--label-smoothing belong to adversarial training", train, "--label-smoothing", "0.1"
)
options("average_of_decay_1", "ema must be in [0, 1)", train, "--ema", "1")
options("clip_of_zero", "clip must be above 0", train, "--clip", "0")
options("holdout_of_most_images", "leaves too few", train, "--holdout", "3999")
options(
    "schedule_that_is_none",
    "--schedule is one of one-cycle, cosine, steps, not 'linear'",
    train,
    "--schedule",
    "linear",
)
options(
    "labels_of_no_average", "--ema 0 leaves adr without", train, "--recipe", "adr", "--at-eps", "8/255", "--ema", "0"
)
options(
    "moved_weights_that_are_compiled",
    "--compile does not go with awp",
    train,
    "--recipe",
    "awp",
    "--at-eps",
    "8/255",
    "--compile",
)
options(
    "perturbations_that_cannot_follow",
    "--augment trivial moves images where fgsm-pgi cannot follow: none or crop-flip",
    train,
    "--recipe",
    "fgsm-pgi",
    "--at-eps",
    "8/255",
    "--augment",
    "trivial",
)
options("holdout_below_zero", "holdout must be at least 0", train, "--holdout", "-1")
options("time_limit_without_a_unit", "is not a time such as 90s, 9m or 2h", train, "--time-limit", "9")
options(
    "recipe_of_train_for_distill",
    "'trades' is not one of papernot, soft-label, ard, rslad; edgeadv train has",
    distill,
    "--recipe",
    "trades",
    "--at-eps",
    "8/255",
)
options("bundle_where_none_can_be", "--export /proc/x.edgeadv: ", distill, "--export", "/proc/x.edgeadv")


@case("is the folder of the images: choose another")
def run_among_the_images(desk: Desk) -> Arguments:
    return train(desk, out=str(desk.split()))


@case("is a training run and no bundle: edgeadv export makes one of it")
def run_for_a_bundle(desk: Desk) -> Arguments:
    desk.file("run.json", "{}")
    return ["verify", "."]


@case("is a file: give the bundle's folder")
def file_of_a_bundle(desk: Desk) -> Arguments:
    return ["verify", desk.file("model.fp32.onnx", "")]


options("robust_distillation_without_a_budget", "ard needs --eps, e.g. 8/255", distill, "--recipe", "ard")
options("budget_of_papernot", "belong to --recipe ard and rslad", distill, "--at-eps", "8/255")
options(
    "robust_teacher_of_soft_label",
    "belong to --recipe ard and rslad",
    distill,
    "--recipe",
    "soft-label",
    "--teacher-recipe",
    "trades",
)
options(
    "unknown_teacher_recipe",
    "--teacher-recipe 'papernot' is not one of at-fgsm, n-fgsm, fgsm-pgi, at-pgd, trades",
    distill,
    "--recipe",
    "rslad",
    "--at-eps",
    "8/255",
    "--teacher-recipe",
    "papernot",
)
options(
    "teacher_without_robustness",
    "--teacher-recipe undefended has no robustness",
    distill,
    "--recipe",
    "rslad",
    "--at-eps",
    "8/255",
    "--teacher-recipe",
    "undefended",
)
options(
    "robust_distillation_by_train",
    "edgeadv distill has papernot, soft-label, ard, rslad",
    train,
    "--recipe",
    "rslad",
)
options("temperature_of_zero", "temperature must be from 1", distill, "-T", "0")
options("temperature_that_is_nan", "temperature must be a finite number", distill, "-T", "nan")
options("alpha_of_2", "alpha must be in [0, 1]", distill, "--recipe", "soft-label", "--alpha", "2")
options("unknown_recipe", "recipe 'carlini' is not", distill, "--recipe", "carlini")
options("missing_teacher", "no training run there", distill, "--teacher", "nowhere")
options("papernot_with_another_teacher", "use --recipe soft-label", distill, "--teacher-arch", "timm/test_vit")


@case("CUDAExecutionProvider")
def cuda_for_onnxruntime_on_a_cpu(desk):
    return score(desk, "--provider", "cuda")


@case("finds no CUDA device")
def cuda_for_torch_on_a_cpu(desk):
    return score(desk, "--provider", "cuda", "--backend", "torch", "--precision", "fp32")


@case("finds no CUDA device")
def cuda_for_an_attack_on_a_cpu(desk):
    return attack(desk, "--provider", "cuda")


@case("finds no CUDA device")
def cuda_for_verify_with_torch_on_a_cpu(desk):
    return [*verify(desk), "--backend", "torch", "--precision", "fp32", "--provider", "cuda"]


@case("batches are distinct whole numbers from 1")
def batch_of_zero(desk):
    return ["bench", desk.bundle(), "--batch", "0", "--out", "out.json"]


@case("--batch '1,x' is a comma-separated list")
def batch_that_is_garbage(desk):
    return ["bench", desk.bundle(), "--batch", "1,x", "--out", "out.json"]


@case("rate must be above 0 Hz")
def rate_of_zero(desk):
    return ["bench", desk.bundle(), "--rate", "0", "--out", "out.json"]


@case("--runs")
def bench_without_runs(desk):
    return ["bench", desk.bundle(), "--runs", "0", "--out", "out.json"]


# what belongs together and what does not


@case("was not made from the images of")
def pack_with_other_data(desk):
    """As many of the same names and labels, one pixel apart."""
    picture = min(desk.photos().rglob("*.png"))
    pixels = np.array(Image.open(picture))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(picture)
    return score(desk, "--data", desk.photos())


@case("was not made from the images of")
def pack_with_less_data(desk):
    min(desk.photos().rglob("*.png")).unlink()
    return score(desk, "--data", desk.photos())


@case("class(es) that the model does not know")
def pack_with_data_of_other_classes(desk):
    min(desk.photos().iterdir()).rename(desk.photos() / "m0000")
    return score(desk, "--data", desk.photos())


@case("takes --data with --eps, or --pack")
def neither_data_nor_pack(desk):
    return ["evaluate", desk.bundle(), "--out", "out.json"]


@case("--data needs --eps")
def data_without_eps(desk):
    return ["evaluate", desk.bundle(), "--data", desk.photos(), "--out", "out.json"]


@case("were settled with the pack")
def pack_with_eps(desk):
    return score(desk, "--eps", "8/255")


@case("were settled with the pack")
def pack_with_limit(desk):
    return score(desk, "--limit", "10")


@case("were settled with the pack")
def pack_with_gradients(desk):
    return score(desk, "--gradients", "float16")


def in_precision(desk, command, precision):
    return [command, desk.bundle(), "--data", desk.photos(), "--eps", "8/255", "--gradients", precision, "--out", "new"]


@case("--gradients 'float8' is not one of float32, tf32, float16")
def gradients_of_another_precision(desk):
    return in_precision(desk, "evaluate", "float8")


@case("--gradients 'float8' is not one of float32, tf32, float16")
def pack_to_make_with_gradients_of_another_precision(desk):
    return in_precision(desk, "attack", "float8")


@case("--gradients float16 needs a GPU: add --provider cuda, or leave it out")
def float16_without_a_gpu(desk):
    return in_precision(desk, "evaluate", "float16")


@case("--gradients tf32 needs a GPU: add --provider cuda, or leave it out")
def tf32_without_a_gpu(desk):
    return in_precision(desk, "evaluate", "tf32")


@case("--gradients float16 needs a GPU: add --provider cuda, or leave it out")
def pack_to_make_in_float16_without_a_gpu(desk):
    return in_precision(desk, "attack", "float16")


@case("pgd-margin needs gradients, which were settled with the pack: only square, noise can be added")
def pack_with_an_attack_that_needs_gradients(desk):
    return score(desk, "--attack", "square,pgd-margin")


@case("--queries needs --attack square")
def pack_with_queries_and_no_square(desk):
    return score(desk, "--queries", "10")


@case("--workers, --download and --data-root are for --data")
def pack_with_options_of_data(desk):
    return score(desk, "--download")


@case("attack pack")
def missing_pack(desk):
    return ["evaluate", desk.bundle(), "--pack", "nowhere.pack", "--out", "out.json"]


@case("shard-00001.npz is missing or damaged")
def missing_shard(desk):
    (desk.pack() / "shard-00001.npz").unlink()
    return score(desk)


@case("shard-00000.npz is damaged")
def flipped_bit_in_a_shard(desk):
    flip(desk.pack() / "shard-00000.npz")
    return score(desk)


def resigned_shard(desk: Desk, content: bytes) -> Arguments:
    (desk.pack() / "shard-00000.npz").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    edit(desk.pack() / "pack.json", lambda p: p["shards"][0].update(sha256=digest))
    return score(desk)


@case("not a shard of an attack pack")
def shard_that_is_not_one(desk):
    return resigned_shard(desk, b"not an archive")


@case("not a shard of an attack pack")
def shard_that_is_empty(desk):
    return resigned_shard(desk, b"")


@case("not a shard of an attack pack")
def shard_that_is_cut_short(desk):
    return resigned_shard(desk, (desk.pack() / "shard-00000.npz").read_bytes()[:3000])


@case("is cut short: its shards hold 64 of 72 images")
def pack_without_its_last_shards(desk):
    edit(desk.pack() / "pack.json", lambda p: p["shards"].pop())
    return score(desk)


@case("does not fit its pack: shapes or labels are wrong")
def shard_with_labels_out_of_range(desk):
    with np.load(desk.pack() / "shard-00000.npz") as shard:
        arrays = dict(shard)
    arrays["labels"] = arrays["labels"] + 10
    out = desk.home / "shard.npz"
    np.savez(out, **arrays)
    content = out.read_bytes()
    out.unlink()
    return resigned_shard(desk, content)


@case("not a shard of an attack pack")
def shard_with_pickled_code(desk):
    out = desk.home / "shard.npz"
    np.savez(out, index=np.array([Code(desk.home / "code-ran")], dtype=object), allow_pickle=True)
    content = out.read_bytes()
    out.unlink()
    return resigned_shard(desk, content)


@case("schema version 9")
def pack_of_another_version(desk):
    edit(desk.pack() / "pack.json", lambda p: p.update(schema_version=9))
    return score(desk)


@case("a path outside the folder")
def path_outside_the_pack(desk):
    desk.file("secret.npz")
    edit(desk.pack() / "pack.json", lambda p: p["shards"][0].update(file="../secret.npz"))
    return score(desk)


@case("was made for another model (weights_sha256 differs")
def pack_for_another_model(desk):
    edit(desk.pack() / "pack.json", lambda p: p.update(weights_sha256="0" * 64))
    return score(desk)


@case("pack.json is not a complete attack pack")
def pack_without_attacks(desk):
    edit(desk.pack() / "pack.json", lambda p: p.pop("attacks"))
    return score(desk)


@case("exists: choose another --out")
def attack_onto_a_pack_that_is_there(desk):
    return attack(desk, out=str(desk.pack()))


@case("holds an unfinished pack: continue it with --resume")
def attack_onto_an_unfinished_pack(desk):
    (desk.home / "out.pack.partial").mkdir()
    desk.file("out.pack.partial/plan.json", "{}")
    return attack(desk)


@case("was started with other settings")
def resume_of_a_pack_with_other_settings(desk):
    (desk.home / "out.pack.partial").mkdir()
    desk.file("out.pack.partial/plan.json", "{}")
    return attack(desk, "--resume")


@case("holds an unfinished evaluation: continue it with --resume")
def results_onto_an_unfinished_evaluation(desk):
    (desk.home / "out.json.partial").mkdir()
    desk.file("out.json.partial/plan.json", "{}")
    return score(desk)


@case("was started with other settings (")
def resume_of_an_evaluation_with_other_settings(desk):
    (desk.home / "out.json.partial").mkdir()
    desk.file("out.json.partial/plan.json", "{}")
    # not an empty one: that would be removed
    desk.file("out.json.partial/batch-000000.npz")
    return score(desk, "--resume")


@case("is a folder: name the file to write")
def results_onto_a_folder(desk):
    return evaluate(desk, out=".")


# weights and runs


@case("holds NaN in ")
def weights_that_are_nan(desk):
    def spoil(state: dict[str, torch.Tensor]) -> None:
        next(tensor for tensor in state.values() if tensor.is_floating_point()).view(-1)[0] = float("nan")

    return export(desk, weights(desk, spoil))


@case("does not fit the network; missing: ")
def weights_of_other_names(desk):
    def rename(state: dict[str, torch.Tensor]) -> None:
        for name in list(state)[::2]:
            state[f"backbone.{name}"] = state.pop(name)

    return export(desk, weights(desk, rename))


@case("does not fit the network; shape: ")
def weights_of_another_shape(desk):
    def widen(state: dict[str, torch.Tensor]) -> None:
        name = next(name for name, tensor in state.items() if tensor.ndim == 4)
        state[name] = torch.zeros(1, 2, 3, 3)

    return export(desk, weights(desk, widen))


@case("it holds Python objects or is damaged")
def weights_with_pickled_code(desk):
    return export(desk, desk.file("weights.pth", pickle.dumps({"w": Code(desk.home / "code-ran")})))


@case("it holds Python objects or is damaged")
def weights_with_code_in_a_torch_file(desk):
    torch.save({"w": Code(desk.home / "code-ran")}, desk.home / "weights.pth")
    return export(desk, desk.home / "weights.pth")


@case("not a state dict")
def weights_that_are_one_tensor(desk):
    torch.save(torch.zeros(3), desk.home / "weights.pth")
    return export(desk, desk.home / "weights.pth")


@case("weights.pth is not")
def weights_that_are_garbage(desk):
    return export(desk, desk.file("weights.pth", b"garbage"))


@case("weights.pth is not")
def weights_that_are_empty(desk):
    return export(desk, desk.file("weights.pth", b""))


@case("weights.pth is not")
def weights_that_are_cut_short(desk):
    torch.save({"w": torch.zeros(100_000)}, desk.home / "weights.pth")
    return export(desk, desk.file("weights.pth", (desk.home / "weights.pth").read_bytes()[:200_000]))


@case("does not exist")
def missing_weights(desk):
    return export(desk, Path("nowhere.pth"))


@case("class 3 is written")
def classes_that_are_garbage(desk):
    arguments = export(desk, desk.tiny_bundle / "weights.safetensors")
    return [*arguments, "--classes", desk.file("bad.tsv", "a\tA\nb\tB\nc\tC\nd D\n")]


@case("at least two distinct ids")
def classes_with_one_id_twice(desk):
    arguments = export(desk, desk.tiny_bundle / "weights.safetensors")
    return [*arguments, "--classes", desk.file("bad.tsv", "".join("n0000\tx\n" for _ in range(10)))]


@case("is not a readable image")
def golden_frame_that_is_unreadable(desk):
    (desk.home / "golden").mkdir()
    desk.file("golden/a.png", b"")
    return [*export(desk, desk.tiny_bundle / "weights.safetensors"), "--golden", "golden"]


@case("export also needs")
def export_of_nothing(desk):
    return ["export", "--out", "out.edgeadv"]


@case("no training run there")
def export_of_a_folder_without_a_run(desk):
    return ["export", desk.photos(), "--out", "out.edgeadv"]


@case("is not finished: continue it with --resume")
def export_of_an_unfinished_run(desk):
    (desk.run() / "run.json").rename(desk.run() / "state.bin")
    return ["export", desk.run(), "--out", "out.edgeadv"]


@case("is not finished: continue it with --resume")
def export_of_an_unfinished_distillation(desk):
    (desk.home / "distilled").mkdir()
    desk.run().rename(desk.home / "distilled" / "teacher")
    return ["export", "distilled", "--out", "out.edgeadv"]


@case("is not what this run wrote")
def export_of_a_run_with_other_weights(desk):
    flip(desk.run() / "weights.safetensors")
    return ["export", desk.run(), "--out", "out.edgeadv"]


@case("of schema version 7")
def export_of_a_run_of_another_version(desk):
    edit(desk.run() / "run.json", lambda info: info.update(schema_version=7))
    return ["export", desk.run(), "--out", "out.edgeadv"]


@case("exists: choose another --out, or pass --overwrite")
def export_onto_a_bundle_that_is_there(desk):
    return ["export", desk.run(), "--out", desk.bundle()]


@case("exists and is not a bundle: it is not replaced")
def export_over_something_else(desk):
    return ["export", desk.run(), "--out", desk.photos(), "--overwrite"]


@case("is no variant: choose from fp32, fp16, int8-s8s8, int8-u8s8")
def export_of_an_unknown_precision(desk):
    return ["export", desk.run(), "--precision", "fp32,int4", "--out", "out.edgeadv"]


@case("cannot be given beside a run")
def export_of_a_run_with_weights_too(desk):
    return ["export", desk.run(), "--weights", "default", "--out", "out.edgeadv"]


def other_classes(desk: Desk) -> Path:
    """The training images under other class ids, in a folder of the same name."""
    other = desk.home / "other" / "split"
    for part in ("train", "test"):
        for class_id, name in (("a", "c"), ("b", "d")):
            shutil.copytree(desk.split() / part / class_id, other / part / name)
    return other


@case("holds a finished run: choose another --out")
def train_onto_a_finished_run(desk):
    return train(desk, out=str(desk.run()))


@case("holds a finished run: choose another --out")
def distill_onto_a_finished_run(desk):
    return distill(desk, out=str(desk.run()))


@case("holds a finished run with other settings")
def resume_of_a_finished_run_with_another_rate(desk):
    return train(desk, "--resume", "--lr", "0.5", out=str(desk.run()))


@case("holds a finished run with other settings")
def resume_of_a_finished_run_with_another_architecture(desk):
    return train(desk, "--resume", "--arch", "timm/test_vit", out=str(desk.run()))


@case("holds a finished run with other settings")
def resume_of_a_finished_run_with_other_data(desk):
    return train(desk, "--resume", "--data", other_classes(desk), out=str(desk.run()))


@case("holds a finished run with other settings")
def resume_of_a_finished_run_with_other_preprocessing(desk):
    return train(desk, "--resume", "--preprocess", "resize=40,crop=32", out=str(desk.run()))


@case("holds a finished run with other settings")
def resume_of_a_finished_run_with_upsampling(desk):
    return train(desk, "--resume", "--upsample", "2", out=str(desk.run()))


@case("was trained on other classes")
def teacher_of_other_classes(desk):
    return distill(desk, "--teacher", desk.run(), "--data", other_classes(desk))


@case("trained at T = 1; papernot needs")
def teacher_at_another_temperature(desk):
    return distill(desk, "--teacher", desk.run(), "-T", "40")


@case("missing required field 'classes'")
def run_without_classes(desk):
    edit(desk.run() / "run.json", lambda info: info.pop("classes"))
    return ["export", desk.run(), "--out", "out.edgeadv"]


@case("preprocess: Expected 'object', got 'array'")
def run_whose_preprocessing_is_a_list(desk):
    edit(desk.run() / "run.json", lambda info: info.update(preprocess=[]))
    return ["export", desk.run(), "--out", "out.edgeadv"]


@case("is damaged and cannot be resumed")
def state_that_is_garbage(desk):
    (desk.home / "out").mkdir()
    desk.file("out/state.bin", b"garbage")
    return train(desk, "--resume")


@case("state.json was written by another version of edgeadv and cannot be resumed: start again in another --out")
def state_in_parts(desk):
    (desk.home / "out").mkdir()
    desk.file("out/state.json", b"{}")
    return train(desk, "--resume")


# reports


@case("Missing argument")
def report_on_nothing(desk):
    return ["report", "--out", "page.html"]


@case("results or bench file there")
def report_on_a_missing_file(desk):
    return ["report", "nowhere.json", "--out", "page.html"]


@case("is a None of schema version None")
def report_on_another_json(desk):
    return ["report", desk.file("other.json", '{"rows": []}'), "--out", "page.html"]


@case("is a 'bundle' of schema version 1")
def report_on_a_bundle(desk):
    return ["report", desk.bundle() / "manifest.json", "--out", "page.html"]


@case("is a 'guard' of schema version 1, not a results or bench file")
def report_on_a_measurement_of_another_kind(desk):
    return ["report", desk.file("g.json", '{"kind": "guard", "schema_version": 1}'), "--out", "page.html"]


@case("is a 'results' of schema version 2")
def results_of_another_version(desk):
    return ["report", desk.file("r.json", '{"kind": "results", "schema_version": 2}'), "--out", "page.html"]


@case("not a complete results")
def results_without_rows(desk):
    return ["report", desk.file("r.json", '{"kind": "results", "schema_version": 1}'), "--out", "page.html"]


@case("not a readable results or bench file")
def report_on_a_picture(desk):
    return ["report", min(desk.photos().rglob("*.png")), "--out", "page.html"]


@case("is one of the files to report on")
def report_over_its_own_file(desk):
    return ["report", desk.file("r.json", "{}"), "--out", "r.json"]


# usage


@case("No such option")
def unknown_option(desk):
    return evaluate(desk, "--epsilon", "8/255")


@case("No such command")
def unknown_command(desk):
    return ["prove"]


@case("Missing argument")
def missing_argument(desk):
    return ["verify"]


@case("Missing option")
def missing_option(desk):
    return ["train", "--data", desk.split()]


@case("requires an argument")
def option_without_its_value(desk):
    return ["verify", desk.bundle(), "--precision"]


@case("Invalid value for '--epochs'")
def number_that_is_not_one(desk):
    return train(desk, "--epochs", "many")


@case("unexpected extra argument")
def one_argument_too_many(desk):
    return ["verify", desk.bundle(), "again"]


# folders that cannot be written; to root permissions say nothing, so the path goes through a file


def under_a_file(name: str, base: Callable[..., Arguments], *more: str) -> None:
    def function(desk: Desk) -> Arguments:
        desk.file("file")
        return [*base(desk, *more), "--out", "file/out"]

    function.__name__ = f"{name}_under_a_file"
    case("cannot write")(function)


under_a_file("train", train)
under_a_file("distill", distill)
under_a_file("attack", attack)
under_a_file("evaluate", evaluate)
under_a_file("evaluate_of_a_pack", score)
under_a_file("export", lambda desk: ["export", desk.run()])
under_a_file("slim", lambda desk: ["bundle", "slim", desk.bundle(), "--variant", "fp16"])
under_a_file("bench", lambda desk: ["bench", desk.bundle()])
under_a_file("report", lambda desk: ["report", desk.bench()])
under_a_file("demo", lambda desk: ["demo"])


# what a command says while all is still well
PROGRESS = re.compile(r"(train|teacher|student) epoch \d+/\d+: |exporting |comparing ")


def without_progress(stderr: str) -> str:
    return "".join(line for line in stderr.splitlines(keepends=True) if not PROGRESS.match(line))


def check_one_line(stderr: str, says: str) -> None:
    assert "Traceback" not in stderr
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("edgeadv: ") and says in lines[0], lines[0]


@pytest.mark.parametrize(("prepare", "says"), CASES)
def test_bad_input_is_one_line_and_leaves_everything_as_it_was(prepare, says, desk, capfd):
    from edgeadv.cli import main

    arguments = [str(argument) for argument in prepare(desk)]
    before = desk.contents()
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        # not shown to users either; NumPy leaves the closing of a file that is no archive to the collector
        warnings.simplefilter("ignore", ResourceWarning)
        status = main(arguments)
    stderr = without_progress(capfd.readouterr().err)
    assert (status, [str(warning.message) for warning in warned]) == (2, [])
    check_one_line(stderr, says)
    after = desk.contents()
    assert after == before


def test_there_are_many_kinds_of_bad_input():
    names = [param.id for param in CASES]
    assert len(set(names)) == len(names) > 120


@pytest.mark.parametrize(
    "key",
    [
        "bundle_id",
        "title",
        "architecture",
        "classes",
        "preprocess",
        "variants",
        "weights",
        "golden",
        "provenance",
        "left_out",
        "created",
        "edgeadv_version",
    ],
)
@pytest.mark.parametrize("command", ["show", "verify", "evaluate", "bench"])
def test_a_manifest_without_one_of_its_keys(desk, cli, key, command):
    """The id fits, as in a bundle that some other tool made: no command may fall over what is not there."""
    edit(desk.bundle() / "manifest.json", lambda manifest: manifest.pop(key), sign=key != "bundle_id")
    arguments = {
        "show": ["bundle", "show", desk.bundle()],
        "verify": verify(desk),
        "evaluate": score(desk),
        "bench": ["bench", desk.bundle(), "--runs", "1", "--warm-up", "0", "--out", "out.json"],
    }[command]
    before = desk.contents()
    outcome = cli(*arguments)
    assert outcome.status == 2
    check_one_line(outcome.err, "manifest.json is not a complete bundle manifest")
    assert desk.contents() == before


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file can grow beyond ``limit`` bytes: Python ignores SIGXFSZ and gets an OSError, as from a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# the limit lies below the first, or above all but the last, of the files that a command writes
FULL: dict[str, tuple[int, Case]] = {
    "slim": (100_000, lambda desk: ["bundle", "slim", desk.bundle(), "--variant", "fp16", "--out", "out"]),
    "evaluate": (8_192, lambda desk: [*score(desk), "--out", "out"]),
    "bench": (2_048, lambda desk: ["bench", desk.bundle(), "--runs", "1", "--warm-up", "0", "--out", "out"]),
    "report": (8_192, lambda desk: ["report", desk.bench(), "--out", "out"]),
    "train": (1_000_000, lambda desk: train(desk)),
    "distill": (1_000_000, lambda desk: distill(desk)),
    "attack": (8_192, lambda desk: attack(desk, out="out")),
    "export_graph": (100_000, lambda desk: ["export", desk.run(), "--out", "out"]),
    "export_weights": (1_500_000, lambda desk: ["export", desk.run(), "--precision", "fp16", "--out", "out"]),
}


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(name, desk, cli):
    limit, prepare = FULL[name]
    arguments = prepare(desk)
    before = desk.contents()
    with full_disk(limit):
        outcome = cli(*arguments)
    assert outcome.status == 2
    check_one_line(without_progress(outcome.err), "File too large")
    left = {path for path in desk.contents() if path not in before}
    # an attack goes on where it was: what is whole stays
    assert left == ({"out.partial", "out.partial/plan.json"} if name == "attack" else set())
    assert {path: digest for path, digest in desk.contents().items() if path in before} == before


def test_an_existing_file_survives_a_failed_attempt_to_replace_it(desk, cli):
    old = desk.file("out")
    arguments = [*score(desk), "--out", "out"]
    before = desk.contents()
    with full_disk(8_192):
        assert cli(*arguments).status == 2
    assert old.read_text() == "I was here first"
    assert desk.contents() == before


def test_on_a_real_standard_error_there_is_one_line_too(desk):
    """As a process of its own, so that nothing of pytest lies between the command and its streams."""
    arguments = ["bundle", "slim", desk.bundle(), "--variant", "fp16", "--out", "out"]
    before = desk.contents()
    outcome = subprocess.run(
        [sys.executable, "-m", "edgeadv", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=desk.home,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert (outcome.returncode, outcome.stdout) == (2, "")
    check_one_line(outcome.stderr, "File too large")
    assert desk.contents() == before
