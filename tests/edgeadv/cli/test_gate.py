"""``edgeadv gate``: one line for each rule, and an exit status that a CI job can rely on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from msgspec.structs import replace

from edgeadv_runtime.records.about import ScoredData, Subject
from edgeadv_runtime.records.evidence import Masking, RowMasking
from edgeadv_runtime.records.machine import Environment
from edgeadv_runtime.records.release_gate import Ruling
from edgeadv_runtime.records.release_output import gate_junit
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import ArtefactId, AttackParams, Comparison, Row
from edgeadv_runtime.records.suites import CONTROLS, SQUARE, SUITES

N = 1000
WHY = "at eps 8/255, pgd-margin broke 600 of 950 images that plain FGSM left standing; the reverse 0"
ALL_RULES = ("--min-clean", "0.80", "--min-robust", "0.40", "--max-drop-clean", "0.01", "--max-drop-robust", "0.01")


STANDARD = {name: effort for name, effort in SUITES["standard"].items() if name not in CONTROLS}
SCOPE = "d test, 1000 images"


def behind(variant: str, verdict: str = "PASS") -> list[Row]:
    """The attacks of ``standard``, Square on the artefact itself."""
    rows = []
    for name, effort in STANDARD.items():
        params = AttackParams(steps=effort.steps, restarts=max(effort.restarts, effort.targets), queries=effort.queries)
        made = row(variant, name, 650, verdict)
        rows.append(replace(made, params=params, threat="query" if name == SQUARE else "transfer"))
    return rows


def row(variant: str, attack: str, correct: int, verdict: str = "PASS") -> Row:
    attacked = attack != "clean"
    params = AttackParams(attacks=("clean", *STANDARD)) if attack == "worst-case" else AttackParams()
    masking = RowMasking(verdict=verdict, evidence=() if verdict == "PASS" else (WHY,))  # type: ignore[arg-type]
    return Row(
        variant=variant,
        artifact_sha256=hashlib.sha256(variant.encode()).hexdigest(),
        backend="onnxruntime",
        provider="cpu",
        device="a CPU",
        attack=attack,
        params=params,
        eps="8/255" if attacked else "0",
        eps_value=8 / 255 if attacked else 0.0,
        threat="query" if attacked else None,
        gradients="torch fp32" if attacked else None,
        n=N,
        correct_top1=correct,
        correct_top5=None,
        zero_gradient_share=None,
        masking=masking if attacked else None,
    )


def compared(attack: str, eps: str, lost: int, gained: int) -> Comparison:
    ends = [
        ArtefactId(backend="onnxruntime", variant=variant, artifact_sha256=hashlib.sha256(variant.encode()).hexdigest())
        for variant in ("fp32", "int8-u8s8")
    ]
    return Comparison(attack=attack, eps=eps, baseline=ends[0], artefact=ends[1], n=N, lost=lost, gained=gained)


def results(verdict: str = "PASS") -> Results:
    """fp32 and int8 with 65% right under each attack and 45% in the worst case; int8 loses 6 clean images and 9
    attacked ones."""
    rows = [
        row("fp32", "clean", 950),
        *behind("fp32", verdict),
        row("fp32", "worst-case", 450, verdict),
        row("int8-u8s8", "clean", 944),
        *behind("int8-u8s8", verdict),
        row("int8-u8s8", "worst-case", 441, verdict),
    ]
    return Results(
        bundle=Subject(id="b" * 64, name="x.edgeadv", title="x"),
        data=ScoredData(name="d", split="test", n=N),
        environment=Environment(),
        masking=Masking(verdict=verdict),
        rows=tuple(rows),  # type: ignore[arg-type]
        comparisons=(compared("clean", "0", 10, 4), compared("worst-case", "8/255", 16, 7)),
        created="2026-01-01T00:00:00+00:00",
    )


def test_a_budget_in_l2_may_be_above_1(cli, tmp_path: Path) -> None:
    """No suite attacks in L2, so its robust accuracy is not ruled on."""
    measured = results()
    rows = [
        r if r.eps == "0" else replace(r, eps="2.5", eps_value=2.5, params=AttackParams(norm="l2"))
        for r in measured.rows
    ]
    dataclasses.replace(measured, rows=tuple(rows), comparisons=()).save(tmp_path / "l2.json")
    judged = cli("gate", "l2.json", "--verdict", "PASS", "--eps", "2.5")
    assert judged.status == 0, judged.err
    assert "at eps 2.5 in l2" in judged.out
    refused = cli("gate", "l2.json", "--min-robust", "0.40", "--eps", "2.5", "--suite", "fast")
    assert refused.status == 2 and "at eps 2.5 in l2 met only transferred attacks" in refused.err
    measured.save(tmp_path / "linf.json")
    refused = cli("gate", "linf.json", "--min-robust", "0.40", "--eps", "2.5")
    assert refused.status == 2 and "not in (0, 1]" in refused.err


@pytest.fixture
def good(tmp_path: Path) -> Path:
    results().save(tmp_path / "results.json")
    return tmp_path / "results.json"


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    results("MASKED").save(tmp_path / "masked.json")
    return tmp_path / "masked.json"


def test_every_rule_passed_is_0(cli, good):
    outcome = cli("gate", good, *ALL_RULES, "--baseline", "fp32", "--verdict", "PASS")
    assert outcome.status == 0 and outcome.err == ""
    assert outcome.out.splitlines() == [
        f"passed min-clean 0.8 ({SCOPE}): lowest is onnxruntime int8-u8s8 with 94.4% (944 of 1000, 95% interval "
        "92.8% to 95.7%)",
        f"passed min-robust 0.4 ({SCOPE}, suite standard): lowest is onnxruntime int8-u8s8 at eps 8/255 with at "
        "most 44.1% (441 of "
        "1000, 95% interval 41.1% to 47.2%), query, verdict PASS",
        f"passed max-drop-clean 0.01 ({SCOPE}): largest is onnxruntime int8-u8s8 against onnxruntime fp32: 0.60 "
        "points (10 lost, 4 "
        "gained of 1000, 95% interval -0.18 to 1.38, McNemar p 0.18)",
        f"passed max-drop-robust 0.01 ({SCOPE}, suite standard): largest is onnxruntime int8-u8s8 (query) against "
        "onnxruntime fp32 (query) at "
        "eps 8/255: 0.90 points (16 lost, 7 gained of 1000, 95% interval -0.08 to 1.87, McNemar p 0.093), verdict PASS",
        f"passed verdict PASS ({SCOPE}, suite standard): worst is onnxruntime fp32 at eps 8/255: verdict PASS",
    ]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--min-clean", "0.945"), f"FAILED min-clean 0.945 ({SCOPE}): lowest is onnxruntime int8-u8s8 with 94.4%"),
        (
            ("--min-robust", "0.45"),
            f"FAILED min-robust 0.45 ({SCOPE}, suite standard): lowest is onnxruntime int8-u8s8 at eps 8/255 with "
            "at most 44.1%",
        ),
        (
            ("--max-drop-clean", "0.005"),
            f"FAILED max-drop-clean 0.005 ({SCOPE}): largest is onnxruntime int8-u8s8 against",
        ),
        (
            ("--max-drop-robust", "0.0089"),
            f"FAILED max-drop-robust 0.0089 ({SCOPE}, suite standard): largest is onnxruntime int8-u8s8 (query)",
        ),
    ],
)
def test_a_rule_that_failed_is_1_and_the_others_are_said_all_the_same(cli, good, options, line):
    others = [part for part in zip(ALL_RULES[::2], ALL_RULES[1::2], strict=True) if part[0] != options[0]]
    outcome = cli("gate", good, *options, *(word for part in others for word in part))
    assert outcome.status == 1 and outcome.err == ""
    lines = outcome.out.splitlines()
    assert len(lines) == 4 and sum(text.startswith("passed ") for text in lines) == 3
    assert [text for text in lines if text.startswith(line)]


def test_65_percent_under_fgsm_is_nothing_where_gradients_are_hidden(cli, masked):
    """What flatters is not what is judged, and what is judged passes only if it may be believed."""
    outcome = cli("gate", masked, "--min-robust", "0.40")
    assert outcome.status == 1
    assert outcome.out.splitlines() == [
        f"FAILED min-robust 0.4 ({SCOPE}, suite standard): lowest is onnxruntime int8-u8s8 at eps 8/255 with at "
        "most 44.1% (441 of 1000, 95% interval "
        f"41.1% to 47.2%), query, verdict MASKED ({WHY}); the verdict asked for is PASS"
    ]
    assert "65.0%" not in outcome.out
    # not even where 65% is all that there is
    rows = [replace(r, correct_top1=650) if r.attack == "worst-case" else r for r in results("MASKED").rows]
    dataclasses.replace(results("MASKED"), rows=tuple(rows), comparisons=()).save(masked)
    outcome = cli("gate", masked, "--min-robust", "0.40", "--min-clean", "0.80")
    assert outcome.status == 1
    assert [line.split()[0] for line in outcome.out.splitlines()] == ["passed", "FAILED"]
    for accepted, status in (("UNCHECKED", 1), ("SUSPECT", 1), ("MASKED", 0)):
        outcome = cli("gate", masked, "--min-robust", "0.40", "--verdict", accepted)
        assert outcome.status == status
        assert len(outcome.out.splitlines()) == 2 and outcome.out.count(f"verdict MASKED ({WHY})") == 2


def test_what_is_judged_can_be_narrowed(cli, good):
    outcome = cli("gate", good, "--min-clean", "0.95", "--variant", "fp32", "--backend", "onnxruntime")
    assert outcome.status == 0 and "onnxruntime fp32 with 95.0% (950 of 1000" in outcome.out
    outcome = cli("gate", good, "--min-robust", "0.44", "--variant", "int8", "--eps", "8/255")
    assert outcome.status == 0 and "onnxruntime int8-u8s8 at eps 8/255" in outcome.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "the gate has no rule: give at least one of --min-clean, --min-robust, --min-corrupted"),
        (("--min-clean", "80"), "--min-clean 80 is not a share in [0, 1]: did you mean 0.80?"),
        (("--max-drop-clean", "1"), "--max-drop-clean 1 is not a share in [0, 1): did you mean 0.01?"),
        (("--min-clean", "80%"), "Invalid value for '--min-clean'"),
        (("--min-clean", "nan"), "--min-clean must be a finite number, not nan"),
        (
            ("--min-robust", "0.4", "--verdict", "GOOD"),
            "--verdict 'GOOD' is not one of PASS, UNCHECKED, SUSPECT, MASKED",
        ),
        (("--min-robust", "0.4", "--eps", "8"), "did you mean 8/255?"),
        (("--min-robust", "0.4", "--eps", "4/255"), "there is no attack at eps 4/255 in "),
        (("--min-clean", "0.4", "--eps", "8/255"), "--eps needs a rule on attacked images"),
        (("--min-clean", "0.4", "--suite", "full"), "--suite needs a rule on robust accuracy"),
        (("--min-robust", "0.4", "--suite", "hard"), "--suite 'hard' is not one of fast, standard, full"),
        (
            ("--min-robust", "0.4", "--suite", "full"),
            "Evaluate it with --eps 8/255 and --suite full",
        ),
        (("--min-clean", "0.4", "--json", "results.json"), "must be three different files"),
        (("--min-clean", "0.4", "--json", "a", "--junit", "a"), "must be three different files"),
        (("--min-clean", "0.4", "--junit", "."), "is a folder"),
        (("--min-clean", "0.4", "--baseline", "fp32"), "--baseline needs a rule that compares with it"),
        (("--max-drop-clean", "0.1", "--baseline", "fp16"), "has no fp16 to compare with, but fp32, int8-u8s8"),
        (("--min-clean", "0.4", "--variant", "fp16"), "has no fp16; it has onnxruntime fp32, onnxruntime int8-u8s8"),
        (("--min-clean", "0.4", "--variant", "fp32,"), "--variant 'fp32,' is a comma-separated list without gaps"),
        (("--min-clean", "0.4", "--backend", "tensorrt"), "has no tensorrt; it has"),
    ],
)
def test_bad_input_is_2_and_nothing_is_judged(cli, good, options, says):
    outcome = cli("gate", good, *options)
    assert outcome.status == 2 and outcome.out == ""
    (line,) = outcome.err.splitlines()
    assert line.startswith("edgeadv: ") and says in line


def test_files_that_cannot_be_judged_are_2(cli, good, tmp_path):
    value = json.loads(good.read_text())

    def told(name: str, value: object, *rules: str) -> str:
        (tmp_path / name).write_text(json.dumps(value))
        outcome = cli("gate", name, *rules)
        assert outcome.status == 2 and outcome.out == ""
        (line,) = outcome.err.splitlines()
        return line

    assert "is a 'bench' of schema version 1" in told("bench.json", {**value, "kind": "bench"}, "--min-clean", "0.8")
    assert "not a complete results file" in told("r.json", {**value, "rows": [{}]}, "--min-clean", "0.8")
    older = {key: part for key, part in value.items() if key != "comparisons"}
    assert "no paired comparison of onnxruntime int8-u8s8 with onnxruntime fp32" in told(
        "older.json", older, "--min-clean", "0.1", "--max-drop-clean", "0.5"
    )
    clean = [entry for entry in value["rows"] if entry["attack"] == "clean"]
    assert "has no attacked images" in told("clean.json", {**value, "rows": clean}, "--min-robust", "0.1")
    assert cli("gate", "clean.json", "--min-clean", "0.8", "--max-drop-clean", "0.01").status == 0
    assert "nothing to compare with fp32" in told("one.json", {**value, "rows": clean[:1]}, "--max-drop-clean", "0.1")
    (tmp_path / "cut.json").write_bytes(good.read_bytes()[:500])
    assert cli("gate", "cut.json", "--min-clean", "0.8").status == 2
    assert cli("gate", "nowhere.json", "--min-clean", "0.8").status == 2


def test_a_real_evaluation_can_be_judged(cli, tiny_bundle, photos):
    """12 images are too few for a verdict: their robust accuracy passes nothing unless that is accepted."""
    some = ("--data", photos, "--limit", "12", "--eps", "2/255,8/255")
    command = ("evaluate", tiny_bundle.path, *some, "--precision", "fp32")
    assert cli(*command, "--out", "results.json").status == 0
    measured = Results.load("results.json")
    lowest = min(r.correct_top1 for r in measured.select(attack="worst-case", eps="8/255"))
    outcome = cli("gate", "results.json", "--min-clean", "0.50", "--min-robust", "0", "--eps", "8/255")
    assert outcome.status == 1, outcome.err
    clean, robust = outcome.out.splitlines()
    assert clean.startswith(f"passed min-clean 0.5 ({photos.name} all, 12 images): lowest is ")
    assert robust.startswith(f"FAILED min-robust 0 ({photos.name} all, 12 images, suite standard): ")
    assert f"({lowest} of 12, " in robust and "at eps 8/255" in robust
    assert "verdict UNCHECKED (only " in robust and "images are classified right without an attack" in robust
    accepted = ("--min-robust", "0", "--verdict", "UNCHECKED")
    assert cli("gate", "results.json", *accepted, "--eps", "8/255").status == 0
    outcome = cli("gate", "results.json", *accepted)
    assert outcome.status == 2 and "was attacked at 2/255, 8/255: say with --eps" in outcome.err
    # one attack of the suite tried less hard
    assert cli(*command, "--queries", "10", "--out", "less.json").status == 0
    outcome = cli("gate", "less.json", *accepted, "--eps", "8/255")
    assert (
        outcome.status == 2
        and "square ran with less than 1000 queries" in outcome.err
        and "--suite fast" in outcome.err
    )
    assert cli("gate", "less.json", *accepted, "--eps", "8/255", "--suite", "fast").status == 0


def test_a_pack_is_judged_once_the_artefact_itself_was_asked(cli, tiny_bundle, photos):
    """The pack's Square asked PyTorch: on the device it is transferred, and the suite is not complete."""
    some = ("--data", photos, "--limit", "12", "--eps", "8/255")
    assert cli("attack", tiny_bundle.path, *some, "--out", "p.pack").status == 0
    evaluate = ("evaluate", tiny_bundle.path, "--pack", "p.pack", "--precision", "fp32", "--out")
    assert cli(*evaluate, "pack.json").status == 0
    gate = ("--min-robust", "0", "--verdict", "UNCHECKED")
    assert cli("gate", "pack.json", *gate, "--suite", "fast").status == 0
    outcome = cli("gate", "pack.json", *gate, "--suite", "standard")
    assert outcome.status == 2 and "square did not ask it" in outcome.err
    assert cli(*evaluate, "asked.json", "--attack", "square").status == 0
    outcome = cli("gate", "asked.json", *gate)
    assert outcome.status == 0, outcome.err
    assert "suite standard): lowest is onnxruntime fp32 at eps 8/255" in outcome.out


