"""What is attacked: images in order, attacks on networks' gradients, and whose gradients they follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeadv_runtime.attacks.crafting import changing
from edgeadv_runtime.bundle.batches import DataInfo, Progress
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.bundle.variants import INT8, base_of, precision_of
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.about import SURROGATE, Skipped
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.suites import (
    ON_SURROGATE,
    OPTIONAL,
    PGD_MARGIN,
    RANDOM_DRAWS,
    SUITES,
    TARGETABLE,
    TRANSFER,
    Effort,
)

from .attack_plan import FLOAT16, FLOAT32, AttackPlan
from .backends import open_torch
from .inputs import Budgets, budgets, labelled_images, open_bundle

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from edgeadv.backends.pytorch import TorchBackend
    from edgeadv.data.datasets import ImageSet
    from edgeadv.data.sources import Data
    from edgeadv_runtime.attacks.base import Attack

# images that show whether the network answers at random
_PROBED = 8


@dataclass(frozen=True)
class Workload:
    """What is attacked, with what.

    Attributes:
        images: relabelled to the bundle's classes.
        order: positions in ``images``.
        data: how results name them.
        eps: the budgets, ascending.
        efforts: the attacks by name, those without gradients included.
        attacks: those with gradients, and those that were given as objects.
        reference: the model whose gradients are used.
        skipped: int8 variants that their own gradients do not attack, with the reason, for the results file.
    """

    images: ImageSet
    order: NDArray[np.int64]
    data: DataInfo
    eps: tuple[Eps, ...]
    efforts: Mapping[str, Effort]
    attacks: list[Attack]
    reference: TorchBackend
    skipped: list[Skipped]

    def check_training_images(self, bundle: Bundle, *, workers: int, progress: Progress | None) -> None:
        """Look, before the hours that attacks take, whether ``bundle`` was trained on too many of the images.

        Raises:
            InputError: they are, and that was not allowed.
        """
        from edgeadv.attacks.pack_writer import check_training_images

        check_training_images(self.images, bundle, self.order, data=self.data, workers=workers, progress=progress)


def make_workload(
    bundle: Bundle,
    data: ImageSet | Data | str | Path,
    eps: Budgets | None,
    *,
    efforts: Mapping[str, Effort],
    variants: Sequence[str],
    plan: AttackPlan | None = None,
    own: Sequence[Attack] = (),
    provider: str = "cpu",
    threads: int | None = None,
) -> Workload:
    """Open the data, match its labels to the bundle's classes, and make the attacks on its weights.

    Those of ``variants`` that are int8 are attacked by their own gradients too, where the bundle holds their
    surrogates: once for the artefact with float input and for that with uint8 input, which is the same function of the
    pixels.

    Args:
        bundle: whose weights are attacked.
        data: labelled images.
        eps: the budgets; None takes those of ``own``, if no attack is named.
        efforts: the attacks that are named.
        variants: what is to be scored.
        plan: everything else about the attacks.
        own: attacks that are objects.
        provider: where gradients are computed: ``"cpu"``, or a GPU for any other.
        threads: CPU threads of the process; None leaves them as they are.

    Raises:
        InputError: an argument does not fit the others, the bundle or this machine.
        DataError: the images cannot be opened, or have a class that the bundle does not know.
    """
    import numpy as np

    from edgeadv.attacks.pack_writer import clean_batches
    from edgeadv.data.datasets import balanced_subset

    plan = plan or AttackPlan()
    _check_gradients(plan.gradients, provider)
    if plan.target is not None and not set(TARGETABLE) & set(efforts):
        raise InputError(
            f"`target` is for {' and '.join(TARGETABLE)}, which do not run: add one with `attacks`, or leave it out"
        )
    if eps is None and plan.transfer_from:
        raise InputError("`transfer_from` needs `eps`: budgets of the attacks that are made there")
    if eps is not None and not efforts and not plan.transfer_from:
        raise InputError("`eps` is not used: each attack that is an object has budgets of its own; leave it out")
    if eps is None and efforts:
        raise InputError("`data` needs `eps`, e.g. `eps` 1/255,8/255: there is no default budget")
    wanted = () if eps is None else budgets(eps, norm="l2" if efforts and set(efforts) <= set(OPTIONAL) else "linf")
    images = labelled_images(data, bundle, root=plan.data_root, download=plan.download)
    order = balanced_subset(images.labels, plan.limit)
    info = DataInfo(
        name=Path(images.spec).name,
        split=images.split,
        total=len(order),
        allow_unreadable=plan.allow_unreadable,
        allow_training_images=plan.allow_training_images,
    )
    reference = open_torch(bundle, provider="cpu" if provider == "cpu" else "cuda", threads=threads)
    sample = next(iter(clean_batches(images, bundle, order[:_PROBED], unreadable=[])), None)
    x = np.empty((0, *bundle.preprocess.input_shape), np.float32) if sample is None else to_tensor(sample.pixels)
    made, skipped = _gradient_attacks(bundle, reference, x, wanted, efforts=efforts, variants=variants, plan=plan)
    return Workload(images, order, info, wanted, efforts, [*made, *own], reference, skipped)


def _gradient_attacks(
    bundle: Bundle,
    reference: TorchBackend,
    x: NDArray[np.float32],
    eps: tuple[Eps, ...],
    *,
    efforts: Mapping[str, Effort],
    variants: Sequence[str],
    plan: AttackPlan,
) -> tuple[list[Attack], list[Skipped]]:
    """Attacks on the weights, on other bundles' and on surrogates; and int8 variants without. ``x``: some images."""
    from edgeadv.attacks import build_attacks
    from edgeadv.attacks.linearity import LinearityControl
    from edgeadv.attacks.suite import GRADIENTS
    from edgeadv.gradients.graph import load_surrogate

    if not eps:
        return [], []
    classes, device = len(bundle.classes), next(reference.model.parameters()).device
    towards = None if plan.target is None else bundle.classes.index(plan.target)
    random = bool(len(x)) and changing(reference, x, reference.infer(x)).any()
    network, words = _network_to_follow(reference, plan.gradients, x)
    made = build_attacks(
        network,
        eps,
        efforts=efforts,
        classes=classes,
        gradients_sha256=bundle.weights_sha256,
        target=towards,
        gradients=words,
        draws=RANDOM_DRAWS if random else 1,
    )
    # rounding would bend the margin that this control measures
    made = [
        replace(attack, model=reference.attack_model, gradients=GRADIENTS)
        if isinstance(attack, LinearityControl)
        else attack
        for attack in made
    ]
    made += transferred(bundle, plan.transfer_from, eps, efforts=efforts, device=device)
    on_surrogate = {name: effort for name, effort in efforts.items() if name in ON_SURROGATE}
    skipped: list[Skipped] = []
    attacked: set[str] = set()
    for variant in dict.fromkeys(variants) if on_surrogate else ():
        base = base_of(variant)
        if precision_of(variant) != INT8 or base in attacked:
            continue
        try:
            bundle.surrogate_path(variant)
        except InputError as error:
            reason = f"not attacked by its own gradients, its figures are of transferred attacks: {error}"
            skipped.append(Skipped(backend=SURROGATE, variant=variant, reason=reason))
            continue
        surrogate = load_surrogate(bundle, variant, device=device)
        attacked.add(base)
        made += build_attacks(
            surrogate,
            eps,
            efforts=on_surrogate,
            classes=classes,
            gradients_sha256=surrogate.sha256,
            target=towards,
            suffix=f"@{base}",
            gradients=surrogate.gradients,
        )
    return made, skipped


