"""The first opening and running of somebody else's ONNX file: all in one call, of values that can be pickled."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from edgeadv_runtime.backends.onnxruntime import open_session
from edgeadv_runtime.bundle.variants import INT8, S8S8, U8S8, precision_of
from edgeadv_runtime.device.isolated import call_isolated
from edgeadv_runtime.errors import EdgeAdvError, ExportError, InputError

from .compute_types import compute_types
from .foreign_file import load_foreign, one_line, opset_of
from .foreign_input import Asked, Convention, Reader
from .foreign_output import NONE, SIGMOID, SOFTMAX, Logits, find_input, find_logits, probabilities, tapped
from .parity import TOLERANCES
from .rewrite import freed, rewritten

_EXTRAS = 2
_ADVICE = "make the file again with the newest exporter, or simplify its graph"
_DYNAMIC = ("DynamicQuantizeLinear",)
_BATCHES = (2, 3)


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What a file is, and what becomes of it.

    Attributes:
        notes: what was read off it, asked or guessed, in sentences for people.
        needed: options that must be given before anything can be made, with what they have to say.
        variant: the bundle's name for it.
        opset: of the rewritten graph.
        model: the rewritten graph; None while something is needed.
        single: whether that takes one picture a call only.
        logits: what the original gives for the frames, float32 (n, classes); None without a model.
    """

    notes: tuple[str, ...]
    needed: tuple[tuple[str, str], ...]
    variant: str
    opset: int
    model: bytes | None = None
    single: bool = False
    logits: NDArray[np.float32] | None = None


def examine(path: Path, asked: Asked, pixels: NDArray[np.uint8] | None) -> Examined:
    """Read, run and rewrite the ONNX file at ``path``.

    ::

        found = examine(Path("net.onnx"), Asked(scale="0..1", color="rgb", shape=(3, 224, 224)), None)

    Args:
        path: somebody else's file.
        asked: what is known of it.
        pixels: preprocessed pictures, uint8 (n, height, width, channels), on which the rewritten graph has to do what
            the original does; None takes noise.

    Raises:
        InputError: it is no classifier that a bundle can hold, or ``asked`` does not fit it.
        ExportError: it does not run, or the rewritten graph is not the original.
    """
    return call_isolated(examine_here, path, asked, pixels, what=path.name, advice=_ADVICE)


def examine_here(path: Path, asked: Asked, pixels: NDArray[np.uint8] | None) -> Examined:
    """:func:`examine` in this process, without PyTorch: all of it that a foreign file could end."""
    proto = load_foreign(path)
    logits = find_logits(proto.graph, asked.output)
    name = find_input(proto.graph, logits.answer, asked.input)
    variant = variant_of(proto, path)
    reader = Reader(proto.graph, asked)
    convention = reader.convention(name)
    notes = [f"opset {opset_of(proto)}, {variant}", *reader.notes]
    if logits.cut != NONE:
        notes.append(f"the {logits.cut} at the end is cut off: {logits.tensor!r} are the logits")
    about: dict[str, Any] = {"variant": variant, "opset": opset_of(proto)}
    if convention is None:
        return Examined(notes=tuple(notes), needed=tuple(reader.needed.items()), **about)
    rng = np.random.default_rng(0)
    channels, height, width = convention.image
    extras = rng.integers(0, 256, (_EXTRAS, height, width, channels), dtype=np.uint8)
    looked = extras if pixels is None else np.concatenate([pixels, extras])
    with tempfile.TemporaryDirectory() as folder:
        original = _Original(proto, Path(folder), convention, logits, variant)
        found = original.ask(looked)
        if asked.classes is not None and found.classes != asked.classes:
            raise InputError("classes", f"are {asked.classes}, and {path} gives {found.classes} numbers")
        notes.append(f"{found.classes} classes")
        model, single = _made(proto, convention, logits, found, looked, Path(folder), variant)
    notes.append("one picture a call: its graph fixes the batch" if single else "any batch")
    return Examined(
        notes=tuple(notes),
        needed=(),
        model=model.SerializeToString(deterministic=True),
        single=single,
        logits=found.logits[: len(found.logits) - _EXTRAS],
        **about,
    )


