"""The story of the traffic signs, on a slice of the real data: from a folder to a card."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from edgeadv_runtime.records.results import Results

ROOT = Path(__file__).resolve().parents[2]
SIGNS = ROOT.parent / "shared" / "data" / "gtsrb"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SIGNS.is_dir(), reason="the traffic signs are not in ../shared/data beside the checkout"),
]


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames of each class to train on, 4 more of a track that is held out, and 12 to test on."""
    folder = tmp_path_factory.mktemp("signs")
    held_out = [
        line.removesuffix("*")
        for line in (ROOT / "examples" / "signs" / "holdout-tracks.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    for part, archive in (("train", "gtsrb48-train.zip"), ("test", "gtsrb48-test-dev.zip")):
        with zipfile.ZipFile(SIGNS / archive) as zipped:
            count: Counter[str] = Counter()
            for name in zipped.namelist():
                _, class_id, file = name.split("/")
                track = f"{class_id}/{file.partition('_')[0]}_" if part == "train" else ""
                kind, most = (track, 4) if track in held_out else (class_id, 20 if part == "train" else 12)
                if file and count[kind] < most:
                    count[kind] += 1
                    zipped.extract(name, folder)
    return folder


def test_from_a_folder_to_a_card(signs: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "02_signs.py"), str(signs), "--quick", "--out", "out"]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    results = Results.load(tmp_path / "out" / "results.json")
    assert results.rows[0].n == 100 and results.overall_verdict == "UNCHECKED"
    lines = done.stdout.splitlines()
    assert lines[0].startswith("verdict UNCHECKED: ") and "worst case at 8/255" in lines[1]
    page = (tmp_path / "out" / "card.html").read_text()
    assert "UNCHECKED" in page and "int8-u8s8" in page
