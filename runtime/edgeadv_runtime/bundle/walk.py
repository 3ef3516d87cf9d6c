"""One walk over the pictures of a folder, for everything that takes one, and one line of what it found and left out.

Pictures are taken at any depth, as torchvision's ``ImageFolder`` takes them. Hidden files and folders are not: a Mac
puts a ``._x.jpg`` beside each ``x.jpg`` of a disk that is not its own.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image

from ..errors import DataError
from .pictures import ORIENTATION, formats, picture

HIDDEN = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information"})
"""What file managers leave behind, in lower case, beside names that begin with a dot."""
LOOKED_AT = 64
"""Pictures, spread over all of them, whose headers are read when a folder is opened."""
BESIDE, UNREAD = "pictures beside the class folders", "folders beside train and test"
_ONE = {
    BESIDE: "picture beside the class folders",
    UNREAD: "folder beside train and test",
    "links in a circle": "link in a circle",
    "links to nothing": "link to nothing",
}
_log = logging.getLogger(__name__)


def pictures(folder: Path) -> list[Path]:
    """The pictures below ``folder``, sorted; what was left out is logged in one line.

    Raises:
        DataError: as :meth:`Walk.pictures`.
    """
    walk = Walk(folder)
    found = walk.pictures()
    walk.tell(found)
    return found


def shown(name: str | Path) -> str:
    """A name of the file system as text that can be printed: what is not UTF-8, and control characters, escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Walk:
    """A walk over one folder, which counts what it leaves out.

    Attributes:
        folder: where it begins.
        left_out: how many of what, in words.
        deeper: pictures in folders below those that were asked for.
        sides: the shorter sides of the pictures that :meth:`tell` looked at, in pixels.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.left_out: Counter[str] = Counter()
        self.deeper = 0
        self.sides: list[int] = []
        self._endings = {ending for ending, kind in Image.registered_extensions().items() if kind in formats()}
        _check_name(folder)

    def folders(self) -> list[Path]:
        """The folders in :attr:`folder`, sorted; what lies beside them is left out.

        Raises:
            DataError: the folder cannot be read, or a name is not UTF-8.
        """
        found = []
        for path, kind in self._entries(self.folder):
            if kind == "folder":
                found.append(path)
            else:
                self.left_out[BESIDE if self._is_picture(path) else "other files"] += 1
        return sorted(found)

    def pictures(self, folder: Path | None = None) -> list[Path]:
        """The pictures of ``folder``, by default of the whole, at any depth, sorted: the files whose endings are of
        formats that Pillow reads; it writes some that it cannot read.

        Raises:
            DataError: a folder cannot be read, or a name is not UTF-8.
        """
        top = self.folder if folder is None else folder
        # each with the folders that it lies in, by which a link in a circle is known
        found, waiting = [], [(top, frozenset[tuple[int, int]]())]
        while waiting:
            here, above = waiting.pop()
            place = _place(here)
            if place in above:
                self.left_out["links in a circle"] += 1
                continue
            for path, kind in self._entries(here):
                if kind == "folder":
                    waiting.append((path, above | {place}))
                elif not self._is_picture(path):
                    self.left_out["other files"] += 1
                elif kind != "file":
                    self.left_out[kind] += 1
                else:
                    self.deeper += here != top
                    found.append(path)
        return sorted(found)

    def tell(self, found: Sequence[Path]) -> None:
        """Look at some of the pictures ``found``, and log one line if anything was left out or is not as it seems."""
        looked, turned, clear = 0, 0, 0
        for i in sorted({k * (len(found) - 1) // (LOOKED_AT - 1) for k in range(LOOKED_AT)} if found else ()):
            try:
                with picture(found[i]) as image:
                    self.sides.append(min(image.size))
                    turned += image.getexif().get(ORIENTATION, 1) != 1
                    clear += "transparency" in image.info or image.mode in ("RGBA", "LA", "PA")
            except Exception:
                continue  # what cannot be read is said where it is read whole
            looked += 1
        parts = []
        if left := [_counted(n, what) for what, n in sorted(self.left_out.items()) if n]:
            parts.append("left out: " + ", ".join(left))
        notes = [f"{turned} turned by EXIF (as `preprocess` says, by default not)"] if turned else []
        notes += [f"{clear} with transparency (which is dropped)"] if clear else []
        if notes:
            parts.append(f"of {looked} looked at " + ", ".join(notes))
        if parts or self.deeper:
            deeper = f", {self.deeper} of them in deeper folders" if self.deeper else ""
            name = shown(self.folder)
            short = name if len(name) <= 80 else "..." + name[-77:]
            _log.info("; ".join([f"{short}: {_counted(len(found), 'pictures')}{deeper}", *parts])[:300])

    def _is_picture(self, path: Path) -> bool:
        return path.suffix.lower() in self._endings

    def _entries(self, folder: Path) -> Iterator[tuple[Path, str]]:
        """What is in ``folder`` and is not hidden: ``"folder"``, ``"file"``, or what to call many that are neither."""
        try:
            with os.scandir(folder) as opened:
                entries = list(opened)
        except OSError as error:
            raise _unreadable(folder, error) from error
        for entry in entries:
            kind = _kind(entry)
            if entry.name.startswith(".") or entry.name.lower() in HIDDEN:
                self.left_out["hidden folders" if kind == "folder" else "hidden files"] += 1
                continue
            path = Path(entry.path)
            if kind == "folder" or self._is_picture(path):
                _check_name(path)
            yield path, kind


def _kind(entry: os.DirEntry[str]) -> str:
    with suppress(OSError):  # of a link to itself
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    return "links to nothing" if entry.is_symlink() else "special files"


def _place(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        raise _unreadable(folder, error) from error
    return status.st_dev, status.st_ino


def _unreadable(folder: Path, error: OSError) -> DataError:
    why = error.strerror or error
    return DataError(f"{shown(folder)} holds no images that can be read here ({why}): give a folder of real ones")


def _check_name(path: str | Path) -> None:
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"the name {shown(path)} is not UTF-8: rename it, convmv does so for many") from error


def _counted(n: int, what: str) -> str:
    """``n`` of ``what``, a plural."""
    return f"{n} {_ONE.get(what, what.removesuffix('s')) if n == 1 else what}"
