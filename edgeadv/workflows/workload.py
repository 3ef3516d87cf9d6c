"""What is attacked: images in order, attacks on networks' gradients, and whose gradients they follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeadv_runtime import Backend, OnnxRuntimeBackend
from edgeadv_runtime.attacks.pack import SHARD_SIZE
from edgeadv_runtime.bundle.batches import CleanBatch, DataInfo, Progress, readable
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.bundle.variants import FLOAT_VARIANTS, INT8, base_of, precision_of
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.evaluation.tracks import check_tracks, tracks_of
from edgeadv_runtime.records.about import NO_GRADIENTS, Skipped
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.suites import (
    OPTIONAL,
    PER_ARTEFACT,
    PER_INT8,
    PGD_MARGIN,
    QUERY_ATTACKS,
    SUITES,
    TARGETABLE,
    TRANSFER,
    Effort,
)

from .attack_plan import AttackPlan
from .backends import open_torch
from .gradients import as_pytorch, check_gradients, gradients_of, network_to_follow
from .inputs import Budgets, budgets, labelled_images, open_bundle

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from edgeadv.backends.pytorch import ModuleBackend
    from edgeadv.data.datasets import ImageSet
    from edgeadv.data.sources import Data
    from edgeadv_runtime.attacks.base import Attack

# images whose gradients say how far float16 can be scaled
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
        reference: the artefact whose gradients all attacks follow, or that is asked where there are none.
        skipped: variants that their own gradients do not attack, with the reason, for the results file.
    """

    images: ImageSet
    order: NDArray[np.int64]
    data: DataInfo
    eps: tuple[Eps, ...]
    efforts: Mapping[str, Effort]
    attacks: list[Attack]
    reference: Backend
    skipped: list[Skipped]

    def check_training_images(self, bundle: Bundle, *, workers: int, progress: Progress | None) -> None:
        """Look, before the hours that attacks take, whether ``bundle`` was trained on too many of the images.

        Raises:
            InputError: they are, and that was not allowed.
        """
        from edgeadv.attacks.pack_writer import check_training_images

        check_training_images(self.images, bundle, self.order, data=self.data, workers=workers, progress=progress)


def chosen_images(
    bundle: Bundle, data: ImageSet | Data | str | Path, plan: AttackPlan
) -> tuple[ImageSet, NDArray[np.int64], DataInfo]:
    """Labelled images of the bundle's classes, which of them, int64 (n,), and how results name them.

    Raises:
        DataError: they cannot be opened, or have a class that the bundle does not know.
    """
    from edgeadv.data.datasets import balanced_subset
    from edgeadv.data.lists import named_by

    images = labelled_images(data, bundle, root=plan.data_root, download=plan.download)
    if plan.images_list is not None:
        images = images.at(named_by(plan.images_list, images.names, field="images_list"))
    if plan.group is not None:
        check_tracks(images.names, images.labels)
    order = balanced_subset(images.labels, plan.limit)
    info = DataInfo(
        name=Path(images.spec).name,
        split=images.split,
        total=len(order),
        allow_unreadable=plan.allow_unreadable,
        allow_training_images=plan.allow_training_images,
    )
    return images, order, info


