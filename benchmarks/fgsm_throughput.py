"""FGSM throughput of edgeadv and two peers on one model, as paired ratios; the attacks' results are compared too."""

from __future__ import annotations

import argparse
import importlib.metadata
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import foolbox
import torch
import torchattacks
from torch import Tensor

from edgeadv.attacks import fgsm
from edgeadv.models import Architecture, build
from edgeadv_runtime.device import environment
from edgeadv_runtime.files import write_json

EPS = 8 / 255


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="regnet_y_400mf")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    model = build(Architecture.find(options.arch, num_classes=1000)).eval()
    x, y = torch.rand(options.batch, 3, options.side, options.side), torch.randint(1000, (options.batch,))
    fast = build(model.architecture).eval()
    fast.load_state_dict(model.state_dict())
    fast.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x_fast = x.contiguous(memory_format=torch.channels_last)
    peer = torchattacks.FGSM(model, eps=EPS)
    wrapped, box = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), foolbox.attacks.LinfFastGradientAttack()
    attacks: dict[str, Callable[[], Tensor]] = {
        "edgeadv": lambda: fgsm(fast, x_fast, y, eps=EPS)[0].x,
        "torchattacks": lambda: peer(x, y),
        "foolbox": lambda: box(wrapped, x, y, epsilons=EPS)[1],
    }
    seconds: dict[str, list[float]] = {name: [] for name in attacks}
    results = {name: attack() for name, attack in attacks.items()}
    for i in range(options.rounds):
        for name in random.Random(i).sample(list(attacks), len(attacks)):
            start = time.perf_counter()
            attacks[name]()
            seconds[name].append(time.perf_counter() - start)
    rows = []
    for name in attacks:
        ratios = [theirs / ours for theirs, ours in zip(seconds[name], seconds["edgeadv"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        same = float(((results[name] - results["edgeadv"]).abs() <= 1e-4).float().mean())
        rate = options.batch / statistics.median(seconds[name])
        rows.append({
            "library": name, "version": importlib.metadata.version(name), "images_per_s_median": rate,
            "edgeadv_speedup_median": middle, "edgeadv_speedup_quartiles": [low, high], "same_pixels_1e-4": same,
        })  # fmt: skip
        print(
            f"{name:14s} {rate:8.1f} images/s   edgeadv is {middle:.2f}x [{low:.2f}, {high:.2f}]   same pixels {same:.4%}"
        )
    arguments = {key: value for key, value in vars(options).items() if key != "out"}
    write_json(
        options.out,
        {"benchmark": "fgsm_throughput", "arguments": arguments, "environment": environment(), "rows": rows},
    )


if __name__ == "__main__":
    main()
