"""Switches of PyTorch's that only a GPU heeds; they are there without one."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from edgeadv.models.device import arithmetic, has_tf32

GPU, CPU = torch.device("cuda"), torch.device("cpu")
cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul


def now() -> tuple[str, str, str]:
    return cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, products.fp32_precision  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    convolutions, matrices = cudnn.allow_tf32, products.allow_tf32
    yield
    products.fp32_precision = "ieee"
    cudnn.allow_tf32, products.allow_tf32 = convolutions, matrices


def set_apart() -> None:
    """As a host may: PyTorch's older switches cannot even be read then."""
    cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError):
        cudnn.allow_tf32  # noqa: B018


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("host", ["default", "all", "none", "high", "apart"])
def test_an_arithmetic_holds_within_its_block(host: str, tf32: bool) -> None:
    if host == "apart":
        set_apart()
    elif host != "default":
        cudnn.allow_tf32 = host != "none"
        torch.set_float32_matmul_precision("high" if host in ("all", "high") else "highest")
    before = now()
    for _ in range(2):
        with pytest.raises(OSError), arithmetic(GPU, tf32=tf32):
            assert (cudnn.allow_tf32, products.allow_tf32) == (tf32, False)
            with arithmetic(GPU, tf32=not tf32):
                assert cudnn.allow_tf32 is not tf32
            assert cudnn.allow_tf32 is tf32
            raise OSError
        assert now() == before


def test_a_processor_has_none() -> None:
    before = now()
    with arithmetic(CPU, tf32=cudnn.conv.fp32_precision != "tf32"):  # type: ignore[attr-defined]
        assert now() == before
    assert not has_tf32(CPU)


def test_a_thread_waits_for_another_arithmetic() -> None:
    seen: list[bool] = []

    def score() -> None:
        with arithmetic(GPU, tf32=False):
            seen.append(cudnn.allow_tf32)

    with arithmetic(GPU, tf32=True):
        other = threading.Thread(target=score)
        other.start()
        other.join(0.2)
        assert other.is_alive() and not seen and cudnn.allow_tf32
    other.join(10)
    assert seen == [False]
