"""Networks of every kind through `edgeadv.export` or `edgeadv.import_onnx`, and `edgeadv.verify`: what works, in which
precision, and what not.

    python benchmarks/networks.py --data FOLDER-OF-CLASS-FOLDERS --out benchmarks/results/networks-cpu.json
    python benchmarks/networks.py --tables                  # write docs/results/networks.md from what is committed

Nothing is trained. Weights are random, from a fixed seed; BatchNorm has its statistics from real images, and the last
layer is fitted to their labels by ridge regression (`settle` says what else). So the logits are decided,
and nothing is said about how well such a network can do. The labels that int8 is measured on are those of the network
itself in PyTorch: what int8 is said to keep is how often it answers as that.

One process for each network; what is in the result already is not run again. What ends such a process is its result.
"""

from __future__ import annotations

import argparse
import json
import re
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
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

import edgeadv as ea
from edgeadv.models.builder import Architecture, PixelModel, build
from edgeadv_runtime import Classifier, Preprocess
from edgeadv_runtime.bundle.pictures import decode
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.bundle.walk import pictures
from edgeadv_runtime.device.facts import processor_name
from edgeadv_runtime.errors import EdgeAdvError, InputError

ROOT = Path(__file__).resolve().parents[1]
RESULT, PAGE = ROOT / "benchmarks" / "results" / "networks-cpu.json", ROOT / "docs" / "results" / "networks.md"
CLASSES, SEED, BATCH = 10, 0, 20
# images that the last layer is fitted to (the first of them also calibrate), golden frames, and those to measure on
FITTED, CALIBRATION, GOLDEN, MEASURED = 100, 32, 20, 60
VARIANTS = ("fp32", "fp16", "int8-s8s8", "int8-u8s8")


@dataclass(frozen=True)
class Network:
    """One network at one size.

    Attributes:
        name: as `edgeadv export --arch` takes it, or of a file.
        kind: what it is an example of.
        size: its input, pixels of a square or HEIGHTxWIDTH.
        color: ``"rgb"`` or ``"gray"``.
        arch: what is built, where that is not ``name``.
        form: ``"object"`` of what is handed over itself, or that of a :func:`file`; else it goes by its name.
        int8: whether int8 is tried as well.
    """

    name: str
    kind: str
    size: str = "224"
    color: str = "rgb"
    arch: str = ""
    form: str = ""
    int8: bool = True

    @property
    def key(self) -> str:
        """What its result is called."""
        return f"{self.name}@{self.size}"

    @property
    def classes(self) -> int:
        """How many it tells apart."""
        return 2 if self.form == "sigmoid" else CLASSES

    @property
    def preprocess(self) -> str:
        """How a frame becomes its input."""
        sized = f"size={self.size}" if "x" in self.size else f"resize={self.size},crop={self.size}"
        return sized if self.color == "rgb" else f"{sized},color={self.color}"


