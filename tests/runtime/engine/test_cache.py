"""The cache of plans, with real plans of TensorRT-RTX. A plan "for the GPU present" is built for one that is only
described."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from edgeadv_runtime import __version__
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.device.cuda import Gpu
from edgeadv_runtime.engine import BatchProfile, EngineCache, EngineOptions, Library, default_cache
from edgeadv_runtime.engine.cache import Wanted
from edgeadv_runtime.errors import EngineError, InputError, IntegrityError, StorageError

Contents = Callable[[Path], list[str]]
NATIVE = EngineOptions()


def test_the_key_of_a_native_plan(tiny_bundle: Bundle, rtx: Library, gpu: Gpu) -> None:
    fields = Wanted(tiny_bundle, "fp16", NATIVE, rtx, gpu).key.to_json()
    assert fields == {
        "recipe": 1,
        "onnx_sha256": tiny_bundle.artifact_sha256("fp16"),
        "profile": [1, 1, 1],
        "targets": [],
        "tf32": False,
        "workspace_mib": None,
        "library": "tensorrt-rtx",
        "library_version": rtx.version,
        "gpu": "NVIDIA GeForce RTX 3060",
        "compute_capability": "sm_86",
        "driver": "570.10",
    }


def test_the_key_of_a_portable_plan_belongs_to_no_machine(
    tiny_bundle: Bundle, rtx: Library, gpu: Gpu, sm_86: EngineOptions
) -> None:
    here = Wanted(tiny_bundle, "fp16", sm_86, rtx, gpu).key
    assert here == Wanted(tiny_bundle, "fp16", sm_86, rtx, None).key
    assert not {"gpu", "compute_capability", "driver"} & here.to_json().keys()


@pytest.mark.parametrize("portable", [False, True])
def test_every_field_makes_another_key(tiny_bundle: Bundle, rtx: Library, gpu: Gpu, portable: bool) -> None:
    options = EngineOptions(targets=("sm_86",)) if portable else NATIVE

    def key(variant: str = "fp16", options: EngineOptions = options, library: Library = rtx, gpu: Gpu = gpu) -> str:
        return Wanted(tiny_bundle, variant, options, library, gpu).key.short

    others = [
        key(variant="fp32"),
        key(options=replace(options, profile=BatchProfile(1, 8, 32))),
        key(options=replace(options, profile=BatchProfile(1, 1, 32))),
        key(options=replace(options, tf32=True)),
        key(options=replace(options, workspace_mib=64)),
        key(options=replace(options, targets=("sm_86", "sm_89"))),
        key(library=replace(rtx, version="9.9.9")),
        key(library=replace(rtx, name="tensorrt")),
    ]
    machines = [
        key(gpu=replace(gpu, name="NVIDIA RTX A2000")),
        key(gpu=replace(gpu, compute_capability=(8, 9))),
        key(gpu=replace(gpu, driver="580.00")),
    ]
    # what does not decide whether a plan may be used
    same = [key(gpu=replace(gpu, index=1, free_mib=1, memory_mib=2))] + (machines if portable else [])
    others += [] if portable else machines
    assert len({*others, key()}) == len(others) + 1
    assert set(same) == {key()}


def test_without_a_gpu_there_is_no_native_key(cache: EngineCache, tiny_bundle: Bundle, rtx: Library) -> None:
    for ask in (cache.explain, cache.find, cache.provide):
        with pytest.raises(InputError, match="there is no GPU here to find an engine for: name a target"):
            ask(tiny_bundle, "fp16", NATIVE, library=rtx, gpu=None)
    assert not cache.folder.exists()


def test_built_once_then_found(
    cache: EngineCache, tiny_bundle: Bundle, rtx: Library, sm_86: EngineOptions, contents: Contents
) -> None:
    texts: list[str] = []
    built = cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None, progress=texts.append)
    assert built.origin == "built"
    assert texts == [f"building the engine of tiny fp16 with {rtx}"]
    key = Wanted(tiny_bundle, "fp16", sm_86, rtx, None).key.short
    assert contents(cache.folder) == [f"tiny-fp16-{key}.json", f"tiny-fp16-{key}.plan"]
    assert built.path == cache.folder / f"tiny-fp16-{key}.plan"
    assert built.sha256 == hashlib.sha256(built.read()).hexdigest()
    found = cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None, progress=texts.append)
    assert found == replace(built, origin="hit")
    assert found == cache.find(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None)
    assert len(texts) == 1
    again = cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None, rebuild=True)
    assert (again.origin, again.path) == ("built", built.path)
    assert contents(cache.folder) == [f"tiny-fp16-{key}.json", f"tiny-fp16-{key}.plan"]


def test_the_record(cache: EngineCache, tiny_bundle: Bundle, rtx: Library, gpu: Gpu) -> None:
    engine = cache.provide(tiny_bundle, "fp32", NATIVE, library=rtx, gpu=gpu)
    record = json.loads(engine.path.with_suffix(".json").read_text())
    assert record == engine.record.to_json()
    assert (record["schema_version"], record["kind"], record["edgeadv_version"]) == (1, "engine", __version__)
    assert (record["bundle"], record["bundle_id"], record["variant"]) == ("tiny", tiny_bundle.id, "fp32")
    assert record["key"] == Wanted(tiny_bundle, "fp32", NATIVE, rtx, gpu).key.to_json()
    assert (record["file"], record["sha256"], record["bytes"]) == (
        engine.path.name,
        engine.sha256,
        engine.path.stat().st_size,
    )
    assert record["created"].endswith("+00:00")
    assert record["build"]["flags"] == [] and record["build"]["targets"] == ["sm_86"]
    assert record["build"]["seconds"] > 0


def test_a_slim_copy_under_another_name_finds_the_plan(
    cache: EngineCache, tiny_bundle: Bundle, rtx: Library, sm_86: EngineOptions, tmp_path: Path
) -> None:
    built = cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None)
    slim = tiny_bundle.slim(tmp_path / "other.edgeadv", variants=["fp16"], weights=False)
    assert cache.provide(slim, "fp16", sm_86, library=rtx, gpu=None) == replace(built, origin="hit")
    with pytest.raises(InputError, match="slim copy with no variant 'fp32'"):
        cache.provide(slim, "fp32", sm_86, library=rtx, gpu=None)


def test_a_bundle_with_a_wild_name(
    cache: EngineCache, tiny_bundle: Bundle, rtx: Library, sm_86: EngineOptions, tmp_path: Path
) -> None:
    other = Bundle.open(shutil.copytree(tiny_bundle.path, tmp_path / ".. my [model] v1.2 *.edgeadv"))
    engine = cache.provide(other, "fp16", sm_86, library=rtx, gpu=None)
    assert engine.path.name.startswith("my_model_v1.2-fp16-")
    assert cache.provide(other, "fp16", sm_86, library=rtx, gpu=None).origin == "hit"


@pytest.mark.parametrize("what", ["a byte", "the end", "empty", "gone", "another plan"])
def test_a_damaged_plan_is_built_again(
    cache: EngineCache, tiny_bundle: Bundle, rtx: Library, sm_86: EngineOptions, what: str
) -> None:
    engine = cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None)
    plan = bytearray(engine.path.read_bytes())
    if what == "a byte":
        plan[len(plan) // 2] ^= 1
    elif what == "the end":
        del plan[-1:]
    elif what == "empty":
        plan.clear()
    elif what == "another plan":
        plan = bytearray(cache.provide(tiny_bundle, "fp32", sm_86, library=rtx, gpu=None).read())
    engine.path.write_bytes(plan)
    if what == "gone":
        engine.path.unlink()
    with pytest.raises(IntegrityError, match=r"was changed since|no TensorRT plan there"):
        engine.read()
    explanation = cache.explain(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None)
    if what == "gone":
        assert explanation.status == "miss"
    else:
        assert str(explanation).startswith(f"stale: {engine.path.name} is damaged, its SHA-256 is not the recorded one")
        assert explanation.changed["sha256"][0] == engine.sha256
    again = cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None)
    assert again.origin == "built"
    assert hashlib.sha256(again.read()).hexdigest() == again.sha256 == again.record.sha256


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "miss: {plan} has no record, its build was cut off"),
        ("", "stale: .*{record} is not a readable engine record"),
        ("{", "stale: .*{record} is not a readable engine record"),
        ("[" * 99999, "stale: .*{record} is not a complete engine record"),
        ("[]", "stale: .*{record} is not a complete engine record"),
        ("{}", "stale: {record} is no engine record of schema 1"),
        ('{"kind": "engine", "schema_version": 2}', "stale: {record} is no engine record of schema 1"),
        ('{"kind": "engine", "schema_version": 1}', "stale: {record} is not a complete engine record .*created"),
        (
            '{"kind": "engine", "schema_version": 1, "created": NaN}',
            "stale: .*{record} is not a readable engine record",
        ),
        ('{"kind": "bundle"}', "stale: {record} is no engine record of schema 1"),
    ],
)
def test_a_plan_without_its_record_does_not_count(
    cache: EngineCache, tiny_bundle: Bundle, rtx: Library, sm_86: EngineOptions, text: str | None, why: str
) -> None:
    engine = cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None)
    record = engine.path.with_suffix(".json")
    record.unlink() if text is None else record.write_text(text)
    explanation = str(cache.explain(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None))
    assert re.match(why.format(plan=engine.path.name, record=record.name), explanation), explanation
    assert explanation.endswith(": it has to be built again")
    other = replace(sm_86, tf32=True)  # nor is anything else kept from being explained
    assert cache.explain(tiny_bundle, "fp16", other, library=rtx, gpu=None).status == "miss"
    assert cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None).origin == "built"
    assert cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None).origin == "hit"


def test_a_record_of_another_key_does_not_count(
    cache: EngineCache, tiny_bundle: Bundle, rtx: Library, sm_86: EngineOptions
) -> None:
    engine = cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None)
    record = engine.path.with_suffix(".json")
    record.write_text(
        json.dumps({**engine.record.to_json(), "key": {**engine.record.key.to_json(), "library_version": "1.0"}})
    )
    assert cache.find(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None) is None
    explanation = cache.explain(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None)
    assert str(explanation) == (
        f"stale: {record.name} was changed, its library_version is not what its name stands for: it has to be "
        "built again"
    )
    assert explanation.changed == {"library_version": ("1.0", rtx.version)}


def test_what_is_discarded_is_built_again(
    cache: EngineCache, tiny_bundle: Bundle, rtx: Library, sm_86: EngineOptions, contents: Contents
) -> None:
    cache.discard(cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None))
    assert cache.find(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None) is None
    assert cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None).origin == "built"
    assert len(contents(cache.folder)) == 2


def test_what_killed_builders_left_is_removed(
    cache: EngineCache, tiny_bundle: Bundle, rtx: Library, sm_86: EngineOptions, contents: Contents
) -> None:
    key = Wanted(tiny_bundle, "fp16", sm_86, rtx, None).key.short
    cache.folder.mkdir()
    for name in (f".tiny-fp16-{key}.plan.abc.tmp", f".else-fp16-{key}.json.x_y.tmp", f".{key}.lock"):
        (cache.folder / name).write_text("half")
    (cache.folder / ".tiny-fp16-0123456789abcdef.plan.abc.tmp").write_text("of a builder that may live")
    cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None)
    assert contents(cache.folder) == [
        ".tiny-fp16-0123456789abcdef.plan.abc.tmp",
        f"tiny-fp16-{key}.json",
        f"tiny-fp16-{key}.plan",
    ]


def test_a_build_that_fails_leaves_nothing(
    cache: EngineCache, tiny_bundle: Bundle, rtx: Library, contents: Contents
) -> None:
    options = EngineOptions(targets=("sm_86",), workspace_mib=1, profile=BatchProfile(1, 8, 32))
    with pytest.raises(EngineError, match="within workspace limit"):
        cache.provide(tiny_bundle, "fp16", options, library=rtx, gpu=None)
    assert contents(cache.folder) == []
    with pytest.raises(InputError, match="cannot build for sm_87"):
        cache.provide(tiny_bundle, "fp16", EngineOptions(targets=("sm_87",)), library=rtx, gpu=None)
    assert (
        cache.provide(tiny_bundle, "fp16", replace(options, workspace_mib=None), library=rtx, gpu=None).origin
        == "built"
    )


def test_a_model_that_changed_after_the_bundle_was_opened(
    cache: EngineCache, bundle: Bundle, rtx: Library, sm_86: EngineOptions, contents: Contents
) -> None:
    with bundle.onnx_path("fp16").open("ab") as stream:
        stream.write(b"\x98\x3f\x01")
    with pytest.raises(IntegrityError, match="not the one that the bundle's manifest names"):
        cache.provide(bundle, "fp16", sm_86, library=rtx, gpu=None)
    assert contents(cache.folder) == []


@pytest.mark.parametrize("where", ["", "below"])
def test_a_cache_that_cannot_be_written(
    tiny_bundle: Bundle, rtx: Library, sm_86: EngineOptions, tmp_path: Path, where: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = EngineCache(tmp_path / "file" / where)
    assert cache.explain(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None).status == "miss"
    with pytest.raises(
        StorageError, match=r"the engine cache .*file.* cannot be written \(.+\): choose another with `engine_cache`"
    ):
        cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None)
    assert (tmp_path / "file").read_text() == "in the way"


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert EngineCache().folder == default_cache() == tmp_path / "edgeadv" / "engines"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert default_cache() == tmp_path / "home" / ".cache" / "edgeadv" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == tmp_path / "home" / ".cache" / "edgeadv" / "engines"

    def homeless(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", homeless)
    with pytest.raises(StorageError, match="`engine_cache`"):
        default_cache()


def test_facts_are_noted_beside_the_plan(
    cache: EngineCache, tiny_bundle: Bundle, rtx: Library, sm_86: EngineOptions, contents: Contents
) -> None:
    engine = cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None)
    noted = cache.note(engine, verification={"ok": True}, precision={"label": "verified"})
    assert noted.record == structs.replace(engine.record, verification={"ok": True}, precision={"label": "verified"})
    assert cache.find(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None) == replace(noted, origin="hit")
    modified = engine.path.with_suffix(".json").stat().st_mtime_ns
    assert cache.note(noted, precision={"label": "verified"}) == noted
    assert engine.path.with_suffix(".json").stat().st_mtime_ns == modified
    # bound to the plan: another one of the same key has to earn them itself
    again = cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None, rebuild=True)
    assert again.record.verification is None
    late = cache.note(replace(engine, sha256="0" * 64), verification={"ok": True})
    assert late.record.verification == {"ok": True}
    assert "verification" not in json.loads(again.path.with_suffix(".json").read_text())
    assert len(contents(cache.folder)) == 2


def test_a_cache_that_cannot_be_written_any_more_keeps_no_facts(
    cache: EngineCache, tiny_bundle: Bundle, rtx: Library, sm_86: EngineOptions, tmp_path: Path
) -> None:
    engine = cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None)
    cache.folder.rename(tmp_path / "away")
    assert cache.note(engine, verification={"ok": True}).record.verification == {"ok": True}


BLOCKED = """
import sys
from importlib.abc import MetaPathFinder
class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        blocked = {"torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "edgeadv_export", "safetensors"}
        if name.partition(".")[0] in blocked:
            raise ImportError(f"blocked import of {name}")
sys.meta_path.insert(0, Blocker())
open(__file__ + ".used", "a").write("x")
"""


def test_the_base_install_and_tensorrt_rtx_are_enough(tiny_bundle: Bundle, rtx: Library, tmp_path: Path) -> None:
    """Neither the command nor the process that it starts can import PyTorch or anything of ONNX."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCKED)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from edgeadv.cli import main; sys.exit(main())",
            "engine",
            str(tiny_bundle.path),
            "--precision",
            "all",
            "--target",
            "sm_86",
            "--engine-cache",
            str(tmp_path / "engines"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "engines").glob("*.plan"))) == 2
    assert (tmp_path / "site" / "sitecustomize.py.used").read_text() == "xxx"  # the command and two builders
