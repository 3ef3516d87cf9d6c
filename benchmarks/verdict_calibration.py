"""What the masking verdict says of networks that are known: where its thresholds come from, and how it fares.

For each network of ``verdict_networks`` the suite runs on test images at one budget. The truth is bounded from above by
images made with far more effort on the same network without its trick. A network is *honest* at its budget under a
suite if the suite's worst case lies within 2 points of that bound, and *dishonest* beyond 5: what counts is the figure,
not what was meant.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from verdict_networks import NETWORKS, Network, Weights, chosen

from edgeadv.attacks import build_attacks
from edgeadv.attacks.averaged import Averaged
from edgeadv.attacks.functions import apgd_targeted, pgd
from edgeadv.data.datasets import balanced_subset, batches
from edgeadv_runtime import Backend, Eps
from edgeadv_runtime.attacks.base import CLEAN_KEY, Attack, CraftedBatch, infos
from edgeadv_runtime.attacks.crafting import answers_of, changing, craft
from edgeadv_runtime.attacks.noise import CumulativeNoise
from edgeadv_runtime.attacks.square_attack import SquareAttack
from edgeadv_runtime.bundle.batches import CleanBatch
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.device.facts import environment
from edgeadv_runtime.errors import EdgeAdvError
from edgeadv_runtime.evaluation.verdict import MaskingEvidence, verdict_of
from edgeadv_runtime.files import read_json, write_json
from edgeadv_runtime.records.evidence import Finding
from edgeadv_runtime.records.suites import NOISE, PER_ARTEFACT, RANDOM_DRAWS, SQUARE, SUITES, Effort

BATCH = 100
HONEST, DISHONEST = 0.02, 0.05
SHA256 = "a" * 64


class Reference(Backend):
    """A network under the contract of a backend."""

    name, variant, provider, device, artifact_sha256 = "torch", "fp32", "cpu", "cpu", SHA256
    n_classes = 10

    def __init__(self, model: nn.Module, shape: tuple[int, int, int]) -> None:
        self.model, self.input_shape = model, shape

    def _infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            logits: NDArray[np.float32] = self.model(torch.from_numpy(x)).float().numpy()
        return logits


@dataclass(frozen=True)
class Judged:
    """What is judged: where gradients come from, what answers, and networks to make images on that bound what it
    stands."""

    gradients: nn.Module
    backend: Backend
    bare: Sequence[nn.Module]


def judged(network: Network, weights: Weights) -> Judged:
    """A network in PyTorch, as a backend, and without its trick."""
    shown, bare = weights.judged(network)
    return Judged(shown.eval(), Reference(shown.eval(), (3, 32, 32)), bare)


def exported(it: Judged, name: str) -> Judged:
    """The same by the gradients of its own ONNX graph, which is what an artefact has; it answers too.

    Raises:
        EdgeAdvError: it cannot be exported, or its graph has no gradients.
    """
    from edgeadv.gradients.graph import GraphModule
    from edgeadv.gradients.read_onnx import nodes_of
    from edgeadv.models.builder import Architecture, PixelModel
    from edgeadv.models.checks import check_classifier
    from edgeadv_export.to_onnx import to_onnx

    about = Architecture(name=name, source="module", num_classes=10, mean=(), std=())
    model = PixelModel(it.gradients, about).eval()
    check_classifier(model, torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    graph = GraphModule(nodes_of(to_onnx(model, (3, 32, 32))), name).eval()
    return Judged(graph, Reference(graph, (3, 32, 32)), it.bare)


@dataclass(frozen=True)
class Outcome:
    """What a suite made of a network: which images stand, the verdict, and its evidence."""

    clean: NDArray[np.bool_]
    standing: NDArray[np.bool_]
    verdict: str
    evidence: Sequence[Finding]
    attacks: dict[str, int]


def run_suite(it: Judged, attacks: list[Attack], clean: Sequence[CleanBatch]) -> Outcome:
    """Attack a network in PyTorch, and read the verdict off."""
    listed = infos(attacks, uint8=False)
    evidence = MaskingEvidence(listed, reference=it.backend.identity)
    parts: list[CraftedBatch] = []
    for batch in craft(clean, attacks, it.backend, uint8=False):
        evidence.add(batch.clean.labels, batch.evidence)
        parts.append(batch)
    stands = {key: _stands(parts, key) for key in [CLEAN_KEY, *(info.key for info in listed)]}
    standing = np.all([stands[key] for key in [CLEAN_KEY, *(i.key for i in listed if not i.control)]], axis=0)
    found = evidence.verdict()
    counts = {f"{key[0]} {key[1]}": int(flags.sum()) for key, flags in stands.items()}
    return Outcome(stands[CLEAN_KEY], standing, found.verdict, found.evidence, counts)


def run_int8(
    network: Network, weights: Weights, work: Path, eps: Eps, suite: str, clean: Sequence[CleanBatch]
) -> tuple[Judged, Outcome]:
    """The int8 artefact in ONNX Runtime: attacked by the weights' gradients, by its own, and by queries, as
    ``evaluate`` does."""
    from edgeadv.gradients.artefact import open_graph
    from edgeadv_runtime.backends import OnnxRuntimeBackend
    from edgeadv_runtime.bundle.bundle import Bundle
    from edgeadv_runtime.evaluation.outcomes import Artefact
    from edgeadv_runtime.evaluation.scoring import score_batches

    folder = work / f"{network.name}.edgeadv"
    if not folder.exists():
        _export_int8(network, weights, folder)
    bundle = Bundle.open(folder)
    assert network.int8 is not None
    artefact = OnnxRuntimeBackend(bundle, variant=network.int8, threads=1)
    graph, it = open_graph(bundle, network.int8, device=torch.device("cpu")), judged(network, weights)
    attacks = suite_on(it, eps, suite, None, to_tensor(clean[0].pixels[:8]))
    own = {name: effort for name, effort in SUITES[suite].items() if name in PER_ARTEFACT}  # type: ignore[index]
    made = build_attacks(
        graph,
        [eps],
        efforts=own,
        classes=10,
        gradients_sha256=graph.sha256,
        suffix=f"@{network.int8}",
        gradients=graph.gradients,
    )
    query = SquareAttack(artefact, [eps], SUITES[suite][SQUARE].queries)  # type: ignore[index]
    attacks = [*(attack for attack in attacks if attack.name != SQUARE), *made, query]
    listed = infos(attacks, uint8=False)
    crafted = craft(clean, attacks, it.backend, uint8=False)
    outcomes = list(score_batches(crafted, listed, bundle=bundle, backends=[artefact], unreadable=[], examples=0))
    masking, (row,) = verdict_of(listed, outcomes, [Artefact.of(artefact)])
    hits = {key: np.concatenate([o.top1[0][key] for o in outcomes]) for key in outcomes[0].top1[0]}
    counts = {f"{key[0]} {key[1]}": int(flags.sum()) for key, flags in hits.items()}
    outcome = Outcome(hits[CLEAN_KEY], np.all([*hits.values()], axis=0), row.verdict, masking.evidence, counts)
    return Judged(graph, artefact, [graph, *it.bare]), outcome


def run_int8_graph(
    network: Network, weights: Weights, work: Path, eps: Eps, suite: str, clean: Sequence[CleanBatch]
) -> tuple[Judged, Outcome]:
    """The int8 artefact where the bundle carries nothing else: all of the suite follows its own graph."""
    from edgeadv.gradients.artefact import open_graph
    from edgeadv_runtime.bundle.bundle import Bundle

    folder = work / f"{network.name}.edgeadv"
    if not folder.exists():
        _export_int8(network, weights, folder)
    assert network.int8 is not None
    graph = open_graph(Bundle.open(folder), network.int8, device=torch.device("cpu"))
    it = Judged(graph, Reference(graph, (3, 32, 32)), [graph, weights.load(network.weights)])
    return it, run_suite(it, suite_on(it, eps, suite, None, to_tensor(clean[0].pixels[:8])), clean)


def _export_int8(network: Network, weights: Weights, folder: Path) -> None:
    from edgeadv.data.sources import load_data
    from edgeadv_export import (
        Int8Plan,
        Origin,
        calibration_images,
        choose_calibration,
        data_frames,
        export_bundle,
        gate_images,
    )

    assert network.int8 is not None
    data = load_data(network.data)
    test = data.test
    calibration = choose_calibration(calibration_images(None, run_data=data), test.preprocess, count=None, seed=0)
    images, order = gate_images(calibration, test.classes, folder=None, run_data=data, limit=None)
    plan = Int8Plan(calibration=calibration, images=images, order=order, max_drop=5.0)
    export_bundle(
        weights.load(network.weights),
        folder,
        classes=test.classes,
        preprocess=test.preprocess,
        frames=data_frames(test),
        origin=Origin(title=network.name, provenance={}),
        variants=[network.int8],
        int8=plan,
    )


def suite_on(it: Judged, eps: Eps, suite: str, queries: int | None, frame: NDArray[np.float32]) -> list[Attack]:
    """All that a suite runs on a network."""
    efforts = dict(SUITES[suite])  # type: ignore[index]
    if queries is not None:
        efforts[SQUARE] = Effort(queries=queries)
    random = changing(it.backend, frame, it.backend.infer(frame)).any()
    made = build_attacks(
        it.gradients, [eps], efforts=efforts, classes=10, gradients_sha256=SHA256, draws=RANDOM_DRAWS if random else 1
    )
    made.append(CumulativeNoise([eps], queries=efforts[NOISE].queries, backend=it.backend))
    if SQUARE in efforts:
        made.append(SquareAttack(it.backend, [eps], efforts[SQUARE].queries))
    return made


def bound(
    it: Judged, x: NDArray[np.float32], y: NDArray[np.int64], eps: Eps, standing: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Images of ``standing`` that also stand images made without the trick, with five restarts and all classes."""
    left = standing.copy()
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    attempts = (
        # an image does not leave when the bare network is wrong: a trick moves the boundary
        lambda m, a, b: pgd(m, a, b, eps=eps.value, steps=50, leave=float("inf")).x,
        lambda m, a, b: pgd(m, a, b, eps=eps.value, steps=100, restarts=2).x,
        lambda m, a, b: pgd(Averaged(m, 8, eps.value / 4), a, b, eps=eps.value, steps=20, start=torch.zeros_like(a)).x,
        lambda m, a, b: apgd_targeted(m, a, b, eps=eps.value, steps=50, targets=6).x,
    )
    for model in it.bare:
        for attempt in attempts:
            rows = np.flatnonzero(left)
            if len(rows):
                made = attempt(model, images[rows], labels[rows]).numpy()
                left[rows] = answers_of(it.backend.infer(made), y[rows]) == y[rows]
    return left


