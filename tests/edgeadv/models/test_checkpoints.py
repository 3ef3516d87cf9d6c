"""Weight files as programs leave them: each must give the network that it was saved from, or one line."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

from edgeadv.models.builder import Architecture, PixelModel, build, load_pretrained, save_weights
from edgeadv.models.checkpoints import copied, load_state, read_weights, write_state
from edgeadv_runtime.errors import InputError

State = dict[str, Tensor]


class Small(nn.Module):
    """Convolution, BatchNorm and a layer called like a wrapper."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module] = lambda layer: layer) -> None:
        super().__init__()
        self.conv = wrap(nn.Conv2d(3, 6, 3))
        self.norm = nn.BatchNorm2d(6)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.norm(self.conv(x)).mean((2, 3)))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def made(seed: int = 0, make: Callable[[], nn.Module] = Small) -> nn.Module:
    """A network whose every tensor differs from a fresh one's."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = make()
        with torch.no_grad():
            for tensor in net.state_dict().values():
                if tensor.is_floating_point() and tensor.ndim > 1:
                    tensor.mul_(1 + 0.1 * torch.rand_like(tensor))  # added to, many layers overflow
                elif tensor.is_floating_point():
                    tensor.add_(0.1 * torch.rand_like(tensor))
    return net.eval()


def saved(tmp_path: Path, content: Any) -> Path:
    torch.save(content, tmp_path / "w.pt")
    return tmp_path / "w.pt"


def loaded(path: Path, make: Callable[[], nn.Module] = Small, **more: Any) -> tuple[nn.Module, list[str]]:
    said: list[str] = []
    net = made(99, make)
    load_state(net, read_weights(path, progress=said.append), origin=path.name, progress=said.append, **more)
    return net, said


def assert_same(net: nn.Module, other: nn.Module, side: int = 16) -> None:
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = net(x), other(x)
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_test_itself() -> None:
    with pytest.raises(AssertionError):
        assert_same(made(0), made(1))


# Names


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.", "model._orig_mod."],
)
def test_what_wrappers_put_before_names_is_taken_off(prefix: str, suffix: str, tmp_path: Path) -> None:
    state = {prefix + name: tensor for name, tensor in made().state_dict().items()}
    path = tmp_path / f"w{suffix}"
    torch.save(state, path) if suffix == ".pt" else safetensors.torch.save_file(state, path)
    net, said = loaded(path)
    assert_same(net, made())
    assert said == []


def test_wrappers_may_be_mixed_and_inside(tmp_path: Path) -> None:
    state = {}
    for i, (name, tensor) in enumerate(made().state_dict().items()):
        first, _, rest = name.partition(".")
        state[(name, f"module.{name}", f"_orig_mod.{name}", f"module.{first}._orig_mod.{rest}")[i % 4]] = tensor
    assert_same(loaded(saved(tmp_path, state))[0], made())


def test_a_network_with_a_part_called_module_keeps_its_names(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(OrderedDict(module=nn.Conv2d(3, 2, 3), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()))

    net, _ = loaded(saved(tmp_path, made(0, make).state_dict()), make)
    assert_same(net, made(0, make))
    wrapped = {f"module.{name}": tensor for name, tensor in made(0, make).state_dict().items()}
    assert_same(loaded(saved(tmp_path, wrapped), make)[0], made(0, make))


@pytest.mark.parametrize(
    "nest",
    [
        ("state_dict",),
        ("model",),
        ("model_state_dict",),
        ("net",),
        ("ema",),
        ("model_ema",),
        ("state_dict_ema",),
        ("ema", "module"),
        ("model", "state_dict"),
    ],
)
def test_nests_are_opened(nest: tuple[str, ...], tmp_path: Path) -> None:
    content: Any = {f"module.{name}": tensor for name, tensor in made().state_dict().items()}
    for key in reversed(nest):
        content = {"epoch": 3, "optimizer": {"lr": 0.1}, key: content}
    net, said = loaded(saved(tmp_path, content))
    assert_same(net, made())
    assert said == []


@pytest.mark.parametrize(
    ("averaged", "raw"), [("ema", "model"), ("state_dict_ema", "state_dict"), ("model_ema", "net")]
)
def test_of_two_the_average_is_taken_and_that_is_said(averaged: str, raw: str, tmp_path: Path) -> None:
    content = {raw: made(1).state_dict(), averaged: made(2).state_dict(), "epoch": 7}
    net, said = loaded(saved(tmp_path, content))
    assert_same(net, made(2))
    assert said == [f"w.pt holds {averaged} and {raw}: the averaged weights, {averaged}, are taken"]


def test_a_shadow_is_taken_and_raw_weights_where_it_has_no_names(tmp_path: Path) -> None:
    raw, average = made(1).state_dict(), made(2).state_dict()
    net, said = loaded(saved(tmp_path, {"state_dict": raw, "ema": {"decay": 0.99, "shadow": average}}))
    assert_same(net, made(2))
    assert said == ["w.pt holds ema and state_dict: the averaged weights, ema, are taken"]
    assert_same(loaded(saved(tmp_path, {"decay": 0.99, "shadow": average}))[0], made(2))
    for more in ({"ema": {"decay": 0.9, "shadow_params": list(average.values())}}, {"shadow_params": [torch.ones(1)]}):
        net, said = loaded(saved(tmp_path, {"model": raw, **more}))
        assert_same(net, made(1))
        (key,) = more
        assert said == [f"w.pt holds {key} without averaged weights by name: the raw weights, model, are taken"]


def test_a_shadow_of_parameters_alone_takes_the_statistics_that_lie_beside_it(tmp_path: Path) -> None:
    raw, parameters = made(1).state_dict(), dict(made(2).named_parameters())
    content = {"model": raw, "ema": {"decay": 0.99, "shadow": {k: v.detach() for k, v in parameters.items()}}}
    net, said = loaded(saved(tmp_path, content))
    expected = made(2)
    expected.load_state_dict({k: v for k, v in raw.items() if k not in parameters}, strict=False)
    assert_same(net, expected)
    assert said[1] == (
        "w.pt has no average of norm.running_mean, norm.running_var and 1 more: these are taken from model"
    )
    del content["ema"]["shadow"]["conv.bias"]
    with pytest.raises(InputError, match=r"missing: .*conv.bias"):
        loaded(saved(tmp_path, content))


def test_pytorchs_averaged_model(tmp_path: Path) -> None:
    average = AveragedModel(made(1), use_buffers=True)
    average.update_parameters(made(2))
    net, said = loaded(saved(tmp_path, average.state_dict()))
    assert_same(net, average.module)
    assert said == []


# Lightning and timm


def lightning(state: State, **more: Any) -> dict[str, Any]:
    return {
        "epoch": 3,
        "global_step": 10,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": OrderedDict(state),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
        "lr_schedulers": [],
        **more,
    }


def test_a_lightning_checkpoint(tmp_path: Path) -> None:
    state = {f"model.{name}": tensor for name, tensor in made().state_dict().items()}
    content = lightning(state, hyper_parameters={"lr": 0.1, "arch": "small"})
    net, said = loaded(saved(tmp_path, content))
    assert_same(net, made())
    assert said == []
    content["state_dict"]["criterion.weight"] = torch.ones(4)
    net, said = loaded(saved(tmp_path, content))
    assert_same(net, made())
    assert said == ["w.pt holds tensors that are not the network's and were left out: criterion.weight"]


def test_objects_in_a_checkpoint_are_named_and_not_loaded(tmp_path: Path) -> None:
    content = lightning(made().state_dict(), hyper_parameters=argparse.Namespace(lr=0.1))
    with pytest.raises(InputError, match=r"objects such as argparse.Namespace runs code; .*state_dict\(\) alone"):
        read_weights(saved(tmp_path, content))


def test_two_networks_in_one_file_are_not_guessed_among(tmp_path: Path) -> None:
    parts = {"student.": made(1), "teacher.": made(2)}
    state = {prefix + name: tensor for prefix, net in parts.items() for name, tensor in net.state_dict().items()}
    with pytest.raises(InputError, match=r"w.pt holds the network 2 times, under student\., teacher\.: keep one"):
        loaded(saved(tmp_path, state))
    state = {name.replace("teacher.", "ema_model.module."): tensor for name, tensor in state.items()}
    net, said = loaded(saved(tmp_path, state))
    assert_same(net, made(2))
    assert said == ["w.pt holds the network 2 times: the averaged weights, ema_model.module.*, are taken"]


def test_a_layer_too_many_or_too_few_is_never_passed_over(tmp_path: Path) -> None:
    state = made().state_dict()
    more = {**state, "extra.weight": torch.ones(2)}
    with pytest.raises(InputError, match=r"w.pt does not fit the network; unexpected: extra.weight$"):
        loaded(saved(tmp_path, more))
    less = {f"model.{name}": tensor for name, tensor in state.items() if name != "conv.bias"}
    with pytest.raises(InputError, match=r"does not fit the network; missing: .*conv.bias"):
        loaded(saved(tmp_path, less))


def test_a_timm_checkpoint_with_both(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return timm.create_model("test_resnet", num_classes=4)

    content = {
        "epoch": 9,
        "arch": "test_resnet",
        "version": 2,
        "metric": 71.5,
        "optimizer": {"state": {}},
        "state_dict": made(1, make).state_dict(),
        "state_dict_ema": made(2, make).state_dict(),
    }
    net, said = loaded(saved(tmp_path, content), make)
    assert_same(net, made(2, make), side=32)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda x: x.to("meta"), "on the meta device, without numbers"),
        (lambda x: torch.quantize_per_tensor(x, 0.01, 0, torch.qint8), "quantised, qint8"),
        (lambda x: x.to_sparse(), "sparse_coo"),
        (lambda x: torch.nested.nested_tensor([x]), "nested"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype")
@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor")
def test_tensors_without_plain_numbers_are_all_named(change: Any, kind: str, tmp_path: Path) -> None:
    state = made().state_dict()
    changed = {k: change(v) if k.endswith("weight") and v.ndim == 2 else v for k, v in state.items()}
    says = rf"w.pt holds tensors without plain numbers: model.0.weight \({kind}\), model.2.weight \({kind}\); save"
    with pytest.raises(InputError, match=says) as caught:
        read_weights(saved(tmp_path, changed))
    assert "\n" not in str(caught.value)


def test_no_state_dict_says_what_else_it_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"names to tensors are expected, but epoch is a int, name is a str$"):
        read_weights(saved(tmp_path, {"a": torch.ones(1), "epoch": 3, "name": "x"}))
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "s.pt")
    with pytest.raises(InputError, match=r"TorchScript program, not a weight file: .*state_dict"):
        read_weights(tmp_path / "s.pt")


# Batch norm of old


@pytest.mark.parametrize("weights_map", ["by-name", "by-position"])
def test_batch_norm_without_its_counter(weights_map: Any, tmp_path: Path) -> None:
    old = {k: v for k, v in made().state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(old) == len(made().state_dict()) - 1
    if weights_map == "by-position":
        old = {f"layer{i}": tensor for i, tensor in enumerate(old.values())}
    else:
        old = {f"module.{name}": tensor for name, tensor in old.items()}
    net, _ = loaded(saved(tmp_path, old), weights_map=weights_map)
    assert_same(net, made())
    assert int(net.norm.num_batches_tracked) == 0  # type: ignore[union-attr, operator, arg-type]


# Shared tensors


class Tied(nn.Module):
    """One layer under two names, and one bias in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(27, 27)
        self.again = self.first
        self.other = nn.Linear(27, 27)
        self.other.bias = self.first.bias
        self.last = nn.Linear(27, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., :3, :3].flatten(1)
        return self.last(self.other(self.again(self.first(x)).relu()))


