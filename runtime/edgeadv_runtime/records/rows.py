"""A row of a results file: one artefact under one attack at one budget, and what two artefacts differ in, image by
image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec

from ..bundle.entries import Entry
from ..decoding import Count, Sha256, Share
from ..errors import InputError
from .eps import AREA, SEVERITY, Eps
from .evidence import RowMasking, Verdict
from .statistics import mcnemar_p, paired_difference_interval, wilson_interval

Threat = Literal["white-box", "transfer", "query"]
CLEAN = "clean"
WORST_CASE = "worst-case"
NORMS = ("linf", "l2", AREA, SEVERITY)
"""What budgets are measured in; the first where a row does not say. The last two are no norms: the share
of the picture that a patch covers, and how bad a corruption is."""
BASELINE = "fp32"
"""The variant that others are compared with."""
Size = Annotated[int, msgspec.Meta(ge=1, lt=2**53)]
"""A whole number from 1."""
# of a budget as written against its number: files of other writers may round
_ALIKE = 1e-4


class AttackParams(Entry, frozen=True, kw_only=True):
    """How an attack was run; None where a parameter does not apply.

    ``library`` is a third party's whose attack it is, with its version, in words; None for edgeadv's own. ``draws``:
    calls that a gradient is the mean of. ``cumulative``: it ran on what the attacks before it left standing, and its
    row counts what stands after all of them. ``constants``: whose a corruption's are, and which.
    ``place``: shape and place of a patch. ``patch_sha256``: hash of the pixels of one that came from a file.
    """

    norm: Annotated[str, msgspec.Meta(pattern="^(linf|l2|area|severity)$")] | None = None
    loss: str | None = None
    steps: Count | None = None
    step_size: str | None = None
    restarts: Count | None = None
    seed: int | None = None
    queries: Count | None = None
    target: str | None = None
    uint8: bool | None = None
    attacks: tuple[str, ...] | None = None
    library: str | None = None
    draws: Count | None = None
    cumulative: bool | None = None
    constants: str | None = None
    place: str | None = None
    patch_sha256: Sha256 | None = None


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The compiled plan behind a figure.

    Attributes:
        plan_sha256: hash of the plan.
        profile: least, best and largest batch that the plan serves; every other is padded or cut.
        precision: ``"verified"`` where the engine's inspector showed it, else ``"declared"``.
        library: TensorRT or TensorRT-RTX, with its version.
        compute_capability: of the GPU: ``"sm_87"``.
        driver: version of NVIDIA's driver.
        tf32: whether float32 products could round their factors to TensorFloat-32.
        cuda_graphs: whether calls ran as CUDA graphs; None where no batch size came again.
        cuda_graph_note: why they did not; None if nothing was against it.
    """

    plan_sha256: Sha256
    profile: tuple[Size, Size, Size]
    precision: Literal["verified", "declared"]
    library: str = ""
    compute_capability: str = ""
    driver: str = ""
    tf32: bool = False
    cuda_graphs: bool | None = None
    cuda_graph_note: str | None = None

    def __post_init__(self) -> None:
        if list(self.profile) != sorted(self.profile):
            raise ValueError(f"profile {self.profile} does not ascend")

    def __str__(self) -> str:
        """What a person must know: the hash, shortened, the batch sizes that it serves, whether its precision was
        seen."""
        least, best, most = self.profile
        batch = f"{most}" if least == most else f"{least} to {most}, best {best}"
        seen = "precision verified" if self.precision == "verified" else "precision declared, not verified"
        return f"plan {self.plan_sha256[:12]}, batch {batch}, {seen}"


class ArtefactId(msgspec.Struct, frozen=True, kw_only=True):
    """What tells an artefact from all others of a file: the file that ran, and what ran it.

    Attributes:
        backend: what ran it.
        variant: its name in the bundle.
        artifact_sha256: hash of the file.
    """

    backend: str
    variant: str
    artifact_sha256: Sha256

    def __str__(self) -> str:
        return f"{self.backend} {self.variant}"


class ArtefactRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a results or bench file: which artefact it is about, and what ran it.

    Attributes:
        variant: the artefact's name in the bundle.
        artifact_sha256: hash of the file that ran.
        backend: what ran it; with ``provider`` and ``device`` this says whose figure it is.
        provider: what executed it inside the backend.
        device: the device in words.
        engine: the plan that ran; None for a backend without one.
    """

    variant: str
    artifact_sha256: Sha256
    backend: str
    provider: str
    device: str
    engine: EngineInfo | None = None

    @property
    def artefact(self) -> ArtefactId:
        """Whose row it is."""
        return ArtefactId(backend=self.backend, variant=self.variant, artifact_sha256=self.artifact_sha256)


class Row(ArtefactRow, frozen=True, kw_only=True):
    """One artefact under one attack at one budget. Accuracy is over all ``n`` scored images.

    Attributes:
        attack: ``"clean"``, ``"fgsm"``, ..., or ``"worst-case"``: per image, over the clean image and every adversarial
            image within ``eps``.
        params: how the attack was run.
        eps: the budget as written; ``"0"`` for clean.
        eps_value: the budget in pixels of [0, 1].
        threat: None for clean and for a corruption; ``"white-box"`` where the gradients belong to the scored artefact,
            ``"transfer"`` where they come from another one and for attacks without any, ``"query"`` where the attack
            asked the scored artefact. A worst case has the first of these three, in the order white-box, query,
            transfer, that one of its attacks has.
        gradients: where the attack's gradients come from; None for clean.
        n: scored images, at least 1.
        correct_top1: images whose first label is right.
        correct_top5: images whose true label is among the first five; None for five classes or fewer, and under
            attacks that are content with another first label (all but plain and rescaled FGSM and one draw of noise).
        zero_gradient_share: share of the ``n`` images whose gradient was zero or not finite, so not attacked; None if
            unknown or not applicable.
        masking: the artefact's verdict, with the sentences of what was found; None for clean.
        rounding_lost: images that the attack broke before they were rounded to 8 bits and not afterwards; None where
            nothing was rounded or it cannot be told. ``docs/reference/file-formats.md`` says on which model.
        broken_in_addition: of a cumulative attack, images that it broke of those that stood after the attacks before
            it; None for the others, and in older files.
        training_images: of the ``n`` images, those that the network was trained on; None where that is not known. More
            than 1%, and the row flatters: it is there only because that was allowed.

    Raises:
        ValueError: the counts or the budget do not fit together.
    """

    attack: str
    params: AttackParams
    eps: str
    eps_value: Annotated[float, msgspec.Meta(ge=0)]
    threat: Threat | None
    gradients: str | None
    n: Size
    correct_top1: Count
    correct_top5: Count | None
    zero_gradient_share: Share | None
    masking: RowMasking | None
    rounding_lost: Count | None = None
    broken_in_addition: Count | None = None
    training_images: Count | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"{self.attack} was scored on {self.n} images")
        for name in ("correct_top1", "correct_top5", "rounding_lost", "broken_in_addition", "training_images"):
            count = getattr(self, name)
            if count is not None and not 0 <= count <= self.n:
                raise ValueError(f"{name} {count} of {self.attack} is not a number of its {self.n} images")
        if self.correct_top5 is not None and self.correct_top5 < self.correct_top1:
            raise ValueError(
                f"correct_top5 {self.correct_top5} of {self.attack} is less than correct_top1 {self.correct_top1}"
            )
        if self.attack == CLEAN:
            if self.eps != "0" or self.eps_value:
                raise ValueError(f"{CLEAN} has eps {self.eps}, not 0")
            return
        if self.masking is None:
            raise ValueError(f"{self.attack} has no masking")
        try:
            written = Eps.parse(self.eps, norm=self.norm).value
        except InputError as error:
            raise ValueError(str(error)) from error
        if abs(self.eps_value - written) > _ALIKE * written:
            raise ValueError(f"eps_value {self.eps_value} of {self.attack} contradicts eps {self.eps}")

    @property
    def norm(self) -> str:
        """In which the budget is measured, of :data:`NORMS`."""
        return self.params.norm or NORMS[0]

    @property
    def verdict(self) -> Verdict:
        """The masking verdict on the artefact.

        Raises:
            ValueError: the row is clean.
        """
        if self.masking is None:
            raise ValueError(f"{self.attack} has no verdict")
        return self.masking.verdict

    @property
    def reasons(self) -> tuple[str, ...]:
        """What the verdict rests on, in sentences."""
        return () if self.masking is None else self.masking.evidence

    @property
    def top1(self) -> float:
        """Share of images whose first label is right."""
        return self.correct_top1 / self.n

    @property
    def top1_ci95(self) -> tuple[float, float]:
        """Wilson 95% interval of :attr:`top1`."""
        return wilson_interval(self.correct_top1, self.n)

    @property
    def top5(self) -> float | None:
        """Share of images whose true label is among the first five."""
        return None if self.correct_top5 is None else self.correct_top5 / self.n

    @property
    def top5_ci95(self) -> tuple[float, float] | None:
        """Wilson 95% interval of :attr:`top5`."""
        return None if self.correct_top5 is None else wilson_interval(self.correct_top5, self.n)

    def to_json(self) -> dict[str, Any]:
        """The row as the file holds it, with the shares that follow from its counts."""
        shares = {name: getattr(self, name) for name in ("top1", "top1_ci95", "top5", "top5_ci95")}
        return {**msgspec.to_builtins(self), **shares}


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One artefact against another, image by image, on the clean images or in the worst case at a budget.

    Attributes:
        attack: ``"clean"`` or ``"worst-case"``.
        eps: the budget as written; ``"0"`` for clean.
        baseline: what is compared with.
        artefact: what is compared.
        n: images that both were scored on, at least 1.
        lost: images that only the baseline gets right.
        gained: images that only the artefact gets right.

    Raises:
        ValueError: the counts do not fit together.
    """

    attack: str
    eps: str
    baseline: ArtefactId
    artefact: ArtefactId
    n: Size
    lost: Count
    gained: Count

    def __post_init__(self) -> None:
        _ = self.interval

    @property
    def drop(self) -> float:
        """Share of the images that the artefact lost, less what it gained."""
        return (self.lost - self.gained) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95% interval."""
        return paired_difference_interval(self.lost, self.gained, self.n)

    @property
    def p(self) -> float:
        """Of McNemar's test."""
        return mcnemar_p(self.lost, self.gained)

    @property
    def reversed(self) -> Comparison:
        """The same, with the two in each other's place."""
        return msgspec.structs.replace(
            self, baseline=self.artefact, artefact=self.baseline, lost=self.gained, gained=self.lost
        )

    def to_json(self) -> dict[str, Any]:
        """The counts, and what follows from them."""
        return {**msgspec.to_builtins(self), "drop": self.drop, "drop_ci95": list(self.interval), "mcnemar_p": self.p}


def engines(rows: Iterable[ArtefactRow]) -> list[tuple[str, EngineInfo]]:
    """The plans behind ``rows``, each once, with the backend and variant that ran it."""
    found = ((str(row.artefact), row.engine) for row in rows if row.engine is not None)
    return list(dict.fromkeys(found))
