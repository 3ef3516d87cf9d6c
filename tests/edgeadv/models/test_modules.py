"""Networks of own code: found by name, and their logits taken only where it is clear which they are."""

from __future__ import annotations

import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeadv.models.builder import Architecture, PixelModel, build, load_pretrained
from edgeadv.models.checks import check_classifier, check_input_size
from edgeadv.models.modules import check_name, factory_name, logits_of, made
from edgeadv.models.normalization import normalization
from edgeadv_runtime.errors import InputError

NETS = """
import torch
from torch import nn

class Small(nn.Sequential):
    def __init__(self, classes=4):
        super().__init__(nn.Flatten(), nn.Linear(48, classes))

def small():
    return Small()

def half():
    return Small().half()

class Zoo:
    @staticmethod
    def tiny():
        return Small(2)

ready = Small()
number = 3

def needs(classes):
    return Small(classes)

def fails():
    raise ValueError("no weights\\nhere")

def quits():
    raise SystemExit(1)

def text():
    return "network"
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module in the current directory, under a name that no other test has imported."""
    name = f"nets_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", str(tmp_path))])
    return name


def test_a_factory_is_found_in_the_current_directory(nets: str) -> None:
    before = list(sys.path)
    for inside in ("small", "Small", "Zoo.tiny"):
        assert type(made(f"{nets}:{inside}")).__name__ == "Small"
    assert sys.path == before
    assert {tensor.dtype for tensor in made(f"{nets}:half").parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("inside", "says"),
    [
        ("smal", r"^`arch` nets_\d+ has no 'smal'; it has Small, small, half, Zoo, needs, fails, quits, text$"),
        ("Zoo.huge", r"nets_\d+ has no 'Zoo.huge'"),
        ("number", r"is a int, not a function that makes a network"),
        ("ready", r"is a Small, not a function that makes a network"),
        ("needs", r"missing a required argument: 'classes': write a function without arguments that calls it"),
        ("fails", r"nets_\d+:fails failed: ValueError: no weights \(nets_\d+.py, line \d+\)$"),
        ("quits", r"failed: SystemExit: 1"),
        ("text", r"gives a str, not a torch.nn.Module"),
    ],
)
def test_what_is_no_factory_is_named(nets: str, inside: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        made(f"{nets}:{inside}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "import nothing_of_this_name",
            r"cannot be imported: ModuleNotFoundError: No module named 'nothing_of_this_na",
        ),
        ("def broken(:", r"cannot be imported: SyntaxError"),
        ("1 / 0", r"cannot be imported: ZeroDivisionError: division by zero \(.*py, line 1\)$"),
        ("raise SystemExit", r"cannot be imported: SystemExit"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(nets: str, source: str, says: str) -> None:
    Path(f"{nets}.py").write_text(source)
    with pytest.raises(InputError, match=says) as caught:
        made(f"{nets}:small")
    assert "\n" not in str(caught.value)


def test_a_module_that_is_not_there_is_named(nets: str) -> None:
    with pytest.raises(InputError, match=r"^`arch` .*: there is no module nowhere in .* or among what is installed$"):
        made("nowhere.nets:small")
    with pytest.raises(InputError, match=r"there is no module json.nets in"):
        made("json.nets:small")


@pytest.mark.parametrize("name", ["nets:", ":small", "nets:small()", "a b:c", "../nets:small", "é:f"])
def test_the_name_is_checked_before_anything_is_imported(name: str) -> None:
    with pytest.raises(InputError, match=r"^`arch` .* is not written package.module:factory, such as nets:small"):
        Architecture.find(name, num_classes=4)


def test_functions_and_classes_have_names_and_objects_none() -> None:
    assert factory_name(nn.Identity) == "torch.nn.modules.linear:Identity"
    assert Architecture.find(nn.Identity, num_classes=4).name == "torch.nn.modules.linear:Identity"
    with pytest.raises(InputError, match=r"cannot be found by its name"):
        factory_name(lambda: None)
    with pytest.raises(InputError, match=r"^`arch` is a Linear that is made already, and cannot be made again"):
        Architecture.find(nn.Linear(2, 2), num_classes=2)


def test_own_code_takes_its_weights_strictly(nets: str, tmp_path: Path) -> None:
    architecture = Architecture.find(f"{nets}:small", num_classes=4)
    torch.manual_seed(0)
    first = build(architecture)
    torch.save({"state_dict": {f"model.{k}": v for k, v in first.net.state_dict().items()}}, tmp_path / "w.ckpt")
    again = load_pretrained(architecture, tmp_path / "w.ckpt")
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(first(x), again(x))
    torch.save(nn.Linear(48, 3).state_dict(), tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"does not fit the network; missing: 1.weight, 1.bias; unexpected: weight"):
        load_pretrained(architecture, tmp_path / "other.pt", replace_head=True)
    with pytest.raises(InputError, match=r"^`weights` default is of torchvision and timm: none takes"):
        load_pretrained(architecture, "default")


# Normalisation


@pytest.mark.parametrize(
    ("given", "mean", "std"),
    [
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("none", (), ()),
        ("0.5/0.25", (0.5,), (0.25,)),
        ("0.5,0.4,0.3/1,2,3", (0.5, 0.4, 0.3), (1.0, 2.0, 3.0)),
        (([0.5], [0.25]), (0.5,), (0.25,)),
    ],
)
def test_a_normalisation_is_written(given: Any, mean: Any, std: Any) -> None:
    assert normalization(given) == (mean, std)


@pytest.mark.parametrize(
    "given", ["", "0.5", "0.5/0", "0.5,0.5/1", "a/b", "nan/1", "1/inf", ([], []), 3, ((1,), (1,), (1,))]
)
def test_another_normalisation_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match=r"^`normalize` .* is not imagenet, none or MEAN/STD"):
        normalization(given)


@pytest.mark.parametrize("given", ["125/60", "123.7,116.3,103.5/58.4,57.1,57.4", "0/255", ((1.2,), (0.5,))])
def test_a_normalisation_of_levels_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match=r"^`normalize` .* is for pixels of 0..255: divide its numbers by 255"):
        normalization(given)


