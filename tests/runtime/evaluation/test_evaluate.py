"""The evaluation loop on images whose answers are known: the first pixel of an image says what the model answers."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import structs
from numpy.typing import NDArray
from PIL import Image

from edgeadv.cli._table import print_results
from edgeadv_runtime.attacks.base import AttackInfo, CallableAttack, CraftedBatch, Evidence, Key, infos
from edgeadv_runtime.attacks.crafting import craft
from edgeadv_runtime.backends import Backend
from edgeadv_runtime.bundle.batches import CleanBatch, DataInfo
from edgeadv_runtime.bundle.bundle import Bundle, Classes
from edgeadv_runtime.bundle.entries import CalibrationEntry, SizedFileEntry
from edgeadv_runtime.bundle.manifest import Manifest
from edgeadv_runtime.bundle.preprocess import Preprocess, to_tensor
from edgeadv_runtime.errors import BackendError, DataError, InputError
from edgeadv_runtime.evaluation.loop import evaluate, summarise
from edgeadv_runtime.evaluation.outcomes import Artefact, BatchOutcome, OutcomeStore
from edgeadv_runtime.evaluation.scoring import score_batches
from edgeadv_runtime.evaluation.verdict import FEWEST_DRAWS, FEWEST_IMAGES, FEWEST_QUERIES
from edgeadv_runtime.evaluation.verdict_rules import NEEDED
from edgeadv_runtime.records.about import Skipped
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.evidence import RowMasking
from edgeadv_runtime.records.machine import Environment
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import ArtefactId, AttackParams, EngineInfo, Row
from edgeadv_runtime.records.statistics import paired_difference_interval
from edgeadv_runtime.records.suites import FGSM, LARGE_EPS, LINEARITY, NOISE, PGD_MARGIN, PGD_SMOOTHED, SQUARE

SMALL, LARGE = Eps.parse("2/255"), Eps.parse("20/255")
WEIGHTS = "a" * 64


class FirstPixel(Backend):
    """Answers with the class that the red value of the first pixel names; then the next classes, in a ring."""

    name, provider, device, input_shape = "first-pixel", "numpy", "test", (3, 2, 2)

    def __init__(self, *, n_classes: int = 10, shift: int = 0, variant: str = "fp32", sha256: str = WEIGHTS) -> None:
        self.n_classes, self.shift, self.variant, self.artifact_sha256 = n_classes, shift, variant, sha256

    def _infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        answer = np.rint(x[:, 0, 0, 0] * 255).astype(int) + self.shift
        ring = (np.arange(self.n_classes)[None] - answer[:, None]) % self.n_classes
        return (-ring).astype(np.float32)


class Undecided(FirstPixel):
    """Gives every class the same logit."""

    def _infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.zeros((len(x), self.n_classes), np.float32)


def bundle(n_classes: int = 10) -> Bundle:
    """What the loop reads of a bundle."""
    classes = Classes(tuple(f"n{i:04d}" for i in range(n_classes)), tuple(f"class {i}" for i in range(n_classes)))
    manifest = Manifest.draft(
        classes.to_json(),
        Preprocess(resize=2, crop=2).entry,
        variants={},
        title="first pixel",
        provenance={"recipe": "none"},
        weights=SizedFileEntry(file="weights.safetensors", sha256=WEIGHTS, bytes=0),
    )
    return Bundle(Path("some/where/pixel.edgeadv"), structs.replace(manifest, bundle_id="b" * 64))


def pixels(answers: Sequence[int]) -> NDArray[np.uint8]:
    images = np.zeros((len(answers), 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = answers
    return images


def info(name: str, eps: Eps, *, gradients_sha256: str | None = WEIGHTS) -> AttackInfo:
    return AttackInfo(name, eps, AttackParams(norm="linf", steps=20, uint8=False), "torch fp32", gradients_sha256)


def batch(
    labels: Sequence[int],
    clean: Sequence[int],
    adversarial: dict[Key, Sequence[int]],
    *,
    zero: dict[Key, Sequence[bool]] | None = None,
    first: int = 0,
) -> CraftedBatch:
    """Images and what a :class:`FirstPixel` will answer to them and to their adversarial versions."""
    answers = {("clean", "0"): np.array(clean), **{key: np.array(given) for key, given in adversarial.items()}}
    flags = {key: np.array(told) for key, told in (zero or {}).items()}
    return CraftedBatch(
        CleanBatch(np.arange(first, first + len(labels)), pixels(clean), np.array(labels, dtype=np.int64)),
        {key: to_tensor(pixels(given)) for key, given in adversarial.items()},
        Evidence(answers, {}, flags, np.zeros(len(labels), bool), np.zeros(len(labels), bool)),
    )


def score(
    batches: Sequence[CraftedBatch], listed: Sequence[AttackInfo], backends: Sequence[Backend] = (), **options: Any
) -> Results:
    data = options.pop("data", DataInfo("digits", "test", sum(len(b.clean.labels) for b in batches)))
    scored = list(backends) or [FirstPixel()]
    return evaluate(options.pop("bundle", bundle()), batches, infos=listed, backends=scored, data=data, **options)


def one(results: Results, attack: str, eps: str = "0", **more: Any) -> Row:
    (row,) = results.select(attack=attack, eps=eps, **more)
    return row


A, B, C = info("a", SMALL), info("b", LARGE), info("c", LARGE)
# image:      0  1  2  3  4  5  6  7
LABELS = [0, 1, 2, 3, 4, 5, 6, 7]
CLEAN = [0, 1, 2, 3, 4, 5, 6, 8]  # the last is wrong to begin with, but in the first five of no ring: (7 - 8) % 10 = 9
FOOLED: dict[Key, Sequence[int]] = {
    A.key: [9, 1, 2, 3, 4, 5, 6, 7],  # fools 0; and the image that was wrong is now right
    B.key: [0, 2, 1, 3, 4, 5, 6, 8],  # fools 1 and 2
    C.key: [0, 1, 3, 4, 4, 5, 6, 8],  # fools 2 and 3
}


def test_accuracy_is_over_all_images_and_the_worst_case_is_per_image() -> None:
    results = score([batch(LABELS, CLEAN, FOOLED)], [A, B, C])
    assert results.data.n == 8
    assert {row.n for row in results.rows} == {8}
    assert [(row.attack, row.eps, row.correct_top1) for row in results.rows] == [
        ("clean", "0", 7),
        ("a", "2/255", 7),
        # image 0 by a, image 7 on clean: an attack that repairs it does not make it robust
        ("worst-case", "2/255", 6),
        ("b", "20/255", 5),
        ("c", "20/255", 5),
        # 0 by a at the smaller budget, 1 by b, 2 by both, 3 by c, 7 on clean
        ("worst-case", "20/255", 3),
    ]


def test_top5_is_per_image_too() -> None:
    """A ring: the label is among the first five unless it is 5 to 9 places behind the answer."""
    whole = [replace(each, name=name) for each, name in ((A, "fgsm"), (B, "fgsm"), (C, "fgsm-rescaled@other"))]
    fooled = {new.key: FOOLED[old.key] for new, old in zip(whole, (A, B, C), strict=True)}
    results = score([batch(LABELS, CLEAN, fooled)], whole)
    assert one(results, "clean").correct_top5 == 7
    # image 0 is answered 9: (0 - 9) % 10 = 1, still among five; 7 is right
    assert one(results, "fgsm", "2/255").correct_top5 == 8
    # image 1 is answered 2: 9 places behind; image 2 is answered 1: one place
    assert one(results, "fgsm", "20/255").correct_top5 == 6
    assert one(results, "fgsm-rescaled@other", "20/255").correct_top5 == 5
    assert one(results, "worst-case", "20/255").correct_top5 == 4


def test_no_top5_under_an_attack_that_is_content_with_another_first_label() -> None:
    """What it leaves has its label second: 'among five' would be that of no attack."""
    other = info("fgsm", SMALL)
    results = score([batch(LABELS, CLEAN, {**FOOLED, other.key: CLEAN})], [A, other, B, C])
    assert [(row.attack, row.eps) for row in results.rows if row.correct_top5 is not None] == [
        ("clean", "0"),
        ("fgsm", "2/255"),
    ]
    drawn = replace(A, name="noise")
    for queries, told in ((1, True), (10, False)):
        noise = replace(drawn, params=msgspec.structs.replace(drawn.params, queries=queries))
        results = score([batch(LABELS, CLEAN, {noise.key: CLEAN})], [noise])
        assert [row.correct_top5 is not None for row in results.rows] == [True, told, told]


def test_batches_add_up() -> None:
    halves = [
        batch(LABELS[part], CLEAN[part], {k: list(v)[part] for k, v in FOOLED.items()}, first=part.start)
        for part in (slice(0, 3), slice(3, 8))
    ]
    nothing = batch([], [], {key: [] for key in FOOLED})
    whole, parts = score([batch(LABELS, CLEAN, FOOLED)], [A, B, C]), score([halves[0], nothing, halves[1]], [A, B, C])
    assert [row.to_json() for row in whole.rows] == [row.to_json() for row in parts.rows]
    assert whole.data.sha256 == parts.data.sha256


def calibrated_on(answers: Sequence[int]) -> Bundle:
    """A bundle whose int8 variants were calibrated on images that are answered so."""
    plain = bundle()
    images = [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels(answers)]
    return Bundle(plain.path, structs.replace(plain.manifest, calibration=CalibrationEntry(images=tuple(images))))


def test_images_of_the_calibration_are_left_out_and_counted() -> None:
    """As if they had not been there, in every row, in the digest, and in the evidence for the verdict."""
    kept = [0, 1, 4, 5, 6, 7]
    rest = batch(LABELS, CLEAN, FOOLED).select(np.isin(np.arange(8), kept))
    seen: list[tuple[int, int]] = []
    results = score(
        [
            batch(LABELS[:4], CLEAN[:4], {k: v[:4] for k, v in FOOLED.items()}),
            batch(LABELS[4:], CLEAN[4:], {k: v[4:] for k, v in FOOLED.items()}, first=4),
        ],
        [A, B, C],
        bundle=calibrated_on([2, 3, 100]),
        progress=lambda done, total, _: seen.append((done, total)),
    )
    assert (results.data.n, results.data.calibration_left_out) == (6, 2)
    expected = score([rest], [A, B, C])
    assert expected.data.calibration_left_out == 0
    assert [row.to_json() for row in results.rows] == [row.to_json() for row in expected.rows]
    assert results.data.sha256 == expected.data.sha256
    assert results.masking == expected.masking
    assert seen == [(4, 8), (8, 8)]


def test_zero_gradients_of_images_left_out_do_not_count() -> None:
    flags = {A.key: [True, False, True, True]}
    crafted = batch([0, 1, 2, 3], [0, 1, 2, 3], {A.key: [0, 1, 2, 3]}, zero=flags)
    assert one(score([crafted], [A]), "a", "2/255").zero_gradient_share == 3 / 4
    assert one(score([crafted], [A], bundle=calibrated_on([2, 3])), "a", "2/255").zero_gradient_share == 1 / 2


def test_data_that_was_all_calibrated_on_is_an_error() -> None:
    with pytest.raises(DataError, match="int8 was calibrated on all 2 of these images"):
        score([batch([0, 1], [0, 1], {})], [], bundle=calibrated_on([0, 1]))


def test_the_digest_knows_pixels_labels_and_order() -> None:
    same = score([batch([0, 1], [0, 1], {})], []).data.sha256
    assert score([batch([0, 1], [0, 2], {})], []).data.sha256 != same
    assert score([batch([0, 2], [0, 1], {})], []).data.sha256 != same
    assert score([batch([1, 0], [1, 0], {})], []).data.sha256 != same
    assert score([batch([0, 1], [0, 1], {}, first=1)], []).data.sha256 != same
    assert score([batch([0, 1], [0, 1], {})], []).data.sha256 == same


def test_two_ways_to_write_one_budget_are_one_worst_case() -> None:
    """8/255 and its decimals are the same budget: the worst case at either is over both attacks."""
    ours, theirs = info("a", Eps.parse("8/255")), info("b", Eps.parse(repr(8 / 255)))
    results = score([batch([0, 1, 2], [0, 1, 2], {ours.key: [5, 1, 2], theirs.key: [0, 5, 2]})], [ours, theirs])
    worst = results.select(attack="worst-case")
    assert {row.correct_top1 for row in worst} == {1}
    assert {row.params.attacks for row in worst} == {("clean", "a", "b")}


def test_the_worst_case_says_what_it_is_over() -> None:
    results = score([batch(LABELS, CLEAN, FOOLED)], [C, A, B])
    assert one(results, "worst-case", "2/255").params.attacks == ("clean", "a")
    assert one(results, "worst-case", "20/255").params.attacks == ("clean", "c", "a", "b")


def test_without_attacks_there_is_the_clean_row() -> None:
    results = score([batch(LABELS, CLEAN, {})], [])
    assert [(row.attack, row.correct_top1, row.threat, row.masking) for row in results.rows] == [
        ("clean", 7, None, None)
    ]
    assert results.masking.verdict == "UNCHECKED"
    assert results.examples == ()


def test_ties_go_against_the_model() -> None:
    results = score([batch(LABELS, CLEAN, {})], [], [Undecided()])
    assert (one(results, "clean").correct_top1, one(results, "clean").correct_top5) == (0, 0)


def test_images_without_a_gradient_are_a_share_of_all() -> None:
    """Also of those that are wrong on clean: n is n."""
    flags = {A.key: [True] * 2 + [False] * 5 + [True], B.key: [False] * 8}
    results = score([batch(LABELS, CLEAN, FOOLED, zero=flags)], [A, B, C])
    assert one(results, "a", "2/255").zero_gradient_share == 3 / 8
    assert one(results, "b", "20/255").zero_gradient_share == 0.0
    # c does not tell, and there is none for the clean images and the worst case
    for row in (one(results, "c", "20/255"), one(results, "clean"), one(results, "worst-case", "20/255")):
        assert row.zero_gradient_share is None


@pytest.mark.parametrize("n_classes", [2, 5, 6])
def test_top5_means_something_from_six_classes_on(n_classes: int) -> None:
    eps = info("fgsm", SMALL)
    results = score(
        [batch([0, 1], [0, 1], {eps.key: [1, 0]})], [eps], [FirstPixel(n_classes=n_classes)], bundle=bundle(n_classes)
    )
    assert all((row.top5 is None) == (n_classes <= 5) for row in results.rows)
    assert len(results.rows) == 3


def test_each_artefact_is_scored_on_the_same_images() -> None:
    reference, other = FirstPixel(), FirstPixel(shift=1, variant="fp16", sha256="c" * 64)
    results = score([batch(LABELS, CLEAN, FOOLED)], [A, B, C], [reference, other])
    assert one(results, "clean", variant="fp32").correct_top1 == 7
    # it answers one class further on: only image 7, answered 8 and now 9, and never its label
    assert one(results, "clean", variant="fp16").correct_top1 == 0
    # image 0 was answered 9 under a: one further is 0, right; but wrong on clean, so not in the worst case
    assert one(results, "a", "2/255", variant="fp16").correct_top1 == 1
    assert one(results, "worst-case", "2/255", variant="fp16").correct_top1 == 0
    # the verdict belongs to the gradients, not to the artefact; a row carries the sentences of what was found
    found = [item for item in results.masking.evidence if item.rule == "coverage"]
    for row in results.rows:
        whose = (None, f"{row.backend} {row.variant}")
        sentences = tuple(item.text for item in found if item.artefact in whose)
        assert row.masking == (None if row.attack == "clean" else RowMasking(verdict="UNCHECKED", evidence=sentences))


def test_a_threat_is_white_box_only_for_the_artefact_whose_gradients_were_used() -> None:
    transferred, blind = info("t", SMALL, gradients_sha256="d" * 64), info("q", LARGE, gradients_sha256=None)
    answers: dict[Key, Sequence[int]] = {key: [0, 1] for key in (A.key, B.key, transferred.key, blind.key)}
    backends = [FirstPixel(), FirstPixel(variant="fp16", sha256="c" * 64)]
    results = score([batch([0, 1], [0, 1], answers)], [A, B, transferred, blind], backends)
    threats = {(row.variant, row.attack, row.eps): row.threat for row in results.rows}
    assert threats["fp32", "a", "2/255"] == threats["fp32", "b", "20/255"] == "white-box"
    assert threats["fp32", "t", "2/255"] == threats["fp32", "q", "20/255"] == "transfer"
    # of what ran: one white-box attack makes it that
    assert threats["fp32", "worst-case", "2/255"] == threats["fp32", "worst-case", "20/255"] == "white-box"
    assert {threat for (variant, attack, _), threat in threats.items() if variant == "fp16" and attack != "clean"} == {
        "transfer"
    }


def test_an_attack_that_asked_the_artefact_is_a_query_attack_there_and_nowhere_else() -> None:
    first, second = FirstPixel(), FirstPixel(variant="fp16", sha256="c" * 64)
    assert second.identity == f"first-pixel fp16 {'c' * 64}"
    asked = replace(info("square@fp16", SMALL, gradients_sha256=None), queried=second.identity)
    foreign = info("t", LARGE, gradients_sha256="d" * 64)
    answers: dict[Key, Sequence[int]] = {asked.key: [0, 1], foreign.key: [0, 1], A.key: [0, 1]}
    results = score([batch([0, 1], [0, 1], answers)], [asked, foreign], [first, second])
    threats = {(row.variant, row.attack, row.eps): row.threat for row in results.rows if row.attack != "clean"}
    assert threats == {
        ("fp32", "square@fp16", "2/255"): "transfer",
        ("fp32", "worst-case", "2/255"): "transfer",
        ("fp32", "t", "20/255"): "transfer",
        ("fp32", "worst-case", "20/255"): "transfer",
        ("fp16", "square@fp16", "2/255"): "query",
        ("fp16", "worst-case", "2/255"): "query",
        ("fp16", "t", "20/255"): "transfer",
        ("fp16", "worst-case", "20/255"): "query",
    }
    # gradients of the artefact itself come first
    both = score([batch([0, 1], [0, 1], answers)], [replace(asked, queried=first.identity), A], [first])
    assert one(both, "worst-case", "2/255").threat == "white-box"


def test_the_file_says_what_was_scored() -> None:
    skipped = [Skipped(backend="torch", variant="fp16", reason="no")]
    results = score([batch(LABELS, CLEAN, FOOLED)], [A, B, C], skipped=skipped, examples=0)
    assert results.bundle.id == "b" * 64 and results.bundle.name == "pixel.edgeadv"
    assert results.bundle.weights_sha256 == WEIGHTS
    assert (results.data.name, results.data.split, results.data.classes) == ("digits", "test", 10)
    assert results.skipped == tuple(skipped)
    row = one(results, "a", "2/255")
    assert (row.backend, row.provider, row.device, row.artifact_sha256) == ("first-pixel", "numpy", "test", WEIGHTS)
    assert (row.eps_value, row.gradients) == (2 / 255, "torch fp32")


def test_what_is_measured_survives_the_file(tmp_path: Path) -> None:
    results = score([batch(LABELS, CLEAN, FOOLED, zero={A.key: [True] * 8})], [A, B, C])
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json").rows == results.rows


def test_unreadable_images_are_outside_n_and_listed() -> None:
    labels = [i % 10 for i in range(198)]
    results = score(
        [batch(labels, labels, {})], [], data=DataInfo("d", "all", 200), unreadable=["a.png: cut off", "b.png: empty"]
    )
    assert results.data.n == one(results, "clean").n == 198
    assert results.data.unreadable == ("a.png: cut off", "b.png: empty")


def test_more_than_one_percent_unreadable_is_an_error_unless_allowed() -> None:
    labels = [i % 10 for i in range(197)]
    bad = ["a.png: cut off", "b.png: empty", "c.png: no image"]
    with pytest.raises(DataError, match=r"3 of 200 images are unreadable, e\.g\. a\.png: cut off"):
        score([batch(labels, labels, {})], [], data=DataInfo("d", "all", 200), unreadable=bad)
    allowed = score(
        [batch(labels, labels, {})], [], data=DataInfo("d", "all", 200, allow_unreadable=True), unreadable=bad
    )
    assert allowed.data.n == 197 and len(allowed.data.unreadable) == 3


def test_messages_that_the_iterator_finds_are_counted() -> None:
    """The list is filled while the images are read."""
    unreadable: list[str] = []

    def stream() -> Any:
        yield batch([0, 1], [0, 1], {})
        unreadable.append("late.png: cut off")

    with pytest.raises(DataError, match="1 of 3 images are unreadable"):
        evaluate(bundle(), stream(), backends=[FirstPixel()], data=DataInfo("d", "all", 3), unreadable=unreadable)


class Planned(FirstPixel):
    """Tells of a plan as TensorRT's backend does: whether there are CUDA graphs is known once it has run."""

    ran = False

    def _infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        self.ran = True
        return super()._infer(x)

    @property
    def engine_info(self) -> EngineInfo | None:
        return EngineInfo(plan_sha256="c" * 64, profile=(1, 1, 1), precision="declared", cuda_graphs=self.ran)


