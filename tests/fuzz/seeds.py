"""A whole one of each file, made by the commands, to be changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

TRAINED = "--arch timm/test_resnet --epochs 1 --batch-size 8"
PICTURES = {"png": {}, "jpg": {}, "webp": {}, "bmp": {}, "tiff": {}, "gif": {}}


def make(folder: Path) -> None:
    """Make all seeds below ``folder``, in some seconds of a CPU."""
    import torch
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    from edgeadv_runtime.evaluation.outcomes import OutcomeStore
    from tests.foreign import convolutional, saved

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 8)):
        for name, channel in (("a", 0), ("b", 2)):
            (folder / "data" / part / name).mkdir(parents=True)
            for i in range(count):
                frame = rng.integers(0, 128, (32, 32, 3), dtype=np.uint8)
                frame[..., channel] += 100
                Image.fromarray(frame).save(folder / "data" / part / name / f"{i:02d}.png")
    trained = ("train", "--data", folder / "data", *TRAINED.split())
    with_state(lambda: command(*trained, "--out", folder / "run"), folder / "state")
    bundle, data = folder / "b.edgeadv", ("--data", folder / "data", "--eps", "8/255")
    command("export", folder / "run", "--out", bundle)
    private = Ed25519PrivateKey.generate()
    (folder / "key.pem").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "public.pem").write_bytes(public)
    command("bundle", "sign", bundle, "--key", folder / "key.pem")
    attacks = ("--attack", "fgsm,pgd-margin")
    command("attack", bundle, *data, *attacks, "--out", folder / "p.pack")

    put = OutcomeStore.put

    def kept(store: OutcomeStore, number: int, outcome: object) -> None:
        put(store, number, outcome)  # type: ignore[arg-type]
        shutil.copytree(store.folder, folder / "kept", dirs_exist_ok=True)

    OutcomeStore.put = kept  # type: ignore[method-assign,assignment]
    try:
        command("evaluate", bundle, "--pack", folder / "p.pack", "--backend", "onnxruntime", "--out", folder / "r.json")
    finally:
        OutcomeStore.put = put  # type: ignore[method-assign]
    (folder / "kept").rename(folder / "r.json.partial")
    write_study(folder / "study", folder / "r.json")
    command("bench", bundle, "--runs", "2", "--warm-up", "0", "--out", folder / "bench.json")
    files = (folder / "r.json", folder / "bench.json")
    command("card", *files, "--bundle", bundle, "--out", folder / "card.json")
    command("perturbation", bundle, *data[:2], "--eps", "0.2", "--out", folder / "p.npz")
    if find_spec("tensorrt_rtx") is not None:
        command("engine", bundle, "--target", "sm_86", "--engine-cache", folder / "cache", "--precision", "fp16")
    saved(convolutional(), folder / "theirs.onnx")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(net.state_dict(), folder / "weights.pth")
    (folder / "classes.tsv").write_text("a\tone\nb\ttwo\nc\tthree\nd\tfour\n")
    (folder / "pictures").mkdir()
    for ending in PICTURES:
        Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(folder / "pictures" / f"p.{ending}")


def with_state(train: Callable[[], None], folder: Path) -> None:
    """Keep the last state of a training, which removes it."""
    from edgeadv.training import checkpoint

    save = checkpoint.save

    def kept(where: Path, state: bytes) -> None:
        save(where, state)
        folder.mkdir(exist_ok=True)
        shutil.copy(where / checkpoint.STATE_FILE, folder)

    checkpoint.save = kept
    try:
        train()
    finally:
        checkpoint.save = save


def write_study(folder: Path, results: Path) -> None:
    """A study of one network whose results are known."""
    from edgeadv_runtime.records.results import Results
    from edgeadv_runtime.records.study import (
        Study,
        StudyArchitecture,
        StudyData,
        StudyPreprocess,
        StudySettings,
        StudyWeights,
    )

    found = Results.load(results)
    architecture = StudyArchitecture(
        name="test_resnet",
        source="timm",
        weights=StudyWeights(file=None, name="DEFAULT"),
        preprocess=StudyPreprocess(resize=32, crop=32, interpolation="bilinear"),
        preprocess_published=False,
        mean=(),
        std=(),
    )
    data = StudyData(name="data", split="test", n=found.data.n, images_sha256="0" * 64)
    settings = StudySettings(architectures=(architecture,), data=data, seed=0, attack="fgsm", eps=("8/255",))
    folder.mkdir()
    Study(settings=settings, results=(found,)).save(folder / "study.json")


def command(*arguments: object) -> None:
    """Run the command line, which must succeed."""
    from edgeadv.cli import main

    assert main([str(argument) for argument in arguments]) == 0, arguments
