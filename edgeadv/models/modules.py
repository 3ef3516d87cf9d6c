"""Networks of the user's own code: the factory that makes them, by name, their normalisation, and the logits among what
they give."""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgeadv_runtime.errors import InputError

Normalize = str | tuple[Sequence[float], Sequence[float]]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FORM = "package.module:factory"
_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*(\.\w+)*", re.ASCII)


def made(name: str) -> nn.Module:
    """Import the code that ``name``, written ``package.module:factory``, stands for, and let it make its network.

    The module is looked for in the current directory first, then where Python finds modules. **This runs the code.**

    Returns:
        What the factory makes, on the CPU, its floating-point tensors in float32.

    Raises:
        InputError: there is no such module or factory, it fails, or makes something else.
    """
    with _current_directory():
        factory = _found(name)
        try:
            net = factory()
        except (Exception, SystemExit) as error:
            raise InputError(f"{name} failed: {_in_short(error)}") from error
    if not isinstance(net, nn.Module):
        raise InputError(f"{name} gives a {type(net).__name__}, not a torch.nn.Module")
    return net.cpu().float()


def factory_name(factory: Any) -> str:
    """The name ``package.module:factory`` of a function or class, by which it is found again.

    Raises:
        InputError: it has none, for it is defined in a script or inside a function.
    """
    name = f"{getattr(factory, '__module__', None)}:{getattr(factory, '__qualname__', None)}"
    if name.startswith("__main__:") or not _NAME.fullmatch(name) or _found(name) is not factory:
        raise InputError(
            f"{name} cannot be found by its name, which building it again needs: define it at the top of a module, and "
            "import it"
        )
    return name


def check_name(name: str) -> None:
    """Refuse what is not written ``package.module:factory``, before anything is imported.

    Raises:
        InputError: it is not.
    """
    if not _NAME.fullmatch(name):
        raise InputError("arch", f"{name!r} is not written {FORM}, such as nets:small for small() in nets.py")


def _found(name: str) -> Any:
    check_name(name)
    path, _, inside = name.partition(":")
    try:
        found: Any = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and (path == error.name or path.startswith(error.name + ".")):
            raise InputError(f"there is no module {error.name} in {Path.cwd()} or among what is installed") from error
        raise InputError(f"{path} cannot be imported: {_in_short(error)}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{path} cannot be imported: {_in_short(error)}") from error
    for part in inside.split("."):
        if not hasattr(found, part):
            raise InputError(f"{getattr(found, '__name__', path)} has no {part}: {name} was asked for")
        found = getattr(found, part)
    if not callable(found) or isinstance(found, nn.Module):
        raise InputError(f"{name} is a {type(found).__name__}, not a function that makes a network")
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise InputError(f"{name} {error}: write a function without arguments that calls it") from error
    except ValueError:
        pass  # of some of those in C nothing is known
    return found


@contextmanager
def _current_directory() -> Iterator[None]:
    """Let Python find modules in the current directory, as ``python -m`` does, and as it was after the block."""
    here = str(Path.cwd())
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(here)


def _in_short(error: BaseException) -> str:
    """An error of somebody's code in a line: what, and where."""
    text = str(error).strip().splitlines()
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{': ' + text[0] if text else ''}{where}"


def normalization(text: Normalize) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, as two sequences of one number for each channel or as text.

    ::

        mean, std = normalization("0.5,0.5,0.5/0.25,0.25,0.25")

    Args:
        text: ``"imagenet"``, ``"none"``, or ``"MEAN/STD"``, each with commas between its numbers; in pixels of [0, 1].

    Raises:
        InputError: it is of another form, or a standard deviation is not above 0.
    """
    if text == "imagenet":
        return IMAGENET_MEAN, IMAGENET_STD
    if text == "none":
        return (), ()
    try:
        parts = [part.split(",") for part in text.split("/")] if isinstance(text, str) else text
        mean, std = (tuple(float(value) for value in part) for part in parts)
    except (TypeError, ValueError):
        mean, std = (), ()
    if not mean or len(mean) != len(std) or not all(math.isfinite(v) for v in (*mean, *std)) or min(std) <= 0:
        raise InputError(
            "normalize",
            f"{text!r} is not imagenet, none or MEAN/STD with a number for each channel, such as "
            "0.5,0.5,0.5/0.25,0.25,0.25",
        )
    return mean, std


def logits_of(output: Any, name: str, classes: int | None = None) -> Tensor:
    """The logits among what a network gives, where there is no doubt which they are.

    A tensor is taken as it is. Of a dictionary or an object it is ``logits``, or else ``out``; of a tuple its only
    member, or the first if that alone is of shape (n, classes): any number of them, where ``classes`` is None.

    Raises:
        InputError: it is not clear; the message says what ``name`` gives.
    """
    found = _candidate(output, classes)
    if found is None:
        raise InputError(
            f"{name} gives {_described(output)}: where its logits are is not clear; let it return one tensor of shape "
            "(n, classes), or a dictionary with logits"
        )
    if found.ndim != 2 or not found.is_floating_point():
        raise InputError(
            f"{name} gives {_described(found)}, and a classifier's logits are floating-point of shape (n, classes)"
        )
    return found


def _candidate(output: Any, classes: int | None) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    for key in ("logits", "out"):
        held = output.get(key) if isinstance(output, Mapping) else getattr(output, key, None)
        if isinstance(held, Tensor):
            return held
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        flat = [part for part in output if isinstance(part, Tensor) and part.ndim == 2]
        if classes is not None and len(flat) > 1:
            flat = [part for part in flat if part.shape[1] == classes]
        if len(output) == 1 or (len(flat) == 1 and flat[0] is output[0]):
            return output[0]
    return None


def _described(value: Any) -> str:
    """A value in a few words: shapes and types, no contents."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "a dictionary of " + (
            ", ".join(f"{k!r}: {_described(v)}" for k, v in list(value.items())[:4]) or "nothing"
        )
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of " + (", ".join(_described(part) for part in value[:4]) or "nothing")
    return f"a {type(value).__name__}"