def test_shared_tensors_are_saved_and_stay_shared(tmp_path: Path) -> None:
    write_state(made(0, Tied), tmp_path / "w.safetensors", metadata={})
    net, _ = loaded(tmp_path / "w.safetensors", Tied)
    assert_same(net, made(0, Tied))
    assert net.first is net.again and net.other.bias is net.first.bias
    # a file that names each once, as others write safetensors
    safetensors.torch.save_model(made(0, Tied), tmp_path / "m.safetensors")
    assert len(safetensors.torch.load_file(tmp_path / "m.safetensors")) < len(made(0, Tied).state_dict())
    assert_same(loaded(tmp_path / "m.safetensors", Tied)[0], made(0, Tied))


def test_what_is_one_tensor_here_must_be_one_in_the_file(tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in made(0, Tied).state_dict().items()}
    state["other.bias"] += 1
    with pytest.raises(InputError, match=r"one tensor here, two there: first.bias and again.bias and other.bias$"):
        loaded(saved(tmp_path, state), Tied)


def test_timms_network_of_shared_layers_is_saved(tmp_path: Path) -> None:
    model = build(Architecture.find("timm/coat_lite_tiny", num_classes=4))
    save_weights(model, tmp_path / "w.safetensors")
    again = load_pretrained(model.architecture, tmp_path / "w.safetensors")
    own = model.net.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in again.net.state_dict().items())
    names = list(own)
    assert len({own[name].data_ptr() for name in names if own[name].numel()}) < len(names), "nothing is shared"


