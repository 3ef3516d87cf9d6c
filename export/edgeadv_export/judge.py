"""Who judges int8 under attack. It is handed in: an export makes no attacks of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeadv.data.datasets import ImageSet
from edgeadv.gradients.artefact import ArtefactGraph
from edgeadv_runtime.backends import Backend
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.evidence import RowMasking

from .draft import Draft


class Attacked(Protocol):
    """What one artefact makes of the attacks."""

    @property
    def right(self) -> NDArray[np.bool_]:
        """Bool (n,): the label came first without an attack and under every one."""

    @property
    def masking(self) -> RowMasking:
        """Verdict and evidence of its rows, as a results file has them."""


class Judge(Protocol):
    """Attacks the artefacts of one network, all on the same images."""

    @property
    def suite(self) -> str:
        """What attacks them."""

    def judge_fp32(self) -> Attacked:
        """What fp32 makes of the attacks on itself."""

    def judge_int8(self, int8: Backend, graph: ArtefactGraph | None) -> tuple[Attacked, Attacked]:
        """What fp32 and ``int8`` make of the attacks on both; ``graph`` is int8 as PyTorch can follow it, if it
        can."""


class MakeJudge(Protocol):
    """Makes a judge of one network: what takes long is crafted here, once."""

    def __call__(
        self,
        fp32: Backend,
        draft: Draft,
        *,
        images: ImageSet,
        order: NDArray[np.int64],
        eps: Eps,
        progress: Callable[[int, int], None],
    ) -> Judge:
        """A judge.

        Args:
            fp32: the float32 artefact, opened.
            draft: whose folder takes what must be kept meanwhile.
            images: labelled images, in the order of the model's classes.
            order: int64 (n,), positions in ``images``.
            eps: the budget.
            progress: called with the images done and the images there are.
        """
