"""Records that somebody has changed: read whole, or said to be none. Never a traceback, never in the way of a new
build."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.engine import Engine, EngineCache, EngineOptions, Library
from edgeadv_runtime.engine.records import read_record
from edgeadv_runtime.errors import BundleError, EdgeAdvError
from tests.mutations import assert_one_line, mutated, places

BROKEN = {
    "created": [None, 3],
    "bundle": [None, []],
    "variant": [None, {}],
    "file": [None, 1],
    "sha256": [None, 3, "", "x" * 64, "0" * 63],
    "key": [None, [], {}, "key"],
    "build": [None, [], {}, 0],
    "key.profile": [None, [], [1], [1, 2], [3, 2, 1], [1, 2, "3"], [0, 1, 1], 5, {"a": 1, "b": 2, "c": 3}],
    "key.targets": [None, [], "sm_86", [86]],
    "key.tf32": [None, 0, "no"],
    "key.library": [None, 1],
    "key.library_version": [None, 1],
    "key.onnx_sha256": [None, "", 5],
    "key.workspace_mib": ["64"],
    "build.bytes": [None, "5", True],
    "build.seconds": [None, "5"],
    "build.targets": [None, "sm_86", [1]],
    "build.flags": [None, "TF32", [1]],
    "build.profile": [None, [1], [2, 1, 1]],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BROKEN.items() for value in values], ids=str
)
def test_a_record_that_is_not_what_was_written_is_no_record(
    broken_engine: tuple[EngineCache, Engine],
    tiny_bundle: Bundle,
    rtx: Library,
    sm_86: EngineOptions,
    name: str,
    value: Any,
) -> None:
    cache, engine = broken_engine
    record = engine.record.to_json()
    outer, _, inner = name.partition(".")
    if inner:
        record[outer][inner] = value
    else:
        record[outer] = value
    file = engine.path.with_suffix(".json")
    before = file.read_text()
    try:
        file.write_text(json.dumps(record))
        assert cache.find(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None) is None
        explanation = cache.explain(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None)
        assert re.fullmatch(
            rf"stale: {file.name} is not a complete engine record \(.*{outer}.*\); it counts for nothing: it has "
            r"to be built again",
            str(explanation),
        )
        # what is no record is not the nearest either
        other = replace(sm_86, workspace_mib=64)
        assert "no engine of" in str(cache.explain(tiny_bundle, "fp16", other, library=rtx, gpu=None))
        with pytest.raises(BundleError, match="not a complete engine record"):
            read_record(file)
    finally:
        file.write_text(before)


@pytest.fixture(scope="module")
def broken_engine(
    tiny_bundle: Bundle, rtx: Library, tmp_path_factory: pytest.TempPathFactory
) -> tuple[EngineCache, Engine]:
    """One plan for all the ways in which its record can be broken."""
    cache = EngineCache(tmp_path_factory.mktemp("engines"))
    return cache, cache.provide(tiny_bundle, "fp16", EngineOptions(targets=("sm_86",)), library=rtx, gpu=None)


@pytest.mark.parametrize("value", [None, True, [], "yes", 3])
@pytest.mark.parametrize("name", ["verification", "precision", "runtime_cache", "not_loaded"])
def test_facts_that_cannot_be_read_were_never_noted(
    broken_engine: tuple[EngineCache, Engine],
    tiny_bundle: Bundle,
    rtx: Library,
    sm_86: EngineOptions,
    name: str,
    value: Any,
) -> None:
    cache, engine = broken_engine
    file = engine.path.with_suffix(".json")
    before = file.read_text()
    try:
        file.write_text(json.dumps({**engine.record.to_json(), name: value}))
        found = cache.find(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None)
        assert found is not None and found.record == engine.record
    finally:
        file.write_text(before)


def test_no_record_is_more_than_one_sentence(
    broken_engine: tuple[EngineCache, Engine], tiny_bundle: Bundle, rtx: Library, sm_86: EngineOptions, tmp_path: Path
) -> None:
    _, engine = broken_engine
    cache = EngineCache(tmp_path)
    copied, file = tmp_path / engine.path.name, tmp_path / engine.path.with_suffix(".json").name
    copied.write_bytes(engine.read())
    facts = {"verification": {"ok": True, "batches": []}, "precision": {"label": "verified", "problems": []}}
    document, rng = engine.record.to_json() | facts, random.Random(0)
    every, found = list(places(document)), 0
    for _ in range(400):
        file.write_bytes(mutated(document, rng, every[rng.randrange(len(every))]))
        other = replace(sm_86, workspace_mib=64)
        assert_one_line(Exception(str(cache.explain(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None))))
        assert_one_line(Exception(str(cache.explain(tiny_bundle, "fp16", other, library=rtx, gpu=None))))
        found += cache.find(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None) is not None
        try:
            _ = read_record(file).to_json()
        except EdgeAdvError as error:
            assert_one_line(error)
    assert 10 < found < 300


@pytest.mark.parametrize("what", ["plan", "json"])
def test_a_folder_in_the_place_of_a_file_is_no_obstacle(
    cache: EngineCache, tiny_bundle: Bundle, rtx: Library, sm_86: EngineOptions, what: str
) -> None:
    engine = cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None)
    file = engine.path.with_suffix(f".{what}")
    file.unlink()
    (file / "with").mkdir(parents=True)
    (file / "with" / "something").write_text("in it")
    explanation = str(cache.explain(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None))
    assert re.match(rf"stale: .*{file.name} .*it is a folder", explanation), explanation
    assert cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None).origin == "built"
    assert cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None).origin == "hit"
