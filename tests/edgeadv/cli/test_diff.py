"""``edgeadv diff`` as typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeadv_runtime.bundle.bundle import Bundle

# tests/edgeadv/conftest.py: what a command left on the terminal
Cli = Callable[..., Any]
SAME = """
import numpy as np
from PIL import Image

def prepare(path):
    return np.asarray(Image.open(path).convert("RGB"))
"""
OTHER = SAME.replace('Image.open(path).convert("RGB"))', 'Image.open(path).convert("RGB"))[..., ::-1]')


def test_a_pipeline_in_a_file(cli: Cli, tmp_path: Path, tiny_bundle: Bundle, photos: Path) -> None:
    (tmp_path / "same.py").write_text(SAME)
    (tmp_path / "other.py").write_text(OTHER)
    arguments = ["diff", "--bundle", tiny_bundle.path, "--data", photos]
    same = cli(*arguments, "--with", "same.py:prepare", "--limit", "10")
    assert same.status == 0 and same.out == "the same pixels for all 10 pictures\n"
    found, warned = same.err.splitlines()
    assert found.endswith("photos0: 72 pictures, 72 of them in deeper folders")
    assert warned.startswith("the code of same.py:prepare is imported and run, as you asked")
    other = cli(*arguments, "--with", "other.py:prepare")
    assert other.status == 1
    lines = other.out.splitlines()
    assert lines[0] == "first differing step: colour: its channels are BGR, in OpenCV's order"
    assert lines[1].startswith("64 of 64 pictures differ: by ")
    assert lines[3].endswith("of 64 first labels change") and len(lines) == 4 + int(lines[3].split()[0])


def test_pixels_that_differ_by_their_scaling_alone(cli: Cli, tmp_path: Path, tiny_bundle: Bundle, photos: Path) -> None:
    (tmp_path / "levels.py").write_text(SAME.replace('"))', '"), np.float32).transpose(2, 0, 1)'))
    found = cli("diff", "--bundle", tiny_bundle.path, "--data", photos, "--with", "levels.py:prepare", "--limit", "9")
    lines = found.out.splitlines()
    assert lines[0].endswith("its numbers are 0 to 255: they are not divided by 255")
    assert lines[1:3] == [
        "9 of 9 pictures differ: by their scaling alone",
        "with this step done so ours gives the same",
    ]


def test_what_is_wrong_is_one_line(cli: Cli, tmp_path: Path, tiny_bundle: Bundle, photos: Path) -> None:
    (tmp_path / "same.py").write_text(SAME)
    (tmp_path / "ends.py").write_text(SAME + "\nimport sys\nsys.exit(0)\n")
    (tmp_path / "leaves.py").write_text(SAME.replace("return", "raise SystemExit(0)\n    return"))
    arguments = ["diff", "--bundle", tiny_bundle.path]
    for more, says in (
        (["--data", photos, "--with", "no.py:prepare"], "--with no.py does not exist"),
        (["--data", photos, "--with", "same.py:no"], "--with same.py has no 'no'; it has prepare"),
        (["--data", photos, "--with", "ends.py:prepare"], "--with ends.py cannot be imported: SystemExit: 0 (ends.py"),
        (["--data", photos, "--with", "leaves.py:prepare"], ": SystemExit: 0 (leaves.py, line 6); it takes"),
        (["--data", "nowhere", "--with", "same.py:prepare"], "--data nowhere does not exist"),
        (["--data", photos, "--with", "same.py:prepare", "--variant", "int8-s8s8"], "carries no variant"),
    ):
        refused = cli(*arguments, *more)
        assert refused.status == 2 and says in refused.err and not refused.out, refused.err
        assert "Traceback" not in refused.err
