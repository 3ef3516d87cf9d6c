"""Long work whose parts are kept until all are there: what it begins with, and how it gets its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import InputError, StorageError
from .files import canonical_json, ensure_writable, hidden_name, read_json, remove_abandoned, sha256_bytes, write_json
from .storage import rename_new, storage_errors, sync, sync_all

PLAN_FILE = "plan.json"
"""Where a job of many parts keeps everything that they depend on."""


def begin_partial(
    folder: Path, plan_file: str, plan: Mapping[str, Any], *, what: str, resume: bool, finished: str | None = None
) -> None:
    """Begin long work in ``folder``, or go on with it: only with the same plan.

    Args:
        folder: where the parts go until all are there.
        plan_file: name of the file that keeps the plan.
        plan: JSON value of everything that the parts depend on.
        what: the work, for messages.
        resume: go on with what is there, if anything is.
        finished: name of a JSON file that is written when all parts are there, and holds the :func:`plan_sha256`.

    Raises:
        StorageError: there is unfinished work and ``resume`` is false, or the folder cannot be written.
        InputError: it was begun with another plan, or with one that is lost.
    """
    if folder.exists() and not resume:
        raise StorageError(f"{folder} holds an unfinished {what}: continue it with `resume`, or delete it")
    ensure_writable(folder)
    remove_abandoned(folder)
    file, wanted = folder / plan_file, json.loads(canonical_json(plan))
    if not file.exists() and finished is not None and (folder / finished).exists():
        # it was about to get its name
        if read_json(folder / finished, what=what).get("plan_sha256") != plan_sha256(plan):
            raise InputError(f"{folder} was made with other settings: continue with the same ones, or delete it")
    elif not file.exists() and folder.exists() and any(not part.name.startswith(".") for part in folder.iterdir()):
        raise InputError(
            f"{folder} holds parts of an {what} without its {plan_file}, so of which is not known: delete it"
        )
    if file.exists() and (begun := read_json(file, what=f"plan of an {what}")) != wanted:
        other = [key for key in {**wanted, **begun} if wanted.get(key) != begun.get(key)]
        raise InputError(
            f"{folder} was started with other settings ({', '.join(other)}): continue with the same ones, or delete it"
        )
    write_json(file, wanted)


def plan_sha256(plan: Mapping[str, Any]) -> str:
    """Hash of everything that the parts of long work depend on."""
    return sha256_bytes(canonical_json(plan))


def remove_folder(folder: Path) -> None:
    """Delete a folder at once for whoever looks: one that is killed meanwhile leaves no half of it under its name."""
    with suppress(OSError):
        gone = hidden_name(folder)
        folder.rename(gone)
        shutil.rmtree(gone)


def publish(partial: Path, out: Path, plan_file: str | None = None) -> None:
    """Give the finished work in ``partial`` its name, without its plan and without what dead processes left in it.

    Raises:
        StorageError: ``out`` is there by now, or the folder cannot be renamed.
    """
    with storage_errors(out):
        remove_abandoned(partial)
        if plan_file is not None:
            (partial / plan_file).unlink(missing_ok=True)
        sync_all(partial)
        try:
            rename_new(partial, out)
        except FileExistsError as error:
            raise StorageError(
                f"{out} came meanwhile, and is left as it is: move it away, and go on with `resume`, which takes what "
                f"is in {partial}"
            ) from error
        sync(out.parent)
