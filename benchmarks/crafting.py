"""FGSM and PGD images/s of edgeadv and three peers: same network, images, eps and process, as paired ratios.

The adversarial images are compared too, and how many labels they turn: speed that costs strength is worthless. All take
every step: edgeadv's rule that an image which is broken leaves the batch is switched off here, and so is foolbox's and
ART's choice of the best. What edgeadv does once a model, copying and folding it, is in ``start_s``. On a GPU
``edgeadv`` computes in TF32 where there is any, as its commands do, and the peers with what PyTorch allows them;
torchattacks has a row without it, too. Other ways have rows of their own with ``--levers`` (see ``levers.py``),
``float32``, ``tf32`` and ``float16`` among them for ``--gradients``; of those that compile with the number of gradients
after which their start is paid for. A peer that is not installed, and a lever that does not work here, is named in
``not_measured``. On a GPU each row says whether its goals over torchattacks were reached.

With ``--strength BUNDLE --data FOLDER`` also what is left of the accuracy of a trained network when its own gradients
are followed, when the copy's are in float32, and when those of the levers that change numbers are, image by image.

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

import numpy as np
import torch
from levers import PRECISIONS, in_order, pulled, settings
from paired import in_turn, named, ratio, save
from torch import Tensor, nn

from edgeadv.attacks import cross_entropy, fgsm, pgd
from edgeadv.attacks.float16 import HalfCopy
from edgeadv.attacks.tf32 import Tf32Copy
from edgeadv.data.datasets import balanced_subset, batches, open_data
from edgeadv.gradients.artefact import open_graph
from edgeadv.gradients.graph import GraphModule
from edgeadv.gradients.read_onnx import nodes_of
from edgeadv.models.builder import Architecture, build
from edgeadv.models.checkpoints import load_state, read_weights
from edgeadv.models.device import has_tf32, memory_order
from edgeadv_export.to_onnx import to_onnx
from edgeadv_runtime import Bundle, __version__
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.records.eps import Eps

EPS = "8/255"
CLASSES = 1000
EXACT = "torchattacks without TF32"
PACKAGES = {
    "torchattacks": "torchattacks",
    "foolbox": "foolbox",
    "art": "adversarial-robustness-toolbox",
    EXACT: "torchattacks",
}
GOALS = {"regnet_y_400mf": 2.0, "resnet101": 1.5, "alexnet": 1.3}
"""On a GPU, of edgeadv's best setting over torchattacks; never below 1 is the goal of its default."""


