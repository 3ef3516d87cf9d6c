"""Networks of every kind through `edgeadv.export` and `edgeadv.verify`: what works, in which precision, and what not.

    python benchmarks/networks.py --data PHOTOGRAPHS --out benchmarks/results/networks-cpu.json
    python benchmarks/networks.py --tables                  # write docs/networks.md from what is committed

Weights are random, from a fixed seed: BatchNorm has its statistics from real photographs, and the last layer is drawn
anew such that ten classes are told apart. So nothing is said about accuracy. The labels that int8 is measured on are
those of the network itself in PyTorch: what int8 is said to keep is how often it answers as that.

One process for each network; what is in the result already is not run again. What ends such a process is its result.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import timm
import torch
import torchvision
from numpy.typing import NDArray
from torch import nn

import edgeadv as ea
from edgeadv.models.builder import Architecture, PixelModel, build
from edgeadv_runtime import Preprocess
from edgeadv_runtime.bundle.pictures import decode, pictures
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.device.facts import processor_name
from edgeadv_runtime.errors import EdgeAdvError, InputError

ROOT = Path(__file__).resolve().parents[1]
RESULT, PAGE = ROOT / "benchmarks" / "results" / "networks-cpu.json", ROOT / "docs" / "networks.md"
CLASSES, SEED, BATCH = 10, 0, 8
# photographs: for the golden frames (and BatchNorm), to calibrate, and to measure int8 on
GOLDEN, CALIBRATION, MEASURED = 16, 32, 64
VARIANTS = ("fp32", "fp16", "int8-s8s8", "int8-u8s8")


@dataclass(frozen=True)
class Network:
    """One network at one resolution.

    Attributes:
        name: as `edgeadv export --arch` takes it.
        kind: what it is an example of.
        side: pixels of its square input.
    """

    name: str
    kind: str
    side: int = 224

    @property
    def key(self) -> str:
        """What its result is called."""
        return f"{self.name}@{self.side}"


NETWORKS = (
    Network("alexnet", "plain"),
    Network("vgg11", "plain"),
    Network("squeezenet1_1", "plain"),
    Network("resnet18", "residual"),
    Network("timm/resnext26ts", "grouped"),
    Network("regnet_y_400mf", "grouped, squeeze-excitation"),
    Network("mobilenet_v2", "depthwise"),
    Network("mobilenet_v3_small", "depthwise, squeeze-excitation"),
    Network("mnasnet0_5", "depthwise"),
    Network("efficientnet_b0", "depthwise, squeeze-excitation"),
    Network("timm/efficientnet_lite0", "depthwise"),
    Network("timm/efficientnet_lite0", "depthwise, a second resolution", side=160),
    Network("timm/ghostnet_050", "depthwise"),
    Network("timm/legacy_seresnet18", "squeeze-excitation"),
    Network("shufflenet_v2_x0_5", "channel shuffle"),
    Network("densenet121", "dense"),
    Network("googlenet", "inception"),
    Network("inception_v3", "inception", side=299),
    Network("timm/repvgg_a0", "re-parametrised"),
    Network("timm/mobileone_s0", "re-parametrised"),
    Network("timm/convnext_atto", "convolutions, LayerNorm"),
    Network("timm/poolformer_s12", "pooling as mixer"),
    Network("timm/mixer_s32_224", "mixer"),
    Network("timm/vit_tiny_patch16_224", "attention"),
    Network("timm/deit_tiny_patch16_224", "attention"),
    Network("vit_b_16", "attention, PyTorch's own"),
    Network("swin_t", "attention in windows"),
    Network("maxvit_t", "attention and convolutions"),
    Network("timm/coat_lite_tiny", "attention and convolutions"),
    Network("timm/mobilevit_xxs", "attention and convolutions", side=256),
    Network("timm/levit_128s", "attention and convolutions"),
)


def main() -> None:
    """Run what is missing, and write the result after each network."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of photographs, in class folders or not")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--only", action="append", help="this network, as NAME or NAME@SIDE; may be given again")
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    parser.add_argument("--tables", action="store_true", help="run nothing, write the page")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tables:
        PAGE.write_text(page(json.loads(RESULT.read_text())))
        return
    if options.data is None:
        parser.error("--data is needed: a folder of photographs")
    if options.one is not None:
        (network,) = (network for network in NETWORKS if network.key == options.one)
        print(json.dumps(measure(network, options.data)))
        return
    result = json.loads(options.out.read_text()) if options.out.exists() else {"networks": {}}
    result["environment"] = environment()
    for network in NETWORKS:
        if options.only and not {network.key, network.name} & set(options.only):
            continue
        if network.key in result["networks"] and not options.again:
            continue
        result["networks"][network.key] = row = in_a_process(network, options.data)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{network.key}: {json.dumps(row)}", flush=True)


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "device": processor_name(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "onnxruntime": onnxruntime.__version__,
        "seed": SEED,
        "golden_frames": GOLDEN,
        "calibration_images": CALIBRATION,
        "measured_images": MEASURED,
    }


