"""Weight files as people have them: read without running code, unpacked, renamed, and put into a network strictly."""

from __future__ import annotations

import copy
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from edgeadv_runtime.errors import InputError, one_line
from edgeadv_runtime.files import write_bytes
from edgeadv_runtime.reading import read_bytes, read_checked, usable

from .torch_files import check_stored, torch_content

WeightsMap = Literal["by-name", "by-position"]
Tell = Callable[[str], None]
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""Where programs keep the running average of the weights, which they measure and deploy: it goes before the others."""
NESTS = (*AVERAGED, "state_dict", "model_state_dict", "model", "net", "module")
_SHADOW = ("shadow", "shadow_params")
"""Where classes that average keep what they have averaged: by name, or in a list, which tells no names."""
_WRAPPERS = ("module.", "_orig_mod.")
"""What ``DataParallel`` and ``torch.compile`` put before names."""
_COUNTER = "num_batches_tracked"
"""Of BatchNorm since PyTorch 0.4.1; nothing depends on it where the momentum is a number."""
_STATISTICS = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")
_OBJECT = re.compile(r"GLOBAL ([\w.]+)")
# torchvision's published DenseNets are older than the names of its layers
_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


def read_weights(path: Path, *, sha256: str | None = None, progress: Tell | None = None) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from a torch file without ever running code that it holds.

    Wrappings are taken off: ``{"state_dict": ...}`` and the like, as Lightning and timm have them. Where a file holds
    raw weights and their average, the average is read. Half precision becomes float32.

    Args:
        path: the file.
        sha256: its hash, of one that lies in a run or bundle; None of one that a user names, which may be a link.
        progress: told what was chosen or changed.

    Returns:
        Tensors by the file's own names, on the CPU; where the file tells versions of modules, ``_metadata`` has them.

    Raises:
        InputError: missing, damaged, not a state dict, holding code, or holding NaN.
        IntegrityError: it has another hash.
    """
    tell = progress or (lambda _: None)
    data = _read(path, sha256)
    value = _unnested(_content(data, path), path.name, tell)
    if not isinstance(value, dict) or not value:
        raise InputError(f"{path} is not a state dict: names to tensors are expected")
    other = [f"{name} is a {type(v).__name__}" for name, v in value.items() if not isinstance(v, Tensor)]
    if other:
        raise InputError(f"{path} is not a state dict: names to tensors are expected, but {some(other, 3)}")
    if odd := [f"{name} ({kind})" for name, tensor in value.items() if (kind := _not_plain(tensor))]:
        raise InputError(f"{path} holds tensors without plain numbers: {some(odd)}; save the weights as float32")
    check_stored(value, len(data), path)
    state: dict[str, Tensor] = OrderedDict((str(name), tensor.detach()) for name, tensor in value.items())
    if isinstance(versions := getattr(value, "_metadata", None), dict):
        state._metadata = versions  # type: ignore[attr-defined]
    small = {tensor.dtype for tensor in state.values() if tensor.is_floating_point() and tensor.itemsize < 4}
    if small:
        kinds = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in small))
        tell(f"{path.name} holds {kinds}: the weights are taken as float32")
        for name, tensor in state.items():
            state[name] = tensor.float() if tensor.dtype in small else tensor
    if broken := [name for name, tensor in state.items() if tensor.isnan().any()]:
        raise InputError(f"{path} holds NaN in {some(broken)}; the weights are broken")
    return state


def _read(path: Path, sha256: str | None) -> bytes:
    if sha256 is not None:
        return read_checked(path, sha256, what="weight file")
    with usable(path, what="weight file", error=InputError):
        there = path.exists()
    if not there:
        raise InputError(f"{path} does not exist: `weights` takes none, default or a file")
    return read_bytes(path, what="weight file", links=True, error=InputError)


