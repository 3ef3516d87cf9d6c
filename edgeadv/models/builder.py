"""Classifiers by name, their weights, and the wrapper that makes every one of them take pixels in [0, 1]."""

from __future__ import annotations

import difflib
import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torchvision
from torch import Tensor, nn

from edgeadv_runtime.bundle.entries import MOST_CLASSES
from edgeadv_runtime.decoding import convert
from edgeadv_runtime.errors import BundleError, InputError

from .checkpoints import Tell, WeightsMap, fitted, load_state, read_weights, write_state
from .modules import check_name, factory_name, logits_of, made
from .normalization import IMAGENET_MEAN, IMAGENET_STD, Normalize, normalization

Library = Literal["torchvision", "timm", "module"]
_MOST_UPSAMPLED = 8192
_INCEPTIONS = ("googlenet", "inception_v3")
_AUXILIARY = re.compile(r"((module|_orig_mod)\.)*(aux[12]|AuxLogits)\.")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything needed to build a network again, except its weights.

    Attributes:
        name: the name in its library, e.g. ``"regnet_y_400mf"``; of own code ``"package.module:factory"``, or that of a
            class, without a colon, where nothing is known that makes it.
        source: ``"torchvision"``, ``"timm"``, or ``"module"`` of own code.
        num_classes: number of logits.
        upsample: whole factor by which the image is enlarged (bilinear) inside the model, after normalisation.
        mean: per-channel mean that is subtracted from pixels in [0, 1]; empty where nothing is.
        std: per-channel standard deviation that they are divided by; empty as ``mean``.
    """

    name: str
    source: Library
    num_classes: int
    upsample: int = 1
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if not (1 <= self.upsample <= _MOST_UPSAMPLED and 2 <= self.num_classes <= MOST_CLASSES):
            raise InputError(
                f"upsample must be at least 1 and classes at least 2, at most {_MOST_UPSAMPLED} and {MOST_CLASSES}, "
                f"not {self.upsample} and {self.num_classes}"
            )
        if len(self.mean) != len(self.std) or not all(math.isfinite(value) for value in (*self.mean, *self.std)):
            raise InputError(f"mean and std are as many finite numbers, not {self.mean} and {self.std}")
        if not all(value > 0 for value in self.std):
            raise InputError(f"std must be above 0, not {self.std}")

    @classmethod
    def find(
        cls, name: Any, *, num_classes: int, upsample: int = 1, normalize: Normalize | None = None
    ) -> Architecture:
        """Look ``name`` up in torchvision, then in timm; ``timm/NAME`` or ``torchvision/NAME`` asks one of them.

        Args:
            name: or ``package.module:factory`` of own code, or a function or class that can be imported, called without
                arguments. Nothing is imported here.
            num_classes: number of logits.
            upsample: whole factor by which the image is enlarged inside the model.
            normalize: as for :func:`normalization`; None takes the library's, and of own code none.

        Raises:
            InputError: neither has such a classifier; the message offers close names.
        """
        if isinstance(name, nn.Module):
            raise InputError(
                "arch",
                f"is a {type(name).__name__} that is made already, and cannot be made again where a run is continued "
                "or exported: give the function that makes it, or its name package.module:factory",
            )
        if callable(name):
            name = factory_name(name)
        if not isinstance(name, str):
            raise InputError(
                "arch", f"is a name of torchvision or timm, such as 'regnet_y_400mf', not a {type(name).__name__}"
            )
        stated = None if normalize is None else normalization(normalize)
        if ":" in name:
            check_name(name)
            mean, std = stated or ((), ())
            return cls(name=name, source="module", num_classes=num_classes, upsample=upsample, mean=mean, std=std)
        prefix, _, bare = name.rpartition("/")
        ours = torchvision.models.list_models(module=torchvision.models)
        source: Library
        if prefix in ("", "torchvision") and _is_listed("torchvision", bare):
            source, usual = "torchvision", torchvision.models.get_model_weights(bare)["DEFAULT"].transforms()
        elif prefix in ("", "timm") and _is_listed("timm", bare):
            source, usual = "timm", timm.get_pretrained_cfg(bare)
        else:
            close = difflib.get_close_matches(bare, [*ours, *timm.list_models()], n=3)
            raise InputError(
                f"unknown architecture {name!r}"
                + (f"; did you mean {', '.join(close)}?" if close else "; see torchvision and timm")
                + " A network of your own is package.module:factory"
            )
        own = (IMAGENET_MEAN, IMAGENET_STD) if usual is None else (tuple(usual.mean), tuple(usual.std))
        mean, std = stated or own
        return cls(name=bare, source=source, num_classes=num_classes, upsample=upsample, mean=mean, std=std)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; :meth:`from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Architecture:
        """Read what :meth:`to_json` wrote; unknown keys are ignored.

        Raises:
            BundleError: a key is missing, or its value is of another type.
        """
        try:
            known = {field.name: value[field.name] for field in fields(cls)}
        except KeyError as error:
            raise BundleError(f"this architecture entry lacks {error}; export the bundle again") from error
        found = convert(known, cls, what="architecture entry", mend="export the bundle again")
        # timm takes hf-hub:NAME and local-dir:PATH for names too, and reads what lies there
        if found.source != "module" and not _is_listed(found.source, found.name):
            named = reprlib.repr(found.name)
            raise BundleError(
                f"this architecture entry names {named}, which {found.source} does not list: do not use it"
            )
        return found


def _is_listed(source: str, name: str) -> bool:
    """Whether a library has a classifier of this name itself, so that none is looked for on a hub or in a folder."""
    if source == "torchvision":
        return name in torchvision.models.list_models(module=torchvision.models)
    return bool(timm.is_model(name)) and not {":", "/"} & set(name)


class PixelModel(nn.Module):
    """A network behind its normalisation and upsampling: pixels in, logits out.

    Shape:
        input float32 (n, channels, H, W) in [0, 1]; one channel, grey, is given to each of a network that has several
        in its normalisation; output float32 (n, num_classes), logits.

    Attributes:
        architecture: how to build it again.
        net: the bare network of its library; its ``state_dict`` is what weight files hold.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, architecture: Architecture) -> None:
        super().__init__()
        self.net: nn.Module = net
        self.architecture: Architecture = architecture
        self.register_buffer("mean", torch.tensor(architecture.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(architecture.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pixels."""
        return logits_of(self.net(self.prepared(x)), self.architecture.name, self.architecture.num_classes)

    def prepared(self, x: Tensor) -> Tensor:
        """What the bare network is given of pixels: normalised and upsampled, float32."""
        # a copy in any case: what a network of own code does to its input in place is not done to the caller's pixels
        x = (x - self.mean) / self.std if self.architecture.mean else x.clone()
        if self.architecture.source == "module":
            x = x.contiguous()
        if self.architecture.upsample > 1:
            x = nn.functional.interpolate(
                x, scale_factor=float(self.architecture.upsample), mode="bilinear", align_corners=False
            )
        return x

    @property
    def memory_format(self) -> torch.memory_format:
        """How its weights lie in memory while it is trained: channels last, but for own code, which may look at the
        order, as ``x.view(len(x), -1)`` does."""
        return torch.preserve_format if self.architecture.source == "module" else torch.channels_last

    @property
    def head(self) -> nn.Linear | nn.Conv2d:
        """The last layer that has one output per class: where the logits get their scale.

        timm says which it is; hidden layers may have as many outputs. torchvision's is the last one that there is.

        Raises:
            InputError: the network has none, or several whose outputs it averages.
        """
        name, classes = self.architecture.name, self.architecture.num_classes
        ask: Any = getattr(self.net, "get_classifier", None)
        classifier = None if ask is None else ask()
        parts = (self.net,) if classifier is None else classifier if isinstance(classifier, tuple) else (classifier,)
        found = [
            module
            for part in parts
            for module in part.modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and len(module.weight) == classes
        ]
        if not found:
            raise InputError(f"{name} has no last layer of {classes} outputs; use another architecture")
        if classifier is not None and len(found) > 1:
            raise InputError(f"{name} has {len(found)} last layers, whose outputs it adds up; use another architecture")
        return found[-1]


def build(architecture: Architecture) -> PixelModel:
    """The network with freshly initialised weights from torch's global random state, in training mode.

    One of own code is imported and made by its factory: never call this with what a bundle from elsewhere names.

    Raises:
        InputError: the library cannot build it, or it is not a plain classifier.
    """
    return PixelModel(_bare(architecture, architecture.num_classes), architecture)


def _bare(architecture: Architecture, num_classes: int, *, pretrained: bool = False) -> nn.Module:
    if architecture.source == "module":
        return made(architecture.name)
    try:
        if architecture.source == "timm":
            net: nn.Module = timm.create_model(architecture.name, pretrained=pretrained, num_classes=num_classes)
        elif pretrained:
            net = torchvision.models.get_model(architecture.name, weights="DEFAULT")
        else:
            options = {"init_weights": True, "aux_logits": False} if architecture.name in _INCEPTIONS else {}
            net = torchvision.models.get_model(architecture.name, weights=None, num_classes=num_classes, **options)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"cannot build {architecture.name}: {error}") from error
    except OSError as error:
        raise InputError(
            f"cannot get the pretrained weights of {architecture.name} ({error}); give a file of them with `weights`"
        ) from error
    return net


def load_pretrained(
    architecture: Architecture,
    weights: str | Path,
    *,
    weights_map: WeightsMap = "by-name",
    replace_head: bool = False,
    progress: Tell | None = None,
) -> PixelModel:
    """Build ``architecture`` and give it weights.

    Args:
        architecture: what to build.
        weights: ``"none"`` for random, or those with which a factory makes its network; ``"default"`` for the library's
            pretrained weights (downloaded); or a file.
        weights_map: ``"by-name"``, or ``"by-position"`` for a file whose tensors have other names: count and shapes
            must agree one by one.
        replace_head: where the weights are for another number of classes, give the network a new, random last layer of
            ``architecture.num_classes``; without it that is an error. One of own code keeps the layer that it has.
        progress: told what was chosen among the contents of a file, and what was left out.

    Raises:
        InputError: the file is missing, not safe to load, holds NaN, or its names or shapes do not fit (all listed).
    """
    if str(weights) == "none":
        return build(architecture)
    if str(weights) == "default":
        source_classes = _pretrained_classes(architecture)
        net = _bare(architecture, source_classes, pretrained=True)
    else:
        if weights_map == "by-position" and Path(weights).suffix == ".safetensors":
            raise InputError(
                f"{weights}: safetensors keeps no order of tensors, so by-position cannot be used; rename them instead"
            )
        state = _without_auxiliary(read_weights(Path(weights), progress=progress), architecture, str(weights))
        source_classes = architecture.num_classes
        if replace_head and architecture.source != "module":
            source_classes = _classes_of(state, architecture, weights_map)
        net = _bare(architecture, source_classes)
        load_state(net, state, weights_map=weights_map, origin=str(weights), progress=progress)
    if source_classes != architecture.num_classes:
        if not replace_head:
            raise InputError(f"these weights have {source_classes} classes, not {architecture.num_classes}")
        _replace_head(net, source_classes, architecture)
    return PixelModel(net, architecture)


def _without_auxiliary(state: dict[str, Tensor], architecture: Architecture, origin: str) -> dict[str, Tensor]:
    """``state`` without the heads of GoogLeNet and Inception that only training uses.

    Raises:
        InputError: nobody said how pixels were normalised, and those that publish such files did not do it as others.
    """
    bare = {name: tensor for name, tensor in state.items() if not _AUXILIARY.match(name)}
    if architecture.source != "torchvision" or architecture.name not in _INCEPTIONS or len(bare) == len(state):
        return state
    if architecture.mean == IMAGENET_MEAN:
        raise InputError(
            "normalize",
            f"must be given: {origin} has auxiliary heads, as the published weights of {architecture.name} have, and "
            "those want 0.5,0.5,0.5/0.5,0.5,0.5; where yours want imagenet's, write a function that makes the network "
            "and give its name, package.module:factory, as `arch`",
        )
    return bare


def _pretrained_classes(architecture: Architecture) -> int:
    """Number of classes of the library's own weights."""
    if architecture.source == "module":
        raise InputError(
            "weights",
            f"default is of torchvision and timm: none takes {architecture.name} as it is made, else give a file",
        )
    if architecture.source == "torchvision":
        if architecture.name in _INCEPTIONS:
            # their weights come with a second normalisation inside the network, which a rebuilt one would not have
            raise InputError(
                f"{architecture.name}: `weights` default is not supported; use another network, or `weights` FILE"
            )
        return len(torchvision.models.get_model_weights(architecture.name)["DEFAULT"].meta["categories"])
    config = timm.get_pretrained_cfg(architecture.name)
    if config is None or not config.num_classes:
        raise InputError(f"timm has no pretrained classifier of {architecture.name}: use `weights` none or a file")
    return int(config.num_classes)


def _classes_of(state: Mapping[str, Tensor], architecture: Architecture, weights_map: WeightsMap) -> int:
    """Number of classes of a weight file: the rows of its last layer. Safetensors sorts by name, so the place says
    nothing."""
    with torch.random.fork_rng(devices=[]):
        model = build(architecture)
    own = model.net.state_dict()
    state = fitted(state, model.net, weights_map=weights_map)
    if all(name in state and state[name].shape == tensor.shape for name, tensor in own.items()):
        return architecture.num_classes
    name = _path(model.net, model.head) + ".weight"
    return int(state[name].shape[0]) if name in state and state[name].ndim else architecture.num_classes


def _path(net: nn.Module, wanted: nn.Module) -> str:
    path: str = next(path for path, module in net.named_modules() if module is wanted)
    return path


def _replace_head(net: nn.Module, source_classes: int, architecture: Architecture) -> None:
    head = PixelModel(net, replace(architecture, num_classes=source_classes)).head
    if isinstance(head, nn.Linear):
        fresh: nn.Module = nn.Linear(head.in_features, architecture.num_classes, bias=head.bias is not None)
    else:
        fresh = nn.Conv2d(head.in_channels, architecture.num_classes, head.kernel_size, bias=head.bias is not None)  # type: ignore[arg-type]
    net.set_submodule(_path(net, head), fresh)
    if hasattr(net, "num_classes"):
        net.num_classes = architecture.num_classes  # type: ignore[assignment]


def save_weights(model: PixelModel, path: Path) -> None:
    """Write the bare network's ``state_dict`` and its architecture as safetensors, atomically."""
    write_state(model.net, path, metadata={"architecture": json.dumps(model.architecture.to_json())})
