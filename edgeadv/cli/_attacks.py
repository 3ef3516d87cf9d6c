"""From names on the command line to attacks, and to the images that they attack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeadv_runtime.backends import Backend
from edgeadv_runtime.bundle import Bundle
from edgeadv_runtime.eps import Eps
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.evaluate import DataInfo
from edgeadv_runtime.suites import NOISE, OPTIONAL, PGD_MARGIN, QUERY_ATTACKS, SQUARE, SUITES, Effort

from ._backends import open_torch
from ._shared import names

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgeadv.data import ImageSet
    from edgeadv.models import PixelModel
    from edgeadv_runtime.attack import Attack

STANDARD = "standard"
_SEED = 0

EpsList = Annotated[
    str,
    typer.Option("--eps", help="Comma-separated budgets in pixels of [0, 1], ascending, e.g. 1/255,8/255 or 0.01."),
]
Suite = Annotated[str, typer.Option("--suite", help=f"How hard to try: {', '.join(SUITES)}.")]
AttackNames = Annotated[
    str | None, typer.Option("--attack", help="Comma-separated attacks instead of the suite's, at the suite's effort.")
]
Queries = Annotated[int | None, typer.Option("--queries", min=1, help="Most queries that square makes for an image.")]
Limit = Annotated[int | None, typer.Option("--limit", help="At most this many images, as many of each class.")]
Target = Annotated[str | None, typer.Option("--target", help="Class id that fgsm and fgsm-rescaled move towards.")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes that decode images.")]
Unreadable = Annotated[bool, typer.Option("--allow-unreadable", help="Accept more than 1% of unreadable images.")]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision download the data.")]
Root = Annotated[Path | None, typer.Option("--data-root", help="Where torchvision keeps its data.")]


def efforts_of(suite: str, attack: str | None, queries: int | None) -> dict[str, Effort]:
    """Which attacks run, and how hard they try.

    An attack that is named and that the suite does not have tries as hard as in ``standard``, and one that no suite has as
    hard as the suite's PGD on the margin.

    Raises:
        InputError: an unknown suite or attack, or ``queries`` without Square.
    """
    known: dict[str, Mapping[str, Effort]] = dict(SUITES)  # type: ignore[arg-type]
    if suite not in known:
        raise InputError(f"--suite {suite!r} is not one of {', '.join(known)}")
    efforts = dict(known[suite])
    if attack is not None:
        chosen, all_names = names(attack, option="--attack"), [*dict.fromkeys(n for s in known.values() for n in s)]
        unknown = [name for name in chosen if name not in (*all_names, *OPTIONAL)]
        if unknown:
            raise InputError(f"unknown attack {', '.join(unknown)}: choose from {', '.join((*all_names, *OPTIONAL))}")
        efforts = {name: efforts.get(name) or known[STANDARD].get(name) or efforts[PGD_MARGIN] for name in chosen}
    if queries is not None:
        if SQUARE not in efforts:
            raise InputError(f"--queries is for {SQUARE}, which does not run: add it with --attack, or leave it out")
        efforts[SQUARE] = replace(efforts[SQUARE], queries=queries)
    return efforts


@dataclass(frozen=True)
class GradientSource:
    """A model whose gradients attacks follow.

    Attributes:
        model: pixels to logits, on the device to attack on.
        sha256: hash of the artefact that the gradients belong to.
        gradients: where they come from, for the result row.
        suffix: what follows the names of its attacks: nothing for the bundle's weights themselves.
    """

    model: PixelModel
    sha256: str
    gradients: str
    suffix: str = ""


@dataclass(frozen=True)
class Plan:
    """What is attacked, with what.

    Attributes:
        images: relabelled to the bundle's classes.
        order: positions in ``images``.
        data: how results name them.
        eps: the budgets, ascending.
        efforts: the attacks by name, those without gradients included.
        attacks: those with gradients.
        reference: the model whose gradients are used.
    """

    images: ImageSet
    order: NDArray[np.int64]
    data: DataInfo
    eps: tuple[Eps, ...]
    efforts: Mapping[str, Effort]
    attacks: list[Attack]
    reference: Backend


def make_plan(
    bundle: Bundle, data: str, eps: str, *, efforts: Mapping[str, Effort], images: int | None = None,
    target: str | None = None, provider: str = "cpu", allow_unreadable: bool = False, download: bool = False,
    root: Path | None = None,
) -> Plan:  # fmt: skip
    """Open the data, match its labels to the bundle's classes, and make the attacks on its weights."""
    from edgeadv.attacks import build_attacks
    from edgeadv.attacks.suite import GRADIENTS
    from edgeadv.data import DEFAULT_ROOT, balanced_subset, open_data
    from edgeadv.torch_backend import TorchBackend

    budgets = Eps.parse_list(eps)
    opened = open_data(data, split="test", root=root or DEFAULT_ROOT, download=download).relabel(bundle.classes)
    order = balanced_subset(opened.labels, images)
    reference = open_torch(bundle, provider="cpu" if provider == "cpu" else "cuda")
    assert isinstance(reference, TorchBackend)
    sources = [GradientSource(reference.model, bundle.weights_sha256, GRADIENTS)]
    towards = None if target is None else bundle.classes.index(target)
    made = [
        attack
        for source in sources
        for attack in build_attacks(
            source.model, budgets, efforts=efforts, classes=len(bundle.classes), gradients_sha256=source.sha256, target=towards,
            suffix=source.suffix, gradients=source.gradients,
        )
    ]  # fmt: skip
    info = DataInfo(name=Path(data).name, split=opened.split, total=len(order), allow_unreadable=allow_unreadable)
    return Plan(opened, order, info, budgets, efforts, made, reference)


def query_attacks(
    efforts: Mapping[str, Effort], eps: Sequence[Eps], reference: Backend | None, backends: Iterable[Backend]
) -> list[Attack]:
    """The attacks that need no gradients: noise once, and Square on the reference and on every other artefact.

    Args:
        efforts: the attacks that run; those with gradients are not looked at.
        eps: budgets.
        reference: the model whose gradients other attacks use; None where there is none.
        backends: the artefacts to be scored, opened.
    """
    made: list[Attack] = []
    if NOISE in efforts and (noise := _optional("noise")) is not None:
        made.append(noise.NoiseAttack(eps, draws=efforts[NOISE].queries, seed=_SEED, name=NOISE))
    if SQUARE in efforts and (square := _optional("square")) is not None:
        asked = {} if reference is None else {reference.identity: (SQUARE, reference)}
        for backend in backends:
            asked.setdefault(backend.identity, (f"{SQUARE}@{backend.name}-{backend.variant}", backend))
        queries = efforts[SQUARE].queries
        made += [
            square.SquareAttack(backend, eps, queries=queries, seed=_SEED, name=name)
            for name, backend in asked.values()
        ]
    return made


def _optional(module: str) -> Any:
    # the two modules come with another change; without them a suite is what is left of it
    try:
        return import_module(f"edgeadv_runtime.{module}")
    except ModuleNotFoundError:
        return None


def without_gradients(efforts: Mapping[str, Effort]) -> Mapping[str, Effort]:
    """Make sure that a pack can be extended by these attacks.

    Raises:
        InputError: one of them needs gradients.
    """
    wrong = [name for name in efforts if name not in QUERY_ATTACKS]
    if wrong:
        raise InputError(
            f"{', '.join(wrong)} needs gradients, which were settled with the pack: only {', '.join(QUERY_ATTACKS)} can be added"
        )
    return efforts
