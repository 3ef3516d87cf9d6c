"""Attacks on networks that verifiers have judged: what was proved must stand, what was refuted should fall.

    python benchmarks/proofs.py ../shared/data/proofs --out benchmarks/results/proofs.json

The networks are ONNX files of VNN-COMP 2021. What ``edgeadv import`` makes of each is attacked by the gradients of its
own graph inside each instance's box; ONNX Runtime says of the file as it came whether an instance is broken.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edgeadv import Bundle, ImportOptions, import_onnx
from edgeadv.attacks.iterate import AutoSteps, Steps, again
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


@dataclass(frozen=True)
class Convention:
    """What the contest says of a file, in the words of ``edgeadv import``.

    Attributes:
        side: of its square pictures.
        gray: whether they have one channel.
        mean: that is taken from pixels in [0, 1] before the file.
        std: that they are divided by then.
        nhwc: whether the channels are last.
    """

    side: int
    gray: bool = False
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    nhwc: bool = False

    @property
    def options(self) -> ImportOptions:
        """Of the import."""
        plain = self.std == (1.0,)
        scale = "0..1" if plain else "/".join(",".join(map(str, part)) for part in (self.mean, self.std))
        color, gray = ("gray", ",color=gray") if self.gray else ("rgb", "")
        return ImportOptions(scale=scale, color=color, classes="10", preprocess=f"crop={self.side}{gray}")

    def pixels(self, flat: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pixels in [0, 1], (channels, side, side), of numbers in the file's own scale and order."""
        channels = 1 if self.gray else 3
        shape = (self.side, self.side, channels) if self.nhwc else (channels, self.side, self.side)
        x = flat.reshape(shape).transpose(2, 0, 1) if self.nhwc else flat.reshape(shape)
        return x * np.reshape(self.std, (-1, 1, 1)) + np.reshape(self.mean, (-1, 1, 1))

    def flat(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """The file's numbers of an image in [0, 1], (channels, side, side)."""
        x = (image.astype(np.float64) - np.reshape(self.mean, (-1, 1, 1))) / np.reshape(self.std, (-1, 1, 1))
        return (x.transpose(1, 2, 0) if self.nhwc else x).reshape(-1).astype(np.float32)


_CIFAR = Convention(32, mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616))
_KW = Convention(32, mean=(0.485, 0.456, 0.406), std=(0.225, 0.225, 0.225))
# the margin, of the largest logit, at which an attack has done enough
_AT_ONCE = 1e-6
_DIGITS = Convention(28, gray=True)
CONVENTIONS = {
    "resnet": _CIFAR,
    "cifar_": _KW,
    "cifar10_": Convention(32, nhwc=True),
    "": _DIGITS,
}
"""By the beginning of a file's name; the boxes' least and largest numbers are those of black and white in it."""


def convention_of(name: str) -> Convention:
    """That of the file called ``name``."""
    return next(found for begin, found in CONVENTIONS.items() if name.startswith(begin))


class Net:
    """What ``edgeadv import`` makes of a file, which is attacked, and the file as it came, which is asked."""

    def __init__(self, path: Path) -> None:
        self.convention = convention_of(path.stem)
        with tempfile.TemporaryDirectory() as folder:
            bundle = imported(path, Path(folder) / "net.edgeadv")
            proto = onnx.load(bundle.onnx_path("fp32"))
        self.module = GraphModule(nodes_of(proto), path.name).eval()
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (given,) = self.session.get_inputs()
        self.name, self.shape = given.name, [1, *given.shape[1:]]

    def image(self, flat: NDArray[np.float64]) -> NDArray[np.float64]:
        """The bundle's image, (channels, side, side) in [0, 1], of numbers in the file's own scale and order."""
        return self.convention.pixels(flat)

    def runtime(self, flat: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (classes,) of one input of the file."""
        logits: NDArray[np.float32] = self.session.run(None, {self.name: flat.reshape(self.shape)})[0].reshape(-1)
        return logits


def imported(path: Path, out: Path) -> Bundle:
    """The bundle of a file, compared with it on the middles of its own boxes."""
    convention, asked = convention_of(path.stem), np.load(path.with_suffix(".npz"), allow_pickle=False)
    frames = out.parent / "frames"
    frames.mkdir(parents=True)
    for i, middle in enumerate((asked["lower"] + asked["upper"]) / 2):
        levels = np.rint(convention.pixels(middle).transpose(1, 2, 0) * 255).astype(np.uint8)
        Image.fromarray(levels[..., 0] if convention.gray else levels).save(frames / f"{i:03d}.png")
    return import_onnx(path, out, frames=frames, options=convention.options)


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
    model, x = net.module, (box.lower + box.upper) / 2
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
        def fresh(name: str = name) -> Steps:
            return Steps(box, steps, 2.5 / steps) if name.startswith("pgd") else AutoSteps(box, steps)

        def begin(number: int, rows: Tensor) -> tuple[Tensor, None]:
            return (x if number == 0 else box.starts(x, seed=number))[rows], None

        worst = again(
            model, x, labels, begin, restarts, steps=fresh, loss=sign(loss), rank=sign(margin), leave=_AT_ONCE
        )
        found[name] = worst.x.numpy()
    if target < 0 and logits.shape[1] > 3:
        order = logits.scatter(1, labels[:, None], float("-inf")).argsort(dim=1, descending=True)
        for name, loss in (("apgd-t", targeted_dlr), ("apgd-t-margin", targeted_margin)):

            def begin_towards(number: int, rows: Tensor) -> tuple[Tensor, Tensor]:
                return box.starts(x, seed=number)[rows], order[rows, number]

            worst = again(
                model,
                x,
                labels,
                begin_towards,
                logits.shape[1] - 1,
                steps=lambda: AutoSteps(box, steps),
                loss=loss,
                leave=_AT_ONCE,
            )
            found[name] = worst.x.numpy()
    return found


def in_8_bits(
    x: NDArray[np.float32], low: NDArray[np.float32], high: NDArray[np.float32]
) -> NDArray[np.float32] | None:
    """The nearest pixels of 256 levels inside the box; None where a pixel has none there."""
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
    ends = inward(net.image(lower), net.image(upper))
    box = Box(*(torch.from_numpy(end)[None] for end in ends))
    hits = []
    for name, x in attacked(net, box, label, target, steps=steps, restarts=restarts).items():
        for image, how in ((x[0], name), (in_8_bits(x[0], *ends), f"{name}, 8 bits")):
            if image is None:
                continue
            # the last bit of the way into the file's own scale must not leave its box
            flat = net.convention.flat(image)
            inside = np.clip(flat, low, high)
            assert np.abs(flat - inside).max() < 1e-5
            if broken(net.runtime(inside), label, target):
                hits.append(how)
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
