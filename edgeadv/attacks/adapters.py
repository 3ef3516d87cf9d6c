"""Attack objects of torchattacks, foolbox and ART as attacks of the evaluation, and torchattacks' AutoAttack.

None of the three is a dependency: whoever passes an attack object has its library, and only :func:`autoattack` imports
one by itself. What comes out is an :class:`~edgeadv_runtime.CallableAttack` at one L-infinity budget. For all of them:

- Attacks are untargeted: the model is right until an image takes it away from its true label.
- The model runs in evaluation mode with frozen parameters; its modes and ``requires_grad`` are as before afterwards.
- What a library draws at random comes from generators of the whole process. They are seeded by ``seed`` and the batch's
  images, and put back afterwards: the same batches give the same images, in a sharded or a resumed run as well, but
  other batches of the same images do not, for these libraries draw for a batch and not for an image.
- What comes back is held to the budget as any attack is (:func:`edgeadv_runtime.attacks.perturbation.check_crafted`),
  and not
  clipped: the 40 attacks of the three that were tried stay within 3e-8 of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeadv_runtime.attacks.base import CallableAttack
from edgeadv_runtime.errors import InputError, require
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.rows import AttackParams

from ..models.modes import evaluation_mode
from .foreign import Images, Labels, adapted, made_by, version

# eps of these is a Euclidean radius, and they have no ``norm`` to say so
_EUCLIDEAN = {"PGDL2", "PGDRSL2"}
# beyond this an attack's eps and the budget are not the same number rounded differently
_SAME_EPS = 5e-7


def from_torchattacks(
    attack: Any,
    *,
    eps: Eps,
    gradients_sha256: str | None,
    name: str | None = None,
    queried: str | None = None,
    seed: int = 0,
) -> CallableAttack:
    """An attack of torchattacks, built on a model that takes pixels of [0, 1].

    A mode that chooses targets by itself (random, least likely, a function) is run as it is; ``targeted(label)`` is
    refused, for it would move images *towards* the true labels that the evaluation passes.

    Args:
        attack: e.g. ``torchattacks.PGD(model, eps=8 / 255)``; ``MultiAttack`` as well.
        eps: the budget; the attack's own must be the same.
        gradients_sha256: hash of the file that the gradients belong to, None if unknown or none are used.
        name: its name in result rows; None is ``"torchattacks-"`` and the class in small letters.
        queried: ``Backend.identity`` of the artefact behind ``attack.model`` if the attack only asks it, as ``Square``
            does.
        seed: of what it draws at random. ``APGD``, ``FAB`` and ``Square`` seed themselves, the same for every batch.

    Raises:
        InputError: not an attack of torchattacks, another budget or norm, a normalisation, ``targeted(label)``, a model
            in training mode, or a model that has moved to another device since.
    """
    made_by("torchattacks", attack)
    members = list(_members(attack))
    for member in members:
        _check_ball(member, eps)
    for part in (attack, *members):
        _check_mode(part)
    device = next(attack.model.parameters()).device
    if attack.device != device:
        raise InputError(f"the attack was built for {attack.device} and its model is on {device}: build it again")

    def run(x: Images, y: Labels) -> Images:
        made: Images = attack(torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)).detach().cpu().numpy()
        return made

    loss, mode = getattr(attack, "loss", None), getattr(attack, "attack_mode", "default")
    described = AttackParams(
        loss=loss if isinstance(loss, str) else None,
        steps=_whole(attack, "steps"),
        step_size=_number(attack, "alpha"),
        restarts=_whole(attack, "n_restarts"),
        seed=getattr(attack, "seed", seed),
        queries=_whole(attack, "n_queries"),
        target=None if mode == "default" else mode,
    )
    return adapted(
        "torchattacks",
        attack,
        run,
        attack.model,
        described,
        eps=eps,
        name=name,
        gradients_sha256=gradients_sha256,
        queried=queried,
        seed=seed,
    )


def from_foolbox(
    attack: Any,
    model: nn.Module,
    *,
    eps: Eps,
    gradients_sha256: str | None,
    name: str | None = None,
    queried: str | None = None,
    seed: int = 0,
) -> CallableAttack:
    """An L-infinity attack of foolbox on ``model``: the images that foolbox clips to the budget.

    An attack that looks for the smallest perturbation, such as ``LinfDeepFoolAttack``, is clipped as well where it
    needs more than the budget; such an image counts as the model takes it.

    Args:
        attack: e.g. ``foolbox.attacks.LinfPGD()``; ``.repeat(n)`` as well.
        model: pixels of [0, 1] to logits.
        eps: the budget.
        gradients_sha256: hash of the file that the gradients belong to, None if unknown or none are used.
        name: its name in result rows; None is ``"foolbox-"`` and the class in small letters.
        queried: ``Backend.identity`` of the artefact behind ``model`` if the attack only asks it.
        seed: of what it draws at random.

    Raises:
        InputError: not an attack of foolbox, one of another norm, or ``model`` is not a ``torch.nn.Module``.
    """
    foolbox = made_by("foolbox", attack)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"pass the torch model itself, not a {type(model).__name__}: foolbox is wrapped around it here"
        )
    try:
        distance = attack.distance
    except ValueError as error:
        raise InputError(f"{type(attack).__name__} has no distance: give it foolbox.distances.linf") from error
    if getattr(distance, "p", None) != math.inf:
        raise InputError(f"{type(attack).__name__} keeps to {distance}: eps {eps.text} is an L-infinity budget")

    def run(x: Images, y: Labels) -> Images:
        device = next(model.parameters()).device
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=device)
        images, labels = torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)
        _, clipped, _ = attack(wrapped, images, labels, epsilons=eps.value)
        made: Images = clipped.detach().cpu().numpy()
        return made

    inner = getattr(attack, "attack", attack)
    relative = _number(inner, "rel_stepsize")
    described = AttackParams(
        steps=_whole(inner, "steps"),
        step_size=_number(inner, "abs_stepsize") or (f"{relative}*{eps.text}" if relative else None),
        restarts=_whole(attack, "times"),
        seed=seed,
    )
    return adapted(
        "foolbox",
        inner,
        run,
        model,
        described,
        eps=eps,
        name=name,
        gradients_sha256=gradients_sha256,
        queried=queried,
        seed=seed,
    )


def from_art(
    attack: Any,
    *,
    eps: Eps,
    gradients_sha256: str | None,
    name: str | None = None,
    queried: str | None = None,
    seed: int = 0,
) -> CallableAttack:
    """An L-infinity evasion attack of the Adversarial Robustness Toolbox with the estimator it was built on.

    The estimator is a ``PyTorchClassifier`` of a model that takes pixels, with ``clip_values=(0, 1)`` and nothing
    before or behind the model. For an attack that only asks, it may be a ``BlackBoxClassifierNeuralNetwork`` around
    :meth:`edgeadv_runtime.Backend.infer`, and so any artefact. Labels are passed one-hot, which every attack of ART
    takes.

    Args:
        attack: e.g. ``ProjectedGradientDescent(classifier, eps=8 / 255)``, untargeted.
        eps: the budget; the attack's own must be the same.
        gradients_sha256: hash of the file that the gradients belong to, None if unknown or none are used.
        name: its name in result rows; None is ``"art-"`` and the class in small letters.
        queried: ``Backend.identity`` of the artefact behind the estimator if the attack only asks it.
        seed: of what it draws at random.

    Raises:
        InputError: not an attack of ART, another budget, norm or range, a targeted attack, or preprocessing or a
            defence in the estimator; when crafting, a label that the estimator has no class for.
    """
    made_by("art", attack)
    estimator = attack.estimator
    kind = type(attack).__name__
    _check_budget(kind, getattr(attack, "eps", None), eps)
    if getattr(attack, "norm", None) not in (np.inf, "inf"):
        raise InputError(f"{kind} has norm {getattr(attack, 'norm', None)}: eps {eps.text} is an L-infinity budget")
    if attack.targeted:
        raise InputError(f"{kind} is targeted, and would move images towards their true labels: build it untargeted")
    _check_estimator(estimator)
    classes = int(estimator.nb_classes)
    model = getattr(estimator, "model", None)

    def run(x: Images, y: Labels) -> Images:
        if len(y) and (y.min() < 0 or y.max() >= classes):
            raise InputError(f"labels run from {y.min()} to {y.max()}, but the estimator has nb_classes={classes}")
        made: Images = np.asarray(attack.generate(x, y=np.eye(classes, dtype=np.float32)[y]), dtype=np.float32)
        return made

    step_size = _number(attack, "eps_step")
    steps = None if step_size is None else _whole(attack, "max_iter")
    described = AttackParams(steps=steps, step_size=None if steps is None else step_size, seed=seed)
    return adapted(
        "art",
        attack,
        run,
        model if isinstance(model, nn.Module) else None,
        described,
        eps=eps,
        name=name,
        gradients_sha256=gradients_sha256,
        queried=queried,
        seed=seed,
    )


def autoattack(
    model: nn.Module,
    *,
    eps: Eps,
    gradients_sha256: str | None,
    n_classes: int = 10,
    steps: int | None = None,
    seed: int = 0,
    name: str = "autoattack-torchattacks",
) -> CallableAttack:
    """torchattacks' re-implementation of AutoAttack, version "standard", as a cross-check of our own suite.

    AutoAttack (Croce and Hein 2020, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
    Parameter-free Attacks") is, in the version that its authors call standard, APGD on the cross-entropy, targeted APGD
    on the DLR loss, targeted FAB and Square, each on the images that still stand. torchattacks 3.5.1 runs the same four
    in the same order, but it is not the authors' code (github.com/fra31/auto-attack): do not put its figures beside
    those of a leader board. It differs in that

    - APGD and FAB take 10 steps, not the paper's 100 (torchattacks issue 196); ``steps=100`` brings them back;
    - Square's squares shrink over its 5,000 queries; the authors' as if there were 10,000;
    - the authors' checks are missing: for random outputs, for probabilities, for a Square that beats the rest.

    As with the authors' code an image comes back unchanged if no attack broke it, and just across the boundary if one
    did. So the images serve to count on ``model``. On another artefact (ONNX, int8) they flatter it: compare rows of
    torch only.

    Args:
        model: pixels of [0, 1] to logits, 4 or more: the targeted DLR loss divides by a difference to the fourth
            largest.
        eps: the budget.
        gradients_sha256: hash of the model's weights.
        n_classes: the ``n_classes - 1`` classes that come next are an image's targets; the authors take 9.
        steps: of APGD and FAB; None takes the library's class as it is.
        seed: of every attack in it.
        name: its name in result rows.

    Raises:
        MissingDependencyError: torchattacks is not installed.
        InputError: when crafting, fewer than 4 classes, or ``n_classes`` is not from 2 to their number.
    """
    theirs = require("torchattacks", extra=None)
    if steps is None:
        attack = theirs.AutoAttack(model, eps=eps.value, version="standard", n_classes=n_classes, seed=seed)
    else:
        common: dict[str, Any] = {"eps": eps.value, "seed": seed, "n_restarts": 1}
        attack = theirs.MultiAttack(
            [
                theirs.APGD(model, loss="ce", steps=steps, **common),
                theirs.APGDT(model, n_classes=n_classes, steps=steps, **common),
                theirs.FAB(model, multi_targeted=True, n_classes=n_classes, steps=steps, **common),
                theirs.Square(model, n_queries=5000, **common),
            ]
        )
    made = from_torchattacks(attack, eps=eps, gradients_sha256=gradients_sha256, name=name, seed=seed)

    def function(x: Images, y: Labels) -> Images:
        with evaluation_mode(model), torch.no_grad():
            classes = model(torch.from_numpy(x[:1]).to(attack.device)).shape[1]
        if classes < 4 or not 2 <= n_classes <= classes:
            raise InputError(
                f"AutoAttack needs 4 classes or more, the model has {classes}, and n_classes from 2 to that, not "
                f"{n_classes}"
            )
        return made.function(x, y)

    library = f"{version('torchattacks')}, a re-implementation of AutoAttack"
    described = AttackParams(norm="linf", steps=steps, restarts=1, seed=seed, queries=5000, library=library)
    return replace(made, function=function, described=described)


def _members(attack: Any) -> Iterator[Any]:
    """The attacks that keep to a budget of their own: those of a ``MultiAttack``, else the attack itself."""
    for member in getattr(attack, "attacks", [attack]):
        yield from [member] if member is attack else _members(member)


def _check_ball(attack: Any, eps: Eps) -> None:
    kind = type(attack).__name__
    _check_budget(kind, getattr(attack, "eps", getattr(attack, "max_epsilon", None)), eps)
    euclidean = any(base.__name__ in _EUCLIDEAN for base in type(attack).__mro__)
    norm = "L2" if euclidean else getattr(attack, "norm", "Linf")
    if norm != "Linf":
        raise InputError(f"{kind} has norm {norm}: eps {eps.text} is an L-infinity budget")


def _check_mode(attack: Any) -> None:
    kind = type(attack).__name__
    if attack.normalization_used is not None:
        raise InputError(f"{kind} normalises: build it on a model that takes pixels, without set_normalization_used")
    if attack.attack_mode == "targeted(label)":
        raise InputError(f"{kind} would move images towards their true labels: leave out set_mode_targeted_by_label")
    if attack._model_training:
        raise InputError(f"{kind} would run the model in training mode: leave out set_model_training_mode")


def _check_estimator(estimator: Any) -> None:
    clip = estimator.clip_values
    if clip is None or not (np.all(np.asarray(clip[0]) == 0) and np.all(np.asarray(clip[1]) == 1)):
        raise InputError(f"the estimator's clip_values are {clip}: pixels run from 0 to 1, pass clip_values=(0, 1)")
    steps = [*estimator.preprocessing_operations, *(estimator.postprocessing_defences or [])]
    for step in steps:
        # ART puts a standardisation with mean 0 and deviation 1 where none was asked for
        if not (np.all(getattr(step, "mean", None) == 0) and np.all(getattr(step, "std", None) == 1)):
            raise InputError(
                f"the estimator has a {type(step).__name__}: build it on a model that takes pixels, without "
                "preprocessing "
                "and without defences"
            )


def _check_budget(kind: str, own: Any, eps: Eps) -> None:
    if own is None:
        raise InputError(f"{kind} has no eps: it keeps to no budget, so there is none at which to count")
    if np.ndim(own) or not abs(float(own) - eps.value) <= _SAME_EPS:
        raise InputError(
            f"{kind} was built with eps {own}, not {eps.text} = {eps.value:.6f}: build it with the same budget"
        )


def _whole(attack: Any, name: str) -> int | None:
    value = getattr(attack, name, None)
    return value if isinstance(value, int) else None


def _number(attack: Any, name: str) -> str | None:
    value = getattr(attack, name, None)
    return f"{value:.6g}" if isinstance(value, (int, float)) else None
