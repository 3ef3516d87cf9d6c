"""The rules of the masking verdict: what each one counts, and from where on it fires.

Every rule compares the same images twice (paired), looks one way only (a stronger attack that happens to do worse is no
evidence of anything), and fires on the 95% one-sided lower bound of what it counts. ``docs/reference/verdict.md``
explains the rules and where their thresholds come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..attacks.base import CLEAN_KEY, AttackInfo, Key
from ..records.evidence import Finding, Verdict
from ..records.statistics import Z95_ONE_SIDED, paired_difference_lower_bound, wilson_interval
from ..records.suites import (
    APGD_CE,
    APGD_DLR,
    FGSM,
    FGSM_RANDOM_START,
    FGSM_RESCALED,
    FIRST_CONTRADICTION,
    LARGE_EPS,
    NOISE,
    PGD_CE,
    PGD_MARGIN,
    PGD_SMOOTHED,
    SQUARE,
    TRANSFER,
    base_name,
    contradicts,
    follows_gradients,
    order_of,
)

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Threshold:
    """A rule fires as ``SUSPECT`` or ``MASKED`` when its lower bound is above these shares of the images."""

    suspect: float
    masked: float


@dataclass(frozen=True)
class Pair:
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
images only, leaving them helps (Tramèr et al. 2018). So it does on an honest network at three times the budget that it
was trained for: FGSM flatters there, and that is all that is said."""
MARGIN_STRONGER = Threshold(suspect=0.03, masked=0.10)
"""The same steps from the same point, on the margin instead of the cross-entropy: a difference beyond
:data:`MARGIN_ALLOWED` is what the softmax hides."""
MARGIN_ALLOWED = 0.15
"""Of what the cross-entropy leaves standing, the share that the margin may break. On a network that hides nothing the
margin is simply the better loss, and the more so the less the network knows; on one that hides gradients it breaks
nearly all."""
ONE_STEP_STRONGER = Threshold(suspect=0.05, masked=0.15)
"""One step against twenty on the same loss (Athalye et al. 2018, section 3.1: one-step attacks should not do
better)."""
STEPS_STRONGER = Threshold(suspect=0.55, masked=1.0)
"""Twenty steps against one, on the same loss. Steps explain much: undefended networks showed up to 0.46, at budgets
that twenty steps have almost used up. Beyond that one step was led astray, by training on it (Wong et al. 2020) or by a
budget well beyond the one of the training. FGSM flatters in both, but whether gradients are hidden it does not tell."""
QUERY_STRONGER = Threshold(suspect=0.005, masked=0.15)
"""An attack without gradients, or with those of another network or of the surroundings, against all that follow the
network's own together (Athalye et al. 2018; Croce and Hein 2020, whose code warns from 0.2 points on)."""
FURTHER = Threshold(suspect=0.02, masked=0.15)
"""Images that stand, and whose margin noise or queries raise by more than :data:`MOST_PROGRESS` of what the best attack
with gradients does: gradients that are worth following get further in twenty steps than chance in twenty draws."""
MOST_PROGRESS = {NOISE: 0.5, SQUARE: 1.5}
"""Of what gradients reach. Networks that were trained honestly showed at most 0.2 for twenty draws of noise and 1.2 for
a thousand queries."""
NOT_LINEAR = Threshold(suspect=0.02, masked=0.15)
"""Images that stand, and whose margin does not do along the gradient what the gradient predicts."""
LINEAR = (0.5, 2.0)
"""Ratios of the margin's rise to its prediction that count as kept. Of networks that were trained honestly no standing
image was outside at steps of up to a quarter of eps."""
LARGE_EPS_STANDS = Threshold(suspect=0.05, masked=0.20)
"""At eps 1 every image can become every other: what stands beyond the share of the commonest class was not attacked
(Athalye et al. 2018: unbounded attacks should reach 100%)."""
RISES = Threshold(suspect=0.05, masked=0.15)
"""PGD at a larger budget against PGD at the next smaller one; never judged on one-step attacks, which may honestly get
worse."""
PROBABILITIES = Threshold(suspect=0.5, masked=1.0)
"""Answers that lie in [0, 1] and add up to 1: the cross-entropy was taken of a softmax of a softmax."""
UNSTABLE = Threshold(suspect=0.01, masked=0.5)
"""Images for which the same question has two answers: an attack on a random model needs the mean of many answers."""

