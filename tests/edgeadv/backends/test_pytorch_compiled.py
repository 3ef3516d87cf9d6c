"""The compiled backend is the network, under the contract of every backend; here on the processor, for no GPU is at
hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeadv.backends.pytorch import TorchBackend
from edgeadv.backends.pytorch_compiled import CompiledTorchBackend
from edgeadv.workflows.backends import backend_openers
from edgeadv_runtime.backends.golden_check import verify
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.errors import InputError

CPU = torch.device("cpu")


@pytest.mark.parametrize(("variant", "says"), [("fp16", "on a GPU only"), ("int8-s8s8", "serves fp32 and fp16, not")])
def test_what_it_does_not_serve_is_refused(tiny_bundle: Bundle, variant: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        CompiledTorchBackend(tiny_bundle, variant=variant, device=CPU)
    with pytest.raises(InputError, match=r"on a GPU only|serves fp32 and fp16 only"):
        backend_openers(tiny_bundle, backends="torch-compiled", precisions=variant)


def test_it_runs_where_it_is_named_and_not_among_all(tiny_bundle: Bundle) -> None:
    named, _ = backend_openers(tiny_bundle, backends="torch-compiled,torch", precisions="fp32")
    assert list(named) == [("torch-compiled", "fp32"), ("torch", "fp32")]
    every, skipped = backend_openers(tiny_bundle, backends="all", precisions="fp32")
    assert "torch-compiled" not in {name for name, _ in every} | {entry.backend for entry in skipped}


def test_without_a_compiler_it_is_one_sentence(tiny_bundle: Bundle, tmp_path: Path) -> None:
    code = (
        "import sys; from edgeadv.cli import main; "
        f"sys.exit(main(['verify', {str(tiny_bundle.path)!r}, '--backend', 'torch-compiled', '--precision', 'fp32']))"
    )
    environment = {
        **os.environ,
        "CXX": "no-such-compiler",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("edgeadv: ")]
    assert "cannot compile here" in line and "use --backend torch" in line


@pytest.mark.slow
def test_it_computes_what_the_network_does(tiny_bundle: Bundle) -> None:
    x = np.random.default_rng(0).random((3, *tiny_bundle.preprocess.input_shape), dtype=np.float32)
    with CompiledTorchBackend(tiny_bundle, device=CPU) as compiled, TorchBackend(tiny_bundle, device=CPU) as plain:
        assert (compiled.name, compiled.variant, compiled.provider) == ("torch-compiled", "fp32", "cpu")
        assert compiled.artifact_sha256 == plain.artifact_sha256
        np.testing.assert_allclose(compiled.infer(x), plain.infer(x), rtol=1e-4, atol=1e-5)
        (verification,) = verify(tiny_bundle, [compiled])
    assert verification.ok, str(verification)
