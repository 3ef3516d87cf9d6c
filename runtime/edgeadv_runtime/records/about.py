"""What results are about: the bundle, its probabilities, the images, pictures of a few, and what was not scored."""

from __future__ import annotations

import base64
import binascii
import struct
from typing import Annotated, Any

import msgspec

from ..bundle.confidence import Bin, ece
from ..bundle.training_images import overlap_sentence, too_many
from ..decoding import Count, Sha256, Share
from .rows import Size
from .statistics import wilson_interval

NO_GRADIENTS = ("gradients", "surrogate")
"""Stands for a backend in ``skipped`` where a variant was scored but not attacked by its own gradients; the second in
files of an older edgeadv."""
Facts = dict[str, Any]
"""What somebody else's record says, for people to read."""
_DEEPEST = 32
Positive = Annotated[float, msgspec.Meta(gt=0)]
_PNG_HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """A backend and a variant that were asked for as ``all`` and cannot be.

    Attributes:
        backend: its name.
        variant: likewise.
        reason: in words.
    """

    backend: str = ""
    variant: str = ""
    reason: str = "no reason given"


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """What the threshold below which an answer is none did on images that it was not set on.

    Attributes:
        threshold: probability of the first label below which an answer counts as none.
        coverage: the share of images that it was set for.
        answered: images at or above it.
        wrong: images whose first label is wrong.
        wrong_answered: those of them at or above it.
    """

    threshold: Share
    coverage: Annotated[float, msgspec.Meta(gt=0, le=1)]
    answered: Count
    wrong: Count
    wrong_answered: Count


class Reliability(msgspec.Struct, frozen=True, kw_only=True):
    """Images by how sure the model is, in bins of equal width.

    Attributes:
        before: without the temperature.
        after: with it.
    """

    before: tuple[Bin, ...]
    after: tuple[Bin, ...]


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where images are from.

    Attributes:
        name: of the data.
        split: which part.
    """

    name: str
    split: str


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Temperature, calibration error without and with it, and the rejection threshold.

    Attributes:
        temperature: what logits are divided by before the softmax.
        n: images that it and the threshold were set on.
        n_held_out: other images, on which everything else was measured.
        data: which images.
        nll_before: negative log-likelihood without the temperature, in nats.
        nll_after: with it.
        reliability: what the calibration error is computed from.
        rejection: threshold, and what it did.

    Raises:
        ValueError: the counts do not fit together.
    """

    temperature: Positive
    n: Count
    n_held_out: Size
    data: Source
    nll_before: float
    nll_after: float
    reliability: Reliability
    rejection: Rejection

    def __post_init__(self) -> None:
        before, after, rejection = self.reliability.before, self.reliability.after, self.rejection
        if any(each.n < 0 or not (0 <= each.confidence <= 1 and 0 <= each.accuracy <= 1) for each in before + after):
            raise ValueError("a bin of the calibration error is out of range")
        if any(
            sum(each.n for each in table) != self.n_held_out or len(table) != len(before) for table in (before, after)
        ):
            raise ValueError("the bins of the calibration error do not hold the images that were measured")
        answered, wrong, both = rejection.answered, rejection.wrong, rejection.wrong_answered
        if not both <= min(answered, wrong) <= max(answered, wrong) <= self.n_held_out:
            raise ValueError(f"{answered} answered and {both} of {wrong} wrong do not fit {self.n_held_out} images")

    @property
    def ece_before(self) -> float:
        """Calibration error without the temperature."""
        return ece(self.reliability.before)

    @property
    def ece_after(self) -> float:
        """Calibration error with it."""
        return ece(self.reliability.after)

    @property
    def answered_interval(self) -> tuple[float, float]:
        """Wilson 95% interval of the share that is answered."""
        return wilson_interval(self.rejection.answered, self.n_held_out)

    @property
    def bins(self) -> list[tuple[str, Bin, Bin]]:
        """The bins that hold an image without or with the temperature, by their range in words."""
        before, after = self.reliability.before, self.reliability.after
        width = 1 / len(before)
        pairs = enumerate(zip(before, after, strict=True))
        return [(f"{i * width:.0%} to {(i + 1) * width:.0%}", a, b) for i, (a, b) in pairs if a.n or b.n]