def test_rows_name_the_plan_as_it_is_after_scoring(capsys: pytest.CaptureFixture[str]) -> None:
    backends = [FirstPixel(), Planned(variant="fp16")]
    results = score([batch(LABELS, CLEAN, FOOLED)], [A, B, C], backends)
    plan = EngineInfo(plan_sha256="c" * 64, profile=(1, 1, 1), precision="declared", cuda_graphs=True)
    assert [row.engine for row in results.select(variant="fp16")] == [plan] * 6
    assert [row.engine for row in results.select(variant="fp32")] == [None] * 6
    print_results(results)
    named = [line for line in capsys.readouterr().out.splitlines() if "plan" in line]
    assert named == ["first-pixel fp16: plan cccccccccccc, batch 1, precision declared, not verified"]


def test_no_image_is_an_error() -> None:
    with pytest.raises(DataError, match=r"no image could be scored, e\.g\. x\.png: bad"):
        score([], [], data=DataInfo("d", "all", 1, allow_unreadable=True), unreadable=["x.png: bad"])


def test_progress_counts_what_was_asked_for() -> None:
    seen: list[tuple[int, int]] = []
    parts = [batch([0] * 150, [0] * 150, {}), batch([1] * 49, [1] * 49, {})]
    score(
        parts,
        [],
        data=DataInfo("d", "all", 200),
        unreadable=["x"],
        progress=lambda done, total, _: seen.append((done, total)),
    )
    assert seen == [(151, 200), (200, 200)]


