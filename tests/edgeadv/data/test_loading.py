"""How images reach the device: the same ones, resident or streamed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from edgeadv.data import loading as module
from edgeadv.data.datasets import ImageSet, open_data
from edgeadv.data.loading import DeviceBatch, Loader, Resident, Waiting, loader, to_model_input
from edgeadv_runtime.bundle.preprocess import to_tensor

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Twenty, of which two cannot be read."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / label).mkdir()
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / label / f"{i}.png")
    (folder / "a" / "3.png").write_bytes(b"no picture")
    (folder / "b" / "7.png").write_bytes(b"")
    return open_data(str(folder), split="test")


def taken(batches: list[DeviceBatch]) -> tuple[np.ndarray, torch.Tensor, torch.Tensor, list[str]]:
    return (
        np.concatenate([b.index for b in batches]),
        torch.cat([b.pixels for b in batches]),
        torch.cat([b.labels for b in batches]),
        [text for b in batches for text in b.unreadable],
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_resident_and_streamed_are_the_same(pictures: ImageSet, workers: int) -> None:
    asked = np.array([19, 0, 3, 5, 17, 4, 12, 1])
    sources = [kind(pictures, np.arange(20), pictures.preprocess, CPU, workers) for kind in (Resident, Loader)]
    for order in (asked, None, asked[::-1].copy()):
        ours, theirs = (list(source.batches(3, order)) for source in sources)
        assert [len(b.index) for b in ours] == [len(b.index) for b in theirs]
        for a, b in zip(taken(ours), taken(theirs), strict=True):
            np.testing.assert_array_equal(a, b)
        expected = np.arange(20) if order is None else order
        index, pixels, labels, unreadable = taken(ours)
        assert list(index) == [i for i in expected if i not in (3, 17)]
        assert [text.partition(":")[0] for text in unreadable] == [pictures.names[i] for i in expected if i in (3, 17)]
        np.testing.assert_array_equal(labels, pictures.labels[index])
        for i, picture in zip(index, pixels, strict=True):
            np.testing.assert_array_equal(picture.permute(1, 2, 0), pictures.preprocess(pictures.image(int(i))))
        assert pixels.dtype == torch.uint8 and pixels.is_contiguous(memory_format=torch.channels_last)


def test_a_resident_set_is_decoded_once(pictures: ImageSet) -> None:
    asked: list[int] = []

    def image(i: int) -> Image.Image:
        asked.append(i)
        return pictures.image(i)

    source = Resident(replace(pictures, image=image), np.array([2, 4, 6]), pictures.preprocess, CPU)
    assert asked == []
    for _ in range(3):
        list(source.batches(2))
    assert asked == [2, 4, 6]


def test_a_small_set_is_resident_and_a_large_one_is_not(pictures: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESIDENT_BYTES", 5 * 40 * 40 * 3)
    assert isinstance(loader(pictures, np.arange(5), pictures.preprocess, CPU), Resident)
    assert type(loader(pictures, np.arange(6), pictures.preprocess, CPU)) is Loader


def test_the_model_gets_the_runtimes_numbers() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    ours = to_model_input(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(ours.contiguous().numpy(), to_tensor(pixels))


def test_waiting_is_the_time_in_which_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of our own: each batch takes 3 s to come and 5 s to be used."""
    now = 0.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)

    def slow() -> object:
        nonlocal now
        for _ in range(4):
            now += 3
            yield DeviceBatch(np.arange(1), torch.empty(0), torch.empty(0), ())

    waiting = Waiting(CPU)
    for _ in waiting.on(slow()):  # type: ignore[arg-type]
        now += 5
    assert waiting.seconds() == 12
    assert waiting.seconds() == 0
