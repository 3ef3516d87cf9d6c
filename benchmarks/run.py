"""Run the benchmarks of a CPU, or of a GPU, say which ratios moved by more than their noise, and write the tables of
``README.md``.

    python benchmarks/run.py --work build/bench             # measure into the folder, and compare with what is
    committed python benchmarks/run.py --work build/bench --accept    # also take the new figures, and write the tables
    and the plot python benchmarks/run.py --cuda --work build/bench      # those of a GPU
    python benchmarks/run.py --tables                       # write them from what is committed

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

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
BEGIN, END = "<!-- tables: written by run.py -->", "<!-- end of tables -->"
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


def show(ratio: dict[str, Any]) -> str:
    """A ratio with its quartiles."""
    low, high = ratio["quartiles"]
    return f"{ratio['median']:.2f} [{low:.2f}, {high:.2f}]"


def tables() -> Iterator[str]:
    """What the committed results say."""
    found = {file.stem: json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))}
    yield from (
        "| network, batch, threads | attack | peer | edgeadv is faster by | edgeadv's pixels that are "
        "torchattacks' | start, s |",
        "|---|---|---|---|---|---|",
    )
    for content in found.values():
        if content.get("benchmark") != "crafting":
            continue
        for row in content["rows"]:
            for entry in row.get("libraries", []):
                if entry["library"] == "edgeadv":
                    start, same = entry["start_s"], entry["same_pixels_1e-4"]
                    continue
                asked = content["arguments"]
                peer, speedup, pixels = f"{entry['library']} {entry['version']}", entry["edgeadv_speedup"], same
                if (over := entry.get("over_torchattacks")) is not None:
                    peer, speedup, pixels = f"torchattacks, edgeadv {entry['library']}", over, entry["same_pixels_1e-4"]
                paid = (
                    ""
                    if entry.get("paid_after_gradients") is None
                    else f"; paid after {entry['paid_after_gradients']:,} gradients of an image"
                )
                yield (
                    f"| {row['architecture']} {asked['side']}², {asked['batch']}, "
                    f"{row.get('on', asked['threads'])} | {row['attack']} | {peer} | "
                    f"{show(speedup)} | {pixels:.2%} | {entry.get('start_s', start)}{paid} |"
                )
        for row in content["rows"]:
            if "strength" in row:
                for attack in ("fgsm", "pgd-10"):
                    left = row[attack]
                    yield (
                        f"| {row['strength']} | {attack} | its own gradients | accuracy left "
                        f"{left['left_own']:.1%}, by the copy's {left['left_copy']:.1%}; {left['differ']} of "
                        f"{row['n']} images differ | | |"
                    )
                    for key, share in left.items():
                        lever = key.removeprefix("left_")
                        if lever not in (key, "own", "copy"):
                            yield (
                                f"| {row['strength']} | {attack} | its own gradients, {lever}'s | accuracy left "
                                f"{left['left_own']:.1%} and {share:.1%}; {left[f'differ_{lever}']} of {row['n']} "
                                "images differ | | |"
                            )
    yield ""
    yield from (
        "| runtime: variant, batch | raw call, ms | `infer` over raw | all but the resizing over raw | bound over "
        "raw | faster than the first | top-1 |",
        "|---|---|---|---|---|---|---|",
    )
    for content in found.values():
        if content.get("benchmark") == "runtime_latency":
            for row in content["rows"]:
                speedup = next(value for key, value in row.items() if key.startswith("speedup_over_"))
                classify = show(row["classify_pixels_over_raw"]) if "classify_pixels_over_raw" in row else ""
                top1 = f"{row['top1']:.1%} of {row['n']}" if "top1" in row else ""
                yield (
                    f"| {content['arguments']['bundle']}: {row['variant']}, {row['batch']} | "
                    f"{row['raw_ms_median']:.2f} | {show(row['infer_over_raw'])} | {classify} | "
                    f"{show(row['bound_over_raw'])} | {show(speedup)} | {top1} |"
                )
    yield ""
    yield from (
        "| frame | preprocessing by | ms | edgeadv is faster by | grey levels apart, mean and largest |",
        "|---|---|---|---|---|",
    )
    for content in found.values():
        if content.get("benchmark") == "preprocessing":
            for row in content["rows"]:
                yield (
                    f"| {row['frame']} | {row['library']} | {row['ms_median']:.2f} | "
                    f"{show(row['edgeadv_speedup'])} | {row['levels_apart_mean']}, {row['levels_apart_max']} |"
                )
    yield ""
    yield from (
        "| PyTorch: bundle, on | variant, batch | way | ms | faster than eager | logits differ by |",
        "|---|---|---|---|---|---|",
    )
    for content in found.values():
        if content.get("benchmark") == "torch_latency":
            for row in content["rows"]:
                place = (
                    f"{content['arguments']['bundle']}, {row['on']} | {row['variant']}, {row['batch']} | {row['way']}"
                )
                if "not_measured" in row:
                    yield f"| {place} | | | {row['not_measured']} |"
                else:
                    yield (
                        f"| {place} | {row['ms_median']:.2f} | {show(row['speedup_over_eager'])} | "
                        f"{row['relative_error']:.1e} |"
                    )
    yield ""
    for content in found.values():
        if content.get("benchmark") == "training_throughput":
            for row in content["rows"]:
                asked = content["arguments"]
                on = row.get("on", f"{asked['threads']} threads")
                yield (
                    f"- Training, {row['recipe']}: {show(row['edgeadv_speedup'])} of the plain loop's images/s "
                    f"({asked['arch']}, batch {asked['batch']}, {on})."
                )
        if content.get("benchmark") == "evaluation_pipeline":
            for row in content["rows"]:
                if row["part"] == "stages":
                    asked, whole, after = content["arguments"], row["whole"], row["one_after_the_other"]
                    yield (
                        f"- Evaluation with FGSM ({asked['bundle']} on {asked['data']}, one thread a stage, "
                        f"{row['workers']} decoding process): scoring beside the attack "
                        f"{row['whole_images_per_s']} images/s, {show(whole['over_slowest'])} of its slowest stage "
                        "alone; one after the other "
                        f"{row['one_after_the_other_images_per_s']} images/s, {show(after['over_slowest'])} of it "
                        f"and {show(after['over_sum'])} of what all stages take "
                        f"(decode {row['decode_images_per_s']}, attack {row['attack_images_per_s']}, score "
                        f"{row['score_images_per_s']} images/s alone)."
                    )
                elif row["part"] == "steady":
                    asked = content["arguments"]
                    yield (
                        f"- `edgeadv evaluate --threads 1 --workers {row['workers']}` on {row['n']} images beyond "
                        f"its first batch ({asked['bundle']} on {asked['data']}): "
                        f"{row['command_images_per_s']} images/s, {show(row['over_attack'])} of the attack alone "
                        "in another process."
                    )
                elif row["part"] == "allocator":
                    asked = content["arguments"]
                    yield (
                        f"- `edgeadv evaluate` with FGSM on {row['n']} images ({asked['bundle']} on "
                        f"{asked['data']}) is {show(row['speedup'])} times as fast as with glibc left alone; "
                        f"peak memory {row['edgeadv_peak_mib']:.0f} and {row['glibc_peak_mib']:.0f} MiB."
                    )
                else:
                    sizes = row["sizes"]
                    yield (
                        f"- Its growth from {sizes[0]['n']:,} to {sizes[-1]['n']:,} images: "
                        f"{row['ms_per_image']} ms an image at the most after {row['start_s']} s of start, "
                        f"exponent {row['exponent']} through {len(sizes)} sizes, one run each; peak memory "
                        f"{sizes[0]['peak_mib']:.0f} to {sizes[-1]['peak_mib']:.0f} MiB."
                    )
        if content.get("benchmark") == "footprint":
            yield (
                f"- Runtime: {content['installed_mib']} MiB installed, import {content['import_s_median']:.3f} "
                f"s, `edgeadv --help` {content['help_s_median']:.3f} s, {content['rss_mib']['opened']} MiB "
                "resident with the network open."
            )


def plot() -> None:
    """Speed-ups of crafting as bars with their quartiles."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "edgeadv"
    from matplotlib import pyplot

    bars = []
    for file in sorted(RESULTS.glob("crafting*.json")):
        if "levers" in file.name or "cuda" in file.name:
            continue
        for row in json.loads(file.read_text())["rows"]:
            bars += [
                (f"{row['architecture']}, {row['attack']}, {entry['library']}", entry["edgeadv_speedup"])
                for entry in row.get("libraries", [])
                if entry["library"] != "edgeadv" and "over_torchattacks" not in entry
            ]
    figure, axes = pyplot.subplots(figsize=(8, 0.35 * len(bars) + 1))
    middles = [ratio["median"] for _, ratio in bars]
    spread = [
        [m - r["quartiles"][0] for m, (_, r) in zip(middles, bars, strict=True)],
        [r["quartiles"][1] - m for m, (_, r) in zip(middles, bars, strict=True)],
    ]
    axes.barh([name for name, _ in bars], middles, xerr=spread, color="#4477aa")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("edgeadv is faster by (median of paired ratios, quartiles)")
    figure.tight_layout()
    figure.savefig(HERE / "crafting.svg", metadata={"Date": None})


def write_tables() -> None:
    """Put the tables into the README, and draw the plot."""
    readme = HERE / "README.md"
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n" + "\n".join(tables()) + f"\n{END}{rest.split(END)[1]}")
    plot()


def main() -> None:
    """Run, compare, accept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--cuda", action="store_true", help="run those of a GPU")
    parser.add_argument("--only", help=f"comma-separated, of {', '.join((*SUITE, *CUDA_SUITE))}")
    parser.add_argument("--accept", action="store_true", help="take the new figures")
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if not options.tables:
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
    if options.accept or options.tables:
        write_tables()


if __name__ == "__main__":
    main()