def test_a_cumulative_row_says_what_its_attack_broke_in_addition() -> None:
    """Its count of right images is that of all attacks so far; what it added is the images that stood until then."""
    small, large = (replace(info("apgd-ce", eps), cumulative=True) for eps in (SMALL, LARGE))
    last = replace(info("square", LARGE), gradients=None, gradients_sha256=None, cumulative=True)
    before = info("fgsm", SMALL), info("pgd-ce", LARGE), info("pgd-margin", LARGE)
    answers: dict[Key, Sequence[int]] = {
        **{by.key: fooled for by, fooled in zip(before, FOOLED.values(), strict=True)},
        small.key: [9, 1, 2, 3, 5, 5, 6, 8],  # 0 had fallen, 4 falls; 7 was wrong
        large.key: [9, 2, 2, 3, 5, 6, 6, 8],  # 1 had fallen, 4 within the smaller budget; 5 falls
        last.key: [9, 2, 2, 4, 5, 6, 7, 8],  # 3 had fallen; 6 falls
    }
    results = score([batch(LABELS, CLEAN, answers)], [last, small, large, *before])
    told = {(row.attack, row.eps): row.broken_in_addition for row in results.rows if row.attack != "worst-case"}
    assert told == {
        ("clean", "0"): None,
        **{by.key: None for by in before},
        small.key: 1,
        large.key: 1,
        last.key: 1,
    }


