"""The notebooks run from their first cell to their last, smaller than they are committed, and the committed ones are
whole runs without an error."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[2] / "examples" / "notebooks"
SMALLER = {
    "masking.ipynb": {"EPOCHS, IMAGES = 8, 300": "EPOCHS, IMAGES = 2, 60"},
    "your_onnx.ipynb": {
        'IMAGES, SUITE = 350, "standard"': 'IMAGES, SUITE = 40, "fast"',
        "range(len(data.test))": "range(200)",
    },
}


def test_all_are_known() -> None:
    assert sorted(SMALLER) == sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("name", SMALLER)
def test_what_is_committed_is_one_run_and_small(name: str) -> None:
    path = NOTEBOOKS / name
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs and not {output.output_type for output in outputs} & {"error"}
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert path.stat().st_size < 100_000


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLER)
def test_it_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells)
    for before, after in SMALLER[name].items():
        assert before in text
        for cell in notebook.cells:
            cell.source = cell.source.replace(before, after)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
