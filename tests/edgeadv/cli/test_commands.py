"""Every command once as it should go, on small real things, from training to the report."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import edgeadv_runtime
from edgeadv.gradients.operators import OPERATORS
from edgeadv.training import checkpoint
from edgeadv.training.runs import Run, RunData
from edgeadv_runtime.attacks.pack import AttackPack
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.files import remove_abandoned, sha256_file
from edgeadv_runtime.records.about import NO_GRADIENTS
from edgeadv_runtime.records.bench import Bench
from edgeadv_runtime.records.results import Results

NETWORK = ("--arch", "timm/test_resnet")
ATTACKS = "fgsm,fgsm-rescaled,fgsm-rs,pgd-margin"
SMALL = (*NETWORK, "--epochs", "2", "--batch-size", "16")


def counts(results: Results) -> list[tuple[Any, ...]]:
    """Everything that two runs on the same images must agree on."""
    return [
        (
            row.backend,
            row.variant,
            row.attack,
            row.eps,
            row.threat,
            row.n,
            row.correct_top1,
            row.correct_top5,
            row.zero_gradient_share,
        )
        for row in results.rows
    ]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """So that PyTorch gives the same bits here and in a process of its own."""
    torch.set_num_threads(1)


# training


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on 256 of the embedded digits, made by the command."""
    from edgeadv.cli import main

    out = tmp_path_factory.mktemp("digits") / "run"
    assert main(["train", "--data", "mnist5k", *NETWORK, "--limit", "256", "--epochs", "1", "--out", str(out)]) == 0
    return out


def saved_state(folder):
    """What an unfinished training has kept."""
    return torch.load(io.BytesIO(checkpoint.load(folder)), weights_only=True)


def test_train_leaves_a_run_and_nothing_else(digits):
    assert sorted(file.name for file in digits.iterdir()) == ["run.json", "training-images.npy", "weights.safetensors"]
    run = Run.open(digits)
    assert run.title == "test_resnet, undefended"
    assert run.info.config["limit"] == 256
    assert run.info.data == RunData("mnist5k", train_images=256, test_images=1000)
    assert run.classes.ids == tuple("0123456789")
    (stage,) = run.info.stages
    assert len(stage.epochs) == 1
    low, high = stage.test_accuracy_ci95
    assert low < stage.test_accuracy < high


SIZE = "preprocessing: resize=32,crop=32,interp=bilinear (--preprocess)"


def test_train_says_how_it_goes_on_standard_error_and_what_it_made_on_standard_output(cli, split):
    outcome = cli("train", "--data", split, *SMALL, "--out", "run")
    assert outcome.status == 0
    figure, path = outcome.out.splitlines()
    accuracy = Run.open("run").info.stages[-1].test_accuracy
    assert figure.startswith(f"test_resnet, undefended: test accuracy {accuracy:.1%} [") and figure.endswith(
        "of 16 images"
    )
    assert path == "run"
    first, second, size = outcome.err.splitlines()
    assert first.startswith("train epoch 1/2: loss ") and second.startswith("train epoch 2/2: loss ")
    assert size == SIZE


def test_the_same_training_again_gives_the_same_weights_and_resuming_it_changes_nothing(cli, split):
    assert cli("train", "--data", split, *SMALL, "--out", "a").status == 0
    assert cli("train", "--data", split, *SMALL, "--out", "b").status == 0
    assert sha256_file(Path("a/weights.safetensors")) == sha256_file(Path("b/weights.safetensors"))
    before = Path("a/run.json").read_bytes()
    again = cli("train", "--data", split, *SMALL, "--out", "a", "--resume")
    assert (again.status, again.err.strip()) == (0, SIZE)
    assert Path("a/run.json").read_bytes() == before
    assert cli("train", "--data", split, *SMALL, "--seed", "1", "--out", "c").status == 0
    assert sha256_file(Path("a/weights.safetensors")) != sha256_file(Path("c/weights.safetensors"))