def measure(
    network: Network, weights: Weights, work: Path, *, n: int, suite: str, queries: int | None, own_graph: bool
) -> dict[str, Any]:
    """Figures and verdict of one network.

    Raises:
        EdgeAdvError: it was to be followed by its ONNX graph, and has none.
    """
    start, eps = time.monotonic(), Eps.parse(network.eps)
    images = weights.images(network.data, "test")
    order = balanced_subset(images.labels, n)
    clean = [
        CleanBatch(b.index, b.pixels, b.labels)
        for b in batches(images, images.preprocess, batch_size=BATCH, order=order)
    ]
    if network.int8 is None:
        it = judged(network, weights)
        it = exported(it, network.name) if own_graph else it
        found = run_suite(it, suite_on(it, eps, suite, queries, to_tensor(clean[0].pixels[:8])), clean)
    else:
        run = run_int8_graph if own_graph else run_int8
        it, found = run(network, weights, work, eps, suite, clean)
    seconds = time.monotonic() - start
    labels = np.concatenate([b.labels for b in clean])
    truth = bound(it, np.concatenate([to_tensor(b.pixels) for b in clean]), labels, eps, found.standing)
    gap = _share(found.standing) - _share(truth)
    return {
        "name": network.name,
        "meant": network.meant,
        "data": network.data,
        "eps": network.eps,
        "n": len(labels),
        "clean": _share(found.clean),
        "worst_case": _share(found.standing),
        "truth": _share(truth),
        "gap": gap,
        "is": _is(gap),
        "verdict": found.verdict,
        "findings": _found(found.evidence),
        "bounds": _bounds(found.evidence),
        "attacks": found.attacks,
        "seconds": round(seconds, 1),
    }


