"""Every format, changed in hundreds of ways with a fixed seed: read or refused in one line, soon and in little memory.

``python -m tests.fuzz --seconds N --seed S`` does the same for longer, with other seeds.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.__main__ import in_child
from tests.fuzz.formats import FORMATS
from tests.fuzz.running import FEWEST, NAMES, whole
from tests.fuzz.seeds import make

# inputs of a format and seconds that they may take, by whether the long tests run
FEW, MANY = (25, 3), (300, 12)


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    make(folder)
    return folder


def test_what_was_not_changed_is_accepted(seeds: Path, tmp_path: Path) -> None:
    assert {name: refused for name in FORMATS if (refused := whole(name, seeds, tmp_path))} == {}


@pytest.mark.parametrize(("most", "seconds"), [FEW, pytest.param(*MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_a_changed_file_is_read_or_refused(name: str, most: int, seconds: float, seeds: Path) -> None:
    if name == "engine record" and not (seeds / "cache").exists():
        pytest.skip("the extra tensorrt-rtx is not installed")
    found = in_child(name, seeds, seed=0, seconds=seconds, most=most)
    assert found["faults"] == []
    assert found["inputs"] >= FEWEST
