"""Write a bundle: export, prove, hash; or leave nothing behind."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from msgspec.structs import replace
from numpy.typing import NDArray

from edgeadv.models.builder import PixelModel, save_weights
from edgeadv.models.checkpoints import copied
from edgeadv.models.checks import check_classifier, check_input_size
from edgeadv_runtime.bundle.bundle import Bundle, Classes, check_out, new_bundle
from edgeadv_runtime.bundle.entries import (
    ArchitectureEntry,
    CalibrationEntry,
    CountedFileEntry,
    GradientsEntry,
    MadeFromEntry,
    ParityEntry,
    SizedFileEntry,
    VariantEntry,
)
from edgeadv_runtime.bundle.golden import Golden
from edgeadv_runtime.bundle.manifest import MANIFEST, bundle_id
from edgeadv_runtime.bundle.preprocess import Preprocess, to_tensor
from edgeadv_runtime.bundle.training_images import TRAINING_FILE, TrainingImages
from edgeadv_runtime.bundle.variants import INT8, U8IN, VARIANTS, base_of, precision_of
from edgeadv_runtime.errors import BackendError, EdgeAdvError, ExportError, InputError
from edgeadv_runtime.files import canonical_json, sha256_file, write_json

from .compute_types import compute_types
from .confidence_fit import ConfidencePlan
from .draft import WEIGHTS, Draft, sized
from .fallback import Fitter
from .fp16 import largest_activation, to_fp16
from .frames import bounded, preprocessed
from .graph_end import check_end
from .int8_quality import Int8Plan
from .own_gradients import own_gradients
from .parity import (
    TOLERANCES,
    artifact_logits,
    compare,
    margins,
    summary,
    torch_logits,
    trial_batches,
    trial_logits,
)
from .to_onnx import to_onnx
from .u8in import to_u8in

GOLDEN = "golden.npz"
GOLDEN_FRAMES = 8
"""How many of the frames travel with a bundle for the self-test on the device, at most."""
GOLDEN_BYTES = 32 << 20
"""How much memory they may take there: of frames that cannot be made smaller fewer travel, one at least."""
_NOTHING = ". No bundle was written"
_MOST_WORDS = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Where weights come from.

    Attributes:
        title: the model in a few words.
        provenance: a JSON object.
        training_images: what the model was trained on, under the preprocessing it is exported with, so that evaluation
            can tell; None where that is not known.
    """

    title: str
    provenance: Mapping[str, Any]
    training_images: TrainingImages | None = None


