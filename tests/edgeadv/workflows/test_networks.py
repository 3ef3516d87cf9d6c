"""Networks of one's own become bundles: from an object, from a function by its name, and what of them is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import edgeadv as ea
from edgeadv.models.checkpoints import load_state, read_weights
from edgeadv.training.runs import Run
from edgeadv_runtime import Bundle, OnnxRuntimeBackend, Preprocess
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.errors import ExportError, InputError

NAMES = ["cat", "dog", "fox", "owl"]
STEPS = "resize=40,crop=32"
NETS = """
from torch import nn

class Small(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return {"logits": self.head(self.body(x).mean((2, 3)))}

def small():
    return Small()

def two():
    return Small(2)
"""


class Net(nn.Module):
    """A small network, which changes its input in place, with a wrapper around its layers and another around its
    output."""

    def __init__(self, output: Any = lambda y: y, wrap: Any = lambda layer: layer) -> None:
        super().__init__()
        self.conv = wrap(nn.Conv2d(3, 8, 3, stride=2))
        self.act = nn.ReLU(inplace=True)
        self.head = wrap(nn.Linear(8, 4))
        self.output = output

    def forward(self, x: Tensor) -> Any:
        x.mul_(2)
        return self.output(self.head(self.act(self.conv(x)).mean((2, 3))))


@pytest.fixture(autouse=True)
def quiet_and_slow() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def export(net: Any, out: Path, frames: Any, **more: Any) -> Bundle:
    given = {"classes": NAMES, "preprocess": STEPS, "precisions": ["fp32"], **more}
    return ea.export(net, out, frames=frames, **given)


def answers(bundle: Bundle, x: NDArray[np.float32]) -> NDArray[np.float32]:
    with OnnxRuntimeBackend(bundle, variant="fp32") as backend:
        return backend.infer(x)


def pixels(photographs: list[NDArray[np.uint8]], count: int = 8) -> NDArray[np.float32]:
    steps = Preprocess.parse(STEPS)
    return to_tensor(np.stack([steps(frame, color_order="rgb") for frame in photographs[:count]]))


def test_any_module_becomes_a_bundle_and_stays_as_it_is(tmp_path: Path, photographs: list[NDArray[np.uint8]]) -> None:
    net = Net().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    bundle = export(net, tmp_path / "x.edgeadv", photographs, precisions=["fp32", "fp16"])
    assert net.training and all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    entry = bundle.manifest.architecture
    assert (entry.source, entry.mean, entry.std, entry.num_classes) == ("module", (), (), 4)
    assert entry.name.endswith("test_networks.Net") and bundle.manifest.title == "Net"
    assert bundle.classes.ids == tuple(NAMES) and bundle.manifest.provenance["frames"]["origin"] == "in memory"
    x = pixels(photographs)
    with torch.no_grad():
        expected = net.eval()(torch.from_numpy(x.copy())).numpy()
    np.testing.assert_allclose(answers(bundle, x), expected, rtol=1e-4, atol=1e-5)
    again = Net()
    load_state(again, read_weights(bundle.weights_path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.state_dict().items())


def test_classes_preprocessing_and_frames_are_given_in_every_form(
    tmp_path: Path, photographs: list[NDArray[np.uint8]]
) -> None:
    (tmp_path / "photos").mkdir()
    for i, frame in enumerate(photographs[:3]):
        Image.fromarray(frame).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "classes.tsv").write_text("".join(f"{name}\t{name}\n" for name in NAMES))
    pictures = [Image.fromarray(frame) for frame in photographs[:3]]
    entries = [{"id": name, "name": name} for name in NAMES]
    made = [
        export(Net(), tmp_path / f"{i}.edgeadv", frames, classes=classes, preprocess=steps)
        for i, (frames, classes, steps) in enumerate(
            [
                (photographs[:3], entries, STEPS),
                (pictures, tmp_path / "classes.tsv", Preprocess.parse(STEPS)),
                (tmp_path / "photos", tuple(NAMES), STEPS),
            ]
        )
    ]
    assert {bundle.classes for bundle in made} == {made[0].classes}
    assert {bundle.preprocess for bundle in made} == {Preprocess.parse(STEPS)}
    assert made[2].manifest.provenance["frames"] == {"origin": "photos", "count": 3}


def test_frames_of_16_bits_and_those_that_lie_on_their_side(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    deep = [rng.integers(0, 4096, (40, 50), dtype=np.uint16) for _ in range(3)]
    pictures = [Image.fromarray(each) for each in deep]
    assert pictures[0].mode == "I;16"
    windowed = STEPS + ",window=0:4095"
    for i, frames in enumerate((deep, pictures)):
        bundle = export(Net(), tmp_path / f"{i}", frames, preprocess=windowed)
        golden = bundle.golden()
        assert [frame.dtype for frame in golden.frames] == [np.uint16] * 3
        assert all((a == b).all() for a, b in zip(golden.frames, deep, strict=True))
    for frames, says in (
        (deep, "`frames` number 0 is uint16: state in `preprocess` which levels"),
        (pictures, "`frames` number 0: it has more than 8 bits a pixel"),
    ):
        with pytest.raises(InputError, match=says):
            export(Net(), tmp_path / "x", frames)
    with pytest.raises(InputError, match=r"`frames` holds uint16 arrays, for `preprocess` has window=.* is uint8"):
        export(Net(), tmp_path / "x", [np.zeros((40, 50), np.uint8)], preprocess=windowed)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    turned.save(tmp_path / "t.png", exif=exif)
    with Image.open(tmp_path / "t.png") as image:
        bundle = export(Net(), tmp_path / "turned", [image], preprocess="exif=apply," + STEPS)
    assert bundle.golden().frames[0].shape == (60, 40, 3)


def test_normalisation_goes_inside(tmp_path: Path, photographs: list[NDArray[np.uint8]]) -> None:
    net, mean, std = Net().eval(), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    bundle = export(net, tmp_path / "x", photographs, normalize=(mean, std))
    assert (bundle.manifest.architecture.mean, bundle.manifest.architecture.std) == (mean, std)
    x = pixels(photographs)
    shape = (1, 3, 1, 1)
    with torch.no_grad():
        expected = net((torch.from_numpy(x) - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)).numpy()
    np.testing.assert_allclose(answers(bundle, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Net(lambda y: {"out": y, "aux": y + 1}),
        lambda: Net(lambda y: (y, y[:, :, None])),
        lambda: Net().half(),
        lambda: torch.compile(Net()),
        lambda: nn.DataParallel(Net()),
        lambda: Net(wrap=parametrizations.weight_norm),
        lambda: Net(wrap=parametrizations.spectral_norm),
        lambda: Net(wrap=nn.utils.weight_norm),
        lambda: Net(wrap=nn.utils.spectral_norm),
        lambda: Net(lambda y: (print("chatter"), y)[1]),
        lambda: Net,
    ],
    ids=[
        *("dict", "tuple", "half", "compiled", "parallel", "weight_norm", "spectral_norm"),
        *("old_weight_norm", "old_spectral_norm", "prints", "class"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_modules_of_many_kinds(make: Any, tmp_path: Path, photographs: list[NDArray[np.uint8]]) -> None:
    net = make()
    bundle = export(net, tmp_path / "x", photographs, precisions=["fp32", "fp16"])
    proto = onnx.load(bundle.onnx_path("fp32"))
    # weights are constants, whatever computed them
    assert [node.op_type for node in proto.graph.node].count("Conv") == 1
    assert {"ReduceL2", "Sqrt", "Div", "MatMul"}.isdisjoint(node.op_type for node in proto.graph.node)
    x = torch.rand(2, 3, 32, 32)
    if isinstance(net, Net) and next(net.parameters()).dtype == torch.float32:
        with torch.no_grad():  # the caller's module works as before
            first = net.eval()(x.clone())
        first = first.get("out") if isinstance(first, dict) else first[0] if isinstance(first, tuple) else first
        np.testing.assert_allclose(answers(bundle, x.numpy()), first.numpy(), rtol=1e-4, atol=1e-5)


def test_auxiliary_heads_play_no_part(tmp_path: Path, photographs: list[NDArray[np.uint8]]) -> None:
    net = torchvision.models.googlenet(num_classes=4, aux_logits=True, init_weights=False)
    bundle = export(net, tmp_path / "x", photographs[:4], normalize="imagenet", preprocess="resize=64,crop=64")
    assert not [i.name for i in onnx.load(bundle.onnx_path("fp32")).graph.initializer if "aux" in i.name]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Net(lambda y: (y, y)), "where its logits are is not clear"),
        (lambda: Net(lambda y: {"out": y[:, :, None, None]}), r"of shape \(2, 4, 1, 1\), and a classifier's logits"),
        (lambda: Net(lambda y: nn.functional.dropout(y, 0.3, True)), "two answers to the same image"),
        (lambda: Net(lambda y: y / 0 * 0), "gives NaN"),
        (lambda: Net(lambda y: torch.complex(y, y)), "complex64"),
        (lambda: Net(lambda y: y[:, :3]), "there are 4 classes"),
        (lambda: Net(lambda y: y.softmax(1)), "gives probabilities, which sum to 1"),
        (lambda: Net(lambda y: (6 * y).sigmoid()), "gives probabilities, for it ends in a sigmoid: let it"),
        (lambda: Net(lambda y: 1 / (1 + (-6 * y).exp())), "for it ends in a sigmoid: let it return the logits"),
        (lambda: Net(lambda y: 2 * y.softmax(1) - 1), "for it ends in a softmax: let it return"),
        (lambda: Net(lambda y: 2 * (y.exp() / y.exp().sum(1, True)) - 1), "for it ends in a softmax: let it"),
        (lambda: Net(lambda y: 100 * y.sigmoid() - 1), "ends in a sigmoid"),
        (lambda: Net(lambda y: y * 0), "gives every image the same logits"),
        (lambda: Net(lambda y: sys.exit(0)), "SystemExit: 0"),
        (lambda: Net(lambda y: y if y.sum() > 0 else y + y), "takes a branch that depends on the values of"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(5, 4)), "cannot take images of 32x32 pixels"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), "of a size that is not known yet: show it one batch"),
        (lambda: torch.jit.script(nn.Flatten()), "TorchScript program: give the module it was made from"),
        (lambda: dict, "gives a dict, not a torch.nn.Module"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated")
def test_what_cannot_be_a_bundle_is_one_line(
    make: Any, says: str, tmp_path: Path, photographs: list[NDArray[np.uint8]], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((InputError, ExportError), match=says) as caught:
        export(make(), tmp_path / "x", photographs[:5])
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"classes": None}, "for a network that is an object, export also needs `classes`"),
        ({"classes": [1, 2]}, "`classes` are names in logit order"),
        ({"classes": ["a", "a", "b", "c"]}, "two distinct ids"),
        ({"preprocess": "resize=big"}, "`preprocess` has no resize=big"),
        ({"normalize": "1"}, "`normalize` '1' is not imagenet"),
        ({"frames": []}, "`frames` is a folder of real images, or a list"),
        ({"frames": [np.zeros((8, 8, 3))]}, "`frames` holds uint8 arrays or Pillow's images; number 0 is float64"),
        ({"frames": ["a.png"]}, "number 0 is str"),
    ],
)
def test_what_is_wrong_is_said_of_a_field(
    given: dict[str, Any], says: str, tmp_path: Path, photographs: list[NDArray[np.uint8]]
) -> None:
    with pytest.raises(InputError, match=says):
        export(Net(), tmp_path / "x", **{"frames": photographs[:2], **given})
    assert list(tmp_path.iterdir()) == []


def test_what_belongs_to_an_object_is_refused_beside_a_run(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^`classes`, `normalize` belong to a network that is an object"):
        ea.export(run, tmp_path / "x", classes=NAMES, normalize="imagenet")
    with pytest.raises(TypeError, match="unexpected keyword argument 'clases'"):
        ea.export(Net(), tmp_path / "x", clases=NAMES)  # type: ignore[call-arg]


def test_a_trained_network_is_an_object_too(run: Path, photos: Path, tmp_path: Path) -> None:
    model = Run.open(run).load_model()
    bundle = ea.export(
        model, tmp_path / "x", classes=["a", "b"], preprocess="resize=32,crop=32", frames=photos, precisions="fp32"
    )
    assert bundle.manifest.architecture.source == model.architecture.source != "module"
    with pytest.raises(InputError, match="`normalize` is inside this network already"):
        ea.export(model, tmp_path / "y", classes=["a", "b"], preprocess="crop=32", frames=photos, normalize="imagenet")


# By name


@pytest.fixture
def code(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A module in ``tmp_path``, under a name of its own."""
    name = f"own_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(NETS)
    return name


def test_the_command_line_imports_own_code(cli: Any, code: str, photos: Path, tmp_path: Path) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("somewhere_else", tmp_path / f"{code}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.small()
    torch.save({"state_dict": {f"model.{k}": v for k, v in net.state_dict().items()}, "epoch": 1}, tmp_path / "w.ckpt")
    (tmp_path / "classes.tsv").write_text("".join(f"{name}\t{name}\n" for name in NAMES))
    options = ["--classes", "classes.tsv", "--preprocess", "resize=32,crop=32", "--golden", photos]
    options += ["--precision", "fp32", "--normalize", "0.5,0.5,0.5/0.5,0.5,0.5"]
    done = cli("export", "--model", f"{code}:small", "--weights", "w.ckpt", *options, "--out", "x.edgeadv")
    assert done.status == 0, done.err
    bundle = Bundle.open(tmp_path / "x.edgeadv")
    entry = bundle.manifest.architecture
    assert (entry.source, entry.name, entry.mean) == ("module", f"{code}:small", (0.5, 0.5, 0.5))
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        expected = net.eval()((x - 0.5) / 0.5)["logits"].numpy()
    np.testing.assert_allclose(answers(bundle, x.numpy()), expected, rtol=1e-4, atol=1e-5)
    for changes, says in (
        (
            ["--model", f"{code}:big", "--weights", "w.ckpt"],
            f"edgeadv: --arch {code} has no 'big'; it has Small, small, two\n",
        ),
        (["--model", f"{code}:two", "--weights", "w.ckpt"], "shape: head.weight (4, 8) for (2, 8)"),
        (["--model", f"{code}:two", "--weights", "none"], "there are 4 classes: their numbers must agree"),
        (["--model", f"{code}:small", "--weights", "default"], "--weights default is of torchvision and timm"),
        (["--model", "nowhere:net", "--weights", "none"], "there is no module nowhere in "),
        (["--model", "nets:", "--weights", "none"], "--arch 'nets:' is not written package.module:factory"),
    ):
        done = cli("export", *changes, *options, "--out", "y")
        assert done.status == 2 and says in done.err, done.err
        assert not (tmp_path / "y").exists()


def test_help_says_that_code_is_run(cli: Any) -> None:
    text = " ".join(cli("export", "--help").out.split())
    assert "--model" in text and "imported from the current directory and run" in text


def test_a_bundle_never_makes_anything_be_imported(
    cli: Any, code: str, photos: Path, tmp_path: Path, photographs: list[NDArray[np.uint8]]
) -> None:
    bundle = export(Net(), tmp_path / "x", photographs[:4])
    (tmp_path / f"{code}.py").write_text("open('imported', 'w').close()\n" + NETS)
    done = cli("evaluate", bundle.path, "--data", photos, "--eps", "2/255", "--backend", "torch", "--attack", "fgsm")
    assert done.status in (0, 2) and "Traceback" not in done.err
    assert not (tmp_path / "imported").exists()
