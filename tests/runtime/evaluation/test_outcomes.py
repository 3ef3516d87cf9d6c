"""Outcomes on their way to disk and back, and the folder that an interrupted evaluation goes on from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeadv_runtime.attacks.base import CLEAN_KEY, Evidence
from edgeadv_runtime.errors import BundleError, InputError, StorageError
from edgeadv_runtime.evaluation.outcomes import BatchOutcome, LabelledExample, OutcomeStore
from edgeadv_runtime.records.about import Example

KEY = ("pgd@int8-s8s8", "8/255")

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
EXAMPLE = Example(
    index=7,
    label="drei, für drei",
    attack="fgsm",
    eps="8/255",
    amplification=8.0,
    artefact="onnxruntime fp32",
    clean_png=PNG,
    adversarial_png=PNG,
    perturbation_png=PNG,
    clean_prediction="drei, für drei",
    clean_probability=0.9,
    adversarial_prediction="5",
    adversarial_probability=0.8,
)


def outcome(n: int = 5) -> BatchOutcome:
    rng = np.random.default_rng(n)

    def labels() -> NDArray[np.int64]:
        return rng.integers(0, 10, n)

    def flags() -> NDArray[np.bool_]:
        return rng.random(n) < 0.5

    def ratios(*shape: int) -> NDArray[np.float32]:
        return rng.random(shape, dtype=np.float32)

    evidence = Evidence(
        {CLEAN_KEY: labels(), KEY: labels()},
        {KEY: labels()},
        {KEY: flags()} if n else {},
        flags(),
        flags(),
        {KEY: ratios(n)},
        {KEY: ratios(n, 6)},
    )
    top1, top5 = (tuple({CLEAN_KEY: flags(), KEY: flags()} for _ in range(2)) for _ in range(2))
    examples = (LabelledExample(3, EXAMPLE),)
    return BatchOutcome(
        np.arange(n) + 64,
        labels(),
        tuple(f"{i:064x}" for i in range(n)),
        top1,
        top5,
        evidence,
        2,
        ("ü.png: leer", "x"),
        examples,
        ({KEY: ratios(n)}, {KEY: ratios(n)}),
        (flags(), flags()),
    )


def assert_same(ours: BatchOutcome, theirs: BatchOutcome) -> None:
    for a, b in ((ours.index, theirs.index), (ours.labels, theirs.labels)):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == np.int64
    assert (ours.hashes, ours.left_out, ours.unreadable, ours.examples) == (
        theirs.hashes,
        theirs.left_out,
        theirs.unreadable,
        theirs.examples,
    )
    tables = [
        *zip(ours.top1, theirs.top1, strict=True),
        *zip(ours.top5, theirs.top5, strict=True),
        (ours.evidence.answers, theirs.evidence.answers),
        (ours.evidence.unrounded, theirs.evidence.unrounded),
        (ours.evidence.zero_gradient, theirs.evidence.zero_gradient),
        (ours.evidence.progress, theirs.evidence.progress),
        (ours.evidence.linearity, theirs.evidence.linearity),
        *zip(ours.progress, theirs.progress, strict=True),
    ]
    for mine, other in tables:
        assert list(mine) == list(other)
        for key in mine:
            np.testing.assert_array_equal(mine[key], other[key])
    np.testing.assert_array_equal(ours.evidence.probabilities, theirs.evidence.probabilities)
    np.testing.assert_array_equal(ours.evidence.unstable, theirs.evidence.unstable)
    np.testing.assert_array_equal(ours.unstable, theirs.unstable)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_what_is_saved_is_loaded(tmp_path: Path, n: int) -> None:
    outcome(n).save(tmp_path / "o.npz")
    again = BatchOutcome.load(tmp_path / "o.npz", n_classes=10)
    assert_same(again, outcome(n))
    assert again.images == n + 2 + 2


@pytest.mark.parametrize("change", [lambda b: b[:100], lambda b: b"", lambda b: b"text", lambda b: b[:-40]])
def test_a_damaged_file_is_named(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "o.npz"
    outcome().save(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BundleError, match=r"o\.npz is damaged .*; delete .* and evaluate again"):
        BatchOutcome.load(path, n_classes=10)


def _edited(array: NDArray[Any], name: str) -> NDArray[Any]:
    if name != "rest":
        return array
    rest = json.loads(array.tobytes())
    rest["hashes"].pop()
    return np.frombuffer(json.dumps(rest).encode(), np.uint8)


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("labels", lambda a: a + 10),
        ("labels", lambda a: a - 10),
        ("labels", lambda a: a[:-1]),
        ("index", lambda a: a[:-1]),
        ("answers", lambda a: a + 10),
        ("answers", lambda a: a[:, :-1]),
        ("unrounded", lambda a: a - 10),
        ("zero_gradient", lambda a: a[:, :-1]),
        ("probabilities", lambda a: a[:-1]),
        ("unstable", lambda a: a[:-1]),
        ("top1_0", lambda a: a[:, :-1]),
        ("top5_1", lambda a: a[:, :-1]),
        ("top1_1", lambda a: a[:-1]),
        ("progress", lambda a: a[:, :-1]),
        ("linearity", lambda a: a[:, :-1]),
        ("linearity", lambda a: a[..., 0]),
        ("progress_1", lambda a: a[:, :-1]),
        ("unstable_0", lambda a: a[:-1]),
        ("rest", lambda a: _edited(a, "rest")),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(
    tmp_path: Path, name: str, edit: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    path = tmp_path / "o.npz"
    outcome().save(path)
    with np.load(path) as arrays:
        changed = dict(arrays)
    changed[name] = edit(changed[name])
    np.savez(path, **changed)
    with pytest.raises(BundleError, match="is damaged"):
        BatchOutcome.load(path, n_classes=10)


def test_a_store_keeps_batches_under_their_numbers(tmp_path: Path) -> None:
    store = OutcomeStore(tmp_path / "r.json.partial", n_classes=10)
    store.start({"a": 1}, resume=False)
    assert store.numbers() == []
    for number in (10, 2):
        store.put(number, outcome(number))
    assert store.numbers() == [2, 10]
    with pytest.raises(StorageError, match=r"lacks the outcomes of 9 of 11 batches, e\.g\. batch 0: .* one folder"):
        store.all(11)
    for number in range(11):
        store.put(number, outcome(number))
    for ours, n in zip(store.all(11), range(11), strict=True):
        assert_same(ours, outcome(n))
    store.remove()
    assert list(tmp_path.iterdir()) == []


def test_parts_without_their_plan_are_not_adopted(tmp_path: Path) -> None:
    """Of which bundle, attacks and budgets they are nobody knows: by number they would pass for any."""
    store = OutcomeStore(tmp_path / "r.json.partial", n_classes=10)
    store.start({"a": 1}, resume=False)
    store.put(0, outcome(0))
    (store.folder / "plan.json").unlink()
    with pytest.raises(InputError, match=r"holds parts of an evaluation without its plan\.json"):
        store.start({"a": 2}, resume=True)
    assert store.numbers() == [0]


def test_a_shared_store_is_not_removed_under_another_process(tmp_path: Path) -> None:
    for shared in (False, True):
        store = OutcomeStore(tmp_path / f"{shared}.partial", n_classes=10, shared=shared)
        store.start({"a": 1}, resume=False)
        with pytest.raises(KeyError), store:
            raise KeyError
        assert store.folder.exists() == shared


def test_a_store_goes_on_only_with_its_own_plan(tmp_path: Path) -> None:
    plan: dict[str, Any] = {"bundle": "b", "data": {"name": "d", "total": 4}, "attacks": ("a",)}
    folder = tmp_path / "r.json.partial"
    OutcomeStore(folder, n_classes=10).start(plan, resume=True)
    with pytest.raises(StorageError, match="holds an unfinished evaluation: continue it with `resume`, or delete it"):
        OutcomeStore(folder, n_classes=10).start(plan, resume=False)
    OutcomeStore(folder, n_classes=10).start(plan, resume=True)
    for other, named in (
        ({**plan, "bundle": "c"}, "bundle"),
        ({**plan, "more": 1}, "more"),
        ({"attacks": ["a"], "bundle": "b"}, "data"),
        ({**plan, "data": {"name": "d", "total": 5}, "attacks": []}, "attacks, data"),
    ):
        with pytest.raises(
            InputError, match=rf"was started with other settings \({named}\): continue with the same ones"
        ):
            OutcomeStore(folder, n_classes=10).start(other, resume=True)


def test_a_store_without_outcomes_leaves_nothing(tmp_path: Path) -> None:
    store = OutcomeStore(tmp_path / "r.json.partial", n_classes=10)
    store.start({}, resume=False)
    with pytest.raises(KeyError), store:
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    store.start({}, resume=False)
    with pytest.raises(KeyboardInterrupt), store:
        store.put(0, outcome())
        raise KeyboardInterrupt
    assert sorted(file.name for file in store.folder.iterdir()) == ["batch-000000.npz", "plan.json"]
