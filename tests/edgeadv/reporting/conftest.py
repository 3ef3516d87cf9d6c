"""What the tests of the report are built from: results and bench files with counts that a test chooses."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from edgeadv.models.builder import PixelModel
from edgeadv.reporting import build_report
from edgeadv_runtime import Bundle
from edgeadv_runtime.benchmark.latency import INCLUDES
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.decoding import convert
from edgeadv_runtime.records.bench import Bench, BenchRow
from edgeadv_runtime.records.evidence import RowMasking
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import CLEAN, WORST_CASE, AttackParams, Row
from edgeadv_runtime.records.study import Study, StudySettings
from tests.edgeadv.reporting.cards import Measured, of_int8, of_masked

N = 1000
# correct of 1,000 by attack and budget, close to what the reference runs on CIFAR-10 gave
UNDEFENDED = {
    ("fgsm", "2/255"): 393,
    ("fgsm-rescaled", "2/255"): 401,
    ("fgsm-rs", "2/255"): 390,
    ("pgd-margin", "2/255"): 162,
    (WORST_CASE, "2/255"): 150,
    ("fgsm", "8/255"): 50,
    ("fgsm-rescaled", "8/255"): 74,
    ("fgsm-rs", "8/255"): 48,
    ("pgd-margin", "8/255"): 0,
    (WORST_CASE, "8/255"): 0,
}
DISTILLED = {
    ("fgsm", "2/255"): 850,
    ("fgsm-rescaled", "2/255"): 350,
    ("fgsm-rs", "2/255"): 845,
    ("pgd-margin", "2/255"): 140,
    (WORST_CASE, "2/255"): 130,
    ("fgsm", "8/255"): 840,
    ("fgsm-rescaled", "8/255"): 65,
    ("fgsm-rs", "8/255"): 838,
    ("pgd-margin", "8/255"): 3,
    (WORST_CASE, "8/255"): 2,
}
EVIDENCE = [
    {"rule": "zero-gradient", "eps": None, "finding": "MASKED", "text": "637 images have no gradient.", "value": 0.637},
    {"rule": "random-start", "eps": "8/255", "finding": None, "text": "Nothing of note.", "gained": 4, "lost": 2},
]


# what the standard suite adds, with gradients of the int8 artefact's surrogate and queries of the artefact itself
STANDARD = {
    ("fgsm", "8/255"): 520,
    ("fgsm-rescaled", "8/255"): 530,
    ("fgsm-rs", "8/255"): 525,
    ("mi-fgsm", "8/255"): 480,
    ("pgd-ce", "8/255"): 470,
    ("pgd-margin", "8/255"): 462,
    ("apgd-ce", "8/255"): 465,
    ("apgd-dlr", "8/255"): 466,
    ("apgd-t", "8/255"): 455,
    ("noise", "8/255"): 800,
    ("square", "8/255"): 610,
    (WORST_CASE, "8/255"): 450,
}
QUERIES = {"noise": 1, "square": 1000}
FINDING = (
    "at eps 8/255, square@onnxruntime-int8-s8s8 broke 170 of 853 images that every attack with gradients left standing"
)


def png(size: int = 32, seed: int = 0) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()


def example(*, clean_size: int = 32, **changes: Any) -> dict[str, Any]:
    return {
        "index": 7,
        "label": "cat",
        "attack": "pgd-margin",
        "eps": "8/255",
        "amplification": 15.9375,
        "clean_png": png(clean_size, seed=1),
        "perturbation_png": png(seed=2),
        "adversarial_png": png(seed=3),
        "clean_prediction": "cat",
        "adversarial_prediction": "dog",
        "clean_probability": 0.974,
        "adversarial_probability": 0.881,
        "artefact": "torch fp32",
    } | changes


def evidence_for(verdict: str) -> list[dict[str, Any]]:
    """:data:`EVIDENCE`, whose finding is as bad as the verdict and no worse."""
    found = verdict if verdict in ("SUSPECT", "MASKED") else None
    return [{**item, "finding": item["finding"] and found} for item in EVIDENCE]


def make_results(
    counts: dict[tuple[str, str], int] = DISTILLED,
    *,
    title: str = "regnet_y_400mf, papernot T=40",
    verdict: str = "MASKED",
    clean: int = 852,
    zero: float | None = 0.637,
    backends: tuple[tuple[str, str, Any], ...] = (("torch", "fp32", "white-box"), ("onnxruntime", "fp16", "transfer")),
    top5: bool = True,
    **changes: Any,
) -> Results:
    rows = []
    for backend, variant, threat in backends:
        for (attack, eps), correct in {(CLEAN, "0"): clean, **counts}.items():
            rows.append(
                Row(
                    variant=variant,
                    artifact_sha256="ab" * 32,
                    backend=backend,
                    provider=f"{backend} provider",
                    device="a device",
                    attack=attack,
                    params=AttackParams(norm="linf", steps=1),
                    eps=eps,
                    eps_value=int(eps.removesuffix("/255")) / 255,
                    threat=None if attack == CLEAN else threat,
                    gradients=None if attack == CLEAN else "torch fp32",
                    n=N,
                    correct_top1=correct,
                    correct_top5=min(N, correct + 90) if top5 else None,
                    zero_gradient_share=zero if attack == "fgsm" else None,
                    masking=None if attack == CLEAN else RowMasking(verdict=verdict),  # type: ignore[arg-type]
                )
            )
    values: dict[str, Any] = {
        "bundle": {
            "id": "cd" * 32,
            "name": "regnet",
            "title": title,
            "weights_sha256": "ef" * 32,
            "architecture": {"name": "regnet_y_400mf"},
            "provenance": {"recipe": "papernot", "temperature": 40},
        },
        "data": {"name": "CIFAR-10", "split": "test", "n": N, "sha256": "12" * 32, "unreadable": ["cat/0173.jpg: cut"]},
        "environment": {"processor": "a processor", "versions": {"numpy": "2.0"}},
        "masking": {"verdict": verdict, "evidence": evidence_for(verdict)},
        "rows": [row.to_json() for row in rows],
        "skipped": [{"backend": "torch", "variant": "fp16", "reason": "torch runs fp32 only"}],
        "examples": [example()],
        "created": "2026-02-03T10:11:12+00:00",
        "edgeadv_version": "0.1.0",
    }
    return Results.from_json(values | changes)


def make_several(**changes: Any) -> Results:
    """A robust model as five artefacts: int8-u8s8 loses 2 points clean and 6 in the worst case, int8-s8s8 is masked."""
    variants = (("onnxruntime", variant, "transfer") for variant in ("fp32", "fp16", "int8-s8s8", "int8-u8s8"))
    values = {"title": "resnet, adversarially trained", "verdict": "PASS", "clean": 853, "zero": 0.0} | changes
    measured = make_results(STANDARD, backends=(("torch", "fp32", "white-box"), *variants), **values)
    rows = []
    for row in measured.rows:
        if row.attack in QUERIES:
            row = replace(
                row, gradients=None, params=AttackParams(norm="linf", queries=QUERIES[row.attack]), threat="transfer"
            )
        if row.attack == WORST_CASE and row.variant.startswith("int8"):
            of_surrogate = replace(row, attack=f"pgd-margin@{row.variant}", correct_top1=431, gradients="surrogate")
            queried = replace(
                row,
                attack=f"square@onnxruntime-{row.variant}",
                threat="query",
                gradients=None,
                correct_top1=600,
                correct_top5=690,
                params=AttackParams(norm="linf", queries=1000),
            )
            row = replace(row, threat="query", correct_top1=390)
            if row.variant == "int8-s8s8":
                queried, row = replace(queried, correct_top1=281), replace(row, correct_top1=280)
            rows += [of_surrogate, queried]
        if row.attack == CLEAN and row.variant == "int8-u8s8":
            row = replace(row, correct_top1=833)
        if row.variant == "fp16" and (lost := {CLEAN: 1, WORST_CASE: 8}.get(row.attack)):
            row = replace(row, correct_top1=row.correct_top1 - lost)
        rows.append(row)
    rows = [
        replace(row, masking=RowMasking(verdict="MASKED", evidence=("another sentence", FINDING)))
        if row.variant == "int8-s8s8" and row.masking
        else row
        for row in rows
    ]
    finding = {
        "rule": "query",
        "attack": "square",
        "eps": "8/255",
        "finding": "MASKED",
        "text": FINDING,
        "artefact": "onnxruntime int8-s8s8",
        "value": 0.199,
    }
    silent = [entry | {"finding": None} for entry in EVIDENCE]
    masking = {"verdict": measured.masking.verdict, "evidence": [*silent, finding]}
    return Results.from_json(
        measured.to_json()
        | {"rows": [row.to_json() for row in rows], "masking": masking, "comparisons": make_comparisons()}
    )


def make_comparisons() -> list[dict[str, Any]]:
    """Those against fp32 of both backends, as ``evaluate`` writes them; lost and gained of 1,000."""
    counts = {
        "fp32": ((0, 0), (0, 0)),
        "fp16": ((3, 2), (12, 4)),
        "int8-s8s8": ((4, 4), (175, 5)),
        "int8-u8s8": ((24, 4), (70, 10)),
    }
    found = []
    for backend in ("torch", "onnxruntime"):
        for variant, both in counts.items():
            if (backend, variant) != ("onnxruntime", "fp32"):
                for (attack, eps), (lost, gained) in zip(((CLEAN, "0"), (WORST_CASE, "8/255")), both, strict=True):
                    found.append(
                        {
                            "attack": attack,
                            "eps": eps,
                            "n": N,
                            "lost": lost,
                            "gained": gained,
                            "baseline": {"backend": backend, "variant": "fp32", "artifact_sha256": "ab" * 32},
                            "artefact": {"backend": "onnxruntime", "variant": variant, "artifact_sha256": "ab" * 32},
                        }
                    )
    return found


def make_bench(*, title: str = "regnet_y_400mf, papernot T=40", slowest: float = 31.4, **changes: Any) -> Bench:
    rows = []
    for stage, mode, p50 in (
        ("preprocess", "back-to-back", 1.12),
        ("inference", "back-to-back", 7.6),
        ("end-to-end", "paced", 9.6),
    ):
        rows.append(
            BenchRow(
                variant="fp16",
                artifact_sha256="ab" * 32,
                backend="onnxruntime",
                provider="CPUExecutionProvider",
                device="a device",
                threads=2,
                batch=1,
                mode=mode,
                rate_hz=30.0 if mode == "paced" else None,
                stage=stage,
                n=1000 if mode != "paced" else 600,
                warm_up=50,
                p50_ms=p50,
                p90_ms=p50 * 1.25,
                p99_ms=None if mode == "paced" else p50 * 1.5,
                max_ms=max(slowest, p50 * 2),
                images_per_s=1000 / p50,
                late=3 if mode == "paced" else None,
                includes=INCLUDES[stage],
            )
        )
    values: dict[str, Any] = {
        "bundle": {"id": "cd" * 32, "name": "regnet", "title": title},
        "environment": {"processor": "a processor"},
        "conditions": {"before": {"cpu_mhz": [2700], "load_average": [0.1, 0.2, 0.1]}, "after": {"cpu_mhz": [2698]}},
        "rows": msgspec.to_builtins(rows),
        "created": "2026-02-03T11:00:00+00:00",
        "edgeadv_version": "0.1.0",
    }
    return convert(values | changes, Bench, what="bench file")


def make_plan(**changes: Any) -> dict[str, Any]:
    return {
        "plan_sha256": "0123456789ab" + "f" * 52,
        "profile": [1, 1, 1],
        "precision": "declared",
        "library": "TensorRT 10.13.3",
        "compute_capability": "sm_87",
        "driver": "540.4.0",
        "tf32": False,
        "cuda_graphs": True,
        "cuda_graph_note": None,
    } | changes


def make_study(*results: Results) -> Study:
    architectures = [
        {
            "name": result.bundle.title,
            "source": "torchvision",
            "weights": {"file": "a<b>.pth", "sha256": "ef" * 32, "map": "by-name"},
            "preprocess": Preprocess(resize=256, crop=224).to_json(),
            "preprocess_published": True,
            "mean": [0.5] * 3,
            "std": [0.25] * 3,
        }
        for result in results
    ]
    data = {"name": "val", "split": "val", "n": N, "images_sha256": "12" * 32}
    settings = {"architectures": architectures, "data": data, "seed": 0, "attack": "fgsm", "eps": ["2/255", "8/255"]}
    results = tuple(dataclasses.replace(result, rows=tuple(result.select(backend="torch"))) for result in results)
    return Study(
        settings=convert(settings, StudySettings, what="study"),
        results=results,
        created="2026-02-03T10:11:12+00:00",
        edgeadv_version="0.1.0",
    )


class Page(HTMLParser):
    """A page taken apart: its elements with their attributes, their text, and the tags that were not closed in turn."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.misplaced: list[str] = []
        self._words: list[str] = []
        self.feed(source)
        self.text = " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.misplaced.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open[-1:]:
            self._words.append(data)

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        return [have for name, have in self.elements if name == tag and wanted.items() <= have.items()]

    @property
    def cards(self) -> list[dict[str, str]]:
        """The headline of each model."""
        return [have for _, have in self.elements if "data-verdict" in have]


