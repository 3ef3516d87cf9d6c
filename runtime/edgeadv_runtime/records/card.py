"""The card: what a bundle is, what it was measured to do, and where that ends, each with the file that says so.

``docs/how-to/card.md`` describes it. A card measures nothing: every figure is read off a bundle, a results file or a
bench file, and the record that it stands in names that file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from ..decoding import Count, Sha256, Share
from .about import ScoredData
from .bench import BenchRow
from .evidence import Finding, Verdict, least_believable
from .measurement import Kind, Measurement
from .rows import ArtefactId, AttackParams, Size, Threat
from .statistics import wilson_interval

Setting = str | bool | int | float | None
"""One recorded setting."""
# of a share as it is written, against that of its counts
_ALIKE = 5e-4


class CardSource(msgspec.Struct, frozen=True, kw_only=True):
    """One of the files that the card is made of.

    Attributes:
        kind: what it is; a bundle is named by its manifest, which holds the hash of every other file in it.
        name: of the file, without its folder; of a manifest below the bundle's name.
        sha256: hash of its bytes.
        created: UTC time, ISO 8601, as the file has it.
        edgeadv_version: what wrote it.
    """

    kind: Literal["bundle", "results", "bench"]
    name: str
    sha256: Sha256
    created: str
    edgeadv_version: str


class Sourced(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says.

    Attributes:
        source: the file.
    """

    source: CardSource


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A share of scored images whose first label is right.

    Attributes:
        n: scored images.
        correct: those that are right.
        share: the one over the other.
        ci95: its Wilson 95% interval.

    Raises:
        ValueError: they do not fit together.
    """

    n: Size
    correct: Count
    share: Share
    ci95: tuple[Share, Share]

    def __post_init__(self) -> None:
        if self.correct > self.n:
            raise ValueError(f"{self.correct} of {self.n} images are right")
        due = (self.correct / self.n, *wilson_interval(self.correct, self.n))
        if any(not math.isclose(a, b, abs_tol=_ALIKE) for a, b in zip((self.share, *self.ci95), due, strict=True)):
            raise ValueError(f"share {self.share} or its interval is not that of {self.correct} of {self.n} images")

    @classmethod
    def of(cls, correct: int, n: int) -> Figure:
        """The figure of a count."""
        return cls(n=n, correct=correct, share=correct / n, ci95=wilson_interval(correct, n))


class CardArtefact(msgspec.Struct, frozen=True, kw_only=True):
    """One ONNX file of the bundle.

    Attributes:
        variant: its name in the bundle.
        file: name of the file.
        sha256: hash of the file, as the manifest has it.
        bytes: its size.
        input: type and layout of the tensor that it takes.
        carried: whether this copy of the bundle has it.
        parity_frames: real frames on which it was compared with what it was made from; None where it was not.
        parity_same: those of them with the same first label.
        no_gradients: why attacks could not follow gradients of its own; None where they could, or nobody tried.
    """

    variant: str
    file: str
    sha256: Sha256
    bytes: Count
    input: str
    carried: bool
    parity_frames: Count | None
    parity_same: Count | None
    no_gradients: str | None


class CardModel(Sourced, frozen=True, kw_only=True):
    """What it is.

    Attributes:
        title: the model in a few words.
        bundle_id: of the bundle and its slim copies.
        architecture: its name, and in brackets where that is from: timm, torchvision, onnx of an imported file, ...
        parameters: trained numbers in the weights, BatchNorm's statistics not among them; None where the bundle
            carries no weights.
        input_shape: channels, height and width.
        preprocess: how a frame becomes the input, in words.
        classes: their names in logit order.
        artefacts: the ONNX files.
        gates: what the export measured of int8 against fp32.
    """

    title: str
    bundle_id: Sha256
    architecture: str
    parameters: Count | None
    input_shape: tuple[Size, Size, Size]
    preprocess: str
    classes: tuple[str, ...]
    artefacts: tuple[CardArtefact, ...]
    gates: tuple[CardComparison, ...]


class CardTraining(Sourced, frozen=True, kw_only=True):
    """Trained on what, as the bundle's provenance has it; what a training measured of itself is left out.

    Attributes:
        data: name of the data; None where the bundle does not say.
        images: trained on.
        recipe: its name under ``"recipe"``, and its settings.
        config: hyper-parameters, the seed among them.
        stage: how it went: epochs, the one kept (from 1), images held out to choose it, peak learning rate, why it
            stopped early, and the optimizer's settings.
        holdout_list: name of the list that named the images held out.
        versions: of the libraries.
        listed_images: training images that the bundle knows by hash; None where it has no list.
    """

    data: str | None = None
    images: Count | None = None
    recipe: dict[str, Setting] = {}
    config: dict[str, Setting] = {}
    stage: dict[str, Setting] = {}
    holdout_list: str | None = None
    versions: dict[str, str] = {}
    listed_images: Count | None = None


class CardWorstCase(msgspec.Struct, frozen=True, kw_only=True):
    """One artefact at one budget: per image, over all attacks within it.

    Attributes:
        eps: the budget as written.
        eps_value: in pixels of [0, 1].
        norm: ``"linf"`` or ``"l2"``.
        figure: what is still right.
        at_most: whether it is an upper bound: no attack followed gradients of this very artefact, or the check did
            not pass.
        threat: the closest that an attack came.
        suite: the hardest suite that the attacks cover; None for none.
    """

    eps: str
    eps_value: Annotated[float, msgspec.Meta(gt=0)]
    norm: str
    figure: Figure
    at_most: bool
    threat: Threat | None
    suite: str | None


class CardScore(ArtefactId, frozen=True, kw_only=True):
    """One artefact in a results file.

    Attributes:
        provider: what executed it inside the backend.
        device: the device in words.
        engine: what must be known of the plan that ran; None for a backend without one.
        clean: without an attack.
        worst_cases: by budget, ascending; none where it was not attacked.
        verdict: the least believable that the file has for it. Only under ``"PASS"`` is a worst case a robust accuracy.
        reasons: what that rests on, in sentences.
    """

    provider: str
    device: str
    engine: str | None
    clean: Figure | None
    worst_cases: tuple[CardWorstCase, ...]
    verdict: Verdict
    reasons: tuple[str, ...]


class CardAttack(msgspec.Struct, frozen=True, kw_only=True):
    """One attack as it was run.

    Attributes:
        attack: its name.
        params: how it was run, without what depends on the budget.
        eps: budgets as written.
        gradients: whose it followed; empty for none.
        artefacts: that it was scored on.
    """

    attack: str
    params: AttackParams
    eps: tuple[str, ...]
    gradients: tuple[str, ...]
    artefacts: tuple[str, ...]


class CardComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One artefact against fp32, image by image.

    Attributes:
        artefact: what is compared.
        baseline: with what.
        attack: ``"clean"`` or ``"worst-case"``.
        eps: the budget as written; ``"0"`` for clean.
        data: name of the images.
        n: images that both were scored on.
        lost: those that only the baseline gets right; None in bundles of an older edgeadv.
        gained: those that only the artefact gets right; likewise.
        drop: share of the images that were lost, less what was gained.
        drop_ci95: its 95% interval.
        verdict: the least believable of the two; None for clean.
    """

    artefact: str
    baseline: str
    attack: str
    eps: str
    data: str
    n: Size
    lost: Count | None
    gained: Count | None
    drop: Annotated[float, msgspec.Meta(ge=-1, le=1)]
    drop_ci95: tuple[float, float]
    verdict: Verdict | None


