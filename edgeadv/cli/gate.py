"""``edgeadv gate``: a results file against the limits of a release."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from edgeadv_runtime import EdgeAdvError, InputError, Results
from edgeadv_runtime.errors import one_line
from edgeadv_runtime.files import ensure_file_writable
from edgeadv_runtime.records.evidence import ORDER
from edgeadv_runtime.records.release_gate import SUITE
from edgeadv_runtime.records.release_output import write_outcome
from edgeadv_runtime.records.rows import BASELINE
from edgeadv_runtime.records.suites import SUITES

from ..workflows.inputs import names
from ._fields import as_options, say


@dataclass
class _Limits:
    min_clean: Annotated[float | None, "Least clean accuracy, a share: 0.80."] = None
    min_robust: Annotated[float | None, "Least accuracy in the worst case at --eps, a share: 0.40."] = None
    max_drop_clean: Annotated[
        float | None, "Largest drop of clean accuracy against --baseline: 0.01 for one point."
    ] = None
    max_drop_robust: Annotated[float | None, "Largest such drop in the worst case at --eps."] = None
    min_corrupted: Annotated[
        float | None, "Least mean accuracy over the corruptions and severities of a file made with --corruptions."
    ] = None
    max_drop_corrupted: Annotated[float | None, "Largest drop of that mean against --baseline."] = None
    corruptions: Annotated[
        str | None,
        "Kinds or sets that these two are of; by default all in the file, which has to hold a whole set at each "
        "severity.",
    ] = None
    min_patch: Annotated[str | None, "Least accuracy under a patch, of a file made with --patch: 5%=0.5."] = None
    verdict: Annotated[
        str | None,
        f"Least believable masking verdict that is accepted, of {', '.join(ORDER)}. A rule of its own; robust "
        f"rules ask for {ORDER[0]} without it, and --min-patch for {ORDER[1]}.",
    ] = None
    baseline: Annotated[
        str | None,
        f"Variant that drops are counted from, {BASELINE} by default: on the same backend, or on the first one that "
        "has it.",
    ] = None
    eps: Annotated[str | None, "Budget of the robust rules, e.g. 8/255; needed where the file has several."] = None
    suite: Annotated[
        str | None,
        f"Least that must have attacked an artefact for a robust rule, of {', '.join(SUITES)}; {SUITE} by default. "
        "Read off the attacks in the file.",
    ] = None


def gate(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="What evaluate wrote.")],
    limits: _Limits,
    variants: Annotated[
        str | None,
        "Comma-separated variants to judge, int8 for both int8 ones, int8-u8in likewise; by default all in the file.",
    ] = None,
    backends: Annotated[str | None, "Comma-separated backends to judge; by default all in the file."] = None,
    junit: Annotated[Path | None, "Also write the outcome as JUnit XML."] = None,
    json: Annotated[Path | None, "Also write the outcome and its figures as JSON."] = None,
) -> None:
    """Judge a results file, for a release or a CI job: one line for each rule.

    Every artefact in the file must keep to every rule. The exit status is 0 if all passed, 1 if a rule failed, and 2 if
    the file has nothing to judge.
    """
    outputs = [path for path in (junit, json) if path is not None]
    if len({path.resolve() for path in (results, *outputs)}) <= len(outputs):
        raise InputError("--junit, --json and the results file must be three different files")
    for path in outputs:
        ensure_file_writable(path)
    judged: Results | None = None
    try:
        judged = Results.load(results)
        outcome = judged.gate(
            **vars(limits),
            variants=None if variants is None else names(variants, field="variants"),
            backends=None if backends is None else names(backends, field="backends"),
        )
    except EdgeAdvError as error:
        # a pipeline that reads no exit status must not take an older file for today's
        write_outcome(results, judged, [], error=as_options(one_line(str(error))), junit=junit, json=json)
        raise
    write_outcome(results, judged, outcome.rulings, junit=junit, json=json)
    for line in outcome.lines:
        say(line)
    if not outcome.passed:
        raise typer.Exit(1)
