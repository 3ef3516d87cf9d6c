"""Each rule of the masking verdict, with evidence just below and just above its thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from edgeadv_runtime.attacks.base import CLEAN_KEY, AttackInfo, Evidence, Key
from edgeadv_runtime.evaluation.outcomes import Artefact, BatchOutcome
from edgeadv_runtime.evaluation.verdict import (
    FEWEST_DRAWS,
    FEWEST_IMAGES,
    FEWEST_QUERIES,
    FEWEST_STEPS,
    MaskingEvidence,
    verdict_of,
)
from edgeadv_runtime.evaluation.verdict_rules import (
    FURTHER,
    LARGE_EPS_STANDS,
    LINEAR,
    MARGIN_ALLOWED,
    MOST_PROGRESS,
    NEEDED,
    NOT_LINEAR,
    PAIRS,
    PROBABILITIES,
    QUERY_STRONGER,
    RISES,
    UNSTABLE,
    ZERO_GRADIENT,
    Threshold,
    breaks_linearity,
)
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.evidence import Masking
from edgeadv_runtime.records.rows import AttackParams
from edgeadv_runtime.records.suites import (
    APGD_CE,
    APGD_DLR,
    APGD_TARGETED,
    CUMULATIVE,
    FGSM,
    FGSM_RANDOM_START,
    FGSM_RESCALED,
    LARGE_EPS,
    LINEARITY,
    MI_FGSM,
    NOISE,
    PGD_CE,
    PGD_MARGIN,
    PGD_SMOOTHED,
    SQUARE,
    SUITES,
    TRANSFER,
    base_name,
)

N = FEWEST_IMAGES + 100
ALL = (*NEEDED, NOISE, PGD_SMOOTHED, SQUARE, LARGE_EPS, LINEARITY)
EVERY = (
    *NEEDED,
    NOISE,
    APGD_CE,
    APGD_DLR,
    MI_FGSM,
    APGD_TARGETED,
    PGD_SMOOTHED,
    f"{TRANSFER}@other",
    SQUARE,
    LARGE_EPS,
    LINEARITY,
)
EVERYWHERE = tuple(name for name in ALL if name != LARGE_EPS)
E1, E2, ONE = Eps.parse("4/255"), Eps.parse("8/255"), Eps.parse("1")


def info(
    name: str, eps: Eps = E1, *, target: str | None = None, steps: int = 20, weights: str | None = "a" * 64
) -> AttackInfo:
    # APGD on all images, as where PGD is left out, and in packs of before
    cumulative = base_name(name) in CUMULATIVE and name not in (APGD_CE, APGD_DLR)
    if name in (LARGE_EPS, LINEARITY):
        own = ONE if name == LARGE_EPS else eps
        return AttackInfo(name, own, AttackParams(steps=steps), "torch fp32", weights, control=True)
    if name in (NOISE, SQUARE):
        queries = FEWEST_DRAWS if name == NOISE else FEWEST_QUERIES
        return AttackInfo(name, eps, AttackParams(target=target, queries=queries), None, None, cumulative=cumulative)
    params = AttackParams(target=target, steps=steps)
    return AttackInfo(name, eps, params, "torch fp32", weights, cumulative=cumulative)


def batch(
    fooled: dict[Key, Sequence[int]],
    *,
    keys: Sequence[Key],
    n: int = N,
    wrong: Sequence[int] = (),
    zero: dict[Key, Sequence[int]] | None = None,
    probabilities: int = 0,
    unstable: int = 0,
    further: dict[Key, int] | None = None,
    bent: int = 0,
) -> tuple[NDArray[np.int64], Evidence]:
    """``n`` images of which the model gets ``wrong`` wrong on clean, and under each attack those listed and no others.

    The first images have a margin that an attack raised ``further`` than gradients, or that is ``bent``.
    """
    labels = np.arange(n) % 10

    def answers(indices: Sequence[int]) -> NDArray[np.int64]:
        given = labels.copy()
        given[list(indices)] += 1
        return given

    given = {CLEAN_KEY: answers(wrong), **{key: answers(fooled.get(key, ())) for key in keys}}
    no_gradient = {**{key: () for key in keys if key[0] in NEEDED}, **(zero or {})}
    flags = {key: np.isin(np.arange(n), list(indices)) for key, indices in no_gradient.items()}
    counts = {**{key: 0 for key in keys if key[0] in MOST_PROGRESS}, **(further or {})}
    progress = {
        key: np.where(np.arange(n) < count, MOST_PROGRESS[key[0]] + 0.01, MOST_PROGRESS[key[0]] - 0.01).astype(
            np.float32
        )
        for key, count in counts.items()
    }
    ratios = np.where(np.arange(n)[:, None] < bent, 0.0, np.ones((n, 4))).astype(np.float32)
    linearity = {key: ratios for key in keys if key[0] == LINEARITY}
    return labels, Evidence(
        given, {}, flags, np.arange(n) < probabilities, np.arange(n) < unstable, progress, linearity
    )


def verdict(
    fooled: dict[str, Sequence[int]] | None = None,
    *,
    names: Sequence[str] = ALL,
    n: int = N,
    wrong: Sequence[int] = (),
    zero: dict[str, Sequence[int]] | None = None,
    probabilities: int = 0,
    unstable: int = 0,
    further: dict[str, int] | None = None,
    bent: int = 0,
    **changed: AttackInfo,
) -> dict[str, Any]:
    """The verdict at one budget; ``changed`` gives attacks run in another way, by their names with underscores.

    At eps 1 nothing stands unless ``fooled`` says otherwise.
    """
    infos = [changed.get(name.replace("-", "_"), info(name)) for name in names]
    evidence = MaskingEvidence(infos)
    eps = {i.name: i.eps.text for i in infos}
    said = {LARGE_EPS: range(n), **(fooled or {})}
    keyed = {(name, eps[name]): indices for name, indices in said.items() if name in eps}
    flags = {(name, eps[name]): indices for name, indices in (zero or {}).items()}
    keys = [i.key for i in infos]
    evidence.add(
        *batch(
            keyed,
            keys=keys,
            n=n,
            wrong=wrong,
            zero=flags,
            probabilities=probabilities,
            unstable=unstable,
            bent=bent,
            further={(name, eps[name]): count for name, count in (further or {}).items()},
        )
    )
    return evidence.verdict()


def item(result: dict[str, Any], rule: str, attack: str | None = None) -> dict[str, Any]:
    (found,) = [i for i in result.evidence if i.rule == rule and attack in (None, i.attack)]
    return found


def wald(gained: int, lost: int, n: int, *, left: int | None = None, allowed: float = 0.0) -> float:
    """The one-sided 95% bound of a paired difference, from the variance of +1, -1 and 0, less what is allowed; one more
    of each."""
    left = gained if left is None else left
    outcomes = np.array([1] * gained + [0] * (left - gained) + [-1] * lost + [0] * (n - left - lost), dtype=float)
    outcomes[:left] -= allowed
    outcomes = np.append(outcomes, [1 - allowed, -1])
    return float(outcomes.mean() - norm.ppf(0.95) * outcomes.std() / sqrt(n + 2))


def first_above(bound: float, *, lost: int = 0, n: int = N, allowed: float = 0.0) -> int:
    """The fewest to gain of all but the lost."""
    left = n - lost
    return next(gained for gained in range(left + 1) if wald(gained, lost, n, left=left, allowed=allowed) > bound)


def test_nothing_found_with_all_attacks_is_a_pass() -> None:
    result = verdict(
        {name: range(20) for name in EVERY if name != LARGE_EPS},
        names=EVERY,
        zero={n: [] for n in EVERY},
        further={NOISE: 0, SQUARE: 0},
    )
    assert result.verdict == "PASS"
    assert all(i.finding is None for i in result.evidence)
    assert {(i.rule, i.attack) for i in result.evidence} == {
        *(("zero-gradient", name) for name in NEEDED),
        *((pair.rule, pair.attack) for pair in PAIRS),
        ("together", SQUARE),
        ("query", NOISE),
        ("query", SQUARE),
        ("smoothed", PGD_SMOOTHED),
        ("transfer", f"{TRANSFER}@other"),
        ("noise", NOISE),
        ("progress", SQUARE),
        ("linearity", LINEARITY),
        ("large-eps", LARGE_EPS),
    }


def wilson(k: int, n: int = N) -> float:
    """The one-sided 95% bound of a share: the lower end of the two-sided 90% interval."""
    return float(binomtest(k, n).proportion_ci(confidence_level=0.9, method="wilson").low)


def bound_of(threshold: Threshold, finding: str) -> float:
    return {"SUSPECT": threshold.suspect, "MASKED": threshold.masked}[finding]


BELOW = {"SUSPECT": None, "MASKED": "SUSPECT"}
CAN_FIRE = [(pair, finding) for pair in PAIRS for finding in BELOW if bound_of(pair.threshold, finding) < 1]


PAIR = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.attack}-{pair.than}")


@pytest.mark.parametrize("lost", [0, 9])
@pytest.mark.parametrize(
    ("pair", "finding"), CAN_FIRE, ids=[f"{pair.attack}-{pair.than}-{finding}" for pair, finding in CAN_FIRE]
)
def test_a_paired_rule_fires_just_above_its_threshold(pair: Any, finding: str, lost: int) -> None:
    """All attacks but the one break the same few images, so that one rule alone has something to say."""
    gained = first_above(bound_of(pair.threshold, finding), lost=lost, allowed=pair.allowed)
    spared = range(N - lost, N)
    for count, expected in ((gained - 1, BELOW[finding]), (gained, finding)):
        result = verdict({pair.than: spared, pair.attack: range(count)}, names=EVERY)
        found = next(
            i
            for i in result.evidence
            if (i.rule, i.attack) == (pair.rule, pair.attack) and f"that {pair.than} left" in i.text
        )
        assert (found.gained, found.lost, found.left, found.n) == (count, lost, N - lost, N)
        assert found.value == pytest.approx((count - lost - pair.allowed * (N - lost)) / N)
        bound = wald(count, lost, N, left=N - lost, allowed=pair.allowed)
        assert found.lower_bound == pytest.approx(bound, abs=1e-9)
        assert found.finding == expected


RULES = {SQUARE: "query", NOISE: "query", PGD_SMOOTHED: "smoothed", f"{TRANSFER}@other": "transfer"}


@pytest.mark.parametrize("finding", ["SUSPECT", "MASKED"])
@pytest.mark.parametrize("name", list(RULES))
def test_a_query_attack_counts_for_what_it_adds_to_all_gradients_together(name: str, finding: str) -> None:
    bound = bound_of(QUERY_STRONGER, finding)
    more = next(k for k in range(N) if wilson(k) > bound)
    for count, expected in ((more - 1, BELOW[finding]), (more, finding)):
        # PGD broke the last 100, among them the last of what the query attack broke
        result = verdict(
            {
                PGD_CE: range(N - 100, N),
                PGD_MARGIN: range(N - 100, N),
                FGSM: range(N - 100, N),
                FGSM_RANDOM_START: range(N - 100, N),
                FGSM_RESCALED: range(N - 100, N),
                name: [*range(count), N - 1],
            },
            names=EVERY,
        )
        found = item(result, RULES[name], name)
        assert found.value == pytest.approx(count / N) and found.finding == expected
        assert result.verdict == (expected or "PASS")


@pytest.mark.parametrize("finding", ["SUSPECT", "MASKED"])
def test_what_stands_at_eps_1_is_judged_against_the_commonest_class(finding: str) -> None:
    bound = bound_of(LARGE_EPS_STANDS, finding)
    stands = next(k for k in range(N) if wilson(k) - 0.1 > bound)  # ten classes, as many images of each
    for count, expected in ((stands - 1, BELOW[finding]), (stands, finding)):
        result = verdict({LARGE_EPS: range(count, N)})
        assert item(result, "large-eps").value == pytest.approx(count / N - 0.1)
        assert item(result, "large-eps").lower_bound == pytest.approx(wilson(count) - 0.1, abs=1e-9)
        assert result.verdict == (expected or "PASS")


@pytest.mark.parametrize("finding", ["SUSPECT", "MASKED"])
def test_pgd_that_gets_weaker_with_a_larger_budget_is_found(finding: str) -> None:
    infos = [info(name, eps) for eps in (E1, E2) for name in EVERYWHERE] + [info(LARGE_EPS)]
    gained = first_above(bound_of(RISES, finding))
    for count, expected in ((gained - 1, BELOW[finding]), (gained, finding)):
        evidence = MaskingEvidence(infos)
        broken = {(PGD_CE, eps.text): range(count) for eps in (E1, E2)}
        broken |= {(PGD_MARGIN, E1.text): range(count), (LARGE_EPS, "1"): range(N)}
        evidence.add(*batch(broken, keys=[i.key for i in infos]))
        found = item(evidence.verdict(), "rising")
        assert (found.eps, found.gained, found.lost, found.finding) == (E2.text, count, 0, expected)


def test_one_step_attacks_may_get_weaker_with_the_budget() -> None:
    infos = [info(name, eps) for eps in (E1, E2) for name in EVERYWHERE] + [info(LARGE_EPS)]
    evidence = MaskingEvidence(infos)
    strong = {(name, eps.text): range(N) for eps in (E1, E2) for name in (PGD_CE, PGD_MARGIN)}
    one_step = (FGSM, FGSM_RESCALED, FGSM_RANDOM_START)
    weaker = {(name, eps.text): range(count) for name in one_step for eps, count in ((E1, N), (E2, 3 * N // 5))}
    evidence.add(*batch({**strong, **weaker, (LARGE_EPS, "1"): range(N)}, keys=[i.key for i in infos]))
    assert evidence.verdict().verdict == "PASS"


def test_probabilities_and_two_answers_are_said() -> None:
    result = verdict(probabilities=N)
    assert result.verdict == "SUSPECT" and "probabilities, not logits" in item(result, "probabilities").text
    assert item(result, "probabilities").suspect_above == PROBABILITIES.suspect
    few = next(k for k in range(N) if wilson(k) > UNSTABLE.suspect)
    assert verdict(unstable=few - 1).verdict == "PASS"
    result = verdict(unstable=few)
    assert result.verdict == "SUSPECT" and "answers differently" in item(result, "unstable").text
    assert verdict(unstable=N).verdict == "MASKED"
    assert [i for i in verdict().evidence if i.rule in ("probabilities", "unstable")] == []


@pytest.mark.parametrize("finding", ["SUSPECT", "MASKED"])
def test_the_zero_gradient_rule_fires_just_above_its_threshold(finding: str) -> None:
    bound = bound_of(ZERO_GRADIENT, finding)
    flat = next(k for k in range(N) if wilson(k) > bound)
    for count, expected in ((flat - 1, BELOW[finding]), (flat, finding)):
        result = verdict(zero={FGSM: range(count)})
        found = item(result, "zero-gradient", FGSM)
        assert found.lower_bound == pytest.approx(wilson(count), abs=1e-9)
        assert found.value == pytest.approx(count / N)
        assert found.finding == expected
        assert result.verdict == (expected or "PASS")


@PAIR
def test_rules_look_one_way_only(pair: Any) -> None:
    """The attack that may be weaker breaks everything and the stronger one nothing: odd, but no sign of masking."""
    result = verdict({pair.than: range(N)}, names=EVERY)
    (found,) = (i for i in result.evidence if i.attack == pair.attack and f"that {pair.than} left" in i.text)
    assert found.lower_bound < -0.9 and found.finding is None


def test_a_budget_of_a_third_partys_attack_needs_the_attacks_of_a_pass_too() -> None:
    """Its worst case at that budget has the verdict beside it."""
    infos = [info(name) for name in ALL]
    theirs = replace(info(FGSM, Eps.parse("0.3")), name="theirs-fgsm")
    evidence = MaskingEvidence([*infos, theirs])
    evidence.add(*batch({(LARGE_EPS, "1"): range(N)}, keys=[i.key for i in (*infos, theirs)]))
    result = evidence.verdict()
    assert result.verdict == "UNCHECKED"
    assert "missing at 0.3" in item(result, "coverage").text
    # the same number under another name is the same budget
    same = replace(theirs, eps=Eps(str(E1.value), E1.value))
    evidence = MaskingEvidence([*infos, same])
    evidence.add(*batch({(LARGE_EPS, "1"): range(N)}, keys=[i.key for i in (*infos, same)]))
    assert evidence.verdict().verdict == "PASS"


def test_images_of_the_target_hide_no_gradient() -> None:
    """A targeted attack leaves them alone: they are what it wants already."""
    infos = [info(name) for name in ALL]
    aimed = [
        replace(i, params=msgspec.structs.replace(i.params, target="3")) if i.name in (FGSM, FGSM_RESCALED) else i
        for i in infos
    ]
    for listed, finding in ((infos, "MASKED"), (aimed, None)):
        evidence = MaskingEvidence(listed)
        evidence.add(
            *batch({(LARGE_EPS, "1"): range(N)}, zero={(FGSM, E1.text): range(N // 2)}, keys=[i.key for i in listed])
        )
        found = [i.finding for i in evidence.verdict().evidence if i.rule == "zero-gradient" and i.attack == FGSM]
        assert found == ([finding] if finding else [])


def test_images_are_paired() -> None:
    """Equal robust accuracies over other images are not equal attacks; the bound must know the difference in spread."""
    same = item(verdict({PGD_CE: range(60), PGD_MARGIN: range(100)}), "margin", PGD_MARGIN)
    other = item(verdict({PGD_CE: range(100, 160), PGD_MARGIN: range(100)}), "margin", PGD_MARGIN)
    assert same.value == other.value == pytest.approx((40 - MARGIN_ALLOWED * 340) / N)
    assert (same.gained, same.lost, other.gained, other.lost) == (40, 0, 100, 60)
    assert other.lower_bound < same.lower_bound


def test_the_margin_may_be_the_better_loss_but_not_the_only_one_that_works() -> None:
    """30 images more: of 300 that stand the cross-entropy has missed a tenth, of 40 that stand it was blind to them."""
    honest = verdict({PGD_CE: range(100), PGD_MARGIN: range(130)})
    assert honest.verdict == "PASS" and item(honest, "margin").lower_bound < 0
    steps = dict.fromkeys((FGSM, FGSM_RANDOM_START, FGSM_RESCALED, PGD_CE), range(360))
    blind = verdict({**steps, PGD_MARGIN: range(390)})
    assert blind.verdict == "SUSPECT" and item(blind, "margin").gained == 30


def test_only_images_that_are_right_without_an_attack_count() -> None:
    wrong = range(100)
    result = verdict({PGD_MARGIN: range(100)}, wrong=wrong, zero={FGSM: range(100)})
    assert item(result, "margin", PGD_MARGIN).gained == 0
    assert item(result, "margin", PGD_MARGIN).n == item(result, "zero-gradient", FGSM).n == N - 100
    assert item(result, "zero-gradient", FGSM).value == 0
    assert result.verdict == "PASS"


def test_batches_add_up() -> None:
    infos = [info(name) for name in ALL]
    whole, parts = MaskingEvidence(infos), MaskingEvidence(infos)
    keys = [i.key for i in infos]
    fooled: dict[Key, Sequence[int]] = {(PGD_CE, E1.text): range(10, 40), (PGD_MARGIN, E1.text): range(30, 150)}
    labels, full = batch(fooled, keys=keys, wrong=range(5), zero={(FGSM, E1.text): range(0, 200, 20)})
    whole.add(labels, full)
    for part in (slice(0, 0), slice(0, 7), slice(7, 64), slice(64, N)):
        chosen = np.zeros(N, bool)
        chosen[part] = True
        parts.add(labels[part], full.select(chosen))
    assert parts.verdict() == whole.verdict()
    found = item(whole.verdict(), "margin", PGD_MARGIN)
    assert (found.gained, found.lost, found.n) == (110, 20, N - 5)


@pytest.mark.parametrize("missing", ALL)
def test_without_one_of_the_attacks_there_is_no_pass(missing: str) -> None:
    result = verdict(names=[name for name in ALL if name != missing])
    assert result.verdict == "UNCHECKED"
    assert result.evidence[-1].rule == "coverage"
    assert missing in result.evidence[-1].text


def test_only_a_foreign_attack_is_unchecked() -> None:
    assert verdict(names=["square"]).verdict == "UNCHECKED"
    assert MaskingEvidence([]).verdict().verdict == "UNCHECKED"


def test_noise_alone_will_not_do() -> None:
    """One draw, or twenty, contradict nobody: something has to have asked the network itself."""
    result = verdict(names=[name for name in ALL if name != SQUARE])
    assert result.verdict == "UNCHECKED" and "an upper bound" in result.evidence[-1].text


@pytest.mark.parametrize(("suite", "expected"), [("fast", "UNCHECKED"), ("standard", "PASS"), ("full", "PASS")])
def test_the_suites_can_earn_a_pass_but_for_fast(suite: str, expected: str) -> None:
    infos = []
    for name, effort in SUITES[suite].items():  # type: ignore[index]
        made = info(name, steps=effort.steps)
        queries = effort.queries if name in (NOISE, SQUARE) else None
        infos.append(replace(made, params=msgspec.structs.replace(made.params, queries=queries)))
    evidence = MaskingEvidence(infos)
    evidence.add(*batch({(LARGE_EPS, "1"): range(N)}, keys=[i.key for i in infos]))
    assert evidence.verdict().verdict == expected


@pytest.mark.parametrize("finding", ["SUSPECT", "MASKED"])
@pytest.mark.parametrize(("name", "rule"), [(SQUARE, "progress"), (NOISE, "noise")])
def test_who_gets_further_than_gradients_is_counted_on_images_that_stand(name: str, rule: str, finding: str) -> None:
    more = next(k for k in range(N) if wilson(k) > bound_of(FURTHER, finding))
    for count, expected in ((more - 1, BELOW[finding]), (more, finding)):
        result = verdict(further={name: count})
        assert item(result, rule).finding == expected
        assert item(result, rule).value == pytest.approx(count / N)
        assert result.verdict == (expected or "PASS")
    # what gradients have broken does not count
    assert item(verdict({PGD_CE: range(more)}, further={name: more}), rule).value == 0


@pytest.mark.parametrize("finding", ["SUSPECT", "MASKED"])
def test_bent_margins_are_counted_on_images_that_stand(finding: str) -> None:
    more = next(k for k in range(N) if wilson(k) > bound_of(NOT_LINEAR, finding))
    for count, expected in ((more - 1, BELOW[finding]), (more, finding)):
        result = verdict(bent=count)
        assert item(result, "linearity").finding == expected
        assert result.verdict == (expected or "PASS")
    assert item(verdict({PGD_CE: range(more)}, bent=more), "linearity").value == 0


def test_linearity_needs_every_length_at_the_image_and_one_at_the_worst_version() -> None:
    low, high = LINEAR
    for ratios, broken in (
        ([low, high, 0, high], False),
        ([low, 1, low, 9], False),
        ([low - 0.01, 1, 1, 1], True),
        ([1, high + 0.01, 1, 1], True),
        ([1, 1, -1, high + 0.01], True),
        ([np.nan] * 4, False),
    ):
        assert breaks_linearity(np.array([ratios], np.float32)).tolist() == [broken]


def test_what_many_break_a_little_each_counts_together() -> None:
    """Each by itself stays below the threshold, and all of them are beyond it."""
    few = next(k for k in range(N) if wilson(k) > QUERY_STRONGER.suspect) - 1
    parts = {PGD_SMOOTHED: range(few), f"{TRANSFER}@other": range(2 * few), SQUARE: range(3 * few)}
    result = verdict(parts, names=EVERY)
    assert {i.finding for i in result.evidence if i.rule in ("smoothed", "transfer", "query")} == {None}
    assert item(result, "together").value == pytest.approx(3 * few / N)
    assert item(result, "together").finding == result.verdict == "SUSPECT"


def test_what_noise_breaks_is_seen_beside_attacks_that_go_on_from_it() -> None:
    """MI-FGSM and targeted APGD run before noise: what they keep is their own."""
    result = verdict({NOISE: range(N), PGD_SMOOTHED: range(N), SQUARE: range(N)}, names=EVERY, further={NOISE: N})
    assert result.verdict == "MASKED"
    assert item(result, "query", NOISE).value == item(result, "noise").value == 1


@pytest.mark.parametrize("table", ["zero_gradient", "progress", "linearity"])
def test_evidence_that_is_missing_is_no_silence(table: str) -> None:
    infos = [info(name) for name in ALL]
    labels, whole = batch({(LARGE_EPS, "1"): range(N)}, keys=[i.key for i in infos])
    for evidence, expected in ((whole, "PASS"), (replace(whole, **{table: {}}), "UNCHECKED")):
        gathered = MaskingEvidence(infos)
        gathered.add(labels, evidence)
        assert gathered.verdict().verdict == expected
    holes = np.ones((N, 4), np.float32)
    holes[5] = np.nan
    gathered = MaskingEvidence(infos)
    gathered.add(labels, replace(whole, linearity={(LINEARITY, E1.text): holes}))
    assert gathered.verdict().verdict == "UNCHECKED"


def test_gradients_of_other_weights_are_none_of_the_models() -> None:
    """An attack made for an int8 artefact that breaks what the weights' own left is a finding, and hides none."""
    theirs = replace(info(f"{PGD_MARGIN}@int8-u8s8", weights="b" * 64))
    infos = [*(info(name) for name in ALL), theirs]
    gathered = MaskingEvidence(infos)
    gathered.add(*batch({theirs.key: range(40), (LARGE_EPS, "1"): range(N)}, keys=[i.key for i in infos], bent=40))
    result = gathered.verdict()
    assert item(result, "transfer").value == item(result, "linearity").value == pytest.approx(0.1)
    mixed = {"pgd_smoothed": info(PGD_SMOOTHED, weights="b" * 64)}
    assert verdict(**mixed).verdict == "UNCHECKED"
    assert verdict(pgd_large_eps=info(LARGE_EPS, steps=1)).verdict == "UNCHECKED"


