"""Attacks with PyTorch's gradients, in pixels of [0, 1]."""

from .functions import apgd, apgd_targeted, fgsm, mi_fgsm, pgd
from .iterate import Adversarial, AutoSteps, MomentumSteps, Steps, ascend
from .losses import (
    cross_entropy,
    dlr,
    input_gradient,
    margin,
    no_direction,
    rescaled_cross_entropy,
    targeted_dlr,
    targeted_margin,
    towards,
)
from .norms import L2, Ball, Linf, ball
from .suite import NAMES, GradientAttack, build_attacks

__all__ = [
    "L2",
    "NAMES",
    "Adversarial",
    "AutoSteps",
    "Ball",
    "GradientAttack",
    "Linf",
    "MomentumSteps",
    "Steps",
    "apgd",
    "apgd_targeted",
    "ascend",
    "ball",
    "build_attacks",
    "cross_entropy",
    "dlr",
    "fgsm",
    "input_gradient",
    "margin",
    "mi_fgsm",
    "no_direction",
    "pgd",
    "rescaled_cross_entropy",
    "targeted_dlr",
    "targeted_margin",
    "towards",
]
