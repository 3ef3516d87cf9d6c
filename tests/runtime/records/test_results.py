"""The results file: what is derived, what survives the way to disk, what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from scipy.stats import binomtest

from edgeadv_runtime.decoding import convert
from edgeadv_runtime.errors import BundleError, InputError, SchemaError
from edgeadv_runtime.records.about import Example, ScoredData, Skipped, Subject
from edgeadv_runtime.records.evidence import Finding, Masking, RowMasking
from edgeadv_runtime.records.machine import Environment
from edgeadv_runtime.records.measurement import read_measurement
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import ArtefactId, AttackParams, Comparison, EngineInfo, Row, engines

PLAN = EngineInfo(
    plan_sha256="0123456789ab" + "f" * 52,
    profile=(1, 1, 1),
    precision="declared",
    library="TensorRT 10.13.3",
    compute_capability="sm_87",
    driver="540.4.0",
    tf32=False,
    cuda_graphs=True,
    cuda_graph_note=None,
)
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
EXAMPLE = Example(
    index=3,
    label="cat",
    attack="fgsm",
    eps="8/255",
    amplification=16.0,
    artefact="torch fp32",
    clean_png=PNG,
    adversarial_png=PNG,
    perturbation_png=PNG,
    clean_prediction="cat",
    clean_probability=0.9,
    adversarial_prediction="dog",
    adversarial_probability=0.7,
)
TORCH = ArtefactId(backend="torch", variant="fp32", artifact_sha256="a" * 64)
INT8 = ArtefactId(backend="onnxruntime", variant="int8-u8s8", artifact_sha256="c" * 64)
LOST = Comparison(attack="worst-case", eps="8/255", baseline=TORCH, artefact=INT8, n=40, lost=7, gained=2)


def row(**changes: Any) -> Row:
    values: dict[str, Any] = {
        "variant": "fp32",
        "artifact_sha256": "a" * 64,
        "backend": "torch",
        "provider": "cpu",
        "device": "a CPU",
        "attack": "fgsm",
        "params": AttackParams(norm="linf", steps=1, step_size="8/255"),
        "eps": "8/255",
        "eps_value": 8 / 255,
        "threat": "white-box",
        "gradients": "torch fp32",
        "n": 40,
        "correct_top1": 10,
        "correct_top5": 30,
        "zero_gradient_share": 0.25,
        "masking": RowMasking(verdict="MASKED"),
    }
    return Row(**{**values, **changes})


@pytest.fixture
def results() -> Results:
    clean = row(
        attack="clean",
        eps="0",
        eps_value=0.0,
        params=AttackParams(),
        threat=None,
        gradients=None,
        masking=None,
        zero_gradient_share=None,
        correct_top1=38,
        correct_top5=40,
    )
    worst = row(
        attack="worst-case", params=AttackParams(norm="linf", uint8=True, attacks=("clean", "fgsm")), correct_top5=None
    )
    return Results(
        bundle=Subject(id="b" * 64, name="x.edgeadv"),
        data=ScoredData(name="d", n=40, unreadable=("bad.png",)),
        environment=Environment(python="3"),
        masking=Masking(verdict="MASKED", evidence=(Finding(rule="zero-gradient", finding="MASKED", text="é"),)),
        rows=(clean, row(), worst),
        skipped=(Skipped(backend="torch", variant="fp16", reason="no"),),
        examples=(EXAMPLE,),
        created="2026-01-01T00:00:00+00:00",
        edgeadv_version="0",
    )


def test_shares_are_of_all_images() -> None:
    assert (row().top1, row().top5) == (0.25, 0.75)
    for successes, interval in ((10, row().top1_ci95), (30, row().top5_ci95)):
        theirs = binomtest(successes, 40).proportion_ci(method="wilson")
        assert interval == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_no_top5_no_interval() -> None:
    assert row(correct_top5=None).top5 is None and row(correct_top5=None).top5_ci95 is None


def test_what_is_saved_is_loaded(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.json"
    results.save(path)
    again = Results.load(path)
    assert again == results
    assert again.path == path
    value = json.loads(path.read_text())
    assert (value["schema_version"], value["kind"]) == (1, "results")
    # the shares are in the file for readers that know no Wilson
    assert value["rows"][1]["top1"] == 0.25 and len(value["rows"][1]["top1_ci95"]) == 2
    assert value["rows"][2]["params"] == {"norm": "linf", "uint8": True, "attacks": ["clean", "fgsm"]}
    assert value["rows"][2]["top5"] is None


def test_a_row_names_the_plan_that_ran(results: Results, tmp_path: Path) -> None:
    planned = dataclasses.replace(results, rows=(row(engine=PLAN), row(attack="pgd")))
    planned.save(tmp_path / "results.json")
    value = json.loads((tmp_path / "results.json").read_text())
    assert [entry["engine"] for entry in value["rows"]] == [
        {**msgspec.to_builtins(PLAN), "profile": [1, 1, 1]},
        None,
    ]
    assert value["schema_version"] == 1
    assert Results.load(tmp_path / "results.json") == planned


def test_a_number_that_json_does_not_have_is_not_written(results: Results, tmp_path: Path) -> None:
    wrong = dataclasses.replace(results, created=np.float32(0.5))  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="a file of figures holds no float32"):
        wrong.save(tmp_path / "results.json")
    assert not (tmp_path / "results.json").exists()


def test_files_from_before_plans_still_load(results: Results) -> None:
    value = results.to_json()
    for entry in value["rows"]:
        del entry["engine"]
    assert Results.from_json(value) == results


def test_files_from_before_comparisons_still_load(results: Results, tmp_path: Path) -> None:
    value = results.to_json()
    assert value.pop("comparisons") == []
    assert Results.from_json(value) == results
    compared = dataclasses.replace(results, comparisons=(LOST,))
    compared.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == compared


def test_what_a_person_must_know_of_a_plan() -> None:
    assert str(PLAN) == "plan 0123456789ab, batch 1, precision declared, not verified"
    ranged = replace(PLAN, profile=(1, 8, 32), precision="verified")
    assert str(ranged) == "plan 0123456789ab, batch 1 to 32, best 8, precision verified"
    for change in (
        {"precision": "fine"},
        {"profile": [1]},
        {"profile": None},
        {"profile": [8, 1, 32]},
        {"profile": [0, 1, 1]},
    ):
        with pytest.raises(SchemaError):
            convert({**msgspec.to_builtins(PLAN), **change}, EngineInfo, what="plan")


def test_each_plan_is_listed_once() -> None:
    other = replace(PLAN, plan_sha256="e" * 64)
    rows = [row(), row(engine=PLAN), row(engine=replace(PLAN), attack="pgd"), row(engine=other, variant="int8-s8s8")]
    assert engines(rows) == [("torch fp32", PLAN), ("torch int8-s8s8", other)]


def test_docs_name_every_key_of_a_row_and_of_a_plan() -> None:
    text = (Path(__file__).parents[3] / "docs" / "reference" / "file-formats.md").read_text(encoding="utf-8")
    assert [key for key in (*row().to_json(), *PLAN.__struct_fields__) if f"`{key}`" not in text] == []


def test_select_takes_the_rows_that_agree_in_everything(results: Results) -> None:
    assert [r.attack for r in results.select(backend="torch")] == ["clean", "fgsm", "worst-case"]
    assert [r.attack for r in results.select(eps="8/255", correct_top5=30)] == ["fgsm"]
    assert results.select(backend="onnxruntime") == []
    with pytest.raises(AttributeError):
        results.select(attak="clean")


def test_keys_of_a_later_edgeadv_are_ignored(results: Results) -> None:
    value = json.loads(json.dumps(results.to_json()))
    value["colour"] = value["rows"][1]["colour"] = value["rows"][1]["params"]["colour"] = "blue"
    assert Results.from_json(value) == results


def test_the_share_comes_from_the_counts_and_a_file_that_says_another_is_refused(results: Results) -> None:
    value = results.to_json()
    value["rows"][1]["top1"] = 0.2501  # rounded by another writer
    assert Results.from_json(value).rows[1].top1 == 0.25
    del value["rows"][1]["top1"]
    assert Results.from_json(value).rows[1].top1 == 0.25
    value["rows"][1]["top1"] = 0.99
    with pytest.raises(SchemaError, match=r"top1 of fgsm at eps 8/255 is 0\.99, and its counts give 0\.25"):
        Results.from_json(value)


@pytest.mark.parametrize("key", ["bundle", "data", "masking", "rows", "environment"])
def test_a_missing_key_is_an_incomplete_file(results: Results, key: str) -> None:
    value = results.to_json()
    del value[key]
    with pytest.raises(SchemaError, match="not a complete results file"):
        Results.from_json(value)


@pytest.mark.parametrize("key", ["n", "correct_top1", "params", "masking"])
def test_a_missing_key_of_a_row_is_too(results: Results, key: str) -> None:
    value = results.to_json()
    del value["rows"][1][key]
    with pytest.raises(SchemaError, match=f"not a complete results file .*{key}"):
        Results.from_json(value)


@pytest.mark.parametrize(
    "change", [{"schema_version": 2}, {"schema_version": None}, {"kind": "bench"}, {"kind": "pack"}]
)
def test_a_foreign_file_is_refused(results: Results, tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**results.to_json(), **change}))
    with pytest.raises(SchemaError, match="not a results file of version 1"):
        Results.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00"])
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"results\.json"):
        Results.load(path)
    with pytest.raises(BundleError, match="does not exist"):
        Results.load(tmp_path / "nothing.json")


def test_either_kind_is_read_where_either_will_do(results: Results, tmp_path: Path) -> None:
    for kind in ("results", "bench"):
        path = tmp_path / f"{kind}.json"
        path.write_text(json.dumps({**results.to_json(), "kind": kind}))
        assert read_measurement(path, "results", "bench")["kind"] == kind
    with pytest.raises(SchemaError, match="not a bench file"):
        read_measurement(tmp_path / "results.json", "bench")


def test_params_keep_only_what_applies() -> None:
    assert AttackParams().to_json() == {}
    full = AttackParams(
        norm="linf",
        loss="l",
        steps=0,
        step_size="s",
        restarts=1,
        seed=0,
        queries=5,
        target="3",
        uint8=False,
        attacks=("a", "b"),
        library="theirs 1.0",
        draws=8,
        cumulative=True,
        constants="whose: 1, 2",
        place="square, somewhere",
        patch_sha256="0" * 64,
    )
    assert convert(full.to_json(), AttackParams, what="list of parameters") == full
    # 0 and False are settings, not absence
    assert full.to_json()["steps"] == 0 and full.to_json()["uint8"] is False
    assert set(full.to_json()) == set(AttackParams.__struct_fields__)


def test_nan_never_reaches_a_file(results: Results, tmp_path: Path) -> None:
    broken = dataclasses.replace(results, rows=(row(zero_gradient_share=float("nan")),))
    with pytest.raises(ValueError, match="not JSON compliant"):
        broken.save(tmp_path / "results.json")
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_the_other_way_round() -> None:
    turned = LOST.reversed
    assert (turned.baseline, turned.artefact, turned.lost, turned.gained) == (INT8, TORCH, 2, 7)
    assert (LOST.drop, turned.drop) == (0.125, -0.125) and turned.reversed == LOST
    low, high = LOST.interval
    assert turned.interval == pytest.approx((-high, -low))
    value = LOST.to_json()
    assert (value["drop"], value["drop_ci95"], value["mcnemar_p"]) == (0.125, [low, high], LOST.p)
    assert convert(value, Comparison, what="comparison") == LOST


@pytest.fixture
def several(results: Results) -> Results:
    """A second artefact, of which the file says what it lost."""
    of = {"backend": INT8.backend, "variant": INT8.variant, "artifact_sha256": INT8.artifact_sha256}
    suspect = RowMasking(verdict="SUSPECT", evidence=("why",))
    rows = [replace(each, **of, masking=suspect if each.masking else None) for each in results.rows]
    return dataclasses.replace(results, rows=(*results.rows, *rows), comparisons=(LOST,))


def test_the_row_of_one_artefact(several: Results) -> None:
    worst = several.worst_case("8/255", variant="int8")
    assert (worst.artefact, worst.attack, worst.eps) == (INT8, "worst-case", "8/255")
    assert several.worst_case("16/510", backend="torch").artefact == TORCH
    assert several.clean(variant="fp32").attack == "clean"
    assert (
        several.verdict("8/255", variant="int8-u8s8") == "SUSPECT"
        and several.verdict("8/255", variant="fp32") == "MASKED"
    )
    assert several.overall_verdict == "MASKED"
    for ask, says in (
        (lambda: several.clean(), "clean of torch fp32, onnxruntime int8-u8s8: say which with `variant` and `backend`"),
        (lambda: several.clean(variant="fp16"), "clean of torch fp32, onnxruntime int8-u8s8, and not of fp16"),
        (lambda: several.worst_case("4/255", variant="fp32"), "there is no attack at eps 4/255 in "),
        (lambda: several.worst_case("8/255", variant="int8", backend="torch"), "and not of torch int8"),
        (lambda: dataclasses.replace(several, rows=several.rows[:1]).worst_case("8/255"), "has no attacked images"),
    ):
        with pytest.raises(InputError, match=says):
            ask()


def test_what_an_artefact_is_compared_with(several: Results) -> None:
    assert several.baseline_of(INT8) == TORCH and several.baseline_of(TORCH) is None
    own = replace(INT8, variant="fp32")
    rows = [replace(each, variant="fp32") for each in several.rows if each.artefact == INT8]
    more = dataclasses.replace(several, rows=(*several.rows, *rows))
    assert more.artefacts == (TORCH, INT8, own)
    assert more.baseline_of(INT8) == own and more.baseline_of(own) == TORCH and more.baseline_of(TORCH) is None
    assert more.baseline_of(TORCH, variant="int8-u8s8") == INT8 and more.baseline_of(INT8, variant="fp16") is None
    assert several.comparison(INT8, TORCH, attack="worst-case", eps="8/255") == LOST
    assert several.comparison(TORCH, INT8, attack="worst-case", eps="8/255") == LOST.reversed
    assert several.comparison(TORCH, INT8, attack="clean", eps="0") is None
