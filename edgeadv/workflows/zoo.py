"""Networks that the project trained itself, by name: their weights are fetched and checked against hashes that this
package brings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from platformdirs import user_cache_path

from edgeadv_runtime import InputError
from edgeadv_runtime.decoding import Count, Sha256, read
from edgeadv_runtime.errors import DataError, IntegrityError
from edgeadv_runtime.files import atomic_folder, sha256_bytes, sha256_file, write_bytes

from .extras import need

if TYPE_CHECKING:
    from ..training.runs import Run

LIST = Path(__file__).with_name("zoo.json")
_CHECKOUT = Path(__file__).parents[2] / "examples" / "models"
_TIMEOUT_S = 60


class ZooFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a network.

    Attributes:
        sha256: its hash.
        bytes: its size.
    """

    sha256: Sha256
    bytes: Annotated[int, msgspec.Meta(ge=1, le=1 << 30)]


class ZooNet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A network of the zoo.

    Attributes:
        title: in a few words.
        parameters: how many it has.
        files: those of its run, by name.
    """

    title: str
    parameters: Count
    files: dict[str, ZooFile]


def zoo_nets() -> dict[str, ZooNet]:
    """What the zoo holds, by name.

    ::

        print(list(zoo_nets()))
    """
    return read(LIST, dict[str, ZooNet], what="list of the zoo", mend="install edgeadv again")


def zoo(name: str, *, zoo_from: str | Path | None = None) -> Run:
    """A network that the project trained, as the finished run that it is: :func:`~edgeadv.workflows.exporting.export`
    takes it, and so does ``distill`` as a teacher.

    ::

        bundle = export(zoo("signs-robust"), "signs.edgeadv", data="gtsrb/")

    Args:
        name: one of :func:`zoo_nets`.
        zoo_from: where its files are: a folder that holds ``NAME/run.json`` and the rest, such as ``examples/models``
            of a checkout, or the address of one, ``https://...``. None takes the checkout that this package is part of,
            or what was fetched before.

    Returns:
        The run. From an address it is fetched once, into the user's cache.

    Raises:
        InputError: there is no such network, or nothing says where its files are.
        IntegrityError: a file is not the one that this edgeadv knows.
        DataError: an address does not answer, or has no such file.
        BundleError: a file cannot be read.
    """
    need("train")
    from ..training.runs import Run

    nets = zoo_nets()
    if name not in nets:
        raise InputError("zoo", f"has no {name!r}: choose from {', '.join(nets) or 'none, it is empty'}")
    folder = _folder(name, nets[name], None if zoo_from is None else str(zoo_from))
    if (changed := _changed(folder, nets[name])) is not None:
        raise IntegrityError(
            f"{folder / changed} is not the zoo's {name} of this edgeadv: copy it again, or delete its folder and "
            "give the address of one (`zoo_from`)"
        )
    return Run.open(folder)


def _changed(folder: Path, net: ZooNet) -> str | None:
    """The first file of ``net`` that is not in ``folder`` as it should be."""
    for file, known in net.files.items():
        if not (folder / file).is_file() or sha256_file(folder / file) != known.sha256:
            return file
    return None


def _folder(name: str, net: ZooNet, source: str | None) -> Path:
    """Where the files of ``net`` are, fetched if they are elsewhere."""
    cached = _cache() / net.files["run.json"].sha256[:16] / name
    if source is None:
        found = next((place for place in (_CHECKOUT / name, cached) if (place / "run.json").is_file()), None)
        if found is None:
            raise InputError(
                "zoo_from",
                f"is needed, for {name} is not on this machine: give examples/models of the project, or its address",
            )
        return found
    if "://" not in source:
        if not (Path(source) / name / "run.json").is_file():
            raise InputError("zoo_from", f"{source} holds no {name}/run.json: give a folder like examples/models")
        return Path(source) / name
    if not source.startswith(("https://", "http://")):
        raise InputError("zoo_from", f"{source} is neither a folder nor an address of http or https")
    if _changed(cached, net) is not None:
        with atomic_folder(cached, replaceable=lambda _: None) as new:
            for file, data in _fetched(f"{source.rstrip('/')}/{name}", net):
                write_bytes(new / file, data)
    return cached


def _cache() -> Path:
    try:
        return user_cache_path("edgeadv") / "zoo"
    except RuntimeError as error:
        raise InputError("zoo_from", "must be a folder: this user has no home folder for a cache") from error


def _fetched(base: str, net: ZooNet) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file of ``net``, checked before it is written."""
    # 30 ms that only who fetches pays
    import http.client
    import urllib.error
    import urllib.request

    for file, known in net.files.items():
        address = f"{base}/{file}"
        try:
            # the scheme is checked above
            with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer:
                data = answer.read(known.bytes + 1)
        except (OSError, ValueError, http.client.HTTPException) as error:
            why = error.reason if isinstance(error, urllib.error.URLError) else error
            raise DataError(f"{address} cannot be fetched ({why}): check the address in `zoo_from`") from error
        if len(data) != known.bytes or sha256_bytes(data) != known.sha256:
            raise IntegrityError(f"{address} is not the file of this edgeadv: check the address in `zoo_from`")
        yield file, data