def _content(data: bytes, path: Path) -> Any:
    """What a weight file holds; of a torch file only tensors and plain values are ever loaded."""
    try:
        return safetensors.torch.load(data) if path.suffix == ".safetensors" else torch_content(data)
    except pickle.UnpicklingError as error:
        found = _OBJECT.search(str(error))
        named = f" such as {found[1]}" if found else ""
        raise InputError(
            f"{path} is not a plain weight file: it holds Python objects or is damaged, and loading objects{named} "
            "runs code; where it was made, save the model's state_dict() alone, or convert it to safetensors"
        ) from error
    except Exception as error:  # of a damaged file torch's reader raises what it comes across
        if "TorchScript" in str(error):
            raise InputError(
                f"{path} is a TorchScript program, not a weight file: where it was made, save the model's state_dict()"
            ) from error
        raise InputError(
            f"{path} is not a readable weight file ({one_line(str(error), most=160) or type(error).__name__})"
        ) from error


def _unnested(value: Any, name: str, tell: Tell) -> Any:
    """The state dict inside what training programs save around it; the average of the weights where there is one."""
    while isinstance(value, dict) and any(not isinstance(v, Tensor) for v in value.values()):
        inside = [key for key in NESTS if isinstance(value.get(key), dict) and value[key]]
        raw = next((key for key in inside if key not in AVERAGED), None)
        averages = [key for key in (*AVERAGED, *_SHADOW) if isinstance(value.get(key), dict | list) and value[key]]
        for key in averages:
            held = value[key]
            found = _unnested(held.get("shadow", held) if isinstance(held, dict) else held, name, lambda _: None)
            if _is_state(found):
                return found if raw is None else _with_statistics(found, value[raw], name, (key, raw), tell)
        if averages and raw is not None:
            tell(f"{name} holds {averages[0]} without averaged weights by name: the raw weights, {raw}, are taken")
        if not inside:
            break
        value = value[raw or inside[0]]
    return value


def _with_statistics(
    average: dict[str, Tensor], held: Any, name: str, keys: tuple[str, str], tell: Tell
) -> dict[str, Tensor]:
    """``average``, and where it is of parameters alone the statistics of BatchNorm that lie beside it, with which
    programs that average so deploy it."""
    tell(f"{name} holds {keys[0]} and {keys[1]}: the averaged weights, {keys[0]}, are taken")
    raw = _unnested(held, name, lambda _: None)
    lacking = [key for key in raw if key not in average] if _is_state(raw) else []
    if not lacking or not average.keys() <= raw.keys() or not all(_STATISTICS.search(key) for key in lacking):
        return average
    tell(f"{name} has no average of {some(lacking, 2)}: these are taken from {keys[1]}")
    return {key: average.get(key, tensor) for key, tensor in raw.items()}


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(each, Tensor) for each in value.values())


def _not_plain(tensor: Tensor) -> str | None:
    """What makes a tensor one that no network can be given; None of others."""
    if tensor.is_nested:
        return "nested"
    if tensor.is_meta:
        return "on the meta device, without numbers"
    if tensor.is_quantized:
        return f"quantised, {str(tensor.dtype).removeprefix('torch.')}"
    return None if tensor.layout == torch.strided else str(tensor.layout).removeprefix("torch.")


def fitted(
    state: Mapping[str, Tensor],
    net: nn.Module,
    *,
    weights_map: WeightsMap = "by-name",
    origin: str = "the weights",
    progress: Tell | None = None,
) -> dict[str, Tensor]:
    """``state`` under the names that ``net`` has for it, as far as there is one way to see it so.

    Prefixes go that ``DataParallel``, ``torch.compile``, or a class around the network (Lightning's ``model.``) put
    before all its names; what is not the network's then goes too, and is said. Tensors that the network knows by two
    names are taken from either, and counters of BatchNorm, which old files lack, begin at zero.

    Args:
        state: of :func:`read_weights`.
        net: the network they are for.
        weights_map: ``"by-position"`` takes the tensors as they come, whatever their names.
        origin: what to call the weights in errors.
        progress: told what is left out.

    Raises:
        InputError: by position, the counts are not equal; or two parts of the file fit.
    """
    own = net.state_dict()
    needed = [name for name in own if not _is_counter(name)]
    if weights_map == "by-position":
        counted = len(state) == len(needed) and not any(map(_is_counter, state))
        if len(state) != len(own) and not counted:
            raise InputError(
                f"{origin} holds {len(state)} tensors, the network {len(own)}: by-position needs equal counts"
            )
        named = dict(zip(needed if counted else own, state.values(), strict=True))
    else:
        named = _renamed(state, own, origin, progress or (lambda _: None))
    for same in _shared(own):
        if held := next((name for name in same if name in named), None):
            named = {**dict.fromkeys(same, named[held]), **named}
    if set(needed) <= named.keys():
        named |= {name: torch.zeros_like(own[name]) for name in own if name not in named}
    result: dict[str, Tensor] = OrderedDict(named)
    result._metadata = _versions(state, net)  # type: ignore[attr-defined]
    return result


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == _COUNTER