def _stands(parts: Sequence[CraftedBatch], key: tuple[str, str]) -> NDArray[np.bool_]:
    return np.concatenate([part.evidence.answers[key] == part.clean.labels for part in parts])


def _share(flags: NDArray[np.bool_]) -> float:
    return float(flags.mean())


def _is(gap: float) -> str:
    return "honest" if gap <= HONEST else "dishonest" if gap > DISHONEST else "between"


def _found(evidence: Sequence[Finding]) -> dict[str, str]:
    """The worst finding of each rule."""
    found: dict[str, str] = {}
    for item in evidence:
        if item.rule == "coverage":
            found["coverage"] = "UNCHECKED"
        elif item.finding and found.get(item.rule) != "MASKED":
            found[item.rule] = item.finding
    return found


def _bounds(evidence: Sequence[Finding]) -> dict[str, float]:
    """The largest lower bound of each rule."""
    bounds: dict[str, float] = {}
    for item in evidence:
        if item.lower_bound is not None:
            bounds[item.rule] = round(max(bounds.get(item.rule, -1.0), item.lower_bound), 4)
    return bounds


def missing(networks: Sequence[Network], rows: Sequence[dict[str, Any]]) -> Iterator[Network]:
    """Networks without a row."""
    done = {row["name"] for row in rows}
    yield from (network for network in networks if network.name not in done)