def test_an_image_that_attacks_leave_as_it_is_is_scored_once_but_on_who_answers_at_random() -> None:
    """The last attack is asked about twice in the same way, for answers that change."""

    class Asked(FirstPixel):
        provider = "cpu"
        noise = 0.0

        def __init__(self) -> None:
            super().__init__()
            self.images, self.rng = 0, np.random.default_rng(0)

        def _infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
            self.images += len(x)
            logits = super()._infer(x)
            return logits + np.float32(self.noise) * self.rng.random(logits.shape, dtype=np.float32)

    class Dice(Asked):
        noise = 0.1

    same = dict.fromkeys(FOOLED, CLEAN)
    for backend, times in ((Asked(), 5), (Dice(), 6)):
        score([batch(LABELS, CLEAN, same)], [A, B, C], [backend])
        assert backend.images == 8 * times


def test_a_backend_that_fails_is_not_hidden() -> None:
    class Broken(FirstPixel):
        def _infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
            return super()._infer(x) * np.float32("nan")

    with pytest.raises(BackendError, match="NaN"):
        score([batch([0], [0], {})], [], [Broken()])


def test_the_verdict_comes_from_the_reference_not_from_the_scored_artefact() -> None:
    control = replace(info(LARGE_EPS, Eps.parse("1")), control=True)
    asked = FirstPixel().identity
    noise = replace(
        info(NOISE, SMALL), gradients=None, gradients_sha256=None, params=AttackParams(queries=FEWEST_DRAWS)
    )
    asking = replace(noise, name=SQUARE, params=AttackParams(queries=FEWEST_QUERIES), queried=asked, cumulative=True)
    bent = replace(info(LINEARITY, SMALL), control=True)
    listed = [*(info(name, SMALL) for name in (*NEEDED, PGD_SMOOTHED)), noise, asking, control, bent]
    labels = [i % 10 for i in range(FEWEST_IMAGES)]
    other = [(i + 1) % 10 for i in labels]
    answers: dict[Key, Sequence[int]] = {i.key: labels for i in listed}
    crafted = batch(labels, labels, answers | {(PGD_MARGIN, SMALL.text): other, control.key: other})
    none = np.zeros(FEWEST_IMAGES)
    told = replace(
        crafted.evidence,
        zero_gradient={(name, SMALL.text): none > 0 for name in NEEDED},
        progress={i.key: none.astype(np.float32) for i in (noise, asking)},
        linearity={bent.key: np.ones((FEWEST_IMAGES, 4), np.float32)},
    )
    crafted = replace(crafted, evidence=told)
    masked = score([crafted], listed, [Undecided()])
    assert masked.masking.verdict == "MASKED"
    sentence, *_ = one(masked, FGSM, SMALL.text).masking.evidence
    assert f"pgd-margin broke {FEWEST_IMAGES} of the {FEWEST_IMAGES} images" in sentence
    blind = replace(
        crafted,
        evidence=replace(
            crafted.evidence, answers=crafted.evidence.answers | {(PGD_MARGIN, SMALL.text): np.array(labels)}
        ),
    )
    results = score([blind], listed)
    assert results.masking.verdict == "PASS"
    assert one(results, PGD_MARGIN, SMALL.text).correct_top1 == 0