class CardEvaluation(Sourced, frozen=True, kw_only=True):
    """One results file.

    Attributes:
        data: the images that all its figures are of.
        scores: accuracy of each artefact.
        findings: of the masking check, and what keeps the file from a ``"PASS"``.
        attacks: that were run.
        comparisons: with fp32.
    """

    data: ScoredData
    scores: Annotated[tuple[CardScore, ...], msgspec.Meta(min_length=1)]
    findings: tuple[Finding, ...]
    attacks: tuple[CardAttack, ...]
    comparisons: tuple[CardComparison, ...]


class CardShift(ArtefactId, frozen=True, kw_only=True):
    """One artefact under patches of one area, or under corruptions.

    Attributes:
        case: the area, or the kinds and severities, in words.
        n: images.
        share: of them that are right: per image the worst of all patches, or the mean over kinds and severities.
        ci95: its Wilson 95% interval; None of a mean, whose images come again.
        verdict: of a patch; None of corruptions, which nobody chose.
    """

    case: str
    n: Size
    share: Share
    ci95: tuple[Share, Share] | None
    verdict: Verdict | None


class CardShifts(Sourced, frozen=True, kw_only=True):
    """One results file of patches, or of corruptions.

    Attributes:
        data: the images that all its figures are of.
        rows: of each artefact.
        findings: of the check of patches.
    """

    data: ScoredData
    rows: tuple[CardShift, ...]
    findings: tuple[Finding, ...]