def _renamed(state: Mapping[str, Tensor], own: Mapping[str, Tensor], origin: str, tell: Tell) -> dict[str, Tensor]:
    """``state`` without what wrappers put before the names of ``own``; as it is where that does not make it fit."""
    bare = {_unwrapped(name): tensor for name, tensor in state.items() if name != "n_averaged"}
    for candidate in (dict(state), bare, {_DENSENET.sub(r"\1\2", name): t for name, t in bare.items()}):
        if not _odd(candidate, own):
            return candidate
    # the network may have a part that is called as a wrapper is
    whole = bare if (fitting := _parts(bare, own)) else dict(state)
    fitting = fitting or _parts(whole, own)
    averaged = [prefix for prefix in fitting if prefix.partition(".")[0] in ("ema", "ema_model", "model_ema")]
    if len(fitting) > 1 and len(averaged) == 1:
        (prefix,) = averaged
        tell(f"{origin} holds the network {len(fitting)} times: the averaged weights, {prefix}*, are taken")
        return fitting[prefix]
    if len(fitting) > 1:
        raise InputError(f"{origin} holds the network {len(fitting)} times, under {some(list(fitting))}: keep one")
    if not fitting:
        # as it was wrapped, so that the message lists names as the network has them
        return min(({**state}, bare), key=lambda names: len(_odd(names, own)))
    ((prefix, part),) = fitting.items()
    if left := [name for name in whole if not name.startswith(prefix)]:
        tell(f"{origin} holds tensors that are not the network's and were left out: {some(left)}")
    return part