class Small(nn.Module):
    """A few convolutions, as own code has them."""

    def __init__(self, channels: int = 3, classes: int = CLASSES) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((channels, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.fc = nn.Linear(512, classes)

    def forward(self, x: torch.Tensor) -> Any:
        """Logits."""
        return self.fc(self.body(x))


class Pair(Small):
    """The same, which gives its features too."""

    def forward(self, x: torch.Tensor) -> Any:
        """Logits, features."""
        features = self.body(x)
        return self.fc(features), features


def plain() -> nn.Module:
    """A factory of own code."""
    return Small()


def grey() -> nn.Module:
    """One of a network that takes one channel."""
    return Small(channels=1)


def binary() -> nn.Module:
    """One of a network of two classes."""
    return Small(classes=2)


NETWORKS = (
    Network("alexnet", "plain"),
    Network("vgg11", "plain"),
    Network("squeezenet1_1", "plain"),
    Network("resnet18", "residual"),
    Network("resnet18", "residual", size="120x160"),
    Network("timm/resnext26ts", "grouped"),
    Network("regnet_y_400mf", "grouped, squeeze-excitation"),
    Network("mobilenet_v2", "depthwise"),
    Network("mobilenet_v3_small", "depthwise, squeeze-excitation"),
    Network("mnasnet0_5", "depthwise"),
    Network("efficientnet_b0", "depthwise, squeeze-excitation"),
    Network("timm/efficientnet_lite0", "depthwise"),
    Network("timm/efficientnet_lite0", "depthwise", size="160"),
    Network("timm/ghostnet_050", "depthwise"),
    Network("timm/legacy_seresnet18", "squeeze-excitation"),
    Network("shufflenet_v2_x0_5", "channel shuffle"),
    Network("densenet121", "dense"),
    Network("googlenet", "inception"),
    Network("inception_v3", "inception", size="299"),
    Network("timm/repvgg_a0", "re-parametrised"),
    Network("timm/mobileone_s0", "re-parametrised"),
    Network("timm/convnext_atto", "convolutions, LayerNorm"),
    Network("timm/poolformer_s12", "pooling as mixer"),
    Network("timm/mixer_s32_224", "mixer"),
    Network("timm/vit_tiny_patch16_224", "attention"),
    Network("timm/deit_tiny_patch16_224", "attention"),
    Network("vit_b_16", "attention, PyTorch's own", int8=False),
    Network("swin_t", "attention in windows"),
    Network("maxvit_t", "attention, convolutions"),
    Network("timm/coat_lite_tiny", "attention, convolutions"),
    Network("timm/mobilevit_xxs", "attention, convolutions", size="256"),
    Network("timm/levit_128s", "attention, convolutions"),
    Network("networks:plain", "own, by name", size="64"),
    Network("networks:Pair", "own, an object", size="64", form="object"),
    Network("networks:grey", "own, grey", size="48x48", color="gray"),
    Network("file/nhwc", "NHWC, 0..255, softmax", size="64", arch="networks:plain", form="nhwc"),
    Network("file/sigmoid", "one sigmoid", size="64", arch="networks:binary", form="sigmoid"),
    Network("file/qdq", "int8, Q/DQ", size="64", arch="networks:plain", form="QDQ QInt8"),
    Network(
        "file/qoperator",
        "uint8, QOperator",
        size="64",
        arch="networks:plain",
        form="QOperator QUInt8",
    ),
    Network(
        "file/qoperator-s8",
        "int8, QOperator",
        size="64",
        arch="networks:plain",
        form="QOperator QInt8",
    ),
)


def main() -> None:
    """Run what is missing, and write the result after each network."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help=f"images in class folders; the {CLASSES} largest are used")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--only", action="append", help="this network, as NAME or NAME@SIZE; may be given again")
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    parser.add_argument("--tables", action="store_true", help="run nothing, write the page")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tables:
        PAGE.write_text(page(json.loads(RESULT.read_text())))
        return
    if options.data is None:
        parser.error("--data is needed: a folder of class folders")
    if options.one is not None:
        (network,) = (network for network in NETWORKS if network.key == options.one)
        print(json.dumps(measure(network, options.data)))
        return
    result = json.loads(options.out.read_text()) if options.out.exists() else {"networks": {}}
    result["environment"] = {**environment(), "images": options.data.resolve().name}
    wanted = options.only or [network.key for network in NETWORKS]
    for network in (each for name in wanted for each in NETWORKS if name in (each.key, each.name)):
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
        "fitted_images": FITTED,
        "golden_frames": GOLDEN,
        "calibration_images": CALIBRATION,
        "measured_images": MEASURED,
    }


def in_a_process(network: Network, data: Path) -> dict[str, Any]:
    """The result of ``network``; where its process dies, that it did."""
    start = time.monotonic()
    command = [sys.executable, __file__, "--data", str(data), "--one", network.key]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    row: dict[str, Any] = {"kind": network.kind, "size": network.size}
    if done.returncode == 0:
        row |= json.loads(done.stdout.splitlines()[-1])
    elif done.returncode < 0:
        row["failed"] = f"died of {signal.Signals(-done.returncode).name}"
    else:
        row["failed"] = f"ended with a traceback: {done.stderr.strip().splitlines()[-1]}"
    return {**row, "seconds": round(time.monotonic() - start)}


def measure(network: Network, data: Path) -> dict[str, Any]:
    """Make a bundle of ``network`` in every precision that there is and replay the golden frames."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    paths, numbers = chosen(data, FITTED + GOLDEN + MEASURED)
    truth = numbers * network.classes // CLASSES
    try:
        model = build(Architecture.find(network.arch or network.name, num_classes=network.classes))
    except EdgeAdvError as error:
        return {"failed": str(error)}
    steps = Preprocess.parse(network.preprocess)
    x = to_tensor(np.stack([steps(picture) for picture in map(decode, paths)]))
    settle(model, x[:FITTED], truth[:FITTED])
    labels = logits_of(model, x[-MEASURED:]).argmax(axis=1)
    about = {
        "million_weights": round(sum(p.numel() for p in model.parameters()) / 1e6, 1),
        "classes_answered": len(set(labels.tolist())),
        "right": float((labels == truth[-MEASURED:]).mean()),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "classes.tsv").write_text("".join(f"c{i}\tclass {i}\n" for i in range(network.classes)))
        for i, path in enumerate(paths[: FITTED + GOLDEN]):
            if i < CALIBRATION or i >= FITTED:
                copy(path, folder / ("golden" if i >= FITTED else "calibration"))
        for path, label in zip(paths[-MEASURED:], labels, strict=True):
            copy(path, folder / "measured" / f"c{label}")
        try:
            bundle = bundled(network, model, folder, x[:CALIBRATION])
        except EdgeAdvError as error:
            return {"failed": str(error)}
        found = described(bundle)
        for variant, entry in found["variants"].items():
            if variant.startswith("int8") and "same_labels" not in entry:  # nobody compared it with a float network
                with Classifier.open(bundle.path, variant=variant) as classifier:
                    answers = [classifier.classify(decode(path))[0].class_id for path in paths[-MEASURED:]]
                entry["same_labels"] = float(
                    np.mean([a == f"c{label}" for a, label in zip(answers, labels, strict=True)])
                )
        return about | found


def chosen(data: Path, count: int) -> tuple[list[Path], NDArray[np.int64]]:
    """As many images of each of the largest class folders, by turns, and their classes."""
    images: dict[str, list[Path]] = {}
    for path in pictures(data):
        images.setdefault(path.parent.name, []).append(path)
    largest = sorted(images, key=lambda name: (-len(images[name]), name))[:CLASSES]
    if len(largest) < CLASSES or len(images[largest[-1]]) * CLASSES < count:
        raise SystemExit(f"{data} must hold {CLASSES} class folders of {-(-count // CLASSES)} images each")
    rng = np.random.default_rng(SEED)
    shuffled = [rng.permutation(len(images[name])) for name in largest]
    numbers = np.arange(count) % CLASSES
    return [images[largest[k]][shuffled[k][i // CLASSES]] for i, k in enumerate(numbers)], numbers


def bundled(network: Network, model: PixelModel, folder: Path, x: NDArray[np.float32]) -> ea.Bundle:
    """The bundle that ``network`` becomes: by its name and a weight file, as an object, or as an ONNX file."""
    out, classes, preprocess = folder / "x.edgeadv", str(folder / "classes.tsv"), network.preprocess
    if network.form not in ("", "object"):
        path, known = file(network.form, model.net, folder, x)
        options = ea.ImportOptions(classes=classes, preprocess=preprocess, **known)
        return ea.import_onnx(path, out, frames=folder / "golden", options=options)
    # whatever is lost is accepted here: the table says how much that is
    int8 = ea.Int8Options(calibration_data=str(folder / "calibration"), gate_data=folder / "measured", max_drop=100.0)
    made: dict[str, Any] = {"precisions": ["fp32", "fp16", "int8"], "int8": int8, "keep_going": True}
    if not network.int8:
        made |= {"precisions": ["fp32", "fp16"], "int8": ea.Int8Options()}
    if network.form == "object":
        return ea.export(model.net, out, frames=folder / "golden", classes=classes, preprocess=preprocess, **made)
    weights = folder / "weights.pth"
    torch.save(model.net.state_dict(), weights)
    source = ea.ModelSource(arch=network.name, weights=str(weights), classes=classes, preprocess=preprocess)
    return ea.export(source, out, frames=folder / "golden", **made)


class Wrapped(nn.Module):
    """A network as a file of some form holds it."""

    def __init__(self, net: Any, form: str) -> None:
        super().__init__()
        self.net, self.form = net, form
        if form == "sigmoid":
            two, net.fc = net.fc, nn.Linear(net.fc.in_features, 1)
            net.fc.weight.data, net.fc.bias.data = two.weight.data.diff(dim=0), two.bias.data.diff()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the file gives."""
        if self.form == "nhwc":
            return torch.softmax(self.net(x.permute(0, 3, 1, 2) / 255), dim=1)
        logits: torch.Tensor = self.net(x)
        return torch.sigmoid(logits) if self.form == "sigmoid" else logits


class Rows(quantization.CalibrationDataReader):
    """Images, one after another."""

    def __init__(self, x: NDArray[np.float32]) -> None:
        self.rows = iter(x)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next of them."""
        row = next(self.rows, None)
        return None if row is None else {"x": row[None]}


def file(form: str, net: nn.Module, folder: Path, x: NDArray[np.float32]) -> tuple[Path, dict[str, str]]:
    """An ONNX file as somebody else makes it, and what must be said of it."""
    path = folder / "theirs.onnx"
    example = torch.from_numpy(x[:2])
    example = example.permute(0, 2, 3, 1).contiguous() if form == "nhwc" else example
    torch.onnx.export(
        Wrapped(net, form).eval(),
        (example,),
        path,
        input_names=["x"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    if " " in form:  # how, and of what type activations are
        how, activations = form.split()
        quant_pre_process(path, path, skip_symbolic_shape=True)
        quantization.quantize_static(
            path,
            path,
            Rows(x),
            quant_format=quantization.QuantFormat[how],
            activation_type=quantization.QuantType[activations],
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
        )
    return path, {"color": "rgb"} | ({} if form == "nhwc" else {"scale": "0..1"})


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
        if entry.gradients is not None:
            own = entry.gradients
            about["gradients"] = own.missing if own.parity is None else own.parity.max_relative_error
        if entry.gate is not None:
            about["same_labels"] = entry.gate.clean.int8_correct / entry.gate.clean.n
        variants[variant] = about
    # the place of what was being made says nothing
    refused = {variant: re.sub(r"\S*/(?=model\.)", "", why) for variant, why in bundle.manifest.refused.items()}
    return {"variants": variants, "refused": refused}


def settle(model: PixelModel, x: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    """Give BatchNorm its statistics, and the last layer the weights that tell images apart.

    Depthwise kernels become positive, and BatchNorm shifts its outputs by one deviation. With signs at random and no
    shift fifty layers multiply a rounding by a thousand, and no class survives them: no trained network is like that.
    """
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.weight.data.abs_()
    for module in norms:
        if module.affine:
            nn.init.ones_(module.weight)
            nn.init.ones_(module.bias)
        module.train()
        module.reset_running_stats()
        module.momentum = None  # the mean of all batches
    if norms:
        logits_of(model, x)
    model.eval()
    try:
        head = model.head
    except InputError:  # it adds up the outputs of several: they stay as they are
        return
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    logits_of(model, x)
    hook.remove()
    # one row for each image: the mean over places, or over tokens
    features = torch.cat([each.flatten(2).mean(2) if isinstance(head, nn.Conv2d) else each for each in seen]).double()
    features = features.flatten(1, -2).mean(dim=1) if features.ndim > 2 else features
    weight, bias = ridge(features, torch.from_numpy(labels), intercept=head.bias is not None)
    with torch.no_grad():
        head.weight.copy_(weight.view_as(head.weight))
        if head.bias is not None:
            head.bias.copy_(bias)


def ridge(features: torch.Tensor, labels: torch.Tensor, *, intercept: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A linear layer that gives an image's class 10 and others 0; its penalty is that which leaving one out favours."""
    targets = 10 * nn.functional.one_hot(labels).double()
    middle, level = features.mean(dim=0) * intercept, targets.mean(dim=0) * intercept
    centred, targets = features - middle, targets - level
    products = centred @ centred.T
    fits = []
    for share in (0.01, 0.1, 1.0, 10.0):
        penalty = share * products.diagonal().mean()
        inverse = torch.linalg.inv(products + penalty * torch.eye(len(products)).double())
        found = inverse @ targets
        kept = inverse.diagonal() - intercept / (len(products) * penalty)  # 1 - leverage, over the penalty
        fits.append((float((found / kept[:, None]).square().sum()), found))
    weight = (centred.T @ min(fits, key=lambda fit: fit[0])[1]).T
    return weight, level - weight @ middle


def logits_of(model: PixelModel, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of images, in the mode that the model is in."""
    with torch.inference_mode():
        return np.concatenate([model(torch.from_numpy(x[i : i + BATCH])).numpy() for i in range(0, len(x), BATCH)])


def copy(path: Path, folder: Path) -> None:
    """Put an image into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, folder / path.name)


def page(result: dict[str, Any]) -> str:
    """``docs/results/networks.md``."""
    return "\n".join([*_head(result), *_table(result), *_refusals(result), ""])


def _head(result: dict[str, Any]) -> Iterator[str]:
    about, rows = result["environment"], result["networks"]
    done = [set(row.get("variants", {})) for row in rows.values()]
    files = ["variants" in row for key, row in rows.items() if key.startswith("file/")]
    fp32 = [row["variants"]["fp32"]["max_relative_error"] for row in rows.values() if "fp32" in row.get("variants", {})]
    measured, chance = about["measured_images"], 1 / CLASSES
    made = f"{done.count(set(VARIANTS))} work in all four variants. Of {len(files)} files {sum(files)} entered."
    failed = [
        f"`{key}` {v}" for key, row in rows.items() for v, of in row.get("variants", {}).items() if not of["verified"]
    ]
    passed = (
        f"All that is not refused{', but for ' * bool(failed)}{', '.join(failed)} passed `verify` on the same machine."
    )
    versions = ", ".join(f"{name} {about[name]}" for name in ("torch", "torchvision", "timm", "onnxruntime"))
    yield f"""# Networks that were tried

{len(rows)} networks went through `export --precision fp32,fp16,int8 --keep-going`, ONNX files through `import`.
{made} {passed}

**Nobody trained these networks.** Weights are random. BatchNorm has the statistics of {about["fitted_images"]} real
images (`{about["images"]}`), and ridge regression fits the last layer to their labels. To amplify roundings less,
depthwise kernels are positive and BatchNorm's outputs are shifted by one deviation. Many random layers still amplify
them more than trained ones. So fp16 of deep networks is refused here, and int8 loses much. With ImageNet weights,
[fp16 of EfficientNet-Lite0](../reference/bundle.md) is accepted. [Signs](../tutorials/signs.md) has trained networks.

| column | holds |
|---|---|
| right | share of {measured} other images that PyTorch names rightly; chance is {chance:.0%}, of `file/sigmoid` 50% |
| `fp16` | largest error of a logit on {about["golden_frames"]} images, over the largest logit; 1e-2 is accepted |
| `int8-...` | share of the {measured} that keep PyTorch's label; {about["calibration_images"]} others calibrate |

int8 had `--max-drop 100`. {len(fp32)} have `fp32`, with an error of at most {max(fp32):.1e}; 1e-4 is accepted.
A dash was not asked for.

{about["device"]}, {versions}.
`benchmarks/networks.py` makes `networks:` and `file/`.
"""


def _ordered(result: dict[str, Any]) -> Iterator[tuple[Network, dict[str, Any]]]:
    rows = result["networks"]
    return ((network, rows[network.key]) for network in NETWORKS if network.key in rows)


def _table(result: dict[str, Any]) -> Iterator[str]:
    yield f"| network@input | kind | right | {' | '.join(f'`{variant}`' for variant in VARIANTS[1:])} |"
    yield "|---|---|---|---|---|---|"
    for network, row in _ordered(result):
        right, cells = "", ["refused"] * len(VARIANTS[1:])
        if "failed" not in row:
            right = f"{row['right']:.0%}"
            cells = [_cell(row["variants"].get(variant), row["refused"].get(variant)) for variant in VARIANTS[1:]]
        yield f"| {' | '.join([f'`{network.key}`', network.kind, right, *cells])} |"
    yield ""


def _cell(variant: dict[str, Any] | None, refused: str | None) -> str:
    if refused is not None:
        off = re.search(r"relative error ([^,]+),", refused)
        return "refused" if off is None else f"refused: {float(off[1]):.1e}"
    if variant is None:
        return "–"
    same = variant.get("same_labels")
    text = f"{variant['max_relative_error']:.1e}" if same is None else f"{same:.0%}"
    return text if variant["verified"] else f"{text}, not verified"


def _refusals(result: dict[str, Any]) -> Iterator[str]:
    yield """## What else is refused

Gradients of a variant are refused where its graph in PyTorch is not what ONNX Runtime computes. Queries attack it.
"""
    for network, row in _ordered(result):
        said = {"all": row["failed"]} if "failed" in row else dict(row["refused"])
        for name, variant in row.get("variants", {}).items():
            if isinstance(why := variant.get("gradients"), str):
                said[f"gradients of {name}"] = why
        for what, why in said.items():
            error = re.search(r"relative error [^,]+", why)
            if error is None:
                # the rest, what to do or what a library says on many lines, is in the result
                yield f"- `{network.key}`, {what}: {why.partition(': ')[0]}"
            elif what.startswith("gradients"):
                yield f"- `{network.key}`, {what}: {error[0]}"


if __name__ == "__main__":
    main()