def main() -> None:
    """Measure what is not in the file yet, and write it after every network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--suite", choices=list(SUITES), default="standard")
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--queries", type=int, help="Of Square, instead of the suite's.")
    parser.add_argument("--own-graph", action="store_true", help="Follow and score the ONNX graph of each network.")
    parser.add_argument("--cifar10", type=Path, help="Class folders of CIFAR-10; its networks are left out without.")
    parser.add_argument("--work", type=Path, default=Path("build/verdict"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weights = Weights(options.work, cifar10=options.cifar10)
    settings = {"suite": options.suite, "n": options.n, "queries": options.queries}
    settings |= {"own_graph": True} if options.own_graph else {}
    rows: list[dict[str, Any]] = []
    if options.out.exists():
        found = read_json(options.out, what="calibration")
        if found["arguments"] != settings:
            raise SystemExit(f"{options.out} was measured with {found['arguments']}: name another --out")
        rows = found["rows"]
    for network in missing(chosen(options.names), rows):
        if not weights.has(network):
            print(f"{network.name}: left out, it needs --cifar10", flush=True)
            continue
        try:
            row = measure(
                network,
                weights,
                options.work,
                n=options.n,
                suite=options.suite,
                queries=options.queries,
                own_graph=options.own_graph,
            )
        except EdgeAdvError as error:
            print(f"{network.name}: left out, {error}", flush=True)
            continue
        rows.append(row)
        print(
            f"{row['name']:20s} {row['meant']:9s} clean {row['clean']:.3f} worst {row['worst_case']:.3f} truth "
            f"{row['truth']:.3f} "
            f"{row['is']:9s} {row['verdict']:9s} {row['findings']} ({row['seconds']:.0f} s)",
            flush=True,
        )
        order = [each.name for each in NETWORKS]
        rows.sort(key=lambda each: order.index(each["name"]))
        write_json(
            options.out,
            {
                "benchmark": "verdict_calibration",
                "arguments": settings,
                "environment": environment(),
                "rows": rows,
            },
        )


if __name__ == "__main__":
    main()