def test_train_starts_from_weights_of_another_run(cli, split, digits):
    frozen = ("--lr", "1e-30", "--weight-decay", "0")
    outcome = cli(
        "train", "--data", split, *SMALL, *frozen, "--weights", digits / "weights.safetensors", "--out", "run"
    )
    assert outcome.status == 0, outcome.err
    start = safetensors.torch.load_file(digits / "weights.safetensors")
    end = safetensors.torch.load_file("run/weights.safetensors")
    assert start.keys() == end.keys()
    replaced = [name for name in start if start[name].shape != end[name].shape]
    assert replaced and {end[name].shape[0] for name in replaced} == {2}
    moving = [name for name in start if "running" in name or "num_batches" in name]
    kept = [name for name in start if name not in replaced + moving]
    assert len(kept) > 10 and all(torch.equal(start[name], end[name]) for name in kept)


def test_distill_trains_a_teacher_and_says_what_distillation_does_not_do(cli, split):
    outcome = cli("distill", "--data", split, *SMALL, "-T", "40", "--out", "student")
    assert outcome.status == 0, outcome.err
    student, teacher = Run.open("student"), Run.open("student/teacher")
    assert student.title == "test_resnet, papernot T=40"
    assert student.info.recipe == {
        "recipe": "papernot",
        "temperature": 40.0,
        "teacher": teacher.title,
        "teacher_weights_sha256": teacher.info.weights_sha256,
        "teacher_test_accuracy": teacher.info.stages[-1].test_accuracy,
    }
    assert teacher.info.weights_sha256 != student.info.weights_sha256
    assert outcome.out.splitlines()[1] == "student"
    *epochs, size, note = outcome.err.splitlines()
    assert size == SIZE
    assert [line.partition(":")[0] for line in epochs] == [
        "teacher epoch 1/2",
        "teacher epoch 2/2",
        "student epoch 1/2",
        "student epoch 2/2",
    ]
    assert "hides gradients" in note


def test_distill_takes_a_teacher_that_is_there(cli, split, run):
    recipe = ("--recipe", "soft-label", "--alpha", "0.5", "-T", "4")
    outcome = cli("distill", "--data", split, *SMALL, *recipe, "--teacher", run, "--out", "student")
    assert outcome.status == 0, outcome.err
    about = Run.open("student").info.recipe
    assert (about["recipe"], about["alpha"], about["temperature"]) == ("soft-label", 0.5, 4.0)
    assert about["teacher_weights_sha256"] == Run.open(run).info.weights_sha256
    assert not Path("student/teacher").exists()


def interrupt_before_the_end(monkeypatch: pytest.MonkeyPatch, which: int = 1) -> None:
    """Ctrl-C after the last epoch of the ``which``-th training, before its run is written."""
    from edgeadv.training import recipes as distill

    write, calls = distill.write_run, []

    def stop(*arguments: Any) -> Run:
        calls.append(arguments)
        if len(calls) == which:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(distill, "write_run", stop)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (("--lr", "0.5"), "lr"),
        (("--epochs", "5"), "epochs"),
        (("--seed", "3"), "seed"),
        (("--augment", "crop-flip"), "augment"),
        (("--preprocess", "resize=40,crop=32"), "preprocess"),
        (("--upsample", "2"), "architecture"),
        (("-T", "10"), "recipe"),
        (("--recipe", "soft-label"), "recipe"),
    ],
)
def test_an_interrupted_training_cannot_go_on_as_another_one(cli, split, monkeypatch, other, named):
    """A run.json that says T = 10 over epochs at T = 40 would be a lie."""
    command = ["distill", "--data", split, *SMALL, "-T", "40", "--out", "student"]
    with monkeypatch.context() as patch:
        interrupt_before_the_end(patch)
        assert cli(*command).status == 130
    held = {file.name: file.read_bytes() for file in Path("student/teacher").iterdir()}
    assert set(held) == {"state.bin", "training-images.npy"}
    refused = cli(*command, *other, "--resume")
    assert refused.status == 2
    assert "started with other settings" in refused.err and named in refused.err
    assert {file.name: file.read_bytes() for file in Path("student/teacher").iterdir()} == held
    without = cli(*command)
    assert without.status == 2 and "continue it with --resume" in without.err


