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
from edgeadv_runtime.errors import InputError, ProviderError, require

ALL = "all"
BACKENDS = ("torch", "onnxruntime")
TORCH_VARIANT = "fp32"
EXTRAS = {
    "train": ("torch", "torchvision", "timm", "safetensors"),
    "export": ("torch", "torchvision", "timm", "safetensors", "onnx", "onnxscript", "onnxruntime"),
    "ort": ("onnxruntime",),
    "report": ("jinja2",),
}
Opener = Callable[[], Backend]
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
    """Turn names into functions that open backends, and list the pairs that ``all`` cannot have.

    Args:
        bundle: what to open.
        backend: comma-separated list of :data:`BACKENDS`, or ``all``.
        precision: comma-separated variants, or ``all`` that the bundle carries.
        provider: ``"cpu"`` or ``"cuda"``, for all of them.
        threads: CPU threads of a call.

    Raises:
        InputError: a name is unknown, or a pair that was named cannot be.
    """
    chosen = BACKENDS if backend == ALL else names(backend, option="--backend")
    if unknown := [name for name in chosen if name not in BACKENDS]:
        raise InputError(f"--backend {unknown[0]!r} is not one of {', '.join(BACKENDS)}")
    if provider not in PROVIDERS:
        raise InputError(f"--provider {provider!r} is not one of {', '.join(PROVIDERS)}")
    openers: list[Opener] = []
    skipped = []
    for name in chosen:
        for variant in bundle.variants if precision == ALL else names(precision, option="--precision"):
            if name == "onnxruntime":
                bundle.onnx_path(variant)
                openers.append(
                    partial(OnnxRuntimeBackend, bundle, variant=variant, provider=provider, threads=threads)
                )
            elif variant == TORCH_VARIANT:
                openers.append(partial(open_torch, bundle, provider=provider, threads=threads))
            elif ALL in (precision, backend):
                skipped.append({"backend": name, "variant": variant, "reason": f"torch serves {TORCH_VARIANT} only"})
            else:
                raise InputError(f"torch serves {TORCH_VARIANT} only: use --backend onnxruntime for {variant}, or all")
    if not openers:
        raise InputError("nothing to run: torch serves fp32 only, and this bundle carries no ONNX file that was asked for")
    return openers, skipped


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
