"""Files of ``torch.save``, read without running what they hold and without unpacking more than they are."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeadv_runtime.errors import InputError

# of what a file unpacks to against its size: weights that several names share, and the headers of small files
_MOST_TIMES, _SLACK = 8, 1 << 20
_LISTED = 4


def torch_content(data: bytes) -> Any:
    """What ``torch.save`` wrote: tensors and plain values, on the CPU; no code is ever run.

    Raises:
        Exception: the bytes are no such file, hold other objects, or would unpack to far more than they are.
    """
    if data.startswith(b"PK"):
        # torch writes members as they are; one that is packed a thousand times smaller would be unpacked all the same
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > _MOST_TIMES * len(data) + _SLACK:
            raise ValueError(f"it would unpack to {unpacked} bytes")
    with warnings.catch_warnings():
        # about pickles that torch then refuses, which is what the user is told
        warnings.simplefilter("ignore")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def check_stored(tensors: Mapping[Any, Tensor], size: int, path: Path) -> None:
    """Refuse tensors that show far more numbers than their file of ``size`` bytes stores: a kilobyte may show any
    shape, and copies of it would take all memory.

    Raises:
        InputError: there are such.
    """
    stored = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors.values()}
    shown = {str(name): tensor.numel() * tensor.itemsize for name, tensor in tensors.items()}
    # a layer that is there several times is stored once; what is expanded becomes as large as it shows
    many = {name: shown[name] for name, each in tensors.items() if shown[name] > each.untyped_storage().nbytes()}
    if sum(stored.values()) + sum(many.values()) > _MOST_TIMES * size + _SLACK:
        named = f" in {', '.join(list(many)[:_LISTED])}" if many else ""
        raise InputError(f"{path} shows more numbers{named} than its {size} bytes store: save the weights contiguous")
