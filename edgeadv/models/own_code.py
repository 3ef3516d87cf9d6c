"""Code of the user's own, found by the name of a module or a file, imported, and so run. Loads no PyTorch."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeadv_runtime.errors import InputError

_DOTTED = r"[A-Za-z_]\w*(\.\w+)*"
NAME = re.compile(rf"{_DOTTED}:{_DOTTED}", re.ASCII)
_OF_FILE = re.compile(rf".+\.py:{_DOTTED}", re.ASCII | re.DOTALL)


@contextmanager
def own_code(name: str, *, field: str, files: bool = False) -> Iterator[Any]:
    """Import the code that ``name``, written ``package.module:NAME``, stands for, and give what is called so in it.

    A module is looked for in the current directory first, then where Python finds modules. **This runs the code.**
    Within the block what it imports is found as well: in the current directory, or beside the file.

    Args:
        name: ``NAME`` may have dots.
        field: which argument ``name`` was given as.
        files: take ``FILE.py:NAME`` too.

    Raises:
        InputError: there is no such code, it cannot be imported, or has nothing of this name.
    """
    of_file = files and _OF_FILE.fullmatch(name) is not None
    if not of_file and not NAME.fullmatch(name):
        also = "FILE.py:NAME or " if files else ""
        raise InputError(field, f"is written {also}package.module:NAME, not {name!r}")
    where, _, inside = name.rpartition(":")
    if of_file and not Path(where).is_file():
        raise InputError(field, f"{where} does not exist: it is written FILE.py:NAME")
    with _importing_from(Path(where).resolve().parent if of_file else Path.cwd()):
        try:
            module = _executed(Path(where)) if of_file else importlib.import_module(where)
        except (Exception, SystemExit) as error:  # whatever the code does when it is imported
            missing = error.name if isinstance(error, ModuleNotFoundError) and not of_file else None
            if missing is not None and (where == missing or where.startswith(missing + ".")):
                text = f"{name}: there is no module {missing} in {Path.cwd()} or among what is installed"
                raise InputError(field, text) from error
            raise InputError(field, f"{where} cannot be imported: {in_short(error)}") from error
        yield _inside(module, where, inside, field)


def in_short(error: BaseException) -> str:
    """An error of somebody's code in a line: what, and where."""
    text = str(error).strip().splitlines()
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{': ' + text[0] if text else ''}{where}"


def _inside(module: ModuleType, where: str, name: str, field: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            own = [key for key, value in vars(module).items() if _defined_in(module, key, value)]
            raise InputError(field, f"{where} has no {name!r}; it has {', '.join(own[:8]) or 'no function'}")
        found = getattr(found, part)
    return found


def _defined_in(module: ModuleType, name: str, value: Any) -> bool:
    made_here = getattr(value, "__module__", None) == module.__name__
    return made_here and not name.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value))


def _executed(file: Path) -> ModuleType:
    """The module that a file of code makes."""
    name = f"edgeadv_own_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses and pickle look their module up
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Let Python find modules in ``folder`` first, and as it did before after the block."""
    here = str(folder)
    if here in sys.path or ("" in sys.path and folder == Path.cwd()):
        yield
        return
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        # the code may have changed it
        with suppress(ValueError):
            sys.path.remove(here)