PAIRS = (
    Pair("rescaled-logits", FGSM_RESCALED, FGSM, RESCALED_STRONGER),
    Pair("random-start", FGSM_RANDOM_START, FGSM, RANDOM_START_STRONGER),
    Pair("margin", PGD_MARGIN, PGD_CE, MARGIN_STRONGER, MARGIN_ALLOWED),
    Pair("margin", APGD_DLR, APGD_CE, MARGIN_STRONGER, MARGIN_ALLOWED),
    Pair("steps", PGD_CE, FGSM, STEPS_STRONGER),
    Pair("one-step", FGSM, PGD_CE, ONE_STEP_STRONGER),
    Pair("one-step", FGSM_RANDOM_START, PGD_CE, ONE_STEP_STRONGER),
)
NEEDED = (FGSM, FGSM_RESCALED, FGSM_RANDOM_START, PGD_CE, PGD_MARGIN)
"""Attacks that a ``PASS`` needs at every budget."""


@dataclass(frozen=True)
class Standing:
    """The images that one model gets right, and which of them still stand under each attack.

    Attributes:
        infos: the attacks, by key.
        labels: of the images, int64 (n,).
        survived: by key, bool (n,).
        progress: by key of noise and query attacks, float32 (n,): how far they raised the margin, over how far
            gradients did.
        artefact: whose images these are, in words; empty for the reference model.
        gradients: hashes of artefacts whose gradients are the model's own, beside those of attacks made for no other.
    """

    infos: Mapping[Key, AttackInfo]
    labels: NDArray[np.int64]
    survived: Mapping[Key, Bools]
    progress: Mapping[Key, NDArray[np.float32]] = field(default_factory=dict)
    artefact: str = ""
    gradients: frozenset[str | None] = frozenset()

    @property
    def n(self) -> int:
        """How many there are."""
        return len(self.labels)

    def untargeted(self, name: str) -> dict[Key, AttackInfo]:
        """The runs of attack ``name`` that a rule may compare: a targeted attack aims at something else."""
        found = {key: info for key, info in self.infos.items() if info.name == name and key in self.survived}
        return {key: info for key, info in found.items() if info.params.target is None}

    def follows_own(self, info: AttackInfo) -> bool:
        """Whether an attack follows the model's own gradients: another's may break what they leave."""
        own = "@" not in info.name or info.gradients_sha256 in self.gradients
        return follows_gradients(info.name) and own

    def left_by_gradients(self, eps: float) -> Bools:
        """Images that stand under every attack with the model's own gradients within ``eps``."""
        return self._left(key for key, info in self.infos.items() if self.follows_own(info) and info.eps.value <= eps)

    def left_before(self, key: Key) -> Bools:
        """Images that stand under the model's gradients, and under what contradicts them and ran before ``key``.

        What a query attack found on another artefact is left out: each artefact is asked itself.
        """
        info, listed = self.infos[key], list(self.infos)
        left = self.left_by_gradients(info.eps.value)
        if not info.cumulative:
            return left
        place = order_of(info.name, cumulative=True)

        def ran_before(other: Key, by: AttackInfo) -> bool:
            its = order_of(by.name, cumulative=by.cumulative)
            if its != place:
                return FIRST_CONTRADICTION <= its < place
            return not by.cumulative or listed.index(other) < listed.index(key)

        return left & self._left(
            other
            for other, by in self.infos.items()
            if by.eps.value <= info.eps.value and base_name(by.name) != SQUARE and ran_before(other, by)
        )

    def _left(self, keys: Iterator[Key]) -> Bools:
        standing = np.ones(self.n, dtype=np.bool_)
        for key in keys:
            if key in self.survived and not self.infos[key].control:
                standing &= self.survived[key]
        return standing

    def item(
        self, rule: str, key: Key, value: float, lower: float, threshold: Threshold, text: str, **counts: int
    ) -> Finding:
        """One piece of evidence, as the results file holds it."""
        finding: Verdict | None = (
            "MASKED" if lower > threshold.masked else "SUSPECT" if lower > threshold.suspect else None
        )
        return Finding(
            rule=rule,
            attack=key[0],
            eps=key[1],
            n=self.n,
            value=value,
            lower_bound=lower,
            suspect_above=threshold.suspect,
            masked_above=threshold.masked,
            finding=finding,
            text=text,
            artefact=self.artefact or None,
            **counts,
        )

    def paired(
        self, rule: str, key: Key, than: Bools, threshold: Threshold, text: str, allowed: float = 0.0
    ) -> Finding:
        """Evidence of how many images ``key`` broke beyond those that another way, leaving ``than`` standing, did.

        Of ``than`` the share ``allowed`` does not count: an image scores 1 if gained, -1 if lost, less ``allowed`` if
        it was left standing.
        """
        survived = self.survived[key]
        gained, lost, left = int((than & ~survived).sum()), int((~than & survived).sum()), int(than.sum())
        lower = paired_difference_lower_bound(gained, lost, self.n, left=left, allowed=allowed)
        sentence = text.format(attack=key[0], eps=key[1], gained=gained, n=self.n, lost=lost, left=left)
        value = (gained - lost - allowed * left) / self.n
        return self.item(rule, key, value, lower, threshold, sentence, gained=gained, lost=lost, left=left)

    def counted(self, rule: str, key: Key, flags: Bools, threshold: Threshold, text: str) -> Finding:
        """Evidence of how many images have a flag."""
        count = int(flags.sum())
        lower, _ = wilson_interval(count, self.n, z=Z95_ONE_SIDED)
        sentence = text.format(attack=key[0], eps=key[1], share=count / self.n, count=count, n=self.n)
        return self.item(rule, key, count / self.n, lower, threshold, sentence)