def test_controls_alone_accuse_nobody() -> None:
    result = verdict({SQUARE: range(N)}, names=[SQUARE, LARGE_EPS, LINEARITY])
    assert result.verdict == "UNCHECKED" and [i.rule for i in result.evidence if i.finding] == []


def test_what_the_attacks_before_it_broke_is_no_finding_of_a_cumulative_attack() -> None:
    """It keeps their versions, so its row has them as broken."""
    broken = range(100)
    result = verdict({PGD_SMOOTHED: broken, f"{TRANSFER}@other": broken, SQUARE: broken}, names=EVERY)
    assert item(result, "smoothed").value == 0.25
    assert item(result, "transfer").value == item(result, "query", SQUARE).value == 0


def test_several_draws_of_noise_and_many_queries_are_needed() -> None:
    few = replace(info(NOISE), params=AttackParams(queries=FEWEST_DRAWS - 1))
    result = verdict(noise=few)
    assert result.verdict == "UNCHECKED" and "noise was drawn fewer" in result.evidence[-1].text
    few = replace(info(SQUARE), params=AttackParams(queries=FEWEST_QUERIES - 1))
    result = verdict(square=few)
    assert result.verdict == "UNCHECKED" and f"fewer than {FEWEST_QUERIES}" in result.evidence[-1].text