def _decoded(text: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_examples_show_one_image_of_each_class_and_what_the_last_attack_did() -> None:
    labels = [3, 3, 4, 5, 6]
    clean = [3, 3, 9, 5, 6]
    last = info("z", LARGE)
    answers: dict[Key, Sequence[int]] = {A.key: clean, last.key: [8, 8, 8, 5, 8]}
    results = score(
        [batch(labels, clean, answers, first=40)], [A, last], [FirstPixel(variant="int8"), FirstPixel()], examples=2
    )
    # image 41 is of a class already shown, image 42 was wrong to begin with, and two are enough
    assert [(e.index, e.label, e.clean_prediction, e.adversarial_prediction) for e in results.examples] == [
        (40, "class 3", "class 3", "class 8"),
        (43, "class 5", "class 5", "class 5"),
    ]
    first = results.examples[0]
    assert (first.attack, first.eps, first.artefact) == ("z", LARGE.text, "first-pixel fp32")
    assert _decoded(first.clean_png)[0, 0].tolist() == [3, 0, 0]
    assert _decoded(first.adversarial_png)[0, 0].tolist() == [8, 0, 0]
    # full amplification takes eps to the end of the range: 5 of 20 levels is a quarter of the way from the middle
    assert _decoded(first.perturbation_png)[0, 0].tolist() == [round(127.5 + 127.5 / 4), 128, 128]
    logits = -((np.arange(10) - 3) % 10).astype(float)
    assert first.clean_probability == pytest.approx(float((np.exp(logits) / np.exp(logits).sum()).max()))


def test_craft_and_evaluate_fit_together() -> None:
    """An attack on the real loop: it adds what carries 0 to 2, and so fools the even labels only where eps allows
    it."""

    def up(x: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[np.float32]:
        x = x.copy()
        x[:, 0, 0, 0] += np.where(y % 2 == 0, np.float32(2 / 255), 0)
        return x

    attack = CallableAttack(up, "up", SMALL, gradients="none")
    clean = CleanBatch(np.arange(6), pixels([0, 1, 2, 3, 4, 9]), np.array([0, 1, 2, 3, 4, 5]))
    results = evaluate(
        bundle(),
        craft([clean], [attack], FirstPixel(), uint8=True),
        infos=infos([attack], uint8=True),
        backends=[FirstPixel()],
        data=DataInfo("d", "all", 6),
    )
    assert one(results, "clean").correct_top1 == 5
    assert one(results, "up", SMALL.text).correct_top1 == one(results, "worst-case", SMALL.text).correct_top1 == 2
    assert one(results, "up", SMALL.text).params.uint8 is True


def test_controls_are_evidence_and_nothing_else() -> None:
    """No row, no part in a worst case, no call of an artefact: their images are gone."""
    control = replace(info("inverse", Eps.parse("1")), control=True)
    plain = batch(LABELS, CLEAN, FOOLED)
    answers = {**plain.evidence.answers, control.key: np.array(LABELS)}
    told = replace(plain, evidence=replace(plain.evidence, answers=answers))
    with_control, without = score([told], [A, control, B, C]), score([plain], [A, B, C])
    assert with_control.rows == without.rows
    assert with_control.examples == without.examples
    assert score([told], [control]).select(attack="worst-case") == []


def test_two_norms_in_one_run_are_refused() -> None:
    euclidean = replace(B, params=AttackParams(norm="l2"))
    with pytest.raises(InputError, match="a in linf and b in l2"):
        score([batch(LABELS, CLEAN, FOOLED)], [A, euclidean])
    results = score([batch(LABELS, CLEAN, FOOLED)], [euclidean])
    assert one(results, "worst-case", "20/255").params.norm == "l2"


def test_artefacts_are_compared_image_by_image() -> None:
    first, second, third = FirstPixel(), FirstPixel(shift=1, variant="fp16", sha256="c" * 64), Undecided(variant="int8")
    labels, clean = [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 3, 4]
    # image 0 is broken for the first, image 1 for neither; 4 and 5 the second gets right on clean, and 5 under attack
    # too
    results = score([batch(labels, clean, {A.key: [5, 1, 2, 3, 9, 4]})], [A], [first, second, third])
    assert [(c.baseline.variant, c.artefact.variant, c.attack, c.eps) for c in results.comparisons] == [
        ("fp32", "fp16", "clean", "0"),
        ("fp32", "fp16", "worst-case", "2/255"),
        ("fp32", "int8", "clean", "0"),
        ("fp32", "int8", "worst-case", "2/255"),
        ("fp16", "int8", "clean", "0"),
        ("fp16", "int8", "worst-case", "2/255"),
    ]
    on_clean, worst = results.comparisons[:2]
    assert on_clean.artefact == ArtefactId(backend="first-pixel", variant="fp16", artifact_sha256="c" * 64)
    assert (on_clean.n, on_clean.lost, on_clean.gained, on_clean.drop) == (6, 4, 2, pytest.approx(1 / 3))
    assert (worst.lost, worst.gained, worst.drop) == (3, 1, pytest.approx(1 / 3))
    # over the 4 images that differ: twice the tail of at most one head
    assert worst.p == pytest.approx(2 * (1 + 4) / 16)
    assert worst.interval == paired_difference_interval(3, 1, 6)
    rows = {row.variant: row.correct_top1 for row in results.select(attack="worst-case")}
    assert rows["fp32"] - rows["fp16"] == worst.lost - worst.gained
    assert score([batch(LABELS, CLEAN, FOOLED)], [A]).comparisons == ()


def test_the_loss_by_rounding_counts_images_that_only_the_unrounded_attack_breaks() -> None:
    plain = batch([0, 1, 2, 3, 4], [0, 1, 2, 3, 9], {A.key: [0, 1, 9, 3, 4], B.key: [0, 1, 2, 3, 4]})
    # image 0 is lost; 2 is broken either way, 3 neither way, and 4 was wrong to begin with; the attack b tells nothing
    evidence = replace(plain.evidence, unrounded={A.key: np.array([9, 1, 9, 3, 8])})
    results = score(
        [replace(plain, evidence=evidence)], [A, B], [FirstPixel(), FirstPixel(variant="fp16", sha256="c" * 64)]
    )
    assert {row.rounding_lost for row in results.select(attack="a")} == {1}
    assert {row.rounding_lost for row in results.rows if row.attack != "a"} == {None}


def test_batches_scored_apart_give_the_file_of_one_run(tmp_path: Path) -> None:
    """Even batches by one process and odd ones by another, one of which was stopped; the examples are the same too."""
    rng = np.random.default_rng(0)
    stream, listed = [], [A, B, C]
    for number in range(9):
        labels = rng.integers(0, 6, 8)
        answers = {key: np.where(rng.random(8) < 0.3, 9, labels).tolist() for key in FOOLED}
        stream.append(
            batch(labels.tolist(), np.where(rng.random(8) < 0.3, 8, labels).tolist(), answers, first=8 * number)
        )
    backends, about = [FirstPixel(variant="fp16", shift=1, sha256="c" * 64), FirstPixel()], bundle()
    data = DataInfo("digits", "test", 72)
    for most in (0, 2, 4, 6):
        whole = score(stream, listed, backends, data=data, examples=most)
        assert len(whole.examples) == most
        store = OutcomeStore(tmp_path / f"{most}.partial", n_classes=10)
        store.start({"examples": most}, resume=False)
        for part in (range(0, 9, 2), [1, 3], [5, 7]):
            earlier = [n for n in store.numbers() if n < part[0]]
            seen = {example.label for n in earlier for example in store.get(n).examples}
            outcomes = score_batches(
                [stream[n] for n in part],
                listed,
                bundle=about,
                backends=backends,
                unreadable=[],
                examples=most,
                seen=seen,
            )
            for number, outcome in zip(part, outcomes, strict=True):
                store.put(number, outcome)
        artefacts = [Artefact.of(backend) for backend in backends]
        again = summarise(store.all(9), listed, artefacts, bundle=about, data=data, examples=most)
        assert (again.rows, again.masking, again.data) == (whole.rows, whole.masking, whole.data)
        assert (again.comparisons, again.examples) == (whole.comparisons, whole.examples)


# ---- scoring beside crafting


def some_batches(count: int = 5) -> list[CraftedBatch]:
    rng = np.random.default_rng(1)

    def answers(labels: NDArray[np.int64]) -> list[int]:
        return np.where(rng.random(8) < 0.4, 9, labels).tolist()

    made = []
    for number in range(count):
        labels = rng.integers(0, 6, 8)
        made.append(batch(labels.tolist(), answers(labels), {key: answers(labels) for key in FOOLED}, first=8 * number))
    return made


def beside(
    batches: Iterable[CraftedBatch], backend: Backend, unreadable: Sequence[str] = (), **options: Any
) -> Iterator[BatchOutcome]:
    return score_batches(
        batches, [A, B, C], bundle=bundle(), backends=[backend], unreadable=unreadable, overlap=True, **options
    )


@pytest.mark.parametrize("count", [1, 2, 5])
def test_scoring_beside_crafting_gives_the_same_file(count: int) -> None:
    stream = some_batches(count)
    apart, together = (score(stream, [A, B, C], overlap=overlap) for overlap in (False, True))
    assert replace(together, created="", environment=Environment()) == replace(
        apart, created="", environment=Environment()
    )


def test_a_batch_is_scored_while_the_next_one_is_crafted() -> None:
    """The second batch is not there before the first has been scored: without a second thread that would never be."""
    scored = threading.Event()

    class Telling(FirstPixel):
        def _infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
            assert threading.current_thread() is not threading.main_thread()
            scored.set()
            return super()._infer(x)

    def crafted() -> Iterator[CraftedBatch]:
        assert threading.current_thread() is threading.main_thread()
        for number, made in enumerate(some_batches(3)):
            assert number == 0 or scored.wait(30)
            yield made

    assert len(list(beside(crafted(), Telling()))) == 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("scoring")]


@pytest.mark.parametrize("error", [InputError("no more"), KeyboardInterrupt()])
def test_what_was_crafted_before_an_interruption_is_kept(error: BaseException) -> None:
    def crafted() -> Iterator[CraftedBatch]:
        yield from some_batches(2)
        raise error

    kept: list[tuple[int, int]] = []
    with pytest.raises(type(error)):
        list(beside(crafted(), FirstPixel(), keep=lambda i, outcome: kept.append((i, int(outcome.index[0])))))
    assert kept == [(0, 0), (1, 8)]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("scoring")]


