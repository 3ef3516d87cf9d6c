"""Attacks on networks that verifiers have judged: what was proved must stand, what was refuted should fall.

    python benchmarks/proofs.py ../shared/data/proofs --out benchmarks/results/proofs.json

The networks are ONNX files of VNN-COMP 2021, attacked by the gradients of their own graphs inside each instance's box;
ONNX Runtime says whether an instance is broken.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeadv.attacks.iterate import AutoSteps, Steps, again, ascend
from edgeadv.attacks.losses import cross_entropy, dlr, margin, targeted_dlr, targeted_margin, towards
from edgeadv.attacks.norms import Box
from edgeadv.gradients.graph import GraphModule
from edgeadv.gradients.read_onnx import nodes_of
from edgeadv_runtime.device.facts import processor_name


@dataclass(frozen=True)
class Instance:
    """One question to verifiers.

    Attributes:
        net: the file's name.
        number: its place in the file of instances.
        verdict: what verifiers found.
        broken: attacks that broke it, in ONNX Runtime on the original file.
        seconds: of all attacks.
    """

    net: str
    number: int
    verdict: str
    broken: list[str]
    seconds: float


class Net:
    """A network in PyTorch and in ONNX Runtime, on inputs in the file's own shape and scale."""

    def __init__(self, path: Path) -> None:
        proto = onnx.load(path)
        self.module = GraphModule(nodes_of(proto), path.name).eval()
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (given,) = self.session.get_inputs()
        self.name, self.shape = given.name, [1, *given.shape[1:]]

    def torch(self, x: Tensor) -> Tensor:
        """Logits (n, classes) of inputs (n, ...); files with a batch of 1 are asked one by one."""
        parts = [self.module(part.reshape(self.shape)).reshape(1, -1) for part in x.split(1)]
        return torch.cat(parts)

    def runtime(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (classes,) of one input."""
        logits: NDArray[np.float32] = self.session.run(None, {self.name: x.reshape(self.shape)})[0].reshape(-1)
        return logits


class Asked(torch.nn.Module):
    """What attacks call: a module of inputs in four dimensions."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.net.torch(x)


def inward(lower: NDArray[np.float64], upper: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The largest box of float32 numbers inside one of float64."""
    low, high = lower.astype(np.float32), upper.astype(np.float32)
    low = np.where(low < lower, np.nextafter(low, np.float32(np.inf)), low)
    high = np.where(high > upper, np.nextafter(high, np.float32(-np.inf)), high)
    return low, np.maximum(high, low)


def broken(logits: NDArray[np.float32], label: int, target: int) -> bool:
    """Whether the instance's property is violated: strictly, so that a tie breaks nothing."""
    if target >= 0:
        return bool((np.delete(logits, target) < logits[target]).all())
    return bool(np.delete(logits, label).max() > logits[label])


def attacked(
    net: Net, box: Box, label: int, target: int, *, steps: int, restarts: int
) -> dict[str, NDArray[np.float32]]:
    """The worst input of each attack."""
    model, x = Asked(net), (box.lower + box.upper) / 2
    x = box.project(x, x)
    sign: Any = towards if target >= 0 else lambda loss: loss
    labels, found = torch.tensor([target if target >= 0 else label]), {}
    with torch.no_grad():
        logits = model(x)
    losses = {"pgd-margin": margin, "apgd-ce": cross_entropy, "apgd-margin": margin}
    if logits.shape[1] > 2:
        losses["apgd-dlr"] = dlr
    for name, loss in losses.items():
        # the most promising way is tried from many points, and left as soon as one has worked
        def attempt(number: int, rows: Tensor | slice, loss: Any = loss, name: str = name) -> Any:
            way = Steps(box, steps, 2.5 / steps) if name.startswith("pgd") else AutoSteps(box, steps)
            begin = x if number == 0 else box.starts(x, seed=number)
            return ascend(
                model,
                x[rows],
                labels[rows],
                steps=way,
                loss=sign(loss),
                start=begin[rows],
                rank=sign(margin),
                leave=1e-6,
            )

        found[name] = again(attempt, restarts - 1).x.numpy()
    if target < 0 and logits.shape[1] > 3:
        order = logits.scatter(1, labels[:, None], float("-inf")).argsort(dim=1, descending=True)
        for name, loss in (("apgd-t", targeted_dlr), ("apgd-t-margin", targeted_margin)):

            def towards_next(number: int, rows: Tensor | slice, loss: Any = loss) -> Any:
                begin = box.starts(x, seed=number)
                return ascend(
                    model,
                    x[rows],
                    labels[rows],
                    steps=AutoSteps(box, steps),
                    loss=loss,
                    start=begin[rows],
                    targets=order[rows, number],
                    leave=1e-6,
                )

            found[name] = again(towards_next, logits.shape[1] - 2).x.numpy()
    return found


def in_8_bits(
    x: NDArray[np.float32], low: NDArray[np.float32], high: NDArray[np.float32]
) -> NDArray[np.float32] | None:
    """The nearest pixels of 256 levels inside the box; None where a pixel has none there, or the scale is another."""
    if low.min() < 0 or high.max() > 1:
        return None
    first, last = np.ceil(low * 255 - 1e-4), np.floor(high * 255 + 1e-4)
    if (first > last).any():
        return None
    levels = np.clip(np.rint(x * 255), first, last)
    return np.clip((levels / 255).astype(np.float32), low, high)


def broken_by(
    net: Net,
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    label: int,
    target: int,
    *,
    steps: int,
    restarts: int,
) -> list[str]:
    """Attacks that break one instance, in float pixels and rounded to 8 bits, as ONNX Runtime sees it."""
    low, high = inward(lower, upper)
    box = Box(*(torch.from_numpy(end).reshape(1, 1, 1, -1) for end in (low, high)))
    hits = []
    for name, x in attacked(net, box, label, target, steps=steps, restarts=restarts).items():
        flat = x.reshape(-1)
        assert (flat >= low).all() and (flat <= high).all()
        if broken(net.runtime(flat), label, target):
            hits.append(name)
        rounded = in_8_bits(flat, low, high)
        if rounded is not None and broken(net.runtime(rounded), label, target):
            hits.append(f"{name}, 8 bits")
    return hits


def judged(file: Path, *, steps: int, restarts: int, most: int | None = None) -> list[Instance]:
    """Attack the instances of a network that verifiers agree on, at most so many of each verdict."""
    net, asked = Net(file), np.load(file.with_suffix(".npz"), allow_pickle=False)
    rows: list[Instance] = []
    for i, verdict in enumerate(asked["verdict"].tolist()):
        if verdict not in ("holds", "violated") or sum(row.verdict == verdict for row in rows) == most:
            continue
        begun = time.perf_counter()
        box, label, target = (asked["lower"][i], asked["upper"][i]), int(asked["label"][i]), int(asked["target"][i])
        hits = broken_by(net, *box, label, target, steps=steps, restarts=restarts)
        rows.append(Instance(file.stem, i, verdict, hits, round(time.perf_counter() - begun, 2)))
    return rows


def tell(net: str, rows: list[Instance]) -> None:
    """Print a line for each verdict."""
    for verdict in ("holds", "violated"):
        of = [row for row in rows if row.verdict == verdict]
        if of:
            hits, seconds = sum(bool(row.broken) for row in of), sum(row.seconds for row in of)
            print(f"{net:24s} {verdict:9s} {hits:3d} of {len(of):3d} broken, {seconds:6.1f} s", flush=True)


def main() -> None:
    """Attack all instances, and write what was found."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--out", type=Path)
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--restarts", type=int, default=10)
    options.add_argument("--net", action="append")
    given = options.parse_args()
    torch.manual_seed(0)
    rows: list[Instance] = []
    for file in sorted(given.folder.glob("*.onnx")):
        if given.net and file.stem not in given.net:
            continue
        of_net = judged(file, steps=given.steps, restarts=given.restarts)
        tell(file.stem, of_net)
        rows += of_net
    if given.out:
        broken_of = {
            verdict: [
                sum(bool(r.broken) for r in rows if r.verdict == verdict),
                sum(r.verdict == verdict for r in rows),
            ]
            for verdict in ("holds", "violated")
        }
        settings = {"steps": given.steps, "restarts": given.restarts}
        versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "processor": processor_name()}
        about = {**settings, **versions, "broken": broken_of, "instances": [asdict(row) for row in rows]}
        given.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
