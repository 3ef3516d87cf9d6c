"""Intervals and tests against SciPy and against figures worked out by hand."""

from __future__ import annotations

import time
from math import sqrt

import numpy as np
import pytest
from scipy.stats import binomtest, multinomial, norm

from edgeadv_runtime.records.statistics import (
    Z95_ONE_SIDED,
    Z95_TWO_SIDED,
    mcnemar_p,
    paired_difference_interval,
    paired_difference_lower_bound,
    pairs_needed,
    wilson_interval,
)


def test_the_quantiles_are_the_normal_distributions() -> None:
    assert norm.ppf(0.975) == pytest.approx(Z95_TWO_SIDED, abs=1e-12)
    assert norm.ppf(0.95) == pytest.approx(Z95_ONE_SIDED, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 7, 50, 1000])
def test_wilson_is_scipys(n: int) -> None:
    for successes in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        theirs = binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
        assert wilson_interval(successes, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("successes", [0, 1, 30, 59, 60])
def test_one_sided_wilson_is_scipys_at_90_percent(successes: int) -> None:
    theirs = binomtest(successes, 60).proportion_ci(confidence_level=0.90, method="wilson")
    assert wilson_interval(successes, 60, z=Z95_ONE_SIDED) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_the_edges_are_exact() -> None:
    for n in (1, 10, 12345):
        low, high = wilson_interval(0, n)
        assert low == 0.0 < high < 1.0
        low, high = wilson_interval(n, n)
        assert 0.0 < low < high == 1.0


@pytest.mark.parametrize(("successes", "n"), [(-1, 10), (11, 10), (0, 0), (1, -1)])
def test_counts_that_are_no_share_are_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="not a share"):
        wilson_interval(successes, n)


def test_the_paired_bound_by_hand() -> None:
    # 29 gained, 9 lost of 98, each plus 1 of 100: difference 0.2, variance (0.4 - 0.04) / 100 = 0.0036, standard error
    # 0.06
    assert paired_difference_lower_bound(29, 9, 98) == pytest.approx(0.2 - 1.6448536269514722 * 0.06, abs=1e-12)
    # the other way round it is the mirrored difference with the same error
    assert paired_difference_lower_bound(9, 29, 98) == pytest.approx(-0.2 - 1.6448536269514722 * 0.06, abs=1e-12)
    # 18 of 23 one way only: 19 - 1 of 25, 0.72 - z * sqrt((0.8 - 0.5184) / 25)
    assert paired_difference_lower_bound(18, 0, 23, z=2.0) == pytest.approx(0.72 - 2 * (0.2816 / 25) ** 0.5, abs=1e-12)


@pytest.mark.parametrize(("gained", "lost", "n"), [(0, 0, 50), (50, 0, 50), (3, 0, 3), (7, 2, 40)])
def test_the_paired_bound_is_that_of_the_interval(gained: int, lost: int, n: int) -> None:
    z = 1.6448536269514722
    bound, _ = paired_difference_interval(gained, lost, n, z=z)
    assert paired_difference_lower_bound(gained, lost, n) == pytest.approx(bound, abs=1e-12)


def test_the_paired_bound_less_what_is_allowed_is_that_of_the_mean_score() -> None:
    # 10 of 98 pairs score 1 - 0.2, 30 score -0.2, 5 score -1 and 53 score 0; one more scores 1 - 0.2 and one -1
    scores = np.array([0.8] * 11 + [-0.2] * 30 + [-1.0] * 6 + [0.0] * 53)
    bound = scores.mean() - 1.6448536269514722 * scores.std() / 10
    assert paired_difference_lower_bound(10, 5, 98, left=40, allowed=0.2) == pytest.approx(bound, abs=1e-12)
    assert paired_difference_lower_bound(10, 5, 98, left=40) == paired_difference_lower_bound(10, 5, 98)


@pytest.mark.parametrize("left", [9, 96])
def test_a_gain_that_nothing_left_is_refused(left: int) -> None:
    with pytest.raises(ValueError, match="cannot have left 10 to gain and 5 to lose"):
        paired_difference_lower_bound(10, 5, 100, left=left, allowed=0.2)


@pytest.mark.parametrize("n", [1, 3])
def test_few_pairs_prove_nothing_however_alike_they_are(n: int) -> None:
    assert paired_difference_lower_bound(n, 0, n) < 0.03


@pytest.mark.parametrize(("gained", "lost", "n"), [(-1, 0, 10), (0, -1, 10), (6, 5, 10), (0, 0, 0)])
def test_counts_that_are_no_paired_table_are_refused(gained: int, lost: int, n: int) -> None:
    with pytest.raises(ValueError, match="not a paired table"):
        paired_difference_lower_bound(gained, lost, n)


def test_the_paired_interval_by_hand() -> None:
    # 12 one way and 5 the other of 100, each plus 1 of 102: 13/102 and 6/102, difference 7/102
    p, q = 13 / 102, 6 / 102
    half = 1.959963984540054 * sqrt((19 / 102 - (7 / 102) ** 2) / 102)
    assert paired_difference_interval(12, 5, 100) == pytest.approx((p - q - half, p - q + half), abs=1e-15)
    assert paired_difference_interval(12, 5, 100) == pytest.approx((-0.014065, 0.151320), abs=1e-6)
    low, high = paired_difference_interval(5, 12, 100)
    assert (-high, -low) == pytest.approx(paired_difference_interval(12, 5, 100), abs=1e-15)