def _unwrapped(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    # a part of the network may have been compiled on its own
    return name.replace("._orig_mod.", ".")


def _parts(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Each prefix under which ``state`` has all of ``own`` and no more, and what it has there."""
    longest = max((name for name in own if not _is_counter(name)), key=len, default="")
    found = {}
    for prefix in [name.removesuffix(longest) for name in state if name.endswith("." + longest)]:
        part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        if not _odd(part, own):
            found[prefix] = part
    return found


def _odd(names: Iterable[str], own: Mapping[str, Tensor]) -> list[str]:
    """Names of one side that the other lacks, but for what :func:`fitted` can do without."""
    there = set(names)
    missing = {name for name in own if name not in there and not _is_counter(name)}
    for same in _shared(own):
        if there.intersection(same):
            missing -= set(same)
    return [*missing, *(there - own.keys())]


def _shared(own: Mapping[str, Tensor]) -> list[list[str]]:
    """Groups of names of one and the same tensor."""
    groups: dict[Any, list[str]] = {}
    for name, tensor in own.items():
        if tensor.numel():
            place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            groups.setdefault(place, []).append(name)
    # tensors without memory are all at one place
    return [names for place, names in groups.items() if len(names) > 1 and place[1]]


def _versions(state: Mapping[str, Tensor], net: nn.Module) -> dict[str, Any]:
    """The versions of modules that loading is told: the file's, or the network's own where the file is silent.

    Some modules refuse weights of no version (torchvision's MNASNet), and others take them for very old ones.
    """
    versions: dict[str, Any] = dict(getattr(net.state_dict(), "_metadata", {}))
    for name, held in getattr(state, "_metadata", {}).items():
        if (
            isinstance(name, str)
            and isinstance(held, dict)
            and (path := _unwrapped(name + ".").rstrip(".")) in versions
        ):
            versions[path] = {**versions[path], **held}
    return versions


def load_state(
    net: nn.Module,
    state: Mapping[str, Tensor],
    *,
    weights_map: WeightsMap = "by-name",
    origin: str = "the weights",
    progress: Tell | None = None,
) -> None:
    """Load ``state`` into ``net``, strictly: every tensor of the network is given, and none is left over.

    Args:
        net: the network.
        state: of :func:`read_weights`; names are matched as :func:`fitted` does.
        weights_map: ``"by-name"`` or ``"by-position"``.
        origin: what to call the weights in errors.
        progress: told what is left out.

    Raises:
        InputError: names, shapes or kinds do not fit, or a weight is infinite; the message lists them, and the network
            is as before.
    """
    state = fitted(state, net, weights_map=weights_map, origin=origin, progress=progress)
    own = net.state_dict()
    missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
    both = [k for k in own if k in state]
    shapes = [f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}" for k in both if state[k].shape != own[k].shape]
    kinds = [
        f"{k} {str(state[k].dtype).removeprefix('torch.')} for {str(own[k].dtype).removeprefix('torch.')}"
        for k in both
        if (state[k].is_floating_point(), state[k].is_complex()) != (own[k].is_floating_point(), own[k].is_complex())
    ]
    different = [
        " and ".join(same)
        for same in _shared(own)
        if not all(name in state and torch.equal(state[name], state[same[0]]) for name in same)
        and all(name in state for name in same)
    ]
    named = {
        "missing": missing,
        "unexpected": unexpected,
        "shape": shapes,
        "kind": kinds,
        "one tensor here, two there": different,
    }
    if any(named.values()):
        older = None if kinds or different else _older(net, state)
        if older is None:
            parts = [f"{label}: {some(names)}" for label, names in named.items() if names]
            raise InputError(f"{origin} does not fit the network; {'; '.join(parts)}")
        state = older
    # masks and limits are infinite as they are made
    if broken := [k for k in own if k in state and not torch.equal(state[k].isinf(), own[k].cpu().isinf())]:
        raise InputError(f"{origin} holds infinity in {some(broken)}; the weights are broken")
    net.load_state_dict(state, strict=True)


def _older(net: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
    """``state``, with or without versions, if the modules themselves take its names of long ago, as torchvision's ViT
    and PyTorch's ``weight_norm`` do; None if they don't. It is tried on a copy."""
    for candidate in (state, dict(state)):
        with suppress(RuntimeError, ValueError, KeyError):
            copied(net).load_state_dict(candidate, strict=True)
            return candidate
    return None


def copied(net: nn.Module) -> Any:
    """A deep copy, also of modules that keep a computed tensor, which PyTorch does not copy: ``weight_norm`` of old.

    Raises:
        InputError: it cannot be copied.
    """
    computed = [
        value
        for module in net.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    try:
        return copy.deepcopy(net, {id(tensor): tensor.detach().clone() for tensor in computed})
    except Exception as error:  # a module may hold anything: a lock, an open file, a process
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{type(net).__name__} cannot be copied ({reason}): let it hold modules, tensors and plain values only"
        ) from error


def write_state(net: nn.Module, path: Path, *, metadata: dict[str, str]) -> None:
    """Write the ``state_dict`` of ``net`` as safetensors, atomically; a tensor of two names is written twice."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in net.state_dict().items():
        value = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory
        place = value.untyped_storage().data_ptr()
        state[name] = value.clone() if place in seen else value
        seen.add(place)
    # safetensors' own writing hides a full disk behind an error of its own
    write_bytes(path, safetensors.torch.save(state, metadata=metadata))


def some(names: list[str], most: int = 8) -> str:
    """The first ``most`` of ``names``, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
