"""What a camera meets, on the published networks of traffic signs: patches, corruptions and tracks.

The networks come from ``examples/models``. Each file is made once: call it again to go on.

    python benchmarks/signs_camera.py --data gtsrb/ --work runs/signs --out benchmarks/results/signs-camera-cpu.json
    python benchmarks/signs_page.py

The worst case under noise is in ``signs-cpu.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cifar10_grid import run
from signs import MODELS, PUBLISHED, TRACKS, shown

from edgeadv_runtime.device.facts import environment
from edgeadv_runtime.files import write_json
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import CLEAN

NETWORKS = ("undefended", "soft-label", "robust")
AREAS, AREA = "2%,5%,10%", "5%"
EPS = "8/255"


def measurements(data: Path) -> dict[str, list[str]]:
    """The options of each results file; 43 classes, so 129 frames are three of each."""
    onnx = ["--backend", "onnxruntime"]
    fp32, whole = [*onnx, "--precision", "fp32"], ["--data", str(data)]
    tracks = ["--data", str(data / "train"), "--images-list", str(TRACKS), "--group", "track"]
    return {
        "patches": [*whole, *fp32, "--patch", AREAS, "--limit", "129"],
        "patch-artefacts": [*whole, *onnx, "--precision", "all", "--patch", AREA, "--limit", "86"],
        "corruptions": [*whole, *onnx, "--precision", "fp32,int8-u8s8", "--corruptions", "all", "--limit", "1000"],
        "tracks": [*tracks, *fp32, "--eps", EPS, "--attack", "pgd-margin"],
        "tracks-fog": [*tracks, *fp32, "--corruptions", "fog,low-light", "--severities", "3,5"],
    }


def figures(file: Path) -> dict[str, Any]:
    """Rows and tracks of a results file, short."""
    results = Results.load(file)
    found: dict[str, Any] = {
        "n": results.data.n,
        "verdict": results.masking.verdict,
        "rows": [
            {"variant": row.variant, "attack": row.attack, "budget": row.eps, "top1": row.top1, "ci95": row.top1_ci95}
            for row in results.rows
        ],
    }
    if results.tracks:
        keys = ("attack", "eps", "rule", "n", "correct", "undecided")
        found["tracks"] = [
            {"variant": track.artefact.variant, **{key: getattr(track, key) for key in keys}}
            for track in results.tracks
        ]
    if file.stem == "corruptions":
        found["means"] = {
            each.variant: results.corrupted(variant=each.variant, backend=each.backend) for each in results.artefacts
        }
        found["clean"] = {row.variant: row.top1 for row in results.rows if row.attack == CLEAN}
    return found


def network(name: str, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each results file of a network, made where it is not there yet."""
    home: Path = options.work / f"{name}-0"
    home.mkdir(parents=True, exist_ok=True)
    export = ["export", "--zoo", PUBLISHED[name], "--data", str(options.data), "--precision"]
    # int8 is calibrated on the held-out tracks, so a bundle that scores them is without
    bundles = {
        home / "camera.edgeadv": ["fp32,fp16,int8", "--calibration-list", str(TRACKS)],
        home / "tracks.edgeadv": ["fp32"],
    }
    for bundle, more in bundles.items():
        if not bundle.exists() and run([*export, *more, "--out", str(bundle)]) != 0:
            raise SystemExit(f"{name}: export failed")
    for part, asked in measurements(options.data).items():
        if part not in options.parts.split(","):
            continue
        out, bundle = home / f"{part}.json", home / ("tracks.edgeadv" if "--group" in asked else "camera.edgeadv")
        command = ["evaluate", str(bundle), *asked, "--resume", "--out", str(out)]
        if not out.exists() and run(command) != 0:
            raise SystemExit(f"{name}: {part} failed")
        yield part, {"command": " ".join(["edgeadv", *(shown(part, options.work) for part in command)]), **figures(out)}


def main() -> None:
    """Fill the table, network by network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--work", type=Path, required=True, help="folder for bundles and results")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--parts", default=",".join(measurements(Path())))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for name in options.networks.split(","):
        if not (MODELS / PUBLISHED[name]).exists():
            print(f"{name}: not published; train it with benchmarks/signs.py", flush=True)
            continue
        entry: dict[str, Any] = {"row": name, "seed": 0}
        rows.append(entry)
        for part, found in network(name, options):
            entry[part] = found
            write_json(options.out, {"benchmark": "signs-camera", "environment": environment(), "rows": rows})


if __name__ == "__main__":
    main()