def test_an_attack_that_ran_at_one_budget_does_not_vouch_for_the_other() -> None:
    infos = [*(info(name) for name in ALL), *(info(name, E2) for name in EVERYWHERE if name != PGD_MARGIN)]
    evidence = MaskingEvidence(infos)
    evidence.add(*batch({(LARGE_EPS, "1"): range(N)}, keys=[i.key for i in infos]))
    assert evidence.verdict().verdict == "UNCHECKED"
    assert "pgd-margin" in evidence.verdict().evidence[-1].text and E2.text in evidence.verdict().evidence[-1].text


def test_the_worst_budget_decides() -> None:
    infos = [*(info(name, eps) for eps in (E1, E2) for name in EVERYWHERE), info(LARGE_EPS)]
    evidence = MaskingEvidence(infos)
    evidence.add(*batch({(PGD_MARGIN, E2.text): range(N), (LARGE_EPS, "1"): range(N)}, keys=[i.key for i in infos]))
    result = evidence.verdict()
    assert result.verdict == "MASKED"
    assert [(i.eps, i.attack) for i in result.evidence if i.finding] == [(E2.text, PGD_MARGIN)]


def test_hidden_gradients_are_masked_even_without_the_margin_attack() -> None:
    result = verdict(names=[FGSM], zero={FGSM: range(N)})
    assert result.verdict == "MASKED"
    assert item(result, "zero-gradient", FGSM).text.startswith(f"fgsm at eps 4/255: 100.0% of the {N} images")
    # and what was not run is still said
    assert result.evidence[-1].rule == "coverage"


