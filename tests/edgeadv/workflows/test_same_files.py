"""A command and the corresponding call write the same file, but for time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeadv.workflows.attack_plan import AttackPlan
from edgeadv.workflows.benchmarking import bench
from edgeadv.workflows.evaluation import Execution, evaluate
from edgeadv.workflows.packing import attack
from edgeadv.workflows.verification import verify
from edgeadv_runtime import AttackPack, Bundle, CallableAttack, Eps, OnnxRuntimeBackend
from edgeadv_runtime import evaluate as evaluate_on_device
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.release_gate import Gate
from edgeadv_runtime.records.release_output import write_outcome
from edgeadv_runtime.records.results import Results

TIME = {"created", "environment"}
NAMED = ["fgsm", "pgd-margin", "square"]
OPTIONS = ("--eps", "2/255,8/255", "--attack", ",".join(NAMED), "--queries", "10", "--limit", "40")
PLAN = AttackPlan(queries=10, limit=40)


def value(path: Path) -> Any:
    """What a JSON file holds, but for time."""
    return {key: each for key, each in json.loads(path.read_text()).items() if key not in TIME}


def keys(value: Any) -> Any:
    """The structure of a JSON value."""
    if isinstance(value, dict):
        return {key: keys(each) for key, each in value.items()}
    return [keys(each) for each in value] if isinstance(value, list) else None


def succeeds(cli: Any, *arguments: object) -> str:
    outcome = cli(*arguments)
    assert outcome.status == 0, outcome.err
    return str(outcome.out)


@pytest.fixture
def results(cli: Any, tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> Path:
    """What the command writes."""
    backends = ("--backend", "torch,onnxruntime", "--uint8")
    succeeds(cli, "evaluate", tiny_bundle.path, "--data", photos, *OPTIONS, *backends, "--out", "command.json")
    return tmp_path / "command.json"


def test_evaluate(results: Path, tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    shared: dict[str, Any] = {
        "eps": [Eps.parse("2/255"), "8/255"],
        "attacks": NAMED,
        "backends": ["torch", "onnxruntime"],
        "plan": PLAN,
        "execution": Execution(uint8=True),
    }
    seen: list[tuple[int, int, str]] = []
    out = tmp_path / "call.json"
    made = evaluate(tiny_bundle, photos, **shared, out=out, progress=lambda *call: seen.append(call))
    assert value(out) == value(results)
    assert seen[-1] == (40, 40, "scoring")
    assert {file.name for file in tmp_path.iterdir()} == {"command.json", "call.json"}
    # nothing on disk, and the same figures
    assert evaluate(str(tiny_bundle.path), str(photos), **shared).rows == made.rows == Results.load(results).rows


def test_attack(cli: Any, tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    succeeds(cli, "attack", tiny_bundle.path, "--data", photos, *OPTIONS, "--out", "command.pack")
    pack = attack(tiny_bundle, photos, eps="2/255,8/255", attacks=NAMED, plan=PLAN, out=tmp_path / "call.pack")
    assert value(pack.path / "pack.json") == value(tmp_path / "command.pack" / "pack.json")
    # a device scores either, by the command, by the workflow and by the runtime alone
    succeeds(cli, "evaluate", tiny_bundle.path, "--pack", "command.pack", "--out", "command.json")
    call = evaluate(tiny_bundle, pack=pack, out=tmp_path / "call.json")
    assert value(tmp_path / "call.json") == value(tmp_path / "command.json")
    backends = [OnnxRuntimeBackend(tiny_bundle, variant=variant) for variant in tiny_bundle.variants]
    alone = evaluate_on_device(tiny_bundle, AttackPack.open(pack.path, bundle=tiny_bundle), backends=backends)
    assert (alone.rows, alone.data, alone.masking) == (call.rows, call.data, call.masking)


def test_bench(cli: Any, tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Of figures only the structure."""
    options = ("--batch", "1,2", "--runs", "3", "--warm-up", "1", "--rate", "500", "--threads", "1")
    succeeds(cli, "bench", tiny_bundle.path, *options, "--out", "command.json")
    out = tmp_path / "call.json"
    made = bench(tiny_bundle, batches=[1, 2], runs=3, warm_up=1, rate_hz=500, threads=1, out=out)
    assert keys(value(out)) == keys(value(tmp_path / "command.json"))
    kept = bench(tiny_bundle, batches=(1, 2), runs=3, warm_up=1, rate_hz=500, threads=1)
    assert [(row.variant, row.batch, row.stage) for row in kept.rows] == [
        (row.variant, row.batch, row.stage) for row in made.rows
    ]
    assert {file.name for file in tmp_path.iterdir()} == {"command.json", "call.json"}


