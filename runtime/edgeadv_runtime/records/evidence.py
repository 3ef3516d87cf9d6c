"""The masking verdict as files hold it: what was concluded, and the pieces of evidence that it rests on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec

from ..decoding import Count, Share

Verdict = Literal["UNCHECKED", "PASS", "SUSPECT", "MASKED"]
ORDER: tuple[Verdict, ...] = ("PASS", "UNCHECKED", "SUSPECT", "MASKED")
"""From the most to the least believable."""
COVERAGE = "coverage"
"""The rule that says why a ``PASS`` is out of reach."""


def least_believable(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of several verdicts; ``PASS`` of none."""
    return max(verdicts, key=ORDER.index, default="PASS")


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one masking rule found, or why the rules could not tell.

    Attributes:
        rule: the rule's name.
        attack: what it looked at, if one attack.
        eps: the budget it looked at, if one.
        n: images that are right without an attack.
        value: what the rule counts, as a share of ``n``; below 0 where the reverse was counted more often.
        lower_bound: its one-sided 95% bound.
        suspect_above: bound from which on the rule fires as ``SUSPECT``.
        masked_above: and as ``MASKED``.
        finding: None where it found nothing.
        text: the finding in words.
        gained: images that only the stronger way broke.
        lost: images that only the other way broke.
        left: images that the other way left standing.
        artefact: backend and variant whose images it counted; None for the weights.
    """

    rule: str
    attack: str | None = None
    eps: str | None = None
    n: Count | None = None
    value: Annotated[float, msgspec.Meta(ge=-1, le=1)] | None = None
    lower_bound: Annotated[float, msgspec.Meta(ge=-2, le=1)] | None = None
    suspect_above: Share | None = None
    masked_above: Share | None = None
    finding: Verdict | None
    text: str
    gained: Count | None = None
    lost: Count | None = None
    left: Count | None = None
    artefact: str | None = None

    @property
    def obstacle(self) -> bool:
        """Whether this is no finding of a rule but the reason why the attacks that ran cannot earn a ``PASS``."""
        return self.rule == COVERAGE

    @property
    def matters(self) -> bool:
        """Whether the verdict rests on it."""
        return self.finding is not None or self.obstacle

    @property
    def numbers(self) -> dict[str, Any]:
        """What it counted, by name."""
        said = ("rule", "eps", "artefact", "finding", "text")
        return {key: value for key, value in msgspec.to_builtins(self).items() if key not in said}


class Masking(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on the weights' gradients.

    Attributes:
        verdict: the worst finding over all budgets.
        evidence: what every rule found, on the weights and on the artefacts made of them.
    """

    verdict: Verdict
    evidence: tuple[Finding, ...] = ()


class RowMasking(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on one artefact: the worse of the evidence on the gradients and of its own.

    Attributes:
        verdict: of the artefact.
        evidence: the sentences of what was found.
    """

    verdict: Verdict
    evidence: tuple[str, ...] = ()