@pytest.mark.parametrize("right", [0, 1, FEWEST_IMAGES - 1])
def test_too_few_images_are_no_pass(right: int) -> None:
    result = verdict(wrong=range(right, N))
    assert result.verdict == "UNCHECKED"
    assert f"only {right} images are classified right" in result.evidence[-1].text
    assert verdict(wrong=range(FEWEST_IMAGES, N)).verdict == "PASS"


def test_no_image_at_all_is_no_pass() -> None:
    result = MaskingEvidence([info(name) for name in ALL]).verdict()
    assert result.verdict == "UNCHECKED" and len(result.evidence) == 1


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
    assert verdict().verdict == verdict(pgd_margin=info(PGD_MARGIN, steps=FEWEST_STEPS)).verdict == "PASS"
    result = verdict(**{changed.name.replace("-", "_"): changed})
    assert result.verdict == "UNCHECKED"
    assert reason in result.evidence[-1].text


def test_a_targeted_attack_is_compared_with_nothing() -> None:
    """It aims at something else: that it breaks less, or more, is no sign of masking."""
    changed = {name.replace("-", "_"): info(name, target="3") for name in (FGSM, PGD_CE)}
    fell = {name: range(N) for name in (FGSM_RESCALED, FGSM_RANDOM_START, PGD_MARGIN)}

    def compared(result: Masking) -> list[str]:
        return [item.rule for item in result.evidence if item.rule in {pair.rule for pair in PAIRS}]

    assert len(compared(verdict(fell, names=EVERY))) == len(PAIRS)
    assert compared(verdict(fell, names=EVERY, **changed)) == ["margin"]