def in_a_process(network: Network, data: Path) -> dict[str, Any]:
    """The result of ``network``; where its process dies, that it did."""
    start = time.monotonic()
    command = [sys.executable, __file__, "--data", str(data), "--one", network.key]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    row: dict[str, Any] = {"kind": network.kind, "side": network.side}
    if done.returncode == 0:
        row |= json.loads(done.stdout.splitlines()[-1])
    elif done.returncode < 0:
        row["failed"] = f"died of {signal.Signals(-done.returncode).name}"
    else:
        row["failed"] = f"ended with a traceback: {done.stderr.strip().splitlines()[-1]}"
    return {**row, "seconds": round(time.monotonic() - start)}


def measure(network: Network, data: Path) -> dict[str, Any]:
    """Export ``network`` in every precision and replay the golden frames."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    preprocess = f"resize={network.side},crop={network.side}"
    photographs = pictures(data.rglob("*"))
    count = GOLDEN + CALIBRATION + MEASURED
    if len(photographs) < count:
        raise SystemExit(f"{data} holds {len(photographs)} photographs, {count} are needed")
    chosen = [photographs[i * len(photographs) // count] for i in np.random.default_rng(SEED).permutation(count)]
    try:
        model = build(Architecture.find(network.name, num_classes=CLASSES))
    except EdgeAdvError as error:
        return {"failed": str(error)}
    pixels = np.stack([Preprocess.parse(preprocess)(decode(path)) for path in chosen])
    settle(model, to_tensor(pixels[:GOLDEN]))
    labels = logits_of(model, to_tensor(pixels[-MEASURED:])).argmax(axis=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights, classes = folder / "weights.pth", folder / "classes.tsv"
        torch.save(model.net.state_dict(), weights)
        classes.write_text("".join(f"c{i}\tclass {i}\n" for i in range(CLASSES)))
        for i, path in enumerate(chosen[:-MEASURED]):
            copy(path, folder / ("golden" if i < GOLDEN else "calibration"))
        for path, label in zip(chosen[-MEASURED:], labels, strict=True):
            copy(path, folder / "measured" / f"c{label}")
        source = ea.ModelSource(arch=network.name, weights=str(weights), classes=str(classes), preprocess=preprocess)
        try:
            bundle = ea.export(
                source,
                folder / "x.edgeadv",
                precisions=["fp32", "fp16", "int8"],
                frames=folder / "golden",
                # whatever is lost is accepted here: the table says how much that is
                int8=ea.Int8Options(
                    calibration_data=str(folder / "calibration"), gate_data=folder / "measured", max_drop=100.0
                ),
                keep_going=True,
            )
        except EdgeAdvError as error:
            return {"failed": str(error)}
        return {
            "million_weights": round(sum(p.numel() for p in model.parameters()) / 1e6, 1),
            "classes_answered": len(set(labels.tolist())),
            **described(bundle),
        }


def described(bundle: ea.Bundle) -> dict[str, Any]:
    """What the manifest says of each variant, and what the golden frames do."""
    tests = {test.variant: test for test in ea.verify(bundle, precisions=["all"]).artefacts}
    variants: dict[str, Any] = {}
    for variant in bundle.variants:
        entry = bundle.manifest.variants[variant]
        found = tests[variant].verification
        assert entry.parity is not None
        about: dict[str, Any] = {
            "max_relative_error": entry.parity.max_relative_error,
            "verified": found is not None and found.ok,
        }
        if entry.gate is not None:
            about["same_labels"] = entry.gate.clean.int8_correct / entry.gate.clean.n
        variants[variant] = about
    return {"variants": variants, "refused": dict(bundle.manifest.refused)}


def settle(model: PixelModel, x: NDArray[np.float32]) -> None:
    """Give BatchNorm its statistics, and the last layer weights under which images differ."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
            module.reset_running_stats()
            module.momentum = None  # the mean of all batches
    logits_of(model, x)
    model.eval()
    try:
        head = model.head
    except InputError:  # it adds up the outputs of several: they stay as they are
        return
    with torch.no_grad():
        nn.init.normal_(head.weight, std=head.weight[0].numel() ** -0.5)
        if head.bias is not None:
            nn.init.zeros_(head.bias)
            head.bias -= torch.from_numpy(logits_of(model, x).mean(axis=0))


