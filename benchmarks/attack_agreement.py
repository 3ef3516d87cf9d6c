"""Images that stand our attacks and those of torchattacks: same models, images and budget; the standard suite against
AutoAttack."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchattacks
from numpy.typing import NDArray
from torch import Tensor, nn

import edgeadv.attacks
from edgeadv.attacks.adapters import autoattack
from edgeadv.backends.pytorch import ModuleBackend
from edgeadv.data.datasets import ImageSet, balanced_subset, batches, open_data
from edgeadv.gradients.artefact import open_graph
from edgeadv.models.device import default_device
from edgeadv.models.modes import evaluation_mode
from edgeadv.training.runs import WEIGHTS_FILE, Run
from edgeadv_runtime.attacks.crafting import craft
from edgeadv_runtime.attacks.perturbation import check_crafted
from edgeadv_runtime.attacks.queries import query_attacks
from edgeadv_runtime.bundle.batches import CleanBatch
from edgeadv_runtime.bundle.bundle import Bundle, Classes
from edgeadv_runtime.bundle.manifest import MANIFEST
from edgeadv_runtime.bundle.preprocess import Preprocess, to_tensor
from edgeadv_runtime.device.facts import environment
from edgeadv_runtime.files import sha256_file, write_json
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.statistics import wilson_interval
from edgeadv_runtime.records.suites import SUITES

# attacks and reference are of one network, whichever
_ANY_SHA256 = "0" * 64

Craft = Callable[[nn.Module, Tensor, Tensor], list[Tensor]]
"""A model, its images and their labels to adversarial images, one tensor per attack; an image stands if it stands them
all."""


@dataclass(frozen=True)
class Pair:
    """What is compared.

    Attributes:
        name: in the table.
        ours: edgeadv's attack.
        theirs: the peer's.
        how: settings of both, in words.
    """

    name: str
    ours: Craft
    theirs: Craft
    how: str


@dataclass(frozen=True)
class Subject:
    """A model to attack.

    Attributes:
        title: of the bundle or run.
        weights_sha256: its weights.
        model: on its device, in evaluation mode.
        classes: in logit order.
        preprocess: what its images need.
    """

    title: str
    weights_sha256: str
    model: nn.Module
    classes: Classes
    preprocess: Preprocess

    @classmethod
    def open(cls, path: Path, device: torch.device) -> Subject:
        """A bundle, or the folder of a run."""
        if (path / MANIFEST).exists():
            bundle = Bundle.open(path)
            model = open_graph(bundle, "fp32", device=device)
            return cls(bundle.manifest.title, bundle.weights_sha256, model, bundle.classes, bundle.preprocess)
        run = Run.open(path)
        model = run.load_model().requires_grad_(False).eval().to(device)
        return cls(run.title, sha256_file(run.path / WEIGHTS_FILE), model, run.classes, run.preprocess)


def our_attacks(eps: Eps, options: argparse.Namespace) -> dict[str, Craft]:
    """Where this script depends on what edgeadv's attacks are called and return; nothing else here does."""
    attacks: Any = edgeadv.attacks
    value = eps.value

    def square(model: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> list[Tensor]:
        def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
            with torch.no_grad():
                logits: NDArray[np.float32] = model(torch.from_numpy(images).to(x.device)).float().cpu().numpy()
            return logits

        found = importlib.import_module("edgeadv_runtime.attacks.square_attack").square(
            predict, x.cpu().numpy(), y.cpu().numpy(), eps=value, queries=options.queries, seed=seed
        )
        return [torch.from_numpy(found.x).to(x.device)]

    def standard(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
        classes = classes_of(model, x)
        reference = ModuleBackend(model, sha256=_ANY_SHA256, input_shape=tuple(x.shape[1:]), n_classes=classes)
        efforts = SUITES["standard"]
        built = attacks.build_attacks(model, [eps], efforts=efforts, classes=classes, gradients_sha256=_ANY_SHA256)
        pixels = (255 * x.permute(0, 2, 3, 1)).round().to(torch.uint8).cpu().numpy()
        batch = CleanBatch(np.arange(len(x)), pixels, y.cpu().numpy())
        # as an evaluation runs them: some on all images, the others on those that stand
        (made,) = craft([batch], [*built, *query_attacks(efforts, [eps], reference, [])], reference, uint8=False)
        return [torch.from_numpy(one).to(x.device) for one in made.adversarial.values()]

    return {
        "fgsm": lambda model, x, y: [attacks.fgsm(model, x, y, eps=value)[0].x],
        "pgd-ce": lambda model, x, y: [
            attacks.pgd(model, x, y, eps=value, steps=20, step_size=value / 8, loss=attacks.cross_entropy, start=None).x
        ],
        "apgd-ce": lambda model, x, y: [
            attacks.apgd(model, x, y, eps=value, steps=options.steps, loss=attacks.cross_entropy, restarts=1, seed=0).x
        ],
        "apgd-dlr": lambda model, x, y: [
            attacks.apgd(model, x, y, eps=value, steps=options.steps, loss=attacks.dlr, restarts=1, seed=0).x
        ],
        **{f"square-{seed}": partial(square, seed=seed) for seed in range(options.square_seeds)},
        "standard": standard,
    }


def pairs(eps: Eps, options: argparse.Namespace) -> list[Pair]:
    """Every comparison; each attack of torchattacks seeds itself with 0 or draws nothing."""
    ours, value = our_attacks(eps, options), eps.value

    def theirs(build: Callable[[nn.Module], Any]) -> Craft:
        return lambda model, x, y: [build(model)(x, y).detach()]

    def cross_check(steps: int | None) -> Craft:
        def craft(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
            classes = min(options.classes, classes_of(model, x))
            attack = autoattack(model, eps=eps, gradients_sha256=None, n_classes=classes, steps=steps)
            return [torch.from_numpy(attack.craft(x.cpu().numpy(), y.cpu().numpy())[0].x).to(x.device)]

        return craft

    steps, queries = options.steps, options.queries
    return [
        Pair("fgsm", ours["fgsm"], theirs(lambda m: torchattacks.FGSM(m, eps=value)), "one step"),
        Pair(
            "pgd-ce",
            ours["pgd-ce"],
            theirs(lambda m: torchattacks.PGD(m, eps=value, alpha=value / 8, steps=20, random_start=False)),
            "20 steps of eps / 8, no random start",
        ),
        Pair(
            "apgd-ce",
            ours["apgd-ce"],
            theirs(lambda m: torchattacks.APGD(m, eps=value, steps=steps, loss="ce", n_restarts=1)),
            f"{steps} steps, 1 restart",
        ),
        Pair(
            "apgd-dlr",
            ours["apgd-dlr"],
            theirs(lambda m: torchattacks.APGD(m, eps=value, steps=steps, loss="dlr", n_restarts=1)),
            f"{steps} steps, 1 restart",
        ),
        *(
            # theirs draws one square for a whole batch, so that its figure swings by points from seed to seed
            Pair(
                name := f"square-{seed}",
                ours[name],
                theirs(partial(torchattacks.Square, eps=value, n_queries=queries, n_restarts=1, seed=seed)),
                f"{queries} queries",
            )
            for seed in range(options.square_seeds)
        ),
        Pair("worst-case", ours["standard"], cross_check(None), "standard suite; AutoAttack of torchattacks as it is"),
        Pair("worst-case-100", ours["standard"], cross_check(100), "the same with 100 steps for APGD and FAB"),
    ]


def classes_of(model: nn.Module, x: Tensor) -> int:
    """How many logits a model gives."""
    with torch.no_grad():
        return int(model(x[:1]).shape[1])


@dataclass(frozen=True)
class Images:
    """Batches on the device: images, labels, and which the model gets right."""

    parts: Sequence[tuple[Tensor, Tensor, Tensor]]

    @classmethod
    def read(cls, subject: Subject, images: ImageSet, *, limit: int, batch: int, device: torch.device) -> Images:
        """The first ``limit`` of the balanced order, labelled by the model's classes."""
        labelled = images.relabel(subject.classes)
        order = balanced_subset(labelled.labels, limit)
        parts = []
        for taken in batches(labelled, subject.preprocess, batch_size=batch, order=order):
            x, y = torch.from_numpy(to_tensor(taken.pixels)).to(device), torch.from_numpy(taken.labels).to(device)
            parts.append((x, y, right(subject.model, x, y)))
        return cls(parts)

    def standing(self, subject: Subject, craft: Craft, eps: Eps, name: str) -> NDArray[np.bool_]:
        """Images right before and after: bool (n,)."""
        flags = []
        for x, y, clean in self.parts:
            with evaluation_mode(subject.model):
                made = craft(subject.model, x, y)
            left = clean
            for one in made:
                check_crafted(one.cpu().numpy(), x.cpu().numpy(), name, eps)
                left = left & right(subject.model, one, y)
            flags.append(left.cpu().numpy())
        return np.concatenate(flags)


def right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Images that the model classifies right."""
    with torch.no_grad():
        answers: Tensor = model(x).argmax(dim=1) == y
    return answers


def compared(
    pair: Pair, subject: Subject, images: Images, eps: Eps, known: dict[Craft, NDArray[np.bool_]]
) -> dict[str, Any]:
    """One row: counts, and their difference image by image. ``known`` keeps what ours left, which two pairs may
    share."""
    started = time.monotonic()
    if pair.ours not in known:
        known[pair.ours] = images.standing(subject, pair.ours, eps, f"{pair.name} (ours)")
    ours = known[pair.ours]
    theirs = images.standing(subject, pair.theirs, eps, f"{pair.name} (theirs)")
    n, mine, other = len(ours), int(ours.sum()), int(theirs.sum())
    points = 100 * (mine - other) / n
    row = {
        "model": subject.title,
        "weights_sha256": subject.weights_sha256,
        "eps": eps.text,
        "attack": pair.name,
        "how": pair.how,
        "n": n,
        "ours": mine,
        "theirs": other,
        "ours_ci95": wilson_interval(mine, n),
        "theirs_ci95": wilson_interval(other, n),
        "only_ours_broke": int((theirs & ~ours).sum()),
        "only_theirs_broke": int((ours & ~theirs).sum()),
        "points": points,
        "at_most_1_point_above": points <= 1,
    }
    print(
        f"{subject.title[:32]:32s} {eps.text:>6s} {pair.name:14s} ours {mine / n:6.1%}  theirs {other / n:6.1%}  "
        f"{points:+5.1f} points  {'ok' if points <= 1 else 'WEAKER'}  ({time.monotonic() - started:.0f} s)",
        flush=True,
    )
    return row


def main() -> None:
    """Compare, print as it goes, and write the JSON after every row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, help="bundles or folders of runs")
    parser.add_argument("--data", required=True, help="a name or a folder, as in edgeadv evaluate")
    parser.add_argument("--n", type=int, default=500, help="images, as many of each class")
    parser.add_argument("--eps", default="8/255", help="comma-separated budgets")
    parser.add_argument("--attacks", help="comma-separated pairs; all of them where none are named")
    parser.add_argument("--steps", type=int, default=50, help="of APGD")
    parser.add_argument("--queries", type=int, default=1000, help="of Square")
    parser.add_argument("--square-seeds", type=int, default=1, help="how often Square is compared, with seeds from 0")
    parser.add_argument("--classes", type=int, default=10, help="of AutoAttack: all but one of these are targets")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = default_device()
    budgets = Eps.parse_list(options.eps)
    chosen = None if options.attacks is None else options.attacks.split(",")
    unknown = set(chosen or ()) - {pair.name for pair in pairs(budgets[0], options)}
    if unknown:
        parser.error(f"no such pair: {', '.join(sorted(unknown))}")
    data = open_data(options.data, split="test")
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "timm", "torchattacks")}
    arguments = {key: value for key, value in vars(options).items() if key not in ("out", "models", "data")}
    rows: list[dict[str, Any]] = []
    for path in options.models:
        subject = Subject.open(path, device)
        images = Images.read(subject, data, limit=options.n, batch=options.batch, device=device)
        for eps in budgets:
            known: dict[Craft, NDArray[np.bool_]] = {}
            for pair in pairs(eps, options):
                if chosen is None or pair.name in chosen:
                    rows.append(compared(pair, subject, images, eps, known))
                    write_json(
                        options.out,
                        {
                            "benchmark": "attack_agreement",
                            "data": Path(options.data).name,
                            "arguments": arguments,
                            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
                            "environment": environment(),
                            "versions": versions,
                            "rows": rows,
                        },
                    )


if __name__ == "__main__":
    main()
