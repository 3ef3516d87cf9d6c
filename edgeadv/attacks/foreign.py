"""What is the same for the attack objects of all libraries: whose they are, their names, the model's state, and random
numbers."""

from __future__ import annotations

import importlib.metadata
import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeadv_runtime.attacks.base import CallableAttack
from edgeadv_runtime.errors import InputError, require
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.rows import CLEAN, WORST_CASE, AttackParams
from edgeadv_runtime.records.suites import OPTIONAL, SUITES, TRANSFER

from ..models.modes import evaluation_mode
from .suite import GRADIENTS

Images = NDArray[np.float32]
Labels = NDArray[np.int64]

_DISTRIBUTIONS = {"torchattacks": "torchattacks", "foolbox": "foolbox", "art": "adversarial-robustness-toolbox"}
# a name of ours stands for our attack, and the verdict reads evidence by name
_RESERVED = {CLEAN, WORST_CASE, *SUITES["full"], *OPTIONAL, TRANSFER}


def adapted(
    library: str,
    attack: Any,
    run: Callable[[Images, Labels], Images],
    model: nn.Module | None,
    described: AttackParams,
    *,
    eps: Eps,
    name: str | None,
    gradients_sha256: str | None,
    queried: str | None,
    seed: int,
) -> CallableAttack:
    """``run`` as an attack of the evaluation that is called after ``attack``, an object of ``library``."""
    kind = type(attack).__name__
    name = name or f"{library}-{kind.lower()}"
    if name.partition("@")[0] in _RESERVED:
        raise InputError(f"{name} is the name of one of edgeadv's rows: give the attack another, e.g. their-{name}")
    if queried is not None and gradients_sha256 is not None:
        raise InputError("an attack follows gradients or asks an artefact: pass gradients_sha256=None with queried")

    def function(x: Images, y: Labels) -> Images:
        state = nullcontext() if model is None else evaluation_mode(model)
        with state, _seeded(seed, x), torch.enable_grad():
            # copies: an attack may write into what it is given
            return run(np.array(x), np.array(y))

    return CallableAttack(
        function,
        name,
        eps,
        gradients=getattr(model, "gradients", GRADIENTS) if queried is None and model is not None else None,
        gradients_sha256=gradients_sha256,
        described=msgspec.structs.replace(described, norm="linf", library=f"{version(library)} {kind}"),
        queried=queried,
    )


@contextmanager
def _seeded(seed: int, x: Images) -> Iterator[None]:
    """Seed the process-wide generators that libraries draw from, by ``seed`` and the images, and put them back
    afterwards."""
    value = int(np.random.SeedSequence((seed, zlib.crc32(x.tobytes()))).generate_state(1)[0])
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        try:
            random.seed(value)
            np.random.seed(value)  # noqa: NPY002
            torch.manual_seed(value)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


def made_by(library: str, attack: Any) -> Any:
    """The library, which is imported already: one of its classes made ``attack``."""
    if not any(base.__module__.partition(".")[0] == library for base in type(attack).__mro__):
        raise InputError(f"{type(attack).__name__} is not an attack object of {_DISTRIBUTIONS[library]}")
    return require(library, extra=None)


def version(library: str) -> str:
    """The library as its package is called, and its version."""
    return f"{_DISTRIBUTIONS[library]} {importlib.metadata.version(_DISTRIBUTIONS[library])}"
