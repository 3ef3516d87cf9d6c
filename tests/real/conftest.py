"""What several tests on real inputs need."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="module")
def proofs() -> ModuleType:
    """``benchmarks/proofs.py``, which knows the strangers' networks."""
    torch.set_num_threads(1)
    file = Path(__file__).resolve().parents[2] / "benchmarks" / "proofs.py"
    spec = importlib.util.spec_from_file_location("proofs", file)
    assert spec is not None and spec.loader is not None
    module = sys.modules["proofs"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
