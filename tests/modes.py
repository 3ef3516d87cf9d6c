"""Whether files and folders have the rights that the umask leaves."""

from __future__ import annotations

import stat
from collections.abc import Collection
from pathlib import Path


def modes(folder: Path, umask: int, *, but: Collection[Path] = ()) -> list[str]:
    """What below ``folder``, ``but`` for some, has other rights, each with those that it has."""
    found = []
    for path in sorted(set(folder.rglob("*")) - set(but)):
        due = (0o777 if path.is_dir() else 0o666) & ~umask
        if (got := stat.S_IMODE(path.lstat().st_mode)) != due:
            found.append(f"{path.relative_to(folder)}: {got:o}, not {due:o}")
    return found