# For a pipeline


def outcome_of(cli, *arguments: object) -> tuple[int, Any, ElementTree.Element]:
    """Exit status, the JSON, and the JUnit's one suite."""
    status = cli("gate", *arguments, "--json", "out.json", "--junit", "out.xml").status
    root = ElementTree.parse("out.xml").getroot()
    assert root.tag == "testsuites" and len(root) == 1
    assert {k: root.get(k) for k in ("tests", "failures", "errors")} == {
        k: root[0].get(k) for k in ("tests", "failures", "errors")
    }
    return status, json.loads(Path("out.json").read_text()), root[0]


def test_every_ruling_is_in_both_files(cli, good):
    status, value, suite = outcome_of(cli, good, *ALL_RULES)
    assert status == 0 and (value["kind"], value["status"], value["error"]) == ("gate", "passed", None)
    assert value["file"] == "results.json" and value["data"]["name"] == "d" and value["bundle_id"] == "b" * 64
    assert [ruling["rule"] for ruling in value["rulings"]] == [case.get("name") for case in suite]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "0", "0")
    lines = cli("gate", good, *ALL_RULES).out.splitlines()
    assert [case.findtext("system-out") for case in suite] == lines
    assert [f"passed {r['rule']} ({r['scope']}): {r['text']}" for r in value["rulings"]] == lines
    assert value["rulings"][3]["figures"]["lost"] == 16 and value["rulings"][3]["figures"]["suite"] == "standard"


