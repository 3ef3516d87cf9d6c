"""The page as a program makes it: of files the command's own page, and of what is in memory the same figures."""

from __future__ import annotations

import pytest

from edgeadv.cli import main
from edgeadv.workflows.reporting import report
from edgeadv_runtime.errors import InputError


def test_of_files_it_is_the_page_of_the_command(results, bench, tmp_path):
    measured, timed = tmp_path / "results.json", tmp_path / "bench.json"
    results().save(measured)
    bench().save(timed)
    assert main(["report", str(measured), str(timed), "--out", str(tmp_path / "typed.html")]) == 0
    called = report([measured, str(timed)], tmp_path / "called.html")
    assert called == tmp_path / "called.html" and called.read_bytes() == (tmp_path / "typed.html").read_bytes()


def test_of_objects_it_differs_in_the_names_of_files_only(results, bench, tmp_path):
    measured, timed = tmp_path / "results-1.json", tmp_path / "bench-2.json"
    results().save(measured)
    bench().save(timed)
    of_files = report([measured, timed], tmp_path / "files.html").read_bytes()
    assert report([results(), bench()], tmp_path / "objects.html").read_bytes() == of_files
    assert "results-1.json" in of_files.decode()
    assert report(results(), tmp_path / "one.html").read_bytes() == report([measured], tmp_path / "x.html").read_bytes()


def test_nothing_to_report_on_is_refused(tmp_path):
    with pytest.raises(InputError, match="a report needs at least one file"):
        report([], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