def test_an_outcome_is_kept_before_the_next_batch_is_crafted() -> None:
    kept = threading.Event()

    def crafted() -> Iterator[CraftedBatch]:
        for number, made in enumerate(some_batches(2)):
            assert number == 0 or kept.wait(30)
            yield made

    assert len(list(beside(crafted(), FirstPixel(), keep=lambda *_: kept.set()))) == 2


def test_an_error_of_the_artefact_is_raised_in_its_turn() -> None:
    class Failing(FirstPixel):
        def _infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
            if np.rint(x[0, 0, 0, 0] * 255) == 200:
                raise BackendError("broken")
            return super()._infer(x)

    stream = some_batches(4)
    stream[2] = replace(stream[2], clean=replace(stream[2].clean, pixels=pixels([200] * 8)))
    outcomes = beside(stream, Failing())
    assert [next(outcomes).index[0], next(outcomes).index[0]] == [0, 8]
    with pytest.raises(BackendError, match="broken"):
        next(outcomes)


def test_unreadable_images_stay_with_their_batch_beside_crafting() -> None:
    unreadable: list[str] = []

    def crafted() -> Iterator[CraftedBatch]:
        for number, made in enumerate(some_batches(3)):
            unreadable.append(f"image {number}")
            yield made

    found = [outcome.unreadable for outcome in beside(crafted(), FirstPixel(), unreadable)]
    assert found == [("image 0",), ("image 1",), ("image 2",)]


