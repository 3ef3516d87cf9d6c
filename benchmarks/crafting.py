"""FGSM and PGD images/s of edgeadv and three peers: same network, images, eps and process, as paired ratios.

The adversarial images are compared too, and how many labels they turn: speed that costs strength is worthless. All take
every step: edgeadv's rule that an image which is broken leaves the batch is switched off here, and so is foolbox's and
ART's choice of the best. What edgeadv does once a model, copying and folding it, is in ``start_s``. On a GPU edgeadv
computes without TF32, as its commands do, and the peers with what PyTorch allows them; torchattacks has a row without
it, too. Other ways have rows of their own with ``--levers`` (see ``levers.py``); of those that compile with the number
of gradients after which their start is paid for. ``float16`` is what edgeadv's commands follow on a GPU with
``--gradients float16``.

With ``--strength BUNDLE --data FOLDER`` also what is left of the accuracy of a trained network when its own gradients
are followed, when the copy's are, and when those of the levers that change numbers are, image by image.

    python benchmarks/crafting.py --arch regnet_y_400mf --batch 16 --out
    benchmarks/results/crafting-regnet_y_400mf-cpu.json
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.metadata
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foolbox
import numpy as np
import torch
import torchattacks
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from levers import PRECISIONS, in_order, pulled, settings
from paired import in_turn, named, ratio, save
from torch import Tensor, nn

from edgeadv.attacks import cross_entropy, fgsm, pgd
from edgeadv.attacks.float16 import HalfCopy
from edgeadv.data.datasets import balanced_subset, batches, open_data
from edgeadv.gradients.artefact import open_graph
from edgeadv.gradients.graph import GraphModule
from edgeadv.gradients.read_onnx import nodes_of
from edgeadv.models.builder import Architecture, build
from edgeadv.models.checkpoints import load_state, read_weights
from edgeadv.models.device import memory_order
from edgeadv_export.to_onnx import to_onnx
from edgeadv_runtime import Bundle, __version__
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.records.eps import Eps

EPS = "8/255"
EXACT = "torchattacks without TF32"
PACKAGES = {
    "torchattacks": "torchattacks",
    "foolbox": "foolbox",
    "art": "adversarial-robustness-toolbox",
    EXACT: "torchattacks",
}


def ours(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """One step, or ``steps`` of 2.5 eps / steps."""
    if steps == 1:
        return fgsm(model, x, y, eps=eps)[0].x
    return pgd(model, x, y, eps=eps, steps=steps, loss=cross_entropy, leave=float("inf")).x


def peers(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, side: int, classes: int
) -> dict[str, Callable[[], Tensor]]:
    """The same attack of each peer."""
    device, size = x.device, 2.5 * eps / steps
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=device)
    art = PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=(3, side, side),
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if x.is_cuda else "cpu",
    )
    one_hot, pixels = np.eye(classes, dtype=np.float32)[y.cpu().numpy()], x.cpu().numpy()
    if steps == 1:
        theirs: Any = torchattacks.FGSM(model, eps=eps)
        box: Any = foolbox.attacks.LinfFastGradientAttack()
        evasion: Any = FastGradientMethod(art, norm=np.inf, eps=eps, batch_size=len(x))
    else:
        theirs = torchattacks.PGD(model, eps=eps, alpha=size, steps=steps, random_start=False)
        box = foolbox.attacks.LinfPGD(abs_stepsize=size, steps=steps, random_start=False)
        evasion = ProjectedGradientDescent(
            art, norm=np.inf, eps=eps, eps_step=size, max_iter=steps, batch_size=len(x), verbose=False
        )
    return {
        "torchattacks": lambda: theirs(x, y),
        "foolbox": lambda: box(wrapped, x, y, epsilons=eps)[1],
        "art": lambda: torch.from_numpy(evasion.generate(pixels, one_hot)).to(device),
    }


def quiet(model: nn.Module) -> nn.Module:
    """``model`` with factors of 1/2 in its BatchNorms: with random weights and factors of 1, a deep one's activations
    are beyond float16."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.5)
    return model.eval()