def test_an_interrupted_distillation_goes_on_with_the_teacher_it_has(cli, split, monkeypatch):
    command = ["distill", "--data", split, *SMALL, "-T", "40", "--out"]
    assert cli(*command, "whole").status == 0
    with monkeypatch.context() as patch:
        interrupt_before_the_end(patch, which=2)
        stopped = cli(*command, "student")
    assert stopped.status == 130
    assert stopped.err.splitlines()[-1].startswith("edgeadv: interrupted; ")
    teacher = Path("student/teacher/run.json").stat().st_mtime_ns
    resumed = cli(*command, "student", "--resume")
    assert resumed.status == 0, resumed.err
    assert "teacher epoch" not in resumed.err
    assert Path("student/teacher/run.json").stat().st_mtime_ns == teacher
    assert sha256_file(Path("student/weights.safetensors")) == sha256_file(Path("whole/weights.safetensors"))


def test_ctrl_c_during_training_leaves_what_resume_finishes_bit_for_bit(cli, split, tmp_path):
    command = ["train", "--data", str(split), *NETWORK, "--epochs", "30", "--batch-size", "16", "--out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeadv", *command, "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        # whoever runs the tests in the background may have had SIGINT ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        while not (tmp_path / "run" / "state.bin").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "edgeadv: interrupted; what was finished is kept; --resume continues"
    done = len(saved_state(tmp_path / "run")["history"])
    remove_abandoned(tmp_path / "run")  # the next training does it, if this one was in the midst of a change
    assert {file.suffix for file in (tmp_path / "run").iterdir()} == {".bin"}
    assert 1 <= done < 30
    resumed = cli(*command, "run", "--resume")
    assert resumed.status == 0, resumed.err
    assert [line.partition(":")[0] for line in resumed.err.splitlines()[:-1]] == [
        f"train epoch {i}/30" for i in range(done + 1, 31)
    ]
    assert len(Run.open("run").info.stages[-1].epochs) == 30
    assert cli(*command, "whole").status == 0
    assert sha256_file(Path("run/weights.safetensors")) == sha256_file(Path("whole/weights.safetensors"))


# from the run to the page


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """The run on digits, exported by the command."""
    from edgeadv.cli import main

    out = tmp_path_factory.mktemp("bundle") / "digits.edgeadv"
    assert main(["export", str(digits), "--out", str(out)]) == 0
    return out


def test_export_verify_show_and_slim_agree_on_what_the_bundle_is(cli, bundle, digits):
    opened = Bundle.open(bundle)
    assert opened.variants == ("fp32", "fp16")
    assert opened.weights_sha256 == sha256_file(bundle / "weights.safetensors")
    assert opened.manifest.title == Run.open(digits).title
    verified = cli("verify", bundle, "--backend", "all")
    assert (verified.status, verified.err) == (0, "")
    lines = [line for line in verified.out.splitlines() if not line.startswith("tensorrt")]
    assert [line.split()[:2] for line in lines] == [
        ["torch", "fp32"],
        ["torch", "fp16"],
        ["onnxruntime", "fp32"],
        ["onnxruntime", "fp16"],
    ]
    assert verified.out.count(": ok;") == 4
    shown = cli("bundle", "show", bundle)
    assert (shown.status, shown.err) == (0, "")
    slim = cli("bundle", "slim", bundle, "--variant", "fp16", "--no-weights", "--out", "slim.edgeadv")
    assert (slim.status, slim.err) == (0, "")
    assert all(opened.id in text for text in (shown.out, slim.out))
    assert sorted(file.name for file in Path("slim.edgeadv").iterdir()) == [
        "golden.npz",
        "manifest.json",
        "model.fp16.onnx",
        "training-images.npy",
    ]
    checked = cli(
        "verify", "slim.edgeadv", "--expected-sha256", sha256_file(Path("slim.edgeadv/manifest.json")).upper()
    )
    assert checked.status == 0 and checked.out.count("ok;") == 1


@pytest.mark.parametrize("stored", ["--uint8", "--float32"])
def test_a_pack_and_the_run_that_crafts_its_attacks_give_the_same_counts(cli, tiny_bundle, photos, stored):
    attacked = cli(
        "attack",
        tiny_bundle.path,
        "--data",
        photos,
        "--eps",
        "2/255,8/255",
        "--attack",
        ATTACKS,
        "--out",
        "p",
        *(["--float32"] if stored == "--float32" else []),
    )
    assert (attacked.status, attacked.err) == (0, "")
    assert attacked.out.startswith("72 images, 10 attacks and budgets, ") and attacked.out.endswith(": p\n")
    both = ("--backend", "all", "--precision", "all")
    scored = cli("evaluate", tiny_bundle.path, "--pack", "p", *both, "--out", "pack.json")
    assert (scored.status, scored.err) == (0, "")
    crafted = cli(
        "evaluate",
        tiny_bundle.path,
        "--data",
        photos,
        "--eps",
        "2/255,8/255",
        "--attack",
        ATTACKS,
        *both,
        "--out",
        "data.json",
        *(["--uint8"] if stored == "--uint8" else []),
    )
    assert (crafted.status, crafted.err) == (0, "")
    from_pack, from_data = Results.load(Path("pack.json")), Results.load(Path("data.json"))
    assert counts(from_pack) == counts(from_data)
    assert from_pack.masking == from_data.masking
    assert from_pack.data == from_data.data
    assert [row.params for row in from_pack.rows] == [row.params for row in from_data.rows]
    assert {row.params.uint8 for row in from_pack.rows if row.attack != "clean"} == {stored == "--uint8"}
    # not a comparison of nothing with nothing
    assert len({row.correct_top1 for row in from_pack.rows}) > 3


def test_an_attack_that_the_pack_holds_is_not_added_again(cli, tiny_bundle, photos):
    """Noise is the same whoever is asked; every suite's pack has it."""
    made = ("--data", photos, "--eps", "8/255", "--attack", "fgsm,noise", "--limit", "10", "--out", "p")
    assert cli("attack", tiny_bundle.path, *made).status == 0
    outcome = cli(
        "evaluate", tiny_bundle.path, "--pack", "p", "--attack", "noise,square", "--queries", "5", "--out", "r.json"
    )
    assert (outcome.status, outcome.err) == (0, "")
    names = [row.attack for row in Results.load(Path("r.json")).select(variant="fp32")]
    assert names.count("noise") == 1 and "square@onnxruntime-fp32" in names


def test_a_pack_that_holds_less_than_was_asked_for_is_refused(cli, tiny_bundle, photos):
    """The row would say so, but a stronger attack was asked for."""
    made = (
        "--data",
        photos,
        "--eps",
        "8/255",
        "--attack",
        "fgsm,square",
        "--queries",
        "3",
        "--limit",
        "10",
        "--out",
        "p",
    )
    assert cli("attack", tiny_bundle.path, *made).status == 0
    scored = ("evaluate", tiny_bundle.path, "--pack", "p", "--backend", "torch", "--out", "r.json")
    refused = cli(*scored, "--attack", "square", "--queries", "60")
    assert refused.status == 2 and "the pack holds square with 3 queries, and 60 were asked for" in refused.err
    refused = cli(*scored, "--suite", "full")
    assert refused.status == 2 and "--suite was settled with the pack" in refused.err
    assert not Path("r.json").exists()
    same = cli(*scored, "--attack", "square", "--queries", "3")
    assert same.status == 0, same.err


def test_a_pack_tells_which_variants_their_own_gradients_do_not_attack(cli, digits_bundle, tmp_path, monkeypatch):
    """An artefact with an operator without gradients is only attacked by transfer: who scores the pack is told, too."""
    known = {name: run for name, run in OPERATORS.items() if name != "DequantizeLinear"}
    monkeypatch.setattr("edgeadv.gradients.graph.OPERATORS", known)
    bundle = digits_bundle.slim(tmp_path / "digits.edgeadv", variants=["fp32", "int8-u8s8"], weights=False).path
    made = ("--data", "mnist5k", "--eps", "51/255", "--attack", "pgd-margin", "--limit", "10", "--out", "p")
    assert cli("attack", bundle, *made).status == 0
    told = {}
    for name, source in (("pack", ("--pack", "p")), ("data", (*made[:-2], "--uint8"))):
        outcome = cli("evaluate", bundle, *source, "--precision", "int8-u8s8", "--out", f"{name}.json")
        assert outcome.status == 0, outcome.err
        told[name] = Results.load(Path(f"{name}.json")).skipped
    assert told["pack"] == told["data"] and [entry.backend for entry in told["pack"]] == [NO_GRADIENTS[0]]


def test_evaluate_says_the_worst_case_and_the_verdict(cli, tiny_bundle, pack):
    outcome = cli("evaluate", tiny_bundle.path, "--pack", pack, "--backend", "torch,onnxruntime", "--out", "r.json")
    assert outcome.status == 0
    results = Results.load(Path("r.json"))
    assert {(row.backend, row.variant) for row in results.rows} == {
        ("torch", "fp32"),
        ("torch", "fp16"),
        ("onnxruntime", "fp32"),
        ("onnxruntime", "fp16"),
    }
    assert not results.skipped
    for row in results.rows:
        assert row.n == 72
        _, _, made_for = row.attack.partition("@")
        own = row.attack == "worst-case" or row.variant == (made_for or "fp32")
        assert row.threat == (None if row.attack == "clean" else "white-box" if own else "transfer")
        if row.attack == "worst-case":
            within = [
                r for r in results.select(backend=row.backend, variant=row.variant) if r.eps_value <= row.eps_value
            ]
            assert row.correct_top1 <= min(r.correct_top1 for r in within)
            low, high = row.top1_ci95
            assert f"{row.top1:.1%} [{low:.1%}, {high:.1%}]" in outcome.out
    assert f"masking check: {results.masking.verdict}" in outcome.out
    assert "not scored" not in outcome.out
    assert outcome.out.splitlines()[-1] == "written: r.json"
    # strict JSON: no NaN, no Infinity
    json.loads(Path("r.json").read_text(), parse_constant=pytest.fail)


def test_a_few_attacks_on_a_few_images_are_unchecked(cli, tiny_bundle, photos):
    options = ("--attack", "fgsm", "--limit", "20", "--target", "n0003", "--precision", "fp32", "--examples", "1")
    outcome = cli("evaluate", tiny_bundle.path, "--data", photos, "--eps", "0.03", *options, "--out", "r.json")
    assert outcome.status == 0, outcome.err
    results = Results.load(Path("r.json"))
    assert [row.attack for row in results.rows] == ["clean", "fgsm", "worst-case"]
    assert {row.n for row in results.rows} == {20}
    assert results.rows[1].params.target == "3" and results.rows[1].eps == "0.03"
    assert results.masking.verdict == "UNCHECKED" and "masking check: UNCHECKED" in outcome.out
    assert len(results.examples) <= 1


def test_unreadable_images_are_left_out_and_named_where_that_is_allowed(cli, tiny_bundle, photos):
    shutil.copytree(photos, "photos")
    broken = min(Path("photos").rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:60])
    options = ("--data", "photos", "--eps", "8/255", "--attack", "fgsm")
    assert cli("attack", tiny_bundle.path, *options, "--allow-unreadable", "--out", "p").status == 0
    scored = cli("evaluate", tiny_bundle.path, "--pack", "p", "--out", "pack.json")
    crafted = cli("evaluate", tiny_bundle.path, *options, "--uint8", "--allow-unreadable", "--out", "data.json")
    assert (scored.status, crafted.status) == (0, 0), scored.err + crafted.err
    from_pack, from_data = Results.load(Path("pack.json")), Results.load(Path("data.json"))
    for results, said in ((from_pack, scored.out), (from_data, crafted.out)):
        assert {row.n for row in results.rows} == {results.data.n} == {71}
        (message,) = results.data.unreadable
        assert broken.name in message
        assert "1 unreadable images were left out" in said
    assert counts(from_pack) == counts(from_data) and from_pack.data.sha256 == from_data.data.sha256


