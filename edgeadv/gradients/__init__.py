"""The graph of an artefact in PyTorch, with gradients."""

OLDEST, NEWEST = 7, 23
"""Opsets that are read."""
