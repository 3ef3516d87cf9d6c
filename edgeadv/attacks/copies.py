"""A copy of a network that gives the same gradients sooner."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import cast

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgeadv_runtime.errors import BackendError

from .losses import cross_entropy, input_gradient

# of the largest logit: float32 through a hundred layers differs by a tenth of it
_SAME = 1e-4
# of the largest element of a gradient, which is a sum of more terms and cancels more
_SAME_GRADIENT = 1e-2
# compiling took 74 s and saved 2.4 ms of each gradient of RegNetY-400MF at 224 pixels, on two cores: paid after 31,000 of them.
# Images that are broken leave their attack early, so that many fewer may be taken than there could be.
_WORTH_COMPILING = 200_000 * 224 * 224


def attack_copy(model: nn.Module, sample: Tensor) -> nn.Module:
    """A frozen copy of ``model`` in channels-last memory, each BatchNorm that follows a convolution folded into it.

    In evaluation mode a BatchNorm is a factor and a shift for each channel (Ioffe and Szegedy 2015, section 3.1), which the
    convolution before it can carry. Both are then one layer, forwards and backwards. What cannot be traced, or gives other logits
    afterwards, is copied as it is.

    Args:
        model: pixels in [0, 1] to logits, in evaluation mode; it is not changed.
        sample: images to compare on, float32 (n, 3, H, W), on the model's device.

    Returns:
        The copy, on the same device, in evaluation mode, its parameters without gradients.
    """
    plain = copy.deepcopy(model).eval().requires_grad_(False)
    plain = plain.to(memory_format=torch.channels_last)
    folded = copy.deepcopy(plain)
    pairs = list(_pairs(folded))
    for conv, norm in pairs:
        _fold(folded, conv, norm)
    with torch.no_grad():
        expected, found = plain(sample), folded(sample)
    return folded if pairs and _close(found, expected, _SAME) else plain


def worth_compiling(gradients: int, sample: Tensor) -> bool:
    """Whether a job is long enough to pay for :func:`compiled_copy` several times over.

    Args:
        gradients: how many gradients of one image it takes at most.
        sample: an image as it will be attacked, (n, 3, H, W).
    """
    return gradients * sample.shape[2] * sample.shape[3] >= _WORTH_COMPILING


def compiled_copy(copied: nn.Module, sample: Tensor) -> nn.Module:
    """The same network with forward and backward pass compiled by TorchInductor, for batches of any size.

    It is compiled here, and compared with ``copied`` in logits and gradients. On two cores that takes a minute or more.

    Args:
        copied: of :func:`attack_copy`.
        sample: images to compare on, float32 (n, 3, H, W) with n >= 3, on the model's device.

    Raises:
        BackendError: it cannot be compiled here, or computes something else.
    """
    compiled = cast(nn.Module, torch.compile(copied, dynamic=True))
    try:
        for images in (sample, sample[:2]):
            labels = torch.arange(len(images), device=images.device) % 2
            expected, found = (input_gradient(m, images, labels, cross_entropy) for m in (copied, compiled))
            same = _close(found.logits, expected.logits, _SAME)
            if not (same and _close(found.gradient, expected.gradient, _SAME_GRADIENT)):
                raise BackendError("the compiled network gives other logits or gradients")
    except BackendError:
        raise
    except Exception as error:  # of the compiler, of a C++ compiler, of the linker
        raise BackendError(" ".join(str(error).split())[:200]) from error
    return compiled


def _close(found: Tensor, expected: Tensor, share: float) -> bool:
    return bool((found - expected).abs().max() <= share * expected.abs().max())


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Those that are looked for are looked at from outside, whatever class of whatever library they are."""
        return isinstance(m, (nn.Conv2d, nn.BatchNorm2d)) or super().is_leaf_module(m, module_qualified_name)


def _pairs(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of each convolution whose output goes to a BatchNorm and nowhere else, and of that BatchNorm; both are called once."""
    try:
        graph = _Tracer().trace(model)
    except Exception:  # a network can refuse to be traced in any way
        return
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        before = node.args[0] if len(node.args) == 1 else None
        if node.op != "call_module" or not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        names = str(before.target), str(node.target)
        conv, norm = (model.get_submodule(name) for name in names)
        foldable = type(norm) in (nn.BatchNorm2d, BatchNormAct2d) and norm.running_mean is not None
        if foldable and isinstance(conv, nn.Conv2d) and len(before.users) == calls[names[0]] == calls[names[1]] == 1:
            yield names


def _fold(model: nn.Module, conv: str, norm: str) -> None:
    layer, after = model.get_submodule(conv), model.get_submodule(norm)
    assert isinstance(layer, nn.Conv2d) and isinstance(after, nn.BatchNorm2d)
    # timm's normalises, then drops blocks and activates
    rest = nn.Sequential(after.drop, after.act) if isinstance(after, BatchNormAct2d) else nn.Identity()
    _put(model, conv, fuse_conv_bn_eval(layer, after))
    _put(model, norm, rest)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
