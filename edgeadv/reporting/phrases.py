"""Names and sentences: how the page calls attacks and rules, and what a verdict means."""

from __future__ import annotations

from edgeadv_runtime.bundle.variants import VARIANTS
from edgeadv_runtime.records.rows import CLEAN, WORST_CASE
from edgeadv_runtime.records.suites import (
    APGD_CE,
    APGD_DLR,
    APGD_TARGETED,
    FGSM,
    FGSM_RANDOM_START,
    FGSM_RESCALED,
    LARGE_EPS,
    LINEARITY,
    MI_FGSM,
    NOISE,
    PGD_CE,
    PGD_L2,
    PGD_MARGIN,
    PGD_SMOOTHED,
    SQUARE,
    TRANSFER,
)

# the order in which an eye should meet the attacks: from the flattering to the one that counts
LABELS = {
    CLEAN: "clean",
    FGSM: "FGSM",
    FGSM_RESCALED: "FGSM rescaled",
    FGSM_RANDOM_START: "FGSM-RS",
    MI_FGSM: "MI-FGSM",
    PGD_L2: "PGD L2",
    PGD_CE: "PGD-CE",
    PGD_MARGIN: "PGD margin",
    APGD_CE: "APGD-CE",
    APGD_DLR: "APGD-DLR",
    APGD_TARGETED: "APGD-T",
    PGD_SMOOTHED: "PGD smoothed",
    TRANSFER: "transfer",
    LINEARITY: "linearity",
    LARGE_EPS: "PGD at eps 1",
    NOISE: "noise",
    SQUARE: "Square",
    WORST_CASE: "worst case",
}
MEANINGS = {
    "UNCHECKED": (
        "An upper bound: what ran cannot show whether the attacks saw gradients worth following, and "
        "the true robust accuracy may be far lower."
    ),
    "PASS": (
        "Attacks along gradients were compared with noise, with smoothed gradients and with a search that asks the "
        "artefact itself, "
        "and no rule fired. What was not looked for was not found either. "
        "The check says nothing about how hard the model is to fool; the number does."
    ),
    "SUSPECT": (
        "At least one rule found a sign of hidden or false gradients: "
        "the true robust accuracy may be lower than any number here."
    ),
    "MASKED": (
        "Attacks that follow the plain gradient fail because it is missing or misleads, not because the model resists: "
        "no accuracy above the worst case counts."
    ),
}
RULES = {
    "zero-gradient": "images without a gradient to follow",
    "rescaled-logits": "one step, logits divided by their largest",
    "random-start": "one step from a random point",
    "margin": "the margin against the cross-entropy",
    "one-step": "one step against twenty",
    "steps": "twenty steps against one",
    "query": "noise and queries against gradients",
    "linearity": "the margin's rise against what its gradient predicts",
    "noise": "how far noise gets, against gradients",
    "progress": "how far queries get, against gradients",
    "together": "all that need no gradients of its own, together",
    "smoothed": "gradients of the surroundings against plain ones",
    "transfer": "another network's gradients against its own",
    "large-eps": "what stands at eps 1",
    "rising": "a larger eps against a smaller",
    "probabilities": "answers that are no logits",
    "unstable": "one question, two answers",
    "patch": "a trained patch against a grey one and one of noise",
    "coverage": "what a PASS needs",
}
"""What each rule of the masking check looks at, in a few words."""


def attack_label(attack: str) -> str:
    """The attack's short name on the page, with the variant that it was bound to; one that the page does not know keeps
    its own."""
    base, bound, to = attack.partition("@")
    if base not in LABELS:
        return attack
    # the backend can be read off the full name, which stands where there is room
    variant = next((name for name in VARIANTS if to.endswith(name)), to)
    return f"{LABELS[base]} on {variant}" if bound else LABELS[base]