def ours(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """One step, or ``steps`` of 2.5 eps / steps."""
    if steps == 1:
        return fgsm(model, x, y, eps=eps)[0].x
    return pgd(model, x, y, eps=eps, steps=steps, loss=cross_entropy, leave=float("inf")).x


def _torchattacks(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Callable[[], Tensor]:
    import torchattacks

    if steps == 1:
        attack: Any = torchattacks.FGSM(model, eps=eps)
    else:
        attack = torchattacks.PGD(model, eps=eps, alpha=2.5 * eps / steps, steps=steps, random_start=False)
    return lambda: attack(x, y)


def _foolbox(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Callable[[], Tensor]:
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
    if steps == 1:
        attack: Any = foolbox.attacks.LinfFastGradientAttack()
    else:
        attack = foolbox.attacks.LinfPGD(abs_stepsize=2.5 * eps / steps, steps=steps, random_start=False)
    return lambda: attack(wrapped, x, y, epsilons=eps)[1]


def _art(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Callable[[], Tensor]:
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=CLASSES,
        clip_values=(0.0, 1.0),
        device_type="gpu" if x.is_cuda else "cpu",
    )
    one_hot, pixels = np.eye(CLASSES, dtype=np.float32)[y.cpu().numpy()], x.cpu().numpy()
    if steps == 1:
        attack: Any = FastGradientMethod(classifier, norm=np.inf, eps=eps, batch_size=len(x))
    else:
        attack = ProjectedGradientDescent(
            classifier,
            norm=np.inf,
            eps=eps,
            eps_step=2.5 * eps / steps,
            max_iter=steps,
            batch_size=len(x),
            verbose=False,
        )
    return lambda: torch.from_numpy(attack.generate(pixels, one_hot)).to(x.device)


PEERS = {"torchattacks": _torchattacks, "foolbox": _foolbox, "art": _art}


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
    eps = Eps.parse(options.eps).value
    x = torch.rand(options.batch, 3, options.side, options.side, device=device)
    model = quiet(build(Architecture.find(architecture, num_classes=CLASSES)).to(device))
    y = torch.randint(CLASSES, (options.batch,), device=device)
    start = time.perf_counter()
    with settings("edgeadv"):
        graph = nodes_of(to_onnx(copy.deepcopy(model).cpu(), (3, options.side, options.side)))
        exact = GraphModule(graph, architecture).eval().to(device, memory_format=memory_order(device))
        default: nn.Module = Tf32Copy(exact) if has_tf32(device) else exact
    starts = {"edgeadv": time.perf_counter() - start}
    fast = x.contiguous(memory_format=memory_order(device))
    attacks: dict[str, Callable[[], Tensor]] = {"edgeadv": lambda: ours(default, fast, y, eps, steps)}
    missing: dict[str, str] = {}
    for peer in options.peers:
        try:
            attacks[peer] = PEERS[peer](model, x, y, eps, steps)
        except ImportError as error:
            missing[peer] = f"not installed: {error}"
    set_to = dict.fromkeys(attacks, "tf32") | {name: name for name in ("edgeadv", *options.levers)}
    if device.type == "cuda" and "torchattacks" in attacks:
        # the same arithmetic as edgeadv's in float32
        attacks[EXACT], set_to[EXACT] = attacks["torchattacks"], EXACT
    followed: dict[str, Any] = {}
    for lever in options.levers:
        start = time.perf_counter()
        try:
            with settings(lever):
                given = in_order(lever, fast)
                followed[lever] = pulled(lever, exact, given, y)
                attack = functools.partial(ours, followed[lever], given, y, eps, steps)
                attack()
        except (ValueError, RuntimeError) as error:
            missing[lever] = " ".join(str(error).split())[:300]
            continue
        attacks[lever] = attack
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
        }
        if "torchattacks" in made:
            entry["same_pixels_1e-4"] = float(((made[name] - made["torchattacks"]).abs() <= 1e-4).float().mean())
        if name in options.levers and "torchattacks" in made:
            entry["over_torchattacks"] = ratio(seconds["torchattacks"], taken)
        if isinstance(followed.get(name), HalfCopy):
            entry["float32_gradients"] = followed[name].repaired
        if name in starts:
            entry["start_s"] = round(starts[name], 2)
        if (plain := uncompiled(name)) in seconds and plain != name:
            gain = (statistics.median(seconds[plain]) - statistics.median(taken)) / options.batch / steps
            entry["paid_after_gradients"] = round((starts[name] - starts[plain]) / gain) if gain > 0 else None
        libraries.append(entry)
        print(f"{architecture} {steps} steps: {entry}", flush=True)
    row: dict[str, Any] = {
        "architecture": architecture,
        "attack": "fgsm" if steps == 1 else f"pgd-{steps}",
        "on": named(device, options.threads),
        "weights": "random",
        "default": "tf32" if isinstance(default, Tf32Copy) else "float32",
        "libraries": libraries,
    }
    if missing:
        row["not_measured"] = missing
        print(f"{architecture} {steps} steps: not measured: {missing}", flush=True)
    if device.type == "cuda" and "torchattacks" in seconds:
        row["goal"] = reached(architecture, libraries)
        print(f"{architecture} {steps} steps: goal: {row['goal']}", flush=True)
    return row


def uncompiled(lever: str) -> str:
    """The same without compiling, by its name."""
    names = ["float16" if name == "job" else name for name in lever.split("+") if name not in ("compiled", "static")]
    return "+".join(names) or "edgeadv"


def reached(architecture: str, libraries: list[dict[str, Any]]) -> dict[str, Any]:
    """How far edgeadv's best setting gets over torchattacks, and its default, beside their goals."""
    default = next(entry for entry in libraries if entry["library"] == "torchattacks")["edgeadv_speedup"]["median"]
    over = {
        entry["library"]: entry["over_torchattacks"]["median"] for entry in libraries if "over_torchattacks" in entry
    }
    over["edgeadv"] = default
    best = max(over, key=lambda name: over[name])
    goal = GOALS.get(architecture)
    return {
        "default_over_torchattacks": default,
        "default_goal": 1.0,
        "default_reached": default >= 1.0,
        "best": best,
        "best_over_torchattacks": over[best],
        "best_goal": goal,
        "best_reached": None if goal is None else over[best] >= goal,
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
    device_has = (*PRECISIONS, "tf32") if has_tf32(device) else PRECISIONS
    changing = [lever for lever in options.levers if lever in device_has]
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
    row: dict[str, Any] = {
        "strength": bundle.manifest.title,
        "images": Path(options.data).name,
        "on": named(device, options.threads),
        "eps": eps.text,
        "n": len(stood["fgsm own"]),
    }
    if "tf32" in options.levers and "tf32" not in changing:
        row["not_measured"] = {"tf32": "this device has none"}
    for attack in ("fgsm", "pgd-10"):
        own = stood[f"{attack} own"]
        row[attack] = {"left_own": float(own.mean())}
        for name, suffix in (("copy", ""), *((lever, f"_{lever}") for lever in changing)):
            theirs = stood[f"{attack} {name}"]
            row[attack] |= {f"left_{name}": float(theirs.mean()), f"differ{suffix}": int((own != theirs).sum())}
            if name in changing:
                row[attack][f"points_over_float32_{name}"] = round(
                    100 * float(theirs.mean() - stood[f"{attack} copy"].mean()), 2
                )
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
    parser.add_argument("--peers", default="torchattacks,foolbox,art", help="comma-separated")
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
