"""Code of the user's own is found by module or by file, and whatever it does when it is imported is one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from edgeadv.models.own_code import own_code
from edgeadv_runtime.errors import InputError

OWN = """
from __future__ import annotations
from dataclasses import dataclass
from {name}_beside import FACTOR

@dataclass
class Steps:
    size: int = FACTOR

    @staticmethod
    def run(path):
        from {name}_late import more
        return more(FACTOR)
"""


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Modules in the current directory, under names that no other test has imported."""
    name = f"code_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(OWN.format(name=name))
    (tmp_path / f"{name}_beside.py").write_text("FACTOR = 3\n")
    (tmp_path / f"{name}_late.py").write_text("def more(x):\n    return x + 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", str(tmp_path))])
    return name


def loaded(text: str) -> Any:
    with own_code(text, field="other", files=True) as found:
        return found


def test_a_module_and_a_file_are_found_alike(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(sys.path)
    (tmp_path / "elsewhere").mkdir()
    for text in (f"{name}:Steps.run", f"{tmp_path}/{name}.py:Steps.run"):
        with own_code(text, field="other", files=True) as run:
            # what it imports when it runs is found too
            assert run("x") == 4
        assert sys.path == before
        monkeypatch.chdir(tmp_path / "elsewhere")
        sys.modules.pop(f"{name}_late")
    assert loaded(f"../{name}.py:Steps")().size == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nothing", r"^`other` is written FILE.py:NAME or package.module:NAME, not 'nothing'$"),
        ("{name}.py:", r"^`other` is written FILE.py:NAME or"),
        ("nowhere.py:f", r"^`other` nowhere.py does not exist: it is written FILE.py:NAME$"),
        ("nowhere:f", r"^`other` nowhere:f: there is no module nowhere in .* or among what is installed$"),
        ("{name}.py:g", r"^`other` code_\d+.py has no 'g'; it has Steps$"),
        ("{name}:Steps.g", r"^`other` code_\d+ has no 'Steps.g'; it has Steps$"),
    ],
)
def test_what_is_not_there_is_named(name: str, text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        loaded(text.format(name=name))
    with pytest.raises(InputError, match=r"^`arch` is written package.module:NAME"), own_code("a/b.py:f", field="arch"):
        pass


@pytest.mark.parametrize("source", ["def f(:", "raise SystemExit", "1 / 0", "open('not there')", "import not_there"])
@pytest.mark.parametrize("suffix", ["", ".py"])
def test_whatever_it_does_when_it_is_imported_is_one_line(name: str, source: str, suffix: str) -> None:
    Path(f"{name}.py").write_text(source)
    before = set(sys.modules)
    with pytest.raises(InputError, match=rf"^`other` {name}{suffix} cannot be imported: \w+(Error|Exit)") as caught:
        loaded(f"{name}{suffix}:f")
    assert "\n" not in str(caught.value)
    assert not {each for each in set(sys.modules) - before if name in each}