# ---- artefacts that take 8-bit pixels


class FirstByte(FirstPixel):
    """The same, of pixels."""

    def __init__(self, **options: Any) -> None:
        super().__init__(variant="fp32-u8in", **options)
        self.seen: list[NDArray[np.uint8]] = []

    def _infer(self, x: NDArray[Any]) -> NDArray[np.float32]:
        assert x.dtype == np.uint8
        self.seen.append(x)
        return super()._infer(to_tensor(x))


class Ceiling(FirstPixel):
    """A grey level counts as soon as it is begun."""

    def _infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return super()._infer(np.ceil(x * 255 - 0.01) / 255)


def between_levels(by: float) -> CraftedBatch:
    """Two images whose adversarial versions lie ``by`` grey levels above them."""
    made = batch([5, 6], [5, 6], {A.key: [5, 6]})
    x = to_tensor(made.clean.pixels)
    x[:, 0, 0, 0] += np.float32(by / 255)
    return replace(made, adversarial={A.key: x})


@pytest.mark.parametrize(("by", "level"), [(0.4, 0), (0.6, 1), (1.6, 2), (2.0, 2), (-1.2, -1)])
def test_what_takes_pixels_is_given_rounded_images(by: float, level: int) -> None:
    backend = FirstByte()
    results = score([between_levels(by)], [A], [FirstPixel(), backend])
    clean, again, attacked, attacked_again = backend.seen
    assert (clean == again).all() and (attacked == attacked_again).all()
    assert clean[:, 0, 0, 0].tolist() == [5, 6]
    assert attacked[:, 0, 0, 0].tolist() == [5 + level, 6 + level]
    assert one(results, "a", "2/255", variant="fp32-u8in").correct_top1 == (2 if level == 0 else 0)


