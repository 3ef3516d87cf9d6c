"""Each rule of the masking verdict, with evidence just below and just above its thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from edgeadv_runtime.attack import CLEAN_KEY, AttackInfo, CleanBatch, CraftedBatch, Key
from edgeadv_runtime.eps import Eps
from edgeadv_runtime.results import AttackParams
from edgeadv_runtime.verdict import (
    FEWEST_IMAGES,
    FGSM,
    FGSM_RANDOM_START,
    FGSM_RESCALED,
    PGD_MARGIN,
    RULES,
    ZERO_GRADIENT,
    MaskingEvidence,
    Threshold,
)

N = 200
ALL = (FGSM, FGSM_RESCALED, FGSM_RANDOM_START, PGD_MARGIN)
E1, E2 = Eps.parse("4/255"), Eps.parse("8/255")


def info(name: str, eps: Eps = E1, *, target: str | None = None) -> AttackInfo:
    return AttackInfo(name, eps, AttackParams(target=target), "torch fp32", "a" * 64)


def batch(
    fooled: dict[Key, Sequence[int]],
    *,
    keys: Sequence[Key],
    n: int = N,
    wrong: Sequence[int] = (),
    zero: dict[Key, Sequence[int]] | None = None,
) -> CraftedBatch:
    """``n`` images of which the model gets ``wrong`` wrong on clean, and under each attack those listed and no others."""
    labels = np.arange(n) % 10

    def answers(indices: Sequence[int]) -> NDArray[np.int64]:
        given = labels.copy()
        given[list(indices)] += 1
        return given

    reference = {CLEAN_KEY: answers(wrong), **{key: answers(fooled.get(key, ())) for key in keys}}
    flags = {key: np.isin(np.arange(n), list(indices)) for key, indices in (zero or {}).items()}
    clean = CleanBatch(np.arange(n), np.zeros((n, 1, 1, 3), np.uint8), labels)
    return CraftedBatch(clean, {}, reference, flags)


def verdict(
    fooled: dict[str, Sequence[int]] | None = None, *, names: Sequence[str] = ALL, n: int = N, wrong: Sequence[int] = (),
    zero: dict[str, Sequence[int]] | None = None, target: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    infos = [info(name, target=target if name == FGSM else None) for name in names]
    evidence = MaskingEvidence(infos)
    keyed = {(name, E1.text): indices for name, indices in (fooled or {}).items()}
    flags = {(name, E1.text): indices for name, indices in (zero or {}).items()}
    evidence.add(batch(keyed, keys=[i.key for i in infos], n=n, wrong=wrong, zero=flags))
    return evidence.verdict()


def item(result: dict[str, Any], rule: str, attack: str) -> dict[str, Any]:
    (found,) = [i for i in result["evidence"] if i["rule"] == rule and i.get("attack") == attack]
    return found


def wald(gained: int, lost: int, n: int) -> float:
    """The one-sided 95% bound of a paired difference, from the variance of +1, -1 and 0."""
    outcomes = np.array([1] * gained + [-1] * lost + [0] * (n - gained - lost), dtype=float)
    return float(outcomes.mean() - norm.ppf(0.95) * outcomes.std() / sqrt(n))


def first_above(bound: float, *, lost: int = 0, n: int = N) -> int:
    return next(gained for gained in range(n - lost + 1) if wald(gained, lost, n) > bound)


def test_nothing_found_with_all_attacks_is_a_pass() -> None:
    result = verdict({name: range(20) for name in ALL}, zero={name: [] for name in ALL})
    assert result["verdict"] == "PASS"
    assert all(i["finding"] is None for i in result["evidence"])
    assert {(i["rule"], i["attack"]) for i in result["evidence"]} == {
        *(("zero-gradient", name) for name in ALL), *((rule, name) for name, (rule, _) in RULES.items())
    }  # fmt: skip


@pytest.mark.parametrize("lost", [0, 9])
@pytest.mark.parametrize("finding", ["SUSPECT", "MASKED"])
@pytest.mark.parametrize("name", list(RULES))
def test_a_paired_rule_fires_just_above_its_threshold(name: str, finding: str, lost: int) -> None:
    rule, threshold = RULES[name]
    bound = {"SUSPECT": threshold.suspect, "MASKED": threshold.masked}[finding]
    gained = first_above(bound, lost=lost)
    spared = range(N - lost, N)
    for count, expected in ((gained - 1, {"SUSPECT": None, "MASKED": "SUSPECT"}[finding]), (gained, finding)):
        result = verdict({FGSM: spared, name: range(count)})
        found = item(result, rule, name)
        assert (found["gained"], found["lost"], found["n"]) == (count, lost, N)
        assert found["value"] == pytest.approx((count - lost) / N)
        assert found["lower_bound"] == pytest.approx(wald(count, lost, N), abs=1e-9)
        assert found["finding"] == expected
        assert result["verdict"] == (expected or "PASS")


@pytest.mark.parametrize("finding", ["SUSPECT", "MASKED"])
def test_the_zero_gradient_rule_fires_just_above_its_threshold(finding: str) -> None:
    bound = {"SUSPECT": ZERO_GRADIENT.suspect, "MASKED": ZERO_GRADIENT.masked}[finding]

    def wilson(k: int) -> float:
        # one-sided 95% is the lower end of two-sided 90%
        return float(binomtest(k, N).proportion_ci(confidence_level=0.9, method="wilson").low)

    flat = next(k for k in range(N) if wilson(k) > bound)
    for count, expected in ((flat - 1, {"SUSPECT": None, "MASKED": "SUSPECT"}[finding]), (flat, finding)):
        result = verdict(zero={FGSM: range(count)})
        found = item(result, "zero-gradient", FGSM)
        assert found["lower_bound"] == pytest.approx(wilson(count), abs=1e-9)
        assert found["value"] == pytest.approx(count / N)
        assert found["finding"] == expected
        assert result["verdict"] == (expected or "PASS")


@pytest.mark.parametrize("name", list(RULES))
def test_rules_look_one_way_only(name: str) -> None:
    """Plain FGSM breaks everything and the stronger attack nothing: odd, but no sign of masking."""
    result = verdict({FGSM: range(N)})
    assert item(result, RULES[name][0], name)["lower_bound"] == pytest.approx(-1)
    assert result["verdict"] == "PASS"


def test_images_are_paired() -> None:
    """Equal robust accuracies over other images are not equal attacks; the bound must know the difference in spread."""
    same = item(verdict({FGSM: range(60), PGD_MARGIN: range(100)}), "margin-pgd", PGD_MARGIN)
    other = item(verdict({FGSM: range(100, 160), PGD_MARGIN: range(100)}), "margin-pgd", PGD_MARGIN)
    assert same["value"] == other["value"] == pytest.approx(0.2)
    assert (same["gained"], same["lost"], other["gained"], other["lost"]) == (40, 0, 100, 60)
    assert other["lower_bound"] < same["lower_bound"]


def test_only_images_that_are_right_without_an_attack_count() -> None:
    wrong = range(100)
    result = verdict({PGD_MARGIN: range(100)}, wrong=wrong, zero={FGSM: range(100)})
    assert item(result, "margin-pgd", PGD_MARGIN)["gained"] == 0
    assert item(result, "margin-pgd", PGD_MARGIN)["n"] == item(result, "zero-gradient", FGSM)["n"] == 100
    assert item(result, "zero-gradient", FGSM)["value"] == 0
    assert result["verdict"] == "PASS"


def test_batches_add_up() -> None:
    infos = [info(name) for name in ALL]
    whole, parts = MaskingEvidence(infos), MaskingEvidence(infos)
    keys = [i.key for i in infos]
    fooled: dict[Key, Sequence[int]] = {(FGSM, E1.text): range(10, 40), (PGD_MARGIN, E1.text): range(30, 150)}
    full = batch(fooled, keys=keys, wrong=range(5), zero={(FGSM, E1.text): range(0, 200, 20)})
    whole.add(full)
    for part in (slice(0, 0), slice(0, 7), slice(7, 64), slice(64, 200)):
        clean = CleanBatch(full.clean.index[part], full.clean.pixels[part], full.clean.labels[part])
        parts.add(
            CraftedBatch(
                clean,
                {},
                {k: v[part] for k, v in full.reference.items()},
                {k: v[part] for k, v in full.zero_gradient.items()},
            )
        )
    assert parts.verdict() == whole.verdict()
    found = item(whole.verdict(), "margin-pgd", PGD_MARGIN)
    assert (found["gained"], found["lost"], found["n"]) == (110, 20, 195)


@pytest.mark.parametrize("missing", ALL)
def test_without_one_of_the_attacks_there_is_no_pass(missing: str) -> None:
    result = verdict(names=[name for name in ALL if name != missing])
    assert result["verdict"] == "UNCHECKED"
    assert result["evidence"][-1]["rule"] == "coverage"
    assert missing in result["evidence"][-1]["text"]


def test_only_a_foreign_attack_is_unchecked() -> None:
    assert verdict(names=["square"])["verdict"] == "UNCHECKED"
    assert MaskingEvidence([]).verdict()["verdict"] == "UNCHECKED"


def test_an_attack_that_ran_at_one_budget_does_not_vouch_for_the_other() -> None:
    infos = [*(info(name) for name in ALL), info(FGSM, E2), info(FGSM_RESCALED, E2), info(FGSM_RANDOM_START, E2)]
    evidence = MaskingEvidence(infos)
    evidence.add(batch({}, keys=[i.key for i in infos]))
    assert evidence.verdict()["verdict"] == "UNCHECKED"
    assert (
        "pgd-margin" in evidence.verdict()["evidence"][-1]["text"]
        and E2.text in evidence.verdict()["evidence"][-1]["text"]
    )


def test_the_worst_budget_decides() -> None:
    infos = [info(name, eps) for eps in (E1, E2) for name in ALL]
    evidence = MaskingEvidence(infos)
    evidence.add(batch({(PGD_MARGIN, E2.text): range(N)}, keys=[i.key for i in infos]))
    result = evidence.verdict()
    assert result["verdict"] == "MASKED"
    assert [(i["eps"], i["attack"]) for i in result["evidence"] if i["finding"]] == [(E2.text, PGD_MARGIN)]


def test_hidden_gradients_are_masked_even_without_the_margin_attack() -> None:
    result = verdict(names=[FGSM], zero={FGSM: range(N)})
    assert result["verdict"] == "MASKED"
    assert item(result, "zero-gradient", FGSM)["text"].startswith("fgsm at eps 4/255: 100.0% of 200 images")
    # and what was not run is still said
    assert result["evidence"][-1]["rule"] == "coverage"


@pytest.mark.parametrize("right", [0, 1, FEWEST_IMAGES - 1])
def test_too_few_images_are_no_pass(right: int) -> None:
    result = verdict(wrong=range(right, N))
    assert result["verdict"] == "UNCHECKED"
    assert f"only {right} images are classified right" in result["evidence"][-1]["text"]
    assert verdict(wrong=range(FEWEST_IMAGES, N))["verdict"] == "PASS"


def test_no_image_at_all_is_no_pass() -> None:
    assert MaskingEvidence([info(name) for name in ALL]).verdict()["verdict"] == "UNCHECKED"


def test_a_targeted_fgsm_is_no_pass() -> None:
    assert verdict(target=None)["verdict"] == "PASS"
    result = verdict(target="3")
    assert result["verdict"] == "UNCHECKED"
    assert "fgsm ran with a target" in result["evidence"][-1]["text"]


def test_thresholds_are_in_order() -> None:
    for threshold in (ZERO_GRADIENT, *(t for _, t in RULES.values())):
        assert isinstance(threshold, Threshold)
        assert 0 < threshold.suspect < threshold.masked < 1


@pytest.mark.parametrize("name", list(RULES))
def test_a_rule_can_fire_with_the_fewest_images(name: str) -> None:
    result = verdict({name: range(FEWEST_IMAGES)}, n=FEWEST_IMAGES)
    assert result["verdict"] == "MASKED"