@pytest.mark.parametrize(("name", "due"), [("nets.py:small", "nets:small"), ("./my/nets.py:small", "my.nets:small")])
def test_own_code_named_by_its_file_is_told_how_it_is_named(name: str, due: str) -> None:
    with pytest.raises(InputError, match=rf"is written {due}, for modules are found from the current directory"):
        check_name(name)


def test_pixels_reach_own_code_as_they_are_and_are_not_written_to() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2).mean((2, 3))

    bare = Architecture(name="x", source="module", num_classes=3, mean=(), std=())
    x = torch.rand(2, 3, 4, 4)
    kept = x.clone()
    torch.testing.assert_close(PixelModel(Writes(), bare)(x), 2 * x.mean((2, 3)))
    assert torch.equal(x, kept)
    grey = Architecture(name="x", source="module", num_classes=1 + 1, mean=(0.5,), std=(0.25,))
    one = torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(PixelModel(nn.Flatten(), grey)(one), ((one - 0.5) / 0.25).flatten(1))


# Outputs

LOGITS = torch.zeros(2, 4)
Pair = namedtuple("Pair", "logits aux")


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"logits": LOGITS},
        {"out": LOGITS, "aux": torch.ones(2, 4)},
        {"logits": LOGITS, "out": torch.ones(2, 4)},
        SimpleNamespace(logits=LOGITS, hidden_states=None),
        Pair(LOGITS, torch.ones(2, 4)),
        (LOGITS,),
        [LOGITS],
        (LOGITS, torch.ones(2, 4, 7, 7)),
        (LOGITS, None),
    ],
)
def test_logits_are_taken_where_it_is_clear(output: Any) -> None:
    assert logits_of(output, "net") is LOGITS


