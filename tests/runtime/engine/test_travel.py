"""Plans that are taken along, and those that came with a bundle."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.device.cuda import Gpu
from edgeadv_runtime.engine import BatchProfile, EngineCache, EngineOptions, Library, copy_engine
from edgeadv_runtime.errors import EngineError, InputError, IntegrityError, StorageError

Contents = Callable[[Path], list[str]]
NATIVE = EngineOptions()


def test_a_copy_says_what_it_is_for(
    cache: EngineCache, tiny_bundle: Bundle, rtx: Library, gpu: Gpu, tmp_path: Path
) -> None:
    options = EngineOptions(targets=("sm_86", "sm_89"), profile=BatchProfile(1, 8, 32))
    engine = cache.provide(tiny_bundle, "fp16", options, library=rtx, gpu=None)
    copy = copy_engine(engine, tmp_path / "new" / "folder")
    assert copy == tmp_path / "new" / "folder" / "model.fp16.tensorrt-rtx.sm_86+sm_89.b1-8-32.plan"
    assert copy.read_bytes() == engine.read()
    record = json.loads(copy.with_suffix(".json").read_text())
    assert record == {**engine.record.to_json(), "file": copy.name}
    native = copy_engine(cache.provide(tiny_bundle, "fp16", NATIVE, library=rtx, gpu=gpu), tmp_path)
    assert native.name == "model.fp16.tensorrt-rtx.NVIDIA_GeForce_RTX_3060.sm_86.b1.plan"
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        copy_engine(engine, tmp_path / "file")


def test_a_plan_in_a_bundle_needs_its_hash(
    cache: EngineCache, bundle: Bundle, rtx: Library, sm_86: EngineOptions, contents: Contents
) -> None:
    engine = cache.provide(bundle, "fp16", sm_86, library=rtx, gpu=None)
    with pytest.raises(IntegrityError, match="there is no plan in it: ask whoever built it, or have it built here"):
        cache.trusted(bundle, "fp16", engine.sha256)
    copy = copy_engine(engine, bundle.path)
    shutil.rmtree(cache.folder)
    reopened = Bundle.open(bundle.path)
    # it is there, and is not taken unasked
    assert cache.find(reopened, "fp16", sm_86, library=rtx, gpu=None) is None
    trusted = cache.trusted(reopened, "fp16", f" {engine.sha256.upper()}\n")
    assert (trusted.path, trusted.sha256, trusted.origin) == (copy, engine.sha256, "trusted")
    assert trusted.read() == copy.read_bytes()
    assert trusted.record.key.targets == ("sm_86",)
    with pytest.raises(EngineError, match="was built from another model than fp32 of this bundle"):
        cache.trusted(reopened, "fp32", engine.sha256)
    with pytest.raises(
        IntegrityError, match=r"no plan in .* has the SHA-256 that you trust, model\.fp16.*\.plan are others"
    ):
        cache.trusted(reopened, "fp16", "0" * 64)
    for wrong in ("", "0" * 63, "g" * 64, copy.name):
        with pytest.raises(InputError, match="is not a SHA-256: give its 64 hex digits"):
            cache.trusted(reopened, "fp16", wrong)
    # facts about it are the caller's: the bundle stays as it came
    before = copy.with_suffix(".json").read_bytes()
    assert cache.note(trusted, verification={"ok": True}).record.verification == {"ok": True}
    assert copy.with_suffix(".json").read_bytes() == before
    with copy.open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(IntegrityError, match="are others"):
        cache.trusted(reopened, "fp16", engine.sha256)
    assert not cache.folder.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (None, r"does not exist.*copy the \.json beside it too"),
        (lambda record: record.pop("key"), r"is not a complete engine record .*key.*copy the \.json beside it too"),
        (
            lambda record: record.update(sha256="0" * 64),
            "is the record of another plan: copy the .json that came with this one",
        ),
        (
            lambda record: record.update(variant="fp32"),
            "was built from another model than fp16 of this bundle, as fp32",
        ),
        (
            lambda record: record["key"].update(onnx_sha256="0" * 64),
            "was built from another model than fp16 of this bundle",
        ),
    ],
    ids=["none", "no key", "another plan", "another variant", "another model"],
)
def test_a_plan_in_a_bundle_needs_its_record(
    cache: EngineCache, bundle: Bundle, rtx: Library, sm_86: EngineOptions, change: Any, says: str
) -> None:
    copy = copy_engine(cache.provide(bundle, "fp16", sm_86, library=rtx, gpu=None), bundle.path)
    digest = hashlib.sha256(copy.read_bytes()).hexdigest()
    file = copy.with_suffix(".json")
    if change is None:
        file.unlink()
    else:
        record = json.loads(file.read_text())
        change(record)
        file.write_text(json.dumps(record))
    with pytest.raises(EngineError, match=says):
        cache.trusted(bundle, "fp16", digest)


def test_a_link_in_a_bundle_is_not_followed(
    cache: EngineCache, bundle: Bundle, rtx: Library, sm_86: EngineOptions
) -> None:
    engine = cache.provide(bundle, "fp16", sm_86, library=rtx, gpu=None)
    (bundle.path / "model.plan").symlink_to(engine.path)
    with pytest.raises(IntegrityError, match="there is no plan in it"):
        cache.trusted(bundle, "fp16", engine.sha256)
