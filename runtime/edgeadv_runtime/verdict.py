"""The masking verdict: may the robustness figures of these weights be believed?

The evidence is gathered on the reference model, whose gradients the attacks used, from images that it classifies right.
Every rule compares the same images under two attacks (paired), looks one way only (a stronger attack that happens to do
worse is no evidence of anything), and fires on the 95% one-sided lower bound of what it counts. ``docs/robustness.md``
explains the rules and where their thresholds come from.

``PASS`` says that no rule fired with the margin attack among the attacks. It does not say that the model is robust.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .attack import CLEAN_KEY, AttackInfo, Evidence, Key
from .results import Verdict
from .stats import Z95_ONE_SIDED, paired_difference_lower_bound, wilson_interval

if TYPE_CHECKING:
    from .outcomes import Artefact, BatchOutcome

FGSM = "fgsm"
FGSM_RESCALED = "fgsm-rescaled"
FGSM_RANDOM_START = "fgsm-rs"
PGD_MARGIN = "pgd-margin"


@dataclass(frozen=True)
class Threshold:
    """A rule fires as ``SUSPECT`` or ``MASKED`` when its lower bound is above these shares of the images."""

    suspect: float
    masked: float


ZERO_GRADIENT = Threshold(suspect=0.05, masked=0.20)
"""Images without a gradient: an attack that follows it leaves them alone. Undefended networks: at most 0.01."""
RESCALED_STRONGER = Threshold(suspect=0.25, masked=0.40)
"""Rescaling changes no decision, so FGSM should profit little from it. Undefended networks: mostly below 0, up to 0.22 for a
small one trained for 30 epochs without weight decay, at a budget at which both break most images."""
RANDOM_START_STRONGER = Threshold(suspect=0.10, masked=0.20)
"""One step from a random point against one step from the image: where training on FGSM has bent the loss around the
images only, leaving them helps (Tramèr et al. 2018). Undefended networks: at most 0.05; overfitted to FGSM: 0.18."""
MARGIN_STRONGER = Threshold(suspect=0.30, masked=0.50)
"""Twenty steps on the margin against one on the cross-entropy, at a budget at which the twenty break every image; see
:func:`margin_threshold` for smaller ones. Undefended networks: at most 0.24; overfitted to FGSM: 0.35 to 0.77."""


def margin_threshold(stood: float) -> Threshold:
    """What steps may explain, where PGD leaves at least a share ``stood`` of the images standing.

    On undefended networks the gap between one step and twenty is widest (0.41 was seen) at budgets that twenty steps have
    almost, but not quite, used up; beyond them one step catches up, so a wide gap there is not explained by steps.
    """
    room = min(5 * stood, 0.15)
    return Threshold(MARGIN_STRONGER.suspect + room, MARGIN_STRONGER.masked + room)


RULES: dict[str, tuple[str, Threshold]] = {
    FGSM_RESCALED: ("rescaled-logits", RESCALED_STRONGER),
    FGSM_RANDOM_START: ("random-start", RANDOM_START_STRONGER),
    PGD_MARGIN: ("margin-pgd", MARGIN_STRONGER),
}
FEWEST_IMAGES = 300
"""With fewer images classified right a rule may well stay silent where it should fire, so their silence is no ``PASS``."""
FEWEST_STEPS = 10
"""Of the margin attack, for a ``PASS``."""
BADGES: dict[Verdict, str] = {
    "UNCHECKED": "masking check: UNCHECKED (not enough evidence)",
    "PASS": "masking check: PASS (measurement believable)",
    "SUSPECT": "masking check: SUSPECT (signs of hidden gradients)",
    "MASKED": "masking check: MASKED (hidden gradients)",
}
"""How a verdict is printed, everywhere: worded so that ``PASS`` is not taken for robustness."""
ORDER: tuple[Verdict, ...] = ("PASS", "UNCHECKED", "SUSPECT", "MASKED")
"""From the most to the least believable."""


class MaskingEvidence:
    """Counts what the rules need, batch by batch, and reads the verdict off them."""

    def __init__(self, infos: Sequence[AttackInfo]) -> None:
        self._infos = {info.key: info for info in infos if not info.control}
        self._n = 0
        self._zero: Counter[Key] = Counter()
        self._told: set[Key] = set()
        self._gained: Counter[Key] = Counter()
        self._lost: Counter[Key] = Counter()
        self._stood: Counter[Key] = Counter()

    def add(self, labels: NDArray[np.int64], evidence: Evidence) -> None:
        """Count one batch.

        Args:
            labels: true labels, int64 (n,).
            evidence: what the reference model makes of its images.
        """
        right = evidence.answers[CLEAN_KEY] == labels
        self._n += int(right.sum())
        for key, info in self._infos.items():
            if key in evidence.zero_gradient:
                self._told.add(key)
                self._zero[key] += int((evidence.zero_gradient[key] & right).sum())
            plain = (FGSM, info.eps.text)
            if self._paired(info):
                stood_plain, stood = evidence.answers[plain] == labels, evidence.answers[key] == labels
                self._gained[key] += int(np.sum(right & stood_plain & ~stood))
                self._lost[key] += int(np.sum(right & ~stood_plain & stood))
                self._stood[key] += int(np.sum(right & stood))

    def _paired(self, info: AttackInfo) -> bool:
        """Whether a rule compares ``info`` with plain FGSM; a targeted attack aims at something else."""
        plain = self._infos.get((FGSM, info.eps.text))
        return info.name in RULES and plain is not None and plain.params.target is None and info.params.target is None

    def verdict(self) -> dict[str, Any]:
        """``{"verdict", "evidence"}``: one verdict for the weights, the worst finding over all budgets.

        Each piece of evidence has ``rule``, ``attack``, ``eps``, ``value`` and ``lower_bound`` (shares of the ``n`` images
        that the reference model classifies right), the thresholds, ``finding`` (``"SUSPECT"``, ``"MASKED"`` or None) and a
        ``text``.
        """
        evidence = [*self._zero_evidence(), *self._paired_evidence()] if self._n else []
        found: list[Verdict] = [item["finding"] for item in evidence if item["finding"]]
        obstacle = self._obstacle()
        if obstacle:
            found.append("UNCHECKED")
            evidence.append({"rule": "coverage", "eps": None, "n": self._n, "finding": None, "text": obstacle})
        worst = max(found, key=ORDER.index, default="PASS")
        return {"verdict": worst, "evidence": evidence}

    def _obstacle(self) -> str | None:
        """Why these attacks cannot earn a ``PASS``."""
        if self._n < FEWEST_IMAGES:
            return f"only {self._n} images are classified right without an attack; at least {FEWEST_IMAGES} are needed for a verdict"
        budgets = {info.eps.text for info in self._infos.values()}
        for name in (FGSM, *RULES):
            missing = sorted(eps for eps in budgets if (name, eps) not in self._infos)
            if missing or not budgets:
                return f"{name} did not run at every budget{' (missing at ' + ', '.join(missing) + ')' if missing else ''}: no PASS without it"
            ran = [self._infos[name, eps] for eps in budgets]
            if any(info.params.target is not None for info in ran):
                return f"{name} ran with a target: no PASS without the untargeted attack"
            if any(info.gradients_sha256 is None for info in ran):
                return f"{name} does not say which weights its gradients belong to: no PASS without that"
            if name == PGD_MARGIN and any((info.params.steps or 0) < FEWEST_STEPS for info in ran):
                return f"{name} took fewer than {FEWEST_STEPS} steps: no PASS without them"
        return None

    def _zero_evidence(self) -> list[dict[str, Any]]:
        found = []
        for key in self._infos:
            if key in self._told:
                share = self._zero[key] / self._n
                lower, _ = wilson_interval(self._zero[key], self._n, z=Z95_ONE_SIDED)
                text = f"{key[0]} at eps {key[1]}: {share:.1%} of the {self._n} images that are right without an attack have no gradient to follow and were not attacked"
                found.append(self._item("zero-gradient", key, share, lower, ZERO_GRADIENT, text))
        return found

    def _paired_evidence(self) -> list[dict[str, Any]]:
        found = []
        for key, info in self._infos.items():
            if self._paired(info):
                rule, threshold = RULES[info.name]
                gained, lost = self._gained[key], self._lost[key]
                if info.name == PGD_MARGIN:
                    threshold = margin_threshold(wilson_interval(self._stood[key], self._n, z=Z95_ONE_SIDED)[0])
                lower = paired_difference_lower_bound(gained, lost, self._n)
                text = f"at eps {key[1]}, {info.name} broke {gained} of {self._n} images that plain FGSM left standing; the reverse {lost}"
                item = self._item(rule, key, (gained - lost) / self._n, lower, threshold, text)
                found.append({**item, "gained": gained, "lost": lost})
        return found

    def _item(self, rule: str, key: Key, value: float, lower: float, threshold: Threshold, text: str) -> dict[str, Any]:
        finding = "MASKED" if lower > threshold.masked else "SUSPECT" if lower > threshold.suspect else None
        return {
            "rule": rule, "attack": key[0], "eps": key[1], "n": self._n, "value": value, "lower_bound": lower,
            "suspect_above": threshold.suspect, "masked_above": threshold.masked, "finding": finding, "text": text,
        }  # fmt: skip


def verdict_of(
    infos: Sequence[AttackInfo], outcomes: Sequence[BatchOutcome], artefacts: Sequence[Artefact]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The verdict on a run.

    Args:
        infos: the attacks, controls included.
        outcomes: what became of the images; ``outcomes[i].top1[k]`` belongs to ``artefacts[k]``.
        artefacts: what was scored.

    Returns:
        ``masking`` of the file, and for each artefact that of its rows: ``verdict``, and as ``evidence`` the sentences of what
        was found.
    """
    evidence = MaskingEvidence(infos)
    for outcome in outcomes:
        evidence.add(outcome.labels, outcome.evidence)
    masking = evidence.verdict()
    sentences = [item["text"] for item in masking["evidence"] if item["finding"] or item["rule"] == "coverage"]
    return masking, [{"verdict": masking["verdict"], "evidence": sentences} for _ in artefacts]
