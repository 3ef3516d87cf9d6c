"""Intervals for shares in closed form, and the exact test of a paired difference."""

from __future__ import annotations

from math import comb, sqrt

Z95_TWO_SIDED = 1.959963984540054
Z95_ONE_SIDED = 1.6448536269514722


def wilson_interval(successes: int, n: int, *, z: float = Z95_TWO_SIDED) -> tuple[float, float]:
    """Wilson score interval of a binomial share (Wilson 1927); 95% two-sided unless ``z`` says otherwise.

    Args:
        successes: 0 to ``n``.
        n: number of trials, at least 1.
        z: quantile of the standard normal distribution.

    Returns:
        Lower and upper bound, within [0, 1].

    Raises:
        ValueError: the counts do not fit.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is not a share")
    share, z2 = successes / n, z * z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (0.0 if successes == 0 else max(0.0, centre - half), 1.0 if successes == n else min(1.0, centre + half))


def paired_difference_lower_bound(
    gained: int, lost: int, n: int, *, left: int | None = None, allowed: float = 0.0, z: float = Z95_ONE_SIDED
) -> float:
    """One-sided 95% lower bound of ``(gained - lost - allowed * left) / n`` for paired outcomes.

    The Wald interval of the mean of one score per pair: 1 or -1 where the outcomes differ, less ``allowed`` where a
    gain was possible; adjusted as Bonett and Price (2012) do, by one pair more that gains and one that loses, or it
    would shrink to a point where all pairs are alike. Without ``allowed`` it is the bound of
    :func:`paired_difference_interval`.

    Args:
        gained: pairs in which only the first outcome happened.
        lost: pairs in which only the second happened.
        n: all pairs, at least 1.
        left: pairs in which the second outcome did not happen, the gained ones included; needed with ``allowed``.
        allowed: the share of ``left`` that does not count as gained, in [0, 1).
        z: quantile of the standard normal distribution.

    Raises:
        ValueError: the counts do not fit.
    """
    _check_pairs(gained, lost, n)
    left = gained if left is None else left
    if not gained <= left <= n - lost:
        raise ValueError(f"{left} of {n} pairs cannot have left {gained} to gain and {lost} to lose")
    gained, lost, left, n = gained + 1, lost + 1, left + 1, n + 2
    mean = (gained - lost - allowed * left) / n
    square = (gained * (1 - allowed) ** 2 + lost + (left - gained) * allowed**2) / n
    return mean - z * sqrt(max(0.0, square - mean * mean) / n)


def paired_difference_interval(gained: int, lost: int, n: int, *, z: float = Z95_TWO_SIDED) -> tuple[float, float]:
    """Two-sided 95% interval of ``(gained - lost) / n`` for paired outcomes: adjusted Wald of Bonett and Price (2012).

    Unlike the plain Wald interval it does not shrink to a point where no pair differs.

    Args:
        gained: pairs in which only the first outcome happened.
        lost: pairs in which only the second happened.
        n: all pairs, at least 1.
        z: quantile of the standard normal distribution.

    Returns:
        Lower and upper bound, within [-1, 1].

    Raises:
        ValueError: the counts do not fit.
    """
    _check_pairs(gained, lost, n)
    return _paired(gained, lost, n, z)


def _paired(gained: float, lost: float, n: int, z: float) -> tuple[float, float]:
    """:func:`paired_difference_interval` of counts that need not be whole."""
    p, q = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = z * sqrt((p + q - (p - q) ** 2) / (n + 2))
    return max(-1.0, p - q - half), min(1.0, p - q + half)


def pairs_needed(
    limit: float, *, gained: float = 0.0, lost: float = 0.0, z: float = Z95_TWO_SIDED, most: int = 10_000_000
) -> int | None:
    """Fewest pairs with which :func:`paired_difference_interval` ends at or below ``limit``.

    Args:
        limit: of the difference, a share.
        gained: share of the pairs in which only the first outcome happens; 0 asks for the best that can be.
        lost: share of those in which only the second happens.
        z: quantile of the standard normal distribution.
        most: where to stop looking.

    Returns:
        A number of pairs, or None: more than ``most``, or no number would do, as ``gained - lost`` is not below
        ``limit``.
    """

    def holds(n: int) -> bool:
        return _paired(gained * n, lost * n, n, z)[1] <= limit

    if not holds(most):
        return None
    few, enough = 0, most
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if holds(middle) else (middle, enough)
    return enough


def mcnemar_p(lost: int, gained: int) -> float:
    """Exact two-sided p-value of McNemar's test (1947): are images lost and images gained equally likely?

    Given that a pair differs, it does so either way with probability 1/2, so ``min(lost, gained)`` is compared with a
    binomial distribution over the ``lost + gained`` pairs that differ. Pairs that agree say nothing and are not needed.

    Args:
        lost: pairs in which only the first outcome happened.
        gained: pairs in which only the second happened.

    Returns:
        Between 0 and 1, symmetric in its arguments; 1 where no pair differs, and 0 where the value is below the range
        of a float.

    Raises:
        ValueError: a count is negative.
    """
    if lost < 0 or gained < 0:
        raise ValueError(f"{lost} and {gained} are not numbers of pairs")
    if abs(lost - gained) <= 1:
        return 1.0  # both tails are everything
    n, k = lost + gained, min(lost, gained)
    # the largest term of both tails exactly, as whole numbers: logarithms of factorials would lose ten digits
    term = total = comb(n, k) / (1 << (n - 1))
    for i in range(k, 0, -1):
        term *= i / (n - i + 1)
        if total + term == total:
            break
        total += term
    return min(1.0, total)


def _check_pairs(gained: int, lost: int, n: int) -> None:
    if n < 1 or gained < 0 or lost < 0 or gained + lost > n:
        raise ValueError(f"{gained} and {lost} of {n} pairs is not a paired table")