def test_verify(cli: Any, tiny_bundle: Bundle) -> None:
    """A command that writes no file says what the call returns."""
    said = succeeds(cli, "verify", tiny_bundle.path)
    tested = verify(tiny_bundle)
    tested.raise_if_failed()
    assert said.splitlines() == [str(artefact.verification) for artefact in tested.artefacts]


def test_gate(cli: Any, results: Path, tmp_path: Path) -> None:
    rules = ("--min-clean", "0.5", "--backend", "onnxruntime", "--variant", "fp16")
    succeeds(cli, "gate", results, *rules, "--json", "command.gate.json")
    judged = Results.load(results)
    rulings = Gate(min_clean=0.5, backends=("onnxruntime",), variants=("fp16",)).judge(judged)
    write_outcome(results, judged, rulings.rulings, json=tmp_path / "call.gate.json")
    assert value(tmp_path / "call.gate.json") == value(tmp_path / "command.gate.json")


def test_an_attack_of_ones_own_runs_beside_named_ones_and_alone(tiny_bundle: Bundle, photos: Path) -> None:
    def brighter(x: Any, y: Any) -> Any:
        return np.minimum(x + np.float32(8 / 255), 1)

    own = CallableAttack(brighter, "brighter", Eps.parse("8/255"))
    plan = AttackPlan(limit=20)
    both = evaluate(tiny_bundle, photos, eps="8/255", attacks=["fgsm", own], plan=plan)
    alone = evaluate(tiny_bundle, photos, attacks=[own], plan=plan)
    assert {row.attack for row in both.rows} == {"clean", "fgsm", "brighter", "worst-case"}
    assert {row.attack for row in alone.rows} == {"clean", "brighter", "worst-case"}
    assert both.select(attack="brighter") == alone.select(attack="brighter")


def test_progress_ends_an_evaluation_and_what_is_finished_is_kept(
    tiny_bundle: Bundle, photos: Path, tmp_path: Path
) -> None:
    class EnoughError(Exception):
        pass

    def stop(done: int, total: int, text: str) -> None:
        if text == "scoring":
            raise EnoughError

    out = tmp_path / "r.json"
    shared: dict[str, Any] = {"eps": "8/255", "attacks": "fgsm", "out": out}
    with pytest.raises(EnoughError):
        evaluate(tiny_bundle, photos, **shared, progress=stop)
    assert [file.name for file in (tmp_path / "r.json.partial").glob("batch-*")] == ["batch-000000.npz"]
    seen: list[int] = []
    found = evaluate(
        tiny_bundle, photos, **shared, execution=Execution(resume=True), progress=lambda done, *_: seen.append(done)
    )
    assert found.data.n == seen[-1] == 72 and len(seen) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


def test_a_call_leaves_its_process_alone(
    tiny_bundle: Bundle, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No variable of the environment is set, the allocator is not settled, and nothing is printed: commands do that."""
    monkeypatch.setattr("edgeadv.models.allocator.keep_freed_memory", lambda: pytest.fail("the allocator was settled"))
    before = dict(os.environ)
    evaluate(tiny_bundle, photos, eps="8/255", attacks="fgsm", plan=AttackPlan(limit=10))
    assert dict(os.environ) == before
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"eps": "8/255", "backends": "npu"}, "backends"),
        ({"eps": "8/255", "suite": "none"}, "suite"),
        ({"eps": "8/255", "execution": Execution(provider="npu")}, "provider"),
        ({"eps": "8/255", "execution": Execution(resume=True)}, "out"),
        ({"eps": "8/255", "attacks": []}, "attacks"),
        ({}, "data"),
    ],
)
def test_errors_speak_of_fields(tiny_bundle: Bundle, photos: Path, arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as error:
        evaluate(tiny_bundle, photos, **arguments)
    assert error.value.field == field


@pytest.mark.parametrize("made", [lambda: AttackPlan(queries=0), lambda: AttackPlan(workers=-1)])
def test_a_plan_that_cannot_be_is_refused(made: Any) -> None:
    with pytest.raises(InputError, match="must be at least"):
        made()