def transferred(
    bundle: Bundle,
    others: Sequence[Bundle | str | Path],
    eps: Sequence[Eps],
    *,
    efforts: Mapping[str, Effort],
    device: torch.device,
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
    for given in others:
        other = open_bundle(given)
        if other.classes.ids != bundle.classes.ids or other.preprocess != bundle.preprocess:
            raise InputError(
                f"`transfer_from` {other.path} has other classes or another preprocessing than {bundle.path}"
            )
        if other.weights_sha256 == bundle.weights_sha256:
            raise InputError(f"`transfer_from` {other.path} holds the weights that are attacked: name another network")
        sample = torch.rand(2, *bundle.preprocess.input_shape, generator=torch.Generator().manual_seed(0)).to(device)
        made += build_attacks(
            attack_copy(load_model(other, device=device), sample),
            eps,
            classes=len(bundle.classes),
            efforts={TRANSFER: efforts.get(PGD_MARGIN) or SUITES["standard"][PGD_MARGIN]},
            gradients_sha256=other.weights_sha256,
            suffix=f"@{other.weights_sha256[:8]}",
            gradients=f"torch fp32 of {other.manifest.title}",
        )
    return made


def _check_gradients(precision: str, provider: str) -> None:
    """Make sure that gradients can be had in ``precision`` where attacks run."""
    if precision not in (FLOAT32, FLOAT16):
        raise InputError("gradients", f"{precision!r} is not one of {FLOAT32}, {FLOAT16}")
    if precision == FLOAT16 and provider == "cpu":
        raise InputError(f"`gradients` {FLOAT16} needs a GPU: add `provider` cuda, or leave it out")


def _network_to_follow(reference: TorchBackend, precision: str, x: NDArray[np.float32]) -> tuple[nn.Module, str]:
    """The network whose gradients attacks follow, and where these come from, in words for result rows."""
    import torch

    from edgeadv.attacks.batching import device_of
    from edgeadv.attacks.float16 import HALF, HalfCopy
    from edgeadv.attacks.suite import GRADIENTS
    from edgeadv.models.builder import PixelModel

    exact = reference.attack_model
    if precision == FLOAT32:
        return exact, GRADIENTS
    assert isinstance(exact, PixelModel)
    try:
        return HalfCopy(exact, torch.from_numpy(x).to(device_of(exact))), HALF
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"this network does not run in {FLOAT16} ({reason}): leave `gradients` {FLOAT16} out"
        ) from error
