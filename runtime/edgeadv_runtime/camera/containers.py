"""How many bytes of a film are missing, by the sizes that its container states of its own parts.

Unlike a number of frames or a length in seconds these are no estimates: a player finds the next part by them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from ..errors import SourceError
from ..reading import opened

_SEGMENT = b"\x18\x53\x80\x67"
_MOST_PARTS = 100_000


def missing_bytes(path: Path) -> int:
    """How many bytes are missing at least: those that MP4, QuickTime, Matroska, WebM, AVI or WAV states beyond the end
    of the file; 0 of other containers, or where it states none.

    Raises:
        SourceError: the file cannot be read.
    """
    with opened(path, what="film", links=True, error=SourceError) as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(12)
        if head[:4] in (b"RIFF", b"RIFX"):
            end = _riff_end(stream, size)
        elif head[:4] == b"\x1a\x45\xdf\xa3":
            end = _matroska_end(stream)
        elif head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            end = _boxes_end(stream, size)
        else:
            return 0
    return max(0, end - size)


def _riff_end(stream: BinaryIO, size: int) -> int:
    """Where the last of the chunks ends; long films are several."""
    end = 0
    for _ in range(_MOST_PARTS):
        stream.seek(end)
        head = stream.read(8)
        stated = int.from_bytes(head[4:8], "little" if head[:4] != b"RIFX" else "big")
        # nothing is stated by a recorder that was never closed
        if len(head) < 8 or head[:4] not in (b"RIFF", b"RIFX") or stated in (0, 0xFFFFFFFF):
            break
        end += 8 + stated + stated % 2
        if end >= size:
            # the byte that fills up an odd chunk is often left out
            return end - stated % 2
    return end


def _boxes_end(stream: BinaryIO, size: int) -> int:
    end = 0
    for _ in range(_MOST_PARTS):
        stream.seek(end)
        head = stream.read(16)
        if len(head) < 8 or end >= size:
            break
        stated = int.from_bytes(head[:4], "big")
        if stated == 1:
            stated = int.from_bytes(head[8:16], "big")
        if stated < 8:  # 0: up to the end of the file; else no box
            break
        end += stated
    return end


def _matroska_end(stream: BinaryIO) -> int:
    """Where the segment ends; 0 where its size is not known, as in a stream."""
    stream.seek(4)
    header = _number(stream)
    if header is None:
        return 0
    stream.seek(header, os.SEEK_CUR)
    if stream.read(4) != _SEGMENT or (length := _number(stream)) is None:
        return 0
    return stream.tell() + length


def _number(stream: BinaryIO) -> int | None:
    """A number of EBML: as many bytes as zeros lead the first one, and one; None for "not known"."""
    first = stream.read(1)
    if not first or not first[0]:
        return None
    extra = 8 - first[0].bit_length()
    rest = stream.read(extra)
    value = int.from_bytes(bytes([first[0] & (0x7F >> extra)]) + rest, "big")
    return None if len(rest) < extra or value == (1 << 7 * (extra + 1)) - 1 else value
