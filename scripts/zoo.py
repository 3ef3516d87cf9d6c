"""Put a finished run into the zoo: weights in half precision under examples/models, their hashes into the package.

::

    python scripts/zoo.py runs/signs/robust signs-robust
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import msgspec
import safetensors.torch
import torch

from edgeadv.models.checkpoints import read_weights
from edgeadv.training.runs import RUN_FILE, WEIGHTS_FILE, Run
from edgeadv.workflows.zoo import LIST
from edgeadv_runtime.bundle.training_images import TRAINING_FILE
from edgeadv_runtime.files import atomic_folder, sha256_file, write_bytes, write_json

MODELS = Path(__file__).parents[1] / "examples" / "models"


def half(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """In half precision where it is a weight; refused where that is no number any more."""
    if not tensor.is_floating_point():
        return tensor
    made = tensor.half()
    if not bool(made.isfinite().all()):
        raise SystemExit(f"{name} has numbers that half precision does not hold")
    return made.contiguous()


def add(run: Run, name: str, models: Path, listing: Path) -> Path:
    """Write ``models/name`` and its entry in ``listing``; returns the folder."""
    info = msgspec.to_builtins(run.info)
    # a folder's place says something about one machine only
    info["data"]["spec"] = Path(run.data).name
    state = read_weights(run.path / WEIGHTS_FILE, sha256=run.info.weights_sha256)
    folder = models / name
    with atomic_folder(folder, replaceable=lambda _: None) as new:
        tensors = {key: half(tensor, key) for key, tensor in state.items()}
        write_bytes(new / WEIGHTS_FILE, safetensors.torch.save(tensors))
        if run.info.training_images is not None:
            write_bytes(new / TRAINING_FILE, (run.path / TRAINING_FILE).read_bytes())
        rounded = {"weights_sha256": sha256_file(new / WEIGHTS_FILE), "rounded_from": run.info.weights_sha256}
        write_json(new / RUN_FILE, {**info, **rounded})
        files = {
            file.name: {"sha256": sha256_file(file), "bytes": file.stat().st_size}
            for file in (new / n for n in (RUN_FILE, WEIGHTS_FILE, TRAINING_FILE))
            if file.exists()
        }
    parameters = sum(p.numel() for p in run.load_model().parameters())
    entry = {"title": run.title, "parameters": parameters, "files": files}
    nets = {**json.loads(listing.read_text()), name: entry} if listing.exists() else {name: entry}
    write_json(listing, dict(sorted(nets.items())))
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--list", type=Path, default=LIST)
    asked = parser.parse_args()
    print(add(Run.open(asked.run), asked.name, asked.models, asked.list))