def test_attacks_that_ran_on_what_stood_are_compared_with_nothing() -> None:
    fell = {APGD_DLR: range(N)}
    for one in (APGD_CE, APGD_DLR):
        adding = {one.replace("-", "_"): replace(info(one), cumulative=True)}
        rules = {item.attack for item in verdict(fell, names=EVERY, **adding).evidence if item.rule == "margin"}
        assert rules == {PGD_MARGIN}
    assert APGD_DLR in {item.attack for item in verdict(fell, names=EVERY).evidence if item.rule == "margin"}


def test_thresholds_are_in_order() -> None:
    singles = (ZERO_GRADIENT, QUERY_STRONGER, LARGE_EPS_STANDS, RISES, UNSTABLE, FURTHER, NOT_LINEAR)
    for threshold in (*singles, *(pair.threshold for pair in PAIRS)):
        assert isinstance(threshold, Threshold)
        assert 0 < threshold.suspect < threshold.masked <= 1


@PAIR
def test_a_rule_can_fire_with_the_fewest_images(pair: Any) -> None:
    """Where the rule may say it, with ``MASKED``: steps or a random start only tell that FGSM flatters."""
    result = verdict({pair.attack: range(FEWEST_IMAGES)}, n=FEWEST_IMAGES, names=EVERY)
    found = {i.finding for i in result.evidence if (i.rule, i.attack) == (pair.rule, pair.attack)}
    assert found == {"SUSPECT" if pair.rule in ("random-start", "steps") else "MASKED"}


