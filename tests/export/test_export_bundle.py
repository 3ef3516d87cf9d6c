"""An exported bundle is the model, or there is no bundle."""

from __future__ import annotations

import contextlib
import copy
import getpass
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from edgeadv.data.datasets import ImageSet
from edgeadv.models.builder import Architecture, PixelModel, build
from edgeadv.models.checkpoints import load_state, read_weights
from edgeadv_export import (
    TOLERANCES,
    Int8Plan,
    Origin,
    choose_calibration,
    data_frames,
    export_bundle,
    fp16,
    package,
)
from edgeadv_export.fp16 import to_fp16
from edgeadv_export.package import decided
from edgeadv_export.u8in import to_u8in
from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.bundle.bundle import Bundle, Classes
from edgeadv_runtime.bundle.preprocess import Preprocess, to_tensor
from edgeadv_runtime.device.isolated import call_isolated
from edgeadv_runtime.errors import ExportError, InputError, StorageError
from edgeadv_runtime.files import sha256_bytes, sha256_file

ROOT = Path(__file__).parents[2]
Export = Callable[..., Bundle]


class Net(nn.Module):
    """Two convolutions and a linear layer; ``gain`` scales what lies between the convolutions, not the logits."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2)
            self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 10)
        with torch.no_grad():
            self.second.weight.div_(gain)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)) * self.gain
        logits: Tensor = self.head(torch.relu(self.norm(self.second(x))).mean((2, 3)))
        return logits


class FixedBatch(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(2, 10)


class MixesImages(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0, keepdim=True))


class OtherWhenExported(Net):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits * 1.5 if torch.compiler.is_exporting() else logits


def pixel_model(net: nn.Module, *, upsample: int = 1) -> PixelModel:
    return PixelModel(net, Architecture(name="net", source="timm", num_classes=10, upsample=upsample)).eval()


@pytest.fixture
def export(
    tmp_path: Path, tiny_classes: Classes, tiny_preprocess: Preprocess, photographs: list[NDArray[np.uint8]]
) -> Export:
    def run(model: PixelModel, **changes: Any) -> Bundle:
        arguments: dict[str, Any] = {
            "classes": tiny_classes,
            "preprocess": tiny_preprocess,
            "frames": photographs,
            **changes,
        }
        about = {"title": "a net", "provenance": {"seed": 1}}
        about |= {key: arguments.pop(key) for key in ("title", "provenance", "training_images") if key in arguments}
        arguments["origin"] = Origin(**about)
        return export_bundle(model, arguments.pop("out", tmp_path / "net.edgeadv"), **arguments)

    return run


def test_manifest_says_what_was_exported(tiny_bundle: Bundle, tiny_model: PixelModel) -> None:
    manifest = json.loads((tiny_bundle.path / "manifest.json").read_text())
    assert set(manifest) == {
        "bundle_id",
        "schema_version",
        "kind",
        "created",
        "edgeadv_version",
        "title",
        "architecture",
        "classes",
        "preprocess",
        "variants",
        "weights",
        "golden",
        "provenance",
        "left_out",
    }
    assert manifest["architecture"]["name"] == "test_resnet"
    assert manifest["provenance"] == {"recipe": "seed 0"}
    assert manifest["left_out"] == []
    assert manifest["golden"]["count"] == len(tiny_bundle.golden().frames) == 8
    for variant in ("fp32", "fp16"):
        entry = manifest["variants"][variant]
        assert entry["input"] == {"name": "image", "dtype": "float32", "layout": "NCHW", "range": [0.0, 1.0]}
        assert entry["output"] == {"name": "logits", "dtype": "float32"}
        assert entry["bytes"] == tiny_bundle.onnx_path(variant).stat().st_size
        assert entry["tolerance"] == TOLERANCES[variant]
        assert entry["parity"]["frames"] == 12
        assert 0 < entry["parity"]["max_relative_error"] < TOLERANCES[variant]
        assert entry["parity"]["top1_agreement"] == 1
    assert manifest["variants"]["fp16"]["bytes"] < 0.6 * manifest["variants"]["fp32"]["bytes"]
    again = build(Architecture.from_json(manifest["architecture"]))
    load_state(again.net, read_weights(tiny_bundle.weights_path))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), tiny_model.parameters(), strict=True))


def test_artefacts_give_the_models_logits(tiny_bundle: Bundle, tiny_model: PixelModel) -> None:
    x = to_tensor(tiny_bundle.golden().pixels)
    with torch.no_grad():
        expected = tiny_model(torch.from_numpy(x)).numpy()
    for variant in tiny_bundle.variants:
        with OnnxRuntimeBackend(tiny_bundle, variant=variant, threads=1) as backend:
            logits = backend.infer(x)
        assert np.abs(logits - expected).max() <= TOLERANCES[variant] * np.abs(expected).max()
        np.testing.assert_allclose(tiny_bundle.golden().logits[variant], logits, atol=1e-5)


def test_graphs_hold_no_trace_of_the_machine(tiny_bundle: Bundle) -> None:
    traces = [
        str(ROOT),
        sys.prefix,
        str(Path.home()) + "/",
        "site-packages",
        ".py",
        "Traceback",
        str(tiny_bundle.path.parent),
    ]
    for variant in tiny_bundle.variants:
        data = tiny_bundle.onnx_path(variant).read_bytes()
        proto = onnx.load_from_string(data)
        del proto.graph.initializer[:]  # random bytes may spell anything
        text = proto.SerializeToString()
        assert not [trace for trace in (*traces, getpass.getuser() + "@") if trace.encode() in text]
        assert not proto.metadata_props and not proto.graph.metadata_props
        assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)


def test_export_is_reproducible(export: Export, tmp_path: Path) -> None:
    first, second = (export(pixel_model(Net()), out=tmp_path / name) for name in ("a", "b"))
    for variant in first.variants:
        assert first.artifact_sha256(variant) == second.artifact_sha256(variant)
    assert first.weights_sha256 == second.weights_sha256


def test_fp16_normalises_in_float32(tiny_bundle: Bundle) -> None:
    graph = onnx.load(tiny_bundle.onnx_path("fp16")).graph
    types = {i.name: i.data_type for i in graph.initializer}
    value, seen = "image", []
    while True:
        (node,) = [n for n in graph.node if value in n.input]
        seen.append(node.op_type)
        if node.op_type == "Cast":
            assert node.attribute[0].i == onnx.TensorProto.FLOAT16
            break
        assert all(types[i] == onnx.TensorProto.FLOAT for i in node.input if i != value)
        value = node.output[0]
    assert seen == ["Sub", "Div", "Cast"]
    weights = [t for name, t in types.items() if name.startswith("net.")]
    assert weights and set(weights) == {onnx.TensorProto.FLOAT16}
    for value_info in (*graph.input, *graph.output):
        assert value_info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("net", [Net, OtherWhenExported], ids=["success", "failure"])
def test_the_callers_model_stays_as_it_is(export: Export, net: type[Net]) -> None:
    model = pixel_model(net()).train()
    model.net.norm.eval()
    model.net.first.weight.requires_grad_(False)
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    grads = [(p.requires_grad, p.grad) for p in model.parameters()]
    random = torch.get_rng_state()
    with contextlib.nullcontext() if net is Net else pytest.raises(ExportError):
        export(model, variants=["fp32"])
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad == r and p.grad is g for p, (r, g) in zip(model.parameters(), grads, strict=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


def test_a_double_model_is_exported_as_float32(export: Export) -> None:
    model = pixel_model(Net()).double()
    bundle = export(model, variants=["fp32"])
    assert next(model.parameters()).dtype == torch.float64
    assert read_weights(bundle.weights_path)["first.weight"].dtype == torch.float32


def test_export_is_silent_and_reports_progress(export: Export, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    export(pixel_model(Net()), progress=told.append)
    assert told == ["exporting net to ONNX"] + [f"comparing {v} with PyTorch on 12 frames" for v in ("fp32", "fp16")]
    assert capfd.readouterr() == ("", "")


def test_fp16_alone_and_an_upsampling_model(export: Export) -> None:
    bundle = export(pixel_model(Net(), upsample=2), variants=["fp16"])
    assert bundle.variants == ("fp16",)
    assert set(bundle.golden().logits) == {"fp16"}


def test_large_logits_pass_because_tolerances_are_relative(export: Export) -> None:
    net = Net()
    with torch.no_grad():
        net.head.weight.mul_(2000)
        net.head.bias.mul_(2000)
    parity = export(pixel_model(net)).manifest.variants["fp32"].parity.to_json()
    assert parity["max_relative_error"] < 1e-5


def test_golden_frames_are_the_first_decided_and_all_are_compared(
    export: Export, photographs: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "GOLDEN_FRAMES", 2)
    bundle = export(pixel_model(Net()), variants=["fp32"])
    golden = bundle.golden()
    assert len(golden.frames) == len(golden.pixels) == len(golden.logits["fp32"]) == 2
    assert all(np.array_equal(a, b) for a, b in zip(golden.frames, photographs, strict=False))
    assert bundle.manifest.variants["fp32"].parity.frames == 12
    few = export(pixel_model(Net()), variants=["fp32"], frames=photographs[:1], overwrite=True)
    assert few.manifest.golden.count == 1


def test_golden_frames_are_those_whose_label_no_accepted_error_can_change() -> None:
    """fp16 accepts an error of 1% of the largest logit, so a lead of 2% is decided."""
    leads = np.array([0.05, 0.019, 0.5, 0.01, 0.021, 1.0], dtype=np.float32)
    half = np.stack([np.ones(6), 1 - leads, np.zeros(6)], axis=1).astype(np.float32)
    clear = np.array([[0, 0, 1]] * 6, dtype=np.float32)
    assert decided({"fp16": half}, 3).tolist() == [0, 2, 4]  # not the first three, and not the three clearest
    assert decided({"fp16": half}, 2).tolist() == [0, 2]
    assert decided({"fp16": half}, 5).tolist() == [0, 1, 2, 4, 5]  # then the clearest of the rest
    assert decided({"fp16": half}, 9).tolist() == list(range(6))
    assert decided({"fp32": half}, 3).tolist() == [0, 1, 2]
    assert decided({"fp32": clear, "fp16": half}, 3).tolist() == [0, 2, 4]  # every variant has to be sure
    assert decided({"int8-s8s8": half}, 2).tolist() == [2, 5]


def overflowing_weight() -> nn.Module:
    """Its channel is off on every photograph, so that no activation tells."""
    net = Net()
    with torch.no_grad():
        net.head.weight[0, 0] = 1e6
        net.norm.bias[0] = -1e3
    return net


def overflowing_logits() -> nn.Module:
    net = Net()
    with torch.no_grad():
        net.head.bias.fill_(7e4).mul_(0.9)
        net.head.weight.mul_(5e4)
    return net


def nan_for_photographs() -> nn.Module:
    net = Net()
    net.norm.running_var.fill_(-1.0)
    return net


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (lambda: FixedBatch(), "batch"),
        (lambda: MixesImages(), "others in its batch"),
        (lambda: OtherWhenExported(), "fp32 is not the model it was made from: relative error 0.5,"),
        (lambda: Net(gain=1e6), "fp16 of net would overflow: .* float16 ends at 65504"),
        (overflowing_weight, "fp16 of net would overflow: weight net.head.weight reaches 1e"),
        (overflowing_logits, "fp16 of net would overflow"),
        (nan_for_photographs, "NaN"),
    ],
    ids=["fixed batch", "mixes images", "other when exported", "activation", "weight", "logits", "nan"],
)
def test_what_is_not_the_model_leaves_no_bundle(
    export: Export, tmp_path: Path, net: Callable[[], nn.Module], says: str
) -> None:
    with pytest.raises((ExportError, InputError), match=says):
        export(pixel_model(net()))
    assert list(tmp_path.iterdir()) == []


def test_fp32_of_a_network_that_overflows_float16(export: Export) -> None:
    assert export(pixel_model(Net(gain=1e6)), variants=["fp32"]).variants == ("fp32",)


@pytest.mark.parametrize("order", [["fp32", "fp16"], ["fp16", "fp16-u8in", "fp32-u8in", "fp32"]])
def test_with_keep_going_what_works_is_shipped_and_the_rest_is_named(export: Export, order: list[str]) -> None:
    told: list[str] = []
    bundle = export(pixel_model(Net(gain=1e6)), variants=order, keep_going=True, progress=told.append)
    works = [variant for variant in order if variant.startswith("fp32")]
    assert list(bundle.variants) == works == list(bundle.golden().logits)
    refused = bundle.manifest.refused
    assert list(refused) == [variant for variant in order if variant not in works]
    assert all(re.fullmatch("fp16 of net would overflow: .*export fp32 only .*", why) for why in refused.values())
    assert json.loads((bundle.path / "manifest.json").read_text())["refused"] == refused
    files = {path.name for path in bundle.path.iterdir()}
    assert files == {"manifest.json", "weights.safetensors", "golden.npz", *(f"model.{v}.onnx" for v in works)}
    assert [line for line in told if "refused" in line] == [
        f"{variant} is refused, the others go on: {why}" for variant, why in refused.items()
    ]


def test_with_keep_going_a_variant_whose_float_variant_is_not_shipped_leaves_nothing(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "to_u8in", lambda proto, name: to_u8in(constant(proto), name))
    bundle = export(pixel_model(Net()), variants=["fp16", "fp32-u8in"], keep_going=True)
    assert list(bundle.variants) == ["fp16"]
    assert bundle.manifest.refused["fp32-u8in"].startswith("fp32-u8in is not the model it was made from")
    assert not list(bundle.path.glob("model.fp32*"))


def constant(proto: Any) -> Any:
    """``proto`` with logits of 0."""
    changed = copy.deepcopy(proto)
    changed.graph.node[-1].output[0] = "kept"
    changed.graph.node.append(onnx.helper.make_node("Sub", ["kept", "kept"], ["logits"]))
    return changed


def test_with_keep_going_and_nothing_that_works_there_is_no_bundle(export: Export, tmp_path: Path) -> None:
    says = "^no variant works: fp32 is not the model .*; fp16 is not the model .*[^.]. No bundle was written$"
    with pytest.raises(ExportError, match=says):
        export(pixel_model(OtherWhenExported()), keep_going=True)
    assert list(tmp_path.iterdir()) == []


def test_why_a_variant_was_refused_names_no_temporary_path(
    export: Export, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unknown(proto: Any, name: str) -> Any:
        proto = to_fp16(proto, name)
        proto.graph.node[0].op_type = "Unheard"
        return proto

    monkeypatch.setattr("edgeadv_export.package.to_fp16", unknown)
    bundle = export(pixel_model(Net()), keep_going=True)
    why = bundle.manifest.refused["fp16"]
    assert "model.fp16.onnx" in why and "Unheard" in why and str(tmp_path) not in why


def crashing(monkeypatch: pytest.MonkeyPatch) -> PixelModel:
    """A network with attention, whose fp16 is written such that ONNX Runtime 1.32 on x86 crashes on it."""
    monkeypatch.setattr(fp16, "_fence_transposes", lambda graph: None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = VisionTransformer(32, 8, 1, 2, 32, 64, num_classes=10)
        nn.init.normal_(net.heads.head.weight)  # type: ignore[union-attr, arg-type]
    return pixel_model(net)


def test_a_graph_that_crashes_the_library_is_one_line_and_no_bundle(
    export: Export, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    try:
        export(crashing(monkeypatch))
    except ExportError as error:
        first = f"fp16 crashed onnxruntime {onnxruntime.__version__} (signal SIGSEGV): install another version of it, "
        assert str(error) == first + "leave this out of `precisions`, or give `keep_going`"
    else:
        pytest.skip(f"onnxruntime {onnxruntime.__version__} opens on this processor what 1.32 on x86 crashes on")
    assert list(tmp_path.iterdir()) == []
    bundle = export(crashing(monkeypatch), keep_going=True)
    assert list(bundle.variants) == ["fp32"]
    assert "fp16 crashed onnxruntime" in bundle.manifest.refused["fp16"]


def test_no_graph_of_an_export_is_opened_before_another_process_ran_it(
    digits_model: PixelModel,
    digits_train: ImageSet,
    digits_test: ImageSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """fp32, fp16, and int8 with its calibration and its gate."""
    tried: set[str] = set()
    opened: list[str] = []
    really = onnxruntime.InferenceSession

    def digest(graph: Any) -> str:
        return sha256_bytes(graph if isinstance(graph, bytes) else Path(graph).read_bytes())

    def run(function: Callable[..., Any], *args: Any, **how: Any) -> Any:
        result = call_isolated(function, *args, **how)
        tried.add(sha256_bytes(args[0]) if isinstance(args[0], bytes) else sha256_file(args[0].onnx_path(args[1])))
        return result

    def session(graph: Any, *args: Any, **how: Any) -> Any:
        assert digest(graph) in tried
        opened.append(digest(graph))
        return really(graph, *args, **how)

    monkeypatch.setattr("edgeadv_runtime.backends.first_run.call_isolated", run)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    calibration = choose_calibration(digits_train, digits_test.preprocess, count=32)
    plan = Int8Plan(calibration=calibration, images=digits_test, order=np.arange(100), max_drop=10.0)
    bundle = export_bundle(
        digits_model,
        tmp_path / "x.edgeadv",
        classes=digits_test.classes,
        preprocess=digits_test.preprocess,
        frames=data_frames(digits_test, limit=4),
        variants=["fp32", "fp16", "int8-u8s8"],
        origin=Origin(title="digits", provenance={}),
        int8=plan,
    )
    assert len(bundle.variants) == 3
    assert len(set(opened)) == 3  # what measures ranges, fp32 for the gate, int8
    assert len(tried) == 4


def test_a_failed_export_keeps_the_bundle_that_was_there(export: Export, tmp_path: Path) -> None:
    old = export(pixel_model(Net()), variants=["fp32"])
    with pytest.raises(ExportError):
        export(pixel_model(OtherWhenExported()), overwrite=True)
    assert Bundle.open(tmp_path / "net.edgeadv").id == old.id
    assert [p.name for p in tmp_path.iterdir()] == ["net.edgeadv"]


def test_only_a_bundle_is_overwritten(export: Export, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(StorageError, match="exists"):
        export(pixel_model(Net()), out=folder)
    with pytest.raises(StorageError, match="not a bundle"):
        export(pixel_model(Net()), out=folder, overwrite=True)
    assert (folder / "holiday.jpg").read_bytes() == b"precious"


def test_a_broken_weight_is_named_before_anything_is_written(export: Export, tmp_path: Path) -> None:
    model = pixel_model(Net())
    with torch.no_grad():
        model.net.second.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"net\.second\.weight"):
        export(model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"frames": []}, "at least one real frame"),
        ({"frames": [np.zeros((40, 40), np.uint8)]}, "frame 0: .*height, width, 3"),
        (
            {"frames": [np.zeros((9, 9, 3), np.uint8)], "preprocess": Preprocess(resize=None, crop=32)},
            "frame 0: .*smaller",
        ),
        ({"variants": []}, "fp32, fp16"),
        ({"variants": ["int8"]}, "int8"),
        ({"variants": ["fp32", "fp32"]}, "each once"),
        ({"classes": Classes(("a", "b"), ("a", "b"))}, "2 classes .* 10 logits"),
        ({"provenance": {"loss": float("nan")}}, "provenance"),
        ({"provenance": {"path": Path("x")}}, "provenance"),
    ],
)
def test_unusable_arguments(export: Export, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        export(pixel_model(Net()), **changes)
    assert list(tmp_path.iterdir()) == []


def test_frames_are_chosen_where_all_logits_are_zero():
    with np.errstate(all="raise"):
        assert decided({"fp32": np.zeros((3, 4), np.float32)}, 2).tolist() == [0, 1]
