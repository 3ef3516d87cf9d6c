"""What ``gpu.sh`` asks of a GPU beside speed: its arithmetic, one whole ``edgeadv evaluate``, and where time goes.

    python benchmarks/gpu_checks.py prepare build/gpu       # a bundle, and images to train and test it on
    python benchmarks/gpu_checks.py arithmetic --out build/gpu/arithmetic.json
    python benchmarks/gpu_checks.py evaluate build/gpu/net.edgeadv --data build/gpu/images --out build/gpu/evaluate.json
    python benchmarks/gpu_checks.py profile --out build/gpu/profile.json

``arithmetic`` compares logits and gradients with those of the processor in float64, in float32 and in TF32, and looks
whether the switch is as before afterwards. ``profile`` takes one gradient of a network apart, by operation and the
shape of what it is given, which tells its layers, in every precision and order of memory; and times its first
convolution with the 3 channels that it has and with 4 and 8. Images are drawn: each class has a blurred pattern of its
own, under other patterns. The network learns them for some steps, so that there is something to break.
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from crafting import quiet
from paired import in_turn, named, save
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from edgeadv.attacks import cross_entropy, input_gradient
from edgeadv.attacks.tf32 import Tf32Copy
from edgeadv.data.datasets import open_data
from edgeadv.models.builder import Architecture, build
from edgeadv.models.device import arithmetic, default_device, has_tf32
from edgeadv_export import Origin, export_bundle
from edgeadv_runtime import Preprocess
from edgeadv_runtime.records.results import Results

PATTERNS = 10
ORDERS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def drawn(count: int, side: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of :data:`PATTERNS` classes, uint8 (n, side, side, 3), and their labels."""
    own = np.random.default_rng(0).random((PATTERNS, 7, 7, 3))
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % PATTERNS
    small = 0.6 * own[labels] + 0.4 * rng.random((count, 7, 7, 3))
    pictures = [
        np.asarray(Image.fromarray((255 * each).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC))
        for each in small
    ]
    return np.stack(pictures), labels


def prepare(options: argparse.Namespace) -> None:
    """Write the images, a network that has learnt them as a bundle, and its copy for latency."""
    for split, count, seed in (("train", options.train_images, 1), ("test", options.images, 2)):
        for i, (picture, label) in enumerate(zip(*drawn(count, options.side, seed), strict=True)):
            file = options.work / "images" / split / f"class{label}" / f"{i:05}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(file)
    images = open_data(str(options.work / "images"), split="test")
    torch.manual_seed(0)
    device = default_device()
    model = build(Architecture.find(options.arch, num_classes=PATTERNS)).to(device)
    pictures, labels = (torch.from_numpy(each) for each in drawn(options.train_images, options.side, 1))
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    for step in range(options.steps):
        rows = torch.arange(step * options.batch, (step + 1) * options.batch) % len(pictures)
        x = pictures[rows].to(device).permute(0, 3, 1, 2).float() / 255
        loss = functional.cross_entropy(model.train()(x), labels[rows].to(device))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    pictures, labels = (torch.from_numpy(each) for each in drawn(PATTERNS * 10, options.side, 2))
    with torch.no_grad():
        answers = model.eval()(pictures.to(device).permute(0, 3, 1, 2).float() / 255).argmax(dim=1).cpu()
    right = float((answers == labels).float().mean())
    export_bundle(
        model.cpu(),
        options.work / "net.edgeadv",
        classes=images.classes,
        preprocess=Preprocess(resize=options.side, crop=options.side),
        frames=[np.asarray(images.image(i).convert("RGB")) for i in range(8)],
        variants=["fp32", "fp16"],
        origin=Origin(title=f"{options.arch}, {options.steps} steps on patterns, {right:.0%} right", provenance={}),
    )
    print(
        f"{options.arch} after {options.steps} steps: loss {float(loss):.3f}, {right:.0%} of new patterns right",
        flush=True,
    )


