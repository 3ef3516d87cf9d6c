"""Training of a network: ordinary, adversarial, and distillation; its checkpoints and its runs."""