class Subject(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The bundle that was measured.

    Attributes:
        id: of the bundle.
        name: of its folder.
        title: for people; None in some bench files.
        weights_sha256: hash of the weights.
        architecture: as in the manifest.
        provenance: as in the manifest.
        confidence: what its probabilities are worth; None where it has no temperature.

    Raises:
        ValueError: a part is nested without end.
    """

    id: str | None = None
    name: str
    title: str | None = None
    weights_sha256: Sha256 | None = None
    architecture: Facts | None = None
    provenance: Facts | None = None
    confidence: Calibration | None = None

    def __post_init__(self) -> None:
        for name in ("architecture", "provenance"):
            check_depth(name, getattr(self, name))

    @property
    def described(self) -> dict[str, Any]:
        """All of it but what its probabilities are worth."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return {key: value for key, value in found.items() if key != "confidence"}

    @property
    def heading(self) -> str:
        """What to call it."""
        return self.title or self.name


class ScoredData(msgspec.Struct, frozen=True, kw_only=True):
    """The images that were scored.

    Attributes:
        name: of the data.
        split: ``"test"``, or ``"all"`` for an unsplit folder.
        n: scored images.
        sha256: over every scored image and label in order; None where that is not known.
        unreadable: one message for each image that was left out.
        calibration_left_out: images that int8 was calibrated on: not scored on any artefact.
        classes: of the model; None in older files.
        training_images: how many of the ``n`` the network was trained on; None where the bundle does not know, unset
            in older files.
        allow_training_images: whether more than 1% of them were allowed.

    Raises:
        ValueError: more training images than images.
    """

    name: str
    split: str = ""
    n: Size
    sha256: Sha256 | None = None
    unreadable: tuple[str, ...] = ()
    calibration_left_out: Count = 0
    classes: Size | None = None
    training_images: Count | msgspec.UnsetType | None = msgspec.UNSET
    allow_training_images: bool = False

    def __post_init__(self) -> None:
        if (self.trained_on or 0) > self.n:
            raise ValueError(f"training_images {self.trained_on} is not a number of the {self.n} images")

    @property
    def trained_on(self) -> int | None:
        """Images that the network was trained on; None where that is not known."""
        return None if self.training_images is msgspec.UNSET else self.training_images

    @property
    def flatters(self) -> bool:
        """Whether too many of the images were trained on."""
        return too_many(self.trained_on, self.n)

    @property
    def overlap(self) -> str:
        """What a reader must know of images that were trained on; empty where that is nothing, and of older files."""
        return "" if self.training_images is msgspec.UNSET else overlap_sentence(self.training_images, self.n)


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One image before and after an attack; pictures are PNG in base64.

    Attributes:
        index: its place in the data.
        label: the true one.
        attack: the attack's name.
        eps: the budget as written.
        amplification: what ``perturbation_png`` shows the perturbation times.
        artefact: whose answers these are, in words.
        clean_png: the image.
        adversarial_png: the image under attack.
        perturbation_png: their difference, amplified, around grey.
        clean_prediction: first label of the image.
        clean_probability: of that label.
        adversarial_prediction: first label under attack.
        adversarial_probability: of that label.

    Raises:
        ValueError: a picture is no PNG in base64.
    """

    index: Count
    label: str
    attack: str
    eps: str
    amplification: Positive
    artefact: str
    clean_png: str
    adversarial_png: str
    perturbation_png: str
    clean_prediction: str
    clean_probability: Share
    adversarial_prediction: str
    adversarial_probability: Share

    def __post_init__(self) -> None:
        for text in (self.clean_png, self.adversarial_png, self.perturbation_png):
            png_size(text)


def png_size(text: str) -> tuple[int, int]:
    """Width and height in pixels of a PNG in base64.

    Raises:
        ValueError: it is none.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("an example image is not base64") from error
    if not data.startswith(_PNG_HEAD) or len(data) < len(_PNG_HEAD) + 8:
        raise ValueError("an example image is not a PNG")
    width, height = struct.unpack_from(">II", data, len(_PNG_HEAD))
    return width, height


def check_depth(name: str, value: Any) -> None:
    """Refuse JSON that is nested deeper than a person would read, and than a page could show.

    Raises:
        ValueError: it is.
    """
    level, depth = [value], 0
    while level := [
        inner
        for each in level
        if isinstance(each, dict | list | tuple)
        for inner in (each.values() if isinstance(each, dict) else each)
    ]:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"{name} is nested deeper than {_DEEPEST} levels")