def compare_arithmetic(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Errors of logits and gradients of a convolution, against float64."""
    torch.manual_seed(0)
    device = default_device()
    net = nn.Sequential(nn.Conv2d(3, 64, 7), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(64 * 8 * 8, 10))
    net = net.eval().requires_grad_(False)
    x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % 10
    double = copy.deepcopy(net).double()
    leaf = x.double().requires_grad_()
    logits = double(leaf)
    (slope,) = torch.autograd.grad(cross_entropy(logits, y).sum(), leaf)
    net, x, y = net.to(device), x.to(device), y.to(device)
    switched = torch.backends.cudnn.allow_tf32

    def error(found: Tensor, due: Tensor) -> float:
        return float((found.detach().cpu().double() - due.detach()).norm() / due.detach().norm())

    rows: list[dict[str, Any]] = []
    for name, network, tf32 in (("float32", net, False), ("tf32", Tf32Copy(net), True)):
        if tf32 and not has_tf32(device):
            rows.append({"arithmetic": name, "not_measured": "this device has no TF32"})
            continue
        if tf32:  # it switches by itself, in both passes, whatever holds outside
            torch.backends.cudnn.allow_tf32 = False
            found = input_gradient(network, x, y, cross_entropy)
        else:
            with arithmetic(device, tf32=False):
                found = input_gradient(network, x, y, cross_entropy)
        rows.append(
            {
                "arithmetic": name,
                "on": named(device, torch.get_num_threads()),
                "logits_error": error(found.logits, logits),
                "gradient_error": error(found.gradient, slope),
                "switch_as_before": torch.backends.cudnn.allow_tf32 is (False if tf32 else switched),
            }
        )
        # float32 rounds at 6e-8, TF32 at 5e-4
        rounds = min(rows[-1]["logits_error"], rows[-1]["gradient_error"]) > 1e-5
        rows[-1]["as_expected"] = rows[-1]["switch_as_before"] and rounds is tf32
        print(rows[-1], flush=True)
    return rows


def evaluate(options: argparse.Namespace) -> list[dict[str, Any]]:
    """``edgeadv evaluate`` as a user calls it, to its end."""
    provider = default_device().type
    out = options.out.with_suffix(".results.json")
    command = [sys.executable, "-m", "edgeadv", "evaluate", str(options.bundle), "--data", str(options.data)]
    command += ["--eps", options.eps, "--suite", options.suite, "--limit", str(options.images), "--out", str(out)]
    command += ["--provider", provider, "--backend", "torch", "--precision", "fp32", "--workers", str(options.workers)]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    row: dict[str, Any] = {
        "command": f"edgeadv evaluate --provider {provider} --backend torch --suite {options.suite}",
        "on": named(default_device(), torch.get_num_threads()),
        "status": done.returncode,
        "seconds": round(seconds, 1),
    }
    if done.returncode == 0:
        results = Results.load(out)
        row |= {
            "bundle": Path(options.bundle).name,
            "n": results.rows[0].n,
            "images_per_s": round(results.rows[0].n / seconds, 2),
            "verdict": results.overall_verdict,
            "gradients": sorted({each.gradients for each in results.rows if each.gradients}),
            "left": {f"{each.attack} {each.eps or ''}".strip(): each.top1 for each in results.rows},
        }
        out.unlink()
    print(row, flush=True)
    return [row]


def take_apart(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One gradient of each network by operation and shapes, and its first convolution by channels."""
    device = default_device()
    rows: list[dict[str, Any]] = []
    for name in options.arch.split(","):
        torch.manual_seed(0)
        model = quiet(build(Architecture.find(name, num_classes=1000))).requires_grad_(False).to(device)
        y = torch.randint(1000, (options.batch,), device=device)
        for precision in ("float32", "tf32", "float16"):
            if precision == "tf32" and not has_tf32(device):
                continue
            dtype = torch.float16 if precision == "float16" else torch.float32
            for order, memory in ORDERS.items():
                network = copy.deepcopy(model).to(dtype, memory_format=memory)  # type: ignore[call-overload]
                x = torch.rand(options.batch, 3, options.side, options.side, device=device, dtype=dtype)
                x = x.contiguous(memory_format=memory)
                with arithmetic(device, tf32=precision == "tf32"):
                    rows.append({"network": name, "precision": precision, "order": order, "batch": options.batch})
                    rows[-1]["on"] = named(device, torch.get_num_threads())
                    rows[-1] |= by_operation(functools.partial(input_gradient, network, x, y, cross_entropy), device)
                    rows[-1]["first_convolution_ms"] = by_channels(network, x, options.rounds)
                print({key: value for key, value in rows[-1].items() if key != "operations"}, flush=True)
                for operation in rows[-1]["operations"][:5]:
                    print("   ", operation, flush=True)
                save(options.out, "gpu_profile", asked(options), rows)
    return rows


def by_operation(call: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Where the time of a call goes: all of it, and the operations that take most of it."""
    for _ in range(3):
        call()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities, record_shapes=True) as found:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
    timed = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    kernels = [event for event in found.key_averages() if "CUDA" in str(event.device_type)]
    by_shape = found.key_averages(group_by_input_shape=True)
    events = [event for event in by_shape if "CUDA" not in str(event.device_type) and getattr(event, timed) > 0]
    total = sum(getattr(event, timed) for event in events)
    events.sort(key=lambda event: -getattr(event, timed))
    return {
        "total_ms": round(total / 1000, 3),
        "operations": [
            {
                "operation": event.key,
                "shapes": str([shape for shape in event.input_shapes if shape][:3]),
                "ms": round(getattr(event, timed) / 1000, 3),
                "share": round(getattr(event, timed) / total, 4),
            }
            for event in events[:16]
        ],
        "kernels": {
            event.key[:120]: round(event.self_device_time_total / 1000, 3)
            for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:12]
        },
    }


def by_channels(network: nn.Module, x: Tensor, rounds: int) -> dict[str, float]:
    """Milliseconds of the first convolution and of its gradient, padded to so many channels."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    calls: dict[str, Callable[[int], object]] = {}
    for channels in (3, 4, 8):
        more = channels - 3
        weight = functional.pad(first.weight, (0, 0, 0, 0, 0, more)).contiguous(
            memory_format=torch.channels_last
            if x.is_contiguous(memory_format=torch.channels_last)
            else torch.preserve_format
        )

        def call(_: int, more: int = more, weight: Tensor = weight) -> None:
            leaf = x.detach().requires_grad_()
            answer = functional.conv2d(
                functional.pad(leaf, (0, 0, 0, 0, 0, more)), weight, first.bias, first.stride, first.padding
            )
            torch.autograd.grad(answer, leaf, answer)
            if x.is_cuda:
                torch.cuda.synchronize()

        calls[str(channels)] = call
    seconds = in_turn(calls, rounds=rounds, warm_up=2)
    return {name: round(1000 * statistics.median(taken), 3) for name, taken in seconds.items()}


def asked(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments as a result names them."""
    return {name: value for name, value in vars(options).items() if name != "part"}


def main() -> None:
    """Do one part and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    made = parts.add_parser("prepare")
    made.add_argument("work", type=Path)
    made.add_argument("--arch", default="regnet_y_400mf")
    made.add_argument("--side", type=int, default=224)
    made.add_argument("--images", type=int, default=512)
    made.add_argument("--train-images", type=int, default=1280)
    made.add_argument("--steps", type=int, default=80)
    made.add_argument("--batch", type=int, default=64)
    parts.add_parser("arithmetic")
    whole = parts.add_parser("evaluate")
    whole.add_argument("bundle", type=Path)
    whole.add_argument("--data", required=True)
    whole.add_argument("--eps", default="2/255")
    whole.add_argument("--suite", default="fast")
    whole.add_argument("--images", type=int, default=512)
    whole.add_argument("--workers", type=int, default=0)
    apart = parts.add_parser("profile")
    apart.add_argument("--arch", default="alexnet,resnet101")
    apart.add_argument("--batch", type=int, default=256)
    apart.add_argument("--side", type=int, default=224)
    apart.add_argument("--rounds", type=int, default=9)
    for part in parts.choices:
        if part != "prepare":
            parts.choices[part].add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.part == "prepare":
        prepare(options)
        return
    run = {"arithmetic": compare_arithmetic, "evaluate": evaluate, "profile": take_apart}[options.part]
    rows = run(options)
    save(options.out, f"gpu_{options.part}", asked(options), rows)
    # what was measured stays; that it is not what it should be is the exit code
    sys.exit(any(row.get("status") or not row.get("as_expected", True) for row in rows))


if __name__ == "__main__":
    main()
