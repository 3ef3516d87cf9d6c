"""The masking verdict: may the robustness figures of these weights, and of what was made of them, be believed?

The evidence on the weights is gathered on the reference model, whose gradients the attacks used, from images that it
classifies right; on an artefact from the images that the artefact classifies right. Every rule compares the same images
twice (paired), looks one way only (a stronger attack that happens to do worse is no evidence of anything), and fires on the
95% one-sided lower bound of what it counts. ``docs/robustness.md`` explains the rules and where their thresholds come from.

``PASS`` says that no rule fired with the attacks among them that the rules need. It does not say that the model is robust.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .attack import CLEAN_KEY, AttackInfo, Evidence, Key
from .results import Verdict
from .stats import Z95_ONE_SIDED, paired_difference_lower_bound, wilson_interval
from .suites import (
    APGD_CE,
    APGD_DLR,
    FGSM,
    FGSM_RANDOM_START,
    FGSM_RESCALED,
    KNOWN,
    LARGE_EPS,
    NOISE,
    PGD_CE,
    PGD_MARGIN,
    SQUARE,
)

if TYPE_CHECKING:
    from .outcomes import Artefact, BatchOutcome

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Threshold:
    """A rule fires as ``SUSPECT`` or ``MASKED`` when its lower bound is above these shares of the images."""

    suspect: float
    masked: float


@dataclass(frozen=True)
class _Pair:
    """A rule on two attacks at one budget: ``attack`` should not break many images that ``than`` leaves standing.

    ``allowed`` of those that ``than`` leaves standing it may break before anything counts.
    """

    rule: str
    attack: str
    than: str
    threshold: Threshold
    allowed: float = 0.0


ZERO_GRADIENT = Threshold(suspect=0.02, masked=0.15)
"""Images without a gradient: an attack that follows it leaves them alone."""
RESCALED_STRONGER = Threshold(suspect=0.25, masked=0.40)
"""Dividing all logits by a number changes no decision, so one step should profit little from it."""
RANDOM_START_STRONGER = Threshold(suspect=0.10, masked=1.0)
"""One step from a random point against one step from the image: where training on FGSM has bent the loss around the
images only, leaving them helps (Tramèr et al. 2018). So it does on an honest network at three times the budget that it was
trained for: FGSM flatters there, and that is all that is said."""
MARGIN_STRONGER = Threshold(suspect=0.03, masked=0.10)
"""The same steps from the same point, on the margin instead of the cross-entropy: a difference beyond
:data:`MARGIN_ALLOWED` is what the softmax hides."""
MARGIN_ALLOWED = 0.15
"""Of what the cross-entropy leaves standing, the share that the margin may break. On a network that hides nothing the margin
is simply the better loss, and the more so the less the network knows; on one that hides gradients it breaks nearly all."""
ONE_STEP_STRONGER = Threshold(suspect=0.05, masked=0.15)
"""One step against twenty on the same loss (Athalye et al. 2018, section 3.1: one-step attacks should not do better)."""
STEPS_STRONGER = Threshold(suspect=0.55, masked=1.0)
"""Twenty steps against one, on the same loss. Steps explain much: undefended networks showed up to 0.46, at budgets that
twenty steps have almost used up. Beyond that one step was led astray, by training on it (Wong et al. 2020) or by a budget
well beyond the one of the training. FGSM flatters in both, but whether gradients are hidden it does not tell."""
QUERY_STRONGER = Threshold(suspect=0.03, masked=0.15)
"""An attack without gradients against all with them together (Athalye et al. 2018; Croce and Hein 2020)."""
LARGE_EPS_STANDS = Threshold(suspect=0.05, masked=0.20)
"""At eps 1 every image can become every other: what stands beyond the share of the commonest class was not attacked
(Athalye et al. 2018: unbounded attacks should reach 100%)."""
RISES = Threshold(suspect=0.05, masked=0.15)
"""PGD at a larger budget against PGD at the next smaller one; never judged on one-step attacks, which may honestly get worse."""
PROBABILITIES = Threshold(suspect=0.5, masked=1.0)
"""Answers that lie in [0, 1] and add up to 1: the cross-entropy was taken of a softmax of a softmax."""
UNSTABLE = Threshold(suspect=0.01, masked=0.5)
"""Images for which the same question has two answers: an attack on a random model needs the mean of many answers."""

PAIRS = (
    _Pair("rescaled-logits", FGSM_RESCALED, FGSM, RESCALED_STRONGER),
    _Pair("random-start", FGSM_RANDOM_START, FGSM, RANDOM_START_STRONGER),
    _Pair("margin", PGD_MARGIN, PGD_CE, MARGIN_STRONGER, MARGIN_ALLOWED),
    _Pair("margin", APGD_DLR, APGD_CE, MARGIN_STRONGER, MARGIN_ALLOWED),
    _Pair("steps", PGD_CE, FGSM, STEPS_STRONGER),
    _Pair("one-step", FGSM, PGD_CE, ONE_STEP_STRONGER),
    _Pair("one-step", FGSM_RANDOM_START, PGD_CE, ONE_STEP_STRONGER),
)
NEEDED = (FGSM, FGSM_RESCALED, FGSM_RANDOM_START, PGD_CE, PGD_MARGIN)
"""What a ``PASS`` needs at every budget, with one of :data:`WITHOUT_GRADIENTS`, and the control at eps 1."""
WITHOUT_GRADIENTS = (SQUARE, NOISE)
FEWEST_IMAGES = 300
"""With fewer images classified right a rule may well stay silent where it should fire, so their silence is no ``PASS``."""
FEWEST_STEPS = 10
"""Of the attacks with many steps, for a ``PASS``."""
BADGES: dict[Verdict, str] = {
    "UNCHECKED": "masking check: UNCHECKED (not enough evidence)",
    "PASS": "masking check: PASS (measurement believable)",
    "SUSPECT": "masking check: SUSPECT (signs of hidden gradients)",
    "MASKED": "masking check: MASKED (hidden gradients)",
}
"""How a verdict is printed, everywhere: worded so that ``PASS`` is not taken for robustness."""
ORDER: tuple[Verdict, ...] = ("PASS", "UNCHECKED", "SUSPECT", "MASKED")
"""From the most to the least believable."""


@dataclass(frozen=True)
class _Standing:
    """The images that one model gets right, and which of them still stand under each attack.

    Attributes:
        infos: the attacks, by key.
        labels: of the images, int64 (n,).
        stood: by key, bool (n,).
        whose: whose images these are, in words; empty for the reference model.
    """

    infos: Mapping[Key, AttackInfo]
    labels: NDArray[np.int64]
    stood: Mapping[Key, Bools]
    whose: str = ""

    @property
    def n(self) -> int:
        return len(self.labels)

    def untargeted(self, name: str) -> dict[Key, AttackInfo]:
        """The runs of attack ``name`` that a rule may compare: a targeted attack aims at something else."""
        found = {key: info for key, info in self.infos.items() if info.name == name and key in self.stood}
        return {key: info for key, info in found.items() if info.params.target is None}

    def left_by_gradients(self, eps: float) -> Bools:
        """Images that stand under every attack with gradients within ``eps``."""
        standing = np.ones(self.n, dtype=np.bool_)
        for key, stood in self.stood.items():
            info = self.infos[key]
            if info.gradients is not None and not info.control and info.eps.value <= eps:
                standing &= stood
        return standing

    def item(
        self, rule: str, key: Key, value: float, lower: float, threshold: Threshold, text: str, **counts: int
    ) -> dict[str, Any]:
        """One piece of evidence, as the results file holds it."""
        finding = "MASKED" if lower > threshold.masked else "SUSPECT" if lower > threshold.suspect else None
        about = {"artefact": self.whose} if self.whose else {}
        return {
            "rule": rule, "attack": key[0], "eps": key[1], "n": self.n, "value": value, "lower_bound": lower,
            "suspect_above": threshold.suspect, "masked_above": threshold.masked, "finding": finding, "text": text,
            **counts, **about,
        }  # fmt: skip

    def paired(
        self, rule: str, key: Key, than: Bools, threshold: Threshold, text: str, allowed: float = 0.0
    ) -> dict[str, Any]:
        """Evidence of how many images ``key`` broke beyond those that another way, leaving ``than`` standing, did.

        Of ``than`` the share ``allowed`` does not count: an image scores 1 if gained, -1 if lost, less ``allowed`` if it was
        left standing.
        """
        stood = self.stood[key]
        gained, lost, left = int((than & ~stood).sum()), int((~than & stood).sum()), int(than.sum())
        lower = paired_difference_lower_bound(gained, lost, self.n, left=left, allowed=allowed)
        told = text.format(attack=key[0], eps=key[1], gained=gained, n=self.n, lost=lost, left=left)
        value = (gained - lost - allowed * left) / self.n
        return self.item(rule, key, value, lower, threshold, told, gained=gained, lost=lost, left=left)

    def counted(self, rule: str, key: Key, flags: Bools, threshold: Threshold, text: str) -> dict[str, Any]:
        """Evidence of how many images have a flag."""
        count = int(flags.sum())
        lower, _ = wilson_interval(count, self.n, z=Z95_ONE_SIDED)
        told = text.format(attack=key[0], eps=key[1], share=count / self.n, count=count, n=self.n)
        return self.item(rule, key, count / self.n, lower, threshold, told)


class MaskingEvidence:
    """Gathers what the reference model makes of the images, batch by batch, and reads the verdict off it."""

    def __init__(self, infos: Sequence[AttackInfo]) -> None:
        self._infos = {info.key: info for info in infos if _ours(info)}
        # a worst case has the budgets of all attacks, those of a third party too
        self._budgets = {info.eps.value: info.eps.text for info in reversed(infos) if not info.control}
        self._batches: list[tuple[NDArray[np.int64], Evidence]] = []

    def add(self, labels: NDArray[np.int64], evidence: Evidence) -> None:
        """Take one batch.

        Args:
            labels: true labels, int64 (n,).
            evidence: what the reference model makes of its images.
        """
        if len(labels):
            self._batches.append((labels, evidence))

    def verdict(self) -> dict[str, Any]:
        """``{"verdict", "evidence"}``: one verdict for the weights, the worst finding over all budgets.

        Each piece of evidence has ``rule``, ``attack``, ``eps``, ``value`` and ``lower_bound`` (shares of the ``n`` images
        that the reference model classifies right), the thresholds, ``finding`` (``"SUSPECT"``, ``"MASKED"`` or None) and a
        ``text``.
        """
        standing, zero, odd = self._gather()
        evidence: list[dict[str, Any]] = []
        if standing.n:
            evidence += [*_answers(standing, odd), *_zero_gradients(standing, zero), *_pairs(standing)]
            evidence += [*_queries(standing, self._infos), *_large_eps(standing), *_rising(standing)]
        if obstacle := _obstacle(standing, self._budgets):
            evidence.append({"rule": "coverage", "eps": None, "n": standing.n, "finding": None, "text": obstacle})
            found: list[Verdict] = ["UNCHECKED"]
        else:
            found = []
        found += [item["finding"] for item in evidence if item["finding"]]
        return {"verdict": worst(found), "evidence": evidence}

    def _gather(self) -> tuple[_Standing, dict[Key, Bools], dict[str, Bools]]:
        """What stands on the reference model, what had no gradient, and odd answers, of the images that it gets right."""
        right = [evidence.answers[CLEAN_KEY] == labels for labels, evidence in self._batches]

        def kept(parts: Sequence[NDArray[Any]], dtype: type) -> NDArray[Any]:
            chosen = [part[rows] for part, rows in zip(parts, right, strict=True)]
            return np.concatenate(chosen) if chosen else np.empty(0, dtype=dtype)

        stood: dict[Key, Bools] = {}
        zero: dict[Key, Bools] = {}
        for key in self._infos:
            if all(key in evidence.answers for _, evidence in self._batches):
                stood[key] = kept([evidence.answers[key] == labels for labels, evidence in self._batches], np.bool_)
            if all(key in evidence.zero_gradient for _, evidence in self._batches):
                zero[key] = kept([evidence.zero_gradient[key] for _, evidence in self._batches], np.bool_)
        odd = {
            "probabilities": kept([evidence.probabilities for _, evidence in self._batches], np.bool_),
            "unstable": kept([evidence.unstable for _, evidence in self._batches], np.bool_),
        }
        labels = kept([labels for labels, _ in self._batches], np.int64)
        return _Standing(self._infos, labels, stood), zero, odd


def _answers(standing: _Standing, odd: Mapping[str, Bools]) -> Iterator[dict[str, Any]]:
    for rule, threshold, text in (
        ("probabilities", PROBABILITIES, "{share:.1%} of the answers are probabilities, not logits: the attacks "
         "followed a softmax of a softmax; export the network without its last softmax"),
        ("unstable", UNSTABLE, "asked twice, the model answers differently for {share:.1%} of the images: figures of a random "
         "model depend on the throw, and the attacks did not average over it"),
    ):  # fmt: skip
        item = standing.counted(rule, CLEAN_KEY, odd[rule], threshold, text)
        if item["value"]:
            yield item


def _zero_gradients(standing: _Standing, zero: Mapping[Key, Bools]) -> Iterator[dict[str, Any]]:
    text = (
        "{attack} at eps {eps}: {share:.1%} of the {n} images that are right without an attack have no gradient to follow and "
        "were not attacked"
    )
    for key, flags in zero.items():
        info = standing.infos[key]
        # from another model's gradients, or from far away, nothing follows about these; what has the target's label already was
        # not attacked either, and hides nothing
        if not info.control and info.name in NEEDED and info.params.target is None:
            yield standing.counted("zero-gradient", key, flags, ZERO_GRADIENT, text)


def _pairs(standing: _Standing) -> Iterator[dict[str, Any]]:
    text = (
        "at eps {eps}, {attack} broke {gained} of the {left} images (of {n}) that %s left standing; the reverse {lost}"
    )
    for pair in PAIRS:
        others = standing.untargeted(pair.than)
        for key in standing.untargeted(pair.attack):
            if (than := (pair.than, key[1])) in others:
                yield standing.paired(
                    pair.rule, key, standing.stood[than], pair.threshold, text % pair.than, pair.allowed
                )


def _queries(standing: _Standing, asked: Mapping[Key, AttackInfo]) -> Iterator[dict[str, Any]]:
    """Attacks without gradients, among ``asked``, against all that have some."""
    text = "at eps {eps}, {attack} broke {count} of {n} images that every attack with gradients left standing"
    if not any(info.gradients is not None and not info.control for info in standing.infos.values()):
        return
    for key, info in asked.items():
        if key in standing.stood and info.gradients is None and info.params.target is None:
            left = standing.left_by_gradients(info.eps.value)
            # one attack against many: only what it adds counts
            yield standing.counted("query", key, left & ~standing.stood[key], QUERY_STRONGER, text)


def _large_eps(standing: _Standing) -> Iterator[dict[str, Any]]:
    for key in standing.untargeted(LARGE_EPS):
        commonest = int(np.bincount(standing.labels).max()) / standing.n
        share, (lower, _) = standing.stood[key].mean(), wilson_interval(
            int(standing.stood[key].sum()), standing.n, z=Z95_ONE_SIDED
        )  # fmt: skip
        text = (
            f"at eps 1, where every image can become any other, PGD on the margin left {share:.1%} of {standing.n} images "
            f"standing; the commonest class is {commonest:.1%} of them"
        )
        yield standing.item(
            "large-eps", key, float(share) - commonest, lower - commonest, LARGE_EPS_STANDS, text
        )  # fmt: skip


def _rising(standing: _Standing) -> Iterator[dict[str, Any]]:
    runs = sorted(standing.untargeted(PGD_MARGIN).items(), key=lambda run: run[1].eps.value)
    for (small, _), (large, info) in pairwise(runs):
        gained = int((~standing.stood[small] & standing.stood[large]).sum())
        lost = int((standing.stood[small] & ~standing.stood[large]).sum())
        text = (
            f"{info.name} at eps {small[1]} broke {gained} of {standing.n} images that it left standing at eps {large[1]}; the "
            f"reverse {lost}"
        )
        lower = paired_difference_lower_bound(gained, lost, standing.n)
        yield standing.item(
            "rising", large, (gained - lost) / standing.n, lower, RISES, text, gained=gained, lost=lost
        )  # fmt: skip


def _obstacle(standing: _Standing, budgets: Mapping[float, str]) -> str | None:
    """Why these attacks cannot earn a ``PASS`` for worst cases at ``budgets``, which are texts by value."""
    if standing.n < FEWEST_IMAGES:
        return f"only {standing.n} images are classified right without an attack; at least {FEWEST_IMAGES} are needed for a verdict"
    infos = standing.infos
    for names in (*((name,) for name in NEEDED), WITHOUT_GRADIENTS):
        ran = [infos[key] for key in standing.stood if key[0] in names]
        missing = sorted(text for value, text in budgets.items() if value not in {info.eps.value for info in ran})
        if missing or not budgets:
            where = f" (missing at {', '.join(missing)})" if missing else ""
            return f"{' or '.join(names)} did not run at every budget{where}: no PASS without it"
        if any(info.params.target is not None for info in ran):
            return f"{names[0]} ran with a target: no PASS without the untargeted attack"
        if any(info.gradients is not None and info.gradients_sha256 is None for info in ran):
            return f"{names[0]} does not say which weights its gradients belong to: no PASS without that"
        if names[0] in (PGD_CE, PGD_MARGIN) and any((info.params.steps or 0) < FEWEST_STEPS for info in ran):
            return f"{names[0]} took fewer than {FEWEST_STEPS} steps: no PASS without them"
    if not standing.untargeted(LARGE_EPS):
        return f"{LARGE_EPS} did not run: no PASS without it"
    return None


def worst(found: Sequence[Verdict]) -> Verdict:
    """The least believable of several verdicts; ``PASS`` of none."""
    return max(found, key=ORDER.index, default="PASS")


def verdict_of(
    infos: Sequence[AttackInfo], outcomes: Sequence[BatchOutcome], artefacts: Sequence[Artefact]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The verdict on the weights, and on each artefact that was made of them.

    Args:
        infos: the attacks, controls included.
        outcomes: what became of the images; ``outcomes[i].top1[k]`` belongs to ``artefacts[k]``.
        artefacts: what was scored.

    Returns:
        ``masking`` of the file, which is of the weights, with the evidence on the artefacts too; and for each artefact that
        of its rows: the worse of both verdicts, and as ``evidence`` the sentences of what was found.
    """
    gathered = MaskingEvidence(infos)
    for outcome in outcomes:
        gathered.add(outcome.labels, outcome.evidence)
    masking = gathered.verdict()
    own = [_on_artefact(k, artefact, infos, outcomes) for k, artefact in enumerate(artefacts)]
    rows = []
    for items in own:
        told = [item for item in (*masking["evidence"], *items) if item["finding"] or item["rule"] == "coverage"]
        found = worst([masking["verdict"], *(item["finding"] for item in items if item["finding"])])
        rows.append({"verdict": found, "evidence": [item["text"] for item in told]})
    return {**masking, "evidence": [*masking["evidence"], *(item for items in own for item in items)]}, rows


