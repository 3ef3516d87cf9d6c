"""What ``edgeadv evaluate`` prints under its table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgeadv.cli._table import print_results
from edgeadv_runtime.records.about import ScoredData, Subject
from edgeadv_runtime.records.evidence import Masking, RowMasking
from edgeadv_runtime.records.machine import Environment
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import ArtefactId, AttackParams, Comparison, Row


def row(variant: str, attack: str, correct: int) -> Row:
    attacked = attack != "clean"
    return Row(
        variant=variant,
        artifact_sha256=variant.ljust(64, "0"),
        backend="onnxruntime",
        provider="cpu",
        device="a CPU",
        attack=attack,
        params=AttackParams(),
        eps="8/255" if attacked else "0",
        eps_value=8 / 255 if attacked else 0.0,
        threat="transfer" if attacked else None,
        gradients=None,
        n=100,
        correct_top1=correct,
        correct_top5=None,
        zero_gradient_share=None,
        masking=RowMasking(verdict="PASS") if attacked else None,
    )


def results() -> Results:
    rows = [row(v, a, c) for v, c in (("fp32", 90), ("int8-u8s8", 88)) for a in ("clean", "worst-case")]
    ends = [
        ArtefactId(backend="onnxruntime", variant=v, artifact_sha256=v.ljust(64, "0")) for v in ("fp32", "int8-u8s8")
    ]
    entry = Comparison(attack="worst-case", eps="8/255", baseline=ends[0], artefact=ends[1], n=100, lost=3, gained=1)
    return Results(
        bundle=Subject(id="b" * 64, name="x", title="x"),
        data=ScoredData(name="d", split="test", n=100),
        environment=Environment(),
        masking=Masking(verdict="PASS"),
        rows=tuple(rows),
        comparisons=(entry,),
    )


def test_the_drop_is_against_fp32_whichever_was_named_first(capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        "onnxruntime int8-u8s8 against onnxruntime fp32, worst case at eps 8/255: drop 2.0 points [-2.7, 6.7], "
        "McNemar's p = 0.62"
    )
    measured = results()
    for comparisons in (measured.comparisons, tuple(entry.reversed for entry in measured.comparisons)):
        print_results(replace(measured, comparisons=comparisons))
        assert capsys.readouterr().out.count(line) == 1