def answers(standing: Standing, irregular: Mapping[str, Bools]) -> Iterator[Finding]:
    """Answers that are probabilities, and answers that change; ``irregular`` has bool (n,) of either rule."""
    for rule, threshold, text in (
        (
            "probabilities",
            PROBABILITIES,
            "{share:.1%} of the answers are probabilities, not logits: the attacks "
            "followed a softmax of a softmax; export the network without its last softmax",
        ),
        (
            "unstable",
            UNSTABLE,
            "asked twice, the model answers differently for {share:.1%} of the images: figures of a random "
            "model depend on the throw, and the attacks did not average over it",
        ),
    ):
        if rule in irregular and irregular[rule].any():
            yield standing.counted(rule, CLEAN_KEY, irregular[rule], threshold, text)


def zero_gradients(standing: Standing, zero: Mapping[Key, Bools]) -> Iterator[Finding]:
    """Images without a gradient to follow; ``zero`` has their flags by attack, bool (n,)."""
    text = (
        "{attack} at eps {eps}: {share:.1%} of the {n} images that are right without an attack have no gradient to "
        "follow and were not attacked"
    )
    for key, flags in zero.items():
        info = standing.infos[key]
        # from another model's gradients, or from far away, nothing follows about these; what has the target's label
        # already was not attacked either, and hides nothing
        if not info.control and info.name in NEEDED and info.params.target is None:
            yield standing.counted("zero-gradient", key, flags, ZERO_GRADIENT, text)


def pairs(standing: Standing) -> Iterator[Finding]:
    """Each of :data:`PAIRS` of which both attacks ran at a budget, on all images."""
    text = (
        "at eps {eps}, {attack} broke {gained} of the {left} images (of {n}) that %s left standing; the reverse {lost}"
    )
    for pair in PAIRS:
        others = standing.untargeted(pair.than)
        for key, info in standing.untargeted(pair.attack).items():
            than = (pair.than, key[1])
            if than in others and not (info.cumulative or others[than].cumulative):
                yield standing.paired(
                    pair.rule, key, standing.survived[than], pair.threshold, text % pair.than, pair.allowed
                )


