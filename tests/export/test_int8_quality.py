"""What int8 loses is counted image by image, and what loses too much gets float layers or does not ship."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from edgeadv.attacks.pack_writer import write_pack
from edgeadv.cli import main
from edgeadv.data.datasets import ImageSet, batches
from edgeadv.models.builder import PixelModel
from edgeadv.workflows.int8_judge import GATE_SUITE, Int8Judge, attacks_for_gate
from edgeadv_export import TOLERANCES, Int8Plan, Origin, choose_calibration, data_frames, export_bundle
from edgeadv_export.gain import ROUNDS
from edgeadv_export.int8_quality import paced
from edgeadv_export.paired import ERROR, Measured, Paired, error_of, images_needed, quantile_of
from edgeadv_runtime import AttackPack
from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.backends.golden_check import verify
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.bundle.training_images import TrainingImages
from edgeadv_runtime.bundle.variants import is_x86
from edgeadv_runtime.errors import DataError, ExportError, InputError
from edgeadv_runtime.evaluation.verdict import FEWEST_QUERIES
from edgeadv_runtime.files import sha256_bytes
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.statistics import paired_difference_interval
from edgeadv_runtime.records.suites import PGD_SMOOTHED, SQUARE, SUITES, Effort

INT8 = ("int8-s8s8", "int8-u8s8")


def plan(train: ImageSet, test: ImageSet, **changes: Any) -> Int8Plan:
    calibration = choose_calibration(train, train.preprocess, count=64)
    arguments: dict[str, Any] = {
        "calibration": calibration,
        "images": test,
        "order": np.arange(len(test)),
        "make_judge": Int8Judge,
        **changes,
    }
    return Int8Plan(**arguments)


def export(
    model: PixelModel, out: Path, int8: Int8Plan | None, *, variants: Any = ("fp32", *INT8), **more: Any
) -> Bundle:
    known = more.pop("training_images", None)
    images = more.pop("frames_of", None) or (int8.images if int8 is not None else None)
    assert images is not None
    return export_bundle(
        model,
        out,
        classes=images.classes,
        preprocess=images.preprocess,
        frames=data_frames(images, limit=16),
        variants=variants,
        int8=int8,
        **more,
        origin=Origin(title="digits", provenance={}, training_images=known),
    )


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory, digits_model: PixelModel, digits_train: ImageSet, digits_test: ImageSet
) -> Bundle:
    """Its test images begin with 30 that are calibrated on, as if by mistake."""
    int8 = plan(digits_train, digits_test)
    chosen = int8.calibration.index[:30]

    def image(i: int) -> Any:
        return digits_train.image(int(chosen[i])) if i < 30 else digits_test.image(i - 30)

    labels = np.concatenate([digits_train.labels[chosen], digits_test.labels])
    mixed = replace(digits_test, labels=labels, names=[str(i) for i in range(len(labels))], image=image)
    out = tmp_path_factory.mktemp("gate") / "digits.edgeadv"
    return export(digits_model, out, replace(int8, images=mixed, order=np.arange(len(labels)), max_drop=3.0))


def logits(bundle: Bundle, variant: str, images: ImageSet) -> NDArray[np.float32]:
    """By ONNX Runtime alone."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1" if variant == "int8-s8s8" else "0")
    session = onnxruntime.InferenceSession(
        (bundle.path / f"model.{variant}.onnx").read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    pixels = [images.preprocess(images.image(i)) for i in range(len(images))]
    x = np.stack(pixels).transpose(0, 3, 1, 2).astype(np.float32) / 255
    found: NDArray[np.float32] = np.concatenate(
        [session.run(None, {"image": x[i : i + 50]})[0] for i in range(0, len(x), 50)]
    )
    return found


@pytest.mark.parametrize("variant", INT8)
def test_counts_are_those_of_an_independent_comparison(bundle: Bundle, digits_test: ImageSet, variant: str) -> None:
    fp32, int8 = (logits(bundle, v, digits_test).argmax(axis=1) == digits_test.labels for v in ("fp32", variant))
    gate = bundle.manifest.variants[variant].gate.to_json()
    lost, gained = int((fp32 & ~int8).sum()), int((int8 & ~fp32).sum())
    low, high = paired_difference_interval(lost, gained, 1000)
    assert gate["clean"] == {
        "n": 1000,
        "fp32_correct": int(fp32.sum()),
        "int8_correct": int(int8.sum()),
        "lost": lost,
        "gained": gained,
        "drop": pytest.approx((fp32.sum() - int8.sum()) / 10),
        "drop_ci95": pytest.approx([100 * low, 100 * high]),
        # at the first look judged by what is printed
        "drop_upper": pytest.approx(100 * high),
    }
    assert gate["clean"]["drop_upper"] <= 3.0 and (gate["looks"], gate["judged_level"]) == (1, 0.95)
    assert gate["data"]["calibration_left_out"] == 30 and gate["data"]["n"] == 1000
    assert (gate["max_drop"], gate["fallback"], gate["fully_quantised"]) == (3.0, [], gate["clean"])
    assert gate["worst_case"] == {"not_measured": "no `gate_eps` was given"}
    assert bundle.manifest.variants[variant].float_layers == ()


def test_the_manifest_names_the_calibration_images(bundle: Bundle, digits_train: ImageSet) -> None:
    calibration = bundle.manifest.calibration.to_json()
    assert {k: v for k, v in calibration.items() if k != "images"} == {
        "method": "minmax-p95",
        "seed": 0,
        "count": 64,
        "origin": "mnist5k",
        "split": "train",
    }
    pixels = (digits_train.preprocess(digits_train.image(i)) for i in range(len(digits_train)))
    known = {hashlib.sha256(array.tobytes()).hexdigest() for array in pixels}
    assert len(bundle.calibration_images) == 64 and bundle.calibration_images <= known
    assert set(calibration["images"]) == bundle.calibration_images


def test_int8_entries_are_complete(bundle: Bundle) -> None:
    for variant in INT8:
        entry = bundle.manifest.variants[variant].to_json()
        assert (entry["precision"], entry["tolerance"], entry["opset"]) == ("int8", TOLERANCES[variant], 20)
        # compared with PyTorch, and not judged by that
        assert entry["parity"]["frames"] == 16 and entry["parity"]["max_relative_error"] > TOLERANCES["fp32"]
        gain = entry["gate"]["gain"]
        assert gain["int8_bytes"] == entry["bytes"] == bundle.onnx_path(variant).stat().st_size
        assert gain["fp32_bytes"] == bundle.onnx_path("fp32").stat().st_size
        assert gain["smaller"] == gain["fp32_bytes"] / gain["int8_bytes"]
    json.dumps(bundle.manifest.to_json(), allow_nan=False)
    assert sorted(p.name for p in bundle.path.iterdir()) == [
        "golden.npz",
        "manifest.json",
        "model.fp32.onnx",
        "model.int8-s8s8.onnx",
        "model.int8-u8s8.onnx",
        "weights.safetensors",
    ]


def test_latency_is_measured_where_it_means_something(bundle: Bundle) -> None:
    s8s8, u8s8 = (bundle.manifest.variants[v].gate.gain.latency.to_json() for v in INT8)
    assert "TensorRT and ARM" in s8s8["not_measured"]
    if not is_x86():
        assert "x86" in u8s8["not_measured"]
        return
    assert (u8s8["rounds"], u8s8["threads"], u8s8["batch"], u8s8["backend"]) == (ROUNDS, 1, 1, "onnxruntime")
    assert u8s8["faster"] > 0 and u8s8["fp32_ms"] > 0 and u8s8["int8_ms"] > 0 and u8s8["device"]


def test_the_self_test_passes(bundle: Bundle) -> None:
    for variant in bundle.variants:
        with OnnxRuntimeBackend(bundle, variant=variant, threads=1) as backend:
            (verification,) = verify(bundle, [backend])
        assert verification.ok, str(verification)


# --- layers that stay in float32


def plant(model: PixelModel, places: tuple[int, ...], images: ImageSet, *, loud: float = 1e4) -> PixelModel:
    """The same function, with one channel before layer ``k`` of ``places`` so loud that the others round to nothing, or
    to few steps where it is ``loud`` by less."""
    model = copy.deepcopy(model)
    seen: dict[int, torch.Tensor] = {}
    body: Any = model.net.body
    for k, layer in enumerate(body):
        layer.register_forward_pre_hook(lambda _, inputs, k=k: seen.update({k: inputs[0]}))
    model(torch.from_numpy(to_tensor(np.stack([images.preprocess(images.image(i)) for i in range(0, 1000, 20)]))))
    for layer in body:
        layer._forward_pre_hooks.clear()
    with torch.no_grad():
        for k in places:
            channel = int(seen[k].mean((0, 2, 3)).argmax())
            body[k - 1].weight[channel] *= loud
            body[k - 1].bias[channel] *= loud
            body[k].weight[:, channel] /= loud
    return model


def test_the_layer_that_does_the_harm_is_left_in_float32(
    tmp_path: Path,
    digits_model: PixelModel,
    digits_train: ImageSet,
    digits_test: ImageSet,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told: list[str] = []
    int8 = plan(digits_train, digits_test, max_drop=3.0)
    bundle = export(plant(digits_model, (3,), digits_test), tmp_path / "x.edgeadv", int8, progress=told.append)
    s8s8, u8s8 = (bundle.manifest.variants[variant].to_json() for variant in INT8)
    # TensorRT's graph rounds what goes into a layer; the other one also what comes out of the layer before
    assert s8s8["float_layers"] == ["body.3"]
    assert set(u8s8["float_layers"]) == {"body.2", "body.3"}
    for entry in (s8s8, u8s8):
        steps = entry["gate"]["fallback"]
        assert [step["layer"] for step in steps] == entry["float_layers"]
        assert [step["sensitivity"] for step in steps] == sorted((s["sensitivity"] for s in steps), reverse=True)
        clean, looks = entry["gate"]["clean"], len(steps) + 1
        assert (steps[-1]["drop"], steps[-1]["drop_upper"]) == (clean["drop"], clean["drop_upper"])
        assert clean["drop_upper"] <= 3.0 < entry["gate"]["fully_quantised"]["drop_upper"]
        # the second graph measured on the same images is judged by a wider interval than the first, the third by a
        # wider one yet
        assert (entry["gate"]["looks"], entry["gate"]["judged_level"]) == (looks, 1 - 2 * error_of(looks))
        assert clean["drop_upper"] > clean["drop_ci95"][1]
    assert u8s8["gate"]["fallback"][0]["drop_upper"] > 3.0
    assert any("int8-s8s8 of digits loses" in text and "looking for the layers" in text for text in told)

    assert main(["bundle", "show", str(bundle.path)]) == 0
    said = capsys.readouterr().out
    drop = s8s8["gate"]["fully_quantised"]["drop"]
    assert f"int8-s8s8          in float32: body.3; with every layer in int8 the drop was {drop:.2f} points" in said


def test_what_cannot_be_helped_does_not_ship(
    tmp_path: Path, digits_model: PixelModel, digits_train: ImageSet, digits_test: ImageSet
) -> None:
    hopeless = plant(digits_model, (1, 3, 5), digits_test)
    with pytest.raises(
        ExportError, match=r"int8-s8s8 of digits loses .* 2 most sensitive layers .*body\.\d, body\.\d.*No bundle"
    ) as error:
        export(hopeless, tmp_path / "x.edgeadv", plan(digits_train, digits_test, max_drop=3.0))
    assert "the upper end of the interval may be 3 points" in str(error.value) and "`max_drop`" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_without_fp32_in_the_bundle_it_is_compared_all_the_same(
    tmp_path: Path, digits_model: PixelModel, digits_train: ImageSet, digits_test: ImageSet, bundle: Bundle
) -> None:
    int8 = plan(digits_train, digits_test, max_drop=3.0)
    alone = export(digits_model, tmp_path / "x.edgeadv", int8, variants=["int8-u8s8"])
    assert alone.variants == ("int8-u8s8",)
    assert alone.artifact_sha256("int8-u8s8") == bundle.artifact_sha256("int8-u8s8")
    assert alone.manifest.variants["int8-u8s8"].gate.clean == bundle.manifest.variants["int8-u8s8"].gate.clean


# --- under attack

QUERIES = FEWEST_QUERIES
"""Enough for a verdict, and no more: exact int8 arithmetic is slow on an x86 processor."""


@contextmanager
def less_effort() -> Iterator[None]:
    """Every attack of the suite, with less effort."""
    less = {
        name: replace(
            effort, steps=min(effort.steps, 10), targets=min(effort.targets, 2), queries=min(effort.queries, QUERIES)
        )
        for name, effort in SUITES[GATE_SUITE].items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeadv.workflows.int8_judge.SUITES", {**SUITES, GATE_SUITE: less})
        yield


@pytest.fixture
def quick() -> Iterator[None]:
    with less_effort():
        yield


def test_a_budget_without_a_judge_is_refused(digits_train: ImageSet, digits_test: ImageSet) -> None:
    with pytest.raises(
        InputError, match=r"^`eps` of int8 needs `make_judge`, which attacks: edgeadv\.export brings one$"
    ):
        plan(digits_train, digits_test, eps=Eps.parse("8/255"), make_judge=None)


@pytest.mark.usefixtures("quick")
def test_the_worst_case_is_judged_where_it_can_be_believed(
    tmp_path: Path, small_digits_model: PixelModel, digits_train: ImageSet, digits_test: ImageSet
) -> None:
    """Enough images for a verdict, at a budget that is no whole number of grey levels."""
    order = np.linspace(0, 999, 350).astype(np.int64)
    int8 = plan(digits_train, digits_test, order=order, eps=Eps.parse("0.1"), max_drop=8.0)
    bundle = export(small_digits_model, tmp_path / "x.edgeadv", int8, variants=["int8-s8s8"])
    gate = bundle.manifest.variants["int8-s8s8"].gate.to_json()
    worst, clean = gate["worst_case"], gate["clean"]
    assert (worst["eps"], worst["threat"], worst["n"], worst["suite"]) == ("0.1", "white-box", 350, GATE_SUITE)
    assert (worst["verdict"], worst["judged"]) == ("PASS", True)
    assert worst["fp32_correct"] < clean["fp32_correct"] and worst["drop_upper"] <= 8.0
    assert worst["fp32_correct"] - worst["lost"] + worst["gained"] == worst["int8_correct"]
    assert not [p for p in bundle.path.iterdir() if p.is_dir()]


@pytest.mark.usefixtures("quick")
def test_a_worst_case_that_may_not_be_believed_ends_the_export(
    tmp_path: Path, small_digits_model: PixelModel, digits_train: ImageSet, digits_test: ImageSet
) -> None:
    """Too few images for a verdict; and a network whose softmax is saturated, so that its gradients vanish."""
    few = plan(digits_train, digits_test, order=np.arange(0, 1000, 12), eps=Eps.parse("24/255"), max_drop=50.0)
    with pytest.raises(ExportError, match=r"at eps 24/255 may not be believed.*verdict UNCHECKED \(only .*`gate_data`"):
        export(small_digits_model, tmp_path / "x.edgeadv", few, variants=["fp32", "int8-s8s8"])
    masked = copy.deepcopy(small_digits_model)
    head: Any = masked.net.head
    with torch.no_grad():
        for parameter in head.parameters():
            parameter *= 1000
    order = np.linspace(0, 999, 350).astype(np.int64)
    int8 = plan(digits_train, digits_test, order=order, eps=Eps.parse("24/255"), max_drop=50.0)
    with pytest.raises(ExportError, match=r"verdict MASKED \(.*leave `gate_eps` out.*No bundle was written"):
        export(masked, tmp_path / "x.edgeadv", int8, variants=["int8-s8s8"])
    assert list(tmp_path.iterdir()) == []
    # clean accuracy needs no verdict
    export(masked, tmp_path / "x.edgeadv", replace(int8, eps=None), variants=["int8-s8s8"])


JUDGED_ORDER, JUDGED_EPS = np.linspace(0, 999, 350).astype(np.int64), Eps.parse("24/255")


@pytest.fixture(scope="module")
def judged(
    tmp_path_factory: pytest.TempPathFactory,
    small_digits_model: PixelModel,
    digits_train: ImageSet,
    digits_test: ImageSet,
) -> Bundle:
    """Both int8 variants, judged under attack in one export, which attacks float32 once for them."""
    int8 = plan(digits_train, digits_test, order=JUDGED_ORDER, eps=JUDGED_EPS, max_drop=50.0)
    with less_effort():
        return export(small_digits_model, tmp_path_factory.mktemp("judged") / "x.edgeadv", int8)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("variant", INT8)
def test_the_worst_case_is_that_of_the_evaluation(judged: Bundle, digits_test: ImageSet, variant: str) -> None:
    """The same attacks through ``evaluate``, int8's own by the graph that ships: the same counts, verdict and
    suite."""
    from edgeadv.data.datasets import batches
    from edgeadv.gradients.artefact import open_graph
    from edgeadv_runtime.attacks.base import infos
    from edgeadv_runtime.attacks.crafting import craft
    from edgeadv_runtime.bundle.batches import CleanBatch, DataInfo
    from edgeadv_runtime.evaluation.loop import evaluate
    from edgeadv_runtime.records.effort import lacking

    bundle, order, eps = judged, JUDGED_ORDER, JUDGED_EPS
    graphs = {name: open_graph(bundle, name, device=torch.device("cpu")) for name in ("fp32", variant)}
    with (
        OnnxRuntimeBackend(bundle, variant="fp32") as fp32,
        OnnxRuntimeBackend(bundle, variant=variant) as quantised,
    ):
        used = attacks_for_gate(fp32, graphs["fp32"], eps, classes=10, whole=True)
        used += attacks_for_gate(quantised, graphs[variant], eps, classes=10, whole=False)
        stream = (
            CleanBatch(b.index, b.pixels, b.labels)
            for b in batches(digits_test, digits_test.preprocess, batch_size=50, order=order)
        )
        results = evaluate(
            bundle,
            craft(stream, used, fp32, uint8=True),
            infos=infos(used, uint8=True),
            backends=[fp32, quantised],
            data=DataInfo("digits", "test", len(order)),
            examples=0,
        )
    worst = bundle.manifest.variants[variant].gate.worst_case
    (comparison,) = [entry for entry in results.comparisons if entry.attack == "worst-case"]
    assert {key: worst[key] for key in ("n", "lost", "gained")} == {
        key: getattr(comparison, key) for key in ("n", "lost", "gained")
    }
    for scored, correct in (("fp32", worst["fp32_correct"]), (variant, worst["int8_correct"])):
        (row,) = results.select(variant=scored, attack="worst-case")
        assert row.correct_top1 == correct and row.masking is not None and row.masking.verdict == worst["verdict"]
        # all that the release gate asks for ran, if with less effort here
        missing = lacking(row, results.rows, GATE_SUITE, classes=10)
        assert not any("did not" in text for text in missing), missing


def test_an_int8_that_only_hides_from_the_gradients_of_fp32_does_not_pass(
    tmp_path: Path,
    small_digits_model: PixelModel,
    digits_train: ImageSet,
    digits_test: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With coarse steps, images that were made on fp32 leave more of it standing than those that were made on
    itself."""
    coarse = plant(small_digits_model, (1,), digits_test, loud=100)
    # with few attacks of float32: what many of them break leaves less to tell the two apart
    few = {**SUITES["fast"], PGD_SMOOTHED: Effort(steps=10), SQUARE: Effort(queries=QUERIES)}
    monkeypatch.setattr("edgeadv.workflows.int8_judge.SUITES", {GATE_SUITE: few})
    made: list[Path] = []

    def written_once(out: Path, **asked: Any) -> AttackPack:
        # both exports attack the same float32 file on the same images
        if made:
            return AttackPack.open(shutil.copytree(made[0], out), bundle=asked["bundle"])
        pack = write_pack(out, **asked)
        made.append(shutil.copytree(out, tmp_path / "float32.pack"))
        return pack

    monkeypatch.setattr("edgeadv.workflows.int8_judge.write_pack", written_once)
    order = np.linspace(0, 999, 350).astype(np.int64)
    int8 = plan(digits_train, digits_test, order=order, eps=Eps.parse("20/255"), max_drop=100.0)
    whole = export(coarse, tmp_path / "x.edgeadv", int8, variants=["int8-s8s8"])
    own = whole.manifest.variants["int8-s8s8"].gate.worst_case

    def none(*_: Any, **__: Any) -> Any:
        raise ExportError("there is none")

    monkeypatch.setattr("edgeadv_export.int8_quality.own_gradients", none)
    blind = export(coarse, tmp_path / "y.edgeadv", int8, variants=["int8-s8s8"])
    transfer = blind.manifest.variants["int8-s8s8"].gate.worst_case
    assert (transfer["threat"], transfer["no_own_gradients"]) == ("query", "there is none")
    assert own["threat"] == "white-box" and "no_own_gradients" not in own
    assert own["fp32_correct"] == transfer["fp32_correct"] and own["int8_correct"] < transfer["int8_correct"]


# --- the parts


def test_paired_counts() -> None:
    fp32, int8 = np.array([1, 1, 1, 0, 0], bool), np.array([1, 0, 0, 1, 0], bool)
    paired = Paired.of(fp32, int8)
    assert paired == Paired(n=5, fp32_correct=3, lost=2, gained=1)
    assert paired.drop == pytest.approx(20.0)
    low, high = paired.interval
    assert low < paired.drop < high
    assert str(paired) == f"20.00 points [{low:.2f}, {high:.2f}] of 5 images"


def test_a_drop_is_judged_at_the_upper_end() -> None:
    """On both sides of the limit, clean and in the worst case."""
    for lost, gained, holds in ((0, 0, True), (4, 0, True), (5, 0, False), (10, 9, True), (11, 9, False)):
        paired = Paired(1000, 900, lost, gained)
        assert (paired.upper(1) <= 1.0) is holds and paired.upper(1) == pytest.approx(paired.interval[1])
        assert Measured(paired, None, 1.0).holds is holds
        assert Measured(Paired(1000, 900, 0, 0), paired, 1.0).holds is holds
    # a drop of exactly one point is not shown to be at most one
    assert not Measured(Paired(1000, 900, 10, 0), None, 1.0).holds


def test_a_true_loss_beyond_the_limit_hardly_ever_passes() -> None:
    """Of two points for a limit of one, at every number of images that is accepted."""
    fewest = images_needed(1.0)
    assert fewest == 276
    for n in (fewest, 400, 1000, 5000):
        for gained in (0.0, 0.02):
            rng = np.random.default_rng(n)
            drawn = rng.multinomial(n, [0.02 + gained, gained, 0.98 - 2 * gained], size=4000)
            passed = [Paired(n, n, int(a), int(b)).upper(1) <= 1.0 for a, b, _ in drawn]
            assert np.mean(passed) <= 0.015


def test_looks_are_paid_for() -> None:
    """All together they spend no more than twice what the first one does."""
    assert (error_of(1), error_of(2)) == (ERROR, ERROR / 2)
    assert sum(error_of(look) for look in range(1, 10_000)) <= 2 * ERROR
    quantiles = [quantile_of(look) for look in range(1, 30)]
    assert quantiles[0] == pytest.approx(1.959964) and quantiles == sorted(quantiles)
    # lost so few that the first look holds and the second does not
    paired = Paired(276, 250, 0, 0)
    assert Measured(paired, None, 1.0, look=1).holds and not Measured(paired, None, 1.0, look=2).holds
    assert [images_needed(1.0, look) for look in (1, 2, 3)] == [276, 315, 372]


def test_too_few_images_are_refused_with_the_number_it_takes(
    tmp_path: Path, digits_model: PixelModel, digits_train: ImageSet, digits_test: ImageSet
) -> None:
    plan(digits_train, digits_test, order=np.arange(276))
    with pytest.raises(
        InputError, match=r"275 labelled images cannot show that at most 1 points are lost.* at least 276"
    ):
        plan(digits_train, digits_test, order=np.arange(275))
    plan(digits_train, digits_test, order=np.arange(137), max_drop=2.0)
    with pytest.raises(InputError, match=r"at least 137 .*`gate_data`, `gate_limit`.*or a larger `max_drop`"):
        plan(digits_train, digits_test, order=np.arange(136), max_drop=2.0)
    # some of them were calibrated on
    int8 = plan(digits_train, digits_train)
    mixed = replace(int8, order=np.union1d(int8.calibration.index, np.arange(276))[:276])
    with pytest.raises(InputError, match="labelled images cannot show that at most 1 points"):
        export(digits_model, tmp_path / "x.edgeadv", mixed)


def test_the_search_ends_where_the_images_do(
    tmp_path: Path, digits_model: PixelModel, digits_train: ImageSet, digits_test: ImageSet
) -> None:
    """With 280 of them a second look could not hold, whatever it found."""
    told: list[str] = []
    int8 = plan(digits_train, digits_test, order=np.linspace(0, 999, 280).astype(np.int64))
    with pytest.raises(ExportError, match=r"the upper end of the interval may be 1 points at most") as error:
        export(plant(digits_model, (3,), digits_test), tmp_path / "x.edgeadv", int8, progress=told.append)
    assert "280 images are too few for look 2 at them, which takes 315" in told
    assert "in float32" not in str(error.value).replace("`precisions` fp32", "")


def test_progress_tells_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    now = iter([0.0, 1.0, 6.0, 7.0, 12.0])
    monkeypatch.setattr("edgeadv_export.int8_quality.time.monotonic", lambda: next(now))
    tell = paced(told.append, "working", "images")
    for done in (1, 2, 3, 4):
        tell(done, 4)
    assert told == ["working", "working: 2 of 4 images", "working: 4 of 4 images"]


@pytest.mark.parametrize("max_drop", [-0.1, 0.0, float("nan"), float("inf"), 101.0])
def test_limits_out_of_range(digits_train: ImageSet, digits_test: ImageSet, max_drop: float) -> None:
    with pytest.raises(InputError, match="`max_drop` must be above 0 and at most 100 points"):
        plan(digits_train, digits_test, max_drop=max_drop)


def test_images_to_measure_on_that_are_no_use(
    tmp_path: Path, digits_model: PixelModel, digits_train: ImageSet, digits_test: ImageSet
) -> None:
    int8 = plan(digits_train, digits_test)
    known = replace(int8, images=digits_train, order=int8.calibration.index, max_drop=50.0)
    with pytest.raises(DataError, match="calibrated on all 64 images of mnist5k"):
        export(digits_model, tmp_path / "x.edgeadv", known)

    def image(i: int) -> Any:
        if i % 50 == 0:
            raise DataError(f"image {i} is not readable")
        return digits_test.image(i)

    with pytest.raises(DataError, match="20 of 1000 images to measure int8 on are unreadable"):
        export(
            digits_model,
            tmp_path / "x.edgeadv",
            replace(int8, images=replace(digits_test, image=image)),
            frames_of=digits_test,
        )
    assert list(tmp_path.iterdir()) == []


def test_images_are_given_with_int8_and_only_then(
    tmp_path: Path, digits_model: PixelModel, digits_train: ImageSet, digits_test: ImageSet
) -> None:
    for int8, variants in ((None, INT8), (plan(digits_train, digits_test), ["fp32"])):
        with pytest.raises(InputError, match="int8 variants need calibration images"):
            export(digits_model, tmp_path / "x.edgeadv", int8, variants=variants, frames_of=digits_test)
    assert list(tmp_path.iterdir()) == []


def test_logits_are_not_rounded(bundle: Bundle, digits_test: ImageSet) -> None:
    """The logits of both are no multiples of one step: a tie would count against int8."""
    pixels = np.stack([digits_test.preprocess(digits_test.image(i)) for i in range(64)])
    for variant in INT8:
        with OnnxRuntimeBackend(bundle, variant=variant, threads=1) as backend:
            found = backend.infer(to_tensor(pixels))
        assert len(np.unique(found)) > 0.9 * found.size


# --- images that the network was trained on


def test_training_images_are_no_gate_whatever_they_are_called(
    tmp_path: Path, digits_model: PixelModel, digits_train: ImageSet, digits_test: ImageSet
) -> None:
    """It is calibrated on training images, as it should be, and is not to be measured on others of them."""
    calibration = choose_calibration(digits_train, digits_train.preprocess, count=64)
    known = TrainingImages.of([*calibration.hashes, *_hashes(digits_test, np.arange(0, 1000, 5))])
    order = np.arange(0, 1000, 2)
    int8 = plan(digits_train, digits_test, order=order)
    with pytest.raises(InputError, match=r"mnist5k: 100 of 500 images were trained on.*`allow_training_images`"):
        export(digits_model, tmp_path / "x.edgeadv", int8, variants=["int8-u8s8"], training_images=known)
    assert list(tmp_path.iterdir()) == []
    allowed = plan(digits_train, digits_test, order=order, allow_training_images=True)
    bundle = export(digits_model, tmp_path / "x.edgeadv", allowed, variants=["int8-u8s8"], training_images=known)
    assert bundle.manifest.variants["int8-u8s8"].gate.data.training_images == 100
    assert bundle.training_images is not None and len(bundle.training_images) == 264


def test_a_gate_without_training_images_counts_none_and_one_that_does_not_know_says_so(
    tmp_path: Path, bundle: Bundle, digits_model: PixelModel, digits_train: ImageSet, digits_test: ImageSet
) -> None:
    assert bundle.manifest.variants["int8-u8s8"].gate.data.training_images is None
    int8 = plan(digits_train, digits_test, order=np.arange(0, 1000, 3))
    known = TrainingImages.of(int8.calibration.hashes)
    told = export(digits_model, tmp_path / "x.edgeadv", int8, variants=["int8-u8s8"], training_images=known)
    assert told.manifest.variants["int8-u8s8"].gate.data.training_images == 0


def test_a_network_at_chance_is_said_to_have_nothing_to_lose(
    tmp_path: Path, digits_model: PixelModel, digits_train: ImageSet, digits_test: ImageSet
) -> None:
    mixed = replace(digits_test, labels=np.random.default_rng(0).permutation(digits_test.labels))
    for images, warned in ((mixed, True), (digits_test, False)):
        told: list[str] = []
        int8 = plan(digits_train, images, max_drop=20.0)
        export(digits_model, tmp_path / f"{warned}", int8, variants=["int8-u8s8"], progress=told.append)
        assert any("that int8 loses little there says nothing" in line for line in told) == warned


def _hashes(images: ImageSet, order: NDArray[np.int64]) -> list[str]:
    found = batches(images, images.preprocess, batch_size=100, order=order)
    return [sha256_bytes(pixels.tobytes()) for batch in found for pixels in batch.pixels]
