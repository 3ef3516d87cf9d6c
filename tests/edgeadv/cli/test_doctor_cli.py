"""``edgeadv doctor`` on the terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.doctor import Check


def test_it_shows_every_check_whole_and_succeeds_whatever_is_missing(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import edgeadv.cli.doctor as module

    checks = [
        Check("extra train", "missing", "not installed: torch", 'pip install "edgeadv[train]"'),
        Check("a problem", "problem", "x" * 120, None),
    ]
    monkeypatch.setattr(module, "diagnose", lambda bundles, public_key: checks)
    run = cli("doctor")
    assert (run.status, run.err) == (0, "")
    for check in checks:
        for text in (check.status, check.name, check.detail, check.hint or ""):
            assert text in run.out


def test_it_tries_the_bundles_it_is_given(cli: Any, tiny_bundle: Bundle, tmp_path: Path) -> None:
    # longer than the lines of most terminals
    nowhere = tmp_path / ("long" * 60) / "nowhere"
    run = cli("doctor", tiny_bundle.path, nowhere)
    assert run.status == 0, run.err
    lines = run.out.splitlines()
    assert any(line.startswith("ok") and tiny_bundle.id[:12] in line for line in lines)
    assert any(line.startswith("problem") and str(nowhere) in line for line in lines)
    assert any(line.startswith("ok") and "onnxruntime cpu: fp32, fp16" in line for line in lines)
    for backend in ("onnxruntime cuda", "onnxruntime tensorrt", "tensorrt:", "tensorrt-rtx:", "int8"):
        assert any(backend in line for line in lines), backend


def test_it_asks_what_is_installed_without_loading_it() -> None:
    code = (
        "import sys; from edgeadv.cli import main; assert main(['doctor']) == 0; "
        "print(sorted({'torch', 'torchvision', 'timm', 'onnx', 'cv2', 'jinja2', 'matplotlib', 'safetensors', "
        "'mlxtend', 'tensorboard', 'cryptography'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