def queries(standing: Standing, asked: Mapping[Key, AttackInfo]) -> Iterator[Finding]:
    """Attacks ``asked`` that do not follow the network's own gradients, against all that do: each by itself, and all
    together."""
    text = "at eps {eps}, {attack} broke {count} of {n} images that every attack %s left standing"
    further = (
        "at eps {eps}, {attack} raised the margin of {count} of {n} images by more than %g of what gradients did, "
        "of images that these left standing"
    )
    if not any(standing.follows_own(standing.infos[key]) for key in standing.survived):
        return
    together: dict[float, tuple[Key, Bools]] = {}
    for key, info in asked.items():
        base = base_name(info.name)
        # the gradients of an int8 artefact, say, are another network's
        rule = _RULES.get(base, "transfer" if follows_gradients(base) and not standing.follows_own(info) else None)
        if key not in standing.survived or info.params.target is not None or rule is None:
            continue
        left = standing.left_before(key)
        # one attack against many: only what it adds counts
        broke, before = left & ~standing.survived[key], "before it" if info.cumulative else "with gradients"
        yield standing.counted(rule, key, broke, QUERY_STRONGER, text % before)
        _, union = together.get(info.eps.value, (key, np.zeros(standing.n, dtype=np.bool_)))
        together[info.eps.value] = (key, union | (standing.left_by_gradients(info.eps.value) & ~standing.survived[key]))
        if contradicts(base) and key in standing.progress:
            most = MOST_PROGRESS[base]
            flags = left & (standing.progress[key] > most)
            yield standing.counted("noise" if base == NOISE else "progress", key, flags, FURTHER, further % most)
    text = (
        "at eps {eps}, attacks without the network's own gradients broke {count} of {n} images that every "
        "attack with them left standing"
    )
    for key, union in together.values():
        yield standing.counted("together", key, union, QUERY_STRONGER, text)


_RULES = {NOISE: "query", SQUARE: "query", PGD_SMOOTHED: "smoothed", TRANSFER: "transfer"}


def nonlinear(standing: Standing, ratios: Mapping[Key, NDArray[np.float32]]) -> Iterator[Finding]:
    """Standing images along whose gradient the margin does something else than the gradient predicts."""
    text = (
        "at eps {eps}, of {count} of {n} images that are right without an attack and stand, the margin does not "
        "rise as its gradient predicts"
    )
    for key, table in ratios.items():
        left = standing.left_by_gradients(standing.infos[key].eps.value)
        yield standing.counted("linearity", key, left & breaks_linearity(table), NOT_LINEAR, text)


def breaks_linearity(ratios: NDArray[np.float32]) -> Bools:
    """Whether the margin does not rise as its gradient predicts: at the image by every step length, at its worst
    version by any.

    Args:
        ratios: float32 (n, 2 k): for k lengths at the image, then for k at the worst version; NaN where not measured.

    Returns:
        bool (n,).
    """
    half = ratios.shape[1] // 2
    kept = (ratios >= LINEAR[0]) & (ratios <= LINEAR[1])
    return np.array(
        [
            not np.isnan(row).any() and not (flags[:half].all() and flags[half:].any())
            for row, flags in zip(ratios, kept, strict=True)
        ],
        dtype=np.bool_,
    )


def large_eps(standing: Standing) -> Iterator[Finding]:
    """Images that stand at eps 1."""
    for key in standing.untargeted(LARGE_EPS):
        commonest = int(np.bincount(standing.labels).max()) / standing.n
        share, (lower, _) = (
            standing.survived[key].mean(),
            wilson_interval(int(standing.survived[key].sum()), standing.n, z=Z95_ONE_SIDED),
        )
        text = (
            f"at eps 1, where every image can become any other, PGD on the margin left {share:.1%} of {standing.n} "
            f"images standing; the commonest class is {commonest:.1%} of them"
        )
        yield standing.item("large-eps", key, float(share) - commonest, lower - commonest, LARGE_EPS_STANDS, text)


def rising(standing: Standing) -> Iterator[Finding]:
    """PGD that breaks fewer images at a larger budget."""
    runs = sorted(standing.untargeted(PGD_MARGIN).items(), key=lambda run: run[1].eps.value)
    for (small, _), (large, info) in pairwise(runs):
        gained = int((~standing.survived[small] & standing.survived[large]).sum())
        lost = int((standing.survived[small] & ~standing.survived[large]).sum())
        text = (
            f"{info.name} at eps {small[1]} broke {gained} of {standing.n} images that it left standing at eps "
            f"{large[1]}; the reverse {lost}"
        )
        lower = paired_difference_lower_bound(gained, lost, standing.n)
        yield standing.item("rising", large, (gained - lost) / standing.n, lower, RISES, text, gained=gained, lost=lost)
