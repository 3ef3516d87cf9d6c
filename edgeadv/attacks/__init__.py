"""Attacks with PyTorch's gradients, in pixels of [0, 1]."""

from .gradients import cross_entropy, input_gradient, margin, no_direction, rescaled_cross_entropy
from .linf import Adversarial, fgsm, pgd
from .suite import NAMES, FGSMAttack, RandomStartAttack, standard_attacks

__all__ = [
    "NAMES", "Adversarial", "FGSMAttack", "RandomStartAttack", "cross_entropy", "fgsm", "input_gradient", "margin",
    "no_direction", "pgd", "rescaled_cross_entropy", "standard_attacks",
]  # fmt: skip