@pytest.fixture
def results() -> Callable[..., Results]:
    return make_results


@pytest.fixture
def bench() -> Callable[..., Bench]:
    return make_bench


@pytest.fixture
def plan() -> Callable[..., dict[str, Any]]:
    return make_plan


@pytest.fixture
def picture() -> Callable[..., dict[str, Any]]:
    return example


@pytest.fixture
def several() -> Callable[..., Results]:
    return make_several


@pytest.fixture
def study() -> Callable[..., Study]:
    return make_study


@pytest.fixture
def taken_apart() -> type[Page]:
    return Page


@pytest.fixture
def undefended() -> Results:
    return make_results(UNDEFENDED, title="regnet_y_400mf, undefended", verdict="PASS", clean=853, zero=0.0)


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., Page]:
    """Save what is given, build the page from the files, and take it apart."""

    def build(*measurements: Results | Bench, out: str = "report.html") -> Page:
        files = []
        for i, measurement in enumerate(measurements):
            files.append(tmp_path / f"{i}.json")
            measurement.save(files[-1])
        build_report(files, tmp_path / out)
        return Page((tmp_path / out).read_text(encoding="utf-8"))

    return build


@pytest.fixture(scope="session")
def int8(tmp_path_factory: pytest.TempPathFactory, digits_bundle: Bundle) -> Measured:
    return of_int8(tmp_path_factory.mktemp("int8"), digits_bundle)


@pytest.fixture(scope="session")
def masked(tmp_path_factory: pytest.TempPathFactory, digits_model: PixelModel, digits_test: Any) -> Measured:
    return of_masked(tmp_path_factory.mktemp("masked"), digits_model, digits_test)
