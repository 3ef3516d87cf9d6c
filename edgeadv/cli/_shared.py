"""What several commands need: extras, names to backends, progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edgeadv_runtime.backends import Backend, OnnxRuntimeBackend
from edgeadv_runtime.backends.ort import PROVIDERS
from edgeadv_runtime.bundle import Bundle
from edgeadv_runtime.errors import EdgeAdvError, InputError, ProviderError, require
from edgeadv_runtime.latency import Opener

ALL = "all"
BACKENDS = ("torch", "onnxruntime")
TORCH_VARIANT = "fp32"
EXTRAS = {
    "train": ("torch", "torchvision", "timm", "safetensors"),
    "export": ("torch", "torchvision", "timm", "safetensors", "onnx", "onnxscript", "onnxruntime"),
    "ort": ("onnxruntime",),
    "report": ("jinja2",),
}
Bar = Callable[[int, int], None]


def need(extra: str) -> None:
    """Stop with the sentence that says what to install, if a module of ``extra`` is missing."""
    for module in EXTRAS[extra]:
        require(module, extra=extra)


def names(text: str, *, option: str) -> list[str]:
    """Read a comma-separated list."""
    found = [part.strip() for part in text.split(",")]
    if "" in found or len(set(found)) != len(found):
        raise InputError(f"{option} {text!r} is a comma-separated list without gaps or repetitions")
    return found


def backend_openers(
    bundle: Bundle, *, backend: str, precision: str, provider: str = "cpu", threads: int | None = None
) -> tuple[list[Opener], list[dict[str, str]]]:
    """Turn names into functions that open backends, and list the pairs of them that cannot be.

    Every backend and every variant that was named must be part of a pair that can be.

    Args:
        bundle: what to open.
        backend: comma-separated list of :data:`BACKENDS`, or ``all``.
        precision: comma-separated variants, or ``all`` that the bundle carries.
        provider: ``"cpu"`` or ``"cuda"``, for all of them.
        threads: CPU threads of a call.

    Raises:
        InputError: a name is unknown, or something that was named could not run at all.
    """
    chosen = BACKENDS if backend == ALL else names(backend, option="--backend")
    if unknown := [name for name in chosen if name not in BACKENDS]:
        raise InputError(f"--backend {unknown[0]!r} is not one of {', '.join(BACKENDS)}")
    if provider not in PROVIDERS:
        raise InputError(f"--provider {provider!r} is not one of {', '.join(PROVIDERS)}")
    wanted = bundle.variants if precision == ALL else names(precision, option="--precision")
    openers: dict[tuple[str, str], Opener] = {}
    skipped = []
    no_torch = _no_torch(bundle) if backend == ALL else None
    for name in chosen:
        for variant in wanted:
            if name == "onnxruntime":
                bundle.onnx_path(variant)
                openers[name, variant] = partial(
                    OnnxRuntimeBackend, bundle, variant=variant, provider=provider, threads=threads
                )
            elif no_torch is not None:
                skipped.append({"backend": name, "variant": variant, "reason": no_torch})
            elif variant == TORCH_VARIANT:
                openers[name, variant] = partial(open_torch, bundle, provider=provider, threads=threads)
            else:
                skipped.append({"backend": name, "variant": variant, "reason": f"torch serves {TORCH_VARIANT} only"})
    idle = [] if backend == ALL else [name for name in chosen if name not in {pair[0] for pair in openers}]
    idle += [] if precision == ALL else [variant for variant in wanted if variant not in {pair[1] for pair in openers}]
    if idle or not openers:
        raise InputError(
            f"torch serves {TORCH_VARIANT} only: nothing would run {' and '.join(idle) or 'here'}; use --backend onnxruntime"
        )
    return list(openers.values()), skipped


def _no_torch(bundle: Bundle) -> str | None:
    """Why PyTorch cannot be among ``all``, or None."""
    try:
        need("train")
        _ = bundle.weights_path
    except EdgeAdvError as error:
        return str(error)
    return None


def open_torch(bundle: Bundle, *, provider: str = "cpu", threads: int | None = None) -> Backend:
    """The reference backend on exactly the device asked for."""
    need("train")
    import torch

    from edgeadv.torch_backend import TorchBackend

    if provider == "cuda" and not torch.cuda.is_available():
        raise ProviderError(f"torch {torch.__version__} finds no CUDA device here: use --provider cpu")
    return TorchBackend(bundle, device=torch.device(provider), threads=threads)


@contextmanager
def image_bar(description: str) -> Iterator[Bar | None]:
    """A bar of images done, on standard error if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(description, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update
