"""Lists of images: which they name, and what is said of those that name none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeadv.data.lists import named_by
from edgeadv_runtime.errors import InputError

NAMES = ["00000/00001_00000.jpg", "00000/00001_00002.jpg", "00000/00010_00000.jpg", "00001/[old] 00001_00000.jpg"]


def test_names_patterns_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(b"\xef\xbb\xbf# tracks\r\n\r\n00001/[old] 00001_00000.jpg\r\n  00000/00001_*  \r\n")
    found = named_by(file, NAMES, field="only")
    assert found.dtype == np.int64 and found.tolist() == [0, 1, 3]
    # as Windows writes them
    assert named_by(file, [name.replace("/", "\\") for name in NAMES], field="only").tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "names no image: give a name or a pattern a line"),
        (b"# nothing\n", "names no image: give a name or a pattern a line"),
        (b"00000/00001_*\n00002/*\n", "'00002/*' names none of 4 images, e.g. 00000/00001_00000.jpg"),
        (b"\xff\xfe0\n", "is no text in UTF-8: give a name or a pattern of images a line"),
    ],
)
def test_what_names_nothing(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(content)
    with pytest.raises(InputError) as raised:
        named_by(file, NAMES, field="only")
    assert said in str(raised.value) and str(raised.value).startswith("`only`")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.txt"):
        named_by(tmp_path / "none.txt", NAMES, field="only")
