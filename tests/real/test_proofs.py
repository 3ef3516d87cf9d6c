"""Networks of strangers that verifiers have judged: what was proved to hold is never broken, what was refuted falls.

A part of ``benchmarks/proofs.py``, which attacks every instance harder.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edgeadv.gradients.graph import GraphModule
from edgeadv.gradients.read_onnx import nodes_of

PROOFS = Path(__file__).resolve().parents[3] / "shared" / "data" / "proofs"
pytestmark = pytest.mark.skipif(not PROOFS.is_dir(), reason=f"{PROOFS} is not there")
NETS = sorted(file.stem for file in PROOFS.glob("*.onnx")) or ["none"]
FEW = 8


@pytest.mark.parametrize("name", NETS)
def test_a_strangers_graph_answers_as_onnxruntime_does(name: str) -> None:
    proto = onnx.load(PROOFS / f"{name}.onnx")
    module = GraphModule(nodes_of(proto), name)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    boxes = np.load(PROOFS / f"{name}.npz", allow_pickle=False)
    for number in range(3):
        x = ((boxes["lower"][number] + boxes["upper"][number]) / 2).astype(np.float32).reshape(1, *given.shape[1:])
        wanted = session.run(None, {given.name: x})[0]
        with torch.no_grad():
            found = module(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(found.reshape(-1), wanted.reshape(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_no_proof_is_broken_and_most_of_what_was_refuted_is(name: str, proofs: ModuleType) -> None:
    rows = proofs.judged(PROOFS / f"{name}.onnx", steps=20, restarts=2, most=FEW)
    assert [row for row in rows if row.verdict == "holds" and row.broken] == []
    refuted = [bool(row.broken) for row in rows if row.verdict == "violated"]
    assert sum(refuted) >= 0.8 * len(refuted)


def test_a_proof_that_is_wrong_would_be_noticed(proofs: ModuleType) -> None:
    """The same attack in a box in which the label does change."""
    net = proofs.Net(PROOFS / "mnist-net_256x2.onnx")
    asked = np.load(PROOFS / "mnist-net_256x2.npz", allow_pickle=False)
    number = asked["verdict"].tolist().index("holds")
    middle = (asked["lower"][number] + asked["upper"][number]) / 2
    hits = proofs.broken_by(
        net,
        np.clip(middle - 0.2, 0, 1),
        np.clip(middle + 0.2, 0, 1),
        int(asked["label"][number]),
        -1,
        steps=20,
        restarts=1,
    )
    assert any(not hit.endswith("8 bits") for hit in hits) and any(hit.endswith("8 bits") for hit in hits)
