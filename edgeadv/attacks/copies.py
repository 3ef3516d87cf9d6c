"""A copy of a network that gives the same gradients sooner."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# of the largest logit: float32 through a hundred layers differs by a tenth of it
_SAME = 1e-4


def memory_order(device: torch.device) -> torch.memory_format:
    """In which order of memory the gradients of convolutions in float32 come sooner.

    On a processor channels last. On an H100, without TF32, PyTorch's own was 1.1 times as fast for RegNetY-400MF and
    ResNet-101, and for AlexNet once slower and once not (``benchmarks/README.md``).
    """
    return torch.contiguous_format if device.type == "cuda" else torch.channels_last


def attack_copy(model: nn.Module, sample: Tensor) -> nn.Module:
    """A frozen copy of ``model``, in the memory order of its device, each BatchNorm that follows a convolution folded
    into it.

    In evaluation mode a BatchNorm is a factor and a shift for each channel (Ioffe and Szegedy 2015, section 3.1), which
    the convolution before it can carry. Both are then one layer, forwards and backwards. What cannot be traced, or
    gives other logits afterwards, is copied as it is.

    Args:
        model: pixels in [0, 1] to logits, in evaluation mode; it is not changed.
        sample: images to compare on, float32 (n, 3, H, W), on the model's device.

    Returns:
        The copy, on the same device, in evaluation mode, its parameters without gradients.
    """
    plain = copy.deepcopy(model).eval().requires_grad_(False)
    plain = plain.to(memory_format=memory_order(sample.device))
    folded = copy.deepcopy(plain)
    pairs = list(_pairs(folded))
    for conv, norm in pairs:
        _fold(folded, conv, norm)
    return folded if pairs and _same_logits(plain, folded, sample) else plain


def _same_logits(expected: nn.Module, found: nn.Module, x: Tensor) -> bool:
    """Whether two networks answer ``x`` alike, but for rounding."""
    with torch.no_grad():
        theirs, ours = expected(x), found(x)
    return bool((ours - theirs).abs().max() <= _SAME * theirs.abs().max())


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Those that are looked for are looked at from outside, whatever class of whatever library they are."""
        return isinstance(m, (nn.Conv2d, nn.BatchNorm2d)) or super().is_leaf_module(m, module_qualified_name)


def _pairs(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of each convolution whose output goes to a BatchNorm and nowhere else, and of that BatchNorm; both are
    called once."""
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
    model.set_submodule(conv, fuse_conv_bn_eval(layer, after))
    model.set_submodule(norm, rest)