class CardBench(Sourced, frozen=True, kw_only=True):
    """One bench file.

    Attributes:
        rows: latency, processor time and energy of each stage of each artefact.
    """

    rows: tuple[BenchRow, ...]


class Said(Sourced, frozen=True, kw_only=True):
    """Sentences, or commands, that one file gives rise to.

    Attributes:
        lines: one each.
    """

    lines: tuple[str, ...]


class CardSignature(Sourced, frozen=True, kw_only=True):
    """Whether the manifest is signed.

    Attributes:
        state: none; there is one and no key was given; it is that of the key that was given.
        public_key_sha256: hash of the key's file that it fits.
    """

    state: Literal["none", "unchecked", "fits"]
    public_key_sha256: Sha256 | None = None


class CardHeadline(msgspec.Struct, frozen=True, kw_only=True):
    """What comes first: the lowest worst case at the largest budget; the lowest clean share where nothing was attacked.

    Attributes:
        source: the file that has the figures.
        artefact: backend and variant.
        clean: the same artefact on the same images without an attack.
        worst_case: None where nothing was attacked.
        data: the images.
        verdict: the least believable of all results files.
    """

    source: CardSource
    artefact: str
    clean: Figure | None
    worst_case: CardWorstCase | None
    data: ScoredData
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Card(Measurement):
    """A card.

    Attributes:
        edgeadv_version: what made it.
        sources: the files that it is made of.
        model: what it is.
        training: trained on what.
        evaluations: what each results file says, at least one.
        benches: what each bench file says.
        shifts: what each file of patches or corruptions says.
        limits: what the files do not show, and what weakens what they show.
        commands: that take the recorded settings; what no file records stands in capitals.
        signature: of the bundle.
    """

    kind: ClassVar[Kind] = "card"
    edgeadv_version: str
    sources: tuple[CardSource, ...]
    model: CardModel
    training: CardTraining
    evaluations: Annotated[tuple[CardEvaluation, ...], msgspec.Meta(min_length=1)]
    benches: tuple[CardBench, ...]
    limits: tuple[Said, ...]
    commands: tuple[Said, ...]
    signature: CardSignature
    shifts: tuple[CardShifts, ...] = ()

    @property
    def scores(self) -> tuple[CardScore, ...]:
        """Those of all results files."""
        return tuple(score for each in self.evaluations for score in each.scores)

    @property
    def headline(self) -> CardHeadline:
        """What comes first, read off :attr:`evaluations`."""
        scored = [(each, score) for each in self.evaluations for score in each.scores]
        attacked = [(each, score, worst) for each, score in scored for worst in score.worst_cases]
        worst: CardWorstCase | None = None
        if attacked:
            each, score, worst = min(attacked, key=lambda entry: (-entry[2].eps_value, entry[2].figure.share))
        else:
            each, score = min(scored, key=lambda entry: entry[1].clean.share if entry[1].clean else 1.0)
        return CardHeadline(
            source=each.source,
            artefact=str(score),
            clean=score.clean,
            worst_case=worst,
            data=each.data,
            verdict=least_believable(score.verdict for score in self.scores),
        )

    def to_json(self) -> dict[str, Any]:
        """The file's JSON value, with the headline that follows from the rest."""
        return {**super().to_json(), "headline": msgspec.to_builtins(self.headline)}

    def check(self, written: dict[str, Any]) -> None:
        """Hold the headline that was written to the one that follows.

        Raises:
            ValueError: they differ.
        """
        there, due = (msgspec.json.encode(each, order="sorted") for each in (written.get("headline"), self.headline))
        if there != due:
            raise ValueError("its headline is not that of its scores")
