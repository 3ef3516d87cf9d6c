"""An evaluation in several processes, and one that was stopped: the file is the one that one process writes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeadv.cli import main
from edgeadv.workflows import evaluation as evaluating
from edgeadv.workflows import processes as _processes
from edgeadv_runtime.attacks.pack import AttackPack
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.evaluation import loop, scoring
from edgeadv_runtime.records.results import Results
from tests.forking import Job, run

ATTACKS = ("--attack", "fgsm,pgd-margin,pgd-large-eps")
# four batches
BATCHES, LIMIT = 4, 200
CRAFT = ("--eps", "2/255,8/255", *ATTACKS, "--uint8", "--backend", "torch,onnxruntime", "--threads", "1")
CRAFT += ("--limit", str(LIMIT))


def environment() -> dict[str, str]:
    path = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def torchrun(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """``edgeadv`` in two processes that ``torchrun`` starts and watches."""
    started = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "edgeadv"]
    command = [sys.executable, *started, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)


def assert_same(ours: Path, theirs: Path) -> None:
    """All but the time."""
    a, b = (json.loads(path.read_text()) for path in (ours, theirs))
    assert a.keys() == b.keys()
    for key in a.keys() - {"created", "environment"}:
        assert a[key] == b[key], key
    assert len({row["correct_top1"] for row in a["rows"]}) > 3 and a["examples"] and a["comparisons"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_bundle, many_photos) -> Path:
    """What one process writes that nobody stops."""
    out = tmp_path_factory.mktemp("whole") / "r.json"
    outcome = run("evaluate", tiny_bundle.path, "--data", many_photos, *CRAFT, "--out", out, cwd=out.parent)
    assert outcome.returncode == 0, outcome.stderr
    assert [file.name for file in out.parent.iterdir()] == ["r.json"]
    return out


def test_two_processes_write_what_one_writes(tiny_bundle, many_photos, whole, tmp_path):
    outcome = torchrun("evaluate", tiny_bundle.path, "--data", many_photos, *CRAFT, "--out", "r.json", cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert_same(tmp_path / "r.json", whole)
    # one of them speaks
    assert outcome.stdout.count("masking check: ") == 1 and outcome.stdout.count("written: r.json") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


def test_other_commands_do_not_do_all_of_it_twice(capsys, monkeypatch):
    """Two processes would craft the same shards into the same folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    for command in ("attack", "study", "bench", "export"):
        assert main([command, "x"]) == 2
        assert f"edgeadv {command} runs in one process: start it without torchrun" in capsys.readouterr().err


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, tiny_bundle, pack) -> Path:
    """What one process writes of a pack."""
    out = tmp_path_factory.mktemp("scored") / "r.json"
    outcome = run("evaluate", tiny_bundle.path, "--pack", pack, "--threads", "1", "--out", out, cwd=out.parent)
    assert outcome.returncode == 0, outcome.stderr
    return out


def test_two_processes_score_a_pack_as_one_does(tiny_bundle, pack, scored, tmp_path):
    command = ("evaluate", tiny_bundle.path, "--pack", pack, "--threads", "1", "--out", "r.json")
    outcome = run(*command, cwd=tmp_path, processes=2)
    assert outcome.returncode == 0, outcome.stderr
    assert_same(tmp_path / "r.json", scored)


