"""int8 that passes its gate: with every layer quantised, or with the most sensitive ones left in float32, or not at
all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeadv_runtime.backends import Backend
from edgeadv_runtime.bundle.entries import GateEntry
from edgeadv_runtime.decoding import convert
from edgeadv_runtime.errors import BackendError, ExportError

from .draft import Draft
from .gain import gain
from .int8 import Calibrated, calibrate
from .int8_quality import Gate, Int8Plan, Progress, paced
from .paired import Measured, images_needed

SAMPLE = 32
"""Calibration images on which the sensitivity of a layer is taken, at most."""
MOST_FLOAT = 4
"""One layer in so many may stay in float32: beyond that it is no int8 network any more."""


@dataclass(frozen=True)
class Fitter:
    """Makes int8 variants of one network: calibrated once, each measured against the same answers of fp32.

    Attributes:
        calibrated: the graph and its ranges.
        gate: the labelled images.
        draft: a folder for the graphs that are tried; it holds fp32.
        plan: images and limits.
        fp32: the float32 artefact, opened.
        progress: told in a few words what begins.
    """

    calibrated: Calibrated
    gate: Gate
    draft: Draft
    plan: Int8Plan
    fp32: Backend
    progress: Progress

    @classmethod
    @contextmanager
    def open(cls, fp32: Any, plan: Int8Plan, draft: Draft, *, name: str, progress: Progress) -> Iterator[Fitter]:
        """Calibrate, and score fp32.

        Args:
            fp32: an ``onnx.ModelProto`` of :func:`to_onnx`.
            plan: images and limits.
            draft: an empty folder that is removed afterwards.
            name: what to call the network in errors.
            progress: told in a few words what begins.

        Raises:
            ExportError: a tensor is not finite on the calibration images.
            DataError: there is nothing to measure on.
        """
        chosen = plan.calibration
        n = len(chosen.index)
        text = f"calibrating int8 on {n} images of {chosen.origin} {chosen.images.split}, seed {chosen.seed}"
        tell = paced(progress, text, "images")

        def images() -> Iterator[NDArray[np.float32]]:
            for done, image in enumerate(chain.from_iterable(chosen.tensors()), start=1):
                yield image
                tell(done, n)

        calibrated = calibrate(fp32, images(), name)
        draft.write("fp32", fp32)
        with draft.backend("fp32") as backend:
            yield cls(calibrated, Gate(plan, backend, draft, progress=progress), draft, plan, backend, progress)

    def fit(self, variant: str) -> tuple[Any, dict[str, Any]]:
        """Quantise, measure, and leave the most sensitive layers in float32 one by one until the gate holds.

        Which layer comes next was measured on calibration images, before. Each graph is one more look at the gate's
        images and is judged the more strictly for it, until there are too few of them for another.

        Returns:
            The ``onnx.ModelProto``, and what the manifest says of it: the layers left in float32, most sensitive first,
            and what was lost and gained.

        Raises:
            ExportError: it does not hold with a quarter of the layers in float32, or as far as the images allow; or the
                worst case of a graph may not be believed.
        """
        whole, proto = self._try(variant, [], look=1)
        measured = whole
        kept: dict[str, float] = {}
        steps: list[dict[str, Any]] = []
        if not measured.holds:
            self.progress(
                f"{variant} of {self.calibrated.name} loses {measured}: looking for the layers that it comes from"
            )
            most = max(1, len(self.calibrated.layers(variant)) // MOST_FLOAT)
            for look, (layer, error) in enumerate(self._sensitivities(variant)[:most], start=2):
                needed = images_needed(self.plan.max_drop, look)
                if needed is None or measured.clean.n < needed:
                    self.progress(
                        f"{measured.clean.n} images are too few for look {look} at them, which takes {needed}"
                    )
                    break
                kept[layer] = error
                measured, proto = self._try(variant, list(kept), look=look)
                upper = measured.clean.upper(look)
                steps.append({"layer": layer, "sensitivity": error, "drop": measured.clean.drop, "drop_upper": upper})
                self.progress(f"{variant} with {layer} in float32 too ({len(kept)} of at most {most}) loses {measured}")
                if measured.holds:
                    break
        if not measured.holds:
            raise ExportError(self._too_much(variant, whole, measured, list(kept)))
        gains = gain(self.draft, variant, self.plan.calibration.sample(SAMPLE))
        about = {"fully_quantised": whole.clean.to_json(whole.look), "fallback": steps, "gain": gains}
        gate = convert({**self.gate.to_json(measured), **about}, GateEntry, what="gate")
        return proto, {"float_layers": tuple(kept), "gate": gate}

    def _too_much(self, variant: str, whole: Measured, last: Measured, kept: list[str]) -> str:
        """Why nothing is written, and what would help."""
        still = ""
        if kept:
            listed = ", ".join(kept[:3])
            still = f", and still {last} with its {len(kept)} most sensitive layers in float32 ({listed}, ...)"
        # at the same rates; the worst of the two decides
        needed = [images_needed(self.plan.max_drop, like=paired) for paired in whole.judged]
        images = [n for n in needed if n is not None and n > whole.clean.n]
        more = (
            f"{max(images)} labelled images would show it if they lose and gain as these do. "
            if images and None not in needed
            else ""
        )
        return (
            f"{variant} of {self.calibrated.name} loses {whole}{still}; the upper end of the interval may be "
            f"{self.plan.max_drop:g} points at most. {more}"
            f"fp32 is right on {whole.clean.fp32_correct / whole.clean.n:.1%}: a network that has learned little loses "
            "much. Train longer, give more labelled images (`gate_data`, "
            "`gate_limit`), more or other calibration images, a "
            "larger `max_drop`, or export without it: `precisions` fp32,fp16. No bundle was written"
        )

    def _try(self, variant: str, float_layers: list[str], *, look: int) -> tuple[Measured, Any]:
        """Quantise and measure."""
        if not float_layers:
            self.progress(f"measuring {variant} against fp32 on {self.gate.data['n']} images")
        proto = self.calibrated.quantise(variant, float_layers=float_layers)
        self.draft.write(variant, proto)
        try:
            with self.draft.backend(variant) as backend:
                return self.gate.measure(backend, proto, look=look), proto
        except BackendError as error:
            raise ExportError(f"{variant} of {self.calibrated.name} does not run: {error}") from error

    def _sensitivities(self, variant: str) -> list[tuple[str, float]]:
        """Layers with the mean squared error of the logits when that layer alone is quantised, largest first."""
        x = self.plan.calibration.sample(SAMPLE)
        truth = self.fp32.infer(x).astype(np.float64)
        layers = self.calibrated.layers(variant)
        tell = paced(self.progress, f"quantising each layer of {variant} on its own", "layers")
        errors: dict[str, float] = {}
        for done, layer in enumerate(layers, start=1):
            self.draft.write(variant, self.calibrated.quantise(variant, only=layer))
            (logits,) = self.draft.first_run(variant, [x]).logits
            errors[layer] = float(np.mean((logits - truth) ** 2))
            tell(done, len(layers))
        # what has no error of its own, such as a reshape, is not rounded and would gain nothing
        return sorted(((k, e) for k, e in errors.items() if e > 0), key=lambda item: -item[1])