def _ours(info: AttackInfo) -> bool:
    """Whether the rules know what this attack is: of a third party's nobody says whether it follows gradients or asks."""
    return info.name.partition("@")[0] in KNOWN


def _on_artefact(
    k: int, artefact: Artefact, infos: Sequence[AttackInfo], outcomes: Sequence[BatchOutcome]
) -> list[dict[str, Any]]:
    """What attacks that asked this very artefact found beyond the gradients that were tried on it."""
    ours = {info.key: info for info in infos if _ours(info)}
    asked = {
        key: info for key, info in ours.items()
        if info.queried == artefact.identity
        # what asked the reference is judged with the weights, unless it was added to a pack, where there is no reference
        and ("@" in info.name or not all(key in o.evidence.answers for o in outcomes))
    }  # fmt: skip
    if not asked:
        return []
    hits = {key: np.concatenate([o.top1[k][key] for o in outcomes]) for key in outcomes[0].top1[k]}
    labels, right = np.concatenate([o.labels for o in outcomes]), hits[CLEAN_KEY]
    if not right.any():
        return []
    stood = {key: flags[right] for key, flags in hits.items() if key in ours}
    standing = _Standing(ours, labels[right], stood, whose=f"{artefact.backend} {artefact.variant}")
    return list(_queries(standing, asked))