def test_a_rule_that_failed_is_a_failure(cli, masked):
    status, value, suite = outcome_of(cli, masked, "--min-clean", "0.8", "--min-robust", "0.4")
    assert status == 1 and value["status"] == "failed"
    assert [ruling["passed"] for ruling in value["rulings"]] == [True, False]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    (failure,) = suite.iter("failure")
    assert failure.get("message").startswith("FAILED min-robust 0.4") and "verdict MASKED" in failure.text


def test_where_nothing_was_judged_the_pipeline_sees_an_error(cli, good):
    for arguments, says in (
        ((good, "--min-robust", "0.4", "--suite", "full"), "less than the suite full"),
        ((good,), "the gate has no rule"),
        (("nowhere.json", "--min-clean", "0.1"), "nowhere.json"),
    ):
        # of an earlier call, which passed
        assert cli("gate", good, "--min-clean", "0.1", "--json", "out.json", "--junit", "out.xml").status == 0
        status, value, suite = outcome_of(cli, *arguments)
        assert status == 2 and value["status"] == "error" and says in value["error"] and value["rulings"] == []
        assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("1", "0", "1")
        (error,) = suite.iter("error")
        assert error.get("message") == error.text == value["error"]


def test_what_xml_cannot_hold_is_replaced(tmp_path):
    ruling = Ruling("min-clean 0.8", False, "named \x00\x1b\ufffe <&>\u00fc")
    root = ElementTree.fromstring(gate_junit(tmp_path / "r.json", [ruling]))
    assert next(root.iter("failure")).text == "FAILED min-clean 0.8: named ??? <&>\u00fc"


ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_no_torch_is_loaded(good):
    code = (
        "import sys; from edgeadv.cli import main; status = main(sys.argv[1:]); "
        "assert not {'torch', 'onnxruntime'} & set(sys.modules); sys.exit(status)"
    )
    for limit, status in (("0.9", 0), ("0.99", 1)):
        command = [sys.executable, "-c", code, "gate", str(good), "--min-clean", limit]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
        assert outcome.returncode == status, outcome.stderr


@pytest.mark.parametrize(("limit", "status"), [("0.9", "passed"), ("0.99", "failed")])
def test_a_reader_that_left_is_no_outcome(good, tmp_path, limit, status):
    """As in ``edgeadv gate ... | head -0`` under ``pipefail``; what is written to a file is."""
    read, write = os.pipe()
    os.close(read)
    rules = ["--min-clean", limit, "--min-robust", "0.1", "--json", str(tmp_path / "gate.json")]
    command = [sys.executable, "-m", "edgeadv", "gate", str(good), *rules]
    outcome = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, env=ENVIRONMENT, timeout=120
    )
    os.close(write)
    assert outcome.returncode == 2 and "standard output takes no more (Broken pipe)" in outcome.stderr
    assert json.loads((tmp_path / "gate.json").read_text())["status"] == status