def test_an_interrupted_attack_goes_on_with_resume_to_the_same_pack(cli, tiny_bundle, photos, pack, monkeypatch):
    from edgeadv.attacks import pack_writer as module

    save, calls = module.save_shard, []

    def stop(*arguments: Any, **options: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        save(*arguments, **options)

    command = ["attack", tiny_bundle.path, "--data", photos, "--eps", "2/255,8/255", "--attack", ATTACKS, "--out", "p"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_shard", stop)
        stopped = cli(*command)
    assert stopped.status == 130
    assert "interrupted" in stopped.err and "Traceback" not in stopped.err
    assert not Path("p").exists()
    assert sorted(file.name for file in Path("p.partial").iterdir()) == ["plan.json", "shard-00000.npz"]
    assert "continue it with --resume" in cli(*command).err
    first = Path("p.partial/shard-00000.npz").stat().st_mtime_ns
    resumed = cli(*command, "--resume")
    assert resumed.status == 0, resumed.err
    assert not Path("p.partial").exists()
    assert Path("p/shard-00000.npz").stat().st_mtime_ns == first
    opened, whole = (AttackPack.open(path, bundle=tiny_bundle) for path in ("p", pack))
    assert opened.manifest.shards == whole.manifest.shards
    assert len(opened.manifest.shards) == 2


def test_bench_and_report(cli, tiny_bundle, pack):
    few = ("--runs", "3", "--warm-up", "1", "--threads", "1")
    benched = cli("bench", tiny_bundle.path, "--batch", "1,4", "--rate", "200", *few, "--out", "bench.json")
    assert (benched.status, benched.err) == (0, "")
    rows = Bench.load(Path("bench.json")).rows
    assert len(rows) == 2 * 3 * (2 + 1)
    assert {(row.variant, row.batch, row.mode) for row in rows} == {
        (variant, batch, mode)
        for variant in ("fp32", "fp16")
        for batch, mode in ((1, "back-to-back"), (4, "back-to-back"), (1, "paced"))
    }
    assert all(0 < row.p50_ms <= row.p90_ms <= row.max_ms and row.p99_ms is None and row.n == 3 for row in rows)
    assert "paced 200 Hz" in benched.out and "written: bench.json" in benched.out
    assert cli("evaluate", tiny_bundle.path, "--pack", pack, "--out", "results.json").status == 0
    reported = cli("report", "results.json", "bench.json", "--out", "pages/report.html")
    assert (reported.status, reported.out, reported.err) == (0, "pages/report.html\n", "")
    page = Path("pages/report.html").read_text()
    verdict = Results.load(Path("results.json")).masking.verdict
    assert f'data-verdict="{verdict}"' in page and "tiny" in page
    assert "<script" not in page


def test_doctor_opens_bundles_and_never_fails(cli, tiny_bundle):
    outcome = cli("doctor", tiny_bundle.path, "nowhere.edgeadv")
    assert (outcome.status, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert any(line.startswith("ok") and str(tiny_bundle.path) in line for line in lines)
    assert any(line.startswith("problem") and "nowhere.edgeadv" in line for line in lines)
    assert any("onnxruntime cpu" in line and line.startswith("ok") for line in lines)


def test_the_version_and_the_help(cli):
    assert cli("--version").out == f"edgeadv {edgeadv_runtime.__version__}\n"
    helped = cli("--help")
    assert helped.status == 0 and "Usage: edgeadv" in helped.out
    bare = cli()
    assert bare.status == 2 and "Usage: edgeadv" in bare.out + bare.err
    for arguments in (["train"], ["bundle", "slim"], ["evaluate"]):
        each = cli(*arguments, "--help")
        assert each.status == 0 and "--out" in each.out
