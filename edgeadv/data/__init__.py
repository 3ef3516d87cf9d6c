"""Labelled images by name, and how they are loaded, shuffled and augmented."""
