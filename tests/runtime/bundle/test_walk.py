"""One walk over pictures: what is taken, what is left out, and that it is said."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest
from PIL import Image

import edgeadv_runtime
from edgeadv_runtime.bundle.walk import LOOKED_AT, Walk, pictures, shown
from edgeadv_runtime.errors import DataError

LOG = "edgeadv_runtime.bundle.walk"


def save(path: Path, mode: str = "RGB", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (9, 7), 3 if mode == "P" else None).save(path, **options)
    return path


def line(folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    with caplog.at_level("INFO", logger=LOG):
        pictures(folder)
    assert len(caplog.messages) <= 1
    return caplog.messages[0] if caplog.messages else ""


def test_pictures_of_any_depth_are_taken_and_hidden_ones_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taken = [save(tmp_path / name) for name in ("a.png", "b.JPG", "deep/er/c.bmp")]
    for name in ("._a.png", ".hidden/d.png", "__MACOSX/a.png", "@eaDir/a.png", "deep/.DS_Store.png"):
        save(tmp_path / name)
    (tmp_path / "Thumbs.db").write_bytes(b"")
    (tmp_path / "labels.csv").write_text("")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "itself.png").symlink_to("itself.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert pictures(tmp_path) == sorted(taken)
    assert line(tmp_path, caplog).endswith(
        ": 3 pictures, 1 of them in deeper folders; left out: 3 hidden files, 3 hidden folders, 2 links to nothing, 1 "
        "other file, 1 special file"
    )


def test_nothing_is_said_where_nothing_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "a.png")
    assert line(tmp_path, caplog) == ""


def test_turned_and_transparent_pictures_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "turned.jpg", exif=exif)
    save(tmp_path / "palette.png", "P", transparency=3)
    save(tmp_path / "alpha.png", "RGBA")
    save(tmp_path / "plain.png")
    (tmp_path / "broken.png").write_bytes(b"")
    assert line(tmp_path, caplog).endswith(
        "5 pictures; of 4 looked at 1 turned by EXIF (as `preprocess` says, by default not), 2 with transparency "
        "(which is dropped)"
    )


def test_a_large_folder_is_looked_at_here_and_there(tmp_path: Path) -> None:
    found = [save(tmp_path / f"{i:03}.png") for i in range(3 * LOOKED_AT)]
    walk = Walk(tmp_path)
    walk.tell(found)
    assert walk.sides == [7] * LOOKED_AT


def test_a_link_to_a_folder_is_followed_and_a_circle_is_not(tmp_path: Path) -> None:
    save(tmp_path / "data/a/x.png")
    save(tmp_path / "elsewhere/y.png")
    (tmp_path / "data/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/a/up").symlink_to(tmp_path / "data")
    walk = Walk(tmp_path / "data")
    assert [path.name for path in walk.pictures()] == ["x.png", "y.png"]
    assert walk.left_out["links in a circle"] == 1
    assert [path.name for path in Walk(tmp_path / "data").folders()] == ["a", "b"]


def test_folders_without_end_are_walked(tmp_path: Path) -> None:
    """As deep as a path may be: recursion would end before."""
    folder, made = tmp_path, []
    for _ in range(1200):
        folder /= "d"
        folder.mkdir()
        made.append(folder)
    picture = save(folder / "x.png")
    try:
        assert pictures(tmp_path) == [picture]
    finally:
        picture.unlink()
        for folder in reversed(made):
            folder.rmdir()


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"caf\xe9/x.png"])
def test_names_that_are_not_utf8_are_refused(name: bytes, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    save(path)
    with pytest.raises(DataError, match=r"caf\\xe9.* is not UTF-8: rename it") as refused:
        pictures(tmp_path)
    str(refused.value).encode()
    with pytest.raises(DataError, match="is not UTF-8"):
        Walk(path)


def test_control_characters_are_shown_escaped() -> None:
    assert shown("a\x1b[31m\nb") == r"a\x1b[31m\nb" and shown("naïve") == "naïve"


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images that can be read here"):
        pictures(tmp_path / "none")
    with pytest.raises(DataError, match="holds no images that can be read here"):
        Walk(save(tmp_path / "x.png")).folders()


PACKAGES = [Path(edgeadv_runtime.__file__).parents[2] / name for name in ("edgeadv", "runtime", "export")]
SOURCES = [file for package in PACKAGES for file in sorted(package.rglob("*.py"))]


def calls(file: Path) -> set[str]:
    """What ``file`` calls, as it is written."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def test_nothing_else_opens_picture_files_or_looks_for_them() -> None:
    """A second walk, or a second place that decodes, would have rules of its own."""
    found = {name: {file.name for file in SOURCES if name in calls(file)} for name in ("Image.open", "os.scandir")}
    # digital.py reads the JPEG that it has just written
    assert found["Image.open"] == {"pictures.py", "digital.py"}
    assert found["os.scandir"] <= {"walk.py", "files.py"}
    endings = {file.name for file in SOURCES if "Image.registered_extensions" in calls(file)}
    assert endings == {"walk.py"}