def test_the_paired_interval_never_shrinks_to_a_point() -> None:
    low, high = paired_difference_interval(0, 0, 50)
    assert low == -high and 0.05 < high < 0.1
    # of all pairs: the bound is cut at what a difference can be
    assert paired_difference_interval(50, 0, 50)[1] == 1.0
    assert paired_difference_interval(0, 50, 50)[0] == -1.0
    assert paired_difference_interval(1, 0, 1)[0] < 0


@pytest.mark.parametrize("n", [20, 50, 100])
def test_the_paired_interval_covers_what_it_says(n: int) -> None:
    """By adding up the probability of every table whose interval holds the true difference, over true probabilities."""
    tables = [(gained, lost) for gained in range(n + 1) for lost in range(n + 1 - gained)]
    bounds = {table: paired_difference_interval(*table, n) for table in tables}
    counts = [(gained, lost, n - gained - lost) for gained, lost in tables]
    covered = []
    for p, q in [(0.02, 0.01), (0.05, 0.05), (0.1, 0.02), (0.2, 0.1), (0.3, 0.3), (0.5, 0.05)]:
        mass = multinomial.pmf(counts, n, [p, q, 1 - p - q])
        held = [low <= p - q <= high for low, high in bounds.values()]
        covered.append(float(mass[held].sum()))
    assert min(covered) > 0.93 and 0.945 < sum(covered) / len(covered) < 0.99


@pytest.mark.parametrize(("gained", "lost", "n"), [(-1, 0, 10), (0, -1, 10), (6, 5, 10), (0, 0, 0)])
def test_counts_that_are_no_paired_table_have_no_interval(gained: int, lost: int, n: int) -> None:
    with pytest.raises(ValueError, match="not a paired table"):
        paired_difference_interval(gained, lost, n)


def test_mcnemar_by_hand() -> None:
    # 2 and 8 of 10: twice (1 + 10 + 45) of 1024
    assert mcnemar_p(2, 8) == mcnemar_p(8, 2) == 2 * 56 / 1024
    # all n one way: twice 1 of 2^n
    assert [mcnemar_p(n, 0) for n in (1, 2, 5, 20)] == [1.0, 0.5, 0.0625, 2.0**-19]
    # an even split says nothing, nor do pairs that never differ; nor does the nearest split of an odd number
    assert [mcnemar_p(*pair) for pair in ((0, 0), (7, 7), (50_000, 50_000), (3, 4), (500, 501))] == [1.0] * 5


@pytest.mark.parametrize("n", [1, 2, 3, 10, 61, 400])
def test_mcnemar_is_scipys_binomial_test(n: int) -> None:
    for lost in range(0, n + 1, max(1, n // 50)):
        assert mcnemar_p(lost, n - lost) == pytest.approx(binomtest(lost, n).pvalue, rel=1e-11)


@pytest.mark.parametrize(
    ("lost", "gained"), [(24_900, 25_100), (24_500, 25_500), (49_500, 50_000), (20_000, 22_000), (1_000, 3_000)]
)
def test_mcnemar_is_exact_for_tens_of_thousands_of_pairs(lost: int, gained: int) -> None:
    # in whole numbers, term by term
    n, term, tail = lost + gained, 1, 1
    for i in range(1, min(lost, gained) + 1):
        term = term * (n - i + 1) // i
        tail += term
    assert mcnemar_p(lost, gained) == pytest.approx(tail / (1 << (n - 1)), rel=1e-11)


def test_mcnemar_of_what_no_float_holds_is_0_and_soon_there() -> None:
    start = time.perf_counter()
    assert mcnemar_p(50_000, 0) == 0.0
    assert 0.99 < mcnemar_p(49_999, 50_000) <= 1.0
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(("lost", "gained"), [(-1, 3), (3, -1)])
def test_mcnemar_of_negative_counts_is_refused(lost: int, gained: int) -> None:
    with pytest.raises(ValueError, match="not numbers of pairs"):
        mcnemar_p(lost, gained)


@pytest.mark.parametrize("limit", [0.005, 0.01, 0.02, 0.1])
@pytest.mark.parametrize("z", [Z95_TWO_SIDED, 3.0])
def test_pairs_needed_are_the_fewest_that_hold(limit: float, z: float) -> None:
    n = pairs_needed(limit, z=z)
    assert n is not None and paired_difference_interval(0, 0, n, z=z)[1] <= limit
    assert paired_difference_interval(0, 0, n - 1, z=z)[1] > limit
    # by the formula: with nothing gained or lost the interval ends at z * sqrt(2) / (n + 2)
    assert n == np.ceil(z * sqrt(2) / limit - 2)


def test_pairs_needed_of_what_differs() -> None:
    """Known figures, and none where the difference itself is too large."""
    assert (pairs_needed(0.01), pairs_needed(0.02)) == (276, 137)
    n = pairs_needed(0.01, gained=0.01, lost=0.01)
    assert n is not None and 700 < n < 1000
    gained = lost = round(0.01 * n)
    assert paired_difference_interval(gained, lost, n)[1] == pytest.approx(0.01, abs=5e-4)
    assert pairs_needed(0.01, gained=0.02, lost=0.01) is None
    assert pairs_needed(0.0) is None and pairs_needed(0.01, most=275) is None
