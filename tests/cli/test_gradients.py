"""Which gradients a plan follows on a GPU: here on a processor that says it is one, which computes the same."""

from __future__ import annotations

import json

import pytest

from edgeadv.attacks import sooner
from edgeadv.attacks.half import HalfCopy
from edgeadv.attacks.sooner import HALF
from edgeadv.attacks.suite import GRADIENTS
from edgeadv.cli._attacks import efforts_of, make_plan
from edgeadv.cli._gradients import SOONEST, follow_soonest
from edgeadv.cli.evaluate import crafted, score
from edgeadv.torch_backend import TorchBackend
from edgeadv_runtime.errors import InputError, StorageError
from edgeadv_runtime.pack import AttackPack
from edgeadv_runtime.results import WORST_CASE, Results

IMAGES = 120


@pytest.fixture
def plan(tiny_bundle, many_photos, monkeypatch):
    """Makes a plan that says it is a GPU's, float16 being the faster one there."""
    monkeypatch.setattr(sooner, "CHECKED", IMAGES // 4)
    monkeypatch.setattr(sooner, "_FEWEST_RIGHT", 10)
    monkeypatch.setattr(sooner, "_LEAST_GAIN", 0.0)

    def make(eps="2/255", attacks="fgsm,pgd-margin", images=IMAGES, provider="cuda", **options):
        made = make_plan(
            tiny_bundle, str(many_photos), eps, efforts=efforts_of("fast", attacks, None), variants=["fp32"], images=images,
            **options,
        )  # fmt: skip
        made.reference.provider = provider
        return made

    return make


def follow(plan, bundle, folder, *, asked=SOONEST, target=None, resume=False, rank=0):
    return follow_soonest(plan, bundle, asked=asked, target=target, folder=folder, resume=resume, rank=rank)


def test_attacks_follow_float16_and_results_say_so(plan, tiny_bundle, tmp_path, capsys):
    exact = plan()
    found = follow(exact, tiny_bundle, tmp_path / "new")
    assert {attack.gradients for attack in found.attacks} == {HALF}
    assert all(isinstance(attack.model, HalfCopy) for attack in found.attacks)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("gradients are float16's")
    by = {}
    for each in (exact, found):
        by[each.attacks[0].gradients] = score(
            crafted(tiny_bundle, each, [each.reference]), tiny_bundle, [each.reference]
        )
    (worst,) = [row for row in by[HALF].rows if row.attack == WORST_CASE]
    (fgsm,) = [row for row in by[HALF].rows if row.attack == "fgsm"]
    assert worst.gradients == fgsm.gradients == HALF
    (before,) = [row for row in by[GRADIENTS].rows if row.attack == WORST_CASE]
    assert before.gradients == GRADIENTS and 0 < before.correct_top1 < IMAGES
    # rounding may save an image or two, no more
    assert abs(worst.correct_top1 - before.correct_top1) <= 2


@pytest.mark.parametrize(
    "options",
    [
        {"provider": "cpu"}, {"eps": "1", "attacks": "pgd-l2"}, {"images": IMAGES - 1}, {"target": "n0003"}, {"attacks": "fgsm"},
    ],
)  # fmt: skip
def test_elsewhere_the_plan_is_as_it_was(plan, tiny_bundle, tmp_path, options, capsys):
    made = plan(**options)
    assert follow(made, tiny_bundle, tmp_path / "new", target=options.get("target")) is made
    assert not capsys.readouterr().out


def test_float32_can_be_asked_for(plan, tiny_bundle, tmp_path):
    made = plan()
    assert follow(made, tiny_bundle, tmp_path / "new", asked="float32") is made
    with pytest.raises(InputError, match="--gradients 'float8' is not one of float32, soonest"):
        follow(made, tiny_bundle, tmp_path / "new", asked="float8")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("followed", [HALF, GRADIENTS])
def test_a_job_goes_on_with_what_it_began_with(plan, tiny_bundle, tmp_path, monkeypatch, followed, rank, capsys):
    (tmp_path / "plan.json").write_text(json.dumps({"attacks": [{"gradients": followed}, {"gradients": None}]}))
    # whatever a check would find now
    monkeypatch.setattr(sooner, "_LEAST_GAIN", 1e9 if followed == HALF else 0.0)
    found = follow(plan(), tiny_bundle, tmp_path, resume=rank == 0, rank=rank)
    assert {attack.gradients for attack in found.attacks} == {followed}
    # only the first process speaks
    said = capsys.readouterr().out
    assert said == ("" if rank else f"gradients are {'float16' if followed == HALF else 'float32'}'s, as before\n")


def test_a_job_that_has_not_begun_is_checked(plan, tiny_bundle, tmp_path):
    found = follow(plan(), tiny_bundle, tmp_path / "new", resume=True)
    assert {attack.gradients for attack in found.attacks} == {HALF}


def test_a_process_that_sees_no_job_does_not_decide_for_itself(plan, tiny_bundle, tmp_path):
    with pytest.raises(StorageError, match=r"shows this process no plan.json"):
        follow(plan(), tiny_bundle, tmp_path / "new", rank=1)


def test_a_job_that_will_be_refused_is_not_checked(plan, tiny_bundle, tmp_path):
    made = plan()
    assert follow(made, tiny_bundle, tmp_path) is made


@pytest.fixture
def on_a_gpu(plan, monkeypatch):
    """Every PyTorch backend says that it is a GPU's."""
    begin = TorchBackend.__init__

    def say_so(self, *args, **options):
        begin(self, *args, **options)
        self.provider = "cuda"

    monkeypatch.setattr(TorchBackend, "__init__", say_so)


def test_the_commands_follow_it(on_a_gpu, tiny_bundle, many_photos, cli, tmp_path):
    shared = [
        tiny_bundle.path,
        "--data",
        many_photos,
        "--eps",
        "2/255",
        "--attack",
        "fgsm,pgd-margin",
        "--limit",
        IMAGES,
    ]
    scored = cli("evaluate", *shared, "--backend", "torch", "--out", tmp_path / "r.json")
    assert scored.status == 0 and "gradients are float16's" in scored.out, scored.err
    rows = [row for row in Results.load(tmp_path / "r.json").rows if row.attack != "clean"]
    assert rows and {row.gradients for row in rows} == {HALF}
    packed = cli("attack", *shared, "--out", tmp_path / "p.pack")
    assert packed.status == 0 and "gradients are float16's" in packed.out, packed.err
    assert {info.gradients for info in AttackPack.open(tmp_path / "p.pack", bundle=tiny_bundle).infos} == {HALF}
    again = cli("evaluate", *shared, "--backend", "torch", "--gradients", "float32", "--out", tmp_path / "r.json")
    assert again.status == 0 and "gradients are" not in again.out, again.err
    rows = [row for row in Results.load(tmp_path / "r.json").rows if row.attack != "clean"]
    assert {row.gradients for row in rows} == {GRADIENTS}