def refuse_needed(path: Path, needed: Mapping[str, str]) -> None:
    """Refuse a file as long as something is ``needed``.

    Raises:
        InputError: something is; it names the fields.
    """
    if needed:
        (field, what), *others = needed.items()
        more = ", and so is " + ", ".join(f"`{name}`" for name, _ in others) if others else ""
        raise InputError(field, f"is needed for {path}: {what}{more}")


def variant_of(proto: Any, path: Path) -> str:
    """The bundle's name for what ``proto`` computes in.

    Raises:
        InputError: there is none.
    """
    types = {each.name: each.data_type for each in proto.graph.initializer}
    eight_bit = {onnx.TensorProto.UINT8: U8S8, onnx.TensorProto.INT8: S8S8}
    found = set()
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear":
            zero = node.input[2] if len(node.input) > 2 else ""
            found.add(types.get(zero, onnx.TensorProto.UINT8))
        elif node.op_type in ("DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"):
            found.add(onnx.TensorProto.UINT8)
        elif node.op_type.startswith("QLinear") and len(node.input) > 2:
            found.add(types.get(node.input[2], onnx.TensorProto.UINT8))
    if found:
        if unknown := found - set(eight_bit):
            kind = onnx.TensorProto.DataType.Name(unknown.pop()).lower()
            raise InputError(f"{path} is quantised to {kind}: bundles hold int8 and uint8")
        return U8S8 if onnx.TensorProto.UINT8 in found else S8S8
    written = set(compute_types(proto).values())
    if "BFloat16" in written or any(kind == onnx.TensorProto.DOUBLE for kind in _float_types(proto)):
        raise InputError(f"{path} computes in bfloat16 or float64: bundles hold float32, float16 and int8")
    return "fp16" if "Half" in written else "fp32"


def _float_types(proto: Any) -> Iterator[int]:
    read = {name for node in proto.graph.node if node.op_type in ("Conv", "Gemm", "MatMul") for name in node.input}
    return (each.data_type for each in proto.graph.initializer if each.name in read)


def no_gradients(path: Path) -> str | None:
    """Why PyTorch cannot compute a file that was examined before; None where it can."""
    from edgeadv.gradients.graph import GraphModule
    from edgeadv.gradients.read_onnx import nodes_of

    try:
        GraphModule(nodes_of(load_foreign(path)), path.name)
    except EdgeAdvError as error:
        # several inputs or outputs are not the last word: the graph is rewritten
        return None if " is due" in str(error) else str(error)
    except Exception as error:  # a graph that PyTorch, and not ONNX Runtime, finds wrong
        return f"PyTorch does not compute it ({type(error).__name__})"
    return None


@dataclass(frozen=True)
class _Found:
    """Answers of the original.

    Attributes:
        logits: float32 (n, classes); of one sigmoid two, 0 and its argument.
        classes: how many.
        width: numbers that the graph itself gives for one picture.
        half: whether these are float16.
        flat: whether they are of shape (batch, classes).
    """

    logits: NDArray[np.float32]
    classes: int
    width: int
    half: bool
    flat: bool