def test_what_no_process_can_do_is_said_once(tiny_bundle, tmp_path):
    outcome = run(
        "evaluate", tiny_bundle.path, "--data", "nowhere", *CRAFT, "--out", "r.json", cwd=tmp_path, processes=2
    )
    assert outcome.returncode != 0
    said = [line for line in outcome.stderr.splitlines() if line.startswith("edgeadv: ")]
    assert len(said) == 1 and "'nowhere' is neither a folder" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_fails_ends_all_and_what_is_done_is_kept(tiny_bundle, pack, scored, tmp_path):
    """The second process finds its shard damaged; the first one's is done, and stays."""
    broken = shutil.copytree(pack, tmp_path / "p")
    shard = (broken / "shard-00001.npz").read_bytes()
    (broken / "shard-00001.npz").write_bytes(shard[:-100])
    command = ("evaluate", tiny_bundle.path, "--pack", "p", "--threads", "1", "--out", "r.json")
    outcome = torchrun(*command, cwd=tmp_path)
    assert outcome.returncode != 0
    assert "shard-00001.npz is damaged" in outcome.stderr
    assert not (tmp_path / "r.json").exists() and (tmp_path / "r.json.partial" / "plan.json").exists()
    (broken / "shard-00001.npz").write_bytes(shard)
    resumed = run(*command, "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert_same(tmp_path / "r.json", scored)


def test_an_evaluation_that_was_killed_goes_on_to_the_same_file(tiny_bundle, many_photos, whole, tmp_path):
    command = ["evaluate", tiny_bundle.path, "--data", many_photos, *CRAFT, "--out", "r.json"]
    job = Job(*command, cwd=tmp_path)
    partial = tmp_path / "r.json.partial"
    try:
        while len(list(partial.glob("batch-*.npz"))) < 2:
            assert job.running[0].is_alive(), job.wait()
            time.sleep(0.01)
    finally:
        job.kill()
    done = {file.name: file.stat().st_mtime_ns for file in partial.glob("batch-*.npz")}
    assert 2 <= len(done) < BATCHES and not (tmp_path / "r.json").exists()
    refused = run(*command, cwd=tmp_path)
    assert refused.returncode == 2
    assert "r.json.partial holds an unfinished evaluation: continue it with --resume, or delete it" in refused.stderr
    other = run(*command, "--limit", "150", "--resume", cwd=tmp_path)
    assert other.returncode == 2
    assert "was started with other settings (data, origin): continue with the same ones" in other.stderr
    assert {file.name: file.stat().st_mtime_ns for file in partial.glob("batch-*.npz")} == done
    # by two processes where one had begun
    resumed = run(*command, "--resume", cwd=tmp_path, processes=2)
    assert resumed.returncode == 0, resumed.stderr
    assert_same(tmp_path / "r.json", whole)
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


def test_the_figures_are_those_of_an_evaluation_that_keeps_nothing_on_the_way(tiny_bundle, many_photos, whole):
    """The demo's way, without a folder of outcomes."""
    results = evaluating.evaluate(
        tiny_bundle,
        many_photos,
        eps=["2/255", "8/255"],
        attacks=ATTACKS[1].split(","),
        backends=["torch", "onnxruntime"],
        plan=evaluating.AttackPlan(limit=LIMIT),
        execution=evaluating.Execution(uint8=True, threads=1),
    )
    stored = Results.load(whole)
    assert (results.rows, results.masking, results.data, results.comparisons, results.examples) == (
        stored.rows,
        stored.masking,
        stored.data,
        stored.comparisons,
        stored.examples,
    )


@pytest.mark.parametrize(
    ("options", "together"),
    [
        (("--threads", "1"), True),
        (("--threads", "2"), False),
        ((), False),
        (("--threads", "1", "--backend", "torch,onnxruntime"), False),
    ],
)
def test_scoring_goes_on_beside_attacks_only_where_there_are_cores_for_both(
    tiny_bundle, photos, tmp_path, monkeypatch, options, together
):
    """And --threads is for the attacks too."""
    import torch

    asked: list[bool] = []

    def spy(*arguments, overlap, **more):
        asked.append(overlap)
        return scoring.score_batches(*arguments, overlap=overlap, **more)

    monkeypatch.setattr(evaluating, "usable_cores", lambda: 2)
    monkeypatch.setattr(loop, "score_batches", spy)
    before = torch.get_num_threads()
    try:
        for name in ("a.json", "b.json"):
            torch.set_num_threads(3)
            craft = (
                "--data",
                photos,
                "--eps",
                "8/255",
                "--attack",
                "fgsm,square",
                "--queries",
                10,
                "--precision",
                "fp32",
            )
            arguments = ("evaluate", tiny_bundle.path, *craft, *options, "--out", tmp_path / name)
            assert main(list(map(str, arguments))) == 0
            assert torch.get_num_threads() == (int(options[1]) if options else 3)
            monkeypatch.setattr(evaluating, "usable_cores", lambda: 1)
    finally:
        torch.set_num_threads(before)
    assert asked == [together, False]
    a, b = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert all(a[key] == b[key] for key in a.keys() - {"created", "environment"})


@pytest.mark.parametrize(
    ("visible", "rank", "expected"), [(None, 0, "0"), (None, 3, "3"), ("2,5", 1, "5"), ("GPU-a,GPU-b", 0, "GPU-a")]
)
def test_each_process_sees_its_own_gpu(monkeypatch, visible, rank, expected):
    # set in any case, so that what narrow() leaves is taken back
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    _processes.narrow(rank)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    with pytest.raises(InputError, match="process 2 of this machine has no GPU: CUDA_VISIBLE_DEVICES lists 2"):
        _processes.narrow(2)


def test_unreadable_images_that_are_found_late_cost_nothing_that_was_done(cli, tiny_bundle, many_photos, tmp_path):
    photos = shutil.copytree(many_photos, tmp_path / "photos")
    for file in sorted(photos.rglob("*.png"))[-10:]:
        file.write_bytes(b"")
    command = ("evaluate", tiny_bundle.path, "--data", photos, "--eps", "8/255", "--attack", "fgsm", "--out", "r.json")
    refused = cli(*command)
    assert refused.status == 2 and "10 of 400 images are unreadable" in refused.err
    done = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "r.json.partial").glob("batch-*.npz")}
    assert len(done) == 6 and not (tmp_path / "r.json").exists()
    assert cli(*command, "--resume").status == 2  # as before
    granted = cli(*command, "--resume", "--allow-unreadable")
    assert granted.status == 0, granted.err
    results = Results.load(tmp_path / "r.json")
    assert results.data.n == 390 and len(results.data.unreadable) == 10
    whole = cli(*command[:-1], "whole.json", "--allow-unreadable")
    assert whole.status == 0, whole.err
    ours, theirs = (Results.load(tmp_path / name) for name in ("r.json", "whole.json"))
    assert (ours.rows, ours.data, ours.examples) == (theirs.rows, theirs.data, theirs.examples)


