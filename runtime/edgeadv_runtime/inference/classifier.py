"""The class an application embeds: a bundle in, ranked labels out. No PyTorch, no prints, no global state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..backends import Backend, OnnxRuntimeBackend
from ..bundle.bundle import Bundle
from ..bundle.confidence import softmax
from ..bundle.pictures import ColorOrder, Frame
from ..bundle.variants import INT8, U8IN, precision_of, takes_uint8, variant_for
from ..errors import InputError

# so many labels are found sooner one by one than by a sort of all: right after an inference the caches are cold
_FEW = 16


@dataclass(frozen=True)
class Label:
    """One ranked answer.

    Attributes:
        index: position among the model's classes.
        class_id: the class's id, e.g. a wnid.
        name: the class's name.
        probability: softmax of the logits, in [0, 1], at the bundle's temperature where it has one: then it is about
            how often such answers are right on images like those it was fitted on, and only on those. Without one, do
            not read it as
            confidence: a network distilled at a high temperature says 1.0 to almost everything.
    """

    index: int
    class_id: str
    name: str
    probability: float


class Classifier:
    """A bundle, ready to classify frames; a context manager.

    With ONNX Runtime, :meth:`classify` may be called from several threads. Nothing returned is ever changed by a later
    call.

    Example::

        with Classifier.open("model.edgeadv", variant="fp16") as classifier:
            best = classifier.classify(frame, color_order="bgr")[0]
            print(best.name, best.probability)
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        """Use an opened backend of ``bundle``; closing the classifier closes it."""
        self.bundle = bundle
        self.backend = backend
        self._temperature = 1.0 if bundle.confidence is None else bundle.confidence.temperature

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        variant: str | None = None,
        provider: str = "cpu",
        threads: int | None = None,
        spin: bool = False,
        expected_sha256: str | None = None,
        public_key: str | Path | None = None,
    ) -> Classifier:
        """Open a bundle in ONNX Runtime.

        Args:
            path: the bundle's folder.
            variant: which artefact; ``"int8"`` takes the int8 variant that is right for the provider and this
                processor, ``"int8-u8in"`` the same with uint8 input, None the first that the bundle carries, and of two
                int8 variants also the right one.
            provider: ``"cpu"``, ``"cuda"`` or ``"tensorrt"``; there is no fallback.
            threads: CPU threads per call; None leaves them to ONNX Runtime.
            spin: whether threads spin for milliseconds after each frame: for frames that follow each other at once.
            expected_sha256: hex SHA-256 of the manifest, where it is known from elsewhere.
            public_key: PEM file with the Ed25519 key that must have signed the manifest.

        Raises:
            EdgeAdvError: see :meth:`Bundle.open` and :class:`OnnxRuntimeBackend`.
        """
        bundle = Bundle.open(path, expected_sha256=expected_sha256, public_key=public_key)
        if variant is None:
            if not bundle.variants:
                raise InputError(f"{path} carries no variant to run")
            variant = bundle.variants[0]
            if precision_of(variant) == INT8:
                meant = INT8 + U8IN if takes_uint8(variant) else INT8
                right = variant_for(meant, OnnxRuntimeBackend.name, provider=provider)
                variant = right if right in bundle.variants else variant
        else:
            variant = variant_for(variant, OnnxRuntimeBackend.name, provider=provider)
        return cls(bundle, OnnxRuntimeBackend(bundle, variant=variant, provider=provider, threads=threads, spin=spin))

    def classify(self, frame: Frame, *, color_order: ColorOrder | None = None, top: int = 5) -> list[Label]:
        """Classify one frame. With a ``-u8in`` variant no float tensor is made of it.

        Args:
            frame: a Pillow image, or a uint8 array of shape (height, width, 3); where the model sees grey, or 16-bit
                grey, as :class:`~edgeadv_runtime.Preprocess` takes it.
            color_order: ``"rgb"`` or ``"bgr"``; required for arrays of three channels.
            top: how many labels to return at most, at least 1.

        Returns:
            Labels, most probable first.

        Raises:
            InputError: the frame is not one, or an array came without its colour order.
            BackendError: inference failed.
        """
        return self.classify_pixels(self.bundle.preprocess(frame, color_order=color_order), top=top)

    def classify_pixels(self, pixels: NDArray[np.uint8], *, top: int = 5) -> list[Label]:
        """Classify what the bundle's preprocessing made of a frame.

        Args:
            pixels: uint8 (height, width, channels).
            top: how many labels to return at most, at least 1.

        Returns:
            Labels, most probable first.

        Raises:
            InputError: the array has another shape or dtype.
            BackendError: inference failed.
        """
        return self.rank(self.backend.infer_pixels(pixels[None])[0], top=top)

    def rank(self, logits: NDArray[np.float32], *, top: int = 5) -> list[Label]:
        """Labels of finite logits, float32 (classes,), as :meth:`classify` gives them, for callers who infer for
        themselves.

        Raises:
            InputError: ``top`` is below 1.
        """
        if top < 1:
            raise InputError(f"top must be at least 1, not {top}")
        probabilities, classes = softmax(logits, temperature=self._temperature), self.bundle.classes
        return [Label(i, classes.ids[i], classes.names[i], float(probabilities[i])) for i in _largest(logits, top)]

    def close(self) -> None:
        """Close the backend. A second call does nothing."""
        self.backend.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _largest(logits: NDArray[np.float32], count: int) -> list[int]:
    """Indices of the largest logits, largest first, of equal ones the first."""
    if count > _FEW:
        ranked: list[int] = np.argsort(-logits, kind="stable")[:count].tolist()
        return ranked
    left, found = logits.copy(), []
    for _ in range(min(count, len(left))):
        found.append(int(left.argmax()))
        left[found[-1]] = -np.inf
    return found