def shards(
    bundle: Bundle, images: ImageSet, order: NDArray[np.int64], data: DataInfo, *, workers: int
) -> tuple[Callable[[Sequence[int], list[str]], Iterator[CleanBatch]], int]:
    """What reads the batches of these numbers, as :class:`~edgeadv_runtime.evaluation.source.Source` asks for them, and
    how many there are."""
    import numpy as np

    from edgeadv.attacks.pack_writer import clean_batches

    def read(numbers: Sequence[int], unreadable: list[str]) -> Iterator[CleanBatch]:
        parts = [order[number * SHARD_SIZE : (number + 1) * SHARD_SIZE] for number in numbers]
        chosen = np.concatenate(parts) if parts else order[:0]
        return readable(clean_batches(images, bundle, chosen, unreadable=unreadable, workers=workers), unreadable, data)

    return read, -(-len(order) // SHARD_SIZE)


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
    """Open the data, match its labels to the bundle's classes, and make the attacks on its artefacts' graphs.

    One artefact is the reference: the most precise that the bundle carries. All attacks follow its gradients; some of
    them, :data:`PER_ARTEFACT` and :data:`PER_INT8`, follow those of each of ``variants`` too: once for the artefact
    with float input and for that with uint8 input, which is the same function of the pixels.

    Args:
        bundle: whose artefacts are attacked.
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
    from edgeadv.backends.pytorch import ModuleBackend

    plan = plan or AttackPlan()
    check_gradients(plan.gradients, provider)
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
    images, order, info = chosen_images(bundle, data, plan)
    reference, skipped = _reference(bundle, efforts, provider="cpu" if provider == "cpu" else "cuda", threads=threads)

    def sample() -> NDArray[np.float32]:
        batch = next(iter(clean_batches(images, bundle, order[:_PROBED], unreadable=[])), None)
        return np.empty((0, *bundle.preprocess.input_shape), np.float32) if batch is None else to_tensor(batch.pixels)

    makers = _Makers(bundle, reference, sample, wanted, efforts, plan, len(order))
    skipped = [entry for entry in skipped if entry.variant in variants]
    theirs: list[Attack] = []
    transfers = False
    # without gradients of the reference there are none that could be transferred
    for variant in other_variants(reference, variants) if wanted and isinstance(reference, ModuleBackend) else ():
        try:
            theirs += makers.on_artefact(variant)
        except InputError as error:
            reason = f"not attacked by its own gradients, its figures are of transferred attacks: {error}"
            skipped.append(Skipped(backend=NO_GRADIENTS[0], variant=variant, reason=reason))
            transfers = True
    made = makers.on_reference(everywhere=transfers) if wanted else []
    if plan.group is not None and wanted and isinstance(reference, ModuleBackend):
        made.append(on_tracks(bundle, reference, images, wanted))
    made += transferred(
        bundle, plan.transfer_from, wanted, efforts=efforts, device=makers.device, precision=plan.gradients
    )
    return Workload(images, order, info, wanted, efforts, [*made, *theirs, *own], reference, skipped)


def on_tracks(
    bundle: Bundle, reference: ModuleBackend, images: ImageSet, eps: Sequence[Eps], *, patch: str | None = None
) -> Attack:
    """One perturbation for each track of ``images``, or one patch of the shape ``patch``, by the gradients of the
    reference."""
    import numpy as np

    from edgeadv.attacks.pack_writer import clean_batches
    from edgeadv.attacks.track import track_attack

    positions = np.arange(len(images))

    def tracks() -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        for frames in tracks_of(positions, images.names):
            # of a track that cannot be read nothing is scored
            found = [batch for batch in clean_batches(images, bundle, frames, unreadable=[]) if len(batch.labels)]
            if found:
                pixels = np.concatenate([to_tensor(batch.pixels) for batch in found])
                yield pixels, np.concatenate([batch.labels for batch in found])

    return track_attack(
        reference.model,
        tracks(),
        eps,
        gradients_sha256=reference.gradients_sha256,
        gradients=reference.gradients or "",
        patch=patch,
    )


def _reference(
    bundle: Bundle, efforts: Mapping[str, Effort], *, provider: str, threads: int | None
) -> tuple[Backend, list[Skipped]]:
    """The artefact whose gradients all attacks follow; where none has any, one that can be asked, and why.

    Raises:
        InputError: there are no gradients, and no attack of ``efforts`` does without.
    """
    skipped: list[Skipped] = []
    for variant in by_precision(bundle):
        try:
            return open_torch(bundle, variant=variant, provider=provider, threads=threads), []
        except InputError as error:
            if not set(QUERY_ATTACKS) & set(efforts):
                raise InputError(f"{error}; attack it by queries: `attacks` square,noise") from error
            reason = f"not attacked by gradients, its figures are of queries alone: {error}"
            skipped.append(Skipped(backend=NO_GRADIENTS[0], variant=variant, reason=reason))
    return OnnxRuntimeBackend(bundle, variant=bundle.variants[0], threads=threads), skipped


def by_precision(bundle: Bundle) -> list[str]:
    """The variants that ``bundle`` carries, the most precise one first."""
    return sorted(bundle.variants, key=lambda variant: FLOAT_VARIANTS.index(base_of(variant)))


def other_variants(reference: Backend, variants: Sequence[str]) -> list[str]:
    """Of ``variants`` those that are another function of the pixels than ``reference``, each once."""
    by_base = {base_of(variant): variant for variant in reversed(variants)}
    return [variant for base, variant in by_base.items() if base != base_of(reference.variant)][::-1]


@dataclass(frozen=True)
class _Makers:
    """Attacks on the graphs of a bundle's artefacts; ``sample`` reads some of the ``count`` images."""

    bundle: Bundle
    reference: Backend
    sample: Callable[[], NDArray[np.float32]]
    eps: tuple[Eps, ...]
    efforts: Mapping[str, Effort]
    plan: AttackPlan
    count: int

    @property
    def device(self) -> torch.device:
        """Where gradients are computed."""
        from edgeadv.backends.pytorch import ModuleBackend
        from edgeadv.models.device import default_device

        reference = self.reference
        return reference.torch_device if isinstance(reference, ModuleBackend) else default_device()

    @property
    def _towards(self) -> int | None:
        """The class that attacks which can move towards."""
        return None if self.plan.target is None else self.bundle.classes.index(self.plan.target)

    def on_reference(self, *, everywhere: bool) -> list[Attack]:
        """All attacks that follow the gradients of the reference; ``everywhere`` as for
        :func:`~edgeadv.attacks.build_attacks`."""
        from edgeadv.attacks import build_attacks
        from edgeadv.attacks.linearity import LinearityControl
        from edgeadv.backends.pytorch import ModuleBackend
        from edgeadv.gradients.artefact import ArtefactGraph

        reference = self.reference
        if not isinstance(reference, ModuleBackend):
            return []
        assert isinstance(reference.model, ArtefactGraph)
        due = self.count * gradients_of(self.efforts, len(self.eps), len(self.bundle.classes))
        network, words = network_to_follow(reference.model, self.plan.gradients, self.sample, gradients=due)
        made = build_attacks(
            network,
            self.eps,
            efforts=self.efforts,
            classes=len(self.bundle.classes),
            gradients_sha256=reference.gradients_sha256,
            target=self._towards,
            gradients=words,
            everywhere=everywhere,
        )
        # rounding would bend the margin that this control measures
        return [
            replace(attack, model=reference.model, gradients=reference.gradients)
            if isinstance(attack, LinearityControl)
            else attack
            for attack in made
        ]

    def on_artefact(self, variant: str) -> list[Attack]:
        """Some of the attacks, following the gradients of ``variant``.

        Raises:
            InputError: it has none here.
        """
        from edgeadv.attacks import build_attacks
        from edgeadv.gradients.artefact import open_graph

        wanted = PER_INT8 if precision_of(variant) == INT8 else PER_ARTEFACT
        efforts = {name: effort for name, effort in self.efforts.items() if name in wanted}
        if not efforts:
            return []
        graph = open_graph(self.bundle, variant, device=self.device)
        network, words = as_pytorch(graph, self.plan.gradients)
        return build_attacks(
            network,
            self.eps,
            efforts=efforts,
            classes=len(self.bundle.classes),
            gradients_sha256=graph.sha256,
            target=self._towards,
            suffix=f"@{graph.variant}",
            gradients=words,
        )


def transferred(
    bundle: Bundle,
    others: Sequence[Bundle | str | Path],
    eps: Sequence[Eps],
    *,
    efforts: Mapping[str, Effort],
    device: torch.device,
    precision: str | None = None,
) -> list[Attack]:
    """PGD on the margin of other networks, as hard as ``efforts`` has it.

    Args:
        bundle: what is attacked.
        others: bundles of other networks; of each the most precise artefact is followed.
        eps: budgets.
        efforts: of the attacks that run.
        device: where gradients are computed.
        precision: what gradients were asked to be in; float16 is the reference's alone.

    Raises:
        InputError: a bundle has other classes or other pixels, holds the artefact that is attacked, or has no
            gradients.
        EdgeAdvError: it cannot be opened.
    """
    from edgeadv.attacks import build_attacks
    from edgeadv.gradients.artefact import open_graph

    made: list[Attack] = []
    ours = {entry.sha256 for entry in bundle.manifest.variants.values()}
    for given in others:
        other = open_bundle(given)
        if other.classes.ids != bundle.classes.ids or other.preprocess != bundle.preprocess:
            raise InputError(
                f"`transfer_from` {other.path} has other classes or another preprocessing than {bundle.path}"
            )
        graph = open_graph(other, by_precision(other)[0], device=device)
        if graph.sha256 in ours or other.weights_sha256 == bundle.weights_sha256:
            raise InputError(f"`transfer_from` {other.path} holds the network that is attacked: name another one")
        network, words = as_pytorch(graph, precision)
        made += build_attacks(
            network,
            eps,
            classes=len(bundle.classes),
            efforts={TRANSFER: efforts.get(PGD_MARGIN) or SUITES["standard"][PGD_MARGIN]},
            gradients_sha256=graph.sha256,
            suffix=f"@{graph.sha256[:8]}",
            gradients=f"{words} of {other.manifest.title}",
        )
    return made
