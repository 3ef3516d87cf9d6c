"""Which attacks run, and how hard they try: the three suites by name.

An attack has one name everywhere: on the command line, in a pack and in a result row. What is behind the names is in
``docs/explanation/masking.md``; ``edgeadv.attacks`` builds those that need gradients, this package those that do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

FGSM = "fgsm"
FGSM_RESCALED = "fgsm-rescaled"
FGSM_RANDOM_START = "fgsm-rs"
MI_FGSM = "mi-fgsm"
PGD_CE = "pgd-ce"
PGD_MARGIN = "pgd-margin"
PGD_L2 = "pgd-l2"
APGD_CE = "apgd-ce"
APGD_DLR = "apgd-dlr"
APGD_TARGETED = "apgd-t"
SQUARE = "square"
NOISE = "noise"
LARGE_EPS = "pgd-large-eps"
"""A control: PGD on the margin at eps 1, where nothing can withstand it. Evidence for the verdict, never a row."""
LINEARITY = "linearity"
"""A control: how far the margin of a standing image rises along its gradient, against what the gradient predicts."""
PGD_SMOOTHED = "pgd-smoothed"
TRANSFER = "transfer"
"""PGD on another network's gradients; after ``@`` its name."""

SuiteName = Literal["fast", "standard", "full"]


@dataclass(frozen=True)
class Effort:
    """How hard an attack tries; what does not apply to it is ignored.

    Attributes:
        steps: gradient steps of a restart.
        restarts: how often it starts again on the images that still stand.
        targets: for ``apgd-t``, how many of the classes that come next it moves towards, one after another.
        queries: for ``square``, most calls of the model for an image; for ``noise``, draws for an image.
    """

    steps: int = 1
    restarts: int = 1
    targets: int = 1
    queries: int = 1


_CONTROLS: Mapping[str, Effort] = {LARGE_EPS: Effort(steps=20), LINEARITY: Effort()}
CONTROLS = frozenset(_CONTROLS)
"""Attacks of the suites that are evidence for the verdict and have no row."""
_DRAWS = 20
"""Draws of noise: as many as PGD takes steps."""
_ONE_STEP: Mapping[str, Effort] = {FGSM: Effort(), FGSM_RESCALED: Effort(), FGSM_RANDOM_START: Effort()}
SUITES: Mapping[SuiteName, Mapping[str, Effort]] = {
    "fast": {
        **_ONE_STEP,
        PGD_CE: Effort(steps=20),
        PGD_MARGIN: Effort(steps=20),
        NOISE: Effort(queries=_DRAWS),
        **_CONTROLS,
    },
    "standard": {
        **_ONE_STEP,
        PGD_CE: Effort(steps=20),
        PGD_MARGIN: Effort(steps=20),
        APGD_CE: Effort(steps=50),
        APGD_DLR: Effort(steps=50),
        MI_FGSM: Effort(steps=10),
        APGD_TARGETED: Effort(steps=50, targets=5),
        PGD_SMOOTHED: Effort(steps=20),
        NOISE: Effort(queries=_DRAWS),
        SQUARE: Effort(queries=1000),
        **_CONTROLS,
    },
    "full": {
        **_ONE_STEP,
        PGD_CE: Effort(steps=100, restarts=5),
        PGD_MARGIN: Effort(steps=100, restarts=5),
        APGD_CE: Effort(steps=100, restarts=5),
        APGD_DLR: Effort(steps=100, restarts=5),
        MI_FGSM: Effort(steps=20),
        APGD_TARGETED: Effort(steps=100, targets=9),
        PGD_SMOOTHED: Effort(steps=100),
        NOISE: Effort(queries=_DRAWS),
        SQUARE: Effort(queries=5000),
        **_CONTROLS,
    },
}
"""``fast`` takes seconds, ``standard`` minutes, ``full`` a night; the first two of each on one device."""
QUERY_ATTACKS = (SQUARE, NOISE)
"""Those that need no gradient, and so no PyTorch."""
TARGETABLE = (FGSM, FGSM_RESCALED)
"""Those that move towards a class that is named: one step says what that class attracts, the others look for the worst
case."""
WHOLE_STEP = (FGSM, FGSM_RESCALED)
"""Those that go as far as the budget lets them, whatever the model says: the others leave an image, or keep its first
version, as soon as its label is no longer the first, so that it mostly comes second, and their top-5 accuracy says
nothing."""
OPTIONAL = (PGD_L2,)
"""Attacks that no suite runs: they are asked for by name."""
RANDOM_DRAWS = 10
"""Answers that each gradient is the mean of, for a network that answers at random."""
CUMULATIVE = (MI_FGSM, APGD_CE, APGD_DLR, APGD_TARGETED, PGD_SMOOTHED, TRANSFER, NOISE, SQUARE)
"""Those that no rule compares on all images: they run on what the attacks before them left standing."""
KNOWN = frozenset(name for suite in SUITES.values() for name in suite) | frozenset((*OPTIONAL, TRANSFER))
"""All names of edgeadv's own attacks; a suffix after ``@`` says which artefact one was made for."""
PER_ARTEFACT = (PGD_MARGIN, APGD_DLR)
"""What is run with the gradients of every artefact beside the reference, of the attacks that run at all: losses that no
saturated softmax stops."""
PER_INT8 = (*PER_ARTEFACT, APGD_CE)
"""The same for int8, which rounds elsewhere: what is clearly broken in float32 may stand there."""


def base_name(name: str) -> str:
    """The attack behind a name in a row: what comes after ``@`` says which artefact it was made for, or with."""
    return name.partition("@")[0]


def is_ours(name: str) -> bool:
    """Whether it is an attack of edgeadv's own: of a third party's nobody says whether it follows gradients or asks."""
    return base_name(name) in KNOWN


def contradicts(name: str) -> bool:
    """Whether it is an attack of ours that needs no gradient: how far it gets can contradict those that follow one."""
    return base_name(name) in QUERY_ATTACKS


def follows_gradients(name: str) -> bool:
    """Whether it is an attack of ours that follows the plain gradients of what it was made for."""
    return is_ours(name) and base_name(name) not in (*QUERY_ATTACKS, *CONTROLS, PGD_SMOOTHED, TRANSFER)


def order_of(name: str, *, cumulative: bool) -> int:
    """The place of an attack in a run, so that none hides what another would have found.

    First all that follow the reference's own gradients, the cumulative ones after the others; then the control that
    looks at what these left; then what contradicts them, noise before all else; last those of other libraries, of which
    nobody knows what they do.
    """
    if not is_ours(name):
        return 5
    if base_name(name) == LINEARITY:
        return 2
    if base_name(name) == NOISE:
        return FIRST_CONTRADICTION
    if "@" in name or not (follows_gradients(name) or name == LARGE_EPS):
        return 4
    return 1 if cumulative else 0


FIRST_CONTRADICTION = 3
"""The least place of attacks that can contradict the reference's own gradients."""
