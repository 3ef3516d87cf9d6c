"""``edgeadv report`` as a command."""

from __future__ import annotations

import subprocess
import sys

import typer
from typer.testing import CliRunner

from edgeadv.cli import main
from edgeadv.cli._options import with_options
from edgeadv.cli.report import report as command


def test_command_writes_the_page_and_prints_its_path(results, bench, tmp_path):
    results().save(tmp_path / "results.json")
    bench().save(tmp_path / "bench.json")
    app = typer.Typer()
    app.command()(with_options(command))
    out = tmp_path / "pages" / "report.html"
    files = [str(tmp_path / "results.json"), str(tmp_path / "bench.json")]
    outcome = CliRunner().invoke(app, [*files, "--out", str(out)])
    assert outcome.exit_code == 0, outcome.output
    assert outcome.output.split() == [str(out)]
    assert 'data-verdict="MASKED"' in out.read_text(encoding="utf-8")


def test_command_refuses_one_device_in_two_power_modes_in_one_line(bench, tmp_path, capsys):
    for name, mode in (("a", "MAXN"), ("b", "15W")):
        state = {"power_mode": mode}
        bench(conditions={"before": state, "after": state}).save(tmp_path / f"{name}.json")
    out = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--out", str(out)]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and "a.json" in line and "b.json" in line and "power_mode MAXN and 15W" in line
    assert not out.exists()


def test_command_needs_neither_torch_nor_the_extra_to_load():
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'jinja2', 'matplotlib', 'markupsafe')))\n"
        "import edgeadv.cli.report\n"
    )
    environment_path = [path for path in sys.path if path]
    code = f"import sys; sys.path[:0] = {environment_path!r}\n{code}"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
