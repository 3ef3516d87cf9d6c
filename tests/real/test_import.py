"""Strangers' networks enter by ``edgeadv import``, whatever shape and scale they have."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgeadv.cli import main
from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.bundle.bundle import Bundle

PROOFS = Path(__file__).resolve().parents[3] / "shared" / "data" / "proofs"
pytestmark = pytest.mark.skipif(not PROOFS.is_dir(), reason=f"{PROOFS} is not there")
NETS = sorted(file.stem for file in PROOFS.glob("*.onnx")) or ["none"]


@pytest.mark.parametrize("name", NETS)
def test_it_enters_by_the_command(
    name: str, proofs: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = PROOFS / f"{name}.onnx", tmp_path / "by-command.edgeadv"
    proofs.imported(file, tmp_path / "first" / "net.edgeadv")
    options = {key: value for key, value in vars(proofs.convention_of(name).options).items() if value is not None}
    given = [part for key, value in options.items() for part in (f"--{key}", value)]
    given += ["--golden", str(tmp_path / "first" / "frames"), "--out", str(out)]
    assert main(["import", str(file), *given]) == 0, capsys.readouterr().err
    told = capsys.readouterr().err
    assert "any batch" in told and "queries only" not in told
    bundle = Bundle.open(out)
    parity = bundle.manifest.variants["fp32"].parity
    assert parity is not None and not parity.flips and parity.max_relative_error < 1e-5
    # a middle of a box, in the bundle and in the file
    net = proofs.Net(file)
    middle = np.load(file.with_suffix(".npz"), allow_pickle=False)["lower"][0]
    image = net.image(middle).astype(np.float32)
    with OnnxRuntimeBackend(bundle) as backend:
        both = backend.infer(np.stack([image, image[:, ::-1].copy()]))[0]
    wanted = net.runtime(middle.astype(np.float32))
    np.testing.assert_allclose(both, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", NETS)
def test_a_dry_run_says_what_the_file_does_not(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "--check", str(PROOFS / f"{name}.onnx")]) == 0
    told = capsys.readouterr().out
    assert "gradients          of its own graph" in told and "needed             --preprocess" in told
    # one of them normalises inside
    assert ("needed             --scale" in told) == (name != "ffnnSIGMOID__Point_6x200")