def logits_of(model: PixelModel, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of images, in the mode that the model is in."""
    with torch.inference_mode():
        return np.concatenate([model(torch.from_numpy(x[i : i + BATCH])).numpy() for i in range(0, len(x), BATCH)])


def copy(path: Path, folder: Path) -> None:
    """Put a photograph into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, folder / path.name)


def page(result: dict[str, Any]) -> str:
    """``docs/networks.md``."""
    return "\n".join([*_head(result), *_table(result), *_refusals(result), ""])


def _head(result: dict[str, Any]) -> Iterator[str]:
    about, rows = result["environment"], result["networks"]
    whole = sum(set(row.get("variants", {})) == set(VARIANTS) for row in rows.values())
    yield f"""# Networks that were tried

{len(rows)} networks at the resolutions below went through `edgeadv export --precision fp32,fp16,int8 --keep-going` and
`edgeadv verify`; {whole} of them work in all four variants.

Weights are random (seed {about["seed"]}), BatchNorm has the statistics of {about["golden_frames"]} photographs, the
last layer tells {CLASSES} classes apart. The table says what can be exported and how near the artefact is to PyTorch,
and nothing about accuracy. Random weights are harder to quantise than trained ones: two classes are often nearly equal.
They amplify roundings as well: fp16 of EfficientNet-Lite0, refused here, is accepted with
[ImageNet weights](bundle.md#parity).

- **fp32**, **fp16**: largest error of a logit on {about["golden_frames"]} photographs, as a share of the largest logit;
  1e-4 and 1e-2 are accepted.
- **int8**: share of {about["measured_images"]} photographs that get the label that PyTorch gives them, calibrated on
  {about["calibration_images"]} others. `--max-drop 100` was given: nothing was refused for that.
- All that is not *refused* passed `edgeadv verify` on the same machine, unless the table says *not verified*.

{about["device"]}, torch {about["torch"]}, torchvision {about["torchvision"]}, timm {about["timm"]}, ONNX Runtime
{about["onnxruntime"]}. Written by `benchmarks/networks.py`.
"""


def _table(result: dict[str, Any]) -> Iterator[str]:
    yield "| network | kind | input | million weights | fp32 | fp16 | int8-s8s8 | int8-u8s8 |"
    yield "|---|---|---|---|---|---|---|---|"
    for key, row in result["networks"].items():
        cells = ["failed"] * len(VARIANTS)
        if "failed" not in row:
            cells = [_cell(row["variants"].get(variant)) for variant in VARIANTS]
        weights = row.get("million_weights", "")
        yield f"| `{key.partition('@')[0]}` | {row['kind']} | {row['side']} | {weights} | {' | '.join(cells)} |"
    yield ""


def _cell(variant: dict[str, Any] | None) -> str:
    if variant is None:
        return "refused"
    same = variant.get("same_labels")
    text = f"{variant['max_relative_error']:.1e}" if same is None else f"{same:.0%}"
    return text if variant["verified"] else f"{text}, not verified"


def _refusals(result: dict[str, Any]) -> Iterator[str]:
    yield "## What is refused, and why"
    yield ""
    for key, row in result["networks"].items():
        reasons: dict[str, list[str]] = {}
        for variant, why in ({"all": row["failed"]} if "failed" in row else row["refused"]).items():
            reasons.setdefault(why, []).append(variant)
        for why, variants in reasons.items():
            yield f"- `{key.replace('@', '` at ')}, {', '.join(variants)}: {why}"


if __name__ == "__main__":
    main()