def test_what_rounding_undid_is_told_by_the_artefact_with_float_input() -> None:
    """0.4 levels are rounded away: both images are broken as floats and stand as pixels."""
    floats, pixels = Ceiling(variant="fp16", sha256="f" * 64), FirstByte(sha256="c" * 64)
    pixels.variant, pixels.float_sha256 = "fp16-u8in", floats.artifact_sha256
    together = score([between_levels(0.4)], [A], [floats, pixels])
    assert one(together, "a", "2/255", variant="fp16").correct_top1 == 0
    assert one(together, "a", "2/255", variant="fp16-u8in").rounding_lost == 2
    assert one(together, "a", "2/255", variant="fp16").rounding_lost is None
    # alone, nobody knows
    assert one(score([between_levels(0.4)], [A], [pixels]), "a", "2/255").rounding_lost is None
    # of a larger step nothing is undone
    assert (
        one(score([between_levels(1.6)], [A], [floats, pixels]), "a", "2/255", variant="fp16-u8in").rounding_lost == 0
    )


def test_rows_say_that_it_was_rounded() -> None:
    results = score([between_levels(0.6)], [A], [FirstPixel(), FirstByte()])
    assert {row.params.uint8 for row in results.select(variant="fp32") if row.attack != "clean"} == {False}
    assert {row.params.uint8 for row in results.select(variant="fp32-u8in") if row.attack != "clean"} == {True}
    assert one(results, "clean", variant="fp32-u8in").params.uint8 is None
    assert one(results, "worst-case", "2/255", variant="fp32-u8in").params.uint8 is True
    again = Results.from_json(results.to_json())
    assert again.rows == results.rows


def test_less_than_a_grey_level_is_nothing() -> None:
    small = replace(A, eps=Eps.parse("0.5/255"))
    crafted = replace(between_levels(0.4), adversarial={small.key: between_levels(0.4).adversarial[A.key]})
    score([crafted], [small], [FirstPixel()])
    with pytest.raises(InputError, match=r"eps 0.5/255 is less than one grey level of .* leave out fp32-u8in"):
        score([crafted], [small], [FirstPixel(), FirstByte()])
    between = replace(small, eps=Eps.parse("0.01"))
    with pytest.raises(InputError, match=r"eps 0.01 is 2.55 grey levels.* use 2/255 or 3/255, or leave out fp32-u8in"):
        score([replace(crafted, adversarial={between.key: crafted.adversarial[small.key]})], [between], [FirstByte()])
    in_l2 = replace(small, params=msgspec.structs.replace(small.params, norm="l2"))
    score([crafted], [in_l2], [FirstByte()])  # of a length many pixels may have a share


def test_gradients_of_the_float_artefact_are_its_own() -> None:
    other, floats = FirstByte(sha256="c" * 64), FirstByte(sha256="c" * 64)
    floats.float_sha256 = WEIGHTS
    crafted = between_levels(1)
    assert one(score([crafted], [A], [other]), "a", "2/255").threat == "transfer"
    assert one(score([crafted], [A], [floats]), "a", "2/255").threat == "white-box"
    nobodys = replace(A, gradients_sha256=None)
    assert one(score([crafted], [nobodys], [other]), "a", "2/255").threat == "transfer"
