"""The records that a manifest is made of; ``docs/reference/bundle.md`` describes every key."""

from __future__ import annotations

import re
import reprlib
from typing import Annotated, Any, Literal

import msgspec

from ..decoding import Count, Sha256, Share

MOST_CLASSES = 1 << 20
# it becomes a path, and file systems take less than 256 bytes
_FILE_NAME = re.compile(r"(?!\.{1,2}\Z)[^/\\\x00-\x1f\x7f]{1,63}")

Text = Annotated[str, msgspec.Meta(max_length=4096)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Tolerance = Annotated[float, msgspec.Meta(ge=0, le=0.5)]
"""A share of the largest logit: with a larger one no comparison would ever fail."""
Positive = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
Interval = tuple[float, float]
VariantName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*\Z", max_length=40)]
"""It becomes part of file names."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A JSON object of the manifest."""

    def to_json(self) -> dict[str, Any]:
        """The object as the file holds it: without keys that have their default."""
        found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return found


class FileEntry(Entry, frozen=True, kw_only=True):
    """A file beside the manifest and its hash."""

    file: str
    sha256: Sha256

    def __post_init__(self) -> None:
        _check_name(self.file)


class SizedFileEntry(FileEntry, frozen=True, kw_only=True):
    """A file and its size in bytes."""

    bytes: Count


class CountedFileEntry(FileEntry, frozen=True, kw_only=True):
    """A file and how many images it holds."""

    count: Count


class ArchitectureEntry(Entry, frozen=True, kw_only=True):
    """What PyTorch builds the network from again."""

    name: Text
    source: Text
    num_classes: Annotated[int, msgspec.Meta(ge=2, le=MOST_CLASSES)]
    upsample: Annotated[int, msgspec.Meta(ge=1, le=8192)]
    mean: Annotated[tuple[float, ...], msgspec.Meta(max_length=16)]
    std: Annotated[tuple[float, ...], msgspec.Meta(max_length=16)]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or any(value <= 0 for value in self.std):
            raise ValueError(f"mean {self.mean} and std {self.std} are no normalisation of channels")


class ClassEntry(Entry, frozen=True, kw_only=True):
    """One class: what data is matched by, and what people read."""

    id: Text
    name: Text


class InputEntry(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tensor that a variant takes: float32 NCHW in [0, 1], or uint8 NHWC in 0..255."""

    name: Literal["image"]
    dtype: Literal["float32", "uint8"]
    layout: Literal["NCHW", "NHWC"]
    range: Interval

    def __post_init__(self) -> None:
        if (self.dtype, self.layout, *self.range) not in (("float32", "NCHW", 0, 1), ("uint8", "NHWC", 0, 255)):
            raise ValueError("the input is neither float32 NCHW in [0, 1] nor uint8 NHWC in 0..255")


class OutputEntry(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tensor that a variant gives."""

    name: Literal["logits"]
    dtype: Literal["float32"]


class FlipEntry(Entry, frozen=True, kw_only=True):
    """A frame whose first label is another than in PyTorch; ``margin``: first minus second logit there."""

    frame: Count
    torch: Count
    artifact: Count
    margin: float


class ParityEntry(Entry, frozen=True, kw_only=True):
    """How close an artefact is to what it was made from."""

    frames: Count
    max_abs_error: NotNegative
    max_relative_error: NotNegative
    min_cosine: float
    top1_agreement: Share
    flips: tuple[FlipEntry, ...]
    reference: Text
    runtime: Text
    largest_activation: NotNegative | None = None


class PairedEntry(Entry, frozen=True, kw_only=True):
    """What int8 loses against fp32 on the same images, in points of top-1."""

    n: Positive
    fp32_correct: Count
    int8_correct: Count
    drop: float
    drop_ci95: Interval
    lost: Count | None = None
    gained: Count | None = None
    drop_upper: float | None = None


class WorstCaseEntry(PairedEntry, frozen=True, kw_only=True):
    """The same under the worst of the attacks of the gate and none."""

    eps: Text
    threat: Text
    verdict: Text
    judged: bool
    suite: Text | None = None
    no_own_gradients: Text | None = None


class LatencyEntry(Entry, frozen=True, kw_only=True):
    """Milliseconds of fp32 and int8 on the machine that exported, or why they were not measured."""

    not_measured: Text | None = None
    faster: NotNegative | None = None
    fp32_ms: NotNegative | None = None
    int8_ms: NotNegative | None = None
    rounds: Count | None = None
    batch: Count | None = None
    threads: Count | None = None
    backend: Text | None = None
    provider: Text | None = None
    device: Text | None = None

    def __post_init__(self) -> None:
        if self.not_measured is None and None in (self.faster, self.threads, self.device):
            raise ValueError("neither measured nor said why not")


class GainEntry(Entry, frozen=True, kw_only=True):
    """What int8 gains over fp32."""

    fp32_bytes: Count
    int8_bytes: Count
    smaller: NotNegative
    latency: LatencyEntry


class GateDataEntry(Entry, frozen=True, kw_only=True):
    """The images of the gate."""

    name: Text
    sha256: Sha256
    split: Text | None = None
    n: Count | None = None
    calibration_left_out: Count | None = None
    unreadable: Count | None = None
    training_images: Count | None = None
    runtime: Text | None = None


class GateEntry(Entry, frozen=True, kw_only=True):
    """The gate that an int8 variant passed; with ``of``, that of the variant it was made from.

    ``worst_case`` is a :class:`WorstCaseEntry`, or says ``not_measured``.
    """

    max_drop: NotNegative
    data: GateDataEntry
    clean: PairedEntry
    worst_case: dict[str, Any]
    fully_quantised: PairedEntry
    gain: GainEntry
    of: VariantName | None = None
    looks: Positive | None = None
    judged_level: Share | None = None
    fallback: list[Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.worst_case.get("not_measured", ""), str):
            raise ValueError("the reason why the worst case was not measured is no text")
        _ = self.worst

    @property
    def worst(self) -> WorstCaseEntry | None:
        """The worst case; None where it was not measured."""
        return None if "not_measured" in self.worst_case else msgspec.convert(self.worst_case, WorstCaseEntry)


class SurrogateEntry(Entry, frozen=True, kw_only=True):
    """The graph of an int8 variant for the gradient side, or why there is none."""

    file: str | None = None
    sha256: Sha256 | None = None
    bytes: Count | None = None
    parity: ParityEntry | None = None
    not_made: Text | None = None

    def __post_init__(self) -> None:
        if (self.not_made is None) == (None in (self.file, self.sha256, self.bytes, self.parity)):
            raise ValueError("neither a whole surrogate nor why there is none")
        if self.file is not None:
            _check_name(self.file)


class GradientsEntry(Entry, frozen=True, kw_only=True):
    """How close the artefact's graph in PyTorch, whose gradients attacks follow, is to it; or why there is none."""

    parity: ParityEntry | None = None
    missing: Text | None = None

    def __post_init__(self) -> None:
        if (self.parity is None) == (self.missing is None):
            raise ValueError("neither compared nor said why there are none")


class MadeFromEntry(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The variant with float input that one with ``-u8in`` was made from, carried or not."""

    variant: VariantName
    sha256: Sha256


class VariantEntry(SizedFileEntry, frozen=True, kw_only=True):
    """One ONNX file. ``compute``: by the name of each convolution and matrix product, the type that it multiplies
    in."""

    precision: Annotated[str, msgspec.Meta(pattern=r"^(fp32|fp16|int8)\Z")]
    opset: Positive
    input: InputEntry
    output: OutputEntry
    tolerance: Tolerance
    parity: ParityEntry | None = None
    compute: dict[Text, Literal["Float", "Half", "BFloat16", "UInt8", "Int8", "unknown"]] | None = None
    made_from: MadeFromEntry | None = None
    float_layers: tuple[Text, ...] | None = None
    batch: Literal[1] | None = None
    gate: GateEntry | None = None
    surrogate: SurrogateEntry | None = None
    gradients: GradientsEntry | None = None


class CalibrationEntry(Entry, frozen=True, kw_only=True):
    """The images that int8 was calibrated on, by the SHA-256 of their preprocessed pixels."""

    images: tuple[Sha256, ...]
    method: Text | None = None
    seed: Count | None = None
    count: Count | None = None
    origin: Text | None = None
    split: Text | None = None


class RejectionEntry(Entry, frozen=True, kw_only=True):
    """The threshold below which an answer is none, and what it does to the images held out."""

    coverage: Annotated[float, msgspec.Meta(gt=0, le=1)]
    threshold: Share
    n: Count
    answered: Count
    answered_ci95: tuple[Share, Share]
    wrong: Count
    wrong_answered: Count
    error_answered_ci95: tuple[Share, Share] | None


class ConfidenceDataEntry(Entry, frozen=True, kw_only=True):
    """The images of the temperature."""

    name: Text
    split: Text
    sha256: Sha256 | None = None
    seed: Count | None = None
    unreadable: Count | None = None


class ConfidenceEntry(Entry, frozen=True, kw_only=True):
    """Temperature and rejection, with the calibration error on the images held out. ``reliability``: its bins, before
    and after."""

    temperature: Annotated[float, msgspec.Meta(gt=0)]
    n: Count
    n_held_out: Count
    nll_before: NotNegative
    nll_after: NotNegative
    ece_before: Share
    ece_after: Share
    rejection: RejectionEntry
    data: ConfidenceDataEntry
    reliability: dict[Text, list[dict[Text, float]]]
    method: Text | None = None
    bins: Positive | None = None
    images: tuple[Sha256, ...] | None = None


def _check_name(file: str) -> None:
    if not _FILE_NAME.fullmatch(file):
        raise ValueError(f"{reprlib.repr(file)} is a path outside the folder, or no file name: do not use it")
