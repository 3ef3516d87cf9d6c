"""Batches under corruptions: made when they are asked for, as a device has not the memory for all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..bundle.batches import CleanBatch
from ..bundle.preprocess import to_tensor
from ..corruptions.kinds import KINDS, corrupt, kinds_of
from ..errors import InputError
from ..records.eps import SEVERITY, Eps
from ..records.rows import AttackParams
from .base import AttackInfo, CraftedBatch, Evidence, Key


def corruption_infos(kinds: str, severities: str, *, side: int, seed: int = 0) -> list[AttackInfo]:
    """One entry for each kind and severity.

    Args:
        kinds: names and sets, comma-separated; see :data:`~edgeadv_runtime.corruptions.kinds.SETS`.
        severities: whole numbers from 1 to 5, comma-separated, ascending.
        side: pixels of the shorter side of what the network takes: small pictures have constants of their own.
        seed: of what is drawn.

    Raises:
        InputError: a kind is unknown, or a severity is none.
    """
    if seed < 0:
        raise InputError("seed", f"must not be negative, and is {seed}")
    found = []
    for kind in kinds_of(kinds):
        for severity in Eps.parse_list(severities, norm=SEVERITY):
            values, whose = KINDS[kind].constants(side, int(severity.value))
            shown = ", ".join(f"{value:g}" if isinstance(value, int | float) else "..." for value in values)
            params = AttackParams(norm=SEVERITY, seed=seed, uint8=True, constants=f"{whose}: {shown}")
            found.append(AttackInfo(kind, severity, params, None, None))
    return found


def corrupted(batches: Iterable[CleanBatch], infos: Sequence[AttackInfo]) -> Iterator[CraftedBatch]:
    """Each batch with its corrupted versions; nothing else is known of it, so there is no evidence for a verdict."""
    wanted = {info.key: (info.name, int(info.eps.value), info.params.seed or 0) for info in infos}
    for batch in batches:
        flags = np.zeros(len(batch.labels), np.bool_)
        yield CraftedBatch(batch, _Corrupted(to_tensor(batch.pixels), wanted), Evidence({}, {}, {}, flags, flags))


class _Corrupted(Mapping[Key, NDArray[np.float32]]):
    """Corrupted versions of ``x``, float32 (n, 3, H, W), by key; each is made anew when it is asked for."""

    def __init__(self, x: NDArray[np.float32], wanted: Mapping[Key, tuple[str, int, int]]) -> None:
        self._x, self._wanted = x, wanted

    def __getitem__(self, key: Key) -> NDArray[np.float32]:
        kind, severity, seed = self._wanted[key]
        made = [corrupt(image, kind, severity, seed=seed) for image in self._x]
        return np.stack(made) if made else self._x

    def __iter__(self) -> Iterator[Key]:
        return iter(self._wanted)

    def __len__(self) -> int:
        return len(self._wanted)