def test_images_that_were_mended_are_looked_at_again(cli, tiny_bundle, many_photos, tmp_path):
    """Also those of batches that are done: too many are unreadable only together."""
    photos = shutil.copytree(many_photos, tmp_path / "photos")
    files = sorted(photos.rglob("*.png"))
    broken = {file: file.read_bytes() for file in (*files[:3], *files[100:103])}
    for file in broken:
        file.write_bytes(b"")
    commands = {
        "evaluate": (
            "evaluate",
            tiny_bundle.path,
            "--data",
            photos,
            "--eps",
            "8/255",
            "--attack",
            "fgsm",
            "--out",
            "r.json",
        ),
        "attack": ("attack", tiny_bundle.path, "--data", photos, "--eps", "8/255", "--attack", "fgsm", "--out", "p"),
    }
    for command in commands.values():
        assert "6 of 400 images are unreadable" in cli(*command).err
        assert "6 of 400 images are unreadable" in cli(*command, "--resume").err
    for file, content in broken.items():
        file.write_bytes(content)
    for command in commands.values():
        resumed = cli(*command, "--resume")
        assert resumed.status == 0, resumed.err
    assert Results.load(tmp_path / "r.json").data.n == 400
    pack = AttackPack.open(tmp_path / "p", bundle=tiny_bundle)
    assert pack.n == 400


def test_a_pack_that_nobody_could_score_is_not_made(cli, tiny_bundle, many_photos, tmp_path, monkeypatch):
    photos = shutil.copytree(many_photos, tmp_path / "photos")
    for file in sorted(photos.rglob("*.png"))[:10]:
        file.write_bytes(b"")
    command = ("attack", tiny_bundle.path, "--data", photos, "--eps", "8/255", "--attack", "fgsm", "--out", "p")

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("edgeadv.attacks.pack_writer.publish", killed)
        assert cli(*command, "--allow-unreadable").status == 130
    refused = cli(*command, "--resume")
    assert refused.status == 2 and "10 of 400 images are unreadable" in refused.err and not (tmp_path / "p").exists()
    assert cli(*command, "--resume", "--allow-unreadable").status == 0
    assert cli("evaluate", tiny_bundle.path, "--pack", "p", "--out", "r.json").status == 0
