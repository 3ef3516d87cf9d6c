"""Everything edgeadv raises on purpose.

::

    EdgeAdvError
    ├── InputError              an argument, an option or a frame is not usable
    │   └── DataError           a data set is missing, empty, mislabelled or unreadable
    ├── BundleError             a bundle, pack or result file is damaged or not ours
    │   ├── IntegrityError      its bytes are not the ones its manifest was written for
    │   └── SchemaError         its schema is of another kind or version
    ├── BackendError            a backend cannot be opened or did not deliver
    │   ├── ProviderError       the device asked for is not the device one would get
    │   └── EngineError         a TensorRT plan cannot be built, does not load, or is not what was asked for
    ├── SourceError             a camera, stream or video does not open, or is lost
    ├── MissingDependencyError  an extra is not installed
    ├── ExportError             an exported artefact is not the model it was made from
    ├── TrainingError           training cannot go on
    ├── GateError               results do not hold what a release asks for
    └── StorageError            a file or folder cannot be written

The command line shows each of these as one line and exits with status 2. Anything else is a bug and keeps its
traceback.
"""

from __future__ import annotations

import importlib
import re
import unicodedata
from types import ModuleType


class EdgeAdvError(Exception):
    """Root of the tree: the message says what is wrong and what to do about it."""


_FIELD = re.compile(r"`([a-z][a-z0-9_]*)`")


class InputError(EdgeAdvError):
    """An argument, an option or a frame is not usable.

    ``InputError("eps", "must be above 0")`` speaks of one argument, ``InputError("the frame is empty")`` of none. Other
    arguments stand in the text in backticks, so that the command line can write them as its options.

    Attributes:
        field: the argument that the message begins with, or None.
    """

    def __init__(self, field_or_text: str, problem: str | None = None) -> None:
        text = field_or_text if problem is None else f"`{field_or_text}` {problem}"
        super().__init__(text)
        found = _FIELD.match(text)
        self.field: str | None = None if found is None else found[1]


class DataError(InputError):
    """A data set is missing, empty, mislabelled or unreadable."""


class BundleError(EdgeAdvError):
    """A bundle, pack or result file is damaged or not ours."""


class IntegrityError(BundleError):
    """The bytes of a file are not the ones its manifest was written for."""


class SchemaError(BundleError):
    """A file's schema is of another kind or version."""


class BackendError(EdgeAdvError):
    """A backend cannot be opened or did not deliver."""


class ProviderError(BackendError):
    """The device asked for is not the device one would get."""


class EngineError(BackendError):
    """A TensorRT plan cannot be built, does not load, or is not what was asked for."""


class SourceError(EdgeAdvError):
    """A camera, stream or video does not open, or is lost."""


class MissingDependencyError(EdgeAdvError):
    """An extra is not installed, or a library that the caller asked for and no extra brings (``extra`` is None)."""

    def __init__(self, module: str, extra: str | None) -> None:
        self.module = module
        self.extra = extra
        wanted = module if extra is None else f'"edgeadv[{extra}]"'
        super().__init__(f"{module} is not installed: pip install {wanted}")

    def __reduce__(self) -> tuple[type[MissingDependencyError], tuple[str, str | None]]:
        return type(self), (self.module, self.extra)


class ExportError(EdgeAdvError):
    """An exported artefact is not the model it was made from."""


class TrainingError(EdgeAdvError):
    """Training cannot go on."""


class GateError(EdgeAdvError):
    """Results do not hold what a release asks for: at least one rule of the gate failed."""


class StorageError(EdgeAdvError):
    """A file or folder cannot be written."""


LONGEST_MESSAGE = 300
"""Letters of a message: a terminal shows it whole, and it is read."""
# overrides of the direction of writing, with which a name can be shown as another one
_TURNS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_NOT_SHOWN = ("Cc", "Cs", "Zl", "Zp")
# a path from the root, of three folders and more, and its last two names
_LONG_PATH = re.compile(r"(?<![\w/.])(?:/[^\s/:;,'\"()]+){2,}(/[^\s/:;,'\"()]+/[^\s/:;,'\"()]+)")


def plain(text: str) -> str:
    """``text`` as a terminal or a page may show it: what would move the cursor, change colours, end a line, turn the
    direction of writing, or is half of a surrogate pair, is written as an escape, ``\\x1b``."""
    if text.isprintable():  # most are, and printable letters are none of these
        return text
    return "".join(
        letter.encode("unicode_escape").decode()
        if letter in _TURNS or unicodedata.category(letter) in _NOT_SHOWN
        else letter
        for letter in text
    )


def one_line(text: str, *, most: int = LONGEST_MESSAGE) -> str:
    """``text`` in one plain line of at most ``most`` letters: of longer text, paths keep their last two names, and if
    that is not enough, the middle is left out, for what to do stands at the end."""
    line = plain(" ".join(text.split()))
    if len(line) > most:
        line = _LONG_PATH.sub(r"...\1", line)
    if len(line) <= most:
        return line
    end = (most - 5) * 2 // 5
    return f"{line[: most - 5 - end]} ... {line[-end:]}"


def require(module: str, *, extra: str | None) -> ModuleType:
    """Import ``module``, or raise :class:`MissingDependencyError` naming the extra that brings it, if one does.

    A module that is installed but fails to import for a reason of its own keeps its own error.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise MissingDependencyError(module.partition(".")[0], extra) from error
