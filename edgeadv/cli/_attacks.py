"""From names on the command line to attacks, and to the images that they attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeadv_runtime.attacks.crafting import changing
from edgeadv_runtime.attacks.noise import NoiseAttack
from edgeadv_runtime.attacks.square_attack import SquareAttack
from edgeadv_runtime.backends import Backend
from edgeadv_runtime.bundle.batches import DataInfo
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.bundle.variants import INT8, base_of, precision_of
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.results import SURROGATE
from edgeadv_runtime.records.suites import (
    NOISE,
    ON_SURROGATE,
    OPTIONAL,
    PGD_MARGIN,
    QUERY_ATTACKS,
    RANDOM_DRAWS,
    SQUARE,
    SUITES,
    TARGETABLE,
    TRANSFER,
    Effort,
)

from ._backends import open_torch
from ._gradients import FLOAT32, check_gradients, network_to_follow
from ._shared import names

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from edgeadv.data.datasets import ImageSet
    from edgeadv_runtime.attacks.base import Attack

STANDARD = "standard"
_SEED = 0
# images that show whether the network answers at random
_PROBED = 8

EpsList = Annotated[
    str,
    typer.Option(
        "--eps",
        help="Comma-separated budgets in pixels of [0, 1], ascending, e.g. 1/255,8/255; whole grey levels where images are rounded to 8 bits.",
    ),
]
Suite = Annotated[str, typer.Option("--suite", help=f"How hard to try: {', '.join(SUITES)}.")]
AttackNames = Annotated[
    str | None, typer.Option("--attack", help="Comma-separated attacks instead of the suite's, at the suite's effort.")
]
Queries = Annotated[int | None, typer.Option("--queries", min=1, help="Most queries that square makes for an image.")]
Limit = Annotated[int | None, typer.Option("--limit", help="At most this many images, as many of each class.")]
TransferFrom = Annotated[
    list[Path] | None,
    typer.Option(
        "--transfer-from",
        help="Another bundle of the same classes, with weights: images made on it are tried too. For a defended network an undefended "
        "one; may be given several times.",
    ),
]
Target = Annotated[str | None, typer.Option("--target", help="Class id that fgsm and fgsm-rescaled move towards.")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes that decode images.")]
Unreadable = Annotated[bool, typer.Option("--allow-unreadable", help="Accept more than 1% of unreadable images.")]
TrainingImagesToo = Annotated[
    bool,
    typer.Option(
        "--allow-training-images",
        help="Accept more than 1% of images that the network was trained on; every row of the results says so.",
    ),
]
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
        skipped: int8 variants that their own gradients do not attack, with the reason, for the results file.
    """

    images: ImageSet
    order: NDArray[np.int64]
    data: DataInfo
    eps: tuple[Eps, ...]
    efforts: Mapping[str, Effort]
    attacks: list[Attack]
    reference: Backend
    skipped: list[dict[str, str]]


def make_plan(
    bundle: Bundle, data: str, eps: str, *, efforts: Mapping[str, Effort], variants: Sequence[str], images: int | None = None,
    target: str | None = None, provider: str = "cpu", threads: int | None = None, allow_unreadable: bool = False,
    allow_training_images: bool = False, download: bool = False, root: Path | None = None, transfer_from: Sequence[Path] = (), gradients: str = FLOAT32,
) -> Plan:  # fmt: skip
    """Open the data, match its labels to the bundle's classes, and make the attacks on its weights, which use ``threads``.

    ``transfer_from`` are bundles on whose weights images are made too; ``gradients`` is the precision of those of the bundle's weights.

    Those of ``variants`` that are int8 are attacked by their own gradients too, where the bundle holds their surrogates: once
    for the artefact with float input and for that with uint8 input, which is the same function of the pixels.
    """
    import numpy as np

    from edgeadv.attacks import build_attacks
    from edgeadv.attacks.pack_writer import clean_batches
    from edgeadv.backends.pytorch import TorchBackend
    from edgeadv.data.datasets import DEFAULT_ROOT, balanced_subset, open_data
    from edgeadv.gradients.graph import load_surrogate

    check_gradients(gradients, provider)
    if target is not None and not set(TARGETABLE) & set(efforts):
        raise InputError(
            f"--target is for {' and '.join(TARGETABLE)}, which do not run: add one with --attack, or leave it out"
        )
    budgets = Eps.parse_list(eps, norm="l2" if set(efforts) <= set(OPTIONAL) else "linf")
    opened = open_data(data, split="test", root=root or DEFAULT_ROOT, download=download).relabel(bundle.classes)
    order = balanced_subset(opened.labels, images)
    reference = open_torch(bundle, provider="cpu" if provider == "cpu" else "cuda", threads=threads)
    assert isinstance(reference, TorchBackend)
    towards = None if target is None else bundle.classes.index(target)
    some = next(iter(clean_batches(opened, bundle, order[:_PROBED], unreadable=[])), None)
    x = np.empty((0, *bundle.preprocess.input_shape), np.float32) if some is None else to_tensor(some.pixels)
    random = bool(len(x)) and changing(reference, x, reference.infer(x)).any()
    network, words = network_to_follow(reference, gradients, x)
    made = build_attacks(
        network,
        budgets,
        efforts=efforts,
        classes=len(bundle.classes),
        gradients_sha256=bundle.weights_sha256,
        target=towards,
        gradients=words,
        draws=RANDOM_DRAWS if random else 1,
    )
    made += transferred(
        bundle, transfer_from, budgets, efforts=efforts, device=next(reference.model.parameters()).device
    )
    on_surrogate = {name: effort for name, effort in efforts.items() if name in ON_SURROGATE}
    skipped: list[dict[str, str]] = []
    attacked: set[str] = set()
    for variant in dict.fromkeys(variants) if on_surrogate else ():
        base = base_of(variant)
        if precision_of(variant) != INT8 or base in attacked:
            continue
        try:
            bundle.surrogate_path(variant)
        except InputError as error:
            reason = f"not attacked by its own gradients, its figures are of transferred attacks: {error}"
            skipped.append({"backend": SURROGATE, "variant": variant, "reason": reason})
            continue
        surrogate = load_surrogate(bundle, variant, device=next(reference.model.parameters()).device)
        attacked.add(base)
        made += build_attacks(
            surrogate, budgets, efforts=on_surrogate, classes=len(bundle.classes), gradients_sha256=surrogate.sha256,
            target=towards, suffix=f"@{base}", gradients=surrogate.gradients,
        )  # fmt: skip
    info = DataInfo(
        name=Path(data).name, split=opened.split, total=len(order), allow_unreadable=allow_unreadable,
        allow_training_images=allow_training_images,
    )  # fmt: skip
    return Plan(opened, order, info, budgets, efforts, made, reference, skipped)


