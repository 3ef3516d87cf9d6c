"""Networks by name, with their normalisation inside; their weights, and the device they compute on."""
