"""Where the images of an evaluation come from: crafted as they are asked for, or read from a pack."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..attacks.base import Attack, AttackInfo, CraftedBatch, check_infos, infos
from ..attacks.corrupted import corrupted
from ..attacks.crafting import extend
from ..attacks.pack import PACK_FILE, AttackPack, info_to_json
from ..backends.base import Backend
from ..bundle.batches import CleanBatch, DataInfo
from ..bundle.bundle import Bundle
from ..device.facts import library_versions
from ..errors import InputError
from ..files import sha256_file
from ..records.measurement import WRITER
from .outcomes import Artefact

Read = Callable[[Sequence[int], list[str]], Iterator[CraftedBatch]]


@dataclass(frozen=True)
class Source:
    """Images to score.

    Attributes:
        infos: what the keys of each batch are, and which controls ran.
        data: how results name the images.
        read: the batches of these numbers, ascending; the list gets messages of images that could not be decoded.
        count: how many batches there are, or more.
        origin: JSON value of where they come from.
        names: of all images, by their position, where tracks of them are scored; else empty.
    """

    infos: Sequence[AttackInfo]
    data: DataInfo
    read: Read
    count: int
    origin: Mapping[str, Any] = field(default_factory=dict)
    names: Sequence[str] = ()

    @classmethod
    def of_batches(
        cls,
        batches: Iterable[CraftedBatch],
        infos: Sequence[AttackInfo],
        data: DataInfo,
        unreadable: Sequence[str] = (),
    ) -> Source:
        """Batches that come once, in their order, and fill ``unreadable`` on their way."""

        def read(_: Sequence[int], messages: list[str]) -> Iterator[CraftedBatch]:
            for batch in batches:
                messages += unreadable[len(messages) :]
                yield batch
            messages += unreadable[len(messages) :]

        return cls(infos, data, read, sys.maxsize)

    @classmethod
    def of_pack(cls, pack: AttackPack, attacks: Sequence[Attack] = (), own: Sequence[Attack] = ()) -> Source:
        """Images of a pack.

        Args:
            pack: the pack.
            attacks: what to add on the opened artefacts; they need no gradients. What the pack holds already is not
                made again, for the images would be the same.
            own: what the caller made, added likewise; one that the pack holds by its name is refused.

        Raises:
            InputError: the pack holds one of them with fewer queries, or two attacks do not go together.
        """
        held = {info.key: info for info in pack.infos}
        added = [*(attack for attack in attacks if not _holds(held, attack)), *own]
        listed = [*pack.infos, *infos(added, uint8=pack.uint8)]
        check_infos(listed)

        def read(numbers: Sequence[int], unreadable: list[str]) -> Iterator[CraftedBatch]:
            batches = pack.batches(unreadable, numbers)
            return extend(batches, added, pack.infos, uint8=pack.uint8) if added else batches

        return cls(listed, pack.data, read, pack.shards, {"pack": sha256_file(pack.path / PACK_FILE)})

    @classmethod
    def of_corruptions(
        cls,
        clean: Callable[[Sequence[int], list[str]], Iterator[CleanBatch]],
        infos: Sequence[AttackInfo],
        data: DataInfo,
        count: int,
        origin: Mapping[str, Any],
    ) -> Source:
        """Images under corruptions; ``clean`` reads them as :attr:`read` does, the rest is as here."""
        return cls(infos, data, lambda numbers, unreadable: corrupted(clean(numbers, unreadable), infos), count, origin)

    def binding(self, bundle: Bundle, backends: Sequence[Backend], examples: int) -> dict[str, Any]:
        """Everything that outcomes depend on."""
        return {
            "edgeadv_version": WRITER,
            "versions": library_versions(),
            "bundle_id": bundle.id,
            "data": self.data.binding(),
            "origin": self.origin,
            "attacks": [info_to_json(info) for info in self.infos],
            "examples": examples,
            "tracks": bool(self.names),
            "artefacts": [Artefact.of(backend).binding() for backend in backends],
        }


def _holds(held: Mapping[tuple[str, str], AttackInfo], attack: Attack) -> bool:
    """Whether a pack has this attack at each budget: noise is nobody's, and the reference's weights are the pack's."""
    there = [info for eps in attack.eps if (info := held.get((attack.name, eps.text))) is not None]
    if len(there) < len(attack.eps):
        return False
    asked, fewest = attack.params(attack.eps[0]).queries, min(info.params.queries or 0 for info in there)
    if asked is not None and fewest < asked:
        raise InputError(
            f"the pack holds {attack.name} with {fewest} queries, and {asked} were asked for: ask for {fewest} with "
            "`queries`, or make another pack"
        )
    return True
