"""What an artefact's own gradients add: images that fall to attacks by its graph and not to those by fp32's.

Both are the same attacks, :data:`PER_ARTEFACT` with the effort of a suite, scored on the artefact in ONNX
Runtime. ``transfer`` is what there was before an artefact had gradients of its own: images made on float32.

    python benchmarks/white_box.py net.edgeadv --data photos/ --eps 1/255 --out benchmarks/results/white_box-cpu.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeadv.attacks import build_attacks
from edgeadv.data.datasets import balanced_subset, batches
from edgeadv.data.sources import load_data
from edgeadv.gradients.artefact import open_graph
from edgeadv_runtime import Bundle, Eps, OnnxRuntimeBackend
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.device.facts import environment
from edgeadv_runtime.files import read_json, sha256_bytes, write_json
from edgeadv_runtime.records.suites import PER_ARTEFACT, SUITES

BATCH = 50


def measure(bundle: Bundle, variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """One artefact: images that are right without an attack, and that stand under each kind and both."""
    images = load_data(options.data).test.relabel(bundle.classes)
    order = balanced_subset(images.labels, options.limit)
    efforts = {name: SUITES[options.suite][name] for name in PER_ARTEFACT if name in SUITES[options.suite]}
    sources = {"transfer": "fp32", "own": variant}
    attacks = {
        kind: build_attacks(
            graph := open_graph(bundle, source, device=torch.device("cpu")),
            [Eps.parse(options.eps)],
            efforts=efforts,
            classes=len(bundle.classes),
            gradients_sha256=graph.sha256,
        )
        for kind, source in sources.items()
    }
    stands: dict[str, list[np.ndarray]] = {"clean": [], **{kind: [] for kind in sources}}
    agree: dict[str, list[np.ndarray]] = {"clean": [], "attacked": []}
    own = open_graph(bundle, variant, device=torch.device("cpu"))
    with OnnxRuntimeBackend(bundle, variant=variant, threads=1) as artefact:
        for batch in batches(images, bundle.preprocess, batch_size=BATCH, order=order):
            keep = [sha256_bytes(p.tobytes()) not in bundle.calibration_images for p in batch.pixels]
            x, y = to_tensor(batch.pixels[keep]), batch.labels[keep]
            if not len(x):
                continue
            answers = artefact.infer(x).argmax(axis=1)
            stands["clean"].append(answers == y)
            agree["clean"].append(answers == _labels(own, x))
            for kind, made in attacks.items():
                left = answers == y
                for attack in made:
                    (crafted,) = attack.craft(x, y)
                    found = artefact.infer(crafted.x).argmax(axis=1)
                    left &= found == y
                    if kind == "own":
                        agree["attacked"].append(found == _labels(own, crafted.x))
                stands[kind].append(left)
    flags = {kind: np.concatenate(parts) for kind, parts in stands.items()}
    both = flags["transfer"] & flags["own"]
    return {
        "network": bundle.manifest.title,
        "variant": variant,
        "eps": options.eps,
        "suite": options.suite,
        "attacks": list(efforts),
        "n": len(both),
        "right_clean": int(flags["clean"].sum()),
        "stand_transfer": int(flags["transfer"].sum()),
        "stand_own": int(flags["own"].sum()),
        "stand_both": int(both.sum()),
        "fall_to_own_only": int((flags["transfer"] & ~flags["own"]).sum()),
        "fall_to_transfer_only": int((flags["own"] & ~flags["transfer"]).sum()),
        "same_label_clean": round(float(np.concatenate(agree["clean"]).mean()), 4),
        "same_label_attacked": round(float(np.concatenate(agree["attacked"]).mean()), 4),
    }


def _labels(graph: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = graph(torch.from_numpy(x)).numpy().argmax(axis=1)
    return found


def main() -> None:
    """Measure every artefact of a bundle beside fp32, and add the rows to the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--eps", required=True)
    parser.add_argument("--suite", choices=list(SUITES), default="standard")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bundle = Bundle.open(options.bundle)
    rows = read_json(options.out, what="measurement")["rows"] if options.out.exists() else []
    for variant in bundle.variants:
        if variant == "fp32" or variant.endswith("-u8in"):
            continue
        row = measure(bundle, variant, options)
        print(row, flush=True)
        rows = [old for old in rows if (old["network"], old["variant"], old["eps"]) != (*_key(row),)] + [row]
        write_json(options.out, {"benchmark": "white_box", "environment": environment(), "rows": rows})


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["network"], row["variant"], row["eps"]


if __name__ == "__main__":
    main()