class _Original:
    """The file as it came, in ONNX Runtime, fed as its maker feeds it, one picture at a time."""

    def __init__(self, proto: Any, folder: Path, convention: Convention, logits: Logits, variant: str) -> None:
        model, (self._answer, self._tensor, self._behind) = tapped(proto, logits)
        self._session = _session(model, folder / "original.onnx", variant)
        self._convention, self._logits = convention, logits

    def ask(self, pixels: NDArray[np.uint8]) -> _Found:
        """Logits of preprocessed pictures.

        Raises:
            InputError: what it gives are no logits.
            ExportError: it fails on a picture.
        """
        answers, taps, behind = zip(*(self._one(pixels[i : i + 1]) for i in range(len(pixels))), strict=True)
        again = self._one(pixels[:1])[1]
        cut = self._logits.cut
        shape, kind = taps[0].shape, taps[0].dtype
        if kind not in (np.float32, np.float16):
            raise InputError(
                f"the output is {kind} of shape {shape}: logits are float; name their tensor with `output`"
            )
        own = self._of_one(shape)
        width = int(np.prod(own))
        if _is_wide(own) and cut == SOFTMAX and not _is_wide(self._of_one(answers[0].shape)):
            raise probabilities(self._logits.answer)  # its axis is a part of the classes
        if _is_wide(own):
            raise InputError(
                f"the output is of shape {shape}: a classifier gives one number a class; name another `output`"
            )
        rows = np.stack([_first(tap, width) for tap in taps]).astype(np.float32)
        if width == 0 or (width == 1 and cut != SIGMOID):
            raise InputError(f"the output is {width} numbers a picture and no sigmoid: at least two classes are due")
        if not np.isfinite(rows).all():
            raise ExportError(
                "the file gives NaN or infinite logits on these pictures: its weights or `scale` are wrong"
            )
        if not np.array_equal(_first(again, width).astype(np.float32), rows[0]):
            raise InputError("the file gives the same picture other logits the second time: it draws random numbers")
        if np.ptp(rows, axis=0).max() == 0:
            raise InputError("the file gives the same logits for every picture: they do not depend on it")
        _check_answers(answers, rows, self._logits)
        shares = np.stack([_first(values, width) for values in behind]).astype(np.float64)
        if (cut == SOFTMAX and _is_partial(shares)) or _are_probabilities(rows):
            raise probabilities(self._logits.answer)
        logits = np.concatenate([np.zeros_like(rows), rows], axis=1) if width == 1 else rows
        flat = len(shape) == 2 and len(own) == 1
        return _Found(logits, logits.shape[1], width, kind == np.float16, flat)

    def _of_one(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What is left of a shape without the batch."""
        batch = self._convention.batch
        return shape[1:] if batch != 0 and len(shape) > 1 and shape[0] == (batch or 1) else shape

    def _one(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        x = self._convention.feed(pixels)
        x = x[0] if self._convention.batch == 0 else np.repeat(x, self._convention.batch or 1, axis=0)
        try:
            names = list(dict.fromkeys((self._answer, self._tensor, self._behind)))
            given = dict(zip(names, self._session.run(names, {self._convention.input: x}, _silent()), strict=True))
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise ExportError(f"ONNX Runtime fails on the file: {one_line(error)}") from error
        return np.asarray(given[self._answer]), np.asarray(given[self._tensor]), np.asarray(given[self._behind])


def _first(values: NDArray[Any], width: int) -> NDArray[Any]:
    """The numbers of the first picture: a batch holds the same one several times."""
    return values.reshape(-1)[:width]


def _is_wide(shape: tuple[int, ...]) -> bool:
    return sum(size != 1 for size in shape) > 1


def _is_partial(shares: NDArray[np.float64]) -> bool:
    """Whether what a softmax gives, or its logarithm, is shared out more than once: its axis is not all the classes."""
    totals = (np.exp(shares) if (shares <= 0).all() and (shares < 0).any() else shares).sum(axis=1)
    return bool(totals.max() > 1.5)


def _are_probabilities(rows: NDArray[np.float32]) -> bool:
    """Whether the numbers of a picture have the same sum for every one, and none is below 0."""
    values = rows.astype(np.float64)
    totals = values.sum(axis=1)
    if values.shape[1] < 2 or values.min() < -1e-6 * totals.max():
        return False
    # the sum is as good as fixed: by rounding in 16 or 8 bits, and by cutting off the ends, it moves a little
    allowed = max(1e-5 * float(totals.max()), 0.01 * float(np.ptp(values, axis=0).max()))
    return bool(np.ptp(totals) <= allowed)


def _check_answers(answers: Any, rows: NDArray[np.float32], logits: Logits) -> None:
    """The labels that the maker reads must be those of the logits."""
    for number, (answer, row) in enumerate(zip(answers, rows, strict=True)):
        given = _first(np.asarray(answer, np.float64), len(row))
        label = int(row.argmax())
        half = logits.half
        wrong = given.max() > given[label] if len(row) > 1 else (given[0] > half) != (row[0] > 0) and row[0] != 0
        if wrong and not (len(row) == 1 and given[0] == half):
            raise ExportError(
                f"picture {number}: the label before the {logits.cut} is not the one behind it; it is kept out"
            )


def _session(model: Any, file: Path, variant: str) -> Any:
    try:
        data = model.SerializeToString()
    except ValueError as error:
        raise InputError("the model is larger than 2 GiB with its weights, more than a bundle can hold") from error
    try:
        return open_session(onnxruntime, data, file, variant=variant, threads=1)
    except EdgeAdvError as error:
        if variant == S8S8 and "QGemm" in str(error):
            raise InputError(
                "on this processor ONNX Runtime has no exact int8 QGemm: quantise the network with uint8 activations, "
                "or in QDQ form"
            ) from error
        raise InputError(str(error).replace(str(file), "the file").replace("`", "'")[:400]) from error


def _made(
    proto: Any,
    convention: Convention,
    logits: Logits,
    found: _Found,
    pixels: NDArray[np.uint8],
    folder: Path,
    variant: str,
) -> tuple[Any, bool]:
    """The rewritten graph, and whether it takes one picture a call only."""
    dynamic = any(node.op_type in _DYNAMIC for node in proto.graph.node)
    about: dict[str, Any] = {"classes": found.width, "half": found.half, "flat": found.flat}
    if convention.batch != 0 and not dynamic:
        whole = rewritten(proto, convention, logits, **about, free=True)
        for model in freed(whole, convention.batch or 1):
            if _takes_batches(model, pixels, found.logits, folder, variant):
                return model, False
    model = rewritten(proto, convention, logits, **about, free=False)
    with contextlib.suppress(ExportError, InputError):
        session = _session(model, folder / "single.onnx", variant)
        if _agrees(session, pixels, found.logits, [1] * len(pixels), variant):
            return model, True
    size = convention.batch or 0
    if size > 1:
        raise InputError(
            f"the file takes batches of {size} only, and its graph fixes that: export it with a free batch"
        )
    raise ExportError("the rewritten graph is not the file that came in: its logits differ. No bundle was written")


def _takes_batches(
    model: Any, pixels: NDArray[np.uint8], logits: NDArray[np.float32], folder: Path, variant: str
) -> bool:
    """Whether ``model`` gives each picture its logits whatever batch it comes in."""
    try:
        session = _session(model, folder / "free.onnx", variant)
        # every picture alone, then some of them in company
        return _agrees(session, pixels, logits, [1] * len(pixels) + list(_BATCHES), variant)
    except EdgeAdvError:
        return False


def _agrees(
    session: Any, pixels: NDArray[np.uint8], logits: NDArray[np.float32], sizes: list[int], variant: str
) -> bool:
    """Whether batches of ``sizes``, one after the other and round again, have the ``logits`` of their pictures: within
    the variant's tolerance, and as good as exactly those that each picture has alone."""
    largest = float(np.abs(logits).max())
    allowed = TOLERANCES[variant] * largest
    same = TOLERANCES[variant if precision_of(variant) == INT8 else "fp32"] * largest
    alone: dict[int, NDArray[np.float32]] = {}
    begin = 0
    for size in sizes:
        rows = (begin + np.arange(size)) % len(pixels)
        x = (pixels[rows].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)).astype(np.float32)
        try:
            given = session.run(["logits"], {"image": np.ascontiguousarray(x)}, _silent())[0]
        except Exception:  # onnxruntime's exceptions have no common base
            return False
        if given.shape != logits[rows].shape or not np.abs(given - logits[rows]).max() <= allowed:
            return False
        for row, mine in zip(rows.tolist(), given, strict=True):
            if not np.abs(alone.setdefault(row, mine) - mine).max() <= same:
                return False
        begin += size
    return True


def _silent() -> Any:
    """Options of a call that fails without a word on standard error: what it says is in the exception."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    return options