# Weights that are computed

OLD = nn.utils.weight_norm
NEW = parametrizations.weight_norm


@pytest.mark.parametrize(
    "wrap", [OLD, NEW, nn.utils.spectral_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_computed_weights_survive_a_file(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    def make() -> nn.Module:
        return Small(lambda layer: wrap(layer))

    net = made(0, make)
    net(torch.rand(2, 3, 16, 16))
    for path in (tmp_path / "w.safetensors", saved(tmp_path, net.state_dict())):
        if path.suffix == ".safetensors":
            write_state(net, path, metadata={})
        assert_same(loaded(path, make)[0], net)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_weight_norm_of_old_loads_into_that_of_now(tmp_path: Path) -> None:
    old, new = made(0, lambda: Small(OLD)), lambda: Small(NEW)
    assert "conv.weight_g" in old.state_dict()
    assert_same(loaded(saved(tmp_path, old.state_dict()), new)[0], old)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_a_network_that_keeps_computed_tensors_is_copied() -> None:
    net = made(0, lambda: Small(OLD))
    with pytest.raises(RuntimeError, match="deepcopy"):
        __import__("copy").deepcopy(net)
    twin = copied(net)
    assert_same(twin, net)
    with torch.no_grad():
        twin.conv.weight_v.add_(1)
    with pytest.raises(AssertionError):
        assert_same(twin, net)
    assert_same(net, made(0, lambda: Small(OLD)))
    net.lock = __import__("threading").Lock()  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"Small cannot be copied \(cannot pickle '_thread.lock' object\)"):
        copied(net)


# Numbers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_and_is_said(dtype: torch.dtype, tmp_path: Path) -> None:
    half = made().to(dtype)
    net, said = loaded(saved(tmp_path, half.state_dict()))
    assert_same(net, half.float())
    assert said == [f"w.pt holds {str(dtype)[6:]}: the weights are taken as float32"]


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_another_kind_of_number_is_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {
        name: tensor.to(dtype) if name == "conv.weight" else tensor for name, tensor in made().state_dict().items()
    }
    with pytest.raises(InputError, match=rf"kind: conv.weight {str(dtype)[6:]} for float32$"):
        loaded(saved(tmp_path, state))


class Masked(nn.Module):
    """Infinity where it belongs, in a mask that is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, 0.0, 0.0, -torch.inf]))
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x.mean((2, 3))) + self.mask).clamp(min=-9)


def test_a_mask_may_be_infinite_and_a_weight_may_not(tmp_path: Path) -> None:
    net = Masked()
    assert_same(loaded(saved(tmp_path, net.state_dict()), Masked)[0], net)
    with torch.no_grad():
        net.layer.weight[0, 0] = torch.inf
    with pytest.raises(InputError, match=r"w\.pt holds infinity in layer\.weight; the weights are broken"):
        loaded(saved(tmp_path, net.state_dict()), Masked)


# Libraries


def test_mnasnet_takes_its_own_weights(tmp_path: Path) -> None:
    """Its modules refuse weights of no version, and safetensors keeps none."""
    model = build(Architecture.find("mnasnet0_5", num_classes=4))
    save_weights(model, tmp_path / "w.safetensors")
    again = load_pretrained(model.architecture, tmp_path / "w.safetensors")
    assert_same(again.eval(), model.eval(), side=32)


def test_names_of_long_ago_that_torchvision_publishes(tmp_path: Path) -> None:
    def vit() -> nn.Module:
        return torchvision.models.VisionTransformer(16, 8, 1, 2, 8, 16, num_classes=4)

    state = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): tensor
        for name, tensor in made(0, vit).state_dict().items()
    }
    assert any("linear_2" in name for name in state)
    assert_same(loaded(saved(tmp_path, state), vit)[0], made(0, vit))
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    assert_same(loaded(tmp_path / "w.safetensors", vit)[0], made(0, vit))

    def densenet() -> nn.Module:
        return torchvision.models.DenseNet(4, (1, 1), 8, num_classes=4)

    state = {
        name.replace("norm1", "norm.1").replace("conv2", "conv.2"): tensor
        for name, tensor in made(0, densenet).state_dict().items()
    }
    assert any("denselayer1.norm.1." in name for name in state)
    assert_same(loaded(saved(tmp_path, state), densenet)[0], made(0, densenet), side=32)


def test_auxiliary_heads_are_left_out_where_the_normalisation_is_stated(tmp_path: Path) -> None:
    whole = torchvision.models.googlenet(num_classes=4, aux_logits=True, init_weights=False).eval()
    path = saved(tmp_path, whole.state_dict())
    with pytest.raises(InputError, match=r"^`normalize` must be given: .* has auxiliary heads, .* 0.5,0.5,0.5/0.5"):
        load_pretrained(Architecture.find("googlenet", num_classes=4), path)
    stated = Architecture.find("googlenet", num_classes=4, normalize="0.5,0.5,0.5/0.5,0.5,0.5")
    model = load_pretrained(stated, path).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), whole((x - 0.5) / 0.5), rtol=1e-5, atol=1e-6)


FAMILIES = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mnasnet1_3",
    "maxvit_t",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_0",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_16",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_torchvision_comes_back_from_a_file(name: str, tmp_path: Path) -> None:
    architecture = Architecture.find(f"torchvision/{name}", num_classes=4)
    model = PixelModel(made(0, lambda: build(architecture).net), architecture).eval()
    save_weights(model, tmp_path / "w.safetensors")
    again = load_pretrained(architecture, tmp_path / "w.safetensors").eval()
    assert_same(again, model, side={"inception_v3": 96, "alexnet": 64}.get(name, 224 if "v" in name[:4] else 64))


def test_the_architecture_of_own_code_survives_json() -> None:
    found = Architecture.find("nets:small", num_classes=4, normalize=((0.5,), (0.25,)))
    assert (found.source, found.name, found.mean, found.std) == ("module", "nets:small", (0.5,), (0.25,))
    assert Architecture.from_json(json.loads(json.dumps(found.to_json()))) == found
    bare = Architecture.find("nets:small", num_classes=4)
    assert (bare.mean, bare.std) == ((), ())
