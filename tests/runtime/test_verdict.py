"""Each rule of the masking verdict, with evidence just below and just above its thresholds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from edgeadv_runtime.attack import CLEAN_KEY, AttackInfo, Evidence, Key
from edgeadv_runtime.eps import Eps
from edgeadv_runtime.results import AttackParams
from edgeadv_runtime.verdict import (
    FEWEST_IMAGES,
    FEWEST_STEPS,
    FGSM,
    FGSM_RANDOM_START,
    FGSM_RESCALED,
    MARGIN_STRONGER,
    PGD_MARGIN,
    RULES,
    ZERO_GRADIENT,
    MaskingEvidence,
    Threshold,
    margin_threshold,
)

N = FEWEST_IMAGES + 100
ALL = (FGSM, FGSM_RESCALED, FGSM_RANDOM_START, PGD_MARGIN)
E1, E2 = Eps.parse("4/255"), Eps.parse("8/255")


def info(
    name: str, eps: Eps = E1, *, target: str | None = None, steps: int = 20, weights: str | None = "a" * 64
) -> AttackInfo:
    return AttackInfo(name, eps, AttackParams(target=target, steps=steps), "torch fp32", weights)


def batch(
    fooled: dict[Key, Sequence[int]],
    *,
    keys: Sequence[Key],
    n: int = N,
    wrong: Sequence[int] = (),
    zero: dict[Key, Sequence[int]] | None = None,
) -> tuple[NDArray[np.int64], Evidence]:
    """``n`` images of which the model gets ``wrong`` wrong on clean, and under each attack those listed and no others."""
    labels = np.arange(n) % 10

    def answers(indices: Sequence[int]) -> NDArray[np.int64]:
        given = labels.copy()
        given[list(indices)] += 1
        return given

    given = {CLEAN_KEY: answers(wrong), **{key: answers(fooled.get(key, ())) for key in keys}}
    flags = {key: np.isin(np.arange(n), list(indices)) for key, indices in (zero or {}).items()}
    return labels, Evidence(given, {}, flags, np.zeros(n, bool), np.zeros(n, bool))


def verdict(
    fooled: dict[str, Sequence[int]] | None = None, *, names: Sequence[str] = ALL, n: int = N, wrong: Sequence[int] = (),
    zero: dict[str, Sequence[int]] | None = None, **changed: AttackInfo,
) -> dict[str, Any]:  # fmt: skip
    """The verdict at one budget; ``changed`` gives attacks run in another way, by their names with underscores."""
    infos = [changed.get(name.replace("-", "_"), info(name)) for name in names]
    evidence = MaskingEvidence(infos)
    keyed = {(name, E1.text): indices for name, indices in (fooled or {}).items()}
    flags = {(name, E1.text): indices for name, indices in (zero or {}).items()}
    evidence.add(*batch(keyed, keys=[i.key for i in infos], n=n, wrong=wrong, zero=flags))
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


def wilson(k: int, n: int = N) -> float:
    """The one-sided 95% bound of a share: the lower end of the two-sided 90% interval."""
    return float(binomtest(k, n).proportion_ci(confidence_level=0.9, method="wilson").low)


def bound_of(threshold: Threshold, finding: str) -> float:
    return {"SUSPECT": threshold.suspect, "MASKED": threshold.masked}[finding]


BELOW = {"SUSPECT": None, "MASKED": "SUSPECT"}


@pytest.mark.parametrize("lost", [0, 9])
@pytest.mark.parametrize("finding", ["SUSPECT", "MASKED"])
@pytest.mark.parametrize("name", [FGSM_RESCALED, FGSM_RANDOM_START])
def test_a_one_step_rule_fires_just_above_its_threshold(name: str, finding: str, lost: int) -> None:
    rule, threshold = RULES[name]
    gained = first_above(bound_of(threshold, finding), lost=lost)
    spared = range(N - lost, N)
    for count, expected in ((gained - 1, BELOW[finding]), (gained, finding)):
        result = verdict({FGSM: spared, name: range(count)})
        found = item(result, rule, name)
        assert (found["gained"], found["lost"], found["n"]) == (count, lost, N)
        assert found["value"] == pytest.approx((count - lost) / N)
        assert found["lower_bound"] == pytest.approx(wald(count, lost, N), abs=1e-9)
        assert found["finding"] == expected
        assert result["verdict"] == (expected or "PASS")


@pytest.mark.parametrize("finding", ["SUSPECT", "MASKED"])
def test_the_margin_rule_fires_just_above_its_threshold_where_nothing_stands(finding: str) -> None:
    left = first_above(bound_of(MARGIN_STRONGER, finding))
    for count, expected in ((left - 1, BELOW[finding]), (left, finding)):
        result = verdict({FGSM: range(N - count), PGD_MARGIN: range(N)})
        found = item(result, "margin-pgd", PGD_MARGIN)
        assert (found["gained"], found["lost"], found["finding"]) == (count, 0, expected)
        assert found["lower_bound"] == pytest.approx(wald(count, 0, N), abs=1e-9)
        assert (found["suspect_above"], found["masked_above"]) == (MARGIN_STRONGER.suspect, MARGIN_STRONGER.masked)
        assert result["verdict"] == (expected or "PASS")


@pytest.mark.parametrize("finding", ["SUSPECT", "MASKED"])
def test_the_margin_rule_grants_more_where_some_stand(finding: str) -> None:
    """The threshold follows the share that stands the margin attack, as far as it is certain."""

    def fires(broken: int) -> bool:
        return wald(broken, 0, N) > bound_of(margin_threshold(wilson(N - broken)), finding)

    first = next(broken for broken in range(N) if fires(broken))
    assert first < N
    for count, expected in ((first - 1, BELOW[finding]), (first, finding)):
        found = item(verdict({PGD_MARGIN: range(count)}), "margin-pgd", PGD_MARGIN)
        assert found["suspect_above"] == pytest.approx(margin_threshold(wilson(N - count)).suspect, abs=1e-9)
        assert found["suspect_above"] > MARGIN_STRONGER.suspect
        assert found["finding"] == expected


def test_what_stands_never_lowers_the_margin_threshold() -> None:
    shares = np.linspace(0, 1, 101)
    thresholds = [margin_threshold(float(share)) for share in shares]
    assert thresholds[0] == MARGIN_STRONGER
    for a, b in itertools.pairwise(thresholds):
        assert a.suspect <= b.suspect < b.masked and a.masked <= b.masked
    # a network of which half stands can still be found out
    assert thresholds[-1].masked < 1


@pytest.mark.parametrize("finding", ["SUSPECT", "MASKED"])
def test_the_zero_gradient_rule_fires_just_above_its_threshold(finding: str) -> None:
    bound = bound_of(ZERO_GRADIENT, finding)
    flat = next(k for k in range(N) if wilson(k) > bound)
    for count, expected in ((flat - 1, BELOW[finding]), (flat, finding)):
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
    assert same["value"] == other["value"] == pytest.approx(40 / N)
    assert (same["gained"], same["lost"], other["gained"], other["lost"]) == (40, 0, 100, 60)
    assert other["lower_bound"] < same["lower_bound"]


def test_only_images_that_are_right_without_an_attack_count() -> None:
    wrong = range(100)
    result = verdict({PGD_MARGIN: range(100)}, wrong=wrong, zero={FGSM: range(100)})
    assert item(result, "margin-pgd", PGD_MARGIN)["gained"] == 0
    assert item(result, "margin-pgd", PGD_MARGIN)["n"] == item(result, "zero-gradient", FGSM)["n"] == N - 100
    assert item(result, "zero-gradient", FGSM)["value"] == 0
    assert result["verdict"] == "PASS"


def test_batches_add_up() -> None:
    infos = [info(name) for name in ALL]
    whole, parts = MaskingEvidence(infos), MaskingEvidence(infos)
    keys = [i.key for i in infos]
    fooled: dict[Key, Sequence[int]] = {(FGSM, E1.text): range(10, 40), (PGD_MARGIN, E1.text): range(30, 150)}
    labels, full = batch(fooled, keys=keys, wrong=range(5), zero={(FGSM, E1.text): range(0, 200, 20)})
    whole.add(labels, full)
    for part in (slice(0, 0), slice(0, 7), slice(7, 64), slice(64, N)):
        chosen = np.zeros(N, bool)
        chosen[part] = True
        parts.add(labels[part], full.select(chosen))
    assert parts.verdict() == whole.verdict()
    found = item(whole.verdict(), "margin-pgd", PGD_MARGIN)
    assert (found["gained"], found["lost"], found["n"]) == (110, 20, N - 5)


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
    evidence.add(*batch({}, keys=[i.key for i in infos]))
    assert evidence.verdict()["verdict"] == "UNCHECKED"
    assert (
        "pgd-margin" in evidence.verdict()["evidence"][-1]["text"]
        and E2.text in evidence.verdict()["evidence"][-1]["text"]
    )


def test_the_worst_budget_decides() -> None:
    infos = [info(name, eps) for eps in (E1, E2) for name in ALL]
    evidence = MaskingEvidence(infos)
    evidence.add(*batch({(PGD_MARGIN, E2.text): range(N)}, keys=[i.key for i in infos]))
    result = evidence.verdict()
    assert result["verdict"] == "MASKED"
    assert [(i["eps"], i["attack"]) for i in result["evidence"] if i["finding"]] == [(E2.text, PGD_MARGIN)]


def test_hidden_gradients_are_masked_even_without_the_margin_attack() -> None:
    result = verdict(names=[FGSM], zero={FGSM: range(N)})
    assert result["verdict"] == "MASKED"
    assert item(result, "zero-gradient", FGSM)["text"].startswith(f"fgsm at eps 4/255: 100.0% of the {N} images")
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


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (info(FGSM, target="3"), "fgsm ran with a target"),
        (info(FGSM_RESCALED, target="3"), "fgsm-rescaled ran with a target"),
        (info(PGD_MARGIN, steps=FEWEST_STEPS - 1), f"took fewer than {FEWEST_STEPS} steps"),
        (info(PGD_MARGIN, weights=None), "pgd-margin does not say which weights its gradients belong to"),
    ],
    ids=["fgsm with a target", "rescaled with a target", "too few steps", "whose gradients"],
)
def test_an_attack_run_in_another_way_earns_no_pass(changed: AttackInfo, reason: str) -> None:
    assert verdict()["verdict"] == verdict(pgd_margin=info(PGD_MARGIN, steps=FEWEST_STEPS))["verdict"] == "PASS"
    result = verdict(**{changed.name.replace("-", "_"): changed})
    assert result["verdict"] == "UNCHECKED"
    assert reason in result["evidence"][-1]["text"]


@pytest.mark.parametrize("targeted", [FGSM, FGSM_RESCALED])
def test_a_targeted_attack_is_compared_with_nothing(targeted: str) -> None:
    """It aims at something else: that it breaks less, or more, is no sign of masking."""
    result = verdict({name: range(N) for name in RULES}, **{targeted.replace("-", "_"): info(targeted, target="3")})
    compared = {i["attack"] for i in result["evidence"] if i["rule"] not in ("zero-gradient", "coverage")}
    assert compared == (set() if targeted == FGSM else {FGSM_RANDOM_START, PGD_MARGIN})


def test_thresholds_are_in_order() -> None:
    for threshold in (ZERO_GRADIENT, *(t for _, t in RULES.values())):
        assert isinstance(threshold, Threshold)
        assert 0 < threshold.suspect < threshold.masked < 1


@pytest.mark.parametrize("name", list(RULES))
def test_a_rule_can_fire_with_the_fewest_images(name: str) -> None:
    result = verdict({name: range(FEWEST_IMAGES)}, n=FEWEST_IMAGES)
    assert result["verdict"] == "MASKED"


def test_a_network_overfitted_to_fgsm_earns_no_pass() -> None:
    """FGSM 35%, PGD 0%, with no zero gradients: seen on digits at eps 0.3."""
    n = 1000
    assert verdict({FGSM: range(650), PGD_MARGIN: range(n)}, n=n)["verdict"] == "SUSPECT"


@pytest.mark.parametrize(
    ("fgsm", "pgd"), [(0.482, 0.075), (0.619, 0.433), (0.366, 0.077), (0.242, 0.005), (0.169, 0.0)]
)
def test_what_undefended_networks_showed_is_a_pass(fgsm: float, pgd: float) -> None:
    """Shares of the images that stood, measured on digits at several budgets; the first is the widest gap seen."""
    n = 1000
    stood = {FGSM: range(round(n * (1 - fgsm))), PGD_MARGIN: range(round(n * (1 - pgd)))}
    assert verdict(stood, n=n)["verdict"] == "PASS"
