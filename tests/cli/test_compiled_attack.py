"""A long job compiles the network that its attacks follow, says so, and goes on where that is not possible."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeadv_runtime.bundle import Bundle
from edgeadv_runtime.errors import BackendError
from edgeadv_runtime.results import Results

ATTACKS = ("--attack", "fgsm,pgd-margin", "--eps", "2/255,8/255", "--suite", "fast")


@pytest.fixture(autouse=True)
def every_job_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeadv.attacks.copies._WORTH_COMPILING", 1)


def gradients(results: Path) -> set[str | None]:
    return {row.gradients for row in Results.load(results).rows if row.attack in ("fgsm", "pgd-margin")}


def test_it_is_said_and_stands_in_the_rows(cli, tiny_bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("edgeadv.attacks.copies.compiled_copy", lambda copied, sample: copied)
    out = tmp_path / "r.json"
    done = cli(
        "evaluate",
        tiny_bundle.path,
        "--data",
        photos,
        *ATTACKS,
        "--backend",
        "torch",
        "--precision",
        "fp32",
        "--out",
        out,
    )
    assert done.status == 0, done.err
    images = Results.load(out).data["n"]
    assert f"of which up to {images * 2 * (1 + 20):,} are to come" in done.err
    assert gradients(out) == {"torch fp32, compiled"}


def test_where_it_cannot_be_the_attacks_run_all_the_same(
    cli, tiny_bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch
) -> None:
    def none(*_: object) -> None:
        raise BackendError("no C++ compiler")

    monkeypatch.setattr("edgeadv.attacks.copies.compiled_copy", none)
    out = tmp_path / "r.json"
    done = cli(
        "evaluate",
        tiny_bundle.path,
        "--data",
        photos,
        *ATTACKS,
        "--backend",
        "torch",
        "--precision",
        "fp32",
        "--out",
        out,
    )
    assert done.status == 0, done.err
    assert "it could not be compiled, and the attacks take longer: no C++ compiler" in done.err
    assert gradients(out) == {"torch fp32"}
