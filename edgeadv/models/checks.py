"""What a network must be before it is trained or exported: it takes these pixels, and answers as a function does."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeadv_runtime.errors import InputError

from .builder import PixelModel
from .modes import evaluation_mode
from .own_code import in_short


def check_input_size(model: PixelModel, input_shape: tuple[int, int, int]) -> None:
    """Show the model two black images, for some networks take no small ones, and some only one size.

    Args:
        model: any mode and device.
        input_shape: (channels, height, width) of its input.

    Raises:
        InputError: it cannot take such images, or does not give a logit for each class.
    """
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    name, classes = model.architecture.name, model.architecture.num_classes
    channels, height, width = input_shape
    if channels > (due := len(model.architecture.mean) or channels):
        raise InputError(f"{name} takes {due} channel and not {channels}: `preprocess` color=gray")
    try:
        with evaluation_mode(model), torch.no_grad():
            logits = model(torch.zeros(2, *input_shape, device=device))
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # of somebody's code
        channel = "" if channels == 3 else f" and {channels} channel{'s' if channels > 1 else ''}"
        raise InputError(
            f"{name} cannot take images of {height}x{width} pixels{channel} ({in_short(error)}): change `upsample`, "
            "or the size of `preprocess`"
        ) from error
    if logits.dtype != torch.float32:
        kind = str(logits.dtype).removeprefix("torch.")
        raise InputError(f"{name} gives {kind} though its weights are float32: let it return logits.float()")
    if tuple(logits.shape) != (2, classes):
        raise InputError(
            f"{name} gives logits of shape {tuple(logits.shape)} for 2 images, and there are {classes} classes: "
            "their numbers must agree"
        )


def check_classifier(model: PixelModel, x: Tensor) -> None:
    """Show a network the same pixels twice, together and one alone: a classifier is a function of one image.

    Their negatives are shown too: of frames that are nearly alike nothing could be told.

    Args:
        model: in evaluation mode.
        x: float32 of shape (n, channels, height, width) in [0, 1], real images.

    Raises:
        InputError: the answers differ, are the same for all images, or are no logits.
    """
    name = model.architecture.name
    x = torch.cat([x, 1 - x])
    first, second, alone = _answer(model, x), _answer(model, x), _answer(model, x[:1])
    scale = max(float(first.abs().max()), 1e-6)
    if float((first - second).abs().max()) > 1e-5 * scale:
        raise InputError(
            f"{name} gives two answers to the same image: something in it is random or keeps "
            "changing in evaluation mode, such as dropout without training=self.training"
        )
    if float((first[:1] - alone).abs().max()) > 1e-4 * scale:
        raise InputError(
            f"the logits that {name} gives an image depend on the others in its batch: something in it takes "
            "statistics of the batch, or asks for its size"
        )
    if bool((first == first[:1]).all()) or bool((first == first[:, :1]).all()):
        what = "every image the same logits" if bool((first == first[:1]).all()) else "every class the same logit"
        raise InputError(f"{name} gives {what}, and tells no classes apart: its weights are missing or broken")
    sums = first.double().sum(dim=1)
    total = float(sums.mean())
    if float(first.min()) >= 0 and float((sums - total).abs().max()) < 1e-4 * total:
        raise InputError(
            f"{name} gives probabilities, which sum to {total:.4g}: let it return the logits that it makes them from, "
            "for attacks on probabilities find less"
        )


def _answer(model: PixelModel, x: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            logits: Tensor = model(x)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # of somebody's code
        raise InputError(
            f"{model.architecture.name} takes 2 images at once, and not {len(x)}: its code fixes the size of the "
            f"batch, e.g. by a reshape with a literal; take it from the input ({in_short(error)})"
        ) from error
    return logits
