"""Adversarial patches in place of the suite's attacks: budgets are areas, and the rest of an evaluation is the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeadv_runtime.attacks.patch_controls import CONTROLS, UNIVERSAL, PatchControl
from edgeadv_runtime.attacks.patches import PLACES, patch_shape
from edgeadv_runtime.attacks.stored_patch import StoredPatch
from edgeadv_runtime.backends import Backend
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.variants import base_of, takes_uint8
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.about import NO_GRADIENTS, Skipped
from edgeadv_runtime.records.eps import AREA, Eps

from .attack_plan import AttackPlan
from .gradients import as_pytorch
from .workload import Workload, by_precision, chosen_images, on_tracks, other_variants

if TYPE_CHECKING:
    from edgeadv.backends.pytorch import ModuleBackend
    from edgeadv.data.datasets import ImageSet
    from edgeadv.data.sources import Data
    from edgeadv.gradients.artefact import ArtefactGraph
    from edgeadv_runtime.attacks.base import Attack

STEPS = 50


def patch_workload(
    bundle: Bundle,
    data: ImageSet | Data | str | Path,
    plan: AttackPlan,
    *,
    variants: Sequence[str],
    provider: str = "cpu",
    threads: int | None = None,
) -> Workload:
    """Patches by the gradients of the reference and by those of every other artefact, and controls that nobody trained.

    Args:
        bundle: whose artefacts are attacked.
        data: labelled images.
        plan: areas, shape and place, and which images.
        variants: what is to be scored.
        provider: where gradients are computed: ``"cpu"``, or a GPU for any other.
        threads: CPU threads of the process; None leaves them as they are.

    Raises:
        InputError: an area, a shape or a place is none, or the bundle has no gradients.
        DataError: the images cannot be opened, or have a class that the bundle does not know.
    """
    from edgeadv.attacks.patch import PatchAttack

    from .backends import open_torch

    assert plan.patch is not None
    areas = Eps.parse_list(plan.patch, norm=AREA)
    if plan.patch_place not in PLACES:
        raise InputError("patch_place", f"{plan.patch_place!r} is not one of {', '.join(PLACES)}")
    for area in areas:
        _, height, width = bundle.preprocess.input_shape
        patch_shape(area, height, width, plan.patch_shape)
    images, order, info = chosen_images(bundle, data, plan)
    device = "cpu" if provider == "cpu" else "cuda"
    reference = open_torch(bundle, variant=by_precision(bundle)[0], provider=device, threads=threads)
    how: dict[str, Any] = {"shape": plan.patch_shape, "place": plan.patch_place}
    network, words = as_pytorch(_graph(reference), plan.gradients)
    attacks: list[Attack] = [
        PatchAttack(network, reference.gradients_sha256, areas, STEPS, gradients=words, **how),
        *_controls(areas, reference, **how),
    ]
    if plan.patch_file is not None:
        attacks += _stored(plan.patch_file, bundle, areas, reference, plan.patch_place)
    if plan.group is not None:
        attacks.append(on_tracks(bundle, reference, images, areas, patch=plan.patch_shape))
    skipped = []
    for variant in other_variants(reference, variants):
        try:
            own = open_torch(bundle, variant=_with_floats(bundle, variant), provider=device)
        except InputError as error:
            reason = f"not attacked by its own gradients, its figures are of transferred patches: {error}"
            skipped.append(Skipped(backend=NO_GRADIENTS[0], variant=variant, reason=reason))
            continue
        graph = _graph(own)
        network, words = as_pytorch(graph, plan.gradients)
        suffix = f"@{graph.variant}"
        attacks.append(PatchAttack(network, graph.sha256, areas, STEPS, suffix=suffix, gradients=words, **how))
        if not takes_uint8(own.variant):
            attacks += _controls(areas, own, suffix=suffix, **how)
    return Workload(images, order, info, areas, {}, attacks, reference, skipped)


def _controls(areas: Sequence[Eps], backend: Backend, **how: Any) -> list[PatchControl]:
    """Patches that nobody trained, the worst for ``backend``: noise has as many draws as a patch has iterates."""
    return [PatchControl(kind, areas, backend, draws=STEPS + 1, **how) for kind in CONTROLS]


def _with_floats(bundle: Bundle, variant: str) -> str:
    """The variant that ``variant`` was made from, where it takes 8-bit images and the bundle carries both."""
    base = base_of(variant)
    return base if base in bundle.variants else variant


def _graph(backend: ModuleBackend) -> ArtefactGraph:
    from edgeadv.gradients.artefact import ArtefactGraph

    assert isinstance(backend.model, ArtefactGraph)
    return backend.model


def _stored(file: Path, bundle: Bundle, areas: Sequence[Eps], reference: Backend, place: str) -> list[Attack]:
    """One patch for all pictures, out of a file, at its own area: upright, and as a camera sees it.

    Raises:
        InputError: that is none of ``areas``.
        EdgeAdvError: the file cannot be read, or is for other pictures.
    """
    from edgeadv.attacks.universal_patch import MovedPatch

    stored = StoredPatch.load(file, bundle)
    area = next((each for each in areas if each.value == stored.area.value), None)
    if area is None:
        raise InputError("patch_file", f"{file} is of {stored.area.text}: add that area to `patch`")
    other = "" if stored.weights_sha256 == bundle.weights_sha256 else "; made for other weights"
    how: dict[str, Any] = {"shape": stored.kind, "content": stored.content, "about": other}
    return [PatchControl(UNIVERSAL, (area,), reference, place=place, **how), MovedPatch((area,), **how)]
