"""What a caller plausibly hands in works, or is refused in one line that names the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edgeadv as ea
from edgeadv.data.datasets import ImageSet
from edgeadv.workflows.attack_plan import AttackPlan, check_resumable, chosen_attacks
from edgeadv.workflows.benchmarking import _numbers
from edgeadv.workflows.durations import seconds
from edgeadv.workflows.inputs import budgets, labelled_images
from edgeadv_runtime import Bundle, CallableAttack, Classifier, Eps, InputError
from edgeadv_runtime.attacks.base import AttackInfo
from edgeadv_runtime.engine import BatchProfile
from edgeadv_runtime.evaluation.source import Source
from edgeadv_runtime.records.release_gate import Gate
from edgeadv_runtime.records.suites import Effort

EPS = Eps.parse("8/255")


def own(name: str = "mine") -> CallableAttack:
    return CallableAttack(lambda x, y: np.minimum(x + np.float32(8 / 255), 1), name, EPS)


@pytest.mark.parametrize("eps", [8 / 255, 8, [8 / 255], [0.03, "8/255"], None, [None]])
def test_a_budget_is_text(eps: Any) -> None:
    with pytest.raises(InputError, match=r"`eps` is written as text, '8/255' or '0.03'"):
        budgets(eps)
    if not isinstance(eps, list):
        with pytest.raises(InputError, match="`eps` is written as text"):
            Eps.parse(eps)
    assert budgets(EPS) == budgets("8/255") == budgets(iter(["8/255"])) == (EPS,)


def test_attacks_may_be_an_iterator_or_one_attack() -> None:
    mine = own()
    assert chosen_attacks("fast", (each for each in ["fgsm", mine]), None)[1] == [mine]
    assert chosen_attacks("fast", mine, None) == ({}, [mine])  # type: ignore[arg-type]


def test_efforts_are_efforts_and_have_their_queries() -> None:
    with pytest.raises(InputError, match="`attacks` gives fgsm something else than an Effort"):
        chosen_attacks("fast", {"fgsm": 100}, None)  # type: ignore[dict-item]
    with pytest.raises(InputError, match="`queries` are part of the efforts"):
        chosen_attacks("standard", {"square": Effort(queries=1000)}, 50)


def test_what_is_resumed_can_be_told_from_something_else(digits_test: ImageSet, tiny_bundle: Bundle) -> None:
    check_resumable(digits_test, [])
    with pytest.raises(InputError, match="`resume` cannot tell whether mine is still the same attack"):
        check_resumable(digits_test, [own()])
    memory = ea.load_data([(np.zeros((32, 32, 3), np.uint8), i % 2) for i in range(4)])
    with pytest.raises(InputError, match="`resume` cannot tell whether list holds the same images"):
        check_resumable(memory.train, [])


class Held:
    """A pack that holds an attack called mine."""

    infos = (AttackInfo("mine", EPS, own().params(EPS), None, None),)
    uint8 = False


def test_a_packs_attack_does_not_stand_for_the_callers_own() -> None:
    with pytest.raises(InputError, match="mine"):
        Source.of_pack(Held(), (), [own()])  # type: ignore[arg-type]


def test_budgets_and_bundles_that_nothing_uses_are_refused(tiny_bundle: Bundle, photos: Path) -> None:
    with pytest.raises(InputError, match="`eps` is not used"):
        ea.evaluate(tiny_bundle, photos, eps="8/255", attacks=[own()])
    with pytest.raises(InputError, match="`transfer_from` needs `eps`"):
        ea.evaluate(tiny_bundle, photos, attacks=[own()], plan=AttackPlan(transfer_from=(tiny_bundle.path,)))
    assert AttackPlan(transfer_from="a.edgeadv").transfer_from == (Path("a.edgeadv"),)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`provider` 'gpu' computes no gradients"):
        ea.attack(tiny_bundle, photos, eps="8/255", out="x", provider="gpu")


@pytest.mark.parametrize(("given", "expected"), [(8, [8]), ([1, 8], [1, 8]), ("1,8", [1, 8]), (np.int64(4), [4])])
def test_batches_are_whole_numbers(given: Any, expected: list[int]) -> None:
    assert _numbers(given) == expected
    with pytest.raises(InputError, match="`batches`"):
        _numbers([1.5])
    assert BatchProfile.parse(8) == BatchProfile.parse("8")


def test_a_number_is_seconds() -> None:
    assert seconds(60, field="time_limit") == seconds("60s", field="time_limit") == 60.0
    with pytest.raises(InputError, match="`time_limit`"):
        seconds(0, field="time_limit")


def test_images_in_memory_are_scored_too(tiny_bundle: Bundle) -> None:
    ids = tiny_bundle.classes.ids
    data = [(np.full((64, 64, 3), 40 * i, np.uint8), i) for i in range(3)]
    found = labelled_images(Named(data, ids[:3]), tiny_bundle)  # type: ignore[arg-type]
    assert found.labels.tolist() == [0, 1, 2] and found.classes == tiny_bundle.classes


class Named(list[Any]):
    """A data set in memory that names its classes."""

    def __init__(self, items: list[Any], classes: tuple[str, ...]) -> None:
        super().__init__(items)
        self.classes = list(classes)


@pytest.mark.parametrize("precisions", [[], "fp32,", ["fp32", "fp32"]])
def test_precisions_are_named(precisions: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`precisions`"):
        ea.export(tmp_path / "run", tmp_path / "x.edgeadv", precisions=precisions)


def test_what_is_of_another_type_is_refused_by_name(tiny_bundle: Bundle, tmp_path: Path) -> None:
    module: Any = torch.nn.Linear(3, 3)
    for call, says in (
        (lambda: ea.train(module, "mnist5k", out=tmp_path / "run"), "`arch` is a Linear that is made already"),
        (lambda: ea.train(3, "mnist5k", out=tmp_path / "run"), "`arch` is text or a function, not an int"),  # type: ignore[arg-type]
        (
            lambda: ea.export(module, tmp_path / "b.edgeadv"),
            "for a network that is an object, export also needs `classes`, `preprocess`, `frames`",
        ),
        (
            lambda: ea.export(3, tmp_path / "b.edgeadv"),  # type: ignore[arg-type]
            "`source` is a Run, a ModelSource, a Module, a function, text or a path, not an int",
        ),
        (lambda: ea.evaluate(module, tmp_path, eps="8/255"), "`bundle` is a Bundle, text or a path, not a Linear"),
        (lambda: Classifier.open(3), "`bundle` is the path of a bundle, not a int"),  # type: ignore[arg-type]
        (lambda: Classifier.open(tiny_bundle.path, threads="2"), "threads must be at least 1, not '2'"),  # type: ignore[arg-type]
        (lambda: ea.bench(tiny_bundle, rate_hz="30"), "`rate_hz` is a number, not a str"),  # type: ignore[arg-type]
        (lambda: Gate(min_robust="0.5"), "`min_robust` must be a finite number, not '0.5'"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert says in str(caught.value)
