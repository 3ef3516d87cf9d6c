"""Run the benchmarks of a CPU, or of a GPU, and say which ratios moved by more than their noise.

::

    python benchmarks/run.py --work build/bench             # measure into the folder, compare with what is committed
    python benchmarks/run.py --work build/bench --accept    # also take the new figures; page.py writes page and plot
    python benchmarks/run.py --work build/bench --cuda      # those of a GPU

Networks have random weights, which changes no speed; ``--only`` names some benchmarks.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import page

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
LARGE, SMALL = "regnet-224.edgeadv", "regnet-32.edgeadv"
SUITE: dict[str, list[str]] = {
    "crafting-cpu": ["crafting.py", "--arch", "regnet_y_400mf", "--rounds", "7"],
    "crafting-levers-cpu": [
        "crafting.py",
        "--arch",
        "regnet_y_400mf",
        "--steps",
        "1",
        "--rounds",
        "7",
        "--levers",
        "compiled,bfloat16,compiled+bfloat16",
    ],
    "crafting-large-cpu": [
        "crafting.py",
        "--arch",
        "resnet101,alexnet",
        "--batch",
        "8",
        "--steps",
        "1",
        "--rounds",
        "5",
        "--levers",
        "bfloat16",
    ],
    "runtime_latency-regnet_y_400mf-cpu": [
        "runtime_latency.py",
        LARGE,
        "--variants",
        "fp32,fp32-u8in",
        "--rounds",
        "200",
    ],
    "paced-cpu": ["paced.py", SMALL],
    "threads-cpu": ["threads.py"],
    "preprocessing-cpu": ["preprocessing.py"],
    "evaluation_pipeline-cpu": [
        "evaluation_pipeline.py",
        LARGE,
        "--data",
        "mnist5k",
        "--limit",
        "192",
        "--rounds",
        "3",
        "--parts",
        "allocator,growth,stages",
        "--growth-bundle",
        SMALL,
        "--growth-data",
        "mnist5k",
    ],
    "torch_latency-regnet_y_400mf-cpu": ["torch_latency.py", LARGE, "--rounds", "100", "--threads", "1"],
    "training_throughput-cpu": ["training_throughput.py", "--images", "640", "--rounds", "5"],
    "footprint-cpu": ["footprint.py", LARGE],
    "startup-cpu": ["startup.py"],
}
CUDA_SUITE: dict[str, list[str]] = {
    "crafting-cuda": [
        "crafting.py",
        "--arch",
        "regnet_y_400mf,resnet101,alexnet",
        "--batch",
        "256",
        "--steps",
        "1",
        "--rounds",
        "5",
        "--levers",
        "float16,tf32,channels_last",
    ],
    "crafting-compiled-cuda": [
        "crafting.py",
        "--arch",
        "regnet_y_400mf,alexnet",
        "--batch",
        "256",
        "--steps",
        "1",
        "--rounds",
        "5",
        "--peers",
        "torchattacks",
        "--levers",
        "static+float16,float16+tuned,bfloat16",
    ],
    "crafting-pgd-cuda": [
        "crafting.py",
        "--arch",
        "regnet_y_400mf",
        "--batch",
        "256",
        "--steps",
        "10",
        "--rounds",
        "5",
        "--peers",
        "torchattacks,foolbox",
        "--levers",
        "float16",
    ],
    "crafting-batch64-cuda": [
        "crafting.py",
        "--arch",
        "regnet_y_400mf",
        "--batch",
        "64",
        "--steps",
        "1",
        "--rounds",
        "15",
        "--peers",
        "torchattacks",
        "--levers",
        "float16,float16+graph",
    ],
    "torch_latency-regnet_y_400mf-cuda": ["torch_latency.py", LARGE],
    "training_throughput-cuda": [
        "training_throughput.py",
        "--images",
        "3840",
        "--batch",
        "128",
        "--workers",
        "8",
        "--rounds",
        "5",
    ],
}


def prepare(work: Path) -> None:
    """The bundles that are measured, if they are not there yet."""
    import numpy as np
    import torch

    from edgeadv.data.datasets import open_data
    from edgeadv.models.builder import Architecture, build
    from edgeadv_export import Origin, export_bundle
    from edgeadv_runtime import Preprocess

    images = open_data("mnist5k", split="test")
    for name, side in ((LARGE, 224), (SMALL, 32)):
        if (work / name).exists():
            continue
        torch.manual_seed(0)
        export_bundle(
            build(Architecture.find("regnet_y_400mf", num_classes=10)).eval(),
            work / name,
            classes=images.classes,
            preprocess=Preprocess(resize=side, crop=side),
            frames=[np.asarray(images.image(i).convert("RGB")) for i in range(8)],
            variants=["fp32", "fp16", "fp32-u8in"],
            origin=Origin(title="RegNetY-400MF, random weights", provenance={}),
        )


def ratios(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every ratio in the rows of a result, with the names and numbers that say which it is."""
    if isinstance(value, dict) and value.keys() == {"median", "quartiles"}:
        yield ", ".join(path), value
    elif isinstance(value, dict):
        told = tuple(
            str(value[key])
            for key in (
                "architecture",
                "attack",
                "library",
                "frame",
                "variant",
                "batch",
                "job",
                "beside",
                "way",
                "recipe",
                "start",
            )
            if key in value
        )
        for key, inner in value.items():
            yield from ratios(inner, (*path, *told, key) if isinstance(inner, dict) else (*path, *told))
    elif isinstance(value, list):
        for inner in value:
            yield from ratios(inner, path)


def moved(name: str, new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """Ratios whose medians lie outside each other's quartiles, in words."""
    before = dict(ratios(old.get("rows", [])))
    lines = []
    for key, now in ratios(new.get("rows", [])):
        was = before.get(key)
        if was is None or was["median"] == now["median"]:
            continue
        within = was["quartiles"][0] <= now["median"] <= was["quartiles"][1]
        if not within and not now["quartiles"][0] <= was["median"] <= now["quartiles"][1]:
            lines.append(
                f"{name}: {key}: {was['median']} {was['quartiles']} was, {now['median']} {now['quartiles']} is"
            )
    return lines


def main() -> None:
    """Run, compare, accept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--cuda", action="store_true", help="run those of a GPU")
    parser.add_argument("--only", help=f"comma-separated, of {', '.join((*SUITE, *CUDA_SUITE))}")
    parser.add_argument("--accept", action="store_true", help="take the new figures")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    prepare(options.work)
    lines: list[str] = []
    for name in options.only.split(",") if options.only else CUDA_SUITE if options.cuda else SUITE:
        script, *arguments = {**SUITE, **CUDA_SUITE}[name]
        out = options.work / f"{name}.json"
        arguments = [str(options.work / part) if part in (LARGE, SMALL) else part for part in arguments]
        print("running", name, flush=True)
        subprocess.run([sys.executable, str(HERE / script), *arguments, "--out", str(out)], check=True)
        committed = RESULTS / out.name
        if committed.exists():
            lines += moved(name, json.loads(out.read_text()), json.loads(committed.read_text()))
        if options.accept:
            shutil.copyfile(out, committed)
    print("\n".join(lines) or "no ratio moved by more than its noise")
    if options.accept:
        page.write()


if __name__ == "__main__":
    main()
