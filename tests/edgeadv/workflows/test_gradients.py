"""``--gradients``: here on a processor that says it is a GPU, which computes the same if not sooner."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeadv.attacks.compiled import BySize
from edgeadv.attacks.float16 import HalfCopy
from edgeadv.attacks.linearity import LinearityControl
from edgeadv.attacks.tf32 import Tf32Copy
from edgeadv.gradients.artefact import ArtefactGraph
from edgeadv.gradients.graph import Graph, Node
from edgeadv.workflows import backends as _backends
from edgeadv.workflows import gradients as _gradients
from edgeadv.workflows.attack_plan import FLOAT16, FLOAT32, TF32, AttackPlan, efforts_of
from edgeadv.workflows.evaluation import crafted
from edgeadv.workflows.workload import make_workload
from edgeadv_runtime.attacks.pack import AttackPack
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.evaluation.loop import score_source, summarise
from edgeadv_runtime.evaluation.outcomes import Artefact, BatchOutcome
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import WORST_CASE

IMAGES = 120
GRADIENTS, HALF = "graph of fp32", "graph of fp32, in float16"


@pytest.fixture
def gpu(monkeypatch):
    """What is asked to run on a GPU runs on the processor."""
    monkeypatch.setattr(_backends, "torch_device", lambda provider: torch.device("cpu"))


@pytest.fixture
def ampere(gpu, monkeypatch):
    """A GPU that has TF32."""
    monkeypatch.setattr("edgeadv.models.device.has_tf32", lambda _: True)


@pytest.mark.parametrize(
    ("asked", "kind", "words"),
    [
        (None, Tf32Copy, "graph of fp32, in TF32"),
        (TF32, Tf32Copy, "graph of fp32, in TF32"),
        (FLOAT32, ArtefactGraph, GRADIENTS),
        (FLOAT16, HalfCopy, HALF),
    ],
)
def test_what_is_followed_where_there_is_tf32(ampere, digits_bundle, digits_test, asked, kind, words):
    plan = make_workload(
        digits_bundle,
        digits_test,
        "2/255",
        efforts=efforts_of("fast", "pgd-margin,linearity"),
        variants=["fp32", "fp16", "int8-s8s8"],
        plan=AttackPlan(limit=8, gradients=asked),
        provider="cuda",
    )
    by = {attack.name: attack for attack in plan.attacks}
    control = by.pop("linearity")
    assert control.model is plan.reference.model and control.gradients == GRADIENTS
    assert isinstance(by["pgd-margin"].model, kind) and by["pgd-margin"].gradients == words
    # float16 is the reference's alone, and whole numbers are float32's
    rounded = asked in (None, TF32)
    assert isinstance(by["pgd-margin@fp16"].model, Tf32Copy if rounded else ArtefactGraph)
    assert by["pgd-margin@fp16"].gradients == f"graph of fp16, in {'TF32' if rounded else 'float32'}"
    assert isinstance(by["pgd-margin@int8-s8s8"].model, ArtefactGraph)
    # nothing but attacks rounds
    assert isinstance(plan.reference.model, ArtefactGraph)


def test_a_gpu_without_tf32_follows_float32_and_says_so(gpu, tiny_bundle, many_photos):
    def follow(asked):
        plan = AttackPlan(limit=8, gradients=asked)
        options = {"efforts": efforts_of("fast", "fgsm"), "variants": ["fp32"], "plan": plan, "provider": "cuda"}
        return make_workload(tiny_bundle, many_photos, "2/255", **options)

    assert {attack.gradients for attack in follow(None).attacks} == {GRADIENTS}
    with pytest.raises(InputError, match=r"^`gradients` tf32 needs a GPU of compute capability 8\.0"):
        follow(TF32)


def test_attacks_follow_float16_and_results_say_so(gpu, tiny_bundle, many_photos):
    by, plans = {}, {}
    for gradients, words in ((FLOAT32, GRADIENTS), (FLOAT16, HALF)):
        plan = plans[words] = make_workload(
            tiny_bundle,
            many_photos,
            "2/255",
            efforts=efforts_of("fast", "fgsm,pgd-margin,linearity"),
            variants=["fp32"],
            plan=AttackPlan(limit=IMAGES, gradients=gradients),
            provider="cuda",
        )
        *attacks, control = plan.attacks
        assert {attack.gradients for attack in attacks} == {words}
        assert {isinstance(attack.model, HalfCopy) for attack in attacks} == {words == HALF}
        # what gradients are worth is measured without float16's rounding
        assert isinstance(control, LinearityControl) and control.gradients == GRADIENTS
        assert control.model is plan.reference.model
        source = crafted(tiny_bundle, plan, [plan.reference])
        outcomes: dict[int, BatchOutcome] = {}
        score_source(
            source, bundle=tiny_bundle, backends=[plan.reference], kept={}, keep=outcomes.__setitem__, examples=0
        )
        artefacts = [Artefact.of(plan.reference)]
        by[words] = summarise([*outcomes.values()], source.infos, artefacts, bundle=tiny_bundle, data=source.data)
        assert {row.gradients for row in by[words].rows if row.attack != "clean"} == {words}
    exact, half = (
        next(row.correct_top1 for row in by[words].rows if row.attack == WORST_CASE) for words in (GRADIENTS, HALF)
    )
    # rounding may save an image or two, no more
    assert 0 < exact < IMAGES and abs(half - exact) <= 2
    # so a job that has begun with the one does not go on with the other
    one, other = (crafted(tiny_bundle, plan, []).binding(tiny_bundle, [], 0)["attacks"] for plan in plans.values())
    assert one != other


@pytest.mark.parametrize(
    ("suite", "attacks", "budgets", "classes", "count"),
    [
        ("fast", "fgsm", 2, 10, 2),
        ("standard", "apgd-t,noise,linearity,square", 1, 3, 2 * 50),
        ("standard", "pgd-smoothed,pgd-large-eps", 2, 10, 2 * 8 * 20 + 20),
        ("full", "pgd-margin", 3, 10, 3 * 5 * 100),
    ],
)
def test_how_many_gradients_a_job_takes(suite, attacks, budgets, classes, count):
    assert _gradients.gradients_of(efforts_of(suite, attacks), budgets, classes) == count


@pytest.mark.parametrize(
    ("pays_after", "compiled"), [pytest.param(120 * 21, True, marks=pytest.mark.slow), (120 * 21 + 1, False)]
)
def test_a_job_that_pays_for_it_is_compiled_and_says_so(
    gpu, monkeypatch, tiny_bundle, many_photos, caplog, pays_after, compiled
):
    caplog.set_level("INFO", "edgeadv")
    monkeypatch.setattr("edgeadv.attacks.compiled.PAYS_AFTER", pays_after)
    monkeypatch.setattr(_gradients, "_compiles", lambda device: True)
    plan = make_workload(
        tiny_bundle,
        many_photos,
        "2/255",
        efforts=efforts_of("fast", "fgsm,pgd-margin"),
        variants=["fp32"],
        plan=AttackPlan(limit=IMAGES, gradients=FLOAT16),
        provider="cuda",
    )
    assert {attack.gradients for attack in plan.attacks} == {HALF}
    assert {isinstance(attack.model.net, BySize) for attack in plan.attacks} == {compiled}
    said = [record.message for record in caplog.records if record.name == "edgeadv.workflows.gradients"]
    assert (
        len(said) == 1
        and f"at most 2,520 gradients of an image, and compiling for a size of batch pays after {pays_after:,}"
        in said[0]
    )
    assert ("compiling gradients in float16 for batches of 64" in said[0]) is compiled


def test_a_network_that_does_not_run_in_float16_is_an_error():
    nodes = (
        Node("Flatten", ("image",), ("flat",), {}),
        Node("MatMul", ("flat", "first"), ("hidden",), {}),
        Node("Cast", ("hidden",), ("wide",), {"to": 1}),
        Node("MatMul", ("wide", "second"), ("logits",), {}),
    )
    tensors = {"first": torch.ones(192, 4), "second": torch.ones(4, 10)}
    model = ArtefactGraph(Graph(("image",), ("logits",), nodes, tensors), "fp32", "")
    with pytest.raises(InputError, match=r"^this network does not run in float16 \(.*\): leave `gradients`") as error:
        _gradients.network_to_follow(model, FLOAT16, lambda: np.ones((2, 3, 8, 8), np.float32))
    assert "\n" not in str(error.value)


def test_images_that_nobody_can_read_do_not_stop_it(gpu, tiny_bundle, many_photos, monkeypatch):
    monkeypatch.setattr("edgeadv.attacks.pack_writer.clean_batches", lambda *_, **__: [])
    plan = make_workload(
        tiny_bundle,
        many_photos,
        "2/255",
        efforts=efforts_of("fast", "fgsm"),
        variants=["fp32"],
        plan=AttackPlan(limit=IMAGES, gradients=FLOAT16),
        provider="cuda",
    )
    assert {attack.gradients for attack in plan.attacks} == {HALF}


def test_the_commands_follow_what_is_asked_for(gpu, tiny_bundle, photos, cli, tmp_path):
    attacked = ("--data", photos, "--eps", "2/255", "--attack", "fgsm,pgd-margin", "--provider", "cuda")
    shared = (tiny_bundle.path, *attacked)
    for options, words in (((), GRADIENTS), (("--gradients", FLOAT16), HALF)):
        scored = cli(
            "evaluate", *shared, *options, "--backend", "torch", "--precision", "fp32", "--out", tmp_path / "r.json"
        )
        assert scored.status == 0, scored.err
        rows = [row for row in Results.load(tmp_path / "r.json").rows if row.attack != "clean"]
        assert rows and {row.gradients for row in rows} == {words}
        packed = cli("attack", *shared, *options, "--out", tmp_path / f"{words[-4:]}.pack")
        assert packed.status == 0, packed.err
        pack = AttackPack.open(tmp_path / f"{words[-4:]}.pack", bundle=tiny_bundle)
        assert {info.gradients for info in pack.infos} == {words, "graph of fp16, in float32"}
