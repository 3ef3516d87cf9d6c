"""The study file: several classifiers under one attack on the same images. ``docs/how-to/study.md`` explains it.

What was measured of each classifier is a whole :class:`~edgeadv_runtime.Results`, so nothing about it is said twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from ..bundle.preprocess import Interpolation
from ..bundle.preprocess_text import text_of
from ..decoding import Count, Sha256
from .measurement import Kind, Measurement
from .results import Results
from .rows import Size


class StudyWeights(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a classifier's weights are from.

    Attributes:
        file: name of the file; None for the library's own.
        name: what the library calls its own.
        sha256: hash of the file.
        map: how the file's tensors were matched.
    """

    file: str | None
    name: str | None = None
    sha256: Sha256 | None = None
    map: str | None = None

    def __str__(self) -> str:
        return self.name or "" if self.file is None else f"{self.file}, SHA-256 {(self.sha256 or '')[:12]}"


class StudyPreprocess(msgspec.Struct, frozen=True, kw_only=True):
    """From a picture to a classifier's input, as :meth:`~edgeadv_runtime.Preprocess.to_json` has it."""

    # as plain as the preprocessing's own record has them, for the same reason
    resize: int | tuple[int, int] | None
    crop: int | tuple[int, int]
    interpolation: Interpolation
    resize_mode: str = "shorter_side"
    antialias: bool = True
    color_order: str = "rgb"
    range: tuple[float, float] = (0.0, 1.0)
    exif: bool = False
    roi: tuple[float, float, float, float] | None = None
    window: tuple[int, int] | None = None
    fill: int | None = None

    def __str__(self) -> str:
        return text_of(self, color=self.color_order)


class StudyArchitecture(msgspec.Struct, frozen=True, kw_only=True):
    """One classifier as it was asked for.

    Attributes:
        name: as it was asked for.
        source: the library that has it.
        weights: where they are from.
        preprocess: from a picture to its input.
        preprocess_published: whether that is the library's own.
        mean: of the normalisation, one for each channel.
        std: likewise.
    """

    name: str
    source: str
    weights: StudyWeights
    preprocess: StudyPreprocess
    preprocess_published: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]


class StudyData(msgspec.Struct, frozen=True, kw_only=True):
    """The images of a study.

    Attributes:
        name: of the data.
        split: which part.
        n: images.
        images_sha256: over their names and labels.
    """

    name: str
    split: str
    n: Size
    images_sha256: Sha256


class StudySettings(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for.

    Attributes:
        architectures: in the order of the results.
        data: the images.
        seed: of the choice of images.
        attack: the attack's name.
        eps: budgets as written, ascending.
        libraries: versions of those that the classifiers are from.
    """

    architectures: tuple[StudyArchitecture, ...]
    data: StudyData
    seed: Count
    attack: str
    eps: tuple[str, ...]
    libraries: dict[str, str] = {}


@dataclass(frozen=True, kw_only=True)
class Study(Measurement):
    """A study file.

    Attributes:
        settings: what was asked for.
        results: one for each architecture, in the order of ``settings``; fewer where the study is not finished.
        created: UTC time of the last of them, ISO 8601.
        edgeadv_version: what measured them.
    """

    kind: ClassVar[Kind] = "study"
    settings: StudySettings
    results: tuple[Results, ...]
    created: str = ""
    edgeadv_version: str = ""

    def check(self, written: dict[str, Any]) -> None:
        """Hold the results to what was asked for, and each to itself.

        Raises:
            ValueError: they contradict each other.
        """
        asked = self.settings
        if len(self.results) > len(asked.architectures):
            raise ValueError(f"{len(self.results)} results are of {len(asked.architectures)} architectures")
        for architecture, result, value in zip(asked.architectures, self.results, written["results"], strict=False):
            result.check(value)
            if not result.data.n + len(result.data.unreadable) <= asked.data.n:
                raise ValueError(f"{architecture.name} was scored on {result.data.n} images of {asked.data.n}")

    def to_json(self) -> dict[str, Any]:
        """The file's JSON value."""
        return {**super().to_json(), "results": [result.to_json() for result in self.results]}

    @classmethod
    def from_json(cls, value: dict[str, Any], *, path: Path | None = None) -> Study:
        """Read what :meth:`to_json` wrote; the results are told the same ``path``.

        Raises:
            SchemaError: it is something else.
        """
        found = super().from_json(value, path=path)
        return replace(found, results=tuple(replace(result, path=path) for result in found.results))