def export_bundle(
    model: PixelModel,
    out: Path,
    *,
    classes: Classes,
    preprocess: Preprocess,
    frames: Sequence[NDArray[Any]],
    variants: Sequence[str] = ("fp32", "fp16"),
    origin: Origin,
    int8: Int8Plan | None = None,
    confidence: ConfidencePlan | None = None,
    keep_going: bool = False,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Bundle:
    """Export ``model`` and write the bundle at ``out``, if every variant agrees with it on ``frames``.

    fp32 and fp16 must agree in the logits. int8 cannot: it must lose no more accuracy than ``int8`` allows. The
    graph of each in PyTorch, which attacks follow, is compared with it too. A
    ``-u8in`` variant is made from the one with float input, which need not be shipped, must give every frame the same
    label as that, and shares its gate and gradients. Every new graph is opened and run in a process of its own first:
    where it crashes ONNX Runtime, that is an :class:`ExportError` like any other.

    ::

        origin = Origin(title="resnet18", provenance={"seed": 0})
        out = Path("net.edgeadv")
        export_bundle(model, out, classes=classes, preprocess=preprocess, frames=frames, origin=origin)

    Args:
        model: any mode, device and floating dtype; it is left exactly as it is. The bundle holds its float32 weights.
        out: the folder to make.
        classes: ids and names in logit order.
        preprocess: how a frame becomes the model's input.
        frames: real images, uint8 RGB of shape (height, width, 3) or, for a ``window``, uint16 of shape (height,
            width); sizes may differ. All are compared, and the first eight on whose label all variants are decided
            travel with the bundle for the self-test on the device.
        variants: which artefacts to ship.
        origin: where the weights come from.
        int8: calibration images, labelled images and limits; needed for int8 variants, and for nothing else.
        confidence: labelled images for the temperature and the rejection threshold; None ships neither.
        keep_going: write the bundle with the variants that work, if any does; why another was refused stands in its
            manifest, under ``refused``.
        overwrite: replace a bundle that is at ``out``.
        progress: told in a few words what begins, and what was refused.

    Returns:
        The opened bundle.

    Raises:
        InputError: an argument does not fit, a weight is NaN or infinite, or int8 was to be measured on training
            images.
        ExportError: the model cannot be exported, or a variant is not the model or crashes; no bundle is left then.
        StorageError: ``out`` cannot be written, or is something else than a bundle.
    """
    _check_arguments(model, classes, variants, origin.provenance, int8)
    check_out(out, overwrite=overwrite)
    frames = bounded(frames, preprocess)
    pixels = preprocessed(frames, preprocess)
    # a copy, because tracing and moving to the CPU must not be seen by the caller, even after an error
    reference = copied(model).cpu().float().eval().requires_grad_(False)
    check_input_size(reference, preprocess.input_shape)
    check_classifier(reference, torch.from_numpy(to_tensor(pixels[:: max(1, len(pixels) // 4)][:4])))
    tell = progress or (lambda _: None)
    measured = None if confidence is None else confidence.measure(reference, preprocess, progress=tell)
    with new_bundle(out, overwrite=overwrite) as folder:
        save_weights(reference, folder / WEIGHTS)
        draft = Draft(folder, classes, preprocess, sha256_file(folder / WEIGHTS), origin.training_images, pixels=pixels)
        writer = _Writer(draft, reference, pixels, int8, tell)
        entries, logits = writer.write(variants, keep_going=keep_going)
        seal(
            draft,
            frames,
            entries,
            logits,
            title=origin.title,
            architecture=ArchitectureEntry(**reference.architecture.to_json()),
            weights=SizedFileEntry(**sized(folder / WEIGHTS)),
            provenance=dict(origin.provenance),
            calibration=None if int8 is None else CalibrationEntry(**int8.calibration.to_json()),
            confidence=measured,
            refused=writer.refused,
        )
    return Bundle.open(out)


def seal(
    draft: Draft,
    frames: Sequence[NDArray[Any]],
    entries: Mapping[str, VariantEntry],
    logits: Mapping[str, NDArray[np.float32]],
    **about: Any,
) -> None:
    """Write what makes a folder of artefacts a bundle: golden frames, the list of training images, and the manifest.

    Args:
        draft: whose folder holds the artefacts, with its ``pixels``.
        frames: what these were made of; some travel with the bundle.
        entries: what the manifest says of each variant.
        logits: of all frames, float32 (n, classes), of each.
        about: what else the manifest says.
    """
    folder, pixels, listed = draft.folder, draft.pixels, draft.training_images
    assert pixels is not None
    most = GOLDEN_BYTES // max(frame.nbytes for frame in frames)
    rows = decided(logits, max(1, min(GOLDEN_FRAMES, most)))
    kept = {variant: values[rows] for variant, values in logits.items()}
    Golden([frames[i] for i in rows], pixels[rows], kept).save(folder / GOLDEN)
    if listed is not None:
        listed.save(folder / TRAINING_FILE)
    manifest = replace(
        draft.bundle().manifest,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        variants=dict(entries),
        golden=_counted(folder / GOLDEN, len(rows)),
        training_images=None if listed is None else _counted(folder / TRAINING_FILE, len(listed)),
        **about,
    ).to_json()
    # the manifest last, for it vouches for the rest
    write_json(folder / MANIFEST, {**manifest, "bundle_id": bundle_id(manifest)})


def _counted(path: Path, count: int) -> CountedFileEntry:
    return CountedFileEntry(file=path.name, sha256=sha256_file(path), count=count)


class _Writer:
    """What :func:`export_bundle` has checked, and the steps that fill the folder of ``draft`` with artefacts.

    Attributes:
        entries: what the manifest says of the variants that were made.
        logits: of all frames, float32 (n, classes), of each of them.
        refused: why each of the others was not made.
    """

    def __init__(
        self,
        draft: Draft,
        model: PixelModel,
        pixels: NDArray[np.uint8],
        int8: Int8Plan | None,
        progress: Callable[[str], None],
    ) -> None:
        self.draft, self.model, self.pixels, self.int8, self.progress = draft, model, pixels, int8, progress
        self.name = model.architecture.name
        self.entries: dict[str, VariantEntry] = {}
        self.logits: dict[str, NDArray[np.float32]] = {}
        self.refused: dict[str, str] = {}
        self._ready: Fitter | ExportError | None = None
        progress(f"exporting {self.name} to ONNX")
        self.fp32 = to_onnx(model, draft.preprocess.input_shape)
        self.expected = torch_logits(model, pixels, self.name)
        check_end(self.fp32.graph, self.name)

    def write(
        self, variants: Sequence[str], *, keep_going: bool
    ) -> tuple[dict[str, VariantEntry], dict[str, NDArray[np.float32]]]:
        """Write the files of ``variants`` and return their manifest entries and logits, in the order asked for: it is
        the first that runs where nobody names one. With ``keep_going``, of those that work."""
        with ExitStack() as stack:
            for base in dict.fromkeys(map(base_of, variants)):
                asked = [variant for variant in variants if base_of(variant) == base]
                try:
                    self._write_base(base, asked, stack)
                except ExportError as error:
                    if not keep_going:
                        raise
                    self._refuse(base, asked, str(error).removesuffix(_NOTHING))
        made = [variant for variant in variants if variant in self.entries]
        if not made:
            raise ExportError(f"no variant works: {'; '.join(self.refused.values())}{_NOTHING}")
        return {variant: self.entries[variant] for variant in made}, {variant: self.logits[variant] for variant in made}

    def _write_base(self, base: str, asked: Sequence[str], stack: ExitStack) -> None:
        """Write those of ``base`` and its ``-u8in`` variant that are asked for."""
        proto, largest = self.fp32, None
        about: dict[str, Any] = {}
        if base == "fp16":
            largest = largest_activation(proto, to_tensor(self.pixels), self.name)
            proto = to_fp16(proto, self.name)
        elif self.int8 is not None and precision_of(base) == INT8:
            proto, about = self._fitter(self.int8, stack).fit(base)
        entry, self.logits[base] = self._variant(base, proto, largest)
        about["gradients"] = self._gradients(base, proto, entry.sha256, self.logits[base])
        made_from = MadeFromEntry(variant=base, sha256=entry.sha256)
        if base in asked:
            self.entries[base] = replace(entry, **about)
        if (variant := base + U8IN) in asked:
            entry, self.logits[variant] = self._variant(variant, to_u8in(proto, self.name), largest)
            self._same_labels(variant, self.logits[variant], self.logits[base])
            if "gate" in about:
                about["gate"] = replace(about["gate"], of=base)
            self.entries[variant] = replace(entry, made_from=made_from, **about)
        if base not in asked:
            self.draft.path(base).unlink()

    def _refuse(self, base: str, asked: Sequence[str], why: str) -> None:
        """Note why those of ``asked`` that were not made are refused, and remove what there is of them."""
        why = why.replace(f"{self.draft.folder}/", "")  # where it is made is nobody's business later
        refused = [variant for variant in asked if variant not in self.entries]
        for variant in {base, *refused} - self.entries.keys():
            self.draft.path(variant).unlink(missing_ok=True)
        for variant in refused:
            self.refused[variant] = why[:_MOST_WORDS]
            self.progress(f"{variant} is refused, the others go on: {why}")

    def _fitter(self, plan: Int8Plan, stack: ExitStack) -> Fitter:
        """What makes int8, and was got ready once: where it failed, it fails again in the same words."""
        if self._ready is None:
            try:
                self._ready = self._open_fitter(plan, stack)
            except ExportError as error:
                self._ready = error
        if isinstance(self._ready, ExportError):
            raise self._ready
        return self._ready

    def _open_fitter(self, plan: Int8Plan, stack: ExitStack) -> Fitter:
        """Get ready for int8, in a folder that is gone with ``stack``: fp32 must be the model, shipped or not."""
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=self.draft.folder)))
        draft = dataclasses.replace(self.draft, folder=scratch)
        fitter = stack.enter_context(Fitter.open(self.fp32, plan, draft, name=self.name, progress=self.progress))
        self._compare("fp32", artifact_logits(fitter.fp32, self.pixels), fitter.fp32.provider)
        return fitter

    def _variant(
        self, variant: str, proto: Any, largest_activation: float | None
    ) -> tuple[VariantEntry, NDArray[np.float32]]:
        """Write the file of ``variant``, compare it with PyTorch, and return its manifest entry and logits.

        It runs in a process of its own, in the class that will serve it.
        """
        self.progress(f"comparing {variant} with PyTorch on {len(self.pixels)} frames")
        self.draft.write(variant, proto)
        try:
            run = self.draft.first_run(variant, trial_batches(self.pixels))
        except BackendError as error:
            raise ExportError(f"{variant} does not run: {error}") from error
        logits = trial_logits(variant, run.logits)
        parity = replace(self._compare(variant, logits, run.provider), largest_activation=largest_activation)
        return replace(self.draft.entry(variant), parity=parity, compute=compute_types(proto)), logits

    def _compare(self, variant: str, logits: NDArray[np.float32], provider: str) -> ParityEntry:
        """Compare an artefact with PyTorch; an int8 one has passed its gate and is not judged by its logits."""
        runtime = f"onnxruntime {onnxruntime.__version__}, {provider}"
        parity = compare(self.expected, logits, reference=f"torch {torch.__version__}, CPU", runtime=runtime)
        if precision_of(variant) != INT8 and not parity.max_relative_error <= TOLERANCES[variant]:
            raise ExportError(
                f"{variant} is not the model it was made from: {summary(parity)}; a relative error of "
                f"{TOLERANCES[variant]:g} is accepted{_NOTHING}"
            )
        return parity

    def _same_labels(self, variant: str, logits: NDArray[np.float32], floats: NDArray[np.float32]) -> None:
        """Refuse a ``-u8in`` variant that is not the function of the pixels that the one with float input is."""
        different = np.flatnonzero(logits.argmax(axis=1) != floats.argmax(axis=1))
        if len(different):
            raise ExportError(
                f"{variant} gives {len(different)} of {len(logits)} frames another label than {base_of(variant)}, "
                f"which it was made from, the first of them frame {different[0]}; export without it{_NOTHING}"
            )

    def _gradients(self, variant: str, proto: Any, sha256: str, logits: NDArray[np.float32]) -> GradientsEntry:
        """What the manifest says of the gradients of an artefact.

        An artefact that is right is shipped, whether or not PyTorch can differentiate it: where it cannot, the manifest
        says why, and so does the progress.
        """
        try:
            _, parity = own_gradients(proto, variant, sha256=sha256, pixels=self.pixels, logits=logits)
        except EdgeAdvError as error:
            self.progress(f"{variant} can be attacked by transfer and queries only: {error}")
            return GradientsEntry(missing=str(error))
        return GradientsEntry(parity=parity)


def decided(logits: Mapping[str, NDArray[np.float32]], most: int) -> NDArray[np.int64]:
    """The first ``most`` frames whose label no accepted error can change; where they are too few, also the next
    clearest.

    A frame on the fence would fail the self-test on a device that computes as it should: two right implementations of
    one int8 graph give other labels to one image in fifty.

    Args:
        logits: for each variant, float32 of shape (n, classes) of the same frames.
        most: how many to choose.

    Returns:
        int64, positions among the frames, ascending.
    """
    # two logits change places only if each is off by half their distance
    off = {name: 2 * TOLERANCES[name] * max(float(np.abs(values).max()), 1e-30) for name, values in logits.items()}
    clear = np.min([margins(values) / off[name] for name, values in logits.items()], axis=0)
    order = np.argsort(-np.minimum(clear, 1.0), kind="stable")
    return np.sort(order[:most])


def _check_arguments(
    model: PixelModel,
    classes: Classes,
    variants: Sequence[str],
    provenance: Mapping[str, Any],
    int8: Int8Plan | None,
) -> None:
    unknown = [variant for variant in variants if variant not in VARIANTS]
    if unknown or not variants or len(set(variants)) != len(variants):
        got = ", ".join(variants) or "none"
        raise InputError(f"variants are one or more of {', '.join(VARIANTS)}, each once, not {got}")
    if (int8 is not None) != any(precision_of(variant) == INT8 for variant in variants):
        raise InputError("int8 variants need calibration images and labelled ones, and other variants need none")
    if len(classes) != model.architecture.num_classes:
        raise InputError(f"{len(classes)} classes were given for a model of {model.architecture.num_classes} logits")
    try:
        canonical_json(dict(provenance))
    except (TypeError, ValueError) as error:
        raise InputError(f"provenance is not a JSON object: {error}") from error
    parameters = dict(model.named_parameters())
    broken = [
        name
        for name, tensor in model.state_dict().items()
        # a mask may be infinite, but neither a weight nor what BatchNorm divides by
        if tensor.isnan().any() or (tensor.isinf().any() and (name in parameters or ".running_" in name))
    ]
    if broken:
        raise InputError(f"the model holds NaN or infinity in {', '.join(broken[:8])}; the weights are broken")
