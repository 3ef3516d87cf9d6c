"""What a backend promises: a template method that checks, and the part that each backend writes itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..bundle.bundle import Bundle
from ..bundle.preprocess import to_pixels, to_tensor
from ..bundle.variants import takes_uint8
from ..errors import BackendError, InputError
from ..records.rows import EngineInfo

_B = TypeVar("_B", bound="Backend")


class Backend(ABC):
    """One artefact, opened on one device, turning images into logits.

    Attributes:
        name: ``"onnxruntime"``, ``"torch"``, ...
        variant: the bundle's name of the artefact, e.g. ``"fp16"``.
        provider: what executes it inside the backend, e.g. ``"CPUExecutionProvider"``.
        device: the device in words; figures scored here belong to it and to no other.
        artifact_sha256: hash of the file that was opened.
        float_sha256: of a ``-u8in`` artefact the hash of the one with float input that it was made from: both are one
            function of the pixels, so gradients of that one are its own. None for every other artefact.
        input_shape: (channels, height, width).
        n_classes: number of logits.
        threads: CPU threads a call may use, or None where that does not apply or is left to the library.
        spin: whether its threads keep their cores busy for a while after a call, in case the next comes at once; None
            where there are no such threads, or where the library decides.
        unspun: opens the same once more with threads that sleep at once; None where that was settled, or changes
            nothing. What times calls at a rate times both.
        gpu_index: the GPU it runs on, as CUDA counts them; None for the processor, or where that is left to the
            library.
    """

    name: str
    variant: str
    provider: str
    device: str
    artifact_sha256: str
    float_sha256: str | None = None
    input_shape: tuple[int, int, int]
    n_classes: int
    threads: int | None = None
    spin: bool | None = None
    unspun: Callable[[], Backend] | None = None
    gpu_index: int | None = None
    _closed: bool = False

    @property
    def identity(self) -> str:
        """Which artefact this is, in one line: what a query attack says that it asked."""
        return f"{self.name} {self.variant} {self.artifact_sha256}"

    def has_gradients(self, sha256: str | None) -> bool:
        """Whether the gradients that belong to the artefact with this hash are its own; None is nobody's."""
        return sha256 is not None and sha256 in (self.artifact_sha256, self.float_sha256)

    @property
    def engine_info(self) -> EngineInfo | None:
        """The compiled plan behind the figures, as files of figures keep it; None for a backend that runs the artefact
        itself.

        Ask after the last call, and before :meth:`close`: CUDA graphs are made when a batch size comes again.
        """
        return None

    @property
    def takes_uint8(self) -> bool:
        """Whether the artefact takes uint8 pixels, as the ``-u8in`` variants do: :meth:`infer_pixels` then makes no
        float tensor."""
        return takes_uint8(self.variant)

    def infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a batch.

        A ``-u8in`` artefact cannot be given anything between two grey levels: there ``x`` is first rounded to 8 bits,
        which loses nothing of pixels over 255. Use :meth:`infer_pixels` where the pixels are at hand.

        Args:
            x: float32 of shape (n, channels, height, width), n >= 1, RGB in [0, 1]; not normalised, the graph does
                that.

        Returns:
            float32 of shape (n, n_classes). The array is the caller's: no later call changes it.

        Raises:
            InputError: wrong dtype or shape.
            BackendError: the backend is closed, failed, was given pixels or gave logits that are not finite.
        """
        self._check_batch(x, np.float32, self.input_shape, "[0, 1]")
        # int8 makes a number of a NaN; the sum is finite only if every pixel is, and costs less than a look at each
        with np.errstate(all="ignore"):
            if not np.isfinite(x.sum()):
                raise BackendError(f"{self.name} {self.variant} was given an image that is NaN or infinite somewhere")
        return self._checked_logits(to_pixels(x) if self.takes_uint8 else x)

    def infer_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits of a batch of preprocessed images, as the camera and :class:`~edgeadv_runtime.Preprocess` give them.

        A ``-u8in`` artefact takes them as they are, any other as the float tensor that
        :func:`~edgeadv_runtime.bundle.preprocess.to_tensor` makes of them.

        Args:
            pixels: uint8 of shape (n, height, width, channels), n >= 1, RGB in 0..255.

        Returns:
            float32 of shape (n, n_classes). The array is the caller's: no later call changes it.

        Raises:
            InputError: wrong dtype or shape.
            BackendError: the backend is closed, failed or gave logits that are not finite.
        """
        self._check_batch(pixels, np.uint8, (*self.input_shape[1:], self.input_shape[0]), "0..255")
        return self._checked_logits(pixels if self.takes_uint8 else to_tensor(pixels))

    def _check_batch(self, batch: Any, dtype: type[np.generic], shape: tuple[int, ...], levels: str) -> None:
        """Refuse anything but an array of ``dtype`` with at least one image of ``shape``, and anything at all once
        closed."""
        self._check_open()
        array = isinstance(batch, np.ndarray)
        if array and batch.dtype == dtype and batch.ndim == 4 and batch.shape[1:] == shape and len(batch):
            return
        got = f"{batch.dtype} of shape {batch.shape}" if array else type(batch).__name__
        raise InputError(
            f"a batch is {np.dtype(dtype)} of shape (n, {', '.join(map(str, shape))}) in {levels}, not {got}"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError(f"this {self.name} backend is closed; open it again")

    def _describe(self, bundle: Bundle, variant: str) -> None:
        """Set what an artefact of a bundle says of itself."""
        self.variant = variant
        self.artifact_sha256, self.float_sha256 = bundle.artifact_sha256(variant), bundle.float_sha256(variant)
        self.input_shape, self.n_classes = bundle.preprocess.input_shape, len(bundle.classes)

    def _checked_logits(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Logits of a checked batch, looked at before anybody gets them."""
        logits = self._infer(batch)
        if logits.shape != (len(batch), self.n_classes) or logits.dtype != np.float32:
            raise BackendError(
                f"{self.name} {self.variant} gave {logits.dtype} {logits.shape} where float32 "
                f"{(len(batch), self.n_classes)} was due"
            )
        if not np.isfinite(logits).all():
            raise BackendError(
                f"{self.name} {self.variant} gave logits that are NaN or infinite: the weights are broken, the input "
                "is not finite, or the precision overflows"
            )
        return logits

    def close(self) -> None:
        """Release what the backend holds. A second call does nothing."""
        if not self._closed:
            self._closed = True
            self._close()

    @abstractmethod
    def _infer(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Logits of a checked batch, in memory that the backend will not touch again.

        Args:
            x: what the artefact takes: uint8 NHWC if :attr:`takes_uint8`, else float32 NCHW.
        """

    def _close(self) -> None:  # noqa: B027  (most backends hold nothing that needs it)
        """Release what the backend holds."""

    def __enter__(self: _B) -> _B:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