def transferred(
    bundle: Bundle, others: Sequence[Path], eps: Sequence[Eps], *, efforts: Mapping[str, Effort], device: torch.device
) -> list[Attack]:
    """PGD on the margin of other networks, as hard as ``efforts`` has it.

    Args:
        bundle: what is attacked.
        others: bundles with weights.
        eps: budgets.
        efforts: of the attacks that run.
        device: where gradients are computed.

    Raises:
        InputError: a bundle has other classes or other pixels, or is the one that is attacked.
        EdgeAdvError: it cannot be opened, or holds no weights.
    """
    import torch

    from edgeadv.attacks import attack_copy, build_attacks
    from edgeadv.backends.pytorch import load_model

    made: list[Attack] = []
    for path in others:
        other = Bundle.open(path)
        if other.classes.ids != bundle.classes.ids or other.preprocess != bundle.preprocess:
            raise InputError(f"--transfer-from {path} has other classes or another preprocessing than {bundle.path}")
        if other.weights_sha256 == bundle.weights_sha256:
            raise InputError(f"--transfer-from {path} holds the weights that are attacked: name another network")
        sample = torch.rand(2, *bundle.preprocess.input_shape, generator=torch.Generator().manual_seed(0)).to(device)
        made += build_attacks(
            attack_copy(load_model(other, device=device), sample),
            eps,
            classes=len(bundle.classes),
            efforts={TRANSFER: efforts.get(PGD_MARGIN) or SUITES["standard"][PGD_MARGIN]},
            gradients_sha256=other.weights_sha256,
            suffix=f"@{other.weights_sha256[:8]}",
            gradients=f"torch fp32 of {other.manifest['title']}",
        )
    return made


def query_attacks(
    efforts: Mapping[str, Effort], eps: Sequence[Eps], reference: Backend | None, backends: Sequence[Backend], *,
    state: Path | None = None,
) -> list[Attack]:  # fmt: skip
    """The attacks that need no gradients: noise once, and Square on every artefact; on the reference where there is none else.

    Args:
        efforts: the attacks that run; those with gradients are not looked at.
        eps: budgets.
        reference: the model whose gradients other attacks use; None where there is none.
        backends: the artefacts to be scored, opened.
        state: where Square keeps what it has of a batch that is under way, so that an interruption costs seconds.
    """
    scored = {backend.identity: backend for backend in backends}
    if not scored and reference is not None:
        scored[reference.identity] = reference
    made: list[Attack] = []
    if NOISE in efforts:
        # several draws need somebody who tells which is the strongest
        teller = reference or next(iter(scored.values()))
        made.append(NoiseAttack(eps, queries=efforts[NOISE].queries, seed=_SEED, backend=teller))
    if SQUARE in efforts:
        queries = efforts[SQUARE].queries
        made += [SquareAttack(backend, eps, queries, seed=_SEED, state=state) for backend in scored.values()]
    return made


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
