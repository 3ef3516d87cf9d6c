"""Networks of the user's own code: the factory that makes them, by name, and the logits among what they give."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from edgeadv_runtime.errors import InputError

from .own_code import NAME, in_short, own_code

FORM = "package.module:factory"


def made(name: str) -> nn.Module:
    """Import the code that ``name``, written ``package.module:factory``, stands for, and let it make its network.

    The module is looked for in the current directory first, then where Python finds modules. **This runs the code.**

    Returns:
        What the factory makes, on the CPU, its floating-point tensors in float32.

    Raises:
        InputError: there is no such module or factory, it fails, or makes something else.
    """
    with _factory(name) as factory:
        try:
            net = factory()
        except (Exception, SystemExit) as error:
            raise InputError("arch", f"{name} failed: {in_short(error)}") from error
    if not isinstance(net, nn.Module):
        raise InputError("arch", f"{name} gives a {type(net).__name__}, not a torch.nn.Module")
    return net.cpu().float()


def factory_name(factory: Any) -> str:
    """The name ``package.module:factory`` of a function or class, by which it is found again.

    Raises:
        InputError: it has none, for it is defined in a script or inside a function.
    """
    name = f"{getattr(factory, '__module__', None)}:{getattr(factory, '__qualname__', None)}"
    if not name.startswith("__main__:") and NAME.fullmatch(name):
        with _factory(name) as found:
            if found is factory:
                return name
    raise InputError(
        f"{name} cannot be found by its name, which building it again needs: define it at the top of a module, and "
        "import it"
    )


def check_name(name: str) -> None:
    """Refuse what is not written ``package.module:factory``, before anything is imported.

    Raises:
        InputError: it is not.
    """
    where, _, inside = name.rpartition(":")
    if where.endswith(".py") and NAME.fullmatch(dotted := f"{where[:-3].replace('/', '.').lstrip('.')}:{inside}"):
        raise InputError("arch", f"{name!r} is written {dotted}, for modules are found from the current directory")
    if not NAME.fullmatch(name):
        raise InputError("arch", f"{name!r} is not written {FORM}, such as nets:small for small() in nets.py")


@contextmanager
def _factory(name: str) -> Iterator[Callable[[], Any]]:
    check_name(name)
    with own_code(name, field="arch") as found:
        if not callable(found) or isinstance(found, nn.Module):
            raise InputError("arch", f"{name} is a {type(found).__name__}, not a function that makes a network")
        try:
            inspect.signature(found).bind()
        except TypeError as error:
            raise InputError("arch", f"{name} {error}: write a function without arguments that calls it") from error
        except ValueError:
            pass  # of some of those in C nothing is known
        yield found


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
