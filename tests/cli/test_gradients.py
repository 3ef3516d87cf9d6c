"""Which gradients a plan follows on a GPU: here on a processor that says it is one, which computes the same."""

from __future__ import annotations

import json

import pytest

from edgeadv.attacks import sooner
from edgeadv.attacks.half import HalfCopy
from edgeadv.attacks.sooner import HALF
from edgeadv.attacks.suite import GRADIENTS
from edgeadv.cli._attacks import efforts_of, make_plan
from edgeadv.cli._gradients import follow_soonest
from edgeadv.cli.evaluate import crafted, score
from edgeadv_runtime.results import WORST_CASE

IMAGES = 120


@pytest.fixture
def plan(tiny_bundle, many_photos, monkeypatch):
    """Makes a plan that says it is a GPU's, float16 being the faster one there."""
    monkeypatch.setattr(sooner, "CHECKED", IMAGES // 4)
    monkeypatch.setattr(sooner, "_FEWEST_RIGHT", 20)
    monkeypatch.setattr(sooner, "_LEAST_GAIN", 0.0)

    def make(eps="2/255", attacks="fgsm,pgd-margin", images=IMAGES, provider="cuda", **options):
        made = make_plan(
            tiny_bundle, str(many_photos), eps, efforts=efforts_of("fast", attacks, None), variants=["fp32"], images=images,
            **options,
        )  # fmt: skip
        made.reference.provider = provider
        return made

    return make


def follow(plan, bundle, *, target=None, begun=None):
    return follow_soonest(plan, bundle, target=target, begun=begun)


def test_attacks_follow_float16_and_results_say_so(plan, tiny_bundle, capsys):
    exact = plan()
    found = follow(exact, tiny_bundle)
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
        {"provider": "cpu"}, {"eps": "1", "attacks": "pgd-l2"}, {"images": IMAGES - 1}, {"target": "n0003"},
    ],
)  # fmt: skip
def test_elsewhere_the_plan_is_as_it_was(plan, tiny_bundle, options):
    made = plan(**options)
    assert follow(made, tiny_bundle, target=options.get("target")) is made


@pytest.mark.parametrize("followed", [HALF, GRADIENTS])
def test_a_job_goes_on_with_what_it_began_with(plan, tiny_bundle, tmp_path, monkeypatch, followed, capsys):
    (tmp_path / "plan.json").write_text(json.dumps({"attacks": [{"gradients": followed}, {"gradients": None}]}))
    # whatever a check would find now
    monkeypatch.setattr(sooner, "_LEAST_GAIN", 1e9 if followed == HALF else 0.0)
    found = follow(plan(), tiny_bundle, begun=tmp_path)
    assert {attack.gradients for attack in found.attacks} == {followed}


def test_a_job_that_has_not_begun_is_checked(plan, tiny_bundle, tmp_path):
    found = follow(plan(), tiny_bundle, begun=tmp_path / "nothing")
    assert {attack.gradients for attack in found.attacks} == {HALF}
