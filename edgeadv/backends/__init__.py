"""PyTorch under the contract of a backend."""
