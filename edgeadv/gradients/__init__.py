"""The graph of an artefact in PyTorch, with gradients."""