# An artefact that is asked itself.

INT8 = Artefact("onnxruntime", "int8-u8s8", "b" * 64, "cpu", "here", "onnxruntime int8-u8s8 " + "b" * 64)
FP32 = Artefact("onnxruntime", "fp32", "c" * 64, "cpu", "here", "onnxruntime fp32 " + "c" * 64)


def asking(artefact: Artefact, queries: int = FEWEST_QUERIES) -> AttackInfo:
    """Square on an artefact."""
    name = f"square@{artefact.backend}-{artefact.variant}"
    return AttackInfo(name, E1, AttackParams(queries=queries), None, None, artefact.identity, cumulative=True)


def judge(
    infos: Sequence[AttackInfo],
    fooled: dict[Key, Sequence[int]],
    artefacts: dict[Artefact, dict[Key, int]],
    *,
    unasked: Sequence[AttackInfo] = (),
    progress: dict[Key, int] | None = None,
    unstable: int = 0,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The verdict on artefacts, each of which the first so-many images are taken from by each key."""
    labels, evidence = batch({(LARGE_EPS, "1"): range(N), **fooled}, keys=[i.key for i in infos if i not in unasked])
    scored = [CLEAN_KEY, *(i.key for i in infos if not i.control)]
    hits = tuple({key: np.arange(N) >= broken.get(key, 0) for key in scored} for broken in artefacts.values())
    further = {
        i.key: np.where(np.arange(N) < (progress or {}).get(i.key, 0), 9, 0).astype(np.float32)
        for i in infos
        if base_name(i.name) in (SQUARE, NOISE)
    }
    outcome = BatchOutcome(
        np.arange(N),
        labels,
        ("",) * N,
        hits,
        hits,
        evidence,
        progress=(further,) * len(hits),
        unstable=(np.arange(N) < unstable,) * len(hits),
    )
    return verdict_of(infos, [outcome], list(artefacts))


def test_a_query_attack_on_an_artefact_judges_that_artefact_alone() -> None:
    """The gradients were another model's; what Square finds beyond them here says nothing about the weights."""
    infos = [*(info(name) for name in ALL), asking(INT8), asking(FP32)]
    artefacts = {FP32: {}, INT8: {asking(INT8).key: 40}}
    masking, (fp32, int8) = judge(infos, {}, artefacts, unasked=infos[-2:])
    assert masking.verdict == fp32.verdict == "PASS" and fp32.evidence == ()
    assert int8.verdict == "SUSPECT"
    assert "square@onnxruntime-int8-u8s8 broke 40 of" in int8.evidence[0]
    told = [i for i in masking.evidence if i.artefact == "onnxruntime int8-u8s8"]
    assert next(i for i in told if i.rule == "query").value == pytest.approx(0.1)
    # getting further counts, though nothing broke
    _, (fp32, int8) = judge(infos, {}, {FP32: {}, INT8: {}}, unasked=infos[-2:], progress={asking(INT8).key: N // 2})
    assert fp32.verdict == "PASS" and int8.verdict == "MASKED"


def test_each_of_two_artefacts_has_its_own_finding() -> None:
    """What Square on one of them breaks on the other too is no excuse for that one."""
    infos = [*(info(name) for name in ALL), asking(FP32), asking(INT8)]
    both = {asking(FP32).key: 60, asking(INT8).key: 60}
    _, rows = judge(infos, {}, {FP32: both, INT8: both}, unasked=infos[-2:])
    assert [row.verdict for row in rows] == ["SUSPECT", "SUSPECT"]


def test_an_artefact_that_nobody_asked_cannot_pass() -> None:
    infos = [*(info(name) for name in ALL), asking(FP32), asking(INT8, FEWEST_QUERIES - 1)]
    masking, (fp32, int8) = judge(infos, {}, {FP32: {}, INT8: {}}, unasked=infos[-2:])
    assert masking.verdict == fp32.verdict == "PASS"
    assert int8.verdict == "UNCHECKED" and f"fewer than {FEWEST_QUERIES}" in int8.evidence[0]
    _, (fp32, int8) = judge(infos[:-1], {}, {FP32: {}, INT8: {}}, unasked=infos[-2:])
    assert fp32.verdict == "PASS"
    assert int8.verdict == "UNCHECKED" and "did not ask onnxruntime int8" in int8.evidence[0]


def test_a_device_that_asks_needs_the_controls_of_the_pack_and_no_reference() -> None:
    """The pack brings the evidence on the gradients, and Square runs on the device: both together make a PASS there."""
    infos = [*(info(name) for name in ALL if name != SQUARE), asking(FP32)]
    masking, (fp32,) = judge(infos, {}, {FP32: {}}, unasked=infos[-1:])
    assert (masking.verdict, fp32.verdict) == ("PASS", "PASS")
    without = [i for i in infos if i.name != LINEARITY]
    _, (fp32,) = judge(without, {}, {FP32: {}}, unasked=infos[-1:])
    assert fp32.verdict == "UNCHECKED" and "linearity" in fp32.evidence[0]


def test_an_artefact_that_changes_its_answers_is_found() -> None:
    infos = [*(info(name) for name in ALL), asking(FP32)]
    _, (fp32,) = judge(infos, {}, {FP32: {}}, unasked=infos[-1:], unstable=N)
    assert fp32.verdict == "MASKED" and "answers differently" in fp32.evidence[0]


def test_a_bad_verdict_on_the_weights_holds_for_every_artefact() -> None:
    infos = [*(info(name) for name in ALL), asking(FP32), asking(INT8)]
    masking, rows = judge(infos, {(PGD_MARGIN, E1.text): range(N)}, {FP32: {}, INT8: {}}, unasked=infos[-2:])
    assert masking.verdict == "MASKED" and [row.verdict for row in rows] == ["MASKED", "MASKED"]
    assert all(row.evidence for row in rows)


def test_a_third_partys_attack_is_no_evidence_either_way() -> None:
    """Nobody says whether it follows gradients or asks: one with a Square in it would hide what our Square found."""
    theirs = AttackInfo("autoattack-torchattacks", E1, AttackParams(), "torch fp32", "a" * 64)
    querying = AttackInfo("torchattacks-square", E1, AttackParams(), None, None)
    for other in (theirs, querying):
        infos = [*(info(name) for name in EVERY), other]
        evidence = MaskingEvidence(infos)
        broken = {(SQUARE, E1.text): range(200), other.key: range(200), (LARGE_EPS, "1"): range(N)}
        evidence.add(*batch(broken, keys=[i.key for i in infos]))
        result = evidence.verdict()
        assert result.verdict == "MASKED" and item(result, "query", SQUARE).value == 0.5
        assert not [i for i in result.evidence if i.attack == other.name]


def test_square_that_was_added_to_a_pack_judges_the_reference_too() -> None:
    """There the reference was not asked while the pack was made: what Square finds on torch counts all the same."""
    torch = Artefact("torch", "fp32", "a" * 64, "cpu", "here", "torch fp32 " + "a" * 64)
    added = replace(info(SQUARE), queried=torch.identity)
    infos = [*(info(name) for name in ALL if name != SQUARE), added]
    masking, rows = judge(infos, {}, {torch: {added.key: 200}}, unasked=[added])
    # torch fp32 is the weights
    assert masking.verdict == rows[0].verdict == "MASKED"
    assert "square broke 200" in rows[0].evidence[0]
