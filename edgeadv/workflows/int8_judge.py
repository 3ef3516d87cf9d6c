"""Who judges int8's worst case at export: its gate's attacks, counted as an evaluation counts them, with the
verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from edgeadv_runtime import Attack, Backend, Bundle, DataInfo, Eps
from edgeadv_runtime.attacks.base import CLEAN_KEY, AttackInfo, CraftedBatch, infos
from edgeadv_runtime.attacks.crafting import extend
from edgeadv_runtime.attacks.queries import query_attacks
from edgeadv_runtime.errors import ExportError, InputError
from edgeadv_runtime.evaluation.outcomes import Artefact
from edgeadv_runtime.evaluation.scoring import score_batches
from edgeadv_runtime.evaluation.verdict import verdict_of
from edgeadv_runtime.records.evidence import RowMasking
from edgeadv_runtime.records.suites import PER_INT8, SQUARE, SUITES, SuiteName

from ..attacks import build_attacks
from ..attacks.pack_writer import write_pack
from ..data.datasets import ImageSet
from ..gradients.artefact import ArtefactGraph, open_graph

if TYPE_CHECKING:
    from edgeadv_export.draft import Draft

GATE_SUITE: SuiteName = "standard"
"""What attacks before a worst case is judged: less would be an upper bound."""


@dataclass(frozen=True)
class Attacked:
    """What one artefact makes of the attacks.

    Attributes:
        right: bool (n,): the label came first without an attack and under every one.
        masking: ``{"verdict", "evidence"}`` of its rows, as :func:`~edgeadv_runtime.evaluation.verdict.verdict_of` has
            it.
    """

    right: NDArray[np.bool_]
    masking: RowMasking


class Int8Judge:
    """Attacks fp32 once, keeps the images, and attacks every int8 graph with them and with what its own gradients make.

    An :class:`edgeadv_export.judge.Judge`.

    Args:
        fp32: the float32 artefact, opened.
        draft: whose folder takes the adversarial images.
        images: labelled images, in the order of the model's classes.
        order: int64 (n,), positions in ``images``.
        eps: the budget.
        progress: called with the images done and the images there are.
    """

    suite = GATE_SUITE

    def __init__(
        self,
        fp32: Backend,
        draft: Draft,
        *,
        images: ImageSet,
        order: NDArray[np.int64],
        eps: Eps,
        progress: Callable[[int, int], None],
    ) -> None:
        self._fp32, self._draft, self._eps = fp32, draft, eps
        try:
            graph = open_graph(draft.bundle("fp32"), "fp32", device=torch.device("cpu"))
        except InputError as error:
            raise ExportError(f"int8's worst case cannot be judged: {error}; leave `gate_eps` out") from error
        self._pack = write_pack(
            draft.folder / "gate.pack",
            bundle=draft.bundle(),
            images=images,
            order=order,
            attacks=attacks_for_gate(fp32, graph, eps, classes=len(draft.classes), whole=True),
            reference=fp32,
            data=DataInfo(Path(images.spec).name, images.split, len(order), allow_unreadable=True),
            uint8=eps.fits_8_bits,
            progress=lambda done, total, _: progress(done, total),
        )

    def judge_fp32(self) -> Attacked:
        """What fp32 makes of the attacks on itself."""
        batches, infos = self._pack.batches([]), self._pack.infos
        return score_attacked(batches, infos, bundle=self._draft.bundle("fp32"), backends=[self._fp32])[0]

    def judge_int8(self, int8: Backend, graph: ArtefactGraph | None) -> tuple[Attacked, Attacked]:
        """What fp32 and ``int8`` make of the attacks on both; without a ``graph`` int8 meets fp32's, and
        queries."""
        classes, uint8 = len(self._draft.classes), self._pack.uint8
        own = attacks_for_gate(int8, graph, self._eps, classes=classes, whole=False)
        fp32, ours = score_attacked(
            extend(self._pack.batches([]), own, self._pack.infos, uint8=uint8),
            [*self._pack.infos, *infos(own, uint8=uint8)],
            bundle=self._draft.bundle("fp32", int8.variant),
            backends=[self._fp32, int8],
        )
        return fp32, ours


def attacks_for_gate(
    backend: Backend, graph: ArtefactGraph | None, eps: Eps, *, classes: int, whole: bool
) -> list[Attack]:
    """What attacks ``backend`` in the gate: the suite by its own gradients, and Square on ``backend`` itself.

    Args:
        backend: the artefact, opened.
        graph: its graph in PyTorch; None where it has no gradients there.
        eps: the budget.
        classes: of the model.
        whole: run all of the suite, as on float32; else what is run on every artefact beside that, for int8 meets what
            was made on float32 too.
    """
    efforts, made = SUITES[GATE_SUITE], []
    if graph is not None:
        made = build_attacks(
            graph,
            [eps],
            efforts={name: effort for name, effort in efforts.items() if whole or name in PER_INT8},
            classes=classes,
            gradients_sha256=graph.sha256,
            suffix="" if whole else f"@{graph.variant}",
            gradients=graph.gradients,
            # int8 may have no gradients to be attacked by
            everywhere=whole,
        )
    # noise is nobody's in particular: it was drawn when float32 was attacked
    of_queries = efforts if whole else {SQUARE: efforts[SQUARE]}
    return [*made, *query_attacks(of_queries, [eps], None, [backend])]


def score_attacked(
    batches: Iterable[CraftedBatch], infos: Sequence[AttackInfo], *, bundle: Bundle, backends: Sequence[Backend]
) -> list[Attacked]:
    """Score every artefact on every image, as ``edgeadv evaluate`` does.

    Args:
        batches: crafted images.
        infos: what each of their keys is, and which controls ran.
        bundle: what is scored.
        backends: the artefacts, opened.

    Returns:
        One for each of ``backends``.
    """
    outcomes = list(score_batches(batches, infos, bundle=bundle, backends=backends, unreadable=[], examples=0))
    _, masking = verdict_of(infos, outcomes, [Artefact.of(backend) for backend in backends])
    keys = [CLEAN_KEY, *(info.key for info in infos if not info.control)]
    found = []
    for k, about in enumerate(masking):
        hits = [np.concatenate([outcome.top1[k][key] for outcome in outcomes]) for key in keys]
        found.append(Attacked(np.logical_and.reduce(hits), about))
    return found