def measure(architecture: str, steps: int, options: argparse.Namespace) -> dict[str, Any]:
    """One network and one attack."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classes, eps = 1000, Eps.parse(options.eps).value
    x = torch.rand(options.batch, 3, options.side, options.side, device=device)
    model = quiet(build(Architecture.find(architecture, num_classes=classes)).to(device))
    y = torch.randint(classes, (options.batch,), device=device)
    start = time.perf_counter()
    with settings("edgeadv"):
        graph = nodes_of(to_onnx(copy.deepcopy(model).cpu(), (3, options.side, options.side)))
        copied = GraphModule(graph, architecture).eval().to(device, memory_format=memory_order(device))
    starts = {"edgeadv": time.perf_counter() - start}
    fast = x.contiguous(memory_format=memory_order(device))
    attacks = {
        "edgeadv": lambda: ours(copied, fast, y, eps, steps),
        **peers(model, x, y, eps, steps, options.side, classes),
    }
    attacks = {name: attack for name, attack in attacks.items() if name in ("edgeadv", *options.peers)}
    set_to = dict.fromkeys(attacks, "tf32") | {name: name for name in ("edgeadv", *options.levers)}
    if device.type == "cuda":
        # the same arithmetic as edgeadv's
        attacks[EXACT], set_to[EXACT] = attacks["torchattacks"], EXACT
    followed: dict[str, Any] = {}
    for lever in options.levers:
        start = time.perf_counter()
        with settings(lever):
            given = in_order(lever, fast)
            followed[lever] = pulled(lever, copied, given, y)
            attacks[lever] = functools.partial(ours, followed[lever], given, y, eps, steps)
            attacks[lever]()
        starts[lever] = starts["edgeadv"] + time.perf_counter() - start

    def crafted(name: str) -> Tensor:
        with settings(set_to[name]):
            return attacks[name]()

    def finished(name: str, _: int) -> None:
        crafted(name)
        if device.type == "cuda":
            torch.cuda.synchronize()

    made = {name: crafted(name) for name in attacks}
    with settings("edgeadv"), torch.no_grad():
        clean = model(x).argmax(dim=1)
        turned = {name: float((model(images).argmax(dim=1) != clean).float().mean()) for name, images in made.items()}
    calls = {name: functools.partial(finished, name) for name in attacks}
    seconds = in_turn(calls, rounds=options.rounds, warm_up=1)
    libraries = []
    for name, taken in seconds.items():
        entry = {
            "library": name,
            "version": importlib.metadata.version(PACKAGES[name]) if name in PACKAGES else __version__,
            "images_per_s": round(options.batch / statistics.median(taken), 2),
            "edgeadv_speedup": ratio(taken, seconds["edgeadv"]),
            "labels_turned": turned[name],
            "same_pixels_1e-4": float(((made[name] - made["torchattacks"]).abs() <= 1e-4).float().mean()),
        }
        if name in options.levers:
            entry["over_torchattacks"] = ratio(seconds["torchattacks"], taken)
        if isinstance(followed.get(name), HalfCopy):
            entry["float32_gradients"] = followed[name].repaired
        if name in starts:
            entry["start_s"] = round(starts[name], 2)
        if "compiled" in name or "static" in name:
            gain = (statistics.median(seconds["edgeadv"]) - statistics.median(taken)) / options.batch / steps
            entry["paid_after_gradients"] = round((starts[name] - starts["edgeadv"]) / gain) if gain > 0 else None
        libraries.append(entry)
        print(f"{architecture} {steps} steps: {entry}", flush=True)
    return {
        "architecture": architecture,
        "attack": "fgsm" if steps == 1 else f"pgd-{steps}",
        "on": named(device, options.threads),
        "libraries": libraries,
    }


def strength(options: argparse.Namespace) -> dict[str, Any]:
    """Accuracy under FGSM and PGD by the gradients of a network itself and of its exported graph, on the network."""
    bundle, eps = Bundle.open(options.strength), Eps.parse(options.eps)
    images = open_data(options.data, split="test").relabel(bundle.classes)
    order = balanced_subset(images.labels, options.limit)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(Architecture.from_json(bundle.manifest.architecture.to_json()))
    load_state(model.net, read_weights(bundle.weights_path))
    model = model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    changing = [lever for lever in options.levers if lever in (*PRECISIONS, "tf32")]
    left: dict[str, list[np.ndarray]] = {}
    followed: dict[str, nn.Module] = {}
    for batch in batches(images, bundle.preprocess, batch_size=options.batch, order=order):
        x = torch.from_numpy(to_tensor(batch.pixels)).to(device).contiguous(memory_format=memory_order(device))
        y = torch.from_numpy(batch.labels).to(device)
        if not followed:
            copied = open_graph(bundle, "fp32", device=device)
            followed = {"own": model, "copy": copied, **{lever: pulled(lever, copied, x, y) for lever in changing}}
        for attack, steps in (("fgsm", 1), ("pgd-10", 10)):
            for name, network in followed.items():
                with settings(name):
                    found = ours(network, x, y, eps.value, steps)
                with torch.no_grad():
                    right = model(found).argmax(dim=1) == y
                left.setdefault(f"{attack} {name}", []).append(right.cpu().numpy())
    stood = {name: np.concatenate(flags) for name, flags in left.items()}
    row: dict[str, Any] = {"strength": bundle.manifest.title, "eps": eps.text, "n": len(stood["fgsm own"])}
    for attack in ("fgsm", "pgd-10"):
        own = stood[f"{attack} own"]
        row[attack] = {"left_own": float(own.mean())}
        for name, suffix in (("copy", ""), *((lever, f"_{lever}") for lever in changing)):
            theirs = stood[f"{attack} {name}"]
            row[attack] |= {f"left_{name}": float(theirs.mean()), f"differ{suffix}": int((own != theirs).sum())}
    print(row, flush=True)
    return row


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="regnet_y_400mf", help="comma-separated; empty for none")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--eps", default=EPS, help="in L-infinity")
    parser.add_argument("--steps", default="1,10", help="comma-separated; 1 is FGSM")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peers", default="torchattacks,foolbox,art", help="comma-separated, torchattacks among them")
    parser.add_argument("--levers", default="", help="comma-separated, of levers.py")
    parser.add_argument("--strength", type=Path, help="a bundle with trained weights")
    parser.add_argument("--data", help="labelled images for it")
    parser.add_argument("--limit", type=int, default=500, help="so many of them")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.peers = options.peers.split(",")
    options.levers = [lever for lever in options.levers.split(",") if lever]
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = [] if options.strength is None else [strength(options)]
    if rows:
        save(options.out, "crafting", vars(options), rows)
    for architecture in filter(None, options.arch.split(",")):
        for steps in options.steps.split(","):
            rows.append(measure(architecture, int(steps), options))
            save(options.out, "crafting", vars(options), rows)


if __name__ == "__main__":
    main()