def test_features_of_another_size_are_no_logits() -> None:
    features = torch.ones(2, 9)
    assert logits_of((LOGITS, features), "net", 4) is LOGITS
    for output in ((features, LOGITS), (LOGITS, LOGITS), (features, features)):
        with pytest.raises(InputError, match="where its logits are is not clear"):
            logits_of(output, "net", 4)
    assert model(lambda y: (y, torch.ones(len(y), 9)))(torch.rand(2, 3, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (
            (LOGITS, LOGITS),
            r"a tuple of float32 of shape \(2, 4\), float32 of shape \(2, 4\): where its logits are is not",
        ),
        ((torch.ones(2, 4, 7, 7), LOGITS), "where its logits are is not clear"),
        ({"scores": LOGITS}, r"a dictionary of 'scores': float32 of shape \(2, 4\): where"),
        ({}, "a dictionary of nothing"),
        (None, "a NoneType"),
        (LOGITS.numpy(), "a ndarray"),
        ({"out": torch.zeros(2, 4, 8, 8)}, r"gives float32 of shape \(2, 4, 8, 8\), and a classifier's logits"),
        (torch.zeros(2), r"float32 of shape \(2,\)"),
        (torch.zeros(2, 4, dtype=torch.complex64), "complex64"),
        (torch.zeros(2, 4, dtype=torch.long), "int64"),
    ],
)
def test_other_outputs_are_described(output: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        logits_of(output, "net")


class Function(nn.Module):
    """A network made of a function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer(x).mean((2, 3)))


def model(function: Any) -> PixelModel:
    architecture = Architecture(name="net", source="module", num_classes=4, mean=(), std=())
    return PixelModel(Function(function), architecture).eval()


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda y: nn.functional.dropout(y, 0.5, training=True), "two answers to the same image: .* dropout without"),
        (lambda y: y + torch.rand(1), "two answers to the same image"),
        (lambda y: y - y.mean(0), "depend on the others in its batch: something in it takes statistics"),
        (lambda y: y if len(y) > 1 else 2 * y, "or asks for its size"),
        (
            lambda y: y.view(len(y) // 3 * 3, 4),
            "takes 2 images at once, and not 1: its code fixes the size of the batch",
        ),
        (lambda y: y.softmax(1), "gives probabilities, which sum to 1: let it return the logits"),
        (lambda y: 100 * y.softmax(1), "gives probabilities, which sum to 100: let it return"),
        (lambda y: y.view(-1, 2, 2).softmax(2).flatten(1), "gives probabilities, which sum to 2"),
        (lambda y: (y.softmax(1) + (2 * y).softmax(1)).clamp(1e-7), "gives probabilities, which sum to 2"),
        (lambda y: 0 * y, "gives every image the same logits, and tells no classes apart"),
        (lambda y: y.sum(1, keepdim=True).expand(-1, 4), "gives every class the same logit"),
        (lambda y: sys.exit(0), r"SystemExit: 0"),
    ],
)
def test_what_is_no_function_of_one_image_is_refused(function: Any, says: str) -> None:
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for honest in (lambda y: y.log_softmax(1), lambda y: y.relu() + 1e-6 * y, lambda y: 5 + 0.1 * y):
        check_classifier(model(honest), x)
    with pytest.raises(InputError, match=says):
        check_classifier(model(function), x)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda y: y[:, :3], r"logits of shape \(2, 3\) for 2 images, and there are 4 classes: their numbers"),
        (lambda y: y.double(), r"gives float64 though its weights are float32: let it return logits.float\(\)"),
        (lambda y: y.half(), "gives float16"),
        (lambda y: sys.exit(0), r"cannot take images of 8x8 pixels \(SystemExit: 0 \(.*, line \d+\)\)"),
        (lambda y: y.nothing, "cannot take images of 8x8 pixels .*no attribute 'nothing'"),
        (lambda y: (y, y), "where its logits are is not clear"),
    ],
)
def test_what_does_not_fit_is_said_before_long_work(function: Any, says: str) -> None:
    check_input_size(model(lambda y: {"logits": y}), (3, 8, 8))
    with pytest.raises(InputError, match=says):
        check_input_size(model(function), (3, 8, 8))
    with pytest.raises(InputError, match=r"cannot take images of 8x9 pixels and 1 channel "):
        check_input_size(model(lambda y: y), (1, 8, 9))
